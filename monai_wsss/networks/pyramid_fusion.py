# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Multi-scale pyramid fusion pooling (MPFP): image-level logits of a signed class map and its own pyramid.

Feng et al., AAAI 2025 (gland segmentation), Section "Multi-scale Pyramid Fusion Pooling", Eqs. 5-9.

| symbol        | here             | shape        | what                                                           |
|---------------|------------------|--------------|----------------------------------------------------------------|
| F             | `class_map`      | (B, K, *s)   | signed class map of the last 1x1 convolution                   |
| τ             | `levels`         | –            | side of the pooling's grid (default), or of its kernel         |
| P_τ           | `level`          | (B, K, *s)   | F pooled at τ and brought back to F's size by interpolation    |
| δ             | relu             |              |                                                                |
| S             | `weights`        | (B, 2, *s)   | sigmoid(conv3x3([δ(a), δ(b)])): weights of coarse and fine map |
| Pos, Neg      | of `weights`     | (B, 2, *s)   | S of the maps, S of the negated maps                           |
| P'_τ          | `fused`          | (B, K, *s)   | fused from the coarsest level up to τ (Eq. 8)                  |
| p             | sigmoid of logit | (B, K)       | Eq. 9                                                          |

The authors' released code differs.  It passes F through a ReLU first, so that the negative branch is identically zero
and no probability falls below one half (`relu_class_map=True`).  An earlier commit pooled P' by its mean
(`logit="gap_pyramid"`).
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes.
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._resize import linear_mode
from monai_wsss.networks.checked import CheckedModule

__all__ = ["PyramidFusionPooling", "SignPreservingFusion"]


class SignPreservingFusion(CheckedModule):
    """One step from a coarse map to a finer one that keeps positive and negative responses apart (Eqs. 5-8).

    With Pos = sigmoid(conv([δ(a), δ(b)])) and Neg = sigmoid(conv'([δ(-a), δ(-b)])), two channels each::

        fused = (δ(a) Pos_1 + δ(b) Pos_2) / 2 - (δ(-a) Neg_1 + δ(-b) Neg_2) / 2

    so the result is positive only where one of the maps is positive, and negative only where one of them is negative.
    The convolutions have kernel 3, zero padding 1 and no bias.

    Args:
        num_classes: K, the channels of both maps; Pos and Neg are shared by all classes.
        spatial_dims: 2 or 3.
        share_sign_weights: use one convolution for both signs (the paper has one symbol S) instead of one per sign (the
            authors' code); it is stored as `att_p`.

    Example:
        >>> import torch
        >>> fusion = SignPreservingFusion(1)
        >>> for branch in (fusion.att_p, fusion.att_n):
        ...     _ = torch.nn.init.zeros_(branch[0].weight)  # every weight is then sigmoid(0) = 1/2
        >>> fusion(torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), -8.0)).item()
        -1.0
    """

    def __init__(self, num_classes: int, *, spatial_dims: int = 2, share_sign_weights: bool = False) -> None:
        super().__init__()
        _check_sizes(num_classes, spatial_dims)
        self.att_p = _gate(num_classes, spatial_dims)
        self.att_n = None if share_sign_weights else _gate(num_classes, spatial_dims)

    def weights(self, coarse: torch.Tensor, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute Pos and Neg of Eqs. 5-7: two maps ``(B, K, *s)`` -> two tensors ``(B, 2, *s)`` in (0, 1)."""
        both = torch.cat((coarse, fine), dim=1).to(self.att_p[0].weight.dtype)  # type: ignore[arg-type]
        positive = self.att_p(F.relu(both))
        negative = self.att_p(F.relu(-both)) if self.att_n is None else self.att_n(F.relu(-both))
        return positive, negative

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Fuse two maps by Eq. 8: ``(B, K, *s)`` twice -> ``(B, K, *s)``, in the maps' type."""
        positive, negative = self.weights(coarse, fine)
        raised = F.relu(coarse) * positive[:, :1] + F.relu(fine) * positive[:, 1:]
        lowered = F.relu(-coarse) * negative[:, :1] + F.relu(-fine) * negative[:, 1:]
        return (raised - lowered).to(coarse.dtype) / 2


class PyramidFusionPooling(CheckedModule):
    """Pooling of a signed class map into image-level logits through its fused pyramid: ``(B, K, *s) -> (B, K)``.

    The class map is averaged on grids of 2, 4, 8 and 16 cells per side, interpolated back, and fused step by step from
    the coarsest to the finest level into P'.  The logit is the spatial mean of the agreement of P' and F (Eq. 9)::

        logit = mean( δ(P') δ(F) - δ(-P') δ(-F) )

    Near F = 0 the logit grows with the square of F, and its gradients vanish with F: a class head before this module
    must not start at zero.  Half-precision maps are pooled, and logits returned, in float32.  A map may have fewer
    pixels per side than a level has cells.

    Args:
        num_classes: K.
        spatial_dims: 2 or 3.
        levels: τ of each level, in the order of fusion; different positive numbers.  A single level has no weights.
        fusion: ``"sign"``, by :class:`SignPreservingFusion`, or ``"average"``: P' is the mean of the levels (Table 4).
        pool_mode: ``"grid"``: τ is the side of the pooled grid, as in the authors' code; a larger τ is finer.
            ``"kernel"``: τ is side and stride of the pooling kernel, at most the map's side, as in the paper's words;
            a larger τ is coarser, so levels in descending order go from coarse to fine.
        relu_class_map: pool δ(F) instead of F, as the released code does; logits are then never negative.
        share_sign_weights: use one convolution for both signs and all steps, the literal reading of Eqs. 5-7.
        logit: ``"weighted"`` (Eq. 9) or ``"gap_pyramid"``, the spatial mean of P'.

    Raises:
        ValueError: an unknown option, no levels, repeated levels or levels below 1, or a map of another shape.

    Example:
        >>> import torch
        >>> pooling = PyramidFusionPooling(2, levels=(2,))
        >>> class_map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, -1.0], [-1.0, -1.0]]]])
        >>> pooling(class_map).tolist()  # at its own size P' is F: the means of 1, 4, 9, 16 and of 1, -1, -1, -1
        [[7.5, -0.5]]
        >>> pooling.maps(class_map, "product")[0, 1].tolist()
        [[1.0, -1.0], [-1.0, -1.0]]
    """

    levels: list[int]

    def __init__(
        self,
        num_classes: int,
        *,
        spatial_dims: int = 2,
        levels: Sequence[int] = (2, 4, 8, 16),
        fusion: str = "sign",
        pool_mode: str = "grid",
        relu_class_map: bool = False,
        share_sign_weights: bool = False,
        logit: str = "weighted",
    ) -> None:
        super().__init__()
        _check_sizes(num_classes, spatial_dims)
        check_choice("fusion", fusion, ("sign", "average"))
        check_choice("pool_mode", pool_mode, ("grid", "kernel"))
        check_choice("logit", logit, ("weighted", "gap_pyramid"))
        if not levels or min(levels) < 1 or len(set(levels)) < len(levels):
            raise ValueError(f"Expected `levels` to be different numbers of at least 1, got {tuple(levels)}.")
        self.num_classes = num_classes
        self.spatial_dims = spatial_dims
        self.levels = list(levels)
        self.fusion = fusion
        self.pool_mode = pool_mode
        self.relu_class_map = relu_class_map
        self.logit = logit
        self._mode = linear_mode(spatial_dims)
        # The only submodules, in the order of use (`fused` walks them), under the names of the authors' checkpoints.
        steps = len(levels) - 1 if fusion == "sign" else 0
        self._uses_of_each = steps if share_sign_weights else 1
        for number in range(min(steps, 1) if share_sign_weights else steps):
            module = SignPreservingFusion(num_classes, spatial_dims=spatial_dims, share_sign_weights=share_sign_weights)
            self.add_module(f"spconv{number + 1}", module)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, num_classes: int = 2) -> "PyramidFusionPooling":
        """Build it with two levels, 2 and 4."""
        return cls(num_classes, spatial_dims=spatial_dims, levels=(2, 4))

    def forward(self, class_map: torch.Tensor) -> torch.Tensor:
        """Compute image-level logits: ``(B, K, *s) -> (B, K)``, float32 or wider."""
        return self.maps(class_map, "pyramid" if self.logit == "gap_pyramid" else "product").flatten(2).mean(dim=2)

    @torch.jit.export
    def maps(self, class_map: torch.Tensor, source: str) -> torch.Tensor:
        """Give the map that pseudo-labels are read from: ``(B, K, *s) -> (B, K, *s)``, signed, float32 or wider.

        Args:
            class_map: F (B, K, *s).
            source: ``"class_map"``: F itself, unchanged (the authors' code); ``"pyramid"``: P'; ``"product"``:
                δ(P') δ(F) - δ(-P') δ(-F), whose mean is the logit of Eq. 9.
        """
        if class_map.dim() != self.spatial_dims + 2 or class_map.shape[1] != self.num_classes:
            raise ValueError(
                f"Expected `class_map` of {self.num_classes} classes and {self.spatial_dims} spatial dimensions, "
                f"(B, K, *s), got {class_map.shape}."
            )
        if source not in ("class_map", "pyramid", "product"):
            raise ValueError(f"Expected `source` to be one of class_map, pyramid, product, got '{source}'.")
        if class_map.dtype == torch.float16 or class_map.dtype == torch.bfloat16:
            class_map = class_map.float()
        if source == "class_map":
            return class_map
        seen = F.relu(class_map) if self.relu_class_map else class_map
        fused = self.fused(seen)
        if source == "pyramid":
            return fused
        return F.relu(fused) * F.relu(seen) - F.relu(-fused) * F.relu(-seen)

    def level(self, class_map: torch.Tensor, size: int) -> torch.Tensor:
        """Compute P_τ for τ = ``size``, at F's size, with half-pixel centers: ``(B, K, *s) -> (B, K, *s)``."""
        if self.pool_mode == "grid":
            pooled = F.interpolate(class_map, size=[size] * self.spatial_dims, mode="area")
        else:
            kernel = [min(size, side) for side in class_map.shape[2:]]
            pooled = F.avg_pool2d(class_map, kernel) if self.spatial_dims == 2 else F.avg_pool3d(class_map, kernel)
        return F.interpolate(pooled, size=class_map.shape[2:], mode=self._mode, align_corners=False)

    def fused(self, class_map: torch.Tensor) -> torch.Tensor:
        """Fuse all levels by Eq. 8, or take their mean: ``(B, K, *s) -> (B, K, *s)``, P'."""
        if self.fusion == "average":
            return torch.stack([self.level(class_map, size) for size in self.levels]).mean(dim=0)
        fused = self.level(class_map, self.levels[0])
        step = 1
        for fusion in self.children():
            for _ in range(self._uses_of_each):
                fused = fusion(fused, self.level(class_map, self.levels[step]))
                step += 1
        return fused


def _gate(num_classes: int, spatial_dims: int) -> nn.Sequential:
    """Build S of Eq. 5 behind its ReLU: from the maps of both levels, joined, it gives a weight per level."""
    conv = Conv[Conv.CONV, spatial_dims](2 * num_classes, 2, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(conv, nn.Sigmoid())


def _check_sizes(num_classes: int, spatial_dims: int) -> None:
    if num_classes < 1:
        raise ValueError(f"Expected `num_classes` of at least 1, got {num_classes}.")
    if spatial_dims not in (2, 3):
        raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
