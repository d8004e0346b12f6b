# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cross-modal equivariance: the transformed map of one modality is the map of the transformed image of another.

    L_CMER(k, l) = || n(M_l) - n(M_k) ||^2,   n(u) = u / ||u||_2 over the pixels      Patel & Dolz (CMER), Eq. 4

where one map is of the transformed image and the other is transformed itself; network l is the teacher and gets no
gradient.  The maps of two modalities may differ in area and confidence; unit vectors make them comparable.

All pairs are computed at once, without a normalized copy or a difference of maps in memory:

    || n(a) - n(b) ||^2 = |n(a)|^2 + |n(b)|^2 - 2 <a, b> / (|a| |b|)

which needs G norms and one G x G matrix of inner products per image and class.  The paper prints a sum over pixels,
which keeps the loss in [0, 2]; the released code divides by the number of pixels, which makes the loss negligible.

| symbol | name      | shape         |
|--------|-----------|---------------|
| M_k    | `student` | (B, G, K, *S) |
| M_l    | `teacher` | (B, H, K, *S) |
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider

__all__ = ["CrossModalEquivarianceLoss", "cross_modal_equivariance_loss", "unit_norm_maps"]

EMPTY = 1e-6  # a map in [0, 1] with a norm below this is empty: no pixel that any rule would call foreground


def unit_norm_maps(maps: torch.Tensor) -> torch.Tensor:
    """Scale maps to unit norm over the pixels of each image and channel: n(u) = u / ||u||_2.

    Empty maps stay zero, with zero gradient.

    Args:
        maps: (B, K, *S), in [0, 1].

    Returns:
        (B, K, *S), in float32 or wider.

    Example:
        >>> [round(value, 4) for value in unit_norm_maps(torch.tensor([[[[3.0, 4.0]]]])).flatten().tolist()]
        [0.6, 0.8]
    """
    check_shape("maps", maps, "(B, K, *S)")
    with torch.autocast(maps.device.type, enabled=False):
        maps = float32_or_wider(maps)
        return maps * _inverse_norm(maps.flatten(2)).reshape(*maps.shape[:2], *[1] * (maps.ndim - 2))


def cross_modal_equivariance_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    pairs: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "sum",
    normalize: bool = True,
    skip_empty: bool = True,
) -> torch.Tensor:
    """Measure the distance between the maps of student networks and of teacher networks, teachers detached.

    The loss is the mean over the G students k of sum_l pairs[k, l] * (mean over images of L_CMER(k, l)).

    Args:
        student: maps in [0, 1] (B, G, K, *S).
        teacher: maps in [0, 1] (B, H, K, *S), of the same pixels; no gradient.
        pairs: (G, H) weight of teacher l for student k, see :func:`~monai_wsss.losses.peer_weights`.
        weight: (B, H, K) factors per teacher, e.g. the label times what the teacher predicts; None: all count.
        reduction: over classes and pixels of an image: ``"sum"`` as Eq. 4 is printed, or ``"mean"``.
        normalize: False if the maps were scaled to unit norm before they were transformed, which is the order that
            the paper prints; interpolation and padding have then changed their norms.
        skip_empty: leave out images where the teacher's map is empty; otherwise they pull the student's map to zero.

    Returns:
        scalar, in float32 or wider.

    Raises:
        ValueError: shapes that differ, or an unknown reduction.

    Example:
        >>> maps = torch.tensor([[[[[1.0, 0.0]]], [[[0.0, 1.0]]]]])  # two networks that disagree on everything
        >>> cross_modal_equivariance_loss(maps, maps, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).item()
        2.0
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    _check_maps(student, teacher, pairs)
    with torch.autocast(student.device.type, enabled=False):
        a = float32_or_wider(student).flatten(3)
        b = float32_or_wider(teacher.detach()).flatten(3).to(a.dtype)
        filled = _norm(b) > EMPTY
        if normalize:
            scale_a, scale_b = _inverse_norm(a), _inverse_norm(b)
            square_a, square_b = (scale_a > 0).to(a.dtype), (scale_b > 0).to(a.dtype)
        else:
            scale_a, scale_b = (torch.ones(x.shape[:3], device=x.device, dtype=x.dtype) for x in (a, b))
            square_a, square_b = a.square().sum(-1), b.square().sum(-1)
        inner = torch.einsum("bgkn,bhkn->bghk", a, b) * scale_a[:, :, None] * scale_b[:, None]
        distance = (square_a[:, :, None] + square_b[:, None] - 2 * inner).clamp(min=0)
    factors = filled.to(a.dtype) if skip_empty else torch.ones_like(square_b)
    if weight is not None:
        factors = factors * weight.to(a.dtype)
    of_images = (distance * factors[:, None]).sum(-1)
    of_pairs = of_images.mean(0) if reduction == "sum" else of_images.mean(0) / (a.shape[2] * a.shape[3])
    return (of_pairs * pairs.to(of_pairs)).sum(1).mean()


class CrossModalEquivarianceLoss(nn.Module):
    """:func:`cross_modal_equivariance_loss` of the maps of labeled images.

    Args:
        reduction: see there; the released code's is ``"mean"``.
        mask: which maps of a teacher count.  ``"label_and_teacher"``: those of classes that the image holds and the
            teacher predicts, as in the released code; ``"label"``: those of classes that the image holds;
            ``"none"``: all, as in the paper.
        l2_before_warp: True: maps are scaled to unit norm before they are transformed, as Eq. 4 is printed; False:
            after, as in the released code.  The method transforms the maps and reads this.
        skip_empty: see there.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> loss = CrossModalEquivarianceLoss()
        >>> maps, logits = torch.rand(2, 3, 1, 8, 8), torch.ones(2, 3, 1)
        >>> loss(maps, maps, torch.tensor([[1.0], [0.0]]), logits, torch.ones(3, 3)).item() > 0
        True
    """

    def __init__(
        self,
        *,
        reduction: str = "sum",
        mask: str = "label_and_teacher",
        l2_before_warp: bool = False,
        skip_empty: bool = True,
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("mask", mask, ("label_and_teacher", "label", "none"))
        self.reduction = reduction
        self.mask = mask
        self.l2_before_warp = l2_before_warp
        self.skip_empty = skip_empty

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        label: torch.Tensor,
        teacher_logits: torch.Tensor,
        pairs: torch.Tensor,
    ) -> torch.Tensor:
        """Compare the maps of students with those of teachers, which get no gradient.

        Args:
            student: (B, G, K, *S), see :func:`cross_modal_equivariance_loss`.
            teacher: (B, H, K, *S).
            label: (B, K), 0/1.
            teacher_logits: (B, H, K) presence logits on the teacher's branch.
            pairs: (G, H).
        """
        weight = None
        if self.mask != "none":
            weight = label[:, None].expand(-1, teacher.shape[1], -1)
        if weight is not None and self.mask == "label_and_teacher":
            weight = weight * (teacher_logits > 0)
        return cross_modal_equivariance_loss(
            student,
            teacher,
            pairs,
            weight=weight,
            reduction=self.reduction,
            normalize=not self.l2_before_warp,
            skip_empty=self.skip_empty,
        )


def _norm(pixels: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(pixels.detach(), dim=-1)


def _inverse_norm(pixels: torch.Tensor) -> torch.Tensor:
    """Compute 1 / ||u|| over the last dimension, differentiable; 0 for empty maps, so that nothing divides by 0."""
    square = pixels.square().sum(-1)
    filled = square > EMPTY**2
    return torch.where(filled, torch.where(filled, square, 1.0).rsqrt(), 0.0)


def _check_maps(student: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor) -> None:
    for name, maps in (("student", student), ("teacher", teacher)):
        if maps.ndim not in (5, 6):
            raise ValueError(f"Expected `{name}` of shape (B, G, K, *S), got {tuple(maps.shape)}.")
    if student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise ValueError(
            "Expected `student` and `teacher` that agree in images, classes and pixels, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if pairs.shape != (student.shape[1], teacher.shape[1]):
        raise ValueError(
            f"Expected `pairs` of shape (G, H) = {(student.shape[1], teacher.shape[1])}, got {tuple(pairs.shape)}."
        )
