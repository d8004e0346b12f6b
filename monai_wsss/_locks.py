# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Marks of processes, and locks of folders that a run writes to."""

from __future__ import annotations

import atexit
import os
import re
import socket
import threading
import time
import zlib
from pathlib import Path

from monai_wsss._checks import DataError

__all__ = ["hold_folder", "is_alive", "process_mark", "release_folder"]

LOCK = ".in_use"
"""The file that marks a folder as used; it holds the mark of the process and the name of its machine."""

_BEAT = 30.0
"""Seconds between two signs of life in the files of the held folders."""

_SILENCE = 600.0
"""Seconds without a sign of life after which a process of another machine counts as dead."""

_held: dict[Path, str] = {}
_beating: list[threading.Thread] = []


def _started(pid: int) -> str:
    """Give when a process began, in ticks since the machine did; "0" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "0"


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def process_mark() -> str:
    """Give the mark of this process: its number, when it began, and a digest of the name of its machine.

    Example:
        >>> is_alive(process_mark())
        True
    """
    return f"{os.getpid()}-{_started(os.getpid())}-{_machine()}"


def is_alive(mark: str) -> bool:
    """Tell whether the process of a mark still runs; True where that cannot be known.

    So it is for processes of other machines.  A mark may also be the number of a process alone.

    Example:
        >>> is_alive("no mark")
        True
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+)-([0-9a-f]{8}))?", mark)
    if found is None or found[3] not in (None, _machine()):
        return True
    pid = int(found[1])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, and is of another user
    if _is_zombie(pid):
        return False
    # Numbers are given again: another process may have that of a dead one.
    return found[2] is None or "0" in (found[2], _started(pid)) or found[2] == _started(pid)


def _is_zombie(pid: int) -> bool:
    """Tell whether a process has ended and only waits for its parent to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rsplit(")", 1)[1].split()[0] in "ZX"
    except (OSError, IndexError):
        return False


def _owner(lock: Path) -> tuple[str, str, float] | None:
    """Give mark, machine and age in seconds of a lock; None where there is none."""
    try:
        mark, _, machine = lock.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
        return mark, machine, time.time() - lock.stat().st_mtime
    except OSError:
        return None


def _is_stale(mark: str, age: float) -> bool:
    if re.fullmatch(r"\d+-\d+-[0-9a-f]{8}", mark) is None or not mark.endswith(_machine()):
        return age > _SILENCE
    return not is_alive(mark)


def _take_away(lock: Path, owner: tuple[str, str, float] | None) -> None:
    """Remove a stale lock, unless another process has just put its own in its place."""
    aside = lock.with_name(f"{LOCK}.{process_mark()}")
    try:
        os.replace(lock, aside)
        if owner is not None and (_owner(aside) or owner)[0] != owner[0]:
            os.replace(aside, lock)
    except OSError:
        return
    aside.unlink(missing_ok=True)


def hold_folder(folder: str | os.PathLike[str]) -> None:
    """Mark a folder as used by this process, until :func:`release_folder` or the end of the process.

    A folder that this process holds already stays held.  The lock of a process that has died is taken over: at once if
    it was of this machine, after ten minutes without a sign of life if it was of another.

    Args:
        folder: an existing folder.

    Raises:
        DataError: a process that still runs writes to the folder.
    """
    lock = Path(folder).resolve() / LOCK
    if lock in _held:
        return
    for _ in range(3):  # two processes may find the same stale lock
        try:
            file = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _owner(lock)
            if owner is None or owner[0] == process_mark() or _is_stale(owner[0], owner[2]):
                _take_away(lock, owner)
                continue
            break
        except OSError:
            return  # whoever writes to the folder next says why that is not possible
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(f"{process_mark()} {socket.gethostname()}")
        _held[lock] = process_mark()
        _keep_alive()
        return
    mark, machine, _ = _owner(lock) or ("unknown", "", 0.0)
    raise DataError(
        f"{folder} is in use by process {mark.split('-')[0]} on {machine or 'another machine'}: wait for its end or "
        f"choose another output folder. If that process is dead, delete {lock}."
    )


def release_folder(folder: str | os.PathLike[str]) -> None:
    """End what :func:`hold_folder` began; nothing happens to folders that this process does not hold."""
    lock = Path(folder).resolve() / LOCK
    # A child of fork has the table of its parent, but not its mark.
    if _held.pop(lock, None) == process_mark():
        lock.unlink(missing_ok=True)


@atexit.register
def _release_all() -> None:
    for lock in list(_held):
        release_folder(lock.parent)


def _keep_alive() -> None:
    """Start the thread that gives signs of life, once per process."""
    if _beating and _beating[0].is_alive():
        return
    _beating[:] = [threading.Thread(target=_beat, daemon=True)]
    _beating[0].start()


def _beat() -> None:
    while _held:
        time.sleep(_BEAT)
        for lock in list(_held):
            try:
                os.utime(lock)
            except OSError:
                continue
