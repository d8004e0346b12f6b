# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Write the tables of some pages from the rows in `runs/`: `python docs/results/generate.py`, after new rows.

`<!-- table NAME -->` marks the place of a table, `<!-- rule NAME -->` that of the verdicts on its rows by the rule of
defaults: of levers, and of ImageNet's weights against none in a table of encoders.  `<!-- choice PHANTOMS -->` marks
that of the study of scores without masks, from all tables of the name `choice_…`; PHANTOMS is the one of phantoms.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from monai_wsss.benchmark.choice_study import format_choice
from monai_wsss.benchmark.coingan_table import COINGAN_ROWS, coingan_sections
from monai_wsss.benchmark.cosa_figures import final_labels
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.cosa_table import cosa_sections
from monai_wsss.benchmark.encoder_recipes import BUDGETS, default_lever, encoder_recipes, lever_recipes
from monai_wsss.benchmark.encoder_table import encoder_columns
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.lever_rule import format_lever_rule
from monai_wsss.benchmark.published_numbers import not_rebuilt, published_tables
from monai_wsss.benchmark.rows import Row, read_kept_rows

HERE = Path(__file__).parent
PAGES = [HERE / name for name in ("encoders.md", "cosa.md", "coingan.md", "choosing.md", "cardiac.md")]
NOTHING = "No row yet."


def generate(page: str, runs: Path = HERE / "runs") -> str:
    """Give the page with the text between each pair of marks replaced by what the first mark names."""
    marks = re.compile(r"(<!-- (table|rule|choice) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    write = {"table": _table, "rule": _rule, "choice": _choice}
    return marks.sub(lambda found: f"{found[1]}{write[found[2]](found[3], runs)}\n{found[4]}", page)


def _table(name: str, runs: Path) -> str:
    if name.startswith("published"):
        paper = name.removeprefix("published_")
        tables = published_tables(paper).items()
        parts = [f"**Table {number}: {told.title}**\n\n{told.markdown()}" for number, told in tables]
        parts += [f"Not rebuilt: {what}, since {why}." for what, why in not_rebuilt(paper).items()]
        return "\n\n".join(parts)
    rows = _in_order(read_kept_rows(runs / name / "validation"))
    if not rows:
        return NOTHING
    if name.startswith("coingan"):
        rows = sorted(rows, key=lambda row: COINGAN_ROWS.index(row.name))
        return "\n\n".join(f"**{title}**\n\n{table}" for title, table in coingan_sections(rows).items())
    if name.startswith("cosa_figures"):
        return final_labels(rows)
    if name.startswith("cosa"):
        return "\n\n".join(f"**{title}**\n\n{table}" for title, table in cosa_sections(rows).items())
    if name.startswith("methods"):
        return _of_classes(rows)
    columns = encoder_columns(background="glas" not in name.split("_"), bounded=name.startswith("encoder"))
    counted = Column("seeds", "dice_pooled", kind="count")
    return format_rows(rows, [counted, *(column for column in columns if _is_filled(column, rows))])


def _of_classes(rows: list[Row]) -> str:
    """Give a comparison of methods on several classes: Dice per subject of each class, then what they have together."""
    rows = sorted(rows, key=lambda row: row.name.startswith("trivial"))
    classes = dict.fromkeys(name for row in rows for name in row.metrics if name.startswith("dice_subject/"))
    columns = [
        Column("seeds", "dice_subject", kind="count"),
        *(Column(f"Dice {name.partition('/')[2]}", name) for name in classes),
        Column("Dice, mean", "dice_subject"),
        Column("of full supervision", "dice_subject", kind="ratio"),
        Column("Dice pooled", "dice_pooled"),
        Column("healthy clean", "healthy_clean"),
        Column("image AUROC", "image_auroc"),
        Column("steps", "steps"),
    ]
    table = format_rows(rows, [column for column in columns if _is_filled(column, rows)])
    simulated = any(row.simulated_supervision for row in rows)
    return f"{table}\n\nSimulated supervision: labels were made from masks on request." if simulated else table


def _rule(name: str, runs: Path) -> str:
    """Hold the rows of a table, and of the same table at another size or in standardized colors, against its default.

    In a table of encoders the default is the same classifier from scratch, and a row at another size or in other colors
    is held against itself as usual.  A table with a CRF instead of PAR has the same classifiers and says nothing more.
    """
    rows = _in_order(read_kept_rows(runs / name / "validation"))
    changed = []
    for folder in sorted(runs.glob(f"{name}_*")):
        more = folder.name.removeprefix(f"{name}_").replace("_", " ")
        if "crf" not in more.split():
            kept = _in_order(read_kept_rows(folder / "validation"))
            changed += [(row.name, replace(row, name=f"{row.name}, {more}")) for row in kept]
    if not rows + [row for _, row in changed]:
        return NOTHING
    if not name.startswith("encoder"):
        rows += [row for _, row in changed]
        slices = "slices" if values_of(rows, "presence_auroc") else "patches"
        kind = "tiles" if values_of(rows, "tile_auroc") else slices
        return format_lever_rule(rows, default_lever(BUDGETS[kind]))
    tables = [format_lever_rule(rows, "CAM, from scratch")]
    for usual in dict.fromkeys(of for of, row in changed if _tells_presence(row)):
        own = [row for row in rows if row.name == usual]
        tables.append(format_lever_rule(own + [row for of, row in changed if of == usual], usual))
    return "\n\n".join(tables)


def _choice(phantoms: str, runs: Path) -> str:
    """Give the study of scores without masks, of every data set that has rows."""
    names = [folder.name.removeprefix("choice_") for folder in sorted(runs.glob("choice_*"))]
    tables = {name: read_kept_rows(runs / f"choice_{name}" / "validation") for name in names}
    sections = format_choice(tables, phantoms=phantoms)
    return "\n\n".join(f"**{title}**\n\n{text}" for title, text in sections.items())


def _tells_presence(row: Row) -> bool:
    return "tile_auroc" in row.metrics or "presence_auroc" in row.metrics


def _in_order(rows: list[Row]) -> list[Row]:
    """Sort rows as the command does: trivial ones last."""
    names = [name for budget in BUDGETS.values() for name in encoder_recipes(budget, refined="par")]
    names += ["scales 1", "scales 0.5, 1", "scales 0.5, 1, 1.5"]
    names += list(cosa_recipes(COSA_BUDGETS["tiles"]))
    names += [name for budget in BUDGETS.values() for name in lever_recipes(budget, in_channels=4)]
    return sorted(rows, key=lambda row: names.index(row.name) if row.name in names else len(names))


def _is_filled(column: Column, rows: list[Row]) -> bool:
    return column.kind != "value" or bool(values_of(rows, column.metric))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(generate(page.read_text(encoding="utf-8")), encoding="utf-8")
