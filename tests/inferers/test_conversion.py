# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The converted image beside the map: on the inferer's grid, over its views, slice by slice."""

from __future__ import annotations

import pytest
import torch

from monai_wsss.cams.differences import difference_map
from monai_wsss.inferers import AddConversiond, VolumeInferer
from monai_wsss.networks import CAMEncoder, CycleGenerator, record_reading


def network() -> CycleGenerator:
    torch.manual_seed(0)
    return CycleGenerator.tiny().eval()


def images(*size: int) -> torch.Tensor:
    return 2 * torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) - 1


def test_heat_is_the_difference_of_image_and_converted_image():
    made, image = network(), images(32, 32)
    item = AddConversiond("pred", made)({"image": image, "pred": made(image[None])[0].detach()})
    torch.testing.assert_close(item["converted"], made.translate(image[None])[0].detach())
    torch.testing.assert_close(item["heat"], difference_map(image[None], item["converted"][None])[0])
    assert item["heat"] is not item["pred"]


def test_the_image_is_shown_to_the_network_as_the_inferer_shows_it():
    made, image = network(), images(24, 40)
    inferer = VolumeInferer(grid=(16, 16), views="flips", reduction="sum")
    add = AddConversiond("pred", made, inferer)
    converted = add({"image": image, "pred": inferer(image[None], made)[0].detach()})["converted"]
    assert converted.shape == image.shape
    assert inferer.cam is None, "the inferer itself is left alone"
    views = [(), (2,), (3,), (2, 3)]
    small = torch.nn.functional.interpolate(image[None], size=(16, 16), mode="bilinear", antialias=True)
    mean = torch.stack([made.translate(small.flip(view)).flip(view) for view in views]).mean(0)
    expected = torch.nn.functional.interpolate(mean, size=(24, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(converted, expected[0].detach(), atol=1e-5, rtol=1e-4)


def test_volumes_are_converted_slice_by_slice_in_the_recorded_order():
    made, volume = network(), images(16, 24, 3)
    record_reading(made, {"order": "rows_columns"})
    converted = AddConversiond("pred", made)({"image": volume, "pred": volume})["converted"]
    for z in range(3):
        upright = made.translate(volume[None, :, :, :, z].transpose(2, 3))[0].transpose(1, 2)
        torch.testing.assert_close(converted[..., z], upright.detach(), atol=1e-5, rtol=1e-4)


def test_of_several_groups_the_heat_is_the_largest():
    torch.manual_seed(0)
    made = CycleGenerator(in_channels=2, width=4, num_res_blocks=1, attention=None, heat={"reduction": "none"}).eval()
    image = images(2 * 16, 16).reshape(2, 16, 16)
    item = AddConversiond("pred", made)({"image": image, "pred": made(image[None])[0].detach()})
    torch.testing.assert_close(item["heat"][0], (image - item["converted"]).abs().amax(0))


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ValueError, match=r"Expected a network with `translate`.* got CAMEncoder"):
        AddConversiond("pred", CAMEncoder.tiny())
    with pytest.raises(ValueError, match="Expected the key `image`"):
        AddConversiond("pred", network())({"pred": torch.zeros(1, 16, 16)})
    assert AddConversiond("pred", network(), allow_missing_keys=True)({"a": 1}) == {"a": 1}
