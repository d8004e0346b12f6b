# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CAMUNet against the same network written with plain tensor operations, and what a deployable network must stand."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import randomize_norms, with_and_without_neighbor

from monai_wsss.cams import normalize_maps
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.networks import CAMUNet


def reference_maps(network: CAMUNet, image: torch.Tensor) -> torch.Tensor:
    """Compute the layout of the authors' network in eval mode, from the weights in the order of their registration."""
    weights = iter(
        [
            value
            for name, value in network.state_dict().items()
            if not name.startswith(("negative_", "filled", "reading_"))
        ]
    )
    axes = range(2, image.ndim)
    conv = F.conv2d if image.ndim == 4 else F.conv3d

    def block(x):
        kernel, bias, scale, shift, mean, variance, _ = (next(weights) for _ in range(7))
        column = (slice(None), *[None] * len(axes))
        x = (conv(x, kernel, bias, padding=1) - mean[column]) / (variance[column] + 1e-5).sqrt()
        return (x * scale[column] + shift[column]).clamp(min=0)

    def down(x):
        for axis in axes:
            x = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2)).amax(axis + 1)
        return block(block(x))

    def up(x, skip):
        for axis in axes:
            # Pixel i comes from i // 2; the pixel that pooling dropped from an odd side comes from the last one.
            x = x.index_select(axis, (torch.arange(skip.shape[axis]) // 2).clamp(max=x.shape[axis] - 1))
        return block(block(torch.cat([skip, x], 1)))

    x1 = block(block(image))
    x2 = down(x1)
    x4 = down(x2)
    x = up(up(up(down(x4), x4), x2), x1)
    maps = conv(block(x), next(weights))
    assert next(weights, None) is None
    return maps


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (9, 17), (8, 8, 16), (9, 11, 14)])
def test_agrees_with_plain_tensor_operations(size):
    torch.manual_seed(0)
    network = CAMUNet(len(size), 2, 3, width=3).double().eval()
    randomize_norms(network)
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    maps = network(image)
    torch.testing.assert_close(maps, reference_maps(network, image), rtol=1e-9, atol=1e-10)
    assert torch.equal(maps, network.class_maps(image))


def test_channels_are_those_of_the_authors_network():
    channels = {name: tuple(p.shape[:2]) for name, p in CAMUNet().named_parameters() if name.endswith("conv.weight")}
    assert list(channels.values()) == [
        (64, 1), (64, 64),  # stem
        (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (256, 256),  # down
        (128, 512), (128, 128), (64, 256), (64, 64), (64, 128), (64, 64),  # up
        (64, 64),  # features
    ]  # fmt: skip
    assert CAMUNet().head.bias is None


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weights_start_xavier_normal_and_norms_as_the_identity(spatial_dims):
    torch.manual_seed(0)
    network = CAMUNet(spatial_dims, width=16)
    weight = network.up1.convs.conv_0.conv.weight
    receptive = weight[0, 0].numel()
    expected = (2 / (receptive * (weight.shape[0] + weight.shape[1]))) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.03)
    norm = network.features.adn.N
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert network.pooling == "average"


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(8, 25), st.integers(8, 25)), st.integers(0, 1))
def test_images_do_not_mix_and_maps_have_the_input_size(size, index):
    network = CAMUNet.tiny().eval()
    image = torch.randn(2, 1, *size)
    maps, alone = with_and_without_neighbor(network, image, index)
    assert maps.shape == (2, 1, *size)
    torch.testing.assert_close(alone[index], maps[index])
    assert alone[1 - index].isnan().any()


@pytest.mark.parametrize("size", [(8, 9), (8, 8, 9)])
def test_gradients_are_right_in_double(size):
    torch.manual_seed(0)
    network = CAMUNet(len(size), 1, 2, width=2).double().eval()
    randomize_norms(network)
    image = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (image,), fast_mode=True)


@pytest.mark.parametrize("size", [(16, 16), (16, 8, 8)])
def test_every_parameter_gets_a_gradient_and_one_batch_is_learned(size):
    torch.manual_seed(0)
    network = CAMUNet.tiny(len(size))
    image, label = torch.zeros(2, 1, *size), torch.tensor([[0.0], [1.0]])
    image[1, :, 2:6, 2:6] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network.pool(network(image)), label)
        loss.backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dropout_takes_whole_channels_in_training_alone(spatial_dims):
    torch.manual_seed(0)
    network = CAMUNet(spatial_dims, width=16, dropout=0.5)
    seen = []
    network.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    network.train()(torch.randn(2, 1, *[16] * spatial_dims))
    before, after = (x.flatten(2) for x in seen[0])
    dropped = (after == 0).all(2) & (before > 0).any(2)
    assert dropped.any()
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped])
    network.eval()(torch.randn(2, 1, *[16] * spatial_dims))
    assert torch.equal(*seen[1])


def test_grad_cam_of_the_features_is_the_map_itself():
    """With average pooling and a linear head the gradient of a logit is the head's weight over the pixel count."""
    torch.manual_seed(0)
    network = CAMUNet.tiny(2, 1, 2).eval()
    randomize_norms(network)
    image = torch.randn(2, 1, 16, 20)
    expected = network(image).detach().relu() / (16 * 20)
    torch.testing.assert_close(GradientCAMInferer("features")(image, network), expected)
    assert normalize_maps(expected, "minmax").amax() > 0.9


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_images_give_finite_maps(spatial_dims, value):
    network = CAMUNet.tiny(spatial_dims)
    for mode in (True, False):
        assert network.train(mode)(torch.full((2, 1, *[16] * spatial_dims), value)).isfinite().all()


def test_autocast_is_close_to_float32():
    torch.manual_seed(0)
    network = CAMUNet.tiny().eval()
    image = torch.randn(2, 1, 17, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(image)
    torch.testing.assert_close(maps.float(), network(image), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("size", [(16, 24), (15, 9), (8, 16, 9)])
def test_torchscript_agrees_and_keeps_the_pooling(size):
    network = CAMUNet.tiny(len(size)).eval()
    network.set_healthy_level(-2.5, -1.0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    image = torch.rand(2, 1, *size)
    torch.testing.assert_close(scripted(image), network(image))
    assert scripted.pooling == "average"
    assert scripted.negative_reference.item() == -2.5


@pytest.mark.parametrize("size", [(15, 9), (8, 16, 9)])
def test_torch_export_agrees(size):
    network = CAMUNet.tiny(len(size)).eval()
    image = torch.rand(2, 1, *size)
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 1, *size)
    torch.testing.assert_close(exported.module()(image), network(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CAMUNet.tiny()(torch.rand(1, 1, 7, 16)), "sides of at least 8, the stride of the deepest level"),
        (lambda: CAMUNet.tiny(3)(torch.rand(1, 1, 16, 16, 4)), "sides of at least 8"),
        (lambda: CAMUNet(spatial_dims=1), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: CAMUNet(num_classes=0), "`num_classes` >= 1"),
        (lambda: CAMUNet(pooling="median"), "`pooling` to be one of average, max, topk, lse, got 'median'"),
        (lambda: CAMUNet(dropout=1.5), "between 0 and 1, but got 1.5"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
