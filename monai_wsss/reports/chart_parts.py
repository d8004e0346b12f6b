# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Shared parts of charts: positions of values on the sheet, grid and ticks, names of groups, legend, and the frame.

markupsafe escapes every text; colors and fonts are the classes of ``charts.CHART_STYLE``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = [
    "BOTTOM",
    "LEFT",
    "LETTER",
    "RIGHT",
    "ROW",
    "TOP",
    "ChartFrame",
    "axis_scale",
    "caption_above",
    "chart_svg",
    "element",
    "grid_lines",
    "group_labels",
    "legend_below",
    "round_ticks",
    "top_margin",
    "widened",
]

LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 36
ROW = 18  # height of a row of the legend, and of a label above the chart
LETTER = 6.8  # width of a letter of 12 px, a little more than the mean of the fonts in `charts.FONTS`


def element(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """Write an SVG element: ``class_`` as ``class``, ``text_anchor`` as ``text-anchor``, floats with one digit."""
    written = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(written), content)


@dataclass(frozen=True)
class ChartFrame:
    """The positions of values on the sheet."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    top: float = TOP

    def x(self, value: float) -> float:
        """Give the position from the left."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Give the position from the top."""
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - self.top - BOTTOM)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Choose round numbers within [low, high], at least one, at steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low]


def widened(low: float, high: float) -> tuple[float, float]:
    """Widen an empty range."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def axis_scale(values: Sequence[float], y_range: tuple[float, float] | None) -> tuple[list[float], tuple[float, float]]:
    """Choose ticks and limits of the vertical axis: ``y_range``, else a range that holds all values and ticks."""
    ticks = round_ticks(*(y_range or (min(values), max(values))), 5)
    return ticks, widened(*(y_range or (min(ticks[0], *values), max(ticks[-1], *values))))


def top_margin(y_label: str) -> int:
    """Give the height above the highest value."""
    return TOP + (ROW if y_label else 0)


def grid_lines(
    frame: ChartFrame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Markup:
    """Draw the axis, the grid lines of the vertical axis, and all labels."""
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    parts = [element("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)]
    if x_label:
        parts.append(element("text", x_label, x=(LEFT + right) / 2, y=frame.height - 4, text_anchor="middle"))
    if y_label:
        parts.append(element("text", y_label, x=LEFT, y=TOP + 4))
    for value in y_ticks:
        level = frame.y(value)
        parts.append(element("line", class_="grid", x1=LEFT, x2=right, y1=level, y2=level))
        parts.append(element("text", f"{value:g}", x=LEFT - 6, y=level + 4, text_anchor="end"))
    for value in x_ticks:
        parts.append(element("text", f"{value:g}", x=frame.x(value), y=bottom + 16, text_anchor="middle"))
    return Markup("").join(parts)


def group_labels(frame: ChartFrame, groups: Sequence[str]) -> tuple[Markup, int]:
    """Write names below their groups, broken into lines that fit; also give the greatest number of lines."""
    letters = max(int((frame.x(1) - frame.x(0)) / LETTER), 6)
    wrapped = [textwrap.wrap(name, letters) or [""] for name in groups]
    level = frame.height - BOTTOM + 16
    texts = [
        element("text", line, x=frame.x(group + 0.5), y=level + 14 * row, text_anchor="middle")
        for group, lines in enumerate(wrapped)
        for row, line in enumerate(lines)
    ]
    return Markup("").join(texts), max(map(len, wrapped))


def legend_below(names: Sequence[str], size: tuple[int, int], kind: str) -> tuple[Markup, int]:
    """Write names with their strokes or blocks in columns below a chart of that size; also give the height they add.

    A single name needs no legend.  The legend stands below because curves may cross any corner of the chart.
    """
    if len(names) < 2:
        return Markup(""), 0
    key_width = 24 if kind == "curve" else 12
    step = max(map(len, names)) * LETTER + key_width + 24
    columns = max(int((size[0] - LEFT) / step), 1)
    parts = []
    for number, name in enumerate(names):
        left, level = LEFT + step * (number % columns), size[1] + ROW * (number // columns) + 12
        key = f"{kind} c{number % 6}"
        if kind == "curve":
            parts.append(element("line", class_=key, x1=left + 1, x2=left + key_width, y1=level, y2=level))
        else:
            parts.append(element("rect", class_=key, x=left, y=level - 6, width=key_width, height=12))
        parts.append(element("text", name, x=left + key_width + 7, y=level + 4))
    return Markup("").join(parts), ROW * math.ceil(len(names) / columns) + 8


def caption_above(title: str, width: int) -> tuple[Markup, int]:
    """Write the title of a file of its own above its chart, broken into lines; also give the height that it takes."""
    lines = textwrap.wrap(title, int((width - 2 * RIGHT) / LETTER))
    texts = [element("text", line, class_="caption", x=RIGHT, y=ROW * (row + 1)) for row, line in enumerate(lines)]
    return Markup("").join(texts), ROW * len(lines) + TOP


def chart_svg(size: tuple[int, int], title: str, parts: Sequence[Markup]) -> Markup:
    """Join the parts of a chart, with a title for screen readers."""
    content = Markup("<title>{}</title>").format(title) + Markup("").join(parts)
    box = f"0 0 {size[0]} {size[1]}"
    return element("svg", content, class_="chart", viewBox=box, role="img", style=f"max-width:{size[0]}px")
