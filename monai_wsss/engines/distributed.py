# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Several processes under ``torchrun``: start, stop, device, and the wrapped method."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_wsss._processes import is_distributed, is_main_process

__all__ = ["distribute_method", "is_main_process", "local_device", "start_distributed", "stop_distributed"]


def local_device() -> torch.device:
    """Choose the device of this process: its own GPU by ``LOCAL_RANK`` where there is one, else the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


def start_distributed(*, timeout_minutes: float = 30.0) -> None:
    """Join the process group that ``torchrun`` describes: nccl with GPUs, gloo without; quiet on all ranks but 0.

    Args:
        timeout_minutes: how long a process waits for the others, here and whenever they exchange something.  The
            default leaves room for stages in which some processes take longer than others, such as writing
            pseudo-masks of large images; with torch's default for nccl, 10 minutes, the quicker ones would give up.

    Raises:
        RuntimeError: not started by ``torchrun``, or the others did not come in time.
    """
    if "RANK" not in os.environ:
        raise RuntimeError("Not started by torchrun: use `torchrun --nproc_per_node=N -m monai.bundle run …`.")
    if not dist.is_initialized():
        _join(timedelta(minutes=timeout_minutes))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    if dist.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


def _join(timeout: timedelta) -> None:
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    except dist.DistError as error:
        place = os.environ.get
        raise RuntimeError(
            f"Process {place('RANK')} of {place('WORLD_SIZE')} did not meet the others at {place('MASTER_ADDR')}:"
            f"{place('MASTER_PORT')} ({str(error).splitlines()[0].rstrip('.')}): look at the first error of the others "
            "above, and start all nodes with the same --nnodes and --rdzv_endpoint."
        ) from error


def stop_distributed() -> None:
    """Leave the process group; nothing happens outside one.

    gloo's threads need Python's lock to let go of their last work, and the group's destructor waits for them with that
    lock: now and then a process would never end.  A moment's sleep gives it to them first.
    """
    if is_distributed():
        time.sleep(0.2)
        dist.destroy_process_group()


def distribute_method(method: nn.Module) -> DistributedDataParallel:
    """Wrap a method so that the gradients of its players are averaged over the processes.

    DDP has to be told where a step leaves parameters unused.  With several players, the step of one leaves those of the
    others unused.  A method whose terms are switched off says so by ``may_leave_parameters_unused``.

    The trainer moves batches to the device, except what methods read on the host.  So DDP gets no device to move them
    to.

    A part with a false attribute ``over_processes`` keeps its buffers; all others become those of rank 0 in each step.
    """
    device = local_device()
    own = [
        f"{name}.{buffer}" if name else buffer
        for name, part in method.named_modules()
        if not getattr(part, "over_processes", True)
        for buffer, _ in part.named_buffers(recurse=False)
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, own)
    players = getattr(method, "players", ("network",))
    return DistributedDataParallel(
        method.to(device),
        find_unused_parameters=len(players) > 1 or getattr(method, "may_leave_parameters_unused", False),
    )
