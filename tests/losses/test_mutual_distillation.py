# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_KD against the definition of the Kullback-Leibler divergence, summed by hand over pairs, images and outcomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from monai_wsss.losses import MutualDistillationLoss, mutual_distillation_loss, peer_weights


def all_pairs(groups: int) -> torch.Tensor:
    return peer_weights(torch.ones(groups, groups, dtype=torch.bool), dtype=torch.float64)


def make_logits(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(student, teacher, pairs, temperature: float, activation: str) -> float:
    s, t = student.numpy() / temperature, teacher.numpy() / temperature
    total = 0.0
    for k, l in np.ndindex(*pairs.shape):  # noqa: E741 (the paper's letter)
        for n in range(len(s)):
            if activation == "softmax":
                p, q = softmax(s[n, k]), softmax(t[n, l])
                divergence = sum(q[c] * np.log(q[c] / p[c]) for c in range(len(p)))
            else:
                p, q = expit(s[n, k]), expit(t[n, l])
                divergence = np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
            total += float(pairs[k, l]) * temperature**2 * divergence / len(s)
    return total / len(pairs)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 10.0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_it_is_the_divergence_from_teacher_to_student(temperature, activation):
    student, teacher = make_logits((3, 4, 2)), make_logits((3, 3, 2), 1)
    pairs = torch.rand(4, 3, dtype=torch.float64)
    expected = literal(student, teacher, pairs, temperature, activation)
    module = MutualDistillationLoss(temperature=temperature, activation=activation)
    assert module(student, teacher, pairs).item() == pytest.approx(expected, rel=1e-12)
    # The divergence has a direction.
    swapped = literal(teacher, student, pairs.T, temperature, activation) * 3 / 4
    assert abs(swapped - expected) > 1e-3 * expected


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_one_logit_is_the_softmax_over_absent_and_present(temperature):
    student, teacher = make_logits((3, 4, 2)), make_logits((3, 4, 2), 1)
    two = mutual_distillation_loss(student, teacher, all_pairs(4), temperature=temperature, activation="softmax")
    one = (logits[..., 1:] - logits[..., :1] for logits in (student, teacher))
    torch.testing.assert_close(two, mutual_distillation_loss(*one, all_pairs(4), temperature=temperature))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_gradients_are_right_and_none_reaches_a_teacher(activation):
    student, teacher = make_logits((2, 3, 2)).requires_grad_(), make_logits((2, 3, 2), 1).requires_grad_()
    pairs = all_pairs(3)
    assert torch.autograd.gradcheck(
        lambda s: mutual_distillation_loss(s, teacher.detach(), pairs, temperature=2.0, activation=activation), student
    )
    mutual_distillation_loss(student, teacher, pairs, activation=activation).backward()
    assert teacher.grad is None
    # One tensor on both sides: the gradient is that of students before fixed teachers.
    both = student.detach().requires_grad_()
    mutual_distillation_loss(both, both, pairs, activation=activation).backward()
    alone = student.detach().requires_grad_()
    mutual_distillation_loss(alone, student.detach(), pairs, activation=activation).backward()
    torch.testing.assert_close(both.grad, alone.grad)


def test_with_the_temperature_squared_gradients_keep_their_size():
    """For T to infinity T^2 KL tends to half the squared difference of logits over four (sigmoid)."""
    student, teacher = make_logits((4, 2, 1)), make_logits((4, 2, 1), 1)
    loss = mutual_distillation_loss(student, teacher, torch.eye(2), temperature=1e3)
    torch.testing.assert_close(loss, (student - teacher).square().mean() / 8, rtol=1e-4, atol=0)


@given(st.integers(0, 10**6), st.sampled_from(["sigmoid", "softmax"]), st.floats(0.5, 20))
@settings(max_examples=25, deadline=None)
def test_it_is_never_negative_and_zero_for_equals(seed, activation, temperature):
    student, teacher = make_logits((2, 3, 2), seed), make_logits((2, 3, 2), seed + 1)
    options = {"activation": activation, "temperature": temperature}
    assert mutual_distillation_loss(student, teacher, all_pairs(3), **options) >= 0
    same = student[:, :1].expand(-1, 3, -1)
    assert mutual_distillation_loss(same, same, all_pairs(3), **options).abs() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_extreme_logits_stay_finite(dtype, activation):
    student = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]], dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mutual_distillation_loss(student, student, all_pairs(2), activation=activation)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_one_network_has_no_peer():
    logits = make_logits((3, 1, 1)).requires_grad_()
    loss = mutual_distillation_loss(logits, logits, all_pairs(1))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_mistakes_are_named():
    logits, pairs = torch.zeros(2, 3, 1), torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"`student` of shape \(B, G, K\), got \(2, 3\)"):
        mutual_distillation_loss(logits[..., 0], logits, pairs)
    for teacher, matrix in ((logits[:1], pairs), (logits.expand(-1, -1, 2), pairs), (logits, pairs[:2])):
        with pytest.raises(ValueError, match=r"`student` \(B, G, K\), `teacher` \(B, H, K\) and `pairs` \(G, H\), got"):
            mutual_distillation_loss(logits, teacher, matrix)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`temperature` > 0, got {temperature}"):
            mutual_distillation_loss(logits, logits, pairs, temperature=temperature)
    for make in (
        MutualDistillationLoss,
        lambda activation: mutual_distillation_loss(logits, logits, pairs, activation=activation),
    ):
        with pytest.raises(ValueError, match="`activation` to be one of sigmoid, softmax, got 'tanh'"):
            make(activation="tanh")


def test_one_logit_is_no_softmax():
    logits = torch.zeros(2, 2, 1)
    with pytest.raises(ValueError, match=r"K >= 2 for activation 'softmax'"):
        mutual_distillation_loss(logits, logits, torch.ones(2, 2), activation="softmax")
