# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare qata``: chest X-rays of QaTa-COV19, those with pneumonia and their masks, and those of a control group.

====================================  ================================================================================
``…/Images/<name>.png``               X-rays with pneumonia; ``Train Set`` or ``Test Set`` above names the split
``…/Ground-truths/mask_<name>.png``   their masks, beside ``Images``, which serve evaluation
``…Control…/….png``                   X-rays of the controls; folders may also say "normal" or "healthy"
====================================  ================================================================================

The two versions of the set share images, so keep one of them below the folder.  Where a name holds the subject
(``sub-S09345_ses-…``), all images of the subject are in one split.  Any other image counts as a subject of its own.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._intensity import foreground_statistics
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.case_files import read_case, write_case
from monai_wsss.data.datalist import statistics_entry
from monai_wsss.data.find_files import visible_entries
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.prepared_folder import check_output, log_sizes, warn_of_contradictions, write_prepared
from monai_wsss.data.reading import image_format
from monai_wsss.data.splits import SPLITS, split_by_subject, take_validation

__all__ = ["prepare_qata"]

_PAPER = (0.8, 0.0, 0.2)
"""Shares of the split of CoinGAN's tables."""

_CHANNEL = "image"
_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)")
_CONTROL = re.compile(r"control|(?<!ab)normal|healthy", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(r"(train|test)[ _-]?(set|ing)?", re.IGNORECASE)
_DEPTH = 6  # folders below the root that are searched

_logger = logging.getLogger(__name__)


def _folders(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Give a folder and all folders below it, without prepared folders."""
    yield root
    if depth:
        for entry in visible_entries(root):
            if entry.is_dir() and not (entry / "datalist.json").exists():
                yield from _folders(entry, depth - 1)


def _pictures(folder: Path) -> list[Path]:
    return [file for file in visible_entries(folder) if file.is_file() and image_format(file) == "picture"]


def _released_split(folder: Path, root: Path) -> str | None:
    """Give the split that a folder between the root and the images names."""
    for part in reversed(folder.relative_to(root).parts):
        match = _SPLIT_FOLDER.fullmatch(part)
        if match:
            return "training" if match[1].lower() == "train" else "test"
    return None


def _find(root: Path) -> tuple[list[LabeledRow], dict[str, Path], dict[str, Path]]:
    """Find the images of both groups: their rows, whose split is the released one, and id → image and id → mask."""
    rows: list[LabeledRow] = []
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for folder in _folders(root):
        parts = folder.relative_to(root).parts
        control = any(_CONTROL.search(part) for part in parts)
        if not control and folder.name.lower() != "images":
            continue
        truth = {path.name.lower(): path for path in visible_entries(folder.parent) if path.is_dir()}.get(
            "ground-truths"
        )
        outlines = {} if control or truth is None else {path.stem: path for path in _pictures(truth)}
        for file in _pictures(folder):
            name = file.stem
            if name in images:
                raise DataError(f"{images[name]} and {file} are the same image: keep one version of the set.")
            images[name] = file
            if f"mask_{name}" in outlines:
                masks[name] = outlines[f"mask_{name}"]
            match = _SUBJECT.match(name)
            label = [0 if control else 1]
            rows.append(
                LabeledRow(str(file), name, match[1] if match else name, label, _released_split(folder, root), {})
            )
    return rows, images, masks


def _check_found(root: Path, rows: Sequence[LabeledRow], masks: dict[str, Path]) -> None:
    """Check that both groups are there, and log how many images and masks were found."""
    sick = [row for row in rows if row.label[0]]
    if not sick:
        raise DataError(f'{root} holds no folder "Images" with X-rays of pneumonia: unpack QaTa-COV19 there.')
    if len(sick) == len(rows):
        raise DataError(
            f"{root} holds no X-rays of a control group: unpack them into a folder whose name holds control."
        )
    _logger.info(
        "%d X-rays with pneumonia, %d of them with a mask; %d controls.", len(sick), len(masks), len(rows) - len(sick)
    )
    if len(masks) < len(sick):
        first = next(row.id for row in sick if row.id not in masks)
        _logger.warning("%d X-rays with pneumonia have no mask, first %s.", len(sick) - len(masks), first)


def _check_released(rows: Sequence[LabeledRow], splits: Sequence[str]) -> None:
    """Check, before anything is written, that no subject is in both released sets."""
    first: dict[str, str] = {}
    for row, split in zip(rows, splits, strict=True):
        if first.setdefault(row.subject, split) != split:
            raise DataError(
                f'{row.where}: subject "{row.subject}" is in both released sets: take the split "paper" or "drawn".'
            )


def _draw(
    rows: Sequence[LabeledRow], split: str, fractions: Sequence[float], share: float, seed: int
) -> list[LabeledRow]:
    """Give every row its split."""
    subjects, labels = [row.subject for row in rows], [row.label for row in rows]
    drawn = split_by_subject(subjects, labels, fractions=fractions if split == "drawn" else _PAPER, seed=seed)
    if split == "released":
        if not any(row.split for row in rows):
            raise DataError('No folder is called "Train Set" or "Test Set": choose another `split`, or restore them.')
        drawn = [row.split or other for row, other in zip(rows, drawn, strict=True)]
        _check_released(rows, drawn)
    if split != "drawn":
        drawn = take_validation(subjects, labels, drawn, share=share, seed=seed)
    elif share:
        raise ValueError(
            f'Expected no `validation_share` with the split "drawn", whose `fractions` give it, got {share:g}.'
        )
    return [replace(row, split=name) for row, name in zip(rows, drawn, strict=True)]


def _write(
    out: Path, rows: Sequence[LabeledRow], images: dict[str, Path], masks: dict[str, Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write all images and masks, subject by subject; give the items and the statistics."""
    items: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    contradictions, shapes = [], []
    by_subject = LabelTable(out, [], list(rows)).by_subject()
    for subject, of_subject in tqdm(by_subject.items(), desc="subjects", disable=None):
        volumes = []
        for row in of_subject:
            case = read_case({_CHANNEL: images[row.id]}, channel_names=None, color=False)
            items[row.id], agrees = write_case(out, row, case, masks.get(row.id), ["pneumonia"])
            contradictions += [] if agrees or row.id not in masks else [row.id]
            volumes.append(case.volume)
            shapes.append(case.volume.shape[1:])
        statistics[subject] = statistics_entry(*foreground_statistics(volumes))
    log_sizes(shapes)
    warn_of_contradictions(contradictions)
    return items, statistics


def prepare_qata(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "drawn",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    validation_share: float = 0.0,
    seed: int = 0,
) -> Path:
    """Turn QaTa-COV19 with its control group into a prepared folder; the class is called "pneumonia".

    Args:
        root: the folder in which the set was unpacked.
        out: the folder to write.
        split: "drawn" draws all three splits by ``fractions``.  "paper" is 80 % for training and 20 % for test, as in
            CoinGAN's tables, drawn anew, since nobody published the lists.  "released" takes the X-rays with pneumonia
            from the folders ``Train Set`` and ``Test Set`` and draws 20 % of the controls for test.
        fractions: shares of the subjects for training, validation and test; for "drawn".
        validation_share: share of the training subjects taken for validation; for "paper" and "released".
        seed: seed of all draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a group is missing, an image is there twice, or a file is damaged.
        ValueError: the split is unknown, or a share is out of range.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("Images/covid_1", "Ground-truths/mask_covid_1", "Control_Group/healthy_1"):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     Image.fromarray(255 * np.eye(8, dtype=np.uint8)).save(root / f"{name}.png")
        >>> prepare_qata(root, root / "prepared", split="paper").name
        'datalist.json'
    """
    check_choice("split", split, ("drawn", "paper", "released"))
    folder = Path(root)
    rows, images, masks = _find(folder)
    _check_found(folder, rows, masks)
    rows = _draw(rows, split, fractions, validation_share, seed)
    _logger.info("Split %s: %s.", split, ", ".join(f"{sum(row.split == s for row in rows)} {s}" for s in SPLITS))
    target = check_output(out, folder)
    items, statistics = _write(target, rows, images, masks)
    table = LabelTable(folder, ["pneumonia"], rows)
    entries = {"split": split, "labels": "of images"}
    return write_prepared(target, table, items, [_CHANNEL], statistics, order=ROWS_COLUMNS, entries=entries)
