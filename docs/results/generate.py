# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Write tables and numbers into pages from the rows in `runs/`: `python docs/results/generate.py`, after new rows.

`<!-- table NAME -->` marks the place of a table, `<!-- rule NAME -->` that of the verdicts on its rows by the rule of
defaults: of levers, and of ImageNet's weights against none in a table of encoders.  `<!-- choice PHANTOMS -->` marks
that of the study of scores without masks, from all tables of the name `choice_…`; PHANTOMS is the one of phantoms.
`<!-- methods NAME -->` marks the leaderboard of all methods on a data set, and `<!-- agreement PREFIX -->` the study of
the agreement between methods, from all tables of the name `PREFIX_…`.
`<!-- numbers BUNDLE -->` marks what its shipped weights reach, see `measure_bundles.py`.  Which metrics and data sets
are stated stands in `eval_metrics` of the bundle's metadata, whose values are written, too.

A single number stands in a mark of its own, which no browser shows and which begins no line:

    <!--= SOURCE METRIC FORMAT -->0.61 [0.50, 0.70]<!--/-->

SOURCE is a file of `runs/shipped/` without `.json`, such as `brain_mri_cam/lgg_mri_64`, or the folder of a row of
another table with all its seeds, without `validation/`: `encoder_ph2/cam_imagenet_weights`; with `/seed0` it is that
seed alone.  Of several rows or columns the first is meant, or what stands behind a colon, written as folders are:
`encoder_ph2/cam_imagenet_weights:par`, and `brain_mri_coingan/lgg_mri_64:otsu_on_flair`.  FORMAT:

    2, 3, …     the mean over seeds, with as many digits; 2 may be left out
    ci          the mean and its 95 % interval, of one row: 0.61 [0.50, 0.70]
    to          the interval alone: 0.50 to 0.70
    sd          the mean and the standard deviation over seeds: 0.611 ± 0.007
    n           the number of subjects
    / SOURCE    the mean divided by that of another source: 0.85; 3/ SOURCE with three digits
    - SOURCE    the mean less that of another source: 0.013
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss._checks import DataError
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES
from monai_wsss.benchmark.bmp_table import BMP_COLUMNS
from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.cam_table import CAM_COLUMNS
from monai_wsss.benchmark.choice_study import format_choice, format_method_choice
from monai_wsss.benchmark.cmer_recipes import CMER_RECIPES
from monai_wsss.benchmark.cmer_table import cmer_columns
from monai_wsss.benchmark.coingan_table import COINGAN_ROWS, coingan_sections
from monai_wsss.benchmark.cosa_figures import final_labels
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.cosa_table import cosa_sections
from monai_wsss.benchmark.encoder_recipes import BUDGETS, default_lever, encoder_recipes, lever_recipes
from monai_wsss.benchmark.encoder_table import encoder_columns
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.gland_recipes import ROWS
from monai_wsss.benchmark.gland_table import gland_columns
from monai_wsss.benchmark.leaderboard import format_leaderboard, kept_outcomes
from monai_wsss.benchmark.lever_rule import format_lever_rule
from monai_wsss.benchmark.published_numbers import not_rebuilt, published_tables
from monai_wsss.benchmark.rows import Row, folder_name, read_kept_rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OF_ONE_METHOD = ("lgg_cam", "lgg_cmer", "lgg_bmp", "glas_gland")
RESULTS = ("encoders", "cosa", "coingan", "choosing", "methods", "cardiac", *OF_ONE_METHOD)
BUNDLES = sorted(ROOT.glob("bundles/*_segmentation"))
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "which_method.md",
    HERE / "README.md",
    *(HERE / f"{name}.md" for name in RESULTS),
    *(bundle / "docs" / "README.md" for bundle in BUNDLES),
]
NOTHING = "No row yet."
SIMULATED = "Simulated supervision: labels were made from masks on request."
PENDING: frozenset[str] = frozenset()
"""Shipped weights on data that `measure_bundles.py` has not measured yet: their marks keep what was typed before."""
WEIGHTS = "shipped weights"
CHOSEN_WITH_MASKS: dict[str, tuple[frozenset[str], str]] = {
    "lgg": (frozenset({"coingan", "full"}), "Pooling, and the preset of AFA and BMP, were"),
    "ph2": (frozenset({"full"}), "Pooling, rule and scales, and of cosa where its class maps begin, were"),
    "glas": (frozenset({"gland", "full"}), "Pooling was"),
    "dsb": (frozenset({"full"}), "Pooling, rule and scales were"),
    "cxr": (frozenset({"full"}), "Pooling, rule and scales were"),
}
"""Data set -> methods without a setting that was chosen with masks of its validation split, and what was chosen so."""

PAPERS = {
    "cam": [*CAM_RECIPES],
    "cmer": [*CMER_RECIPES],
    "bmp": [*BMP_RECIPES, *BMP_BOUND],
    "gland": [*ROWS["gland"]],
}
"""Table of one method -> its rows in their order."""


def contents() -> dict[Path, str]:
    """Give what each page and each bundle's metadata is to hold, by its path."""
    metadata = [bundle / "configs" / "metadata.json" for bundle in BUNDLES]
    texts = {path: path.read_text(encoding="utf-8") for path in [*PAGES, *metadata]}
    written = {path: generate(texts[path]) for path in PAGES}
    return written | {path: with_metrics(texts[path], bundle) for path, bundle in zip(metadata, BUNDLES, strict=True)}


def generate(page: str, runs: Path = HERE / "runs") -> str:
    """Give the page with the text between each pair of marks replaced by what the first mark names.

    Raises:
        DataError: a mark of a single number names what is not there.
    """
    marks = re.compile(r"(<!-- (table|rule|choice|methods|agreement|numbers) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    write = {"table": _table, "rule": _rule, "choice": _choice, "methods": _methods}
    write |= {"agreement": _agreement, "numbers": _numbers}

    def block(found: re.Match[str]) -> str:
        return (
            found[0]
            if found[2] == "numbers" and _pending(found[3])
            else f"{found[1]}{write[found[2]](found[3], runs)}\n{found[4]}"
        )

    page = marks.sub(block, page)
    number = re.compile(r"(<!--= (\S+) (\S+)(?: ([^<>]+?))? -->)[^<]*(<!--/-->)")

    def one(found: re.Match[str]) -> str:
        pending = found[2].partition(":")[0] in PENDING
        return found[0] if pending else f"{found[1]}{_number(*found.groups()[:4], runs)}{found[5]}"

    return number.sub(one, page)


def with_metrics(text: str, bundle: Path, runs: Path = HERE / "runs") -> str:
    """Give a bundle's `metadata.json` with the values of `eval_metrics` as they were measured."""
    metadata = json.loads(text)
    as_it_was = json.dumps(metadata, indent=4) + "\n" == text
    name = bundle.name.removesuffix("_segmentation")
    if _pending(name):
        return text
    for data, metrics in metadata["eval_metrics"].items():
        (row, *_) = _shipped(runs, name, data)
        metrics |= {metric: round(row.metrics[metric]["mean"], 4) for metric in metrics}
    return json.dumps(metadata, indent=4, ensure_ascii=as_it_was) + "\n"


def _pending(bundle: str) -> bool:
    return any(name.startswith(f"{bundle}/") for name in PENDING)


# ---- single numbers --------------------------------------------------------------------------------------------------


def _number(mark: str, source: str, metric: str, form: str | None, runs: Path) -> str:
    """Give the number of a mark."""
    try:
        return _formatted(_values(source, metric, runs), form or "2", metric, runs)
    except LookupError as error:
        raise DataError(
            f"Cannot fill the mark {mark}: {error.args[0]}; correct it, or measure what it names by "
            "docs/results/measure_bundles.py or `monai-wsss benchmark`."
        ) from error


def _formatted(values: list[dict[str, Any]], form: str, metric: str, runs: Path) -> str:
    """Give what a format makes of a metric of all seeds."""
    means, (first, *others) = [value["mean"] for value in values], values
    mean = float(np.mean(means))
    if form.isdigit():
        return f"{mean:.{form}f}"
    sign, _, source = form.partition(" ")
    if sign in ("/", "3/", "-"):
        other = float(np.mean([one["mean"] for one in _values(source, metric, runs)]))
        return f"{mean - other:.3f}" if sign == "-" else f"{mean / other:.{3 if sign == '3/' else 2}f}"
    if form == "sd" and others:
        return f"{mean:.3f} ± {np.std(means, ddof=1):.3f}"
    if form == "n" and "n" in first:
        return str(first["n"])
    if form in ("ci", "to") and not others and first.get("ci95"):
        low, high = first["ci95"]
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if form == "ci" else f"{low:.2f} to {high:.2f}"
    raise LookupError(f"{len(values)} row(s) of {metric} have nothing to show as `{form}`")


def _values(source: str, metric: str, runs: Path) -> list[dict[str, Any]]:
    """Give a metric of the rows that a mark means, of all seeds."""
    values = [dict(row.metrics.get(metric, {})) for row in _rows_of(source, runs)]
    if not all("mean" in value for value in values):
        raise LookupError(f"{source} has no {metric}")
    return values


def _rows_of(source: str, runs: Path) -> list[Row]:
    """Give the rows that a mark means, of all seeds."""
    name, _, part = source.partition(":")
    table, _, row = name.partition("/")
    shipped, folder = runs / "shipped" / f"{name}.json", runs / table / "validation" / row
    files = [path for path in (shipped, folder.with_name(f"{folder.name}.json")) if path.is_file()]
    paths = files or sorted(folder.glob("*.json"))
    rows = [Row(**one) for path in paths for one in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    if part:
        rows = [
            one for one in rows if part in (folder_name(one.name.removeprefix("trivial: ")), folder_name(one.column))
        ]
    if not rows:
        raise LookupError(f"there is no row {source} in {runs.name}/")
    return [one for one in rows if one.label == rows[0].label]


# ---- blocks ----------------------------------------------------------------------------------------------------------


def _numbers(bundle: str, runs: Path) -> str:
    """Give the table of a bundle's shipped weights, trivial answers beside them, and the intervals of its Dice."""
    path = ROOT / "bundles" / f"{bundle}_segmentation" / "configs" / "metadata.json"
    stated = json.loads(path.read_text(encoding="utf-8"))["eval_metrics"]
    found = {data: _shipped(runs, bundle, data) for data in stated}
    columns = {_head(data, row): row.metrics for data, rows in found.items() for row in rows}
    lines = [f"| {' | '.join(['metric', *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for metric in next(iter(stated.values())):
        lines.append(f"| {' | '.join([metric, *(_four(metrics.get(metric)) for metrics in columns.values())])} |")
    spans = []
    for data, (own, *others) in found.items():
        told = [f"{row.name.removeprefix('trivial: ')} {_span(row)}" for row in others]
        told.append(f"n = {own.metrics['dice_subject']['n']}")
        spans.append(f"{data} {_span(own)} ({'; '.join(told)})")
    return "\n".join([*lines, "", f"95 % intervals of dice_subject: {', '.join(spans)}."])


def _shipped(runs: Path, bundle: str, data: str) -> list[Row]:
    """Give the rows of shipped weights on some data: theirs first, then those of trivial answers."""
    path = runs / "shipped" / bundle / f"{data}.json"
    if not path.is_file():
        raise DataError(f"There is no {path.name} of {bundle}: run docs/results/measure_bundles.py.")
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def _head(data: str, row: Row) -> str:
    return data if row.name == WEIGHTS else f"{data}, {row.name.removeprefix('trivial: ')}"


def _four(metric: Any) -> str:
    return "–" if metric is None else f"{metric['mean']:.4f}"


def _span(row: Row) -> str:
    low, high = row.metrics["dice_subject"]["ci95"]
    return f"{low:.2f} to {high:.2f}"


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
    if name.partition("_")[0] in PAPERS:
        return _of_paper(name.partition("_")[0], rows)
    columns = encoder_columns(background="glas" not in name.split("_"), bounded=name.startswith("encoder"))
    counted = Column("seeds", "dice_pooled", kind="count")
    return format_rows(rows, [counted, *(column for column in columns if _is_filled(column, rows))])


def _of_paper(kind: str, rows: list[Row]) -> str:
    """Give the ablation of a method, in the order and with the columns of its command."""
    names = PAPERS[kind]
    rows = sorted(rows, key=lambda row: (row.name.startswith("trivial"), *_place_of_kind(row, names)))
    if kind == "cmer":
        columns = cmer_columns([name for name in dict.fromkeys(row.column for row in rows) if "fused" not in name])
    else:
        columns = {"cam": CAM_COLUMNS, "bmp": BMP_COLUMNS, "gland": gland_columns()}[kind]
    dice = next(column for column in reversed(columns) if column.kind == "ratio")
    return _shown(rows, [Column("seeds", dice.metric, dice.bound, "count"), *columns])


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
    return _shown(rows, columns)


def _shown(rows: list[Row], columns: list[Column]) -> str:
    """Give a table of the columns that have values, which says where its labels are simulated."""
    table = format_rows(rows, [column for column in columns if _is_filled(column, rows)])
    return f"{table}\n\n{SIMULATED}" if any(row.simulated_supervision for row in rows) else table


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


def _methods(name: str, runs: Path) -> str:
    """Give the leaderboard of all runs on a data set."""
    outcomes = kept_outcomes(runs / f"methods_{name}" / "validation")
    if not outcomes:
        return NOTHING
    text = format_leaderboard(outcomes, "dice_subject", f"{name}, validation split")
    if name not in CHOSEN_WITH_MASKS:
        return text
    clean, chosen = CHOSEN_WITH_MASKS[name]
    for method in {outcome.pair.method for outcome in outcomes} - clean:
        text = text.replace(f"\n| {method} |", f"\n| {method} † |").replace(f"\n| {method}, ", f"\n| {method} †, ")
    return f"{text}\n\n† {chosen} chosen with masks of these very images: take the numbers as optimistic."


def _agreement(prefix: str, runs: Path) -> str:
    """Give the study of the agreement between methods, of every data set whose ensemble has measured it."""
    folders = sorted(runs.glob(f"{prefix}_*"))
    tables = {folder.name.removeprefix(f"{prefix}_"): read_kept_rows(folder / "validation") for folder in folders}
    return format_method_choice(tables) or NOTHING


def _tells_presence(row: Row) -> bool:
    return "tile_auroc" in row.metrics or "presence_auroc" in row.metrics


def _in_order(rows: list[Row]) -> list[Row]:
    """Sort rows as the command does: trivial ones last."""
    names = [name for budget in BUDGETS.values() for name in encoder_recipes(budget, refined="par")]
    names += ["scales 1", "scales 0.5, 1", "scales 0.5, 1, 1.5"]
    names += list(cosa_recipes(COSA_BUDGETS["tiles"]))
    names += [name for budget in BUDGETS.values() for name in lever_recipes(budget, in_channels=4)]
    return sorted(rows, key=lambda row: _place(row, names))


def _place_of_kind(row: Row, names: list[str]) -> tuple[int, str]:
    """Give the place of a row among names; what is measured of a named training otherwise stands behind it."""
    base = max((name for name in names if row.name.startswith(f"{name}, ") or row.name == name), key=len, default="")
    return (names.index(base) if base else len(names), row.name.removeprefix(base))


def _place(row: Row, names: list[str]) -> int:
    """Give the place of a row among names, the end where it has none."""
    return names.index(row.name) if row.name in names else len(names)


def _is_filled(column: Column, rows: list[Row]) -> bool:
    return column.kind != "value" or bool(values_of(rows, column.metric))


if __name__ == "__main__":
    for path, text in contents().items():
        path.write_text(text, encoding="utf-8")
