# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A share of the items of a split, for fine-tuning on another dataset with few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from monai_wsss._checks import check_choice, check_seed

__all__ = ["draw_share"]

Item = TypeVar("Item", bound=Mapping[str, Any])


def draw_share(items: Sequence[Item], share: float, *, seed: int = 0, of: str = "items") -> list[Item]:
    """Draw a share of the items, or all items of a share of the images that they were cut from.

    Args:
        items: items with ``label`` (K,), and ``source`` where they are patches of an image.
        share: share of the items or images, in (0, 1]; 1 gives all of them.
        seed: seed of the draw.
        of: ``"items"`` draws the same share of every combination of labels, at least one item of each; ``"images"``
            draws images, at least one, and more until each class is in one of their items and missing in another, as
            training needs.

    Returns:
        The drawn items, in their order.

    Raises:
        ValueError: the share is outside (0, 1], or an unknown ``of``.

    Example:
        >>> items = [{"label": [1, 0]}] * 10 + [{"label": [1, 1]}] * 20
        >>> [item["label"] for item in draw_share(items, 0.1)]
        [[1, 0], [1, 1], [1, 1]]
        >>> patches = [{"label": [1, 0], "source": image} for image in "aaabbbccc"]
        >>> [patch["source"] for patch in draw_share(patches, 0.3, of="images")]
        ['c', 'c', 'c']
    """
    check_choice("of", of, ("items", "images"))
    if not 0.0 < share <= 1.0:
        raise ValueError(f"Expected `share` in (0, 1], got {share}.")
    check_seed(seed)
    if share == 1.0:
        return list(items)
    if of == "images":
        return _of_images(items, share, seed)
    groups: dict[tuple[float, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(tuple(float(value) for value in item["label"]), []).append(index)
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for _, members in sorted(groups.items()):
        chosen += generator.permutation(members)[: max(1, round(share * len(members)))].tolist()
    return [items[index] for index in sorted(chosen)]


def _of_images(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """Draw images in random order until they are enough, and each class is in one of their items and not in another."""
    images: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        images.setdefault(str(item.get("source", item.get("id", index))), []).append(index)
    present = np.array([[float(value) > 0 for value in item["label"]] for item in items])
    labels = np.concatenate([present, ~present], axis=1)
    wanted, chosen = labels.any(axis=0), list[int]()
    for count, name in enumerate(np.random.default_rng(seed).permutation(sorted(images))):
        if count >= max(1, round(share * len(images))) and labels[chosen].any(axis=0).tolist() == wanted.tolist():
            break
        chosen += images[str(name)]
    return [items[index] for index in sorted(chosen)]
