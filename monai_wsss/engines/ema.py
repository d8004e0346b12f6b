# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The moving average of a network's weights, in a second network of the same architecture.

    theta' <- m theta' + (1 - m) theta       after each real step of the optimizer

The formula is that of ``torch.optim.swa_utils``.  Its ``AveragedModel`` starts with the first update and averages all
buffers or none.  Here the two networks are made equal before the first batch, whichever was filled before; floating
buffers are averaged, and others, such as counters and flags, are copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from monai_wsss.networks.published_weights import encoder_weights_of

__all__ = ["WeightAverage"]


class WeightAverage(nn.Module):
    """Keep a network whose weights are the moving average of another's.

    Args:
        momentum: m in [0, 1): share of the past in each update.

    Attributes:
        begun: bool scalar, kept in checkpoints: the two networks were made equal, from then on they differ.

    Raises:
        ValueError: a momentum outside [0, 1).

    Example:
        >>> online, average, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), WeightAverage(0.75)
        >>> _ = nn.init.ones_(average.weight)
        >>> ema.begin(average, online)
        >>> _ = nn.init.constant_(online.weight, 5.0)
        >>> ema.update(average, online)
        >>> average.weight.item()
        2.0
    """

    begun: torch.Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1), got {momentum}: at 1 the average never moves.")
        self.momentum = float(momentum)
        self._average = get_ema_multi_avg_fn(self.momentum)
        self.register_buffer("begun", torch.tensor(False))
        self._begun = False  # on the host, so that no step waits for a GPU
        self.register_load_state_dict_post_hook(_read_begun)

    @torch.no_grad()
    def begin(self, average: nn.Module, online: nn.Module) -> None:
        """Make both networks equal before the first training step; later calls do nothing.

        The weights and buffers of ``average`` count, whatever has filled them until then; those of ``online`` where
        :func:`~monai_wsss.networks.load_encoder_weights` filled it alone.
        """
        if self._begun:
            return
        source, target, record = average, online, encoder_weights_of(online)
        if record is not None and encoder_weights_of(average) is None:
            source, target = online, average
            average.encoder_weights = record  # type: ignore[assignment]
        for copied, given in zip(_tensors(target), _tensors(source), strict=True):
            copied.copy_(given)
        if self.training:
            self._begun = True
            self.begun.fill_(True)

    @torch.no_grad()
    def update(self, average: nn.Module, online: nn.Module) -> None:
        """Move the average toward the online network, after a real step of its optimizer."""
        kinds: dict[tuple[Any, Any], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for mean, now in zip(_tensors(average), _tensors(online), strict=True):
            if not mean.is_floating_point():
                mean.copy_(now)
                continue
            means, present = kinds.setdefault((mean.device, mean.dtype), ([], []))
            means.append(mean)
            present.append(now)
        for means, present in kinds.values():
            self._average(means, present, 0)


def _tensors(network: nn.Module) -> Iterable[torch.Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


def _read_begun(average: WeightAverage, *_: Any) -> None:
    average._begun = bool(average.begun)
