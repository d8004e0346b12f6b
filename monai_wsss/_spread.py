# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work over the processes of many CPUs, GPUs and machines, by Ray: cases of ``predict``, pseudo-masks, bands of slides.

    with over_ray("auto"):            the processes that everything inside may use
        segment_slide(...)            asks current_workers(), and hands them the items of its work

Ray starts the processes, hands each the next item, starts those that die again and repeats what they were at; there is
no scheduler here.  A process computes with as many threads and with the same switches of torch as this one, so that
sums go in the same order: results are those of one process bit for bit, on machines of one kind.  What is sent stays
packed until the worker has compared versions.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from monai_wsss._files import write_error
from monai_wsss._locks import process_mark

__all__ = ["LOST", "Make", "RayWorkers", "check_shared", "current_workers", "over_ray", "shared_folder"]

Make = Callable[[str], Callable[[Any], Any]]
"""Gives, in a worker and for its device, "cpu" or "cuda", the function that does an item."""

_RETRIES = 3  # of an item whose worker died
LOST = f"the process that worked on it died {_RETRIES + 1} times, as where memory does not suffice"
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Without it, CUDA refuses to be deterministic."""

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
        each = 1 if gpu else _cpus_per_process()
        return sum(int(there // each) for there in _resources("GPU" if gpu else "CPU"))

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
            ValueError: ``make`` or an item cannot be sent.
            Exception: whatever the function of ``make`` raised; the other items are stopped.
        """
        if not items:
            return
        ray = _ray()
        sent = ray.put(_packed(ray, make))  # kept to the end, since workers that start again need it
        workers = self._workers(sent, len(items), gpu)
        pool = ray.util.ActorPool(workers)
        left = set(range(len(items)))
        try:
            for numbered in enumerate(items):
                pool.submit(lambda worker, task: worker.do.remote(task[0], _packed(ray, task[1])), numbered)
            while pool.has_next():
                outcome = _next_outcome(ray, pool)
                if outcome is None:  # its number stays in `left`
                    continue
                if (idle := pool.pop_idle()) is not None:  # makes room for a worker whose machine is gone
                    ray.kill(idle)
                for record in outcome.records:
                    logging.getLogger(record.name).handle(record)
                if outcome.error is not None:
                    raise outcome.error
                left.remove(outcome.number)
                yield outcome.number, outcome.result
        finally:
            if ray.is_initialized():
                for worker in workers:
                    ray.kill(worker)
        for number in sorted(left):
            if lost is None:
                raise DataError(f"Part {number + 1} of {len(items)} is not done: {LOST}. What is finished is kept.")
            yield number, lost(number)

    def _workers(self, make: Any, items: int, gpu: bool) -> list[Any]:
        """Start the workers."""
        ray, room = _ray(), self.count(gpu=gpu)
        if room == 0:
            remedy = "take --device cpu, or start Ray on machines that have some" if gpu else "start Ray with some"
            raise DataError(f"The cluster has no {'GPU' if gpu else 'CPU'}: {remedy}.")
        resources = {"num_cpus": 0, "num_gpus": 1} if gpu else {"num_cpus": _cpus_per_process()}
        kind = ray.remote(max_restarts=-1, max_task_retries=_RETRIES, **resources)(_Worker)
        size, threads = min(items, room), torch.get_num_threads()
        _logger.info("The work is shared by %d processes with %d threads each.", size, threads)
        if items > 1 and size == 1 and not gpu and threads > 1:
            _logger.info("With OMP_NUM_THREADS=1 there are more.")
        return [kind.remote(make, _switches(), _versions(), gpu) for _ in range(size)]


def _resources(kind: str) -> list[float]:
    """Give how many CPUs or GPUs each machine has."""
    return [node["Resources"].get(kind, 0) for node in _ray().nodes() if node["Alive"]]


def _cpus_per_process() -> int:
    """Give the CPUs of a process: one per thread, and no more than there are on the largest machine."""
    return max(1, min(torch.get_num_threads(), int(max(_resources("CPU"), default=0))))


def _packed(ray: Any, part: Any) -> bytes:
    """Give the bytes of a part.

    Raises:
        ValueError: it cannot be sent.
    """
    try:
        return bytes(ray.cloudpickle.dumps(part))
    except Exception as error:  # whatever its class objects to
        raise ValueError(
            f"Expected parts that can be sent to other processes, got one that cannot: {_line(error)}."
        ) from error


def _next_outcome(ray: Any, pool: Any) -> _Outcome | None:
    """Wait for a worker; give what it did, or None where it died again and again.

    Raises:
        DataError: it cannot even begin.
    """
    try:
        outcome: _Outcome = pool.get_next_unordered()
        return outcome
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
            said = str(error).strip().splitlines()[-1:]
            raise DataError(
                f"A machine of the cluster cannot do the work ({''.join(said)}): install the same packages there as "
                "where the run began."
            ) from error
        _logger.warning("A worker died: %s", _line(error))
        return None


@dataclass
class _Outcome:
    """What a worker did with an item: a result or an error, and what it had to tell."""

    number: int
    result: Any = None
    error: Exception | None = None
    records: Sequence[logging.LogRecord] = ()


class _Worker:
    """A process that Ray starts, and starts again where it dies."""

    def __init__(self, make: bytes, switches: dict[str, Any], versions: dict[str, str], gpu: bool) -> None:
        self.make, self.versions, self.device = make, versions, "cuda" if gpu else "cpu"
        self.function: Callable[[Any], Any] | None = None
        self.heard: SimpleQueue[logging.LogRecord] = SimpleQueue()
        # All is told where the run began, which knows the names that no log may show; nothing stays in Ray's own logs.
        logging.getLogger().addHandler(QueueHandler(self.heard))
        logging.captureWarnings(True)
        logging.getLogger("monai_wsss").setLevel(switches["log_level"])
        with suppress(OSError):  # so that relative paths are those of the run
            os.chdir(switches["folder"])
        _set_switches(switches)

    def do(self, number: int, item: bytes) -> _Outcome:
        """Do an item; errors are handed over, so that Ray does not wrap them."""
        outcome = _Outcome(number)
        try:
            if self.function is None:
                self._compare_versions()
                self.function = pickle.loads(self.make)(self.device)  # noqa: S301
            outcome.result = self.function(pickle.loads(item))  # noqa: S301
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


@contextmanager
def shared_folder(folder: Path) -> Iterator[Path]:
    """Put a file of this run into a folder for as long as workers write there; a worker that sees it sees the folder.

    Raises:
        DataError: the folder cannot be written.
    """
    sign = folder / f".{process_mark()}.partial.shared"
    try:
        sign.touch()
    except OSError as error:
        raise write_error(sign, error) from error
    try:
        yield sign
    finally:
        sign.unlink(missing_ok=True)


def check_shared(path: Path, what: str) -> None:
    """Check, in a worker, that it sees a file of the machine where the run began.

    Args:
        path: the file.
        what: says what it stands for.

    Raises:
        DataError: it does not.
    """
    if not path.exists():
        raise DataError(
            f"{socket.gethostname()} does not see {what}: choose a place on a disk that all machines share, under one "
            "path."
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


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
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "workspace": os.environ.get(_WORKSPACE),
        "cudnn": {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")},
        "folder": os.getcwd(),
        "log_level": logging.getLogger("monai_wsss").getEffectiveLevel(),
    }


def _set_switches(switches: dict[str, Any]) -> None:
    torch.set_num_threads(switches["threads"])
    torch.set_float32_matmul_precision(switches["precision"])
    if switches["workspace"] is not None:
        os.environ[_WORKSPACE] = switches["workspace"]
    torch.use_deterministic_algorithms(switches["deterministic"], warn_only=switches["warn_only"])
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
        address: "local" starts processes on this machine; "auto" or "host:port" is a cluster that runs; None changes
            nothing.  Where the caller has called ``ray.init``, that cluster is used.

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
    if not isinstance(address, str) or not address:
        raise DataError(f"Expected `address` to be 'local', 'auto' or 'host:port', got {address!r}.")
    ray = _ray()
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_cluster(ray, address))
        token = _active.set(RayWorkers())
        try:
            yield _active.get()
        finally:
            _active.reset(token)


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """Join a cluster, and leave it; or start one on this machine, and end it."""
    local, handler = address == "local", signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        stack.callback(_restore, handler)
        own: dict[str, Any] = {}
        if local:
            # Ray's own logs; the path of its sockets must be short, as that of a job's own TMPDIR may not be.
            place = "/tmp" if os.path.isdir("/tmp") else None  # noqa: S108
            logs = tempfile.TemporaryDirectory(prefix="ray", dir=place, ignore_cleanup_errors=True)
            own = {"include_dashboard": False, "_temp_dir": stack.enter_context(logs)}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # Ray raises many kinds
            remedy = (
                "run without --ray" if local else "start it by `ray start --head`, or give --ray without an address"
            )
            raise DataError(f"Cannot reach Ray at {address!r} ({_line(error)}): {remedy}.") from error
        try:
            yield
        finally:
            with suppress(Exception):
                ray.shutdown()


def _restore(handler: Any) -> None:
    """Give SIGTERM the handler back that it had before Ray took it."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
