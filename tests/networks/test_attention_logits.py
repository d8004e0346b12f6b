# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Attention logits between tokens: both forms against each other and against loops, their symmetric sum, memory."""

from __future__ import annotations

import math
import weakref
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_wsss.networks.attention_logits import attention_logits

SIZES = [(3, 4), (1, 5), (4, 1), (1, 1), (2, 3, 2), (1, 1, 1)]


def windowed(dense: torch.Tensor, size: tuple[int, ...], radius: int) -> torch.Tensor:
    """Take the entries (i, i + o) of dense pairs (..., N, N) one by one as (..., W, *s), 0 outside."""
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
    torch.testing.assert_close(attention_logits(query, key, size, symmetric=True), dense + dense.mT)
    both = attention_logits(query, key, size, radius, symmetric=True)
    torch.testing.assert_close(both, windowed(dense + dense.mT, size, radius))


@given(size=st.sampled_from(SIZES), radius=st.integers(0, 2), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_symmetric_form_does_not_tell_queries_from_keys(size, radius, seed):
    torch.manual_seed(seed)
    query, key = torch.randn(2, 1, 2, math.prod(size), 3, dtype=torch.float64)
    swapped = attention_logits(key, query, size, radius, symmetric=True)
    torch.testing.assert_close(attention_logits(query, key, size, radius, symmetric=True), swapped)


@pytest.mark.parametrize("size", [(3, 2), (2, 2, 3)])
@pytest.mark.parametrize("radius", [None, 1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_right_in_double(size, radius, symmetric):
    torch.manual_seed(0)
    query, key = (torch.randn(2, 2, math.prod(size), 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def logits(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return attention_logits(query, key, size, radius, symmetric=symmetric)

    assert torch.autograd.gradcheck(logits, (query, key), fast_mode=True)
    assert torch.autograd.gradgradcheck(logits, (query, key), fast_mode=True)


class LiveBytes(TorchDispatchMode):
    """A count of bytes of live storages that operations made: now, at the peak, and of the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in self.storages.keys() | given:
                self.count(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.live -= size
            del self.storages[number]

        self.live += size
        self.largest = max(self.largest, size)
        self.storages[number] = weakref.ref(storage, forget)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("size", "radius", "channels"), [((24, 24), 2, 16), ((6, 6, 6), 5, 4), ((10, 10, 10), 1, 4), ((9, 40), 3, 8)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_form_holds_what_it_says(batch, size, radius, channels, symmetric):
    """Check memory: only queries and keys in the graph; else the result and a few times one head's tokens and rows."""
    tokens = math.prod(size)
    query, key = (torch.randn(batch, 1, tokens, channels, requires_grad=True) for _ in range(2))
    saved: set[int] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.add(tensor.untyped_storage()._cdata)
        return tensor

    window = (2 * radius + 1) ** len(size)
    one_head = 4 * tokens * (channels + size[-1] + 2 * radius)
    with LiveBytes() as memory, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pairs = attention_logits(query, key, size, radius, symmetric=symmetric)
        assert pairs.untyped_storage().nbytes() == 4 * batch * window * tokens == memory.live
        assert memory.peak < memory.live + 5 * one_head
        pairs.backward(torch.ones_like(pairs))
    assert saved == {query.untyped_storage()._cdata, key.untyped_storage()._cdata}
    # The windows and their gradient, those of one head once more, and the gradients of queries and keys.
    results = 4 * tokens * ((2 * batch + 1) * window + 2 * batch * channels)
    assert memory.peak < results + 5 * one_head
    assert memory.largest <= 4 * tokens * max(batch * window, batch * channels, size[-1] + 2 * radius + 1)


def test_autocast_and_half_precision_keep_the_form():
    tokens = torch.randn(1, 2, 12, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention_logits(tokens, tokens, (3, 4), radius=1)
    torch.testing.assert_close(got.float(), attention_logits(tokens, tokens, (3, 4), radius=1), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_sums_in_float32(radius, dtype):
    """Check unscaled sums of products: 64 x 40^2 is infinite in float16."""
    torch.manual_seed(0)
    tokens = (40 + torch.randn(1, 1, 12, 64)).to(dtype).requires_grad_()
    wide = tokens.detach().float().requires_grad_()
    expected = attention_logits(wide, wide, (3, 4), radius)
    expected.square().mean().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention_logits(tokens, tokens, (3, 4), radius)
        got.square().mean().backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(tokens.grad, wide.grad.to(dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: attention_logits(torch.zeros(1, 2, 12, 4), torch.zeros(1, 2, 6, 4), (3, 4)),
            r"N = 12 tokens of a map of \(3, 4\), got \(1, 2, 12, 4\) and \(1, 2, 6, 4\): attention to reduced keys",
        ),
        (
            lambda: attention_logits(*torch.zeros(2, 1, 2, 12, 4), (3, 4), radius=-1),
            "`radius` of at least 0 tokens, got -1",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
