# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The converted image beside the map: on the inferer's grid, over its views, slice by slice."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor, decollate_batch

from monai_wsss.cams.differences import difference_map
from monai_wsss.inferers import AddConversiond, ConversionInferer, VolumeInferer
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


class Counted(CycleGenerator):
    """Counts the images that it converts."""

    conversions = 0

    def translate(self, image, reference=None):
        self.conversions += len(image)
        return super().translate(image, reference)


def as_batch(*size: int) -> MetaTensor:
    batch = MetaTensor(2 * torch.rand(*size, generator=torch.Generator().manual_seed(0)) - 1, meta={"of": ["a", "b"]})
    batch.is_batch = True
    return batch


@pytest.mark.parametrize("size", [(24, 40), (16, 24, 3)])
@pytest.mark.parametrize("words", [{}, {"grid": (16, 16), "views": "flips"}, {"tell_rule": True, "slice_batch": 2}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_pass_gives_map_and_converted_image(size, words, reduction):
    torch.manual_seed(0)
    made = Counted(in_channels=2, width=4, num_res_blocks=1, attention=None, heat={"reduction": reduction}).eval()
    batch = as_batch(2, 2, *size)
    maps = VolumeInferer(**words)(batch, made)
    before, made.conversions = made.conversions, 0
    given = ConversionInferer(**words)(batch, made)
    assert torch.equal(torch.as_tensor(given), torch.as_tensor(maps)), "the map is that of any inferer"
    items = decollate_batch({"image": batch, "pred": given})
    items = [AddConversiond("pred", made, VolumeInferer(**words))(item) for item in items]
    assert made.conversions == before, "nothing is converted once more"
    assert items[1]["pred"].meta["of"] == "b"
    for number, item in enumerate(items):
        once_more = AddConversiond("pred", made, VolumeInferer(**words))
        expected = once_more({"image": batch[number].as_tensor(), "pred": maps[number]})
        for name in ("heat", "converted"):
            torch.testing.assert_close(item[name], torch.as_tensor(expected[name]), atol=1e-5, rtol=1e-4)


def test_the_conversion_of_another_network_is_taken_over_with_its_map():
    """As in a server, which loads the weights into a copy of the network."""
    torch.manual_seed(1)
    served, named, batch = network(), Counted.tiny().eval(), as_batch(2, 1, 16, 16)
    torch.nn.init.normal_(named.head.weight)
    given = ConversionInferer(tell_rule=True)(batch, torch.jit.script(served))
    item = AddConversiond("pred", named)({"image": batch[0], "pred": given[0]})
    torch.testing.assert_close(item["converted"], served.translate(batch.as_tensor())[0].detach())
    assert named.conversions == 0


def test_maps_have_no_conversion_beside_them_where_there_is_none():
    made, batch = network(), as_batch(2, 1, 16, 16)
    plain = ConversionInferer()(batch.as_tensor(), made)
    assert not isinstance(plain, MetaTensor)
    assert torch.equal(plain, VolumeInferer()(batch.as_tensor(), made))
    summed = ConversionInferer(views="flips", reduction="sum", tell_rule=True)(batch, made)
    assert "converted" not in summed.meta
    classes = ConversionInferer(tell_rule=True)(batch, CAMEncoder.tiny().eval())
    assert "converted" not in classes.meta


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ValueError, match=r"Expected a network with `translate`.* got CAMEncoder"):
        AddConversiond("pred", CAMEncoder.tiny())
    with pytest.raises(ValueError, match="Expected the key `image`"):
        AddConversiond("pred", network())({"pred": torch.zeros(1, 16, 16)})
    assert AddConversiond("pred", network(), allow_missing_keys=True)({"a": 1}) == {"a": 1}
