# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""PooledBatchNorm: torch's batch norm, except for a single value per channel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_wsss.networks.pooled_norm import PooledBatchNorm


@pytest.mark.parametrize(("shape", "other"), [((3, 4, 1, 1), nn.BatchNorm2d), ((1, 4, 2, 3, 2), nn.BatchNorm3d)])
def test_agrees_with_torch_where_there_are_statistics(shape, other):
    torch.manual_seed(0)
    ours, theirs = PooledBatchNorm(4), other(4)
    for mode in (True, True, False):
        features = torch.randn(shape)
        assert torch.equal(ours.train(mode)(features), theirs.train(mode)(features))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], entry) for name, entry in theirs.state_dict().items())


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 4, 1, 1, 1)])
def test_a_single_value_takes_the_running_statistics_and_leaves_them(shape):
    torch.manual_seed(0)
    norm = PooledBatchNorm(4)
    norm(torch.randn(8, 4, 1, 1))
    before = {name: entry.clone() for name, entry in norm.state_dict().items()}
    features = torch.randn(shape)
    assert torch.equal(norm.train()(features), norm.eval()(features))
    assert all(torch.equal(entry, before[name]) for name, entry in norm.state_dict().items())


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_are_right_in_double(batch):
    norm = PooledBatchNorm(2).double()
    features = torch.randn(batch, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (features,))


def test_torchscript_keeps_the_rule():
    norm = torch.jit.script(PooledBatchNorm(2).train())
    assert norm(torch.zeros(1, 2, 1, 1)).isfinite().all()
    assert norm.num_batches_tracked == 0
    norm(torch.randn(4, 2, 1, 1))
    assert norm.num_batches_tracked == 1


def test_synchronized_batch_norm_takes_its_place():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(PooledBatchNorm(2)))
    assert isinstance(converted[0], nn.SyncBatchNorm)
