# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The affinity loss: near tokens of the same label should have a high affinity, those of different labels a low one.

    L_aff = 1/2 sum_{pos} (1 - A_ij) / (n_pos + 1) + 1/2 sum_{neg} A_ij / (n_neg + 1)     Ru et al. (AFA, CVPR 2022)

The equation leaves some things open.  This file decides them as the authors' code of AFA and BMP does: it divides by
n + 1 instead of n, sums over the whole batch, and takes a square window |dy|, |dx| <= radius.  It counts (i, j), (j, i)
and the diagonal, and two background tokens are a positive pair.  A pair with an ignored token does not count.

L_aff is linear in A.  Its gradient G would be of low rank without the window:

    L_aff = 1/2 n_pos / (n_pos + 1) + <A, G>
    G_ij = u_i . v_j where j is near i, else 0:   -1/2 / (n_pos + 1) | 1/2 / (n_neg + 1) | 0 for pos | neg | no pair

v_j is the one-hot label of token j, or 0 where the token is ignored.  u_i is 1/2 / (n_neg + 1), less the sum of both
weights at the class of i.  So G is computed in slabs, one row of tokens after the other: once for the value and once
for the gradient.  Only the gradient is held at the size of A, and only rows within the radius are visited.  The
numbers of pairs are sums of v over windows, axis by axis.

| symbol | name       | shape                            |
|--------|------------|----------------------------------|
| A      | `affinity` | (B, N, N) or windowed (B, W, *s) |
| u, v   | `u`, `v`   | (B, classes, *s)                 |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import check_shape
from monai_wsss._labels import IGNORED
from monai_wsss._windows import check_pairs, near_pairs, window_views

__all__ = ["AffinityLoss", "affinity_loss"]


def affinity_loss(
    affinity: torch.Tensor,
    label: torch.Tensor,
    *,
    radius: int = 8,
    ignore_index: int = IGNORED,
    per_image: bool = False,
    include: torch.Tensor | None = None,
    classes: Sequence[int] | None = None,
) -> torch.Tensor:
    """Compare affinities with the labels of the tokens: L_aff above.

    Args:
        affinity: finite values in (0, 1).  Dense: (B, N, N), with the N tokens in row-major order.  Windowed:
            (B, W, *s), at token p the affinities to p + offset for the W = (2 radius + 1)^d offsets in row-major
            order, (-r, -r) first; entries that leave the grid do not count.
        label: the class of each token (B, *s), ``ignore_index`` where there is none.
        radius: half the side of the window, in tokens.
        ignore_index: the label without a class.
        per_image: False sums and counts over the batch, as the authors' code does: images with many labeled tokens
            decide.  True takes the loss of each image with its own counts, then the mean over the images.
        include: (B,) bool, images that take part.  Healthy images have positive pairs only, which draw every affinity
            to 1: leave them out where they are many.
        classes: which classes the labels may hold, ascending; None reads them from the labels, which waits for a GPU.

    Returns:
        scalar in [0, 1] in float32 or wider; without any pair it is 0 and still has a graph.

    Raises:
        ValueError: shapes that do not fit, or a negative radius.

    Example:
        >>> label = torch.tensor([[[0, 0, 1]]])
        >>> perfect = (label.flatten()[:, None] == label.flatten()).float()[None]
        >>> affinity_loss(perfect, label).item(), round(affinity_loss(1 - perfect, label).item(), 3)
        (0.0, 0.817)
    """
    check_shape("label", label, "(B, *S)")
    dense = check_pairs(affinity, len(label), label.shape[1:], radius)
    if include is not None and include.shape != label.shape[:1]:
        raise ValueError(f"Expected `include` of shape (B,) = {(len(label),)}, got {tuple(include.shape)}.")
    dtype = torch.promote_types(affinity.dtype, torch.float32)
    with torch.autocast(affinity.device.type, enabled=False):
        constant, u, v = _linear_form(label, radius, ignore_index, per_image, include, classes, dtype)
        return constant + _PairSum.apply(affinity, u, v, radius, dense)


class AffinityLoss(nn.Module):
    """:func:`affinity_loss` with its options kept.

    Args:
        radius: see there.
        ignore_index: see there.
        per_image: see there.

    Example:
        >>> loss = AffinityLoss(radius=1)
        >>> loss(torch.full((2, 27, 4, 4, 4), 0.5), torch.zeros(2, 4, 4, 4)).item() < 0.25  # windowed, 3D
        True
    """

    def __init__(self, *, radius: int = 8, ignore_index: int = IGNORED, per_image: bool = False) -> None:
        super().__init__()
        self.radius = radius
        self.ignore_index = ignore_index
        self.per_image = per_image

    def forward(
        self,
        affinity: torch.Tensor,
        label: torch.Tensor,
        include: torch.Tensor | None = None,
        classes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Compare affinities (B, N, N) or (B, W, *s) with labels of the tokens (B, *s), see :func:`affinity_loss`."""
        return affinity_loss(
            affinity,
            label,
            radius=self.radius,
            ignore_index=self.ignore_index,
            per_image=self.per_image,
            include=include,
            classes=classes,
        )


@torch.no_grad()
def _linear_form(
    label: torch.Tensor,
    radius: int,
    ignore_index: int,
    per_image: bool,
    include: torch.Tensor | None,
    classes: Sequence[int] | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the constant, u and v (B, classes, *s) of the loss; u and v are 0 where a token takes no part."""
    of_image = (-1, *[1] * (label.ndim - 1))
    included = torch.ones(len(label), dtype=torch.bool, device=label.device) if include is None else include.bool()
    labeled = ((label != ignore_index) & included.reshape(of_image))[:, None]
    held = label[labeled[:, 0]].unique() if classes is None else torch.tensor(classes, device=label.device)
    v = ((label[:, None] == held.reshape(of_image)) & labeled).to(dtype)
    near = _window_sums(v, radius)
    positives = _image_sums(near * v)
    negatives = _image_sums(near.sum(1, keepdim=True) * labeled) - positives
    images = included.sum().clamp(min=1) if per_image else 1
    if not per_image:
        positives, negatives = positives.sum(0, keepdim=True), negatives.sum(0, keepdim=True)
    to_positive, to_negative = (0.5 / (n + 1) / images for n in (positives, negatives))
    u = labeled * to_negative - v * (to_positive + to_negative)
    return (to_positive * positives).sum(), u, v


def _window_sums(maps: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum (B, C, *s) over the window of each token, one axis after the other."""
    for axis in range(2, maps.ndim):
        near = near_pairs(maps.shape[axis : axis + 1], radius, maps.device).to(maps.dtype)
        maps = (maps.movedim(axis, -1) @ near).movedim(-1, axis)
    return maps


def _image_sums(maps: torch.Tensor) -> torch.Tensor:
    return maps.sum(tuple(range(1, maps.ndim)), keepdim=True)


class _PairSum(torch.autograd.Function):
    """The inner product <A, G> of this file; its gradient with respect to A is G, which ``backward`` computes again."""

    @staticmethod
    def forward(
        ctx: Any, affinity: torch.Tensor, u: torch.Tensor, v: torch.Tensor, radius: int, dense: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(u, v)
        ctx.radius, ctx.dense, ctx.like = radius, dense, (affinity.shape, affinity.dtype)
        parts = [weight.mul_(affinity[slab]).sum() for slab, weight in _slabs(u, v, radius, dense)]
        return torch.stack(parts).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        u, v = ctx.saved_tensors
        shape, dtype = ctx.like
        of_affinity = u.new_zeros(shape, dtype=dtype)
        with torch.autocast(u.device.type, enabled=False):
            for slab, weight in _slabs(grad * u, v, ctx.radius, ctx.dense):
                of_affinity[slab] = weight.to(dtype)
        return of_affinity, None, None, None, None


def _slabs(
    u: torch.Tensor, v: torch.Tensor, radius: int, dense: bool
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    return _dense_slabs(u, v, radius) if dense else _windowed_slabs(u, v, radius)


def _dense_slabs(u: torch.Tensor, v: torch.Tensor, radius: int) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """Give G from one row of tokens, along the first axis, to the rows within the radius: (B, N/h, rows N/h)."""
    height, width = u.shape[2], u.shape[3:].numel()
    rows, columns = u.flatten(2).transpose(1, 2), v.flatten(2)
    near = near_pairs(u.shape[3:], radius, u.device).to(u.dtype)[:, None]
    for y in range(height):
        first, last = max(0, y - radius), min(height, y + radius + 1)
        own, others = slice(y * width, (y + 1) * width), slice(first * width, last * width)
        weight = rows[:, own] @ columns[:, :, others]
        weight = (weight.view(len(u), width, last - first, width) * near).flatten(2)
        yield (slice(None), own, others), weight


def _windowed_slabs(u: torch.Tensor, v: torch.Tensor, radius: int) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """Give G from every token to those at one offset along the first axis: (B, (2 radius + 1)^(d - 1), *s)."""
    ndim = u.ndim - 2
    views = window_views(v, radius, 0, ndim)
    own = u.reshape(*u.shape[:2], *[1] * (ndim - 1), *u.shape[2:])
    for k in range(2 * radius + 1):
        weight = (own * views[:, :, k]).sum(1).flatten(1, ndim - 1)
        offsets = weight.shape[1]
        yield (slice(None), slice(k * offsets, (k + 1) * offsets)), weight
