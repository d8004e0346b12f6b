# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare folder``: layouts and formats in, a self-contained folder out, and each mistake as one sentence."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from monai.transforms import LoadImaged
from PIL import Image, PngImagePlugin

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.reading import read_image, read_labels
from monai_wsss.data.writing import scale_to_16_bit
from monai_wsss.transforms import LoadImageOrderedd

RNG = np.random.default_rng(0)
AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])


def picture(path: Path, mode: str = "L", size: tuple[int, int] = (8, 6)) -> np.ndarray:
    """Write a random image; size is (columns, rows)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode in ("L", "I;16") else (size[1], size[0], len(mode))
    values = RNG.integers(0, 255, shape).astype(np.uint8)
    values = values.astype(np.uint16) * 100 if mode == "I;16" else values
    Image.fromarray(values).save(path)
    return values


def volume(path: Path, shape: tuple[int, ...] = (6, 5, 4), affine: np.ndarray = AFFINE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 900, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return values


def table(root: Path, *rows: str, header: str = "id,label,split") -> Path:
    path = root / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Write two gray images with masks and a table."""
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
        Image.fromarray((RNG.integers(0, 2, (6, 8)) * 255).astype(np.uint8)).save(
            make(tmp_path / "masks" / f"{name}.png")
        )
    table(tmp_path, "a,1,train", "b,0,val")
    return tmp_path


def make(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path


def run(root: Path, **options) -> Path:
    return prepare_folder(root / "images", root / "labels.csv", root / "out", **options)


def items(path: Path, split: str = "training", **options) -> list[dict]:
    return load_datalist(path, split, **options)


def test_pictures_are_copied_with_binary_masks_and_the_folder_stands_alone(two):
    expected = np.asarray(Image.open(two / "images" / "a.png"))
    mask = np.asarray(Image.open(two / "masks" / "a.png"))
    path = run(two, masks=two / "masks")
    for name in ("images", "masks", "labels.csv"):
        shutil.move(two / name, two / f"gone_{name}")
    (item,) = items(path, masks=True)
    assert Path(item["image"]).is_relative_to(two / "out")
    np.testing.assert_array_equal(read_image(item["image"]).numpy()[0], expected.T)
    np.testing.assert_array_equal(np.asarray(Image.open(item["mask"])), (mask > 0).astype(np.uint8))
    assert item["label"].tolist() == [1.0]
    assert [case["id"] for case in items(path, "validation")] == ["b"]
    datalist = json.loads(path.read_text(encoding="utf-8"))
    assert datalist["classes"] == ["foreground"]
    assert datalist["modality"] == {"0": "image"}
    foreground = expected[expected > expected.mean()]
    np.testing.assert_allclose(item["intensity_mean"], foreground.mean(), rtol=1e-6)
    np.testing.assert_allclose(item["intensity_std"], foreground.std(), rtol=1e-6)


def test_without_masks_no_case_has_one(two):
    assert "mask" not in items(run(two), masks=True)[0]


def test_cases_without_mask_are_fine(two):
    (two / "masks" / "b.png").unlink()
    path = run(two, masks=two / "masks")
    assert "mask" in items(path, masks=True)[0]
    assert "mask" not in items(path, "validation", masks=True)[0]


def test_masks_that_contradict_their_labels_are_said(two, caplog):
    table(two, "a,0,train", "b,1,val")
    with caplog.at_level(logging.WARNING):
        run(two, masks=two / "masks")
    assert "1 masks show other classes than their labels say, first that of a." in caplog.text


@pytest.mark.parametrize("layout", ["{id}/{name}.nii.gz", "{id}_{name}.nii.gz", "{id}/{id}_{name}.nii"])
def test_several_files_are_modalities_in_canonical_order(tmp_path, layout):
    expected = {}
    for case in ("p_1", "p_10"):
        for name in ("flair", "t1ce", "T1"):
            expected[case, name] = volume(tmp_path / "images" / layout.format(id=case, name=name))
    table(tmp_path, "p_1,1,train", "p_10,0,train")
    first, second = items(run(tmp_path))
    assert [Path(file).name.split("_")[-1].split(".")[0] for file in first["image"]] == ["T1", "T1c", "FLAIR"]
    for item in (first, second):
        for file, name in zip(item["image"], ("T1", "t1ce", "flair"), strict=True):
            image = nibabel.load(file)
            np.testing.assert_array_equal(np.asarray(image.dataobj), expected[item["id"], name])
            np.testing.assert_allclose(image.affine, AFFINE)
    assert first["intensity_mean"].shape == (3,)


def test_wanted_modalities_leave_the_others_out(tmp_path):
    for name in ("flair", "t1", "adc"):
        volume(tmp_path / "images" / "a" / f"{name}.nii.gz")
    volume(tmp_path / "images" / "b" / "flair.nii.gz")
    table(tmp_path, "a,1,train", "b,0,train")
    path = run(tmp_path, modalities=("FLAIR",))
    assert json.loads(path.read_text(encoding="utf-8"))["modality"] == {"0": "FLAIR"}
    assert isinstance(items(path)[0]["image"], str)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match=r'labels.csv, row 3: case "b" lacks the modality T1: add its file'):
        run(tmp_path, modalities=("T1", "FLAIR"))


def test_channels_of_a_four_dimensional_nifti_become_files(tmp_path):
    values = volume(tmp_path / "images" / "a.nii.gz", (6, 5, 4, 2))
    table(tmp_path, "a,1,train")
    (item,) = items(run(tmp_path, modalities=("FLAIR", "T1w")))
    np.testing.assert_array_equal(read_image(item["image"][0]).numpy()[0], values[..., 1])
    np.testing.assert_array_equal(read_image(item["image"][1]).numpy()[0], values[..., 0])
    shutil.rmtree(tmp_path / "out")
    assert json.loads(run(tmp_path).read_text(encoding="utf-8"))["modality"] == {"0": "channel 0", "1": "channel 1"}
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match=r"a.nii.gz has 2 channels, but 1 modalities are named \(T1\): name one for"):
        run(tmp_path, modalities=("T1",))


def test_the_channels_of_a_picture_may_be_named(tmp_path):
    values = picture(tmp_path / "images" / "a.png", "RGB")
    table(tmp_path, "a,1,train")
    (item,) = items(run(tmp_path, modalities=("T1", "FLAIR", "T1c")))
    for file, channel in zip(item["image"], (0, 2, 1), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), values[..., channel])


def test_photographs_stay_one_file_without_statistics(tmp_path):
    values = picture(tmp_path / "images" / "a.png", "RGB")
    table(tmp_path, "a,1,train")
    path = run(tmp_path)
    (item,) = items(path)
    np.testing.assert_array_equal(np.asarray(Image.open(item["image"])), values)
    assert "intensity_mean" not in item
    assert json.loads(path.read_text(encoding="utf-8"))["modality"] == {"0": "red", "1": "green", "2": "blue"}


def test_gray_pictures_among_colored_ones_become_colored(tmp_path):
    gray, rgba = picture(tmp_path / "images" / "a.png"), picture(tmp_path / "images" / "b.png", "RGBA")
    table(tmp_path, "a,1,train", "b,0,train")
    first, second = items(run(tmp_path))
    np.testing.assert_array_equal(np.asarray(Image.open(first["image"])), np.stack([gray] * 3, -1))
    np.testing.assert_array_equal(np.asarray(Image.open(second["image"])), rgba[..., :3])


def test_sixteen_bit_and_float_pictures_lose_nothing(tmp_path):
    deep = picture(tmp_path / "images" / "a.png", "I;16")
    floats = RNG.normal(size=(6, 8)).astype(np.float32)
    tifffile.imwrite(tmp_path / "images" / "b.tif", floats)
    tifffile.imwrite(tmp_path / "images" / "c.tif", deep + 1)
    table(tmp_path, "a,1,train", "b,0,train", "c,0,train")
    first, second, third = items(run(tmp_path))
    assert [Path(item["image"]).suffix for item in (first, second, third)] == [".png", ".gz", ".png"]
    np.testing.assert_array_equal(read_image(first["image"]).numpy()[0], deep.T)
    np.testing.assert_array_equal(read_image(second["image"]).numpy()[0], floats.T)
    np.testing.assert_array_equal(read_image(third["image"]).numpy()[0], deep.T + 1)


def test_a_dicom_series_keeps_its_geometry_and_loses_the_patient(tmp_path, write_dicom):
    values = RNG.integers(0, 3000, (4, 5, 7)).astype(np.uint16)
    write_dicom(tmp_path / "images" / "a", values)
    before = read_image(tmp_path / "images" / "a")
    mask = np.zeros((7, 5, 4), dtype=np.uint8)
    mask[2, 3, 1] = 3
    nibabel.save(nibabel.Nifti1Image(mask, before.affine.numpy()), make(tmp_path / "masks" / "a_seg.nii.gz"))
    table(tmp_path, "a,1,train")
    (item,) = items(run(tmp_path, masks=tmp_path / "masks"), masks=True)
    after = nibabel.load(item["image"])
    np.testing.assert_array_equal(np.asarray(after.dataobj), values.transpose(2, 1, 0))
    np.testing.assert_allclose(after.affine, before.affine)
    assert after.header.get_xyzt_units()[0] == "mm"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    content = after.header.binaryblock + nibabel.load(item["mask"]).header.binaryblock + written
    assert b"Doe" not in content
    assert b"secret" not in content
    np.testing.assert_array_equal(read_labels(item["mask"]).numpy()[0], mask > 0)


def test_dicom_files_as_cases_and_as_modalities(tmp_path, write_dicom):
    values = RNG.integers(0, 3000, (2, 5, 7)).astype(np.uint16)
    (first,), (second,) = (write_dicom(tmp_path / f"series{i}", values[i : i + 1], f"1.2.{i}") for i in range(2))
    (tmp_path / "images" / "m").mkdir(parents=True)
    for source, target in ((first, "x.dcm"), (first, "m/flair.dcm"), (second, "m/t1.dcm")):
        shutil.copy(source, tmp_path / "images" / target)
    table(tmp_path, "x,1,train")
    shutil.move(tmp_path / "images" / "m", tmp_path / "m")
    (item,) = items(run(tmp_path))
    np.testing.assert_array_equal(read_image(item["image"]).numpy()[0], values[0].T)
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "out")
    shutil.move(tmp_path / "m", make(tmp_path / "images" / "m"))
    table(tmp_path, "m,1,train")
    (item,) = items(run(tmp_path))
    np.testing.assert_array_equal(read_image(item["image"][1]).numpy()[0], values[0].T)


def test_dots_in_ids_are_no_suffixes(tmp_path, write_dicom):
    (file,) = write_dicom(tmp_path, RNG.integers(0, 3000, (1, 5, 7)).astype(np.uint16))
    shutil.copy(file, make(tmp_path / "images" / "1.2.840"))
    volume(tmp_path / "images" / "v1.0_flair.nii.gz", (7, 5))
    table(tmp_path, "1.2.840,1,train")
    refuse(tmp_path, r"v1.0_flair.nii.gz has no row")
    (tmp_path / "images" / "v1.0_flair.nii.gz").rename(tmp_path / "images" / "v1.0.nii.gz")
    table(tmp_path, "1.2.840,1,train", "v1.0,1,train")
    assert [Path(item["image"]).name for item in items(run(tmp_path))] == ["1.2.840.nii.gz", "v1.0.nii.gz"]


def test_metaimages_become_nifti(tmp_path):
    values = RNG.integers(-50, 900, (4, 5, 6)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing([1, 2, 3])
    image.SetMetaData("PatientName", "Doe")
    (tmp_path / "images").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "images" / "a.mha"))
    SimpleITK.WriteImage(image + 1, str(tmp_path / "images" / "b.mhd"))
    table(tmp_path, "a,1,train", "b,0,train")
    first, second = items(run(tmp_path))
    assert nibabel.load(first["image"]).get_data_dtype() == np.int16
    np.testing.assert_array_equal(read_image(first["image"]).numpy()[0], values.T)
    np.testing.assert_array_equal(read_image(second["image"]).numpy()[0], values.T + 1)
    np.testing.assert_allclose(nibabel.load(first["image"]).affine, AFFINE)


def test_subjects_labels_and_splits_from_their_columns(tmp_path):
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text(
        "scan;patient;edema;nodule;fold\na;p1;1;0;Train\nb;p1;1;1;training\nc;p2;0;0;VALID\nd;p3;0;1;held-out\n"
    )
    path = run(
        tmp_path, id_column="scan", subject_column="patient", label_columns=("nodule", "edema"), split_column="fold"
    )
    datalist = json.loads(path.read_text(encoding="utf-8"))
    assert datalist["classes"] == ["nodule", "edema"]
    cases = [
        (split, case["id"], case["subject"], case["label"])
        for split in ("training", "validation", "test")
        for case in datalist[split]
    ]
    assert cases == [
        ("training", "a", "p1", [0, 1]),
        ("training", "b", "p1", [1, 1]),
        ("validation", "c", "p2", [0, 0]),
        ("test", "d", "p3", [1, 0]),
    ]
    assert set(datalist["statistics"]) == {"p1", "p2", "p3"}


def test_multi_class_masks_are_kept_and_checked(two):
    values = RNG.integers(0, 3, (6, 8)).astype(np.uint8)
    values[0, :3] = (0, 1, 2)
    for name in ("a", "b"):
        Image.fromarray(values).save(two / "masks" / f"{name}.png")
    table(two, "a,1,1,train", "b,1,1,val", header="id,x,y,split")
    (item,) = items(run(two, masks=two / "masks"), masks=True)
    np.testing.assert_array_equal(read_labels(item["mask"]).numpy()[0], values.T)
    shutil.rmtree(two / "out")
    Image.fromarray(values * 100).save(two / "masks" / "b.png")
    with pytest.raises(DataError, match=r"b.png holds the value 200, but there are 2 classes: use 0 for background"):
        run(two, masks=two / "masks")
    assert not (two / "out" / "datalist.json").exists()


def test_a_drawn_split_is_by_subject_and_by_seed(tmp_path):
    rows = []
    for number in range(20):
        picture(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number},p{number // 2},{number // 2 % 2}")
    table(tmp_path, *rows, header="id,subject,label")
    datalist = json.loads(run(tmp_path, fractions=(0.6, 0.2, 0.2), seed=5).read_text(encoding="utf-8"))
    assert [len(datalist[split]) for split in ("training", "validation", "test")] == [12, 4, 4]
    shutil.rmtree(tmp_path / "out")
    assert json.loads(run(tmp_path, fractions=(0.6, 0.2, 0.2), seed=5).read_text(encoding="utf-8")) == datalist


def test_noise_in_the_affines_is_taken_out_so_that_monai_reads_the_case(tmp_path):
    expected = [volume(tmp_path / "images" / "a_t1.nii.gz")]
    expected.append(volume(tmp_path / "images" / "a_t2.nii.gz", affine=AFFINE + 1e-6 * (AFFINE == 0)))
    with pytest.raises(RuntimeError, match="affine"):
        LoadImaged("image")({"image": [str(tmp_path / "images" / f"a_{name}.nii.gz") for name in ("t1", "t2")]})
    table(tmp_path, "a,1,train")
    (item,) = items(run(tmp_path))
    np.testing.assert_array_equal(LoadImaged("image")(item)["image"].numpy(), expected)
    assert Path(item["image"][0]).read_bytes() == (tmp_path / "images" / "a_t1.nii.gz").read_bytes()
    np.testing.assert_array_equal(nibabel.load(item["image"][1]).affine, AFFINE)


def test_nothing_in_the_prepared_folder_names_the_patient(tmp_path):
    values = RNG.integers(0, 255, (6, 8)).astype(np.uint8)
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    texts.add_text("PatientName", "Doe^Jane")
    exif[0x010E] = "Doe^Jane"
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.png", pnginfo=texts)
    Image.fromarray(values).save(tmp_path / "images" / "b.jpg", exif=exif, comment="Doe^Jane")
    tifffile.imwrite(tmp_path / "images" / "c.tif", values, description="Doe^Jane")
    table(tmp_path, "a,1,train", "b,0,train", "c,0,train")
    for item in items(run(tmp_path)):
        assert b"Doe" not in Path(item["image"]).read_bytes()
        before = Image.open(next((tmp_path / "images").glob(f"{item['id']}.*")))
        np.testing.assert_array_equal(np.asarray(Image.open(item["image"])), np.asarray(before))
    assert b"Doe" in (tmp_path / "images" / "c.tif").read_bytes()


def test_modalities_with_like_names_are_two_files(tmp_path):
    for name in ("a-1", "a1"):
        picture(tmp_path / "images" / f"x_{name}.png")
    table(tmp_path, "x,1,train")
    (item,) = items(run(tmp_path))
    for file, name in zip(item["image"], ("a-1", "a1"), strict=True):
        assert Path(file).read_bytes() == (tmp_path / "images" / f"x_{name}.png").read_bytes()


# Slices of volumes -------------------------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, np.ndarray]:
    """Write two volumes (C, x, y, z) of two subjects, with masks, and a table of five slices."""
    arrays = {}
    for case in ("v_1", "w"):
        arrays[case] = np.stack([volume(tmp_path / "images" / case / f"{name}.nii.gz") for name in ("t1", "flair")])
        mask = np.zeros((6, 5, 4), dtype=np.uint8)
        mask[2:4, 1, 3] = 1
        nibabel.save(nibabel.Nifti1Image(mask, AFFINE), make(tmp_path / "masks" / f"{case}.nii.gz"))
    rows = ["v_1,p,3,1,train", "v_1,p,0,0,train", "w,q,1,0,val", "w,q,2,0,val", "w,q,3,1,val"]
    table(tmp_path, *rows, header="id,subject,slice,label,split")
    return arrays


def test_rows_of_slices_cut_volumes(tmp_path, volumes):
    path = run(tmp_path, as_slices=True, masks=tmp_path / "masks")
    first, second = items(path, masks=True)
    assert [item["id"] for item in (first, second)] == ["v_1_003", "v_1_000"]
    assert [item["label"].tolist() for item in (first, second)] == [[1.0], [0.0]]
    scaled, _ = scale_to_16_bit(volumes["v_1"])
    for item, z in ((first, 3), (second, 0)):
        for file, expected in zip(item["image"], scaled[..., z], strict=True):
            with Image.open(file) as image:
                assert image.mode == "I;16"
            np.testing.assert_array_equal(read_image(file).numpy()[0], expected)
    assert read_labels(first["mask"])[0].nonzero().tolist() == [[2, 1], [3, 1]]
    assert read_labels(second["mask"]).sum() == 0
    foreground = [values[values > values.mean()] for values in scaled.astype(np.float64)]
    np.testing.assert_allclose(first["intensity_mean"], [values.mean() for values in foreground], rtol=1e-6)
    np.testing.assert_allclose(first["intensity_std"], [values.std() for values in foreground], rtol=1e-6)
    assert [item["id"] for item in items(path, "validation")] == ["w_001", "w_002", "w_003"]


def test_the_subject_of_a_slice_is_its_volume_and_labels_are_never_taken_from_masks(tmp_path, volumes, caplog):
    rows = ["v_1,1,0,1", "v_1,3,0,0", "w,2,1,1"]
    table(tmp_path, *rows, header="id,z,x,y")
    with caplog.at_level(logging.WARNING):
        path = run(tmp_path, as_slices=True, slice_column="z", masks=tmp_path / "masks", fractions=(1, 0, 0))
    assert json.loads(path.read_text(encoding="utf-8"))["classes"] == ["x", "y"]
    cases = [(item["id"], item["subject"], item["label"].tolist()) for item in items(path)]
    assert cases == [("v_1_001", "v_1", [0, 1]), ("v_1_003", "v_1", [0, 0]), ("w_002", "w", [1, 1])]
    assert "3 masks show other classes than their labels say, first that of v_1_001." in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["v_1,4,1"], r'row 2: the slice is 4, but volume "v_1" has the slices 0 to 3 along its last axis: correct'),
        (["v_1,-1,1"], r'row 2: the slice in column "slice" is "-1": write its number along the slicing axis, from 0'),
        (["v_1,1.5,1"], r'row 2: the slice in column "slice" is "1.5": write its number'),
        (["v_1,1,1", "v_1,01,0"], r'row 3: the id "v_1_001" is also in .*row 2: give each case its own'),
        (["u,1,1"], r"no row in .*labels.csv: add its row"),
    ],
)
def test_slices_that_are_not_there(tmp_path, volumes, rows, message):
    table(tmp_path, *rows, header="id,slice,label")
    if len(rows) == 1 and rows[0].startswith("v_1"):
        shutil.rmtree(tmp_path / "images" / "w")
    refuse(tmp_path, message, as_slices=True)


def test_other_mistakes_with_slices(tmp_path, volumes):
    table(tmp_path, "v_1,p,1,1", "w,q,1,0", "w,p,2,0", header="id,subject,slice,label")
    refuse(tmp_path, r'row 4: volume "w" is of subject "p", but of "q" in .*row 3: give all slices', as_slices=True)
    table(tmp_path, "v_1,1", "w,0", header="id,label")
    refuse(tmp_path, r'labels.csv has no column "slice", it has id, label: name the right column', as_slices=True)
    binary = np.zeros((6, 5, 4), dtype=np.uint8)
    binary[2:4, 2:4, 1:3] = 1
    for name in ("t1", "flair"):
        nibabel.save(nibabel.Nifti1Image(binary, AFFINE), tmp_path / "images" / "v_1" / f"{name}.nii.gz")
    table(tmp_path, "v_1,1,1", "w,1,0", header="id,slice,label")
    refuse(tmp_path, r'row 2: volume "v_1" cannot be scaled: .*to vary within the foreground', as_slices=True)


def test_pictures_have_no_slices(two):
    table(two, "a,0,1,train", "b,0,0,train", header="id,slice,label,split")
    refuse(two, r'row 2: the image of "a" is 2D, but slices are cut from volumes: prepare 2D images', as_slices=True)


def test_pictures_are_rows_and_columns(two):
    assert load_header(run(two))["order"] == "rows_columns"


@pytest.mark.parametrize("as_slices", [True, False])
def test_volumes_and_what_is_cut_from_them_keep_their_order(tmp_path, volumes, as_slices):
    if not as_slices:
        table(tmp_path, "v_1,1,train", "w,0,train")
    assert load_header(run(tmp_path, as_slices=as_slices))["order"] == "xy"


@pytest.mark.parametrize(("modality", "order"), [("CT", "xy"), ("DX", "rows_columns"), ("CR ", "rows_columns")])
def test_an_x_ray_in_dicom_is_a_picture(tmp_path, write_dicom, modality, order):
    rows = RNG.integers(0, 3000, (1, 5, 7)).astype(np.uint16)
    (file,) = write_dicom(tmp_path / "one", rows, modality=modality)
    (tmp_path / "images").mkdir()
    file.rename(tmp_path / "images" / "a.dcm")
    table(tmp_path, "a,1,train")
    path = run(tmp_path)
    assert load_header(path)["order"] == order
    image = LoadImageOrderedd("image")(items(path)[0])["image"][0].numpy()
    np.testing.assert_array_equal(image, rows[0] if order == "rows_columns" else rows[0].T)


# Each mistake ------------------------------------------------------------------------------------------------------


def refuse(root: Path, message: str, **options) -> None:
    """Check that the preparation ends with the message and leaves no datalist."""
    with pytest.raises(DataError, match=message) as caught:
        run(root, **options)
    text = str(caught.value)
    assert all(line.endswith(".") for line in text.splitlines())
    assert not (root / "out" / "datalist.json").exists()


def test_a_row_without_image(two):
    table(two, "a,1,train", "b,0,val", "c,0,val")
    refuse(two, r'labels.csv, row 4: .*images has no image for the id "c": add it under this name, or delete the row')


@pytest.mark.parametrize("name", ["c.png", "c/flair.nii.gz"])
def test_an_image_without_row(two, name):
    volume(two / "images" / "c.nii.gz")
    make(two / "images" / name)
    (two / "images" / "c.nii.gz").rename(two / "images" / name)
    refuse(two, r"The image .*c.* has no row in .*labels.csv: add its row, or move the image away")


def test_ids_with_a_suffix_are_their_files(two):
    table(two, "a.png,1,train", "b.PNG,0,val")
    two_path = run(two)
    assert [item["id"] for split in ("training", "validation") for item in items(two_path, split)] == ["a", "b"]


def test_two_cases_that_would_be_one_file(tmp_path):
    for name in ("a", "A"):
        picture(tmp_path / "images" / f"{name}.png")
    table(tmp_path, "a,p,1,train", "A,p,0,train", header="id,subject,label,split")
    message = r'images/p/A.png would hold two images, one of case "a" and one of case "A": rename a case or a modality'
    refuse(tmp_path, message)


def test_duplicate_ids(two):
    table(two, "a,1,train", "b,0,val", "a,1,train")
    refuse(two, r'labels.csv, row 4: the id "a" is also in .*labels.csv, row 2: give each case its own')


@pytest.mark.parametrize("label", ["2", "", "maybe", "0.5", "-1"])
def test_labels_other_than_zero_and_one(two, label):
    table(two, "a,1,train", f"b,{label},val")
    refuse(two, rf'labels.csv, row 3: the label in column "label" is "{label}": write 0 or 1')


def test_a_subject_in_two_splits(two):
    table(two, "a,p,1,train", "b,p,0,val", header="id,subject,label,split")
    refuse(two, r'row 3: subject "p" is in validation, but in training in .*row 2: put all cases of a subject into one')


def test_a_missing_modality_and_an_extra_one(tmp_path):
    for case in "abc":
        for name in ("flair", "t1"):
            volume(tmp_path / "images" / case / f"{name}.nii.gz")
    table(tmp_path, "a,1,train", "b,0,train", "c,0,train")
    volume(tmp_path / "images" / "b" / "t2.nii.gz")
    refuse(tmp_path, r'row 3: case "b" has an image that other cases do not have \(.*t2.nii.gz\): move it away')
    (tmp_path / "images" / "b" / "t2.nii.gz").unlink()
    (tmp_path / "images" / "c" / "flair.nii.gz").unlink()
    refuse(tmp_path, r'row 4: case "c" lacks the modality FLAIR: add its file')


def test_modalities_that_differ_in_shape_or_affine(tmp_path):
    volume(tmp_path / "images" / "a_t1.nii.gz")
    volume(tmp_path / "images" / "a_t2.nii.gz", (6, 5, 3))
    table(tmp_path, "a,1,train")
    refuse(tmp_path, r"a_t1.nii.gz is of size 6 x 5 x 4 but .*a_t2.nii.gz of 6 x 5 x 3: register and resample")
    volume(tmp_path / "images" / "a_t2.nii.gz", affine=np.diag([-1.0, -2.0, 3.1, 1.0]))
    refuse(tmp_path, r"affines of .*a_t1.nii.gz and .*a_t2.nii.gz differ by up to 0.1 mm: register and resample")


def test_masks_of_another_size_or_place(tmp_path):
    volume(tmp_path / "images" / "a.nii.gz")
    table(tmp_path, "a,1,train")
    volume(tmp_path / "masks" / "a.nii.gz", (6, 5, 3))
    refuse(tmp_path, r"a.nii.gz is of size 6 x 5 x 4 but .*masks/a.nii.gz of 6 x 5 x 3", masks=tmp_path / "masks")
    volume(tmp_path / "masks" / "a.nii.gz", affine=np.eye(4))
    refuse(tmp_path, r"The affines of the image of a.nii.gz and .*masks/a.nii.gz differ", masks=tmp_path / "masks")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: np.where(v > 800, np.nan, v), r"a.nii.gz holds NaN or infinite values"),
        (lambda v: np.where(v > 800, np.inf, v), r"a.nii.gz holds NaN or infinite values"),
        (lambda v: v * 0 + 5, r"a.nii.gz is constant \(every value is 5\)"),
        (lambda v: v[:0], r"a.nii.gz is empty"),
    ],
)
def test_volumes_with_bad_values(tmp_path, spoil, message):
    values = volume(tmp_path / "images" / "a.nii.gz").astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(spoil(values).astype(np.float32), AFFINE), tmp_path / "images" / "a.nii.gz")
    table(tmp_path, "a,1,train")
    refuse(tmp_path, message)


def test_truncated_nifti_and_unreadable_dicom(tmp_path, write_dicom):
    volume(tmp_path / "images" / "a.nii.gz", (20, 20, 20))
    content = (tmp_path / "images" / "a.nii.gz").read_bytes()
    (tmp_path / "images" / "a.nii.gz").write_bytes(content[: len(content) // 2])
    table(tmp_path, "a,1,train")
    refuse(tmp_path, r"Cannot read .*a.nii.gz as nifti .* copy or export it again")
    (tmp_path / "images" / "a.nii.gz").unlink()
    (path,) = write_dicom(tmp_path, RNG.integers(0, 99, (1, 32, 32)).astype(np.uint16))
    (tmp_path / "images" / "a.dcm").write_bytes(path.read_bytes()[:900])
    refuse(tmp_path, r"Cannot read .*a.dcm as dicom .* copy or export it again")


def test_empty_and_missing_folders(two):
    refuse(two, r"The mask folder .*none is empty: check the path", masks=make(two / "none" / "x").parent)
    refuse(two, r"Cannot open the mask folder .*nowhere \(No such file", masks=two / "nowhere")
    shutil.rmtree(two / "images")
    refuse(two, r"Cannot open the image folder .*images \(No such file")
    (two / "images").mkdir()
    refuse(two, r"The image folder .*images is empty: check the path")


def test_masks_that_belong_to_nothing(two):
    for name in ("a", "b"):
        (two / "masks" / f"{name}.png").rename(two / "masks" / f"other_{name}.png")
    refuse(two, r"No file in .*masks is named by an id of the label table", masks=two / "masks")


def test_a_mask_among_the_images_is_never_an_input(two):
    shutil.copy(two / "masks" / "a.png", two / "images" / "a_mask.png")
    refuse(two, r"a_mask.png looks like a mask among the images: move it to a folder of its own, given as masks")


def test_the_same_case_twice(two):
    shutil.copy(two / "images" / "a.png", two / "images" / "a.bmp")
    refuse(two, r"a.bmp and .*a.png are the same modality of the same case: keep one of them")
    (two / "images" / "a.bmp").rename(two / "images" / "a_t1.png")
    refuse(two, r"a.png and .*a_t1.png are the same modality of the same case")
    (two / "images" / "a_t1.png").unlink()
    shutil.copy(two / "masks" / "a.png", two / "masks" / "a_seg.png")
    refuse(two, r"a.png and .*a_seg.png are masks of the same case", masks=two / "masks")


def test_images_of_two_kinds(two):
    (two / "images" / "b.png").unlink()
    volume(two / "images" / "b.nii.gz")
    refuse(two, r'row 3: the image of case "b" is 3D with image, that of the first case 2D with image: prepare images')


def test_a_color_picture_as_a_modality(tmp_path):
    picture(tmp_path / "images" / "a_t1.png")
    picture(tmp_path / "images" / "a_t2.png", "RGB")
    table(tmp_path, "a,1,train")
    refuse(tmp_path, r"a_t2.png has 3 channels: save each modality as one gray image")


def test_the_output_may_not_be_prepared_already_nor_the_source(two):
    run(two)
    with pytest.raises(DataError, match=r"out holds a datalist.json already: choose another output folder"):
        run(two)
    with pytest.raises(DataError, match=r"is the source folder: choose another output folder"):
        prepare_folder(two / "images", two / "labels.csv", two)


def test_an_id_that_leaves_the_folder(two):
    table(two, "../a,1,train")
    refuse(two, r'row 2: "../a" in column "id" names a folder: write the name alone')


@pytest.mark.parametrize("call", ["os.replace", "pathlib.Path.write_bytes"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space or choose another output folder"),
        (errno.EACCES, "no permission to write there: choose another output folder"),
    ],
)
def test_disk_full_and_no_permission(two, monkeypatch, call, number, words):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, fail)
    refuse(two, rf"Cannot write .*a.png: {words}")
    assert not [path for path in (two / "out").rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_at_the_last_file(two, monkeypatch):
    replace = os.replace

    def fail_at_json(source, target):
        if Path(target).suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", fail_at_json)
    refuse(two, r"Cannot write .*datalist.json: the disk is full")


def test_an_output_folder_that_cannot_be_made(two, monkeypatch):
    (two / "out").write_text("a file")
    with pytest.raises(DataError, match=r"Cannot write .*out.*: "):
        run(two)
    (two / "out").unlink()
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    refuse(two, r"Cannot write .*out: no permission to write there")
