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

from monai_wsss.reports.templates import png_text, write_page

__all__ = ["write_prediction_page"]

_SHOWN = 100
"""Cases whose pictures are on the page."""
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
    cases = []
    for number, record in enumerate(records, start=1):
        amounts = [
            (match[1], match[2], value) for name, value in record["row"].items() if (match := _AMOUNT.match(name))
        ]
        found = ", ".join(f"{name} {value:g} {unit}" for name, unit, value in amounts)
        cases.append(
            {
                "number": number,
                "notes": record["notes"],
                "size": record["size"],
                "found": f"Found: {found}." if any(value for _, _, value in amounts) else "Nothing found.",
                "png": png_text(out / record["overlay"]) if number <= _SHOWN and record.get("overlay") else None,
            }
        )
    versions = [(f"Version of {name}", number) for name, number in (run.get("versions") or {}).items()]
    view = {
        **about,
        "date": str(run.get("time_utc", ""))[:10],
        "warnings": _warnings(records, failures),
        "cases": cases,
        "failures": list(failures),
        "notes": list(notes),
        "facts": [*((label, run[name]) for name, label in _FACTS.items() if run.get(name)), *versions],
    }
    return write_page(out / "report.html", "prediction.html.jinja", view)


def _warnings(records: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> list[str]:
    """Sum up what stands beside single cases."""
    found = []
    if failures:
        counted = "1 case" if len(failures) == 1 else f"{len(failures)} cases"
        found.append(f"{counted} could not be read, without a mask: see below.")
    counts = Counter(note for record in records for note in record["notes"])
    found += [f"{count} of {len(records)} cases: {note}." for note, count in counts.most_common(5)]
    empty = sum(not any(value for name, value in record["row"].items() if _AMOUNT.match(name)) for record in records)
    if records and empty == len(records):
        found.append(
            "All masks are empty: either none of the images shows the finding, or the weights do not fit them."
        )
    return found
