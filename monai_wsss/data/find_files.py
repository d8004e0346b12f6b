# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files by the ids of a table: ``<id>.<suffix>``, ``<id>_<modality>.<suffix>``, or a folder ``<id>/``.

A folder ``<id>/`` holds a DICOM series or one file per modality.  Every image must have a row, and every row an image.
Names may differ from ids in their Unicode form, and in their case where no other id then fits.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from monai_wsss._checks import DataError
from monai_wsss._image_formats import (
    image_format,
    image_stem,
    is_hidden,
    is_unread_image,
    remedy_for,
    stem_of_any,
)
from monai_wsss.data.case_files import UNNAMED
from monai_wsss.data.csv_table import plain_name
from monai_wsss.data.datalist import UNFINISHED
from monai_wsss.data.faults import Faults
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.modalities import SEQUENCES, canonical_modality, sort_modalities

__all__ = ["common_modalities", "find_images", "find_masks", "folders_below", "is_prepared", "visible_entries"]

_MASK_WORD = re.compile(r"(seg|mask|label|annotation)[a-z0-9_-]*", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+([.,][0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)
_NAMED = 3
"""Files that a message names."""

_logger = logging.getLogger(__name__)


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


def _match(stem: str, ids: Collection[str], separators: str = "_") -> tuple[str, str] | None:
    """Split a stem ``<id>`` or ``<id>_<rest>`` into (id, rest); the longest id wins."""
    if stem in ids:
        return stem, UNNAMED
    for end in range(len(stem) - 1, 0, -1):
        if stem[end] in separators and stem[:end] in ids:
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
        raise DataError(
            f"{other} and {path} are the same modality of the same case: keep one of them, or add a row for the one "
            "whose name is longer."
        )
    files[modality] = path


class _Names:
    """Ids of images, found by the names of files: exact ones first, then those that differ in case alone.

    Names are compared in one Unicode form, and without blanks around them.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = {plain_name(name): name for name in ids}
        alike: dict[str, list[str]] = {}
        for plain, name in self.ids.items():
            alike.setdefault(plain.casefold(), []).append(name)
        self._folded = {plain: names[0] for plain, names in alike.items() if len(names) == 1}

    def match(self, stem: str, *, separators: str = "_") -> tuple[str, str] | None:
        """Split a stem ``<id>`` or ``<id>_<rest>`` into (id, rest); the longest id wins."""
        plain = plain_name(stem)
        found = _match(plain, self.ids, separators)
        if found is not None:
            return self.ids[found[0]], found[1]
        found = _match(plain.casefold(), self._folded, separators)
        if found is None:
            return None
        return self._folded[found[0]], plain[len(plain) - len(found[1]) :] if found[1] else UNNAMED


def _same_number(one: str, other: str) -> bool:
    """Tell whether two names are one number, perhaps without its zeros, or in scientific notation."""
    return all(map(_NUMBER.fullmatch, (one, other))) and float(one.replace(",", ".")) == float(other.replace(",", "."))


def find_images(folder: Path, table: LabelTable, faults: Faults | None = None) -> dict[str, dict[str, Path]]:
    """Find the images of all rows; every row must have an image, and every image a row.

    Args:
        folder: the folder of images.
        table: the rows.
        faults: collects the faults; None raises them all at once.

    Returns:
        id of the image -> modality -> file; a file named by its id alone has the modality ``UNNAMED``.

    Raises:
        DataError: an image without row, a row without image, two images of one modality, a mask among the images, or an
            image of a kind that is not read.
    """
    collected = Faults() if faults is None else faults
    found: dict[str, dict[str, Path]] = {row.image_id: {} for row in table.rows}
    names = _Names([*found, *table.faulty])
    unread: dict[str, Path] = {}
    strange: list[Path] = []
    for entry in _entries(folder, "image folder"):
        with collected.gather():
            for stem, path in _images_of(entry, names, unread, strange):
                name, modality = stem
                if name in found:
                    _add_file(found[name], canonical_modality(modality), path)
    missing = {row.image_id: row for row in reversed(table.rows) if not found[row.image_id]}
    for row in reversed(missing.values()):
        collected.add(_without_image(row, folder, unread.get(row.image_id), strange))
    for path in strange:
        if path.is_dir() and any(names.match(stem_of_any(entry)) for entry in visible_entries(path)):
            collected.add(f"The folder {path} holds images of {table.path}: put them into {folder} itself.")
        elif not any(_same_number(name, stem_of_any(path)) for name in missing):
            collected.add(f"The image {path} has no row in {table.path}: add its row, or move the image away.")
    if faults is None:
        collected.check()
    return found


def _images_of(
    entry: Path, names: _Names, unread: dict[str, Path], strange: list[Path]
) -> list[tuple[tuple[str, str], Path]]:
    """Give ((id, modality), file) for the images of an entry of the image folder.

    Args:
        entry: a file or folder.
        names: the ids.
        unread: gets the files of a kind that is not read, by their ids.
        strange: gets the images without a row.
    """
    if entry.is_dir():
        whole = names.match(entry.name)
        if whole is not None and whole[1] == UNNAMED:
            files = _files_in_case(entry)
            if not files:
                for path in filter(is_unread_image, visible_entries(entry)):
                    unread.setdefault(whole[0], path)
            return [((whole[0], modality), path) for modality, path in files]
        if not image_format(entry):
            strange += [entry] if any(map(image_format, visible_entries(entry))) else []
            return []
    matched = names.match(stem_of_any(entry))
    if not image_format(entry):
        matched = matched or names.match(entry.stem)
        if is_unread_image(entry) or (matched is not None and matched[1] == UNNAMED):
            _note_unread(entry, matched, unread)
        return []
    if matched is None:
        strange.append(entry)
        return []
    return [(matched, entry)]


def _note_unread(entry: Path, matched: tuple[str, str] | None, unread: dict[str, Path]) -> None:
    """Remember a file of a kind that is not read; without a row, and of a known kind, it is a fault of its own."""
    if matched is None:
        raise DataError(f"{entry} is of a kind that is not read: {remedy_for(entry)}, or move it away.")
    unread.setdefault(matched[0], entry)


def _without_image(row: LabeledRow, folder: Path, unread: Path | None, strange: Sequence[Path]) -> str:
    """Say that a row has no image, and why it may be so."""
    if unread is not None:
        return (
            f'{row.where}: the image {unread} of "{row.image_id}" is of a kind that is not read: {remedy_for(unread)}.'
        )
    near = [path for path in strange if _same_number(stem_of_any(path), row.image_id)]
    if near:
        names = " and ".join(f'"{stem_of_any(path)}"' for path in near[:_NAMED])
        return (
            f'{row.where}: {folder} has no image for the id "{row.image_id}", but "{row.image_id}" and {names} are one '
            "number: a spreadsheet may have taken zeros away, so format the column of ids as text, to match "
            f"{near[0].name}."
        )
    return f'{row.where}: {folder} has no image for the id "{row.image_id}": add it under this name, or delete the row.'


def find_masks(
    folder: str | os.PathLike[str], rows: Sequence[LabeledRow], faults: Faults | None = None
) -> dict[str, Path]:
    """Find masks by the ids of the rows: ``<id>.<suffix>``, ``<id>_mask.<suffix>``, ``<id>_seg.<suffix>``.

    A hyphen, a dot or a blank may stand in place of the underscore.  Rows without a mask and masks without a row are
    left out, and told.

    Args:
        folder: the folder of masks.
        rows: the rows.
        faults: collects the faults; None raises them all at once.

    Raises:
        DataError: the folder is missing or empty, no mask is found, a case has two, or the mask of a row is of a kind
            that is not read.
    """
    collected = Faults() if faults is None else faults
    names = _Names(row.image_id for row in rows)
    masks: dict[str, Path] = {}
    strange: list[Path] = []
    for entry in _entries(Path(folder), "mask folder"):
        read = image_format(entry) is not None
        if not read and not is_unread_image(entry):
            continue
        matched = names.match(stem_of_any(entry), separators="_-. ")
        if matched is None or not (matched[1] == UNNAMED or _MASK_WORD.fullmatch(matched[1])):
            strange.append(entry)
        elif not read:
            collected.add(f"The mask {entry} is of a kind that is not read: {remedy_for(entry)}.")
        elif matched[0] in masks:
            collected.add(f"{masks[matched[0]]} and {entry} are masks of the same case: keep one of them.")
        else:
            masks[matched[0]] = entry
    if not masks and not collected.sentences:
        first = f" ({', '.join(path.name for path in strange[:_NAMED])})" if strange else ""
        raise DataError(
            f"No file in {folder} is named by an id of the label table{first}: name the masks as the images."
        )
    _tell_of_masks(Path(folder), masks, strange, len(names.ids))
    if faults is None:
        collected.check()
    return masks


def _tell_of_masks(folder: Path, masks: Mapping[str, Path], strange: Sequence[Path], images: int) -> None:
    """Log how many masks belong to no row, and how many images have no mask."""
    if strange:
        _logger.warning(
            "%d of %d masks in %s belong to no row of the label table and are left out, first %s: name a mask as its "
            "image, or <id>_mask.",
            len(strange),
            len(strange) + len(masks),
            folder,
            ", ".join(path.name for path in strange[:_NAMED]),
        )
    if len(masks) < images:
        _logger.warning("%d of %d images have no mask: an evaluation leaves them out.", images - len(masks), images)


def common_modalities(
    found: Mapping[str, Mapping[str, Path]],
    rows: Sequence[LabeledRow],
    wanted: Sequence[str] | None,
    faults: Faults | None = None,
) -> list[str]:
    """Give the modalities for which every case has a file.

    Args:
        found: id of the image -> modality -> file, as :func:`find_images` gives it.
        rows: the rows of the table.
        wanted: the modalities to use, where files are named by their modalities; None takes all.
        faults: collects the faults; None raises them all at once.

    Returns:
        The modalities in the order T1, T1c, T2, FLAIR, others.

    Raises:
        DataError: a case lacks a modality, or has an image that other cases do not have.
    """
    collected = Faults() if faults is None else faults
    common = Counter(frozenset(files) for files in found.values() if files).most_common(1)[0][0]
    choose = wanted is not None and common != {UNNAMED}
    if choose:
        common = frozenset(map(canonical_modality, wanted or ()))
    for row in {row.image_id: row for row in reversed(rows) if found[row.image_id]}.values():
        with collected.gather():
            _check_modalities(row, found[row.image_id], common, choose)
    if faults is None:
        collected.check()
    return sort_modalities(
        [name for name in max(found.values(), key=lambda files: common <= set(files)) if name in common]
    )


def _check_modalities(row: LabeledRow, files: Mapping[str, Path], common: frozenset[str], choose: bool) -> None:
    """Check that a case has the common modalities, and no others unless they are chosen from."""
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
