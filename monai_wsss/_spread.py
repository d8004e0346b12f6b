# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work over the processes of many CPUs, GPUs and machines, by Ray: cases of ``predict``, pseudo-masks, bands of slides.

    with over_ray("auto"):            the processes that everything inside may use
        segment_slide(...)            asks current_workers(), and hands them the items of its work

Ray starts the processes, hands each the next item, starts those that die again and repeats what they were at; there is
no scheduler here.  A process computes with as many threads and with the same switches of torch as this one, so that
sums go in the same order: results are those of one process bit for bit, on machines of one kind.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import monai
import torch
from monai.utils import optional_import

from monai_wsss import __version__
from monai_wsss._checks import DataError

__all__ = ["LOST", "Make", "RayWorkers", "check_shared", "current_workers", "over_ray"]

Make = Callable[[str], Callable[[Any], Any]]
"""Gives, in a worker and for its device, "cpu" or "cuda", the function that does an item."""

_RETRIES = 3  # of an item whose worker died
LOST = f"the process that worked on it died {_RETRIES + 1} times, as where memory does not suffice"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayWorkers:
    """The processes of a cluster that Ray has started, one per GPU, or one per so many CPUs as this one has threads."""

    @property
    def has_gpus(self) -> bool:
        """Tell whether a machine of the cluster has a GPU."""
        return self.count(gpu=True) > 0

    def count(self, *, gpu: bool) -> int:
        """Count the processes that find room, with a GPU each or without."""
        ray, kind = _ray(), "GPU" if gpu else "CPU"
        each = 1 if gpu else torch.get_num_threads()
        return sum(int(node["Resources"].get(kind, 0) // each) for node in ray.nodes() if node["Alive"])

    def each(
        self, make: Make, items: Sequence[Any], *, gpu: bool, lost: Callable[[int], Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Do all items, in whatever order workers end them.

        Args:
            make: sent to each worker, and called there once; so is whatever it holds.
            items: what the function of ``make`` takes, one each.
            gpu: whether each worker has a GPU of its own, or none.
            lost: gives, by its number, the result of an item whose worker died again and again; None: it is an error.

        Yields:
            The number of an item, and its result.

        Raises:
            DataError: the cluster has no GPU, other versions than this machine, or lost an item.
            ValueError: ``make`` cannot be sent.
            Exception: whatever the function of ``make`` raised; the other items are stopped.
        """
        if not items:
            return
        ray = _ray()
        pool = self._pool(make, min(len(items), max(self.count(gpu=gpu), 0 if gpu else 1)), gpu)
        for numbered in enumerate(items):
            pool.submit(lambda worker, numbered: worker.do.remote(*numbered), numbered)
        left = set(range(len(items)))
        while pool.has_next():
            try:
                outcome = pool.get_next_unordered()
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:  # its number stays in `left`
                _logger.warning("A worker died: %s", " ".join(str(error).split())[:300])
                continue
            pool.pop_idle()  # makes room for a worker whose machine is gone
            for record in outcome.records:
                logging.getLogger(record.name).handle(record)
            if outcome.error is not None:
                raise outcome.error
            left.remove(outcome.number)
            yield outcome.number, outcome.result
        for number in sorted(left):
            if lost is None:
                raise DataError(f"Part {number + 1} of {len(items)} is not done: {LOST}. What is finished is kept.")
            yield number, lost(number)

    @staticmethod
    def _pool(make: Make, size: int, gpu: bool) -> Any:
        """Start the workers."""
        ray = _ray()
        if gpu and size == 0:
            raise DataError("The cluster has no GPU: take --device cpu, or start Ray on machines that have some.")
        try:
            sent = ray.put(make)
        except (TypeError, AttributeError, RuntimeError, pickle.PickleError) as error:
            raise ValueError(
                f"Expected parts that can be sent to other processes, got one that cannot: {error}."
            ) from error
        resources = {"num_cpus": 1, "num_gpus": 1} if gpu else {"num_cpus": torch.get_num_threads()}
        kind = ray.remote(max_restarts=-1, max_task_retries=_RETRIES, **resources)(_Worker)
        return ray.util.ActorPool([kind.remote(sent, _switches(), _versions(), gpu) for _ in range(size)])


@dataclass
class _Outcome:
    """What a worker did with an item: a result or an error, and what it had to tell."""

    number: int
    result: Any = None
    error: Exception | None = None
    records: Sequence[logging.LogRecord] = ()


class _Worker:
    """A process that Ray starts, and starts again where it dies."""

    def __init__(self, make: Make, switches: dict[str, Any], versions: dict[str, str], gpu: bool) -> None:
        self.make, self.versions, self.device = make, versions, "cuda" if gpu else "cpu"
        self.function: Callable[[Any], Any] | None = None
        self.heard: SimpleQueue[logging.LogRecord] = SimpleQueue()
        logger = logging.getLogger("monai_wsss")
        logger.addHandler(QueueHandler(self.heard))
        logger.setLevel(switches["log_level"])
        with suppress(OSError):  # so that relative paths are those of the run
            os.chdir(switches["folder"])
        _set_switches(switches)

    def do(self, number: int, item: Any) -> _Outcome:
        """Do an item; errors are handed over, so that Ray does not wrap them."""
        outcome = _Outcome(number)
        try:
            if self.function is None:
                self._compare_versions()
                self.function = self.make(self.device)
            outcome.result = self.function(item)
        except Exception as error:  # raised where the work was asked for
            error.add_note(traceback.format_exc())
            outcome.error = _sendable(error)
        outcome.records = [self.heard.get() for _ in range(self.heard.qsize())]
        return outcome

    def _compare_versions(self) -> None:
        """Refuse a machine whose packages would give other results."""
        for name, version in _versions().items():
            if version != self.versions[name]:
                raise DataError(
                    f"{socket.gethostname()} has {name} {version}, and {self.versions[name]} is where the run began: "
                    "install the same on all machines."
                )


def check_shared(file: Path) -> None:
    """Check, in a worker, that it sees a file which was written where the run began.

    Raises:
        DataError: it does not.
    """
    if not file.is_file():
        raise DataError(
            f"{socket.gethostname()} does not see {file.parent}: choose an output folder on a disk that all machines "
            "share, under one path."
        )


def _sendable(error: Exception) -> Exception:
    """Give an error that arrives as it is."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # whatever its class objects to
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _versions() -> dict[str, str]:
    return {"monai_wsss": __version__, "torch": torch.__version__, "monai": monai.__version__}


def _switches() -> dict[str, Any]:
    """Give what the last bits of a result depend on besides its input, where paths begin, and which logs are wanted."""
    return {
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")},
        "folder": os.getcwd(),
        "log_level": logging.getLogger("monai_wsss").getEffectiveLevel(),
    }


def _set_switches(switches: dict[str, Any]) -> None:
    torch.set_num_threads(switches["threads"])
    torch.set_float32_matmul_precision(switches["precision"])
    torch.use_deterministic_algorithms(switches["deterministic"])
    for name, value in switches["cudnn"].items():
        setattr(torch.backends.cudnn, name, value)


def _ray() -> Any:
    """Import Ray.

    Raises:
        DataError: it is not installed.
    """
    ray, there = optional_import("ray")
    if not there:
        raise DataError(
            "Expected Ray for work over several processes, which is not installed: pip install 'monai-wsss[ray]'."
        )
    optional_import("ray.util")
    return ray


_active: ContextVar[RayWorkers | None] = ContextVar("workers", default=None)


def current_workers() -> RayWorkers | None:
    """Give the workers of the :func:`over_ray` around the caller, or None."""
    return _active.get()


@contextmanager
def over_ray(address: str | None = "local") -> Iterator[RayWorkers | None]:
    """Spread cases, pseudo-masks and bands of slides over processes that Ray starts, for everything inside.

    ``predict_masks``, ``PseudoMaskWriter.run`` and ``segment_slide`` ask for it.  Input, weights and output folder must
    lie under the same paths on all machines.  Results are those of one process; the number of a process's threads is
    that of this one, ``torch.get_num_threads()``, so with ``OMP_NUM_THREADS=1`` there is one process per core.

    Args:
        address: "local" starts processes on this machine; "auto", "host:port" or "ray://host:port" is a cluster that
            runs; None changes nothing.  Where the caller has called ``ray.init``, that cluster is used.

    Yields:
        The workers.

    Raises:
        DataError: Ray is not installed, or there is no cluster at the address.

    Example:
        >>> with over_ray(None):
        ...     print(current_workers())
        None
    """
    if address is None:
        yield None
        return
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _start(ray, address)
    token = _active.set(RayWorkers())
    try:
        yield _active.get()
    finally:
        _active.reset(token)
        if started:
            with suppress(Exception):
                ray.shutdown()


def _start(ray: Any, address: str) -> None:
    """Join a cluster, or start one on this machine."""
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises many kinds
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"Cannot reach Ray at {address!r} ({text}): start it by `ray start --head`, or give --ray without an "
            "address."
        ) from error
