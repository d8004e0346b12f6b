# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Runs of a classifier on changed images, which judge maps and masks without a reference mask.

Regions are blanked, pixels are removed and inserted by their rank (Petsiuk et al., RISE, BMVC 2018), images are
flipped, turned and scaled.  All work for 2D and 3D and for K classes, a few images at a time, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from monai_wsss._checks import check_label, check_shape
from monai_wsss._resize import resize_linear
from monai_wsss.metrics.without_masks import map_distance

__all__ = ["BlankedScores", "PresenceCurves", "blanked_scores", "equivariance_residual", "presence_curves"]

Scores = Callable[[torch.Tensor], torch.Tensor]
Fill = float | torch.Tensor | None


class BlankedScores(NamedTuple):
    """What a classifier says of images as they are and blanked, each ``(N, K)``; NaN for classes not asked for.

    Attributes:
        whole: of the images.
        without: with the found region of the class blanked.
        alone: with everything but that region blanked.
        control: with a region of the same shape blanked, half the image away along each axis, around the border.
    """

    whole: torch.Tensor
    without: torch.Tensor
    alone: torch.Tensor
    control: torch.Tensor


class PresenceCurves(NamedTuple):
    """Presence as pixels are removed and inserted, each ``(N, K, steps + 1)``; NaN for classes not asked for.

    Attributes:
        deletion: from the whole image to the blank one, the highest scores first.
        insertion: from the blank image to the whole one, the highest scores first.
    """

    deletion: torch.Tensor
    insertion: torch.Tensor


@torch.no_grad()
def blanked_scores(
    presence: Scores,
    images: torch.Tensor,
    masks: torch.Tensor,
    label: torch.Tensor,
    *,
    fill: Fill = None,
    chunk: int = 16,
) -> BlankedScores:
    """Score images as they are, without the region that a mask found, and with that region alone.

    Args:
        presence: the classifier: images ``(B, C, *S)`` to image-level scores ``(B, K)``, as a rule logits.
        images: ``(N, C, *S)``.
        masks: ``(N, 1, *S)`` as found: 0, or 1..K; other values, such as 255, belong to no class.
        label: ``(N, K)``, 0 or 1: only the classes that an image has are asked for.
        fill: what blanked pixels become: a number or an image that fits ``(B, C, *S)``; None: the mean of each image
            and channel.
        chunk: images that are scored together.

    Returns:
        The scores, each ``(N, K)``, on the host.

    Raises:
        ValueError: shapes that do not fit, or a ``chunk`` below 1.

    Example:
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., :2, :2] = 1
        >>> scores = blanked_scores(lambda x: x.amax((2, 3)), image, image.byte(), torch.ones(1, 1), fill=0.0)
        >>> [part.item() for part in scores]
        [1.0, 0.0, 1.0, 1.0]
    """
    _check(images, label, chunk)
    if masks.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(f"Expected `masks` of shape (N, 1, *S) of the images {images.shape}, got {masks.shape}.")
    parts = [torch.full(label.shape, torch.nan) for _ in range(4)]
    for part, k in _parts(label, chunk):
        if k is None:
            found = _scored(presence, images[part], label)
            parts[0][part] = torch.where(label[part].cpu() > 0, found.float().cpu(), torch.nan)
            continue
        image, blank = images[part], _blank(images[part], fill)
        region = masks[part] == k + 1
        axes = tuple(range(2, image.ndim))
        moved = region.roll([side // 2 for side in image.shape[2:]], axes)
        for number, gone in enumerate((region, ~region, moved), start=1):
            parts[number][part, k] = _scored(presence, torch.where(gone, blank, image), label)[:, k].float().cpu()
    return BlankedScores(*parts)


@torch.no_grad()
def presence_curves(
    presence: Scores,
    images: torch.Tensor,
    maps: torch.Tensor,
    label: torch.Tensor,
    *,
    steps: int = 16,
    fill: Fill = None,
    chunk: int = 16,
) -> PresenceCurves:
    """Score images while their pixels are removed, and inserted into a blank image, by the rank of a map.

    Pixels of equal score come in an arbitrary order that is the same in every call, scattered over the image.

    Args:
        presence: the classifier: images ``(B, C, *S)`` to image-level scores ``(B, K)``, as a rule probabilities.
        images: ``(N, C, *S)``.
        maps: ``(N, K, *S)``, any real scores.
        label: ``(N, K)``, 0 or 1: only the classes that an image has are asked for.
        steps: T, the number of equal shares of the pixels, one after the other.
        fill: as of :func:`blanked_scores`.
        chunk: images that are scored together.

    Returns:
        Two curves ``(N, K, T + 1)`` on the host, at the shares 0, 1/T, …, 1;
        :func:`~monai_wsss.metrics.area_under_presence` integrates them.

    Raises:
        ValueError: shapes that do not fit, or ``steps`` or ``chunk`` below 1.

    Example:
        >>> image = torch.tensor([[[[1.0, 0.0]]]])
        >>> curves = presence_curves(lambda x: x.amax((2, 3)), image, image, torch.ones(1, 1), steps=2, fill=0.0)
        >>> curves.deletion.flatten().tolist(), curves.insertion.flatten().tolist()
        ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    """
    _check(images, label, chunk)
    if maps.shape != (*label.shape, *images.shape[2:]) or steps < 1:
        shape = (*label.shape, *images.shape[2:])
        raise ValueError(f"Expected `maps` of shape {tuple(shape)} and `steps` >= 1, got {maps.shape} and {steps}.")
    deletion, insertion = (torch.full((*label.shape, steps + 1), torch.nan) for _ in range(2))
    for part, k in _parts(label, chunk):
        if k is None:
            continue
        image, blank = images[part], _blank(images[part], fill)
        rank = _ranks(maps[part, k]).to(image.device)
        for step in range(steps + 1):
            taken = (rank * steps < step * rank[0].numel())[:, None]
            deletion[part, k, step] = _scored(presence, torch.where(taken, blank, image), label)[:, k].float().cpu()
            insertion[part, k, step] = _scored(presence, torch.where(taken, image, blank), label)[:, k].float().cpu()
    return PresenceCurves(deletion, insertion)


@torch.no_grad()
def equivariance_residual(
    score_maps: Scores, images: torch.Tensor, *, scales: Sequence[float] = (0.75,), chunk: int = 16
) -> torch.Tensor:
    """Measure how far the maps of transformed images are from the transformed maps, as a mean over transforms.

    Transforms are a flip along each axis, a quarter turn of the first two axes, and scales.  Maps are brought back to
    the image before they are compared by :func:`~monai_wsss.metrics.map_distance`.

    Args:
        score_maps: images ``(B, C, *S)`` to score maps ``(B, K, *S)``, not negative, of the images' own size.
        images: ``(N, C, *S)``.
        scales: factors of the image's size.
        chunk: images that are mapped together.

    Returns:
        ``(N, K)`` float64 in [0, 1]: 0 for maps that follow every transform; NaN where all maps are zero.  A map that
        is zero for some views only counts as far as can be, 1, there.

    Raises:
        ValueError: a shape that does not fit, a scale that is not positive, or a ``chunk`` below 1.

    Example:
        >>> equivariance_residual(lambda x: x.abs(), torch.rand(1, 1, 4, 4), scales=()).item()
        0.0
        >>> constant = lambda x: torch.arange(1.0, 5.0).expand(len(x), 1, 4, 4)  # sees nothing of the image
        >>> 0 < equivariance_residual(constant, torch.rand(1, 1, 4, 4), scales=()).item() < 1
        True
    """
    check_shape("images", images, "(B, C, *S)")
    if not images.is_floating_point():
        raise ValueError(f"Expected `images` of real numbers, got {images.dtype}.")
    if chunk < 1 or not all(scale > 0 for scale in scales):
        raise ValueError(f"Expected `chunk` >= 1 and positive `scales`, got {chunk} and {tuple(scales)}.")
    residuals = []
    for image in images.split(chunk):
        maps = score_maps(image)
        if maps.ndim != image.ndim or maps.shape[2:] != image.shape[2:]:
            raise ValueError(f"Expected maps of the size of {tuple(image.shape)}, got {tuple(maps.shape)}.")
        distances = [
            torch.as_tensor(map_distance(maps, back(score_maps(view)).clamp(min=0)))
            for view, back in _views(image, scales)
        ]
        residuals.append(torch.stack(distances).nanmean(0))
    return torch.cat(residuals)


def _views(image: torch.Tensor, scales: Sequence[float]) -> Iterator[tuple[torch.Tensor, Scores]]:
    """Yield views of images with the way back of their maps."""
    for axis in range(2, image.ndim):
        yield image.flip(axis), lambda maps, axis=axis: maps.flip(axis)  # type: ignore[misc]
    if image.ndim > 3:
        yield image.rot90(1, (2, 3)), lambda maps: maps.rot90(-1, (2, 3))
    for scale in scales:
        size = [max(1, round(side * scale)) for side in image.shape[2:]]
        yield resize_linear(image, size), lambda maps: resize_linear(maps, image.shape[2:])


def _parts(label: torch.Tensor, chunk: int) -> Iterator[tuple[torch.Tensor, int | None]]:
    """Yield the images that have any class, a few at a time, with None; then those of each class with its number."""
    shown = label.cpu() > 0
    for k, has in [(None, shown.any(1)), *enumerate(shown.T)]:
        numbers = has.nonzero()[:, 0]
        for part in numbers.split(chunk) if len(numbers) else ():
            yield part, k


def _scored(presence: Scores, images: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Score images, and refuse a classifier of other classes than the labels have."""
    scores = presence(images)
    if scores.shape != (len(images), label.shape[1]):
        raise ValueError(
            f"Expected `presence` to give {(len(images), label.shape[1])} scores, a column per class of `label`, got "
            f"{tuple(scores.shape)}."
        )
    return scores


def _blank(images: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Give the blank images of a few images."""
    if fill is None:
        return images.mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(images)
    return torch.as_tensor(fill).to(images).expand_as(images)


def _ranks(maps: torch.Tensor) -> torch.Tensor:
    """Give the rank of each pixel of maps ``(B, *S)``, 0 for the highest; ties in a fixed, scattered order."""
    values = maps.flatten(1).cpu()
    scattered = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))
    order = scattered[values[:, scattered].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(values.shape[1]).expand_as(order))
    return ranks.reshape(maps.shape)


def _check(images: torch.Tensor, label: torch.Tensor, chunk: int) -> None:
    check_shape("images", images, "(B, C, *S)")
    if label.ndim != 2:
        raise ValueError(f"Expected `label` of shape (N, K), got {tuple(label.shape)}.")
    check_label(label, len(images), label.shape[1])
    if chunk < 1:
        raise ValueError(f"Expected `chunk` >= 1, got {chunk}.")
