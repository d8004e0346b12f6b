# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Fusion over groups and ensembles: axis, gate, 8-bit round trip, order of raw averaging."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_wsss.cams import average_ensemble, fuse_groups


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("fusion", ["max", "mean"])
def test_fuses_over_the_group_axis_with_the_gate(fusion: str, size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 4, 3, *size, dtype=torch.float64, generator=generator)
    presence = torch.rand(2, 4, 3, generator=generator) > 0.4
    gated = maps.numpy() * presence.numpy().reshape(2, 4, 3, *[1] * len(size))
    expected = gated.max(axis=1) if fusion == "max" else gated.mean(axis=1)
    np.testing.assert_allclose(fuse_groups(maps, fusion=fusion, presence=presence), expected, rtol=1e-12)


def test_eight_bit_round_trip_floors() -> None:
    maps = torch.tensor([0.0, 0.5, 127.5 / 255, 128 / 255, 1.0], dtype=torch.float64).reshape(1, 1, 1, 1, 5)
    got = (fuse_groups(maps, eight_bit=True) * 255).round().flatten().tolist()
    assert got == [0, 127, 127, 128, 255]


def test_half_precision_becomes_float32() -> None:
    assert fuse_groups(torch.rand(1, 2, 1, 3, 3).half()).dtype == torch.float32
    assert average_ensemble([torch.rand(1, 1, 2, 2).bfloat16()]).dtype == torch.float32


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"`maps` of shape \(B, G, K, \*S\), got \(2, 1, 4, 4\)"):
        fuse_groups(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"`presence` of shape \(B, G, K\) = \(1, 2, 1\), got \(1, 2\)"):
        fuse_groups(torch.zeros(1, 2, 1, 4, 4), presence=torch.ones(1, 2))
    with pytest.raises(ValueError, match="`fusion` to be one of max, mean"):
        fuse_groups(torch.zeros(1, 2, 1, 4, 4), fusion="sum")


def test_ensemble_averages_raw_maps() -> None:
    members = [torch.randn(2, 1, 3, 4, dtype=torch.float64) for _ in range(3)]
    kept = [member.clone() for member in members]
    got = average_ensemble(iter(members))
    np.testing.assert_allclose(got, np.mean([member.numpy() for member in members], axis=0), rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(members, kept, strict=True))


def test_bad_ensembles() -> None:
    with pytest.raises(ValueError, match="at least one map"):
        average_ensemble([])
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 2, 2\) and \(1, 1, 4, 4\)"):
        average_ensemble([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)])
