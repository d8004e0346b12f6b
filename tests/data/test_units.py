# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Units of length: those of NIfTI are honored and kept, unknown ones stay unknown, sheared grids are not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch

from monai_wsss._checks import DataError
from monai_wsss._pictures import is_sheared, voxel_volume
from monai_wsss.data import load_datalist
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.reading import affine_of, read_image, read_labels
from monai_wsss.engines import case_spacing
from monai_wsss.reports.provenance import assumed_units
from monai_wsss.transforms import LoadImageOrderedd, SaveImageMaskd

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(6, 5, 4)).astype(np.float32)
ROTATION = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
MILLIMETERS = np.eye(4)
MILLIMETERS[:3, :3] = ROTATION @ np.diag([0.9, 1.1, 2.5])
MILLIMETERS[:3, 3] = 7, -8, 9
PER_UNIT = {"unknown": 1, "mm": 1, "micron": 1000, "meter": 0.001}
CODES = {"unknown": 0, "meter": 1, "mm": 2, "micron": 3}


def save(path: Path, unit: str = "mm", values: np.ndarray = VALUES, **changes: Any) -> Path:
    """Write a NIfTI file whose place is ``MILLIMETERS``, in a unit; perhaps with another qform, or a text."""
    affine = np.diag([*[PER_UNIT[unit]] * 3, 1.0]) @ MILLIMETERS
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=changes.get("sform_code", 2))
    if "qform" in changes:
        image.set_qform(changes["qform"], code=1)
    image.header.set_xyzt_units(unit, changes.get("time", "sec"))
    image.header["descrip"] = changes.get("text", "").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def loaded(path: Path, **entries: Any) -> torch.Tensor:
    return LoadImageOrderedd("image")({"image": str(path), **entries})["image"]


def written_mask(path: Path, folder: Path) -> Path:
    """Load an image and save a mask beside it, as an inference does."""
    image = loaded(path)
    mask = torch.zeros(1, *image.shape[1:])
    mask[0, 2, 3, 1] = 1
    item = SaveImageMaskd("pred", folder)({"pred": mask, "image": image, "id": "a"})
    return Path(item["pred_path"])


def same_place(one: Path, other: Path) -> None:
    """Check that two files lie at one place for nibabel, with all codes and units, and for ITK."""
    headers = [nibabel.load(path).header for path in (one, other)]
    for name in ("qform_code", "sform_code"):
        assert headers[0][name] == headers[1][name]
    assert headers[0].get_xyzt_units()[0] == headers[1].get_xyzt_units()[0]
    for forms in zip(*((header.get_sform(), header.get_qform()) for header in headers), strict=True):
        np.testing.assert_allclose(*forms, rtol=1e-6)
    images = [SimpleITK.ReadImage(str(path)) for path in (one, other)]
    for index in ((0, 0, 0), tuple(side - 1 for side in images[0].GetSize())):
        points = [image.TransformIndexToPhysicalPoint(index) for image in images]
        np.testing.assert_allclose(*points, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unit", PER_UNIT)
def test_nifti_is_read_and_measured_in_millimeters_whatever_its_unit(tmp_path, unit):
    path = save(tmp_path / "a.nii.gz", unit)
    image = read_image(path)
    np.testing.assert_allclose(affine_of(image), MILLIMETERS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(case_spacing(loaded(path)), [0.9, 1.1, 2.5], rtol=1e-5)
    assert voxel_volume(loaded(path)) == pytest.approx(0.9 * 1.1 * 2.5, rel=1e-5)


@pytest.mark.parametrize("unit", PER_UNIT)
def test_a_written_mask_keeps_the_unit_of_its_source(tmp_path, unit):
    path = save(tmp_path / "a.nii.gz", unit)
    mask = written_mask(path, tmp_path)
    same_place(path, mask)
    assert int(nibabel.load(mask).header["xyzt_units"]) & 7 == CODES[unit]
    assert np.asarray(nibabel.load(mask).dataobj).sum() == 1


@pytest.mark.parametrize("sform_code", [0, 1, 2, 4])
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_a_written_mask_keeps_both_forms_of_its_source(tmp_path, sform_code, unit):
    qform = np.diag([-2.0, -2.0, 3.0, 1.0])
    qform[:3, 3] = 40, 5, -6
    path = save(tmp_path / "a.nii.gz", unit, qform=qform, sform_code=sform_code)
    same_place(path, written_mask(path, tmp_path))


def test_a_mask_of_an_image_that_was_moved_has_its_new_place_in_the_old_unit(tmp_path):
    image = loaded(save(tmp_path / "a.nii.gz", "micron", qform=np.eye(4)))
    moved = MILLIMETERS @ np.diag([2.0, 2.0, 2.0, 1.0])
    image.affine = torch.as_tensor(moved)
    item = SaveImageMaskd("pred", tmp_path)({"pred": torch.zeros(1, *image.shape[1:]), "image": image, "id": "a"})
    mask = nibabel.load(item["pred_path"])
    np.testing.assert_allclose(mask.affine, np.diag([1000.0, 1000, 1000, 1]) @ moved, rtol=1e-5)
    assert mask.header.get_xyzt_units()[0] == "micron"


def prepare(root: Path, *ids: str, **options: Any) -> Path:
    (root / "labels.csv").write_text("id,label,split\n" + "".join(f"{name},1,train\n" for name in ids))
    return prepare_folder(root / "images", root / "labels.csv", root / "out", **options)


def test_prepared_files_keep_unit_and_forms_also_where_text_is_taken_out(tmp_path):
    qform = np.diag([-2.0, -2.0, 3.0, 1.0])
    sources = [
        save(tmp_path / "images" / "a.nii.gz", "micron", qform=qform),
        save(tmp_path / "images" / "b.nii.gz", "micron", qform=qform, text="Doe^Jane"),
    ]
    mask = (VALUES > 0).astype(np.uint8)
    in_mm = np.diag([0.001, 0.001, 0.001, 1]) @ qform
    save(tmp_path / "masks" / "a.nii.gz", "mm", mask, qform=in_mm)  # the same place, said in another unit
    datalist = prepare(tmp_path, "a", "b", masks=tmp_path / "masks")
    first, second = load_datalist(datalist, "training", masks=True)
    for source, item in zip(sources, (first, second), strict=True):
        same_place(source, Path(item["image"]))
    same_place(sources[0], Path(first["mask"]))
    np.testing.assert_array_equal(read_labels(first["mask"])[0].numpy(), mask)
    assert b"Doe" not in nibabel.load(second["image"]).header.binaryblock


def test_sequences_of_one_case_in_two_units_become_one(tmp_path):
    save(tmp_path / "images" / "a_t1.nii.gz", "mm")
    save(tmp_path / "images" / "a_flair.nii.gz", "micron")
    (item,) = load_datalist(prepare(tmp_path, "a"), "training")
    image = LoadImageOrderedd("image")(item)["image"]
    assert image.shape == (2, 6, 5, 4)
    np.testing.assert_allclose(image.affine, MILLIMETERS, rtol=1e-4, atol=1e-4)


def test_a_mask_in_another_unit_that_lies_elsewhere_is_refused(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", "mm")
    values = (VALUES > 0).astype(np.uint8)
    image = nibabel.Nifti1Image(values, MILLIMETERS)  # the numbers of millimeters, called micrometers
    image.header.set_xyzt_units("micron")
    (tmp_path / "masks").mkdir()
    nibabel.save(image, tmp_path / "masks" / "a.nii.gz")
    with pytest.raises(DataError, match=r"The affines of the image of a.nii.gz and .*a.nii.gz differ by up to"):
        prepare(tmp_path, "a", masks=tmp_path / "masks")


def test_units_that_are_assumed_are_told_in_one_phrase(tmp_path):
    for name, unit in (("a", "unknown"), ("b", "mm"), ("c", "unknown")):
        save(tmp_path / "images" / f"{name}.nii.gz", unit)
    datalist = prepare(tmp_path, "a", "b", "c")
    phrase = "2 NIfTI images say no unit of length, first images/a/a.nii.gz: millimeters, by convention"
    assert assumed_units(datalist) == assumed_units(datalist, "training") == phrase
    assert assumed_units(datalist, "test") is None


def test_an_affine_with_no_place_is_refused(tmp_path):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(VALUES, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[280:328] = np.asarray(np.diag([1.0, 1, 0, 1])[:3], "<f4").tobytes()  # the sform
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.nii has an affine that is flat or not finite"):
        read_image(path)


# Sizes that a file does not say --------------------------------------------------------------------------------------


def test_a_metaimage_without_spacing_is_of_unknown_size(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VALUES.T), str(tmp_path / "a.mhd"))
    assert read_image(tmp_path / "a.mhd").meta["unit"] == "mm"
    lines = (tmp_path / "a.mhd").read_text(encoding="utf-8").splitlines()
    (tmp_path / "a.mhd").write_text("\n".join(line for line in lines if "Spacing" not in line))
    image = loaded(tmp_path / "a.mhd")
    np.testing.assert_array_equal(image[0].numpy(), VALUES)
    assert image.meta["unit"] == "px"
    assert case_spacing(image) is None
    assert voxel_volume(image) is None


def test_components_and_the_fourth_axis_of_a_metaimage_are_channels(tmp_path):
    several = np.stack([VALUES, 2 * VALUES])
    components = SimpleITK.GetImageFromArray(several.transpose(3, 2, 1, 0), isVector=True)
    SimpleITK.WriteImage(components, str(tmp_path / "a.mha"))
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(several.transpose(0, 3, 2, 1), isVector=False), str(tmp_path / "b.mha")
    )
    for name in "ab":
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.mha").numpy(), several)


def test_pictures_that_become_nifti_stay_of_unknown_size(tmp_path):
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", VALUES[..., 0].T)
    tifffile.imwrite(tmp_path / "images" / "b.tif", np.arange(30, dtype=np.uint16).reshape(5, 6))
    datalist = prepare(tmp_path, "a", "b")
    assert [item.get("unit") for item in json.loads(datalist.read_text(encoding="utf-8"))["training"]] == ["px", None]
    items = load_datalist(datalist, "training")
    assert [item["unit"] for item in items] == ["px", "mm"]
    assert [Path(item["image"]).suffix for item in items] == [".gz", ".png"]
    for item in items:
        assert case_spacing(LoadImageOrderedd("image")(item)["image"]) is None


def test_an_unknown_unit_in_a_datalist_is_refused(tmp_path):
    save(tmp_path / "images" / "a.nii.gz")
    datalist = prepare(tmp_path, "a")
    content = json.loads(datalist.read_text(encoding="utf-8"))
    content["training"][0]["unit"] = "inch"
    datalist.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"training\[0\] has unit 'inch': give \"mm\" or \"px\", or leave it out"):
        load_datalist(datalist, "training")


# Sheared grids -------------------------------------------------------------------------------------------------------


def test_a_tilted_series_is_measured_in_pixels_and_its_volume_in_milliliters(tmp_path, save_dicom):
    for number in range(4):
        place = {"ImagePositionPatient": [0, 1.5 * number, 3 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(tmp_path / "images" / "a" / f"{number}.dcm", (VALUES[..., 0] * 100).astype(np.int16), **place)
    for item in ({"image": str(tmp_path / "images" / "a")}, load_datalist(prepare(tmp_path, "a"), "training")[0]):
        image = LoadImageOrderedd("image")(item)["image"]
        np.testing.assert_allclose(image.affine[:3, 2], [0, -1.5, 3])
        assert is_sheared(image)
        assert case_spacing(image) is None
        assert voxel_volume(image) == pytest.approx(0.5 * 0.7 * 3)
    mask = saved_mask(image, tmp_path)
    np.testing.assert_allclose(nibabel.load(mask).affine, image.affine, atol=1e-5)


def saved_mask(image: Any, folder: Path) -> str:
    mask = torch.ones(1, *image.shape[1:])
    return str(SaveImageMaskd("pred", folder)({"pred": mask, "image": image, "id": "a"})["pred_path"])


def test_straight_grids_are_not_sheared(tmp_path):
    assert not is_sheared(loaded(save(tmp_path / "a.nii.gz")))
    assert not is_sheared(loaded(save(tmp_path / "c.nii.gz", values=VALUES[..., 0])))


# Headers that contradict themselves ----------------------------------------------------------------------------------


def with_bytes(path: Path, place: int, values: np.ndarray, **forms: Any) -> Path:
    """Write a plain NIfTI file, and numbers into its header; forms: ``sform_code`` and ``qform_code``."""
    image = nibabel.Nifti1Image(VALUES, np.diag([0.5, 0.6, 2.0, 1.0]))
    image.set_qform(np.diag([0.5, 0.6, 2.0, 1.0]), forms.get("qform_code", 0))
    image.set_sform(np.diag([0.5, 0.6, 2.0, 1.0]), forms.get("sform_code", 0))
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    content[place : place + values.nbytes] = values.tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("sides", [[1, 1, 1], [0, 0, 0], [-0.5, -0.6, -2]])
def test_the_sform_says_the_size_where_the_qform_says_nothing(tmp_path, caplog, sides):
    path = with_bytes(tmp_path / "a.nii", 80, np.asarray(sides, "<f4"), sform_code=2)
    for image in (read_image(path), loaded(path)):
        np.testing.assert_allclose(np.abs(affine_of(image)).diagonal(), [0.5, 0.6, 2, 1], rtol=1e-6)
        assert image.meta["unit"] == "mm"
    told = "a.nii has a pixdim that contradicts its sform: the sform counts" in caplog.text
    assert told == (min(sides) >= 0)


def test_a_size_of_zero_without_an_sform_is_unknown(tmp_path):
    path = with_bytes(tmp_path / "a.nii", 80, np.zeros(3, "<f4"), qform_code=1)
    assert read_image(path).meta["unit"] == "px"
    assert case_spacing(loaded(path)) is None


def test_forms_that_differ_in_size_are_told(tmp_path, caplog):
    qform = np.diag([0.9, 1.1, 2.5, 1.0])
    image = nibabel.Nifti1Image(VALUES, qform)
    image.set_qform(qform, 1)
    image.set_sform(2 * qform, 4)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(case_spacing(loaded(tmp_path / "a.nii.gz")), [0.9, 1.1, 2.5], rtol=1e-5)
    assert "has two forms that differ in the size of voxels: the qform counts" in caplog.text


def test_a_place_that_is_not_said_is_told(tmp_path, caplog):
    path = with_bytes(tmp_path / "a.nii", 80, np.asarray([0.5, 0.6, 2], "<f4"))
    assert read_image(path).meta["unit"] == "mm"
    assert "a.nii says no place (the codes of its forms are 0): its axes count as running to L, A and S" in caplog.text
    same_place(path, written_mask(path, tmp_path))


def test_an_unknown_code_of_the_unit_is_millimeters_and_noted(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", "mm")
    content = bytearray(nibabel.load(tmp_path / "images" / "a.nii.gz").to_bytes())
    content[123] = 5
    (tmp_path / "images" / "a.nii.gz").unlink()
    (tmp_path / "images" / "a.nii").write_bytes(content)
    datalist = prepare(tmp_path, "a")
    assert str(assumed_units(datalist)).startswith("1 NIfTI images say no unit")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (VALUES.astype(np.complex64), "holds complex numbers: save their magnitude"),
        (np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colors: save gray channels"),
        (np.stack([np.stack([VALUES] * 2, -1)] * 3, -1), "has 5 dimensions: save one image, or one volume"),
        (VALUES[:, 0, 0], "has 1 dimensions"),
    ],
)
def test_values_that_are_no_image_are_refused(tmp_path, values, words):
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=f"a.nii {words}"):
        read_image(tmp_path / "a.nii")


def test_vectors_of_nifti_are_channels(tmp_path):
    several = np.stack([VALUES, 2 * VALUES], -1)[:, :, :, None]
    nibabel.save(nibabel.Nifti1Image(several, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").numpy(), np.stack([VALUES, 2 * VALUES]))


@pytest.mark.parametrize(("unit", "side"), [("um", 0.001), ("cm", 10.0), ("mm", 1.0)])
def test_the_unit_of_a_metaimage_is_honored(tmp_path, unit, side):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VALUES.T), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text(encoding="utf-8")
    (tmp_path / "a.mhd").write_text(text.replace("NDims", f"DistanceUnits = {unit}\nNDims"))
    np.testing.assert_allclose(case_spacing(loaded(tmp_path / "a.mhd")), [side] * 3)
    (tmp_path / "a.mhd").write_text(text.replace("NDims", "DistanceUnits = inch\nNDims"))
    with pytest.raises(DataError, match="states lengths in inch, which is not known"):
        read_image(tmp_path / "a.mhd")
