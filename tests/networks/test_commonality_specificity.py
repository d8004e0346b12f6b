# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The attention against its equations with an L x L matrix, its memory, and the stored mean of healthy images."""

from __future__ import annotations

import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_wsss.networks import AverageBuffer, CommonalitySpecificityAttention
from monai_wsss.networks.commonality_specificity import INCIDENCES, SPECIFICITIES

# ---- attention -------------------------------------------------------------------------------------------------------


def features(*size: int, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(2, channels, *size, generator=generator).double()
    return own, torch.randn(channels, *size, generator=generator).double()


def build(dims: int = 2, channels: int = 6, **words: object) -> CommonalitySpecificityAttention:
    torch.manual_seed(0)
    return CommonalitySpecificityAttention(channels, dims, **words).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("values", ["pathological", "reference"])
@pytest.mark.parametrize("incidence", INCIDENCES)
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 2), (1, 1)])
def test_commonality_is_the_product_with_the_matrix(size, incidence, values):
    own, mean = features(*size)
    attention = build(len(size), incidence=incidence, commonality_values=values)
    matrix = attention.incidence_matrix(own, mean)
    averaged = own.flatten(2) if values == "pathological" else attention.excite(mean).flatten(1)
    torch.testing.assert_close(attention.commonality(own, mean).flatten(2), averaged @ matrix)


def test_affinities_sum_to_one_over_the_axis_of_their_name():
    own, mean = features(5, 6)
    for incidence, axis in (("affinity", 1), ("affinity_path", 2)):
        sums = build(incidence=incidence).incidence_matrix(own, mean).sum(axis)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("scale", ["rms", "none"])
@pytest.mark.parametrize("specificity", SPECIFICITIES)
def test_the_parts_can_be_left_out(specificity, scale):
    own, mean = features(5, 6)
    given = {
        (ca, sa): build(specificity=specificity, commonality_scale=scale, use_ca=ca, use_sa=sa)(own, mean)
        for ca in (False, True)
        for sa in (False, True)
    }
    attention = build(specificity=specificity)
    common = attention.commonality(own, mean)
    added = common
    if scale == "rms":
        added = common * (own.square().mean((1, 2, 3)) / common.square().mean((1, 2, 3))).sqrt()[:, None, None, None]
    removed = own * (attention.probability(common, own) < 0.5)
    assert given[False, False] is own
    torch.testing.assert_close(given[True, False], own + added)
    torch.testing.assert_close(given[False, True], own - removed)
    torch.testing.assert_close(given[True, True], own + added - removed)


def test_the_literal_reading_leaves_at_most_one_channel_per_position():
    own, mean = features(5, 6, channels=8)
    attention = build(channels=8, specificity="channel")
    common = attention.probability(attention.commonality(own, mean), own) >= 0.5
    assert common.sum(1).max() <= 1
    spatial = build(channels=8, specificity="spatial")
    assert (spatial.probability(attention.commonality(own, mean), own) >= 0.5).flatten(2).sum(-1).max() <= 1
    every = build(channels=8, specificity="zposition")
    common = every.probability(attention.commonality(own, mean), own)
    assert torch.equal(common, common[:, :1].expand_as(common))
    assert 0 < (common < 0.5).double().mean() < 1


@pytest.mark.parametrize("incidence", INCIDENCES)
@pytest.mark.parametrize("specificity", SPECIFICITIES)
def test_what_is_specific_is_a_constant_for_gradients(specificity, incidence):
    own, mean = features(3, 4)
    own.requires_grad_()
    attention = build(specificity=specificity, incidence=incidence, use_ca=False)
    kept = attention(own, mean)
    (gradient,) = torch.autograd.grad(kept.sum(), own)
    assert torch.equal(gradient, (kept != 0).double())


def test_gradients_agree_with_differences():
    own, mean = features(2, 3)
    attention = build(use_sa=False, se_reduction=2)
    own.requires_grad_()
    mean.requires_grad_()
    assert torch.autograd.gradcheck(attention, (own, mean))


@pytest.mark.parametrize("specificity", ["sigmoid", "twoway"])
def test_gradients_agree_with_differences_where_a_decision_is_far(specificity):
    own, mean = features(2, 3)
    attention = build(specificity=specificity, se_reduction=2, commonality_scale="rms")
    own.requires_grad_()
    mean.requires_grad_()
    assert torch.autograd.gradcheck(attention, (own, mean))


def test_a_negative_logit_of_any_size_is_specific():
    """In float32 the logistic of -1e-9 is 0.5."""
    own, mean = (1e-5 * one.float() for one in features(5, 6))
    attention = build(use_ca=False).float()
    common = attention.commonality(own, mean)
    assert (attention.probability(common, own) == 0.5).all()
    assert 0 < (common < 0).float().mean() < 1
    assert torch.equal(attention(own, mean), own.masked_fill(common < 0, 0))


@pytest.mark.parametrize("incidence", ["reference_channel", "reference_position"])
def test_a_temperature_sharpens_the_softmax_of_the_reference(incidence):
    own, mean = features(5, 6)
    given = build(incidence=incidence, reference_temperature=0.5)
    healthy = given.excite(mean).flatten(1)
    weights = (healthy / (0.5 * healthy.std(correction=0))).softmax(0 if incidence == "reference_channel" else 1)
    torch.testing.assert_close(given.incidence_matrix(own, mean), weights.T @ own.flatten(2))
    # Small values have no influence as printed, and as much as large ones with a temperature.
    small, other = 1e-4 * mean, 1e-4 * mean.flip(0)
    for attention, least in ((build(incidence=incidence), 0.0), (given, 0.05)):
        first, second = attention(own, small), attention(own, other)
        changed = ((first - second).abs().mean() / first.abs().mean()).item()
        assert changed > least if least else changed < 1e-3
    constant = given(own, torch.ones_like(mean))
    assert constant.isfinite().all()


@pytest.mark.parametrize("specificity", SPECIFICITIES)
def test_training_observes_what_the_attention_does(specificity):
    own, mean = features(5, 6)
    attention = build(specificity=specificity).eval()
    attention(own, mean)
    assert attention.observed == {}
    attention.train()(own, mean)
    common = attention.commonality(own, mean)
    opened = (attention.probability(common, own) < 0.5).double().mean()
    assert attention.observed["mask_open"].item() == pytest.approx(opened.item(), abs=1e-6)
    ratio = (common.square().sum((1, 2, 3)) / own.square().sum((1, 2, 3))).sqrt().mean()
    torch.testing.assert_close(attention.observed["commonality_ratio"], ratio)
    assert not any(value.requires_grad for value in attention.observed.values())


def test_all_gates_closed_is_finite():
    own = torch.zeros(2, 6, 4, 4, requires_grad=True)
    attention = CommonalitySpecificityAttention(6)
    attention(own, torch.zeros(6, 4, 4)).square().sum().backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    own, mean = features(16, 16)
    attention = build().float()
    large, mean = 200 * own.to(dtype), mean.to(dtype)  # their products are beyond the range of float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(large, mean)
    assert found.dtype == dtype
    torch.testing.assert_close(found, attention(large.float(), mean.float()).to(dtype))


class Largest(TorchDispatchMode):
    """Note the elements of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return given


@pytest.mark.parametrize("specificity", SPECIFICITIES)
@pytest.mark.parametrize("incidence", ["reference_channel", "reference_position"])
def test_nothing_grows_with_the_square_of_the_positions(incidence, specificity):
    own, mean = features(16, 16)
    own.requires_grad_()
    attention = build(incidence=incidence, specificity=specificity)
    with Largest() as largest:
        attention(own, mean).sum().backward()
    assert largest.elements == own.numel() < 256**2


def test_refuses_a_matrix_that_is_too_large():
    own, mean = features(9, 9)
    for incidence in ("affinity", "affinity_path"):
        attention = build(incidence=incidence, max_attention_elements=80 * 81)
        with pytest.raises(ValueError, match=r"got 6561 .* MiB"):
            attention(own, mean)
    attention = build(max_attention_elements=80)
    assert attention(own, mean).shape == own.shape
    with pytest.raises(ValueError, match="6561"):
        attention.incidence_matrix(own, mean)


def test_few_channels_keep_a_hidden_unit():
    assert CommonalitySpecificityAttention(3).excitation.fc[0].out_features == 1
    assert CommonalitySpecificityAttention(64).excitation.fc[0].out_features == 4


@pytest.mark.parametrize(
    "words",
    [
        {"incidence": "path"},
        {"specificity": "hard"},
        {"commonality_scale": "max"},
        {"commonality_values": "healthy"},
        {"reference_temperature": 0.0},
    ],
)
def test_refuses_other_words(words):
    with pytest.raises(ValueError, match="Expected"):
        CommonalitySpecificityAttention(4, **words)


def test_refuses_a_reference_of_another_size():
    own, mean = features(4, 4)
    with pytest.raises(ValueError, match="as the features"):
        build()(own, mean[..., :3])


# ---- mean over healthy images ----------------------------------------------------------------------------------------


def test_a_batch_replaces_the_one_before():
    buffer = AverageBuffer(2, inference="last_batch")
    first, second = torch.rand(4, 2, 3, 5), torch.rand(3, 2, 3, 5)
    buffer(first)
    torch.testing.assert_close(buffer(second), second.mean(0))
    torch.testing.assert_close(buffer.stored([3, 5]), second.mean(0))
    buffer.eval()(first)
    torch.testing.assert_close(buffer.stored([3, 5]), second.mean(0), msg="evaluation stores nothing")


def test_what_is_stored_for_inference():
    healthy = torch.rand(4, 2, 3, 5)
    for inference in ("calibrated", "batch"):
        buffer = AverageBuffer(2, inference=inference)
        buffer(healthy)
        with pytest.raises(ValueError, match="calibrate_reference"):
            buffer.stored([3, 5])
    buffer = AverageBuffer(2, size=(3, 5))
    with pytest.raises(ValueError, match="calibrate_reference"):
        buffer.stored([3, 5])
    buffer.calibrate([healthy[:1], healthy[1:]])
    torch.testing.assert_close(buffer.stored([3, 5]), healthy.mean(0))
    with pytest.raises(ValueError, match=r"\[3, 5\] of the stored mean, got \[6, 5\]"):
        buffer.stored([6, 5])
    with pytest.raises(ValueError, match="at least one healthy image"):
        buffer.calibrate([])


def test_resizing_is_asked_for():
    buffer = AverageBuffer(1, 3, resize=True)
    buffer.calibrate([torch.ones(1, 1, 2, 2, 2)])
    torch.testing.assert_close(buffer.stored([4, 3, 5]), torch.ones(1, 4, 3, 5))


def test_gradients_reach_the_healthy_images_unless_they_are_detached():
    for detach in (False, True):
        healthy = torch.rand(4, 2, 3, 5, requires_grad=True)
        assert AverageBuffer(2, detach=detach)(healthy).requires_grad is not detach


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_half_precision_is_in_float32(dtype):
    healthy = (60000 * torch.rand(5, 2, 3, 5)).to(dtype)  # their sum is beyond the range of float16
    mean = AverageBuffer(2)(healthy)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, healthy.float().mean(0))


def test_weights_bring_their_size():
    filled, empty = AverageBuffer(2), AverageBuffer(2)
    filled.calibrate([torch.rand(3, 2, 4, 6)])
    loaded, known = copy.deepcopy(empty), AverageBuffer(2, size=(8, 8))
    held = loaded.reference
    for buffer in (loaded, known):
        buffer.load_state_dict(filled.state_dict())
        assert torch.equal(buffer.stored([4, 6]), filled.stored([4, 6]))
    assert loaded.reference is held, "distributed training keeps the tensor"
    loaded.load_state_dict(empty.state_dict())
    with pytest.raises(ValueError, match="calibrate_reference"):
        loaded.stored([4, 6])
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded.load_state_dict(AverageBuffer(3, size=(4, 6)).state_dict())


def test_refuses_other_sizes_and_words():
    with pytest.raises(ValueError, match="2 sides"):
        AverageBuffer(1, size=(3, 3, 3))
    with pytest.raises(ValueError, match="inference"):
        AverageBuffer(1, inference="mean")


HEALTHY = torch.rand(6, 2, 3, 5, generator=torch.Generator().manual_seed(0))


def mean_and_gradient(healthy: torch.Tensor, over: bool = True) -> list[torch.Tensor]:
    """Give the mean, the gradient of its squares by each image, and the calibrated mean."""
    buffer = AverageBuffer(2, inference="last_batch", over_processes=over)
    healthy = healthy.clone().requires_grad_()
    mean = buffer(healthy)
    mean.square().sum().backward()
    assert healthy.grad is not None
    buffer.calibrate([healthy.detach()])
    return [mean.detach(), healthy.grad, buffer.stored([3, 5])]


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    own = HEALTHY[:2] if rank == 0 else HEALTHY[2:]
    given = {"joint": mean_and_gradient(own), "alone": mean_and_gradient(own, over=False)}
    buffer = AverageBuffer(2)
    buffer.calibrate([own] if rank else [])  # one process has no healthy image
    torch.save(given | {"one": [buffer.stored([3, 5])]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    mean, gradient, stored = mean_and_gradient(HEALTHY)
    for given in (first, second):
        torch.testing.assert_close(given["joint"][0], mean)
        torch.testing.assert_close(given["joint"][2], stored)
        torch.testing.assert_close(given["one"][0], HEALTHY[2:].mean(0))
        assert not torch.allclose(given["alone"][0], mean)
    # Distributed training takes the mean of the gradients of both processes.
    torch.testing.assert_close(torch.cat((first["joint"][1], second["joint"][1])) / 2, gradient)
