# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""SVG charts, parsed back: positions against the values, and all texts escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_wsss._checks import DataError
from monai_wsss.reports.chart_parts import round_ticks
from monai_wsss.reports.charts import (
    CHART_COLORS,
    ChartLine,
    bar_chart,
    interval_bar,
    line_chart,
    value_strip,
    write_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["plain CAM, fused", "SEAM (all), fused", "KD, fused", "ER + CMER, fused", "CMER (all terms), fused", "masks"]


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
    assert y0 > y2 > y1  # higher on the sheet is a smaller y
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
    ticks = round_ticks(low, low + span, most)
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


def number(element, key):
    return float(element.get(key))


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("size", [(520, 280), (300, 190)])
def test_legend_lies_below_the_axis_and_within_the_chart(count, size):
    curves = [ChartLine(name, [0, 1], [0, 1]) for name in NAMES[:count]]
    tree = parsed(line_chart(curves, title="t", x_label="x", size=size))
    _, _, width, height = map(float, tree.get("viewBox").split())
    assert width == size[0]
    entries = [text for text in tree.findall("text") if text.text in NAMES]
    assert [text.text for text in entries] == NAMES[:count]
    assert len({(text.get("x"), text.get("y")) for text in entries}) == count
    for text in entries:
        assert size[1] < number(text, "y") < height
        assert number(text, "x") + 6 * len(text.text) < width
    strokes = [line for line in tree.findall("line") if line.get("class").startswith("curve")]
    assert [line.get("class") for line in strokes] == [f"curve c{index}" for index in range(count)]


def test_label_above_the_axis_moves_the_curves_down():
    curve = ChartLine("a", [0, 1], [0.0, 1.0])
    plain = parsed(line_chart([curve], title="t", x_label="x"))
    labeled = parsed(line_chart([curve], title="t", x_label="x", y_label="Dice"))
    highest = [min(float(pair.split(",")[1]) for pair in tree.find("polyline").get("points").split())
               for tree in (plain, labeled)]  # fmt: skip
    label = next(text for text in labeled.findall("text") if text.text == "Dice")
    assert highest[0] < number(label, "y") < highest[1]


def test_bars_are_as_high_as_their_values_and_stand_on_zero():
    values = {"T1": [0.2, 0.4], "fused": [0.3, -0.1]}
    tree = parsed(bar_chart(["flip", "all"], values, title="t", y_label="Dice", spread={"T1": [0.05, 0.1]}))
    bars = tree.findall("rect")[:-2]  # the last two are the legend's
    assert [bar.get("class") for bar in bars] == ["column c0"] * 2 + ["column c1"] * 2
    heights = [number(bar, "height") for bar in bars]
    assert heights == pytest.approx([heights[0] * ratio for ratio in (1, 2, 1.5, 0.5)], abs=0.15)
    zero = number(bars[0], "y") + heights[0]
    assert [number(bar, "y") + number(bar, "height") for bar in bars[1:3]] == pytest.approx([zero] * 2, abs=0.15)
    assert number(bars[3], "y") == pytest.approx(zero, abs=0.15)  # a negative bar begins at zero
    lefts = [number(bars[i], "x") for i in (0, 2, 1, 3)]  # group by group, with the names in their order
    assert lefts == sorted(lefts)
    whiskers = [path.get("d") for path in tree.findall("path") if path.get("class") == "whisker"]
    for bar, half, stroke in zip(bars[:2], (0.05, 0.1), whiskers, strict=True):
        low, high = map(float, re.fullmatch(r"M\S+ (\S+)h6m-3 0V(\S+)m-3 0h6", stroke).groups())
        unit = heights[1] / 0.4
        assert (low + high) / 2 == pytest.approx(number(bar, "y"), abs=0.15)
        assert low - high == pytest.approx(2 * half * unit, abs=0.3)
    assert {"flip", "all", "T1", "fused", "0.20", "0.40", "0.30", "-0.10", "Dice"} <= {
        text.text for text in tree.findall("text")
    }


@pytest.mark.parametrize("count", [1, 3, 6])
def test_numbers_of_bars_stay_clear_of_bars_axis_and_names(count):
    values = {name: [0.1 * index - 0.2, 0.5, 0.0] for index, name in enumerate(NAMES[:count])}
    chart = bar_chart(["one", "two", "three"], values, title="t", spread={name: [0.1] * 3 for name in values})
    tree = parsed(chart)
    numbers = [text for text in tree.findall("text") if text.get("class") == "number"]
    assert len(numbers) == 3 * count
    assert (numbers[0].get("transform") is None) == (count < 6)  # turned where the bars are narrow
    axis = number(tree.find("line"), "y1")
    assert all(10 < number(text, "y") < axis for text in numbers)


def test_long_group_names_are_broken_into_lines():
    long = "CMER (default: weak peers gated)"
    groups = [long, *"abcde"]
    short = parsed(bar_chart(list("fabcde"), {"Dice": [0.1] * 6}, title="t"))
    tree = parsed(bar_chart(groups, {"Dice": [0.1] * 6}, title="t"))
    lines = [text for text in tree.findall("text") if text.text and text.text in long and len(text.text) > 1]
    assert " ".join(text.text for text in lines) == long
    assert len({text.get("y") for text in lines}) == len(lines) > 1
    added = [float(each.get("viewBox").split()[3]) for each in (tree, short)]
    assert added[0] - added[1] == 14 * (len(lines) - 1)
    assert max(number(text, "y") for text in lines) < added[0]


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e9, 1.0], [-3.0, -2.0], [1e-12, 0.0]])
def test_bars_of_any_size_stay_in_the_chart(values):
    tree = parsed(bar_chart(["a", "b"], {"x": values}, title="t"))
    height = float(tree.get("viewBox").split()[3])
    for bar in tree.findall("rect"):
        assert number(bar, "y") >= 0
        assert number(bar, "y") + number(bar, "height") <= height


def test_bars_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Expected at least one of `groups` and of `values`, got 0 and 1"):
        bar_chart([], {"T1": []}, title="t")
    with pytest.raises(ValueError, match="Expected `values` of 2 groups, got 1 for T1"):
        bar_chart(["a", "b"], {"T1": [0.1]}, title="t")
    with pytest.raises(ValueError, match="Expected `spread` of 2 groups, got 3 for T1"):
        bar_chart(["a", "b"], {"T1": [0.1, 0.2]}, title="t", spread={"T1": [0, 0, 0]})
    with pytest.raises(ValueError, match="Expected `spread` for some of T1, got T2"):
        bar_chart(["a"], {"T1": [0.1]}, title="t", spread={"T2": [0]})


def test_bar_texts_are_escaped():
    evil = "<b>&\"'"
    tree = parsed(bar_chart([evil, "b"], {evil: [1, 2], "x": [1, 2]}, title=evil, y_label=evil))
    assert [text.text for text in tree.findall("text")].count(evil) == 3
    assert tree.find("title").text == evil


@pytest.mark.parametrize(
    "chart",
    [
        line_chart([ChartLine("<a>", [0, 1], [0, 1])] * 2, title="<t>", x_label="x"),
        bar_chart(["a"], {"x": [1]}, title="<t>"),
        value_strip([0.5], title="<t>", x_label="x"),
    ],
    ids=["line", "bar", "strip"],
)
def test_written_file_stands_alone(tmp_path, chart):
    path = write_svg(tmp_path / "chart.svg", chart)
    text = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    assert tree.tag == f"{SVG}svg"
    assert tree[0].tag == f"{SVG}title"  # screen readers read it there
    assert tree[0].text == "<t>"
    assert tree.get("viewBox") == f"0 0 {tree.get('width')} {tree.get('height')}"
    paper = tree.find(f"{SVG}rect")
    assert paper.get("class") == "paper"
    caption, body = tree.findall(f"{SVG}text"), tree.find(f"{SVG}g")
    assert [text.text for text in caption] == ["<t>"]  # whoever looks at the file alone reads it, too
    assert len(body) == len(parsed(chart)) - 1
    style = tree.find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert "var(" not in style
    assert f".paper {{ fill: {CHART_COLORS['light']['paper']}" in light
    assert f".paper {{ fill: {CHART_COLORS['dark']['paper']}" in dark
    used = {name for element in tree.iter() for name in (element.get("class") or "").split()} - {"chart"}
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} == set()
    assert [entry.name for entry in tmp_path.iterdir()] == ["chart.svg"]


def test_long_titles_of_files_are_broken_into_lines_above_the_chart(tmp_path):
    title = "Fig. 3 of the paper, run small: 64 x 64 pixels, width 8, 8 epochs, learning rate 0.001 & more"
    chart = bar_chart(["a"], {"x": [1]}, title=title)
    tree = ElementTree.fromstring(write_svg(tmp_path / "a.svg", chart).read_text(encoding="utf-8"))
    caption = tree.findall(f"{SVG}text")
    assert " ".join(text.text for text in caption) == title
    assert len(caption) == 2
    shift = int(re.search(r"translate\(0 (\d+)\)", tree.find(f"{SVG}g").get("transform"))[1])
    assert all(0 < float(text.get("y")) < shift for text in caption)
    assert int(tree.get("height")) == int(re.search(r'viewBox="0 0 \d+ (\d+)"', chart)[1]) + shift


def test_no_chart_or_no_folder_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match='Expected `chart` as bar_chart or line_chart gives it, got \'<svg class="bar"'
    ):
        write_svg(tmp_path / "a.svg", interval_bar(0.5, 0.4, 0.6))
    with pytest.raises(DataError, match="Cannot write"):
        write_svg(tmp_path / "missing" / "a.svg", bar_chart(["a"], {"x": [1]}, title="t"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_are_legible_on_their_paper(scheme):
    """Check the contrasts of WCAG 2: at least 4.5 for texts, 3 for shapes that carry meaning."""

    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(color):
        low, high = sorted((luminance(color), luminance(CHART_COLORS[scheme]["paper"])))
        return (high + 0.05) / (low + 0.05)

    colors = CHART_COLORS[scheme]
    assert min(contrast(colors[name]) for name in ("ink", "soft")) >= 4.5
    fixed = ["#3a9a62", "#a15bb5", "#8a8f98", "#c0504d"]
    assert min(contrast(color) for color in [colors["accent"], colors["second"], *fixed]) >= 3
