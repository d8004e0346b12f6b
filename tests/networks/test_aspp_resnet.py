# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ASPPResNet: the pyramid against zero-stuffed kernels, the backbone against MONAI's ResNet-50, weights from files."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import ResNetFeatures
from network_checks import randomize_norms, with_and_without_neighbor

from monai_wsss._checks import DataError
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.networks import ASPPResNet, AtrousSpatialPyramid


def reference_pyramid(
    pyramid: AtrousSpatialPyramid, features: torch.Tensor, dilations: tuple[int, ...]
) -> torch.Tensor:
    """Write dilation as a convolution with zeros put between the taps; weights by the order of registration."""
    weights = iter(pyramid.state_dict().values())
    axes = tuple(range(2, features.ndim))
    conv = F.conv2d if features.ndim == 4 else F.conv3d

    def block(x, dilation=1):
        kernel, scale, shift, mean, variance, _ = (next(weights) for _ in range(6))
        if kernel.shape[-1] == 3:
            stuffed = kernel.new_zeros(*kernel.shape[:2], *[2 * dilation + 1] * len(axes))
            stuffed[(..., *[slice(None, None, dilation)] * len(axes))] = kernel
            kernel = stuffed
        column = (slice(None), *[None] * len(axes))
        x = (conv(x, kernel, padding=kernel.shape[-1] // 2) - mean[column]) / (variance[column] + 1e-5).sqrt()
        return (x * scale[column] + shift[column]).clamp(min=0)

    parts = [block(features), *(block(features, dilation) for dilation in dilations)]
    parts.append(block(features.mean(axes, keepdim=True)) * torch.ones_like(parts[0]))
    return block(torch.cat(parts, 1))


@pytest.mark.parametrize("size", [(12, 9), (40, 38), (5, 6, 7)])
@pytest.mark.parametrize("dilations", [(6, 12, 18), (2, 3)])
def test_pyramid_agrees_with_zero_stuffed_kernels(size, dilations):
    torch.manual_seed(0)
    pyramid = AtrousSpatialPyramid(len(size), 3, 4, dilations).double().eval()
    randomize_norms(pyramid)
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = reference_pyramid(pyramid, features, dilations)
    torch.testing.assert_close(pyramid(features), expected, rtol=1e-9, atol=1e-10)


def test_pyramid_gradients_are_right_in_double():
    torch.manual_seed(0)
    pyramid = AtrousSpatialPyramid(2, 2, 2, (1, 2)).double()
    features = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pyramid.eval(), (features,), fast_mode=True)
    # One image in training: the image branch, which would have no statistics, is differentiable too.
    assert torch.autograd.gradcheck(pyramid.train(), (features[:1].detach().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_one_image_is_trained_with_the_running_statistics_of_its_mean(spatial_dims):
    torch.manual_seed(0)
    pyramid = AtrousSpatialPyramid(spatial_dims, 3, 4)
    randomize_norms(pyramid)
    features = torch.randn(2, 3, *[5] * spatial_dims)
    before = pyramid.image_norm.running_mean.clone()
    # The branch of the image mean alone.
    training = pyramid.train()._image_level(features[:1])
    assert torch.equal(pyramid.image_norm.running_mean, before)
    torch.testing.assert_close(training, pyramid.eval()._image_level(features[:1]))
    pyramid.train()(features)
    assert not torch.equal(pyramid.image_norm.running_mean, before)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_maps_have_the_input_size_in_train_and_eval(spatial_dims, output_stride):
    network = ASPPResNet(spatial_dims, 2, 3, width=2, blocks=(1, 1, 2), output_stride=output_stride)
    image = torch.rand(2, 2, *(48, 37, 33)[:spatial_dims])
    for mode in (True, False):
        maps = network.train(mode)(image)
        assert maps.shape == (2, 3, *image.shape[2:])
        assert network.class_maps(image).shape[2:] == tuple(-(-n // output_stride) for n in image.shape[2:])
        assert network.pool(maps).shape == (2, 3)
    assert network.pooling == "average"


def test_corners_are_aligned():
    torch.manual_seed(0)
    network = ASPPResNet.tiny().eval()
    image = torch.randn(1, 1, 65, 33)
    torch.testing.assert_close(network(image)[..., ::16, ::16], network.class_maps(image))


@pytest.mark.parametrize("size", [(64, 48), (32, 16, 48)])
def test_dilated_stage_gives_the_strided_features_at_every_second_pixel(size):
    torch.manual_seed(0)
    strided = ASPPResNet(len(size), 1, 1, width=2, blocks=(1, 1, 3)).double().eval()
    randomize_norms(strided)
    dilated = ASPPResNet(len(size), 1, 1, width=2, blocks=(1, 1, 3), output_stride=8).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    every_second = (..., *[slice(None, None, 2)] * len(size))
    dense = dilated.backbone(image)
    assert dense.shape[2:] == tuple(n // 8 for n in size)
    torch.testing.assert_close(dense[every_second], strided.backbone(image))
    # Doubled dilations: the pyramid's atrous branches agree likewise, its image mean is over other pixels.
    for fine, coarse in zip(dilated.pyramid.branches, strided.pyramid.branches, strict=True):
        torch.testing.assert_close(fine(dense)[every_second], coarse(strided.backbone(image)))


def test_a_whole_resnet50_fills_the_backbone(tmp_path):
    """Load MONAI's ResNet-50 from a file: names of torchvision, with a fourth stage that is left out."""
    torch.manual_seed(0)
    donor = ResNetFeatures("resnet50", pretrained=False, spatial_dims=2, in_channels=3).eval()
    randomize_norms(donor)
    torch.save(donor.state_dict(), tmp_path / "resnet50.pt")
    network = ASPPResNet(in_channels=3).eval()
    assert network.load_backbone(tmp_path / "resnet50.pt") == []
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        stages = donor(image)
        torch.testing.assert_close(network.backbone(image), stages[-2])
    assert stages[-2].shape == (1, 1024, 4, 3)
    assert network.pyramid.fuse.conv.weight.shape == (256, 5 * 256, 1, 1)


def test_names_and_shapes_are_torchvisions():
    shapes = {name: tuple(value.shape) for name, value in ASPPResNet(in_channels=3).backbone.state_dict().items()}
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.bias": (256,),
        "layer2.3.conv3.weight": (512, 128, 1, 1),
        "layer3.5.bn3.weight": (1024,),
    }
    assert expected.items() <= shapes.items()
    assert len([name for name in shapes if "conv" in name or "downsample.0" in name]) == 1 + 13 * 3 + 3


def imagenet_like(in_channels: int = 3) -> dict[str, torch.Tensor]:
    """Give a state dict as torchvision's old files have it: without step counters, with a classifier at the end."""
    state = ASPPResNet.tiny(in_channels=in_channels).backbone.state_dict()
    state = {name: torch.randn_like(v) for name, v in state.items() if not name.endswith("num_batches_tracked")}
    return {**state, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": {f"module.{k}": s[k] for k in s}}])
def test_a_color_stem_is_left_out_and_named(tmp_path, caplog, wrap):
    state, path = imagenet_like(), tmp_path / "weights.pth"
    torch.save(wrap(state), path)
    network = ASPPResNet.tiny(in_channels=1)
    stem, head = network.backbone.conv1.weight.clone(), network.head.weight.clone()
    assert network.load_backbone(path) == ["conv1.weight"]
    assert "has 1 of another shape: conv1.weight (4, 3, 7, 7) for (4, 1, 7, 7)." in caplog.text
    assert torch.equal(network.backbone.conv1.weight, stem)
    assert torch.equal(network.head.weight, head)
    for name, value in network.backbone.state_dict().items():
        if name != "conv1.weight" and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No weights at .*check the path"),
        ({"features.0.weight": torch.zeros(4, 1, 7, 7)}, "Nothing in .* fits the network, which expects names such as"),
        ({"conv1.weight": torch.zeros(4, 1, 7, 7, 7)}, r"'conv1.weight' of shape \(4, 1, 7, 7\), while the file holds"),
    ],
)
def test_files_that_fit_nowhere_are_refused_and_change_nothing(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if content is not None:
        torch.save(content, path)
    network = ASPPResNet.tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=message):
        network.load_backbone(path)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(16, 70), st.integers(16, 70)), st.integers(0, 1))
def test_images_do_not_mix_and_maps_have_the_input_size(size, index):
    network = ASPPResNet.tiny().eval()
    image = torch.randn(2, 1, *size)
    maps, alone = with_and_without_neighbor(network, image, index)
    assert maps.shape == (2, 1, *size)
    torch.testing.assert_close(alone[index], maps[index])
    assert alone[1 - index].isnan().any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_parameter_gets_a_gradient_also_from_one_image(spatial_dims):
    network = ASPPResNet.tiny(spatial_dims, 1, 2)
    network(torch.rand(1, 1, *[33] * spatial_dims)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_one_batch_is_learned():
    torch.manual_seed(0)
    network = ASPPResNet.tiny()
    image, label = torch.zeros(2, 1, 48, 48), torch.tensor([[0.0], [1.0]])
    image[1, :, 8:24, 8:24] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network.pool(network(image)), label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_images_give_finite_maps(value):
    network = ASPPResNet.tiny()
    for mode in (True, False):
        assert network.train(mode)(torch.full((2, 1, 32, 32), value)).isfinite().all()


def test_grad_cam_takes_the_pyramid():
    network = ASPPResNet.tiny(2, 1, 2)
    assert GradientCAMInferer("pyramid")(torch.randn(2, 1, 32, 48), network).shape == (2, 2, 32, 48)


@pytest.mark.parametrize("mode", [True, False])
def test_autocast_gives_finite_maps(mode):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ASPPResNet.tiny().train(mode)(torch.rand(1, 1, 64, 64) * 100).isfinite().all()


@pytest.mark.parametrize("size", [(32, 48), (33, 17), (16, 32, 17)])
def test_torchscript_agrees(size):
    network = ASPPResNet.tiny(len(size)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    image = torch.rand(2, 1, *size)
    torch.testing.assert_close(scripted(image), network(image))
    assert scripted.pooling == "average"


@pytest.mark.parametrize("size", [(33, 17), (16, 32, 17)])
def test_torch_export_agrees(size):
    network = ASPPResNet.tiny(len(size)).eval()
    image = torch.rand(2, 1, *size)
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 1, *size)
    torch.testing.assert_close(exported.module()(image), network(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ASPPResNet(output_stride=32), "`output_stride` to be 8 or 16, got 32"),
        (lambda: ASPPResNet(spatial_dims=1), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: ASPPResNet(pooling="median"), "`pooling` to be one of average, max, topk, lse, got 'median'"),
        (lambda: ASPPResNet.tiny()(torch.rand(1, 1, 15, 64)), "at least the output stride 16"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
