# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cases that the figures of a table show, chosen with their masks, and the files of these figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_wsss._files import atomic_path
from monai_wsss.metrics import count_pixels, dice_score

__all__ = ["spread_by_dice", "write_png"]


def spread_by_dice(masks: Sequence[torch.Tensor], references: Sequence[Any], count: int) -> list[int]:
    """Choose positive cases, evenly from the lowest Dice to the highest: their places in that order.

    Args:
        masks: of each case (1, *S), labels 0..K.
        references: of each case (1, *S), labels 0..K; read to choose.
        count: how many, or all where there are fewer.

    Example:
        >>> reference = torch.tensor([[1, 1, 0]])
        >>> masks = [reference, torch.tensor([[0, 0, 1]]), torch.tensor([[1, 0, 0]])]
        >>> spread_by_dice(masks, [reference] * 3, 2)
        [1, 0]
    """
    dice = [float(dice_score(count_pixels(*pair))[1]) for pair in zip(masks, references, strict=True)]
    order = np.argsort(dice)
    chosen: list[int] = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)].tolist()
    return chosen


def write_png(path: Path, content: bytes) -> None:
    """Write the bytes of a figure, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
