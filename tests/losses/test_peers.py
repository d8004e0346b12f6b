# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Who teaches whom: rows of equal weights over the allowed teachers, never oneself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.losses import peer_weights


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_all_others_teach_alike(groups):
    weights = peer_weights(torch.ones(groups, groups, dtype=torch.bool), dtype=torch.float64)
    for k in range(groups):
        for l in range(groups):  # noqa: E741 (the paper's letter)
            assert weights[k, l].item() == (0.0 if k == l else 1 / (groups - 1))


def test_rows_are_students_and_columns_teachers():
    allowed = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])
    assert torch.equal(peer_weights(allowed), expected)


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_rows_sum_to_one_or_nothing(groups, seed):
    allowed = torch.rand(groups, groups, generator=torch.Generator().manual_seed(seed)) > 0.5
    weights = peer_weights(allowed)
    assert not weights.diagonal().any()
    assert not weights[~allowed].any()
    others = allowed & ~torch.eye(groups, dtype=torch.bool)
    torch.testing.assert_close(weights.sum(1), others.any(1).float())


@pytest.mark.parametrize("shape", [(2, 3), (3,), (2, 2, 2)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"`allowed` of shape \(G, G\), got"):
        peer_weights(torch.ones(shape, dtype=torch.bool))
