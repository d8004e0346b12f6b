# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Affinities of tokens against the paper's order of operations, all pairs and near pairs, half precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from monai_wsss._windows import inside_window
from monai_wsss.networks.attention_affinity import AttentionAffinity

SIZES = pytest.mark.parametrize("size", [(5, 4), (3, 4, 3)])
PATCHED = "monai_wsss.networks.attention_affinity.TOKENS_PER_OFFSET"


def affinity_and_pairs(size: tuple[int, ...]) -> tuple[AttentionAffinity, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Make two blocks of two heads and of one head, with channels of their own."""
    torch.manual_seed(0)
    affinity = AttentionAffinity(3).double()
    torch.nn.init.constant_(affinity.bias, 0.3)
    tokens = math.prod(size)
    return affinity, [tuple(torch.randn(2, 2, heads, tokens, 4).double()) for heads in (2, 1)]


def by_hand(affinity: AttentionAffinity, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Weigh a + a^T head by head: (B, N, N)."""
    weights, heads = iter(affinity.weight.flatten().tolist()), 0.0
    for query, key in pairs:
        for q, k in zip(query.unbind(1), key.unbind(1), strict=True):
            logits = np.einsum("bif,bjf->bij", q.numpy(), k.numpy())
            heads = heads + next(weights) * (logits + logits.swapaxes(1, 2))
    return expit(heads + affinity.bias.item())


@SIZES
@pytest.mark.parametrize("radius", [None, 9])
def test_all_pairs_are_those_of_the_paper(size, radius):
    """A radius that reaches everything, too, means all pairs."""
    affinity, pairs = affinity_and_pairs(size)
    got = affinity.between(pairs, size, radius).detach()
    np.testing.assert_allclose(got.numpy(), by_hand(affinity, pairs), rtol=1e-10)
    torch.testing.assert_close(got, got.mT)


@SIZES
def test_near_pairs_alone_are_those_of_all_pairs(monkeypatch, size):
    affinity, pairs = affinity_and_pairs(size)
    dense = by_hand(affinity, pairs)
    # Few tokens per offset: all pairs cost less.
    assert affinity.between(pairs, size, 1).shape == dense.shape
    monkeypatch.setattr(PATCHED, 0)
    windows = affinity.between(pairs, size, 1).detach().numpy()
    assert windows.shape == (2, 3 ** len(size), *size)
    for number, offset in enumerate(np.ndindex(*[3] * len(size))):
        for place in np.ndindex(*size):
            neighbor = tuple(np.add(place, offset) - 1)
            inside = all(0 <= at < side for at, side in zip(neighbor, size, strict=True))
            got = windows[(slice(None), number, *place)]
            if inside:
                i, j = np.ravel_multi_index(place, size), np.ravel_multi_index(neighbor, size)
                np.testing.assert_allclose(got, dense[:, i, j], rtol=1e-10)
            else:
                assert not got.any()
    assert (windows[:, inside_window(size, 1).numpy()] > 0).all()


@SIZES
def test_both_forms_teach_the_same(monkeypatch, size):
    """The gradient of the near pairs' sum reaches weights, queries and keys alike."""
    gradients = []
    for tokens_per_offset in (10**6, 0):
        monkeypatch.setattr(PATCHED, tokens_per_offset)
        affinity, pairs = affinity_and_pairs(size)
        leaves = [tensor.clone().requires_grad_() for pair in pairs for tensor in pair]
        given = list(zip(leaves[::2], leaves[1::2], strict=True))
        values = affinity.between(given, size, 1)
        if tokens_per_offset:
            index = [torch.arange(side) for side in size]
            grid = torch.stack(torch.meshgrid(*index, indexing="ij"), -1).reshape(-1, len(size))
            values = values * ((grid[:, None] - grid[None]).abs().amax(-1) <= 1)
        values.square().sum().backward()
        gradients.append([*(leaf.grad for leaf in leaves), affinity.weight.grad, affinity.bias.grad])
    torch.testing.assert_close(*gradients)


def test_many_tokens_are_never_held_as_all_pairs(monkeypatch):
    affinity = AttentionAffinity(1)
    tokens = torch.zeros(1, 1, 30, 2)
    assert affinity.between([(tokens, tokens)], (5, 6), 1).shape == (1, 30, 30)
    monkeypatch.setattr("monai_wsss.networks.attention_affinity.DENSE_TOKENS", 29)
    assert affinity.between([(tokens, tokens)], (5, 6), 1).shape == (1, 9, 5, 6)
    assert affinity.between([(tokens, tokens)], (5, 6)).shape == (1, 30, 30)


@pytest.mark.parametrize("tokens_per_offset", [0, 4])
def test_half_precision_rounds_queries_and_keys_and_not_their_products(monkeypatch, tokens_per_offset):
    monkeypatch.setattr(PATCHED, tokens_per_offset)
    affinity, pairs = affinity_and_pairs((5, 4))
    halves = [(query.bfloat16(), key.bfloat16()) for query, key in pairs]
    affinity = affinity.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = affinity.between(halves, (5, 4), 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, affinity.between([(q.float(), k.float()) for q, k in halves], (5, 4), 1))


def test_tokens_that_fit_no_map_and_a_negative_radius_are_told():
    affinity, pairs = affinity_and_pairs((5, 4))
    with pytest.raises(ValueError, match=r"the N = 15 tokens of a map of \(5, 3\)"):
        affinity.between(pairs, (5, 3))
    with pytest.raises(ValueError, match="`radius` of at least 0 tokens"):
        affinity.between(pairs, (5, 4), -1)
