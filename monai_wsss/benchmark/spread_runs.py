# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work over several processes of this machine, each with one thread of torch, by :mod:`concurrent.futures`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

__all__ = ["LOST", "each_in_processes", "one_thread"]

LOST = "The process that worked on it died, as where memory does not suffice."
"""What became of an item without a result."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_work: list[Callable[[Any], Any]] = []  # of a worker: the function that it was started for


def each_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result | None]]:
    """Do all items, in whatever order processes end them.

    Where a process dies, nothing tells which item it was at: each item that is left gets a process of its own.

    Args:
        work: does an item; it is sent to each process once, and keeps there what it has read.
        items: what to do.
        processes: at most so many at once.

    Yields:
        An item, and its result; None where its process died.

    Raises:
        Exception: whatever ``work`` raised; the other items are given up.
    """
    left = []
    with _pool(work, min(processes, len(items))) as pool:
        futures = {pool.submit(_do, item): item for item in items}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                left.append(futures[future])
    for item in left:
        with _pool(work, 1) as pool:
            try:
                result = pool.submit(_do, item).result()
            except BrokenProcessPool:
                result = None
        yield item, result


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as those processes do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _pool(work: Callable[[Any], Any], processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes; what they have not begun is given up at the end."""
    level = logging.getLogger("monai_wsss").getEffectiveLevel()
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(work, level))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any], level: int) -> None:
    """Begin a worker, which ends with its parent and, at once, by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logger = logging.getLogger("monai_wsss")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(level)
    _work.append(work)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # else it would train on, and hold its folder


def _do(item: Any) -> Any:
    return _work[0](item)
