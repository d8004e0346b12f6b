# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Values of pictures as viewers show them: what a file says about its values is honored, or refused in one sentence.

======================  ==============================================================================================
what the file says      what is read
======================  ==============================================================================================
white is 0 (TIFF)       inverted, so that bright means much
colors of over 8 bits   refused, since Pillow would keep 8 of the bits
CIE L*a*b*              refused
mask with a palette     its indices where entry 0 is black or transparent, else whatever is not black
mask with colors        gray as it is, or one color on black; anything else is refused
mask with transparency  whatever is visible and not black; refused where that is nothing or cannot be told
======================  ==============================================================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from monai_wsss._checks import DataError

__all__ = [
    "bits_of",
    "check_values_kept",
    "gamma_of",
    "has_transparency",
    "is_white_zero",
    "mask_numbers",
    "with_black_as_zero",
]

_PHOTOMETRIC, _BITS = 262, 258
_WHITE_IS_ZERO = 0
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
_JPEG_SPREAD = 32
"""By how much the channels of a gray picture may differ after JPEG."""


def bits_of(picture: Image.Image) -> int:
    """Give the bits per channel that a PNG or TIFF file holds; 8 for other kinds and for pictures without a file."""
    name: str = getattr(picture, "filename", "")
    if picture.format == "PNG" and name:
        with open(name, "rb") as file:
            start = file.read(26)
        return start[24] if start[12:16] == b"IHDR" else 8
    if picture.format == "TIFF":
        return max(np.atleast_1d(picture.tag_v2.get(_BITS, 1)).tolist())  # type: ignore[attr-defined]
    return 8


def gamma_of(picture: Image.Image) -> float | None:
    """Give the gamma that a PNG file says, e.g. 0.45; None where it says none, or sRGB beside it."""
    gamma = picture.info.get("gamma")
    return None if gamma is None or "srgb" in picture.info else float(gamma)


def has_transparency(picture: Image.Image) -> bool:
    """Tell whether any pixel of a picture is transparent."""
    if picture.mode not in _ALPHA_MODES and "transparency" not in picture.info:
        return False
    return bool((_colors(picture)[..., 3] < 255).any())


def check_values_kept(picture: Image.Image, file: Path) -> None:
    """Refuse a picture of which Pillow would read other values than it holds.

    Raises:
        DataError: colors or transparency of more than 8 bits, CIE L*a*b*, or white as 0 in signed or fractional values.
    """
    bits = bits_of(picture)
    if bits > 8 and (len(picture.getbands()) > 1):
        raise DataError(
            f"{file} holds colors or transparency of {bits} bits per channel, of which only 8 would be read: save it "
            "as RGB of 8 bits, or as gray, which may have 16."
        )
    if picture.mode == "LAB":
        raise DataError(f"{file} stores its colors as CIE L*a*b*: save it as RGB.")
    if is_white_zero(picture) and picture.mode in ("I", "F"):
        raise DataError(f"{file} stores white as 0 in signed or fractional values: save it with black as 0.")


def is_white_zero(picture: Image.Image) -> bool:
    """Tell whether a picture is a TIFF that stores white as 0."""
    return picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]


def with_black_as_zero(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Invert a gray TIFF of more than 8 bits that stores white as 0; Pillow itself inverts those of 8 bits.

    Args:
        picture: the picture, perhaps turned.
        source: the picture as it was opened, which knows what its file says.
    """
    if picture.mode not in _SIXTEEN_BITS or not is_white_zero(source):
        return picture
    return Image.fromarray((2 ** bits_of(source) - 1 - np.asarray(picture).astype(np.int64)).astype(np.uint16))


def _colors(picture: Image.Image) -> np.ndarray:
    """Give (rows, columns, 4), red, green, blue, alpha."""
    if picture.mode in ("RGBa", "La"):
        picture = picture.convert("RGBA" if picture.mode == "RGBa" else "LA")
    return np.asarray(picture.convert("RGBA"))


def _unclear(file: Path, why: str) -> DataError:
    return DataError(
        f"The mask {file} {why}, so it is not clear what its foreground is: save it as gray, with 0 for background."
    )


def mask_numbers(picture: Image.Image, source: Image.Image, file: Path, palette: str = "shown") -> np.ndarray:
    """Give the numbers of a mask as (rows, columns): 0 is what it shows as background.

    Args:
        picture: the mask, upright.
        source: the mask as it was opened, which knows what its file says.
        file: its file, for messages.
        palette: how a palette is read.  "shown": its indices where entry 0 is black or transparent, else by its colors;
            "indices" as they are; "gray": the brightness of its colors.

    Raises:
        DataError: it is not clear what the foreground is.
    """
    if picture.mode in ("P", "PA"):
        if palette == "indices":
            return np.asarray(picture) if picture.mode == "P" else np.asarray(picture)[..., 0]
        return np.asarray(picture.convert("L")) if palette == "gray" else _palette_numbers(picture, file)
    if picture.mode in ("RGB", *_ALPHA_MODES) or "transparency" in picture.info:
        return _color_numbers(_colors(picture), file, spread=_JPEG_SPREAD if source.format in ("JPEG", "MPO") else 0)
    if picture.mode not in ("1", "L", "I", "F", *_SIXTEEN_BITS):
        return _color_numbers(_colors(picture.convert("RGB")), file, spread=_JPEG_SPREAD)
    bits = bits_of(source)
    numbers = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    if is_white_zero(source):
        top = 255 if picture.mode in ("1", "L") else 2**bits - 1
        if not np.isin(numbers, (0, top)).all():
            raise _unclear(file, "stores white as 0 and holds more than black and white")
    elif picture.mode == "L" and bits in (2, 4):  # which Pillow spreads over 0 to 255
        numbers = numbers // (255 // (2**bits - 1))
    return numbers


def _palette_numbers(picture: Image.Image, file: Path) -> np.ndarray:
    """Give the indices of a palette whose entry 0 is background; else what its colors show."""
    colors = _colors(picture)
    indices = np.asarray(picture) if picture.mode == "P" else np.asarray(picture)[..., 0]
    first = (picture.getpalette("RGB") or [0, 0, 0])[:3]
    hidden = colors[..., 3] == 0
    if first == [0, 0, 0] or (hidden[indices == 0].all() and (indices == 0).any()):
        numbers = np.where(hidden, 0, indices)
        if (colors[numbers > 0, :3].max(axis=-1, initial=0) == 0).any():
            raise _unclear(file, "has a palette with black as background and as something else")
        return numbers
    return _color_numbers(colors, file, spread=0)


def _color_numbers(colors: np.ndarray, file: Path, spread: int) -> np.ndarray:
    """Give the numbers that colors (rows, columns, 4) show: gray as it is, or one color on black or on nothing."""
    peak, alpha = colors[..., :3].max(axis=-1), colors[..., 3]
    visible = alpha > 0
    if not visible.any():
        raise _unclear(file, "is transparent throughout")
    if visible.all() and alpha.min() != alpha.max():
        raise _unclear(file, "is transparent in part, nowhere entirely")
    if not visible.all() and not peak[visible].any():
        raise _unclear(file, "shows black on nothing")
    shown = np.unique(colors[visible, :3], axis=0).astype(np.int64)
    if (shown.max(axis=1) - shown.min(axis=1)).max() <= spread:
        if visible.all() and len(shown) > 1 and shown.min() > spread:
            raise _unclear(file, "holds no black")
        return np.where(visible, peak, 0)
    if visible.all() and shown.max(axis=1).min() > spread:
        raise _unclear(file, "has colors and no black")
    if np.count_nonzero(shown.max(axis=1) > 0) > 1:
        raise _unclear(file, "has several colors")
    return np.where(visible, peak, 0)
