# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["forget_peak_memory", "peak_memory_mb"]

_PROCESS = Path("/proc/self")


def forget_peak_memory() -> bool:
    """Let the peak begin anew at the present size; tell whether the system does so."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float | None:
    """Give the largest size of this process in memory, in MB; None where the system does not tell.

    Example:
        >>> peak = peak_memory_mb()
        >>> peak is None or peak > 1
        True
    """
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    peak = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak[0]) / 1024 if peak else None
