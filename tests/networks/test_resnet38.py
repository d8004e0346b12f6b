# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ResNet38 against its layers written out as functions; frozen parts, attention between stages, deployment."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import randomize_norms, with_and_without_neighbor
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_wsss.networks.resnet38 import PreActivationBlock, PreActivationBottleneck, ResNet38


def reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the published network in eval mode from its state dict, one stage after another."""
    conv_of = F.conv2d if x.ndim == 4 else F.conv3d
    column = (None, slice(None), *[None] * (x.ndim - 2))

    def conv(x, name, stride=1, dilation=1):
        kernel = state[f"{name}.weight"]
        return conv_of(x, kernel, stride=stride, dilation=dilation, padding=dilation * (kernel.shape[-1] // 2))

    def bn_relu(x, name):
        mean, var = state[f"{name}.running_mean"][column], state[f"{name}.running_var"][column]
        x = (x - mean) / (var + 1e-5).sqrt()
        return (x * state[f"{name}.weight"][column] + state[f"{name}.bias"][column]).clamp(min=0)

    def block(x, name, stride=1, first=1, dilation=1):
        a = bn_relu(x, f"{name}.bn_branch2a")
        shortcut = conv(a, f"{name}.conv_branch1", stride) if f"{name}.conv_branch1.weight" in state else x
        y = conv(a, f"{name}.conv_branch2a", stride, first)
        return shortcut + conv(bn_relu(y, f"{name}.bn_branch2b1"), f"{name}.conv_branch2b1", 1, dilation)

    def bottleneck(x, name):
        a = bn_relu(x, f"{name}.bn_branch2a")
        shortcut = conv(a, f"{name}.conv_branch1") if f"{name}.conv_branch1.weight" in state else x
        y = bn_relu(conv(a, f"{name}.conv_branch2a"), f"{name}.bn_branch2b1")
        y = bn_relu(conv(y, f"{name}.conv_branch2b1", 1, 4), f"{name}.bn_branch2b2")
        return shortcut + conv(y, f"{name}.conv_branch2b2")

    taps = {}
    x = conv(x, "conv1a")
    for name, stride in (("b2", 2), ("b2_1", 1), ("b2_2", 1), ("b3", 2), ("b3_1", 1), ("b3_2", 1), ("b4", 2)):
        x = block(x, name, stride)
    for n in range(1, 6):
        x = block(x, f"b4_{n}")
    taps["conv4"] = bn_relu(x, "b5.bn_branch2a")
    x = block(x, "b5", 1, 1, 2)
    x = block(block(x, "b5_1", 1, 2, 2), "b5_2", 1, 2, 2)
    taps["conv5"] = bn_relu(x, "b6.bn_branch2a")
    taps["conv6"] = bn_relu(bottleneck(bottleneck(x, "b6"), "b7"), "bn7")
    return taps


@pytest.mark.parametrize("size", [(32, 40), (33, 17), (9, 1), (8, 16, 11)])
def test_agrees_with_the_layers_written_out(size):
    torch.manual_seed(0)
    network = ResNet38(len(size), 2, width=2).double().eval()
    randomize_norms(network)
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = reference(network.state_dict(), image)
    taps = network.taps(image)
    assert taps.keys() == expected.keys()
    for name, tap in taps.items():
        torch.testing.assert_close(tap, expected[name], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(network(image), expected["conv6"], rtol=1e-9, atol=1e-10)


def test_published_size_and_names():
    with torch.device("meta"):
        network = ResNet38()
    assert sum(parameter.numel() for parameter in network.parameters()) == 105_070_912
    shapes = {name: tuple(entry.shape) for name, entry in network.state_dict().items()}
    assert len(shapes) == 228
    expected = {
        "conv1a.weight": (64, 3, 3, 3),
        "b2_2.conv_branch2b1.weight": (128, 128, 3, 3),
        "b4_5.bn_branch2a.running_var": (512,),
        "b5.conv_branch2b1.weight": (1024, 512, 3, 3),
        "b5_1.conv_branch2a.weight": (512, 1024, 3, 3),
        "b6.conv_branch2b2.weight": (2048, 1024, 1, 1),
        "b7.conv_branch1.weight": (4096, 2048, 1, 1),
        "bn7.bias": (4096,),
    }
    assert expected.items() <= shapes.items()
    assert network.stage_channels == {4: 512, 5: 1024, 6: 2048, 7: 4096}
    assert network.stride == 8


def test_small_network_has_the_size_it_says():
    network = ResNet38.small()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(0.59e6, rel=0.01)
    assert network.eval()(torch.rand(1, 3, 96, 96)).shape == (1, 96, 12, 12)
    assert network.stage_channels == {4: 96, 5: 96, 6: 96, 7: 96}


@pytest.mark.parametrize("strides", [(1, 2, 2, 1), (1, 2, 2, 2), (2, 2, 2, 2)])
def test_strides_and_multiples_shape_the_features(strides):
    network = ResNet38(width=2, blocks=(1, 2, 1, 2), multiples=(1, 2, 3, 3, 4, 6), strides=strides).eval()
    total = network.stride
    assert total == strides[0] * strides[1] * strides[2] * strides[3]
    assert network(torch.rand(1, 3, 40, 33)).shape == (1, 12, -(-40 // total), -(-33 // total))
    assert [name for name in dict(network.named_children()) if name.startswith("b5")] == ["b5", "b5_1"]


@pytest.mark.parametrize("mode", [True, False])
def test_paper_freezing_outlasts_train(mode):
    network = ResNet38.small(width=4, frozen="paper", attention={4: nn.Sequential(nn.Conv2d(24, 24, 1))}).train(mode)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert not any(module.training for module in norms)
    assert network.b6.dropout.training == mode
    before = {name: entry.clone() for name, entry in network.state_dict().items()}
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    for name, entry in network.state_dict().items():
        assert torch.equal(entry, before[name]), name
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == learning
    assert "b3.conv_branch2a.weight" in trained
    assert "attention4.0.weight" in trained
    assert not any(name.startswith(("conv1a", "b2")) or "bn" in name for name in trained)


def test_attention_is_not_frozen():
    network = ResNet38.small(width=4, frozen="paper").attend({5: nn.BatchNorm2d(24)})
    assert network.train().attention5.training
    assert all(parameter.requires_grad for parameter in network.attention5.parameters())


def test_without_freezing_every_parameter_gets_a_gradient():
    network = ResNet38.tiny(2, 1)
    network.train()(torch.rand(2, 1, 32, 32)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert network.b2.bn_branch2a.training


class Record(nn.Module):
    """A module that records its input and doubles it."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.seen = features.detach().clone()
        return 2 * features


def test_attention_stands_behind_the_last_block_of_its_stage():
    torch.manual_seed(0)
    plain = ResNet38(width=2).double().eval()
    randomize_norms(plain)
    image = torch.randn(1, 3, 24, 16, dtype=torch.float64)
    outputs = {}
    for name in ("b4_5", "b5_2", "b6", "relu"):
        getattr(plain, name).register_forward_hook(lambda m, i, o, name=name: outputs.setdefault(name, o.clone()))
    plain(image)
    for stage, name in ((4, "b4_5"), (5, "b5_2"), (6, "b6"), (7, "relu")):
        record = Record()
        network = ResNet38(width=2, attention={stage: record}).double().eval()
        assert network.state_dict().keys() == plain.state_dict().keys()
        network.load_state_dict(plain.state_dict())
        result = network(image)
        torch.testing.assert_close(record.seen, outputs[name])
        assert not torch.allclose(result, plain(image))
        torch.testing.assert_close(network.taps(image)["conv6"], result)
    torch.testing.assert_close(result, 2 * plain(image))


def test_attention_weights_have_their_own_names():
    network = ResNet38.tiny()
    plain = set(network.state_dict())
    network.attend({stage: nn.Conv2d(channels, channels, 1) for stage, channels in network.stage_channels.items()})
    added = {f"attention{stage}.{part}" for stage in (4, 5, 6, 7) for part in ("weight", "bias")}
    assert set(network.state_dict()) == plain | added
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 24, 2, 2)


@pytest.mark.parametrize("make", [lambda: PreActivationBlock(2, 3, 4, stride=2, dilation=2),
                                  lambda: PreActivationBottleneck(2, 4, dilation=2)])  # fmt: skip
def test_gradients_are_right_in_double(make):
    torch.manual_seed(0)
    block = make().double().eval()
    randomize_norms(block)
    features = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (features,), fast_mode=True)


def test_blocks_leave_their_input_as_it_is():
    """Check that the in-place ReLU changes the batch norm's result, never the input of the shortcut."""
    features = torch.randn(2, 4, 5, 5)
    before = features.clone()
    PreActivationBlock(4, 4, 4)(features)
    assert torch.equal(features, before)


def test_taps_in_training_update_the_statistics_once():
    network, image = ResNet38.tiny(), torch.rand(2, 3, 16, 16)
    network.train().taps(image)
    assert {int(module.num_batches_tracked) for module in network.modules() if isinstance(module, _BatchNorm)} == {1}


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 1))
def test_images_do_not_mix_and_sides_are_rounded_up(size, index):
    network = ResNet38.tiny().eval()
    image = torch.randn(2, 3, *size)
    features, alone = with_and_without_neighbor(network, image, index)
    assert features.shape == (2, 24, *(-(-n // 8) for n in size))
    assert bool((features >= 0).all())
    torch.testing.assert_close(alone[index], features[index])


@pytest.mark.parametrize("value", [0.0, 255.0])
def test_constant_images_and_one_pixel_give_finite_features(value):
    network = ResNet38.tiny()
    assert network.train()(torch.full((2, 3, 16, 16), value)).isfinite().all()
    assert network.eval()(torch.full((1, 3, 1, 1), value)).isfinite().all()
    frozen = ResNet38.small(width=4, frozen="paper").train()
    assert frozen(torch.full((1, 3, 1, 1), value)).isfinite().all()


@pytest.mark.parametrize("mode", [True, False])
def test_autocast_gives_finite_features(mode):
    network = ResNet38.tiny().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(torch.rand(2, 3, 32, 32) * 100)
    assert features.isfinite().all()
    features.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("size", [(32, 17), (1, 1), (16, 9, 12)])
def test_torchscript_agrees(size):
    network = ResNet38.tiny(len(size)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(torch.jit.load(buffer)(image), network(image))


@pytest.mark.parametrize("frozen", ["none", "paper"])
def test_torch_export_agrees(frozen):
    network = ResNet38.small(width=4, frozen=frozen, attention={6: nn.Conv2d(24, 24, 1)}).eval()
    image = torch.rand(2, 3, 33, 17)
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 3, 33, 17)
    torch.testing.assert_close(exported.module()(image), network(image))


def test_one_batch_is_learned():
    torch.manual_seed(0)
    network = nn.Sequential(ResNet38.tiny(2, 1), nn.Conv2d(24, 1, 1))
    image, label = torch.zeros(2, 1, 32, 32), torch.tensor([0.0, 1.0])
    image[1, :, 8:24, 8:24] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(network(image).mean((1, 2, 3)), label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet38(1, width=4), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: ResNet38(frozen="all"), "`frozen` to be one of none, paper, got 'all'"),
        (lambda: ResNet38(blocks=(3, 3, 6)), r"`blocks` of 4 values, got \(3, 3, 6\)"),
        (lambda: ResNet38(strides=(2, 2, 2)), r"`strides` of 4 values, got \(2, 2, 2\)"),
        (lambda: ResNet38(dropout=(0.5,)), r"`dropout` of 2 values"),
        (lambda: ResNet38(blocks=(3, 0, 6, 3)), "`blocks` and channels of at least 1"),
        (lambda: ResNet38(width=1, multiples=(1, 1, 1, 1, 4, 6)), "multiples of 4, got .* raise `width`"),
        (lambda: ResNet38.small(width=4, attention={3: nn.Identity()}), r"among 4, 5, 6, 7, got \[3\]"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
