# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Box plots, parsed back: positions against numpy's quantiles."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.reports.box_chart import box_chart
from monai_wsss.reports.charts import write_svg

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ElementTree.fromstring(str(svg))


def number(element, key):
    return float(element.get(key))


def levels(box):
    """Give the positions of a box's five numbers and of its points, from the top: (five, points)."""
    rectangle, (median,) = box.find("rect"), box.findall("line")
    stroke = r"M\S+ (\S+)h\S+m\S+ 0V(\S+)M\S+ (\S+)h\S+m\S+ 0V(\S+)"
    low, first, high, third = map(float, re.fullmatch(stroke, box.find("path").get("d")).groups())
    assert third == pytest.approx(number(rectangle, "y"), abs=0.11)
    assert first == pytest.approx(number(rectangle, "y") + number(rectangle, "height"), abs=0.21)
    return [low, first, number(median, "y1"), third, high], [number(c, "cy") for c in box.findall("circle")]


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_boxes_lie_where_the_quantiles_are(values):
    tree = parsed(box_chart({"a": {"x": values}, "ends": {"x": [-1, 1]}}, title="t", y_range=(-1, 1)))
    box, ends = tree.findall("g")
    five, points = levels(box)
    zero, one = levels(ends)[1]

    def expected(numbers):
        return [zero + (value + 1) / 2 * (one - zero) for value in numbers]

    assert five == pytest.approx(expected(np.quantile(values, [0, 0.25, 0.5, 0.75, 1])), abs=0.15)
    assert points == pytest.approx(expected(sorted(values)), abs=0.15)
    assert one < zero  # a larger value stands higher


def test_groups_stand_in_order_and_their_boxes_apart():
    groups = {"20 %": {"alone": [1, 2, 3], "tuned": [2, 3, 4]}, "5 %": {"tuned": [2, 2.5]}, "1 %": {"alone": [0, 1]}}
    tree = parsed(box_chart(groups, title="t", y_label="mIoU"))
    boxes = tree.findall("g")
    assert [box.find("line").get("class") for box in boxes] == [f"median c{k}" for k in (0, 1, 1, 0)]
    spans = [(number(box.find("rect"), "x"), number(box.find("rect"), "width")) for box in boxes]
    for (left, width), (following, _) in itertools.pairwise(spans):
        assert left + width < following
    step = (520 - 56) / 3
    assert spans[2][0] - spans[1][0] == pytest.approx(step, abs=0.2)  # its place is kept in each group
    assert spans[3][0] - spans[0][0] == pytest.approx(2 * step, abs=0.2)
    texts = {text.text for text in tree.findall("text")}
    assert {"20 %", "5 %", "1 %", "alone", "tuned", "mIoU"} <= texts
    descriptions = [box.find("title").text for box in boxes]
    assert descriptions[2] == "5 %, tuned: median 2.25, quartiles 2.12 to 2.38, range 2.00 to 2.50, 2 values"


def test_one_series_needs_no_legend_and_one_value_no_box():
    tree = parsed(box_chart({"a": {"mIoU": [0.5]}, "b": {"mIoU": [0.4, 0.6]}}, title="t", digits=1))
    assert "mIoU" not in {text.text for text in tree.findall("text")}
    single = tree.findall("g")[0]
    assert single.find("rect") is None
    assert single.find("title").text == "a: median 0.5, quartiles 0.5 to 0.5, range 0.5 to 0.5, 1 value"
    assert number(single.find("circle"), "cy") == number(single.find("line"), "y1")


@pytest.mark.parametrize("count", [2, 10, 200])
def test_equal_values_stand_side_by_side_within_their_box(count):
    tree = parsed(box_chart({"a": {"x": [0.5] * count}, "b": {"x": [0.4]}}, title="t"))
    box = tree.find("g")
    places = [number(circle, "cx") for circle in box.findall("circle")]
    assert places == sorted(places)
    assert len(set(places)) > min(count, 100) / 2
    left, right = (number(box.find("line"), key) for key in ("x1", "x2"))
    radius = number(box.find("circle"), "r")
    assert left <= min(places) - radius
    assert max(places) + radius <= right
    assert sum(places) / count == pytest.approx((left + right) / 2, abs=0.1)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e9, 1.0], [-3.0, -2.0], [1e-12, 0.0]])
def test_points_of_any_size_stay_in_the_chart(values):
    for row in (values, values[:1]):
        tree = parsed(box_chart({"a": {"x": row}}, title="t"))
        axis = number(tree.find("line"), "y1")
        assert all(0 < number(circle, "cy") <= axis for circle in tree.iter("circle"))


def test_six_boxes_a_group_stay_narrow_and_within():
    groups = {k: {f"m{i}": [i, i + 1.0] for i in range(6)} for k in "abc"}
    tree = parsed(box_chart(groups, title="t"))
    rectangles = [box.find("rect") for box in tree.findall("g")]
    assert min(number(r, "x") for r in rectangles) > 44
    assert max(number(r, "x") + number(r, "width") for r in rectangles) < 508


def test_texts_are_escaped():
    evil = "<b>&\"'"
    tree = parsed(box_chart({evil: {evil: [1, 2], "x": [1, 2]}}, title=evil, y_label=evil))
    assert [text.text for text in tree.findall("text")].count(evil) == 3
    assert tree.find("title").text == evil
    assert tree.find("g").find("title").text.startswith(evil)


def test_written_file_stands_alone(tmp_path):
    chart = box_chart({"a": {"x": [1, 2], "y": [3.0]}}, title="<t>")
    tree = ElementTree.fromstring(write_svg(tmp_path / "box.svg", chart).read_text(encoding="utf-8"))
    assert tree[0].text == "<t>"
    caption, body = tree.findall(f"{SVG}text"), tree.find(f"{SVG}g")
    assert [text.text for text in caption] == ["<t>"]  # whoever looks at the file alone reads it, too
    assert len(body) == len(parsed(chart)) - 1
    style = tree.find(f"{SVG}style").text
    used = {name for element in tree.iter() for name in (element.get("class") or "").split()} - {"chart"}
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} == set()


def test_boxes_that_cannot_be_drawn_are_named():
    for groups in ({}, {"a": {}}):
        with pytest.raises(ValueError, match=f"`groups` with at least one box, got {len(groups)} groups without any"):
            box_chart(groups, title="t")
    for row in ([], [0.5, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="Expected finite values, at least one, for a/x, got "):
            box_chart({"a": {"x": row}}, title="t")
    with pytest.raises(ValueError, match=r"`y_range` to hold all values, from 0.2 to 0.7, got \(0, 0.5\)"):
        box_chart({"a": {"x": [0.2, 0.7]}}, title="t", y_range=(0, 0.5))
