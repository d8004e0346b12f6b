# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The standalone segmenters of CoSA-MS: DeepLab on ResNet-101, ResNet38, and MONAI's Swin."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.engines import Progress
from monai_wsss.methods import PseudoMaskSupervision
from monai_wsss.networks import (
    AtrousSegmenter,
    DilatedResNet,
    PaddedSegmenter,
    deeplab_segmenter,
    load_encoder_weights,
    resnet38_segmenter,
    swin_segmenter,
)
from monai_wsss.networks import padded_segmenter as module
from monai_wsss.networks.dilated_resnet import resnet_stages

BUILD = {
    "R101": lambda dims: deeplab_segmenter(3, 1, spatial_dims=dims, width=4, blocks=(1, 1, 2, 1), dilations=(1, 2)),
    "WR38": lambda dims: resnet38_segmenter(3, 1, spatial_dims=dims, width=2, frozen="none"),
    "Swin": lambda dims: swin_segmenter(3, 1, spatial_dims=dims, feature_size=12),
}
needs_einops = pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="MONAI's Swin needs einops")
KINDS = [
    *((kind, dims) for kind in ("R101", "WR38") for dims in (2, 3)),
    pytest.param("Swin", 2, marks=needs_einops),
]


def batch(dims: int) -> dict[str, torch.Tensor]:
    """Bright squares on dark ground, with the squares as pseudo-masks; a part is ignored."""
    mask = torch.zeros((2, 1, *(40 if dims == 2 else 24,) * dims), dtype=torch.uint8)
    mask[0, :, 4:12, 4:12], mask[1, :, 10:20, 10:20] = 1, 2
    image = mask.float() + 0.1 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    mask[:, :, :2] = 255
    return {"image": image, "label": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "pseudo_mask": mask}


@pytest.mark.parametrize(("kind", "dims"), KINDS)
def test_a_second_stage_learns_with_it(kind, dims):
    torch.manual_seed(0)
    method = PseudoMaskSupervision(BUILD[kind](dims)).train()
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    data, losses = batch(dims), []
    for step in range(12):
        optimizer.zero_grad()
        (loss,) = method(data, Progress(epoch=1, iteration=step, fraction=0.1)).values()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.87 * losses[0]
    method.eval()
    with torch.no_grad():
        odd = torch.zeros((1, 1, *(33, 41, 35)[:dims]))
        assert method.network(odd).shape == (1, 3, *odd.shape[2:])
    if kind != "Swin":
        rates = [group["lr"] for group in method.parameter_groups(1e-2, encoder_learning_rate=1e-3)]
        assert rates == [1e-3, 1e-2]


def test_published_sizes():
    with torch.device("meta"):
        deeplab, wide = deeplab_segmenter(21), resnet38_segmenter(21)
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in
             (("deeplab", deeplab.backbone), ("wide", wide.backbone))}  # fmt: skip
    assert count == {"deeplab": 42_500_160, "wide": 105_070_912}
    assert [conv.dilation[0] for conv in deeplab.classifiers] == [6, 12, 18, 24]
    assert (wide.before[0].out_channels, wide.before[0].dilation, wide.classifiers[0].dilation) == (
        512,
        (12,) * 2,
        (12,) * 2,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_of_strides_fit_dilation(dims):
    """The features of the strided network are every fourth one of the dilated network's."""
    torch.manual_seed(0)
    strided = nn.Sequential(resnet_stages(dims, 1, 4, (1, 1, 2, 2))).eval()
    dilated = DilatedResNet(dims, 1, width=4, blocks=(1, 1, 2, 2)).eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand((1, 1, *(65,) * dims))
    with torch.no_grad():
        expected, found = strided(image), dilated(image)
    every_fourth = (slice(None), slice(None), *[slice(None, None, 4)] * dims)
    torch.testing.assert_close(found[every_fourth], expected)


def test_backbones_are_filled_from_files(tmp_path):
    file = tmp_path / "resnet.pt"
    weights = DilatedResNet(2, 3, width=4, blocks=(1, 1, 1, 1)).state_dict()
    torch.save(weights | {"fc.weight": torch.zeros(5, 128), "fc.bias": torch.zeros(5)}, file)
    network = deeplab_segmenter(2, width=4, blocks=(1, 1, 1, 1))
    assert load_encoder_weights(network, file)["encoder"] == "DilatedResNet"
    assert torch.equal(network.backbone.layer4[0].conv2.weight, weights["layer4.0.conv2.weight"])


def test_padding_changes_nothing_but_the_border():
    network = PaddedSegmenter(nn.Conv2d(1, 2, 1), 8)
    image = torch.rand(2, 1, 13, 16)
    assert torch.equal(network(image), network.segmenter(image))
    seen = []
    network.segmenter.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    network(image)
    assert seen == [(2, 1, 16, 16)]


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="SwinUNETR needs the package einops, which is not installed: pip install"):
        swin_segmenter(2)
    with pytest.raises(ValueError, match="`multiple` >= 1, got 0"):
        PaddedSegmenter(nn.Identity(), 0)
    for words in ({"out_channels": 0}, {"dilations": ()}, {"dilations": (0,)}):
        with pytest.raises(ValueError, match="`out_channels` >= 1 and `dilations` of at least 1"):
            AtrousSegmenter(nn.Identity(), 4, **words)
    with pytest.raises(ValueError, match=r"`blocks` of 4 stages, got \(1, 1, 1\)"):
        DilatedResNet(blocks=(1, 1, 1))
