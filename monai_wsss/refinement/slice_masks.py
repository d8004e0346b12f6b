# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of volumes decided slice by slice, as the papers of 2D networks do.

A study as a whole has one level, one peak and one presence.  With average pooling, slices without a finding outvote the
others, and the mask of a large study may come out empty.  Slice by slice, each has its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from torch import nn

from monai_wsss._checks import as_flag, plain_tensor
from monai_wsss.refinement.mask_rule import MaskDecision, MaskRule
from monai_wsss.refinement.mask_transform import ToMaskd
from monai_wsss.refinement.slice_axis import slice_axis_of
from monai_wsss.refinement.told_rule import ToldRule

__all__ = ["ToMaskBySliced"]


class ToMaskBySliced(ToMaskd):
    """:class:`ToMaskd` that normalizes, gates and cuts each slice of a volume by itself.

    Slices lie along the axis along which the network's training slices were cut, found by the affine of the item's
    ``image``, or along the last axis where that is unknown.  ``presence`` becomes the greatest of all slices.  Images
    of two dimensions are decided as by :class:`ToMaskd`.

    Args:
        keys: see :class:`ToMaskd`.
        network: see there.
        by_slice: False decides volumes as a whole.
        words: of :class:`ToMaskd`.

    Raises:
        ValueError: as :class:`ToMaskd`.

    Example:
        >>> from monai_wsss.networks import CAMUNet
        >>> volume = torch.stack((torch.tensor([[[3.0, 1.0]]]), torch.full((1, 1, 2), -9.0)), dim=-1)
        >>> ToMaskBySliced("pred", CAMUNet(width=4))({"pred": volume})["pred"].tolist()
        [[[[1, 0], [0, 0]]]]
        >>> ToMaskBySliced("pred", CAMUNet(width=4), by_slice=False)({"pred": volume})["pred"].sum().item()
        0
    """

    taken_words = frozenset(inspect.signature(ToMaskd).parameters) - {"words"} | ToMaskd.taken_words
    """What ``**words`` takes, so that overrides are checked before anything is built."""

    def __init__(
        self, keys: KeysCollection, network: nn.Module | None = None, by_slice: bool | str = True, **words: Any
    ) -> None:
        super().__init__(keys, network, **words)
        self.by_slice = as_flag("by_slice", by_slice)
        self.settings["by_slice"] = self.by_slice

    def decide(
        self,
        rule: MaskRule,
        scores: torch.Tensor,
        item: Mapping[Hashable, Any],
        label: torch.Tensor | None,
        told: ToldRule | None = None,
    ) -> MaskDecision:
        """Decide a volume (1, channels, *S) as a batch of slices."""
        if not self.by_slice or scores.ndim != 5:
            return super().decide(rule, scores, item, label, told)
        along = item["image"] if isinstance(item.get("image"), torch.Tensor) else scores
        axis = slice_axis_of(along, self.network if told is None else told.slicing_axis) % 3 + 2
        slices = scores.movedim(axis, 1)[0]
        labels = None if label is None else label.expand(len(slices), -1)
        if self.refinement is None:
            mask, cam, presence = rule(slices, labels)
        else:
            image = plain_tensor(self.refinement.image_of(item)).movedim(axis, 1)[0]
            mask, cam, presence = self.refinement(rule, slices, image, labels)
        return MaskDecision(
            mask[None].movedim(1, axis),
            None if cam is None else cam[None].movedim(1, axis),
            None if presence is None else presence.amax(dim=0, keepdim=True),
        )
