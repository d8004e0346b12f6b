# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Normalization by subject, the in-plane grid, and masks on disk in the geometry of their source."""

from __future__ import annotations

import errno
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the usual name)
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.cams import zscore_images
from monai_wsss.transforms import NormalizeSubjectd, ResizeInPlaned, SaveImageMaskd, resize_in_plane, write_mask

OBLIQUE = np.array([[-0.98, 0.12, 0.2, 90.0], [-0.1, -0.95, 0.3, 80.0], [0.25, 0.3, 2.4, -40.0], [0.0, 0.0, 0.0, 1.0]])


def test_subject_statistics_are_used_where_the_item_has_them():
    item = {
        "image": torch.tensor([[[1.0, 3.0]], [[10.0, 0.0]]]),
        "intensity_mean": np.array([1.0, 5.0], dtype=np.float32),
        "intensity_std": np.array([2.0, 5.0], dtype=np.float32),
    }
    normalized = NormalizeSubjectd("image")(item)["image"]
    torch.testing.assert_close(normalized, torch.tensor([[[0.0, 1.0]], [[1.0, -1.0]]]))
    assert item["image"].max() == 10.0


def test_without_statistics_the_foreground_of_the_image_itself_is_measured():
    image = torch.rand(2, 6, 5, 4, dtype=torch.float64) + torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1)
    normalized = NormalizeSubjectd("image", lower=-100.0, upper=100.0)({"image": image})["image"]
    for channel in range(2):
        foreground = image[channel][image[channel] > image[channel].mean()]
        expected = (image[channel] - foreground.mean()) / foreground.std(correction=0)
        torch.testing.assert_close(normalized[channel].double(), expected, rtol=1e-4, atol=1e-4)


@given(arrays(np.float32, (1, 5, 4), elements=st.floats(-1e4, 1e4, width=32)), st.floats(0.1, 50), st.floats(-100, 100))
@settings(max_examples=40, deadline=None)
def test_gain_and_offset_of_a_scanner_change_nothing(image, gain, offset):
    normalize = NormalizeSubjectd("image")
    first = normalize({"image": torch.from_numpy(image).double()})["image"]
    second = normalize({"image": torch.from_numpy(image).double() * gain + offset})["image"]
    assert first.isfinite().all()
    foreground = image[image > image.mean()]
    if foreground.size and foreground.std() > 0.05 * np.ptp(image) > 1:
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0])
def test_a_constant_image_becomes_zero(value):
    assert not NormalizeSubjectd("image")({"image": torch.full((1, 4, 4), value)})["image"].any()


def test_outliers_are_clipped():
    image = torch.zeros(1, 1, 101)
    image[..., -1], image[..., :50] = 1e6, 1.0
    image[..., 60:70] = -1e6
    normalized = NormalizeSubjectd("image", lower=-2.0, upper=4.0)({"image": image})["image"]
    assert normalized.min() >= -2.0
    assert normalized.max() <= 4.0


def test_statistics_of_another_number_of_channels_are_refused():
    item = {"image": torch.zeros(2, 4, 4), "intensity_mean": np.zeros(3), "intensity_std": np.ones(3)}
    with pytest.raises(ValueError, match="`intensity_mean` of 2 channels as in `image`, got 3"):
        NormalizeSubjectd("image")(item)


def test_the_grid_keeps_the_mean_and_the_place():
    image = torch.zeros(1, 1, 240, 120)
    image[..., 120:, :] = 1.0
    small = resize_in_plane(image, (64, 64))
    assert small.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert small[0, 0, :30].max() == 0
    assert small[0, 0, 34:].min() > 0.999
    assert resize_in_plane(small, (64, 64)) is small
    assert ResizeInPlaned("image", (8, 4))({"image": image[0]})["image"].shape == (1, 8, 4)
    with pytest.raises(ValueError, match="`image` to be a 2D image"):
        ResizeInPlaned("image", (8, 8))({"image": torch.zeros(1, 8, 8, 8)})


def save(tmp_path, image, identifier="case 1/é"):
    mask = torch.zeros(1, *image.shape[1:])
    mask[0, 2:5, 3] = 2
    return SaveImageMaskd("pred", tmp_path)({"pred": mask, "image": image, "id": identifier})["pred_path"], mask


def test_a_volume_mask_has_the_source_geometry_for_nibabel_and_simpleitk(tmp_path):
    rotation, _ = np.linalg.qr(OBLIQUE[:3, :3])  # ITK accepts only orthonormal directions
    affine = OBLIQUE.copy()
    affine[:3, :3] = rotation @ np.diag([0.9, 1.1, 2.5])
    source = tmp_path / "source.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((7, 6, 5), dtype=np.float32), affine), source)
    path, mask = save(tmp_path, LoadImage(image_only=True, ensure_channel_first=True)(source))

    read = nibabel.load(path)
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    assert read.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(read.dataobj), mask[0].numpy())

    wanted, found = sitk.ReadImage(str(source)), sitk.ReadImage(path)
    np.testing.assert_allclose(found.GetOrigin(), wanted.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetDirection(), wanted.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(found.GetSpacing(), wanted.GetSpacing(), atol=1e-5)
    assert found.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), mask[0].numpy().transpose(2, 1, 0))


def test_a_png_mask_lies_on_its_image_pixel_by_pixel(tmp_path):
    pixels = np.zeros((6, 9), dtype=np.uint8)
    pixels[3, 2:5] = 200
    Image.fromarray(pixels).save(tmp_path / "source.png")
    image = LoadImaged("image", ensure_channel_first=True)({"image": tmp_path / "source.png"})["image"]
    path, _ = save(tmp_path, image)
    assert path.endswith("masks/case%201%2Fé.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)) > 0, pixels > 0)
    assert np.asarray(Image.open(path)).max() == 2


def test_a_mask_of_another_size_is_refused(tmp_path):
    image = MetaTensor(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"source image's size \(4, 4\), got \(5, 4\)"):
        SaveImageMaskd("pred", tmp_path)({"pred": torch.zeros(1, 5, 4), "image": image, "id": "a"})
    with pytest.raises(ValueError, match="at most 255 classes"):
        write_mask(tmp_path / "a.png", torch.full((1, 4, 4), 256.0))


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_mask_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, code, words):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=words):
        write_mask(tmp_path / "a.png", torch.zeros(1, 4, 4))
    assert list(tmp_path.iterdir()) == []


# --- colors of masks


def test_voc_colors_are_those_of_voc_and_indices_are_the_labels(tmp_path):
    """The colors that VOC's development kit names for its classes, and for contours."""
    mask = torch.tensor([[[0, 1, 2], [20, 15, 255]]])  # x, then y
    write_mask(tmp_path / "a.png", mask, palette="voc")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), mask[0].T.numpy())
        colors = np.asarray(picture.convert("RGB"))
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, color in expected.items():
        np.testing.assert_array_equal(colors[np.asarray(mask[0].T) == label], [color])


def test_palettes_leave_volumes_alone_and_are_checked(tmp_path):
    volume = torch.ones(1, 2, 3, 4)
    write_mask(tmp_path / "a.nii.gz", volume, np.eye(4), palette="voc")
    assert (np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj) == 1).all()
    with pytest.raises(ValueError, match="Expected `palette` to be one of none, voc, classes, got 'coco'"):
        SaveImageMaskd("pred", tmp_path, palette="coco")


@pytest.mark.parametrize("clip", [False, "false"])
def test_without_clipping_a_later_z_score_is_that_of_the_raw_intensities(clip):
    """A skull-stripped study: the background and dark fluid are two values before the clip, and one after it."""
    image = torch.full((1, 20, 20), 0.6) + 0.02 * torch.rand((1, 20, 20), generator=torch.Generator().manual_seed(0))
    image[:, :, :8] = 0.0
    image[:, 8:11, 8:11] = 0.1
    raw = zscore_images(image[None])[0]
    kept = zscore_images(NormalizeSubjectd("image", clip=clip)({"image": image})["image"][None])[0]
    torch.testing.assert_close(kept, raw, rtol=0, atol=1e-4)
    clipped = zscore_images(NormalizeSubjectd("image")({"image": image})["image"][None])[0]
    assert clipped[0, 9, 9] == clipped[0, 0, 0]
    assert kept[0, 9, 9] > kept[0, 0, 0]
