# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Small charts as inline SVG: no scripts, no plotting library, colors from the page so that light, dark and print fit.

Every text is escaped on the way in (markupsafe); colors and fonts are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["ChartLine", "interval_bar", "line_chart", "value_strip"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 36


@dataclass(frozen=True)
class ChartLine:
    """One curve.

    Attributes:
        name: shown in the legend.
        x: ascending positions, at least one, finite.
        y: as many values, finite.
        mark: index of a point to mark with a ring, if any.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: int | None = None


def _element(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """An SVG element; ``class_`` is written ``class``, ``text_anchor`` ``text-anchor``, floats with one digit."""
    written = [
        Markup('{}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0} {1}>{2}</{0}>").format(name, Markup(" ").join(written), content)


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the sheet."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def line_chart(
    lines: Sequence[ChartLine],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (520, 280),
) -> Markup:
    """Curves over a common axis, with grid, legend (from two curves on) and a title for screen readers.

    Args:
        lines: at least one curve; at most six are told apart by color.
        title: what the chart shows.
        x_label: below the axis.
        y_range: lowest and highest value shown; from the data if left out.
        size: width and height in CSS pixels at full size.

    Example:
        >>> line_chart([ChartLine("loss", [0, 1], [0.7, 0.3])], title="<b>", x_label="epoch")[:4]
        Markup('<svg')
        >>> "<b>" in line_chart([ChartLine("loss", [0, 1], [0.7, 0.3])], title="<b>", x_label="epoch")
        False
    """
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y]
    x_ticks = _ticks(min(xs), max(xs), 6)
    y_ticks = _ticks(*(y_range or (min(ys), max(ys))), 5)
    y_limits = y_range or (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    frame = _Frame(*size, _widened(min(xs), max(xs)), _widened(*y_limits))
    parts = [_grid(frame, x_ticks, y_ticks, x_label)]
    for number, line in enumerate(lines):
        parts.append(_curve(frame, line, number % 6))
        if len(lines) > 1:
            parts.append(_legend_entry(frame, line.name, number % 6, number))
    return _svg(size, title, parts)


def value_strip(values: Sequence[float], *, title: str, x_label: str, size: tuple[int, int] = (520, 110)) -> Markup:
    """Every value in [0, 1] as a dot on a line, with the mean as a stroke: a distribution without bins.

    Args:
        values: at least one, finite.
        title: what the chart shows.
        x_label: below the axis.
        size: width and height in CSS pixels at full size.

    Example:
        >>> value_strip([0.2, 0.8], title="Dice", x_label="Dice").count("<circle")
        2
    """
    frame = _Frame(*size, (0.0, 1.0), (0.0, 1.0))
    bottom = size[1] - _BOTTOM
    parts = [_grid(frame, [0, 0.2, 0.4, 0.6, 0.8, 1], [], x_label)]
    stacked: dict[int, int] = {}
    for value in sorted(values):
        column = round(value * 80)
        rise = min(stacked.get(column, 0) * 9, bottom - _TOP - 8)
        stacked[column] = stacked.get(column, 0) + 1
        parts.append(_element("circle", class_="dot", cx=frame.x(value), cy=bottom - 7 - rise, r=4))
    mean = frame.x(sum(values) / len(values))
    parts.append(_element("line", class_="mean", x1=mean, x2=mean, y1=_TOP - 4, y2=bottom))
    parts.append(_element("text", "mean", x=mean + 5, y=_TOP + 4))
    return _svg(size, title, parts)


def interval_bar(mean: float, low: float, high: float) -> Markup:
    """Value and interval on a track from 0 to 1, as small as a word.

    Example:
        >>> interval_bar(0.5, 0.4, 0.6).count("<rect")
        3
    """
    width = 120
    left, right, middle = (max(0.0, min(1.0, value)) * width for value in (low, high, mean))
    parts = [
        _element("rect", class_="track", x=0, y=5, width=width, height=2),
        _element("rect", class_="range", x=left, y=3, width=max(right - left, 1.0), height=6, rx=3),
        _element("rect", class_="value", x=min(max(middle - 1.5, 0.0), width - 3), y=0, width=3, height=12),
    ]
    return _element(
        "svg", Markup("").join(parts), class_="bar", viewBox="0 0 120 12", width=width, height=12, aria_hidden="true"
    )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at least one."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> Markup:
    bottom, right = frame.height - _BOTTOM, frame.width - _RIGHT
    parts = [
        _element("line", class_="axis", x1=_LEFT, x2=right, y1=bottom, y2=bottom),
        _element("text", x_label, x=(_LEFT + right) / 2, y=frame.height - 4, text_anchor="middle"),
    ]
    for value in y_ticks:
        level = frame.y(value)
        parts.append(_element("line", class_="grid", x1=_LEFT, x2=right, y1=level, y2=level))
        parts.append(_element("text", f"{value:g}", x=_LEFT - 6, y=level + 4, text_anchor="end"))
    for value in x_ticks:
        parts.append(_element("text", f"{value:g}", x=frame.x(value), y=bottom + 16, text_anchor="middle"))
    return Markup("").join(parts)


def _curve(frame: _Frame, line: ChartLine, color: int) -> Markup:
    points = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True)]
    # A polyline of one point draws nothing; of twice the same point, with round ends, a dot.
    drawn = _element("polyline", class_=f"curve c{color}", points=" ".join(points * 2 if len(points) == 1 else points))
    if line.mark is None:
        return drawn
    x, y = frame.x(line.x[line.mark]), frame.y(line.y[line.mark])
    return drawn + _element("circle", class_=f"ring c{color}", cx=x, cy=y, r=5)


def _legend_entry(frame: _Frame, name: str, color: int, row: int) -> Markup:
    level = frame.height - _BOTTOM - 12 - 18 * row
    stroke = _element("line", class_=f"curve c{color}", x1=_LEFT + 12, x2=_LEFT + 34, y1=level, y2=level)
    return stroke + _element("text", name, x=_LEFT + 40, y=level + 4)


def _svg(size: tuple[int, int], title: str, parts: Sequence[Markup]) -> Markup:
    content = Markup("<title>{}</title>").format(title) + Markup("").join(parts)
    box = f"0 0 {size[0]} {size[1]}"
    return _element("svg", content, class_="chart", viewBox=box, role="img", style=f"max-width:{size[0]}px")
