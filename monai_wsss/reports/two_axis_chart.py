# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two curves over one horizontal axis, each with a vertical axis of its own, on the left and on the right."""

from __future__ import annotations

from markupsafe import Markup

from monai_wsss.reports.chart_parts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    ChartFrame,
    axis_scale,
    chart_svg,
    element,
    grid_lines,
    legend_below,
    round_ticks,
    top_margin,
    widened,
)
from monai_wsss.reports.charts import ChartLine, draw_curve

__all__ = ["two_axis_chart"]


def two_axis_chart(
    left: ChartLine, right: ChartLine, *, title: str, x_label: str, size: tuple[int, int] = (520, 280)
) -> Markup:
    """Draw two curves of different scales; the grid is that of the left axis.

    Args:
        left: its name is the label of the left axis.
        right: likewise.
        title: what the chart shows, for screen readers.
        x_label: text below the axis.
        size: width and height in CSS pixels at full size; the legend below adds to the height.

    Returns:
        An SVG, as :func:`~monai_wsss.reports.charts.line_chart` gives it.

    Example:
        >>> lines = ChartLine("DSC", [0.1, 0.9], [70.0, 72.0]), ChartLine("JC", [0.1, 0.9], [56.0, 59.0])
        >>> chart = two_axis_chart(*lines, title="Lambda", x_label="lambda")
        >>> chart.count(">DSC, left<"), chart.count(">JC, right<")
        (2, 2)
    """
    lines, xs = (left, right), [*left.x, *right.x]
    width = size[0] - LEFT + RIGHT  # as much room for the numbers on the right as for those on the left
    frames, numbers = [], []
    for line in lines:
        ticks, limits = axis_scale(line.y, None)
        frames.append(ChartFrame(width, size[1], widened(min(xs), max(xs)), limits, top_margin(line.name)))
        numbers.append(ticks)
    names = [f"{left.name}, left", f"{right.name}, right"]
    edge = width - RIGHT
    parts = [grid_lines(frames[0], round_ticks(min(xs), max(xs), 6), numbers[0], x_label, names[0])]
    parts.append(element("text", names[1], x=edge, y=TOP + 4, text_anchor="end"))
    parts.append(element("line", class_="axis", x1=edge, x2=edge, y1=frames[1].top, y2=size[1] - BOTTOM))
    parts += [element("text", f"{tick:g}", x=edge + 6, y=frames[1].y(tick) + 4) for tick in numbers[1]]
    parts += [
        draw_curve(frame, line, number) for number, (frame, line) in enumerate(zip(frames, (left, right), strict=True))
    ]
    legend, added = legend_below(names, size, "curve")
    return chart_svg((size[0], size[1] + added), title, [*parts, legend])
