# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""L_aff against a loop over the pairs in float64, dense and windowed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._windows import near_pairs, window_views
from monai_wsss.losses.affinity import AffinityLoss, affinity_loss

SIZES = [(5, 4), (3, 4, 2)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4), classes: int = 3, batch: int = 3):
    """Affinities and labels: some tokens ignored, the second image healthy, the last one without any label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.Size(size).numel()
    affinity = torch.rand((batch, tokens, tokens), generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (batch, *size), generator=generator)
    label[1] = 0
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    label[2:] = 255
    return affinity, label


def literal(affinity, label, radius, per_image=False, include=None) -> float:
    """The equation, pair by pair."""
    places = list(product(*(range(n) for n in label.shape[1:])))
    groups: list[list[float]] = []
    for b in range(len(label)):
        if include is not None and not include[b]:
            continue
        totals = [0.0, 0.0, 0, 0]
        for (i, p), (j, q) in product(enumerate(places), repeat=2):
            here, there = label[b][p].item(), label[b][q].item()
            if 255 in (here, there) or max(abs(x - y) for x, y in zip(p, q, strict=True)) > radius:
                continue
            value = affinity[b, i, j].item()
            if here == there:
                totals[0], totals[2] = totals[0] + 1 - value, totals[2] + 1
            else:
                totals[1], totals[3] = totals[1] + value, totals[3] + 1
        groups.append(totals)
    if not groups:
        return 0.0
    if not per_image:
        groups = [[sum(column) for column in zip(*groups, strict=True)]]
    return sum(0.5 * p / (n + 1) + 0.5 * q / (m + 1) for p, q, n, m in groups) / len(groups)


def windowed(affinity: torch.Tensor, size: tuple[int, ...], radius: int, outside: float = 0.3) -> torch.Tensor:
    """(B, N, N) -> (B, W, *s), entry by entry; what leaves the grid is arbitrary."""
    places = {p: i for i, p in enumerate(product(*(range(n) for n in size)))}
    offsets = list(product(range(-radius, radius + 1), repeat=len(size)))
    result = torch.full((len(affinity), len(offsets), *size), outside, dtype=affinity.dtype)
    for (k, offset), (p, i) in product(enumerate(offsets), places.items()):
        q = tuple(x + o for x, o in zip(p, offset, strict=True))
        if q in places:
            result[(slice(None), k, *p)] = affinity[:, i, places[q]]
    return result


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("radius", [0, 1, 2, 8])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("include", [None, (True, False, True), (False, False, False)])
def test_it_is_the_equation(size, radius, per_image, include):
    affinity, label = make(size=size)
    include = include and torch.tensor(include)
    expected = literal(affinity, label, radius, per_image, include)
    options = {"radius": radius, "per_image": per_image}
    assert affinity_loss(affinity, label, include=include, **options).item() == pytest.approx(expected, rel=1e-12)
    assert AffinityLoss(**options)(affinity, label, include).item() == pytest.approx(expected, rel=1e-12)
    if radius < 8:
        windows = windowed(affinity, size, radius)
        assert affinity_loss(windows, label, include=include, **options).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_gradients_of_both_forms_agree(size):
    affinity, label = make(size=size)
    affinity.requires_grad_()
    (of_dense,) = torch.autograd.grad(affinity_loss(affinity, label, radius=2), affinity)
    windows = windowed(affinity, size, 2)
    (of_windows,) = torch.autograd.grad(affinity_loss(windows, label, radius=2), affinity)
    torch.testing.assert_close(of_dense, of_windows)


@pytest.mark.parametrize("size", [(3, 2), (2, 1, 2)], ids=IDS)
@pytest.mark.parametrize("form", ["dense", "windowed"])
@pytest.mark.parametrize("per_image", [False, True])
def test_gradcheck(size, form, per_image):
    affinity, label = make(size=size, batch=2)
    pairs = (affinity if form == "dense" else windowed(affinity, size, 1)).requires_grad_()
    keep = torch.tensor([True, False])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return affinity_loss(x, label, radius=1, per_image=per_image, include=keep) ** 2

    assert torch.autograd.gradcheck(loss, pairs)
    assert torch.autograd.gradgradcheck(loss, pairs, fast_mode=True)


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(SIZES))
@settings(max_examples=30, deadline=None)
def test_invariants(seed, radius, size):
    affinity, label = make(seed, size)
    loss = affinity_loss(affinity, label, radius=radius)
    assert 0 <= loss.item() <= 1
    renamed = torch.tensor([7, 300, -4])[label.clamp(max=2)].masked_fill(label == 255, 255)
    torch.testing.assert_close(affinity_loss(affinity, renamed, radius=radius), loss)
    torch.testing.assert_close(affinity_loss(affinity.transpose(1, 2), label, radius=radius), loss)
    mirrored = affinity.flip(1, 2), label.flip(*range(1, label.ndim))
    torch.testing.assert_close(affinity_loss(*mirrored, radius=radius), loss)
    torch.testing.assert_close(affinity_loss(affinity.flip(0), label.flip(0), radius=radius), loss)
    other = torch.where(near_pairs(size, radius), affinity, torch.rand_like(affinity))
    torch.testing.assert_close(affinity_loss(other, label, radius=radius), loss)
    alone = [affinity_loss(affinity[b : b + 1], label[b : b + 1], radius=radius) for b in range(len(label))]
    torch.testing.assert_close(affinity_loss(affinity, label, radius=radius, per_image=True), torch.stack(alone).mean())


@pytest.mark.parametrize("form", [(1, 16, 16), (1, 9, 4, 4)], ids=["dense", "windowed"])
@pytest.mark.parametrize("per_image", [False, True])
def test_without_pairs_it_is_a_zero_with_a_graph(form, per_image):
    affinity = torch.rand(form, requires_grad=True)
    ignored = torch.full((1, 4, 4), 255)
    for label, include in ((ignored, None), (torch.zeros_like(ignored), torch.tensor([False]))):
        loss = affinity_loss(affinity, label, radius=1, per_image=per_image, include=include)
        (gradient,) = torch.autograd.grad(loss, affinity)
        assert loss.item() == 0
        assert not gradient.any()


def test_one_token_and_one_class():
    assert affinity_loss(torch.ones(1, 1, 1), torch.zeros(1, 1, 1)).item() == 0
    assert affinity_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)).item() == 0.25  # 1/2 * 1 / (1 + 1)


def test_a_broken_network_shows():
    affinity, label = make()
    affinity[0, 0, 0] = torch.nan
    assert affinity_loss(affinity, label).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["dense", "windowed"])
def test_half_precision_sums_in_float32(dtype, form):
    affinity, label = make(size=(12, 12))
    pairs = affinity if form == "dense" else windowed(affinity, (12, 12), 3)
    pairs = pairs.to(dtype).requires_grad_()
    wide = pairs.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = affinity_loss(pairs, label, radius=3)
        (1024 * loss).backward()  # as a scaler would
    expected = affinity_loss(wide, label, radius=3)
    (1024 * expected).backward()
    assert loss.dtype == torch.float32
    assert pairs.grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(pairs.grad, wide.grad.to(dtype))


@pytest.mark.parametrize(
    ("affinity", "label", "options", "message"),
    [
        ((2, 16, 15), (2, 4, 4), {}, r"shape \(B, N, N\) = \(2, 16, 16\) or, windowed, .* got \(2, 16, 15\)"),
        ((2, 25, 4, 4), (2, 4, 4), {"radius": 1}, r"\(B, W, \*s\) = \(2, 9, 4, 4\) at radius 1"),
        ((2, 16, 16), (2, 16), {}, r"`label` of shape \(B, \*S\), got \(2, 16\)"),
        ((2, 16, 16), (2, 4, 4), {"radius": -1}, "`radius` of at least 0 tokens, got -1"),
        ((2, 16, 16), (2, 4, 4), {"include": torch.ones(3)}, r"`include` of shape \(B,\) = \(2,\), got \(3,\)"),
    ],
)
def test_bad_input(affinity, label, options, message):
    with pytest.raises(ValueError, match=message):
        affinity_loss(torch.rand(affinity), torch.zeros(label), **options)


@pytest.mark.parametrize("size", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("radius", [0, 1, 3])
def test_windows(size, radius):
    """Both forms of nearness, against each other: the number of tokens and their numbers."""
    numbers = torch.arange(torch.Size(size).numel()).reshape(size)
    views = window_views(numbers, radius, -1, len(size))
    assert views.shape == (*[2 * radius + 1] * len(size), *size)
    near = near_pairs(size, radius)
    for token, neighbors in enumerate(views.flatten(len(size)).flatten(0, len(size) - 1).T.tolist()):
        assert [n for n in neighbors if n >= 0] == near[token].nonzero().flatten().tolist()
