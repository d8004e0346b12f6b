# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One random color operation of nine per image: the strong view of CoSA (Yang et al., ECCV 2024).

Each takes a strength m, drawn from 1 to 9 of 10.  The operations are those of Pillow, of which most have 8 bits:

| name             | what it does                                                         | with the strength        |
|------------------|----------------------------------------------------------------------|--------------------------|
| ``identity``     | nothing                                                              | –                        |
| ``autocontrast`` | stretches each channel from black to white                           | –                        |
| ``equalize``     | makes the histogram of each channel flat                             | –                        |
| ``solarize``     | inverts all values from a threshold on                               | threshold 25.6 m of 255  |
| ``color``        | blends with the gray image                                           | factor 0.1 + 0.18 m      |
| ``contrast``     | blends with the mean gray                                            | factor 0.1 + 0.18 m      |
| ``brightness``   | blends with black                                                    | factor 0.1 + 0.18 m      |
| ``sharpness``    | blends with the image smoothed over 3 x 3 pixels                     | factor 0.1 + 0.18 m      |
| ``posterize``    | keeps the highest bits of each value                                 | 4 - floor(0.4 m) bits    |

A factor of 1 changes nothing, factors above 1 lead away from what is blended with.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from monai_wsss._checks import check_choice
from monai_wsss.transforms.color_pictures import SeenPictures, change_picture

__all__ = ["COLOR_OPERATIONS", "RandColorOperationd", "change_color"]

COLOR_OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "solarize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "posterize",
)
"""The operations of CoSA's strong view."""

_STRONGEST = 10


def _gray(image: torch.Tensor) -> torch.Tensor:
    """Give the luma (1, H, W) of red, green and blue."""
    return (image * image.new_tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(0, keepdim=True)


def _smooth(image: torch.Tensor) -> torch.Tensor:
    """Smooth over 3 x 3 pixels, the middle with weight 5 of 13; the pixels at the rim stay."""
    if min(image.shape[1:]) < 3:
        return image
    kernel = image.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = image.clone()
    smooth[:, 1:-1, 1:-1] = F.conv2d(image[None], kernel / 13, groups=3)[0]
    return smooth


def _autocontrast(image: torch.Tensor) -> torch.Tensor:
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    return torch.where(high > low, (image - low) / width * 255, image)


def _equalize(image: torch.Tensor) -> torch.Tensor:
    """Map each of 256 values to the share of the pixels below it, as Pillow does."""
    levels = image.round().long()
    channels = []
    for channel in levels:
        counts = torch.bincount(channel.flatten(), minlength=256)
        step = (channel.numel() - counts[channel.max()]) // 255
        below = counts.cumsum(0) - counts
        table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
        channels.append(torch.where(step > 0, table[channel], channel))
    return torch.stack(channels).to(image)


def _solarize(image: torch.Tensor, strength: int) -> torch.Tensor:
    threshold = min(int(strength * 256 / _STRONGEST), 255)
    return torch.where(image < threshold, image, 255 - image)


def _posterize(image: torch.Tensor, strength: int) -> torch.Tensor:
    step = 2 ** (8 - (4 - int(strength * 4 / _STRONGEST)))
    return (image.round() / step).floor() * step


def _changed(image: torch.Tensor, operation: str, strength: int) -> torch.Tensor:
    """Change an image (3, H, W) float32 from 0 to 255."""
    if operation == "autocontrast":
        return _autocontrast(image)
    if operation == "equalize":
        return _equalize(image)
    if operation == "solarize":
        return _solarize(image, strength)
    if operation == "posterize":
        return _posterize(image, strength)
    factor = 0.1 + 1.8 * strength / _STRONGEST
    if operation == "color":
        other = _gray(image)
    elif operation == "contrast":
        other = _gray(image).mean().round()
    else:
        other = _smooth(image) if operation == "sharpness" else torch.zeros_like(image)
    return torch.lerp(other.expand_as(image), image, factor).clamp(0, 255)


def change_color(image: torch.Tensor, operation: str, strength: int = 5, *, white: float = 255.0) -> torch.Tensor:
    """Change a color image by one of :data:`COLOR_OPERATIONS`.

    Args:
        image: (3, H, W), 0 to ``white``.
        operation: the name of the operation.
        strength: 1 to 10; see the head of this file.
        white: value of white, 255 or 1.

    Returns:
        (3, H, W) float32, 0 to ``white``.

    Raises:
        ValueError: an unknown operation, or a strength out of range.

    Example:
        >>> image = torch.tensor([10.0, 200.0, 255.0]).expand(3, 1, 3)
        >>> change_color(image, "solarize", 5)[0].tolist()
        [[10.0, 55.0, 0.0]]
    """
    check_choice("operation", operation, COLOR_OPERATIONS)
    if not 1 <= strength <= _STRONGEST:
        raise ValueError(f"Expected `strength` from 1 to {_STRONGEST}, got {strength}.")
    image = image.float()
    if operation == "identity":
        return image
    # Interpolation may overshoot; 8 bits cannot.
    return _changed((image * (255 / white)).clamp(0, 255), operation, strength) * (white / 255)


class RandColorOperationd(RandomizableTransform, MapTransform):
    """Change color images by one operation of :data:`COLOR_OPERATIONS`, drawn with its strength.

    All keys of an item get the same operation.

    Args:
        keys: color images (3, H, W), 0 to ``white``.
        prob: chance that an item is changed.
        operations: the names to draw from.
        strengths: smallest and largest strength, 1 to 10.
        white: value of white, 255 or 1.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: an unknown operation or none, strengths out of range, or no color image, see
            :func:`~monai_wsss.transforms.color_pictures.check_color_picture`.

    Example:
        >>> change = RandColorOperationd("image", operations=["color"], strengths=(1, 1)).set_random_state(seed=0)
        >>> red = torch.tensor([255.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> [round(value) for value in change({"image": red})["image"].flatten().tolist()]  # almost gray
        [126, 55, 55]
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        *,
        operations: Sequence[str] = COLOR_OPERATIONS,
        strengths: Sequence[int] = (1, 9),
        white: float = 255.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not operations:
            raise ValueError("Expected `operations` to name at least one operation, got none.")
        for operation in operations:
            check_choice("operations", operation, COLOR_OPERATIONS)
        if len(strengths) != 2 or not 1 <= strengths[0] <= strengths[1] <= _STRONGEST:
            raise ValueError(
                f"Expected `strengths` to be two of 1 to {_STRONGEST}, the smaller first, got {tuple(strengths)}."
            )
        self.operations = tuple(operations)
        self.strengths = tuple(strengths)
        self.white = white
        self._seen = SeenPictures()
        self._drawn = ("identity", 1)

    def randomize(self, data: Any = None) -> None:
        """Draw an operation and its strength."""
        super().randomize(data)
        operation = self.operations[int(self.R.randint(len(self.operations)))]
        self._drawn = (operation, int(self.R.randint(self.strengths[0], self.strengths[1] + 1)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            operation, strength = self._drawn
            change = partial(change_color, operation=operation, strength=strength, white=self.white)
            for key in self.key_iterator(item):
                item[key] = change_picture(change, key, item, self.white, self._seen)
        return item
