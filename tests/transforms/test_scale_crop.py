# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Random scale and crop: the box holds the true pixels and nothing else, images and label maps move alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd

from monai_wsss.data import EpochCacheDataset
from monai_wsss.refinement import LabeledImages
from monai_wsss.refinement.pseudo_label import outside_boxes
from monai_wsss.transforms import (
    RandColorOperationd,
    RandPhotometricDistortiond,
    RandScalePadCropd,
    RandStainJitterd,
)

SIZES = st.lists(st.integers(1, 24), min_size=2, max_size=2)


def crop_of(item, size, seed: int = 0, **options):
    return RandScalePadCropd("image", size, **options).set_random_state(seed=seed)(item)


@given(SIZES, SIZES, st.integers(0, 10**6), st.floats(0.3, 2.5))
@settings(max_examples=80, deadline=None)
def test_the_box_holds_the_true_pixels_and_nothing_else(size, crop, seed, scale):
    item = {"image": torch.ones(2, *size), "mask": torch.ones(1, *size, dtype=torch.uint8)}
    result = crop_of(item, crop, seed, scale_range=(scale, scale), label_keys=["mask", "absent"], fill=-7.0)
    assert result["image"].shape == (2, *crop)
    outside = outside_boxes(result["boxes"][None], torch.Size(crop))[0]
    torch.testing.assert_close(result["image"], torch.where(outside, -7.0, 1.0).expand(2, *crop))
    assert torch.equal(result["mask"][0] == 255, outside)
    assert set(result["mask"].unique().tolist()) <= {1, 255}
    scaled = [max(1, int(side * scale)) for side in size]
    first, last = result["boxes"][::2], result["boxes"][1::2]
    assert (last - first).tolist() == [min(pair) for pair in zip(scaled, crop, strict=True)]
    assert "absent" not in result


def test_without_scaling_the_crop_is_a_part_of_the_image_bit_for_bit():
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    index = torch.arange(600).reshape(1, 20, 30)
    for seed in range(20):
        result = crop_of({"image": image, "place": index}, (8, 40), seed, scale_range=(1, 1), label_keys="place")
        assert result["place"].dtype == torch.int64
        top, bottom, left, right = result["boxes"].tolist()
        assert (top, bottom, right - left) == (0, 8, 30)
        places = result["place"][0, top:bottom, left:right]
        assert torch.equal(image.flatten(1)[:, places], result["image"][:, top:bottom, left:right])


def test_scales_and_places_cover_their_range():
    ramp = torch.linspace(0, 1, 100).expand(1, 100, 100)
    found = [crop_of({"image": ramp}, 10, seed)["image"] for seed in range(300)]
    width = torch.tensor([float(one[0, 0, -1] - one[0, 0, 0]) for one in found])  # 9 pixels of 100 s
    assert 0.045 <= width.min() < 0.05
    assert 0.17 < width.max() < 0.19
    start = torch.tensor([float(one[0, 0, 0]) for one in found])
    assert start.min() < 0.03
    assert start.max() > 0.85
    boxes = torch.stack([crop_of({"image": ramp[:, :40, :40]}, 100, seed)["boxes"] for seed in range(300)])
    assert (boxes[:, 0] == 0).any()
    assert (boxes[:, 1] == 100).any()
    assert (boxes[:, 0] != boxes[:, 2]).any()


def test_an_image_that_shrinks_is_low_pass_filtered_and_keeps_its_level():
    checks = (torch.arange(64).reshape(-1, 1) + torch.arange(64)).remainder(2).float()[None]
    result = crop_of({"image": checks}, 16, scale_range=(0.25, 0.25))["image"]
    torch.testing.assert_close(result, torch.full((1, 16, 16), 0.5), atol=0.08, rtol=0)


def test_padding_is_the_mean_of_each_channel_unless_said():
    image = torch.stack([torch.full((4, 4), 10.0), torch.full((4, 4), 30.0)])
    image[0, 0, 0] += 16
    padded = crop_of({"image": image}, 9, scale_range=(1, 1))
    outside = outside_boxes(padded["boxes"][None], torch.Size((9, 9)))[0]
    assert padded["image"][:, outside].unique(dim=1).flatten().tolist() == [11.0, 30.0]
    given = crop_of({"image": image}, 9, scale_range=(1, 1), fill=[1.0, 2.0])["image"]
    assert given[:, outside].unique(dim=1).flatten().tolist() == [1.0, 2.0]


def test_intensity_is_the_crop_and_stays_when_the_image_is_changed():
    result = crop_of({"image": torch.rand(3, 12, 12)}, 8)
    assert torch.equal(result["intensity"], result["image"])
    result["image"] += 1
    assert not torch.equal(result["intensity"], result["image"])
    bare = crop_of({"image": torch.rand(3, 12, 12)}, 8, boxes_key=None, intensity_key=None)
    assert set(bare) == {"image"}


def test_volumes_are_cropped_along_three_axes():
    item = {"image": torch.ones(1, 6, 10, 4), "mask": torch.ones(1, 6, 10, 4, dtype=torch.uint8)}
    result = crop_of(item, (8, 8, 8), scale_range=(1.5, 1.5), label_keys="mask", fill=0.0)
    assert result["image"].shape == result["mask"].shape == (1, 8, 8, 8)
    sides = (result["boxes"][1::2] - result["boxes"][::2]).tolist()
    assert sides == [8, 8, 6]
    assert int(result["image"].sum()) == int((result["mask"] == 1).sum()) == 8 * 8 * 6


def test_white_stays_white_for_the_changes_of_color_that_follow():
    """Resampling sums weights that are 1 but for rounding."""
    changes = (RandColorOperationd("image"), RandPhotometricDistortiond("image"), RandStainJitterd("image", 1.0))
    above = 0.0
    for seed in range(40):
        item = crop_of({"image": torch.full((3, 50 + seed % 17, 61), 255.0)}, 64, seed)
        above = max(above, float(item["image"].max()) - 255)
        for change in changes:
            assert change.set_random_state(seed)(item)["image"].amax() <= 255
    assert above > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.uint8])
def test_types_stay(dtype):
    image = (100 * torch.rand(3, 9, 9)).to(dtype)
    result = crop_of({"image": image}, 6)["image"]
    assert result.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    wrapped = crop_of({"image": MetaTensor(image, meta={"filename_or_obj": "a.jpg"})}, 6)["image"]
    assert isinstance(wrapped, MetaTensor)
    assert wrapped.meta["filename_or_obj"] == "a.jpg"
    array = crop_of({"image": image.numpy()}, 6)["image"]
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, result.numpy())


def test_draws_of_a_dataset_depend_on_seed_epoch_and_index_alone():
    items = [{"image": torch.rand(3, 20 + index, 30)} for index in range(4)]
    flipped = Compose([RandFlipd("image", 0.5, spatial_axis=1), RandScalePadCropd("image", 16)])
    dataset = EpochCacheDataset(items, Compose([]), flipped, seed=3, progress=False)
    first = [dataset[index] for index in range(4)]
    again = [dataset[index] for index in reversed(range(4))][::-1]
    dataset.set_epoch(1)
    later = [dataset[index] for index in range(4)]
    for one, same, other in zip(first, again, later, strict=True):
        assert torch.equal(one["image"], same["image"])
        assert torch.equal(one["boxes"], same["boxes"])
        assert not torch.equal(one["image"], other["image"])
    batch = {key: torch.stack([one[key] for one in first]) for key in ("image", "boxes", "intensity")}
    images = LabeledImages.from_batch({**batch, "label": torch.ones(4, 1)})
    assert images.regions is not None
    assert images.padding.shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop_size": 0}, "`crop_size` of at least 1 pixel along each axis, got 0"),
        ({"scale_range": (2.0, 0.5)}, "`scale_range` to be two factors > 0, the smaller first"),
        ({"fill": "median"}, "`fill` to be a number, one per channel, or 'mean', got 'median'"),
    ],
)
def test_mistakes_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandScalePadCropd("image", **{"crop_size": 8, **options})


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"to have one size, got `image` .4, 4., `mask` .5, 4."):
        crop_of({"image": torch.ones(1, 4, 4), "mask": torch.ones(1, 5, 4)}, 8, label_keys="mask")
    with pytest.raises(ValueError, match="`crop_size` of 2 axes for `image`"):
        crop_of({"image": torch.ones(1, 4, 4)}, (8, 8, 8))
    with pytest.raises(ValueError, match=r"`fill` of one value or 3, the image's channels, got \[1, 2\]"):
        crop_of({"image": torch.ones(3, 4, 4)}, 8, fill=[1, 2])
