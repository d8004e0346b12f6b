# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Grad-CAM as an inferer: MONAI's own at batch size 1 as the oracle, batch independence, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from monai.engines import SupervisedEvaluator
from monai.networks.nets import DenseNet121, resnet10
from monai.visualize import CAM, GradCAM, GradCAMpp
from torch import nn

from monai_wsss.cams import zscore_images
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.networks import CAMEncoder, ModalityNetworks
from monai_wsss.refinement import to_mask

VARIANTS = ("gradcam", "gradcam++")


class SmallClassifier(nn.Module):
    """conv-BN-ReLU (in place) - pool - conv-ReLU "last" - average - linear, gradients far above MONAI's epsilon."""

    def __init__(self, spatial_dims: int = 2, classes: int = 3, scale: float = 30.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.pool = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.first = nn.Sequential(conv(2, 6, 3, padding=1), norm(6), nn.ReLU(inplace=True))
        self.last = nn.Sequential(conv(6, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, classes)
        nn.init.normal_(self.fc.weight, std=scale)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.pool(self.first(image))).flatten(2).mean(2))


def images(batch: int = 3, spatial_dims: int = 2) -> torch.Tensor:
    size = (12, 8) if spatial_dims == 2 else (8, 6, 10)
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules())


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("variant", "oracle"), [("gradcam", GradCAM), ("gradcam++", GradCAMpp)])
def test_agrees_with_monai_at_batch_size_one(variant: str, oracle: type, spatial_dims: int) -> None:
    network = SmallClassifier(spatial_dims).eval().double()
    batch = images(2, spatial_dims).double()
    got = GradientCAMInferer("last", variant=variant)(batch, network)
    assert got.shape == (2, 3, *batch.shape[2:])
    reference = oracle(nn_module=network, target_layers="last", postprocessing=lambda v: v)
    for image in range(2):
        for k in range(3):
            expected = reference(batch[image : image + 1], class_idx=k)[0, 0]
            if variant == "gradcam++":
                expected = expected / network(batch[image : image + 1])[0, k].exp()
            # MONAI's Grad-CAM++ adds 1e-7 to a denominator.
            tolerance = 1e-10 if variant == "gradcam" else 1e-3
            torch.testing.assert_close(got[image, k], expected, rtol=tolerance, atol=tolerance)
    assert float(got.max()) > 0


def test_is_the_class_map_of_a_linear_head_the_right_way_up() -> None:
    network, batch = SmallClassifier().eval(), images(1)
    network.fc.bias.data.zero_()  # MONAI's CAM adds it to each pixel
    got = GradientCAMInferer(network.last)(batch, network)
    features = network.last(network.pool(network.first(batch)))
    oracle = CAM(nn_module=network, target_layers="last", fc_layers="fc", upsampler=lambda size: lambda v: v,
                 postprocessing=lambda v: v)  # fmt: skip
    for k in range(3):
        evidence = oracle(batch, class_idx=[k])
        expected = F.interpolate(F.relu(evidence) / features[0, 0].numel(), batch.shape[2:], mode="bilinear")
        torch.testing.assert_close(got[:, k : k + 1], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_images_one_by_one(variant: str, spatial_dims: int) -> None:
    # In train mode the batch norm would mix the images; batch size 8 equals an axis, 1 is the reference.
    network = SmallClassifier(spatial_dims).train()
    inferer = GradientCAMInferer("last", variant=variant)
    batch = images(8, spatial_dims)
    together = inferer(batch, network)
    alone = torch.cat([inferer(image[None], network) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    order = torch.randperm(8)
    torch.testing.assert_close(inferer(batch[order], network), together[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(around: Callable) -> None:
    network = SmallClassifier()
    inferer = GradientCAMInferer("last")
    expected = inferer(images(), network)
    with around():
        # An input made in inference mode could not enter a graph as it is.
        got = inferer(images(), network)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad


def test_as_the_inferer_of_an_evaluator() -> None:
    network = SmallClassifier()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": images(), "label": torch.zeros(3, 3)}],
        network=network,
        inferer=GradientCAMInferer("last"),
        decollate=False,
    )
    evaluator.run()
    torch.testing.assert_close(evaluator.state.output["pred"], GradientCAMInferer("last")(images(), network))


def test_leaves_nothing_behind() -> None:
    network = SmallClassifier().train()
    network.first[1].eval()
    for parameter in network.first.parameters():
        parameter.requires_grad_(False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    for _ in range(3):
        GradientCAMInferer("last")(images(), network)
    assert hooks(network) == 0
    assert [module.training for module in network.modules()] == modes
    assert bool((network.fc.weight.grad == 1).all())
    assert all(p.grad is None for name, p in network.named_parameters() if name != "fc.weight")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_leaves_nothing_behind_after_an_error() -> None:
    network = SmallClassifier().train()
    with pytest.raises(RuntimeError):
        GradientCAMInferer("last")(torch.zeros(1, 5, 8, 8), network)
    with pytest.raises(ValueError, match=r"target layer to give \(B, F, \*S\), got \(3, 3\): choose another"):
        GradientCAMInferer("fc")(images(), network)
    assert hooks(network) == 0
    assert network.training
    assert network.last[0].training


def test_frozen_networks_have_maps_too() -> None:
    network = SmallClassifier()
    expected = GradientCAMInferer("last")(images(), network)
    network.requires_grad_(False)
    torch.testing.assert_close(GradientCAMInferer("last")(images(), network), expected)


def test_layer_before_an_in_place_activation() -> None:
    # The ReLU that follows overwrites its input: the activations must be those before it.
    network = SmallClassifier().eval()
    got = GradientCAMInferer("last.0")(images(1), network)
    features = network.last[0](network.pool(network.first(images(1)))).detach().requires_grad_()
    logits = network.fc(F.relu(features).flatten(2).mean(2))
    (gradients,) = torch.autograd.grad(logits[0, 1], features)
    expected = F.relu((gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True))
    expected = F.interpolate(expected, (12, 8), mode="bilinear")
    torch.testing.assert_close(got[:, 1:2], expected.detach())


class MapNetwork(nn.Module):
    """A network that gives maps at the input's size, as those of this package do."""

    pooling = "max"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.head(self.features(image)), image.shape[2:], mode="bilinear")


@pytest.mark.parametrize("pooling", ["max", "average", "topk", "lse"])
def test_networks_that_give_maps_are_pooled_as_trained(pooling: str) -> None:
    network = MapNetwork()
    network.pooling, network.topk_share, network.lse_sharpness = pooling, 0.2, 3.0
    got = GradientCAMInferer("features")(images(2), network)
    features = network.features(images(2)).detach().requires_grad_()
    flat = F.interpolate(network.head(features), (12, 8), mode="bilinear").flatten(2)
    logits = {
        "max": flat.amax(2),
        "average": flat.mean(2),
        "topk": flat.sort(2).values[..., -19:].mean(2),
        "lse": (flat * 3).exp().mean(2).log() / 3,
    }[pooling]
    (gradients,) = torch.autograd.grad(logits[:, 1].sum(), features)
    expected = F.relu((gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True))
    torch.testing.assert_close(got[:, 1:2], F.interpolate(expected, (12, 8), mode="bilinear").detach())


def test_gate_zeroes_classes_that_are_not_predicted() -> None:
    network, batch = SmallClassifier().eval(), images(6)
    present = network(batch) > 0
    assert present.any()
    assert not present.all()
    maps = GradientCAMInferer("last")(batch, network)
    gated = GradientCAMInferer("last", gate="predicted")(batch, network)
    torch.testing.assert_close(gated, maps * present[..., None, None])
    network.presence_level = float(network(batch).max()) - 1e-3
    assert GradientCAMInferer("last", gate="predicted")(batch, network).flatten(2).any(2).sum() == 1
    mask = to_mask(gated, pooling="average")
    for image in range(6):
        assert all(bool(present[image, k]) or k + 1 not in mask[image] for k in range(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_touch_the_maps(dtype: torch.dtype) -> None:
    network = SmallClassifier(scale=1e-6)  # gradients that vanish in fp16
    expected = GradientCAMInferer("last")(images(), network)
    with torch.autocast("cpu", dtype=dtype):
        got = GradientCAMInferer("last")(images(), network)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert float(got.max()) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_monai_classifiers(variant: str) -> None:
    torch.manual_seed(0)
    dense = DenseNet121(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2))
    assert GradientCAMInferer("features", variant=variant)(torch.randn(2, 1, 32, 32), dense).shape == (2, 2, 32, 32)
    residual = resnet10(spatial_dims=3, n_input_channels=1, num_classes=1, widen_factor=0.125)
    maps = GradientCAMInferer("layer4", variant=variant)(torch.randn(2, 1, 32, 32, 24), residual)
    assert maps.shape == (2, 1, 32, 32, 24)
    assert bool(maps.isfinite().all())


def test_class_that_does_not_depend_on_the_layer_has_a_zero_map() -> None:
    class Partly(SmallClassifier):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([super().forward(image)[:, :1], image.flatten(1).mean(1, keepdim=True)], dim=1)

    maps = GradientCAMInferer("last")(images(), Partly())
    assert float(maps[:, 1].abs().max()) == 0


def test_bad_arguments() -> None:
    network = SmallClassifier()
    with pytest.raises(ValueError, match=r"`target_layer` to be one of pool, first, .*; got 'layer4'"):
        GradientCAMInferer("layer4")(images(), network)
    with pytest.raises(ValueError, match="`target_layer` to be a module of the network, got ReLU"):
        GradientCAMInferer(nn.ReLU())(images(), network)
    network.unused = nn.ReLU()
    with pytest.raises(ValueError, match="'unused' was not called"):
        GradientCAMInferer("unused")(images(), network)
    with pytest.raises(ValueError, match=r"`inputs` of shape \(B, C, \*S\)"):
        GradientCAMInferer("last")(torch.zeros(8, 8), network)
    with pytest.raises(ValueError, match=r"attribute `pooling`; got \(3, 8, 6, 4\)"):
        GradientCAMInferer("0")(images(), nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1)))
    with pytest.raises(ValueError, match="`variant` to be one of"):
        GradientCAMInferer("last", variant="cam")
    with pytest.raises(ValueError, match="`gate` to be one of none, predicted"):
        GradientCAMInferer("last", gate="given")


@pytest.mark.parametrize("standardize", [False, True])
def test_each_modality_is_explained_by_its_own_network(standardize: bool) -> None:
    torch.manual_seed(0)
    members = [CAMEncoder.tiny() for _ in range(3)]
    network = ModalityNetworks(members, ("T1", "T1c", "FLAIR"), present=("FLAIR", "T1"), standardize=standardize)
    image = torch.rand(2, 2, 16, 16)
    cam = GradientCAMInferer("encoder", variant="gradcam++", gate="none")
    seen = zscore_images(image) if standardize else image
    expected = torch.cat([cam(seen[:, 1:], members[0]), cam(seen[:, :1], members[2])], dim=1)
    torch.testing.assert_close(cam(image, network), expected)
