# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two branches that teach each other with their confident pixels: the losses c2s and s2c of BMP.

    L_c2s = mean_{M^c} l(S^s, Y^c),   L_s2c = mean_{M^s} l(S^c, Y^s)        Zhu et al. (BMP), Eq. 6 and 8

c2s leads from the classification branch to the segmentation branch, whose logits (K+1 channels, background first) learn
Y^c.  s2c leads from the segmentation branch to the classification branch, whose activation logits (K channels, no
background) learn Y^s on the confident foreground.  ``refinement.confident_label`` and ``confident_segmentation_label``
make the labels.  The masks M are the pixels whose label is a class.

| ``kind``                | l at a pixel of class y, over channels c           | in the released code               |
|-------------------------|----------------------------------------------------|------------------------------------|
| ``softmargin``, ``bce``   | mean_c of the BCE of sigmoid(x_c) with [c = y]     | c2s; for s2c intended, but it fails |
| ``ce``                  | -log softmax(x)_y                                  | s2c; c2s by choice                 |

The multi-label soft margin *is* that binary cross-entropy: two names of one kind.  Eq. 8 prints S^c with its
background; the released code takes the K activation logits.  For K = 1 their ``ce`` is 0 with no gradient and is
refused; ``auto``, the default of s2c, takes ``bce`` for one class and ``ce`` for several.  But ``bce`` of one class
sees only foreground, which always raises the activations: ``use_background`` adds the confident background as negatives
of every class.  The loss of an empty mask is nan in the released code; here it is 0 and still has a graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, check_label_map, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED

__all__ = [
    "ClassToSegmentationLoss",
    "SegmentationToClassLoss",
    "class_to_segmentation_loss",
    "segmentation_to_class_loss",
]

_KINDS = ("softmargin", "ce", "bce")
_S2C_KINDS = ("auto", *_KINDS)


def class_to_segmentation_loss(
    logits: torch.Tensor, label: torch.Tensor, *, kind: str = "softmargin", ignore_index: int = IGNORED
) -> torch.Tensor:
    """Compare the segmentation branch with the confident labels of the classification branch: c2s (Eq. 6).

    Args:
        logits: (B, K+1, *S), background first.
        label: Y^c (B, *S), 0..K, or ``ignore_index``: these pixels do not count.
        kind: l, see the table of this file.
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider, the mean over the pixels that count; 0, still with a graph, where none does.

    Raises:
        ValueError: shapes that do not fit, an unknown kind, a label that is no class, or an ``ignore_index`` that is
            one.

    Example:
        >>> logits = torch.tensor([[[[4.0, -4.0]], [[-4.0, 4.0]]]])
        >>> round(class_to_segmentation_loss(logits, torch.tensor([[[0, 255]]])).item(), 3)
        0.018
    """
    check_choice("kind", kind, _KINDS)
    check_shape("logits", logits, "(B, C, *S)")
    check_label_map(label, "logits", logits, num_classes=logits.shape[1] - 1, ignore_index=ignore_index)
    return _class_to_segmentation(logits, label, kind, ignore_index)


def segmentation_to_class_loss(
    maps: torch.Tensor,
    label: torch.Tensor,
    *,
    kind: str = "auto",
    use_background: bool = False,
    positive: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Compare the classification branch with the confident labels of the segmentation branch: s2c (Eq. 8).

    Args:
        maps: raw activation logits (B, K, *S), at the size of the labels.
        label: Y^s (B, *S), 0 background, 1..K foreground (channel + 1), or ``ignore_index``.
        kind: l, see the table of this file; ``"auto"`` is ``"bce"`` for K = 1 and ``"ce"`` for more.
        use_background: also count the pixels of label 0, as negatives of every class; with several classes
            this needs ``"bce"``.
        positive: (B,) bool, the images that give such negatives; None is all.  The image-level loss already tells
            healthy images that every pixel is negative.
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider, the mean over the pixels that count; 0, still with a graph, where none does.

    Raises:
        ValueError: shapes that do not fit, an unknown kind, ``"ce"`` with one class or with background, a label that is
            no class, or an ``ignore_index`` that is one.

    Example:
        >>> maps = torch.tensor([[[[4.0, 4.0]]]])  # one class, high at two pixels
        >>> label = torch.tensor([[[1, 0]]])  # the second is background
        >>> round(segmentation_to_class_loss(maps, label).item(), 3)
        0.018
        >>> round(segmentation_to_class_loss(maps, label, use_background=True).item(), 3)
        2.018
    """
    check_choice("kind", kind, _S2C_KINDS)
    check_shape("maps", maps, "(B, C, *S)")
    check_label_map(label, "maps", maps, num_classes=maps.shape[1], ignore_index=ignore_index)
    _check_cross_entropy(_resolved(kind, maps.shape[1]), maps.shape[1], use_background)
    if positive is not None and positive.shape != label.shape[:1]:
        raise ValueError(f"Expected `positive` of shape (B,) = {(len(label),)}, got {tuple(positive.shape)}.")
    return _segmentation_to_class(maps, label, kind, use_background, positive, ignore_index)


class ClassToSegmentationLoss(nn.Module):
    """:func:`class_to_segmentation_loss` with its options kept.

    Args:
        kind: see there.
        ignore_index: see there.
        validate_args: whether each call checks its tensors, which waits for a GPU; take False where the code that
            makes the labels is known to make valid ones.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> loss = ClassToSegmentationLoss(kind="ce")
        >>> round(loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4)).item(), 3)
        0.693
    """

    def __init__(self, *, kind: str = "softmargin", ignore_index: int = IGNORED, validate_args: bool = True) -> None:
        super().__init__()
        check_choice("kind", kind, _KINDS)
        self.kind = kind
        self.ignore_index = ignore_index
        self.validate_args = validate_args

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare segmentation logits (B, K+1, *S) with confident labels Y^c (B, *S)."""
        if not self.validate_args:
            return _class_to_segmentation(logits, label, self.kind, self.ignore_index)
        return class_to_segmentation_loss(logits, label, kind=self.kind, ignore_index=self.ignore_index)


class SegmentationToClassLoss(nn.Module):
    """:func:`segmentation_to_class_loss` with its options kept.

    Args:
        kind: see there.
        use_background: see there.
        ignore_index: see there.
        validate_args: see :class:`ClassToSegmentationLoss`.

    Raises:
        ValueError: an unknown kind, or ``"ce"`` with background.

    Example:
        >>> loss = SegmentationToClassLoss()
        >>> round(loss(torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 4, 4, 4)).item(), 3)
        0.693
    """

    def __init__(
        self,
        *,
        kind: str = "auto",
        use_background: bool = False,
        ignore_index: int = IGNORED,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, _S2C_KINDS)
        _check_cross_entropy(kind, 2, use_background)
        self.kind = kind
        self.use_background = use_background
        self.ignore_index = ignore_index
        self.validate_args = validate_args

    def forward(self, maps: torch.Tensor, label: torch.Tensor, positive: torch.Tensor | None = None) -> torch.Tensor:
        """Compare activation logits (B, K, *S) with labels Y^s (B, *S); images ``positive`` (B,) give negatives."""
        if not self.validate_args:
            return _segmentation_to_class(maps, label, self.kind, self.use_background, positive, self.ignore_index)
        return segmentation_to_class_loss(
            maps,
            label,
            kind=self.kind,
            use_background=self.use_background,
            positive=positive,
            ignore_index=self.ignore_index,
        )


def _class_to_segmentation(logits: torch.Tensor, label: torch.Tensor, kind: str, ignore_index: int) -> torch.Tensor:
    valid = label != ignore_index
    return _masked_mean(logits, label.long().masked_fill(~valid, 0), valid, kind)


def _segmentation_to_class(
    maps: torch.Tensor,
    label: torch.Tensor,
    kind: str,
    use_background: bool,
    positive: torch.Tensor | None,
    ignore_index: int,
) -> torch.Tensor:
    counted = (label != ignore_index) & (label != 0)
    if use_background:
        background = label == 0
        if positive is not None:
            background &= positive.bool().reshape(-1, *[1] * (label.ndim - 1))
        counted |= background
    target = label.long().masked_fill(~counted, 0) - 1
    return _masked_mean(maps, target, counted, _resolved(kind, maps.shape[1]))


def _resolved(kind: str, classes: int) -> str:
    """Choose the kind that ``"auto"`` stands for."""
    return kind if kind != "auto" else "bce" if classes == 1 else "ce"


def _masked_mean(logits: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, kind: str) -> torch.Tensor:
    """Average l over the pixels that count; ``target`` (B, *S) is a channel, or -1 for no channel."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = float32_or_wider(logits)
        channel = target.clamp(min=0)[:, None]
        if kind == "ce":
            loss_map = -logits.log_softmax(1).gather(1, channel)[:, 0]
        else:
            # BCE(sigmoid(x), t) = -log sigmoid(-x) - x t
            of_target = logits.gather(1, channel)[:, 0] * (target >= 0)
            loss_map = -(F.logsigmoid(-logits).sum(1) + of_target) / logits.shape[1]
        return (loss_map * counted).sum() / counted.sum().clamp(min=1)


def _check_cross_entropy(kind: str, classes: int, use_background: bool) -> None:
    if kind == "ce" and classes == 1:
        raise ValueError(
            "Expected `kind` 'bce' for the activations of a single class, got 'ce': over one channel it is always 0."
        )
    if kind == "ce" and use_background:
        raise ValueError(
            "Expected `kind` 'bce' with `use_background`, got 'ce': the background has no channel among the classes."
        )
