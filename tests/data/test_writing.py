# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Writing: files read back equal, have the smallest exact type, and are whole or absent."""

from __future__ import annotations

import errno
import gzip
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from monai_wsss._checks import DataError
from monai_wsss.data.reading import affine_of, read_image
from monai_wsss.data.writing import (
    copy_file,
    fits_picture,
    is_bare_nifti,
    scale_to_16_bit,
    write_nifti,
    write_picture,
)


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


def test_volumes_are_scaled_between_the_0_5th_and_the_99_5th_percentile_of_their_foreground():
    values = np.random.default_rng(0).permutation(np.arange(1, 1002)).reshape(1, 11, 13, 7)
    scaled, foreground = scale_to_16_bit(np.pad(values, ((0, 0), (1, 1), (1, 1), (1, 1))))
    assert foreground.sum() == 1001
    assert scaled.dtype == np.uint16
    expected = np.rint(np.clip((values - 6) / (996 - 6), 0, 1) * 65535)
    np.testing.assert_array_equal(scaled[:, 1:-1, 1:-1, 1:-1], expected)
    assert not scaled[0, ~foreground].any()


@pytest.mark.parametrize("kind", ["picture", "nifti", "copy"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, kind):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "source").write_text("content")
    target = tmp_path / "out" / ("a.nii.gz" if kind == "nifti" else "a.png")
    if kind == "copy":
        monkeypatch.setattr("pathlib.Path.write_bytes", fail)
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


@pytest.mark.parametrize("field", ["descrip", "aux_file", "db_name", "intent_name", "extension", "gzip"])
def test_text_in_a_nifti_header_is_noticed(tmp_path, field):
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4))
    file = tmp_path / "a.nii.gz"
    nibabel.save(image, file)
    assert is_bare_nifti(file)
    if field == "extension":
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe"))
    elif field != "gzip":
        image.header[field] = b"Doe"
    nibabel.save(image, file)
    if field == "gzip":
        content = gzip.decompress(file.read_bytes())
        with open(file, "wb") as stream, gzip.GzipFile("Doe.nii", "wb", fileobj=stream) as packed:
            packed.write(content)
        assert b"Doe" in file.read_bytes()
    assert not is_bare_nifti(file)


def test_a_nifti_of_version_two_is_bare_as_well(tmp_path):
    nibabel.save(nibabel.Nifti2Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    assert is_bare_nifti(tmp_path / "a.nii")


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x010E] = "Doe^Jane"
    return tags.tobytes()


def copied(folder: Path, name: str) -> bytes:
    """Check that a copy has the pixels of its source; give its bytes."""
    copy_file(folder / name, folder / "out" / name)
    with Image.open(folder / name) as source, Image.open(folder / "out" / name) as target:
        assert (target.mode, target.size) == (source.mode, source.size)
        np.testing.assert_array_equal(np.asarray(target), np.asarray(source))
        assert not target.getexif()
    return (folder / "out" / name).read_bytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_pngs_lose_their_texts(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 99 if mode == "I;16" else values)
    picture = picture.convert("L") if mode == "L" else picture
    texts = PngImagePlugin.PngInfo()
    texts.add_text("PatientName", "Doe^Jane")
    texts.add_text("Comment", "Doe^Jane", zip=True)
    texts.add_itxt("Name", "Doe^Jane")
    picture.save(tmp_path / "a.png", pnginfo=texts, exif=exif())
    with open(tmp_path / "a.png", "ab") as stream:
        stream.write(b"Doe^Jane")
    content = copied(tmp_path, "a.png")
    assert not any(word in content for word in (b"Doe", b"tEXt", b"zTXt", b"iTXt", b"eXIf"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_lose_exif_and_comments_but_no_pixel(tmp_path, mode, progressive):
    values = np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)
    picture = Image.fromarray(values).convert(mode)
    picture.save(tmp_path / "a.jpg", exif=exif(), comment="Doe^Jane", progressive=progressive, restart_marker_rows=1)
    with open(tmp_path / "a.jpg", "ab") as stream:
        stream.write(b"Doe^Jane")
    assert b"Doe" not in copied(tmp_path, "a.jpg")


def test_pictures_without_texts_are_copied_byte_for_byte(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.uint8))
    for name in ("a.png", "a.jpg"):
        stream = BytesIO()
        picture.save(stream, {"png": "PNG", "jpg": "JPEG"}[name[2:]])
        (tmp_path / name).write_bytes(stream.getvalue())
        assert copied(tmp_path, name) == stream.getvalue()
