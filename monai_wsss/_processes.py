# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Exchanges between the processes of a distributed run; a single process answers for itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "broadcast_buffers",
    "gather_objects",
    "gather_tensors",
    "is_distributed",
    "is_main_process",
    "mean_of_processes",
    "own_and_mean",
    "sum_of_processes",
]


def is_distributed() -> bool:
    """Tell whether a process group has been joined."""
    return dist.is_available() and dist.is_initialized()


def is_main_process() -> bool:
    """Tell whether this process writes files: rank 0, or the only one."""
    return not is_distributed() or dist.get_rank() == 0


def mean_of_processes(values: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average each entry over the processes that know it.

    Args:
        values: finite, of the same shape in every process.
        known: bool, of the shape of ``values``: the entries that this process knows.

    Returns:
        The means, 0 where no process knows the entry; and bool, the entries that some process knows.

    Example:
        >>> mean_of_processes(torch.tensor([3.0, 0.0]), torch.tensor([True, False]))
        (tensor([3., 0.]), tensor([ True, False]))
    """
    if not is_distributed():
        return values, known
    total, count = values * known, known.to(values.dtype)
    for part in (total, count):
        dist.all_reduce(part)
    return total / count.clamp(min=1), count > 0


def own_and_mean(values: torch.Tensor) -> torch.Tensor:
    """Stack the values of this process (N) and their means over the processes, (2, N), without gradient.

    Example:
        >>> own_and_mean(torch.tensor([1.0, 2.0]))
        tensor([[1., 2.],
                [1., 2.]])
    """
    mean = sum_of_processes(values) / dist.get_world_size() if is_distributed() else values
    return torch.stack([values, mean])


def sum_of_processes(value: torch.Tensor) -> torch.Tensor:
    """Add up a tensor of the same shape over the processes, without gradient; the given tensor stays as it is.

    Example:
        >>> sum_of_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    total = value.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def gather_tensors(value: torch.Tensor) -> torch.Tensor:
    """Stack the rows of all processes, without gradient: (N, ...) of each, all of one shape, to (processes N, ...).

    Example:
        >>> gather_tensors(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    value = value.detach().contiguous()
    if not is_distributed():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """Give every process the objects of all processes, in the order of their ranks."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_buffers(buffers: Iterable[torch.Tensor]) -> None:
    """Give every process the buffers of rank 0, in place: batch statistics differ between them after a step."""
    if is_distributed():
        for buffer in buffers:
            dist.broadcast(buffer, 0)
