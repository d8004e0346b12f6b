# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The comparison of methods as one page, ``comparison.html``, from the runs' JSON and what they keep of their cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wsss._labels import CLASS_COLORS
from monai_wsss.benchmark.comparison_cases import ComparedCases
from monai_wsss.benchmark.comparison_charts import calibration_charts, threshold_charts
from monai_wsss.benchmark.formatting import values_of
from monai_wsss.benchmark.kept_cases import KeptCases
from monai_wsss.benchmark.ladders import Ladder, Rung
from monai_wsss.benchmark.leaderboard import (
    HEADS,
    UNCERTAINTY_HEADS,
    UNCERTAINTY_NOTE,
    WITHOUT_MASKS,
    Outcome,
    Standing,
    cells_of,
    footnotes,
    reasons_of,
    standings,
    uncertainty_rows,
)
from monai_wsss.benchmark.method_agreement import AGREEMENT_HEADS, AGREEMENT_NOTE, agreement_rows, agreements
from monai_wsss.benchmark.method_recipes import Pair
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.reports.case_table import cell, count
from monai_wsss.reports.charts import interval_bar
from monai_wsss.reports.panels import MASK_COLOR, REFERENCE_COLOR
from monai_wsss.reports.templates import write_page

__all__ = ["ComparedRow", "write_comparison"]

_SCORES, _COSTS = slice(2, 9), slice(9, 13)
_PARTS = (
    ("class_map_pixel_auroc", "Class map: pixel AUROC"),
    ("class_map_oracle_dice_subject", "Class map: Dice at its best threshold"),
    ("pixel_auroc", "Score map: pixel AUROC"),
    ("oracle_dice_subject", "Score map: Dice at its best threshold"),
    ("dice_subject", "Final mask: Dice"),
)
_COSTS_NOTE = (
    "Steps, minutes and memory are those of all trainings behind a row. Minutes and memory are of the machines that "
    "trained, and mean little where several trainings shared one."
)


@dataclass(frozen=True)
class ComparedRow:
    """What the runs of one method and encoder keep besides their numbers.

    Attributes:
        pair: method and encoder.
        command: trains and measures the row again.
        records: the JSON of each run that was measured, in the order of the seeds.
        cases: of the first of them; None where they were not kept.
        remark: what the command does not tell of the steps.
    """

    pair: Pair
    command: str
    records: Sequence[Mapping[str, Any]]
    cases: KeptCases | None = None
    remark: str = ""


def write_comparison(
    path: Path,
    title: str,
    outcomes: Sequence[Outcome],
    metric: str,
    rows: Sequence[ComparedRow],
    data: PreparedData,
    ladders: Sequence[tuple[Ladder, Sequence[Rung]]] = (),
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: of the page.
        title: names the data and the length of the trainings.
        outcomes: of all pairs and seeds.
        metric: what methods are ranked by, see :func:`~monai_wsss.benchmark.leaderboard.standings`.
        rows: of the pairs that were measured, in any order.
        data: what they were measured on.
        ladders: ablations on the same data, see :func:`~monai_wsss.benchmark.ladders.kept_ladders`.

    Returns:
        The path.

    Raises:
        DataError: the page cannot be written.
    """
    lines = standings(outcomes, metric)
    by_pair = {row.pair: row for row in rows}
    kept = [(line.pair.name, by_pair[line.pair].cases) for line in lines if line.pair in by_pair]
    named = [(name, cases) for name, cases in kept if cases is not None]
    read = data.whole_maps(None, None)[0] if named else []
    # A split of another length than the runs' was written into the datalist meanwhile.
    named = [(name, cases) for name, cases in named if len(cases.masks) == len(read)]
    header, classes = data.header, list(data.header["classes"])
    compared = None
    if named:
        compared = ComparedCases(
            read, named, modalities=data.modalities, classes=classes, background=bool(header["background"])
        )
    view = {
        "title": f"Comparison of methods: {title}",
        "heading": f"Comparison of methods on {header['name']}",
        "lead": _lead(title, lines, outcomes),
        "simulated": str(header.get("labels", "")) if header.get("simulated_supervision", False) else None,
        "by_masks": metric == "dice_subject",
        "without_masks": WITHOUT_MASKS,
        "board": _board(lines, metric, by_pair, outcomes),
        "notes": [*footnotes(lines, metric), *_subjects(lines)],
        "parts": _parts(lines),
        "uncertainty": {
            "columns": [_title(head) for head in UNCERTAINTY_HEADS],
            "rows": uncertainty_rows(lines),
            "note": UNCERTAINTY_NOTE,
            "ensembles": any(line.pair.is_ensemble and line.rows for line in lines),
        },
        "agreement": {
            "columns": [_title(head) for head in AGREEMENT_HEADS],
            "rows": agreement_rows(agreements(row for line in lines for row in line.rows)),
            "note": AGREEMENT_NOTE,
        },
        "costs": {"columns": ["Method", "Encoder", *_titles(_COSTS)], "rows": _costs(lines, metric)},
        "costs_note": _COSTS_NOTE,
        "reasons": reasons_of(outcomes),
        "ladders": [_ladder(ladder, rungs) for ladder, rungs in ladders],
        "thresholds": threshold_charts(named),
        "calibration": calibration_charts(named),
        "gallery": None if compared is None else compared.gallery(),
        "cases": None if compared is None else compared.table(),
        "lacking": [name for name, _ in kept if name not in dict(named)],
        "outlined": compared is not None and compared.outlined,
        "classes": [
            (name, "#{:02x}{:02x}{:02x}".format(*CLASS_COLORS[place % len(CLASS_COLORS)]))
            for place, name in enumerate(classes)
        ],
        "colors": {"reference": REFERENCE_COLOR, "mask": MASK_COLOR},
    }
    return write_page(path, "comparison.html.jinja", view)


def _lead(title: str, lines: Sequence[Standing], outcomes: Sequence[Outcome]) -> str:
    runs, measured = sum(outcome.row is not None for outcome in outcomes), sum(bool(line.rows) for line in lines)
    return f"{title}. {count(runs, 'run')}, {measured} of {count(len(lines), 'row')} measured."


def _subjects(lines: Sequence[Standing]) -> list[str]:
    """Say how many subjects stand behind the Dice; nothing where no masks are known."""
    found = [
        row.metrics["dice_subject"].get("n") for line in lines for row in line.rows if "dice_subject" in row.metrics
    ]
    return [f"Dice per subject is that of {count(found[0], 'subject')} with a finding."] if found and found[0] else []


def _ladder(ladder: Ladder, rungs: Sequence[Rung]) -> dict[str, Any]:
    """Give a ladder as a table: marks, the mean and deviation over the seeds, and the step from the first row."""
    rows = []
    for rung in rungs:
        number = f"{rung.mean:.3f}" + (f" ± {rung.deviation:.3f}" if len(rung.values) > 1 else "")
        bar = interval_bar(rung.mean, rung.mean - rung.deviation, rung.mean + rung.deviation)
        step = "–" if rung is rungs[0] else f"{rung.mean - rungs[0].mean:+.3f}".replace("-", "−")
        rows.append(
            {"name": rung.name, "has": rung.has, "seeds": len(rung.values), "number": number, "bar": bar, "step": step}
        )
    return {"title": ladder.title, "parts": ladder.parts, "rows": rows}


def _titles(part: slice) -> list[str]:
    """Give headings in the capitals of a page; p stays small."""
    return [_title(head) for head in HEADS[part]]


def _title(head: str) -> str:
    return head if head.startswith("p ") else f"{head[:1].upper()}{head[1:]}"


def _board(
    lines: Sequence[Standing], metric: str, by_pair: Mapping[Pair, ComparedRow], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Give the leaderboard: cells of scores, a bar of the interval, and what reproduces the row or why it is empty."""
    rows = []
    for rank, line in enumerate(lines, start=1):
        cells = [cell(text, value, number=place > 1) for place, (text, value) in enumerate(cells_of(line, metric))]
        known = line.value is not None
        kept = by_pair.get(line.pair)
        empty = [one for one in outcomes if one.pair == line.pair and one.row is None]
        rows.append(
            {
                "number": rank,
                "rank": cell(str(rank) if known else "–", rank if known else None),
                "name": line.pair.name,
                "cells": [*cells[:2], *cells[_SCORES]],
                "bar": interval_bar(line.value, *line.interval) if line.value is not None and line.interval else "",
                "reads_masks": any(row.reads_masks for row in line.rows),
                "reasons": list(dict.fromkeys((one.state, one.reason) for one in empty)),
                "command": "" if kept is None else kept.command,
                "remark": "" if kept is None else kept.remark,
                "facts": [] if kept is None else _facts(kept),
                "settings": "" if kept is None or not kept.records else _settings(kept.records[0]),
            }
        )
    return {
        "columns": ["Rank", "Method", "Encoder", *_titles(_SCORES)],
        "headline": 5 if metric == "dice_subject" else 10,
        "rows": rows,
    }


def _facts(row: ComparedRow) -> list[tuple[str, str]]:
    """Give what reproduces a row, with labels."""
    facts = [("Command", row.command), ("Steps", row.remark)]
    for record in row.records:
        seeds = ", ".join(map(str, record["settings"].get("seeds", [])))
        digest = record["source"]["settings_sha256"]
        facts.append((f"Settings, SHA-256, seed {seeds}" if seeds else "Settings, SHA-256", digest))
        facts += [("Member", member["run"]) for member in record["settings"].get("members", [])]
    if row.records:
        record = row.records[0]
        facts += [("Data, SHA-256", record["source"]["data_sha256"]), ("Code, SHA-256", record.get("code_sha256", ""))]
        versions = {"monai_wsss": record.get("version", ""), **record.get("versions", {})}
        facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items() if number)))
    return [(label, value) for label, value in facts if value]


def _settings(record: Mapping[str, Any]) -> str:
    return json.dumps(record["settings"], indent=2, ensure_ascii=False)


def _parts(lines: Sequence[Standing]) -> dict[str, Any] | None:
    """Give the numbers of score map and final mask apart; None where no row has both."""
    measured = [line for line in lines if values_of(line.rows, "pixel_auroc")]
    if not measured:
        return None
    rows = []
    for line in measured:
        cells = []
        for name, _ in _PARTS:
            values = values_of(line.rows, name)
            cells.append(f"{sum(values) / len(values):.3f}" if values else "–")
        rows.append((line.pair.name, cells))
    return {"columns": [title for _, title in _PARTS], "rows": rows}


def _costs(lines: Sequence[Standing], metric: str) -> list[list[str]]:
    cells = [[text for text, _ in cells_of(line, metric)] for line in lines if line.rows]
    return [[*texts[:2], *(_grouped(text) for text in texts[_COSTS])] for texts in cells]


def _grouped(text: str) -> str:
    """Part the thousands of a whole number by thin spaces.

    Example:
        >>> _grouped("1234567").split("\\u202f"), _grouped("3.5")
        (['1', '234', '567'], '3.5')
    """
    return f"{int(text):,}".replace(",", "\u202f") if text.isdigit() else text
