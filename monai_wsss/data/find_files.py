# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files by the ids of a table: ``<id>.<suffix>``, ``<id>_<modality>.<suffix>``, or a folder ``<id>/``.

A folder ``<id>/`` holds a DICOM series or one file per modality.  Every image must have a row, and every row an image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from monai_wsss._checks import DataError
from monai_wsss._image_formats import image_format, image_stem, is_hidden
from monai_wsss.data.case_files import UNNAMED
from monai_wsss.data.datalist import UNFINISHED
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.modalities import SEQUENCES, canonical_modality, sort_modalities

__all__ = ["common_modalities", "find_images", "find_masks", "folders_below", "is_prepared", "visible_entries"]

_MASK_WORD = re.compile(r"(seg|mask|label|annotation)[a-z0-9_-]*", re.IGNORECASE)


def visible_entries(folder: Path, kind: str = "folder") -> list[Path]:
    """List a folder, sorted, without hidden files.

    Args:
        folder: the folder.
        kind: what the message calls it.

    Raises:
        DataError: the folder cannot be opened.
    """
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path))
    except OSError as error:
        raise DataError(f"Cannot open the {kind} {folder} ({error.strerror}): check the path.") from error


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder was written by a preparation, be it whole or killed, and so holds no data to prepare."""
    return (folder / "datalist.json").exists() or (folder / UNFINISHED).exists()


def folders_below(root: Path, depth: int) -> Iterator[Path]:
    """Give a folder and all folders below it, sorted, without prepared folders (:func:`is_prepared`).

    Args:
        root: the folder.
        depth: number of levels below the root that are searched.

    Raises:
        DataError: a folder cannot be opened.
    """
    yield root
    if depth:
        for entry in visible_entries(root):
            if entry.is_dir() and not is_prepared(entry):
                yield from folders_below(entry, depth - 1)


def _entries(folder: Path, kind: str) -> list[Path]:
    """List a folder that must not be empty."""
    entries = visible_entries(folder, kind)
    if not entries:
        raise DataError(f"The {kind} {folder} is empty: check the path.")
    return entries


def _match(stem: str, ids: Collection[str]) -> tuple[str, str] | None:
    """Split a stem ``<id>`` or ``<id>_<rest>`` into (id, rest); the longest id wins."""
    if stem in ids:
        return stem, UNNAMED
    for end in range(len(stem) - 1, 0, -1):
        if stem[end] == "_" and stem[:end] in ids:
            return stem[:end], stem[end + 1 :]
    return None


def _files_in_case(folder: Path) -> list[tuple[str, Path]]:
    """List (modality, file) in the folder of a case; a DICOM series counts as one file, the folder itself."""
    files = [path for path in _entries(folder, "case folder") if image_format(path)]
    slices = [path for path in files if path.is_file() and image_format(path) == "dicom"]
    if slices and not all(canonical_modality(image_stem(path)) in SEQUENCES for path in slices):
        return [(UNNAMED, folder)]
    return [((_match(image_stem(path), [folder.name]) or ("", image_stem(path)))[1], path) for path in files]


def _add_file(files: dict[str, Path], modality: str, path: Path) -> None:
    """Add the file of a modality; refuse a mask and a second file."""
    if _MASK_WORD.fullmatch(modality):
        raise DataError(f"{path} looks like a mask among the images: move it to a folder of its own, given as masks.")
    if modality in files or (files and UNNAMED in (*files, modality)):
        other = files.get(modality) or next(iter(files.values()))
        raise DataError(f"{other} and {path} are the same modality of the same case: keep one of them.")
    files[modality] = path


def _suffix_hint(name: str, table: LabelTable) -> str:
    """Give the hint for a table that names files with their suffixes where it should have ids."""
    if not any(row.image_id == name and image_stem(name) != name for row in table.rows):
        return ""
    return f' (write the id without the suffix of the file, "{image_stem(name)}")'


def find_images(folder: Path, table: LabelTable) -> dict[str, dict[str, Path]]:
    """Find the images of all rows; every row must have an image, and every image a row.

    Returns:
        id of the image -> modality -> file; a file named by its id alone has the modality ``UNNAMED``.

    Raises:
        DataError: an image without row, a row without image, two images of one modality, or a mask among the images.
    """
    found: dict[str, dict[str, Path]] = {row.image_id: {} for row in table.rows}
    for entry in _entries(folder, "image folder"):
        if entry.is_dir() and entry.name in found:
            matches = [(entry.name, *pair) for pair in _files_in_case(entry)]
        elif image_format(entry) or (entry.is_dir() and any(map(image_format, visible_entries(entry)))):
            matched = _match(image_stem(entry), found)
            if matched is None:
                raise DataError(
                    f"The image {entry} has no row in {table.path}{_suffix_hint(entry.name, table)}: add its row, or "
                    "move the image away."
                )
            matches = [(*matched, entry)]
        else:
            continue
        for name, modality, path in matches:
            _add_file(found[name], canonical_modality(modality), path)
    for row in table.rows:
        if not found[row.image_id]:
            raise DataError(
                f'{row.where}: {folder} has no image for the id "{row.image_id}"{_suffix_hint(row.image_id, table)}: '
                "add it under this name, or delete the row."
            )
    return found


def find_masks(folder: str | os.PathLike[str], rows: Sequence[LabeledRow]) -> dict[str, Path]:
    """Find masks by the ids of the rows: ``<id>.<suffix>``, ``<id>_mask.<suffix>``, ``<id>_seg.<suffix>``.

    Rows without a mask and masks without a row are left out.

    Raises:
        DataError: the folder is missing or empty, no mask is found, or a case has two.
    """
    ids = {row.image_id for row in rows}
    masks: dict[str, Path] = {}
    for entry in _entries(Path(folder), "mask folder"):
        matched = _match(image_stem(entry), ids) if image_format(entry) else None
        if matched is None or not (matched[1] == UNNAMED or _MASK_WORD.fullmatch(matched[1])):
            continue
        if matched[0] in masks:
            raise DataError(f"{masks[matched[0]]} and {entry} are masks of the same case: keep one of them.")
        masks[matched[0]] = entry
    if not masks:
        raise DataError(f"No file in {folder} is named by an id of the label table: name the masks as the images.")
    return masks


def common_modalities(
    found: Mapping[str, Mapping[str, Path]], rows: Sequence[LabeledRow], wanted: Sequence[str] | None
) -> list[str]:
    """Give the modalities for which every case has a file.

    Args:
        found: id of the image -> modality -> file, as :func:`find_images` gives it.
        rows: the rows of the table.
        wanted: the modalities to use, where files are named by their modalities; None takes all.

    Returns:
        The modalities in the order T1, T1c, T2, FLAIR, others.

    Raises:
        DataError: a case lacks a modality, or has an image that other cases do not have.
    """
    common = Counter(frozenset(files) for files in found.values()).most_common(1)[0][0]
    choose = wanted is not None and common != {UNNAMED}
    if choose:
        common = frozenset(map(canonical_modality, wanted or ()))
    for row in rows:
        files = found[row.image_id]
        missing, extra = common - set(files), set(files) - common
        if extra and (not choose or UNNAMED in extra):
            names = ", ".join(str(files[name]) for name in sorted(extra))
            raise DataError(
                f'{row.where}: case "{row.id}" has an image that other cases do not have ({names}): move it away, '
                "or name the modalities to be used."
            )
        if missing:
            raise DataError(
                f'{row.where}: case "{row.id}" lacks the modality {", ".join(sorted(missing))}: add its file, '
                "leave the case out, or name the modalities to be used."
            )
    return sort_modalities([name for name in found[rows[0].image_id] if name in common])
