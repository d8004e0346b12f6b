# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Chest phantoms: exact masks inside the lungs, no shortcut but the opacities, and the folder on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_wsss.data.datalist import check_trainable, load_datalist
from monai_wsss.data.phantom_chest import SHAPE, ChestImage, draw_chest
from monai_wsss.data.phantoms import make_phantoms


def draw(number: int, *, diseased: bool) -> ChestImage:
    return draw_chest(np.random.default_rng([5, number]), diseased=diseased)


@pytest.fixture(scope="module")
def drawn() -> list[ChestImage]:
    return [draw(number, diseased=True) for number in range(24)]


def best_dice(one: ChestImage, values: np.ndarray) -> float:
    """Find the best Dice that any cut of the values reaches in this image."""
    lesion = one.mask[0] > 0
    scores = [
        2 * ((values >= cut) & lesion).sum() / ((values >= cut).sum() + lesion.sum())
        for cut in np.unique(values)[1:]  # at the lowest value everything is found
    ]
    return float(max(scores))


def test_opacities_lie_in_the_lungs_and_are_brighter_than_them(drawn):
    shares = []
    for one in drawn:
        assert one.image.shape == one.mask.shape == one.lungs.shape == (1, *SHAPE)
        assert one.image.dtype == one.mask.dtype == np.uint8
        lesion, lungs = one.mask[0] > 0, one.lungs[0] > 0
        shares.append(lesion.mean())
        assert (lesion & lungs).sum() > 0.9 * lesion.sum()
        assert np.median(one.image[0][lesion]) > 25 + np.median(one.image[0][lungs & ~lesion])
    assert 0.01 < min(shares) < 0.05 < 0.09 < max(shares) < 0.25


def test_a_healthy_subject_differs_by_its_opacities_alone():
    for number in range(4):
        sick, healthy = draw(number, diseased=True), draw(number, diseased=False)
        assert not healthy.mask.any()
        np.testing.assert_array_equal(sick.lungs, healthy.lungs)
        difference = np.abs(sick.image.astype(int) - healthy.image)
        assert difference[sick.mask > 0].mean() > 20
        assert (difference > 0)[0, :, -10:].sum() == 0, "below the lungs nothing changes"


def test_no_cut_of_brightness_finds_the_opacities(drawn):
    assert np.mean([best_dice(one, one.image[0]) for one in drawn]) < 0.4
    inside = [best_dice(one, one.image[0] * (one.lungs[0] > 0)) for one in drawn]
    assert np.mean(inside) > 0.7, "inside the lungs they are seen"


def test_the_folder_can_be_trained_on_and_measured(tmp_path):
    folder = Path(make_phantoms(tmp_path / "chest", kind="chest", subjects=(4, 2, 4)))
    content = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    assert content["classes"] == ["opacity"]
    assert content["order"] == "rows_columns"
    check_trainable(load_datalist(folder / "datalist.json", "training"))
    test = load_datalist(folder / "datalist.json", "test", masks=True)
    assert [item["label"].tolist() for item in test] == [[1.0], [1.0], [0.0], [1.0]]
    assert {"mask", "intensity_mean", "intensity_std"} <= test[0].keys()
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    again = Path(make_phantoms(tmp_path / "again", kind="chest", subjects=(4, 2, 4)))
    assert before == {folder / path.relative_to(again): path.read_bytes() for path in again.rglob("*.png")}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modalities": ["T1"]}, "no `modalities` for X-rays, got T1"),
        ({"spatial_dims": 3}, "`spatial_dims` to be 2 for X-rays, got 3"),
    ],
)
def test_arguments_of_brains_are_refused(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        make_phantoms(tmp_path, kind="chest", **options)
