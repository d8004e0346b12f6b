# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare mela``: CT of mediastinal lesions with boxes; how large a lesion is becomes the image-level label.

=============================  =======================================================================================
``…/<public_id>.nii.gz``       volumes, in any folder below the root; a folder may name train, val or test
``…/<any>.csv``                tables of boxes with ``public_id``, ``coordX``, ``coordY``, ``coordZ`` (center) and
                               ``x_length``, ``y_length``, ``z_length``, all in voxels
=============================  =======================================================================================

CoinGAN's paper calls smaller lesions mild and larger ones severe, and translates mild to severe.  So a mild lesion has
label 1, what is translated, and a severe one label 0, what it is translated to.  The image is the slice through the
center of the largest box of a scan.  There are no masks, so nothing is measured; the box of each slice is kept for
figures (:func:`lesion_boxes`), and no training reads it.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._orientation import axes_of, slicing_entry
from monai_wsss._pictures import XY
from monai_wsss.data.find_files import visible_entries
from monai_wsss.data.prepared_folder import check_output
from monai_wsss.data.prepared_images import PreparedImages
from monai_wsss.data.reading import affine_of, image_format, image_stem, read_image
from monai_wsss.data.splits import SPLITS, split_by_subject

__all__ = ["lesion_boxes", "prepare_mela"]

_LENGTHS = ("x_length", "y_length", "z_length")
_CENTER = ("coordX", "coordY", "coordZ")
_ID = "public_id"
_RELEASED = {"train": "training", "val": "validation", "test": "test"}
_SPLIT_WORD = re.compile(r"(?:^|[_ -])(train|val|test)", re.IGNORECASE)
_DEPTH = 4  # folders below the root that are searched

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Box:
    """The box of a lesion in voxels: center (3,) and lengths (3,)."""

    center: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class _Scan:
    """A scan with its boxes, and its released split, None where no folder or table names it."""

    name: str
    volume: Path
    boxes: list[_Box]
    released: str | None


@dataclass(frozen=True)
class _Slice:
    """The slice of a scan through its largest lesion.

    Attributes:
        pixels: (1, x, y) uint16.
        box: first x, first y, last x, last y of the lesion in pixels.
        diameter: longest side of the lesion's box in mm.
        axes: how the axes of the volume run, see :func:`~monai_wsss._orientation.axes_of`.
    """

    pixels: np.ndarray
    box: list[int]
    diameter: float
    axes: str | None


def _files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Give all files in a folder and below it, without prepared folders."""
    for entry in visible_entries(folder):
        if entry.is_file():
            yield entry
        elif depth and not (entry / "datalist.json").exists():
            yield from _files(entry, depth - 1)


def _split_of(file: Path, root: Path) -> str | None:
    """Give the split that a file or the folders above it name, the innermost first."""
    for part in reversed(file.relative_to(root).parts):
        match = _SPLIT_WORD.search(part)
        if match:
            return _RELEASED[match[1].lower()]
    return None


def _read_boxes(path: Path) -> dict[str, list[_Box]]:
    """Read a table of boxes; empty for a table without the columns of boxes."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {_ID, *_CENTER, *_LENGTHS} <= rows[0].keys():
        return {}
    boxes: dict[str, list[_Box]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            center, lengths = (np.array([float(row[key]) for key in keys]) for keys in (_CENTER, _LENGTHS))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, row {number}: the box has a field that is no number: correct it.") from error
        if not (np.isfinite([*center, *lengths]).all() and (lengths > 0).all()):
            raise DataError(f"{path}, row {number}: the box has no positive size: correct it.")
        boxes.setdefault(row[_ID].strip(), []).append(_Box(center, lengths))
    return boxes


def _find(root: Path) -> list[_Scan]:
    """Find the scans that have boxes."""
    volumes: dict[str, Path] = {}
    boxes: dict[str, tuple[Path, list[_Box]]] = {}
    for file in _files(root):
        if image_format(file) in ("nifti", "metaimage"):
            name = image_stem(file)
            if name in volumes:
                raise DataError(f"{volumes[name]} and {file} are the same scan: keep one of them.")
            volumes[name] = file
        elif file.suffix.lower() == ".csv":
            boxes |= {name: (file, found) for name, found in _read_boxes(file).items()}
    if not volumes or not boxes:
        missing = "volumes" if not volumes else f"table of boxes ({', '.join((_ID, *_CENTER, *_LENGTHS))})"
        raise DataError(f"{root} holds no {missing}: unpack MELA there.")
    scans = [
        _Scan(name, file, boxes[name][1], _split_of(file, root) or _split_of(boxes[name][0], root))
        for name, file in volumes.items()
        if name in boxes
    ]
    if not scans:
        raise DataError(f"No box in {root} belongs to a volume: the column {_ID} has to hold the names of the volumes.")
    if len(scans) < len(volumes):
        _logger.warning("%d of %d scans have no box and are left out.", len(volumes) - len(scans), len(volumes))
    return scans


def _cut(scan: _Scan, window: tuple[float, float]) -> _Slice:
    """Cut the slice through the center of the largest lesion; the window becomes 0 to 65535."""
    image = read_image(scan.volume)
    if image.ndim != 4 or image.shape[0] != 1:
        raise DataError(f"{scan.volume} is no volume with one channel: export it again.")
    affine = affine_of(image)
    spacing = np.sqrt(np.square(affine[:3, :3]).sum(axis=0))
    box = max(scan.boxes, key=lambda one: float((one.lengths * spacing).max()))
    first, last = np.rint(box.center - box.lengths / 2), np.rint(box.center + box.lengths / 2)
    sizes = np.array(image.shape[1:])
    z = int(np.rint(box.center[2]))
    if (last < 0).any() or (first >= sizes).any() or not 0 <= z < sizes[2]:
        raise DataError(f"The box of {scan.name} lies outside of {scan.volume}: give its center and sizes in voxels.")
    low, high = window
    share = np.clip((image[0, :, :, z].as_tensor().numpy().astype(np.float64) - low) / (high - low), 0, 1)
    corners = [*np.clip(first[:2], 0, sizes[:2] - 1), *np.clip(last[:2], 0, sizes[:2] - 1)]
    diameter = float((box.lengths * spacing).max())
    pixels = np.rint(share * 65535).astype(np.uint16)[None]
    return _Slice(pixels, [int(corner) for corner in corners], diameter, axes_of(affine))


def _draw(scans: Sequence[_Scan], split: str, fractions: Sequence[float], seed: int) -> list[str]:
    """Give every scan its split."""
    if split == "drawn":
        names = [scan.name for scan in scans]
        return split_by_subject(names, [[1]] * len(names), fractions=fractions, seed=seed)
    lost = next((scan for scan in scans if scan.released is None), None)
    if lost is not None:
        raise DataError(
            f'No folder or table of {lost.volume} names train, val or test: sort the scans, or take the split "drawn".'
        )
    return [str(scan.released) for scan in scans]


def _set_labels(writer: PreparedImages, severe_from: float | None) -> float:
    """Label all items, 1 for lesions smaller than the limit, which is the median in training by default; give it."""
    items = [item for split in SPLITS for item in writer.lists[split]]
    limit = severe_from
    if limit is None:
        limit = float(np.median([item["diameter_mm"] for item in writer.lists["training"] or items]))
    for item in items:
        item["label"] = [int(item["diameter_mm"] < limit)]
    return limit


def prepare_mela(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "drawn",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    severe_from: float | None = None,
    window: tuple[float, float] = (-160.0, 240.0),
) -> Path:
    """Turn MELA into a prepared folder of slices with mild and severe lesions; the class is "mild".

    Args:
        root: the folder in which the set was unpacked.
        out: the folder to write.
        split: "drawn" draws all three splits by ``fractions``.  "paper" takes the released one (770 scans for training,
            110 for validation, 220 for test) from folders or tables whose names begin with train, val or test.
        fractions: shares of the scans for training, validation and test; for "drawn".
        seed: seed of the draw.
        severe_from: diameter of the smallest severe lesion in mm, the longest side of its box; None takes the median of
            the training scans.  The paper does not say its limit.
        window: Hounsfield units of black and white.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: volumes or boxes are missing, or a box does not fit its volume.
        ValueError: the split is unknown, or a number is out of range.

    Example:
        >>> import tempfile
        >>> from monai_wsss.data.writing import write_nifti
        >>> root = Path(tempfile.mkdtemp())
        >>> rows = ["public_id,coordX,coordY,coordZ,x_length,y_length,z_length"]
        >>> for number, side in enumerate((2, 4)):
        ...     write_nifti(root / f"mela_{number}.nii.gz", np.arange(512.0).reshape(8, 8, 8) - 200, np.eye(4))
        ...     rows.append(f"mela_{number},4,4,4,{side},{side},{side}")
        >>> _ = (root / "boxes.csv").write_text("\\n".join(rows))
        >>> file = prepare_mela(root, root / "prepared", fractions=(1, 0, 0))
        >>> lesion_boxes(file)
        {'mela_0': (3, 3, 5, 5), 'mela_1': (2, 2, 6, 6)}
    """
    check_choice("split", split, ("drawn", "paper"))
    if not window[0] < window[1]:
        raise ValueError(f"Expected `window` as two rising Hounsfield units, got {tuple(window)}.")
    if severe_from is not None and severe_from <= 0:
        raise ValueError(f"Expected `severe_from` above 0 mm, got {severe_from:g}.")
    folder = Path(root)
    scans = _find(folder)
    splits = _draw(scans, split, fractions, seed)
    writer = PreparedImages(check_output(out, folder))
    axes = set()
    for scan, name in tqdm(list(zip(scans, splits, strict=True)), desc="scans", disable=None):
        cut = _cut(scan, window)
        axes.add(cut.axes)
        writer.measure(scan.name, cut.pixels)
        writer.add(name, scan.name, scan.name, [0], cut.pixels, lesion_box=cut.box, diameter_mm=cut.diameter)
    limit = _set_labels(writer, severe_from)
    _logger.info("Severe from %.1f mm on: %s.", limit, ", ".join(f"{len(writer.lists[s])} {s}" for s in SPLITS))
    entries = {
        "split": split,
        "labels": "1 mild lesions, 0 severe ones, by the longest side of the box",
        "levels": {"0": "severe", "1": "mild"},
        "severe_from_mm": limit,
        "window": list(window),
        "leaks": ["labels and slices come from the boxes of the lesions"],
        **slicing_entry(axes),
    }
    return writer.finish(["CT"], ["mild"], XY, entries)


def lesion_boxes(datalist: str | os.PathLike[str]) -> dict[str, tuple[int, int, int, int]]:
    """Read the boxes of the lesions of a prepared folder of MELA, for figures.

    Args:
        datalist: the path of ``datalist.json``.

    Returns:
        id → first x, first y, last x, last y, in pixels of the slice.
    """
    content = json.loads(Path(datalist).read_text(encoding="utf-8"))
    items = [item for split in SPLITS for item in content[split] if "lesion_box" in item]
    return {item["id"]: tuple(item["lesion_box"]) for item in items}
