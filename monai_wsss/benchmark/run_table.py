# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of one run of the benchmark of methods, which tells what made it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import monai_wsss
from monai_wsss import __version__
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.benchmark.table import BenchmarkTable

__all__ = ["RunTable", "made_by", "run_place"]

_LIBRARIES = ("torch", "monai", "numpy")


@dataclass(frozen=True)
class RunTable(BenchmarkTable):
    """The table of one run, whose JSON tells the versions of everything.

    Attributes:
        device: trains, such as "cuda:0".
    """

    device: str = "cpu"

    @property
    def told(self) -> dict[str, Any]:
        """Tell what made the rows."""
        gpu = torch.device(self.device).type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else self.device
        return {**super().told, **made_by(), "device": name}

    def _costs(self, recipe: str, seed: int) -> dict[str, dict[str, float]]:
        """Give the steps of all stages of a row, and the memory of the one that needs most."""
        costs, teacher = super()._costs(recipe, seed), self.recipes[recipe].teacher
        if teacher is None:
            return costs
        earlier = self._costs(teacher, seed)
        for name, joined in (("steps", sum), ("peak_memory_mb", max), ("gpu_memory_mb", max)):
            if name in costs and name in earlier:
                costs[name] = {"mean": joined((costs[name]["mean"], earlier[name]["mean"]))}
        return costs


def run_place(split: str, name: str, run: str) -> Path:
    """Give where the files of a run lie below the folder of their kind, without their ending.

    Example:
        >>> run_place("validation", "cam, small", "seed0").as_posix()
        'validation/cam_small/seed0'
    """
    return Path(split) / folder_name(name) / run


def made_by() -> dict[str, Any]:
    """Tell the version and the digest of the code, and the versions of Python and of libraries, for JSON."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
    return {"version": __version__, "code_sha256": _code_sha256(), "versions": versions}


@cache
def _code_sha256() -> str:
    """Give one digest of the version and of all source files of this package."""
    root = Path(monai_wsss.__file__).parent
    digest = sha256(__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
