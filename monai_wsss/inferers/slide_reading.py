# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A whole slide at any resolution, region by region, through MONAI's readers with bounded memory.

MONAI's tifffile reader decodes a whole level for each patch and takes the label and macro images of a slide for levels
(verified with MONAI 1.6.1), so :class:`BoundedTiffReader` overrides what it reads: the tiles or strips that a region
touches, the last ones kept.  OpenSlide reads regions by itself.

No metadata but the resolution is looked at: labels, barcodes and descriptions of a slide never leave this file.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from monai.data.wsi_reader import OpenSlideWSIReader, TiffFileWSIReader
from monai.utils import optional_import
from PIL import Image

from monai_wsss._checks import DataError, check_choice

__all__ = ["BACKENDS", "BoundedTiffReader", "SlideSource", "SlideView", "check_slide_packages"]

logger = logging.getLogger(__name__)

BACKENDS = ("openslide", "tifffile")

tifffile, _has_tifffile = optional_import("tifffile")
_, _has_openslide = optional_import("openslide")
_, _has_imagecodecs = optional_import("imagecodecs")

_BLOCK = 2048  # level pixels read at once, a side: 16 MiB of RGBA
_SAME_LEVEL = 0.02  # a level whose pixels differ by less from those asked for is taken as it is
_PLAUSIBLE_MPP = (0.01, 80.0)  # 72, 96 and 300 dpi, which programs write unasked, are 353, 265 and 85
_KEPT_TILES, _KEPT_STRIPS = 2**26, 2**28  # bytes; a strip is as wide as the slide and met again by each tile of a row
_LARGEST_SEGMENT = 2**29  # bytes
_JPEG, _APERIO_YCBCR = {6, 7, 33007, 34892}, 33003
_MICRONS = {2: 25400.0, 3: 10000.0}  # TIFF's ResolutionUnit: inch, centimeter


def check_slide_packages(backend: str) -> None:
    """Raise :class:`DataError` unless what reads and writes slides is installed.

    Raises:
        ValueError: an unknown backend.
        DataError: a package is missing.
    """
    check_choice("backend", backend, BACKENDS)
    own = {
        "openslide": ("openslide-python openslide-bin", _has_openslide),
        "tifffile": ("imagecodecs", _has_imagecodecs),
    }
    needed = dict([("tifffile", _has_tifffile), own[backend]])
    missing = [name for name, found in needed.items() if not found]
    if missing:
        raise DataError(
            f"Whole slides need {' and '.join(missing)}, which cannot be imported: "
            "run pip install 'monai-wsss[slides]'."
        )


class BoundedTiffReader(TiffFileWSIReader):
    """MONAI's tifffile reader, decoding only what a region touches; levels are those of the pyramid alone.

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
        """The page of a level of the largest picture in the file."""
        largest = max(wsi.series, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)
        return largest.levels[level].pages[0].aspage()

    @staticmethod
    def get_level_count(wsi: Any) -> int:
        """Levels of the pyramid, without thumbnail, label and macro images."""
        largest = max(wsi.series, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)
        return len(largest.levels)

    def get_size(self, wsi: Any, level: int) -> tuple[int, int]:
        """Height and width of a level."""
        page = self.page(wsi, level)
        return page.imagelength, page.imagewidth

    def get_downsample_ratio(self, wsi: Any, level: int) -> float:
        """Level-0 pixels per pixel of a level."""
        return self.get_size(wsi, 0)[0] / self.get_size(wsi, level)[0]

    def get_mpp(self, wsi: Any, level: int) -> tuple[float, float]:
        """Micrometers per pixel (y, x), from Aperio's text or the tags of the largest picture.

        Raises:
            ValueError: the file does not say.
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
        """RGBA (4, h, w) uint8 at a level; ``location`` is in level-0 pixels, as MONAI has it."""
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
        """Place and RGBA pixels of what the region touches."""
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
        """One tile or strip (h, w, samples), kept for the next region; None where the file holds nothing."""
        key = (level, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        rows, columns = _segment_size(page)
        if rows * columns * page.samplesperpixel > _LARGEST_SEGMENT:
            raise DataError(
                f"The slide is one compressed strip of {rows} x {columns} pixels, which cannot be read by regions: "
                "store it as a tiled TIFF, e.g. with vips tiffsave --tile --pyramid."
            )
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
        [(data, _)] = wsi.filehandle.read_segments([page.dataoffsets[index]], [page.databytecounts[index]])
        pixels = page.decode(data, index, _fullsize=False, **tables)[0]
        pixels = None if pixels is None else pixels[0]
        self._keep(key, pixels, _KEPT_TILES if page.is_tiled else _KEPT_STRIPS)
        return pixels

    def _keep(self, key: tuple[int, int], pixels: np.ndarray | None, limit: int) -> None:
        self._kept[key] = pixels
        self._kept_bytes += 0 if pixels is None else pixels.nbytes
        while self._kept_bytes > limit and len(self._kept) > 1:
            dropped = self._kept.popitem(last=False)[1]
            self._kept_bytes -= 0 if dropped is None else dropped.nbytes


def _segment_size(page: Any) -> tuple[int, int]:
    """Rows and columns of a tile or strip; a lone strip may give its rows as 2^32 - 1."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _mapped(wsi: Any, page: Any) -> np.ndarray:
    """Uncompressed pixels (H, W, samples) on disk; mapped anew for each region, so that no pages gather."""
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    return np.memmap(wsi.filehandle.path, np.uint8, "r", offset=page.dataoffsets[0], shape=shape)


def _with_alpha(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[2] >= 4:
        return pixels[..., :4]
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)


_READERS = {"openslide": OpenSlideWSIReader, "tifffile": BoundedTiffReader}


class SlideSource:
    """An open slide: its size, its resolution, and views of it at other resolutions.  A context manager.

    Args:
        path: a pyramidal TIFF, SVS, NDPI or whatever the backend reads.
        backend: ``"openslide"`` or ``"tifffile"`` (which also reads TIFFs in strips).
        slide_mpp: micrometers per pixel of the full resolution, where the file does not say or says wrong.

    Attributes:
        sizes: (height, width) of each level, the finest first.
        mpp: micrometers per pixel (y, x) of the finest level.

    Raises:
        ValueError: an unknown backend, or ``slide_mpp`` that is not positive.
        DataError: no such file, no slide, damaged, not RGB of 8 bits, or no resolution.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, backend: str = "openslide", slide_mpp: float | None = None
    ) -> None:
        check_slide_packages(backend)
        if slide_mpp is not None and not slide_mpp > 0:
            raise ValueError(f"Expected `slide_mpp` > 0 micrometers per pixel, got {slide_mpp}.")
        self.path = Path(path)
        self.backend = backend
        if not self.path.is_file():
            raise DataError(f"There is no slide {self.path}: check the path.")
        _check_tiff(self.path, backend)
        self._reader = _READERS[backend](mode="RGBA")
        with self._errors():
            self._wsi = self._reader.read(self.path)
            count = self._reader.get_level_count(self._wsi)
            self.sizes = [tuple(self._reader.get_size(self._wsi, level)) for level in range(count)]
            self.downsamples = [float(self._reader.get_downsample_ratio(self._wsi, level)) for level in range(count)]
        self.mpp = (float(slide_mpp),) * 2 if slide_mpp is not None else self._stored_mpp()

    def __enter__(self) -> SlideSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wsi.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever the libraries raise, as one sentence."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            other = next(name for name in BACKENDS if name != self.backend)
            raise DataError(
                f"Cannot read {self.path} with {self.backend} ({_first_line(error)}): the file is damaged, truncated "
                f"or of a kind that {self.backend} does not know; copy it again or try backend={other!r}."
            ) from error

    def _stored_mpp(self) -> tuple[float, float]:
        try:
            y, x = self._reader.get_mpp(self._wsi, 0)
        except ValueError:
            found = "does not say"
        else:
            if all(_PLAUSIBLE_MPP[0] <= value <= _PLAUSIBLE_MPP[1] for value in (y, x)):
                return float(y), float(x)
            found = f"says {y:.4g} x {x:.4g}, which no microscope gives,"
        self._wsi.close()
        raise DataError(
            f"Expected {self.path} to tell its micrometers per pixel, but it {found} for its resolution: give that of "
            "its full resolution as `slide_mpp`, e.g. slide_mpp=0.25 for a scan at 40x."
        )

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Pixels of a level inside its borders: (height, width, 3) uint8, white where nothing was scanned."""
        ratio = self.downsamples[level]
        location = (round(top * ratio), round(left * ratio))
        with self._errors():
            patch, _ = self._reader.get_data(self._wsi, location=location, size=(height, width), level=level)
        color, alpha = np.moveaxis(patch[:3], 0, -1), patch[3][..., None]
        if alpha.min() == 255:
            return np.ascontiguousarray(color, dtype=np.uint8)
        # Scanners leave out what is glass: transparent, with black below.
        return ((color.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))) // 255).astype(np.uint8)

    def view(self, *, level: int | None = None, mpp: float | None = None) -> SlideView:
        """The slide at a level, or at a resolution: that level if one differs by less than 2 %, else resampled.

        Args:
            level: 0 is the finest.
            mpp: micrometers per pixel.

        Raises:
            ValueError: both or neither, no such level, or ``mpp`` that is not positive.
        """
        if (level is None) == (mpp is None):
            raise ValueError(f"Expected one of `level` and `mpp`, got level={level} and mpp={mpp}.")
        if level is not None:
            if not 0 <= level < len(self.sizes):
                raise ValueError(
                    f"Expected `level` from 0 to {len(self.sizes) - 1}, the levels of {self.path}, got {level}."
                )
            return self._level_view(level)
        if mpp is None or not mpp > 0:
            raise ValueError(f"Expected `mpp` > 0 micrometers per pixel, got {mpp}.")
        wanted = (mpp / self.mpp[0], mpp / self.mpp[1])
        if min(wanted) < 1 - _SAME_LEVEL:
            logger.warning("The slide has %.3g micrometers per pixel, so %.3g are interpolated.", max(self.mpp), mpp)
        for index in reversed(range(len(self.sizes))):
            steps = (self.sizes[0][0] / self.sizes[index][0], self.sizes[0][1] / self.sizes[index][1])
            scale = (wanted[0] / steps[0], wanted[1] / steps[1])
            if max(abs(scale[0] - 1), abs(scale[1] - 1)) < _SAME_LEVEL:
                return self._level_view(index)
            if min(scale) >= 1 or index == 0:
                break
        size = (max(1, round(self.sizes[0][0] / wanted[0])), max(1, round(self.sizes[0][1] / wanted[1])))
        return SlideView(self, index, scale, size, (mpp, mpp))

    def _level_view(self, level: int) -> SlideView:
        (height, width), size = self.sizes[0], self.sizes[level]
        mpp = (self.mpp[0] * height / size[0], self.mpp[1] * width / size[1])
        return SlideView(self, level, (1.0, 1.0), size, mpp)

    def thumbnail(self, longest: int = 2048) -> np.ndarray:
        """The whole slide, (h, w, 3) uint8, at most ``longest`` pixels a side; never enlarged."""
        height, width = self.sizes[0]
        shrink = max(1.0, max(height, width) / longest)
        size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
        level = max(i for i, (h, w) in enumerate(self.sizes) if i == 0 or (h >= size[0] and w >= size[1]))
        scale = (self.sizes[level][0] / size[0], self.sizes[level][1] / size[1])
        view = SlideView(self, level, scale, size, (self.mpp[0] * shrink, self.mpp[1] * shrink))
        return view.region(0, 0, *size)


@dataclass(frozen=True)
class SlideView:
    """A slide at one resolution.

    Attributes:
        source: the slide.
        level: that is read.
        scale: level pixels per pixel of the view (y, x).
        size: (height, width).
        mpp: micrometers per pixel (y, x).
    """

    source: SlideSource
    level: int
    scale: tuple[float, float]
    size: tuple[int, int]
    mpp: tuple[float, float]

    def region(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8, white beyond the slide; parts fit together whatever their borders.

        Resampling is linear, over the area of a pixel where the view is coarser than its level, and never looks at more
        than 2048 level pixels a side at once.
        """
        if self.scale == (1.0, 1.0):
            return self._pixels(top, left, height, width)
        step = max(1, int(_BLOCK / max(self.scale)))
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for y in range(0, height, step):
            for x in range(0, width, step):
                part = self._resampled(top + y, left + x, min(step, height - y), min(step, width - x))
                pixels[y : y + step, x : x + step] = part
        return pixels

    def _resampled(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Pillow weighs pixels around the box, too, if they are there: hence the border, and no seams."""
        spans = []
        for start, length, scale in ((top, height, self.scale[0]), (left, width, self.scale[1])):
            border = ceil(max(scale, 1.0)) + 1
            first = floor(start * scale) - border
            spans.append((first, ceil((start + length) * scale) + border - first, start * scale, length * scale))
        (y, rows, y0, down), (x, columns, x0, across) = spans
        block = Image.fromarray(self._pixels(y, x, rows, columns))
        box = (x0 - x, y0 - y, x0 - x + across, y0 - y + down)
        return np.asarray(block.resize((width, height), Image.Resampling.BILINEAR, box=box))

    def _pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Of the level, white beyond it."""
        rows, columns = self.source.sizes[self.level]
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, rows), min(left + width, columns)
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        if y0 < y1 and x0 < x1:
            inside = self.source.read(self.level, y0, x0, y1 - y0, x1 - x0)
            pixels[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return pixels


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_tiff(path: Path, backend: str) -> None:
    """Look at the kind of pixels and the end of a TIFF before hours of work, whichever backend reads it then."""
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
    if backend == "tifffile" and photometric == "YCBCR" and page.compression not in _JPEG:
        raise DataError(f"Colors of {path} are stored in a way that tifffile does not decode: use backend='openslide'.")
