# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CSV tables as spreadsheets write them: what is unambiguous is forgiven.

Read are UTF-8 and UTF-16, with or without a byte order mark, and commas, semicolons, tabs or bars between the fields,
with Excel's line ``sep=;`` or without.  Passed over are empty rows, columns without a name, and blanks around a field.
The case of the names of columns does not count.  Names of cases are brought to one Unicode form (NFC), and the signs
with which spreadsheets mark text, ``="001"`` and ``'001``, are taken off.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError

__all__ = ["LABEL_WORDS", "CsvTable", "plain_name", "read_csv_table", "row_numbers", "subject_like"]

_YES = ("1", "1.0", "1,0", "yes", "y", "true", "t", "positive", "pos")
_NO = ("0", "0.0", "0,0", "no", "n", "false", "f", "negative", "neg")
LABEL_WORDS = {**dict.fromkeys(_YES, 1), **dict.fromkeys(_NO, 0)}
"""Word in small letters → label."""

_SEPARATORS = ",;\t|"
_UNSEEN = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad"))
"""Characters without a width, which copying from documents leaves."""
_TEXT_MARK = re.compile(r'="(.*)"|\'(.*)')
_MOST_RUNS = 20
"""Runs of rows that a message names."""
_SUBJECT_WORDS: tuple[str, ...] = ("subject", "subj", "patient", "patienten", "pat", "person", "participant")
_SUBJECT_WORDS += ("mrn", "pid", "individual", "case")


@dataclass(frozen=True)
class CsvTable:
    """The content of a CSV file.

    Attributes:
        path: the file.
        columns: names of the columns.
        rows: number of the line in the file, and column → text; the key None holds surplus fields, and the value None
            stands for a missing one.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]

    def column(self, name: str) -> str | None:
        """Give the column of a name, or the only one whose name differs in case and blanks alone; else None."""
        if name in self.columns:
            return name
        alike = [column for column in self.columns if column.strip().casefold() == name.strip().casefold()]
        return alike[0] if len(alike) == 1 else None

    def all_of(self, column: str, words: Collection[str]) -> bool:
        """Tell whether all fields of a column are among words in small letters."""
        return all(str(row.get(column) or "").strip().lower() in words for _, row in self.rows)


def plain_name(text: str) -> str:
    """Bring a name to one form: NFC, without unseen characters, blanks around it and a spreadsheet's mark of text.

    Example:
        >>> plain_name(' ="001" '), plain_name("\'001"), plain_name("Mu\u0308ller") == "M\u00fcller"
        ('001', '001', True)
    """
    plain = " ".join(unicodedata.normalize("NFC", text).translate(_UNSEEN).split())
    marked = _TEXT_MARK.fullmatch(plain)
    return (marked[1] or marked[2] or "").strip() if marked else plain


def subject_like(columns: Sequence[str]) -> list[str]:
    """Give the columns whose names say that they hold subjects.

    Example:
        >>> subject_like(["id", "Patient ID", "patient_age", "label"])
        ['Patient ID']
    """
    found = []
    for column in columns:
        words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", column).lower())
        rest = [word for word in words if word not in ("id", "ids", "no", "nr", "number", "name", "key", "uid")]
        if rest == ["pid"] or (len(rest) == 1 and rest[0].removesuffix("id") in _SUBJECT_WORDS):
            found.append(column)
    return found


def _decoded(content: bytes) -> str:
    """Decode UTF-16, which has a byte order mark or begins with a letter beside a zero byte, else UTF-8."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if content[:2].count(0) == 1:
        return content.decode("utf-16-le" if content[1] == 0 else "utf-16-be")
    return content.decode("utf-8-sig")


def row_numbers(numbers: Sequence[int]) -> str:
    """Write the numbers of rows, in ascending order, for a message.

    Example:
        >>> row_numbers([2]), row_numbers([2, 3, 4, 9])
        ('row 2', 'rows 2 to 4, 9')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    more = len(texts) - _MOST_RUNS
    texts = texts[:_MOST_RUNS] + ([f"and {more} more places"] if more > 0 else [])
    return f"row{'s' * (len(numbers) > 1)} {', '.join(texts)}"


def read_csv_table(path: str | os.PathLike[str]) -> CsvTable:
    """Read a CSV file with a header line.

    Raises:
        DataError: the file cannot be read, has no rows, or two of its columns have one name.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = file.write_text("sep=;\\nid; label ;\\n;;\\na; 1;\\n")
        >>> read_csv_table(file).rows
        [(4, {'id': 'a', 'label': '1'})]
    """
    file = Path(path)
    try:
        text = _decoded(file.read_bytes())
        skipped = re.match("sep=(.)\r?\n", text)
        text = text[skipped.end() :] if skipped else text
        header = next((line for line in re.split("[\r\n]+", text) if line.strip(_SEPARATORS + " ")), "")
        separator = skipped[1] if skipped else max(_SEPARATORS, key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        lines = [(reader.line_num + bool(skipped), [one.strip() for one in fields]) for fields in reader]
    except OSError as error:
        raise DataError(
            f"Cannot read the label table {file} ({error.strerror}): give the path of a CSV file."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8 ({error}): save the table as CSV (UTF-8).") from error
    lines = [(number, fields) for number, fields in lines if any(fields)]
    if len(lines) < 2:
        raise DataError(f"The label table {file} has no rows: give a header line and one row for each case.")
    columns = [plain_name(name) for name in lines[0][1]]
    named = [name for name in columns if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(f'{file} has the column "{twice[0]}" twice: give each column a name of its own.')
    return CsvTable(file, named, [(number, _row(columns, fields)) for number, fields in lines[1:]])


def _row(columns: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    """Give column → text; columns without a name are passed over, and empty fields behind the last column."""
    row: dict[Any, Any] = {name: field for name, field in zip(columns, fields, strict=False) if name}
    surplus = [field for field in fields[len(columns) :] if field]
    if surplus:
        row[None] = surplus
    row.update({name: None for name in columns[len(fields) :] if name})
    return row
