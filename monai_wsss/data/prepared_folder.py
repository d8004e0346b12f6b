# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The folder that every adapter writes: checked before the first file, described in the log, listed last.

A preparation that is killed leaves a folder without datalist, marked by an empty folder ``.unfinished``.  Nobody can
train on it, no adapter reads it as data, and the next preparation into it begins anew.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss._files import make_directory
from monai_wsss._orientation import slicing_entry
from monai_wsss.data.datalist import UNFINISHED, modality_entry, write_datalist
from monai_wsss.data.faults import Faults
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.splits import DRAWN_SHARES, split_by_subject
from monai_wsss.data.table_warnings import warn_of_labels, warn_of_subjects

__all__ = [
    "Faults",
    "check_output",
    "check_released",
    "check_targets",
    "log_sizes",
    "warn_of_contradictions",
    "warn_of_other_numbers",
    "write_prepared",
]

_WRITTEN = ("images", "masks", "regions")
"""Folders below a prepared folder."""

_logger = logging.getLogger(__name__)


def check_output(out: str | os.PathLike[str], *sources: str | os.PathLike[str] | None) -> Path:
    """Make the output folder of a preparation, and mark it as unfinished if it is empty.

    What a killed preparation left in a marked folder is removed.  A folder with other files is not marked, so nothing
    of a user is ever removed.

    Args:
        out: the folder to make; it may exist.
        sources: the folders that are read, which ``out`` must not be; None is passed over.

    Raises:
        DataError: the folder is prepared already or is one of the sources, or it cannot be made.
    """
    folder = Path(out)
    if (folder / "datalist.json").exists():
        raise DataError(f"{folder} holds a datalist.json already: choose another output folder, or delete this one.")
    if any(folder.resolve() == Path(source).resolve() for source in sources if source is not None):
        raise DataError(f"The output folder {folder} is the source folder: choose another output folder.")
    make_directory(folder)
    mark = folder / UNFINISHED
    if mark.exists():
        _logger.warning("%s holds what a preparation left that did not end: it is removed.", folder)
        for name in _WRITTEN:
            shutil.rmtree(folder / name, ignore_errors=True)
        for file in folder.glob(".*.partial.datalist.json"):
            file.unlink(missing_ok=True)
    elif not any(folder.iterdir()):
        make_directory(mark)
    return folder


def log_sizes(shapes: Iterable[tuple[int, ...]]) -> None:
    """Log, if the images have several sizes, that training has to resize or crop them."""
    sizes = sorted(set(shapes))
    if len(sizes) > 1:
        smallest, largest = (" x ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        _logger.info(
            "The images have %d sizes, from %s to %s: they are kept, but a batch needs one size, so training has to "
            "resize or crop them.",
            len(sizes),
            smallest,
            largest,
        )


def warn_of_contradictions(ids: Sequence[str]) -> None:
    """Log how many of the masks show other classes than their labels say; ``ids`` names their cases."""
    if ids:
        _logger.warning("%d masks show other classes than their labels say, first that of %s.", len(ids), ids[0])


def check_released(places: Sequence[object], subjects: Sequence[str], splits: Sequence[str]) -> None:
    """Check, before anything is written, that no subject is in two released splits.

    Args:
        places: where every item stands, for messages, (N).
        subjects: the subject of every item, (N).
        splits: the released split of every item, (N).

    Raises:
        DataError: a subject is in two splits; a line per item.
    """
    first: dict[str, str] = {}
    faults = Faults()
    for place, subject, split in zip(places, subjects, splits, strict=True):
        with faults.gather():
            if first.setdefault(subject, split) != split:
                raise DataError(
                    f'{place}: subject "{subject}" is in both released sets: take the split "paper" or "drawn".'
                )
    faults.check()


def warn_of_other_numbers(found: Mapping[str, int], paper: Mapping[str, int]) -> None:
    """Log where a set holds other numbers than a paper says.

    Args:
        found: what is counted → its number here.
        paper: what is counted → its number in the paper.
    """
    other = [f"{found.get(name, 0)} {name}, not {count}" for name, count in paper.items() if found.get(name) != count]
    if other:
        _logger.warning("The set is not of the size that the paper says: %s.", ", ".join(other))


def check_targets(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that no two images share a file; on some disks ``A.png`` and ``a.png`` are one file."""
    owner: dict[str, str] = {}
    for name, item in files.items():
        images = item["image"] if isinstance(item["image"], list) else [item["image"]]
        for path in (*images, *([item["mask"]] if "mask" in item else [])):
            if path.lower() in owner:
                raise DataError(
                    f'{path} would hold two images, one of case "{owner[path.lower()]}" and one of case "{name}": '
                    "rename a case or a modality."
                )
            owner[path.lower()] = name


def _cut_from(row: LabeledRow, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Give the entries of an item that say from which image it was cut, and the key of its statistics."""
    item: dict[str, Any] = {} if row.source is None else {"source": row.source}
    if row.origin is not None:
        item["origin"] = list(row.origin)
    if row.source_or_id in statistics:
        item["statistics"] = row.source_or_id
    return item


def write_prepared(
    out: str | os.PathLike[str],
    table: LabelTable,
    files: Mapping[str, Mapping[str, Any]],
    modalities: Sequence[str],
    statistics: Mapping[str, Any],
    *,
    order: str,
    fractions: Sequence[float] = DRAWN_SHARES,
    seed: int = 0,
    cut: Iterable[str | None] = (),
    entries: Mapping[str, Any] | None = None,
) -> Path:
    """Write the datalist, the last file of a preparation; draw the splits where the table has none.

    Args:
        out: the prepared folder.
        table: the cases.
        files: id -> ``image`` and perhaps ``mask``, relative to ``out``.
        modalities: names of the channels, (C).
        statistics: key -> ``mean`` and ``std``; may be empty.  The key is the subject.  Without background it is the
            source of a patch, or the id of a case that is no patch.
        order: how networks get 2D images, "rows_columns" or "xy"; see
            :func:`~monai_wsss.data.datalist.write_datalist`.
        fractions: shares of training, validation and test where splits are drawn.
        seed: seed of the draw.
        cut: the axes of every volume that was cut into slices, see :func:`~monai_wsss._orientation.axes_of`.
        entries: further entries of the datalist.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: two images have the same path, or see :func:`~monai_wsss.data.datalist.write_datalist`.
    """
    check_targets(files)
    rows = table.rows
    splits: Sequence[str | None] = [row.split for row in rows]
    if None in splits:
        subjects, labels = [row.subject for row in rows], [row.label for row in rows]
        splits = split_by_subject(subjects, labels, fractions=fractions, seed=seed)
    warn_of_subjects(table, [str(split) for split in splits])
    in_training = [row.label for row, split in zip(rows, splits, strict=True) if split == "training"]
    if table.scored_class is None:
        warn_of_labels(table.classes, in_training, "training")
    datalist: dict[str, Any] = {
        "name": Path(out).resolve().name,
        "modality": modality_entry(modalities),
        "classes": table.classes,
        "background": table.scored_class is None,
        "order": order,
        **slicing_entry(cut),
        **(entries or {}),
    }
    if table.scored_class is not None:
        datalist["scored_class"] = table.scored_class
    if statistics:
        datalist["statistics"] = dict(statistics)
    for row, split in zip(rows, splits, strict=True):
        item = {"id": row.id, "subject": row.subject, "label": row.label, **files[row.id]}
        if table.scored_class is not None:
            item |= _cut_from(row, statistics)
        datalist.setdefault(str(split), []).append(item)
    return write_datalist(out, datalist)
