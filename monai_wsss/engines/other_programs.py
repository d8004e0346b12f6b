# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""How the trainer gets on with MONAI's handlers, MONAI's federated client and both versions of ignite."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

try:
    from ignite.handlers import ProgressBar
except ImportError:  # before ignite 0.5
    from ignite.contrib.handlers import ProgressBar

__all__ = ["ProgressBar", "is_federated", "with_readable_output"]


def is_federated() -> bool:
    """Tell whether MONAI's federated client called whoever asks, or NVIDIA FLARE in its own process."""
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(("monai.fl.", "nvflare.")):
            return True
        frame = frame.f_back
    return False


def with_readable_output(handlers: Iterable[Any]) -> list[Any]:
    """Let handlers read one loss of a step by ``from_engine(["loss"])``, as ``--tracking mlflow`` makes them.

    MONAI's ``from_engine`` gives a tuple where the output of a step is one dictionary, and a handler logs no tuple.

    Args:
        handlers: of a trainer; their ``output_transform`` is changed in place.

    Returns:
        The handlers, in order.
    """
    known = list(handlers)
    for handler in known:
        if callable(transform := getattr(handler, "output_transform", None)):
            handler.output_transform = _alone(transform)
    return known


def _alone(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(output: Any) -> Any:
        value = transform(output)
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    return read
