# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Strips of pictures: their tiles, colors and orientation, and the choice of cases."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image

from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports import choose_cases, render_panel
from monai_wsss.reports.panels import MASK_COLOR, REFERENCE_COLOR, TELLING_TILE, render_comparison
from monai_wsss.reports.planes import display_of, telling_slices

TILE, CAPTION, GAP = 192, 20, 4


def tiles_of(png, width=TILE):
    """Give the tiles without captions, each (height, width, 3)."""
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    count = (sheet.shape[1] + GAP) // (width + GAP)
    assert sheet.shape == (TILE + CAPTION, count * (width + GAP) - GAP, 3)
    return [sheet[CAPTION:, i * (width + GAP) : i * (width + GAP) + width].astype(int) for i in range(count)]


def center_of(selected):
    rows, columns = np.nonzero(selected)
    return columns.mean() / selected.shape[1], rows.mean() / selected.shape[0]


def near(tile, color):
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(tile - wanted) <= 1).all(-1)


def square(x, y, size=32, half=3):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[x - half : x + half, y - half : y + half] = 1
    return mask


def test_first_index_is_the_column():
    mask, reference = square(24, 8), square(8, 20)
    image = np.stack([mask, reference]).astype(float)
    first, second, heat, filled, outlined = tiles_of(
        render_panel(image, mask.astype(float), mask, reference, channel_names=["a", "b"])
    )
    assert center_of(first.mean(-1) > 128) == pytest.approx((24 / 32, 8 / 32), abs=0.02)
    assert center_of(second.mean(-1) > 128) == pytest.approx((8 / 32, 20 / 32), abs=0.02)
    changed = np.abs(heat - second).sum(-1) > 60
    assert center_of(changed) == pytest.approx((24 / 32, 8 / 32), abs=0.02)
    orange = (filled[..., 0] - filled[..., 2]) > 60
    assert center_of(orange) == pytest.approx((24 / 32, 8 / 32), abs=0.02)
    assert center_of(near(outlined, MASK_COLOR)) == pytest.approx((24 / 32, 8 / 32), abs=0.02)
    assert center_of(near(outlined, REFERENCE_COLOR)) == pytest.approx((8 / 32, 20 / 32), abs=0.02)


def test_outlines_are_outlines_and_lie_inside_their_masks():
    mask = square(16, 16, half=6)
    outlined = tiles_of(render_panel(np.zeros((1, 32, 32)), None, mask, 0 * mask, channel_names=["a"]))[-1]
    edge = near(outlined, MASK_COLOR)
    inside = np.kron(mask.T, np.ones((6, 6))) > 0
    assert not (edge & ~inside).any()
    perimeter = 4 * 12 * 6
    assert edge.sum() == pytest.approx(2 * perimeter, rel=0.05)
    assert not near(outlined, REFERENCE_COLOR).any()


def test_both_outlines_show_where_they_agree():
    mask = square(16, 16, half=6)
    outlined = tiles_of(render_panel(np.zeros((1, 32, 32)), None, mask, mask, channel_names=["a"]))[-1]
    assert near(outlined, MASK_COLOR).any()
    assert near(outlined, REFERENCE_COLOR).any()


def test_a_volume_is_shown_by_rows_of_slices():
    image = np.random.default_rng(0).random((1, 16, 16, 9))
    mask, reference = np.zeros((2, 16, 16, 9))
    reference[4:12, 4:12, 1:8], mask[4:10, 4:12, 4] = 1, 1
    sheet = Image.open(io.BytesIO(render_panel(image, None, mask, reference, channel_names=["a"])))
    assert sheet.height == CAPTION + 3 * (TILE + GAP) - GAP
    left, top, right, bottom = map(int, sheet.info[TELLING_TILE].split())
    assert (right, bottom) == (sheet.width, top + TILE)
    assert top == CAPTION  # the first slice is the first of those where the reference is largest
    assert near(np.asarray(sheet.convert("RGB").crop((left, top, right, bottom))).astype(int), REFERENCE_COLOR).any()


@pytest.mark.parametrize(
    ("reference", "mask", "heat", "chosen"),
    [
        ({3: 4}, {6: 2}, None, [3, 6]),
        ({3: 2}, {6: 9}, None, [6, 3]),  # where the mask is largest, far from the reference
        (None, {4: 1}, None, [4]),
        ({}, {}, 1, [1]),
        ({}, {}, None, [5]),
        (dict.fromkeys(range(10), 1), {2: 9}, None, [2, 0, 7]),
    ],
)
def test_telling_slices(reference, mask, heat, chosen):
    def stack(sizes):
        part = np.zeros((3, 3, 10))
        for z, size in sizes.items():
            part[..., z].flat[:size] = 1
        return part

    given = [None if sizes is None else stack(sizes) for sizes in (reference, mask)]
    assert telling_slices(given, None if heat is None else stack({heat: 1})) == chosen


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("coarse", [False, True])
def test_a_volume_in_space_lies_as_radiologists_see_it(axes, coarse):
    """Mark right, front and head of a volume in each order of its axes, and look for the marks in the picture."""
    ras = np.zeros((12, 14, 16))
    ras[-3:, 6, 8], ras[6, -3:, 8], ras[6, 7, -3:] = 1, 2, 3  # right, front and head, +x, +y and +z
    affine = np.diag([1.0, 3.0 if coarse else 1.0, 1.0, 1.0])
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    array = apply_orientation(ras, turn)
    placed = affine @ inv_ornt_aff(turn, ras.shape)
    image = MetaTensor(torch.as_tensor(array.copy())[None], affine=placed, meta={"filename_or_obj": "a.nii.gz"})
    display = display_of(image)
    shown = display.turn(array)
    right, front, head = (np.argwhere(shown == value).mean(axis=0) for value in (1, 2, 3))
    assert right[0] < shown.shape[0] / 4
    assert display.letter == "R"
    assert (head if coarse else front)[1] < shown.shape[1] / 4
    assert display.aspect == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("channels", "names", "tiles"),
    [
        (1, ["FLAIR"], 1),
        (4, ["T1", "T1c", "T2", "FLAIR"], 4),
        (6, list("abcdef"), 4),
        (3, ["R", "G", "B"], 1),
        (2, [], 2),
    ],
)
def test_channels(channels, names, tiles):
    image = torch.rand(channels, 20, 20)
    assert len(tiles_of(render_panel(image, None, torch.zeros(20, 20), None, channel_names=names))) == tiles + 1


def test_colors_stay_colors():
    image = np.zeros((3, 20, 20))
    image[0, :10] = 255  # red on the left
    tile = tiles_of(render_panel(image, None, np.zeros((20, 20)), None, channel_names=["red", "green", "blue"]))[0]
    assert tile[:, :80].mean(axis=(0, 1)).tolist() == [255, 0, 0]
    assert tile[:, -80:].max() == 0


def test_long_images_keep_their_shape_within_reason():
    png = render_panel(np.zeros((1, 40, 20)), None, np.zeros((40, 20)), None, channel_names=["a"])
    assert len(tiles_of(png, width=384)) == 2
    png = render_panel(np.zeros((1, 400, 2)), None, np.zeros((400, 2)), None, channel_names=["a"])
    assert len(tiles_of(png, width=576)) == 2


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf, -np.inf])
def test_degenerate_images_are_drawn_dark(value):
    image, cam = np.full((1, 16, 16), value), np.full((16, 16), value)
    tiles = tiles_of(render_panel(image, cam, np.zeros((16, 16)), np.ones((16, 16)), channel_names=["a"]))
    assert tiles[0].max() == 0
    assert len(tiles) == 4


def test_several_classes_have_several_colors():
    mask = square(8, 8) + 2 * square(24, 24)
    filled = tiles_of(render_panel(np.zeros((1, 32, 32)), None, mask, None, channel_names=["a"]))[-1]
    colors, counts = np.unique(filled.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colors) == 4, "nothing, two classes and the light line around both"
    assert counts[(colors > 200).all(axis=1)].sum() < min(counts[(colors < 200).all(axis=1)])


def test_a_mask_is_seen_on_an_image_of_its_own_color_and_is_open_at_the_edge_of_the_picture():
    mask = np.zeros((20, 20))
    mask[:10] = 1  # the left half
    image = np.ones((3, 20, 20)) * np.array(CLASS_COLORS[0]).reshape(3, 1, 1)
    image[:, 0, 0] = 0
    names = ["red", "green", "blue"]
    filled = tiles_of(render_panel(image, None, mask, None, channel_names=names))[-1].astype(int)
    light = (filled > 240).all(axis=-1)
    assert light.any(axis=0).nonzero()[0].tolist() == [95], "of 192 columns that beside the border alone"


def test_a_long_line_below_is_shown_whole():
    image, mask, note = np.zeros((1, 20, 20)), square(10, 10, 20), "a note that says at length what was done "
    short, long = (
        Image.open(io.BytesIO(render_comparison(image, {"+ DT": mask}, mask, channel_names=["a"], note=text)))
        for text in ("", 5 * note)
    )
    assert short.width == 2 * TILE + GAP
    ends = np.asarray(long.convert("L"))[-CAPTION:].max(axis=0) > 100
    assert short.width < np.nonzero(ends)[0].max() < long.width - 5


def test_identical_input_gives_identical_bytes_without_metadata():
    image, mask = np.random.default_rng(0).random((2, 20, 20)), square(10, 10, 20)
    first, second = (render_panel(image, None, mask, mask, channel_names=["a", "b"]) for _ in range(2))
    assert first == second
    assert list(Image.open(io.BytesIO(first)).info) == [TELLING_TILE]


@pytest.mark.parametrize(
    ("shapes", "names", "words"),
    [
        (((1, 8, 8), (8, 8), (8, 9), None), ["a"], r"`image` of shape \(C, \*S\) with C = 1"),
        (((2, 8, 8), None, (8, 8), None), ["a"], "C = 1 channel names"),
        (((1, 8, 8), (8, 9), (8, 8), None), ["a"], r"`cam` of the mask's shape \(8, 8\), got \(8, 9\)"),
        (((1, 8, 8), None, (8, 8), (1, 8, 8)), ["a"], "`reference` of the mask's shape"),
        (((8, 8), None, (8,), None), list("abcdefgh"), "`image` of shape"),
    ],
)
def test_bad_shapes(shapes, names, words):
    arrays = [None if shape is None else np.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=words):
        render_panel(*arrays, channel_names=names)


def row(dice=None, *, finding=1, healthy=0, found=1, fp=0):
    return {"finding": finding, "healthy": healthy, "found": found, "fp": fp} | ({} if dice is None else {"dice": dice})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 4))
def test_chosen_cases_are_in_order_and_never_twice(scores, each):
    rows = [row(score / 20) for score in scores]
    chosen = choose_cases(rows, each=each)
    dice = {kind: [scores[number - 1] for number in numbers] for kind, numbers in chosen.items()}
    numbers = chosen["best"] + chosen["median"] + chosen["worst"]
    assert len(set(numbers)) == len(numbers) <= 3 * each
    assert len(numbers) == min(len(scores), 3 * each)
    if scores:
        assert dice["best"][0] == max(scores)
    if len(scores) > 1:
        assert dice["worst"][0] == min(scores)
        assert max(dice["worst"]) <= min(dice["best"])
    if dice["median"]:
        assert min(dice["best"]) >= max(dice["median"]) >= min(dice["median"]) >= max(dice["worst"])
    if len(scores) >= 3 * each and len(scores) % 2 == each % 2:
        assert min(dice["median"]) <= np.median(scores) <= max(dice["median"])


def test_false_alarms_by_size_and_cases_without_truth_are_passed_over():
    rows = [
        row(0.0, finding=0, healthy=1, fp=5),
        row(1.0, finding=0, healthy=1, found=0),
        row(0.0, finding=0, healthy=1, fp=90),
        {"label": 1},
        row(0.4),
    ]
    expected = {"best": [5], "median": [], "worst": [], "false alarm": [3, 1]}
    assert choose_cases(rows) == expected
    as_csv = [
        {key: str(value) for key, value in ({"finding": "", "healthy": "", "found": ""} | r).items()} for r in rows
    ]
    assert choose_cases(as_csv) == expected
    assert choose_cases([]) == {"best": [], "median": [], "worst": [], "false alarm": []}


def test_false_alarms_of_several_classes_leave_out_the_background():
    small = {"finding": 0, "healthy": 1, "found": 1, "dice": 0.0, "fp/background": 99, "fp/a": 1, "fp/b": 1}
    large = small | {"fp/background": 0, "fp/b": 9}
    assert choose_cases([small, large])["false alarm"] == [2, 1]


def test_standardized_tissue_is_shown_in_the_usual_stain():
    standardized = np.zeros((3, 40, 40), dtype=np.float32)
    standardized[:, :20] = -1.0
    names = ["red", "green", "blue"]
    tile = tiles_of(render_panel(standardized, None, np.zeros((40, 40)), None, channel_names=names))[0]
    seen = np.asarray(tile).reshape(-1, 3).astype(int)
    for wanted in ((189, 106, 188), (148, 60, 156)):
        assert (np.abs(seen - wanted).max(axis=1) <= 2).any(), wanted
