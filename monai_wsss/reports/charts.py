# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Small charts as SVG, inline in a page or as files: no scripts, no plotting library, for light, dark and print.

markupsafe escapes every text.  Colors and fonts are classes of the style sheet ``CHART_STYLE``; the page includes it,
and :func:`write_svg` writes it into the file.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from monai_wsss._files import atomic_path
from monai_wsss.reports.chart_parts import (
    BOTTOM,
    LETTER,
    ROW,
    TOP,
    ChartFrame,
    axis_scale,
    caption_above,
    chart_svg,
    element,
    grid_lines,
    group_labels,
    legend_below,
    round_ticks,
    top_margin,
    widened,
)

__all__ = [
    "CHART_COLORS",
    "CHART_STYLE",
    "FONTS",
    "ChartLine",
    "bar_chart",
    "draw_curve",
    "interval_bar",
    "line_chart",
    "value_strip",
    "write_svg",
]

FONTS = Markup('system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif')

CHART_COLORS = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1a1f26",
        "soft": "#59636f",
        "rule": "#dde2e8",
        "accent": "#14619e",
        "second": "#b3520a",
        "third": "#8900ff",
        "fourth": "#b38a7a",
        "fifth": "#00002c",
        "sixth": "#481900",
        "band": "#b9d5ec",
    },
    "dark": {
        "paper": "#14171c",
        "ink": "#e6e9ed",
        "soft": "#a0aab5",
        "rule": "#313840",
        "accent": "#6cb4f0",
        "second": "#f2a35e",
        "third": "#623fff",
        "fourth": "#8a5280",
        "fifth": "#c3c9b5",
        "sixth": "#ac3e3e",
        "band": "#2b4d69",
    },
}
"""Values of the style sheet's variables on a light and on a dark background."""

# Curves differ in color, for readers with any kind of color blindness (25 or more, CIE76), and in dashes.
CHART_STYLE = Markup("""\
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
svg .grid { stroke: var(--rule); }
svg .axis, svg .whisker { stroke: var(--soft); }
svg .c0 { color: var(--accent); } svg .c1 { color: var(--second); } svg .c2 { color: var(--third); }
svg .c3 { color: var(--fourth); } svg .c4 { color: var(--fifth); } svg .c5 { color: var(--sixth); }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2.25; stroke-linecap: round; stroke-linejoin: round; }
svg .curve.c1 { stroke-dasharray: 6 4; } svg .curve.c2 { stroke-dasharray: 1 5; }
svg .curve.c3 { stroke-dasharray: 10 4 1 4; } svg .curve.c5 { stroke-dasharray: 12 5; }
svg .ring { fill: var(--paper); stroke: currentColor; stroke-width: 2; }
svg .column { fill: currentColor; }
svg .box { fill: currentColor; fill-opacity: 0.2; stroke: currentColor; stroke-width: 1.5; }
svg .median { stroke: currentColor; stroke-width: 3; }
svg .point { fill: currentColor; fill-opacity: 0.6; }
svg .caption { fill: var(--ink); }
svg .number { fill: var(--ink); font-size: 11px; }
svg .dot { fill: var(--accent); fill-opacity: 0.75; }
svg .mean { stroke: var(--second); stroke-width: 2; }
svg .track { fill: var(--rule); } svg .range { fill: var(--band); } svg .value { fill: var(--accent); }
""")


@dataclass(frozen=True)
class ChartLine:
    """One curve.

    Attributes:
        name: text in the legend.
        x: ascending positions, at least one, finite.
        y: as many values, finite.
        mark: index of a point to mark with a ring, if any.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: int | None = None


def line_chart(
    lines: Sequence[ChartLine],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (520, 280),
) -> Markup:
    """Draw curves over a common axis, with grid, legend (of two or more) and a title for screen readers.

    Args:
        lines: at least one curve; there are six colors and dashes in all.
        title: what the chart shows.
        x_label: text below the axis.
        y_label: text above the axis.
        x_range: ends of the axis; from the data if left out.
        y_range: lowest and highest value shown; from the data if left out.
        size: width and height in CSS pixels at full size; the legend below adds to the height.

    Example:
        >>> line_chart([ChartLine("loss", [0, 1], [0.7, 0.3])], title="<b>", x_label="epoch")[:4]
        Markup('<svg')
        >>> "<b>" in line_chart([ChartLine("loss", [0, 1], [0.7, 0.3])], title="<b>", x_label="epoch")
        False
    """
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y]
    ends = x_range or (min(xs), max(xs))
    x_ticks = round_ticks(*ends, 6)
    y_ticks, y_limits = axis_scale(ys, y_range)
    frame = ChartFrame(*size, widened(*ends), y_limits, top_margin(y_label))
    parts = [grid_lines(frame, x_ticks, y_ticks, x_label, y_label)]
    parts += [draw_curve(frame, line, number % 6) for number, line in enumerate(lines)]
    legend, added = legend_below([line.name for line in lines], size, "curve")
    return chart_svg((size[0], size[1] + added), title, [*parts, legend])


def bar_chart(
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    spread: Mapping[str, Sequence[float]] | None = None,
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    digits: int = 2,
    size: tuple[int, int] = (520, 280),
) -> Markup:
    """Draw bars side by side in groups, each with its value, with grid, legend (of two or more names) and title.

    Args:
        groups: names below the axis, at least one.
        values: name in the legend to one finite value per group; there are six colors in all.
        title: what the chart shows, for screen readers.
        spread: name to one number per group, half the length of the stroke around the value, e.g. a standard
            deviation; names may be left out.
        y_label: text above the axis.
        y_range: lowest and highest value shown; from 0 and the data if left out.
        digits: digits of the written values.
        size: width and height in CSS pixels at full size; legend and long names add to the height.

    Raises:
        ValueError: another number of values than of groups, or the spread of an unknown name.

    Example:
        >>> dice = {"T1": [0.31, 0.35], "fused": [0.42, 0.47]}
        >>> chart = bar_chart(["flip", "all"], dice, title="Dice by transform", spread={"T1": [0.02, 0.01]})
        >>> chart.count(">0.47<"), chart.count('class="whisker"')
        (1, 2)
    """
    spread = spread or {}
    _check_bars(groups, values, spread)
    ends = [
        value + sign * half
        for name, row in values.items()
        for value, half in zip(row, spread.get(name, [0.0] * len(row)), strict=True)
        for sign in (-1, 1)
    ]
    y_ticks, y_limits = axis_scale([0.0, *ends], y_range)
    room = top_margin(y_label) + ROW  # with a row for the highest number
    frame = ChartFrame(*size, (0.0, float(len(groups))), y_limits, room)
    parts = [grid_lines(frame, [], y_ticks, "", y_label)]
    for number, (name, row) in enumerate(values.items()):
        for group, value in enumerate(row):
            left, right = (frame.x(group + 0.1 + 0.8 * (number + side) / len(values)) for side in (0, 1))
            half = spread[name][group] if name in spread else None
            parts.append(_column(frame, left, right, value, half, number % 6, f"{value:.{digits}f}"))
    names, lines = group_labels(frame, groups)
    below = (size[0], size[1] + 14 * (lines - 1) - 10)  # no axis label stands between names and legend
    legend, added = legend_below(list(values), below, "column")
    return chart_svg((below[0], below[1] + added), title, [*parts, names, legend])


def value_strip(values: Sequence[float], *, title: str, x_label: str, size: tuple[int, int] = (520, 110)) -> Markup:
    """Draw every value in [0, 1] as a dot on a line, with the mean as a stroke: a distribution without bins.

    Args:
        values: at least one, finite.
        title: what the chart shows.
        x_label: text below the axis.
        size: width and height in CSS pixels at full size.

    Example:
        >>> value_strip([0.2, 0.8], title="Dice", x_label="Dice").count("<circle")
        2
    """
    frame = ChartFrame(*size, (0.0, 1.0), (0.0, 1.0))
    bottom = size[1] - BOTTOM
    parts = [grid_lines(frame, [0, 0.2, 0.4, 0.6, 0.8, 1], [], x_label, "")]
    stacked: dict[int, int] = {}
    for value in sorted(values):
        column = round(value * 80)
        rise = min(stacked.get(column, 0) * 9, bottom - TOP - 8)
        stacked[column] = stacked.get(column, 0) + 1
        parts.append(element("circle", class_="dot", cx=frame.x(value), cy=bottom - 7 - rise, r=4))
    mean = frame.x(sum(values) / len(values))
    parts.append(element("line", class_="mean", x1=mean, x2=mean, y1=TOP - 4, y2=bottom))
    parts.append(element("text", "mean", x=mean + 5, y=TOP + 4))
    return chart_svg(size, title, parts)


def interval_bar(mean: float, low: float, high: float) -> Markup:
    """Draw a value and its interval on a track from 0 to 1, as small as a word.

    Example:
        >>> interval_bar(0.5, 0.4, 0.6).count("<rect")
        3
    """
    width = 120
    left, right, middle = (max(0.0, min(1.0, value)) * width for value in (low, high, mean))
    parts = [
        element("rect", class_="track", x=0, y=5, width=width, height=2),
        element("rect", class_="range", x=left, y=3, width=max(right - left, 1.0), height=6, rx=3),
        element("rect", class_="value", x=min(max(middle - 1.5, 0.0), width - 3), y=0, width=3, height=12),
    ]
    return element(
        "svg", Markup("").join(parts), class_="bar", viewBox="0 0 120 12", width=width, height=12, aria_hidden="true"
    )


def draw_curve(frame: ChartFrame, line: ChartLine, color: int) -> Markup:
    """Draw a curve in a frame, with the ring of its mark; the color is one of six."""
    points = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True)]
    # A polyline of one point draws nothing; with the point twice, and round ends, it draws a dot.
    drawn = element("polyline", class_=f"curve c{color}", points=" ".join(points * 2 if len(points) == 1 else points))
    if line.mark is None:
        return drawn
    x, y = frame.x(line.x[line.mark]), frame.y(line.y[line.mark])
    return drawn + element("circle", class_=f"ring c{color}", cx=x, cy=y, r=5)


def _column(
    frame: ChartFrame, left: float, right: float, value: float, half: float | None, color: int, number: str
) -> Markup:
    """Draw a bar from zero, the stroke of its spread, and its number above both, turned by 90° if the bar is narrow.

    Numbers of negative bars stand above zero too, since the names of the groups stand below.
    """
    low, high = frame.y_range
    base, tip, middle = frame.y(min(max(0.0, low), high)), frame.y(value), (left + right) / 2
    top, height = min(base, tip), max(abs(base - tip), 1.0)
    drawn = element("rect", class_=f"column c{color}", x=left, y=top, width=(right - left) * 0.92, height=height)
    ends = [base, tip]
    if half is not None:
        bottom, top = frame.y(value - half), frame.y(value + half)
        stroke = f"M{middle - 3:.1f} {bottom:.1f}h6m-3 0V{top:.1f}m-3 0h6"
        drawn += element("path", class_="whisker", d=stroke)
        ends.append(top)
    level = min(ends) - 4
    if len(number) * LETTER <= right - left + 4:
        return drawn + element("text", number, class_="number", x=middle, y=level, text_anchor="middle")
    turn = f"rotate(-90 {middle + 4:.1f} {level:.1f})"
    return drawn + element("text", number, class_="number", x=middle + 4, y=level, transform=turn)


def _check_bars(
    groups: Sequence[str], values: Mapping[str, Sequence[float]], spread: Mapping[str, Sequence[float]]
) -> None:
    if not groups or not values:
        raise ValueError(f"Expected at least one of `groups` and of `values`, got {len(groups)} and {len(values)}.")
    unknown = set(spread) - set(values)
    if unknown:
        raise ValueError(f"Expected `spread` for some of {', '.join(values)}, got {', '.join(sorted(unknown))}.")
    for argument, rows in (("values", values), ("spread", spread)):
        for name, row in rows.items():
            if len(row) != len(groups):
                raise ValueError(f"Expected `{argument}` of {len(groups)} groups, got {len(row)} for {name}.")


def write_svg(path: str | os.PathLike[str], chart: Markup) -> Path:
    """Write a chart as a file of its own, with its title and style sheet; it follows the light or dark setting.

    Variables are replaced by their values, for viewers that know no style variables; these show the light colors.

    Args:
        path: the ``.svg`` file, which is written whole or not at all.
        chart: result of :func:`bar_chart` or of another chart of this file.

    Returns:
        The path.

    Raises:
        ValueError: no chart of this file.
        DataError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> chart = bar_chart(["flip", "all"], {"Dice": [0.4, 0.5]}, title="Dice by transform")
        >>> write_svg(Path(tempfile.mkdtemp()) / "dice.svg", chart).read_text(encoding="utf-8")[:39]
        '<svg xmlns="http://www.w3.org/2000/svg"'
    """
    found = re.match(r'<svg class="chart" viewBox="0 0 (\d+) (\d+)"', chart)
    if found is None:
        raise ValueError(f"Expected `chart` as bar_chart or line_chart gives it, got {str(chart)[:40]!r}.")
    tag, _, content = str(chart).removeprefix("<svg").partition("</title>")
    _, _, title = tag.partition("<title>")
    shown, above = caption_above(html.unescape(title), int(found[1]))
    width, height = found[1], int(found[2]) + above
    tag = tag.replace(found[0].removeprefix("<svg"), f' class="chart" viewBox="0 0 {width} {height}"')
    light, dark = _rules("light"), _rules("dark")
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"{tag}</title>'
        f"<style>\n{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>"
        f'<rect class="paper" width="{width}" height="{height}"></rect>{shown}'
        f'<g transform="translate(0 {above})">{content.removesuffix("</svg>")}</g></svg>\n'
    )
    target = Path(path)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def _rules(scheme: str) -> str:
    """Write the style sheet of a file of its own, with values instead of variables."""
    rules = f"svg {{ font-family: {FONTS}; }}\nsvg .paper {{ fill: var(--paper); }}\n{CHART_STYLE}"
    return re.sub(r"var\(--(\w+)\)", lambda name: CHART_COLORS[scheme][name[1]], rules)
