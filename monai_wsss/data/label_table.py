# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""labels.csv: one row per case, with its id, subject and 0/1 labels, and optionally its split and source image.

All mistakes in the table are reported at once, each with the number of its row.  What is unambiguous is forgiven: see
:mod:`monai_wsss.data.csv_table`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError, check_choice
from monai_wsss._image_formats import image_stem
from monai_wsss._orientation import SLICING_AXES
from monai_wsss.data.csv_table import LABEL_WORDS, CsvTable, plain_name, read_csv_table, row_numbers, subject_like
from monai_wsss.data.faults import Faults
from monai_wsss.data.splits import SPLIT_OF_WORD

__all__ = ["SLICE_NUMBERS", "WHOLE", "LabelTable", "LabeledRow", "read_label_table"]

WHOLE = "foreground"
"""The class of a single column called ``label``: everything that is not background."""

SLICE_NUMBERS = ("index", "instance", "position")
"""What the numbers of slices in a table are, see :mod:`monai_wsss.data.slice_cutting`."""

_PATCH_COLUMNS = ("source", "x", "y")
_NO_LABEL = -1
_NAMED = 3
"""Fields that a message names."""
_SAFE_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")


@dataclass(frozen=True)
class LabeledRow:
    """A row of the table, which is a case.

    Attributes:
        where: file and row number, for messages.
        id: name of the case, unique in the table.
        subject: the subject of the case.
        label: 0/1 per class, (K).
        split: "training", "validation" or "test"; None where the table has no splits.
        values: the unparsed row, column -> text.
        volume: for a slice, the id of its volume and its number, see :data:`SLICE_NUMBERS`; else None.
        source: for a patch, the name of the image from which it was cut; else None.
        origin: for a patch, its first column and row in that image; None where the table has none.
    """

    where: str
    id: str
    subject: str
    label: list[int]
    split: str | None
    values: Mapping[str, str]
    volume: tuple[str, float] | None = None
    source: str | None = None
    origin: tuple[int, int] | None = None

    @property
    def image_id(self) -> str:
        """Id of the image that holds the case: the volume of a slice, else the case itself."""
        return self.volume[0] if self.volume else self.id

    @property
    def source_or_id(self) -> str:
        """Name of the image whose statistics standardize the case: the source of a patch, else the case itself."""
        return self.source or self.id


@dataclass(frozen=True)
class LabelTable:
    """A table of cases.

    Attributes:
        path: the file.
        classes: names of the classes, (K).
        rows: the cases.
        scored_class: without background, where every pixel belongs to a class, the class that foreground metrics score;
            with background None.
        faulty: ids of rows with faults, which are not among ``rows``; empty unless faults are collected.
        slice_numbers: where rows are slices, what their numbers are, see :data:`SLICE_NUMBERS`.
        slicing_axis: along which axis they are numbered, "RL", "AP" or "SI"; None for "SI".
    """

    path: Path
    classes: list[str]
    rows: list[LabeledRow]
    scored_class: str | None = None
    faulty: frozenset[str] = frozenset()
    slice_numbers: str = "index"
    slicing_axis: str | None = None

    def by_subject(self) -> dict[str, list[LabeledRow]]:
        """Collect the rows of each subject, in the order of the table."""
        subjects: dict[str, list[LabeledRow]] = {}
        for row in self.rows:
            subjects.setdefault(row.subject, []).append(row)
        return subjects


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that are read."""

    id: str
    subject: str
    labels: list[str]
    split: str | None
    slice: str | None


def _label_columns(table: CsvTable, wanted: Sequence[str] | None, others: Sequence[str | None]) -> list[str]:
    """Give the wanted columns; by default the column ``label``, else all columns with no other meaning.

    A column that is called as subjects usually are has a meaning unless all of its values are labels.
    """
    if wanted is not None:
        return [table.column(name) or name for name in wanted]
    label = table.column("label")
    if label is not None:
        return [label]
    subjects = [name for name in subject_like(table.columns) if not table.all_of(name, LABEL_WORDS)]
    return [name for name in table.columns if name not in others and name not in subjects]


def _check_labels(table: CsvTable, columns: Sequence[str], faults: Faults) -> None:
    """Check that every field of the columns is a label; a sentence per column names all rows."""
    for column in columns:
        fields = [(number, row.get(column)) for number, row in table.rows]
        wrong = [(number, text) for number, text in fields if text is not None and text.lower() not in LABEL_WORDS]
        texts = list(dict.fromkeys(f'"{text}"' for _, text in wrong))
        if wrong:
            faults.add(
                f'{table.path}, {row_numbers([number for number, _ in wrong])}: the label in column "{column}" is '
                f"{', '.join(texts[:_NAMED])}{', …' * (len(texts) > _NAMED)}: write 0 or 1, or name the label columns."
            )


def _file_name(text: str) -> str:
    """Give the name of the file, without folder and suffix, that a field with an id means."""
    return image_stem(plain_name(text).replace("\\", "/").rsplit("/", 1)[-1])


def _parse_split(row: Mapping[str, str], column: str | None, where: str) -> str | None:
    if column is None:
        return None
    split = SPLIT_OF_WORD.get(re.sub(r"[^a-z]", "", row[column].lower()))
    if split is None:
        raise DataError(f'{where}: the split is "{row[column]}": write train, val or test.')
    return split


def _name(row: Mapping[str, str], column: str, where: str) -> str:
    """Read a name that becomes that of a file or folder."""
    text = plain_name(row[column])
    if not text:
        raise DataError(f'{where}: the field in column "{column}" is empty: write a name, or delete the row.')
    if "/" in text or "\\" in text:
        raise DataError(f'{where}: "{text}" in column "{column}" names a folder: write the name alone.')
    if not _SAFE_NAME.fullmatch(text):
        raise DataError(f'{where}: "{text}" in column "{column}" cannot name a file: use letters, digits, "-" and "_".')
    return text


def _parse_row(row: dict[str, Any], where: str, names: _Columns, faults: Faults) -> LabeledRow | None:
    """Check one row by itself, but for its labels; give None where it has faults."""
    if None in row or None in row.values():
        faults.add(f"{where} has more or fewer fields than the header: correct the row.")
        return None
    name = subject = split = None
    before = len(faults.sentences)
    with faults.gather():
        name = image_stem(_name(row, names.id, where))
    with faults.gather():
        subject = name if names.subject == names.id else _name(row, names.subject, where)
    with faults.gather():
        split = _parse_split(row, names.split, where)
    if len(faults.sentences) > before or name is None or subject is None:
        return None
    label = [LABEL_WORDS.get(row[column].lower(), _NO_LABEL) for column in names.labels]
    return LabeledRow(where, name, subject, label, split, row)


def _as_slice(row: LabeledRow, column: str, numbers: str) -> LabeledRow:
    """Turn a row with the id of a volume into the row of a slice, whose number is in the column."""
    text = row.values[column].strip()
    if numbers == "position":
        if not re.fullmatch(r"[-+]?[0-9]{1,5}([.,][0-9]{1,6})?", text):
            raise DataError(
                f'{row.where}: the slice in column "{column}" is "{text}": write its position in millimeters, as 12.5.'
            )
        place = float(text.replace(",", ".")) + 0.0
        return replace(row, id=f"{row.id}_{place:g}", volume=(row.id, place))
    if not re.fullmatch("[0-9]{1,6}", text):
        raise DataError(
            f'{row.where}: the slice in column "{column}" is "{text}": write its '
            + ("number along the slicing axis, from 0 on." if numbers == "index" else "InstanceNumber.")
        )
    return replace(row, id=f"{row.id}_{int(text):03d}", volume=(row.id, int(text)))


def _as_patch(row: LabeledRow) -> LabeledRow:
    """Parse the columns ``source``, ``x`` and ``y`` of a row, where the table has them."""
    source = row.values.get("source", "").strip()
    if not source:
        return row
    if "x" not in row.values or "y" not in row.values:
        return replace(row, source=source)
    texts = [row.values[column].strip() for column in ("x", "y")]
    if not all(re.fullmatch("[0-9]{1,9}", text) for text in texts):
        raise DataError(
            f'{row.where}: x and y are "{texts[0]}" and "{texts[1]}": write the first column and row of the patch in '
            "its source as whole numbers from 0 on."
        )
    return replace(row, source=source, origin=(int(texts[0]), int(texts[1])))


def _check_complete(rows: Sequence[LabeledRow], classes: Sequence[str], scored: str, faults: Faults) -> None:
    """Check a table without background: several classes, one of them scored, and at least one per case."""
    if len(classes) < 2:
        raise DataError(
            f"Without background every pixel belongs to a class, so there must be several label columns, got "
            f"{', '.join(classes)} alone: add a column for the other tissue, or prepare the data with background."
        )
    if scored not in classes:
        raise DataError(f'The scored class is "{scored}", but the classes are {", ".join(classes)}: name one of these.')
    for row in rows:
        if not any(row.label):
            faults.add(
                f'{row.where}: all labels of "{row.id}" are 0, but without background every image shows one of '
                f"{', '.join(classes)}: mark what it shows (all, where it is only to be segmented), or delete the row."
            )


def read_label_table(
    path: str | os.PathLike[str],
    *,
    id_column: str = "id",
    subject_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    split_column: str | None = None,
    slice_column: str | None = None,
    slice_numbers: str = "index",
    slicing_axis: str | None = None,
    background: bool = True,
    scored_class: str | None = None,
    faults: Faults | None = None,
) -> LabelTable:
    """Read and check a table of image-level labels.

    Args:
        path: a CSV file with a header line.
        id_column: the column with the ids of the cases.
        subject_column: the column with the subjects; None takes ``subject`` if there is one, else, without background,
            ``source``, else the id.
        label_columns: the columns with 0/1 labels, one per class; None takes ``label`` if there is one, else all
            columns with no other meaning; an empty list reads no labels.
        split_column: the column with train, val or test; None takes ``split`` if there is one, else no split is read.
        slice_column: for a table of slices, the column with their numbers.  The id is then that of the volume, and the
            case is called ``<id>_<slice:03d>``, or ``<id>_<millimeters>``.
        slice_numbers: what these numbers are: "index" along the slicing axis, from 0 on; "instance", the
            InstanceNumber in a DICOM series; "position" in millimeters, see :mod:`monai_wsss.data.slice_cutting`.
        slicing_axis: "RL", "AP" or "SI", the axis along which the slices are numbered and cut; None for "SI".
        background: whether pixels may belong to no class.  Without background the classes are all real (gland and
            other tissue), and the columns ``source``, ``x`` and ``y``, if there are any, say from which image a patch
            was cut, and where.
        scored_class: without background, the class that foreground metrics score; None takes the first.
        faults: collects the faults of rows, which are then left out of the table; None raises them all at once.

    Returns:
        The table.  A single column called ``label`` makes a class called "foreground".

    Raises:
        DataError: a column is missing, an id occurs twice, a label is neither 0 nor 1, a split is unknown, a subject is
            in two splits, a volume or source is of two subjects, an id cannot name a file, or there are no rows;
            without background also if a row has no class, or there is a single class.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = file.write_text("id,subject,edema,split\\nscan1,anna,1,train\\nscan2,ben,0,val\\n")
        >>> table = read_label_table(file)
        >>> table.classes, [(row.id, row.subject, row.label, row.split) for row in table.rows]
        (['edema'], [('scan1', 'anna', [1], 'training'), ('scan2', 'ben', [0], 'validation')])
    """
    if background and scored_class is not None:
        raise ValueError(f'Expected no `scored_class` with background, got "{scored_class}": say that there is none.')
    check_choice("slice_numbers", slice_numbers, SLICE_NUMBERS)
    if slicing_axis is not None:
        check_choice("slicing_axis", slicing_axis, SLICING_AXES)
    collected = Faults() if faults is None else faults
    csv_table = read_csv_table(path)
    names = _columns(csv_table, id_column, subject_column, label_columns, split_column, slice_column, background)
    parsed, faulty = [], set()
    for number, row in csv_table.rows:
        before = len(collected.sentences)
        with collected.gather():
            one = _parse_row(row, f"{csv_table.path}, row {number}", names, collected)
            if one is not None and names.slice is not None:
                one = _as_slice(one, names.slice, slice_numbers)
            if one is not None and _NO_LABEL not in one.label:
                parsed.append(one if background else _as_patch(one))
        if len(collected.sentences) > before or one is None or _NO_LABEL in one.label:
            faulty.add(_file_name(row.get(names.id) or ""))
    _check_labels(csv_table, names.labels, collected)
    classes = [WHOLE] if [name.lower() for name in names.labels] == ["label"] else names.labels
    unique = _unique(parsed, collected)
    faulty |= {row.image_id for row in parsed} - {row.image_id for row in unique}
    scored = None if background else classes[0] if scored_class is None else scored_class
    if scored is not None:
        _check_complete(unique, classes, scored, collected)
    if faults is None:
        collected.check()
    return LabelTable(csv_table.path, classes, unique, scored, frozenset(faulty), slice_numbers, slicing_axis)


def _columns(
    table: CsvTable,
    id_column: str,
    subject_column: str | None,
    label_columns: Sequence[str] | None,
    split_column: str | None,
    slice_column: str | None,
    background: bool,
) -> _Columns:
    """Find the columns, whatever the case of their names; each must be there."""
    id_column = table.column(id_column) or id_column
    split_column = table.column("split") if split_column is None else table.column(split_column) or split_column
    slice_column = None if slice_column is None else table.column(slice_column) or slice_column
    if subject_column is None:
        candidates = ("subject",) if background else ("subject", "source")
        subject_column = next((found for name in candidates if (found := table.column(name))), id_column)
    else:
        subject_column = table.column(subject_column) or subject_column
    others = () if background else _PATCH_COLUMNS
    labels = _label_columns(table, label_columns, (id_column, subject_column, split_column, slice_column, *others))
    wanted = (id_column, subject_column, *labels, *filter(None, (split_column, slice_column)))
    missing = [f'"{column}"' for column in dict.fromkeys(wanted) if column not in table.columns]
    if missing:
        raise DataError(
            f"{table.path} has no column {', '.join(missing)}, it has {', '.join(table.columns)}: "
            "name the right column."
        )
    if not labels and label_columns is None:
        raise DataError(f"{table.path} has no column with labels: add one with 0 or 1 for each class.")
    return _Columns(id_column, subject_column, labels, split_column, slice_column)


def _unique(rows: Sequence[LabeledRow], faults: Faults) -> list[LabeledRow]:
    """Give the rows without a fault: an id occurs once, a volume or source has one subject, a subject one split."""
    unique = []
    place_of: dict[str, str] = {}
    first_of: dict[str, LabeledRow] = {}
    first_of_image: dict[tuple[str, str], LabeledRow] = {}
    for row in rows:
        with faults.gather():
            _check_one(row, place_of, first_of, first_of_image)
            unique.append(row)
    return unique


def _check_one(
    row: LabeledRow,
    place_of: dict[str, str],
    first_of: dict[str, LabeledRow],
    first_of_image: dict[tuple[str, str], LabeledRow],
) -> None:
    """Check a row against those before it."""
    if row.id in place_of:
        raise DataError(f'{row.where}: the id "{row.id}" is also in {place_of[row.id]}: give each case its own.')
    place_of[row.id] = row.where
    whole, part = ("source", "patches") if row.source else ("volume", "slices")
    name = row.source or row.image_id
    same = first_of_image.setdefault((whole, name), row)
    if same.subject != row.subject:
        raise DataError(
            f'{row.where}: {whole} "{name}" is of subject "{row.subject}", but of "{same.subject}" in '
            f"{same.where}: give all {part} of a {whole} the same subject."
        )
    first = first_of.setdefault(row.subject, row)
    if first.split != row.split:
        raise DataError(
            f'{row.where}: subject "{row.subject}" is in {row.split}, but in {first.split} in {first.where}: '
            "put all cases of a subject into one split."
        )
