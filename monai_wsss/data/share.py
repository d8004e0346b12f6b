# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A share of the items of a split, for fine-tuning on another dataset with few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = ["draw_share"]

Item = TypeVar("Item", bound=Mapping[str, Any])


def draw_share(items: Sequence[Item], share: float, *, seed: int = 0) -> list[Item]:
    """Draw the same share of the items of every combination of labels, at least one item of each.

    Args:
        items: items with ``label`` (K,).
        share: share of the items, in (0, 1]; 1 gives all of them.
        seed: seed of the draw.

    Returns:
        The drawn items, in their order.

    Raises:
        ValueError: the share is outside (0, 1].

    Example:
        >>> items = [{"label": [1, 0]}] * 10 + [{"label": [1, 1]}] * 20
        >>> [item["label"] for item in draw_share(items, 0.1)]
        [[1, 0], [1, 1], [1, 1]]
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"Expected `share` in (0, 1], got {share}.")
    if share == 1.0:
        return list(items)
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(tuple(float(value) for value in item["label"]), []).append(index)
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for _, members in sorted(groups.items()):
        chosen += generator.permutation(members)[: max(1, round(share * len(members)))].tolist()
    return [items[index] for index in sorted(chosen)]
