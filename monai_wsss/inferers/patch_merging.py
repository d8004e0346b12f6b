# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Overlapping patches of one image to pseudo-masks: scores are averaged before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_wsss._labels import IGNORED
from monai_wsss.cams import normalize_maps

__all__ = ["merge_patches"]


def merge_patches(
    maps: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    origins: Sequence[Sequence[int]],
    *,
    label_filter: str = "neighbors",
    scores: str = "signed",
) -> list[torch.Tensor]:
    """Merge overlapping patches of one image into pseudo-masks: averaged scores, filtered by tags, argmax.

    Args:
        maps: signed scores of each patch (K, *s).
        labels: the tags of each patch (K,), 0/1.
        origins: the first pixel of each patch in the image, one number per axis of the maps, in their order.
        label_filter: ``neighbors``: a pixel may only have classes that all patches over it are tagged with;
            ``patch``: it may have those of the patch itself; ``none``: it may have any.
        scores: ``signed``, the maps themselves, or ``cam``, see :class:`~monai_wsss.inferers.PseudoMaskWriter`.

    Returns:
        uint8 masks (1, *s), 1..K; 255 where tags contradict each other.

    Example:
        >>> maps = [torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[0.0, 0.0]], [[3.0, 3.0]]])]
        >>> masks = merge_patches(maps, [torch.tensor([1, 1]), torch.tensor([1, 1])], [(0, 0), (0, 1)])
        >>> [mask.tolist() for mask in masks]
        [[[[1, 2]]], [[[2, 2]]]]
    """
    windows = [
        tuple(slice(start, start + side) for start, side in zip(origin, patch.shape[1:], strict=True))
        for origin, patch in zip(origins, maps, strict=True)
    ]
    size = [max(window[axis].stop for window in windows) for axis in range(maps[0].ndim - 1)]
    classes = maps[0].shape[0]

    def by_class(label: torch.Tensor) -> torch.Tensor:
        return (label > 0).reshape(-1, *[1] * len(size))

    total, cams, count = torch.zeros(classes, *size), torch.zeros(classes, *size), torch.zeros(size)
    allowed = torch.ones(classes, *size, dtype=torch.bool)
    for patch, label, window in zip(maps, labels, windows, strict=True):
        total[:, *window] += patch
        if scores == "cam":
            cams[:, *window] += normalize_maps(patch[None], "max")[0]
        count[window] += 1
        if label_filter == "neighbors":
            allowed[:, *window] &= by_class(label)
    signed, cams = total / count.clamp_min(1), cams / count.clamp_min(1)
    masks = []
    for label, window in zip(labels, windows, strict=True):
        may = allowed[:, *window] & (by_class(label) if label_filter == "patch" else True)
        competing = signed[:, *window].masked_fill(~may, -torch.inf)
        cam = cams[:, *window].masked_fill(~may, 0.0)
        winner = torch.where(cam.amax(dim=0) > 0, cam.argmax(dim=0), competing.argmax(dim=0))[None] + 1
        masks.append(torch.where(may.any(dim=0, keepdim=True), winner, IGNORED).to(torch.uint8))
    return masks
