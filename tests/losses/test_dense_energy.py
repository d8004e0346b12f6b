# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The energy of the dense CRF against all pairs of pixels in float64, and against a smoother lattice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._resize import resize_linear, resize_nearest
from monai_wsss.losses.dense_energy import DenseEnergyLoss, dense_energy_loss

SIZES = [(6, 8), (4, 2, 6)]
IDS = ["2d", "3d"]
WORDS = {"position_std": 4.0, "intensity_std": 60.0, "factor": 1.0}


def make(seed: int = 0, size: tuple[int, ...] = (6, 8), channels: int = 2):
    """Logits, an image, labels some of which are in doubt, and a frame of padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, 3, *size), generator=generator, dtype=torch.float64)
    image = 255 * torch.rand((2, channels, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, *size), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    inside = torch.ones(label.shape, dtype=torch.bool)
    inside[0, :2] = False
    return logits, image, label, inside


def literal(logits, image, label, inside, *, position_std=4.0, intensity_std=60.0, scale=0.5, gate=True):
    """The equation over all pairs; and the gradient that the released code gives to the probabilities."""
    size = [int(side * scale) for side in logits.shape[2:]]
    probabilities = resize_linear(logits.softmax(1), size)
    small, doubted, valid = (
        resize_nearest(part, size) for part in (image, (label == 255)[:, None].double(), inside[:, None].double())
    )
    positions = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in size))
    dims = len(size) + image.shape[1]
    # The released lattice beside the kernel: its blur doubles the mass d + 1 times, and it has 1 corner per volume.
    volume = (1.5**dims / (dims + 1)) ** 0.5
    constant = 2 ** (dims + 1) / (1 + 2**-dims) * volume / (2 * math.pi) ** (dims / 2)
    energy, gradients = 0.0, torch.zeros_like(probabilities)
    for b in range(len(logits)):
        p, colors = probabilities[b].flatten(1).T, small[b].flatten(1).T
        r, u = valid[b].flatten(), doubted[b].flatten()
        for i in range(len(p)):
            g = (1.0 if u[i] else max(r[i] - p[i].max(), 0.0)) if gate else 1.0
            for j in range(len(p)):
                distance = ((positions[i] - positions[j]) / (position_std * scale)).square().sum()
                distance = distance + ((colors[i] - colors[j]) / intensity_std).square().sum()
                weight = constant * g * r[i] * r[j] * torch.exp(-distance / 2)
                energy = energy + weight * (1 - p[i] @ p[j]) / len(logits)
                gradients[b].view(3, -1)[:, i] -= 2 * weight.detach() * p[j].detach() / len(logits)
    return energy, probabilities, gradients


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("gate", [True, False])
def test_it_is_the_equation_with_the_released_gradient(size, scale, gate):
    if scale == 1 and len(size) == 3:
        size = (3, 2, 3)
    logits, *others = make(size=size)
    logits.requires_grad_()
    expected, probabilities, gradients = literal(logits, *others, scale=scale, gate=gate)
    loss = DenseEnergyLoss(scale=scale, gate=gate, **WORDS)(logits, *others)
    torch.testing.assert_close(loss, expected)
    (of_expected,) = torch.autograd.grad(probabilities, logits, gradients)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], of_expected)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_gradcheck_without_gate(size):
    logits, *others = make(size=size)
    loss = DenseEnergyLoss(gate=False, **WORDS)
    assert torch.autograd.gradcheck(lambda x: loss(x, *others), logits.requires_grad_())


def test_the_lattice_has_the_scale_of_the_exact_sums():
    """An image of two smooth regions and noise; corners that no pixel touches are missing, so that sums are lower."""
    generator = torch.Generator().manual_seed(0)
    image = 100 + 60 * (torch.arange(64) > 30).float().expand(1, 3, 64, 64).clone()
    image += 10 * torch.randn(image.shape, generator=generator)
    logits = torch.randn((1, 3, 64, 64), generator=generator).requires_grad_()
    results = []
    for method in ("exact", "lattice"):
        loss = dense_energy_loss(logits, image, scale=1.0, method=method)
        results.append((loss, torch.autograd.grad(loss, logits)[0].flatten()))
    (exact, of_exact), (lattice, of_lattice) = results
    assert 0.7 < lattice / exact < 1.05
    assert torch.cosine_similarity(of_exact, of_lattice, 0) > 0.98


def test_it_draws_doubtful_pixels_to_the_class_of_their_color():
    image = torch.tensor([50.0, 200.0]).repeat_interleave(8).expand(1, 3, 16, 16)
    sure = 3 * (image[:, :1] / 75 - 5 / 3)
    logits = torch.cat((-sure, sure), 1) + 0.5 * torch.randn((1, 2, 16, 16), generator=torch.Generator().manual_seed(0))
    logits[:, :, 8, 3] = 0.2 * torch.tensor([[-1.0, 1.0]])  # wrong, and not sure
    given_ = logits.clone().requires_grad_()
    optimizer = torch.optim.SGD([given_], 1.0)
    for _ in range(20):
        optimizer.zero_grad()
        dense_energy_loss(given_, image, scale=1.0, factor=0.01).backward()
        optimizer.step()
    assert logits[0, :, 8, 3].argmax() == 1
    assert given_[0, :, 8, 3].argmax() == 0


@given(st.integers(0, 10**6), st.sampled_from(SIZES))
@settings(max_examples=20, deadline=None)
def test_what_does_not_matter(seed, size):
    logits, image, label, inside = make(seed, size)
    expected = dense_energy_loss(logits, image, label, inside, **WORDS)
    assert expected >= 0
    torch.testing.assert_close(dense_energy_loss(logits.flip(1), image, label, inside, **WORDS), expected)
    torch.testing.assert_close(dense_energy_loss(logits + 3, image, label, inside, **WORDS), expected)
    unit = dense_energy_loss(logits, image / 255, label, inside, **WORDS | {"intensity_range": 1.0})
    torch.testing.assert_close(unit, expected)
    own = WORDS | {"intensity_range": None, "intensity_std": 0.6}
    torch.testing.assert_close(dense_energy_loss(logits, image / 100 - 1, label, inside, **own), expected)
    padding = image.where(inside[:, None], 0), label.where(inside, 255)
    torch.testing.assert_close(dense_energy_loss(logits, *padding, inside, **WORDS), expected)
    torch.testing.assert_close(dense_energy_loss(logits, image, **WORDS), DenseEnergyLoss(**WORDS)(logits, image))


@pytest.mark.parametrize(("given_range", "gain"), [(255.0, 1.0), (1.0, 1 / 255), (None, 1.0)])
def test_calls_without_checks_give_the_same_energy(given_range, gain):
    logits, image, label, inside = make()
    words = WORDS | {"factor": 0.5, "scale": 1.0, "gate": False, "intensity_range": given_range}
    expected = dense_energy_loss(logits, gain * image, label, inside, **words)
    loss = DenseEnergyLoss(validate_args=False, **words)
    for _ in range(3):  # the first call alone checks
        torch.testing.assert_close(loss(logits, gain * image, label, inside), expected)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_degenerate_input(method):
    logits, image, label, inside = make()
    for parts in (
        (logits, image * 0, label, inside),
        (logits, image, label, inside & False),
        (logits * 0, image, label * 0 + 255, inside),
        (logits[:1, :, :1, :1], image[:1, :, :1, :1], label[:1, :1, :1], inside[:1, :1, :1]),
        (40 * logits.sign(), image, label, inside),
    ):
        given_ = parts[0].clone().requires_grad_()
        loss = dense_energy_loss(given_, *parts[1:], method=method, **WORDS)
        (gradient,) = torch.autograd.grad(loss, given_)
        assert loss.isfinite()
        assert bool(gradient.isfinite().all())
    assert dense_energy_loss(logits, image, label, inside & False, method=method, **WORDS) == 0


def test_bad_input():
    logits, image, label, inside = make()
    with pytest.raises(ValueError, match=r"`image` of shape \(B, C, \*S\) beside `logits` \(2, 3, 6, 8\), got \(2, 2,"):
        dense_energy_loss(logits, image[:, :, 1:])
    with pytest.raises(ValueError, match=r"`inside` of shape \(B, \*S\) = \(2, 6, 8\), got \(2, 5, 8\)"):
        dense_energy_loss(logits, image, label, inside[:, 1:])
    with pytest.raises(ValueError, match=r"`image` in 0\.\.255 \(`intensity_range`\), got other values: give"):
        dense_energy_loss(logits, image / 255)
    first_alone = DenseEnergyLoss(validate_args=False)
    for _ in range(2):
        with pytest.raises(ValueError, match="`intensity_range`"):
            first_alone(logits, image / 255)
    first_alone(logits, image)
    assert first_alone(logits, image / 255).isfinite()
    with pytest.raises(ValueError, match="`method` to be one of auto, exact, lattice"):
        DenseEnergyLoss(method="fast")
    with pytest.raises(ValueError, match="`intensity_std` and `intensity_range` > 0"):
        DenseEnergyLoss(intensity_std=0)
    for words in ({"scale": 0}, {"scale": 2}, {"factor": -1}):
        with pytest.raises(ValueError, match=r"`scale` in \(0, 1\] and `factor` >= 0"):
            DenseEnergyLoss(**words)
