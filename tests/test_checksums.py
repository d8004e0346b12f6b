# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Image files whose checksum is wrong are refused, whatever their reader says; files without one are left to it."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._checksums import check_checksums
from monai_wsss.data.reading import read_image, read_labels

VALUES = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.uint8)


def write(path: Path) -> Path:
    """Write a file of any kind, with values that compress badly."""
    if path.suffix == ".png":
        Image.fromarray(VALUES[..., 0]).save(path)
    elif path.suffix in (".mha", ".mhd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VALUES), str(path), True)
    else:
        nibabel.save(nibabel.Nifti1Image(VALUES, np.eye(4)), path)
    return path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("read", [read_image, read_labels])
@pytest.mark.parametrize(
    ("name", "file", "place"),
    [
        ("a.png", "a.png", 60),
        ("a.png", "a.png", -14),
        ("a.nii.gz", "a.nii.gz", 300),
        ("a.nii.gz", "a.nii.gz", -6),
        ("a.nii.gz", "a.nii.gz", -2),
        ("a.mha", "a.mha", -100),
        ("a.mha", "a.mha", -2),
        ("a.mhd", "a.zraw", -2),
    ],
)
def test_a_flipped_bit_is_noticed(tmp_path, read, name, file, place):
    path = write(tmp_path / name)
    read(path)
    flip(tmp_path / file, place)
    with pytest.raises(DataError, match=rf"{name}.*(checksum is wrong|incorrect|invalid)"):
        read(path)


def test_what_stands_outside_of_checksums_passes(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))  # as tapes and some archives pad
    check_checksums(path)
    path.write_bytes(content + gzip.compress(b"more"))  # a second member
    check_checksums(path)
    flip(path, -2)
    with pytest.raises(ValueError, match="checksum is wrong"):
        check_checksums(path)
    text = tmp_path / "t.png"
    information = Image.new("L", (4, 4), 7)
    information.info["x"] = 1
    information.save(text, dpi=(72, 72))
    flip(text, text.read_bytes().index(b"pHYs") + 5)
    check_checksums(text)
    check_checksums(tmp_path)
    (tmp_path / "e.png").write_bytes(b"")
    check_checksums(tmp_path / "e.png")
