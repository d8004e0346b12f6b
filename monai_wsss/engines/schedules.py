# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The progress of a run, and the schedules of learning rates and loss weights that depend on it."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, PolynomialLR

from monai_wsss._checks import check_choice

__all__ = ["Progress", "WeightRamp", "epochs_of", "one_cycle", "polynomial", "polynomial_after_warm_up"]


@dataclass(frozen=True)
class Progress:
    """The point that a run has reached, for every schedule and warm-up.

    Attributes:
        epoch: epochs begun, from 1.
        iteration: iterations begun over the whole run, from 1.
        fraction: share of the run that is done before this iteration, in [0, 1).
    """

    epoch: int
    iteration: int
    fraction: float


def epochs_of(max_iterations: int, train_data_loader: Any) -> int:
    """Count the epochs that a number of iterations begins, of which the last may end early.

    Args:
        max_iterations: iterations of the run, at least 1.
        train_data_loader: its length is the number of iterations per epoch.

    Raises:
        ValueError: fewer than one iteration, or a loader without a length or a batch.

    Example:
        >>> epochs_of(7, [0] * 5)
        2
    """
    _check_iterations(max_iterations)
    length = len(train_data_loader) if isinstance(train_data_loader, Sized) else 0
    if not length:
        raise ValueError("Expected a loader with a length of at least 1 batch to count iterations by.")
    return -(-max_iterations // length)


def _check_iterations(max_iterations: int) -> None:
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"Expected `max_iterations` to be a whole number of at least 1, got {max_iterations!r}.")


def _run_length(max_epochs: int, train_data_loader: Sized, max_iterations: int | None) -> int:
    """Count the iterations of a run, from whichever is given."""
    if max_iterations is None:
        return max_epochs * len(train_data_loader)
    _check_iterations(max_iterations)
    return max_iterations


def one_cycle(
    optimizer: Optimizer,
    learning_rate: float,
    max_epochs: int,
    train_data_loader: Sized,
    *,
    warm_up: float = 0.3,
    max_iterations: int | None = None,
) -> OneCycleLR:
    """Make torch's one-cycle schedule over a whole run, stepped at every iteration.

    Args:
        optimizer: the optimizer whose rate is set.
        learning_rate: the peak rate.  Of several groups of parameters, such as those of
            ``method.parameter_groups``, each has its own rate for its peak instead.
        max_epochs: epochs of the run.
        train_data_loader: its length is the number of iterations per epoch.
        warm_up: share of the run in which the rate rises, in (0, 1).
        max_iterations: iterations of the run, in place of ``max_epochs``.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> one_cycle(optimizer, 0.1, max_epochs=2, train_data_loader=[0] * 5).total_steps
        10
    """
    total = _run_length(max_epochs, train_data_loader, max_iterations)
    groups = optimizer.param_groups
    peaks = [group["lr"] for group in groups] if len(groups) > 1 else learning_rate
    return OneCycleLR(optimizer, peaks, total_steps=total, pct_start=warm_up)


@dataclass(frozen=True)
class WeightRamp:
    """A loss weight that grows from 0 to 1 over the first part of a run and stays there.

    | shape           | weight before ``end`` | unit of t and ``end`` = T                                         |
    |-----------------|-----------------------|-------------------------------------------------------------------|
    | ``none``        | 1                     | –                                                                 |
    | ``step``        | 0                     | fraction of the run                                               |
    | ``iteration``   | 0                     | iterations, the first is t = 0 (Zhu et al., BMP, Sec. IV-B)       |
    | ``gaussian``    | exp(-5 (1 - t/T)^2)   | fraction of the run (Laine & Aila 2017, arXiv:1610.02242)         |
    | ``exponential`` | exp(-(t - T)^2)       | epochs, the first is t = 0 (Patel & Dolz, CMER, Sec. IV-C; T = 15) |

    The exponential ramp is almost a step: it is 0.37 one epoch before T, and 0.02 two epochs before.

    Args:
        shape: see the table.
        end: T > 0, where the weight reaches 1.

    Raises:
        ValueError: an unknown shape, or an end that is not positive.

    Example:
        >>> ramp = WeightRamp("exponential", end=2)
        >>> [round(ramp(Progress(epoch=epoch, iteration=1, fraction=0.0)), 3) for epoch in (1, 2, 3)]
        [0.018, 0.368, 1.0]
    """

    shape: str = "step"
    end: float = 0.5

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, ("none", "step", "iteration", "gaussian", "exponential"))
        if not self.end > 0:
            raise ValueError(f"Expected `end` > 0, got {self.end}.")

    @classmethod
    def of(cls, given: WeightRamp | float) -> WeightRamp:
        """Keep a ramp as it is, and turn a number into a step at that share of the run.

        Example:
            >>> WeightRamp.of(0.2)
            WeightRamp(shape='step', end=0.2)
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, WeightRamp) or not 0 < float(given) <= 1:
            raise ValueError(f"Expected a ramp, or a share of the run in (0, 1], got {given}.")
        return cls("step", end=float(given))

    def __call__(self, progress: Progress) -> float:
        """Give the weight, in [0, 1]."""
        units = {"exponential": progress.epoch - 1, "iteration": progress.iteration - 1}
        position = units.get(self.shape, progress.fraction)
        if self.shape == "none" or position >= self.end:
            return 1.0
        if self.shape in ("step", "iteration"):
            return 0.0
        if self.shape == "gaussian":
            return math.exp(-5 * (1 - position / self.end) ** 2)
        return math.exp(-((position - self.end) ** 2))


def polynomial(
    optimizer: Optimizer,
    max_epochs: int,
    train_data_loader: Sized,
    *,
    power: float = 0.9,
    max_iterations: int | None = None,
    step: str = "iteration",
) -> LRScheduler:
    """Make the polynomial decay to zero over a whole run, stepped at every iteration.

    After t of T iterations each group's own rate is multiplied by (1 - t/T)^power.

    Args:
        optimizer: the optimizer whose rates are set, each from its own.
        max_epochs: epochs of the run.
        train_data_loader: its length is the number of iterations per epoch.
        power: exponent of the share of the run that is left.
        max_iterations: iterations of the run, in place of ``max_epochs``.
        step: ``"iteration"``, the rate changes with every iteration; ``"epoch"``, it keeps its value within an epoch.

    Raises:
        ValueError: an unknown step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> polynomial(optimizer, max_epochs=2, train_data_loader=[0] * 5).total_iters
        10
    """
    check_choice("step", step, ("iteration", "epoch"))
    total = _run_length(max_epochs, train_data_loader, max_iterations)
    if step == "iteration":
        return PolynomialLR(optimizer, total, power)
    length = len(train_data_loader)
    return LambdaLR(optimizer, lambda done: max(0.0, 1 - done // length * length / total) ** power)


def polynomial_after_warm_up(
    optimizer: Optimizer,
    max_epochs: int,
    train_data_loader: Sized,
    *,
    warm_up: int = 1500,
    start: float = 1e-6,
    power: float = 1.0,
    floor: float = 0.0,
    max_iterations: int | None = None,
) -> LambdaLR:
    """Make the schedule of AFA, BMP and CoSA, stepped at every iteration: a linear warm-up, then the polynomial decay.

    After t of T iterations each group's own rate is multiplied by start + (1 - start) t / warm_up while t < warm_up,
    then by max((1 - t/T)^power, floor).  The decay counts from the run's beginning, so the rate drops where the warm-up
    ends; past T it keeps its last value.

    Args:
        optimizer: the optimizer whose rates are set, each from its own.
        max_epochs: epochs of the run.
        train_data_loader: its length is the number of iterations per epoch.
        warm_up: iterations in which the rate rises.
        start: share of the rate at the first iteration.
        power: exponent of the share of the run that is left.
        floor: least share of the rate in the decay.
        max_iterations: iterations of the run, in place of ``max_epochs``.

    Raises:
        ValueError: a negative warm-up.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = polynomial_after_warm_up(optimizer, 1, [0] * 4, warm_up=2, start=0.0)
        >>> rates = []
        >>> for _ in range(5):
        ...     rates.extend(schedule.get_last_lr())
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.0, 0.5, 0.5, 0.25, 0.25]
    """
    if warm_up < 0:
        raise ValueError(f"Expected `warm_up` >= 0 iterations, got {warm_up}.")
    total = _run_length(max_epochs, train_data_loader, max_iterations)

    def share(done: int) -> float:
        if done < warm_up:
            return start + (1 - start) * done / warm_up
        return max((1 - min(done, total - 1) / total) ** power, floor)

    return LambdaLR(optimizer, share)
