# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Moving averages, and levels that training measures: finite values beside a boolean buffer that says which are filled.

No value is ever NaN, since an average over the weights of several sites would spread it to all of them.
"""

# Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
from typing import Any

import torch
from torch import nn

from monai_wsss._processes import mean_of_processes

__all__ = ["RunningMean", "fill_where_finite", "store_flags_as_numbers"]

_ROUNDING = 1e-3
"""What sums of weights over sites leave of 0, at most."""


class RunningMean(nn.Module):
    """Follow values over steps and processes: an exponential moving average that begins with its first value.

    Args:
        shape: of the values; none for a scalar.
        momentum: share of the past in each update, in [0, 1).

    Attributes:
        value: the average, 0 where no value has come yet.
        filled: bool, true where a value has come.

    Example:
        >>> loss = RunningMean(momentum=0.9)
        >>> for now in (1.0, 2.0):
        ...     loss.update(torch.tensor(now))
        >>> round(loss.value.item(), 6), loss.filled.item()
        (1.1, True)
    """

    value: torch.Tensor
    filled: torch.Tensor

    def __init__(self, *shape: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("filled", torch.zeros(shape, dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_fill_before_loading)
        store_flags_as_numbers(self)

    @torch.no_grad()
    def update(self, now: torch.Tensor, known: torch.Tensor | None = None) -> None:
        """Update the average by the values of a step.

        Args:
            now: finite values of the buffer's shape.
            known: bool of the same shape, true where this step has a value; None: everywhere.
        """
        now = now.detach().to(self.value)
        finite = now.isfinite()
        known = finite if known is None else known & finite
        now, known = mean_of_processes(now.masked_fill(~finite, 0), known)
        before = torch.where(self.filled, self.value, now)
        self.value.copy_(torch.where(known, before.lerp(now, 1 - self.momentum), before * self.filled))
        self.filled.logical_or_(known)


def _fill_before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    fill_where_finite(state, prefix, ("value",))


def fill_where_finite(state: dict[str, torch.Tensor], prefix: str, levels: tuple[str, ...]) -> None:
    """Add the buffer ``filled`` to weights that were stored without one: true where every level is finite.

    In a mean over the weights of several sites ``filled`` is the share of the sites that measured a level, and the
    others count as 0 in the mean of the level.  The level becomes the mean over those that measured it.

    Args:
        state: a state dict that is about to be loaded, changed in place.
        prefix: of the module's entries in ``state``.
        levels: names of its levels, of one shape; their NaN become 0.

    Example:
        >>> state = {"level": torch.tensor([1.0, torch.nan])}
        >>> fill_where_finite(state, "", ("level",))
        >>> state["filled"].tolist(), state["level"].tolist()
        ([True, False], [1.0, 0.0])
    """
    names = [prefix + level for level in levels]
    if not all(name in state for name in names) or len({state[name].shape for name in names}) > 1:
        return  # loading says what is missing or of another shape
    filled = torch.stack([state[name].isfinite() for name in names]).all(0)
    told = state.get(prefix + "filled")
    if told is not None and told.shape == filled.shape:
        share = told.to(filled.device).float()
        # `monai.bundle.load` copies old weights over the state of a new network, whose unmeasured levels are 0.
        old = (share == 0) & torch.stack([state[name] != 0 for name in names]).any(0)
        filled &= (share > _ROUNDING) | old
        of_some = filled & (share < 1) & ~old
        for name in names:
            state[name] = torch.where(of_some, state[name] / share, state[name])
    state[prefix + "filled"] = filled
    for name in names:
        state[name] = torch.where(filled, state[name], torch.zeros_like(state[name]))


def store_flags_as_numbers(module: nn.Module) -> None:
    """Let the state dict of a module hold its own bool buffers as float32, 0 or 1; they stay bool in the module.

    Whoever trains at several sites subtracts and averages what state dicts hold, and torch subtracts no bool.  Loading
    takes numbers and bool alike: true is what is so at half of the sites or more.  Call it after the module has
    registered other hooks of its loading, which then see what was stored.

    Args:
        module: the module; not those inside it.

    Example:
        >>> module = nn.Module()
        >>> module.register_buffer("filled", torch.tensor([True, False]))
        >>> store_flags_as_numbers(module)
        >>> module.state_dict()["filled"].tolist(), module.filled.tolist()
        ([1.0, 0.0], [True, False])
    """
    module.register_state_dict_post_hook(_flags_to_numbers)
    module.register_load_state_dict_pre_hook(_numbers_to_flags)


def _flags_to_numbers(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dtype == torch.bool and prefix + name in state:
            state[prefix + name] = buffer.detach().float()


def _numbers_to_flags(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        stored = state.get(prefix + name)
        if buffer.dtype == torch.bool and stored is not None and stored.dtype != torch.bool:
            state[prefix + name] = stored.float() > 0.5 - _ROUNDING
