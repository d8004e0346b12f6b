# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Where a run stands, and the learning-rate schedules that are stated as fractions of it."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

__all__ = ["Progress", "one_cycle"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for every schedule and warm-up.

    Attributes:
        epoch: epochs begun, from 1.
        iteration: iterations begun over the whole run, from 1.
        fraction: share of the run that is done before this iteration, in [0, 1).
    """

    epoch: int
    iteration: int
    fraction: float


def one_cycle(
    optimizer: Optimizer, learning_rate: float, max_epochs: int, train_data_loader: Sized, *, warm_up: float = 0.3
) -> OneCycleLR:
    """torch's one-cycle schedule over a whole run, stepped at every iteration.

    Args:
        optimizer: the optimizer whose rate is set.
        learning_rate: the peak rate.
        max_epochs: epochs of the run.
        train_data_loader: gives the iterations of an epoch.
        warm_up: share of the run in which the rate rises, in (0, 1).

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> one_cycle(optimizer, 0.1, max_epochs=2, train_data_loader=[0] * 5).total_steps
        10
    """
    return OneCycleLR(optimizer, learning_rate, total_steps=max_epochs * len(train_data_loader), pct_start=warm_up)
