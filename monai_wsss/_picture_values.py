# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Values of pictures as viewers show them: what a file says about its values is honored, or refused in one sentence.

======================  ==============================================================================================
what the file says      what is read
======================  ==============================================================================================
white is 0 (TIFF)       inverted, so that bright means much
colors of over 8 bits   refused, since Pillow would keep 8 of the bits
signed 8 bits (TIFF)    refused, since Pillow would read -1 as 255; so are values from 2**31 on, read as negative
unnamed channels        refused (TIFF), since Pillow would leave them out
several pages           refused, unless they are smaller copies of the first, or the previews in a phone's JPEG
CIE L*a*b*              refused
mask with a palette     its indices where entry 0 is black or transparent, else whatever is not black
mask with colors        gray as it is, or one color on black; anything else is refused
mask with transparency  whatever is visible and not black; refused where that is nothing or cannot be told
======================  ==============================================================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from monai_wsss._checks import DataError
from monai_wsss._pictures import upright

__all__ = [
    "as_shown",
    "begins_with_black",
    "bits_of",
    "check_values_kept",
    "gamma_of",
    "has_colors",
    "has_transparency",
    "is_white_zero",
    "mask_numbers",
    "profile_is_unusual",
    "refuse_unread_picture",
]

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _EXTRA_SAMPLES, _SUBFILE = 262, 258, 339, 338, 254
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _UNSPECIFIED, _REDUCED = 0, 1, 2, 0, 1
_USUAL_PROFILES = ("sRGB", "Gray Gamma 2.2", "Gray gamma 2.2")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
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


def has_colors(picture: Image.Image) -> bool:
    """Tell whether a picture has colors, be it by a palette."""
    return picture.mode not in ("1", "L", "LA", "La", "I", "F", *_SIXTEEN_BITS)


def has_transparency(picture: Image.Image) -> bool:
    """Tell whether any pixel of a picture is transparent."""
    if picture.mode not in _ALPHA_MODES and "transparency" not in picture.info:
        return False
    return bool((_colors(picture)[..., 3] < 255).any())


def profile_is_unusual(picture: Image.Image) -> bool:
    """Tell whether a picture has a color profile by which viewers show other values than it holds."""
    profile: bytes = picture.info.get("icc_profile") or b""
    usual = any(name.encode(code) in profile for name in _USUAL_PROFILES for code in ("ascii", "utf-16-be"))
    return bool(profile) and not usual


def _pages(picture: Image.Image) -> int:
    """Count the pages; not the smaller copies of a pyramid, nor the previews beside the photograph of a phone."""
    frames: int = getattr(picture, "n_frames", 1)
    if frames == 1 or picture.format == "MPO":
        return 1
    if picture.format != "TIFF":
        return frames
    reduced = 0
    for frame in range(1, frames):
        picture.seek(frame)
        reduced += picture.tag_v2.get(_SUBFILE, 0) & _REDUCED  # type: ignore[attr-defined]
    picture.seek(0)
    return frames - reduced


def check_values_kept(picture: Image.Image, file: Path) -> None:
    """Refuse a picture of which Pillow would read other values than it holds, or a part alone.

    Raises:
        DataError: several pages, colors or transparency of more than 8 bits, CIE L*a*b*, white as 0 in signed or
            fractional values, or channels or numbers of a TIFF that Pillow does not know.
    """
    pages = _pages(picture)
    if pages > 1:
        raise DataError(f"{file} holds {pages} pages: save each page as a picture, or the stack as NIfTI.")
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
    if picture.format == "TIFF":
        _check_tiff(picture, file, bits)


def _check_tiff(picture: Image.Image, file: Path, bits: int) -> None:
    """Refuse a TIFF with channels or numbers that Pillow takes for others."""
    tags = picture.tag_v2  # type: ignore[attr-defined]
    if _UNSPECIFIED in np.atleast_1d(tags.get(_EXTRA_SAMPLES, 1)):
        raise DataError(
            f"{file} holds a channel beyond gray or RGB without saying what it is, and it would be left out: save each "
            "channel as an image of its own, or the picture as RGB."
        )
    signs = np.atleast_1d(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
    if bits == 8 and _SIGNED in signs:
        raise DataError(f"{file} holds signed values of 8 bits, which would be read as 0 to 255: save them as 16 bits.")
    if bits == 32 and picture.mode == "I" and _UNSIGNED in signs:
        with Image.open(file) as again:
            least = again.getextrema()[0]
        if least < 0:  # type: ignore[operator]
            raise DataError(f"{file} holds values from 2**31 on, which would be read as negative: save smaller ones.")


def refuse_unread_picture(error: Exception, file: Path) -> None:
    """Refuse, in place of the error of Pillow, a picture that is whole but not read: too large, or an unknown TIFF.

    Raises:
        DataError: the file claims too many pixels, or is a TIFF of a kind that Pillow does not know.
    """
    if isinstance(error, Image.DecompressionBombError):
        raise DataError(
            f"{file} claims more pixels than are read at once (more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,}): "
            "cut tiles from it, or make it smaller."
        ) from error
    if not isinstance(error, (UnidentifiedImageError, SyntaxError)):
        return
    with open(file, "rb") as stream:
        if stream.read(4) not in _TIFF_STARTS:
            return
    raise DataError(
        f"{file} is a TIFF of a kind that is not read, e.g. with values of 64 bits or with several channels that are "
        "no colors: save each channel as gray of up to 16 bits or float of 32, or the picture as RGB of 8 bits."
    ) from error


def as_shown(picture: Image.Image) -> Image.Image:
    """Give a picture upright, with black as 0; the file of one with several frames, which stays open, is closed."""
    shown = _with_black_as_zero(upright(picture), picture)
    if getattr(picture, "n_frames", 1) > 1:
        shown = shown.copy()
        picture.close()
    return shown


def is_white_zero(picture: Image.Image) -> bool:
    """Tell whether a picture is a TIFF that stores white as 0."""
    return picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]


def _with_black_as_zero(picture: Image.Image, source: Image.Image) -> Image.Image:
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


def begins_with_black(picture: Image.Image) -> bool:
    """Tell whether entry 0 of the palette of a picture is black."""
    return (picture.getpalette("RGB") or [0, 0, 0])[:3] == [0, 0, 0]


def _palette_numbers(picture: Image.Image, file: Path) -> np.ndarray:
    """Give the indices of a palette whose entry 0 is background; else what its colors show."""
    colors = _colors(picture)
    indices = np.asarray(picture) if picture.mode == "P" else np.asarray(picture)[..., 0]
    hidden = colors[..., 3] == 0
    if begins_with_black(picture) or (hidden[indices == 0].all() and (indices == 0).any()):
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
