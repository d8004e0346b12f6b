# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Affinity labels and the walk against loops over the pairs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.refinement.affinity_walk import (
    affinity_labels,
    propagate_by_affinity,
    softmax_with_background,
    walk_along_affinity,
)

SIZES = [(4, 5), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (4, 5)):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.Size(size).numel()
    affinity = torch.rand((2, tokens, tokens), generator=generator, dtype=torch.float64)
    maps = torch.rand((2, 3, *size), generator=generator, dtype=torch.float64)
    return affinity, maps


def places_of(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*(range(n) for n in size)))


def near(p: tuple[int, ...], q: tuple[int, ...], radius: int) -> bool:
    return max(abs(x - y) for x, y in zip(p, q, strict=True)) <= radius


def literal_walk(affinity, maps, radius, power=2.0, smoothing=0.1) -> torch.Tensor:
    places, flat = places_of(maps.shape[2:]), maps.flatten(2)
    result = torch.zeros_like(flat)
    for j, q in enumerate(places):
        sources = [i for i, p in enumerate(places) if near(p, q, radius)]
        weights = affinity[:, sources, j] ** power
        result[:, :, j] = (weights[:, None] * flat[:, :, sources]).sum(2) / (weights.sum(1)[:, None] + smoothing)
    return result.reshape(maps.shape)


def windowed(affinity: torch.Tensor, size: tuple[int, ...], radius: int) -> torch.Tensor:
    """(B, N, N) -> (B, W, *s), entry by entry; nan where the grid ends: it must not matter."""
    places = {p: i for i, p in enumerate(places_of(size))}
    offsets = list(product(range(-radius, radius + 1), repeat=len(size)))
    result = torch.full((len(affinity), len(offsets), *size), torch.nan, dtype=affinity.dtype)
    for (k, offset), (p, i) in product(enumerate(offsets), places.items()):
        q = tuple(x + o for x, o in zip(p, offset, strict=True))
        if q in places:
            result[(slice(None), k, *p)] = affinity[:, i, places[q]]
    return result


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("radius", [0, 1, 2, 8])
@pytest.mark.parametrize("options", [{}, {"power": 3, "smoothing": 0.01}])
def test_the_walk_is_the_equation(size, radius, options):
    affinity, maps = make(size=size)
    expected = literal_walk(affinity, maps, radius, **options)
    torch.testing.assert_close(propagate_by_affinity(affinity, maps, radius, **options), expected)
    if radius < 8:
        windows = windowed(affinity, size, radius)
        torch.testing.assert_close(propagate_by_affinity(windows, maps, radius, **options), expected)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_labels_pair_by_pair(size, radius):
    label = torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(0))
    label[:, 1] = 255
    got = affinity_labels(label, radius)
    assert got.dtype == torch.uint8
    for b, ((i, p), (j, q)) in product(range(2), product(enumerate(places_of(size)), repeat=2)):
        values = label[b][p].item(), label[b][q].item()
        expected = 255 if 255 in values or not near(p, q, radius) else int(values[0] == values[1])
        assert got[b, i, j] == expected
    other = affinity_labels(label.masked_fill(label == 255, -1), radius, ignore_index=-1)
    assert torch.equal(other, got)


@pytest.mark.parametrize("form", ["dense", "windowed"])
@pytest.mark.parametrize("size", [(2, 3), (2, 1, 2)], ids=IDS)
def test_gradcheck(form, size):
    affinity, maps = make(size=size)
    if form == "windowed":
        affinity = windowed(affinity, size, 1).nan_to_num(0.5)
    inputs = (affinity.requires_grad_(), maps.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, m: propagate_by_affinity(a, m, 1), inputs)


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(SIZES))
@settings(max_examples=30, deadline=None)
def test_the_walk_stays_within_what_is_near(seed, radius, size):
    affinity, maps = make(seed, size)
    moved = propagate_by_affinity(affinity, maps, radius, smoothing=0)
    assert bool((moved <= maps.amax(tuple(range(2, maps.ndim)), keepdim=True) + 1e-12).all())
    constant = propagate_by_affinity(affinity, torch.ones_like(maps), radius, smoothing=0)
    torch.testing.assert_close(constant, torch.ones_like(maps))
    each = [propagate_by_affinity(affinity, maps[:, m : m + 1], radius, smoothing=0) for m in range(3)]
    torch.testing.assert_close(torch.cat(each, 1), moved)
    identity = torch.eye(affinity.shape[1], dtype=torch.float64).expand_as(affinity)
    torch.testing.assert_close(propagate_by_affinity(identity, maps, radius, smoothing=0), maps)


def test_what_resembles_nothing_goes_to_zero():
    assert not propagate_by_affinity(torch.zeros(1, 16, 16), torch.ones(1, 2, 4, 4)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    affinity, maps = (part.to(dtype) for part in make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = propagate_by_affinity(affinity, maps, 2)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, propagate_by_affinity(affinity.float(), maps.float(), 2))


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_softmax_with_background(size):
    _, maps = make(size=size)
    label = torch.tensor([[1, 0, 1], [0, 0, 0]])
    got = softmax_with_background(maps, label, 0.45)
    torch.testing.assert_close(got.sum(1), torch.ones_like(maps[:, 0]))
    assert bool((got[1, 0] == 1).all())
    assert not got[0, 2].any()
    present = torch.stack((torch.full_like(maps[0, 0], 0.45), maps[0, 0], maps[0, 2]))
    torch.testing.assert_close(got[0, [0, 1, 3]], present.softmax(0))


def test_bad_input():
    affinity, maps = make()
    with pytest.raises(ValueError, match=r"\(B, N, N\) = \(2, 20, 20\) or, windowed, \(B, W, \*s\) = \(2, 25, 4, 5\)"):
        propagate_by_affinity(affinity[:, :5], maps, 2)
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, M, \*S\), got \(2, 3\)"):
        propagate_by_affinity(affinity, maps[..., 0, 0])
    with pytest.raises(ValueError, match="`radius` of at least 0 tokens, got -2"):
        propagate_by_affinity(affinity, maps, -2)
    with pytest.raises(ValueError, match=r"`label` of shape \(B, \*S\), got \(2, 4\)"):
        affinity_labels(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(2, 3\), got \(2, 2\)"):
        softmax_with_background(maps, torch.ones(2, 2), 0.45)


def test_tokens_that_resemble_nothing_get_zero_without_smoothing():
    moved = propagate_by_affinity(torch.zeros(1, 4, 4), torch.rand(1, 2, 2, 2), smoothing=0)
    assert torch.equal(moved, torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize("words", [{"power": -1.0}, {"power": 0.0}, {"smoothing": -0.1}])
def test_powers_and_smoothing_out_of_range_are_refused(words):
    with pytest.raises(ValueError, match="Expected `power` > 0 and `smoothing` >= 0"):
        propagate_by_affinity(torch.zeros(1, 4, 4), torch.rand(1, 2, 2, 2), **words)


def test_trusted_walks_have_the_same_defaults():
    affinity, maps = torch.rand(1, 4, 4), torch.rand(1, 2, 2, 2)
    assert torch.equal(walk_along_affinity(affinity, maps, 8), propagate_by_affinity(affinity, maps, 8))
