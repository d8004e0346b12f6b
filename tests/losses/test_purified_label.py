# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_PLF against its equation, pixel by pixel and image by image in float64, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from monai_wsss.losses.purified_label import PurifiedLabelLoss, purified_label_loss

VARIANTS = ["paper", "official", "oeem", "oeem_conf"]
MODES = ["valid", "all"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 6), classes: int = 3, ignored: float = 0.2):
    """Four images: several classes, one class with ignored pixels, several classes, nothing but ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((4, classes, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (4, *size), generator=generator)
    label[1] = 1
    label[torch.rand(label.shape, generator=generator) < ignored] = 255
    label[3] = 255
    return logits, label


def literal(logits: torch.Tensor, label: torch.Tensor, variant: str, mode: str) -> tuple[float, np.ndarray]:
    """Loss and weights by loops over images and pixels."""
    scores, labels = logits.detach().double().flatten(2).numpy(), label.flatten(1).numpy()
    weights, total, number = np.ones(labels.shape), 0.0, 0
    for b, (s, y) in enumerate(zip(scores, labels, strict=True)):
        p = softmax(s, axis=0)
        losses = np.array([0.0 if k == 255 else -np.log(p[k, q]) for q, k in enumerate(y)])
        chosen = [q for q in range(len(y)) if mode == "all" or y[q] != 255]
        if len({int(k) for k in y if k != 255}) > 1:
            weights[b] = 0
            e = {q: np.exp(-losses[q]) for q in chosen}
            omega = {q: e[q] / sum(e.values()) for q in chosen}
            for q in chosen:
                high, low = p[:, q].max(), p[:, q].min()
                mean, spread = np.mean([*omega.values()]), max(omega.values()) - min(omega.values())
                weights[b, q] = {
                    "paper": omega[q] * (high - low) / mean,
                    "official": omega[q] * high / spread if variant == "official" else None,
                    "oeem": omega[q] / mean,
                    "oeem_conf": omega[q] * high / mean,
                }[variant]
        total += sum(weights[b, q] * losses[q] for q in chosen)
        number += len(chosen)
    return total / max(number, 1), weights.reshape(label.shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 2)], ids=["2d", "3d"])
def test_it_is_the_equation(variant, mode, size):
    logits, label = make(size=size)
    expected, weights = literal(logits, label, variant, mode)
    loss, weight = purified_label_loss(logits, label, variant=variant, ignore_mode=mode, return_weight=True)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(weight, weights, rtol=1e-10, atol=1e-14)
    module = PurifiedLabelLoss(variant=variant, ignore_mode=mode)
    assert module(logits, label).item() == loss.item()
    of_module, weight_of_module = module(logits, label[:, None], return_weight=True)
    assert of_module.item() == loss.item()
    assert weight_of_module.shape == label[:, None].shape
    assert torch.equal(weight_of_module[:, 0], weight)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
def test_weights_carry_no_gradient(variant, mode):
    """The gradient is that of the cross-entropy times constants, pixel by pixel."""
    logits, label = make()
    logits.requires_grad_()
    loss, weight = purified_label_loss(logits, label, variant=variant, ignore_mode=mode, return_weight=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not weight.requires_grad
    number = (label != 255).sum() if mode == "valid" else label.numel()
    one_hot = F.one_hot(label.masked_fill(label == 255, 0), 3).movedim(-1, 1)
    expected = (logits.softmax(1) - one_hot) * (weight * (label != 255))[:, None] / number
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)], ids=["2d", "3d"])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_the_plain_part(size, mode):
    """Weights are constants to autograd, not to finite differences: without them the numbers must agree."""
    logits, label = make(size=size)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purified_label_loss(x, label, ignore_mode=mode, purify=False), logits)
    single = label.clamp(1, 1).masked_fill(label == 255, 255)
    assert torch.autograd.gradcheck(lambda x: purified_label_loss(x, single, ignore_mode=mode), logits)


def test_without_purification_it_is_the_cross_entropy():
    logits, label = make()
    expected = F.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(purified_label_loss(logits, label, purify=False), expected)
    _, weight = PurifiedLabelLoss()(logits, label, purify=False, return_weight=True)
    assert bool((weight == 1).all())
    both = PurifiedLabelLoss(ignore_mode="all")(logits, label, purify=False)
    torch.testing.assert_close(both, expected * (label != 255).sum() / label.numel())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mislabeled_pixel_counts_less(variant):
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[0, :, 4:] = 1
    logits = 3 * (F.one_hot(label, 2).movedim(-1, 1).double() - 0.5)
    noisy = label.clone()
    noisy[0, 2, 2] = 1
    _, weight = purified_label_loss(logits, noisy, variant=variant, return_weight=True)
    assert weight.argmin() == 2 * 8 + 2
    assert weight[0, 2, 2] < 0.1 * weight[0, 0, 0]


@given(st.integers(0, 10**6), st.sampled_from(VARIANTS), st.sampled_from([(4, 4), (3, 2, 3)]))
@settings(max_examples=30, deadline=None)
def test_ignored_pixels_do_not_matter_and_images_are_apart(seed, variant, size):
    logits, label = make(seed, size)
    loss, weight = purified_label_loss(logits, label, variant=variant, return_weight=True)
    other = torch.where((label == 255)[:, None], 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(purified_label_loss(other, label, variant=variant), loss)
    order = torch.tensor([2, 0, 3, 1])
    again, permuted = purified_label_loss(logits[order], label[order], variant=variant, return_weight=True)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(permuted, weight[order])
    flipped = purified_label_loss(logits.flip(2), label.flip(1), variant=variant)
    torch.testing.assert_close(flipped, loss)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_oeem_weights_have_mean_one_and_the_papers_are_below_them(seed):
    logits, label = make(seed, ignored=0)
    weights = {v: purified_label_loss(logits, label, variant=v, return_weight=True)[1] for v in VARIANTS}
    torch.testing.assert_close(weights["oeem"].flatten(1).mean(1), torch.ones(4, dtype=torch.float64))
    assert bool((weights["paper"][0] <= weights["oeem_conf"][0]).all())
    assert bool((weights["oeem_conf"][0] <= weights["oeem"][0]).all())
    scaled = weights["official"][0] / weights["oeem_conf"][0]  # they differ by a factor of the image
    torch.testing.assert_close(scaled, scaled.mean().expand_as(scaled))


@pytest.mark.parametrize("variant", ["paper", "oeem", "oeem_conf"])
@pytest.mark.parametrize("mode", MODES)
def test_a_constant_loss_map_stays_finite(variant, mode):
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    label = (torch.arange(16) % 2).reshape(1, 4, 4)
    loss, weight = purified_label_loss(logits, label, variant=variant, ignore_mode=mode, return_weight=True)
    loss.backward()
    assert bool(loss.isfinite() and logits.grad.isfinite().all())
    factor = {"paper": 0.0, "oeem": 1.0, "oeem_conf": 0.5}[variant]
    torch.testing.assert_close(weight, torch.full_like(weight, factor))


def test_the_official_form_is_not_finite_there():
    label = (torch.arange(16) % 2).reshape(1, 4, 4)
    loss, weight = purified_label_loss(torch.zeros(1, 2, 4, 4), label, variant="official", return_weight=True)
    assert bool(loss.isinf())
    assert bool(weight.isinf().all())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("purify", [True, False])
def test_nothing_but_ignored_pixels_gives_a_zero_with_a_graph(variant, mode, purify):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    label = torch.full((2, 4, 4), 255)
    loss = purified_label_loss(logits, label, variant=variant, ignore_mode=mode, purify=purify)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("image", [0, 1, 3], ids=["several", "single", "ignored"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_network_shows(variant, mode, image, value):
    logits, label = make()
    logits[image, 0, 0, 0] = value
    assert not purified_label_loss(logits, label, variant=variant, ignore_mode=mode).isfinite()
    assert not purified_label_loss(logits, torch.full_like(label, 255), ignore_mode=mode).isfinite()


@pytest.mark.parametrize("mode", MODES)
def test_excluded_classes_may_have_minus_infinity(mode):
    """Logits that a label filter has set to -inf, at pixels of another class or ignored ones."""
    logits, label = make()
    label = torch.where(label == 0, 1, label)
    logits[:, 0] = float("-inf")
    logits.requires_grad_()
    loss = purified_label_loss(logits, label, ignore_mode=mode)
    loss.backward()
    assert bool(loss.isfinite() and logits.grad.isfinite().all())


def test_one_pixel():
    logits = torch.tensor([[[[1.0]], [[0.0]]]], dtype=torch.float64)
    expected = F.cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.long))
    torch.testing.assert_close(purified_label_loss(logits, torch.ones(1, 1, 1)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_computes_in_float32(dtype, variant):
    """300 by 300 pixels: omega itself, below 1e-5, is not a number that half precision holds."""
    logits, label = make(size=(300, 300))
    half = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, weight = purified_label_loss(half, label, variant=variant, return_weight=True)
    assert loss.dtype == weight.dtype == torch.float32
    exact, exact_weight = purified_label_loss(half.detach().double(), label, variant=variant, return_weight=True)
    torch.testing.assert_close(loss, exact.float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(weight, exact_weight.float(), rtol=1e-3, atol=1e-5)
    loss.backward()
    assert half.grad.dtype == dtype
    assert bool(half.grad.isfinite().all())


def test_extreme_logits_stay_finite():
    logits = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1).repeat(1, 1, 4, 4).requires_grad_()
    label = (torch.arange(16) % 2).reshape(1, 4, 4)
    loss, weight = purified_label_loss(logits, label, return_weight=True)
    loss.backward()
    assert weight.flatten()[1] == 0
    assert bool(loss.isfinite() and logits.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_labels_of_any_type(dtype):
    logits, label = make()
    expected = purified_label_loss(logits, label)
    assert torch.equal(purified_label_loss(logits, label.to(dtype)), expected)
    moved = torch.where(label == 255, torch.tensor(-1), label)
    assert torch.equal(purified_label_loss(logits, moved, ignore_index=-1), expected)


def test_a_hundred_steps_fit_clean_labels_and_leave_the_noise():
    """The purpose: plain cross-entropy fits noise as well; with PLF it ends undecided, where the weight is 0."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(2, 16, 16, dtype=torch.long)
    clean[..., 8:] = 1
    noise = torch.rand(clean.shape, generator=generator) < 0.1
    label = torch.where(noise, 1 - clean, clean)
    probability = {}
    for purify in (True, False):
        logits = F.one_hot(clean, 2).movedim(-1, 1).float().requires_grad_()
        optimizer = torch.optim.SGD([logits], lr=100.0)
        for _ in range(100):
            optimizer.zero_grad()
            purified_label_loss(logits, label, purify=purify).backward()
            optimizer.step()
        fitted = logits.softmax(1).gather(1, label[:, None])[:, 0].detach()
        assert fitted[~noise].mean() > 0.95
        probability[purify] = fitted[noise].mean()
    assert probability[True] < 0.55
    assert probability[False] > 0.95


def test_mistakes_are_named():
    logits, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match=r"`logits` of shape \(B, C, \*S\), got \(2, 3, 4\)"):
        purified_label_loss(logits[..., 0], label)
    with pytest.raises(ValueError, match="`logits` of at least two classes, got one channel: give the background"):
        purified_label_loss(logits[:, :1], label)
    for wrong in (label[:1], label[..., :3], label[:, None].expand(-1, 3, -1, -1)):
        with pytest.raises(ValueError, match=r"`label` of shape \(B, \*S\) = \(2, 4, 4\) or \(B, 1, \*S\), got"):
            purified_label_loss(logits, wrong)
    for value, said in ((3, "to 3"), (-1, "from -1 to"), (0.5, "to 0.5"), (float("nan"), "nan"), (254, "to 254")):
        with pytest.raises(ValueError, match=f"classes 0..2 or 255 .ignored., got values .*{said}.* channel \\+ 1"):
            purified_label_loss(logits, torch.where(torch.arange(16).reshape(4, 4) == 5, value, label))
    for make_loss in (PurifiedLabelLoss, lambda **options: purified_label_loss(logits, label, **options)):
        with pytest.raises(ValueError, match="`variant` to be one of paper, official, oeem, oeem_conf, got 'ns'"):
            make_loss(variant="ns")
        with pytest.raises(ValueError, match="`ignore_mode` to be one of valid, all, got 'none'"):
            make_loss(ignore_mode="none")
