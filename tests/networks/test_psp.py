# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pyramid scene parsing: the head against averages over bins by hand, any backbone, both heads, deployment."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import ResNetFeatures, UNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_wsss.networks.psp import PSPHead, PyramidSceneParsing
from monai_wsss.networks.resnest import ResNeSt
from monai_wsss.networks.resnet38 import ResNet38


def bin_averages(features: torch.Tensor, count: int) -> torch.Tensor:
    """Compute means over bins; bin i of n pixels goes from floor(i n / count) to ceil((i + 1) n / count)."""
    for axis in range(2, features.ndim):
        n = features.shape[axis]
        bounds = [(i * n // count, math.ceil((i + 1) * n / count)) for i in range(count)]
        parts = [features.narrow(axis, low, high - low).mean(axis) for low, high in bounds]
        features = torch.stack(parts, dim=axis)
    return features


@pytest.mark.parametrize("size", [(12, 9), (5, 7), (1, 1), (7, 6, 8)])
def test_head_agrees_with_averages_over_bins(size):
    torch.manual_seed(0)
    head = PSPHead(3, 2, spatial_dims=len(size), channels=4).double().eval()
    for module in head.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    column = (None, slice(None), *[None] * len(size))
    parts = [features]
    for level, count in zip(head.levels, (1, 2, 3, 6), strict=True):
        conv, norm = level[1], level[2]
        part = torch.einsum("oc,bc...->bo...", conv.weight.flatten(1), bin_averages(features, count))
        part = ((part - norm.running_mean[column]) / (norm.running_var[column] + 1e-5).sqrt()).clamp(min=0)
        parts.append(F.interpolate(part, size, mode="bilinear" if len(size) == 2 else "trilinear"))
    expected = head.classifier[1](head.fuse(torch.cat(parts, 1)))
    torch.testing.assert_close(head(features), expected, rtol=1e-9, atol=1e-10)


def test_published_sizes():
    with torch.device("meta"):
        head = PSPHead(2048, 2)
        network = PyramidSceneParsing(ResNeSt(200), 2048, 2, auxiliary_channels=1024)
    assert [level[1].out_channels for level in head.levels] == [512] * 4
    assert head.fuse.conv.weight.shape == (512, 2048 + 4 * 512, 3, 3)
    assert head.classifier[0].p == 0.1
    assert network.auxiliary[0].conv.weight.shape == (256, 1024, 3, 3)
    assert network.auxiliary[2].weight.shape == (2, 256, 1, 1)
    assert network.auxiliary_weight == 0.4


def test_head_gradients_are_right_in_double():
    torch.manual_seed(0)
    head = PSPHead(2, 2, channels=2, bins=(1, 2), dropout=0.0).double()
    features = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head.eval(), (features,), fast_mode=True)
    # With one image in training the image level has no statistics of its own.
    assert torch.autograd.gradcheck(head.train(), (features,), fast_mode=True)


def unet(spatial_dims: int = 2) -> nn.Module:
    return UNet(spatial_dims, in_channels=3, out_channels=4, channels=(4, 8), strides=(2,))


BACKBONES = {
    "resnest": lambda: (ResNeSt.tiny(), 256),
    "resnet38": lambda: (ResNet38.tiny(), 24),
    "monai_features": lambda: (ResNetFeatures("resnet10", pretrained=False, spatial_dims=2, in_channels=3), 512),
    "unet": lambda: (unet(), 4),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(33, 50), (64, 32)])
def test_any_backbone_gives_logits_at_the_input_size(name, size):
    backbone, channels = BACKBONES[name]()
    network = PyramidSceneParsing(backbone, channels, 3, channels=4)
    if name == "unet":
        size = (32, 48)  # this backbone needs even sides
    image = torch.rand(2, 3, *size)
    for mode in (True, False):
        logits = network.train(mode)(image)
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (2, 3, *size)
    assert network.output_kind == "segmentation"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_both_heads_are_trained_also_by_one_image(batch, spatial_dims):
    network = PyramidSceneParsing.tiny(spatial_dims)
    logits, auxiliary = network.auxiliary_logits(torch.rand(batch, 3, *[24] * spatial_dims))
    assert logits.shape == auxiliary.shape == (batch, 2, *[24] * spatial_dims)
    (logits.square().mean() + network.auxiliary_weight * auxiliary.square().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_auxiliary_head_reads_the_last_map_but_one():
    network = PyramidSceneParsing.tiny().eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits, auxiliary = network.auxiliary_logits(image)
        torch.testing.assert_close(logits, network(image))
        before = network.auxiliary(network.backbone(image)[2])
    torch.testing.assert_close(auxiliary, F.interpolate(before, size=(32, 32), mode="bilinear"))


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 1))
def test_images_do_not_mix_and_logits_have_the_input_size(size, index):
    network = PyramidSceneParsing.tiny().eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = network(image)
        image[1 - index] = torch.nan
        alone = network(image)
    assert logits.shape == (2, 2, *size)
    torch.testing.assert_close(alone[index], logits[index])
    assert alone[1 - index].isnan().any()


@pytest.mark.parametrize("value", [0.0, 255.0])
def test_constant_images_and_one_pixel_give_finite_logits(value):
    network = PyramidSceneParsing.tiny()
    assert network.train()(torch.full((2, 3, 16, 16), value)).isfinite().all()
    assert network.eval()(torch.full((1, 3, 1, 1), value)).isfinite().all()


@pytest.mark.parametrize("mode", [True, False])
def test_autocast_gives_finite_logits(mode):
    network = PyramidSceneParsing.tiny().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.rand(1, 3, 32, 32) * 100).isfinite().all()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (PyramidSceneParsing.tiny, (33, 20)),
        pytest.param(lambda: PyramidSceneParsing.tiny(3), (16, 9, 12), marks=pytest.mark.slow),
        (lambda: PyramidSceneParsing(ResNet38.tiny(), 24, channels=4), (33, 20)),
    ],
)
def test_torchscript_and_export_agree_for_lists_and_tensors(make, size):
    network = make().eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(scripted(image), network(image))
    assert scripted.output_kind == "segmentation"
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 3, *size)
    torch.testing.assert_close(exported.module()(image), network(image))


def test_one_batch_is_learned():
    torch.manual_seed(0)
    network = PyramidSceneParsing.tiny(in_channels=1)
    image = torch.zeros(2, 1, 32, 32)
    image[0, :, 8:24, 8:24] = image[1, :, :16] = 1.0
    label = image[:, 0].long()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        logits, auxiliary = network.auxiliary_logits(image)
        loss = F.cross_entropy(logits, label)
        (loss + network.auxiliary_weight * F.cross_entropy(auxiliary, label)).backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PSPHead(4, 2, bins=()), r"`bins` of at least one level, each 1 or more, got \(\)"),
        (lambda: PSPHead(4, 2, bins=(0, 2)), r"each 1 or more, got \(0, 2\)"),
        (
            lambda: PyramidSceneParsing(ResNet38.tiny(), 24).auxiliary_logits(torch.rand(1, 3, 8, 8)),
            "build it with `auxiliary_channels`",
        ),
        (
            lambda: PyramidSceneParsing(ResNet38.tiny(), 24, auxiliary_channels=24).auxiliary_logits(
                torch.rand(2, 3, 16, 16)
            ),
            "ResNet38 gives one: leave `auxiliary_channels` out",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
