# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Which method ``monai-wsss train --method auto`` takes, as ``docs/which_method.md`` says, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from monai_wsss._checks import DataError
from monai_wsss.data.modalities import COLORS, SEQUENCES

__all__ = ["TRAINING_METHODS", "choose_method"]

TRAINING_METHODS = ("auto", "cam", "cmer", "gland", "bmp", "cosa", "coingan")
"""What ``monai-wsss train --method`` takes."""
_MEASURED = 450
"""Slices from which on plain CAM was measured."""
_PHOTOGRAPHS = 10_000
"""Photographs of several classes from which on the methods of two branches were made."""
_APART = 0.05
"""Share of the images with a finding that must lack one of several classes."""


def choose_method(header: Mapping[str, Any], labels: Sequence[Any] = (), *, gpu: bool = False) -> tuple[str, str]:
    """Choose a method by what a datalist says, as ``docs/which_method.md`` does.

    Args:
        header: of the datalist, see :func:`~monai_wsss.data.load_header`.
        labels: the image-level labels (K,) of the training; without them they are taken to differ between images.
        gpu: whether a GPU is at hand, which photographs of many classes need.

    Returns:
        The method, and the reason.

    Raises:
        DataError: no method learns from such labels.
        ValueError: the header lists no classes.

    Example:
        >>> choose_method({"classes": ["gland", "other tissue"], "background": False})[0]
        'gland'
    """
    if not isinstance(header.get("classes"), (list, tuple)) or not header["classes"]:
        raise ValueError(f"Expected `header` to list its `classes`, got {dict(header)}: take that of `load_header`.")
    classes, names = list(header["classes"]), list(dict(header.get("modality", {})).values())
    if not header.get("background", True):
        return "gland", "these are patches tagged with their tissues, without a background"
    shown = np.array([np.asarray(torch.as_tensor(label)) for label in labels]) > 0
    if len(shown):
        _refuse_hopeless(shown, classes)
    several = len(classes) > 1
    if "tiles" in header and several:
        return (
            "cam",
            f"tiles of {len(classes)} classes: plain CAM, the simplest; it failed on the one set measured, of hearts",
        )
    if "tiles" in header:
        return "cam", "tiles of images that nearly all show the finding: plain CAM had better masks than CoSA"
    if several and tuple(names) == COLORS and len(shown) >= _PHOTOGRAPHS and gpu:
        return "cosa", (
            f"{len(shown)} photographs of {len(classes)} classes, and a GPU: a method of two branches, whose preset "
            "`paper` (--set preset=paper) and pretrained weights are for such data; nothing was measured here"
        )
    if several:
        return "cam", (
            f"{len(classes)} classes, which plain CAM learns only where they occur independently; nobody measured it "
            "on such data, and it failed on hearts, where they do not"
        )
    few = f", measured from some {_MEASURED} images on, and these are {len(shown)}"
    small = few if 0 < len(shown) < _MEASURED else ""
    if names and set(names) <= set(SEQUENCES):
        more = "; CMER is for studies that lack a sequence now and then" if len(names) > 1 else ""
        beside = (
            "; BMP was below it in tables of their own, and above it side by side, with settings that masks had chosen"
        )
        return "cam", f"MRI of one class: plain CAM, the simplest{small}{beside}{more}"
    return "cam", f"one class: plain CAM is the method to begin with{small}; CoinGAN is not for a first try"


def _refuse_hopeless(shown: np.ndarray, classes: Sequence[str]) -> None:
    """Raise an error for labels that tell no class from its absence, or no class from the others."""
    if len(classes) == 1:
        if shown.all():
            raise DataError(
                f"All {len(shown)} training images show {classes[0]}, and no method learns from that where it lies: "
                "give images without it, or cut tiles with and without it by `monai-wsss prepare cases --tiles`."
            )
        return
    found = shown[shown.any(axis=1)]
    apart = float((~found.all(axis=1)).mean()) if len(found) else 1.0
    if apart < _APART:
        raise DataError(
            f"{', '.join(classes)} occur together in {1 - apart:.0%} of the {len(found)} training images with a "
            "finding, and no method tells such classes apart: make one class of them, or give images that lack some. A "
            "--method that is named trains even so."
        )
