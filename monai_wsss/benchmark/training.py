# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One training of the benchmark, with its record of time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import LrScheduleHandler

from monai_wsss._files import write_json
from monai_wsss.benchmark.costs import forget_peak_memory, peak_memory_mb
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.engines import TrainingLog, WSSSTrainer
from monai_wsss.methods import WSSSMethod

__all__ = ["seconds_per_step", "train_recipe"]

_PROBED = 12  # steps


def train_recipe(
    method: WSSSMethod,
    recipe: Recipe,
    loader: DataLoader,
    folder: Path,
    epochs: int,
    header: Mapping[str, Any],
    handlers: Sequence[Any] = (),
    device: str = "cpu",
) -> float:
    """Train a method, or go on from its last checkpoint; give the seconds.

    Leaves ``model.pt``, ``training_log.csv``, ``seconds.json`` and checkpoints in ``folder``.

    Args:
        method: the method to train.
        recipe: says how it is optimized, and for how many steps, where epochs do not count.
        loader: its batches.
        folder: for what it leaves.
        epochs: epochs of the training.
        header: of the datalist.
        handlers: further handlers, which must not change the training.
        device: trains; the method is on the CPU again afterwards.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    # Where the peak does not begin anew it may be that of an earlier training.
    begins_anew = forget_peak_memory()
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    limit = {} if recipe.steps is None else {"max_iterations": recipe.steps}
    optimizer, scheduler = recipe.optimizer(method, epochs, loader, **limit)
    schedulers = list(scheduler.values()) if isinstance(scheduler, Mapping) else [scheduler]
    timed: list[int] = []
    trainer = WSSSTrainer(
        method,
        optimizer,
        loader,
        epochs,
        max_iterations=recipe.steps,
        lr_schedulers=scheduler,
        train_handlers=[
            *(LrScheduleHandler(one, print_lr=False, epoch_level=False) for one in schedulers),
            TrainingLog(folder),
            *handlers,
        ],
        checkpoint_dir=folder / "checkpoints",
        model_path=folder / "model.pt",
        resume=True,
        progress_bar=_is_alone(),
        reading=header,
        device=device,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: timed.append(engine.state.iteration))
    trainer.run()
    seconds = time.perf_counter() - start
    method.to("cpu")
    steps = {"steps": recipe.steps or epochs * len(loader), "timed_steps": len(timed)}
    # Seconds of the processor are those of all threads; they do not count other processes, nor a pause.
    costs = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_start,
        **steps,
        "peak_memory_mb": peak_memory_mb() if begins_anew else None,
        "gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
    }
    write_json(folder / "seconds.json", {name: value for name, value in costs.items() if value is not None})
    return seconds


def _is_alone() -> bool:
    """Tell whether no other process trains as well: bars of several would overwrite one another."""
    return parent_process() is None and os.environ.get("WORLD_SIZE", "1") == "1"


def seconds_per_step(method: WSSSMethod, recipe: Recipe, loader: DataLoader, device: str = "cpu") -> float:
    """Time a few steps of a method, spread over the schedule of a whole run; nothing is kept.

    The first step, which is slower, is left out.

    Args:
        method: the method, which is of no use afterwards.
        recipe: says how it is optimized.
        loader: its batches.
        device: trains.
    """
    optimizer, scheduler = recipe.optimizer(method, 1, loader, max_iterations=_PROBED)
    times: list[float] = []
    trainer = WSSSTrainer(
        method, optimizer, loader, 1, max_iterations=_PROBED, lr_schedulers=scheduler, progress_bar=False, device=device
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: times.append(time.perf_counter()))
    trainer.run()
    return (times[-1] - times[0]) / (len(times) - 1)
