# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A fully connected CRF draws class probabilities to the edges of the image (Krähenbühl and Koltun, NIPS 2011).

Mean field with Potts compatibility, from Q = softmax(-U), repeated (Eq. 4 and Algorithm 1)::

    Q <- softmax_k( -U + Σ_m w_m K~_m Q ),      U = -log clamp(p, 1e-5, 1)
    K_1(i, j) = exp( -|x_i - x_j|² / 2 a² )                           position
    K_2(i, j) = exp( -|x_i - x_j|² / 2 b² - |I_i - I_j|² / 2 c² )     position and intensity (bilateral)
    K~ = D^-1/2 K D^-1/2,   D_i = Σ_j K(i, j)

with x the pixels' positions and I their intensities. Both D and the message K~ Q *include the own pixel*, and the
smallest probability is 1e-5, as in the implementation that the papers used (``pydensecrf``, symmetric normalization)
and unlike the printed Algorithm 1.

K_1 is computed as a product of one matrix per axis, exact to 1e-7. K_2 is either exact, some rows of the N x N matrix
at a time, or approximated on a permutohedral lattice in linear time and memory. How close that is depends on the image.
The table compares both (``bmp``, images of three channels with textured regions, of which the CRF relabels 6 to 38 %;
``speed/dense_crf.py``). It gives the share of the pixels to which the lattice gives the same class. Marginals differ by
0.0005 to 0.003 on average, but by up to 0.9 at single pixels whose color no other pixel has:

| side | 2 classes | 4 classes | 21 classes |
|-----:|----------:|----------:|-----------:|
|   32 |    99.9 % |    99.5 % |     98.0 % |
|   48 |    99.9 % |    99.8 % |     99.1 % |
|   64 |    99.9 % |    99.8 % |     99.1 % |
|   96 |   100.0 % |           |            |

Where colors hardly repeat (a photograph shrunk to 64 x 64 or 96 x 96, probabilities noisy at each pixel) the share was
98.2 to 99.5 %. On smooth images without texture (one channel of 64 x 64, z-scores with c = 0.1, 2 or 4 classes) it was
96.4 to 100 %, in one of some 200 images 92.4 %, and marginals differed by 0.0006 to 0.03 on average.

| symbol | name                                          | shape     |
|--------|-----------------------------------------------|-----------|
| p, Q   | `probabilities`, result                       | (B, K, *S)|
| I      | `image`                                       | (B, C, *S)|
| a, w_1 | `position_std`, `position_weight`             |           |
| b, w_2 | `bilateral_position_std`, `bilateral_weight`  |           |
| c      | `bilateral_intensity_std`, `intensity_range`  |           |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider, plain_tensor
from monai_wsss.refinement.bilateral import EXACT_PIXELS, ExactKernel, pixel_features
from monai_wsss.refinement.permutohedral import PermutohedralLattice

__all__ = ["DenseCRF", "dense_crf_refinement"]

_CLAMP = 1e-5  # the smallest probability
_TRUNCATION = 6.0  # the position kernel beyond that many standard deviations is left out, 4e-9 of its sum
ROWS = 128  # rows of the position kernel's matrices that are done at a time
_METHODS = ("auto", "exact", "lattice")

#: ``pydensecrf`` calls the same numbers sxy, srgb and compat; all are for images in 0..255.
_PRESETS: dict[str, dict[str, Any]] = {
    "deeplab": {
        "iterations": 10,
        "position_std": 3.0,
        "position_weight": 3.0,
        "bilateral_position_std": 67.0,
        "bilateral_intensity_std": 3.0,
        "bilateral_weight": 4.0,
    },
    "cosa": {
        "iterations": 1,
        "position_std": 1.0,
        "position_weight": 1.0,
        "bilateral_position_std": 121.0,
        "bilateral_intensity_std": 5.0,
        "bilateral_weight": 4.0,
    },
    "bmp": {
        "iterations": 10,
        "position_std": 3.0,
        "position_weight": 3.0,
        "bilateral_position_std": 64.0,
        "bilateral_intensity_std": 5.0,
        "bilateral_weight": 4.0,
    },
}

Message = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def dense_crf_refinement(
    image: torch.Tensor,
    probabilities: torch.Tensor,
    *,
    iterations: int = 10,
    position_std: float = 3.0,
    position_weight: float = 3.0,
    bilateral_position_std: float = 64.0,
    bilateral_intensity_std: float = 5.0,
    bilateral_weight: float = 4.0,
    intensity_range: float | None = 255.0,
    spacing: Sequence[float] | None = None,
    method: str = "auto",
) -> torch.Tensor:
    """Refine class probabilities by mean-field inference in a fully connected CRF: the equations of this file.

    Nothing is differentiated. Images of a batch do not influence one another.

    Args:
        image: (B, C, *S), intensities of any C >= 1 channels, un-augmented; see ``intensity_range``.
        probabilities: (B, K, *S) in [0, 1], background included, K >= 2; need not sum to 1.
        iterations: steps of the mean field; 0 gives the normalized probabilities.
        position_std: a, in pixels, or in the unit of ``spacing``.
        position_weight: w_1 >= 0.
        bilateral_position_std: b, in the same unit as a.
        bilateral_intensity_std: c, in gray levels, 255 of which make up ``intensity_range``; the same for each channel.
        bilateral_weight: w_2 >= 0.
        intensity_range: R of images in 0..R, on which c then means c R / 255: 255 for 8-bit images as the published
            settings are, 1 for images in [0, 1]. None for any other (z-scores, Hounsfield units): c is then in the
            image's own unit, e.g. 0.1. Images that do not look like 0..R raise.
        spacing: size of a pixel along each axis of S; None: 1.
        method: of the bilateral kernel: ``"exact"``, quadratic in the number of pixels N in time, not in memory;
            ``"lattice"``, linear, a close approximation; ``"auto"``, exact up to N = 2304 (48 x 48, 13 x 13 x 13).

    Returns:
        the marginals Q (B, K, *S), in float32 or wider; they sum to 1 over K.

    Raises:
        ValueError: shapes that do not fit, one class, values that are no probabilities, NaN or infinity, intensities
            that do not fit ``intensity_range``, or a setting out of range.

    Example:
        >>> image = torch.tensor([50.0, 50.0, 50.0, 200.0, 200.0, 200.0]).expand(1, 1, 6, 6)  # two tissues
        >>> right = torch.tensor([0.1, 0.6, 0.1, 0.9, 0.4, 0.9]).expand(1, 1, 6, 6)  # a bad column in each
        >>> refined = dense_crf_refinement(image, torch.cat((1 - right, right), 1))
        >>> refined.argmax(1)[0, 0].tolist()
        [0, 0, 0, 1, 1, 1]
    """
    _check_settings(
        iterations=iterations,
        stds=(position_std, bilateral_position_std, bilateral_intensity_std),
        weights=(position_weight, bilateral_weight),
        intensity_range=intensity_range,
        method=method,
    )
    image, probabilities = plain_tensor(image), plain_tensor(probabilities)
    _check_tensors(image, probabilities)
    pixel = _checked_spacing(spacing, image.ndim - 2)
    probabilities = float32_or_wider(probabilities)
    levels = bilateral_intensity_std * _gray_level(image, intensity_range)
    exact = method == "exact" or (method == "auto" and image[0, 0].numel() <= EXACT_PIXELS)
    kernel = ExactKernel if exact else PermutohedralLattice
    refined = torch.empty_like(probabilities, memory_format=torch.contiguous_format)
    with torch.autocast(image.device.type, enabled=False):
        for own, given, result in zip(image.to(probabilities), probabilities, refined, strict=True):
            messages: list[tuple[float, Message]] = []
            if position_weight:
                steps = [position_std / side for side in pixel]
                messages.append((position_weight, _position_message(given, steps)))
            if bilateral_weight:
                features = pixel_features(own / levels, [side / bilateral_position_std for side in pixel])
                messages.append((bilateral_weight, _normalized(kernel(features, features.dtype).filter, features)))
            result.copy_(_mean_field(given, messages, iterations))
    return refined


class DenseCRF(nn.Module):
    """:func:`dense_crf_refinement` with its settings kept.

    Args:
        iterations: see there, as for all others.
        position_std: a.
        position_weight: w_1.
        bilateral_position_std: b.
        bilateral_intensity_std: c.
        bilateral_weight: w_2.
        intensity_range: 255, 1, or None for an image without fixed range.
        spacing: size of a pixel along each axis.
        method: ``"auto"``, ``"exact"`` or ``"lattice"``.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> crf = DenseCRF.from_preset("bmp", intensity_range=1.0)
        >>> crf(torch.rand(2, 3, 16, 16), torch.rand(2, 4, 16, 16).softmax(1)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        position_std: float = 3.0,
        position_weight: float = 3.0,
        bilateral_position_std: float = 64.0,
        bilateral_intensity_std: float = 5.0,
        bilateral_weight: float = 4.0,
        intensity_range: float | None = 255.0,
        spacing: Sequence[float] | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__()
        _check_settings(
            iterations=iterations,
            stds=(position_std, bilateral_position_std, bilateral_intensity_std),
            weights=(position_weight, bilateral_weight),
            intensity_range=intensity_range,
            method=method,
        )
        self.settings: dict[str, Any] = {
            "iterations": iterations,
            "position_std": position_std,
            "position_weight": position_weight,
            "bilateral_position_std": bilateral_position_std,
            "bilateral_intensity_std": bilateral_intensity_std,
            "bilateral_weight": bilateral_weight,
            "intensity_range": intensity_range,
            "spacing": spacing,
            "method": method,
        }

    @classmethod
    def from_preset(cls, preset: str, **settings: Any) -> DenseCRF:
        """Build from published settings by name, all for 8-bit images: other ranges need ``intensity_range``.

        | preset    | iterations | a, w_1 | b, c, w_2  | source                                                        |
        |-----------|------------|--------|------------|---------------------------------------------------------------|
        | `deeplab` | 10         | 3, 3   | 67, 3, 4   | DeepLab v2 with ResNet-101: b, c, w_2 as its ports have them  |
        | `cosa`    | 1          | 1, 1   | 121, 5, 4  | CoSA (CRF*)                                                   |
        | `bmp`     | 10         | 3, 3   | 64, 5, 4   | BMP's code                                                    |

        DeepLab v2 fixes a = w_1 = 3 and ten iterations, and chooses the others for each network; ports of it have
        a = 1, and scripts for its VGG-16 have 49, 5, 4 (a = w_1 = 3) or 65, 3, 4 (a = w_1 = 2).

        Args:
            preset: one of the above.
            settings: over those of the preset.

        Raises:
            ValueError: another preset, or a setting out of range.
        """
        check_choice("preset", preset, tuple(_PRESETS))
        return cls(**{**_PRESETS[preset], **settings})

    def forward(self, image: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Refine probabilities (B, K, *S) by images (B, C, *S) into marginals (B, K, *S)."""
        return dense_crf_refinement(image, probabilities, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


def _mean_field(probabilities: torch.Tensor, messages: list[tuple[float, Message]], iterations: int) -> torch.Tensor:
    """Compute the marginals (K, *S) of one image: Q <- softmax(-U + Σ w K~ Q), on rows (N, K)."""
    log_p = probabilities.clamp(_CLAMP, 1.0).log_().flatten(1).t().contiguous()
    marginals = log_p.softmax(1)
    for _ in range(iterations):
        scores = log_p.clone()
        for weight, message in messages:
            scores.add_(message(marginals), alpha=weight)
        marginals = scores.softmax(1)
    return marginals.t().reshape(probabilities.shape)


def _normalized(filter_: Message, features: torch.Tensor) -> Message:
    """Normalize a filter, D^-1/2 K D^-1/2, with the row sums D of K as the filter itself has them."""
    scale = filter_(features.new_ones(len(features), 1)).rsqrt_()
    return lambda marginals: filter_(marginals * scale) * scale


def _position_message(maps: torch.Tensor, stds: list[float]) -> Message:
    """Build the normalized position kernel; it is a product over axes, since its row sums are one, too."""
    size = maps.shape[1:]
    axes = [_bands(side, std, maps) for side, std in zip(size, stds, strict=True)]

    def message(marginals: torch.Tensor) -> torch.Tensor:
        result = marginals.t().reshape(-1, *size)
        for axis, bands in enumerate(axes, start=1):
            lines = result.movedim(axis, -1)
            parts = [lines[..., first:last] @ matrix for first, last, matrix in bands]
            result = torch.cat(parts, -1).movedim(-1, axis)
        return result.flatten(1).t()

    return message


def _bands(side: int, std: float, like: torch.Tensor) -> list[tuple[int, int, torch.Tensor]]:
    """Build the normalized kernel along one axis, up to ROWS columns at a time, with the rows that count."""
    reach = math.ceil(_TRUNCATION * std)
    place = torch.arange(side, dtype=torch.float64, device=like.device)
    spans = [
        (max(0, start - reach), min(side, start + ROWS + reach), slice(start, start + ROWS))
        for start in range(0, side, ROWS)
    ]
    kernels = [((place[first:last, None] - place[own]) / std).square().mul(-0.5).exp() for first, last, own in spans]
    scale = torch.cat([kernel.sum(0) for kernel in kernels]).rsqrt()
    return [
        (first, last, (scale[first:last, None] * kernel * scale[own]).to(like))
        for (first, last, own), kernel in zip(spans, kernels, strict=True)
    ]


def _gray_level(image: torch.Tensor, intensity_range: float | None) -> float:
    """Convert one gray level into the image's unit; raise where the image does not look like 0..R."""
    if intensity_range is None:
        return 1.0
    if not has_gray_levels(image, intensity_range):
        low, high = (value.item() for value in image.aminmax())
        raise ValueError(
            f"Expected `image` in 0..{intensity_range:g} (`intensity_range`), got values from {low:g} to {high:g}: "
            "give intensity_range=1 for images in [0, 1], 255 for 8-bit ones, or None together with a "
            "`bilateral_intensity_std` in the image's own unit (z-scores, Hounsfield units)."
        )
    return intensity_range / 255


def has_gray_levels(image: torch.Tensor, intensity_range: float) -> bool:
    """Tell whether an image may be one of 0..R.

    One of negative values beyond what interpolation overshoots is none, nor is one of fractions that reach only a
    sixteenth of the range, as z-scores do, be they clipped at 0 or not.
    """
    low, high = (value.item() for value in image.aminmax())
    fractions = image.is_floating_point() and bool((image != image.round()).any())
    narrow = intensity_range > 1 and high <= max(1, intensity_range / 16) and fractions
    overshoot = 0.05 * intensity_range
    return low >= -0.05 * min(intensity_range, high - low) and high <= intensity_range + overshoot and not narrow


def _check_tensors(image: torch.Tensor, probabilities: torch.Tensor) -> None:
    check_shape("image", image, "(B, C, *S)")
    check_shape("probabilities", probabilities, "(B, K, *S)")
    if image.shape[:1] != probabilities.shape[:1] or image.shape[2:] != probabilities.shape[2:]:
        raise ValueError(
            f"Expected `image` and `probabilities` of one batch and size, got {tuple(image.shape)} and "
            f"{tuple(probabilities.shape)}: resize the probabilities to the image first."
        )
    if image.numel() == 0 or probabilities.shape[1] < 2:
        raise ValueError(
            "Expected at least one image, channel and pixel and two classes, got `image` "
            f"{tuple(image.shape)} and `probabilities` {tuple(probabilities.shape)}: give the background, or the other "
            "tissue, a channel of its own (1 - p)."
        )
    for name, tensor in (("image", image), ("probabilities", probabilities)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"Expected finite `{name}`, got NaN or infinity: replace or mask these pixels first.")
    low, high = (value.item() for value in probabilities.aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"Expected `probabilities` in [0, 1], got values from {low:g} to {high:g}: logits need a softmax first."
        )


def _check_settings(
    *,
    iterations: int,
    stds: tuple[float, float, float],
    weights: tuple[float, float],
    intensity_range: float | None,
    method: str,
) -> None:
    check_choice("method", method, _METHODS)
    if iterations < 0 or not all(0 < std < math.inf for std in stds):
        raise ValueError(
            f"Expected `iterations` >= 0 and standard deviations > 0, got {iterations} and {stds}: a weight of 0 "
            "leaves a kernel out."
        )
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"Expected `position_weight` and `bilateral_weight` >= 0, got {weights}.")
    if intensity_range is not None and not 0 < intensity_range < math.inf:
        raise ValueError(f"Expected `intensity_range` > 0 or None, got {intensity_range}.")


def _checked_spacing(spacing: Sequence[float] | None, dims: int) -> tuple[float, ...]:
    pixel = (1.0,) * dims if spacing is None else tuple(float(side) for side in spacing)
    if len(pixel) != dims or not all(0 < side < math.inf for side in pixel):
        raise ValueError(f"Expected `spacing` of {dims} numbers > 0, one per axis, got {spacing}.")
    return pixel
