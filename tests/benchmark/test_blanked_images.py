# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Runs on blanked and transformed images, against loops in float64, in 2D and 3D, and where nothing can be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_wsss.benchmark import blanked_scores, equivariance_residual, presence_curves

SIZES = [(5, 4), (4, 3, 2)]


def presence(images: torch.Tensor) -> torch.Tensor:
    """Two classes: the sum of the first channel, and the largest value of the last."""
    return torch.stack([images[:, 0].flatten(1).sum(1), images[:, -1].flatten(1).amax(1)], dim=1)


def scored(image: np.ndarray, k: int) -> float:
    return float(image[0].sum()) if k == 0 else float(image[-1].max())


@pytest.fixture(params=SIZES, ids=["2D", "3D"])
def drawn(request):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 3, *request.param, generator=generator, dtype=torch.float64)
    maps = torch.rand(5, 2, *request.param, generator=generator)
    masks = torch.randint(0, 3, (5, 1, *request.param), generator=generator, dtype=torch.uint8)
    label = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 1]])
    return images, maps, masks, label


@pytest.mark.parametrize("fill", [None, 0.25])
def test_blanked_scores_match_a_loop(drawn, fill):
    images, _, masks, label = drawn
    found = blanked_scores(presence, images, masks, label, fill=fill, chunk=2)
    for n in range(5):
        image = images[n].numpy()
        blank = np.stack([np.full_like(c, c.mean() if fill is None else fill) for c in image])
        for k in range(2):
            if not label[n, k]:
                assert all(torch.isnan(part[n, k]) for part in found)
                continue
            region = masks[n, 0].numpy() == k + 1
            moved = region
            for axis, side in enumerate(region.shape):
                moved = np.roll(moved, side // 2, axis)
            expected = [scored(image, k)]
            expected += [scored(np.where(gone, blank, image), k) for gone in (region, ~region, moved)]
            assert [float(part[n, k]) for part in found] == pytest.approx(expected, rel=1e-6)


def test_presence_curves_match_a_loop(drawn):
    images, maps, _, label = drawn
    curves = presence_curves(presence, images, maps, label, steps=3, chunk=2)
    pixels = maps[0, 0].numel()
    for n, k in label.nonzero().tolist():
        image = images[n].numpy()
        blank = np.stack([np.full_like(c, c.mean()) for c in image])
        order = np.argsort(-maps[n, k].numpy().ravel())  # no ties
        for step in range(4):
            taken = np.zeros(pixels, dtype=bool)
            taken[order[: -(-step * pixels // 3)]] = True
            taken = taken.reshape(image.shape[1:])
            assert float(curves.deletion[n, k, step]) == pytest.approx(scored(np.where(taken, blank, image), k), 1e-6)
            assert float(curves.insertion[n, k, step]) == pytest.approx(scored(np.where(taken, image, blank), k), 1e-6)
    assert torch.isnan(curves.deletion[label == 0]).all()
    assert torch.equal(curves.deletion[label > 0][:, 0], curves.insertion[label > 0][:, -1])
    assert torch.equal(curves.deletion[label > 0][:, -1], curves.insertion[label > 0][:, 0])


def test_chunks_and_monotone_changes_of_the_map_do_not_matter(drawn):
    images, maps, masks, label = drawn
    for other in (1, 100):
        for a, b in zip(
            blanked_scores(presence, images, masks, label, chunk=2),
            blanked_scores(presence, images, masks, label, chunk=other),
            strict=True,
        ):
            assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
    once, again = (presence_curves(presence, images, each, label, steps=4) for each in (maps, maps.exp()))
    assert torch.equal(once.deletion.nan_to_num(-9), again.deletion.nan_to_num(-9))


def test_a_constant_map_removes_pixels_scattered_and_the_same_in_every_call():
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8] = 1  # half of the image
    score = lambda x: x.mean((2, 3))  # noqa: E731
    flat = torch.zeros(1, 1, 16, 16)
    first, second = (presence_curves(score, image, flat, torch.ones(1, 1), steps=2, fill=0.0) for _ in range(2))
    assert torch.equal(first.deletion, second.deletion)
    assert float(first.deletion[0, 0, 1]) == pytest.approx(0.25, abs=0.06), "not row by row or column by column"


def test_empty_and_full_masks():
    image = torch.rand(1, 1, 4, 4) + 1
    label = torch.ones(1, 1)
    score = lambda x: x.mean((2, 3))  # noqa: E731
    empty = blanked_scores(score, image, torch.zeros(1, 1, 4, 4), label, fill=0.0)
    assert empty.whole == empty.without == empty.control
    assert empty.alone.item() == 0
    full = blanked_scores(score, image, torch.ones(1, 1, 4, 4), label, fill=0.0)
    assert full.whole == full.alone
    assert full.without.item() == full.control.item() == 0


def test_images_without_a_finding_are_not_scored():
    def refuse(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("No image has a class.")

    images, label = torch.rand(2, 1, 4, 4), torch.zeros(2, 1)
    assert torch.isnan(blanked_scores(refuse, images, torch.zeros(2, 1, 4, 4), label).whole).all()
    assert torch.isnan(presence_curves(refuse, images, images, label).deletion).all()


@pytest.mark.parametrize("size", [(6, 6), (6, 8), (4, 6, 4)])
def test_maps_that_follow_the_image_have_no_residual(size):
    images = torch.rand(3, 2, *size)
    pixelwise = equivariance_residual(lambda x: x.square(), images, scales=(), chunk=2)
    assert pixelwise.shape == (3, 2)
    assert pixelwise.abs().max() < 1e-6
    shifted = equivariance_residual(lambda x: x.roll(1, 2), images, scales=())
    assert (shifted > 0.05).all()


def test_residual_matches_transforms_by_hand():
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    weights = torch.rand(4, 4, dtype=torch.float64)

    def expected() -> float:
        x, w = image[0, 0].numpy(), weights.numpy()
        own, total = x * w, []
        for view, back in (
            (x[::-1], lambda m: m[::-1]),
            (x[:, ::-1], lambda m: m[:, ::-1]),
            (np.rot90(x), lambda m: np.rot90(m, -1)),
        ):
            other = back(view * w)
            total.append(np.abs(own - other).sum() / (own + other).sum())
        return float(np.mean(total))

    found = equivariance_residual(lambda x: x * weights, image, scales=())
    assert found.item() == pytest.approx(expected())


def test_scales_and_empty_maps():
    flat = torch.ones(1, 1, 8, 8)
    assert equivariance_residual(lambda x: x, flat, scales=(0.5, 1.5)).item() < 1e-6
    assert torch.isnan(equivariance_residual(lambda x: 0 * x, flat)).all()
    seen = []
    equivariance_residual(lambda x: seen.append(tuple(x.shape[2:])) or x, torch.rand(1, 1, 6, 8), scales=(0.5,))
    assert seen[-1] == (3, 4)
    assert (8, 6) in seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.zeros(2, 4, 4)}, "masks"),
        ({"label": torch.ones(3, 1)}, "label"),
        ({"chunk": 0}, "chunk"),
        ({"images": torch.zeros(2, 4)}, "images"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    words = {"images": torch.zeros(2, 1, 4, 4), "masks": torch.zeros(2, 1, 4, 4), "label": torch.ones(2, 1), **change}
    with pytest.raises(ValueError, match=message):
        blanked_scores(lambda x: x.mean((2, 3)), **words)


def test_wrong_steps_and_scales_are_named():
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="steps"):
        presence_curves(lambda x: x.mean((2, 3)), image, image, torch.ones(1, 1), steps=0)
    with pytest.raises(ValueError, match="scales"):
        equivariance_residual(lambda x: x, image, scales=(0,))


@pytest.mark.parametrize("classes", [1, 3])
def test_a_classifier_of_other_classes_than_the_labels_is_refused(classes):
    images, masks, maps = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.rand(2, 2, 4, 4)
    other = lambda batch: batch.mean((2, 3)).expand(-1, classes)  # noqa: E731
    with pytest.raises(ValueError, match=r"Expected `presence` to give \(2, 2\) scores, .* got \(2, [13]\)"):
        blanked_scores(other, images, masks, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"Expected `presence` to give"):
        presence_curves(other, images, maps, torch.ones(2, 2))


def test_the_residual_wants_real_numbers_and_maps_of_the_size_of_the_images():
    with pytest.raises(ValueError, match=r"Expected `images` of real numbers, got torch\.bool"):
        equivariance_residual(lambda x: x, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    for maps in (lambda x: x[..., 0], lambda x: x[..., :2]):
        with pytest.raises(ValueError, match="Expected maps of the size of"):
            equivariance_residual(maps, torch.rand(1, 1, 4, 4))
