# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a checkpoint of the trainer holds, and how a training goes on from the last one that can be read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_wsss._checks import DataError
from monai_wsss.engines.checkpoint import checkpoints_of, read_checkpoint, restore_rng_state, rng_state
from monai_wsss.networks.reading_record import check_order

if TYPE_CHECKING:
    from monai_wsss.engines.trainer import WSSSTrainer

__all__ = ["checkpoint_content", "resume_training", "run_settings"]

logger = logging.getLogger(__name__)


def run_settings(trainer: WSSSTrainer) -> dict[str, Any]:
    """Give what a resumed run must have in common with its beginning, besides its length, as plain values.

    That is the seed of the data's random draws, the learning rates with which the optimizers begin, and the settings of
    the method, but not where their values are from, which another version may word otherwise.  Call it before a
    checkpoint is loaded and before the first step.
    """
    parts = (getattr(trainer.data_loader, name, None) for name in ("dataset", "sampler"))
    rates = {
        player: [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        for player, optimizer in trainer.optimizers.items()
    }
    method = {"method": type(trainer.core).__name__, **getattr(trainer.core, "settings", {})}
    settings = {"seed": [getattr(part, "seed", None) for part in parts], "learning_rate": rates, **method}
    settings.pop("sources", None)
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def checkpoint_content(trainer: WSSSTrainer, length: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Collect every state that the rest of a run depends on.

    Args:
        trainer: the trainer, at the end of an epoch.
        length: epochs, iterations per epoch and, if asked for, in all.
        settings: see :func:`run_settings`.
    """
    return {
        "epoch": trainer.state.epoch,
        "length": length,
        "settings": settings,
        "iteration": trainer.state.iteration,
        "method": trainer.core.state_dict(),
        "optimizers": {player: optimizer.state_dict() for player, optimizer in trainer.optimizers.items()},
        "lr_schedulers": {player: scheduler.state_dict() for player, scheduler in trainer.lr_schedulers.items()},
        "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else {},
        "rng": rng_state(),
    }


def resume_training(trainer: WSSSTrainer, length: list[int], settings: dict[str, Any]) -> None:
    """Bring a trainer into the state of the last checkpoint that can be read; without any, it begins anew.

    Args:
        trainer: the trainer, before its first step.
        length: see :func:`checkpoint_content`.
        settings: see :func:`run_settings`.

    Raises:
        DataError: no checkpoint can be read, or the last one is of a run of another length, with other settings or of
            another network.
    """
    paths = [] if trainer.checkpoint_dir is None else checkpoints_of(trainer.checkpoint_dir)
    if not paths:
        logger.warning("No checkpoint to resume from in %s: training starts at the beginning.", trainer.checkpoint_dir)
        return
    path, content = _last_readable(paths)
    _check_length(path, content["length"], length)
    _check_settings(path, content.get("settings"), settings)
    try:
        trainer.core.load_state_dict(content["method"])
    except RuntimeError as error:
        raise DataError(f"{path} holds another network: resume with the same settings. {error}") from error
    if trainer.reading is not None:
        check_order(trainer.core, trainer.reading, path)
    try:
        _restore(trainer, content)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not fit this run's optimizers and schedules ({type(error).__name__}: {error}): resume with "
            "the same settings, or start a new training."
        ) from error
    logger.info("Resumed %s after epoch %d of %d.", path, trainer.state.epoch, trainer.state.max_epochs)


def _last_readable(paths: list[Path]) -> tuple[Path, dict[str, Any]]:
    """Read the first of the paths that can be read; the log tells of those before it."""
    faults = []
    for path in paths:
        try:
            content = read_checkpoint(path)
        except DataError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            logger.warning("%s Instead, training goes on from the earlier %s.", fault, path.name)
        return path, content
    raise DataError("\n".join([*faults, "No checkpoint is left to resume from: start a new training."]))


def _check_length(path: Path, was: list[int], now: list[int]) -> None:
    if was == now:
        return
    if len(was) not in (2, 3):
        raise DataError(f"{path} is no checkpoint of a training, its length is {was}: use another file.")
    of_run, in_all = (", {} in all".format(*length[2:]) if length[2:] else "" for length in (was, now))
    raise DataError(
        f"{path} is of a run of {was[0]} epochs of {was[1]} iterations{of_run}, this one has {now[0]} of "
        f"{now[1]}{in_all}: resume with the same epochs, data and batch size."
    )


def _check_settings(path: Path, was: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Compare what both runs name; settings that only one version of the package knows are passed over."""
    if was is None:
        logger.info("%s is of an earlier version: seed, learning rate and method are not compared.", path)
        return
    other = [name for name in now if name in was and was[name] != now[name]]
    if other:
        of_run, own = (", ".join(f"{name} {_short(of[name])}" for name in other) for of in (was, now))
        raise DataError(f"{path} is of a run with {of_run}, this one has {own}: resume with the same settings.")


def _short(value: Any) -> str:
    """Give a value without the wrapping that says nothing: one seed, one player with one rate."""
    values = [part for part in value if part is not None] if isinstance(value, list) else [value]
    if len({json.dumps(part) for part in values}) == 1:
        value = values[0]
    if isinstance(value, dict) and len(value) == 1:
        return _short(next(iter(value.values())))
    return str(value)


def _restore(trainer: WSSSTrainer, content: dict[str, Any]) -> None:
    for player, state in content["optimizers"].items():
        trainer.optimizers[player].load_state_dict(state)
    for player, state in content["lr_schedulers"].items():
        trainer.lr_schedulers[player].load_state_dict(state)
    if trainer.scaler is not None and content["scaler"]:
        trainer.scaler.load_state_dict(content["scaler"])
    trainer.state.epoch = content["epoch"]
    trainer.state.iteration = content["iteration"]
    restore_rng_state(content["rng"])
