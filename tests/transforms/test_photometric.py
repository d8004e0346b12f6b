# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Photometric distortion: saturation and hue against Python's colorsys, amounts within their bounds."""

from __future__ import annotations

import colorsys
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_wsss.transforms.photometric import RandPhotometricDistortiond, shift_saturation_and_hue

NOTHING = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def reference(picture: np.ndarray, saturation: float, degrees: float) -> np.ndarray:
    changed = np.empty_like(picture)
    for x, y in np.ndindex(picture.shape[1:]):
        hue, strength, value = colorsys.rgb_to_hsv(*picture[:, x, y])
        changed[:, x, y] = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1.0, strength * saturation), value)
    return changed


@given(st.integers(0, 10**6), st.floats(0, 3), st.floats(-360, 360))
@settings(max_examples=40, deadline=None)
def test_saturation_and_hue_are_those_of_colorsys(seed, saturation, degrees):
    picture = np.random.default_rng(seed).random((3, 3, 4))
    picture[:, 0, 0], picture[:, 0, 1], picture[:, 0, 2] = 0.0, 1.0, 0.4
    picture[:, 1, 0], picture[:, 1, 1] = (0.5, 0.5, 0.2), (0.1, 0.7, 0.7)
    found = shift_saturation_and_hue(torch.from_numpy(picture), saturation, degrees, white=1.0)
    np.testing.assert_allclose(found.numpy(), reference(picture, saturation, degrees), atol=2e-5)


def test_no_change_is_none_and_gray_stays_gray():
    picture = torch.rand(3, 5, 5) * 255
    torch.testing.assert_close(shift_saturation_and_hue(picture), picture, atol=1e-3, rtol=0)
    gray = torch.rand(1, 5, 5).expand(3, 5, 5) * 255
    torch.testing.assert_close(shift_saturation_and_hue(gray, 1.5, 90.0), gray, atol=1e-3, rtol=0)


def distorted(picture: torch.Tensor, count: int = 60, **options) -> list[torch.Tensor]:
    distort = RandPhotometricDistortiond("image", change_prob=1.0, **{**NOTHING, **options}).set_random_state(seed=0)
    return [distort({"image": picture})["image"] for _ in range(count)]


def test_brightness_is_added_up_to_its_bound():
    picture = torch.full((3, 2, 2), 100.0)
    added = torch.stack([changed - picture for changed in distorted(picture, brightness=0.1)])
    assert (added.amax((1, 2, 3)) == added.amin((1, 2, 3))).all()
    assert 20 < added.max() <= 25.5 + 1e-4
    assert -25.5 - 1e-4 <= added.min() < -20


def test_contrast_and_saturation_are_factors_within_their_bounds():
    picture = torch.tensor([100.0, 50.0, 75.0]).reshape(3, 1, 1)
    factors = torch.stack([changed / picture for changed in distorted(picture, contrast=(0.5, 1.5))])
    assert factors.min() >= 0.5 - 1e-4
    assert factors.max() <= 1.5 + 1e-4
    assert factors.std() > 0.1
    strengths = torch.stack(
        [1 - changed.min() / changed.max() for changed in distorted(picture, saturation=(0.5, 1.5))]
    )
    assert strengths.min() >= 0.25 - 1e-4
    assert strengths.max() <= 0.75 + 1e-4
    assert strengths.std() > 0.05


def test_hue_is_turned_up_to_its_bound():
    picture = torch.tensor([200.0, 50.0, 50.0]).reshape(3, 1, 1)
    hues = [colorsys.rgb_to_hsv(*(c / 255).flatten().tolist())[0] * 360 for c in distorted(picture, hue=36.0)]
    turned = np.array([(hue + 180) % 360 - 180 for hue in hues])
    assert np.abs(turned).max() <= 36.0 + 1e-2
    assert turned.min() < -20 < 20 < turned.max()


def test_contrast_comes_second_or_last():
    """Make the order visible by a saturation that clips values."""
    picture = torch.tensor([250.0, 20.0, 20.0]).reshape(3, 1, 1)
    options = {"contrast": (2.0, 2.0), "saturation": (0.5, 0.5)}
    results = {tuple(changed.flatten().round().tolist()) for changed in distorted(picture, **options)}
    assert results == {(255.0, 148.0, 148.0), (255.0, 255.0, 255.0)}


def test_each_change_has_its_chance():
    distort = RandPhotometricDistortiond("image", change_prob=0.25).set_random_state(seed=1)
    picture = torch.tensor([90.0, 60.0, 120.0]).reshape(3, 1, 1)
    counts = []
    for _ in range(400):
        distort({"image": picture})
        counts.append(len(distort._changes))
    # brightness, contrast, and saturation or hue (one step): 0.25 + 0.25 + (1 - 0.75^2) = 0.94
    assert 0.8 < np.mean(counts) < 1.08


def test_prob_zero_changes_nothing_and_draws_as_many_numbers():
    picture = torch.rand(3, 4, 4) * 255
    never = RandPhotometricDistortiond("image", prob=0.0).set_random_state(seed=0)
    always = RandPhotometricDistortiond("image", prob=1.0, change_prob=1.0).set_random_state(seed=0)
    assert torch.equal(never({"image": picture})["image"], picture)
    always({"image": picture})
    assert never.R.random_sample() == always.R.random_sample()


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_results_stay_in_range_on_both_scales(seed):
    picture = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (3, 5, 4)).astype(np.float32))
    strong = {"change_prob": 1.0, "brightness": 1.0, "contrast": (0.0, 4.0), "saturation": (0.0, 4.0), "hue": 180.0}
    changed = RandPhotometricDistortiond("image", **strong).set_random_state(seed=seed)({"image": picture})["image"]
    assert changed.min() >= 0
    assert changed.max() <= 255
    fractions = RandPhotometricDistortiond("image", white=1.0, **strong).set_random_state(seed=seed)
    torch.testing.assert_close(fractions({"image": picture / 255})["image"] * 255, changed, atol=0.05, rtol=0)


def test_draws_are_repeatable_shared_by_the_keys_and_can_be_sent_to_workers():
    distort = RandPhotometricDistortiond(["image", "twin"], change_prob=1.0)
    picture = torch.rand(3, 6, 6) * 255
    item = {"image": picture, "twin": picture.clone()}
    first = distort.set_random_state(seed=3)(item)
    again = pickle.loads(pickle.dumps(distort)).set_random_state(seed=3)(item)
    assert torch.equal(first["image"], first["twin"])
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], distort.set_random_state(seed=4)(item)["image"])
    assert torch.equal(item["image"], item["twin"]), "the item itself is left alone"


def test_type_and_metadata_stay():
    picture = MetaTensor(torch.rand(3, 6, 6) * 255, meta={"name": "a"})
    changed = RandPhotometricDistortiond("image", change_prob=1.0)({"image": picture})["image"]
    assert isinstance(changed, MetaTensor)
    assert changed.meta["name"] == "a"
    missing = RandPhotometricDistortiond(["image", "other"], allow_missing_keys=True)({"image": picture})
    assert set(missing) == {"image"}


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.zeros(1, 8, 8), r"`image` to be a color picture \(3, H, W\), got \(1, 8, 8\): read it in RGB"),
        (torch.full((3, 8, 8), 300.0), "`image` to hold values from 0 to 255, got 300 to 300"),
        (torch.rand(3, 8, 8), "got 0 to 1: give `white=1`"),
    ],
)
def test_pictures_that_are_none(picture, words):
    with pytest.raises(ValueError, match=words):
        RandPhotometricDistortiond("image")({"image": picture})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"brightness": -0.1}, "`brightness` and `hue` of 0 or more, got -0.1 and 36.0"),
        ({"hue": -1.0}, "`brightness` and `hue` of 0 or more"),
        ({"contrast": (1.5, 0.5)}, r"`contrast` to be two factors of 0 or more, the smaller first, got \(1.5, 0.5\)"),
        ({"saturation": (1.0,)}, "`saturation` to be two factors"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        RandPhotometricDistortiond("image", **options)
