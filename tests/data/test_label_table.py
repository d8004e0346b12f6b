# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The label table: columns, separators and spellings, and mistakes by the number of their row."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_wsss._checks import DataError
from monai_wsss.data.label_table import read_label_table


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_a_byte_order_mark(tmp_path, separator):
    text = "\ufeff" + "id,label\na,1\nb,0\n".replace(",", separator)
    assert [(row.id, row.label) for row in read_label_table(write(tmp_path, text)).rows] == [("a", [1]), ("b", [0])]


def test_defaults(tmp_path):
    table = read_label_table(write(tmp_path, "id,label,age\na,1,77\n"))
    (row,) = table.rows
    assert (row.subject, row.split, table.classes, row.values["age"]) == ("a", None, ["foreground"], "77")
    assert read_label_table(write(tmp_path, "id,nodule,edema\na,1,0\n")).classes == ["nodule", "edema"]


@pytest.mark.parametrize(
    ("spelling", "split"),
    [("TRAIN", "training"), (" val ", "validation"), ("Dev", "validation"), ("hold_out", "test"), ("held-out", "test")],
)
def test_spellings_of_the_split(tmp_path, spelling, split):
    assert read_label_table(write(tmp_path, f"id,label,split\na,1,{spelling}\n")).rows[0].split == split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels.csv has no rows: give a header line and one row for each case"),
        ("id,label\n", r"labels.csv has no rows"),
        ("name,label\na,1\n", r'has no column "id", it has name, label: name the right column'),
        ("id\na\n", r"has no column with labels: add one with 0 or 1 for each class"),
        ("id,label\na\n", r"row 2 has more or fewer fields than the header"),
        ("id,label\na,1,2\n", r"row 2 has more or fewer fields than the header"),
        ("id,label\n,1\n", r'row 2: the field in column "id" is empty'),
        ("id,label\n.a,1\n", r'row 2: ".a" in column "id" cannot name a file'),
        ("id,subject,label\na,b/c,1\n", r'row 2: "b/c" in column "subject" names a folder'),
        ("id,label,split\na,1,\n", r'row 2: the split is "": write train, val or test'),
        ("id,age\na,77\n", r'row 2: the label in column "age" is "77": write 0 or 1, or name the label columns'),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_label_table(write(tmp_path, text))


def test_a_row_number_is_the_line_in_the_file(tmp_path):
    with pytest.raises(DataError, match="row 4: the label"):
        read_label_table(write(tmp_path, 'id,note,label\na,"two\nlines",1\nb,x,2\n'))


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"id,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"labels.csv is not a CSV file in UTF-8"):
        read_label_table(tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"Cannot read the label table .*none.csv \(No such file or directory\)"):
        read_label_table(tmp_path / "none.csv")
