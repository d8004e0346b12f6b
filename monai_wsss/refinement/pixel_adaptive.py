# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pixel-adaptive refinement (PAR): maps flow, in some steps, between neighbors that look alike in the image.

    m_{t+1}(p) = sum_q w(p, q) m_t(q),   w(p, q) = softmax_q(a(p, q)) + w_2 softmax_q(b(p, q))       Ru et al. (CVPR
    a(p, q) = -mean_c(|I_c(p) - I_c(q)| / (w_1 σ_c(p)))^2,   b(p, q) = -(|p - q| / (w_1 σ))^2        2022), Eq. 6-8

q are the neighbors of p at each dilation (8 in 2D, 26 in 3D, p excluded; beyond the border, the nearest pixel), and σ
is the unbiased standard deviation over them, plus 1e-8.  Neighbors that are all alike have equal weights.  The weights
of a pixel sum to 1 + w_2, so that ten steps scale maps by up to 1.105, as in the released code; ``row_stochastic``
divides by 1 + w_2.

The maps are never copied per neighbor.  A step adds up shifted views of one padded buffer, in bands of rows that stay
in cache.  Only the weights take memory: 48 per pixel in 2D, 156 per voxel in 3D, which is 1.3 GB for 128^3 voxels in
float32 (shrink volumes, or take fewer dilations).  On a CPU they are held for one image at a time, elsewhere for as
many images as fit into 1 GiB, at least one.  The backward pass computes the weights again and applies the transposed
steps.  If the image needs a gradient, the pass also holds as many gradients of weights, repeats the forward steps, and
holds their T maps.

| symbol | name        | shape       |
|--------|-------------|-------------|
| I      | `image`     | (B, C, *S)  |
| m      | `maps`      | (B, M, *S)  |
| w      | `weights`   | (B, n, *S)  |
| σ_c    | `deviation` | (B, C, *S)  |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from monai_wsss._checks import check_shape, plain_tensor
from monai_wsss._resize import linear_mode

__all__ = ["PixelAdaptiveRefinement", "pixel_adaptive_refinement", "pixel_adaptive_weights"]

_TINY = 1e-8  # added to standard deviations
# Values of image and maps per band of rows on a CPU, tuned for 512 KiB to 1 MiB of second-level cache.
_WEIGHT_BAND = 2**16
_MAP_BAND = 2**18
_BLOCK_BYTES = 2**30  # of the weights of images that are processed together on other devices


class _Rule(NamedTuple):
    """The options of the weights."""

    dilations: tuple[int, ...]
    intensity_weight: float
    position_weight: float
    row_stochastic: bool


def pixel_adaptive_refinement(
    image: torch.Tensor,
    maps: torch.Tensor,
    *,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    intensity_weight: float = 0.3,
    position_weight: float = 0.01,
    row_stochastic: bool = False,
) -> torch.Tensor:
    """Let maps follow the edges of an image: the equations of this file.

    Each map is refined independently: concatenate several sets of maps for one image and refine them in one call.  The
    result does not depend on gain and offset of an image channel: un-augmented intensities of any range will do, if
    their deviations are far above 1e-8.  The result is differentiable (once) with respect to maps and image.  A NaN in
    the image makes all maps NaN within ``iterations * max(dilations)`` pixels; a NaN in a map affects only that map.

    Args:
        image: (B, C, *S), any C >= 1.
        maps: (B, M, *s), of any values; resized to the image linearly with aligned corners if s is another size.
        dilations: distances of the neighbors along the axes, in pixels.
        iterations: T, the number of steps; 10, for COCO 15.
        intensity_weight: w_1 > 0; smaller values make sharper weights, for images of low contrast.
        position_weight: w_2 >= 0, the weight of the softmax over distances.
        row_stochastic: divide the weights by 1 + w_2, so that those of a pixel sum to 1 and a map keeps its range.

    Returns:
        (B, M, *S), computed and given in the wider dtype of ``image`` and ``maps``, at least float32.

    Raises:
        ValueError: another number of images than of maps, shapes that do not fit, or an option out of range.

    Example:
        >>> image = torch.tensor([0.0, 0.1, 0.0, 9.0, 9.1, 9.0]).expand(1, 1, 6, 6)  # two tissues
        >>> maps = torch.zeros(1, 1, 6, 6)
        >>> maps[..., :2] = 1.0  # the left one is found in part
        >>> refined = pixel_adaptive_refinement(image, maps, dilations=(1, 2))
        >>> [round(value, 1) for value in refined[0, 0, 2].tolist()]
        [0.8, 0.8, 0.8, 0.0, 0.0, 0.0]
    """
    rule = _checked_rule(dilations, intensity_weight, position_weight, row_stochastic)
    _check_iterations(iterations)
    return _refined(image, maps, rule, iterations)


def _refined(image: torch.Tensor, maps: torch.Tensor, rule: _Rule, iterations: int) -> torch.Tensor:
    """Compute :func:`pixel_adaptive_refinement` by options that are known to be in range."""
    check_shape("image", image, "(B, C, *S)")
    if maps.ndim != image.ndim or len(maps) != len(image):
        check_shape("maps", maps, "(B, M, *S)")
        raise ValueError(
            f"Expected `maps` (B, M, *S) of as many images and spatial dimensions as `image`, got maps "
            f"{tuple(maps.shape)} for an image {tuple(image.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, maps.dtype), torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        image, maps = plain_tensor(image).to(dtype), plain_tensor(maps).to(dtype)
        if maps.shape[2:] != image.shape[2:]:
            maps = F.interpolate(maps, image.shape[2:], mode=linear_mode(image.ndim - 2), align_corners=True)
        refined: torch.Tensor = _Refine.apply(image, maps, rule, iterations)
    return refined


class PixelAdaptiveRefinement(nn.Module):
    """:func:`pixel_adaptive_refinement` with its options kept.

    Args:
        dilations: see there.
        iterations: see there.
        intensity_weight: see there.
        position_weight: see there.
        row_stochastic: see there.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> refine = PixelAdaptiveRefinement(dilations=(1, 2), row_stochastic=True)
        >>> refine(torch.rand(2, 4, 16, 16, 8), torch.rand(2, 3, 8, 8, 4)).shape
        torch.Size([2, 3, 16, 16, 8])
    """

    def __init__(
        self,
        *,
        dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
        iterations: int = 10,
        intensity_weight: float = 0.3,
        position_weight: float = 0.01,
        row_stochastic: bool = False,
    ) -> None:
        super().__init__()
        rule = _checked_rule(dilations, intensity_weight, position_weight, row_stochastic)
        _check_iterations(iterations)
        self.dilations = rule.dilations
        self.iterations = iterations
        self.intensity_weight = intensity_weight
        self.position_weight = position_weight
        self.row_stochastic = row_stochastic

    @property
    def settings(self) -> dict[str, Any]:
        """Give its options as plain values, for a record."""
        names = ("iterations", "intensity_weight", "position_weight", "row_stochastic")
        return {"dilations": list(self.dilations), **{name: getattr(self, name) for name in names}}

    def forward(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Refine maps (B, M, *s) along an image (B, C, *S): (B, M, *S)."""
        rule = _Rule(self.dilations, self.intensity_weight, self.position_weight, self.row_stochastic)
        return _refined(image, maps, rule, self.iterations)


def pixel_adaptive_weights(
    image: torch.Tensor,
    *,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    intensity_weight: float = 0.3,
    position_weight: float = 0.01,
    row_stochastic: bool = False,
) -> torch.Tensor:
    """Compute the weights w of each pixel's neighbors, for inspection; without gradient.

    Args:
        image: (B, C, *S).
        dilations: see :func:`pixel_adaptive_refinement`.
        intensity_weight: see there.
        position_weight: see there.
        row_stochastic: see there.

    Returns:
        (B, 1, n, *S): n runs through the dilations, and within each through its neighbors in reading order.

    Raises:
        ValueError: another shape, or an option out of range.

    Example:
        >>> weights = pixel_adaptive_weights(torch.rand(1, 3, 8, 8), dilations=(1, 3))
        >>> weights.shape, round(weights.sum(2).mean().item(), 4)
        (torch.Size([1, 1, 16, 8, 8]), 1.01)
    """
    rule = _checked_rule(dilations, intensity_weight, position_weight, row_stochastic)
    check_shape("image", image, "(B, C, *S)")
    image = plain_tensor(image).detach().to(torch.promote_types(image.dtype, torch.float32))
    return _weights(image, _Neighbors(image.shape[2:], rule.dilations), rule)[:, None]


def _checked_rule(dilations: Sequence[int], intensity: float, position: float, row_stochastic: bool) -> _Rule:
    if not dilations or any(d != int(d) or d < 1 for d in dilations):
        raise ValueError(f"Expected `dilations` to be whole numbers >= 1, at least one, got {tuple(dilations)}.")
    if not intensity >= 1e-6:
        raise ValueError(f"Expected `intensity_weight` >= 1e-6, got {intensity}: it divides intensity differences.")
    if not position >= 0:
        raise ValueError(f"Expected `position_weight` >= 0, got {position}; 0 leaves distances out.")
    return _Rule(tuple(int(d) for d in dilations), intensity, position, row_stochastic)


def _check_iterations(iterations: int) -> None:
    if iterations < 0:
        raise ValueError(f"Expected `iterations` >= 0, got {iterations}; 0 leaves the maps as they are.")


class _Neighbors:
    """The places of the n neighbors of each pixel in a buffer with replicated margins: (B, channels, *(S + 2 margin)).

    On an axis of length s, s - 1 steps lead from any pixel to the end, so larger dilations need no wider margin.
    """

    def __init__(self, size: Sequence[int], dilations: Sequence[int]) -> None:
        self.size = tuple(size)
        signs = [s for s in itertools.product((-1, 0, 1), repeat=len(self.size)) if any(s)]
        self.distances = [d * math.sqrt(sum(map(abs, s))) for d in dilations for s in signs]
        self.offsets = [
            tuple(sign * min(d, side - 1) for sign, side in zip(s, self.size, strict=True))
            for d in dilations
            for s in signs
        ]
        self.per_dilation = len(signs)
        self.margin = tuple(min(max(dilations), side - 1) for side in self.size)

    def buffer(self, like: torch.Tensor) -> torch.Tensor:
        """Make an uninitialized buffer for maps of the shape of ``like``."""
        return like.new_empty(*like.shape[:2], *(s + 2 * m for s, m in zip(self.size, self.margin, strict=True)))

    def padded(self, maps: torch.Tensor) -> torch.Tensor:
        buffer = self.buffer(maps)
        self.center(buffer).copy_(maps)
        return self.replicate_(buffer)

    def replicate_(self, buffer: torch.Tensor) -> torch.Tensor:
        """Fill the margins with the nearest pixels."""
        for axis, (side, margin) in enumerate(zip(self.size, self.margin, strict=True), start=2):
            buffer.narrow(axis, 0, margin).copy_(buffer.narrow(axis, margin, 1))
            buffer.narrow(axis, margin + side, margin).copy_(buffer.narrow(axis, margin + side - 1, 1))
        return buffer

    def folded(self, buffer: torch.Tensor) -> torch.Tensor:
        """Add the margins to the pixels that they replicate, the transpose of :meth:`padded`; give the center."""
        for axis in reversed(range(2, buffer.ndim)):
            side, margin = self.size[axis - 2], self.margin[axis - 2]
            buffer.narrow(axis, margin, 1).add_(buffer.narrow(axis, 0, margin).sum(axis, keepdim=True))
            buffer.narrow(axis, margin + side - 1, 1).add_(
                buffer.narrow(axis, margin + side, margin).sum(axis, keepdim=True)
            )
        return self.center(buffer)

    def center(self, buffer: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        """View the pixels themselves, of some rows (of the first spatial axis) or of all."""
        return self._shifted(buffer, rows or slice(0, self.size[0]), (0,) * len(self.size))

    def views(self, buffer: torch.Tensor, rows: slice) -> list[torch.Tensor]:
        """View, for each neighbor, its values at all pixels of these rows."""
        return [self._shifted(buffer, rows, offset) for offset in self.offsets]

    def _shifted(self, buffer: torch.Tensor, rows: slice, offset: tuple[int, ...]) -> torch.Tensor:
        starts = [m + o for m, o in zip(self.margin, offset, strict=True)]
        view = buffer.narrow(2, starts[0] + rows.start, rows.stop - rows.start)
        for axis, (start, side) in enumerate(zip(starts[1:], self.size[1:], strict=True), start=3):
            view = view.narrow(axis, start, side)
        return view

    def bands(self, maps: torch.Tensor, values: int) -> Iterator[slice]:
        """Split the rows into bands of about ``values`` values of ``maps`` on a CPU; elsewhere one band saves calls."""
        height = self.size[0]
        step = max(1, values * height // max(maps.numel(), 1)) if maps.device.type == "cpu" else height
        return (slice(start, min(start + step, height)) for start in range(0, height, step))


def _position_shares(neighbors: _Neighbors, rule: _Rule, like: torch.Tensor) -> torch.Tensor:
    """Compute w_2 softmax(b), the same for all pixels: (n, 1, ...)."""
    distances = torch.tensor(neighbors.distances, dtype=torch.float64)
    logits = -(distances / (distances.std() + _TINY) / rule.intensity_weight).square()
    shares = rule.position_weight * logits.softmax(0)
    return shares.to(like).reshape(-1, *[1] * len(neighbors.size))


def _total(rule: _Rule) -> float:
    """Give the divisor of softmax + position shares."""
    return 1 + rule.position_weight if rule.row_stochastic else 1.0


def _deviation(
    views: list[torch.Tensor], per_dilation: int, scratch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the standard deviation and the mean over the neighbors.

    The sums are taken about m_1, the mean over the neighbors of the first dilation.  Then the difference
    Σ (x - m_1)^2 - (Σ (x - m_1))^2 / n loses no digits to cancellation, whatever the level of the image:
    (m_1 - mean)^2 <= 6 σ^2 for 8 of 48 neighbors, since the squared mean of a part's deviations is at most their mean
    square.
    """
    count = len(views)
    level = views[0].clone()
    for view in views[1:per_dilation]:
        level.add_(view)
    level.div_(per_dilation)
    squares, sums = torch.zeros_like(level), torch.zeros_like(level)
    for view in views:
        torch.sub(view, level, out=scratch)
        sums.add_(scratch)
        squares.addcmul_(scratch, scratch)
    squares.addcmul_(sums, sums, value=-1 / count)
    return squares.clamp_(min=0).div_(count - 1).sqrt_(), sums.div_(count).add_(level)


def _weights(image: torch.Tensor, neighbors: _Neighbors, rule: _Rule) -> torch.Tensor:
    """Compute w (B, n, *S) of an image (B, C, *S)."""
    padded = neighbors.padded(image)
    shares = _position_shares(neighbors, rule, image) / _total(rule)
    weights = image.new_empty(len(image), len(neighbors.offsets), *neighbors.size)
    for rows in neighbors.bands(image, _WEIGHT_BAND):
        views, center = neighbors.views(padded, rows), neighbors.center(padded, rows)
        scratch = torch.empty_like(center, memory_format=torch.contiguous_format)
        deviation, _ = _deviation(views, neighbors.per_dilation, scratch)
        scale = _inverse_scale(deviation, rule)
        band = weights[:, :, rows]
        for view, squares in zip(views, band.unbind(1), strict=True):
            torch.sub(view, center, out=scratch).mul_(scale)
            first, *others = scratch.unbind(1)
            torch.mul(first, first, out=squares)
            for channel in others:
                squares.addcmul_(channel, channel)
        nearest = band.amin(1, keepdim=True)
        torch.sub(nearest, band, out=band).exp_()
        torch.addcmul(shares, band, band.sum(1, keepdim=True).mul_(_total(rule)).reciprocal_(), out=band)
    return weights


def _inverse_scale(deviation: torch.Tensor, rule: _Rule) -> torch.Tensor:
    """Compute 1 / (w_1 (σ_c + tiny) sqrt(C)): -a is the sum of the squared differences times this factor."""
    return (deviation + _TINY).mul_(rule.intensity_weight * math.sqrt(deviation.shape[1])).reciprocal_()


class _Steps:
    """The linear map m -> Σ_q w(p, q) m(q) of all pixels p, its transpose, and its derivative by the weights."""

    def __init__(self, weights: torch.Tensor, neighbors: _Neighbors, like: torch.Tensor) -> None:
        self.neighbors = neighbors
        self.bands = [
            (rows, weights[:, :, rows].unsqueeze(2).unbind(1)) for rows in neighbors.bands(like, _MAP_BAND)
        ]  # each weight (B, 1, *rows)

    def plan(self, buffer: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Give, for each band, the views of a padded buffer that steps read and write."""
        return [(self.neighbors.center(buffer, rows), self.neighbors.views(buffer, rows)) for rows, _ in self.bands]

    def forward(self, maps: torch.Tensor, iterations: int) -> torch.Tensor:
        """Take T steps between two buffers; give a view of the last result."""
        source = self.neighbors.padded(maps)
        target = torch.empty_like(source)
        plans = self.plan(source), self.plan(target)
        for step in range(iterations):
            read, write = plans[step % 2], plans[(step + 1) % 2]
            for (_, weights), (_, views), (result, _) in zip(self.bands, read, write, strict=True):
                torch.mul(views[0], weights[0], out=result)
                for view, weight in zip(views[1:], weights[1:], strict=True):
                    result.addcmul_(view, weight)
            self.neighbors.replicate_(target)
            source, target = target, source
        return self.neighbors.center(source)

    def transposed(self, gradient: torch.Tensor) -> torch.Tensor:
        """Take one step back: the gradient of each pixel goes to the neighbors that its value came from."""
        buffer = self.neighbors.buffer(gradient).zero_()
        for (rows, weights), (_, views) in zip(self.bands, self.plan(buffer), strict=True):
            own = gradient[:, :, rows]
            for view, weight in zip(views, weights, strict=True):
                view.addcmul_(own, weight)
        return self.neighbors.folded(buffer)

    def add_weight_gradient_(self, of_weights: torch.Tensor, gradient: torch.Tensor, maps: torch.Tensor) -> None:
        """Add the contribution of a step from ``maps`` to ``of_weights`` (B, n, *S): Σ_m g_m(p) m(q)."""
        for (rows, _), (_, views) in zip(self.bands, self.plan(self.neighbors.padded(maps)), strict=True):
            own = gradient[:, :, rows]
            for view, total in zip(views, of_weights[:, :, rows].unbind(1), strict=True):
                total.add_((own * view).sum(1))


def _image_gradient(
    of_weights: torch.Tensor, weights: torch.Tensor, image: torch.Tensor, neighbors: _Neighbors, rule: _Rule
) -> torch.Tensor:
    """Compute the gradient of the image from that of the weights; both are overwritten.

    With D = I(q) - I(p), u = 1 / (w_1 σ sqrt(C)) and -a = Σ_c (D u)^2:  da/dD = -2 D u^2, and through σ, da/dσ =
    2 (D u)^2 / σ with dσ/dI(q) = (I(q) - mean) / ((n - 1) σ).  In a constant neighborhood no gradient passes σ.
    """
    shares = weights.sub_(_position_shares(neighbors, rule, image) / _total(rule)).mul_(_total(rule))
    of_weights.div_(_total(rule))
    of_logits = of_weights.sub_((of_weights * shares).sum(1, keepdim=True)).mul_(shares)
    padded = neighbors.padded(image)
    buffer = torch.zeros_like(padded)
    for rows in neighbors.bands(image, _WEIGHT_BAND):
        views, center = neighbors.views(padded, rows), neighbors.center(padded, rows)
        of_views, of_center = neighbors.views(buffer, rows), neighbors.center(buffer, rows)
        scratch = torch.empty_like(center, memory_format=torch.contiguous_format)
        deviation, mean = _deviation(views, neighbors.per_dilation, scratch)
        precision = _inverse_scale(deviation, rule).square_()
        of_band = of_logits[:, :, rows].unsqueeze(2).unbind(1)
        moment = torch.zeros_like(scratch)
        for view, of_logit in zip(views, of_band, strict=True):
            torch.sub(view, center, out=scratch).square_()
            moment.addcmul_(scratch, of_logit)
        per_spread = ((deviation + _TINY) * deviation).mul_(len(views) - 1).reciprocal_().mul_(precision * moment)
        per_spread.mul_(2).masked_fill_(deviation == 0, 0)
        for view, of_view, of_logit in zip(views, of_views, of_band, strict=True):
            torch.sub(view, center, out=scratch).mul_(precision).mul_(of_logit).mul_(-2)
            of_center.sub_(scratch)
            of_view.add_(scratch.addcmul_(view - mean, per_spread))
    return neighbors.folded(buffer)


class _Refine(torch.autograd.Function):
    """The T steps of all images, one block of images after the other, and their gradients."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, maps: torch.Tensor, rule: _Rule, iterations: int) -> torch.Tensor:
        ctx.rule, ctx.iterations = rule, iterations
        ctx.save_for_backward(image, maps if image.requires_grad else None)
        neighbors = _Neighbors(image.shape[2:], rule.dilations)
        refined = torch.empty_like(maps, memory_format=torch.contiguous_format)
        for block in _blocks(image, neighbors):
            steps = _Steps(_weights(image[block], neighbors, rule), neighbors, maps[block])
            refined[block] = steps.forward(maps[block], iterations)
        return refined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, maps = ctx.saved_tensors
        neighbors = _Neighbors(image.shape[2:], ctx.rule.dilations)
        of_image = None if maps is None else torch.empty_like(image, memory_format=torch.contiguous_format)
        of_maps = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        for block in _blocks(image, neighbors):
            weights = _weights(image[block], neighbors, ctx.rule)
            steps, current = _Steps(weights, neighbors, gradient[block]), gradient[block]
            states = [] if maps is None else [maps[block]]
            while 0 < len(states) < ctx.iterations:
                states.append(steps.forward(states[-1], 1).clone())
            of_weights = None if maps is None else torch.zeros_like(weights)
            for _ in range(ctx.iterations):
                if of_weights is not None:
                    steps.add_weight_gradient_(of_weights, current, states.pop())
                current = steps.transposed(current)
            of_maps[block] = current
            if of_image is not None and of_weights is not None:
                of_image[block] = _image_gradient(of_weights, weights, image[block], neighbors, ctx.rule)
        return of_image, of_maps, None, None


def _blocks(image: torch.Tensor, neighbors: _Neighbors) -> Iterator[slice]:
    """Split a batch into blocks: one image each on a CPU, elsewhere as many as ``_BLOCK_BYTES`` of weights allow."""
    per_image = len(neighbors.offsets) * math.prod(neighbors.size) * image.element_size()
    size = 1 if image.device.type == "cpu" else max(1, _BLOCK_BYTES // max(per_image, 1))
    return (slice(start, start + size) for start in range(0, len(image), size))
