# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pairs of near tokens: the windows and the shifts against the pairs of the dense form, one by one."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from monai_wsss._windows import check_radius, inside_window, near_pairs, shifts

GRIDS = pytest.mark.parametrize("size", [(1,), (6,), (3, 4), (1, 5), (2, 3, 2)])
RADII = pytest.mark.parametrize("radius", [0, 1, 3])


@GRIDS
@RADII
def test_windows_are_inside_where_the_neighbor_is_a_token(size, radius):
    tokens = set(product(*map(range, size)))
    inside = inside_window(size, radius)
    assert inside.shape == ((2 * radius + 1) ** len(size), *size)
    assert inside.dtype == torch.bool
    for number, offset in enumerate(product(range(-radius, radius + 1), repeat=len(size))):
        for token in tokens:
            neighbor = tuple(p + step for p, step in zip(token, offset, strict=True))
            assert inside[(number, *token)].item() == (neighbor in tokens)


@GRIDS
@RADII
def test_shifts_visit_each_near_pair_once(size, radius):
    numbers = torch.arange(torch.Size(size).numel()).reshape(size)
    inside = inside_window(size, radius)
    visited = torch.zeros(numbers.numel(), numbers.numel(), dtype=torch.int)
    for number, here, there in shifts(size, radius):
        assert inside[number][here].all()
        assert inside[number].sum() == numbers[here].numel()
        visited[numbers[here].flatten(), numbers[there].flatten()] += 1
    assert torch.equal(visited, near_pairs(size, radius).int())


@pytest.mark.parametrize("check", [check_radius, lambda radius: inside_window((3, 4), radius)])
def test_negative_radii_are_named(check):
    with pytest.raises(ValueError, match="`radius` of at least 0 tokens, got -2"):
        check(-2)
