# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a slide's segmentation leaves on disk: raw bands that survive a kill, then a pyramidal TIFF and an overlay.

The finished bands lie in a scratch folder beside the result, with a digest of all that they depend on. The result is
built there and moved to its place when it is whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss._labels import CLASS_COLORS

__all__ = ["SlideScratch", "draw_overlay", "write_mask_pyramid"]

logger = logging.getLogger(__name__)
tifffile, _ = optional_import("tifffile")

_TILE = 512
_OVERLAY_ROWS = 32  # at once
_TAGS: dict[str, Any] = {
    "dtype": np.uint8,
    "tile": (_TILE, _TILE),
    "compression": "adobe_deflate",
    "photometric": "minisblack",
    "resolutionunit": "CENTIMETER",
    "software": "monai_wsss",
    "metadata": None,
    "maxworkers": 1,
}
_BIG_TIFF = 2**31  # uncompressed bytes, from which offsets of 4 bytes might not do
_COLORS = np.array(CLASS_COLORS, dtype=np.float32)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the disk objects to into one sentence, for a file that grows in place."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write {path} ({error.strerror or error}): free some space or choose another output folder; "
            "what is finished is kept."
        ) from error


class SlideScratch:
    """The mask of a slide while it grows, and how far it is.

    Args:
        folder: made if absent.
        size: (H, W) of the mask.
        digest: of everything that the mask depends on; bands of another digest are thrown away.
        resume: take over what a run of the same digest left.

    Attributes:
        done: bands that are written, from the first on.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, size: tuple[int, int], digest: str, resume: bool = True) -> None:
        self.folder, self.size, self.digest = folder, size, digest
        self._mask, self._state = folder / "mask.raw", folder / "state.json"
        self.done = self._found() if resume else 0
        self._written: set[int] = set()
        if self.done:
            return
        shutil.rmtree(folder, ignore_errors=True)
        make_directory(folder)
        with _writing(self._mask), self._mask.open("wb") as file:
            file.truncate(size[0] * size[1])  # sparse: zeros that take no room

    def _found(self) -> int:
        """Count the bands that an earlier run of the same digest finished."""
        if not self._state.is_file():
            return 0
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            if state["digest"] == self.digest and self._mask.stat().st_size == self.size[0] * self.size[1]:
                return int(state["bands"])
        except (OSError, KeyError, TypeError, ValueError):
            logger.warning("The unfinished run in %s is damaged: it starts anew.", self.folder)
            return 0
        logger.warning(
            "The unfinished run in %s had other settings, other weights or another slide: it starts anew.", self.folder
        )
        return 0

    def write(self, top: int, left: int, band: np.ndarray) -> None:
        """Write a part of the mask, (h, w) uint8; zeros are there already."""
        if not band.any():
            return
        with _writing(self._mask), self._mask.open("r+b") as file:
            for row, values in enumerate(np.ascontiguousarray(band)):
                file.seek((top + row) * self.size[1] + left)
                file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def write_band(self, parts: Sequence[tuple[int, int, np.ndarray]], number: int) -> None:
        """Write the parts of a band, each with its first row and column.

        A band whose predecessors are not all there is written, and counted when they are.
        """
        for top, left, values in parts:
            self.write(top, left, values)
        self._written.add(number)
        if number != self.done:
            return
        while self.done in self._written:
            self._written.remove(self.done)
            self.done += 1
        write_json(self._state, {"digest": self.digest, "bands": self.done})

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """Copy a part of the mask; the file is mapped anew each time, so that what was read does not stay in memory."""
        return np.array(np.memmap(self._mask, np.uint8, "r", shape=self.size)[rows, columns])

    def points(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read single rows and columns of the mask, e.g. for a thumbnail."""
        return np.memmap(self._mask, np.uint8, "r", shape=self.size)[rows[:, None], columns]

    def remove(self) -> None:
        """Delete the folder, when the result is in its place."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_mask_pyramid(scratch: SlideScratch, path: Path, mpp: tuple[float, float]) -> np.ndarray:
    """Write a tiled, deflate-compressed, pyramidal TIFF of values 0..K that OpenSlide and tifffile read.

    Each level is half the one before, by the nearest pixel: class numbers cannot be averaged. The tags of each level
    hold its pixels per centimeter and nothing else of the slide.

    Args:
        scratch: the finished mask.
        path: the TIFF to write.
        mpp: micrometers per pixel (y, x).

    Returns:
        the number of pixels of each value 0..255 at full resolution, (256,).

    Raises:
        DataError: the file cannot be written.
    """
    height, width = scratch.size
    counts = np.zeros(256, dtype=np.int64)
    partial = scratch.folder / "mask.tif"  # there, so that a kill leaves nothing beside the result
    with atomic_path(path) as temporary:
        with tifffile.TiffWriter(partial, bigtiff=height * width > _BIG_TIFF) as writer:
            step = 1
            while step == 1 or max(height, width) // (step // 2) > _TILE:
                shape = (max(height // step, 1), max(width // step, 1))
                resolution = (1e4 * shape[1] / (mpp[1] * width), 1e4 * shape[0] / (mpp[0] * height))
                writer.write(
                    _tiles(scratch, shape, step, counts),
                    shape=shape,
                    resolution=resolution,
                    subfiletype=int(step > 1),
                    **_TAGS,
                )
                step *= 2
        os.replace(partial, temporary)
    return counts


def _tiles(scratch: SlideScratch, shape: tuple[int, int], step: int, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tiles of the level that takes every ``step``-th pixel, the middle one; count those of the finest."""
    middle = step // 2
    for top in range(0, shape[0], _TILE):
        for left in range(0, shape[1], _TILE):
            bottom, right = min(top + _TILE, shape[0]), min(left + _TILE, shape[1])
            rows = slice(min(top * step + middle, scratch.size[0] - 1), (bottom - 1) * step + middle + 1, step)
            columns = slice(min(left * step + middle, scratch.size[1] - 1), (right - 1) * step + middle + 1, step)
            part = scratch.part(rows, columns)
            if step == 1:
                counts += np.bincount(part.ravel(), minlength=256)
            tile = np.zeros((_TILE, _TILE), dtype=np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def draw_overlay(scratch: SlideScratch, thumbnail: np.ndarray, path: Path, opacity: float = 0.45) -> None:
    """Write the thumbnail with the classes in color as PNG.

    Args:
        scratch: the finished mask.
        thumbnail: (h, w, 3) uint8 of the whole slide.
        path: the PNG to write.
        opacity: of the colors.

    Raises:
        DataError: the file cannot be written.
    """
    rows, columns = (
        ((np.arange(known) + 0.5) * length / known).astype(np.int64)
        for known, length in zip(thumbnail.shape[:2], scratch.size, strict=True)
    )
    drawn = thumbnail.copy()
    for top in range(0, len(rows), _OVERLAY_ROWS):
        part = drawn[top : top + _OVERLAY_ROWS]
        values = scratch.points(rows[top : top + _OVERLAY_ROWS], columns)
        colors = _COLORS[(values.astype(np.int64) - 1) % len(_COLORS)]
        mixed = np.rint((1 - opacity) * part + opacity * colors).astype(np.uint8)
        part[values > 0] = mixed[values > 0]
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, compress_level=1)
