# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A sampler that shows every combination of image-level labels equally often, however rare it is.

Most patches tagged "gland" and "other" hold both classes, and these say least about the places of the classes.  With
uniform draws, patches with one class are too rare.  Here each combination that occurs gives an equal part of an epoch.

All draws of a run are one numbered stream, dealt to the combinations in turn; an epoch is the next section of it:

| symbol     | meaning                                                                                            |
|------------|----------------------------------------------------------------------------------------------------|
| ``t``      | number of a draw; epoch e holds e·N to (e + 1)·N - 1                                               |
| ``t % G``  | the combination that gets it, of G                                                                 |
| ``t // G`` | place among the draws of that combination, in pass ``place // n`` over its n items               |

Every pass has an order of its own.  So an epoch depends on (seed, epoch) alone.  No item comes again before all items
of its combination have come, across epochs as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from monai_wsss._checks import DataError

__all__ = ["LabelBalancedSampler"]

logger = logging.getLogger(__name__)


def _by_combination(data: Sequence[Mapping[str, Any]]) -> dict[tuple[float, ...], np.ndarray]:
    """Group the indices of the items by label, in ascending order of the labels."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, item in enumerate(data):
        if "label" not in item:
            raise DataError(f"Item {index} of {len(data)} has no `label`: give the items of a datalist.")
        combination = tuple(np.asarray(item["label"], dtype=np.float64).ravel().tolist())
        groups.setdefault(combination, []).append(index)
    return {combination: np.asarray(groups[combination]) for combination in sorted(groups)}


class LabelBalancedSampler(Sampler[int]):
    """Sampler that draws equal parts from all label combinations that occur; a draw depends on (seed, epoch) alone.

    A combination with more items than its part gives other items in the next epoch, until all have come.  A combination
    with fewer items repeats them; within an epoch :class:`~monai_wsss.data.EpochCacheDataset` augments a repeated item
    in the same way.  Several processes share the draws of an epoch, and no draw goes to two processes.

    Args:
        data: items of a datalist with ``label`` (K,), in the order of the sampled dataset.
        num_samples: draws per epoch, of all processes together, rounded up to a multiple of ``num_replicas``; None
            takes the number of items.
        num_replicas: number of processes.
        rank: number of this process, from 0.
        seed: seed of all draws.

    Raises:
        ValueError: ``num_samples`` is below 1, or ``rank`` is no process.
        DataError: there are no items, or an item has no label.

    Example:
        >>> items = [{"label": [1, 1]}] * 8 + [{"label": [1, 0]}] + [{"label": [0, 1]}] * 3
        >>> sampler = LabelBalancedSampler(items, 9)
        >>> drawn = sorted(sampler)
        >>> len(drawn), sum(index < 8 for index in drawn), drawn.count(8), drawn[-3:]
        (9, 3, 3, [9, 10, 11])
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == drawn
        False
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        num_samples: int | None = None,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        num_samples = len(data) if num_samples is None else num_samples
        if len(data) > 0 and num_samples < 1:
            raise ValueError(f"Expected `num_samples` of at least 1, got {num_samples}.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"Expected `rank` from 0 to {num_replicas - 1} (`num_replicas` - 1), got {rank}.")
        if len(data) == 0:
            raise DataError("There is no case to draw from: put cases into the split, or choose another one.")
        self.groups = _by_combination(data)
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self._share = -(-num_samples // num_replicas)
        counts = ", ".join(
            f"{len(members)} with label {[int(value) for value in combination]}"
            for combination, members in self.groups.items()
        )
        logger.info("An epoch draws %d times, in equal parts from the %s.", self._share * num_replicas, counts)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is drawn next; the trainer does so when an epoch starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Give the number of draws of this process per epoch."""
        return self._share

    def __iter__(self) -> Iterator[int]:
        total = self._share * self.num_replicas
        draws = np.arange(self.epoch * total, (self.epoch + 1) * total)
        indices = np.empty(total, dtype=np.int64)
        for number, members in enumerate(self.groups.values()):
            dealt = draws % len(self.groups) == number
            indices[dealt] = draw_in_passes(members, draws[dealt] // len(self.groups), (self.seed, number + 1))
        order = np.random.default_rng((self.seed, 0, self.epoch)).permutation(total)
        return iter(indices[order][self.rank :: self.num_replicas].tolist())


def draw_in_passes(members: np.ndarray, places: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Give the items at these places in the endless sequence of passes over the members, each in an order of its own.

    Args:
        members: indices of items.
        places: numbers in that sequence, from 0.
        seed: of the sequence.

    Example:
        >>> draw_in_passes(np.array([4, 7, 9]), np.arange(6), (0,)).tolist()
        [9, 4, 7, 9, 4, 7]
    """
    passes, position = np.divmod(places, len(members))
    drawn = np.empty_like(places)
    for which in np.unique(passes).tolist():
        order = np.random.default_rng((*seed, which)).permutation(members)
        drawn[passes == which] = order[position[passes == which]]
    return drawn
