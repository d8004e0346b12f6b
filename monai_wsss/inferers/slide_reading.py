# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A whole slide at any resolution, region by region, through MONAI's readers with bounded memory.

OpenSlide reads regions by itself; for tifffile, ``slide_tiff.py`` does.

No metadata but the resolution is looked at: labels, barcodes and descriptions of a slide never leave this file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, floor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from monai.data.wsi_reader import OpenSlideWSIReader
from monai.utils import optional_import
from PIL import Image

from monai_wsss._checks import DataError, check_choice
from monai_wsss.inferers.slide_tiff import BoundedTiffReader, check_tiff
from monai_wsss.networks import recorded_reading

__all__ = ["BACKENDS", "SlideReading", "SlideSource", "SlideView", "check_slide_packages"]

logger = logging.getLogger(__name__)

BACKENDS = ("openslide", "tifffile")

_, _has_tifffile = optional_import("tifffile")
_, _has_openslide = optional_import("openslide")
_, _has_imagecodecs = optional_import("imagecodecs")

BLOCK = 2048  # level pixels per side that are read at once: 16 MiB of RGBA
_SAME_LEVEL = 0.02  # a level whose pixels differ by less from those asked for is taken as it is
_PLAUSIBLE_MPP = (0.05, 80.0)  # 100x gives 0.06; 72, 96 and 300 dpi, which programs write unasked, 353, 265 and 85
_READERS = {"openslide": OpenSlideWSIReader, "tifffile": BoundedTiffReader}


def check_slide_packages(backend: str) -> None:
    """Raise :class:`DataError` unless what reads and writes slides is installed.

    Raises:
        DataError: a package is missing.
    """
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


@dataclass(frozen=True)
class SlideReading:
    """How a slide is read: at which resolution, by which library, which axis first.

    Args:
        mpp: micrometers per pixel that the network was trained on; resampled from the next finer level. None: the
            slide's own, level 0.
        level: of the pyramid, instead of ``mpp``.
        slide_mpp: micrometers per pixel of level 0, where the file does not tell or tells wrong.
        backend: ``"openslide"``, or ``"tifffile"``, which also reads TIFFs in strips.
        axes: ``"xy"``: tiles are handed over transposed, indexed [x, y]; ``"yx"``: rows first; None: as the record of
            the network says, ``"xy"`` where it has none.

    Raises:
        ValueError: an unknown choice, ``mpp`` together with ``level``, or micrometers that are not positive.

    Example:
        >>> SlideReading().level, SlideReading(mpp=0.5).level
        (0, None)
    """

    mpp: float | None = None
    level: int | None = None
    slide_mpp: float | None = None
    backend: str = "openslide"
    axes: str | None = None

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, BACKENDS)
        if self.axes is not None:
            check_choice("axes", self.axes, ("xy", "yx"))
        if self.mpp is not None and self.level is not None:
            raise ValueError(f"Expected one of `level` and `mpp`, got level={self.level} and mpp={self.mpp}.")
        for name in ("mpp", "slide_mpp"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` > 0 micrometers per pixel, got {value}.")
        if self.mpp is None and self.level is None:
            object.__setattr__(self, "level", 0)

    def for_network(self, network: Any) -> SlideReading:
        """Give the reading with ``axes`` as a network's training recorded them, unless they are given.

        Example:
            >>> SlideReading().for_network(abs).axes
            'xy'
        """
        if self.axes is not None:
            return self
        return replace(self, axes="yx" if recorded_reading(network)["order"] == "rows_columns" else "xy")

    def open(self, slide: str | os.PathLike[str]) -> SlideSource:
        """Open a slide; close it, or use it as a context manager."""
        return SlideSource(slide, backend=self.backend, slide_mpp=self.slide_mpp)

    def view(self, source: SlideSource) -> SlideView:
        """Give the slide at the resolution asked for."""
        return source.view(level=self.level, mpp=self.mpp)


class SlideSource:
    """An open slide: its size, its resolution, and views of it at other resolutions. A context manager.

    Args:
        path: a pyramidal TIFF, SVS, NDPI or whatever the backend reads.
        backend: see :class:`SlideReading`, which checks it.
        slide_mpp: see there.

    Attributes:
        sizes: (height, width) of each level, the finest first.
        mpp: micrometers per pixel (y, x) of the finest level.

    Raises:
        DataError: a package is missing, no such file, no slide, damaged, not RGB of 8 bits, or no resolution.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, backend: str = "openslide", slide_mpp: float | None = None
    ) -> None:
        check_slide_packages(backend)
        self.path = Path(path)
        self.backend = backend
        if not self.path.is_file():
            raise DataError(f"There is no slide {self.path}: check the path.")
        check_tiff(self.path, backend)
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
        """Turn whatever the libraries raise into one sentence."""
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
        """Read the resolution from the file and refuse one that cannot be true."""
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
        """Read pixels of a level inside its borders: (height, width, 3) uint8, white where nothing was scanned."""
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
        """Give the slide at a level, or at a resolution: the level that differs by less than 2 %, else resampled.

        Args:
            level: 0 is the finest.
            mpp: micrometers per pixel, instead of ``level``.

        Raises:
            ValueError: no such level.
        """
        if mpp is None:
            level = level or 0
            if not 0 <= level < len(self.sizes):
                raise ValueError(
                    f"Expected `level` from 0 to {len(self.sizes) - 1}, the levels of {self.path}, got {level}."
                )
            return self._level_view(level)
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
        """Give the whole slide, (h, w, 3) uint8, at most ``longest`` pixels per side; never enlarged."""
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
        level: the level that is read.
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
        """Give pixels (height, width, 3) uint8, white beyond the slide; parts fit together whatever their borders.

        Resampling is linear, over the area of a pixel where the view is coarser than its level. It never looks at more
        than 2048 level pixels per side at once.
        """
        if self.scale == (1.0, 1.0):
            return self._pixels(top, left, height, width)
        step = max(1, int(BLOCK / max(self.scale)))
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for y in range(0, height, step):
            for x in range(0, width, step):
                part = self._resampled(top + y, left + x, min(step, height - y), min(step, width - x))
                pixels[y : y + step, x : x + step] = part
        return pixels

    def _resampled(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Resample a part with a border: Pillow weighs pixels around its box, too, and so leaves no seams."""
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
        """Give pixels of the level, white beyond it."""
        rows, columns = self.source.sizes[self.level]
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, rows), min(left + width, columns)
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        if y0 < y1 and x0 < x1:
            inside = self.source.read(self.level, y0, x0, y1 - y0, x1 - x0)
            pixels[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return pixels


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
