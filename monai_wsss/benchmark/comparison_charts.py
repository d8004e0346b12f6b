# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Curves of the comparison: Dice at each threshold, and how often a pixel of a score is in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_wsss.benchmark.kept_cases import KeptCases
from monai_wsss.reports.charts import ChartLine, line_chart

__all__ = ["Reliability", "calibration_charts", "reliability", "threshold_charts"]

_LINES = 6  # of a chart, as many as there are colors and dashes
_CLASSES = 4
_BINS = 10
_FEW = 30  # pixels below which a bin shows nothing

Named = Sequence[tuple[str, KeptCases]]


class Reliability(NamedTuple):
    """How well scores tell the share of pixels that are in the reference.

    Attributes:
        score: mean score of each bin with enough pixels.
        share: share of its pixels that are in the reference.
        error: the expected calibration error: |score - share|, averaged over all pixels.
    """

    score: list[float]
    share: list[float]
    error: float


def reliability(inside: Sequence[int], outside: Sequence[int]) -> Reliability | None:
    """Compare scores with the reference in ten bins; None without a pixel.

    Args:
        inside: pixels in the reference, of a score of 0, then of those in each of T equal steps up to 1.
        outside: as many numbers for the pixels out of it.

    Example:
        >>> reliability([0, 0, 30], [70, 0, 10])
        Reliability(score=[0.0, 0.75], share=[0.0, 0.75], error=0.0)
    """
    positive, pixels = np.array(inside, dtype=float), np.add(inside, outside).astype(float)
    steps = len(pixels) - 1
    scores = np.concatenate([[0.0], (np.arange(steps) + 0.5) / steps])
    places = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    sizes, found, summed = (np.bincount(places, each, _BINS) for each in (pixels, positive, pixels * scores))
    if not sizes.any():
        return None
    known = sizes > 0
    score, share = summed[known] / sizes[known], found[known] / sizes[known]
    error = float(np.abs(score - share) @ sizes[known] / sizes.sum())
    enough = sizes[known] >= _FEW
    return Reliability(score[enough].tolist(), share[enough].tolist(), error)


def threshold_charts(rows: Named) -> list[dict[str, Any]]:
    """Draw Dice per subject against the threshold of the score map, a chart per class and six rows.

    Args:
        rows: names and cases, the best first.
    """
    charts = []
    for title, names, group in _groups(rows):
        for label in names[:_CLASSES]:
            lines = []
            for name, cases in group:
                curve = cases.sweep["classes"].get(label, {}).get("dice_subject")
                if curve is not None:
                    lines.append(ChartLine(name, cases.sweep["thresholds"], curve, mark=int(np.argmax(curve))))
            if not lines:
                continue
            best = "; ".join(f"{line.name} {max(line.y):.3f} at {line.x[line.mark or 0]:.2f}" for line in lines)
            chart = line_chart(
                lines,
                title=f"Dice per subject against the threshold of the score map, {label}, {title}",
                x_label="threshold of the score map",
                y_label="Dice per subject",
                y_range=(0.0, 1.0),
            )
            charts.append({"label": f"{label}, {title}", "svg": chart, "text": f"Highest: {best}."})
    return charts


def calibration_charts(rows: Named) -> list[dict[str, Any]]:
    """Draw the share of pixels in the reference against their score, over all classes, a chart per five rows.

    Args:
        rows: names and cases, the best first.
    """
    charts = []
    for title, _, group in _groups(rows, _LINES - 1):
        lines, errors = [], []
        for name, cases in group:
            found = _pooled(cases.pixels)
            if found is not None and found.score:
                lines.append(ChartLine(name, found.score, found.share))
                errors.append(f"{name} {found.error:.3f}")
        if not lines:
            continue
        chart = line_chart(
            [*lines, ChartLine("as many as the score says", [0.0, 1.0], [0.0, 1.0])],
            title=f"Share of pixels in the reference against their score, {title}",
            x_label="score of the map",
            y_label="share of pixels in the reference",
            x_range=(0.0, 1.0),
            y_range=(0.0, 1.0),
        )
        charts.append({"label": title.capitalize(), "svg": chart, "text": f"Calibration error: {'; '.join(errors)}."})
    return charts


def _groups(rows: Named, size: int = _LINES) -> list[tuple[str, list[str], Named]]:
    """Give rows with curves by groups that one chart can show, each with its title and the classes."""
    known = [(name, cases) for name, cases in rows if cases.pixels]
    found: list[tuple[str, list[str], Named]] = []
    for start in range(0, len(known), size):
        group = known[start : start + size]
        many = f"rows {start + 1} to {start + len(group)}" if len(group) > 1 else f"row {start + 1}"
        title = "all rows" if len(known) <= size else many
        found.append((title, list(group[0][1].pixels), group))
    return found


def _pooled(pixels: Mapping[str, Sequence[Sequence[int]]]) -> Reliability | None:
    """Give the reliability of the scores of all classes together."""
    inside, outside = np.sum([list(pair) for pair in pixels.values()], axis=0)
    return reliability(inside.tolist(), outside.tolist())
