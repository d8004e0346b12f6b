# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Consistency correlation attention (CCA): criss-cross, position, and again criss-cross attention, in a row.

Feng et al., AAAI 2025 (gland segmentation), Section "Consistency Correlation Attention", Eqs. 1-2, Table 3.  It gives
pixels of a class similar features, wherever they are.  It keeps shapes, so it can follow any stage of a network.

| symbol  | here         | what                                                                           |
|---------|--------------|--------------------------------------------------------------------------------|
| X_in    | `features`   | (B, C, *s)                                                                     |
| X'      | after `cc1`  | :class:`~monai_wsss.networks.criss_cross.CrissCrossAttention`, Eq. 1           |
| B       | after `pam`  | :class:`~monai_wsss.networks.position_attention.PositionAttention`, Eq. 2      |
| X_out   | after `cc2`  | criss-cross attention again, with weights of its own                           |
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes.
import torch
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.position_attention import PositionAttention

__all__ = ["ConsistencyCorrelationAttention"]


class ConsistencyCorrelationAttention(CheckedModule):
    """Attention within lines, then over the whole image, then within lines: ``(B, C, *s) -> (B, C, *s)``.

    The three parts have weights of their own and nothing between them.  All start as the identity (``gamma_init`` 0).

    Args:
        channels: C.
        kind: a row of Table 3: ``"cca"``, ``"cc2"`` (only the two criss-cross attentions), ``"cc1"`` (one), ``"none"``.
        spatial_dims: 2 or 3.
        criss_cross_reduction: see :class:`~monai_wsss.networks.criss_cross.CrissCrossAttention`.
        pam_reduction: see :class:`~monai_wsss.networks.position_attention.PositionAttention`; 4 in the paper, 8 in the
            authors' code.
        gamma_init: γ of each part at the start; the equations have none, which means 1.
        official_quirk: see :class:`~monai_wsss.networks.criss_cross.CrissCrossAttention`.
        pam_residual: see :class:`~monai_wsss.networks.position_attention.PositionAttention`.
        pam_normalizer: see :class:`~monai_wsss.networks.position_attention.PositionAttention`.

    Raises:
        ValueError: an unknown kind or option, or features of another shape.

    Example:
        >>> import torch
        >>> attention = ConsistencyCorrelationAttention(8)
        >>> features = torch.rand(2, 8, 5, 6)
        >>> torch.equal(attention(features), features)  # every γ is 0
        True
        >>> sorted({name.split(".")[0] for name in attention.state_dict()})
        ['cc1', 'cc2', 'pam']
    """

    def __init__(
        self,
        channels: int,
        kind: str = "cca",
        *,
        spatial_dims: int = 2,
        criss_cross_reduction: int = 8,
        pam_reduction: int = 4,
        gamma_init: float = 0.0,
        official_quirk: bool = False,
        pam_residual: bool = True,
        pam_normalizer: str = "keys",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("none", "cc1", "cc2", "cca"))
        self.kind = kind

        def criss_cross() -> nn.Module:
            return CrissCrossAttention(
                channels,
                spatial_dims=spatial_dims,
                reduction=criss_cross_reduction,
                gamma_init=gamma_init,
                official_quirk=official_quirk,
            )

        position = PositionAttention(
            channels,
            spatial_dims=spatial_dims,
            reduction=pam_reduction,
            gamma_init=gamma_init,
            residual=pam_residual,
            normalizer=pam_normalizer,
        )
        self.cc1 = nn.Identity() if kind == "none" else criss_cross()
        self.pam = position if kind == "cca" else nn.Identity()
        self.cc2 = criss_cross() if kind in ("cc2", "cca") else nn.Identity()

    @classmethod
    def tiny(cls, spatial_dims: int = 2, channels: int = 4) -> "ConsistencyCorrelationAttention":
        """Build it with few channels and γ = 1, so that it is not the identity."""
        return cls(channels, spatial_dims=spatial_dims, criss_cross_reduction=2, pam_reduction=2, gamma_init=1.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *s) -> (B, C, *s)``, in the input's type."""
        return self.cc2(self.pam(self.cc1(features)))
