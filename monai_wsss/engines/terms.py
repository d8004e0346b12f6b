# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The parts of a method's loss: weighted terms that begin at some point of the run, and a gate before them.

L = L_1 + sum_t lambda_t r_t(progress) L_t        lambda: weight, r: ramp of a term
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from monai_wsss._running import RunningMean
from monai_wsss.engines.schedules import Progress, WeightRamp

__all__ = ["LossGate", "Term", "short_run_sentences"]


class Term(nn.Module):
    """One term of a method's loss: a loss module, its weight, and the ramp by which it begins.

    Args:
        loss: computes the term.
        weight: lambda >= 0.
        ramp: r; None: the term begins at once.

    Raises:
        ValueError: a negative weight.

    Example:
        >>> term = Term(nn.MSELoss(), 0.5, WeightRamp("step", end=0.2))
        >>> [term.strength(Progress(epoch=1, iteration=1, fraction=fraction)) for fraction in (0.0, 0.9)]
        [0.0, 0.5]
    """

    def __init__(self, loss: nn.Module, weight: float = 1.0, ramp: WeightRamp | None = None) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ValueError(f"Expected a finite `weight` >= 0, got {weight}: leave the term out to switch it off.")
        self.loss = loss
        self.weight = float(weight)
        self.ramp = ramp or WeightRamp("none")

    def strength(self, progress: Progress) -> float:
        """Give lambda r(progress)."""
        return self.weight * self.ramp(progress)

    def forward(
        self, progress: Progress, graph: torch.Tensor, compute: Callable[[Any], torch.Tensor], *, when: bool = True
    ) -> torch.Tensor:
        """Give the weighted loss.

        Args:
            progress: tells where the run stands.
            graph: a tensor of the networks that the term trains.  A term that has not begun, or waits, is 0 with this
                graph, so that every parameter has a gradient, as distributed training needs.
            compute: ``loss -> scalar``, called only once the term has begun.
            when: False while the term has to wait.
        """
        strength = self.strength(progress)
        return strength * compute(self.loss) if when and strength > 0 else 0 * graph.sum()

    @staticmethod
    def any_begun(progress: Progress, *terms: Term | None) -> bool:
        """Tell whether any of the terms has begun; a term that is None is off."""
        return any(term is not None and term.strength(progress) > 0 for term in terms)


class LossGate(nn.Module):
    """A gate that opens once the moving average of a loss is below a level, and then stays open.

    It learns in training mode only: a loss that is computed to look at it opens nothing.

    Args:
        below: the level; None: the gate is open from the start.

    Attributes:
        opened: bool scalar, kept in checkpoints.

    Example:
        >>> gate = LossGate(below=0.4)
        >>> [gate(torch.tensor(loss)) for loss in (0.5, 0.0, 0.0, 0.9)]
        [False, False, False, False]
        >>> [gate(torch.tensor(0.0)) for _ in range(4)]
        [False, True, True, True]
    """

    opened: torch.Tensor

    def __init__(self, below: float | None = None) -> None:
        super().__init__()
        self.below = below
        self.running = RunningMean(momentum=0.9)
        self.register_buffer("opened", torch.tensor(False))
        self._open = False  # on the host, so that an open gate waits for nothing
        self.register_load_state_dict_post_hook(_read_opened)

    def forward(self, loss: torch.Tensor) -> bool:
        """Update the average by a step's loss, and tell whether the gate is open; with a level this waits for a GPU."""
        if self.below is None or self._open:
            return True
        if self.training:
            self.running.update(loss)
            self.opened.logical_or_(self.running.filled & (self.running.value < self.below))
        self._open = bool(self.opened)
        return self._open

    def sentences(self) -> list[str]:
        """Say what a closed gate means for the run."""
        now = float(self.running.value)
        return [
            f"the branches do not teach each other before the classification loss, now {now:.2f}, is below "
            f"`ready_below` {self.below}: until then the segmentation learns nothing; train longer, or raise the "
            "learning rate or `ready_below`."
        ]


def _read_opened(gate: LossGate, *_: Any) -> None:
    gate._open = bool(gate.opened)


def short_run_sentences(ramps: Mapping[str, WeightRamp], progress: Progress | None) -> list[str]:
    """Name in a sentence the ramps that are still at 0 in the last iteration of a run, which is too short for them.

    Args:
        ramps: by name.
        progress: of a later iteration than the first: the run's length is computed from it; None before there is one.

    Example:
        >>> ramps = {"early": WeightRamp("step", end=0.1), "late": WeightRamp("iteration", end=100)}
        >>> [sentence[:30] for sentence in short_run_sentences(ramps, Progress(epoch=1, iteration=3, fraction=2 / 50))]
        ['`late` will not end in this ru']
    """
    if progress is None or progress.fraction == 0:
        return []
    total = max(progress.iteration, round((progress.iteration - 1) / progress.fraction))
    last = Progress(progress.epoch, total, max(progress.fraction, (total - 1) / total))
    never = [f"`{name}`" for name, ramp in ramps.items() if not ramp(last)]
    if not never:
        return []
    return [
        f"{', '.join(never)} will not end in this run, so what waits for it is not trained: train for more iterations, "
        "or shorten the warm-up."
    ]
