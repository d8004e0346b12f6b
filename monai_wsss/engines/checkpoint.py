# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checkpoints of a run: tensors and plain values only, readable with ``weights_only=True``, complete or absent."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss._files import load_tensors, make_directory, save_tensors
from monai_wsss.networks.published_weights import record_whole_weights

__all__ = [
    "checkpoints_of",
    "latest_checkpoint",
    "load_tensors",
    "read_checkpoint",
    "remove_checkpoints",
    "restore_rng_state",
    "rng_state",
    "save_checkpoint",
    "save_weights",
    "with_weights",
]

_NAME = re.compile(r"epoch_(\d+)\.pt")

_CONTENT = {
    "epoch": int,
    "length": list,
    "iteration": int,
    "method": dict,
    "optimizers": dict,
    "lr_schedulers": dict,
    "scaler": dict,
    "rng": dict,
}
"""What a checkpoint holds at least, by type."""


def rng_state() -> dict[str, Any]:
    """Give the states of Python's, numpy's and torch's global generators as tensors and plain values."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to what :func:`rng_state` gave."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(directory: str | os.PathLike[str], epoch: int, content: dict[str, Any], *, keep: int) -> Path:
    """Write ``epoch_<n>.pt`` and remove all but the last ``keep``.

    Raises:
        DataError: the disk is full or the folder cannot be written; earlier checkpoints stay as they were.
    """
    folder = make_directory(directory)
    path = folder / f"epoch_{epoch:04d}.pt"
    save_tensors(path, content)
    for _, old in _checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("epoch_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(directory: str | os.PathLike[str]) -> Path | None:
    """Find the last complete checkpoint of a run, or give None before the first."""
    found = _checkpoints(Path(directory))
    return found[-1][1] if found else None


def checkpoints_of(directory: str | os.PathLike[str]) -> list[Path]:
    """Find the checkpoints that are kept of a run, the last one first."""
    return [path for _, path in reversed(_checkpoints(Path(directory)))]


def read_checkpoint(path: str | os.PathLike[str], needed: Iterable[str] = tuple(_CONTENT)) -> dict[str, Any]:
    """Read a file that :func:`save_checkpoint` wrote, and check that it holds what a checkpoint does.

    Args:
        path: the file.
        needed: names of what must be in it; a training needs all that it writes.

    Raises:
        DataError: the file is absent, damaged or no checkpoint.
    """
    content = load_tensors(path)
    missing = [name for name in needed if not isinstance(content.get(name), _CONTENT[name])]
    if missing:
        raise DataError(f"{path} is no checkpoint of a training, it lacks {', '.join(missing)}: use another file.")
    return content


def save_weights(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Write a network's flat state dict, on the CPU, whole or not at all."""
    make_directory(Path(path).parent)
    save_tensors(path, {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()})


def with_weights(network: nn.Module, path: str | os.PathLike[str] | None) -> nn.Module:
    """Load the weights of a file that :func:`save_weights` wrote into a network, and give it; None loads nothing.

    Raises:
        DataError: the file is absent or damaged, or of another network.
    """
    if path is None:
        return network
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise DataError(
            f"{path} holds the weights of another network: use the settings that it was trained with. {error}"
        ) from error
    record_whole_weights(network, path)
    return network


def remove_checkpoints(directory: str | os.PathLike[str]) -> int:
    """Remove the checkpoints of an earlier run, so that a new run cannot resume from them; give their number."""
    found = _checkpoints(Path(directory))
    for _, path in found:
        path.unlink()
    return len(found)
