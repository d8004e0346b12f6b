# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The images that an evaluation of branches measures: which of a loader can be, and which are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from monai_wsss._checks import plain_tensor
from monai_wsss.engines.branch_masks import in_batches

__all__ = ["BranchCase", "batches_of", "cases_of"]

_PIXELS = 2**17  # of the images that are computed together


class BranchCase(NamedTuple):
    """An image to measure: ``image`` and perhaps ``intensity`` (C, *S), label (K,) and reference (1, *S)."""

    shown: dict[str, torch.Tensor]
    label: torch.Tensor
    reference: torch.Tensor

    def shapes(self) -> tuple[Any, ...]:
        """Give the shapes of all parts."""
        return (*(image.shape for image in self.shown.values()), self.label.shape, self.reference.shape)


def batches_of(cases: Iterable[BranchCase]) -> Iterator[list[BranchCase]]:
    """Give as many images of one size together as have no more pixels than 32 tiles of 64 x 64."""
    cases = iter(cases)
    for first in cases:
        most = max(1, _PIXELS // max(first.reference.numel(), first.shown["image"][0].numel()))
        yield from in_batches(chain([first], islice(cases, most - 1)), most, BranchCase.shapes)


def cases_of(loader: Iterable[Mapping[str, Any]], left_out: list[int]) -> Iterator[BranchCase]:
    """Give the images that can be measured; the numbers of others are added to ``left_out``."""
    for batch in loader:
        shown = {name: plain_tensor(batch[name]).float() for name in ("image", "intensity") if name in batch}
        labels = plain_tensor(batch["label"]).float() if "label" in batch else None
        for place in range(len(shown["image"])):
            own = {name: images[place] for name, images in shown.items()}
            label = None if labels is None else labels[place]
            if label is not None and "mask" in batch:
                yield BranchCase(own, label, plain_tensor(batch["mask"])[place])
            elif label is not None and not label.any():
                yield BranchCase(own, label, torch.zeros(1, *own["image"].shape[1:], dtype=torch.uint8))
            else:
                left_out.append(1)
