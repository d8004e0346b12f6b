# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Maps beside the masks: the geometry of their source, values that come back, and names."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss.transforms import LoadImageOrderedd, SaveImageMapd, SaveImageMaskd

RNG = np.random.default_rng(0)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3.0, 0, -5], [0, 0, 4.0, 1], [0, 0, 0, 1]])


def volume(folder: Path) -> dict:
    nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(6, 5, 4)).astype(np.float32), AFFINE), folder / "a.nii.gz")
    return LoadImageOrderedd("image")({"image": str(folder / "a.nii.gz"), "id": "case a"})


def picture(folder: Path, channels: int, order: str = "rows_columns") -> dict:
    pixels = RNG.integers(0, 255, (5, 7, 3) if channels == 3 else (5, 7)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return LoadImageOrderedd("image")({"image": str(folder / "a.png"), "id": "a", "order": order})


def test_a_volume_keeps_its_values_and_lies_where_its_mask_lies(tmp_path):
    item = volume(tmp_path)
    item["heat"], item["pred"] = torch.rand(1, 6, 5, 4) * 3, torch.ones(1, 6, 5, 4, dtype=torch.uint8)
    saved = SaveImageMaskd("pred", tmp_path)(SaveImageMapd("heat", tmp_path, suffix="_raw")(item))
    path = Path(saved["heat_path"])
    assert path.parent == tmp_path / "heat"
    assert path.name == Path(saved["pred_path"]).name.replace(".nii.gz", "_raw.nii.gz")
    heat, mask = nibabel.load(path), nibabel.load(saved["pred_path"])
    np.testing.assert_array_equal(heat.affine, mask.affine)
    np.testing.assert_array_equal(heat.affine, AFFINE)
    assert heat.get_data_dtype() == np.float32
    np.testing.assert_array_equal(heat.get_fdata(dtype=np.float32), item["heat"][0].numpy())


@pytest.mark.parametrize("order", ["rows_columns", "xy"])
def test_a_gray_picture_has_16_bits_and_stands_upright(tmp_path, order):
    item = picture(tmp_path, 1, order)
    item["converted"] = item["image"].as_tensor() / 127.5 - 1
    path = SaveImageMapd("converted", tmp_path, (-1, 1))(item)["converted_path"]
    written = Image.open(path)
    assert written.size == (7, 5)
    np.testing.assert_allclose(np.asarray(written) / 65535 * 255, np.asarray(Image.open(tmp_path / "a.png")), atol=0.01)


def test_colors_stay_colors_and_other_channels_get_files(tmp_path):
    item = picture(tmp_path, 3)
    item["converted"] = item["image"].as_tensor() / 255
    np.testing.assert_array_equal(
        np.asarray(Image.open(SaveImageMapd("converted", tmp_path)(item)["converted_path"])),
        np.asarray(Image.open(tmp_path / "a.png")),
    )
    item["heat"] = torch.stack([torch.zeros(5, 7), torch.ones(5, 7) * 5])
    paths = SaveImageMapd("heat", tmp_path, (0, 2))(item)["heat_path"]
    assert [Path(path).name for path in paths] == ["a_1.png", "a_2.png"]
    assert [int(np.asarray(Image.open(path)).max()) for path in paths] == [0, 65535], "cut off at the range"


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a lower and a higher value"):
        SaveImageMapd("heat", tmp_path, (1, 1))
    item = {"heat": torch.zeros(1, 3, 3), "image": MetaTensor(torch.zeros(1, 4, 4)), "id": "a"}
    with pytest.raises(ValueError, match="Expected `heat` of its source image's size"):
        SaveImageMapd("heat", tmp_path)(item)
