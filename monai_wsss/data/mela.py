# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare mela``: CT of mediastinal lesions with boxes; how large a lesion is becomes the image-level label.

=============================  =======================================================================================
``…/<public_id>.nii.gz``       volumes, in any folder below the root; a folder may name train, val or test
``…/<any>.csv``                tables of boxes with ``public_id``, ``coordX``, ``coordY``, ``coordZ`` (center) and
                               ``x_length``, ``y_length``, ``z_length``, in voxels or, if asked for, in millimeters
=============================  =======================================================================================

CoinGAN's paper calls smaller lesions mild and larger ones severe, and translates mild to severe.  So mild lesions have
the label 1, as the images that are translated, and severe ones the label 0.  The image is the axial slice through
the center of the largest box of a scan.  There are no masks, so nothing is measured; the box of each slice is kept for
figures (:func:`lesion_boxes`), and no training reads it.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._orientation import axes_of, slicing_entry
from monai_wsss._pictures import XY
from monai_wsss.data.datalist import read_content
from monai_wsss.data.find_files import folders_below, visible_entries
from monai_wsss.data.prepared_folder import Faults, check_output, warn_of_other_numbers
from monai_wsss.data.prepared_images import PreparedImages
from monai_wsss.data.reading import affine_of, image_format, image_stem, read_image
from monai_wsss.data.splits import SPLITS, split_by_subject, split_in_name

__all__ = ["lesion_boxes", "prepare_mela"]

_LENGTHS = ("x_length", "y_length", "z_length")
_CENTER = ("coordX", "coordY", "coordZ")
_ID = "public_id"
_BOX_LEAK = "labels and slices come from the boxes of the lesions"

_PAPER_NUMBERS = {"training": 770, "validation": 110, "test": 220}
_UNITS = {"voxel": None, "ras": (1, 1, 1), "lps": (-1, -1, 1)}
"""Unit of boxes → signs that bring millimeters to the axes of an affine, R, A, S; None for voxels."""

_DEPTH = 4  # folders below the root that are searched

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Box:
    """The box of a lesion: center (3,) and lengths (3,)."""

    center: np.ndarray
    lengths: np.ndarray

    def in_voxels(self, affine: np.ndarray, unit: str) -> _Box:
        """Convert the box to voxels of a volume; a box that lies askew in the volume grows to one that holds it."""
        signs = _UNITS[unit]
        if signs is None:
            return self
        inverse = np.linalg.inv(affine)
        center = inverse[:3, :3] @ (self.center * signs) + inverse[:3, 3]
        return _Box(center, np.abs(inverse[:3, :3]) @ self.lengths)


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


def _split_of(file: Path, root: Path) -> str | None:
    """Give the split that a file or the folders above it name, the innermost first."""
    return next(filter(None, map(split_in_name, reversed(file.relative_to(root).parts))), None)


def _read_boxes(path: Path) -> dict[str, list[_Box]]:
    """Read a table of boxes, by scan; empty for a table without the columns of boxes.

    Raises:
        DataError: a row has no valid box, a line per row, or the table is no text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=text.partition("\n")[0].count))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table that can be read ({error}): save it as CSV (UTF-8).") from error
    if not rows or not {_ID, *_CENTER, *_LENGTHS} <= rows[0].keys():
        return {}
    boxes: dict[str, list[_Box]] = {}
    faults = Faults()
    for number, row in enumerate(rows, start=2):
        with faults.gather():
            boxes.setdefault(image_stem((row[_ID] or "").strip()), []).append(_parse_box(row, f"{path}, row {number}"))
    faults.check()
    return boxes


def _parse_box(row: dict[str, str], where: str) -> _Box:
    """Read the box of a row."""
    try:
        center, lengths = (np.array([float(row[key]) for key in keys]) for keys in (_CENTER, _LENGTHS))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the box has a field that is no number: correct it.") from error
    if not (np.isfinite([*center, *lengths]).all() and (lengths > 0).all()):
        raise DataError(f"{where}: the box has no positive size: correct it.")
    return _Box(center, lengths)


def _find(root: Path) -> list[_Scan]:
    """Find the scans that have boxes."""
    volumes: dict[str, Path] = {}
    boxes: dict[str, tuple[Path, list[_Box]]] = {}
    faults = Faults()
    for file in (entry for folder in folders_below(root, _DEPTH) for entry in visible_entries(folder)):
        with faults.gather():
            if file.is_file() and image_format(file) in ("nifti", "metaimage"):
                name = image_stem(file)
                if name in volumes:
                    raise DataError(f"{volumes[name]} and {file} are the same scan: keep one of them.")
                volumes[name] = file
            elif file.is_file() and file.suffix.lower() == ".csv":
                found = _read_boxes(file)
                twice = next((name for name in found if name in boxes), None)
                if twice is not None:
                    raise DataError(f"{boxes[twice][0]} and {file} both hold boxes of {twice}: keep one of them.")
                boxes |= {name: (file, of_scan) for name, of_scan in found.items()}
    faults.check()
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
    lost = [name for name in boxes if name not in volumes]
    if lost:
        _logger.warning("%d scans of the tables have no volume, first %s.", len(lost), lost[0])
    return scans


def _largest_box(scan: _Scan, affine: np.ndarray, sizes: np.ndarray, unit: str) -> tuple[_Box, float]:
    """Give the largest box of a scan in voxels, and its longest side in mm; refuse a box outside of the volume."""
    scale = np.sqrt(np.square(affine[:3, :3]).sum(axis=0)) if unit == "voxel" else np.ones(3)
    sides = [float((box.lengths * scale).max()) for box in scan.boxes]
    largest = int(np.argmax(sides))
    box = scan.boxes[largest].in_voxels(affine, unit)
    if (box.center < -0.5).any() or (box.center > sizes - 0.5).any():
        raise DataError(
            f"The box of {scan.name} lies outside of {scan.volume}, if its unit is {unit}: correct it, or choose "
            f"another unit of {', '.join(_UNITS)} (`box_unit`)."
        )
    return box, sides[largest]


def _cut(scan: _Scan, window: tuple[float, float], unit: str) -> _Slice:
    """Cut the slice through the center of the largest lesion; the window becomes 0 to 65535."""
    image = read_image(scan.volume)
    if image.ndim != 4 or image.shape[0] != 1:
        raise DataError(f"{scan.volume} is no volume with one channel: export it again.")
    affine, sizes = affine_of(image), np.array(image.shape[1:])
    axes = axes_of(affine)
    if axes is not None and axes[2] not in "SI":
        raise DataError(
            f"The third axis of {scan.volume} does not run along the body, its axes are {axes}: reorient the file."
        )
    box, diameter = _largest_box(scan, affine, sizes, unit)
    first, last = np.rint(box.center - box.lengths / 2), np.rint(box.center + box.lengths / 2)
    z = int(np.clip(np.rint(box.center[2]), 0, sizes[2] - 1))
    low, high = window
    share = np.clip((image[0, :, :, z].as_tensor().numpy().astype(np.float64) - low) / (high - low), 0, 1)
    corners = [*np.clip(first[:2], 0, sizes[:2] - 1), *np.clip(last[:2], 0, sizes[:2] - 1)]
    pixels = np.rint(share * 65535).astype(np.uint16)[None]
    return _Slice(pixels, [int(corner) for corner in corners], diameter, axes)


def _draw(scans: Sequence[_Scan], split: str, fractions: Sequence[float], seed: int) -> list[str]:
    """Give every scan its split."""
    if split == "drawn":
        names = [scan.name for scan in scans]
        return split_by_subject(names, [[1]] * len(names), fractions=fractions, seed=seed)
    faults = Faults()
    for scan in scans:
        with faults.gather():
            if scan.released is None:
                raise DataError(
                    f"No folder or table of {scan.volume} names train, val or test: sort the scans, or take the split "
                    '"drawn".'
                )
    faults.check()
    warn_of_other_numbers(Counter(str(scan.released) for scan in scans), _PAPER_NUMBERS)
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
    box_unit: str = "voxel",
) -> Path:
    """Turn MELA into a prepared folder of slices with mild and severe lesions; the class is "mild".

    Args:
        root: the folder in which the set was unpacked.
        out: the folder to write.
        split: "drawn" draws all three splits by ``fractions``.  "paper" takes the released one (770 scans for training,
            110 for validation, 220 for test) from the words train, val and test in the names of folders or tables.
            Scans without box, as those of a test set whose boxes are kept back, are left out.
        fractions: shares of the scans for training, validation and test; for "drawn".
        seed: seed of the draw.
        severe_from: diameter of the smallest severe lesion in mm, the longest side of its box; None takes the median of
            the training scans.  The paper does not say its limit.
        window: Hounsfield units of black and white.
        box_unit: unit of the boxes.  "voxel" counts from the first voxel of the file, "lps" and "ras" are millimeters
            in the patient, the first two axes toward the left and the back, or the right and the front.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: volumes or boxes are missing, or a box does not fit its volume; a line per fault.
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
    check_choice("box_unit", box_unit, tuple(_UNITS))
    if not window[0] < window[1]:
        raise ValueError(f"Expected `window` as two rising Hounsfield units, got {tuple(window)}.")
    if severe_from is not None and severe_from <= 0:
        raise ValueError(f"Expected `severe_from` above 0 mm, got {severe_from:g}.")
    folder = Path(root)
    scans = _find(folder)
    splits = _draw(scans, split, fractions, seed)
    writer, faults = PreparedImages(check_output(out, folder)), Faults()
    axes = set()
    for scan, name in tqdm(list(zip(scans, splits, strict=True)), desc="scans", disable=None):
        with faults.gather():
            cut = _cut(scan, window, box_unit)
            axes.add(cut.axes)
            writer.measure(scan.name, cut.pixels)
            writer.add(name, scan.name, scan.name, [0], cut.pixels, lesion_box=cut.box, diameter_mm=cut.diameter)
    faults.check()
    limit = _set_labels(writer, severe_from)
    _logger.info("Severe from %.1f mm on: %s.", limit, ", ".join(f"{len(writer.lists[s])} {s}" for s in SPLITS))
    entries = {
        "split": split,
        "labels": "1 mild lesions, 0 severe ones, by the longest side of the box",
        "levels": {"0": "severe", "1": "mild"},
        "severe_from_mm": limit,
        "window": list(window),
        "box_unit": box_unit,
        "simulated_supervision": True,
        "leaks": [_BOX_LEAK],
        **slicing_entry(axes),
    }
    return writer.finish(["CT"], ["mild"], XY, entries)


def lesion_boxes(datalist: str | os.PathLike[str]) -> dict[str, tuple[int, int, int, int]]:
    """Read the boxes of the lesions of a prepared folder of MELA, for figures.

    Args:
        datalist: the path of ``datalist.json``.

    Returns:
        id → first x, first y, last x, last y, in pixels of the slice; empty for a list without boxes.

    Raises:
        DataError: the datalist is absent or broken.
    """
    content = read_content(Path(datalist))
    items = [item for split in SPLITS for item in content.get(split, []) if "lesion_box" in item]
    return {item["id"]: tuple(item["lesion_box"]) for item in items}
