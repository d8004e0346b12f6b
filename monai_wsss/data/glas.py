# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare glas``: colorectal glands of the GlaS challenge (Sirinukunwattana et al., Medical Image Analysis 2017).

Two layouts are known: the challenge's own folder (``train_1.bmp``, ``train_1_anno.bmp``, …, ``Grade.csv``), and a
folder with ``labels.csv`` (``id``, ``case``, ``split``), ``images/`` and ``masks/``.  Annotations number the glands;
everything above 0 is gland.

Feng et al. (AAAI 2025) and OEEM cut patches of 112 pixels with stride 56 and hold out 15 of the 85 training images.
Training and test of the official split have patients in common, so the default is a split by patient.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_wsss._checks import DataError, check_choice
from monai_wsss.data.gland_folder import GlandImage, PatchRule, draw_splits, missing_mask, pair_files, write_glands
from monai_wsss.data.label_table import read_label_table
from monai_wsss.data.prepared_folder import check_output, warn_of_other_numbers
from monai_wsss.data.reading import image_format, image_stem

__all__ = ["PAPER_NUMBERS", "prepare_glas"]

_OFFICIAL_NAME = re.compile(r"(train|testa|testb)_\d+", re.IGNORECASE)
_ANNOTATION = "_anno"
PAPER_NUMBERS = {"training": 70, "validation": 15, "test": 80}
"""Images of the splits (Feng et al., AAAI 2025)."""

_OFFICIAL_FRACTIONS = (70 / 85, 15 / 85, 0.0)
"""Shares of the official training images; the official test images are the test split."""


def _official_images(folder: Path) -> list[GlandImage]:
    """List the images of the challenge's folder with their annotations, each a subject of its own."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    files = {image_stem(path): path for path in entries if image_format(path) == "picture"}
    names = [name for name in files if _OFFICIAL_NAME.fullmatch(name)]
    if not names:
        raise DataError(
            f"{folder} holds neither labels.csv nor images of GlaS (train_1.bmp, testA_1.bmp, …): give the folder "
            "that holds them."
        )
    images = []
    for name in names:
        if name + _ANNOTATION not in files:
            raise DataError(missing_mask(str(files[name]), name, folder))
        images.append(GlandImage(name, name, None, files[name], files[name + _ANNOTATION]))
    return images


def _read_grades(path: Path) -> dict[str, str]:
    """Read image -> patient from the challenge's table; its lines end with a carriage return alone."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read {path}, which says whose image is whose: copy it from the challenge's archive, or take the "
            "official split (`--split official`)."
        ) from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if "name" not in header or "patient id" not in header:
        raise DataError(f'{path} has no columns "name" and "patient ID": copy it from the challenge\'s archive again.')
    name, patient = header.index("name"), header.index("patient id")
    return {row[name]: row[patient] for row in rows[1:] if len(row) > max(name, patient)}


def _by_patient(images: Sequence[GlandImage], grades: Path) -> list[GlandImage]:
    """Set the patients as the subjects of the images."""
    patients = _read_grades(grades)
    for case in images:
        if case.id not in patients:
            raise DataError(
                f'{grades} does not say which patient "{case.id}" is of: add its row, or take the official split '
                "(`--split official`)."
            )
    return [replace(case, subject=f"patient{patients[case.id].zfill(2)}") for case in images]


def _split_officially(images: Sequence[GlandImage], seed: int) -> list[GlandImage]:
    """Set the challenge's split, each image a subject of its own; draw validation images from its training images."""
    images = [replace(case, subject=case.id) for case in images]
    for case in images:
        if not _OFFICIAL_NAME.fullmatch(case.id):
            raise DataError(
                f'The official split of GlaS has no image "{case.id}": it goes by names as train_1 and testA_1, so '
                "rename the image or split by patient."
            )
    is_test = [case.id.lower().startswith("test") for case in images]
    test = [replace(case, split="test") for case, held in zip(images, is_test, strict=True) if held]
    rest = [replace(case, split=None) for case, held in zip(images, is_test, strict=True) if not held]
    drawn = draw_splits(rest, _OFFICIAL_FRACTIONS, seed) + test
    warn_of_other_numbers({name: sum(case.split == name for case in drawn) for name in PAPER_NUMBERS}, PAPER_NUMBERS)
    return drawn


def prepare_glas(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    patch: int = 112,
    stride: int = 56,
    split: str = "patient",
    presence: float = 0.05,
    white: float = 0.8,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Path:
    """Turn GlaS into a prepared folder: training patches with simulated tags, whole images to evaluate on.

    Args:
        root: the folder of the challenge, or a folder with ``labels.csv``, ``images/`` and ``masks/``.
        out: the folder to write.
        patch: size of the training patches, in pixels.
        stride: step from one patch to the next, in pixels; the last column and row end at the border.
        split: "patient" takes the column ``split`` of ``labels.csv``, or draws a split of the patients.  "official" is
            the split of the challenge: of the images called ``train_…`` 70 for training and 15 for validation, and
            those called ``testA_…`` and ``testB_…`` for test; the log warns of other numbers.  There every image counts
            as a subject of its own, since its patient may be in several splits.
        presence: the share of pixels above which a class counts as present.
        white: patches with more than this share of white pixels are left out; 1 keeps all.
        fractions: shares of the patients for training, validation and test where a split is drawn.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file or row is wrong; one sentence says what, and the remedy.
        ValueError: the split is unknown, or a size or share is out of range.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("train_1", "testA_1"):
        ...     pixels = np.random.default_rng(0).integers(0, 255, (120, 130, 3), dtype=np.uint8)
        ...     Image.fromarray(pixels).save(root / f"{name}.bmp")
        ...     Image.fromarray(pixels[..., 0] % 3).save(root / f"{name}_anno.bmp")
        >>> prepare_glas(root, root / "prepared", split="official").name
        'datalist.json'
    """
    check_choice("split", split, ("patient", "official"))
    rule = PatchRule(patch, stride, presence=presence, white=white)
    folder = Path(root)
    target = check_output(out, folder)
    if (folder / "labels.csv").is_file():
        table = read_label_table(folder / "labels.csv", subject_column="case", label_columns=())
        images = pair_files(table, folder / "images", folder / "masks")
    else:
        images = _official_images(folder)
        images = _by_patient(images, folder / "Grade.csv") if split == "patient" else images
    if split == "official":
        images = _split_officially(images, seed)
    images = draw_splits(images, fractions, seed)
    return write_glands(target, images, rule, subjects="patients" if split == "patient" else "images")
