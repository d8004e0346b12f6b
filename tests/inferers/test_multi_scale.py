# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Seeds and segmentation over scales and mirror images, against the two sums written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_wsss.inferers.multi_scale import multi_scale_branches

RECTIFIED = ("rectified", "average")


def branches(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Not symmetric: each pixel and its left neighbor; half the size for the segmentation."""
    maps = image - 2 * image.roll(1, -1)
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return maps, torch.cat((pool(maps, 2), pool(-maps, 2)), 1)


@pytest.mark.parametrize("size", [(8, 12), (4, 8, 8)])
def test_sums_over_scales_of_both_orientations(size):
    image = torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if len(size) == 2 else "trilinear"
    seeds, segmentation = torch.zeros(()), torch.zeros(())
    for scale in (1.0, 0.5, 1.5):
        target = [int(side * scale) for side in size]
        scaled = F.interpolate(image, size=target, mode=mode, align_corners=False)
        for_each = []
        for view in (scaled, scaled.flip(-1)):
            for_each.append([F.interpolate(part, size=size, mode=mode) for part in branches(view)])
        (maps, logits), (mirrored_maps, mirrored_logits) = for_each
        seeds = seeds + torch.maximum(maps, mirrored_maps.flip(-1)).clamp(min=0)
        segmentation = segmentation + (logits + mirrored_logits.flip(-1)) / 2
    (got_seeds, got_segmentation), count = multi_scale_branches(branches, image, RECTIFIED)
    assert count == 3
    torch.testing.assert_close(got_seeds, seeds)
    torch.testing.assert_close(got_segmentation, segmentation)


def test_the_mirror_image_gives_mirrored_results():
    image = torch.randn(1, 1, 8, 8)
    (seeds, segmentation), _ = multi_scale_branches(branches, image, RECTIFIED, scales=(1.0, 1.5))
    mirrored, _ = multi_scale_branches(branches, image.flip(-1), RECTIFIED, scales=(1.0, 1.5))
    torch.testing.assert_close(mirrored[0].flip(-1), seeds)
    torch.testing.assert_close(mirrored[1].flip(-1), segmentation)


def test_seeds_keep_their_sign_on_request():
    image = torch.randn(1, 1, 8, 8)
    (signed, _), _ = multi_scale_branches(branches, image, ("strongest", "average"), scales=(1.0,))
    (rectified, _), _ = multi_scale_branches(branches, image, RECTIFIED, scales=(1.0,))
    assert (signed < 0).any()
    torch.testing.assert_close(signed.clamp(min=0), rectified)


def test_one_pixel_and_half_precision():
    image = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    (seeds, segmentation), _ = multi_scale_branches(lambda x: (x, x), image, RECTIFIED)
    assert seeds.item() == segmentation.item() == 3.0
    assert seeds.dtype == torch.float32


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_scales_are_positive(scales):
    with pytest.raises(ValueError, match="one or more `scales` > 0"):
        multi_scale_branches(branches, torch.ones(1, 1, 4, 4), RECTIFIED, scales=scales)


def test_any_number_of_maps_in_one_pass():
    """Two kinds of seeds and a segmentation, as co-training needs them; what two maps give is what each gives alone."""
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    passes = []

    def three(x):
        passes.append(x.shape)
        return x, 2 * x, torch.cat((x, -x), 1)

    sums, count = multi_scale_branches(three, image, ("rectified", "strongest", "average"), scales=(1.0, 0.5))
    assert (len(passes), count, len(sums)) == (2, 2, 3)
    for number, join in enumerate(("rectified", "strongest", "average")):
        (alone,), _ = multi_scale_branches(lambda x, n=number: three(x)[n : n + 1], image, (join,), scales=(1.0, 0.5))
        torch.testing.assert_close(sums[number], alone, rtol=0, atol=0)


def test_a_join_that_is_none_and_maps_without_a_join_are_told():
    with pytest.raises(ValueError, match="`joins` to be one of"):
        multi_scale_branches(branches, torch.ones(1, 1, 4, 4), ("sum", "average"))
    with pytest.raises(ValueError, match="zip"):
        multi_scale_branches(branches, torch.ones(1, 1, 4, 4), ("average",))
