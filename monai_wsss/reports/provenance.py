# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``run.json``: what made these numbers, so that someone else can make them again, and nothing about who did it where.

Versions, seed, configuration and the hashes of data list and weights go in; user names, host names and home folders
stay out.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import monai_wsss
from monai_wsss._files import file_sha256, make_directory, write_json
from monai_wsss._nifti import says_no_unit
from monai_wsss.data import load_header
from monai_wsss.data.datalist_checks import placed_items

__all__ = [
    "assumed_units",
    "collect_provenance",
    "other_than_trained",
    "read_run",
    "recorded_encoder_weights",
    "recorded_supervision",
    "settings_of",
    "simulated_supervision",
    "without_user",
    "write_run",
]

_PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite")
_INFERRING = {
    **{name: name for name in ("grid", "views", "scales")},
    "windows.roi_size": "window",
    "cam.variant": "cam",
}
"""Attributes of an inferer that decide the result, and their names in a record."""
_WITHOUT_EFFECT = ("preset", "blank_reference", "over_processes")
"""Words of a network that change nothing by themselves once it has weights."""
_ABSENT = object()
_START = r"(?<![\w.])"
_HOME_FOLDERS = re.compile(rf"{_START}(?:[A-Za-z]:)?[/\\](?:home|Users)[/\\][^/\\\s:;,'\"]+|{_START}/root(?=/|$)")


def collect_provenance(
    *,
    config: dict[str, Any] | None,
    seed: int | None,
    data: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    uses_masks: Sequence[str] | None,
) -> dict[str, Any]:
    """Describe a run.

    Args:
        config: the settings of the run; values that JSON cannot hold are written as the name of their type.
        seed: of the random numbers, if one was set.
        data: the data list; its SHA-256 is recorded, its path is not.
        weights: the weights file; its SHA-256 is recorded, its path is not.
        uses_masks: what read pixel masks, one phrase each, e.g. ``"training targets (full supervision)"``; empty where
            image-level labels were all the supervision, ``None`` where that is not known.

    Returns:
        a dict that JSON can hold, without user name, host name or home folder.

    Raises:
        DataError: ``data`` or ``weights`` cannot be read.

    Example:
        >>> run = collect_provenance(config={"epochs": 8}, seed=0, data=None, weights=None, uses_masks=[])
        >>> run["seed"], run["config"], run["uses_masks"]
        (0, {'epochs': 8}, [])
    """
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "git_commit": _git_commit(Path(monai_wsss.__file__).parents[1]),
        "seed": seed,
        "datalist_sha256": _sha256("data list", data),
        "weights_sha256": _sha256("weights", weights),
        "uses_masks": None if uses_masks is None else list(uses_masks),
        "config": _plain(config or {}),
    }


def settings_of(part: Any) -> dict[str, Any]:
    """Ask something that was built how it is set.

    Args:
        part: a trainer, an evaluator, an inferer, or whatever has ``settings``, a dict of plain values.

    Returns:
        of a trainer its method's ``settings``, epochs, iterations per epoch, batch size, optimizer, peak learning rate,
        weight decay and schedule; of an evaluator its network's ``settings`` and how it infers.

    Example:
        >>> import torch
        >>> from monai_wsss.inferers import VolumeInferer
        >>> settings_of(VolumeInferer(grid=(64, 64)))
        {'grid': (64, 64), 'views': 'none', 'scales': (1.0,)}
    """
    if hasattr(part, "core") and hasattr(part, "optimizers"):
        return _settings_of_training(part)
    if hasattr(part, "core"):
        return _settings_of_method(part.core)
    if hasattr(part, "inferer") and hasattr(part, "network"):
        amp = {} if (used := getattr(part, "amp", None)) is None else {"amp": bool(used)}
        return {**getattr(part.network, "settings", {}), **settings_of(part.inferer), **amp}
    if isinstance(settings := getattr(part, "settings", None), dict):
        return dict(settings)
    found = {name: _attribute(part, path) for path, name in _INFERRING.items()}
    return {name: value for name, value in found.items() if value is not _ABSENT}


def _attribute(part: Any, path: str) -> Any:
    for name in path.split("."):
        part = getattr(part, name, _ABSENT)
    return part


def _settings_of_method(method: Any) -> dict[str, Any]:
    return {"method": type(method).__name__, **getattr(method, "settings", {})}


def _settings_of_training(trainer: Any) -> dict[str, Any]:
    """Give what a trainer knows: of several players, one entry per player."""
    optimizers = {player: _settings_of_optimizer(one) for player, one in trainer.optimizers.items()}
    schedules = {player: type(one).__name__ for player, one in trainer.lr_schedulers.items()}
    steps = {
        "epochs": trainer.state.max_epochs,
        "iterations_per_epoch": trainer.state.epoch_length,
        "batch_size": getattr(trainer.data_loader, "batch_size", None),
        "accumulation_steps": trainer.accumulation_steps,
        "amp": trainer.amp,
        "precision": trainer.precision,
    }
    if (iterations := getattr(trainer, "max_iterations", None)) is not None:
        steps["iterations"] = iterations
    if len(optimizers) > 1:
        steps |= {"optimizers": optimizers, "lr_schedulers": schedules}
    else:
        steps |= next(iter(optimizers.values())) | {"lr_scheduler": next(iter(schedules.values()), None)}
    return {**_settings_of_method(trainer.core), **steps}


def _settings_of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give class, peak rate and weight decay: one value where all groups agree, else one per group."""

    def of_groups(*names: str) -> Any:
        values = [next((group[name] for name in names if name in group), None) for group in optimizer.param_groups]
        return values[0] if len(set(values)) == 1 else values

    return {
        "optimizer": type(optimizer).__name__,
        "learning_rate": of_groups("max_lr", "initial_lr", "lr"),
        "weight_decay": of_groups("weight_decay"),
    }


def write_run(run_dir: str | os.PathLike[str], provenance: dict[str, Any]) -> Path:
    """Write ``run.json`` into the run folder, which is created if missing, and return its path.

    Raises:
        DataError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> write_run(tempfile.mkdtemp(), {"seed": 0}).name
        'run.json'
    """
    path = make_directory(run_dir) / "run.json"
    write_json(path, provenance)
    return path


def read_run(run_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the ``run.json`` of a folder, ``None`` where there is none that :func:`write_run` wrote.

    Example:
        >>> import tempfile
        >>> read_run(tempfile.mkdtemp()) is None
        True
    """
    try:
        run = json.loads((Path(run_dir) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    versions = run.get("versions") if isinstance(run, dict) else None
    return run if isinstance(versions, dict) and "monai_wsss" in versions else None


def recorded_supervision(run_dir: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> list[str] | None:
    """Tell what read pixel masks in the training of weights, as the ``run.json`` of their training says.

    Args:
        run_dir: folder of the training, or one whose run used the same weights.
        weights: the weights file; a record of a run with other weights says nothing about it.

    Returns:
        one phrase each, empty where image-level labels were all; ``None`` where nothing is recorded.

    Raises:
        DataError: ``weights`` cannot be read.
    """
    uses = _record_of(run_dir, weights).get("uses_masks")
    return [str(use) for use in uses] if isinstance(uses, list) else None


def recorded_encoder_weights(
    run_dir: str | os.PathLike[str], weights: str | os.PathLike[str] | None
) -> dict[str, Any] | None:
    """Tell which published weights the training of weights began with, as the ``run.json`` of their training says.

    Args:
        run_dir: as for :func:`recorded_supervision`.
        weights: as there.

    Returns:
        what :func:`~monai_wsss.networks.load_encoder_weights` recorded; ``None`` where nothing is recorded.

    Raises:
        DataError: ``weights`` cannot be read.
    """
    found = _record_of(run_dir, weights).get("encoder_weights")
    return found if isinstance(found, dict) else None


def other_than_trained(network: Any, weights: str | os.PathLike[str]) -> list[str]:
    """Tell in which words a network differs from the one that was trained, as the ``run.json`` beside its weights says.

    Words such as the readings of an attention change what a network computes, and not the shape of any weight, so that
    weights of other words load without a complaint.

    Args:
        network: with ``settings``, a dict of plain values; one without them differs in nothing.
        weights: the weights file; a record of other weights says nothing about it.

    Returns:
        one sentence each; nothing where nothing is recorded.

    Raises:
        DataError: ``weights`` cannot be read.
    """
    told, trained = _plain(getattr(network, "settings", {})), _record_of(Path(weights).parent, weights).get("config")
    if not isinstance(trained, dict) or "method" not in trained:  # an evaluation wrote the record anew
        return []
    return [
        f"The weights were trained with {word} {json.dumps(trained[word])}, and this network has {json.dumps(value)}: "
        f"what they hold, features and levels, belongs to the former, so train with the latter, or give "
        f"--network_def#{word} the value of the training."
        for word, value in told.items()
        if word in trained and word not in _WITHOUT_EFFECT and trained[word] != value
    ]


def _record_of(run_dir: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Read the record of a run with these weights or of their training, empty where there is none."""
    run = read_run(run_dir) or {}
    return run if run.get("weights_sha256") in (None, _sha256("weights", weights)) else {}


def simulated_supervision(datalist: str | os.PathLike[str]) -> list[str]:
    """Tell what of a datalist was made from pixel masks or boxes on request, as the labels of tiles may be.

    Returns:
        one phrase per entry of ``leaks``; else one phrase if the labels were made from masks; or nothing.

    Raises:
        DataError: the datalist cannot be read.
    """
    header = load_header(datalist)
    if header.get("leaks"):
        return [f"simulated supervision, {leak}" for leak in header["leaks"]]
    if not header.get("simulated_supervision", False):
        return []
    return [f"simulated supervision, {str(header.get('labels', 'labels from masks')).removeprefix('simulated: ')}"]


def assumed_units(datalist: str | os.PathLike[str], split: str | None = None) -> str | None:
    """Tell of NIfTI images whose headers say no unit of length (code 0): they count as millimeters.

    Args:
        datalist: path of the datalist; the first file of each image is looked at.
        split: the list that the run reads; None looks at all.

    Returns:
        one phrase, or None where every image says its unit.

    Raises:
        DataError: the datalist cannot be read.
    """
    load_header(datalist)  # checks the file
    content = json.loads(Path(datalist).read_text(encoding="utf-8"))
    silent = []
    for _, place, item in placed_items(content):
        file = item["image"][0] if isinstance(item["image"], list) else item["image"]
        if (split is None or place.startswith(f"{split}[")) and says_no_unit(Path(datalist).parent / file):
            silent.append(file)
    if not silent:
        return None
    return f"{len(silent)} NIfTI images say no unit of length, first {silent[0]}: millimeters, by convention"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "monai_wsss": monai_wsss.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _sha256(what: str, path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else file_sha256(path, what)


def _git_commit(checkout: Path) -> str | None:
    """Read the commit that is checked out at ``checkout`` from its files, no program is run; ``None`` elsewhere."""
    folder = checkout / ".git"
    try:
        if folder.is_file():  # A work tree: the file names the folder, whose `commondir` names the repository.
            folder = (checkout / folder.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        common = folder / "commondir"
        shared = (folder / common.read_text().strip()).resolve() if common.is_file() else folder
        loose = shared / reference
        if loose.is_file():
            return loose.read_text().strip()
        lines = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next((words[0] for words in lines if words[1:] == [reference]), None)
    except OSError:
        return None


def _plain(value: Any) -> Any:
    """Give ``value`` as JSON can hold it, with home folders and the user's name taken out of paths."""
    if isinstance(value, dict):
        return {without_user(str(key)): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_user(os.fspath(value) if isinstance(value, str | os.PathLike) else type(value).__name__)


def without_user(text: str) -> str:
    """Take home folders, the user's name and the host's out of a text."""
    home = Path.home()
    if len(home.parts) > 1:
        text = re.sub(rf"{_START}{re.escape(str(home))}(?=[/\\]|$)", "~", text)
    text = _HOME_FOLDERS.sub("~", text)
    parts = re.split(r"([/\\\\])", text)
    if len(parts) == 1:
        return text
    private = {_user_name(), platform.node()} - {""}
    return "".join("…" if part in private else part for part in parts)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in the password file, as in some containers
        return ""
