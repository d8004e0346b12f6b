# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Regions of large TIFF files with bounded memory, behind the interface of MONAI's slide readers.

MONAI's tifffile reader decodes a whole level for each patch and takes the label and macro images of a slide for levels
(verified with MONAI 1.6.1). :class:`BoundedTiffReader` overrides what it reads: the tiles or strips that a region
touches. The last ones are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.wsi_reader import TiffFileWSIReader
from monai.utils import optional_import

from monai_wsss._checks import DataError

__all__ = ["BoundedTiffReader", "check_tiff"]

tifffile, _ = optional_import("tifffile")

# Bytes of decoded pixels that are kept. A strip is as wide as the slide and met again by each tile of a row.
KEPT_TILES, KEPT_STRIPS = 2**26, 2**28
LARGEST_SEGMENT = 2**29  # bytes of a tile or strip that is decoded at all
_JPEG = {6, 7, 33007, 34892}
_MICRONS = {2: 25400.0, 3: 10000.0}  # per TIFF's ResolutionUnit: inch, centimeter


class BoundedTiffReader(TiffFileWSIReader):
    """MONAI's tifffile reader that decodes only what a region touches; levels are those of the pyramid alone.

    Patches are RGBA, transparent where the file holds nothing, whatever mode is asked for.

    Args:
        kwargs: of :class:`monai.data.wsi_reader.BaseWSIReader`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._kept_bytes = 0

    @staticmethod
    def page(wsi: Any, level: int) -> Any:
        """Find the page of a level of the largest image in the file."""
        largest = max(wsi.series, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)
        return largest.levels[level].pages[0].aspage()

    @staticmethod
    def get_level_count(wsi: Any) -> int:
        """Count the levels of the pyramid, without thumbnail, label and macro images."""
        largest = max(wsi.series, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)
        return len(largest.levels)

    def get_size(self, wsi: Any, level: int) -> tuple[int, int]:
        """Give height and width of a level."""
        page = self.page(wsi, level)
        return page.imagelength, page.imagewidth

    def get_downsample_ratio(self, wsi: Any, level: int) -> float:
        """Give the level-0 pixels per pixel of a level."""
        return self.get_size(wsi, 0)[0] / self.get_size(wsi, level)[0]

    def get_mpp(self, wsi: Any, level: int) -> tuple[float, float]:
        """Read the micrometers per pixel (y, x) from Aperio's text or the tags of the largest image.

        Raises:
            ValueError: the file does not tell them.
        """
        page, ratio = self.page(wsi, 0), self.get_downsample_ratio(wsi, level)
        if wsi.is_svs:
            aperio = tifffile.tifffile.svs_description_metadata(page.description)
            if "MPP" in aperio:
                return (float(aperio["MPP"]) * ratio,) * 2
        unit = page.tags.get("ResolutionUnit")
        microns = _MICRONS.get(2 if unit is None else int(unit.value))  # TIFF's default is the inch
        found = [page.tags.get(name) for name in ("YResolution", "XResolution")]
        if microns is None or any(tag is None or 0 in tag.value for tag in found):
            raise ValueError("`mpp` cannot be obtained for this file.")
        y, x = (microns * tag.value[1] / tag.value[0] * ratio for tag in found)
        return y, x

    def _get_patch(
        self, wsi: Any, location: tuple[int, int], size: tuple[int, int], level: int, dtype: Any, mode: str
    ) -> np.ndarray:
        """Read RGBA (4, h, w) uint8 at a level; ``location`` is in level-0 pixels, as MONAI has it."""
        page, ratio = self.page(wsi, level), self.get_downsample_ratio(wsi, level)
        top, left = (round(value / ratio) for value in location)
        patch = np.zeros((*size, 4), dtype=np.uint8)
        for y, x, pixels in self._segments(wsi, page, level, top, left, *size):
            y0, x0 = max(top, y), max(left, x)
            y1, x1 = min(top + size[0], y + pixels.shape[0]), min(left + size[1], x + pixels.shape[1])
            patch[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0 - y : y1 - y, x0 - x : x1 - x]
        return np.moveaxis(patch.astype(dtype, copy=False), -1, self.channel_dim)

    def _segments(
        self, wsi: Any, page: Any, level: int, top: int, left: int, height: int, width: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the tiles or strips that the region touches: first row, first column, RGBA pixels."""
        rows, columns = _segment_size(page)
        down, across = ceil(page.imagelength / rows), ceil(page.imagewidth / columns)
        if page.is_memmappable and not page.is_tiled and page.planarconfig == 1:
            bottom, right = min(top + height, page.imagelength), min(left + width, page.imagewidth)
            yield top, left, _with_alpha(_mapped(wsi, page)[top:bottom, left:right])
            return
        planes = range(page.samplesperpixel if page.planarconfig == 2 else 1)
        for row in range(top // rows, min(ceil((top + height) / rows), down)):
            for column in range(left // columns, min(ceil((left + width) / columns), across)):
                found = [self._decoded(wsi, page, level, (p * down + row) * across + column) for p in planes]
                parts = [part for part in found if part is not None]
                if len(parts) == len(planes):
                    yield row * rows, column * columns, _with_alpha(np.concatenate(parts, axis=-1))

    def _decoded(self, wsi: Any, page: Any, level: int, index: int) -> np.ndarray | None:
        """Decode a tile or strip (h, w, samples) and keep it for the next region; None where the file holds nothing."""
        key = (level, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        rows, columns = _segment_size(page)
        if rows * columns * page.samplesperpixel > LARGEST_SEGMENT:
            raise DataError(
                f"The slide is one compressed strip of {rows} x {columns} pixels, which cannot be read by regions: "
                "store it as a tiled TIFF, e.g. with vips tiffsave --tile --pyramid."
            )
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
        [(data, _)] = wsi.filehandle.read_segments([page.dataoffsets[index]], [page.databytecounts[index]])
        pixels = page.decode(data, index, _fullsize=False, **tables)[0]
        pixels = None if pixels is None else pixels[0]
        self._keep(key, pixels, KEPT_TILES if page.is_tiled else KEPT_STRIPS)
        return pixels

    def _keep(self, key: tuple[int, int], pixels: np.ndarray | None, limit: int) -> None:
        self._kept[key] = pixels
        self._kept_bytes += 0 if pixels is None else pixels.nbytes
        while self._kept_bytes > limit and len(self._kept) > 1:
            dropped = self._kept.popitem(last=False)[1]
            self._kept_bytes -= 0 if dropped is None else dropped.nbytes


def _segment_size(page: Any) -> tuple[int, int]:
    """Give rows and columns of a tile or strip; a lone strip may give its rows as 2^32 - 1."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _mapped(wsi: Any, page: Any) -> np.ndarray:
    """Map uncompressed pixels (H, W, samples) from disk, anew for each region, so that no memory pages gather."""
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    return np.memmap(wsi.filehandle.path, np.uint8, "r", offset=page.dataoffsets[0], shape=shape)


def _with_alpha(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[2] >= 4:
        return pixels[..., :4]
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)


def check_tiff(path: Path, backend: str) -> None:
    """Check the kind of pixels and the end of a TIFF before hours of work, whichever backend reads it afterwards.

    Raises:
        DataError: a file that is truncated, damaged, not RGB of 8 bits, or to be shown turned.
    """
    with path.open("rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return
    damaged = DataError(f"The slide {path} is truncated or damaged: copy it again, comparing the sizes of the files.")
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [BoundedTiffReader.page(tiff, k) for k in range(BoundedTiffReader.get_level_count(tiff))]
            ends = [np.add(page.dataoffsets, page.databytecounts).max() for page in pages]
            size = tiff.filehandle.size
    except Exception as error:
        if backend == "openslide" and not isinstance(error, tifffile.TiffFileError):
            return  # OpenSlide knows kinds of TIFF that tifffile does not
        raise damaged from error
    if max(ends) > size:
        raise damaged
    page = pages[0]
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric not in ("RGB", "YCBCR") or page.samplesperpixel < 3 or page.bitspersample != 8:
        raise DataError(
            f"Expected {path} to hold RGB of 8 bits, got {photometric} with {page.samplesperpixel} channels of "
            f"{page.bitspersample} bits: convert it, e.g. with vips colourspace and vips cast uchar."
        )
    turn = page.tags.valueof("Orientation", 1)
    if turn in range(2, 9):
        raise DataError(
            f"{path} is to be shown turned or mirrored (its TIFF orientation is {int(turn)}), which readers of slides "
            "leave out of account, so that a mask would not lie on it: save it upright, e.g. with vips autorot."
        )
    if backend == "tifffile" and photometric == "YCBCR" and page.compression not in _JPEG:
        raise DataError(f"Colors of {path} are stored in a way that tifffile does not decode: use backend='openslide'.")
