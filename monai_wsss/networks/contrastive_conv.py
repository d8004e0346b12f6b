# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The contrastive convolution of CoinGAN: responses are kept where the inner and the outer zone of a kernel agree.

Eq. 2 to 5 of the paper. The inner zone (IFZ) is an ordinary convolution of side k. The outer zone (EPZ) has side k' and
reads every second pixel at the offsets -(k'-1), -(k'-3), ..., k'-1, which is a dilation of 2. With λ::

    F_c = F_EPZ - F_IFZ        C = 1 where |F_c / F_IFZ| < λ, else 0        output = C F_IFZ

The comparison is |F_c| < λ |F_IFZ|: the same decision, and finite where F_IFZ is 0. In homogeneous regions the zones
agree if their weights are the same, so they share them where their sides are equal. Independent weights close nine
gates of ten, edges or not.
"""

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._running import RunningMean
from monai_wsss.networks.checked import CheckedModule

__all__ = ["ContrastiveConvolution"]


class ContrastiveConvolution(CheckedModule):
    """Convolution whose response is set to zero where a wider ring of pixels responds otherwise.

    ``(B, C, *S) -> (B, C', *S)``, stride 1, without bias, for images and volumes.  The gate is decided in float32 or
    wider, under autocast too.

    Args:
        in_channels: C.
        out_channels: C'.
        spatial_dims: 2 or 3.
        kernel_size: k, side of the inner zone.  An even zone begins k / 2 pixels before the center.
        epz_kernel_size: k', side of the outer zone, with 2 k' - k >= 3: at least one ring around the inner zone.
        lam: λ > 0, the relative difference from which on a gate is closed.
        gate: ``"channel"``, one gate per position and channel; ``"spatial"``, one per position, of the norms over
            channels.
        share_weights: both zones have one kernel; None: where k = k'.
        match_kernel_sums: shift the separate weights of the outer zone so that both zones have equal sums per pair of
            channels.  Then they agree on constant images.
        padding_mode: ``"reflect"``, or ``"zeros"``, which closes gates along the border of any image.
        gate_gradient: ``"none"``, the gate is a constant, and separate weights of the outer zone never learn;
            ``"straight_through"``, it is decided sharply and has the gradient of a smooth gate; ``"soft"``, it is
            smooth.
        temperature: of the smooth gate, sigmoid((λ - |F_c| / |F_IFZ|) / temperature).

    Attributes:
        weight: (C', C, k, ...), of the inner zone.
        epz_weight: (C', C, k', ...), of the outer zone; None where it is shared.
        open_fraction: the running share of open gates over training steps and processes, in ``open_fraction.value``.

    Raises:
        ValueError: numbers out of range, an unknown word, or shared weights of unequal zones; images with a side that
            is too short to be reflected.

    Example:
        >>> import torch
        >>> layer = ContrastiveConvolution(3, 4)
        >>> constant = torch.ones(1, 3, 6, 6)
        >>> layer.gate_of(*layer.responses(constant)).min().item()  # homogeneous: every gate is open
        1.0
        >>> layer(constant).shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        *,
        kernel_size: int = 3,
        epz_kernel_size: int = 3,
        lam: float = 0.3,
        gate: str = "channel",
        share_weights: bool | None = None,
        match_kernel_sums: bool = True,
        padding_mode: str = "reflect",
        gate_gradient: str = "none",
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("gate", gate, ("channel", "spatial"))
        check_choice("padding_mode", padding_mode, ("reflect", "zeros"))
        check_choice("gate_gradient", gate_gradient, ("none", "straight_through", "soft"))
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        if kernel_size < 1 or 2 * epz_kernel_size - kernel_size < 3:
            raise ValueError(
                "Expected `kernel_size` k >= 1 and `epz_kernel_size` k' with 2 k' - k >= 3, so that the outer zone "
                f"goes beyond the inner one, got k = {kernel_size} and k' = {epz_kernel_size}."
            )
        if lam <= 0 or temperature <= 0:
            raise ValueError(f"Expected `lam` and `temperature` > 0, got {lam} and {temperature}.")
        if share_weights and kernel_size != epz_kernel_size:
            raise ValueError(
                f"Expected zones of one side to share weights, got {kernel_size} and {epz_kernel_size}: choose "
                "share_weights=False."
            )
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.epz_kernel_size = epz_kernel_size
        self.lam = lam
        self.gate = gate
        self.match_kernel_sums = match_kernel_sums
        self.padding_mode = padding_mode
        self.gate_gradient = gate_gradient
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *(kernel_size,) * spatial_dims))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if kernel_size == epz_kernel_size and share_weights is not False:
            self.register_parameter("epz_weight", None)
        else:
            self.epz_weight = nn.Parameter(torch.empty(out_channels, in_channels, *(epz_kernel_size,) * spatial_dims))
            nn.init.kaiming_uniform_(self.epz_weight, a=5**0.5)
        self.open_fraction = RunningMean(momentum=0.99)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *S) -> (B, C', *S)``."""
        ifz, epz = self.responses(features)
        gate = self.gate_of(ifz, epz)
        if self.training:
            self._follow(gate)
        return gate.to(ifz.dtype) * ifz

    def responses(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give F_IFZ and F_EPZ: ``(B, C, *S)`` to twice ``(B, C', *S)``; the latter has no gradient for a sharp gate.

        Raises:
            ValueError: features of another number of dimensions, or too small to be reflected.
        """
        if features.dim() != self.spatial_dims + 2:
            raise ValueError(f"Expected `features` with {self.spatial_dims} spatial axes, got {features.shape}.")
        if self.padding_mode == "reflect":
            for side in features.shape[2:]:
                if side < self.epz_kernel_size:
                    raise ValueError(
                        f"Expected sides above k' - 1 = {self.epz_kernel_size - 1}, which are reflected, got "
                        f"{features.shape}."
                    )
        before = self.kernel_size // 2
        ifz = self._convolve(features, self.weight, 1, before, self.kernel_size - 1 - before)
        border = self.epz_kernel_size - 1
        if self.gate_gradient == "none":
            with torch.no_grad():
                epz = self._convolve(features, self._outer_weight(), 2, border, border)
        else:
            epz = self._convolve(features, self._outer_weight(), 2, border, border)
        return ifz, epz

    def gate_of(self, ifz: torch.Tensor, epz: torch.Tensor) -> torch.Tensor:
        """Give the gate C of two responses: ``(B, C', *S)``, or ``(B, 1, *S)`` with one gate per position."""
        ifz, epz = float32_or_wider(ifz), float32_or_wider(epz)
        if self.gate_gradient == "none":
            ifz, epz = ifz.detach(), epz.detach()
        size, difference = ifz.abs(), (epz - ifz).abs()
        if self.gate == "spatial":
            size = torch.linalg.vector_norm(size, dim=1, keepdim=True)
            difference = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        if self.gate_gradient == "none":
            return difference.lt_(size.mul_(self.lam))  # in place: at full resolution memory is what costs time
        sharp = (difference < self.lam * size).to(size.dtype)
        bounded = difference / (size + 1e-3)  # finite where nothing responds
        smooth = ((self.lam - bounded) / self.temperature).sigmoid()
        return smooth if self.gate_gradient == "soft" else sharp + (smooth - smooth.detach())

    def _outer_weight(self) -> torch.Tensor:
        outer = self.epz_weight
        if outer is None:
            return self.weight
        if not self.match_kernel_sums:
            return outer
        missing = self.weight.flatten(2).sum(-1) - outer.flatten(2).sum(-1)
        return outer + (missing / outer[0, 0].numel()).reshape(
            [outer.shape[0], outer.shape[1]] + [1] * self.spatial_dims
        )

    def _convolve(
        self, features: torch.Tensor, weight: torch.Tensor, dilation: int, before: int, after: int
    ) -> torch.Tensor:
        mode = "reflect" if self.padding_mode == "reflect" else "constant"
        padded = F.pad(features, [before, after] * self.spatial_dims, mode=mode)
        if self.spatial_dims == 2:
            return F.conv2d(padded, weight, dilation=dilation)
        return F.conv3d(padded, weight, dilation=dilation)

    @torch.jit.unused
    def _follow(self, gate: torch.Tensor) -> None:
        self.open_fraction.update(gate.detach().mean())
