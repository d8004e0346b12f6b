# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Confident pixels of one pseudo-class draw together, those of different ones part (CoSA, ECCV 2024, Eq. 9 and 10).

    L_csc = mean_i 1/|R+| sum_{p in R+} softplus( n_i - s_ip / t ),   n_i = log sum_{n in R-} exp(s_in / t)
    R+ = { p != i : Y_p = Y_i },  R- = { n : Y_n != Y_i },  i, p, n in Omega

which is Eq. 10 without the exponentials that overflow for small temperatures t. Omega are the anchors: pixels whose
label Y has a low perplexity. s is the cosine of the vectors at two pixels. The paper leaves open which vectors, the
temperature, and whether pairs reach over images; the authors' code has no such loss. `vectors` says what is compared:

| `vectors` | vector of a pixel                             | for                                               |
|-----------|-----------------------------------------------|---------------------------------------------------|
| `cosine`  | the class maps M as they are                  | the text's reading; K = 1 gives no gradient       |
| `sigmoid` | sigmoid(M)                                    | K > 1                                             |
| `bgcat`   | 1 - max sigmoid(M) in front of sigmoid(M)     | any K, the only one for K = 1                     |
| `feature` | features of any number of channels, as given  | an encoder's features instead of maps             |

Anchors without R+ are left out. Anchors without R- cost nothing and count. A vector of length 0 has no direction: its
cosines are 0, without gradient. The mean is taken over the anchors of each image, then over images that have anchors,
of all processes (`pairs="image"`); or over the anchors of the batch (`pairs="batch"`), each process its own.

The loss and its exact gradient are computed in one pass, some rows of the similarities at a time:

    dL/ds_ij = 1 / (t |R+|) * ( -sigmoid(n_i - s_ij / t)  for j in R+,   softmax_j(s_ij / t) sum_p sigmoid(...)  in R- )

So memory is linear in the number of pixels N, and time has the three products of N x N that a bare matrix of
similarities and its gradient have. A second derivative is not available.

| symbol | name          | shape        |
|--------|---------------|--------------|
|        | `vectors`     | (B, C, *s)   |
| Y      | `label`       | (B, *s)      |
| Omega  | `anchors`     | (B, *s) bool |
| t      | `temperature` |              |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss._processes import mean_of_processes

__all__ = ["ContrastiveSeparationLoss", "contrastive_separation_loss"]

#: Similarities that are held at a time, 4 MiB in float32; some six such pieces exist at once.
ENTRIES = 2**20
_KINDS = ("cosine", "sigmoid", "bgcat", "feature")
_PAIRS = ("image", "batch")
_SHORTEST = 1e-6  # length of a vector that has a direction
_NOWHERE = -1  # class of a pixel that is no anchor, in a column of the similarities
_NOBODY = -2  # the same in a row


def contrastive_separation_loss(
    vectors: torch.Tensor,
    label: torch.Tensor,
    anchors: torch.Tensor,
    *,
    kind: str = "cosine",
    temperature: float = 0.1,
    pairs: str = "image",
    max_anchors: int | None = None,
    over_processes: bool = True,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Part the vectors of confident pixels by their pseudo-labels: L_csc of this file.

    Args:
        vectors: class maps (B, K, *s), or features (B, C, *s).
        label: Y (B, *s), whole numbers; pixels with ``ignore_index`` are no anchors.
        anchors: Omega (B, *s), bool.
        kind: which vectors are compared, see the table of this file.
        temperature: t > 0.
        pairs: ``"image"``, or ``"batch"``: pixels of different images are pairs, too.
        max_anchors: at most that many anchors, drawn at random per image, or per batch for ``pairs="batch"``.
        over_processes: whether the mean over images is that of all processes of a distributed run, all of which must
            then call; pairs never reach over processes.
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider; 0, still with a graph, where there are no pairs.

    Raises:
        ValueError: shapes that do not fit, another ``kind`` or ``pairs``, or a number out of range.

    Example:
        >>> label = torch.tensor([[[0, 0, 1, 1]]])
        >>> anchors = torch.ones(1, 1, 4, dtype=torch.bool)
        >>> apart = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0, 0.0]]]])
        >>> round(contrastive_separation_loss(apart, label, anchors, temperature=0.5).item(), 3)
        0.036
        >>> mixed = apart[..., [0, 2, 1, 3]]
        >>> round(contrastive_separation_loss(mixed, label, anchors, temperature=0.5).item(), 3)
        4.036
    """
    _check_options(kind, temperature, pairs, max_anchors)
    check_shape("vectors", vectors, "(B, C, *S)")
    expected = (len(vectors), *vectors.shape[2:])
    if label.shape != expected or anchors.shape != expected or anchors.dtype != torch.bool:
        raise ValueError(
            f"Expected `label` and bool `anchors` of shape (B, *S) = {expected}, got {tuple(label.shape)} and "
            f"{tuple(anchors.shape)} of {anchors.dtype}: bring them to the size of the vectors."
        )
    with torch.autocast(vectors.device.type, enabled=False):
        compared = _compared(float32_or_wider(vectors), kind)
        anchors = (anchors & (label != ignore_index)).flatten(1)
        classes = label.flatten(1)
        if pairs == "batch":
            compared, classes, anchors = (each.flatten(0, 1)[None] for each in (compared, classes, anchors))
        compared, classes, anchors = _kept(compared, classes, anchors, max_anchors)
        loss, counted = _Separation.apply(compared, classes, anchors, temperature)
        images = (counted > 0).sum().to(loss)
        if over_processes:
            images, _ = mean_of_processes(images, torch.ones_like(images, dtype=torch.bool))
        return (loss / counted.clamp(min=1)).sum() / images.where(images > 0, 1)


class ContrastiveSeparationLoss(nn.Module):
    """:func:`contrastive_separation_loss` with its options kept.

    Args:
        vectors: ``kind`` there.
        temperature: see there.
        pairs: see there.
        max_anchors: see there.
        over_processes: see there.
        ignore_index: see there.

    Raises:
        ValueError: another word, or a number out of range.

    Example:
        >>> loss = ContrastiveSeparationLoss(vectors="bgcat")  # one class, 3D
        >>> maps, label = torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 4, 4, 4)
        >>> loss(maps, label, label == 0).item()  # there is nothing to part
        0.0
    """

    def __init__(
        self,
        *,
        vectors: str = "cosine",
        temperature: float = 0.1,
        pairs: str = "image",
        max_anchors: int | None = None,
        over_processes: bool = True,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        _check_options(vectors, temperature, pairs, max_anchors)
        self.vectors = vectors
        self.temperature = temperature
        self.pairs = pairs
        self.max_anchors = max_anchors
        self.over_processes = over_processes
        self.ignore_index = ignore_index

    def forward(self, vectors: torch.Tensor, label: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Part vectors (B, C, *s) by their labels (B, *s) where they are ``anchors`` (B, *s), bool."""
        return contrastive_separation_loss(
            vectors,
            label,
            anchors,
            kind=self.vectors,
            temperature=self.temperature,
            pairs=self.pairs,
            max_anchors=self.max_anchors,
            over_processes=self.over_processes,
            ignore_index=self.ignore_index,
        )


def _check_options(kind: str, temperature: float, pairs: str, max_anchors: int | None) -> None:
    check_choice("vectors", kind, _KINDS)
    check_choice("pairs", pairs, _PAIRS)
    if not temperature > 0:
        raise ValueError(f"Expected `temperature` > 0, got {temperature}.")
    if max_anchors is not None and max_anchors < 2:
        raise ValueError(f"Expected `max_anchors` >= 2 or None, got {max_anchors}: one anchor has no pair.")


def _compared(maps: torch.Tensor, kind: str) -> torch.Tensor:
    """Give the vectors to compare, (B, N, C), of any length."""
    if kind in ("sigmoid", "bgcat"):
        maps = maps.sigmoid()
    if kind == "bgcat":
        maps = torch.cat((1 - maps.amax(1, keepdim=True), maps), 1)
    return maps.flatten(2).transpose(1, 2)


def _kept(
    vectors: torch.Tensor, classes: torch.Tensor, anchors: torch.Tensor, max_anchors: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leave pixels out: anchors beyond the wanted number, and on the host all that are no anchors in any image."""
    pixels = anchors.shape[1]
    # A GPU would have to be waited for.
    needed = pixels if anchors.is_cuda else max(1, int(anchors.sum(1).max()))
    wanted = min(needed, max_anchors or needed)
    if wanted == pixels:
        return vectors, classes, anchors
    order = (torch.rand if wanted < needed else torch.ones)(anchors.shape, device=anchors.device)
    index = order.masked_fill(~anchors, -1).topk(wanted, dim=1).indices
    rows = index[:, :, None].expand(-1, -1, vectors.shape[2])
    return vectors.gather(1, rows), classes.gather(1, index), anchors.gather(1, index)


class _Separation(torch.autograd.Function):
    """The losses of the anchors, summed per image (B,), and the number of anchors that have a positive pair (B,)."""

    @staticmethod
    def forward(
        ctx: Any, vectors: torch.Tensor, classes: torch.Tensor, anchors: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images, pixels = anchors.shape
        length = vectors.norm(dim=2, keepdim=True)
        per_length = (1 / length.clamp(min=_SHORTEST)).mul_(length > _SHORTEST)
        unit = (vectors * per_length).contiguous()
        loss, counted = unit.new_zeros(images), unit.new_zeros(images)
        gradient = torch.zeros_like(unit)
        own, partner = (classes.long().masked_fill(~anchors, nobody) for nobody in (_NOBODY, _NOWHERE))
        # Pixels that are no anchors are infinitely far from all others.
        offset = unit.new_zeros(images, 1, pixels).masked_fill_(~anchors[:, None], -torch.inf)
        columns = unit.transpose(1, 2)
        step = max(1, ENTRIES // (images * pixels))
        for first in range(0, pixels, step):
            rows = unit[:, first : first + step]
            scores = torch.baddbmm(offset, rows, columns, alpha=1 / temperature)
            same = own[:, first : first + step, None] == partner[:, None]
            of_rows, positives, pull = _of_rows(scores, same, first)
            loss += of_rows.sum(1)
            counted += (positives > 0).sum(1)
            gradient[:, first : first + step] += pull @ unit
            gradient.baddbmm_(pull.transpose(1, 2), rows)
        # From the unit vectors to those given: what changes the length alone is no gradient.
        gradient.addcmul_(unit, (gradient * unit).sum(2, keepdim=True), value=-1).mul_(per_length / temperature)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(counted)
        return loss, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss[:, None, None], None, None, None


def _of_rows(scores: torch.Tensor, same: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give of some rows of s / t (B, R, N) losses and numbers of R+, (B, R), and the gradient by s / t, (B, R, N)."""
    repel = scores.masked_fill(same, -torch.inf)
    largest = repel.amax(2, keepdim=True)
    largest = largest.where(largest.isfinite(), 0)
    repel.sub_(largest).exp_()
    total = repel.sum(2, keepdim=True)
    same.diagonal(first, 1, 2).fill_(False)
    positives = same.sum(2, keepdim=True)
    per_pair = same / positives.clamp(min=1).to(scores)
    gap = (largest + total.log()).sub(scores).masked_fill_(~same, -torch.inf)
    loss = F.softplus(gap, threshold=40).mul_(per_pair).sum(2)
    attract = gap.sigmoid_().mul_(per_pair)
    repel.mul_(attract.sum(2, keepdim=True) / total.where(total > 0, 1))
    return loss, positives[:, :, 0], repel.sub_(attract)
