# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A training dataset of a few augmented variants per item, computed once, for frozen encoders and slow transforms.

Each item has V variants: variant 0 is plain, the others are augmented.  Which of them an epoch sees depends on (seed,
epoch, index) alone, as the draws of :class:`~monai_wsss.data.EpochCacheDataset` do, so that a resumed run goes on as it
was.  An encoder whose weights stay as they are sees each variant once
(:meth:`FrozenEncoder.pack <monai_wsss.networks.FrozenEncoder.pack>`); training then starts at its maps.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset
from tqdm import tqdm

from monai_wsss._checks import plain_tensor
from monai_wsss.data.dataset import item_bytes

__all__ = ["VariantCacheDataset"]

logger = logging.getLogger(__name__)


class VariantCacheDataset(Dataset):
    """Items in V augmented variants, computed once, of which each epoch sees one.

    Args:
        data: items of a datalist.
        transform: deterministic transforms.
        random_transform: random transforms, which make the variants after the first.
        variants: V >= 1 per item.
        encode: maps a batch of images ``(B, C, *S)`` to a batch of tensors, which take their place; it is called once
            per variant, without gradients.  None keeps the images.
        key: the entry of an item that ``encode`` gets.
        batch_size: images per call of ``encode``; only images of one size form a batch.
        seed: the first of the numbers on which a draw depends.
        progress: whether to show a progress bar.

    Attributes:
        data: the items of the datalist.

    Raises:
        ValueError: a count below 1, or several variants without ``random_transform``.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> items = [{"image": torch.arange(4.0).reshape(1, 2, 2) + n, "label": torch.zeros(1)} for n in range(3)]
        >>> flip = RandFlipd("image", prob=1.0, spatial_axis=0)
        >>> dataset = VariantCacheDataset(items, Compose([]), flip, encode=lambda image: 2 * image, progress=False)
        >>> seen = []
        >>> for epoch in range(1, 9):
        ...     dataset.set_epoch(epoch)
        ...     seen.append(dataset[1]["image"].flatten().tolist())
        >>> sorted(map(list, set(map(tuple, seen))))
        [[2.0, 4.0, 6.0, 8.0], [6.0, 8.0, 2.0, 4.0]]
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose | Callable[[Any], Any],
        random_transform: Compose | Randomizable | None = None,
        *,
        variants: int = 2,
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        key: str = "image",
        batch_size: int = 16,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if variants < 1 or batch_size < 1:
            raise ValueError(f"Expected `variants` and `batch_size` of at least 1, got {variants} and {batch_size}.")
        if variants > 1 and random_transform is None:
            raise ValueError(f"Expected `random_transform` to make {variants} variants, got none: set `variants` to 1.")
        self.data = data
        self.transform = transform
        self.random_transform = random_transform
        self.variants = variants
        self.seed = seed
        # Shared memory, so that worker processes that outlive an epoch see the new one as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        made = tqdm(self._made(), total=len(data) * variants, desc="Variants", disable=not progress)
        # All variants of item 0, then those of item 1, and so on.
        self._cache = list(made) if encode is None else _encoded(made, encode, key, batch_size)
        logger.info("Cached %d variants of %d items: %.0f MB.", variants, len(data), item_bytes(self._cache) / 1e6)

    def __len__(self) -> int:
        """Count the items."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give an item in the variant that this epoch draws."""
        index = range(len(self))[index]
        return dict(self._cache[index * self.variants + self.variant(index)])

    def variant(self, index: int) -> int:
        """Tell which variant of an item this epoch sees, from 0."""
        return _draw(self.seed, int(self._epoch), index) % self.variants

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next draws; the trainer does so when an epoch starts."""
        self._epoch.fill_(epoch)

    def _made(self) -> Iterator[dict[str, Any]]:
        """Make the variants, those of an item one after the other; each depends on (seed, variant, index) alone."""
        for index, item in enumerate(self.data):
            plain = self.transform(item)
            yield _plain(plain)
            for variant in range(1, self.variants):
                if isinstance(self.random_transform, Randomizable):
                    self.random_transform.set_random_state(seed=_draw(self.seed, variant, index))
                assert self.random_transform is not None
                yield _plain(self.random_transform(copy.deepcopy(plain)))


def _draw(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """Strip metadata, which only transforms read, so that all variants are of one type."""
    return {name: plain_tensor(value) if torch.is_tensor(value) else value for name, value in item.items()}


@torch.no_grad()
def _encoded(
    items: Iterator[dict[str, Any]], encode: Callable[[torch.Tensor], torch.Tensor], key: str, batch_size: int
) -> list[dict[str, Any]]:
    """Replace the images of items by what ``encode`` makes of them, batch by batch, and mark the items."""
    result: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []

    def empty() -> None:
        if waiting:
            made = encode(torch.stack([item[key] for item in waiting])).cpu()
            # Copies: a part of a batch would keep all of it in memory.
            result.extend(
                {**item, key: each.clone(), "encoded": True} for item, each in zip(waiting, made, strict=True)
            )
            waiting.clear()

    for item in items:
        if waiting and (len(waiting) == batch_size or waiting[0][key].shape != item[key].shape):
            empty()
        waiting.append(item)
    empty()
    return result
