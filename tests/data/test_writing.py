# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Writing: what is written reads back equal, in the smallest type that is exact, or is not there at all."""

from __future__ import annotations

import errno

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.reading import affine_of, read_image
from monai_wsss.data.writing import copy_file, fits_picture, write_nifti, write_picture


@pytest.mark.parametrize(("channels", "top", "mode"), [(1, 255, "L"), (1, 60000, "I;16"), (3, 255, "RGB")])
def test_pictures_read_back_equal(tmp_path, channels, top, mode):
    values = np.random.default_rng(0).integers(0, top, (channels, 7, 5)).astype(np.float32)
    values[0, 0, 0] = top
    assert fits_picture(values)
    write_picture(tmp_path / "new" / "a.png", values)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert (picture.mode, picture.size) == (mode, (7, 5))
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png").numpy(), values)


@pytest.mark.parametrize(
    "values",
    [np.full((1, 2, 2), 0.5), np.full((1, 2, 2), -1.0), np.full((1, 2, 2), 65536.0), np.full((3, 2, 2), 256.0)],
)
def test_what_a_picture_cannot_hold(values):
    assert not fits_picture(values)
    assert not fits_picture(np.zeros((2, 4, 4)))
    assert not fits_picture(np.zeros((1, 4, 4, 4)))


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, np.uint8), (-1, 255, np.int16), (0, 32768, np.uint16), (-1, 40000, np.float32), (0, 0.5, np.float32)],
)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_nifti_reads_back_equal(tmp_path, low, high, dtype, shape):
    values = np.full(shape, float(low))
    values[0, 1] = high
    affine = np.array([[0, -2, 0, 4], [1, 0, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "new" / "a.nii.gz", values, affine)
    assert nibabel.load(tmp_path / "new" / "a.nii.gz").get_data_dtype() == dtype
    image = read_image(tmp_path / "new" / "a.nii.gz")
    np.testing.assert_array_equal(image.numpy()[0], values)
    np.testing.assert_allclose(affine_of(image), affine)


@pytest.mark.parametrize("kind", ["picture", "nifti", "copy"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, kind):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "source").write_text("content")
    target = tmp_path / "out" / ("a.nii.gz" if kind == "nifti" else "a.png")
    if kind == "copy":
        monkeypatch.setattr("shutil.copyfile", fail)
    elif kind == "nifti":
        monkeypatch.setattr("nibabel.save", fail)
    else:
        monkeypatch.setattr("PIL.Image.Image.save", fail)
    write = {
        "picture": lambda: write_picture(target, np.zeros((1, 2, 2))),
        "nifti": lambda: write_nifti(target, np.zeros((2, 2)), np.eye(4)),
        "copy": lambda: copy_file(tmp_path / "source", target),
    }
    with pytest.raises(DataError, match=r"Cannot write .*the disk is full: free some space"):
        write[kind]()
    assert list(target.parent.iterdir()) == []
