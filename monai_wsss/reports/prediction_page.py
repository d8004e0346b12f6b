# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of unlabeled images as one page: what was found, where it departs from the training, and what was not read.

Cases are named by their row of ``predictions.csv``, since names of files may be those of patients.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wsss.reports.case_table import CasePictures, cell, count
from monai_wsss.reports.prediction_rows import PRESENCES
from monai_wsss.reports.templates import write_page

__all__ = ["write_prediction_page"]

_EACH = 2
"""Cases per group of pictures before the table."""
_UNITS = {"ml": "ml", "mm2": "mm²", "px": "px"}
_AMOUNT = re.compile(r"(.+)_(ml|mm2|px)$")
_FACTS = {
    "time_utc": "Time (UTC)",
    "platform": "Platform",
    "accelerator": "Accelerator",
    "weights_sha256": "Weights, SHA-256",
}


def write_prediction_page(
    out: Path,
    *,
    run: Mapping[str, Any],
    about: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    failures: Sequence[str],
    notes: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` into a folder of masks.

    Args:
        out: the folder.
        run: what :func:`~monai_wsss.reports.collect_provenance` says.
        about: ``bundle``, ``trained_on``, ``inputs``, ``license`` of the weights, in words.
        records: per case ``row``, ``notes``, ``size`` and ``overlay``, a path relative to the folder.
        failures: per case that was not read a sentence without names.
        notes: what was left out.

    Returns:
        The path of the page.

    Raises:
        DataError: the page cannot be written.
    """
    versions = [(f"Version of {name}", number) for name, number in (run.get("versions") or {}).items()]
    date = str(run.get("time_utc", ""))[:10]
    heading = f"Masks of {count(len(records), 'case')}"
    table = _table(records, out)
    unread = f", {len(failures)} not read" if failures else ""
    view = {
        **about,
        "date": date,
        "heading": heading,
        "title": f"{heading} by {about['bundle']}, {date}",
        "lead": f"{count(len(records), 'case')} segmented{unread}.",
        "warnings": _warnings(records, failures),
        "groups": _groups(table["rows"]),
        "table": table,
        "failures": list(failures),
        "notes": list(notes),
        "facts": [*((label, run[name]) for name, label in _FACTS.items() if run.get(name)), *versions],
    }
    return write_page(out / "report.html", "prediction.html.jinja", view)


def _amounts(row: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Give what was found of a case by class and unit; a cell of another unit is empty."""
    matches = [(_AMOUNT.match(name), value) for name, value in row.items() if value not in ("", None)]
    return {(match[1], match[2]): float(value) for match, value in matches if match}


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _table(records: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """Prepare the table: per case its amounts, its presence scores, its size, and whether it departs from the rest."""
    amounts = [_amounts(record["row"]) for record in records]
    kinds = list(dict.fromkeys(kind for found in amounts for kind in found))
    scores = list(dict.fromkeys(name for one in records for name in one["row"] if name.endswith(PRESENCES)))
    columns = ["Case", *(f"{name}, {_UNITS[unit]}" for name, unit in kinds)]
    columns += [f"Score, {name.rpartition('_presence_')[0]}" for name in scores]
    pictures = CasePictures()
    rows = []
    for number, (record, found) in enumerate(zip(records, amounts, strict=True), start=1):
        cells = [cell(str(number), number)]
        cells += [cell(_rounded(found[kind]), found[kind]) if kind in found else cell("–") for kind in kinds]
        given = [record["row"].get(name) for name in scores]
        cells += [cell("–") if value in ("", None) else cell(f"{value:.2f}", value) for value in given]
        notes = list(record["notes"])
        cells += [cell(record["size"], record["size"], number=False)]
        cells += [cell("; ".join(notes) if notes else "nothing noticed", len(notes), number=False)]
        picture = pictures.of(out / record["overlay"]) if record.get("overlay") else CasePictures().of(Path())
        words = ", ".join(f"{name} {_rounded(value)} {_UNITS[unit]}" for (name, unit), value in found.items())
        about = {"number": number, "cells": cells, "link": None, "no_picture": "Its picture is in overlays."}
        about["notes"] = [f"Note: {note}." for note in notes]
        about["caption"] = f"{f'Found: {words}.' if any(found.values()) else 'Nothing found.'} {record['size']}."
        rows.append({**about, **picture, "found": sum(found.values())})
    return {"columns": [*columns, "Size", "Against the training"], "rows": rows, "scored": bool(scores)}


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Choose the pictures before the table: of few cases all, else those with much, with some and without a mask."""
    drawn = [row for row in rows if row["large"]]
    if len(drawn) <= 3 * _EACH:
        return [("", drawn)] if drawn else []
    ranked = sorted((row for row in drawn if row["found"]), key=lambda row: -row["found"])
    largest, rest = ranked[:_EACH], ranked[_EACH:]
    middle = max(0, (len(rest) - _EACH) // 2)
    empty = [row for row in drawn if not row["found"]]
    groups = [("Largest masks", largest), ("Median masks", rest[middle : middle + _EACH]), ("Empty", empty[:_EACH])]
    return [(title, chosen) for title, chosen in groups if chosen]


def _warnings(records: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> list[str]:
    """Sum up what stands beside single cases."""
    found = []
    if failures:
        counted = "1 case" if len(failures) == 1 else f"{len(failures)} cases"
        found.append(f"{counted} could not be read, without a mask: see below.")
    counts = Counter(note for record in records for note in record["notes"])
    found += [f"{count} of {len(records)} cases: {note}." for note, count in counts.most_common(5)]
    empty = sum(not any(_amounts(record["row"]).values()) for record in records)
    if records and empty == len(records):
        found.append(
            "All masks are empty: either none of the images shows the finding, or the weights do not fit them."
        )
    return found
