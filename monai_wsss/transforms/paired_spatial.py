# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Spatial transforms that are drawn once and applied to images and to class maps alike, inside autograd.

They are the transform pi of equivariance constraints: flips, quarter turns, scaling, translation (Wang et al. 2020,
SEAM, arXiv:2004.04581; Patel & Dolz, CMER, Sec. III and the section "Implementation").  MONAI's dictionary transforms
act on single items before the network.  These move a batch of images and, with the same parameters, the batch of maps
that the network makes of it, and gradients pass through.

| kind        | parameters                                                                   | drawn for  |
|-------------|------------------------------------------------------------------------------|------------|
| `flip`      | one spatial axis                                                             | the batch  |
| `rotate`    | quarter turns of the first two spatial axes; half turns where sides differ   | each image |
| `scale`     | a size: multiples of ``divisor`` within ``scale_range``, one ratio for all   | the batch  |
| `translate` | a shift per axis, uniform within ``translate_range`` of the side             | each image |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_shape, float32_or_wider
from monai_wsss._resize import linear_mode

__all__ = [
    "SPATIAL_KINDS",
    "FlipStep",
    "PairedSpatialTransform",
    "QuarterTurnStep",
    "ResizeStep",
    "ShiftStep",
    "SpatialRecord",
]

SPATIAL_KINDS = ("flip", "rotate", "scale", "translate")
"""The kinds of movement, by name."""


@dataclass(frozen=True)
class FlipStep:
    """Mirror one spatial axis, counted from 0."""

    axis: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(2 + self.axis)


@dataclass(frozen=True)
class QuarterTurnStep:
    """Turn each image by its own number of quarter turns in the plane of the first two spatial axes, exactly."""

    turns: tuple[int, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.rot90(turns, (1, 2)) for image, turns in zip(x, self.turns, strict=True)])


@dataclass(frozen=True)
class ResizeStep:
    """Bring the batch to another size by linear interpolation with aligned corner pixels."""

    size: tuple[int, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(float32_or_wider(x), size=self.size, mode=linear_mode(x.ndim - 2), align_corners=True)


@dataclass(frozen=True)
class ShiftStep:
    """Shift each image by fractions of its sides towards higher indices, interpolate linearly and fill with zeros."""

    shifts: tuple[tuple[float, ...], ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = float32_or_wider(x)
        dims = x.ndim - 2
        theta = torch.zeros(len(x), dims, dims + 1, device=x.device, dtype=x.dtype)
        theta[:, :, :dims] = torch.eye(dims, device=x.device, dtype=x.dtype)
        # In the sampling grid a side has length 2, and axes run from the last to the first.
        theta[:, :, dims] = -2 * torch.tensor(self.shifts, device=x.device, dtype=x.dtype).flip(1)
        # Autocast would round the grid's coordinates to half precision: half a pixel in an image of 240.
        with torch.autocast(x.device.type, enabled=False):
            grid = F.affine_grid(theta, list(x.shape), align_corners=False)
            return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class SpatialRecord:
    """The parameters that were drawn, to be applied as often as needed.

    Attributes:
        steps: transforms in the order in which they act.

    Example:
        >>> record = SpatialRecord((FlipStep(axis=1),))
        >>> record(torch.tensor([[[[1.0, 2.0]]]])).flatten().tolist()
        [2.0, 1.0]
    """

    steps: tuple[FlipStep | QuarterTurnStep | ResizeStep | ShiftStep, ...]

    def __call__(self, x: torch.Tensor, *, padding: str = "zero") -> torch.Tensor:
        """Move images or maps.

        Args:
            x: (B, C, *S), with the B that the record was drawn for, and for odd quarter turns with sides as drawn for.
            padding: values that a translation fills in: ``"zero"`` (for maps), or ``"minimum"``, the lowest value per
                image and channel, which is the background under any normalization.

        Returns:
            Moved tensor (B, C, *S'), where S' differs from S after scaling; differentiable.
        """
        check_shape("x", x, "(B, C, *S)")
        check_choice("padding", padding, ("zero", "minimum"))
        if padding == "minimum" and any(isinstance(step, ShiftStep) for step in self.steps):
            lowest = x.detach().flatten(2).amin(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
            return self._move(x - lowest) + lowest
        return self._move(x)

    def _move(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class PairedSpatialTransform:
    """Generator of random spatial transforms, as records that act on images and maps alike.

    It draws from torch's global random state.

    Args:
        kinds: the kinds that take part, of ``flip``, ``rotate``, ``scale``, ``translate``.
        mode: ``"one_of"`` draws one kind per batch, with equal chance, as the code released with CMER does;
            ``"compose"`` applies all of them in their order.
        turns: numbers of quarter turns to draw from; the paper's set is (0, 1, 2, 3).
        scale_range: least and greatest ratio of the new size.
        translate_range: greatest shift, as a fraction of the side.
        divisor: number that new sizes are multiples of: the stride of the network.

    Raises:
        ValueError: an unknown kind or mode, no kind, or an empty range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> record = PairedSpatialTransform(("scale",)).draw((2, 1, 64, 64))
        >>> image = torch.rand(2, 1, 64, 64)
        >>> record(image, padding="minimum").shape == record(image.square()).shape
        True
    """

    def __init__(
        self,
        kinds: Sequence[str] = SPATIAL_KINDS,
        *,
        mode: str = "one_of",
        turns: Sequence[int] = (1, 2, 3),
        scale_range: tuple[float, float] = (0.8, 1.2),
        translate_range: float = 0.3,
        divisor: int = 8,
    ) -> None:
        if not kinds:
            raise ValueError(f"Expected `kinds` to hold some of {', '.join(SPATIAL_KINDS)}, got none.")
        for kind in kinds:
            check_choice("kinds", kind, SPATIAL_KINDS)
        check_choice("mode", mode, ("one_of", "compose"))
        if not turns or not set(turns) <= {0, 1, 2, 3}:
            raise ValueError(f"Expected `turns` to hold some of 0, 1, 2, 3, got {tuple(turns)}.")
        if not 0 < scale_range[0] <= scale_range[1] or not 0 <= translate_range < 1 or divisor < 1:
            raise ValueError(
                "Expected 0 < `scale_range`[0] <= `scale_range`[1], 0 <= `translate_range` < 1 and `divisor` >= 1, got "
                f"{scale_range}, {translate_range} and {divisor}."
            )
        self.kinds = tuple(kinds)
        self.mode = mode
        self.turns = tuple(turns)
        self.scale_range = scale_range
        self.translate_range = translate_range
        self.divisor = divisor

    def draw(self, shape: Sequence[int]) -> SpatialRecord:
        """Draw parameters for a batch of images.

        Args:
            shape: (B, C, *S) of the images.

        Returns:
            The record.
        """
        kinds = self.kinds if self.mode == "compose" else (self.kinds[_draw_index(len(self.kinds))],)
        steps: list[FlipStep | QuarterTurnStep | ResizeStep | ShiftStep] = []
        for kind in kinds:
            steps.append(getattr(self, f"_draw_{kind}")(shape[0], tuple(shape[2:])))
        return SpatialRecord(tuple(steps))

    def _draw_flip(self, _batch_size: int, size: tuple[int, ...]) -> FlipStep:
        return FlipStep(_draw_index(len(size)))

    def _draw_rotate(self, batch_size: int, size: tuple[int, ...]) -> QuarterTurnStep:
        # Images of one batch share a size: where the sides differ, images with odd turns cannot be stacked.
        turns = self.turns if size[0] == size[1] else tuple(t for t in self.turns if t % 2 == 0) or (0,)
        return QuarterTurnStep(tuple(turns[_draw_index(len(turns))] for _ in range(batch_size)))

    def _draw_scale(self, _batch_size: int, size: tuple[int, ...]) -> ResizeStep:
        low, high = self.scale_range
        multiples = [n for n in range(self.divisor, int(high * size[0]) + 1, self.divisor) if n >= low * size[0]]
        # An image too small for any multiple keeps its size, and so does a short side, e.g. of a volume of four slices.
        ratio = multiples[_draw_index(len(multiples))] / size[0] if multiples else 1.0
        if ratio == 1.0:
            return ResizeStep(size)
        nearest = [round(ratio * side / self.divisor) * self.divisor for side in size]
        return ResizeStep(
            tuple(n if low * side <= n <= high * side else side for n, side in zip(nearest, size, strict=True))
        )

    def _draw_translate(self, batch_size: int, size: tuple[int, ...]) -> ShiftStep:
        shifts = (2 * torch.rand(batch_size, len(size), dtype=torch.float64) - 1) * self.translate_range
        return ShiftStep(tuple(tuple(shift) for shift in shifts.tolist()))


def _draw_index(count: int) -> int:
    return int(torch.randint(count, ()))
