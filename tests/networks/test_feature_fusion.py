# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Fused features against their equations in double precision; any encoder, any size, 2D and 3D."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import EfficientNetBNFeatures, ResNetFeatures
from torch import nn

from monai_wsss.networks import (
    AttentionPyramid,
    ConvPyramid,
    EfficientNetLite,
    EncoderLevel,
    FusedFeatures,
    FusedSegmenter,
    MixTransformer,
    TwoBranchNetwork,
    fused_cam_network,
    fused_gland_classifier,
)


def random_norms(module: nn.Module) -> None:
    """Give norms values that a forgotten or misplaced norm would show."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):  # torch has no public base of its batch norms
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                getattr(part, name).data.uniform_(low, low + 1)


def resize_axis(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Interpolate linearly between half-pixel centers, constant beyond the outer ones."""
    old = values.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, old - 1)
    shape = [-1 if n == axis else 1 for n in range(values.ndim)]
    share = (at - low).reshape(shape)
    return np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share


def normalized(values: np.ndarray, norm: nn.Module) -> np.ndarray:
    """Apply a batch norm in evaluation."""
    weight, bias, mean, var = (
        getattr(norm, name).detach().numpy().reshape(1, -1, *[1] * (values.ndim - 2))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (values - mean) / np.sqrt(var + norm.eps) * weight + bias


@pytest.mark.parametrize(
    ("encoder", "dims", "size", "stride", "expected"),
    [
        (lambda: ConvPyramid.tiny(2, 3), 2, (19, 22), 4, (4, 5)),  # the encoder's own rounding down
        (lambda: ConvPyramid.tiny(2, 3), 2, (19, 22), 3, (7, 8)),  # no map of that stride: rounded up
        (lambda: ConvPyramid.tiny(3, 3), 3, (8, 9, 11), 2, (4, 4, 5)),
        (lambda: EfficientNetLite.tiny(2, 3), 2, (37, 40), 4, (10, 10)),
    ],
)
def test_fusion_follows_its_equations_in_double_precision(encoder, dims, size, stride, expected):
    torch.manual_seed(0)
    features = FusedFeatures(encoder(), width=5, stride=stride).double().eval()
    random_norms(features)
    image = torch.rand((2, 3, *size), dtype=torch.float64)
    with torch.no_grad():
        maps = [each.numpy() for each in features.encoder(image)]
        result = features(image)
    assert result.shape == (2, 5, *expected)
    total = np.zeros(result.shape)
    for lateral, level in zip(features.laterals, maps, strict=True):
        conv, norm = lateral
        assert conv.bias is None
        weight = conv.weight.detach().numpy().reshape(5, -1)
        projected = normalized(np.einsum("of,bf...->bo...", weight, level), norm)
        for axis, side in enumerate(expected):
            projected = resize_axis(projected, axis + 2, side)
        total += projected
    conv = nn.functional.conv2d if dims == 2 else nn.functional.conv3d
    fused = conv(torch.from_numpy(np.maximum(total, 0)), features.fuse.conv.weight, padding=1).detach().numpy()
    assert features.fuse.conv.bias is None
    np.testing.assert_allclose(result.numpy(), np.maximum(normalized(fused, features.fuse.adn.N), 0), atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(29, 50), st.integers(29, 50)),
    stride=st.sampled_from([1, 2, 3, 4, 8, 16]),
    kind=st.sampled_from([ConvPyramid, MixTransformer, EfficientNetLite]),
)
def test_any_size_and_stride(size, stride, kind):
    encoder = kind.tiny(2, 1).eval()
    features = FusedFeatures(encoder, width=4, stride=stride).eval()
    image = torch.rand(1, 1, *size)
    rounded = {s: tuple(each.shape[2:]) for s, each in zip(encoder.feature_strides, encoder(image), strict=True)}
    assert features(image).shape == (1, 4, *rounded.get(stride, tuple(-(-side // stride) for side in size)))
    network = fused_cam_network(encoder, 2, width=4, stride=stride).eval()
    segmenter = FusedSegmenter(encoder, 3, width=4, stride=stride).eval()
    assert network(image).shape == (1, 2, *size)
    assert segmenter(image).shape == (1, 3, *size)


class LikeTimm(nn.Module):
    """Two maps, told of as timm's networks with ``features_only=True`` do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.feature_info = SimpleNamespace(channels=lambda: [4, 6], reduction=lambda: [2, 4])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


def test_encoders_of_others():
    image = torch.rand(2, 3, 33, 36)
    timm = fused_cam_network(LikeTimm(), 2, width=8)
    assert timm.backbone.level_of_stride == 1
    assert timm.class_maps(image).shape == (2, 2, 9, 9)
    resnet = ResNetFeatures("resnet10", pretrained=False, spatial_dims=3, in_channels=1)
    network = fused_cam_network(resnet, feature_channels=(64, 64, 128, 256, 512), width=8)
    assert network.spatial_dims == 3
    assert network.class_maps(torch.rand(2, 1, 32, 30, 33)).shape == (2, 1, 8, 8, 9)
    efficientnet = EfficientNetBNFeatures("efficientnet-b0", pretrained=False)
    segmenter = FusedSegmenter(efficientnet, 2, feature_channels=(16, 24, 40, 112, 320), width=8)
    assert segmenter(image).shape == (2, 2, 33, 36)


def test_a_single_level_of_an_encoder():
    encoder = EfficientNetLite.tiny(2, 3).eval()
    image = torch.rand(1, 3, 40, 33)
    for level in (-1, 0, 2):
        part = EncoderLevel(encoder, level).eval()
        torch.testing.assert_close(part(image), encoder(image)[level])
        assert part.feature_channels == (encoder.feature_channels[level],)


@pytest.mark.parametrize("words", [{"width": 8, "stride": 2}, {"level": 1}])
@pytest.mark.parametrize("attention", ["none", "cc1", "cca"])
def test_the_gland_classifier_keeps_its_attention_and_pyramid(words, attention):
    network = fused_gland_classifier(ConvPyramid.tiny(2, 3), attention=attention, pyramid=(2, 4), **words)
    signed = network.signed_map(torch.rand(2, 3, 32, 32))
    assert signed.shape == (2, 2, 16, 16)
    assert network.image_logits(signed).shape == (2, 2)
    assert isinstance(network.attention, nn.Identity) == (attention == "none")
    plain = fused_gland_classifier(ConvPyramid.tiny(2, 3), attention=attention, pyramid=None, pooling="topk", **words)
    assert plain.pyramid is None
    assert plain.pooling == "topk"


def test_a_pyramid_with_attention_gives_the_encoder_s_maps_and_their_projections():
    torch.manual_seed(0)
    encoder = EfficientNetLite.tiny(2, 3).eval()
    pyramid = AttentionPyramid(encoder, heads=4).eval()
    image = torch.rand(2, 3, 40, 33)
    maps = encoder(image)
    features, pairs = pyramid.forward_with_queries(image)
    assert all(torch.equal(a, b) for a, b in zip(features, maps, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(pyramid(image), maps, strict=True))
    ((query, key),) = pairs
    tokens, channels = maps[-1][0, 0].numel(), maps[-1].shape[1]
    assert query.shape == key.shape == (2, 4, tokens, channels // 4)
    weight = pyramid.query.weight[:, :, 0, 0]
    expected = (maps[-1].flatten(2).mT @ weight.mT + pyramid.query.bias).unflatten(2, (4, -1)).transpose(1, 2)
    torch.testing.assert_close(query, expected)
    _, (logits,) = pyramid.forward_with_attention(image)
    torch.testing.assert_close(logits, query @ key.mT)
    _, (windowed,) = pyramid.forward_with_attention(image, radius=1)
    assert windowed.shape == (2, 4, 9, *maps[-1].shape[2:])


def test_levels_of_a_pyramid_are_chosen():
    encoder = EfficientNetLite("tiny", 3, levels=(1, 2, 3, 4, 5))
    pyramid = AttentionPyramid(encoder, 0, levels=(1, 2, 3, 4))
    assert pyramid.feature_channels == encoder.feature_channels[1:]
    assert pyramid.feature_strides == (4, 8, 16, 32)
    network = TwoBranchNetwork.build(pyramid, decoder_width=8)
    assert network.attn_proj is None
    with pytest.raises(ValueError, match="Expected an encoder with `heads` of 1 or more, got 0"):
        pyramid.forward_with_queries(torch.rand(1, 3, 32, 32))


class OneMap(nn.Conv2d):
    feature_channels = (4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FusedFeatures(nn.Conv2d(1, 1, 1)), "`feature_channels` or timm's `feature_info`, Conv2d has neither"),
        (lambda: FusedFeatures(ConvPyramid.tiny(), stride=0), "`width` and `stride` of at least 1, got 48 and 0"),
        (lambda: FusedSegmenter(ConvPyramid.tiny(), 0), "`out_channels` >= 1, got 0"),
        (lambda: FusedFeatures(OneMap(1, 4, 1))(torch.zeros(1, 1, 8, 8)), "Expected 2 maps, .* OneMap gives 1"),
        (lambda: EncoderLevel(ConvPyramid.tiny(), 4), "`level` among 0 to 3, got 4"),
        (lambda: AttentionPyramid(ConvPyramid.tiny(), 3), "`heads` that divide 16 channels, got 3"),
        (lambda: AttentionPyramid(ConvPyramid.tiny(), levels=(4,)), r"`levels` among 0 to 3, got \[4\]"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
