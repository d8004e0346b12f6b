# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare qata``: chest X-rays of QaTa-COV19, those with pneumonia and their masks, and those of a control group.

====================================  ================================================================================
``…/Images/<name>.png``               X-rays with pneumonia; ``Train Set`` or ``Test Set`` above names the split
``…/Ground-truths/mask_<name>.png``   their masks, beside ``Images``, which serve evaluation
``…Control…/….png``                   X-rays of the controls; folders may also say "normal" or "healthy"
====================================  ================================================================================

The two versions of the set share images, so keep one of them below the folder.  The second control group of the set
(``Control_Group_II``) shows other diseases and is left out.  Where a name holds the subject (``sub-S09345_ses-…``), all
images of the subject are in one split.  Any other image counts as a subject of its own.  X-rays that were saved in
colors become gray.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._intensity import foreground_statistics
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.binary_masks import read_binary_mask
from monai_wsss.data.case_files import UNNAMED, ImageCase, mask_shows, read_case, write_case
from monai_wsss.data.datalist import statistics_entry
from monai_wsss.data.find_files import folders_below, visible_entries
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.prepared_folder import (
    Faults,
    check_output,
    check_released,
    log_sizes,
    warn_of_contradictions,
    warn_of_other_numbers,
    write_prepared,
)
from monai_wsss.data.reading import image_format
from monai_wsss.data.splits import SPLITS, split_by_subject, split_in_name, take_validation, words_in
from monai_wsss.data.writing import write_picture

__all__ = ["prepare_qata"]

_PAPER = (0.8, 0.0, 0.2)
"""Shares of the split of CoinGAN's tables."""

_PAPER_NUMBERS = {"X-rays with pneumonia": 9258, "controls": 12544}

_CHANNEL = "image"
_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)")
_CONTROL = re.compile(r"(?<!\bnon )(?<!\bnot )\b(controls?|controlgroup|normals?|healthy)\b")
_OTHER_DISEASES = re.compile(r"\bgroup (ii|2)\b")
_TRUTH = re.compile(r"ground ?truths?")
_DEPTH = 6  # folders below the root that are searched
_GRAY_OF_COLORS = np.array([0.299, 0.587, 0.114])  # as ITU-R BT.601, exact where the three are equal

_logger = logging.getLogger(__name__)


@dataclass
class _Found:
    """The X-rays below a folder.

    Attributes:
        rows: one per X-ray, with the released split.
        images: id → file.
        masks: id → file.
        lost_masks: masks without X-ray.
        left_out: number of X-rays of other diseases.
    """

    rows: list[LabeledRow] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    lost_masks: list[Path] = field(default_factory=list)
    left_out: int = 0


def _pictures(folder: Path) -> list[Path]:
    return [file for file in visible_entries(folder) if file.is_file() and image_format(file) == "picture"]


def _words(folder: Path) -> str:
    return " ".join(words_in(folder.name))


def _outlines_beside(folder: Path) -> dict[str, Path]:
    """Give the masks in the folder beside the X-rays, by their names in small letters."""
    beside = [path for path in visible_entries(folder.parent) if path.is_dir() and _TRUTH.fullmatch(_words(path))]
    return {path.stem.lower(): path for truth in beside for path in _pictures(truth)}


def _find(root: Path) -> _Found:
    """Find the X-rays of both groups and their masks."""
    found, faults = _Found(), Faults()
    for folder in folders_below(root, _DEPTH):
        levels = [Path(part) for part in folder.relative_to(root).parts]
        above = [_words(part) for part in levels]
        if not levels or _TRUTH.fullmatch(above[-1]):
            continue
        outlines = _outlines_beside(folder) if folder.name.lower() == "images" else {}
        control = not outlines and any(_CONTROL.search(words) for words in above)
        if not control and folder.name.lower() != "images":
            continue
        if control and any(_OTHER_DISEASES.search(words) for words in above):
            found.left_out += len(_pictures(folder))
            continue
        split = next(filter(None, (split_in_name(part.name) for part in reversed(levels))), None)
        for file in _pictures(folder):
            with faults.gather():
                _add(found, file, outlines, split if split != "validation" else "training", control)
        found.lost_masks += outlines.values()
    faults.check()
    return found


def _add(found: _Found, file: Path, outlines: dict[str, Path], split: str | None, control: bool) -> None:
    """Add an X-ray, and take its mask out of ``outlines``."""
    name = file.stem
    if name in found.images:
        raise DataError(f"{found.images[name]} and {file} are the same image: keep one version of the set.")
    found.images[name] = file
    mask = outlines.pop(f"mask_{name}".lower(), None) or outlines.pop(name.lower(), None)
    if mask is not None:
        found.masks[name] = mask
    match = _SUBJECT.match(name)
    found.rows.append(LabeledRow(str(file), name, match[1] if match else name, [0 if control else 1], split, {}))


def _check_found(root: Path, found: _Found) -> None:
    """Check that both groups are there, and log how many X-rays and masks were found."""
    sick = [row for row in found.rows if row.label[0]]
    if not sick:
        raise DataError(f'{root} holds no folder "Images" with X-rays of pneumonia: unpack QaTa-COV19 there.')
    if len(sick) == len(found.rows):
        raise DataError(
            f"{root} holds no X-rays of a control group: unpack them into a folder whose name holds control."
        )
    controls = len(found.rows) - len(sick)
    _logger.info(
        "%d X-rays with pneumonia, %d of them with a mask; %d controls.", len(sick), len(found.masks), controls
    )
    if found.left_out:
        _logger.warning("%d X-rays of the second control group show other diseases: left out.", found.left_out)
    if len(found.masks) < len(sick):
        first = next(row.id for row in sick if row.id not in found.masks)
        _logger.warning("%d X-rays with pneumonia have no mask, first %s.", len(sick) - len(found.masks), first)
    if found.lost_masks:
        _logger.warning("%d masks belong to no X-ray, first %s.", len(found.lost_masks), found.lost_masks[0])


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
        check_released([row.where for row in rows], subjects, drawn)
    if split != "drawn":
        drawn = take_validation(subjects, labels, drawn, share=share, seed=seed)
    elif share:
        raise ValueError(
            f'Expected no `validation_share` with the split "drawn", whose `fractions` give it, got {share:g}.'
        )
    return [replace(row, split=name) for row, name in zip(rows, drawn, strict=True)]


def _in_gray(case: ImageCase) -> ImageCase:
    """Convert an X-ray that was saved in colors to gray."""
    if not case.is_color:
        return case
    gray = np.rint(np.tensordot(_GRAY_OF_COLORS, case.volume, axes=1))[None].astype(np.float32)
    return ImageCase([_CHANNEL], [MetaTensor(torch.from_numpy(gray))], [None], case.is_picture)


def _write(out: Path, found: _Found, rows: Sequence[LabeledRow]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write all images and masks, subject by subject; give the items and the statistics."""
    items: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    contradictions, shapes, deep, faults = [], [], [], Faults()
    by_subject = LabelTable(out, [], list(rows)).by_subject()
    for subject, of_subject in tqdm(by_subject.items(), desc="subjects", disable=None):
        volumes = []
        for row in of_subject:
            with faults.gather():
                case = _in_gray(read_case({UNNAMED: found.images[row.id]}, channel_names=None, color=False))
                mask = read_binary_mask(found.masks[row.id], case.images[0]) if row.id in found.masks else None
                items[row.id], _ = write_case(out, row, case, None, ["pneumonia"])
                if mask is not None:
                    items[row.id]["mask"] = f"masks/{row.subject}/{row.id}.png"
                    write_picture(out / items[row.id]["mask"], mask)
                    contradictions += [] if mask_shows(mask, row.label) else [row.id]
                volumes.append(case.volume)
                deep += [row.id] if case.volume.max() > 255 else []
                shapes.append(case.volume.shape[1:])
        if volumes:
            statistics[subject] = statistics_entry(*foreground_statistics(volumes))
    faults.check()
    if 0 < len(deep) < len(rows):
        _logger.warning(
            "%d X-rays have more than 8 bits, first %s, others have not: save all alike.", len(deep), deep[0]
        )
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
        DataError: a group is missing, an image is there twice, or files are damaged or do not fit; a line per fault.
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
    found = _find(folder)
    _check_found(folder, found)
    rows = _draw(found.rows, split, fractions, validation_share, seed)
    if split == "paper":
        kinds = Counter("X-rays with pneumonia" if row.label[0] else "controls" for row in rows)
        warn_of_other_numbers(kinds, _PAPER_NUMBERS)
    _logger.info("Split %s: %s.", split, ", ".join(f"{sum(row.split == s for row in rows)} {s}" for s in SPLITS))
    target = check_output(out, folder)
    items, statistics = _write(target, found, rows)
    table = LabelTable(folder, ["pneumonia"], rows)
    entries = {"split": split, "labels": "of images", "leaks": []}
    return write_prepared(target, table, items, [_CHANNEL], statistics, order=ROWS_COLUMNS, entries=entries)
