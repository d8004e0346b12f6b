# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Purified labels: pixels of a pseudo-mask that a segmenter fits badly are taken for noise and count less.

    L_PLF = mean_q w_q L_q,   L = CE(logits, pseudo-label),   w = 1 in images of a single class, else
    w = omega (max_c p - min_c p) / mean(omega),   omega = softmax_q(-L)        Feng et al. (AAAI 2025), Eq. 10-11

Weights carry no gradient and are computed per image.  omega / mean(omega) is computed as omega times the number of
pixels, which is the same and stays in range for volumes.  Paper and code disagree in the weight:

| ``variant``   | w in images of several classes                | mean of w  | source                     |
|---------------|-----------------------------------------------|------------|----------------------------|
| ``paper``     | omega (max p - min p) / mean(omega)           | 0.4 to 0.8 | Eq. 11                     |
| ``official``  | omega max p / (max omega - min omega)         | 0.2 to 0.5 | the authors' released code |
| ``oeem``      | omega / mean(omega)                           | 1          | OEEM (Li et al. 2022) code |
| ``oeem_conf`` | omega max p / mean(omega)                     | 0.6 to 0.9 | OEEM with a confidence     |

The mean of w scales the effective learning rate; the table gives it for random logits of standard deviation 1 to 4 with
two and three classes.  ``official`` divides by zero if the loss of an image is the same at every pixel; it is then not
finite, as in the released code.  With ``paper`` an untrained network (p uniform, w = 0) learns nothing from images of
several classes, so runs may warm up with plain cross-entropy (``purify``).  Eq. 10 prints L as a scalar, over which no
softmax is possible; here, as in all code, L is a map.

| symbol           | name       | shape       |
|------------------|------------|-------------|
| L                | `loss_map` | (B, *S)     |
| omega/mean omega | `omega`    | (B, pixels) |
| log p            | `log_p`    | (B, C, *S)  |
| w                | `weight`   | (B, *S)     |
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED

__all__ = ["PurifiedLabelLoss", "purified_label_loss"]

_VARIANTS = ("paper", "official", "oeem", "oeem_conf")
_IGNORE_MODES = ("valid", "all")


@overload
def purified_label_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    variant: str = ...,
    ignore_mode: str = ...,
    ignore_index: int = ...,
    purify: bool = ...,
    return_weight: Literal[False] = ...,
) -> torch.Tensor: ...


@overload
def purified_label_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    variant: str = ...,
    ignore_mode: str = ...,
    ignore_index: int = ...,
    purify: bool = ...,
    return_weight: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


def purified_label_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    *,
    variant: str = "paper",
    ignore_mode: str = "valid",
    ignore_index: int = IGNORED,
    purify: bool = True,
    return_weight: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy with a pseudo-mask, each pixel weighted by how well its label fits: L_PLF above.

    Args:
        logits: (B, C, *S), C >= 2.
        label: classes 0..C-1 (B, *S) or (B, 1, *S), of any dtype; ``ignore_index`` where there is none.  Datasets
            whose classes are all real tissue have no background channel: their masks on disk are channel + 1.
        variant: how an image of several classes is weighted, see the table of this file.
        ignore_mode: ``"valid"`` leaves ignored pixels out of the softmax and of the mean; ``"all"`` counts them in
            both with a loss of 0, as the released code does: they then have the largest omega and dilute the loss.
        ignore_index: the label without a class.
        purify: False gives the plain cross-entropy, e.g. during warm-up.
        return_weight: give the weights, too.

    Returns:
        scalar >= 0 in float32 or wider; if every pixel is ignored, it is 0 and still has a graph.  With
        ``return_weight`` also the weights w, without gradient, of the shape of ``label``: 1 everywhere in images of a
        single class.

    Raises:
        ValueError: shapes that do not fit, a label that is no class, a single channel, or an unknown option.

    Example:
        >>> logits = torch.tensor([[[[2.0, 2.0, 2.0]], [[0.0, 0.0, 0.0]]]])  # class 0 at three pixels
        >>> label = torch.tensor([[[0, 0, 1]]])  # the last one is mislabeled
        >>> loss, weight = purified_label_loss(logits, label, return_weight=True)
        >>> [round(value, 3) for value in weight.flatten().tolist()]
        [1.07, 1.07, 0.145]
        >>> loss.item() < purified_label_loss(logits, label, purify=False).item()
        True
    """
    check_choice("variant", variant, _VARIANTS)
    check_choice("ignore_mode", ignore_mode, _IGNORE_MODES)
    target = _checked_target(logits, label, ignore_index)
    valid = target != ignore_index
    counted = valid if ignore_mode == "valid" else torch.ones_like(valid)
    with torch.autocast(logits.device.type, enabled=False):
        log_p = float32_or_wider(logits).log_softmax(1)
        of_label = -log_p.gather(1, target.masked_fill(~valid, 0)[:, None])[:, 0]
        fixed = log_p.detach()
        # Not a plain 0: a broken network (NaN) must show even where nothing is labeled.
        loss_map = torch.where(valid, of_label, 0 * fixed.amax(1))
        weight = torch.ones_like(loss_map)
        if purify:
            several = _holds_several_classes(target, valid, logits.shape[1])
            purified = _purified_weight(loss_map.detach(), fixed, counted, variant)
            weight = torch.where(several, purified, weight)
        loss = (weight * loss_map).sum() / counted.sum().clamp(min=1)
    return (loss, weight.reshape(label.shape)) if return_weight else loss


class PurifiedLabelLoss(nn.Module):
    """:func:`purified_label_loss` with its options kept.

    Args:
        variant: see there.
        ignore_mode: see there; the released code has ``"all"``.
        ignore_index: see there.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> loss = PurifiedLabelLoss(variant="oeem")
        >>> loss(torch.zeros(2, 2, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)).item() > 0
        True
    """

    def __init__(self, *, variant: str = "paper", ignore_mode: str = "valid", ignore_index: int = IGNORED) -> None:
        super().__init__()
        check_choice("variant", variant, _VARIANTS)
        check_choice("ignore_mode", ignore_mode, _IGNORE_MODES)
        self.variant = variant
        self.ignore_mode = ignore_mode
        self.ignore_index = ignore_index

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, *, purify: bool = True, return_weight: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Compare logits (B, C, *S) with pseudo-labels (B, *S) or (B, 1, *S); ``purify=False`` during warm-up."""
        loss, weight = purified_label_loss(
            logits,
            label,
            variant=self.variant,
            ignore_mode=self.ignore_mode,
            ignore_index=self.ignore_index,
            purify=purify,
            return_weight=True,
        )
        return (loss, weight) if return_weight else loss


def _checked_target(logits: torch.Tensor, label: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Give the labels as int64 (B, *S), every value checked."""
    check_shape("logits", logits, "(B, C, *S)")
    batch, classes, *size = logits.shape
    if classes < 2:
        raise ValueError(
            f"Expected `logits` of at least two classes, got {'one channel' if classes else 'none'}: give the "
            "background, or the other tissue, a channel of its own."
        )
    if label.shape not in ((batch, *size), (batch, 1, *size)):
        raise ValueError(
            f"Expected `label` of shape (B, *S) = {(batch, *size)} or (B, 1, *S), got {tuple(label.shape)}: "
            "bring logits and labels to one size."
        )
    target = label.reshape(batch, *size).long()
    known = ((target >= 0) & (target < classes)) | (target == ignore_index)
    if not bool((known & (target == label.reshape(batch, *size))).all()):
        raise ValueError(
            f"Expected `label` to hold the classes 0..{classes - 1} or {ignore_index} (ignored), got values from "
            f"{label.min().item():g} to {label.max().item():g}: masks on disk that have no background are channel + 1."
        )
    return target


def _holds_several_classes(target: torch.Tensor, valid: torch.Tensor, classes: int) -> torch.Tensor:
    """Tell which images hold more than one class: bool (B, 1, ...), to be broadcast over pixels."""
    lowest = target.masked_fill(~valid, classes).flatten(1).amin(1)
    highest = target.masked_fill(~valid, -1).flatten(1).amax(1)
    return (lowest < highest).reshape(-1, *[1] * (target.ndim - 1))


def _purified_weight(loss_map: torch.Tensor, log_p: torch.Tensor, counted: torch.Tensor, variant: str) -> torch.Tensor:
    """Compute w (B, *S) of images of several classes; 0 at pixels that do not count."""
    pixels = counted.flatten(1)
    scores = (-loss_map).flatten(1).masked_fill(~pixels, float("-inf"))
    omega = scores.softmax(1) * pixels.sum(1, keepdim=True)  # divided by its mean
    if variant == "official":
        low, high = omega.masked_fill(~pixels, float("inf")).amin(1, keepdim=True), omega.amax(1, keepdim=True)
        omega = (omega / (high - low)).masked_fill(~pixels, 0)
    weight = omega.reshape(loss_map.shape)
    if variant == "oeem":
        return weight
    confidence = log_p.amax(1).exp()
    return weight * (confidence - log_p.amin(1).exp() if variant == "paper" else confidence)
