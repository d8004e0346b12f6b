# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The classifier of the gland paper: each part's place, any backbone, every switch, deployable in all of them."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet10
from torch import nn

from monai_wsss.cams import pool_maps
from monai_wsss.networks import (
    ConsistencyCorrelationAttention,
    GlandClassifier,
    PyramidFusionPooling,
    dense_features,
    resnet38_classifier,
)

SMALL = {"small": True, "width": 4, "frozen": "none"}


def image(*size: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))


def test_the_paper_s_system_by_default():
    network = resnet38_classifier(width=4)
    stages = [k for k in (4, 5, 6, 7) if isinstance(getattr(network.backbone, f"attention{k}"), nn.Identity) is False]
    assert stages == [4, 5, 6]
    assert network.pyramid is not None
    assert network.pyramid.levels == [2, 4, 8, 16]
    assert network.head.bias is None
    assert not network.backbone.conv1a.weight.requires_grad


@pytest.mark.parametrize("attention", ["none", "cc1", "cc2", "cca"])
@pytest.mark.parametrize("pyramid", [None, (8,), (2, 4)])
def test_each_row_of_the_ablation(attention, pyramid):
    network = resnet38_classifier(**SMALL, attention=attention, pyramid=pyramid, attention_stages=(5,))
    class_map = network.signed_map(image(40, 33))
    logits = network.image_logits(class_map)
    assert class_map.shape == (2, 2, 5, 5)
    assert logits.shape == (2, 2)
    if pyramid is None:
        assert torch.equal(logits, pool_maps(class_map, "average"))
    logits.sum().backward()
    # Attention begins as the identity: behind a gamma of zero nothing else is moved in the first step.
    moved = [name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert "head.weight" in moved
    assert "backbone.conv1a.weight" in moved
    assert any("gamma" in name for name in moved) == (attention != "none")


@pytest.mark.parametrize("source", ["class_map", "pyramid", "product"])
def test_the_deployed_map_is_the_one_that_is_named(source):
    network = resnet38_classifier(**SMALL, attention="none", pyramid=(2, 4), cam_source=source).eval()
    picture = image(32, 32)
    expected = network.pyramid.maps(network.signed_map(picture), source)
    assert torch.equal(network.class_maps(picture), expected)
    assert network(picture).shape == (2, 2, 32, 32)


@pytest.mark.parametrize("pyramid", [None, (2, 4)])
def test_it_is_compiled_and_exported(pyramid):
    network = resnet38_classifier(**SMALL, pyramid=pyramid, attention_stages=(6,), cam_source="class_map").eval()
    picture = image(32, 40)
    with torch.no_grad():
        expected = network(picture)
        assert torch.allclose(torch.jit.script(network)(picture), expected, atol=1e-5)
        assert torch.allclose(torch.export.export(network, (picture,)).module()(picture), expected, atol=1e-5)


def test_any_backbone_in_3d():
    backbone = dense_features(resnet10(spatial_dims=3, n_input_channels=1, num_classes=1))
    network = GlandClassifier(
        backbone,
        512,
        3,
        spatial_dims=3,
        attention=ConsistencyCorrelationAttention(512, spatial_dims=3),
        pyramid=PyramidFusionPooling(3, spatial_dims=3, levels=(1, 2)),
    ).eval()
    study = image(32, 32, 32, channels=1)
    assert network(study).shape == (2, 3, 32, 32, 32)
    assert network.image_logits(network.signed_map(study)).shape == (2, 3)


def test_half_precision_and_one_pixel():
    network = resnet38_classifier(**SMALL, pyramid=(2, 4)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.image_logits(network.signed_map(image(32, 32)))
    assert logits.dtype == torch.float32
    assert bool(network(image(1, 1)).isfinite().all())


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`attention_stages` among 4, 5, 6, 7"):
        resnet38_classifier(**SMALL, attention_stages=(3,))
    with pytest.raises(ValueError, match="`attention` to be one of"):
        resnet38_classifier(**SMALL, attention="full")
    with pytest.raises(ValueError, match="'class_map' without a pyramid"):
        resnet38_classifier(**SMALL, pyramid=None, cam_source="pyramid")
