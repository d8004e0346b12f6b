# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mutual distillation: networks imitate one another's image-level predictions.

    L_KD(k, l) = T^2 KL(p_l || p_k),  p = softmax(s / T) or sigmoid(s / T)     Patel & Dolz (CMER), Eq. 3, T = 1;
                                                                             Zhang et al. 2018, arXiv:1706.00384

Network l is the teacher and gets no gradient.  K independent classes have two outcomes each; for K = 1 that is the
softmax over (absent, present) with the logits (0, s).  The released code takes T = 10 and has the factor T^2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider

__all__ = ["MutualDistillationLoss", "mutual_distillation_loss"]


def mutual_distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    pairs: torch.Tensor,
    *,
    temperature: float = 1.0,
    activation: str = "sigmoid",
) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence from teachers' to students' predictions, teachers detached.

    The loss is the mean over the G students k of sum_l pairs[k, l] * (mean over images of L_KD(k, l)).

    Args:
        student: logits (B, G, K).
        teacher: logits (B, H, K); no gradient.
        pairs: (G, H) weight of teacher l for student k, see :func:`~monai_wsss.losses.peer_weights`.
        temperature: T > 0.
        activation: ``"sigmoid"``: K independent classes, over which the mean is taken; ``"softmax"``: K classes of
            which exactly one is present (a background among them).

    Returns:
        scalar >= 0, in float32 or wider.

    Raises:
        ValueError: shapes that do not fit, an unknown activation, or a temperature that is not positive.

    Example:
        >>> logits = torch.tensor([[[2.0], [-2.0]]])
        >>> round(mutual_distillation_loss(logits, logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).item(), 4)
        1.5232
    """
    check_shape("student", student, "(B, G, K)")
    check_choice("activation", activation, ("sigmoid", "softmax"))
    if student.shape[::2] != teacher.shape[::2] or pairs.shape != (student.shape[1], teacher.shape[1]):
        raise ValueError(
            "Expected `student` (B, G, K), `teacher` (B, H, K) and `pairs` (G, H), "
            f"got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(pairs.shape)}."
        )
    if activation == "softmax" and student.shape[2] < 2:
        raise ValueError("Expected K >= 2 for activation 'softmax', a background among them: one logit is 'sigmoid'.")
    if not temperature > 0:
        raise ValueError(f"Expected `temperature` > 0, got {temperature}.")
    log_p = _log_probabilities(float32_or_wider(student) / temperature, activation)[:, :, None]
    log_q = _log_probabilities(float32_or_wider(teacher.detach()) / temperature, activation)[:, None]
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1)  # (B, G, H, K), or (B, G, H, 1) for softmax
    of_pairs = temperature**2 * divergence.mean(-1).mean(0)
    return (of_pairs * pairs.to(of_pairs)).sum(1).mean()


class MutualDistillationLoss(nn.Module):
    """:func:`mutual_distillation_loss` with its options kept.

    Args:
        temperature: see there; 10 in the released code.
        activation: see there.

    Raises:
        ValueError: an unknown activation, or a temperature that is not positive.

    Example:
        >>> MutualDistillationLoss()(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.ones(3, 3)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 1.0, activation: str = "sigmoid") -> None:
        super().__init__()
        check_choice("activation", activation, ("sigmoid", "softmax"))
        if not temperature > 0:
            raise ValueError(f"Expected `temperature` > 0, got {temperature}.")
        self.temperature = temperature
        self.activation = activation

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Compare logits (B, G, K) of students with logits (B, H, K) of teachers; ``pairs`` (G, H)."""
        return mutual_distillation_loss(
            student, teacher, pairs, temperature=self.temperature, activation=self.activation
        )


def _log_probabilities(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Compute the log-probabilities of the outcomes, in the last dimension: (…, K, 2) or (…, 1, K)."""
    if activation == "softmax":
        return F.log_softmax(logits, dim=-1)[..., None, :]
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
