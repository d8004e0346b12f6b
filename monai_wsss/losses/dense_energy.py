# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Like pixels should have one class: the energy of a dense CRF as a loss (Tang et al., ECCV 2018).

    E = 1/B sum_b sum_i g_i sum_j W_ij (1 - p_i . p_j),   W_ij = c exp( -|x_i - x_j|² / 2 a² - |I_i - I_j|² / 2 s² )

over pixels that no padding made. CoSA's released code adds 0.05 x 1e-7 E to its losses; the paper does not tell of it.
p are the probabilities and I the intensities at half the size (`scale`). The gate g_i = 1 - max p_i leaves pixels
alone that are sure of their class; it is 1 where the pseudo-label is in doubt (255).

As there, the gradient is dE/dp_i = -2/B g_i sum_j W_ij p_j: the gate is held constant, and a pixel is moved by its own
doubt alone, not by that of others. Without the gate (`gate=False`) this is the exact gradient. The value differs from
the released one, -sum g p W p, by a term that moves nothing, since probabilities sum to 1: here it is never negative,
and 0 where all pixels are surely of one class.

W is exact for small images, else it is the permutohedral lattice that ``DenseCRF`` has, on any device, in time and
memory linear in the number of pixels. The factor c is the one of the released code's lattice, so that its weights have
the same meaning: with d features, 2^(d+1) / (1 + 2^-d) times our lattice, c = 0.71 for a color image. (The lattice's
sums are 10 to 25 % smaller than the exact ones where colors hardly repeat, since corners that no pixel touches miss.)

| symbol | name                                | shape        |
|--------|-------------------------------------|--------------|
| p      | softmax of `logits`                 | (B, K+1, *S) |
| I      | `image`                             | (B, C, *S)   |
| a      | `position_std`                      |              |
| s      | `intensity_std`, `intensity_range`  |              |
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from monai_wsss._checks import check_choice, check_shape, float32_or_wider, plain_tensor
from monai_wsss._labels import IGNORED
from monai_wsss._resize import resize_linear, resize_nearest
from monai_wsss.refinement.bilateral import EXACT_PIXELS, ExactKernel, pixel_features
from monai_wsss.refinement.dense_crf import has_gray_levels
from monai_wsss.refinement.permutohedral import PermutohedralLattice

__all__ = ["DenseEnergyLoss", "dense_energy_loss"]

_METHODS = ("auto", "exact", "lattice")


def dense_energy_loss(
    logits: torch.Tensor,
    image: torch.Tensor,
    label: torch.Tensor | None = None,
    inside: torch.Tensor | None = None,
    *,
    position_std: float = 100.0,
    intensity_std: float = 15.0,
    intensity_range: float | None = 255.0,
    scale: float = 0.5,
    factor: float = 1e-7,
    gate: bool = True,
    method: str = "auto",
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Compute the energy of segmentation logits on an image: ``factor`` E of this file.

    Args:
        logits: (B, K+1, *S).
        image: (B, C, *S), the image that was segmented.
        label: pseudo-labels (B, *S); where they are ``ignore_index`` the gate is open. None: nowhere.
        inside: (B, *S), bool, pixels that are no padding. None: all.
        position_std: a, in pixels of S.
        intensity_std: s, in gray levels, 255 of which make up ``intensity_range``; the same for each channel.
        intensity_range: R of images in 0..R, on which s then means s R / 255. None for any other (z-scores): s is then
            in the image's own unit.
        scale: size at which the energy is computed, in (0, 1].
        factor: of E, which grows with the square of the number of pixels: 1e-7 suits 448 x 448.
        gate: whether sure pixels are left alone.
        method: of the kernel: ``"exact"``, ``"lattice"``, or ``"auto"``, exact up to 48 x 48 pixels at ``scale``.
        ignore_index: the label without a class.

    Returns:
        scalar >= 0 in float32 or wider, a mean over images.

    Raises:
        ValueError: shapes that do not fit, intensities that do not fit ``intensity_range``, another method, or a number
            out of range.

    Example:
        >>> image = torch.tensor([50.0, 50.0, 200.0, 200.0]).expand(1, 1, 4, 4)
        >>> along, across = 4 * image / 255 - 2, 4 * image.mT / 255 - 2  # edges of the image, and others
        >>> one, other = (torch.cat((logits, -logits), 1) for logits in (along, across))
        >>> bool(dense_energy_loss(one, image, scale=1) < dense_energy_loss(other, image, scale=1))
        True
    """
    _check_settings((position_std, intensity_std), intensity_range, scale, factor, method)
    _check_tensors(logits, image, label, inside, intensity_range)
    levels = intensity_std * (1.0 if intensity_range is None else intensity_range / 255)
    return factor * _energy(logits, image, label, inside, (position_std, levels), scale, gate, method, ignore_index)


class DenseEnergyLoss(nn.Module):
    """:func:`dense_energy_loss` with its settings kept.

    Args:
        position_std: see there, as for all others.
        intensity_std: s.
        intensity_range: 255, 1, or None for images without fixed range.
        scale: in (0, 1].
        factor: of E.
        gate: whether sure pixels are left alone.
        method: ``"auto"``, ``"exact"`` or ``"lattice"``.
        ignore_index: the label without a class.
        validate_args: whether each call checks its tensors, which waits for a GPU; False: the first one alone does.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> loss = DenseEnergyLoss(intensity_range=None, intensity_std=0.3)
        >>> loss(torch.zeros(2, 3, 8, 8, 8), torch.randn(2, 1, 8, 8, 8)).item() > 0
        True
    """

    def __init__(
        self,
        *,
        position_std: float = 100.0,
        intensity_std: float = 15.0,
        intensity_range: float | None = 255.0,
        scale: float = 0.5,
        factor: float = 1e-7,
        gate: bool = True,
        method: str = "auto",
        ignore_index: int = IGNORED,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        _check_settings((position_std, intensity_std), intensity_range, scale, factor, method)
        self.settings: dict[str, Any] = {
            "position_std": position_std,
            "intensity_std": intensity_std,
            "intensity_range": intensity_range,
            "scale": scale,
            "factor": factor,
            "gate": gate,
            "method": method,
            "ignore_index": ignore_index,
        }
        self.validate_args = validate_args
        self._checked = False

    def forward(
        self,
        logits: torch.Tensor,
        image: torch.Tensor,
        label: torch.Tensor | None = None,
        inside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the energy of logits (B, K+1, *S) on an image (B, C, *S), see :func:`dense_energy_loss`."""
        if self.validate_args or not self._checked:
            energy = dense_energy_loss(logits, image, label, inside, **self.settings)
            self._checked = True
            return energy
        chosen = self.settings
        intensity_range = chosen["intensity_range"]
        levels = chosen["intensity_std"] * (1.0 if intensity_range is None else intensity_range / 255)
        stds, words = (chosen["position_std"], levels), (chosen[w] for w in ("scale", "gate", "method", "ignore_index"))
        return chosen["factor"] * _energy(logits, image, label, inside, stds, *words)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


def _check_settings(
    stds: tuple[float, float], intensity_range: float | None, scale: float, factor: float, method: str
) -> None:
    check_choice("method", method, _METHODS)
    if not all(0 < std < math.inf for std in (*stds, 1.0 if intensity_range is None else intensity_range)):
        raise ValueError(
            f"Expected `position_std`, `intensity_std` and `intensity_range` > 0, got {stds} and {intensity_range}."
        )
    if not 0 < scale <= 1 or not 0 <= factor < math.inf:
        raise ValueError(f"Expected `scale` in (0, 1] and `factor` >= 0, got {scale} and {factor}.")


def _check_tensors(
    logits: torch.Tensor,
    image: torch.Tensor,
    label: torch.Tensor | None,
    inside: torch.Tensor | None,
    intensity_range: float | None,
) -> None:
    check_shape("logits", logits, "(B, K+1, *S)")
    expected = (len(logits), *logits.shape[2:])
    if image.ndim != logits.ndim or (len(image), *image.shape[2:]) != expected:
        raise ValueError(
            f"Expected `image` of shape (B, C, *S) beside `logits` {tuple(logits.shape)}, got {tuple(image.shape)}: "
            "resize the logits to the image first."
        )
    for name, part in (("label", label), ("inside", inside)):
        if part is not None and part.shape != expected:
            raise ValueError(f"Expected `{name}` of shape (B, *S) = {expected}, got {tuple(part.shape)}.")
    if intensity_range is not None and not has_gray_levels(image, intensity_range):
        raise ValueError(
            f"Expected `image` in 0..{intensity_range:g} (`intensity_range`), got other values: give intensity_range=1 "
            "for images in [0, 1], or None together with an `intensity_std` in the image's own unit."
        )


def _energy(
    logits: torch.Tensor,
    image: torch.Tensor,
    label: torch.Tensor | None,
    inside: torch.Tensor | None,
    stds: tuple[float, float],
    scale: float,
    gate: bool,
    method: str,
    ignore_index: int,
) -> torch.Tensor:
    size = [max(1, int(side * scale)) for side in logits.shape[2:]]
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = resize_linear(float32_or_wider(logits).softmax(1), size)
        with torch.no_grad():
            valid = torch.ones_like(probabilities[:, :1])
            if inside is not None:
                valid = resize_nearest(inside[:, None].to(valid), size)
            doubt = torch.ones_like(valid)
            if gate:
                doubt = (valid - probabilities.amax(1, keepdim=True)).clamp(min=0)
                if label is not None:
                    doubt.masked_fill_(resize_nearest(label[:, None], size) == ignore_index, 1)
            small = resize_nearest(plain_tensor(image).to(probabilities), size) / stds[1]
            exact = method == "exact" or (method == "auto" and small[0, 0].numel() <= EXACT_PIXELS)
        return _PairwiseEnergy.apply(probabilities * valid, small, doubt * valid, 1 / (stds[0] * scale), exact)


class _PairwiseEnergy(torch.autograd.Function):
    """The energy E; the gradient of its gate is left out, and a pair moves the end whose gate it is."""

    @staticmethod
    def forward(
        ctx: Any, probabilities: torch.Tensor, image: torch.Tensor, gate: torch.Tensor, step: float, exact: bool
    ) -> torch.Tensor:
        energy = probabilities.new_zeros(())
        gradient = torch.empty_like(probabilities)
        for own, given, doubt, result in zip(image, probabilities, gate, gradient, strict=True):
            features = pixel_features(own, [step] * (own.ndim - 1))
            neighbors = _weighted_sums(features, given.flatten(1).t().contiguous(), exact)
            neighbors = neighbors.t().reshape(given.shape) * doubt
            energy += neighbors.sum() - (neighbors * given).sum()
            result.copy_(neighbors)
        images = max(1, len(image))
        ctx.save_for_backward(gradient.mul_(-2 / images))
        return energy / images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_energy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return of_energy * gradient, None, None, None, None


def _weighted_sums(features: torch.Tensor, values: torch.Tensor, exact: bool) -> torch.Tensor:
    """Compute W v for values (N, M) of pixels with features (N, d): the scale is that of the released lattice."""
    dims = features.shape[1]
    of_lattice = 2.0 ** (dims + 1) / (1 + 2.0**-dims)
    if not exact:
        return of_lattice * PermutohedralLattice(features, features.dtype).filter(values)
    # The mass of a Gaussian, in corners of the lattice: what its filter, whose weights sum to 1, is short of.
    corners = (2 * math.pi) ** (dims / 2) * (dims + 1) ** 0.5 * (2 / 3) ** (dims / 2)
    return of_lattice / corners * ExactKernel(features, features.dtype).filter(values)
