# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work in this process, in several of this machine, in those that ``torchrun`` has started, or in those of Ray.

Processes of ``torchrun`` join no process group while they work, so every training is one of a single process.  A
counter in their store hands each of them the next item; what became of all items is exchanged at the end.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from monai_wsss._processes import gather_objects
from monai_wsss._spread import RayWorkers, check_shared, current_workers, shared_folder
from monai_wsss.benchmark.spread_runs import each_in_processes, one_thread
from monai_wsss.engines import start_distributed, stop_distributed

__all__ = ["Ranks", "SharedWork"]

_PATIENCE = timedelta(days=30)  # one process may train for days while another has nothing left to do

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[str | None, Item], Result]
"""Does an item on a device, such as "cuda:0"; None takes a GPU where there is one."""


@dataclass(frozen=True)
class Ranks:
    """The processes of ``torchrun``, on one machine or several, of which this is one.

    Attributes:
        store: where they tell one another something.
        rank: number of this process.
        size: how many they are.
    """

    store: dist.Store
    rank: int
    size: int

    @classmethod
    def of_torchrun(cls) -> Ranks | None:
        """Meet the others; give None where ``torchrun`` has not started several processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
        return cls(dist.PrefixStore("monai_wsss.benchmark", store), rank, size)

    def first(self, work: Callable[[Item], Result], item: Item, folder: Path) -> Result:
        """Let rank 0 do an item; give all processes its result, and let them see what it has written into a folder.

        Args:
            work: does the item.
            item: what to do.
            folder: the folder that all write into.

        Raises:
            DataError: a process does not see the folder of rank 0.
        """
        if self.rank > 0:
            told: Result = pickle.loads(bytes.fromhex(self.store.get("first").decode()))  # noqa: S301 (of rank 0 of this run)
            check_shared(Path(self.store.get("sign").decode()), f"the output folder {folder}")
            self.store.set(f"seen {self.rank}", "")
            return told
        with shared_folder(folder) as sign:
            result = work(item)
            self.store.set("sign", str(sign.absolute()))
            self.store.set("first", pickle.dumps(result).hex())
            self.store.wait([f"seen {rank}" for rank in range(1, self.size)])
        return result

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Do all items, each in one of the processes; give every process all results, in the order of the items.

        Args:
            work: does an item.
            items: the same in all processes.
        """
        own: dict[int, Result] = {}
        while (number := self.store.add("next", 1) - 1) < len(items):
            own[number] = work(items[number])
        start_distributed(timeout_minutes=_PATIENCE / timedelta(minutes=1))
        try:
            done = {number: result for part in gather_objects(own) for number, result in part.items()}
        finally:
            stop_distributed()
        return [done[number] for number in range(len(items))]


@dataclass(frozen=True)
class SharedWork:
    """Who does the items of some work: the workers of :func:`~monai_wsss.inferers.over_ray` where there are some.

    Attributes:
        out: the folder that all write into.
        processes: so many of this machine, where neither Ray nor ``torchrun`` has started others.
        device: what each works on; None takes a GPU where there is one.
        ranks: the processes of ``torchrun``.
    """

    out: Path
    processes: int = 1
    device: str | None = None
    ranks: Ranks | None = None

    @property
    def writes(self) -> bool:
        """Tell whether this process writes what all have made."""
        return self.ranks is None or self.ranks.rank == 0

    def first(self, work: Work[Item, Result], item: Item) -> Result:
        """Do an item before all others, as one of the workers does it.

        Args:
            work: does it; of the processes of ``torchrun``, rank 0, whose result and files the others get.
            item: what to do.

        Raises:
            DataError: the process that does it does not see the folder, or died.
        """
        workers = current_workers()
        if workers is not None:
            ((_, result),) = self._over_ray(workers, work, [item])
            made: Result = result
            return made
        with one_thread() if self.processes > 1 else nullcontext():
            here = partial(work, self.device)
            return self.ranks.first(here, item, self.out) if self.ranks else here(item)

    def each(self, work: Work[Item, Result], items: Sequence[Item]) -> Iterable[tuple[Item, Result | None]]:
        """Give all items with their results, in whatever order they end.

        Args:
            work: does an item.
            items: what to do, the same in all processes of ``torchrun``.

        Returns:
            The items and their results; None where a process died at it.

        Raises:
            DataError: a process does not see the folder.
            Exception: whatever ``work`` raised.
        """
        here, workers = partial(work, self.device), current_workers()
        if workers is not None:
            return self._over_ray(workers, work, items, lost=lambda number: None)
        if self.ranks is not None:
            return zip(items, self.ranks.each(here, items), strict=True)
        if self.processes > 1 and len(items) > 1:
            return each_in_processes(here, items, self.processes)
        return ((item, here(item)) for item in items)

    def _over_ray(
        self, workers: RayWorkers, work: Work[Any, Any], items: Sequence[Any], **words: Any
    ) -> Iterator[tuple[Any, Any]]:
        gpu = workers.has_gpus if self.device is None else self.device.startswith("cuda")
        with shared_folder(self.out) as sign:
            for number, result in workers.each(_SentWork(work, sign.absolute()), items, gpu=gpu, **words):
                yield items[number], result


@dataclass(frozen=True)
class _SentWork:
    """What goes to the workers of Ray; called there with their device."""

    work: Work[Any, Any]
    sign: Path

    def __call__(self, device: str) -> Callable[[Any], Any]:
        check_shared(self.sign, f"the output folder {self.sign.parent}")
        return partial(self.work, device)
