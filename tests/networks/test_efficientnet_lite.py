# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""EfficientNet-Lite: the public code's numbers, "SAME" padding by loops, dilation, channels, ranges, deployment.

``tests/vectors/efficientnet_lite.npz`` holds what the public code (efficientnet-lite-pytorch 0.1.0) gives in evaluation
mode for :func:`picture`: the logits, and the spatial mean of the last features, those behind its 1x1 head.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_checks import randomize_norms
from torch import nn

from monai_wsss.networks import EfficientNetLite, load_encoder_weights
from monai_wsss.networks.efficientnet_lite import InvertedBottleneck
from monai_wsss.networks.published_weights import find_published

VECTORS = Path(__file__).parents[1] / "vectors" / "efficientnet_lite.npz"


def picture(side: int) -> torch.Tensor:
    """Draw waves in three colors, whole numbers from 0 to 255: (1, 3, side, side)."""
    rows, columns = torch.arange(side).double()[:, None], torch.arange(side).double()[None]
    colors = [torch.sin((color + 2) * rows / 17) * torch.cos((color + 1) * columns / 23) for color in range(3)]
    return (127 + 100 * torch.stack(colors)).round().float()[None]


def classify(name: str, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the mean of the last features and the logits, by the parts of the file that the encoder leaves out."""
    encoder = EfficientNetLite(name, levels=(5,)).eval()
    load_encoder_weights(encoder, "imagenet")
    stored = torch.load(find_published(name), weights_only=True)
    with torch.no_grad():
        features = F.conv2d(encoder(image)[0], stored["_conv_head.weight"])
        norm = [stored[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        mean = F.relu6(F.batch_norm(features, *norm, eps=1e-3)).mean((2, 3))[0]
        return mean, stored["_fc.weight"] @ mean + stored["_fc.bias"]


@pytest.mark.parametrize("key", ["lite0_224", "lite0_260", "lite1_240", "lite2_260"])
def test_the_published_networks_agree_with_the_public_code(key):
    name, side = key.split("_")
    with np.load(VECTORS) as vectors:
        expected_mean, expected = torch.tensor(vectors[f"{key}_mean"]), torch.tensor(vectors[f"{key}_logits"])
    mean, logits = classify(name, picture(int(side)))
    torch.testing.assert_close(mean, expected_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def slow_convolution(image: np.ndarray, weight: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """Convolve each channel with TensorFlow's "SAME" padding, pixel by pixel, in float64."""
    channels, *sides = image.shape
    size = weight.shape[-1]
    reach = (size - 1) * dilation + 1
    outs = [math.ceil(side / stride) for side in sides]
    before = [max((out - 1) * stride + reach - side, 0) // 2 for out, side in zip(outs, sides, strict=True)]
    result = np.zeros((channels, *outs))
    for c, i, j in np.ndindex(*result.shape):
        for u, v in np.ndindex(size, size):
            row = i * stride - before[0] + u * dilation
            column = j * stride - before[1] + v * dilation
            if 0 <= row < sides[0] and 0 <= column < sides[1]:
                result[c, i, j] += weight[c, 0, u, v] * image[c, row, column]
    return result


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (4, 6), (7, 5), (8, 9)])
def test_padding_is_same_for_any_size(kernel, stride, dilation, size):
    torch.manual_seed(0)
    block = InvertedBottleneck(3, 3, kernel=kernel, stride=stride, dilation=dilation, expansion=1, added=False).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = slow_convolution(image[0].numpy(), block._depthwise_conv.weight.numpy(), stride, dilation)
        given = block._depthwise_conv(image)[0].numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-12, atol=1e-12)


def reference(state: dict[str, torch.Tensor], image: torch.Tensor, shortcuts: set[int]) -> list[torch.Tensor]:
    """Give the outputs of all blocks of a network of output stride 32, in float64, by the names of its weights."""

    def norm(features: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (features - mean) / (variance + 1e-3).sqrt() * weight + bias

    def convolve(features: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        sides, size = features.shape[2:], weight.shape[-1]
        whole = [max((math.ceil(side / stride) - 1) * stride + size - side, 0) for side in sides]
        padding = [part for both in reversed(whole) for part in (both // 2, both - both // 2)]
        groups = features.shape[1] // weight.shape[1]
        return F.conv2d(F.pad(features, padding), weight, stride=stride, groups=groups)

    features = norm(convolve(image, "_conv_stem", 2), "_bn0").clamp(0, 6)
    outputs, channels = [], [16, 24, 40, 80, 112, 192, 320]
    for index in range(16):
        name, inner = f"_blocks.{index}", features
        if index:
            inner = norm(convolve(inner, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        width = len(state[f"{name}._bn2.weight"])
        halved = width != features.shape[1] and width in (24, 40, 80, 192)
        inner = norm(convolve(inner, f"{name}._depthwise_conv", 2 if halved else 1), f"{name}._bn1").clamp(0, 6)
        inner = norm(convolve(inner, f"{name}._project_conv"), f"{name}._bn2")
        features = features + inner if index in shortcuts else inner
        assert features.shape[1] in channels
        outputs.append(features)
    return outputs


@pytest.mark.parametrize("size", [(33, 50), (64, 31)])
def test_lite0_agrees_with_a_second_writing(size):
    torch.manual_seed(0)
    network = EfficientNetLite("lite0", levels=(1, 2, 3, 4, 5), input_range="z_scores").double().eval()
    randomize_norms(network)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        given = network(image)
        outputs = reference(network.state_dict(), image / 2, {2, 4, 6, 7, 9, 10, 12, 13, 14})
    for features, expected in zip(given, [outputs[index] for index in (0, 2, 4, 10, 15)], strict=True):
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("lite0", (16, 24, 40, 112, 320), (1, 3, 5, 11, 16)),
        ("lite1", (16, 24, 40, 112, 320), (1, 4, 7, 15, 21)),
        ("lite2", (16, 24, 48, 120, 352), (1, 4, 7, 15, 21)),
    ],
)
def test_levels_are_those_of_the_published_networks(name, channels, blocks):
    for level in range(1, 6):
        network = EfficientNetLite(name, levels=(level,))
        assert network.feature_channels == (channels[level - 1],)
        assert network.feature_strides == (2**level,)
        assert len(network._blocks) == blocks[level - 1]
    network = EfficientNetLite(name)
    assert (network.feature_channels, network.feature_strides) == (channels[1:], (4, 8, 16, 32))
    assert (network.spatial_dims, network.in_channels, network.attention_channels) == (2, 3, 0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.1)}


@pytest.mark.parametrize("side", [1, 7, 32, 45, 66])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sides_are_rounded_up(side, output_stride):
    network = EfficientNetLite("tiny", levels=(1, 2, 3, 4, 5), output_stride=output_stride).eval()
    strides = tuple(min(2**level, output_stride) for level in range(1, 6))
    assert network.feature_strides == strides
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, side, 32))
    expected = []
    for stride in strides:
        rounded = side
        for _ in range(int(math.log2(stride))):
            rounded = math.ceil(rounded / 2)
        expected.append((rounded, 32 // stride))
    assert [tuple(features.shape[2:]) for features in maps] == expected
    assert tuple(features.shape[1] for features in maps) == network.feature_channels


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (96, 65)])
def test_dilation_gives_the_same_features_and_those_between(output_stride, size):
    """With the stride left out, the pixel that the strided kernel was centered on has its value."""
    torch.manual_seed(0)
    strided = EfficientNetLite("tiny", levels=(3, 4, 5), input_range="unit").double().eval()
    randomize_norms(strided)
    dense = EfficientNetLite("tiny", levels=(3, 4, 5), input_range="unit", output_stride=output_stride).double().eval()
    dense.load_state_dict(strided.state_dict())
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for few, many, stride in zip(strided(image), dense(image), (8, 16, 32), strict=True):
            for axis in (2, 3):
                # A kernel of stride 2 is centered on odd pixels of an even side and on even pixels of an odd one.
                start, step, side = 0, 1, math.ceil(size[axis - 2] / output_stride)
                for _ in range(int(math.log2(max(stride // output_stride, 1)))):
                    start, step, side = start + step * (1 - side % 2), 2 * step, math.ceil(side / 2)
                many = many.index_select(axis, torch.arange(start, many.shape[axis], step))
            torch.testing.assert_close(many, few, rtol=1e-10, atol=1e-10)


RANGES = {
    "pixels": lambda image: (image - 127) / 128,
    "unit": lambda image: (255 * image - 127) / 128,
    "z_scores": lambda image: 0.5 * image,
    (-1.0, 1.0): lambda image: (127.5 * (image + 1) - 127) / 128,
    (-127 / 128, 1.0): lambda image: image,
}


@pytest.mark.parametrize("given", RANGES, ids=str)
def test_the_range_of_the_input_is_normalized_inside(given):
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []
    network = EfficientNetLite("tiny", input_range=given).double().eval()
    network._conv_stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = 3 * torch.randn(1, 3, 8, 8, dtype=torch.float64)
    network(image)
    torch.testing.assert_close(seen[0], RANGES[given](image), rtol=1e-12, atol=1e-12)


def with_weights_of(network: EfficientNetLite, source: EfficientNetLite) -> EfficientNetLite:
    network.double().load_published(source.state_dict())
    return network.eval()


@pytest.mark.parametrize("stem", ["average", "learned"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_equal_channels_are_a_gray_image_of_three(stem, channels):
    torch.manual_seed(0)
    rgb = EfficientNetLite("tiny", input_range="unit").double().eval()
    randomize_norms(rgb)
    network = with_weights_of(EfficientNetLite("tiny", channels, input_range="unit", stem=stem), rgb)
    gray = torch.rand(2, 1, 33, 40, dtype=torch.float64)
    with torch.no_grad():
        for given, expected in zip(
            network(gray.expand(-1, channels, -1, -1)), rgb(gray.expand(-1, 3, -1, -1)), strict=True
        ):
            torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


def test_one_channel_has_the_sum_of_the_published_filters():
    rgb = EfficientNetLite.tiny()
    network = EfficientNetLite.tiny(in_channels=1)
    network.load_published(rgb.state_dict())
    torch.testing.assert_close(network._conv_stem.weight, rgb._conv_stem.weight.sum(1, keepdim=True))


def test_both_stems_begin_alike_and_the_learned_one_learns():
    torch.manual_seed(0)
    rgb = EfficientNetLite("tiny", input_range="unit").double()
    average, learned = (
        with_weights_of(EfficientNetLite("tiny", 4, input_range="unit", stem=stem), rgb)
        for stem in ("average", "learned")
    )
    image = torch.rand(2, 4, 32, 32, dtype=torch.float64)
    for one, other in zip(average(image), learned(image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    learned(image)[-1].square().sum().backward()
    assert learned.channel_mix.weight.grad.abs().min() > 0
    assert torch.equal(learned._conv_stem.weight, rgb._conv_stem.weight)
    # Color images need no stem of their own.
    assert EfficientNetLite("tiny", 3, stem="learned").channel_mix is None


def test_own_weights_of_other_channels_are_kept():
    source, network = (EfficientNetLite("tiny", 4, stem="learned") for _ in range(2))
    nn.init.normal_(source.channel_mix.weight)
    network.load_published(source.state_dict())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())


def test_gradients_are_right_in_double():
    torch.manual_seed(0)
    network = EfficientNetLite("tiny", levels=(1, 3), input_range="z_scores").double().eval()
    randomize_norms(network)
    image = torch.randn(1, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: tuple(network(given)), (image,), fast_mode=True)


@pytest.mark.filterwarnings("ignore")  # of torch's exporters, about themselves
@pytest.mark.parametrize(("channels", "stem"), [(3, "average"), (2, "average"), (2, "learned")])
def test_it_is_scripted_and_exported(channels, stem):
    network = EfficientNetLite("tiny", channels, output_stride=8, stem=stem).eval()
    scripted = torch.jit.script(network)
    for size in ((40, 33), (17, 64)):
        image = 255 * torch.rand(2, channels, *size)
        exported = torch.export.export(network, (image,)).module()
        for given in (scripted(image), exported(image)):
            for features, expected in zip(given, network(image), strict=True):
                torch.testing.assert_close(features, expected)


def test_it_runs_in_half_precision_and_keeps_channels_last():
    torch.manual_seed(0)
    network = EfficientNetLite.tiny().eval()
    image = torch.rand(2, 3, 48, 40)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(image.to(memory_format=torch.channels_last))
    for features, expected in zip(half, network(image), strict=True):
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert (features.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.01


def test_random_weights_keep_the_size_of_the_features():
    torch.manual_seed(0)
    network = EfficientNetLite("lite0").train()
    maps = network(255 * torch.rand(4, 3, 64, 64))
    assert all(0.1 < features.std() < 10 for features in maps)


REFUSED = [
    ({"name": "lite3"}, "Expected `name` to be one of lite0, lite1, lite2, tiny, got 'lite3'"),
    ({"spatial_dims": 3}, "got 3: the published weights are for images; volumes go through slice by slice, with"),
    ({"in_channels": 0}, "Expected `in_channels` of 1 or more, got 0"),
    ({"levels": ()}, "Expected `levels` of 1 to 5 in rising order, got ()"),
    ({"levels": (3, 2)}, "Expected `levels` of 1 to 5 in rising order, got (3, 2)"),
    ({"levels": (2, 2)}, "Expected `levels` of 1 to 5 in rising order, got (2, 2)"),
    ({"levels": (0, 1)}, "Expected `levels` of 1 to 5 in rising order, got (0, 1)"),
    ({"output_stride": 4}, "Expected `output_stride` to be 8, 16 or 32, got 4"),
    ({"input_range": "bytes"}, "Expected `input_range` to be one of pixels, z_scores, unit, got 'bytes'"),
    ({"input_range": (1, 0)}, "black being less, got (1, 0)"),
    ({"input_range": (0, 1, 2)}, "black being less, got (0, 1, 2)"),
    ({"input_range": (0, math.inf)}, "black being less, got (0, inf)"),
    ({"stem": "mean"}, "Expected `stem` to be one of average, learned, got 'mean'"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=str)
def test_wrong_settings_are_one_sentence(words, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        EfficientNetLite(**words)
    assert "\n" not in str(caught.value)
