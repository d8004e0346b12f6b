# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What both branches of a network say of whole images, and the masks that follow: for evaluations, logs and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from monai_wsss._resize import resize_linear
from monai_wsss.refinement import LabeledImages, MaskRule, class_assignment

__all__ = ["branch_maps_of", "decided_masks", "in_batches", "threshold_of"]

Case = TypeVar("Case")


def threshold_of(maker: Any) -> Callable[[], float]:
    """Give a function that tells the xi of a maker of labels as it is now: its threshold, or the middle between two.

    Args:
        maker: has ``threshold()``, or ``low`` and ``high``.
    """
    threshold = getattr(maker, "threshold", None)
    if threshold is None:
        return lambda: (maker.low + maker.high) / 2
    return lambda: float(torch.as_tensor(threshold()).float().mean())


def in_batches(cases: Iterable[Case], most: int, shape: Callable[[Case], Any]) -> Iterator[list[Case]]:
    """Give cases together where so many in a row are of one shape, else one by one; the order stays.

    Args:
        cases: in their order.
        most: so many in a row.
        shape: tells what has to be the same.

    Example:
        >>> list(in_batches(["a", "b", "c", "dd", "e"], 2, len))
        [['a', 'b'], ['c'], ['dd'], ['e']]
    """
    waiting: list[Case] = []
    for case in cases:
        waiting.append(case)
        if len(waiting) == most:
            yield from _together(waiting, shape)
            waiting = []
    if waiting:
        yield from _together(waiting, shape)


def _together(cases: list[Case], shape: Callable[[Case], Any]) -> Iterator[list[Case]]:
    first = shape(cases[0])
    if all(shape(case) == first for case in cases):
        yield cases
    else:
        yield from ([case] for case in cases)


def branch_maps_of(
    seeds: Callable[[Any, LabeledImages], tuple[torch.Tensor, ...]],
    network: Any,
    images: LabeledImages,
    size: Sequence[int],
) -> tuple[torch.Tensor, ...]:
    """Give the class maps and the logits of a network at a size, such as that of the masks.

    Args:
        seeds: gives class maps (B, K, *s) in [0, 1] and logits (B, K + 1, *s), e.g. of a method.
        network: in evaluation mode.
        images: on the grid of the network, with the classes that may be there.
        size: *S.
    """
    return tuple(resize_linear(each, size) for each in seeds(network, images))


def decided_masks(scores: torch.Tensor, cut: float | None, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Decide the masks of a branch: uint8 (B, 1, *S), 0..K.

    Args:
        scores: class maps (B, K, *S) in [0, 1], or logits (B, K + 1, *S).
        cut: xi of class maps: 0 below it, else the strongest class.  None: the argmax of logits.
        allowed: (B, K), 0/1, the classes that a mask may hold; None: all.

    Raises:
        ValueError: logits that are not finite, or shapes that do not fit.

    Example:
        >>> decided_masks(torch.tensor([[[[0.2, 0.5, 0.1]], [[0.1, 0.6, 0.7]]]]), 0.5).tolist()
        [[[[0, 2, 2]]]]
    """
    if cut is None:
        rule = MaskRule(output_kind="segmentation", gate="none" if allowed is None else "given")
        return rule.mask(scores, allowed)
    if allowed is not None:
        scores = scores * allowed.to(scores).reshape(*allowed.shape, *[1] * (scores.ndim - 2))
    return class_assignment(scores, cut)[0][:, None].to(torch.uint8)
