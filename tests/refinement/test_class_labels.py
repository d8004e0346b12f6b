# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The makers of Y^c are the public functions of labels with their options kept; masks, boxes, mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_wsss.cams import rescale_maps
from monai_wsss.refinement import (
    BackgroundAware,
    ConstantScores,
    LabeledImages,
    LearnedAffinity,
    PixelAdaptiveRefinement,
    background_aware_scores,
    confident_label,
    propagated_seed_label,
    refined_seed_label,
)

SIZES = pytest.mark.parametrize("size", [(8, 12), (4, 8, 6)])
CLASSES = pytest.mark.parametrize("classes", [1, 3])
BOXED = pytest.mark.parametrize("boxed", [False, True])
OPTIONS = {"low": 0.3, "high": 0.6, "downscale": 1.5}


def refinement() -> PixelAdaptiveRefinement:
    return PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)


class Case:
    """Three images: of all classes, of the last one, and healthy; affinities of a grid of half the size."""

    def __init__(self, size: tuple[int, ...], classes: int, boxed: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        self.label = torch.zeros(3, classes, dtype=torch.float64)
        self.label[0], self.label[1, -1] = 1.0, 1.0
        self.boxes = None
        if boxed:
            whole, cut = [], []
            for n, side in enumerate(size):
                whole, cut = [*whole, 0, side], [*cut, n, side - 1]
            self.boxes = torch.tensor([whole, cut, cut])
        self.intensity = draw(3, 2, *size)
        self.images = LabeledImages(draw(3, 1, *size), self.label, self.intensity, self.boxes)
        self.seeds = draw(3, classes, *size) * self.label.reshape(3, classes, *[1] * len(size))
        self.segmentation = 4 * draw(3, classes + 1, *size) - 2
        self.grid = tuple(side // 2 for side in size)
        tokens = torch.Size(self.grid).numel()
        self.affinity = draw(3, tokens, tokens)

    def pairs(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        assert image is self.images.image
        return self.affinity, self.grid


@SIZES
@CLASSES
def test_constant_scores_are_the_refined_seed_label(size, classes):
    case, refine = Case(size, classes, boxed=False), refinement()
    got = ConstantScores(refine, **OPTIONS)(case.images, case.seeds, case.segmentation)
    assert torch.equal(got, refined_seed_label(case.intensity, case.seeds, case.label, refine, **OPTIONS))
    assert {0, classes} <= set(got.unique().tolist())


@SIZES
@CLASSES
@BOXED
def test_the_learned_affinity_is_the_propagated_seed_label(size, classes, boxed):
    case, refine = Case(size, classes, boxed), refinement()
    got = LearnedAffinity(refine, radius=1, **OPTIONS)(case.images, case.seeds, case.segmentation, case.pairs)
    words = {"grid": case.grid, "radius": 1, "boxes": case.boxes, **OPTIONS}
    expected = propagated_seed_label(case.intensity, case.seeds, case.label, case.affinity, refine, **words)
    assert torch.equal(got, expected)


@SIZES
@CLASSES
@BOXED
@pytest.mark.parametrize(
    ("background", "scores"), [("softmax", "l1"), ("minmax", "none"), ("minmax", "softmax"), (0.45, "l1")]
)
def test_background_awareness_is_the_confident_label_of_its_scores(size, classes, boxed, background, scores):
    case, refine = Case(size, classes, boxed), refinement()
    maker = BackgroundAware(refine, confidence=0.55, background=background, scores=scores, downscale=1.5)
    of_segmenter = {
        "softmax": case.segmentation.softmax(1)[:, :1],
        "minmax": rescale_maps(case.segmentation[:, :1]),
        0.45: torch.full_like(case.segmentation[:, :1], 0.45),
    }[background]
    expected = background_aware_scores(
        case.intensity,
        case.seeds,
        of_segmenter,
        case.label,
        refine,
        normalize=scores,
        downscale=1.5,
        boxes=case.boxes,
    )
    assert torch.equal(maker.scores(case.images, case.seeds, case.segmentation), expected)
    got = maker(case.images, case.seeds, case.segmentation)
    assert torch.equal(got, confident_label(expected, 0.55))
    mask = maker.mask(case.images, case.seeds, case.segmentation)
    assert torch.equal(mask, expected.argmax(1))
    assert torch.equal(mask[got != 255], got[got != 255])


@CLASSES
def test_masks_of_constant_scores_leave_nothing_in_doubt(classes):
    case, refine = Case((8, 12), classes, boxed=False), refinement()
    middle = {"low": 0.45, "high": 0.45, "downscale": 1.5}
    expected = refined_seed_label(case.intensity, case.seeds, case.label, refine, **middle)
    for maker in (ConstantScores(refine, **OPTIONS), LearnedAffinity(refine, **OPTIONS)):
        mask = maker.mask(case.images, case.seeds, case.segmentation)
        assert torch.equal(mask, expected)
        assert (mask <= classes).all()
        assert not mask[2].any()


@CLASSES
def test_healthy_batches_are_background(classes):
    case, refine = Case((8, 12), classes, boxed=False), refinement()
    healthy, label = case.images.of([2]), torch.zeros(1, 8, 12, dtype=torch.long)
    seeds, segmentation = case.seeds[2:], case.segmentation[2:]
    makers = (ConstantScores(refine), LearnedAffinity(refine), BackgroundAware(refine))
    for maker in makers:
        pairs = (case.affinity[2:], case.grid)
        assert torch.equal(maker(healthy, seeds, segmentation, lambda _, given=pairs: given), label)
        assert torch.equal(maker.mask(healthy, seeds, segmentation), label)


def test_scores_teach_the_seeds():
    case = Case((8, 12), 3, boxed=True)
    seeds = case.seeds.clone().requires_grad_()
    BackgroundAware(refinement()).scores(case.images, seeds, case.segmentation).square().sum().backward()
    absent = F.pad(case.label, (0, 0)) == 0
    assert not seeds.grad[absent].any()
    assert seeds.grad[~absent].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda refine: ConstantScores(refine, low=0.6, high=0.5), "0 <= `low` <= `high` <= 1, got 0.6 and 0.5"),
        (lambda refine: ConstantScores(refine, high=1.5), "`high` <= 1, got 0.35 and 1.5"),
        (lambda refine: ConstantScores(refine, low=-0.1), "0 <= `low`"),
        (lambda refine: ConstantScores(refine, downscale=0.5), "`downscale` >= 1, got 0.5"),
        (lambda refine: LearnedAffinity(refine, radius=-1), "`radius` of at least 0 tokens"),
        (lambda refine: LearnedAffinity(refine, low=0.6, high=0.5), "`low` <= `high`"),
        (lambda refine: BackgroundAware(refine, background="auto"), "`background` to be one of softmax, minmax"),
        (lambda refine: BackgroundAware(refine, background=1.5), r"`background` score in \[0, 1\], got 1.5"),
        (lambda refine: BackgroundAware(refine, scores="l2"), "`scores` to be one of none, l1, softmax, got 'l2'"),
        (lambda refine: BackgroundAware(refine, confidence=75.0), r"`confidence` in \[0, 1\], got 75.0"),
        (lambda refine: BackgroundAware(refine, downscale=0.0), "`downscale` >= 1, got 0.0"),
    ],
)
def test_options_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(refinement())
