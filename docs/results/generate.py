# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Write the tables of some pages from the rows in `runs/`: `python docs/results/generate.py`, after new rows."""

from __future__ import annotations

import re
from pathlib import Path

from monai_wsss.benchmark.cosa_figures import final_labels
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.cosa_table import cosa_sections
from monai_wsss.benchmark.encoder_recipes import BUDGETS, encoder_recipes, lever_recipes
from monai_wsss.benchmark.encoder_table import encoder_columns
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.published_numbers import published_tables
from monai_wsss.benchmark.rows import Row, read_kept_rows

HERE = Path(__file__).parent
PAGES = [HERE / name for name in ("encoders.md", "cosa.md")]
NOTHING = "No row yet."


def generate(page: str) -> str:
    """Give the page with the text between each pair of marks replaced by the table that the first mark names."""
    marks = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{_table(found[2])}\n{found[3]}", page)


def _table(name: str) -> str:
    if name.startswith("published"):
        tables = published_tables(name.removeprefix("published_")).items()
        return "\n\n".join(f"**Table {number}: {told.title}**\n\n{told.markdown()}" for number, told in tables)
    rows = _in_order(read_kept_rows(HERE / "runs" / name / "validation"))
    if not rows:
        return NOTHING
    if name.startswith("cosa_figures"):
        return final_labels(rows)
    if name.startswith("cosa"):
        return "\n\n".join(f"**{title}**\n\n{table}" for title, table in cosa_sections(rows).items())
    columns = encoder_columns(background=not name.endswith("glas"), bounded=name.startswith("encoder"))
    counted = Column("seeds", "dice_pooled", kind="count")
    return format_rows(rows, [counted, *(column for column in columns if _is_filled(column, rows))])


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
