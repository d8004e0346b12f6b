# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The rule `mixture` of one image, and of many together, and Otsu's threshold of many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from test_gaussian_mixture import two_populations

from monai_wsss.refinement import MaskRule, mixture_rule, mixture_threshold, otsu_rule, pooled_mixture


def maps(share: float, seed: int = 0, scale: float = 5.0) -> torch.Tensor:
    """Draw raw maps (1, 1, 40, 40) of two populations, with 0 at the lowest pixel and ``scale`` at the highest."""
    scores = two_populations(0.15, 0.6, share, 1600, seed=seed).reshape(1, 1, 40, 40)
    scores[..., 0, 0], scores[..., -1, -1] = 0.0, 1.0
    return scores * scale


def test_one_image_is_cut_between_its_populations():
    rule = MaskRule(pooling="max", rule="mixture")
    image = maps(0.3)
    mask, cam, _ = rule(image)
    expected = mixture_threshold((image / 5).flatten())
    assert expected.found
    assert torch.equal(mask == 1, image / 5 > expected.threshold)
    assert torch.equal(mask == 1, cam > 0)
    half = replace(rule, rule="minmax")(image).mask
    assert not torch.equal(mask, half)


def test_each_image_and_class_has_its_own_cut():
    rule = MaskRule(pooling="max", rule="mixture", gate="none")
    one, other = maps(0.5), maps(0.1, seed=1) + 2.0
    both = rule(torch.cat((one, other))).mask
    assert torch.equal(both[:1], rule(one).mask)
    assert torch.equal(both[1:], rule(other).mask)
    classes = rule(torch.cat((one, other), dim=1)).mask
    assert torch.equal(classes > 0, (both[:1] > 0) | (both[1:] > 0))


def test_without_two_populations_the_cut_is_that_of_minmax():
    ramp = torch.linspace(0, 3, 1600).reshape(1, 1, 40, 40).square()  # no cut between two
    rule = MaskRule(pooling="max", rule="mixture")
    few = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    for image in (few, ramp[..., :7, :7]):
        assert torch.equal(rule(image).mask, replace(rule, rule="minmax")(image).mask)


def test_the_rule_takes_no_threshold():
    with pytest.raises(ValueError, match="Rule 'mixture' takes no `threshold`"):
        MaskRule(rule="mixture", threshold=0.4)


def test_many_images_have_one_cut_whatever_their_scale():
    images = [maps(share, seed, scale) for seed, (share, scale) in enumerate(((0.3, 1.0), (0.02, 4.0), (0.5, 30.0)))]
    rule = MaskRule(pooling="max")
    found = mixture_rule(rule, images)
    expected = mixture_threshold(torch.cat([(image / image.max()).flatten() for image in images]))
    assert found.rule == "minmax"
    assert found.threshold == pytest.approx(expected.threshold.item(), abs=1e-6)
    assert found.pooling == "max"


def test_absent_classes_take_no_part():
    rule, image = MaskRule(pooling="max"), maps(0.3)
    noise = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2  # below 0
    assert mixture_rule(rule, [image, noise]).threshold == mixture_rule(rule, [image]).threshold


def test_large_images_are_thinned(monkeypatch):
    image = maps(0.3)
    whole = mixture_rule(MaskRule(pooling="max"), [image]).threshold
    monkeypatch.setattr("monai_wsss.refinement.pooled_rule.SCORES_PER_IMAGE", 400)
    thinned = pooled_mixture([image / 5])
    assert thinned.number <= 400
    assert thinned.threshold.item() == pytest.approx(whole, abs=0.05)


def test_without_two_populations_the_default_cut_stays():
    assert mixture_rule(MaskRule(pooling="max"), [torch.full((1, 1, 9, 9), -1.0)]).threshold is None


@pytest.mark.parametrize("rule", [MaskRule(rule="argmax"), MaskRule(output_kind="segmentation")])
def test_what_is_not_cut_is_refused(rule):
    with pytest.raises(ValueError, match="Expected a rule that cuts class maps"):
        mixture_rule(rule, [maps(0.3)])


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        pooled_mixture([])


def heats(*, seed: int = 0) -> torch.Tensor:
    """Draw five maps (5, 1, 40, 30) of whole numbers, with a bright square each, whose brightness differs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 20 + 8 * torch.randn(5, 1, 40, 30, generator=generator)
    for number in range(5):
        drawn[number, :, 4 : 14 + number, 6:20] += 40 + 15 * number
    return drawn.round().clamp_min(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:skimage")
def test_pooled_otsu_agrees_with_scikit_image():
    images = heats()
    rule = MaskRule(pooling="max", rule="otsu", min_contrast=0.1)
    found = otsu_rule(rule, images.split([2, 3]))
    # Scikit-image counts every gray value of integer images, so its histogram is exact too.
    expected = threshold_otsu(images.numpy().astype(np.int64))
    assert found.rule == "fixed"
    assert found.threshold == expected
    assert found.min_contrast == 0.1
    assert torch.equal(found(images).mask == 1, images > expected)
    assert not torch.equal(found(images).mask, rule(images).mask), "each image alone has its own cut"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:skimage")
def test_pooled_otsu_takes_the_classes_that_are_present():
    images = heats()
    quiet = images / 100
    rule = MaskRule(pooling="max", presence_level=10.0)
    assert otsu_rule(rule, [torch.cat((images, quiet))]).threshold == otsu_rule(rule, [images]).threshold
    with_absent_class = torch.cat((images, quiet + 9), dim=1)
    assert otsu_rule(rule, [with_absent_class]).threshold == otsu_rule(rule, [images]).threshold
    two = torch.cat((images, images.flip(0)), dim=1)
    strongest = two.amax(1).numpy().astype(np.int64)
    assert otsu_rule(rule, [two]).threshold == threshold_otsu(strongest)
    nothing = otsu_rule(rule, [quiet])
    assert nothing.rule == "otsu"
    assert not nothing(quiet).mask.any()
    assert otsu_rule(replace(rule, gate="none"), [quiet]).rule == "fixed"


def test_pooled_otsu_refuses_what_it_cannot_cut():
    with pytest.raises(ValueError, match="Expected a rule that cuts class maps"):
        otsu_rule(MaskRule(output_kind="segmentation"), [heats()])
    with pytest.raises(ValueError, match="at least one image"):
        otsu_rule(MaskRule(), [])
