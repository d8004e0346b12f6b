# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Seeds and segmentation of a batch against sums by hand; the healthy level; classes that images do not hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from monai_wsss.inferers import AboveHealthyLevel, MinMax, MultiScaleSeeds
from monai_wsss.refinement import LabeledImages

SIZES = pytest.mark.parametrize("size", [(8, 12), (4, 8, 8)])


class Maps(NamedTuple):
    seeds: torch.Tensor
    segmentation: torch.Tensor


class Network:
    """Not symmetric: two classes of which each is a pixel minus its left neighbor; coarse logits."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def branches(self, image: torch.Tensor) -> Maps:
        self.shapes.append(image.shape)
        maps = image - 2 * image.roll(1, -1)
        pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
        return Maps(torch.cat((maps, -maps), 1), torch.cat((pool(maps, 2), pool(-maps, 2), pool(image, 2)), 1))


def images_of(size: tuple[int, ...]) -> LabeledImages:
    image = torch.randn(3, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return LabeledImages(image, torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))


def over_scales(image: torch.Tensor, scales: tuple[float, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Give the strongest seeds of each scale, and the mean segmentation, scale by scale and side by side."""
    size = image.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    seeds, segmentation = [], torch.zeros(())
    for scale in scales:
        scaled = F.interpolate(image, size=[int(side * scale) for side in size], mode=mode, align_corners=False)
        upright, mirrored = (
            [F.interpolate(part, size=size, mode=mode, align_corners=False) for part in Network().branches(view)]
            for view in (scaled, scaled.flip(-1))
        )
        seeds.append(torch.maximum(upright[0], mirrored[0].flip(-1)))
        segmentation = segmentation + (upright[1] + mirrored[1].flip(-1)) / 2 / len(scales)
    return seeds, segmentation


def held(images: LabeledImages) -> torch.Tensor:
    return images.label.reshape(3, 2, *[1] * (images.image.ndim - 2))


@SIZES
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
def test_min_max_rectifies_each_scale_before_the_sum(size, scales):
    images, network = images_of(size), Network()
    seeds, segmentation = MultiScaleSeeds(MinMax(), scales)(network, images)
    each, expected = over_scales(images.image, scales)
    total = sum(maps.clamp(min=0) for maps in each)
    axes = tuple(range(2, total.ndim))
    low, high = total.amin(axes, keepdim=True), total.amax(axes, keepdim=True)
    torch.testing.assert_close(seeds, (total - low) / (high - low + 1e-5) * held(images))
    torch.testing.assert_close(segmentation, expected)
    assert len(network.shapes) == len(scales)  # both sides in one pass


@SIZES
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
def test_seeds_above_the_healthy_level_keep_their_zero(size, scales):
    images, scale = images_of(size), AboveHealthyLevel(2)
    scale.set_level(torch.tensor([-0.5, 0.25]))
    seeds, segmentation = MultiScaleSeeds(scale, scales)(Network(), images)
    each, expected = over_scales(images.image, scales)
    level = torch.tensor([-0.5, 0.25], dtype=torch.float64).reshape(2, *[1] * len(size))
    above = (sum(each) / len(scales) - level).clamp(min=0)
    peak = above.amax(tuple(range(2, above.ndim)), keepdim=True)
    torch.testing.assert_close(seeds, above / peak * held(images))
    torch.testing.assert_close(segmentation, expected)


@pytest.mark.parametrize("scale", [MinMax(), AboveHealthyLevel(2)])
def test_seeds_lie_in_the_unit_interval_and_absent_classes_are_0(scale):
    if isinstance(scale, AboveHealthyLevel):
        scale.set_level(torch.zeros(2))
    images = images_of((8, 12))
    seeds, segmentation = MultiScaleSeeds(scale)(Network(), images)
    assert seeds.shape == (3, 2, 8, 12)
    assert segmentation.shape == (3, 3, 8, 12)
    assert (seeds.min(), seeds.max()) >= (0, 0)
    assert seeds.max() <= 1
    assert not seeds[1, 0].any()
    assert not seeds[2].any()


def test_nothing_is_remembered_for_a_gradient():
    images = images_of((8, 12))
    images.image.requires_grad_()
    seeds, segmentation = MultiScaleSeeds(MinMax())(Network(), images)
    assert not seeds.requires_grad
    assert not segmentation.requires_grad


def test_half_precision_gives_float32():
    image = images_of((8, 12)).image.bfloat16()
    images = LabeledImages(image, torch.ones(3, 2))
    seeds, segmentation = MultiScaleSeeds(MinMax())(Network(), images)
    assert seeds.dtype == segmentation.dtype == torch.float32


@pytest.mark.parametrize("scale", [MinMax(), AboveHealthyLevel(1)])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_are_finite(scale, value):
    if isinstance(scale, AboveHealthyLevel):
        scale.set_level(torch.zeros(1))
    got = scale(torch.full((1, 1, 4, 4), value))
    assert got.isfinite().all()
    assert 0 <= got.min() <= got.max() <= 1


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_are_positive(scales):
    with pytest.raises(ValueError, match="one or more `scales` > 0"):
        MultiScaleSeeds(MinMax(), scales)


# ---------------------------------------------------------------------------------------------- the healthy level


def test_the_level_is_the_median_over_images_without_the_class():
    """Of an even number of pixels the lower middle one, as torch takes it."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 4, 5, generator=generator)
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    scale = AboveHealthyLevel(2)
    scale.follow(maps, LabeledImages(torch.zeros(3, 1, 4, 5), label))
    for k, without in ((0, [1, 2]), (1, [0, 2])):
        ordered = maps[without, k].flatten().sort().values
        assert scale.level.value[k] == ordered[(len(ordered) - 1) // 2]
    assert scale.level.filled.all()


def test_a_batch_in_which_every_image_holds_a_class_leaves_its_level():
    scale, image = AboveHealthyLevel(2), torch.zeros(2, 1, 4, 4)
    scale.follow(torch.full((2, 2, 4, 4), 3.0), LabeledImages(image, torch.tensor([[1.0, 0.0], [1.0, 1.0]])))
    assert scale.level.filled.tolist() == [False, True]
    assert scale.level.value.tolist() == [0.0, 3.0]
    scale.follow(torch.full((2, 2, 4, 4), 5.0), LabeledImages(image, torch.tensor([[0.0, 1.0], [0.0, 1.0]])))
    assert scale.level.value.tolist() == [5.0, 3.0]


def test_the_level_follows_with_the_momentum():
    scale, healthy = AboveHealthyLevel(1), LabeledImages(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1))
    for value in (2.0, 4.0):
        scale.follow(torch.full((1, 1, 4, 4), value), healthy)
    assert scale.level.value.item() == pytest.approx(0.9 * 2 + 0.1 * 4)


def test_padding_does_not_count():
    maps = torch.ones(1, 1, 4, 8)
    maps[..., 3:] = 9.0
    scale, image = AboveHealthyLevel(1), torch.zeros(1, 1, 4, 8)
    scale.follow(maps, LabeledImages(image, torch.zeros(1, 1), boxes=torch.tensor([[0, 4, 0, 3]])))
    assert scale.level.value.item() == 1.0


def test_seeds_wait_for_the_level_of_every_class():
    scale = AboveHealthyLevel(2)
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="Expected training images without each class before labels are made"):
        scale(maps)
    scale.follow(maps, LabeledImages(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 1.0]])))
    with pytest.raises(ValueError, match="call `measure_negative_reference` first"):
        scale(maps)
    scale.follow(maps, LabeledImages(torch.zeros(1, 1, 4, 4), torch.tensor([[1.0, 0.0]])))
    assert not scale(maps).any()


def test_a_level_is_kept_in_checkpoints():
    scale, other = AboveHealthyLevel(2), AboveHealthyLevel(2)
    scale.set_level(torch.tensor([-3.0, 1.0]))
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.level.value, torch.tensor([-3.0, 1.0]))
    assert other.level.filled.all()
    other(torch.zeros(1, 2, 4, 4))


def test_three_kinds_of_maps_in_one_pass():
    """Seeds, auxiliary seeds and a segmentation, as co-training needs them; each is what it is alone."""

    class Three(Network):
        def branches(self, image):
            maps = super().branches(image)
            return SimpleNamespace(seeds=maps.seeds, auxiliary_seeds=2 - maps.seeds, segmentation=maps.segmentation)

    images, network = images_of((8, 12)), Three()
    names = {"seeds": ("seeds", "auxiliary_seeds"), "logits": ("segmentation",)}
    seeds, auxiliary, segmentation = MultiScaleSeeds(MinMax(), (1.0, 0.5), **names)(network, images)
    assert len(network.shapes) == 2
    alone = MultiScaleSeeds(MinMax(), (1.0, 0.5))
    torch.testing.assert_close((seeds, segmentation), alone(Network(), images), rtol=0, atol=0)
    (only,) = MultiScaleSeeds(MinMax(), (1.0, 0.5), seeds=("auxiliary_seeds",), logits=())(Three(), images)
    torch.testing.assert_close(auxiliary, only, rtol=0, atol=0)


def test_a_level_that_was_not_measured_is_not_filled():
    scale = AboveHealthyLevel(2)
    scale.set_level(torch.tensor([1.0, torch.nan]))
    assert scale.level.filled.tolist() == [True, False]
    assert scale.level.value.isfinite().all()
    with pytest.raises(ValueError, match="training images without each class"):
        scale(torch.zeros(1, 2, 2, 2))
    scale.set_level(torch.tensor([1.0, 2.0]))
    scale(torch.zeros(1, 2, 2, 2))
    scale.load_state_dict(AboveHealthyLevel(2).state_dict())
    with pytest.raises(ValueError, match="training images without each class"):
        scale(torch.zeros(1, 2, 2, 2))


def test_a_batch_without_negative_images_leaves_the_level():
    """A process that has none takes part in the mean of all, and alone changes nothing."""
    scale = AboveHealthyLevel(1)
    scale.set_level(torch.tensor([3.0]))
    images = LabeledImages(torch.zeros(1, 1, 2, 2), torch.ones(1, 1))
    scale.follow(None, images.of([]))
    assert (scale.level.value.item(), scale.level.filled.item()) == (3.0, True)


# ------------------------------------------------------------------------------- options of co-training


class Auxiliary(Network):
    """Also auxiliary seeds, of the other sign."""

    def branches(self, image):
        maps = super().branches(image)
        return SimpleNamespace(seeds=maps.seeds, auxiliary_seeds=-maps.seeds, segmentation=maps.segmentation)


def test_auxiliary_seeds_of_the_last_scale_alone():
    images = images_of((8, 12))
    names = {"seeds": ("seeds", "auxiliary_seeds")}
    seeds, auxiliary, segmentation = MultiScaleSeeds(MinMax(), (1.0, 0.5), aux_scales="last", **names)(
        Auxiliary(), images
    )
    alone = {"seeds": ("auxiliary_seeds",), "logits": ()}
    (last,) = MultiScaleSeeds(MinMax(), (0.5,), **alone)(Auxiliary(), images)
    torch.testing.assert_close(auxiliary, last, rtol=0, atol=0)
    torch.testing.assert_close(
        (seeds, segmentation), MultiScaleSeeds(MinMax(), (1.0, 0.5))(Network(), images), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="`aux_scales` to be one of all, last"):
        MultiScaleSeeds(MinMax(), aux_scales="first")


def test_logits_are_summed_over_all_passes_or_averaged():
    images, scales = images_of((8, 12)), (1.0, 0.5, 1.5)
    _, total = MultiScaleSeeds(MinMax(), scales, sum_logits=True)(Network(), images)
    _, mean = MultiScaleSeeds(MinMax(), scales)(Network(), images)
    torch.testing.assert_close(total, 6 * mean)


def test_a_faint_peak_is_not_stretched_to_1():
    """The bound is in units of the mean over the scales."""
    maps = torch.tensor([[[[0.0, 0.5, 1.0]], [[0.0, 2.0, 4.0]]]])
    got = MinMax(min_peak=2.0)(maps)
    torch.testing.assert_close(got, torch.tensor([[[[0.0, 0.25, 0.5]], [[0.0, 0.5, 1.0]]]]), rtol=1e-4, atol=1e-5)
    images, strongest = images_of((8, 12)), over_scales(images_of((8, 12)).image, (1.0, 0.5))[0]
    seeds, _ = MultiScaleSeeds(MinMax(min_peak=100.0), (1.0, 0.5))(Network(), images)
    mean = sum(maps.clamp(min=0) for maps in strongest) / 2
    lowest = mean.amin((2, 3), keepdim=True)
    torch.testing.assert_close(seeds, (mean - lowest) / (100 + 1e-5) * held(images))
    with pytest.raises(ValueError, match="`min_peak` >= 0"):
        MinMax(min_peak=-1.0)


def test_seeds_that_nothing_gives_are_told():
    names = ("seeds", "auxiliary_seeds")
    network = SimpleNamespace(branches=lambda image: SimpleNamespace(seeds=image, segmentation=image))
    for aux_scales in ("all", "last"):
        with pytest.raises(ValueError, match=r"branches give .*auxiliary_seeds.*, it lacks auxiliary_seeds: build it"):
            MultiScaleSeeds(MinMax(), seeds=names, aux_scales=aux_scales)(network, images_of((8, 12)))
