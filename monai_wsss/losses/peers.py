# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A matrix that says who teaches whom among G networks that learn from one another: the mean over l != k."""

from __future__ import annotations

import torch

__all__ = ["peer_weights"]


def peer_weights(allowed: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Give the weights of each student's teachers: equal for all that are allowed, zero for others and for itself.

    This is the mean over l != k of Patel & Dolz (CMER), Eq. 8.  A student without a teacher has a row of zeros; for
    G = 1 that is the only row.

    Args:
        allowed: (G, G) bool; entry [k, l] says whether network l may teach network k.  The diagonal is ignored.
        dtype: of the result.

    Returns:
        (G, G), rows that sum to 1 or 0.

    Raises:
        ValueError: another shape.

    Example:
        >>> peer_weights(torch.ones(3, 3, dtype=torch.bool))[0].tolist()
        [0.0, 0.5, 0.5]
    """
    if allowed.ndim != 2 or allowed.shape[0] != allowed.shape[1]:
        raise ValueError(f"Expected `allowed` of shape (G, G), got {tuple(allowed.shape)}.")
    own = torch.eye(len(allowed), dtype=torch.bool, device=allowed.device)
    teachers = (allowed & ~own).to(dtype)
    return teachers / teachers.sum(1, keepdim=True).clamp(min=1)
