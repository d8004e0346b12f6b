# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Skin phantoms: exact masks, lesions that a threshold roughly finds, dark corners, and tiles as from real sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.data.cases import prepare_cases
from monai_wsss.data.crops import dark_corners
from monai_wsss.data.datalist import check_trainable, load_datalist
from monai_wsss.data.phantom_skin import SHAPE, SkinImage, draw_skin
from monai_wsss.data.phantoms import make_phantoms


@pytest.fixture(scope="module")
def drawn() -> list[SkinImage]:
    return [draw_skin(np.random.default_rng([3, number])) for number in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("skin"), kind="skin", subjects=(3, 1, 1)))


def read(folder: Path) -> dict:
    return json.loads((folder / "datalist.json").read_text(encoding="utf-8"))


def otsu(values: np.ndarray) -> int:
    """Find the cut of 8-bit values between whose two sides the variance is largest."""
    cuts = range(1, 256)
    shares = np.array([(values < cut).mean() for cut in cuts])
    means = [(values[values < cut].mean() if share else 0.0) for cut, share in zip(cuts, shares, strict=True)]
    between = [
        share * (values.mean() - mean) ** 2 / max(1 - share, 1e-9) for share, mean in zip(shares, means, strict=True)
    ]
    return cuts[int(np.argmax(between))]


def test_every_image_has_a_lesion_of_its_own_size_and_contrast(drawn):
    shares, contrasts = [], []
    for one in drawn:
        assert one.image.shape == (3, *SHAPE)
        assert one.mask.shape == (1, *SHAPE)
        assert one.image.dtype == one.mask.dtype == np.uint8
        assert set(np.unique(one.mask)) == {0, 1}
        lesion, skin = one.mask[0] > 0, (one.mask[0] == 0) & ~dark_corners(one.image)
        contrasts.append(np.median(one.image[2][skin]) - np.median(one.image[2][lesion]))
        shares.append(lesion.mean())
    assert 0.01 < min(shares) < 0.06 < 0.15 < max(shares) < 0.6
    assert 20 < min(contrasts) < 50 < 80 < max(contrasts)


def test_otsu_on_the_blue_channel_is_a_good_but_no_perfect_answer(drawn):
    dice = []
    for one in drawn:
        found, lesion = one.image[2] < otsu(one.image[2]), one.mask[0] > 0
        dice.append(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))
    assert 0.7 < np.mean(dice) < 0.92
    assert min(dice) < 0.75


def test_most_images_have_dark_corners_and_some_have_none(drawn):
    corners = [dark_corners(one.image).mean() for one in drawn]
    assert sum(share > 0.001 for share in corners) >= 8
    assert sum(share == 0 for share in corners) >= 1
    overlap = [(dark_corners(one.image) & (one.mask[0] > 0)).mean() for one in drawn]
    assert np.mean(overlap) < 0.002


def test_tiles_of_both_kinds_beside_whole_images(folder):
    check_trainable(load_datalist(folder / "datalist.json", "training"))
    for split, number in (("training_images", 3), ("validation", 1), ("test", 1)):
        cases = load_datalist(folder / "datalist.json", split, masks=True)
        assert len(cases) == number
        for case in cases:
            with Image.open(case["image"]) as image, Image.open(case["mask"]) as mask:
                assert image.size == mask.size == SHAPE
    assert load_datalist(folder / "datalist.json", "validation_tiles")
    assert read(folder)["simulated_supervision"] is True


def test_tiles_are_those_that_prepare_cuts_from_the_raw_folder(folder, tmp_path):
    path = prepare_cases(folder / "raw", tmp_path / "out", tiles=64, tile_stride=32, labels_from_masks=True)
    ours, theirs = read(folder), json.loads(path.read_text(encoding="utf-8"))
    for name in ("labels", "tiles", "classes", "modality", "training", "validation", "validation_tiles", "test_tiles"):
        assert ours[name] == theirs[name], name
    files = [item[key] for item in ours["training"] + ours["test"] for key in ("image", "mask")]
    assert all((folder / file).read_bytes() == (path.parent / file).read_bytes() for file in files)


def test_the_same_arguments_give_the_same_bytes_and_others_replace_them(folder, tmp_path):
    first = Path(make_phantoms(tmp_path / "p", kind="skin", subjects=(1, 0, 0)))
    name = read(first)["training"][0]["image"]
    assert (first / name).read_bytes() == (folder / name).read_bytes()
    make_phantoms(first, kind="skin", subjects=(1, 0, 0), seed=1)
    listed = {
        item[key] for item in read(first)["training"] + read(first)["training_images"] for key in ("image", "mask")
    }
    files = {str(path.relative_to(first)) for path in first.rglob("*.*")}
    assert files == listed | set(read(first)["raw"]) | {"datalist.json"}
    (first / read(first)["raw"][1]).unlink()
    make_phantoms(first, kind="skin", subjects=(1, 0, 0), seed=1)
    assert (first / read(first)["raw"][1]).exists()
