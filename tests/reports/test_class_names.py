# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of classes beside masks, read back as viewers read them."""

import csv

from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports.class_names import write_class_names


def test_the_color_table_names_every_label(tmp_path):
    """Slicer's rule: number, name without spaces, red, green, blue, opacity; what begins with # is a comment."""
    names = ["gland", "other tissue", *"cdefghi"]
    write_class_names(tmp_path, names)
    lines = (tmp_path / "classes.ctbl").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)
    assert {int(row[0]): row[1].replace("_", " ") for row in rows} == dict(enumerate(["background", *names]))
    assert tuple(map(int, rows[1][2:5])) == tuple(map(int, rows[9][2:5])) == CLASS_COLORS[0]
    assert [row[5] for row in rows] == ["0"] + 9 * ["255"]


def test_the_table_has_a_row_per_label(tmp_path):
    write_class_names(tmp_path, ["tumor, whole"])
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["LabelValue"], row["Name"]) for row in rows] == [("0", "background"), ("1", "tumor, whole")]
