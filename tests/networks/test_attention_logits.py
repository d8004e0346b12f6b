# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Attention logits between tokens: both forms against one another and against loops, their transposes, memory."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_wsss.networks.attention_logits import attention_logits, inside_window, transpose_pairs

SIZES = [(3, 4), (1, 5), (4, 1), (1, 1), (2, 3, 2), (1, 1, 1)]


def windowed(dense: torch.Tensor, size: tuple[int, ...], radius: int) -> torch.Tensor:
    """The entries (i, i + o) of dense pairs (..., N, N) as (..., W, *s), 0 outside, one by one."""
    offsets = list(product(range(-radius, radius + 1), repeat=len(size)))
    result = torch.zeros(*dense.shape[:-2], len(offsets), *size, dtype=dense.dtype)
    tokens = list(product(*map(range, size)))
    for w, offset in enumerate(offsets):
        for i, token in enumerate(tokens):
            other = tuple(a + b for a, b in zip(token, offset, strict=True))
            if other in tokens:
                result[(..., w, *token)] = dense[..., i, tokens.index(other)]
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_windowed_form_holds_the_neighbors_of_the_dense_form(size, radius):
    torch.manual_seed(0)
    if len(size) == 3 and radius == 5:
        radius = 3
    query, key = torch.randn(2, 2, 3, math.prod(size), 4, dtype=torch.float64)
    dense = attention_logits(query, key, size)
    torch.testing.assert_close(dense, torch.einsum("bhif,bhjf->bhij", query, key))
    expected = windowed(dense, size, radius)
    torch.testing.assert_close(attention_logits(query, key, size, radius), expected)
    pairs = transpose_pairs(expected[:, 0], size, radius)
    torch.testing.assert_close(pairs, windowed(transpose_pairs(dense[:, 0], size), size, radius))
    inside = windowed(torch.ones(math.prod(size), math.prod(size)), size, radius).bool()
    assert torch.equal(inside_window(size, radius), inside)


@given(size=st.sampled_from(SIZES), radius=st.integers(0, 2), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_transposing_twice_changes_nothing_inside_of_the_image(size, radius, seed):
    torch.manual_seed(seed)
    pairs = torch.randn(2, (2 * radius + 1) ** len(size), *size) * inside_window(size, radius)
    assert torch.equal(transpose_pairs(transpose_pairs(pairs, size, radius), size, radius), pairs)


@pytest.mark.parametrize("size", [(3, 2), (2, 2, 3)])
@pytest.mark.parametrize("radius", [None, 1])
def test_gradients_are_right_in_double(size, radius):
    query, key = (torch.randn(1, 2, math.prod(size), 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def symmetric(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        pairs = attention_logits(query, key, size, radius)[:, 0]
        return pairs + transpose_pairs(pairs, size, radius)

    assert torch.autograd.gradcheck(symmetric, (query, key), fast_mode=True)


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def test_windowed_form_never_holds_all_pairs():
    size = (10, 10, 10)
    query = torch.randn(1, 1, 1000, 2, requires_grad=True)
    with LargestTensor() as mode:
        pairs = attention_logits(query, query, size, radius=1)[:, 0]
        (pairs + transpose_pairs(pairs, size, radius=1)).sum().backward()
    assert mode.largest < 60 * 1000  # 27 offsets of 12 x 12 x 12 when padded; all pairs would be 1000 x 1000


def test_autocast_and_half_precision_keep_the_form():
    tokens = torch.randn(1, 2, 12, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention_logits(tokens, tokens, (3, 4), radius=1)
    torch.testing.assert_close(got.float(), attention_logits(tokens, tokens, (3, 4), radius=1), rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: attention_logits(torch.zeros(1, 2, 12, 4), torch.zeros(1, 2, 6, 4), (3, 4)),
            r"N = 12 tokens of a map of \(3, 4\), got \(1, 2, 12, 4\) and \(1, 2, 6, 4\): attention to reduced keys",
        ),
        (lambda: attention_logits(*torch.zeros(2, 1, 2, 12, 4), (3, 4), radius=-1), "`radius` of 0 tokens or more"),
        (lambda: inside_window((3, 4), -2), "`radius` of 0 tokens or more, got -2"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
