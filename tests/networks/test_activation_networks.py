# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""All deployable activation networks: shapes in 2D and 3D, gradients, AMP, TorchScript, export, state."""

from __future__ import annotations

import io

import pytest
import torch
from monai.networks import copy_model_state
from monai.networks.nets import DenseNet121, ResNetFeatures, SEResNet50, UNet, resnet10
from monai.visualize import CAM
from torch import nn

from monai_wsss.networks import ActivationNetwork, CAMAdapter, CAMEncoder, CAMUNet, MapEnsemble, dense_features

NETWORKS = [CAMEncoder, CAMUNet, MapEnsemble, CAMAdapter]


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 1), (4, 3)])
def test_maps_have_the_input_size_in_train_and_eval(network_class, spatial_dims, in_channels, num_classes):
    network = network_class.tiny(spatial_dims, in_channels, num_classes)
    image = torch.rand(2, in_channels, *(16, 20, 12)[:spatial_dims])
    for mode in (True, False):
        maps = network.train(mode)(image)
        assert maps.shape == (2, num_classes, *image.shape[2:])
        assert network.pool(maps).shape == (2, num_classes)
    assert network.output_kind == "activation"
    assert network.groups == 1
    assert network.negative_reference.tolist() == network.negative_quantile.tolist() == [0.0] * num_classes
    assert network.filled.tolist() == [False] * num_classes


@pytest.mark.parametrize("network_class", NETWORKS)
def test_every_parameter_gets_a_gradient(network_class):
    network = network_class.tiny(2, 2, 2)
    network.member_maps(torch.rand(2, 2, 16, 16)).square().sum().backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torchscript_agrees_and_keeps_the_buffers(network_class, spatial_dims):
    network = network_class.tiny(spatial_dims, 1, 1).eval()
    network.set_healthy_level(-2.5, -1.0)
    image = torch.rand(1, 1, *(16, 12, 8)[:spatial_dims])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    torch.testing.assert_close(scripted(image), network(image))
    assert scripted.pooling == network.pooling
    assert (scripted.negative_reference.item(), scripted.filled.item()) == (-2.5, True)


@pytest.mark.parametrize("network_class", NETWORKS)
def test_torch_export_agrees(network_class):
    network = network_class.tiny().eval()
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), network(image))


@pytest.mark.parametrize("network_class", NETWORKS)
def test_autocast_gives_finite_maps(network_class):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network_class.tiny()(torch.rand(2, 1, 16, 16) * 100)
    assert maps.isfinite().all()


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_stride_is_the_ratio_of_input_to_class_map(stride):
    network = CAMEncoder(2, 1, 1, width=2, stride=stride)
    assert network.class_maps(torch.rand(1, 1, 32, 48)).shape[2:] == (32 // stride, 48 // stride)
    # Odd sides lose the last pixels to the pooling and come back by interpolation.
    assert network(torch.rand(1, 1, 33, 47)).shape[2:] == (33, 47)


def test_head_and_pooling_commute_with_monai_cam():
    """With average pooling the map is MONAI's CAM of a classifier with the same weights (B = 1, no inversion)."""

    class Classifier(nn.Module):
        def __init__(self, encoder: CAMEncoder) -> None:
            super().__init__()
            self.features = encoder.encoder
            self.fc = nn.Linear(encoder.head.in_channels, encoder.head.out_channels, bias=False)
            self.fc.weight.data = encoder.head.weight.data.flatten(1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.fc(self.features(image).mean((2, 3)))

    network = CAMEncoder(2, 1, 3, width=2, pooling="average").double().eval()
    nn.init.zeros_(network.head.bias)
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    classifier = Classifier(network).eval()
    oracle = CAM(classifier, "features", "fc", postprocessing=lambda maps: maps, upsampler=lambda size: nn.Identity())
    for k in range(3):
        torch.testing.assert_close(oracle(image, class_idx=[k])[0, 0], network.class_maps(image)[0, k])
    torch.testing.assert_close(classifier(image), network.class_maps(image).mean((2, 3)))


def test_ensemble_is_the_mean_of_independent_members():
    members = [CAMEncoder.tiny().eval() for _ in range(3)]
    ensemble = MapEnsemble(members).eval()
    image = torch.rand(2, 1, 16, 16)
    maps = torch.stack([member(image) for member in members])
    torch.testing.assert_close(ensemble(image), maps.mean(0))
    torch.testing.assert_close(ensemble.member_maps(image), maps)
    ensemble.member_maps(image)[1].sum().backward()
    assert members[1].head.weight.grad.any()
    assert not members[0].head.weight.grad.any()


def test_state_dict_is_flat_and_restores_the_references():
    network = MapEnsemble.tiny()
    network.set_healthy_level(-1.0, 0.5)
    other = MapEnsemble.tiny()
    other.load_state_dict(network.state_dict())
    assert (other.negative_reference.item(), other.negative_quantile.item(), other.filled.item()) == (-1.0, 0.5, True)
    assert all(torch.is_tensor(value) for value in network.state_dict().values())


def test_weights_from_before_the_buffer_filled_load_strictly_and_leave_no_nan():
    network = MapEnsemble.tiny(num_classes=2)
    network.set_healthy_level(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25]))
    older = {name: value for name, value in network.state_dict().items() if not name.endswith("filled")}
    for member in ("members.0.", "members.1."):  # nobody measured the levels of the members
        older |= {
            f"{member}{name}": torch.full((2,), torch.nan) for name in ("negative_reference", "negative_quantile")
        }
    other = MapEnsemble.tiny(num_classes=2)
    other.load_state_dict(older, strict=True)
    assert (other.negative_quantile.tolist(), other.filled.tolist()) == ([0.5, 0.25], [True, True])
    assert other.members[0].filled.tolist() == [False, False]
    assert all(bool(value.isfinite().all()) for value in other.state_dict().values())
    assert "filled" not in older  # what was given is not changed
    copied = MapEnsemble.tiny(num_classes=2)
    copy_model_state(copied, older)  # as monai.bundle.load does: over the entries of the new network
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in other.state_dict().items())


def test_healthy_levels_that_were_not_measured_are_marked_and_others_have_their_shape():
    network = CAMEncoder(2, 1, 3, width=2)
    network.set_healthy_level(torch.tensor([-1.0, torch.nan, -2.0]), torch.tensor([1.0, 2.0, torch.inf]))
    assert network.filled.tolist() == [True, False, False]
    assert network.negative_reference.tolist() == [-1.0, 0.0, 0.0]
    assert network.negative_quantile.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"levels of shape \(G\*K,\) = \(3,\), got \(2,\)"):
        network.set_healthy_level(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize(
    ("classifier", "channels"),
    [
        (resnet10(spatial_dims=2, n_input_channels=1, num_classes=2), 512),
        (DenseNet121(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2)), 16),
        (SEResNet50(spatial_dims=2, in_channels=1, num_classes=2, pretrained=False), 2048),
    ],
    ids=["resnet", "densenet", "seresnet"],
)
def test_any_monai_classifier_is_cut_before_its_pooling(classifier, channels):
    image = torch.rand(1, 1, 64, 64)
    backbone = dense_features(classifier).eval()
    assert CAMAdapter(backbone, channels, 2).eval()(image).shape == (1, 2, 64, 64)
    # What was cut off, applied to the features, gives the classifier's own logits.
    features = backbone(image)
    last = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features.mean((2, 3))), classifier.eval()(image))


def test_adapter_takes_the_last_of_several_maps():
    backbone = ResNetFeatures("resnet10", pretrained=False, spatial_dims=3, in_channels=1)
    assert CAMAdapter(backbone, 512, 1, spatial_dims=3)(torch.rand(1, 1, 64, 64, 32)).shape == (1, 1, 64, 64, 32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CAMEncoder(stride=3), "`stride` to be 2, 4 or 8, got 3"),
        (lambda: CAMEncoder(spatial_dims=1), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: CAMEncoder(num_classes=0), "`num_classes` >= 1"),
        (lambda: CAMEncoder(pooling="median"), "`pooling` to be one of average, max, topk, lse, got 'median'"),
        (lambda: CAMEncoder.tiny()(torch.rand(1, 1, 3, 16)), "sides of at least the stride 4"),
        (lambda: MapEnsemble([]), "at least one network"),
        (lambda: MapEnsemble([CAMEncoder(), CAMEncoder(pooling="average")]), "agree in pooling"),
        (lambda: CAMAdapter(resnet10(spatial_dims=2, n_input_channels=1), 400)(torch.rand(1, 1, 64, 64)), "dense_fe"),
        (lambda: dense_features(UNet(2, 1, 1, (4, 8), (2,))), "with a pooling child, got UNet"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_base_class_asks_for_its_maps():
    with pytest.raises(NotImplementedError, match="ActivationNetwork must give its class maps"):
        ActivationNetwork(2, 1)(torch.rand(1, 1, 8, 8))
