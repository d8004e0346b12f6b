# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Both curves fill the height of the chart, each by its own axis, whose numbers stand beside it."""

from __future__ import annotations

import re

from monai_wsss.reports.charts import ChartLine
from monai_wsss.reports.two_axis_chart import two_axis_chart


def test_each_curve_has_its_own_scale():
    left, right = ChartLine("DSC", [0.1, 0.5, 0.9], [0, 5, 10]), ChartLine("JC", [0.1, 0.5, 0.9], [1000, 2000, 3000])
    chart = str(two_axis_chart(left, right, title="<study>", x_label="lambda"))
    assert "&lt;study&gt;" in chart
    curves = re.findall(r'<polyline class="curve c(\d)" points="([^"]+)"', chart)
    assert [color for color, _ in curves] == ["0", "1"]
    first, second = (points for _, points in curves)
    assert first == second, "both go from the bottom to the top"
    numbers = {text: float(x) for x, text in re.findall(r'<text x="([\d.]+)" y="[\d.]+"[^>]*>([\d.]+)</text>', chart)}
    assert numbers["10"] < 60
    assert numbers["3000"] > 480


def test_one_point_of_one_value():
    line = ChartLine("DSC", [0.3], [0.5], mark=0)
    chart = str(two_axis_chart(line, ChartLine("JC", [0.3], [0.4]), title="one", x_label="lambda"))
    assert "nan" not in chart
    assert chart.count("<circle") == 1
