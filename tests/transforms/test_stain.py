# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Stains: estimates against a known truth, exchange against Beer-Lambert, and images without stains."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.apps.pathology.transforms.stain.array import ExtractHEStains
from monai.data import MetaTensor

from monai_wsss.data import EpochCacheDataset
from monai_wsss.transforms.stain import (
    REFERENCE_CONCENTRATIONS,
    REFERENCE_STAINS,
    NormalizeStaind,
    RandStainJitterd,
    estimate_stains,
    jitter_stains,
    normalize_stains,
)

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
TEXTBOOK = np.stack([HEMATOXYLIN / np.linalg.norm(HEMATOXYLIN), EOSIN / np.linalg.norm(EOSIN)], axis=1)


def stained(stains: np.ndarray = TEXTBOOK, strength: float = 1.0, glass: float = 0.2, seed: int = 0) -> torch.Tensor:
    """Draw an image (3, 120, 100), 0 to 255, from known stains: nuclei, stroma, mixtures, columns of white glass."""
    rng = np.random.default_rng(seed)
    amount = strength * rng.gamma(2.0, 0.3, (2, 120, 100))
    amount[0, :, 30:60] *= 0.02
    amount[1, :, 60:80] *= 0.02
    amount[:, :, : int(glass * 100)] = 0.0
    density = np.einsum("cs,sxy->cxy", stains, amount)
    return torch.from_numpy(np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.float32))


def stain_amounts(picture: torch.Tensor, stains: np.ndarray) -> np.ndarray:
    """Estimate concentrations (2, H, W) by an independent least-squares fit."""
    density = -np.log((picture.double().numpy() + 1) / 256).reshape(3, -1)
    return np.linalg.lstsq(stains, density, rcond=None)[0].reshape(2, *picture.shape[1:])


# --- estimation


@pytest.mark.parametrize("stains", [TEXTBOOK, np.array(REFERENCE_STAINS)])
@pytest.mark.parametrize("glass", [0.0, 0.2])
def test_known_stains_are_found(stains, glass):
    found = estimate_stains(stained(stains, glass=glass))
    assert found is not None
    unit = stains / np.linalg.norm(stains, axis=0)
    cosines = (found.stains.numpy() * unit).sum(axis=0)
    assert cosines.min() > 0.999
    torch.testing.assert_close(torch.linalg.vector_norm(found.stains, dim=0), torch.ones(2))
    dense = (-np.log((stained(stains, glass=glass).numpy() + 1) / 256) > 0.15).all(axis=0)
    expected = np.quantile(stain_amounts(stained(stains, glass=glass), unit)[:, dense], 0.99, axis=1)
    np.testing.assert_allclose(found.concentrations.numpy(), expected, rtol=0.1)


def test_monai_exchanges_hematoxylin_and_eosin():
    """Show why MONAI's extractor is not used; if this fails, MONAI has repaired it, and we may use it."""
    picture = stained().permute(1, 2, 0).numpy().astype(np.uint8)
    first, second = ExtractHEStains(tli=255)(picture).T
    assert first @ TEXTBOOK[:, 1] > 0.99 > first @ TEXTBOOK[:, 0]
    assert second @ TEXTBOOK[:, 0] > 0.99


def test_all_scales_and_large_pictures_agree():
    picture = stained()
    large = picture.repeat(1, 8, 8)
    for other in (estimate_stains(picture / 255, white=1.0), estimate_stains(large)):
        for one, two in zip(estimate_stains(picture), other, strict=True):
            torch.testing.assert_close(one, two, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "picture",
    [
        torch.full((3, 40, 40), 255.0),
        torch.full((3, 40, 40), 243.0) + torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0)),
        torch.tensor([180.0, 90.0, 170.0]).reshape(3, 1, 1).expand(3, 40, 40),
        torch.zeros(3, 40, 40),
        torch.full((3, 1, 1), 100.0),
    ],
    ids=["white", "glass", "one color", "black", "one pixel"],
)
def test_a_tile_without_two_stains_comes_back_as_it_is(picture, recwarn):
    assert estimate_stains(picture) is None
    assert torch.equal(NormalizeStaind("image")({"image": picture})["image"], picture)
    assert not [w for w in recwarn if "monai_wsss" in str(w.filename)]


def test_dust_on_glass_is_no_stain():
    picture = torch.full((3, 100, 100), 250.0)
    picture[:, :7, :9] = stained(glass=0.0)[:, :7, :9]  # 63 pixels, below 1 %
    assert estimate_stains(picture) is None


# --- normalization


def test_normalized_pictures_have_the_targets_stains_and_strength():
    picture = normalize_stains(stained(strength=0.7))
    found = estimate_stains(picture)
    target = np.array(REFERENCE_STAINS)
    cosines = (found.stains.numpy() * target / np.linalg.norm(target, axis=0)).sum(axis=0)
    assert cosines.min() > 0.999
    strengths = np.array(REFERENCE_CONCENTRATIONS) * np.linalg.norm(target, axis=0)
    np.testing.assert_allclose(found.concentrations.numpy(), strengths, rtol=0.1)


def test_normalization_is_that_of_the_formula():
    picture = stained(glass=0.1)
    found = estimate_stains(picture)
    amount = stain_amounts(picture, found.stains.double().numpy())
    ratio = np.array(REFERENCE_CONCENTRATIONS) / found.concentrations.double().numpy()
    density = np.einsum("cs,sxy->cxy", np.array(REFERENCE_STAINS), amount * ratio[:, None, None])
    expected = np.clip(256 * np.exp(-density) - 1, 0, 255)
    np.testing.assert_allclose(normalize_stains(picture).numpy(), expected, atol=0.05)


def test_two_laboratories_come_together_and_white_stays_white():
    rotated = TEXTBOOK + np.array([[0.1, 0.05], [-0.05, -0.1], [0.05, 0.15]])
    rotated /= np.linalg.norm(rotated, axis=0)
    first, second = stained(TEXTBOOK), stained(rotated, strength=0.75)
    before = (first - second).abs().mean()
    one, two = normalize_stains(first), normalize_stains(second)
    assert (one - two).abs().mean() < 0.2 * before
    assert (one[:, :, :20] > 254.9).all()


def test_its_own_stains_change_nothing():
    picture = stained()
    found = estimate_stains(picture)
    same = normalize_stains(
        picture, target_stains=found.stains.tolist(), target_concentrations=found.concentrations.tolist()
    )
    torch.testing.assert_close(same, picture, atol=1.0, rtol=0.0)


# --- jitter


def jitter_reference(picture: np.ndarray, scale: list[float], shift: list[float]) -> np.ndarray:
    """Compare pixel by pixel, in float64."""
    rows = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    changed = np.empty_like(picture)
    for x, y in np.ndindex(picture.shape[1:]):
        amount = np.linalg.solve(rows.T, -np.log((picture[:, x, y] + 1) / 256))
        weight = min(1.0, (255 - picture[:, x, y].mean()) / 20)
        density = rows.T @ (amount * scale + weight * np.asarray(shift))
        changed[:, x, y] = np.clip(256 * np.exp(-density) - 1, 0, 255)
    return changed


def test_jitter_is_that_of_the_formula():
    picture = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(1)) * 255
    picture[:, 0] = torch.linspace(215, 255, 5)
    scale, shift = [1.1, 0.9, 1.05], [0.04, -0.05, 0.02]
    expected = jitter_reference(picture.double().numpy(), scale, shift)
    np.testing.assert_allclose(jitter_stains(picture, scale, shift).numpy(), expected, atol=1e-2)
    fraction = jitter_stains(picture / 255, scale, shift, white=1.0)
    torch.testing.assert_close(fraction * 255, jitter_stains(picture, scale, shift), atol=1e-2, rtol=0)


def test_jitter_by_nothing_changes_nothing():
    picture = torch.rand(3, 6, 6) * 255
    torch.testing.assert_close(jitter_stains(picture, (1, 1, 1), (0, 0, 0)), picture, atol=1e-2, rtol=0)


def test_hematoxylin_alone_is_strengthened():
    picture = stained(glass=0.1)
    before = stain_amounts(picture, TEXTBOOK)
    after = stain_amounts(jitter_stains(picture, (1.2, 1.0, 1.0), (0.0, 0.0, 0.0)), TEXTBOOK)
    seen = (picture > 5).all(dim=0).numpy()  # in darker pixels rounding near black loses the density
    np.testing.assert_allclose(after[0][seen], 1.2 * before[0][seen], atol=0.02)
    np.testing.assert_allclose(after[1][seen], before[1][seen], atol=0.02)


@given(arrays(np.float32, (3, 4, 4), elements=st.floats(0, 255, width=32)), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_jitter_stays_in_range_and_leaves_white_white(values, seed):
    values[:, 0, 0] = 255.0
    jitter = RandStainJitterd("image", prob=1.0, scale=0.9, shift=1.0).set_random_state(seed=seed)
    changed = jitter({"image": torch.from_numpy(values)})["image"]
    assert changed.min() >= 0
    assert changed.max() <= 255
    torch.testing.assert_close(changed[:, 0, 0], torch.full((3,), 255.0), atol=1e-3, rtol=0)


def test_draws_are_repeatable_and_shared_by_the_keys():
    jitter = RandStainJitterd(["image", "twin"], prob=1.0)
    item = {"image": stained(), "twin": stained()}
    first = jitter.set_random_state(seed=4)(item)
    again = pickle.loads(pickle.dumps(jitter)).set_random_state(seed=4)(item)
    other = jitter.set_random_state(seed=5)(item)
    assert torch.equal(first["image"], first["twin"])
    assert torch.equal(first["image"], again["image"])
    assert not torch.allclose(first["image"], other["image"])
    assert torch.equal(item["image"], stained()), "the item itself is left alone"


def test_about_half_of_the_items_are_changed():
    jitter = RandStainJitterd("image", prob=0.5).set_random_state(seed=0)
    picture = torch.full((3, 2, 2), 100.0)
    changed = sum(not torch.equal(jitter({"image": picture})["image"], picture) for _ in range(200))
    assert 70 < changed < 130


@pytest.mark.parametrize("transform", [NormalizeStaind("image"), RandStainJitterd("image", prob=1.0)])
def test_type_and_metadata_stay(transform):
    picture = MetaTensor(stained(), affine=torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])), meta={"name": "a"})
    changed = transform({"image": picture, "label": 1})
    assert isinstance(changed["image"], MetaTensor)
    assert changed["image"].meta["name"] == "a"
    assert changed["image"].affine[0, 0] == 2.0
    assert changed["label"] == 1
    assert isinstance(transform({"image": stained().numpy()})["image"], np.ndarray)


def test_draws_in_the_dataset_depend_on_epoch_and_index_alone():
    items = [{"image": stained(seed=seed)} for seed in range(3)]
    dataset = EpochCacheDataset(items, lambda item: item, RandStainJitterd("image", prob=1.0), seed=2, progress=False)
    first = dataset[2]["image"]
    _ = dataset[0], dataset[1]
    assert torch.equal(dataset[2]["image"], first)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[2]["image"], first)


# --- bad input

GRAY = r"Expected `image` to be a color picture \(3, H, W\), got \(1, 8, 8\): read it in RGB"
NORMALIZED = "Expected `image` to hold values from 0 to 255, got -2.* put transforms of color before"
FRACTIONS = "Expected `image` to hold values from 0 to 255, got 0 to 1: give `white=1`"


@pytest.mark.parametrize("transform", [NormalizeStaind("image"), RandStainJitterd("image", prob=1.0)])
@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.zeros(1, 8, 8), GRAY),
        (torch.full((3, 8, 8), -2.0), NORMALIZED),
        (torch.full((3, 8, 8), float("nan")), "Expected `image` to hold values from 0 to 255, got nan"),
        (torch.rand(3, 8, 8), FRACTIONS),
    ],
    ids=["gray", "normalized", "NaN", "0 to 1"],
)
def test_pictures_that_are_none(transform, picture, words):
    with pytest.raises(ValueError, match=words):
        transform({"image": picture})


def test_the_datalist_tells_a_nearly_black_crop_from_an_image_from_0_to_1():
    transform = NormalizeStaind("image")
    crop, levels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), np.array([180.0, 120.0, 160.0])
    black = 0.2 * crop  # of 255; neither reading leaves it unseen
    assert transform({"image": black, "intensity_mean": levels})["image"].shape == crop.shape
    with pytest.raises(ValueError, match=FRACTIONS):  # scaled to 1 meanwhile: as bright as its mean says
        transform({"image": crop, "intensity_mean": levels})
    with pytest.raises(ValueError, match=FRACTIONS):
        transform({"image": crop, "intensity_mean": np.array([0.7, 0.5, 0.6])})
    assert transform({"image": 0.04 * crop})["image"].shape == crop.shape, "nearly black by either reading"


def test_a_volume_is_no_picture():
    with pytest.raises(ValueError, match=r"color picture \(3, H, W\), got \(3, 4, 4, 4\)"):
        estimate_stains(torch.zeros(3, 4, 4, 4))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: NormalizeStaind("image", target_stains=((1, 0), (0, 1))), r"shape \(3, 2\).*got \(2, 2\) and \(2,\)"),
        (lambda: RandStainJitterd("image", scale=1.0), r"`scale` in \[0, 1\) and `shift` of 0 or more, got 1.0 and"),
        (lambda: RandStainJitterd("image", shift=-0.1), "`shift` of 0 or more, got 0.15 and -0.1"),
    ],
)
def test_wrong_arguments(build, words):
    with pytest.raises(ValueError, match=words):
        build()
