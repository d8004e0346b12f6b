# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Sentences on top of the page of an evaluation, where its numbers or masks are not to be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from monai_wsss.reports.case_table import count, outcome_of

__all__ = ["evaluation_warnings"]

_FEW_SUBJECTS = 5
_LOW_DICE = 0.3
_LOW_AUROC = 0.7
_MANY = 0.25
"""Share of cases from which something is said about them."""


def evaluation_warnings(
    metrics: Mapping[str, Any] | None, rows: Sequence[Mapping[str, str]], run: Mapping[str, Any] | None
) -> list[str]:
    """Tell what stands against an evaluation.

    Args:
        metrics: content of ``metrics.json``.
        rows: of ``per_case.csv``.
        run: content of ``run.json``.

    Returns:
        Sentences, without names of cases.

    Example:
        >>> evaluation_warnings({"dice_subject": {"mean": 0.1, "ci95": [0.1, 0.1], "n": 9}}, [], None)
        ['Masks hardly overlap the reference: mean Dice per subject 0.10. Look at the pictures before any number.']
    """
    values = {name: float(entry["mean"]) for name, entry in (metrics or {}).items()}
    found: list[str] = []
    if values.get("dice_subject", 1.0) < _LOW_DICE:
        found.append(
            f"Masks hardly overlap the reference: mean Dice per subject {values['dice_subject']:.2f}. Look at the "
            "pictures before any number."
        )
    found += _of_cases(Counter(map(outcome_of, rows)))
    if values.get("presence_auroc", 1.0) < _LOW_AUROC:
        found.append(
            "The network hardly tells images with the finding from those without: presence AUROC "
            f"{values['presence_auroc']:.2f}, where 0.5 is chance."
        )
    subjects = len({row["subject"] for row in rows})
    if subjects == 1:
        found.append("All cases are of one subject: there is no interval, and no word on other subjects.")
    elif 1 < subjects < _FEW_SUBJECTS:
        found.append(f"Only {subjects} subjects: the intervals are rough.")
    if run and run.get("assumed_units"):
        found.append("Some NIfTI images say no unit of length: millimeters were assumed.")
    return found


def _of_cases(outcomes: Mapping[str, int]) -> list[str]:
    """Tell of missed findings, false alarms and cases without a reference."""
    found = []
    findings = sum(outcomes.get(name, 0) for name in ("found", "elsewhere", "missed"))
    lost = findings - outcomes.get("found", 0)
    if findings and lost > _MANY * findings:
        found.append(f"The mask does not touch the finding in {lost} of {count(findings, 'case')} that have one.")
    alarms, clean = outcomes.get("false alarm", 0), outcomes.get("clean", 0)
    if alarms > _MANY * (alarms + clean):
        found.append(f"{alarms} of {count(alarms + clean, 'healthy case')} got a mask.")
    unknown = outcomes.get("not measured", 0)
    if unknown and unknown == sum(outcomes.values()):
        found.append("No case has a reference mask, so no mask was measured.")
    elif unknown:
        found.append(f"{count(unknown, 'case')} without a reference mask: not measured.")
    return found
