# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Positions and intensities of pixels as one feature, and the Gaussian kernel between them, exact.

    K_ij = exp( -|f_i - f_j|² / 2 ),   f = (x / b, I / c)

:class:`~monai_wsss.refinement.permutohedral.PermutohedralLattice` approximates the same sums in linear time.
"""

from __future__ import annotations

import torch

__all__ = ["ENTRIES", "EXACT_PIXELS", "ExactKernel", "pixel_features"]

EXACT_PIXELS = 48**2  # up to here the kernel is exact by default: 0.2 s per image on one core
ENTRIES = 2**24  # entries of the exact kernel that are worked on, or held, at a time: 64 MiB in float32


class ExactKernel:
    """K_ij = exp(-|f_i - f_j|² / 2), some rows at a time; a kernel that is small enough is held as a whole."""

    def __init__(self, features: torch.Tensor, dtype: torch.dtype) -> None:
        self.features = features
        self.rows = features.split(max(1, ENTRIES // len(features)))
        self.matrix = self._of(features) if len(self.rows) == 1 else None

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply the kernel with values: (N, M) -> (N, M)."""
        if self.matrix is not None:
            return self.matrix @ values
        return torch.cat([self._of(rows) @ values for rows in self.rows])

    def _of(self, rows: torch.Tensor) -> torch.Tensor:
        # Not by |f_i|² + |f_j|² - 2 f_i f_j, whose differences float32 does not resolve.
        distances = torch.cdist(rows, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.square_().mul_(-0.5).exp_()


def pixel_features(image: torch.Tensor, steps: list[float]) -> torch.Tensor:
    """Give positions and intensities in standard deviations (N, d + C) of an image (C, *S)."""
    # Around 0, so that an offset of the intensities changes neither what float32 resolves nor the place on the lattice.
    image = image - image.flatten(1).mean(1).reshape(-1, *[1] * (image.ndim - 1))
    axes = [torch.arange(side, device=image.device) for side in image.shape[1:]]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(image)
    for axis, step in zip(positions, steps, strict=True):
        axis *= step
    return torch.cat((positions, image)).flatten(1).t().contiguous()
