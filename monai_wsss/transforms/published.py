# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Transforms with the numbers of papers and their code: the one place that configurations take them from."""

from __future__ import annotations

from monai.config import KeysCollection
from monai.transforms import Compose, CopyItemsd, NormalizeIntensityd, RandFlipd

from monai_wsss.transforms.blur import RandBlurd
from monai_wsss.transforms.color_operations import RandColorOperationd
from monai_wsss.transforms.photometric import RandPhotometricDistortiond

__all__ = ["gland_augmentation", "imagenet_normalization", "strong_and_weak_views"]


def imagenet_normalization(keys: KeysCollection = "image") -> NormalizeIntensityd:
    """Give ImageNet's normalization of color images from 0 to 255, which pretrained backbones expect.

    Args:
        keys: the images (3, H, W).

    Example:
        >>> import torch
        >>> white = {"image": torch.full((3, 1, 1), 255.0)}
        >>> [round(value, 2) for value in imagenet_normalization()(white)["image"].flatten().tolist()]
        [2.25, 2.43, 2.64]
    """
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    return NormalizeIntensityd(keys, subtrahend=mean, divisor=std, channel_wise=True)


def gland_augmentation(image: str = "image", label: str | None = "pseudo_mask") -> Compose:
    """Give the augmentation of Feng et al. (AAAI 2025), and then ImageNet's normalization.

    Flips along both axes, color distortion (that of OEEM) and a Gaussian blur, each with chance one half; the paper
    says no numbers, those of the blur (0.1 to 2 pixels) are ours.

    Args:
        image: key of the color image (3, H, W), 0 to 255.
        label: key of what is flipped with it, where an item has it.

    Example:
        >>> [type(step).__name__ for step in gland_augmentation().transforms[:3]]
        ['RandFlipd', 'RandFlipd', 'RandPhotometricDistortiond']
    """
    keys = [image] if label is None else [image, label]
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis, allow_missing_keys=True) for axis in (0, 1)]
    blur = RandBlurd(image, prob=0.5, sigma=(0.1, 2.0))
    return Compose([*flips, RandPhotometricDistortiond(image), blur, imagenet_normalization(image)])


def strong_and_weak_views(image: str = "image", strong: str = "strong", *, normalize: bool = True) -> Compose:
    """Give the two views of CoSA (Yang et al., ECCV 2024), which differ in color alone, and then their normalization.

    The weak view is blurred with chance one half, by a standard deviation of 0.1 to 2 pixels.  The strong view is a
    copy that one random color operation changes and that is blurred likewise.  Flip, scale and crop come before: both
    views have one geometry.

    Args:
        image: key of the color image (3, H, W), 0 to 255, which becomes the weak view.
        strong: key of the strong view.
        normalize: whether ImageNet's normalization follows.

    Example:
        >>> import torch
        >>> views = strong_and_weak_views(normalize=False).set_random_state(seed=2)
        >>> item = views({"image": torch.rand(3, 16, 16) * 255})
        >>> item["image"].shape == item["strong"].shape, bool((item["image"] == item["strong"]).all())
        (True, False)
    """
    blurs = [RandBlurd(key, prob=0.5, sigma=(0.1, 2.0)) for key in (image, strong)]
    last = [imagenet_normalization([image, strong])] if normalize else []
    return Compose([CopyItemsd(image, names=strong), RandColorOperationd(strong), *blurs, *last])
