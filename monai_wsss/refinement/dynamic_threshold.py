# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA's dynamic threshold: the cut between background and foreground follows the class maps of the last images.

The scores of each new batch enter a queue, the oldest leave it, and the threshold moves towards what a mixture of
Gaussians tells of the whole queue (:mod:`~monai_wsss.refinement.gaussian_mixture`). Healthy images say nothing of where
foreground begins, so they do not enter.

The authors' code differs: its queue begins full of uniform noise, and its two thresholds come from three components.
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._processes import gather_tensors
from monai_wsss.refinement.gaussian_mixture import assigned, two_components
from monai_wsss.refinement.threshold import evenly_spaced

__all__ = ["DynamicThreshold"]

LOWEST, HIGHEST = 0.1, 0.9


class DynamicThreshold(nn.Module):
    """Threshold of scores in [0, 1] that follows training; or a fixed one, in the same place.

    ``value <- momentum * value + (1 - momentum) * new``, where the queue shows a new threshold; else it stays. Queue,
    value, and the number of updates are in the module's state, so that a resumed training goes on exactly.

    Args:
        initial: the value at first, in (0, 1); for ``"three_components"`` (low, high).
        queue: number of images whose scores are kept.
        momentum: share of the past in each update, in [0, 1).
        interval: the mixture is fitted in every ``interval``-th update; scores enter the queue in each.
        points: number of scores per image in the queue; of larger maps, evenly spaced pixels.
        ignore_up_to: scores up to this one take no part in the fit.
        over_processes: the queue holds the images of all processes of a distributed run, whose batches must have the
            same number of images; False: each process has its own threshold, and a checkpoint holds the first one's.
        kind: ``"mixture"``: :func:`~monai_wsss.refinement.mixture_threshold`, kept in [0.1, 0.9];
            ``"three_components"``: :func:`~monai_wsss.refinement.assigned_thresholds`, low and high, of the authors'
            code; ``"fixed"``: the value never changes.

    Attributes:
        value: 0-d; for ``"three_components"`` (2,).
        scores: (queue, points), the oldest image first, 0 where there is none.

    Raises:
        ValueError: a number out of its range, or an unknown kind.

    Example:
        >>> threshold = DynamicThreshold(momentum=0.0)
        >>> threshold().item()
        0.5
        >>> maps = torch.cat((torch.linspace(0.1, 0.3, 300), torch.linspace(0.8, 1.0, 100)))
        >>> threshold.update(maps.reshape(1, 20, 20), torch.tensor([True]))
        >>> round(threshold().item(), 2)
        0.55
    """

    value: torch.Tensor
    scores: torch.Tensor

    def __init__(
        self,
        initial: float | tuple[float, float] = 0.5,
        *,
        queue: int = 100,
        momentum: float = 0.99,
        interval: int = 1,
        points: int = 784,
        ignore_up_to: float = 0.05,
        over_processes: bool = True,
        kind: str = "mixture",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("mixture", "three_components", "fixed"))
        numbers = initial if isinstance(initial, (tuple, list)) else (initial,)
        fits = len(numbers) == (2 if kind == "three_components" else 1) and list(numbers) == sorted(numbers)
        if not fits or not all(0.0 < number < 1.0 for number in numbers):
            raise ValueError(
                f"Expected `initial` in (0, 1), (low, high) for 'three_components' and one number else, got {initial}."
            )
        if queue < 1 or interval < 1 or points < 1:
            raise ValueError(f"Expected `queue`, `interval` and `points` >= 1, got {queue}, {interval} and {points}.")
        if not 0.0 <= momentum < 1.0 or not 0.0 <= ignore_up_to < 1.0:
            raise ValueError(f"Expected `momentum` and `ignore_up_to` in [0, 1), got {momentum} and {ignore_up_to}.")
        self.kind, self.momentum, self.interval = kind, momentum, interval
        self.ignore_up_to, self.over_processes = ignore_up_to, over_processes
        self.register_buffer("value", torch.tensor(initial, dtype=torch.float32))
        self.register_buffer("scores", torch.zeros((0 if kind == "fixed" else queue, points)))
        self._updates = 0

    def forward(self) -> torch.Tensor:
        """Give the threshold as it is now: 0-d, or (low, high)."""
        return self.value.clone()

    @torch.no_grad()
    def update(self, strength: torch.Tensor, found: torch.Tensor, *, valid: torch.Tensor | None = None) -> None:
        """Take the scores of a batch into the queue and move the threshold.

        Args:
            strength: (B, *s), for each pixel the highest score of the present classes, in [0, 1].
            found: (B,) bool or 0/1, whether the image shows any class; others leave the queue as it is.
            valid: (B, *s) bool, false at pixels that take no part, such as padding; None: all do.

        Raises:
            ValueError: shapes that do not fit one another.
        """
        if strength.ndim < 2 or found.shape != strength.shape[:1]:
            raise ValueError(
                f"Expected `strength` (B, *s) and `found` (B,), got {tuple(strength.shape)} and {tuple(found.shape)}."
            )
        if valid is not None and (valid.shape != strength.shape or valid.dtype != torch.bool):
            raise ValueError(f"Expected bool `valid` of shape {tuple(strength.shape)}, got {tuple(valid.shape)}.")
        if self.kind == "fixed":
            return
        rows = self._rows(strength if valid is None else strength * valid)
        found = found.to(rows.device) > 0
        if self.over_processes:
            rows, found = gather_tensors(rows), gather_tensors(found.to(rows)) > 0
        self._enqueue(rows, found)
        self._updates += 1
        if self._updates % self.interval == 0:
            self._move()

    def _rows(self, strength: torch.Tensor) -> torch.Tensor:
        """Give `points` scores of each image: evenly spaced ones of larger maps, 0 beyond those of smaller ones."""
        flat = strength.detach().flatten(1).to(self.scores)
        points = self.scores.shape[1]
        if flat.shape[1] > points:
            return flat[:, evenly_spaced(flat.shape[1], points, flat.device)]
        return nn.functional.pad(flat, (0, points - flat.shape[1]))

    def _enqueue(self, rows: torch.Tensor, found: torch.Tensor) -> None:
        """Keep the latest of the images that show a class; the order is found on the device."""
        candidates = torch.cat((self.scores, rows))
        kept = torch.cat((found.new_ones(len(self.scores)), found))
        order = kept.to(torch.uint8).argsort(stable=True)  # those that do not enter come first, and fall out
        self.scores.copy_(candidates[order[len(rows) :]])

    def _move(self) -> None:
        scores = self.scores.flatten()
        taken = scores > self.ignore_up_to
        if self.kind == "mixture":
            fit = two_components(scores, taken)
            self._follow(fit.threshold.clamp(LOWEST, HIGHEST), fit.found)
        else:
            low, high, found = assigned(scores, taken)
            self._follow(torch.stack((low, high)), found)

    def _follow(self, new: torch.Tensor, found: torch.Tensor) -> None:
        moved = self.value.lerp(new.to(self.value), 1 - self.momentum)
        self.value.copy_(torch.where(found, moved, self.value))

    def get_extra_state(self) -> torch.Tensor:
        """Give the number of updates, for the checkpoint."""
        return torch.tensor(self._updates)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the number of updates from a checkpoint."""
        self._updates = int(state)
