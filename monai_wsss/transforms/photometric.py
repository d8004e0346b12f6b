# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Random brightness, contrast, saturation and hue of color images: the "photometric distortion" of SSD and OEEM.

Feng et al. (AAAI 2025) augment by a "random distortion" that they do not describe.  The code that theirs is based on,
OEEM (Li et al., MICCAI 2022), has this one.  Its amounts are the defaults here: brightness ± 32 of 255, contrast and
saturation 0.5 to 1.5, hue ± 36 degrees (18 of OpenCV's 180), each with chance one half.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from monai_wsss.transforms.color_pictures import SeenPictures, change_picture

__all__ = ["RandPhotometricDistortiond", "shift_saturation_and_hue"]


def _to_hsv(picture: torch.Tensor) -> torch.Tensor:
    """Convert (3, H, W) red, green, blue from 0 to 1 to hue in sixths of the circle [0, 6), saturation, value."""
    red, green, blue = picture
    value, largest = picture.max(dim=0)
    chroma = value - picture.min(dim=0).values
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextants = torch.stack([(green - blue) / divisor % 6, (blue - red) / divisor + 2, (red - green) / divisor + 4])
    hue = torch.where(chroma > 0, sextants.gather(0, largest[None])[0], torch.zeros_like(chroma))
    saturation = chroma / torch.where(value > 0, value, torch.ones_like(value))
    return torch.stack([hue, saturation, value])


def _to_rgb(hsv: torch.Tensor) -> torch.Tensor:
    """Undo :func:`_to_hsv`: ``channel = v - v s max(0, min(k, 4 - k, 1))``, ``k = (n + hue) mod 6``, n = 5, 3, 1."""
    hue, saturation, value = hsv
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue) % 6
        channels.append(value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels)


def shift_saturation_and_hue(
    picture: torch.Tensor, saturation: float = 1.0, degrees: float = 0.0, *, white: float = 255.0
) -> torch.Tensor:
    """Multiply the saturation of a color image and turn its hue; gray pixels stay as they are.

    Args:
        picture: image (3, H, W), 0 to ``white``.
        saturation: factor, 0 gives gray; the result is clipped at full saturation.
        degrees: turn of the hue; 120 turns red into green.
        white: value of white, 255 or 1.

    Returns:
        Image (3, H, W) float32, 0 to ``white``.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> shift_saturation_and_hue(red, 0.5, 120.0, white=1.0).flatten().tolist()
        [0.5, 1.0, 0.5]
    """
    hue, strength, value = _to_hsv(picture.float() / white)
    return _to_rgb(torch.stack([(hue + degrees / 60) % 6, (strength * saturation).clamp(0, 1), value])) * white


class RandPhotometricDistortiond(RandomizableTransform, MapTransform):
    """Random brightness, contrast, saturation and hue; contrast comes second or last, at random.

    After each change the image is clipped to 0 to ``white``.  All keys of an item get the same changes.

    Args:
        keys: color images (3, H, W), 0 to ``white``.
        prob: chance that an item is changed at all.
        change_prob: chance of each of the four changes, if the item is changed.
        brightness: largest value added, as a share of white.
        contrast: smallest and largest factor of the values.
        saturation: smallest and largest factor of the saturation.
        hue: largest turn of the hue, in degrees.
        white: value of white, 255 or 1.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: a negative amount, factors not in ascending order, or no color image, see
            :func:`~monai_wsss.transforms.color_pictures.check_color_picture`.

    Example:
        >>> distort = RandPhotometricDistortiond("image", change_prob=1.0).set_random_state(seed=0)
        >>> changed = distort({"image": torch.rand(3, 8, 8) * 255})["image"]
        >>> changed.shape, bool((changed >= 0).all() and (changed <= 255).all())
        (torch.Size([3, 8, 8]), True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        *,
        change_prob: float = 0.5,
        brightness: float = 32 / 255,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 36.0,
        white: float = 255.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if brightness < 0 or hue < 0:
            raise ValueError(f"Expected `brightness` and `hue` of 0 or more, got {brightness} and {hue}.")
        for name, factors in (("contrast", contrast), ("saturation", saturation)):
            if len(factors) != 2 or not 0 <= factors[0] <= factors[1]:
                raise ValueError(f"Expected `{name}` to be two factors of 0 or more, the smaller first, got {factors}.")
        self.change_prob = change_prob
        self.brightness = brightness
        self.contrast = tuple(contrast)
        self.saturation = tuple(saturation)
        self.hue = hue
        self.white = white
        self._seen = SeenPictures()
        self._changes: list[partial[torch.Tensor]] = []

    def randomize(self, data: Any = None) -> None:
        """Draw the changes and their amounts; the count of random numbers is the same each time."""
        super().randomize(data)
        brighten, stretch, saturate, turn = self.R.random_sample(4) < self.change_prob
        contrast_last = self.R.random_sample() < 0.5
        added = float(self.R.uniform(-self.brightness, self.brightness)) * self.white
        factor = float(self.R.uniform(*self.contrast))
        strength = float(self.R.uniform(*self.saturation))
        degrees = float(self.R.uniform(-self.hue, self.hue))
        color = partial(
            shift_saturation_and_hue,
            saturation=strength if saturate else 1.0,
            degrees=degrees if turn else 0.0,
            white=self.white,
        )
        changes = [
            (brighten, partial(torch.add, other=added)),
            (stretch and not contrast_last, partial(torch.mul, other=factor)),
            (saturate or turn, color),
            (stretch and contrast_last, partial(torch.mul, other=factor)),
        ]
        self._changes = [change for wanted, change in changes if wanted]

    def _distort(self, picture: torch.Tensor) -> torch.Tensor:
        for change in self._changes:
            picture = change(picture).clamp(0, self.white)
        return picture

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(item):
                item[key] = change_picture(self._distort, key, item, self.white, self._seen)
        return item
