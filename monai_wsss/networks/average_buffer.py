# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The average buffer of CoinGAN: the mean representation of healthy images, of a batch and for inference."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._processes import gather_objects, is_distributed, sum_of_processes
from monai_wsss._resize import linear_mode
from monai_wsss._running import store_flags_as_numbers
from monai_wsss.networks.checked import CheckedModule

__all__ = ["AverageBuffer"]


class AverageBuffer(CheckedModule):
    """Hold the mean representation of healthy images (Eq. 11 to 13): that of a batch, and one for inference.

    A new batch replaces the mean; nothing of older batches stays.  At inference there is no healthy batch, so a mean is
    stored in the weights.

    Args:
        channels: c.
        spatial_dims: 2 or 3.
        size: the spatial size of the features, if it is known: the weights then have their final shape from the start.
        inference: what is stored: ``"calibrated"``, the mean that :meth:`calibrate` takes over healthy images;
            ``"last_batch"``, the last training batch, or that mean if it is younger; ``"batch"``, nothing.
        resize: bring the stored mean to features of another size, linearly.  Without it another size is an error, since
            the mean is one of aligned positions.
        detach: no gradient flows into the healthy images.
        over_processes: the mean of a batch is that over all processes of a distributed run.

    Attributes:
        reference: (c, *s), the stored mean; without elements until one is stored, unless ``size`` is given.
        filled: bool, true where a mean is stored.

    Raises:
        ValueError: an unknown word.

    Example:
        >>> buffer = AverageBuffer(2)
        >>> buffer(torch.stack((torch.zeros(2, 4, 4), torch.ones(2, 4, 4)))).unique().tolist()
        [0.5]
        >>> buffer.calibrate([torch.ones(3, 2, 4, 4), torch.zeros(1, 2, 4, 4)])
        >>> buffer.stored([4, 4]).unique().tolist()
        [0.75]
    """

    reference: torch.Tensor
    filled: torch.Tensor

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 2,
        *,
        size: Sequence[int] | None = None,
        inference: str = "calibrated",
        resize: bool = False,
        detach: bool = False,
        over_processes: bool = True,
    ) -> None:
        super().__init__()
        check_choice("inference", inference, ("calibrated", "last_batch", "batch"))
        if size is not None and len(size) != spatial_dims:
            raise ValueError(f"Expected `size` of {spatial_dims} sides, got {tuple(size)}.")
        self.inference = inference
        self.resize = resize
        self.detach = detach
        self.over_processes = over_processes
        self._mode = linear_mode(spatial_dims)
        self.register_buffer("reference", torch.zeros(channels, *(size or (0,) * spatial_dims)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_resize_before_loading)
        store_flags_as_numbers(self)

    @torch.jit.unused
    def forward(self, healthy: torch.Tensor) -> torch.Tensor:
        """Give the mean of a batch in float32 or wider: ``(N, c, *s) -> (c, *s)``.

        In training ``"last_batch"`` stores it, too.
        """
        healthy = float32_or_wider(healthy.detach() if self.detach else healthy)
        total, count = healthy.sum(0), healthy.new_tensor(float(len(healthy)))
        if self.over_processes and is_distributed():
            total, count = _SumOverProcesses.apply(total), sum_of_processes(count)
        mean = total / count
        if self.training and self.inference == "last_batch":
            self._store(mean.detach())
        return mean

    def stored(self, size: list[int]) -> torch.Tensor:
        """Give the stored mean ``(c, *size)``.

        Raises:
            ValueError: nothing is stored, or a mean of another size, which must not be resized.
        """
        empty = self.reference.numel() == 0 or self.inference == "batch"
        # A network that is compiled or exported was asked before; nothing may depend on values then.
        if not empty and (torch.jit.is_scripting() or not _is_traced()):
            empty = not bool(self.filled)
        if empty:
            raise ValueError(
                "Expected the mean representation of healthy images, which is not stored: call "
                "`calibrate_reference` with healthy training images, or give a reference."
            )
        if list(self.reference.shape[1:]) == list(size):
            return self.reference
        if not self.resize:
            raise ValueError(
                f"Expected images whose features have the size {list(self.reference.shape[1:])} of the stored mean, "
                f"got {list(size)}: bring images to the size of the training, or choose resize=True."
            )
        return F.interpolate(self.reference[None], size=list(size), mode=self._mode, align_corners=False)[0]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Store the mean over all images of all batches and processes.

        Args:
            batches: representations (N, c, *s) of healthy images.

        Raises:
            ValueError: no image in any process.
        """
        total, count = None, 0
        for batch in batches:
            added = batch.sum(0, dtype=torch.float64)
            total = added if total is None else total + added
            count += len(batch)
        counts = gather_objects(count)
        if not sum(counts):
            raise ValueError("Expected at least one healthy image for the mean representation, got none.")
        shapes = gather_objects(None if total is None else tuple(total.shape))
        if total is None:
            shape = next(shape for shape in shapes if shape is not None)
            total = torch.zeros(shape, dtype=torch.float64, device=self.reference.device)
        self._store(sum_of_processes(total) / sum(counts))

    @torch.jit.unused
    @torch.no_grad()
    def _store(self, mean: torch.Tensor) -> None:
        if mean.shape != self.reference.shape:
            self.reference.resize_(mean.shape)
        self.reference.copy_(mean)
        self.filled.fill_(True)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; every process gives its gradient to all of them."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


@torch.jit.unused
def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _resize_before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the buffer the shape of the stored mean, which is unknown until the first one."""
    given = state.get(prefix + "reference")
    reference = module.reference
    if given is None or not isinstance(reference, torch.Tensor):
        return
    if given.ndim == reference.ndim and len(given) == len(reference) and given.shape != reference.shape:
        reference.resize_(given.shape)
    state.setdefault(prefix + "filled", torch.tensor(given.numel() > 0))
