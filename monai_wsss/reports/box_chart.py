# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Box plots as SVG: every value as a point, with median, quartiles and range, for metrics over seeds or draws.

Whiskers end at the smallest and the largest value: among ten runs no value is called an outlier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from monai_wsss.reports.chart_parts import (
    ChartFrame,
    axis_scale,
    chart_svg,
    element,
    grid_lines,
    group_labels,
    legend_below,
    top_margin,
)

__all__ = ["box_chart"]

_WIDEST = 44.0  # width limit of a box, in pixels, so that a single one does not fill the chart
_POINT = 2.5  # radius of a point; half of it where a box has many points
_MANY = 20


def box_chart(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    digits: int = 2,
    size: tuple[int, int] = (520, 280),
) -> Markup:
    """Draw boxes side by side in groups: minimum, quartiles, median, maximum, and each value as a point over them.

    Quartiles are interpolated linearly between values, numpy's default.  A single value is a point on its median.

    Args:
        groups: name below the axis to {name in the legend: values}.  Names in the legend are colored in the order of
            their first appearance, with six colors in all; a group that lacks a name leaves its place empty.
        title: what the chart shows, for screen readers.
        y_label: text above the axis.
        y_range: lowest and highest value shown; from the data if left out, so not from 0.
        digits: digits of the numbers in a box's tooltip.
        size: width and height in CSS pixels at full size; legend and long names add to the height.

    Raises:
        ValueError: no group, a box without values, a value that is not finite, or one outside of ``y_range``.

    Example:
        >>> draws = {"20 %": {"target": [0.71, 0.74, 0.72], "fine-tuned": [0.78, 0.80, 0.77]}, "5 %": {"target": [0.6]}}
        >>> chart = box_chart(draws, title="mIoU by share of the labels", y_label="mIoU")
        >>> chart.count("<circle"), chart.count("median 0.72, quartiles 0.71 to 0.73, range 0.71 to 0.74, 3 values")
        (7, 1)
    """
    series = list(dict.fromkeys(name for boxes in groups.values() for name in boxes))
    values = _checked_values(groups, y_range)
    space = 0.05 * (max(values) - min(values))  # keeps points off the frame
    y_ticks, y_limits = axis_scale([min(values) - space, max(values) + space], y_range)
    frame = ChartFrame(*size, (0.0, float(len(groups))), y_limits, top_margin(y_label))
    parts = [grid_lines(frame, [], y_ticks, "", y_label)]
    slot = (frame.x(1) - frame.x(0)) * 0.8 / len(series)
    width = min(0.8 * slot, _WIDEST)
    for place, (group, boxes) in enumerate(groups.items()):
        for name, row in boxes.items():
            number = series.index(name)
            # Boxes that are narrower than their slots stand together in the middle of the group.
            middle = frame.x(place + 0.5) + (number - (len(series) - 1) / 2) * min(slot, 1.4 * width)
            label = f"{group}, {name}" if len(series) > 1 else group
            parts.append(_box(frame, middle, width, row, number % 6, f"{label}: {_summary(row, digits)}"))
    names, lines = group_labels(frame, list(groups))
    below = (size[0], size[1] + 14 * (lines - 1) - 10)  # no axis label stands between names and legend
    legend, added = legend_below(series, below, "box")
    return chart_svg((below[0], below[1] + added), title, [*parts, names, legend])


def _checked_values(
    groups: Mapping[str, Mapping[str, Sequence[float]]], y_range: tuple[float, float] | None
) -> list[float]:
    """Check the arguments and give all values of the chart."""
    rows = [(f"{group}/{name}", row) for group, boxes in groups.items() for name, row in boxes.items()]
    if not rows:
        raise ValueError(f"Expected `groups` with at least one box, got {len(groups)} groups without any.")
    for name, row in rows:
        if not len(row) or not all(map(math.isfinite, row)):
            raise ValueError(f"Expected finite values, at least one, for {name}, got {list(row)}.")
    values = [float(value) for _, row in rows for value in row]
    if y_range and not (y_range[0] <= min(values) and max(values) <= y_range[1]):
        raise ValueError(
            f"Expected `y_range` to hold all values, from {min(values):g} to {max(values):g}, got {y_range}."
        )
    return values


def _five_numbers(values: Sequence[float]) -> list[float]:
    return np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1]).tolist()


def _summary(values: Sequence[float], digits: int) -> str:
    low, first, median, third, high = (f"{value:.{digits}f}" for value in _five_numbers(values))
    number = f"{len(values)} value{'s' if len(values) > 1 else ''}"
    return f"median {median}, quartiles {first} to {third}, range {low} to {high}, {number}"


def _box(
    frame: ChartFrame, middle: float, width: float, values: Sequence[float], color: int, description: str
) -> Markup:
    """Draw whiskers, box, median and points around a vertical line, with a text for tooltips and screen readers."""
    low, first, median, third, high = (frame.y(value) for value in _five_numbers(values))
    left, right, cap = middle - width / 2, middle + width / 2, width / 5
    whiskers = (
        f"M{middle - cap:.1f} {low:.1f}h{2 * cap:.1f}m{-cap:.1f} 0V{first:.1f}"
        f"M{middle - cap:.1f} {high:.1f}h{2 * cap:.1f}m{-cap:.1f} 0V{third:.1f}"
    )
    parts = [element("title", description)]
    if len(values) > 1:
        parts += [
            element("path", class_="whisker", d=whiskers),
            element("rect", class_=f"box c{color}", x=left, y=third, width=width, height=first - third, rx=1.5),
        ]
    ordered = sorted(values)
    radius = _POINT if len(values) <= _MANY else _POINT / 2
    parts += [
        element("circle", class_=f"point c{color}", cx=x, cy=frame.y(value), r=radius)
        for x, value in zip(_spread(frame, middle, width, ordered, radius), ordered, strict=True)
    ]
    # Drawn over the points, which may be many.
    parts.append(element("line", class_=f"median c{color}", x1=left, x2=right, y1=median, y2=median))
    return element("g", Markup("").join(parts))


def _spread(frame: ChartFrame, middle: float, width: float, values: Sequence[float], radius: float) -> list[float]:
    """Place points across the box: neighbors that would cover one another stand side by side, ascending."""
    rows: list[list[int]] = []
    for index, value in enumerate(values):
        if rows and abs(frame.y(values[rows[-1][0]]) - frame.y(value)) < 1.5 * radius:
            rows[-1].append(index)
        else:
            rows.append([index])
    positions = [middle] * len(values)
    for row in rows:
        step = min(2.2 * radius, (width - 2 * radius) / len(row))
        for place, index in enumerate(row):
            positions[index] = middle + (place - (len(row) - 1) / 2) * step
    return positions
