# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One case: copied and converted files, and masks as classes; whole folders are in test_folder.py."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.case_files import (
    UNNAMED,
    image_name,
    labels_to_classes,
    mask_shows,
    read_case,
    write_case,
)
from monai_wsss.data.label_table import WHOLE, LabeledRow
from monai_wsss.data.reading import is_color_picture

RNG = np.random.default_rng(0)
ROW = LabeledRow("row 2", "a", "p", [1], None, {})


def save(path: Path, mode: str) -> Path:
    Image.fromarray(RNG.integers(0, 255, (6, 8, 3)).astype(np.uint8)).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "copied"),
    [
        ("a.png", "L", True),
        ("a.jpg", "RGB", True),
        ("a.png", "RGBA", False),
        ("a.tif", "L", False),
        ("a.png", "P", False),
    ],
)
def test_what_is_copied(tmp_path, name, mode, copied):
    path = save(tmp_path / name, mode)
    case = read_case({UNNAMED: path}, channel_names=None, color=False)
    item, agrees = write_case(tmp_path / "out", ROW, case, None, ["tumor"])
    assert agrees
    written = tmp_path / "out" / item["image"]
    assert (written.read_bytes() == path.read_bytes()) == copied
    assert item["image"] == "images/p/a" + (path.suffix if copied else ".png")


def test_color_is_told_by_the_header(tmp_path):
    assert is_color_picture(save(tmp_path / "a.png", "RGB"))
    assert is_color_picture(save(tmp_path / "b.png", "P"))
    assert not is_color_picture(save(tmp_path / "c.png", "LA"))
    (tmp_path / "d.png").write_text("note")
    assert not is_color_picture(tmp_path / "d.png")
    assert not is_color_picture(tmp_path / "e.nii.gz")


def test_a_mask_says_whether_it_shows_the_label(tmp_path):
    case = read_case({"T1": save(tmp_path / "a.png", "L")}, channel_names=None, color=False)
    for value, expected in ((0, False), (200, True)):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(tmp_path / "mask.png")
        item, agrees = write_case(tmp_path / "out", ROW, case, tmp_path / "mask.png", ["tumor"])
        assert agrees is expected
        assert item["mask"] == "masks/p/a.png"


def test_classes_of_a_mask():
    np.testing.assert_array_equal(labels_to_classes(np.array([0, 1, 128, 255]), [WHOLE], "m"), [0, 1, 1, 1])
    np.testing.assert_array_equal(labels_to_classes(np.array([0, 255, 255]), ["lv"], "m"), [0, 1, 1])
    np.testing.assert_array_equal(labels_to_classes(np.array([0, 1, 2]), ["lv", "rv"], "m"), [0, 1, 2])
    assert labels_to_classes(np.zeros((0, 4), int), ["lv", "rv"], "m").dtype == np.uint8
    assert labels_to_classes(np.zeros((0, 4), int), ["lv"], "m").dtype == np.uint8
    with pytest.raises(DataError, match='m holds the values 1, 3, but "lv" is the only class: name the label columns'):
        labels_to_classes(np.array([0, 1, 3]), ["lv"], "m")
    with pytest.raises(
        DataError, match="m holds the value 3, but there are 2 classes: use 0 for background and 1 to 2"
    ):
        labels_to_classes(np.array([3]), ["lv", "rv"], "m")


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [([0, 0], [0], True), ([0, 1], [0], False), ([0, 0], [1], False), ([1, 2], [1, 1], True), ([2, 2], [1, 0], False)],
)
def test_masks_and_labels(classes, label, expected):
    assert mask_shows(np.array(classes), label) is expected


def test_names_of_channels_cannot_leave_the_folder():
    assert image_name(ROW, "../T1 c", 2) == "images/p/a_..%2FT1%20c"


def test_names_of_channels_never_become_one():
    names = ["a-1", "a1", "a 1", "a/1", "a%201", "a_1", "ä1", "channel 0", "channel0"]
    assert len({image_name(ROW, name, 2) for name in names}) == len(names)


def test_a_jpeg_mask_is_cut_at_half_of_its_maximum(tmp_path):
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[11:30, 21:50] = 255
    Image.fromarray(truth).save(tmp_path / "mask.jpg", quality=60)
    blurred = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert ((blurred > 0) != (truth > 0)).any()  # what cutting at 0 would give
    Image.fromarray(RNG.integers(0, 255, (64, 64)).astype(np.uint8)).save(tmp_path / "a.png")
    case = read_case({UNNAMED: tmp_path / "a.png"}, channel_names=None, color=False)
    item, agrees = write_case(tmp_path / "out", ROW, case, tmp_path / "mask.jpg", ["tumor"])
    assert agrees
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / item["mask"])), truth > 0)
    with pytest.raises(DataError, match=r"mask.jpg is a JPEG with more than two levels, .*: export the mask as PNG"):
        write_case(tmp_path / "out", ROW, case, tmp_path / "mask.jpg", ["tumor", "edema"])
    Image.fromarray(truth // 2 + np.eye(64, dtype=np.uint8) * 100).save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match="more than two levels"):
        write_case(tmp_path / "out", ROW, case, tmp_path / "mask.jpg", ["tumor"])


def test_an_empty_jpeg_mask_is_empty(tmp_path):
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(tmp_path / "mask.jpg")
    case = read_case({UNNAMED: save(tmp_path / "a.png", "L")}, channel_names=None, color=False)
    item, agrees = write_case(tmp_path / "out", ROW, case, tmp_path / "mask.jpg", ["tumor"])
    assert not agrees
    assert np.asarray(Image.open(tmp_path / "out" / item["mask"])).max() == 0


def test_a_nifti_with_text_in_its_header_is_written_anew(tmp_path):
    values = RNG.integers(0, 900, (4, 5, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nibabel.save(image, tmp_path / "a.nii")
    assert b"Doe^Jane" in (tmp_path / "a.nii").read_bytes()
    case = read_case({UNNAMED: tmp_path / "a.nii"}, channel_names=None, color=False)
    item, _ = write_case(tmp_path / "out", ROW, case, None, ["tumor"])
    written = nibabel.load(tmp_path / "out" / item["image"])
    assert not written.header.extensions
    np.testing.assert_array_equal(np.asarray(written.dataobj), values)
    np.testing.assert_array_equal(written.affine, image.affine)
