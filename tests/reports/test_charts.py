# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""SVG charts: parsed back, positions against the values, everything escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_wsss.reports.charts import ChartLine, _ticks, interval_bar, line_chart, value_strip


def parsed(svg):
    return ElementTree.fromstring(str(svg))


def test_curve_goes_where_the_values_are():
    tree = parsed(
        line_chart([ChartLine("a", [0, 5, 10], [0.0, 1.0, 0.5], mark=1)], title="t", x_label="x", y_range=(0, 1))
    )
    points = [tuple(map(float, pair.split(","))) for pair in tree.find("polyline").get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert x0 < x1
    assert y0 > y2 > y1  # up is less
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    ring = tree.find("circle")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == (x1, y1)
    assert {text.text for text in tree.findall("text")} >= {"x", "0", "0.2", "1", "10"}
    assert tree.find("title").text == "t"


def test_legend_only_for_several_curves():
    one = line_chart([ChartLine("first", [0, 1], [1, 2])], title="t", x_label="x")
    two = line_chart([ChartLine(name, [0, 1], [1, 2]) for name in ("first", "second")], title="t", x_label="x")
    assert "first" not in one
    assert "first" in two
    assert "second" in two


@pytest.mark.parametrize("y", [[0.5], [0.0], [-3.0], [1e9], [1e-12]])
def test_one_point_and_constant_curves(y):
    tree = parsed(line_chart([ChartLine("a", [3], y)], title="t", x_label="x"))
    assert len(tree.find("polyline").get("points").split()) == 2
    parsed(line_chart([ChartLine("a", [1, 2], y * 2)], title="t", x_label="x"))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_within_the_range_and_few(low, span, most):
    ticks = _ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low - 1e-6 * span - 1e-9 <= tick <= low + span * (1 + 1e-6) + 1e-9 for tick in ticks)


def test_strip_has_a_dot_a_subject_and_stacks_equal_ones():
    tree = parsed(value_strip([0.5, 0.5, 0.9], title="t", x_label="Dice"))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in tree.findall("circle")]
    assert len(set(dots)) == 3
    assert dots[0][0] == dots[1][0] < dots[2][0]
    assert dots[1][1] < dots[0][1] == dots[2][1]
    many = parsed(value_strip([0.5] * 500, title="t", x_label="Dice"))
    assert min(float(dot.get("cy")) for dot in many.findall("circle")) > 0


@pytest.mark.parametrize(("mean", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.5, 0.2, 0.9), (2.0, -1.0, 3.0)])
def test_bar_stays_on_its_track(mean, low, high):
    for rectangle in parsed(interval_bar(mean, low, high)).findall("rect"):
        left, width = float(rectangle.get("x")), float(rectangle.get("width"))
        assert left >= 0
        assert left + width <= 121


def test_text_is_escaped():
    evil = "<script>&\"'"
    svg = line_chart([ChartLine(evil, [0, 1], [0, 1])] * 2, title=evil, x_label=evil)
    assert "<script>" not in svg
    assert parsed(svg).find("title").text == evil
