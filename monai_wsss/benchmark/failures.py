# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Why runs failed: the whole of it for those who have the data, and without names for everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from traceback import format_exception
from typing import Any

from monai_wsss._files import make_directory, write_json
from monai_wsss.benchmark.spread_runs import LOST
from monai_wsss.data.log_names import filter_of_datalist

__all__ = ["keep_failure"]


def keep_failure(path: Path, told: Mapping[str, Any], error: Exception | None, datalist: Path, out: Path) -> str:
    """Write the whole reason of a failure with its traceback, and give the reason without paths and names of cases.

    Args:
        path: the JSON file to write.
        told: what else it holds.
        error: what was raised; None where the process died.
        datalist: its names are those that are left out.
        out: folder of the comparison.
    """
    reason = LOST if error is None else _reason(error)
    make_directory(path.parent)
    write_json(path, {**told, "reason": reason, "traceback": format_exception(error) if error else []})
    if error is None:
        return LOST
    try:
        return filter_of_datalist(datalist, out).clean(reason)
    except Exception:  # the datalist is gone or damaged, in whatever way: one failure must not end all runs
        return f"{type(error).__name__}, see the folder failures."


def _reason(error: BaseException) -> str:
    """Tell why a run failed: of an error in a transform what MONAI wraps, which names the object alone."""
    while str(error).startswith("applying transform") and error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
