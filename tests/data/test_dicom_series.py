# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A heap of DICOM files sorted into series, damaged images, and objects that are no images."""

from __future__ import annotations

import numpy as np
import pytest

from monai_wsss.data.dicom_series import find_series

PLANE = np.arange(35, dtype=np.uint16).reshape(5, 7)
ROWS = b"\x28\x00\x10\x00US"
"""How the element Rows begins in a file."""


def test_images_cut_off_in_their_headers_are_damaged_and_reports_are_none(tmp_path, save_dicom):
    whole = save_dicom(tmp_path / "1.dcm", PLANE, SeriesDescription="t1 post gd")
    cut = save_dicom(tmp_path / "2.dcm", PLANE)
    cut.write_bytes(cut.read_bytes().partition(ROWS)[0])
    empty = tmp_path / "3.dcm"
    empty.write_bytes(whole.read_bytes()[:140])
    no_image = {"Rows": None, "Columns": None, "PixelSpacing": None}
    report = save_dicom(
        tmp_path / "4.dcm", PLANE, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", **no_image
    )
    raw = save_dicom(tmp_path / "5.dcm", PLANE, SOPClassUID="1.2.840.10008.5.1.4.1.1.66", **no_image)
    segmentation = save_dicom(
        tmp_path / "6.dcm", PLANE, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG", SeriesInstanceUID="1.2.4"
    )
    series, broken, others = find_series([whole, cut, empty, report, raw, segmentation])
    assert [(one.uid, one.files, one.sequence) for one in series] == [("1.2.3", [whole], "T1c")]
    assert broken == [cut, empty]
    assert others == 3


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("t1_mprage_sag", "T1"),
        ("T1 SE tra +C", "T1c"),
        ("t1 post gd", "T1c"),
        ("T2 TSE", "T2"),
        ("T2 FLAIR tra", "FLAIR"),
        ("t2*_gre", None),
        ("DWI b1000", None),
        ("", None),
    ],
)
def test_the_sequence_is_that_of_the_description(tmp_path, save_dicom, description, sequence):
    files = [save_dicom(tmp_path / f"{number}.dcm", PLANE, SeriesDescription=description) for number in (1, 2)]
    (found,), *_ = find_series(files)
    assert (found.sequence, found.files) == (sequence, files)


def test_a_folder_says_more_than_a_description(tmp_path, save_dicom):
    files = [save_dicom(tmp_path / "flair" / f"{number}.dcm", PLANE, SeriesDescription="t1") for number in (1, 2)]
    assert find_series(files)[0][0].sequence == "FLAIR"
