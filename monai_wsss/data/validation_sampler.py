# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cases of a validation, shared among the processes of a distributed run."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch.distributed as dist
from torch.utils.data import Sampler

from monai_wsss._checks import DataError
from monai_wsss._processes import is_distributed

__all__ = ["ValidationSampler"]


class ValidationSampler(Sampler[int]):
    """Give each process its part of the cases, each case once, in their order.

    A split without any case gives every process none, and the training goes on without validation, as that of a single
    process does.  MONAI's and torch's samplers stop there with an error.

    Args:
        dataset: the cases.
        split: name of the split, for the message.

    Raises:
        ValueError: fewer cases than processes, but more than none: a process without a case would not take part in the
            exchange of results, for which the others wait.

    Example:
        >>> list(ValidationSampler(["a", "b", "c"]))
        [0, 1, 2]
    """

    def __init__(self, dataset: Sized, *, split: str = "validation") -> None:
        self.count = len(dataset)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        if 0 < self.count < self.processes:
            raise DataError(
                f"The split {split} holds {self.count} cases for {self.processes} processes: start at most "
                f"{self.count} processes (--nproc_per_node), or prepare more cases for this split, or none."
            )

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.count, self.processes))

    def __len__(self) -> int:
        return len(range(self.rank, self.count, self.processes))
