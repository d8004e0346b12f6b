# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Reading: every format with its geometry and axes, colors, and one sentence per kind of broken file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.reading import affine_of, check_alike, image_format, read_image, read_labels

RNG = np.random.default_rng(0)
GRAY = RNG.integers(1, 255, (5, 7)).astype(np.uint8)
DEEP = RNG.integers(300, 60000, (5, 7)).astype(np.uint16)
COLOR = RNG.integers(0, 255, (5, 7, 3)).astype(np.uint8)
VOLUME = RNG.normal(size=(6, 5, 4)).astype(np.float32)
AFFINE = np.array([[0.9, 0, 0, 4], [0, 2, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1.0]])


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_gray_pictures_are_indexed_column_first(tmp_path, suffix):
    Image.fromarray(GRAY).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), GRAY.T[None])


def test_sixteen_bits_and_floats_are_kept(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", DEEP)
    tifffile.imwrite(tmp_path / "c.tif", VOLUME[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").numpy()[0], DEEP.T)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").numpy()[0], DEEP.T)
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif").numpy()[0], VOLUME[..., 0].T)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colors_come_as_rgb(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    picture = Image.fromarray(COLOR).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(picture.convert("RGB")).transpose(2, 1, 0)
    np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}").numpy(), expected, atol=2)


@pytest.mark.parametrize(("mode", "expected"), [("LA", GRAY), ("1", (GRAY > 127) * 255)])
def test_gray_with_transparency_and_bitmaps_come_as_gray(tmp_path, mode, expected):
    source = Image.fromarray(GRAY).convert("LA") if mode == "LA" else Image.fromarray(GRAY > 127)
    source.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").numpy(), expected.T[None])


def test_jpeg(tmp_path):
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
    Image.fromarray(smooth).save(tmp_path / "a.JPG", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.JPG").numpy()[0], smooth.T, atol=4)


@pytest.mark.parametrize(
    ("values", "shape"),
    [(VOLUME, (1, 6, 5, 4)), (VOLUME[..., 0], (1, 6, 5)), (np.stack([VOLUME, VOLUME + 1], -1), (2, 6, 5, 4))],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_in_two_three_and_four_dimensions(tmp_path, values, shape, suffix):
    image = read_image(save_nifti(tmp_path / f"a.{suffix}", values))
    assert image.shape == shape
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None])
    np.testing.assert_allclose(affine_of(image), AFFINE)


@pytest.mark.parametrize("suffix", ["mha", "mhd"])
def test_metaimage_lies_where_the_nifti_lies(tmp_path, suffix):
    picture = SimpleITK.GetImageFromArray(VOLUME.transpose(2, 1, 0))
    picture.SetSpacing([0.9, 2, 3])
    picture.SetOrigin([-4, -5, 6])  # ITK's millimeters are LPS, nibabel's RAS
    picture.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    SimpleITK.WriteImage(picture, str(tmp_path / f"a.{suffix}"))
    image, other = read_image(tmp_path / f"a.{suffix}"), read_image(save_nifti(tmp_path / "a.nii.gz", VOLUME))
    np.testing.assert_array_equal(image.numpy(), VOLUME[None])
    check_alike({"a": image, "b": other})


def test_metaimage_in_two_dimensions(tmp_path):
    picture = SimpleITK.GetImageFromArray(VOLUME[..., 0].T)
    picture.SetSpacing([1.5, 2])
    SimpleITK.WriteImage(picture, str(tmp_path / "a.mha"))
    image = read_image(tmp_path / "a.mha")
    np.testing.assert_array_equal(image.numpy(), VOLUME[None, ..., 0])
    np.testing.assert_allclose(np.abs(affine_of(image).diagonal()), [1.5, 2, 1, 1])


def test_a_dicom_file_is_two_dimensional_and_a_series_three(tmp_path, write_dicom):
    volume = RNG.integers(0, 3000, (4, 5, 7)).astype(np.uint16)
    files = write_dicom(tmp_path / "series", volume)
    image = read_image(files[2])
    np.testing.assert_array_equal(image.numpy(), volume[2].T[None])
    series = read_image(tmp_path / "series")
    np.testing.assert_array_equal(series.numpy(), volume.transpose(2, 1, 0)[None])
    np.testing.assert_allclose(affine_of(series), [[-0.7, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_dicom_without_suffix(tmp_path, write_dicom):
    for path in write_dicom(tmp_path / "s", RNG.integers(0, 99, (2, 4, 4)).astype(np.uint16)):
        path.rename(path.with_suffix(""))
    assert image_format(tmp_path / "s" / "000") == "dicom"
    assert image_format(tmp_path / "s") == "dicom"
    assert read_image(tmp_path / "s").shape == (1, 4, 4, 2)


def test_two_series_in_a_folder_are_refused(tmp_path, write_dicom):
    volume = RNG.integers(0, 99, (2, 4, 4)).astype(np.uint16)
    write_dicom(tmp_path / "s", volume, "1.2.3")
    for path in write_dicom(tmp_path / "other", volume, "1.2.4"):
        path.rename(tmp_path / "s" / f"other{path.name}")
    with pytest.raises(DataError, match=r"s holds 2 DICOM series: keep one series in a folder"):
        read_image(tmp_path / "s")


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.6, 0.97])
def test_a_truncated_nifti_is_never_read_in_part(tmp_path, suffix, keep):
    values = RNG.normal(size=(24, 24, 12)).astype(np.float32)
    path = cut(save_nifti(tmp_path / f"a.{suffix}", values), keep)
    with pytest.raises(DataError, match=r"Cannot read .*a\.nii.* as nifti \(.*damaged or of another kind, so copy"):
        read_image(path)


@pytest.mark.parametrize(
    ("written", "name", "message"),
    [("a.nii", "b.nii.gz", "is not compressed.* a name without .gz"), ("a.nii.gz", "b.nii", "is compressed.*add .gz")],
)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_name_that_is_wrong_about_the_compression_is_refused(tmp_path, written, name, message, kind):
    nibabel.save(kind(VOLUME, np.eye(4)), tmp_path / written)
    (tmp_path / written).rename(tmp_path / name)
    with pytest.raises(DataError, match=rf".*{name} {message}"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_an_unreadable_dicom(tmp_path, write_dicom, keep):
    (path,) = write_dicom(tmp_path, RNG.integers(0, 99, (1, 32, 32)).astype(np.uint16))
    with pytest.raises(DataError, match=r"Cannot read .*000.dcm as dicom \(.*copy or export it again"):
        read_image(cut(path, keep))


def test_a_series_with_a_broken_slice(tmp_path, write_dicom):
    files = write_dicom(tmp_path / "s", RNG.integers(0, 99, (3, 32, 32)).astype(np.uint16))
    cut(files[1], 0.9)
    with pytest.raises(DataError, match=r"Cannot read .*001.dcm as dicom \(.*bytes.*\): the file is damaged"):
        read_image(tmp_path / "s")


def test_a_truncated_picture_and_metaimage(tmp_path):
    Image.fromarray(RNG.integers(0, 255, (64, 64)).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"Cannot read .*a.png as picture \(.*truncated"):
        read_image(cut(tmp_path / "a.png", 0.7))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match=r"Cannot read .*a.mha as metaimage \(File cannot be read"):
        read_image(cut(tmp_path / "a.mha", 0.7))


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nii", "a.mha", "a.dcm", "a.tif"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("this is a note")
    with pytest.raises(DataError, match=rf"Cannot read .*{name} as .*of another kind"):
        read_image(tmp_path / name)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match=r"The image .*no.png does not exist: check the path"):
        read_image(tmp_path / "no.png")
    (tmp_path / "a.txt").write_text("note")
    with pytest.raises(DataError, match=r"a.txt is of a kind that is not read: give PNG"):
        read_image(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is of a kind that is not read"):
        read_image(tmp_path / "empty")


def test_a_tiff_with_pages_is_not_read_in_part(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([DEEP, DEEP]))
    with pytest.raises(DataError, match=r"a.tif holds 2 pages: save each page as a picture, or the stack as NIfTI"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path, value):
    values = VOLUME.copy()
    values[3, 2, 1] = value
    with pytest.raises(DataError, match=r"a.nii.gz holds NaN or infinite values: export it again or leave the case"):
        read_image(save_nifti(tmp_path / "a.nii.gz", values))


def test_empty_and_constant_volumes(tmp_path):
    with pytest.raises(DataError, match=r"a.nii is empty, it has no pixels"):
        read_image(save_nifti(tmp_path / "a.nii", VOLUME[:0]))
    with pytest.raises(DataError, match=r"a.nii is constant \(every value is 3\)"):
        read_image(save_nifti(tmp_path / "a.nii", np.full_like(VOLUME, 3)))
    with pytest.raises(DataError, match=r"a.nii is constant \(every value is 0\)"):  # one of two sequences is missing
        read_image(save_nifti(tmp_path / "a.nii", np.stack([VOLUME, np.zeros_like(VOLUME)], -1)))


def test_a_color_picture_may_lack_a_color(tmp_path):
    Image.fromarray(COLOR * np.array([1, 0, 1], dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[1].max() == 0
    Image.fromarray(np.full((4, 4, 3), 9, dtype=np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png is constant \(every value is 9\)"):
        read_image(tmp_path / "b.png")


def test_masks_keep_their_values(tmp_path):
    labels = RNG.integers(0, 4, (5, 7)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    palette = Image.new("P", (7, 5))
    palette.putdata(labels.flatten().tolist())
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "b.png")
    save_nifti(tmp_path / "c.nii.gz", labels.T[..., None])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").numpy(), labels.T[None])
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png").numpy(), labels.T[None])
    np.testing.assert_array_equal(read_labels(tmp_path / "c.nii.gz").numpy(), labels.T[None, ..., None])


def test_an_empty_mask_is_fine(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").sum() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VOLUME, r"a.nii holds values other than whole numbers from 0 on"),
        (np.full((3, 3, 3), -1, np.int16), r"a.nii holds values other than whole numbers from 0 on"),
        (np.full((3, 3, 3), np.nan, np.float32), r"a.nii holds values other than whole numbers from 0 on"),
        (np.zeros((3, 3, 3, 2), np.int16), r"a.nii has 2 channels: give one channel"),
    ],
)
def test_bad_masks(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        read_labels(save_nifti(tmp_path / "a.nii", values))


def test_unreadable_masks(tmp_path):
    with pytest.raises(DataError, match=r"The mask .*a.png does not exist or is of a kind that is not read"):
        read_labels(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("note")
    with pytest.raises(DataError, match=r"Cannot read the mask .*a.png \(cannot identify.*copy or export it again"):
        read_labels(tmp_path / "a.png")


def tensor(shape=(1, 4, 4, 4), **changes: float) -> MetaTensor:
    affine = torch.eye(4, dtype=torch.float64)
    affine[0, 3] += changes.get("shift", 0.0)
    return MetaTensor(torch.zeros(shape), affine=affine)


def test_alike_names_both_files_and_the_remedy():
    check_alike({"t1": tensor(), "t2": tensor(shift=9e-4)})
    check_alike({"t1": tensor((1, 4, 4, 4)), "t2": tensor((2, 4, 4, 4))})
    with pytest.raises(DataError, match="t1 is of size 4 x 4 x 4 but flair of 4 x 4 x 5: register and resample"):
        check_alike({"t1": tensor(), "t2": tensor(), "flair": tensor((1, 4, 4, 5))})
    with pytest.raises(DataError, match=r"affines of t1 and t2 differ by up to 0.0011 mm: register and resample"):
        check_alike({"t1": tensor(), "t2": tensor(shift=-1.1e-3)})


def test_a_flipped_volume_is_not_alike(tmp_path):
    flipped = save_nifti(tmp_path / "b.nii", VOLUME[::-1], AFFINE * np.array([-1, 1, 1, 1]))
    with pytest.raises(DataError, match=r"The affines of a and b differ by up to 1.8 mm"):
        check_alike({"a": read_image(save_nifti(tmp_path / "a.nii", VOLUME)), "b": read_image(flipped)})
