# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ResNeSt: split attention against loops, sizes of the public networks, strides and dilation, deployment."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import randomize_norms

from monai_wsss.networks.resnest import ResNeSt, ResNeStBottleneck, SplitAttentionConv


def reference_split_attention(module: SplitAttentionConv, x: torch.Tensor, radix: int, cardinality: int):
    """Compute arXiv:2004.08955, Section 3.1, per channel: weights of group k and branch r from exponentials."""
    branches = F.relu(module.bn0(module.conv(x)))
    channels = branches.shape[1] // radix
    each = [branches[:, r * channels : (r + 1) * channels] for r in range(radix)]
    gate = sum(each).flatten(2).mean(2)[(..., *[None] * (x.ndim - 2))]
    logits = module.fc2(F.relu(module.bn1(module.fc1(gate)))).flatten(1)
    result = torch.zeros_like(each[0])
    per_group = channels // cardinality
    for k in range(cardinality):
        for c in range(per_group):
            # fc2 is grouped: group k's outputs are its branches, one after another.
            z = [logits[:, (k * radix + r) * per_group + c] for r in range(radix)]
            for r in range(radix):
                others = 1 + z[r].exp() if radix == 1 else sum(other.exp() for other in z)
                weight = z[r].exp() / others
                channel = k * per_group + c
                result[:, channel] += weight[(..., *[None] * (x.ndim - 2))] * each[r][:, channel]
    return result


@pytest.mark.parametrize(("radix", "cardinality"), [(1, 1), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (3, 4, 2)])
def test_split_attention_agrees_with_loops(radix, cardinality, size):
    torch.manual_seed(0)
    channels = radix * cardinality * 2
    module = SplitAttentionConv(channels, channels, spatial_dims=len(size), radix=radix, cardinality=cardinality)
    module = module.double().eval()
    randomize_norms(module)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    expected = reference_split_attention(module, x, radix, cardinality)
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-10)


def test_split_attention_gradients_are_right_in_double():
    torch.manual_seed(0)
    module = SplitAttentionConv(2, 2).double().eval()
    randomize_norms(module)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


@pytest.mark.parametrize(
    ("depth", "parameters", "blocks"),
    [(50, 27_483_240, (3, 4, 6, 3)), (101, 48_275_016, (3, 4, 23, 3)), (200, 70_201_544, (3, 24, 36, 3))],
)
def test_published_sizes(depth, parameters, blocks):
    with torch.device("meta"):
        network = ResNeSt(depth)
    classifier = 1000 * 2048 + 1000
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters - classifier
    assert tuple(len(getattr(network, f"layer{n}")) for n in range(1, 5)) == blocks
    assert network.stage_channels == (256, 512, 1024, 2048)


@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("size", [(64, 48), (37, 33), (64, 33, 40)])
def test_strides_of_the_four_maps(output_stride, size):
    network = ResNeSt(
        spatial_dims=len(size), in_channels=1, output_stride=output_stride, width=4, blocks=(1, 2, 1, 1)
    ).eval()
    maps = network(torch.rand(1, 1, *size))
    for features, stride, channels in zip(maps, (4, 8, min(16, output_stride), output_stride), (16, 32, 64, 128),
                                          strict=True):  # fmt: skip
        assert features.shape == (1, channels, *(math.ceil(n / stride) for n in size))


def test_dilation_follows_the_lost_strides():
    """Check that a layer without its stride dilates its first block as the layer before, the others twice as much."""
    network = ResNeSt(width=4, blocks=(1, 1, 3, 2))
    found = [[block.conv2.conv.dilation[0] for block in getattr(network, f"layer{n}")] for n in range(1, 5)]
    assert found == [[1], [1], [1, 2, 2], [2, 4]]
    strided = ResNeSt(width=4, blocks=(1, 1, 3, 2), output_stride=32)
    assert {block.conv2.conv.dilation[0] for n in (3, 4) for block in getattr(strided, f"layer{n}")} == {1}
    assert strided.state_dict().keys() == network.state_dict().keys()


def test_shortcut_and_branch_average_over_the_same_pixels():
    """Compare with 3x3 averages that count the zeros around, and 2x2 averages in the shortcut that do not."""
    torch.manual_seed(0)
    block = ResNeStBottleneck(4, 2, stride=2, pool=True, project=True).double().eval()
    randomize_norms(block)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    y = block.conv2(F.relu(block.bn1(block.conv1(x))))
    padded = F.pad(y, (1, 1, 1, 1))
    y = torch.stack([padded[:, :, i : i + 5 : 2, j : j + 6 : 2] for i in range(3) for j in range(3)]).sum(0) / 9
    count = F.pad(torch.ones_like(x), (0, 0, 0, 1))
    x = F.pad(x, (0, 0, 0, 1))
    shrunk = sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    shrunk = shrunk / sum(count[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    shortcut = block.downsample[2](block.downsample[1](shrunk))
    expected = F.relu(block.bn3(block.conv3(y)) + shortcut)
    torch.testing.assert_close(block(x[:, :, :5]), expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([8, 32]), st.integers(0, 1))
def test_images_do_not_mix_and_sides_are_rounded_up(size, output_stride, index):
    network = ResNeSt(output_stride=output_stride, width=4, blocks=(1, 1, 1, 1)).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = network(image)[-1]
        image[1 - index] = torch.nan
        alone = network(image)[-1]
    assert features.shape == (2, 128, *(math.ceil(n / output_stride) for n in size))
    torch.testing.assert_close(alone[index], features[index])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_gets_a_gradient_also_from_one_image(spatial_dims, batch):
    network = ResNeSt.tiny(spatial_dims, 1)
    sum(part.square().sum() for part in network(torch.rand(batch, 1, *[17] * spatial_dims))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("value", [0.0, 255.0])
def test_constant_images_and_one_pixel_give_finite_features(value):
    network = ResNeSt.tiny()
    assert network.train()(torch.full((2, 3, 16, 16), value))[-1].isfinite().all()
    assert network.eval()(torch.full((1, 3, 1, 1), value))[-1].isfinite().all()


@pytest.mark.parametrize("mode", [True, False])
def test_autocast_gives_finite_features(mode):
    network = ResNeSt.tiny().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(torch.rand(2, 3, 32, 32) * 100)[-1]
    assert features.isfinite().all()


@pytest.mark.parametrize("size", [(33, 20), (1, 1), (16, 9, 12)])
def test_torchscript_agrees(size):
    network = ResNeSt.tiny(len(size)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(torch.jit.load(buffer)(image), network(image))


def test_torch_export_agrees():
    network = ResNeSt.tiny().eval()
    image = torch.rand(2, 3, 33, 20)
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 3, 33, 20)
    torch.testing.assert_close(exported.module()(image), network(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNeSt(34), "`depth` to be 50, 101 or 200, got 34"),
        (lambda: ResNeSt(output_stride=16), "`output_stride` to be 8 or 32, got 16"),
        (lambda: ResNeSt(spatial_dims=1), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: ResNeSt(blocks=(1, 1, 0, 1)), r"`blocks` of four layers, at least 1 each, got \(1, 1, 0, 1\)"),
        (lambda: ResNeSt.tiny(3)(torch.rand(1, 3, 16, 16, 7)), "volumes with sides of at least the stride 8"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
