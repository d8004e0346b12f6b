# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""No cell and no name of a column becomes a formula in a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest

from monai_wsss.metrics.aggregate import table_text, write_table

FORMULAS = [
    '=HYPERLINK("http://x")',
    "+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "\u00a0=1",
    "\uff1d1",
    "\ttext",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_compute_is_quoted(text):
    assert table_text(text) == "'" + text
    file = io.StringIO(newline="")
    write_table(file, [{text: text, "n": -1.5}, {"n": None}], [text, "n"])
    head, row, last = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert head == ["'" + text, "n"]
    assert row == ["'" + text, "-1.5"]
    assert last == ["", ""]


@pytest.mark.parametrize("text", ["", "case-1", "a=b", "T1<-FLAIR", " 7", "\u00e9", "1e-3"])
def test_other_names_stay_as_they_are(text):
    assert table_text(text) == text
