# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One contract for all networks and their parts, by inventory: a new one that does not keep it fails here."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monai_wsss.networks
from monai_wsss._checks import DataError
from monai_wsss.methods import SegmentationNetwork
from monai_wsss.networks import (
    AllMLPDecoder,
    AtrousSpatialPyramid,
    AttentionAffinity,
    AverageBuffer,
    ClassHead,
    CommonalitySpecificityAttention,
    ContrastiveConvolution,
    LargeFOV,
    ModalityNetworks,
    ObjectPrior,
    PSPHead,
    SignPreservingFusion,
    SplitAttentionConv,
    record_reading,
    recorded_reading,
)
from monai_wsss.refinement import MaskRule

EVERY = {name: getattr(monai_wsss.networks, name) for name in monai_wsss.networks.__all__}
MODULES = {name: value for name, value in EVERY.items() if isinstance(value, type) and issubclass(value, nn.Module)}
BASES = {"ActivationNetwork"}
# With published weights for images; volumes go through them slice by slice.
IMAGES_ONLY = {"EfficientNetLite"}
Part = tuple[Callable[[int], nn.Module], Callable[[int], Any]]


def features(dims: int, channels: int = 4, side: int = 8) -> torch.Tensor:
    return torch.rand((2, channels, *(side,) * dims), generator=torch.Generator().manual_seed(0))


def tokens(dims: int) -> torch.Tensor:
    return torch.rand((2, 2, 16, 3), generator=torch.Generator().manual_seed(0))


# How a part is made, and what it gets, in 2D and 3D.
PARTS: dict[str, Part] = {
    "AllMLPDecoder": (
        lambda dims: AllMLPDecoder((4, 4, 4, 4), 3, spatial_dims=dims, width=4),
        lambda dims: [features(dims)] * 4,
    ),
    "AtrousSpatialPyramid": (lambda dims: AtrousSpatialPyramid(dims, 4, 4, (1, 2)), features),
    "AttentionAffinity": (lambda dims: AttentionAffinity(2), tokens),
    "AverageBuffer": (lambda dims: AverageBuffer(4, dims), features),
    "ClassHead": (lambda dims: ClassHead(4, 2, spatial_dims=dims), features),
    "CommonalitySpecificityAttention": (
        lambda dims: CommonalitySpecificityAttention(4, dims),
        lambda dims: (features(dims), features(dims)[0]),
    ),
    "ContrastiveConvolution": (lambda dims: ContrastiveConvolution(4, 4, dims), features),
    "LargeFOV": (
        lambda dims: LargeFOV(4, 3, spatial_dims=dims, width=4, dilation=2),
        lambda dims: [features(dims)] * 2,
    ),
    "ObjectPrior": (lambda dims: ObjectPrior(), features),
    "PSPHead": (lambda dims: PSPHead(4, 2, spatial_dims=dims, channels=4, bins=(1, 2)), features),
    "SignPreservingFusion": (
        lambda dims: SignPreservingFusion(2, spatial_dims=dims),
        lambda dims: (features(dims, 2), features(dims, 2)),
    ),
    "SplitAttentionConv": (lambda dims: SplitAttentionConv(4, 4, spatial_dims=dims), features),
}
NETWORKS = {name: value for name, value in MODULES.items() if hasattr(value, "tiny")}
DEPLOYABLE = {name: value for name, value in NETWORKS.items() if hasattr(value, "output_kind")}
DEPLOYABLE["SegmentationNetwork"] = SegmentationNetwork


def test_every_network_is_in_the_inventory():
    assert set(MODULES) == set(NETWORKS) | set(PARTS) | BASES
    assert len(DEPLOYABLE) >= 8


def run(module: nn.Module, name: str, given: Any) -> Any:
    """Call a part as its users do."""
    if name == "AttentionAffinity":
        assert isinstance(module, AttentionAffinity)
        return module.between([(given, given)], (4, 4))
    return module(*given) if isinstance(given, tuple) else module(given)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(PARTS))
def test_parts_give_finite_tensors_and_gradients(name, dims):
    torch.manual_seed(0)
    make, give = PARTS[name]
    module = make(dims)
    output = run(module, name, give(dims))
    assert output.isfinite().all()
    assert all(value.isfinite().all() for value in module.state_dict().values())
    if list(module.parameters()):
        output.square().mean().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def tiny_and_image(network: Any, dims: int, side: int = 32) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    made = network.tiny(dims, 3)
    return made, torch.rand((2, 3, *(side,) * dims), generator=torch.Generator().manual_seed(1))


def tensors_of(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [part for each in output for part in tensors_of(each)]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_tiny_networks_give_finite_tensors_in_training_and_evaluation(name, dims):
    if dims == 3 and name in IMAGES_ONLY:
        with pytest.raises(ValueError, match="slice by slice"):
            NETWORKS[name].tiny(dims, 3)
        return
    made, given = tiny_and_image(NETWORKS[name], dims, 32 if dims == 2 else 16)
    for training in (True, False):
        outputs = tensors_of(made.train(training)(given))
        assert all(output.isfinite().all() for output in outputs)
    assert all(value.isfinite().all() for value in made.state_dict().values()), "a federated mean would spread NaN"
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert any(parameter.grad is not None for parameter in made.parameters()) or not list(made.parameters())


UNFIT = {
    "an empty batch": (torch.zeros(0, 3, 16, 16), "at least one image, got an empty batch"),
    "no rows": (torch.zeros(2, 3, 0, 16), "with pixels along each axis, got"),
    "no channels": (torch.zeros(2, 0, 16, 16), "with pixels along each axis, got"),
    "other axes": (torch.zeros(3, 16), r"of shape \(B, C, \*S\), got"),
    "a volume": (torch.zeros(2, 3, 16, 16, 16), r"Expected `\w+` of .* (axes|spatial dimensions).* got"),
    "other channels": (torch.zeros(2, 5, 32, 32), r"of 3 (channels|classes).* got .*5"),
    "half precision": (torch.zeros(2, 3, 32, 32, dtype=torch.float16), "of the type of the network's weights, got "),
}


@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize("name", sorted(NETWORKS | DEPLOYABLE))
def test_images_that_do_not_fit_a_network_are_one_sentence(name, unfit):
    made, _ = tiny_and_image((NETWORKS | DEPLOYABLE)[name], 2)
    image, words = UNFIT[unfit]
    if unfit == "half precision" and name == "PyramidFusionPooling":  # widens its maps
        made.eval()(image)
        return
    with pytest.raises(ValueError, match=words):
        made.eval()(image)


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"AttentionAffinity"}))
@pytest.mark.parametrize("unfit", ["an empty batch", "no rows", "other axes"])
def test_features_that_do_not_fit_a_part_are_one_sentence(name, unfit):
    make, give = PARTS[name]
    given, (wrong, _) = give(2), UNFIT[unfit]
    given = (
        [wrong] * len(given) if isinstance(given, list) else (wrong, *given[1:]) if isinstance(given, tuple) else wrong
    )
    with pytest.raises(ValueError, match=r"Expected .*got"):
        make(2)(given) if not isinstance(given, tuple) else make(2)(*given)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_deployable_networks_keep_the_size_and_tell_their_rule(name, dims):
    made, image = tiny_and_image(DEPLOYABLE[name], dims, 32 if dims == 2 else 16)
    made.eval()
    with torch.no_grad():
        output = made(image)
    assert isinstance(output, torch.Tensor)
    assert output.shape[2:] == image.shape[2:]
    assert made.output_kind in ("activation", "segmentation")
    if made.output_kind == "activation":
        made.set_healthy_level(-1.0, 0.5)
    assert made.output_kind != "activation" or made.filled.all()
    mask = MaskRule.of(made)(output).mask
    assert mask.dtype == torch.uint8
    assert mask.shape == (2, 1, *image.shape[2:])


@pytest.mark.filterwarnings("ignore")  # of torch's exporters, about themselves
@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_deployable_networks_are_scripted_exported_and_reloaded(name):
    made, image = tiny_and_image(DEPLOYABLE[name], 2)
    made.eval()
    with torch.no_grad():
        expected = made(image)
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(made), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(image), expected)
        exported = torch.export.export(made, (image,)).module()
        torch.testing.assert_close(exported(image), expected)
        torch.manual_seed(1)
        again = DEPLOYABLE[name].tiny(2, 3).eval()
        again.load_state_dict(made.state_dict(), strict=True)
        torch.testing.assert_close(again(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_deployable_networks_run_in_half_precision_and_double(name):
    made, image = tiny_and_image(DEPLOYABLE[name], 2)
    made.eval()
    with torch.no_grad():
        expected = made(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = made(image)
        double = made.double()(image.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-4)
    assert half.isfinite().all()
    assert (half.float() - expected).abs().mean() < 0.1 * expected.abs().mean() + 0.05


@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_deployable_networks_remember_how_images_were_read(name):
    made, _ = tiny_and_image(DEPLOYABLE[name], 2)
    header = {"order": "rows_columns", "slicing_axis": "AP", "in_plane_axes": "SR"}
    record_reading(made, header)
    assert recorded_reading(copy.deepcopy(made)) == header
    again = DEPLOYABLE[name].tiny(2, 3)
    again.load_state_dict(made.state_dict(), strict=True)
    assert recorded_reading(again) == header
    again.load_state_dict({key: value for key, value in made.state_dict().items() if "reading_" not in key})
    assert set(recorded_reading(again).values()) == {None}


@pytest.mark.parametrize("name", sorted(name for name in DEPLOYABLE if name != "SegmentationNetwork"))
def test_weights_from_before_healthy_levels_were_marked_load(name):
    """Weights without ``filled``, with NaN where nothing was measured."""
    made, _ = tiny_and_image(DEPLOYABLE[name], 2)
    if made.output_kind != "activation":
        return
    made.set_healthy_level(-2.0, 0.25)
    old = {key: value for key, value in made.state_dict().items() if not key.endswith("filled")}
    levels = [key for key in old if key.endswith(("negative_reference", "negative_quantile"))]
    assert levels
    for filled, change in ((True, {}), (False, {key: torch.full_like(old[key], torch.nan) for key in levels})):
        torch.manual_seed(1)
        again = DEPLOYABLE[name].tiny(2, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again.load_state_dict({**old, **change}, strict=True)
        assert bool(again.filled.all()) is filled
        assert bool(again.filled.any()) is filled
        assert again.negative_reference.isfinite().all()


@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_sites_can_average_what_the_weights_hold(name):
    """No NaN, and no bool: weights of several sites are subtracted and averaged, entry by entry."""
    made, _ = tiny_and_image(DEPLOYABLE[name], 2)
    state = made.state_dict()
    assert all(value.dtype != torch.bool and bool(value.isfinite().all()) for value in state.values())
    assert not any((value - value).count_nonzero() for value in state.values())
    made.load_state_dict(state)


def test_a_mean_over_sites_keeps_what_weights_record():
    """Sums of fractions miss whole numbers a little; what sites read in different orders is refused."""
    made = ModalityNetworks.tiny(in_channels=2)
    record_reading(made, {"order": "rows_columns", "slicing_axis": "SI", "in_plane_axes": "LP"})
    made.reliable.copy_(torch.tensor([True, False]))
    mean = {name: value.double() * (1 - 1e-9) for name, value in made.state_dict().items()}
    again = ModalityNetworks.tiny(in_channels=2)
    again.load_state_dict(mean)
    assert recorded_reading(again) == recorded_reading(made)
    assert again.reliable.tolist() == [True, False]
    assert torch.equal(again.modality_names, made.modality_names)
    again.load_state_dict({**mean, "reading_axes": mean["reading_axes"] / 2, "reliable": torch.tensor([0.5, 0.25])})
    assert recorded_reading(again) == {"order": "rows_columns", "slicing_axis": None, "in_plane_axes": None}
    assert again.reliable.tolist() == [True, False]
    with pytest.raises(DataError, match="read in different orders"):
        again.load_state_dict({**mean, "reading_order": torch.tensor(1.5)})
