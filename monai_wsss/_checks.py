# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is checked at the boundary: tensor shapes, said and checked in the same words, and errors that help.

Every mistake that a user can make raises :class:`DataError` (data, files, labels) or ``ValueError`` (arguments) with
one sentence: what is wrong, with which file or argument, and what to do.  The command line prints that sentence alone.
"""

from __future__ import annotations

import torch
from monai.data.meta_tensor import MetaTensor

__all__ = ["DataError", "check_choice", "check_label", "check_shape", "float32_or_wider", "plain_tensor"]


class DataError(ValueError):
    """A mistake in the user's files or labels, said in one sentence with its remedy."""


def check_shape(name: str, tensor: torch.Tensor, shape: str) -> None:
    """Check the number of dimensions of ``tensor`` against ``shape``, in the notation of the docstrings.

    Args:
        name: the argument's name, for the message.
        tensor: what came.
        shape: e.g. ``"(B, K, *S)"``; ``*S`` stands for two or three spatial dimensions, digits are exact sizes.

    Raises:
        ValueError: the shape differs.

    Example:
        >>> import torch
        >>> check_shape("image", torch.zeros(2, 3, 8, 8), "(B, C, *S)")
    """
    axes = [axis.strip() for axis in shape.strip("()").split(",") if axis.strip()]
    fixed = [axis for axis in axes if axis != "*S"]
    allowed = {len(fixed) + 2, len(fixed) + 3} if "*S" in axes else {len(fixed)}
    exact = all(int(axis) == size for axis, size in zip(axes, tensor.shape, strict=False) if axis.isdigit())
    if tensor.ndim not in allowed or not exact:
        raise ValueError(f"Expected `{name}` of shape {shape}, got {tuple(tensor.shape)}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)}, got {value!r}.")


def check_label(label: torch.Tensor, batch_size: int, num_classes: int) -> None:
    """Check image-level labels: ``(B, K)``, multi-hot, every value 0 or 1.

    Raises:
        ValueError: another shape, or a value other than 0 and 1.
    """
    if label.shape != (batch_size, num_classes):
        raise ValueError(
            f"Expected `label` of shape (B, K) = {(batch_size, num_classes)}, got {tuple(label.shape)}: "
            "one 0/1 entry for each foreground class of the network (`num_classes`)."
        )
    if not bool(((label == 0) | (label == 1)).all()):
        raise ValueError(f"Expected `label` to hold 0 and 1 only, got values up to {label.max().item():g}.")


def float32_or_wider(tensor: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors as float32, others untouched: exps, norms and comparisons must not run in fp16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """MONAI's ``MetaTensor`` without what it carries, which slows every operation down; others untouched."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
