# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is no fault of a table and its images, but may spoil a training: told in the log, never refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from monai_wsss._image_formats import image_format
from monai_wsss._picture_values import bits_of, has_colors
from monai_wsss.data.csv_table import plain_name, subject_like
from monai_wsss.data.label_table import LabeledRow, LabelTable

__all__ = ["warn_of_kinds", "warn_of_labels", "warn_of_subjects"]

_FEW = 20
"""Fewer training images than this are called few."""

_logger = logging.getLogger(__name__)


def _kind(path: Path) -> str:
    """Give the kind of an image file, in words."""
    kind = image_format(path) or "other"
    if kind != "picture":
        return {"nifti": "NIfTI", "metaimage": "MetaImage", "dicom": "DICOM"}.get(kind, kind)
    try:
        with Image.open(path) as picture:
            color = "color" if has_colors(picture) else "gray"
            bits = max(bits_of(picture), 16 if picture.mode.startswith("I") else 1)
            return f"{picture.format} in {color}" + (f" of {bits} bits" if bits > 8 else "")
    except OSError:
        return "other"


def warn_of_kinds(files: Iterable[Path]) -> None:
    """Log if images are of several kinds, such as JPEG and PNG: a network may learn the kind, not the finding."""
    kinds = Counter(map(_kind, files))
    if len(kinds) > 1:
        _logger.warning(
            "The images are of several kinds (%s): if the kind goes with the label, a network learns the kind.",
            ", ".join(f"{count} {name}" for name, count in kinds.most_common()),
        )


def warn_of_labels(classes: Sequence[str], labels: Sequence[Sequence[int]], where: str) -> None:
    """Log if images are few, or a class has no positive or no negative image among them.

    Args:
        classes: names of the classes, (K).
        labels: 0/1 per image and class, (N, K).
        where: what the images are, e.g. "training".
    """
    if not labels:
        return
    for number, name in enumerate(classes):
        positive = sum(label[number] for label in labels)
        for count, word in ((positive, "positive"), (len(labels) - positive, "negative")):
            if count == 0:
                _logger.warning(
                    "%s: none of the %d images is %s for %s: a network needs both kinds to learn the difference.",
                    where,
                    len(labels),
                    word,
                    name,
                )
    if len(labels) < _FEW:
        _logger.warning("%s: there are few images, %d: results will depend on chance.", where, len(labels))


def warn_of_subjects(table: LabelTable, splits: Sequence[str]) -> None:
    """Log if a column that seems to hold subjects was not used, and how many of its subjects are in several splits.

    Args:
        table: the cases.
        splits: the split of every case, (N).
    """
    _warn_of_alike(table.rows, splits)
    columns = [name for name in table.rows[0].values if name is not None]
    for column in subject_like(columns):
        names = [plain_name(str(row.values.get(column) or "")) for row in table.rows]
        if not all(names) or len(set(names)) == len(names) or _is_used(names, table.rows):
            continue
        found: dict[str, set[str]] = {}
        for name, split in zip(names, splits, strict=True):
            found.setdefault(name, set()).add(split)
        torn = [name for name, where in found.items() if len(where) > 1]
        told = f"{len(torn)} of its {len(found)} subjects are in several splits, first {torn[0]}" if torn else ""
        _logger.warning(
            'The column "%s" seems to hold the subjects, but it was not used: %s. Name it as the column of subjects, '
            "so that all images of one are in one split.",
            column,
            told or "images of one subject count as independent",
        )


def _warn_of_alike(rows: Sequence[LabeledRow], splits: Sequence[str]) -> None:
    """Log if subjects in several splits are perhaps one, written in two ways: Anna and anna, 7 and 007 or 7.0."""
    written: dict[str, dict[str, set[str]]] = {}
    for row, split in zip(rows, splits, strict=True):
        name = row.subject.casefold()
        number = re.fullmatch(r"0*([0-9]+?)(\.0*)?", name)
        written.setdefault(number[1] if number else name, {}).setdefault(row.subject, set()).add(split)
    alike = [names for names in written.values() if len(names) > 1 and len(set.union(*names.values())) > 1]
    if alike:
        _logger.warning(
            "%d subjects are in several splits and may be one each, written in several ways, first %s: write a subject "
            "always in the same way.",
            len(alike),
            " and ".join(sorted(alike[0])),
        )


def _is_used(names: Sequence[str], rows: Sequence[LabeledRow]) -> bool:
    """Tell whether the subjects of the rows are at least as coarse as the names."""
    subject_of: dict[str, str] = {}
    return all(subject_of.setdefault(name, row.subject) == row.subject for name, row in zip(names, rows, strict=True))
