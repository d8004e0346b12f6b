# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The training dataset: deterministic transforms cached by MONAI, random ones drawn from (seed, epoch, index) alone.

MONAI's random transforms carry one random state through a run, so that each image depends on all draws before it.  Here
each draw starts from its own (seed, epoch, index).  So the order of loading and the number of workers change nothing,
and a run that was killed and resumed gives the same images.

With a ``device`` the results of the deterministic transforms are moved there before they are cached.  So the random
transforms and the collation run there too.  The draws are the same on every device, since they come from NumPy's
generators.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable
from torch.utils.data import get_worker_info

from monai_wsss._labels import ON_HOST

__all__ = ["EpochCacheDataset", "check_workers", "item_bytes"]

logger = logging.getLogger(__name__)

_HOST = torch.device("cpu")


def item_bytes(item: Any) -> int:
    """Count the bytes of the arrays and tensors inside a (nested) sample."""
    if isinstance(item, torch.Tensor):
        return item.element_size() * item.nelement()
    if isinstance(item, np.ndarray):
        return int(item.nbytes)
    if isinstance(item, Mapping):
        return sum(item_bytes(value) for value in item.values())
    if isinstance(item, (list, tuple)):
        return sum(item_bytes(value) for value in item)
    return 0


def check_workers(loader: Any) -> None:
    """Check that a loader has no worker processes where its dataset's random transforms run on a GPU.

    Args:
        loader: of batches; one whose dataset tells no device passes.

    Raises:
        ValueError: worker processes, and transforms on a GPU.
    """
    device = getattr(getattr(loader, "dataset", None), "device", None)
    workers = getattr(loader, "num_workers", 0)
    if isinstance(device, torch.device) and device.type != "cpu" and workers > 0:
        raise ValueError(_no_workers(device, workers))


def _no_workers(device: torch.device, workers: int) -> str:
    return (
        f"Expected `num_workers` 0 with transforms on {device}, got {workers}: worker processes cannot use a GPU that "
        "the process which starts them is using."
    )


class EpochCacheDataset(CacheDataset):
    """``monai.data.CacheDataset`` whose random transforms depend on (seed, epoch, index) alone.

    Before the cache is filled, the memory that it will take is estimated from the first item and logged.  A cache that
    is filled at run time is not estimated.

    Args:
        data: items of a datalist.
        transform: deterministic transforms; their results are cached.
        random_transform: random transforms, applied to a copy of the cached item at each access.
        seed: the first of the three numbers on which a draw depends.
        cache_rate: share of the items to cache; 0 caches nothing.
        num_workers: threads that fill the cache.
        progress: whether to show a progress bar while the cache is filled.
        runtime_cache: whether to fill the cache at the first access of each item, for files that the run itself writes.
        device: where the random transforms run.  Tensors of an item are cached there, but for those that methods read
            on the host (``label``, ``boxes``); ``cache_rate`` bounds the memory.  On a GPU, loaders need
            ``num_workers=0``.

    Raises:
        ValueError: a GPU where there is none; worker processes and a GPU.

    Example:
        >>> from monai.transforms import RandShiftIntensityd
        >>> items = [{"image": torch.zeros(1, 4, 4)} for _ in range(3)]
        >>> shift = RandShiftIntensityd("image", offsets=1.0, prob=1.0)
        >>> dataset = EpochCacheDataset(items, Compose([]), shift, seed=7, progress=False)
        >>> first = dataset[1]["image"]
        >>> _ = dataset[0], dataset[2]
        >>> bool((dataset[1]["image"] == first).all())
        True
        >>> dataset.set_epoch(2)
        >>> bool((dataset[1]["image"] == first).all())
        False
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose,
        random_transform: Compose | Randomizable | None = None,
        *,
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int = 1,
        progress: bool = True,
        runtime_cache: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Expected `device` to be a device such as cpu or cuda:0, got {device!r}.") from error
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"Expected a device of this machine for transforms, got {self.device}: there is no GPU.")
        self.random_transform = random_transform
        self.seed = seed
        # Shared memory, so that worker processes that outlive an epoch see the new one as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if data and cache_rate > 0 and not runtime_cache:
            cached = int(len(data) * min(cache_rate, 1.0))
            size = item_bytes(transform(data[0])) * cached
            place = "in memory" if self.device == _HOST else f"on {self.device}"
            logger.info("Caching %d of %d items %s: about %.0f MB.", cached, len(data), place, size / 1e6)
        super().__init__(
            data,
            transform,
            cache_rate=cache_rate,
            num_workers=num_workers,
            progress=progress,
            runtime_cache=runtime_cache,
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next draws; the trainer does so when an epoch starts."""
        self._epoch.fill_(epoch)

    def _moved(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bring the tensors of an item to the device, but for those that methods read on the host."""
        if self.device == _HOST:
            return item
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) and name not in ON_HOST else value
            for name, value in item.items()
        }

    def _load_cache_item(self, idx: int) -> Any:
        """Give what is cached of an item: the result of the deterministic transforms, on the device."""
        return self._moved(super()._load_cache_item(idx))

    def _transform(self, index: int) -> Any:
        if self.device.type != "cpu" and (worker := get_worker_info()) is not None:
            raise ValueError(_no_workers(self.device, worker.num_workers))
        item = self._moved(super()._transform(index))  # of items that are not cached
        if self.random_transform is None:
            return item
        state = np.random.SeedSequence((self.seed, int(self._epoch), index)).generate_state(1)
        if isinstance(self.random_transform, Randomizable):
            self.random_transform.set_random_state(seed=int(state[0]))
        return self.random_transform(item)
