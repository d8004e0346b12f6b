# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A Gaussian filter of any points in linear time: the permutohedral lattice of Adams, Baek and Davis (2010).

    out_i = Σ_j exp(-|f_i - f_j|² / 2) v_j,  up to one factor for all i

The space of the d features is cut into simplices of a lattice. Each point gives its value to the d + 1 corners of its
simplex by barycentric weights (splat); the corners are blurred with [1 2 1] / 4 along each of the d + 1 directions of
the lattice; each point reads its corners with the same weights (slice). Only corners that some point touches are kept,
and a corner that is missing counts as zero. So the filter is an approximation, better where points lie dense. (A point
on the border between two simplices is in one or the other by rounding. Which one changes the sums around it a little.)

The lattice lies in the plane of R^(d+1) whose coordinates sum to 0; its points have integer coordinates, all equal
modulo d + 1. Splat, blur and slice have the variances 1/12, 1/2 and 1/12 of (d+1)², hence the scale of the embedding.

There is no hash table: a corner's coordinates c are packed into the integer Σ c_a m_a modulo 2^64 with fixed random m.
The packing is linear. So a neighbor's key is a corner's own key plus a constant, found by bisection among sorted keys.
The probability that two of n corners share a key is about n² / 2^65, below 1e-5 for ten million.

| symbol              | name       | shape                                       |
|---------------------|------------|---------------------------------------------|
| f                   | `features` | (N, d)                                      |
| v                   | `values`   | (N, M)                                      |
| barycentric weights | `weights`  | (N, d+1)                                    |
| packed corners      | `keys`     | (N, d+1); (L) without repetition            |
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_shape

__all__ = ["PermutohedralLattice"]

# Number of points whose corners are found at a time: it bounds the memory for coordinates in double precision.
CHUNK = 2**16


class PermutohedralLattice:
    """The lattice of one set of points, for as many filterings as are wanted.

    Memory is linear: about 16 (d + 1) bytes per point and 12 (d + 2) per corner are kept; the construction needs
    60 (d + 1) bytes per point at its peak.

    Args:
        features: (N, d), each divided by its standard deviation.
        dtype: of the values to filter.

    Raises:
        ValueError: another shape.

    Example:
        >>> lattice = PermutohedralLattice(torch.tensor([[0.0], [1.0], [50.0]]))
        >>> near, own, far = lattice.filter(torch.tensor([[0.0], [1.0], [0.0]]))[:, 0].tolist()
        >>> 0.5 < near / own < 0.7, far  # exp(-1/2) = 0.61
        (True, 0.0)
    """

    def __init__(self, features: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        check_shape("features", features, "(N, d)")
        dims, device = features.shape[1], features.device
        keys, weights = _corners(features, dtype)
        keys, order = keys.sort()
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        corner = torch.empty_like(order, dtype=torch.int32)
        corner[order] = (first.cumsum(0) - 1).int()
        starts = first.nonzero()[:, 0]
        #: L, the number of corners. Row L of the table of values stands for all missing ones: an empty sum.
        self.size = len(starts)
        self._splat = (order // (dims + 1)).int(), F.pad(starts, (0, 1), value=len(order)).int(), weights[order]
        self._slice = corner, torch.arange(0, len(order), dims + 1, device=device).int(), weights
        triples = torch.arange(0, 3 * self.size + 3, 3, device=device).int()
        kernel = torch.tensor([0.25, 0.5, 0.25], dtype=dtype, device=device).repeat(self.size + 1)
        self._blurs = [(indices, triples, kernel) for indices in _neighbors(keys[first], dims)]

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """Turn values (N, M) of the points, in the lattice's dtype, into their sums (N, M)."""
        values = _sums(values, *self._splat)
        for blur in self._blurs:
            values = _sums(values, *blur)
        return _sums(values, *self._slice)


def _sums(rows: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply a sparse matrix with ``rows``: sum the rows at ``indices`` by weight; each offset begins a new sum."""
    return F.embedding_bag(indices, rows.contiguous(), offsets, mode="sum", per_sample_weights=weights)


def _corners(features: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Find keys and weights of the corners of all points' simplices, each (N (d+1))."""
    keys, weights = [], []
    for part in features.split(CHUNK):
        key, weight = _simplices(part)
        keys.append(key.flatten())
        weights.append(weight.to(dtype).flatten())
    return torch.cat(keys), torch.cat(weights)


def _multipliers(dims: int, device: torch.device) -> torch.Tensor:
    """Draw the fixed random factor m of each coordinate; the last gets 0, since it follows from the others."""
    generator = torch.Generator().manual_seed(2010)
    factors = torch.randint(-(2**62), 2**62, (dims,), generator=generator)
    return F.pad(factors, (0, 1)).to(device)


def _embedding(dims: int, device: torch.device) -> torch.Tensor:
    """Build the embedding (d, d+1): orthogonal rows in the plane of sum 0 that give the filter unit variance."""
    rows = torch.ones(dims, dims + 1, dtype=torch.float64).tril()
    steps = torch.arange(1, dims + 1, dtype=torch.float64)
    rows[steps.long() - 1, steps.long()] = -steps
    rows *= (steps * (steps + 1)).rsqrt()[:, None] * (dims + 1) * (2 / 3) ** 0.5
    return rows.to(device)


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find keys and weights (n, d+1) of the corners of each point's simplex."""
    dims, device = features.shape[1], features.device
    point = features.double() @ _embedding(dims, device)
    # The nearest lattice point whose coordinates are multiples of d + 1: round, then repair the sum.
    multiple = (point / (dims + 1)).round()
    excess = multiple.sum(1, keepdim=True).long()
    rest, order = (point - (dims + 1) * multiple).sort(dim=1, descending=True)
    place = torch.arange(dims + 1, device=device)
    repair = (place < -excess).double() - (place > dims - excess).double()
    rest -= (dims + 1) * repair
    # What was repaired moves from one end of the order to the other.
    turned = (place - excess) % (dims + 1)
    rest, order = rest.gather(1, turned), order.gather(1, turned)
    nearest = multiple.gather(1, order) + repair.gather(1, turned)
    weights = torch.empty_like(rest)
    weights[:, 1:] = (rest[:, :-1] - rest[:, 1:]).flip(1) / (dims + 1)
    weights[:, 0] = 1 - (rest[:, 0] - rest[:, -1]) / (dims + 1)
    # Corner k adds k to each coordinate and takes d + 1 from the k last ones in the order.
    factors = _multipliers(dims, device)
    of_place = factors[order]
    taken = F.pad(of_place.flip(1).cumsum(1)[:, :-1], (1, 0))
    origin = (nearest.long() * of_place).sum(1, keepdim=True) * (dims + 1)
    return origin + place * factors.sum() - (dims + 1) * taken, weights


def _neighbors(keys: torch.Tensor, dims: int) -> Iterator[torch.Tensor]:
    """Yield per direction (d + 1) the corners before, at and after each corner and L itself, (3 (L+1)) int32."""
    count = len(keys)
    own = torch.arange(count + 1, device=keys.device)
    factors = _multipliers(dims, keys.device)
    for step in (factors.sum() - (dims + 1) * factors).tolist():
        place = torch.searchsorted(keys, keys + step).clamp_(max=count - 1)
        after = torch.where(keys[place] == keys + step, place, count)
        before = torch.full_like(own, count)
        before[after] = own[:-1]
        before[count] = count
        yield torch.stack((before, own, F.pad(after, (0, 1), value=count)), 1).int().flatten()
