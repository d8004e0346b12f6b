# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whole slides, generated: what is read, blended, decided and written equals what the slide as a whole would give."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.wsi_reader import WSIReader
from monai.transforms import ScaleIntensityRange
from PIL import Image
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss._labels import CLASS_COLORS
from monai_wsss.inferers import SlideReading, TileLayout, slide_reading, slide_tiff, slide_tiles
from monai_wsss.inferers.slide_reading import BACKENDS, SlideSource
from monai_wsss.inferers.slide_tiles import BandBlender, TileGrid, fade_weights, tile_starts
from monai_wsss.inferers.slide_tissue import TissueMap, find_tissue
from monai_wsss.inferers.whole_slide import segment_slide
from monai_wsss.networks import CAMEncoder, add_reading_record, record_reading
from monai_wsss.refinement import MaskRule, to_mask

PER_CM = (2e4, 2e4)  # 0.5 micrometers per pixel


def picture(height=330, width=270, seed=0):
    """Draw colored tissue in white glass, with noise, so that each pixel tells where it is from."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.45) / 0.4) ** 2 + ((x / width - 0.5) / 0.35) ** 2 < 1
    tissue = np.array([150, 60, 130]) + noise + (x % 40 < 20)[..., None] * [40, 0, 20]
    return np.where(inside[..., None], tissue, 245).astype(np.uint8)


def write_slide(path, pixels, levels=3, **options):
    """Write a pyramid of separate pages, as vips and OpenSlide's generic TIFF have it."""
    options = {"tile": (64, 64), "compression": "deflate", "resolution": PER_CM, "resolutionunit": 3} | options
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            part = pixels[:: 2**level, :: 2**level]
            x, y = options["resolution"]
            kwargs = options | {"resolution": (x / 2**level, y / 2**level), "subfiletype": int(level > 0)}
            writer.write(part, photometric="rgb", metadata=None, **kwargs)
    return path


def convolution(margin=2, classes=2, seed=0):
    """Build a network with a receptive field of radius ``margin`` whose scores have both signs and no symmetry."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, classes, 2 * margin - 1, padding=margin - 1)]
    return nn.Sequential(*layers).eval()


def normalized(tile):
    return tile / 127.5 - 1


def whole_mask(network, pixels, axes="xy", **options):
    """Give the whole slide to the network at once: the oracle."""
    image = normalized(torch.from_numpy(pixels.astype(np.float32)))[None]
    image = image.permute(0, 3, 2, 1) if axes == "xy" else image.permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = network(image)
    scores = scores.transpose(2, 3) if axes == "xy" else scores
    defaults = {"output_kind": "segmentation", "rule": "argmax", "gate": "none"}
    return to_mask(scores, **(defaults | options))[0, 0].numpy()


def run(slide, network, out, **options):
    """Sort the words to the parts that take them."""
    options = {"tile": 64, "overlap": 0.25, "margin": 2, "normalize": normalized, "tissue": "all"} | options
    reading, layout = (
        part(**{field.name: options.pop(field.name) for field in fields(part) if field.name in options})
        for part in (SlideReading, TileLayout)
    )
    return segment_slide(slide, network, out, reading=reading, layout=layout, **options)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", picture())


# Reading


@pytest.mark.parametrize("backend", BACKENDS)
def test_regions_are_the_pixels_of_each_level_and_white_beyond(slide, backend):
    pixels = picture()
    with SlideSource(slide, backend=backend) as source:
        assert source.mpp == (0.5, 0.5)
        assert source.sizes == [(330, 270), (165, 135), (83, 68)]
        for level in range(2):
            part = pixels[:: 2**level, :: 2**level]
            expected = np.pad(part, ((8, 8), (8, 8), (0, 0)), constant_values=255)
            view = source.view(level=level)
            np.testing.assert_array_equal(view.region(-8, -8, *expected.shape[:2]), expected)
            np.testing.assert_array_equal(view.region(50, 61, 70, 40), expected[58:128, 69:109])
            assert (view.region(1000, 1000, 4, 4) == 255).all()


@pytest.mark.parametrize(
    "options",
    [
        {"tile": None, "compression": None},
        {"tile": None, "compression": "deflate", "rowsperstrip": 7},
        {"tile": None, "compression": "lzw", "rowsperstrip": 330},
        {"compression": None},
        {"planarconfig": "separate"},
        {"tile": None, "planarconfig": "separate", "rowsperstrip": 50},
        {"predictor": True},
    ],
    ids=str,
)
def test_tifffile_reads_all_layouts_without_decoding_a_level(tmp_path, options, monkeypatch):
    pixels = picture()
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    file = tmp_path / "slide.tif"
    layout = {"tile": (64, 64), "compression": "deflate"} | options
    tifffile.imwrite(file, stored, photometric="rgb", metadata=None, resolution=PER_CM, resolutionunit=3, **layout)
    monkeypatch.setattr(tifffile.TiffFile, "asarray", None)
    with SlideSource(file, backend="tifffile") as source:
        view = source.view(level=0)
        np.testing.assert_array_equal(view.region(0, 0, 330, 270), pixels)
        np.testing.assert_array_equal(view.region(100, 60, 90, 150), pixels[100:190, 60:210])


def test_what_tifffile_keeps_is_bounded(slide, monkeypatch):
    monkeypatch.setattr(slide_tiff, "KEPT_TILES", 5 * 64 * 64 * 3)
    with SlideSource(slide, backend="tifffile") as source:
        np.testing.assert_array_equal(source.view(level=0).region(0, 0, 330, 270), picture())
        # No public name tells what the reader holds.
        assert source._reader._kept_bytes == 5 * 64 * 64 * 3
        assert len(source._reader._kept) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_transparent_pixels_are_glass(tmp_path, backend):
    pixels = picture(128, 128)
    alpha = np.full((128, 128, 1), 255, dtype=np.uint8)
    alpha[:64], alpha[64:80] = 0, 128
    dark = np.where(alpha == 0, 0, pixels).astype(np.uint8)
    file = tmp_path / "rgba.tif"
    write_slide(file, np.concatenate([dark, alpha], axis=2), levels=1, extrasamples=["unassalpha"])
    with SlideSource(file, backend=backend) as source:
        seen = source.view(level=0).region(0, 0, 128, 128)
    assert (seen[:64] == 255).all()
    np.testing.assert_array_equal(seen[80:], pixels[80:])
    np.testing.assert_allclose(seen[64:80], (pixels[64:80] * 128.0 + 255 * 127) / 255, atol=2)


def test_tiles_that_hold_nothing_are_glass(tmp_path):
    file = tmp_path / "sparse.tif"
    tiles = [np.full((64, 64, 3), 9, dtype=np.uint8), None, None, None]
    with tifffile.TiffWriter(file) as writer:
        layout = {"shape": (128, 128, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb"}
        writer.write(iter(tiles), resolution=PER_CM, resolutionunit=3, metadata=None, compression="deflate", **layout)
    with SlideSource(file, backend="tifffile") as source:
        seen = source.view(level=0).region(0, 0, 128, 128)
    assert (seen[:64, :64] == 9).all()
    assert (seen[64:] == 255).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resolution_takes_a_level_or_resamples_the_next_finer_one(slide, backend):
    with SlideSource(slide, backend=backend) as source:
        assert source.view(mpp=1.0).level == 1
        assert source.view(mpp=1.01).scale == (1.0, 1.0)
        for mpp, level in ((0.8, 0), (1.5, 1), (0.4, 0)):
            view = source.view(mpp=mpp)
            assert view.level == level
            assert view.mpp == (mpp, mpp)
            assert view.size == (round(330 * 0.5 / mpp), round(270 * 0.5 / mpp))
            whole = view.region(0, 0, *view.size).astype(int)
            # Borders between regions are nowhere to be seen.
            parts = [np.hstack([view.region(y, x, 20, 30) for x in (0, 30)]) for y in (0, 20)]
            assert np.abs(np.vstack(parts) - whole[:40, :60]).max() <= 1
            # Pillow itself, on a picture whose size is a multiple.
            pixels = picture()[:: 2**level, :: 2**level]
            scale = view.scale[0]
            edge = int(100 * scale)
            box = (0, 0, 60 * scale, 60 * scale)
            expected = Image.fromarray(pixels[: edge + 20, : edge + 20]).resize((60, 60), Image.BILINEAR, box=box)
            assert np.abs(whole[5:55, 5:55] - np.asarray(expected, dtype=int)[5:55, 5:55]).max() <= 1


def test_a_finer_resolution_than_the_slide_has_is_told(slide, caplog):
    with SlideSource(slide) as source:
        assert source.view(mpp=0.25).size == (660, 540)
    assert "The slide has 0.5 micrometers per pixel, so 0.25 are interpolated." in caplog.text


def test_large_steps_are_read_in_blocks(slide, monkeypatch):
    with SlideSource(slide, backend="tifffile") as source:
        expected = source.thumbnail(20).astype(int)
        monkeypatch.setattr(slide_reading, "BLOCK", 40)
        asked = []
        pixels = SlideSource.read

        def read(self, level, top, left, height, width):
            asked.append((height, width))
            return pixels(self, level, top, left, height, width)

        monkeypatch.setattr(SlideSource, "read", read)
        assert np.abs(source.thumbnail(20).astype(int) - expected).max() <= 1
    assert expected.shape == (20, 16, 3)
    assert np.array(asked).max() <= 40 + 4 * 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_thumbnails_need_no_pyramid(tmp_path, backend):
    file = write_slide(tmp_path / "flat.tif", picture(), levels=1)
    with SlideSource(file, backend=backend) as source:
        assert source.thumbnail(2048).shape == (330, 270, 3)
        seen = source.thumbnail(33).astype(float)
    means = picture().reshape(33, 10, 27, 10, 3).mean(axis=(1, 3))
    assert np.abs(seen - means).mean() < 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_aperio_slides_have_no_thumbnail_or_label_among_their_levels(tmp_path, backend):
    file = tmp_path / "slide.svs"
    pixels = picture()
    text = "Aperio Image Library v10\n330x270 |AppMag = 20|MPP = 0.5|Patient = Jane"
    with tifffile.TiffWriter(file) as writer:
        kind = {"photometric": "rgb", "metadata": None}
        writer.write(pixels, tile=(64, 64), compression="jpeg", description=text, **kind)
        writer.write(pixels[::5, ::5], compression="jpeg", description=text, **kind)
        writer.write(pixels[::2, ::2], tile=(64, 64), compression="jpeg", description=text, **kind)
        writer.write(pixels[::3, ::4], compression="lzw", description="Aperio label", subfiletype=1, **kind)
    with SlideSource(file, backend=backend) as source:
        assert source.sizes == [(330, 270), (165, 135)]
        assert source.mpp == (0.5, 0.5)
        seen = source.view(level=0).region(0, 0, 330, 270)
    assert np.abs(seen.astype(int) - pixels).mean() < 12
    result = run(file, convolution(), tmp_path / "mask.tif", backend=backend)
    for path in (result.mask, result.overlay, result.record):
        assert b"Jane" not in path.read_bytes()
        assert b"slide.svs" not in path.read_bytes()


# Tissue


def test_tissue_is_found_and_a_blank_slide_has_none():
    shown = find_tissue(picture(), (10.0, 10.0))
    truth = picture()[..., 1] < 200
    assert (shown == truth).mean() > 0.99
    rng = np.random.default_rng(0)
    blank = rng.integers(236, 248, (200, 200, 3)).astype(np.uint8)
    for picture_of_nothing in (blank, np.full((9, 9, 3), 255, np.uint8), np.zeros((9, 9, 3), np.uint8), blank[:1, :1]):
        assert not find_tissue(picture_of_nothing, (10.0, 10.0)).any()


def test_all_tissue_stays_whole_and_holes_belong_to_it():
    pixels = np.full((100, 100, 3), (150, 60, 140), dtype=np.uint8)
    pixels[:, 50:] = (220, 170, 210)  # paler, but tissue: Otsu alone would drop it
    pixels[40:50, 40:50] = 250  # a lumen of 100 micrometers
    assert find_tissue(pixels, (10.0, 10.0)).all()
    assert not find_tissue(pixels, (100.0, 100.0))[45, 45]  # of 1 mm: glass
    with pytest.raises(ValueError, match=r"`thumbnail` \(h, w, 3\) uint8, got \(4, 4\)"):
        find_tissue(np.zeros((4, 4)), (1.0, 1.0))


def test_dust_is_not_tissue():
    pixels = picture()
    pixels[4:6, 4:6] = (150, 60, 140)
    assert not find_tissue(pixels, (10.0, 10.0))[:8, :8].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 90), st.integers(0, 80), st.integers(1, 40))
def test_a_tile_that_touches_no_tissue_has_none(known, length, start, side):
    shown = np.zeros((known, 1), dtype=bool)
    shown[known // 2] = True
    tissue = TissueMap(shown, (length, 1))
    inside = tissue.pixels(0, length, 0, 1)[start : start + side]
    assert tissue.touches(start, start + side, 0, 1) >= inside.any()


# Tiles


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_every_pixel_is_covered_and_every_band_written_once(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    margin = data.draw(st.integers(0, max((overlap - 1) // 2, 0)))
    blend = data.draw(st.sampled_from(["linear", "hann", "constant"]))
    grid = TileGrid((length, length), tile, overlap, margin, blend)
    total = np.zeros(length + tile)
    for start in grid.tops:
        at_end = start + tile >= length
        total[start : start + tile] += fade_weights(tile, overlap, margin, blend, start == 0, at_end)
    assert (total[:length] > 0).all()
    bands = [grid.band(row) for row in range(len(grid.tops))]
    assert [x for band in bands for x in range(*band)] == list(range(length))
    assert [x for strip in grid.strips for x in range(*strip)] == list(range(length))


@pytest.mark.parametrize("blend", ["linear", "hann"])
@pytest.mark.parametrize("margin", [0, 3])
def test_neighbors_add_up_to_one(blend, margin):
    first = fade_weights(20, 8, margin, blend, at_start=True, at_end=False)
    second = fade_weights(20, 8, margin, blend, at_start=False, at_end=True)
    np.testing.assert_allclose(first[-8:] + second[:8], 1.0, atol=1e-6)
    assert (first[:12] == 1).all()
    assert (second[8:] == 1).all()
    if margin:
        assert (first[-margin:] == 0).all()


def test_tiles_begin_where_monais_windows_do():
    from monai.data.utils import dense_patch_slices

    for length in (430, 448, 112, 113):
        expected = [part[0].start for part in dense_patch_slices((length,), (112,), (56,))]
        assert tile_starts(length, 112, 56) == expected


@pytest.mark.parametrize("strip_pixels", [2**23, 1])
@pytest.mark.parametrize(("overlap", "margin", "blend"), [(16, 0, "linear"), (40, 5, "hann"), (0, 0, "linear")])
def test_blended_scores_are_the_weighted_means_of_all_tiles(strip_pixels, overlap, margin, blend, monkeypatch):
    """Compare float64 over the whole canvas with bands of float32, with strips and tiles without tissue."""
    monkeypatch.setattr(slide_tiles, "STRIP_PIXELS", strip_pixels)
    size, tile = (230, 470), 48
    grid = TileGrid(size, tile, overlap, margin, blend)
    assert (len(grid.strips) > 1) == (strip_pixels == 1)
    shown = np.random.default_rng(0).random((5, 9)) > 0.3
    tissue = TissueMap(shown, size)
    scores = {
        (top, left): np.random.default_rng(top * 1000 + left).normal(size=(3, tile, tile)).astype(np.float32)
        for top in grid.tops
        for left in grid.lefts
    }
    total, weight = np.zeros((3, *size)), np.zeros(size)
    for row, top in enumerate(grid.tops):
        for left in grid.lefts:
            w = grid.weights(row, left).astype(np.float64)
            total[:, top : top + tile, left : left + tile] += w * scores[top, left]
            weight[top : top + tile, left : left + tile] += w
    blended = np.full((3, *size), np.nan)
    blender = None
    for step in grid.steps(tissue, batch_size=3):
        blender = BandBlender(grid, step.strip) if step.opens else blender
        for left in step.lefts:
            blender.add(step.row, left, scores[grid.tops[step.row], left])
        if step.closes:
            part = blender.finish(step.row, slice(None))
            first, last = grid.strips[step.strip]
            blended[:, slice(*grid.band(step.row)), first:last] = 0 if part is None else part
            blender.advance(step.row)
    inside = tissue.pixels(0, size[0], 0, size[1])
    np.testing.assert_allclose(blended[:, inside], (total / weight)[:, inside], atol=2e-5)


# The whole


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", ["xy", "yx"])
def test_a_convolution_gives_what_it_gives_for_the_whole_slide(slide, tmp_path, backend, axes, monkeypatch):
    monkeypatch.setattr(slide_tiles, "STRIP_PIXELS", 1)
    network = convolution()
    result = run(slide, network, tmp_path / "mask.tif", backend=backend, axes=axes)
    expected = whole_mask(network, picture(), axes)
    assert len(np.unique(expected)) == 2
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)
    other = whole_mask(network, picture(), "yx" if axes == "xy" else "xy")
    assert (other != expected).any()


@pytest.mark.parametrize(("order", "axes"), [(None, "xy"), ("xy", "xy"), ("rows_columns", "yx")])
def test_tiles_lie_as_the_network_has_recorded(slide, tmp_path, order, axes):
    network = convolution()
    add_reading_record(network)
    if order is not None:
        record_reading(network, {"order": order})
    result = run(slide, network, tmp_path / "mask.tif")
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), whole_mask(network, picture(), axes))
    given = run(slide, network, tmp_path / "given.tif", axes="yx")
    np.testing.assert_array_equal(tifffile.imread(given.mask, key=0), whole_mask(network, picture(), "yx"))


def test_only_tissue_is_looked_at_and_marked(slide, tmp_path):
    seen = []
    network = convolution()

    def counted(tiles):
        seen.append(len(tiles))
        return network(tiles)

    result = run(slide, counted, tmp_path / "mask.tif", tissue="otsu", tile=32, margin=0)
    mask = tifffile.imread(result.mask, key=0)
    inside = find_tissue(picture(), (0.5, 0.5))
    assert ((mask > 0) == inside).all()
    assert result.tissue_share == pytest.approx(inside.mean())
    assert result.tiles == sum(seen) < len(tile_starts(330, 32, 8)) * len(tile_starts(270, 32, 8))
    areas = [(mask == value).sum() * 0.25e-6 for value in (1, 2)]
    assert result.class_mm2 == pytest.approx(areas)


def test_maps_and_segmentations_are_decided_as_everywhere(slide, tmp_path):
    pixels = picture()
    network = convolution(classes=3)
    result = run(slide, network, tmp_path / "b.tif", rule="background")
    expected = whole_mask(network, pixels, rule=None)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)
    result = run(slide, network, tmp_path / "l.tif", rule="logit")
    expected = whole_mask(network, pixels, output_kind="activation", rule="logit")
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)
    result = run(slide, network, tmp_path / "f.tif", rule=MaskRule(rule="fixed", threshold=0.1))
    expected = whole_mask(network, pixels, output_kind="activation", rule="fixed", threshold=0.1)
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)
    result = run(slide, network, tmp_path / "g.tif", label=[1, 0, 1])
    expected = whole_mask(network, pixels, gate="given", label=torch.tensor([[1.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)
    assert 2 not in expected
    assert json.loads(result.record.read_text(encoding="utf-8"))["presence"] == "given"
    network = convolution(classes=4)
    network.output_kind, network.groups = "activation", 2
    for fusion in ("max", "mean"):
        rule = MaskRule.of(network, rule="argmax", fusion=fusion)
        result = run(slide, network, tmp_path / "f.tif", rule=rule)
        expected = whole_mask(network, pixels, output_kind="activation", groups=2, fusion=fusion)
        np.testing.assert_array_equal(tifffile.imread(result.mask, key=0), expected)


def test_a_transform_of_monai_normalizes(slide, tmp_path):
    network = convolution()
    scale = ScaleIntensityRange(a_min=0, a_max=255, b_min=-1, b_max=1)
    result = run(slide, network, tmp_path / "mask.tif", normalize=scale)
    expected = run(slide, network, tmp_path / "own.tif")
    assert (tifffile.imread(result.mask, key=0) == tifffile.imread(expected.mask, key=0)).mean() > 0.999


@pytest.mark.parametrize("form", ["module", "scripted"])
def test_the_networks_of_this_package_work_also_scripted(slide, tmp_path, form):
    torch.manual_seed(0)
    network = CAMEncoder.tiny(2, 3, 2)
    used = torch.jit.script(network.eval()) if form == "scripted" else network.train()
    result = run(slide, used, tmp_path / "mask.tif", margin=0, amp=form == "module")
    assert set(np.unique(tifffile.imread(result.mask, key=0))) <= {1, 2}
    assert used.training == (form == "module")


def test_a_slide_smaller_than_the_tile_is_padded_white(tmp_path):
    pixels = picture(40, 30)
    file = write_slide(tmp_path / "small.tif", pixels, levels=1, tile=(16, 16))
    network = convolution()
    result = run(file, network, tmp_path / "mask.tif")
    padded = np.pad(pixels, ((0, 24), (0, 34), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(tifffile.imread(result.mask), whole_mask(network, padded)[:40, :30])


def test_one_pixel_and_another_resolution(tmp_path):
    file = write_slide(tmp_path / "dot.tif", picture(1, 1), levels=1, tile=(16, 16))
    assert run(file, convolution(), tmp_path / "mask.tif").size == (1, 1)
    file = write_slide(tmp_path / "slide.tif", picture(), levels=1)
    result = run(file, convolution(), tmp_path / "coarse.tif", mpp=1.5)
    assert result.size == (110, 90)
    assert result.mpp == (1.5, 1.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_blank_slide_gives_an_empty_mask_and_says_so(tmp_path, backend, caplog):
    file = write_slide(tmp_path / "blank.tif", np.full((200, 300, 3), 250, dtype=np.uint8))
    with caplog.at_level(logging.WARNING):
        result = run(file, None, tmp_path / "mask.tif", tissue="otsu", backend=backend)
    assert "No tissue was found on the slide: its mask is empty." in caplog.text
    assert result.note == "No tissue was found on the slide: its mask is empty."
    assert result.class_mm2 == ()
    assert not tifffile.imread(result.mask).any()
    np.testing.assert_array_equal(np.asarray(Image.open(result.overlay)), 250)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mask_is_a_pyramid_that_slide_readers_know(tmp_path, backend):
    pixels = np.tile(picture(), (4, 2, 1))
    file = write_slide(tmp_path / "slide.tif", pixels)
    result = run(file, lambda x: x[:, :2] * torch.tensor([1.0, 3.0])[:, None, None], tmp_path / "mask.tif", tile=512)
    reader = WSIReader(backend=backend)
    mask = reader.read(result.mask)
    assert reader.get_level_count(mask) == 3
    assert reader.get_mpp(mask, 0) == pytest.approx((0.5, 0.5))
    assert reader.get_mpp(mask, 2) == pytest.approx((2.0, 2.0), rel=0.01)
    whole = tifffile.imread(result.mask, key=0)
    with tifffile.TiffFile(result.mask) as tiff:
        assert tiff.pages[0].compression.name == "ADOBE_DEFLATE"
        assert tiff.pages[0].tile == (512, 512)
        assert [page.shape for page in tiff.pages] == [(1320, 540), (660, 270), (330, 135)]
        assert len(tiff.series[0].levels) == 3
        np.testing.assert_array_equal(tiff.pages[1].asarray(), whole[1::2, 1::2])
        np.testing.assert_array_equal(tiff.pages[2].asarray(), whole[2::4, 2::4])
    if backend == "openslide":
        seen, _ = reader.get_data(mask, location=(100, 200), size=(50, 60), level=0)
        np.testing.assert_array_equal(seen[0], whole[100:150, 200:260])


def test_the_overlay_shows_the_classes_over_the_slide(slide, tmp_path):
    result = run(slide, convolution(), tmp_path / "mask.tif", tissue="otsu")
    mask = tifffile.imread(result.mask, key=0)
    shown = np.asarray(Image.open(result.overlay))
    np.testing.assert_array_equal(shown[mask == 0], picture()[mask == 0])
    expected = 0.55 * picture()[mask == 1] + 0.45 * np.array(CLASS_COLORS[0])
    assert np.abs(shown[mask == 1] - expected).max() <= 1


# Killed and started again


class Stops(nn.Module):
    """A network that counts its calls and fails at the ``last``-th one."""

    def __init__(self, network, last):
        super().__init__()
        self.network = network
        self.calls, self.last = 0, last

    def forward(self, tiles):
        self.calls += 1
        if self.calls == self.last:
            raise RuntimeError("killed")
        return self.network(tiles)


@pytest.mark.parametrize("strip_pixels", [2**23, 1])
def test_a_broken_run_goes_on_and_ends_as_an_unbroken_one(slide, tmp_path, strip_pixels, monkeypatch, caplog):
    monkeypatch.setattr(slide_tiles, "STRIP_PIXELS", strip_pixels)
    options = {"batch_size": 1, "overlap": 0.5, "margin": 0}
    whole = Stops(convolution(), 0)
    expected = run(slide, whole, tmp_path / "whole.tif", **options)
    network = Stops(convolution(), whole.calls * 2 // 3)
    with pytest.raises(RuntimeError, match="killed"):
        run(slide, network, tmp_path / "mask.tif", **options)
    assert sorted(path.name for path in tmp_path.iterdir() if "mask" in path.name) == [".mask.tif.partial"]
    network.calls, network.last = 0, 0
    with caplog.at_level(logging.INFO):
        result = run(slide, network, tmp_path / "mask.tif", **options)
    assert "Going on after" in caplog.text
    assert network.calls < whole.calls // 2 + 2 * len(tile_starts(270, 64, 32))
    np.testing.assert_array_equal(tifffile.imread(result.mask), tifffile.imread(expected.mask))
    assert result.class_mm2 == expected.class_mm2
    assert result.tiles == expected.tiles
    assert json.loads(result.record.read_text(encoding="utf-8"))["bands"]["taken_over"] > 0
    assert not (tmp_path / ".mask.tif.partial").exists()


@pytest.mark.parametrize("change", ["settings", "weights", "normalize", "resume"])
def test_other_settings_or_weights_start_anew(slide, tmp_path, change, caplog):
    network = Stops(convolution(), 14)
    with pytest.raises(RuntimeError, match="killed"):
        run(slide, network, tmp_path / "mask.tif", batch_size=1, margin=0)
    network.calls, network.last = 0, 0
    if change == "weights":
        with torch.no_grad():
            network.network[0].weight += 0.1
    options = {
        "settings": {"blend": "hann"},
        "normalize": {"normalize": lambda x: x / 100},
        "resume": {"resume": False},
    }
    result = run(slide, network, tmp_path / "mask.tif", batch_size=1, margin=0, **options.get(change, {}))
    assert network.calls == result.tiles
    assert ("other settings, other weights or another slide: it starts anew" in caplog.text) == (change != "resume")
    assert json.loads(result.record.read_text(encoding="utf-8"))["bands"]["taken_over"] == 0


def test_a_finished_slide_is_not_done_again(slide, tmp_path):
    network = Stops(convolution(), 0)
    first = run(slide, network, tmp_path / "mask.tif")
    network.calls = 0
    assert run(slide, network, tmp_path / "mask.tif") == first
    assert network.calls == 0
    first.record.write_text("{")
    assert run(slide, network, tmp_path / "mask.tif") == first
    assert network.calls > 0


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(slide, tmp_path):
    """Kill by SIGKILL, so that nothing can be tidied up."""
    script = (
        "import sys, time, torch\n"
        "from monai_wsss.inferers import TileLayout, segment_slide\n"
        "from monai_wsss.networks import CAMEncoder\n"
        "def slow(tile):\n    time.sleep(0.1)\n    return tile / 255\n"
        "torch.manual_seed(0)\n"
        "options = dict(layout=TileLayout(64, tissue='all'), batch_size=1)\n"
        "segment_slide(sys.argv[1], CAMEncoder.tiny(2, 3, 2), sys.argv[2], normalize=slow, **options)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(slide), str(tmp_path / "mask.tif")])
    state = tmp_path / ".mask.tif.partial" / "state.json"
    waited = time.monotonic()
    while not state.is_file() and time.monotonic() - waited < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mask.tif").exists()
    torch.manual_seed(0)
    options = {"margin": 0, "batch_size": 1, "normalize": lambda tile: tile / 255}
    network = CAMEncoder.tiny(2, 3, 2)
    result = run(slide, network, tmp_path / "mask.tif", **options)
    assert json.loads(result.record.read_text(encoding="utf-8"))["bands"]["taken_over"] > 0
    whole = run(slide, network, tmp_path / "whole.tif", **options)
    np.testing.assert_array_equal(tifffile.imread(result.mask), tifffile.imread(whole.mask))
    assert sorted(path.name for path in tmp_path.glob("*mask*")) == ["mask.json", "mask.tif", "mask_overlay.png"]


# What users get wrong


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.001])
def test_a_truncated_slide_is_noticed_at_once(slide, tmp_path, backend, share):
    data = Path(slide).read_bytes()
    file = tmp_path / "cut.tif"
    file.write_bytes(data[: max(int(len(data) * share), 9)])
    with pytest.raises(DataError, match=r"cut\.tif.*(truncated|damaged)"):
        run(file, convolution(), tmp_path / "mask.tif", backend=backend)
    assert not (tmp_path / "mask.tif").exists()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": (1, 1), "resolutionunit": 1}, "does not say"),
        ({"resolution": (72, 72), "resolutionunit": 2}, r"says 352\.8 x 352\.8, which no microscope gives"),
        ({"resolution": (4e5, 4e5), "resolutionunit": 3}, r"says 0\.025 x 0\.025, which no microscope gives"),
    ],
)
def test_no_resolution_is_an_error_unless_given(tmp_path, backend, options, words):
    file = write_slide(tmp_path / "slide.tif", picture(), levels=1, **options)
    with pytest.raises(DataError, match=words + r".*slide_mpp=0\.25"):
        run(file, convolution(), tmp_path / "mask.tif", backend=backend)
    result = run(file, convolution(), tmp_path / "mask.tif", backend=backend, slide_mpp=0.25)
    assert result.mpp == (0.25, 0.25)
    with tifffile.TiffFile(result.mask) as tiff:
        assert tiff.pages[0].get_resolution("micrometer") == pytest.approx((4.0, 4.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_are_not_rgb_of_8_bits_are_named(tmp_path, backend):
    cases = {
        "gray": (picture()[..., 0], {"photometric": "minisblack"}, "MINISBLACK with 1 channels of 8 bits"),
        "deep": (picture().astype(np.uint16), {"photometric": "rgb"}, "RGB with 3 channels of 16 bits"),
        "cmyk": (np.repeat(picture()[..., :1], 4, axis=2), {"photometric": "separated"}, "SEPARATED with 4 channels"),
    }
    for name, (pixels, options, words) in cases.items():
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, pixels, tile=(64, 64), resolution=PER_CM, resolutionunit=3, **options)
        with pytest.raises(DataError, match=f"RGB of 8 bits, got {words}"):
            run(file, convolution(), tmp_path / "mask.tif", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slides_that_are_to_be_shown_turned_are_named(tmp_path, backend):
    slides = {turn: write_slide(tmp_path / f"{turn}.tif", picture(), extratags=[(274, 3, 1, turn)]) for turn in (1, 6)}
    run(slides[1], convolution(), tmp_path / "upright.tif", backend=backend)
    with pytest.raises(DataError, match=r"turned or mirrored \(its TIFF orientation is 6\).*: save it upright"):
        run(slides[6], convolution(), tmp_path / "mask.tif", backend=backend)


def test_slides_that_cannot_be_read(tmp_path, slide, monkeypatch):
    with pytest.raises(DataError, match=r"There is no slide .*none\.tif: check the path"):
        run(tmp_path / "none.tif", convolution(), tmp_path / "mask.tif")
    text = tmp_path / "notes.tif"
    text.write_text("no slide at all")
    for backend in BACKENDS:
        with pytest.raises(DataError, match=rf"Cannot read .*notes\.tif with {backend} .* try backend="):
            run(text, convolution(), tmp_path / "mask.tif", backend=backend)
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(strips, picture(), photometric="rgb", resolution=PER_CM, resolutionunit=3)
    with pytest.raises(DataError, match="try backend='tifffile'"):
        run(strips, convolution(), tmp_path / "mask.tif")
    monkeypatch.setattr(slide_tiff, "LARGEST_SEGMENT", 1000)
    with pytest.raises(DataError, match=r"one compressed strip of 64 x 64 pixels, .* vips tiffsave --tile --pyramid"):
        run(slide, convolution(), tmp_path / "mask.tif", backend="tifffile")
    # What optional_import found when the module was loaded.
    monkeypatch.setattr(slide_reading, "_has_openslide", False)
    with pytest.raises(DataError, match=r"need openslide-python openslide-bin, .* pip install 'monai-wsss\[slides\]'"):
        run(slide, convolution(), tmp_path / "mask.tif")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cucim"}, "Expected `backend` to be one of openslide, tifffile, got 'cucim'"),
        ({"rule": "minmax"}, "which each pixel decides by itself, got 'minmax'"),
        ({"rule": MaskRule()}, "which each pixel decides by itself, got 'minmax'"),
        ({"mpp": 1.0, "level": 1}, "Expected one of `level` and `mpp`, got level=1 and mpp=1.0"),
        ({"level": 7}, r"Expected `level` from 0 to 2, the levels of .*slide\.tif, got 7"),
        ({"mpp": -1.0}, "Expected `mpp` > 0 micrometers per pixel, got -1.0"),
        ({"slide_mpp": 0.0}, "Expected `slide_mpp` > 0 micrometers per pixel, got 0.0"),
        ({"overlap": 1.0}, r"`overlap` in \[0, 1\), got 64 and 1.0"),
        ({"margin": 8}, "Expected `margin` below half the overlap of 16 pixels, got 8"),
        ({"blend": "gauss"}, "Expected `blend` to be one of linear, hann, constant, got 'gauss'"),
        ({"axes": "zy"}, "Expected `axes` to be one of xy, yx, got 'zy'"),
        ({"tissue": "pen"}, "Expected `tissue` to be one of otsu, all, got 'pen'"),
        ({"batch_size": 0}, "Expected `batch_size` >= 1, got 0"),
        ({"normalize": lambda x: x[:, :3]}, r"Expected `normalize` to give \(C, h, w\) of the tile's size \(64, 64\)"),
        ({"network": lambda x: x.mean((2, 3))}, r"give \(B, channels, 64, 64\), the size of its input, got \(4, 3\)"),
        ({"network": lambda x: x * torch.nan}, "Expected finite `scores`"),
        ({"label": [1.0]}, r"Expected `label` of shape \(B, K\)"),
        ({"out": "mask.png"}, r"Expected `out` to end in \.tif or \.tiff"),
        ({"rule": "fixed"}, "needs a finite `threshold`"),
        ({"rule": "negative_quantile"}, "needs the network's `negative_quantile`, which is absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_arguments_that_do_not_fit(slide, tmp_path, options, words):
    options = dict(options)
    network, out = options.pop("network", convolution()), tmp_path / options.pop("out", "mask.tif")
    with pytest.raises(ValueError, match=words):
        run(slide, network, out, **options)
    assert not out.exists()


def test_the_slide_itself_is_never_overwritten(slide):
    before = Path(slide).read_bytes()
    with pytest.raises(ValueError, match="Expected `out` to be another file than the slide"):
        run(slide, convolution(), slide)
    assert Path(slide).read_bytes() == before


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(slide, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*free some space"):
        run(slide, convolution(), tmp_path / "mask.tif")
    monkeypatch.undo()
    assert run(slide, convolution(), tmp_path / "mask.tif").mask.is_file()
