# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The lattice: its simplices against the points they hold, its sums against the Gaussian itself and a dictionary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.refinement import permutohedral as module
from monai_wsss.refinement.permutohedral import PermutohedralLattice


def points(count: int, dims: int, spread: float, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corners_by_search(point: np.ndarray) -> dict[tuple[int, ...], float]:
    """Find corners and weights of one embedded point: the one simplex nearby of which it is a convex combination.

    The simplices of the lattice have the corners r, r + g_1, r + g_1 + g_2, ... with r any lattice point of integer
    multiples of d + 1 and g the steps (d + 1) e_a - 1 ... in any order of the axes.
    """
    dims = len(point) - 1
    base = np.round(point / (dims + 1)).astype(int)
    for shift in itertools.product((-1, 0, 1), repeat=dims + 1):
        root = base + shift
        if root.sum():
            continue
        for order in itertools.permutations(range(dims + 1)):
            corners = [(dims + 1) * root]
            for axis in order[:-1]:
                step = np.ones(dims + 1, int)
                step[axis] -= dims + 1
                corners.append(corners[-1] + step)
            system = np.vstack([np.array(corners).T, np.ones(dims + 1)])
            weights = np.linalg.lstsq(system, np.append(point, 1.0), rcond=None)[0]
            if weights.min() > -1e-9:
                return {tuple(c.tolist()): w for c, w in zip(corners, weights, strict=True) if w > 1e-9}
    raise AssertionError("No simplex holds the point.")


def literal(features: torch.Tensor, values: np.ndarray) -> np.ndarray:
    """Splat, blur and slice with dictionaries, corner by corner."""
    dims = features.shape[1]
    # The embedding is the starting point of the search; all that follows is written out here.
    embedded = (features @ module._embedding(dims, features.device)).numpy()
    corners = [corners_by_search(point) for point in embedded]
    table: dict[tuple[int, ...], float] = {}
    for own, value in zip(corners, values, strict=True):
        for corner, weight in own.items():
            table[corner] = table.get(corner, 0.0) + weight * value
    for axis in range(dims + 1):
        step = np.ones(dims + 1, int)
        step[axis] -= dims + 1
        table = {
            corner: table[corner] / 2
            + sum(table.get(tuple((np.array(corner) + sign * step).tolist()), 0.0) for sign in (-1, 1)) / 4
            for corner in table
        }
    return np.array([sum(weight * table[corner] for corner, weight in own.items()) for own in corners])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sums_equal_a_lattice_of_dictionaries(dims):
    features = points(36 // dims**2, dims, 1.5 / dims)
    values = torch.rand(len(features), 2, dtype=torch.float64)
    sums = PermutohedralLattice(features, torch.float64).filter(values)
    for column in range(2):
        np.testing.assert_allclose(sums[:, column].numpy(), literal(features, values[:, column].numpy()), atol=1e-12)


@pytest.mark.parametrize("dims", range(1, 9))
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 1e5], ids=["one point", "near", "near and far", "far"])
def test_weights_are_barycentric(dims, spread):
    # Weights show in filtered values only through sums.
    _, weights = module._simplices(points(300, dims, spread))
    assert weights.min() > -1e-9
    torch.testing.assert_close(weights.sum(1), torch.ones(300, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dims", [2, 4, 6])
def test_packed_keys_tell_corners_apart(dims, monkeypatch):
    """Count the keys again with multipliers 2^(10 a): nothing wraps around, keys are the coordinates' digits."""
    features = points(2000, dims, 1.0)
    count = PermutohedralLattice(features).size
    readable = torch.tensor([2 ** (10 * a) for a in range(dims)] + [0])
    # Readable factors instead of the fixed random ones.
    monkeypatch.setattr(module, "_multipliers", lambda dims, device: readable)
    # The keys of all corners, which the lattice only counts.
    keys, _ = module._simplices(features)
    assert count == len(keys.unique())


@pytest.mark.parametrize(("dims", "tolerance"), [(1, 0.06), (2, 0.1), (3, 0.14)])
def test_dense_points_are_blurred_by_a_gaussian_of_unit_variance(dims, tolerance):
    """Spread impulses over dense points: on average they fall off like exp(-r^2 / 2), up to one factor."""
    side = {1: 2001, 2: 81, 3: 25}[dims]
    axis = torch.linspace(-5, 5, side, dtype=torch.float64)
    features = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    features += 10 / side * (torch.rand(features.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5)
    centers = features.abs().amax(1).lt(1).nonzero()[:, 0][:: {1: 4, 2: 3, 3: 2}[dims]]
    impulses = torch.zeros(len(features), len(centers), dtype=torch.float64)
    impulses[centers, torch.arange(len(centers))] = 1.0
    responses = PermutohedralLattice(features, torch.float64).filter(impulses)
    distances = torch.cdist(features, features[centers]).square()
    variance = (responses * distances).sum() / responses.sum() / dims
    assert abs(variance - 1) < 0.03
    gaussian = (-0.5 * distances).exp()
    factor = (responses * gaussian).sum() / gaussian.square().sum()
    assert (responses / factor - gaussian).square().mean() < tolerance**2 * gaussian.square().mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 60), st.floats(0.01, 20), st.integers(0, 99))
def test_linear_positive_and_finite(dims, count, spread, seed):
    features = points(count, dims, spread, seed).float()
    lattice = PermutohedralLattice(features)
    values = torch.rand(count, 3)
    sums = lattice.filter(values)
    assert bool((sums >= 0).all())
    assert bool((lattice.filter(torch.ones(count, 1)) > 0).all())
    torch.testing.assert_close(
        lattice.filter(2 * values[:, :1] - 3 * values[:, 1:2]), 2 * sums[:, :1] - 3 * sums[:, 1:2]
    )


def test_order_and_chunks_do_not_matter(monkeypatch):
    features, values = points(500, 5, 1.0).float(), torch.rand(500, 2)
    sums = PermutohedralLattice(features).filter(values)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(PermutohedralLattice(features[order]).filter(values[order]), sums[order])
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(PermutohedralLattice(features).filter(values), sums)


def test_far_points_do_not_meet():
    features = torch.tensor([[0.0, 0.0], [1e4, -1e4]])
    sums = PermutohedralLattice(features).filter(torch.tensor([[1.0], [0.0]]))
    assert sums[0] > 0
    assert sums[1] == 0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"Expected `features` of shape \(N, d\), got \(2, 3, 4\)"):
        PermutohedralLattice(torch.zeros(2, 3, 4))
