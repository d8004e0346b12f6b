# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A sampler that gives each batch as many images with a finding as without, for methods that convert one to the other.

The draws of an epoch come in pairs: an image with a finding, then a healthy one; the two have nothing to do with each
other.  So a batch of 2 N draws holds N of each.  An epoch is one pass over the images with a finding; healthy images
come in passes of their own, which go on in the next epoch.  The processes of a distributed run take the pairs in turn:
together their batches are those of one process with as many images in all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from monai_wsss._checks import DataError
from monai_wsss.data.sampler import draw_in_passes

__all__ = ["UnpairedSampler"]

logger = logging.getLogger(__name__)


class UnpairedSampler(Sampler[int]):
    """Sampler that draws images with a finding and healthy ones alternately; a draw depends on (seed, epoch) alone.

    Give the loader an even batch size.

    Args:
        data: items of a datalist with ``label`` (K,), in the order of the sampled dataset; without any class it is
            healthy.
        num_pairs: pairs per epoch, of all processes together, rounded up to a multiple of ``num_replicas``; None takes
            the number of images with a finding.
        num_replicas: number of processes.
        rank: number of this process, from 0.
        seed: seed of all draws.

    Raises:
        ValueError: ``num_pairs`` is below 1, or ``rank`` is no process.
        DataError: there is no image with a finding, or no healthy one; an item has no label.

    Example:
        >>> items = [{"label": [0]}] * 2 + [{"label": [1]}] * 3
        >>> sampler = UnpairedSampler(items)
        >>> drawn = list(sampler)
        >>> len(drawn), sorted(drawn[::2]), set(drawn[1::2])
        (6, [2, 3, 4], {0, 1})
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        num_pairs: int | None = None,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"Expected `rank` from 0 to {num_replicas - 1} (`num_replicas` - 1), got {rank}.")
        if num_pairs is not None and num_pairs < 1:
            raise ValueError(f"Expected `num_pairs` of at least 1, got {num_pairs}.")
        for index, item in enumerate(data):
            if "label" not in item:
                raise DataError(f"Item {index} of {len(data)} has no `label`: give the items of a datalist.")
        found = np.array([bool(np.asarray(item["label"]).any()) for item in data], dtype=bool)
        self.diseased, self.healthy = np.flatnonzero(found), np.flatnonzero(~found)
        if not (len(self.diseased) and len(self.healthy)):
            raise DataError(
                f"Expected images with a finding and without, got {len(self.diseased)} and {len(self.healthy)}: "
                "conversion learns from both."
            )
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self._share = -(-(num_pairs or len(self.diseased)) // num_replicas)
        logger.info(
            "An epoch draws %d pairs, of %d images with a finding and %d healthy ones.",
            self._share * num_replicas,
            len(self.diseased),
            len(self.healthy),
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is drawn next; the trainer does so when an epoch starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Give the number of draws of this process per epoch."""
        return 2 * self._share

    def __iter__(self) -> Iterator[int]:
        total = self._share * self.num_replicas
        places = np.arange(self.epoch * total, (self.epoch + 1) * total)
        kinds = (self.diseased, self.healthy)
        pairs = np.stack([draw_in_passes(kind, places, (self.seed, number)) for number, kind in enumerate(kinds)], 1)
        return iter(pairs[self.rank :: self.num_replicas].flatten().tolist())
