# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Convolutional pyramid: its levels, the logits of its projections, every size, deployment."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import with_and_without_neighbor

from monai_wsss.networks.conv_pyramid import ConvPyramid


@pytest.mark.parametrize("strides", [(1, 2, 2, 1), (2, 2, 2, 1), (1, 1, 1, 1), (2, 2, 2, 2), (4, 3, 1, 1)])
@pytest.mark.parametrize("size", [(65, 40), (33, 36, 40)])
def test_levels_have_the_strides_and_channels_said(strides, size):
    network = ConvPyramid(len(size), 2, width=4, strides=strides).eval()
    stride = 1
    for step, channels, part in zip(strides, network.feature_channels, network(torch.rand(1, 2, *size)), strict=True):
        stride *= step
        # Pooling level after level rounds down as one division does.
        assert part.shape == (1, channels, *(n // stride for n in size))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_logits_are_products_of_the_projections(spatial_dims):
    torch.manual_seed(0)
    network = ConvPyramid.tiny(spatial_dims).double().eval()
    image = torch.randn(2, 1, *[16, 12, 8][:spatial_dims], dtype=torch.float64)
    features, (logits,) = network.forward_with_attention(image)
    for got, expected in zip(features, network(image), strict=True):
        assert torch.equal(got, expected)
    query, key = network.query(features[3]).flatten(2), network.key(features[3]).flatten(2)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        torch.testing.assert_close(logits[:, head], torch.einsum("bci,bcj->bij", query[:, part], key[:, part]))
    _, (window,) = network.forward_with_attention(image, radius=1)
    size = features[3].shape[2:]
    diagonal = logits.diagonal(dim1=2, dim2=3).unflatten(2, size)
    torch.testing.assert_close(window[:, :, 3**spatial_dims // 2], diagonal)
    assert window.shape == (2, 2, 3**spatial_dims, *size)


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(4, 40), st.integers(4, 40)), st.integers(0, 1))
def test_images_do_not_mix(size, index):
    network = ConvPyramid.tiny().eval()
    image = torch.randn(2, 1, *size)
    features, alone = with_and_without_neighbor(network, image, index)
    for got, expected in zip(alone, features, strict=True):
        torch.testing.assert_close(got[index], expected[index])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_parameter_gets_a_gradient(spatial_dims):
    network = ConvPyramid.tiny(spatial_dims, 2)
    features, logits = network.forward_with_attention(torch.rand(2, 2, *[9] * spatial_dims))
    sum(part.square().sum() for part in features + logits).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_without_heads_there_are_no_projections():
    network = ConvPyramid(width=4, attention_heads=0)
    assert not any(name.startswith(("query", "key")) for name in network.state_dict())
    with pytest.raises(ValueError, match="`attention_heads` of 1 or more, got 0"):
        network.forward_with_attention(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("mode", [True, False])
def test_constant_images_and_autocast_give_finite_features(mode):
    network = ConvPyramid.tiny().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = network.forward_with_attention(torch.full((2, 1, 8, 8), 255.0))
    assert all(part.isfinite().all() for part in features + logits)


@pytest.mark.parametrize("size", [(33, 20), (9, 12, 7)])
def test_torchscript_and_export_agree(size):
    network = ConvPyramid.tiny(len(size)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    image = torch.rand(2, 1, *size)
    expected = network(image)
    for deployed in (torch.jit.load(buffer), torch.export.export(network, (image,)).module()):
        for got, part in zip(deployed(image), expected, strict=True):
            torch.testing.assert_close(got, part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvPyramid(4), "`spatial_dims` to be 2 or 3, got 4"),
        (lambda: ConvPyramid(strides=(2, 2)), r"`strides` of four levels, each 1 or more, got \(2, 2\)"),
        (lambda: ConvPyramid(width=5), "`attention_heads` that divide 20 channels, got 8"),
        (lambda: ConvPyramid(attention_heads=-1), "`attention_heads` that divide 64 channels, got -1"),
        (lambda: ConvPyramid.tiny()(torch.rand(1, 1, 3, 8)), "sides of at least the stride 4"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
