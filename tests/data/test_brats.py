# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BraTS folders of every year, built small, and read back with nibabel, SimpleITK and Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from monai.transforms import LoadImaged
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.brats import prepare_brats, splits_by_grade
from monai_wsss.data.brats_layouts import BratsCase, find_brats_cases
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.data.reading import read_image
from monai_wsss.data.writing import scale_to_16_bit

SHAPE = (12, 10, 8)
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 9], [0, 0, 1, 0], [0, 0, 0, 1]])
SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
LEVEL = {name: 100 * (number + 1) for number, name in enumerate(SEQUENCES)}


def a_brain(name: str, seed: int = 0) -> np.ndarray:
    """Make a skull-stripped volume: 0 outside, around 100, 200, 300 or 400 inside; asymmetric in every axis."""
    values = np.zeros(SHAPE, dtype=np.int16)
    inner = values[2:9, 1:8, 1:7]
    inner[...] = LEVEL[name] + np.random.default_rng([seed, LEVEL[name]]).integers(0, 50, inner.shape)
    return values


def a_tumor(present: bool = True) -> np.ndarray:
    """Make a segmentation with labels 1, 2 and 4 in slices 2 to 4: 1, 4 and 6 pixels."""
    values = np.zeros(SHAPE, dtype=np.uint8)
    if present:
        values[3, 3, 2] = 1
        values[3:5, 3:5, 3] = 2
        values[3:6, 3:5, 4] = 4
    return values


def save(path: Path, values: np.ndarray, affine: np.ndarray = LPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def save_mha(path: Path, values: np.ndarray) -> None:
    """Give an affine of 1 x 2 x 3 mm with an origin, so that a wrong axis or a lost sign shows."""
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing([1.0, 2.0, 3.0])
    image.SetOrigin([0.0, -239.0, 7.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def plain_case(folder: Path, *, present: bool = True, skip: tuple[str, ...] = (), seed: int = 0) -> None:
    """Write t1, t1c, t2, flair and seg."""
    for name in SEQUENCES:
        if name not in skip:
            save(folder / f"{name.lower()}.nii.gz", a_brain(name, seed))
    if "seg" not in skip:
        save(folder / "seg.nii.gz", a_tumor(present))


def brats2015(root: Path) -> list[str]:
    for grade, case in (
        ("HGG", "brats_tcia_pat101_0001"),
        ("HGG", "brats_tcia_pat101_0105"),
        ("LGG", "brats_2013_pat0008_1"),
    ):
        for number, name in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")):
            stem = f"VSD.Brain.XX.O.{name}.{54512 + number}"
            save_mha(root / "BRATS2015_Training" / grade / case / stem / f"{stem}.mha", a_brain(SEQUENCES[number]))
        stem = "VSD.Brain_3more.XX.O.OT.54517"
        save_mha(root / "BRATS2015_Training" / grade / case / stem / f"{stem}.mha", a_tumor())
        (root / "BRATS2015_Training" / grade / case / stem / "License_CC_BY_NC_SA_3.0.txt").touch()
    return ["brats_2013_pat0008", "brats_tcia_pat101", "brats_tcia_pat101"]


def brats2013(root: Path) -> list[str]:
    """Write cases with numbers as names, the same numbers for high and low grade."""
    for grade in ("HG", "LG"):
        for number, name in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")):
            case = root / "Image_Data" / grade / "0001"
            save_mha(case / f"VSD.Brain.XX.O.{name}" / f"VSD.Brain.XX.O.{name}.684.mha", a_brain(SEQUENCES[number]))
        save_mha(case / "VSD.Brain_3more.XX.XX.OT" / "VSD.Brain_3more.XX.XX.OT.6560.mha", a_tumor())
    return ["HG_0001", "LG_0001"]


def brats2018(root: Path) -> list[str]:
    for grade, case in (("HGG", "Brats18_2013_10_1"), ("LGG", "Brats18_TCIA09_141_1")):
        for word, name in (("t1", "T1"), ("t1ce", "T1c"), ("t2", "T2"), ("flair", "FLAIR")):
            save(root / grade / case / f"{case}_{word}.nii.gz", a_brain(name))
        save(root / grade / case / f"{case}_seg.nii.gz", a_tumor())
    return ["Brats18_2013_10_1", "Brats18_TCIA09_141_1"]


def brats2020(root: Path) -> list[str]:
    """Write uncompressed files, one segmentation under another name, as in the published set."""
    for case, truth in (
        ("BraTS20_Training_001", "BraTS20_Training_001_seg"),
        ("BraTS20_Training_355", "W39_1998.09.19_Segm"),
    ):
        folder = root / "MICCAI_BraTS2020_TrainingData" / case
        for word, name in (("t1", "T1"), ("t1ce", "T1c"), ("t2", "T2"), ("flair", "FLAIR")):
            save(folder / f"{case}_{word}.nii", a_brain(name))
        save(folder / f"{truth}.nii", a_tumor())
    (root / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv").touch()
    return ["BraTS20_Training_001", "BraTS20_Training_355"]


def brats2021(root: Path) -> list[str]:
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        for word, name in (("t1", "T1"), ("t1ce", "T1c"), ("t2", "T2"), ("flair", "FLAIR")):
            save(root / case / f"{case}_{word}.nii.gz", a_brain(name))
        save(root / case / f"{case}_seg.nii.gz", a_tumor())
    return ["BraTS2021_00000", "BraTS2021_00002"]


def brats2023(root: Path) -> list[str]:
    for case in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000"):
        for word, name in (("t1n", "T1"), ("t1c", "T1c"), ("t2w", "T2"), ("t2f", "FLAIR")):
            save(root / case / f"{case}-{word}.nii.gz", a_brain(name))
        save(root / case / f"{case}-seg.nii.gz", a_tumor())
    return ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00006"]


def plain(root: Path) -> list[str]:
    for case, truth in (("anna", "seg"), ("bert", "seg_silver")):
        plain_case(root / "nifti" / case, skip=("seg",))
        save(root / "nifti" / case / f"{truth}.nii.gz", a_tumor())
        save(root / "nifti" / case / "brainmask.nii.gz", (a_brain("T1") > 0).astype(np.uint8))
    return ["anna", "bert"]


def decathlon(
    root: Path, order: tuple[str, ...] = ("FLAIR", "T1", "T1c", "T2"), *, json_names: object = None
) -> list[str]:
    task = root / "Task01_BrainTumour"
    for case in ("BRATS_001", "BRATS_002"):
        save(task / "imagesTr" / f"{case}.nii.gz", np.stack([a_brain(name) for name in order], axis=-1))
        save(task / "labelsTr" / f"{case}.nii.gz", a_tumor())
    (task / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"left behind by a Mac")
    save(task / "imagesTs" / "BRATS_485.nii.gz", np.stack([a_brain(name) for name in order], axis=-1))
    if json_names is not None:
        (task / "dataset.json").write_text(json.dumps({"modality": json_names}))
    return ["BRATS_001", "BRATS_002"]


LAYOUTS = [brats2013, brats2015, brats2018, brats2020, brats2021, brats2023, plain, decathlon]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def cases_of(path: Path) -> list[dict]:
    datalist = read(path)
    cases = [item for split in ("training", "validation", "test") for item in datalist[split]]
    return sorted(cases, key=lambda item: item["id"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_all_sequences_and_subjects(tmp_path, layout):
    subjects = layout(tmp_path / "source")
    path = prepare_brats(tmp_path / "source", tmp_path / "out")
    assert read(path)["modality"] == {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}
    cases = cases_of(path)
    assert [item["subject"] for item in cases] == subjects
    assert [item["label"] for item in cases] == [[1]] * len(subjects)
    for item in cases:
        for name, file in zip(SEQUENCES, item["image"], strict=True):
            values = np.asarray(nibabel.load(tmp_path / "out" / file).dataobj)
            np.testing.assert_array_equal(values, a_brain(name))
        mask = nibabel.load(tmp_path / "out" / item["mask"])
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(mask.dataobj), a_tumor() > 0)
    items = [item for split in ("training", "validation", "test") for item in load_datalist(path, split, masks=True)]
    assert all(Path(file).exists() for item in items for file in (*item["image"], item["mask"]))


def test_scans_of_a_patient_stay_in_one_split(tmp_path):
    for patient in range(6):
        for scan in range(3):
            case = f"BraTS-GLI-{patient:05d}-{scan:03d}"
            save(tmp_path / "source" / case / f"{case}-t2f.nii.gz", a_brain("FLAIR", scan))
            save(tmp_path / "source" / case / f"{case}-seg.nii.gz", a_tumor())
    datalist = read(prepare_brats(tmp_path / "source", tmp_path / "out", fractions=(0.5, 0.25, 0.25)))
    subjects = [{item["subject"] for item in datalist[split]} for split in ("training", "validation", "test")]
    assert sum(map(len, subjects)) == 6
    assert all(subjects)
    assert set(datalist["statistics"]) == set.union(*subjects)


# --- geometry and channel order


def test_metaimage_keeps_its_geometry(tmp_path):
    brats2015(tmp_path / "source")
    (item, *_) = cases_of(prepare_brats(tmp_path / "source", tmp_path / "out", modalities=["FLAIR"]))
    source = SimpleITK.ReadImage(str(next((tmp_path / "source").rglob("*MR_Flair*.mha"))))
    for file in (item["image"][0], item["mask"]):
        written = SimpleITK.ReadImage(str(tmp_path / "out" / file))
        assert written.GetSize() == source.GetSize()
        np.testing.assert_allclose(written.GetSpacing(), source.GetSpacing(), atol=1e-5)
        np.testing.assert_allclose(written.GetOrigin(), source.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(written.GetDirection(), source.GetDirection(), atol=1e-6)
        # ITK's world is LPS, that of NIfTI RAS: x and y change sign.
        expected = np.diag([-1.0, -2.0, 3.0, 1.0])
        expected[:3, 3] = 0, 239, 7
        np.testing.assert_allclose(nibabel.load(tmp_path / "out" / file).affine, expected, atol=1e-4)
    voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / item["image"][0])))
    np.testing.assert_array_equal(voxels, SimpleITK.GetArrayFromImage(source))


def test_nifti_is_copied_byte_for_byte(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    (item,) = cases_of(prepare_brats(tmp_path / "source", tmp_path / "out"))
    assert (tmp_path / "out" / item["image"][3]).read_bytes() == (tmp_path / "source/anna/flair.nii.gz").read_bytes()


def test_noise_in_the_affines_is_taken_out_so_that_monai_reads_the_case(tmp_path):
    plain_case(tmp_path / "source" / "anna", skip=("T1", "T2"))
    save(tmp_path / "source" / "anna" / "flair.nii.gz", a_brain("FLAIR"), LPS + 1e-6 * (LPS == 0))
    path = prepare_brats(tmp_path / "source", tmp_path / "out")
    (item,) = cases_of(path)
    first, second = (nibabel.load(path.parent / file) for file in item["image"])
    np.testing.assert_array_equal(first.affine, LPS)
    np.testing.assert_array_equal(second.affine, LPS)
    np.testing.assert_array_equal(np.asarray(second.dataobj), a_brain("FLAIR"))
    loaded = LoadImaged("image")({"image": [str(path.parent / file) for file in item["image"]]})
    assert loaded["image"].shape[0] == 2


def test_text_in_headers_stays_behind(tmp_path):
    plain_case(tmp_path / "source" / "anna", skip=("T1", "T1c", "T2"))
    image = nibabel.Nifti1Image(a_brain("FLAIR"), LPS)
    image.header["descrip"] = b"Doe^Jane"
    nibabel.save(image, tmp_path / "source" / "anna" / "flair.nii.gz")
    path = prepare_brats(tmp_path / "source", tmp_path / "out")
    written = nibabel.load(path.parent / cases_of(path)[0]["image"][0])
    assert written.header["descrip"].item() == b""
    np.testing.assert_array_equal(np.asarray(written.dataobj), a_brain("FLAIR"))


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (("FLAIR", "T1", "T1c", "T2"), None),
        (("FLAIR", "T1", "T1c", "T2"), {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}),
        (("T2", "T1c", "FLAIR", "T1"), {"0": "T2w", "1": "t1gd", "2": "FLAIR", "3": "T1w"}),
    ],
)
def test_decathlon_channels_are_taken_by_name(tmp_path, order, names):
    """Check that the published order FLAIR, T1w, T1gd, T2w becomes T1, T1c, T2, FLAIR."""
    decathlon(tmp_path / "source", order, json_names=names)
    path = prepare_brats(tmp_path / "source", tmp_path / "out", modalities=["FLAIR", "T1"])
    assert read(path)["modality"] == {"0": "T1", "1": "FLAIR"}
    for item in cases_of(path):
        medians = [np.median(values[values > 0]) // 100 * 100 for values in map(read_volume(tmp_path), item["image"])]
        assert medians == [LEVEL["T1"], LEVEL["FLAIR"]]


def read_volume(folder: Path):
    return lambda file: np.asarray(nibabel.load(folder / "out" / file).dataobj)


def test_decathlon_images_without_labels_are_left_out_aloud(tmp_path, caplog):
    decathlon(tmp_path)
    assert [case.name for case in find_brats_cases(tmp_path)] == ["BRATS_001", "BRATS_002"]
    assert "imagesTs is left out" in caplog.text


# --- slices


def test_slices_follow_the_rule(tmp_path):
    """Check the choice: brain in z = 1 to 6, tumor of 1, 4 and 6 pixels in z = 2, 3, 4; slice 2 is neither."""
    plain_case(tmp_path / "source" / "anna")
    path = prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, min_tumor_pixels=2)
    labels = {item["id"]: item["label"] for item in cases_of(path)}
    assert labels == {"anna_001": [0], "anna_003": [1], "anna_004": [1], "anna_005": [0], "anna_006": [0]}


@pytest.mark.parametrize(
    ("options", "slices"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"slice_step": 3}, [3, 6]),
        ({"min_brain_fraction": 0.0}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"min_brain_fraction": 49 / 120}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_slices(tmp_path, options, slices):
    plain_case(tmp_path / "source" / "anna", skip=("T1", "T2"))
    path = prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, **options)
    assert [int(item["id"][-3:]) for item in cases_of(path)] == slices


def test_slices_are_read_back_as_the_volume_lies(tmp_path):
    """Check slices: [x, y] of the volume, 16 bits, scaled by percentiles of the brain; the mask has the same pixels."""
    plain_case(tmp_path / "source" / "anna", skip=("T1", "T1c", "T2"))
    (item,) = [
        item
        for item in cases_of(prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True))
        if item["id"] == "anna_004"
    ]
    values = a_brain("FLAIR").astype(np.float64)
    low, high = np.percentile(values[values > 0], [0.5, 99.5])
    expected = np.rint(np.clip((values[:, :, 4] - low) / (high - low), 0, 1) * 65535) * (values[:, :, 4] > 0)
    np.testing.assert_array_equal(read_image(tmp_path / "out" / item["image"][0])[0].numpy(), expected)
    with Image.open(tmp_path / "out" / item["image"][0]) as picture:
        assert picture.mode.startswith("I;16")
        assert picture.size == SHAPE[:2]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / item["mask"])), (a_tumor()[:, :, 4] > 0).T)


def test_slice_statistics_are_those_of_the_scaled_volume(tmp_path):
    plain_case(tmp_path / "source" / "anna", skip=("T1c", "T2"))
    path = prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, min_brain_fraction=0.0)
    items = cases_of(path)
    assert len(items) == SHAPE[2]
    for channel in range(2):
        pixels = [np.asarray(Image.open(tmp_path / "out" / item["image"][channel])) for item in items]
        volume = np.stack(pixels).astype(np.float64)
        foreground = volume[volume > volume.mean()]
        assert read(path)["statistics"]["anna"]["mean"][channel] == pytest.approx(foreground.mean(), rel=1e-9)
        assert read(path)["statistics"]["anna"]["std"][channel] == pytest.approx(foreground.std(), rel=1e-9)


def test_volumes_that_were_z_scored_scale_like_others():
    """Check that a z-scored volume, whose background is a negative constant, looks the same."""
    raw = np.stack([a_brain("T1c"), a_brain("FLAIR")]).astype(np.float32)
    scored = (raw - raw.mean(axis=(1, 2, 3), keepdims=True)) / raw.std(axis=(1, 2, 3), keepdims=True)
    expected, brain = scale_to_16_bit(raw)
    scaled, same_brain = scale_to_16_bit(scored)
    np.testing.assert_array_equal(brain, same_brain)
    np.testing.assert_array_equal(brain, a_brain("T1") > 0)
    assert np.abs(scaled.astype(int) - expected).max() <= 1
    assert (scaled[:, ~brain] == 0).all()


def test_scaling_reaches_black_and_white_and_keeps_order():
    values = a_brain("T2")[None].astype(np.float32)
    scaled, brain = scale_to_16_bit(values, (10, 90))
    assert scaled.dtype == np.uint16
    inside, levels = values[0][brain], scaled[0][brain].astype(int)
    assert (levels == 0).mean() == pytest.approx(0.1, abs=0.03)
    assert (levels == 65535).mean() == pytest.approx(0.1, abs=0.03)
    assert (np.diff(levels[np.argsort(inside)]) >= 0).all()


@pytest.mark.parametrize("values", [np.zeros((1, 4, 4, 4)), np.pad(np.ones((1, 2, 2, 2)), [(0, 0)] + [(1, 1)] * 3)])
def test_a_brain_without_contrast_cannot_be_scaled(values):
    with pytest.raises(ValueError, match="channel 0 of `volume` to vary within the foreground"):
        scale_to_16_bit(values)


def test_healthy_volumes_are_negative_and_too_small_tumors_left_out(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    plain_case(tmp_path / "source" / "bert", present=False)
    path = prepare_brats(tmp_path / "source", tmp_path / "out")
    assert [(item["id"], item["label"]) for item in cases_of(path)] == [("anna", [1]), ("bert", [0])]
    path = prepare_brats(tmp_path / "source", tmp_path / "larger", min_tumor_pixels=12)
    assert [(item["id"], item["label"]) for item in cases_of(path)] == [("bert", [0])]
    assert set(read(path)["statistics"]) == {"bert"}


def test_the_rule_is_logged(tmp_path, caplog):
    plain_case(tmp_path / "source" / "anna")
    with caplog.at_level("INFO", logger="monai_wsss.data.brats"):
        prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, slice_step=2)
    assert "3 axial slices (step 2, brain on at least 2.0% of the slice, percentiles 0.5 and 99.5" in caplog.text
    assert "2 with, 1 without tumor" in caplog.text


# --- which sequences


def test_by_default_the_sequences_that_all_cases_have(tmp_path):
    plain_case(tmp_path / "source" / "anna", skip=("T1",))
    plain_case(tmp_path / "source" / "bert", skip=("T2",))
    path = prepare_brats(tmp_path / "source", tmp_path / "out")
    assert read(path)["modality"] == {"0": "T1c", "1": "FLAIR"}
    assert all(len(item["image"]) == 2 for item in cases_of(path))


def test_a_wanted_sequence_that_a_case_lacks(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    plain_case(tmp_path / "source" / "bert", skip=("T2",))
    with pytest.raises(
        DataError, match=r"Case bert .* has T1, T1c, FLAIR, but not T2: add the file, move the case away"
    ):
        prepare_brats(tmp_path / "source", tmp_path / "out", modalities=["T2"])
    assert not (tmp_path / "out").exists()


def test_cases_without_a_sequence_in_common(tmp_path):
    plain_case(tmp_path / "source" / "anna", skip=("T1", "T1c", "T2"))
    plain_case(tmp_path / "source" / "bert", skip=("FLAIR",))
    with pytest.raises(DataError, match="has FLAIR, but not any sequence that all other cases have"):
        prepare_brats(tmp_path / "source", tmp_path / "out")


# --- bad input


def test_a_case_without_segmentation_has_no_label(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    plain_case(tmp_path / "source" / "bert", skip=("seg",))
    with pytest.raises(DataError, match=r"Case bert .*no segmentation \(`seg`\).*`prepare folder`.*CSV table"):
        prepare_brats(tmp_path / "source", tmp_path / "out")


def test_no_case_at_all(tmp_path):
    (tmp_path / "source" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"No case found in .*source: give a BraTS folder"):
        prepare_brats(tmp_path / "source", tmp_path / "out")
    with pytest.raises(DataError, match=r"Cannot open the folder .*nowhere .*check the path"):
        prepare_brats(tmp_path / "nowhere", tmp_path / "out")


def test_a_sequence_twice(tmp_path):
    plain_case(tmp_path / "anna")
    save(tmp_path / "anna" / "t2_flair.nii.gz", a_brain("FLAIR"))
    with pytest.raises(DataError, match=r"are both FLAIR in .*keep one"):
        find_brats_cases(tmp_path)


def test_equal_names_that_cannot_be_told_apart(tmp_path):
    for place in ("first", "second"):
        plain_case(tmp_path / place / "HGG" / "0001")
    with pytest.raises(DataError, match="The case HGG_0001 is there 2 times"):
        find_brats_cases(tmp_path)


def test_sequences_on_different_grids(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    save(tmp_path / "source" / "anna" / "t2.nii.gz", a_brain("T2")[:, :, :-1])
    with pytest.raises(DataError, match=r"t2\.nii\.gz of 12 x 10 x 7.*register and resample"):
        prepare_brats(tmp_path / "source", tmp_path / "out")


def test_a_segmentation_with_another_affine(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    save(tmp_path / "source" / "anna" / "seg.nii.gz", a_tumor(), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(DataError, match=r"affines of .*flair\.nii\.gz and .*seg\.nii\.gz differ"):
        prepare_brats(tmp_path / "source", tmp_path / "out")


def test_broken_files_are_named(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    file = tmp_path / "source" / "anna" / "t1c.nii.gz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"Cannot read .*t1c\.nii\.gz"):
        prepare_brats(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_a_decathlon_file_with_too_few_channels(tmp_path):
    decathlon(tmp_path / "source")
    file = tmp_path / "source" / "Task01_BrainTumour" / "imagesTr" / "BRATS_002.nii.gz"
    save(file, np.stack([a_brain("T1"), a_brain("T2")], axis=-1))
    with pytest.raises(DataError, match=r"BRATS_002\.nii\.gz has 3 dimensions and 2 channels, but a volume with 4"):
        prepare_brats(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("names", [["FLAIR"], {"0": "FLAIR", "1": "FLAIR"}, {"0": "CT"}, 3])
def test_a_dataset_json_that_does_not_name_the_channels(tmp_path, names):
    decathlon(tmp_path, json_names=names)
    with pytest.raises(DataError, match=r'dataset\.json .*"modality"'):
        find_brats_cases(tmp_path)


def test_slices_say_along_which_axis_they_were_cut_and_volumes_do_not(tmp_path):
    axial = np.diag([-1.0, 1.0, 3.0, 1.0])
    save(tmp_path / "source" / "anna" / "flair.nii.gz", a_brain("FLAIR"), axial)
    save(tmp_path / "source" / "anna" / "seg.nii.gz", a_tumor(), axial)
    header = load_header(prepare_brats(tmp_path / "source", tmp_path / "slices", as_slices=True))
    assert (header["slicing_axis"], header["in_plane_axes"]) == ("SI", "LA")
    assert "slicing_axis" not in load_header(prepare_brats(tmp_path / "source", tmp_path / "volumes"))


def test_slices_of_a_sagittal_volume(tmp_path):
    """Refuse a volume whose third axis runs from left to right, since its slices are not axial."""
    sagittal = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    save(tmp_path / "source" / "anna" / "flair.nii.gz", a_brain("FLAIR"), sagittal)
    save(tmp_path / "source" / "anna" / "seg.nii.gz", a_tumor(), sagittal)
    prepare_brats(tmp_path / "source", tmp_path / "volumes")
    with pytest.raises(DataError, match=r"third axis of case anna .* does not run along the body, its axes are ASR"):
        prepare_brats(tmp_path / "source", tmp_path / "slices", as_slices=True)


def test_a_binary_image_cannot_become_slices(tmp_path):
    save(tmp_path / "source" / "anna" / "flair.nii.gz", (a_brain("FLAIR") > 0).astype(np.uint8))
    save(tmp_path / "source" / "anna" / "seg.nii.gz", a_tumor())
    with pytest.raises(DataError, match=r"Case anna .* cannot be scaled: .*vary within the foreground"):
        prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True)


def test_nothing_left(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    with pytest.raises(DataError, match=r"Nothing of .* is left: lower `min_brain_fraction` \(0\.9\)"):
        prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, min_brain_fraction=0.9)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"percentiles": (50, 50)}, "`percentiles` to be two rising numbers"),
        ({"percentiles": (-1, 50)}, "`percentiles` to be two rising numbers"),
        ({"slice_step": 0}, "`slice_step` to be at least 1, got 0"),
        ({"min_tumor_pixels": 0}, "`min_tumor_pixels` to be at least 1, got 0"),
        ({"min_brain_fraction": 2.0}, "`min_brain_fraction` to be from 0 to 1, got 2.0"),
        ({"modalities": ["ADC"]}, "`modalities` to be one of T1, T1c, T2, FLAIR, got 'ADC'"),
        ({"modalities": []}, "`modalities` to name at least one"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, words):
    plain_case(tmp_path / "source" / "anna")
    with pytest.raises(ValueError, match=words):
        prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, **wrong)


def test_the_split_of_the_paper_is_8_to_1_to_1_and_scored_on_validation(tmp_path):
    for number in range(10):
        plain_case(tmp_path / "source" / f"subject{number}")
    slices = {"modalities": ["FLAIR"], "as_slices": True, "min_brain_fraction": 0.1}
    file = prepare_brats(tmp_path / "source", tmp_path / "out", split="paper", fractions=(0.0, 0.5, 0.5), **slices)
    subjects = [
        {item["subject"] for item in load_datalist(file, split)} for split in ("training", "validation", "test")
    ]
    assert [len(group) for group in subjects] == [8, 1, 1]
    header = json.loads(file.read_text(encoding="utf-8"))
    assert header["labels"] == "of slices, from the segmentation: tumor in 1 pixels or more"
    assert (header["split"], header["scored_split"], header["modality"]) == ("paper", "validation", {"0": "FLAIR"})
    with pytest.raises(ValueError, match="`split`"):
        prepare_brats(tmp_path / "source", tmp_path / "two", split="given")


def test_the_split_of_the_paper_says_what_its_tables_are_of(tmp_path, caplog):
    for number in range(10):
        plain_case(tmp_path / "source" / f"subject{number}")
    prepare_brats(tmp_path / "source", tmp_path / "out", split="paper", modalities=["FLAIR"])
    assert "FLAIR slices with brain on at least a tenth" in caplog.text


def test_prepared_volumes_below_the_root_are_no_cases(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    plain_case(tmp_path / "source" / "bert")
    first = prepare_brats(tmp_path / "source", tmp_path / "source" / "one")
    second = prepare_brats(tmp_path / "source", tmp_path / "source" / "two")
    assert (
        len(json.loads(first.read_text(encoding="utf-8"))["statistics"])
        == len(json.loads(second.read_text(encoding="utf-8"))["statistics"])
        == 2
    )


def test_all_faults_are_told_at_once(tmp_path):
    for name in ("anna", "bert", "carl", "dora"):
        plain_case(tmp_path / "source" / name)
    for name in ("anna", "bert"):
        next((tmp_path / "source" / name).glob("seg*")).unlink()
    with pytest.raises(DataError) as caught:
        prepare_brats(tmp_path / "source", tmp_path / "out")
    assert str(caught.value).count("has no segmentation") == 2
    for name in ("anna", "bert"):
        plain_case(tmp_path / "source" / name)
    for name in ("carl", "dora"):
        next((tmp_path / "source" / name).glob("seg*")).write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        prepare_brats(tmp_path / "source", tmp_path / "out")
    assert [name in line for name, line in zip(("carl", "dora"), str(caught.value).splitlines(), strict=True)] == [
        True
    ] * 2


def test_masks_and_sequences_that_are_written_anew_keep_the_forms_of_the_first(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    turned = np.diag([-2.0, -2, 3, 1])
    for path in (tmp_path / "source" / "anna").iterdir():
        image = nibabel.load(path)
        data = np.asarray(image.dataobj)
        copy = nibabel.Nifti1Image(data, LPS)
        copy.set_sform(LPS, 2)
        copy.set_qform(turned, 1)
        copy.header["pixdim"][1:4] = 1, 1, 1
        copy.header["descrip"] = b"text" if path.name.startswith("t2") else b""
        nibabel.save(copy, path)
    prepare_brats(tmp_path / "source", tmp_path / "out")
    written = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert len(written) == 5
    for path in written:
        header = nibabel.load(path).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
        np.testing.assert_allclose(header.get_sform(), LPS)
        points = [
            SimpleITK.ReadImage(str(one)).TransformIndexToPhysicalPoint((3, 4, 5))
            for one in (path, tmp_path / "source" / "anna" / "t1.nii.gz")
        ]
        np.testing.assert_allclose(*points, atol=1e-5)


def by_grade(folder: Path, high: int, low: int) -> Path:
    for grade, count in (("HGG", high), ("LGG", low)):
        for number in range(count):
            plain_case(folder / grade / f"{grade.lower()}_{number:03d}")
    return folder


def test_the_split_of_cmer_keeps_the_share_of_high_grades(tmp_path, caplog):
    source = by_grade(tmp_path / "source", high=16, low=8)
    file = prepare_brats(source, tmp_path / "out", split="cmer", modalities=["FLAIR"])
    subjects = {split: {item["subject"] for item in load_datalist(file, split)} for split in ("training", "test")}
    assert {split: len(names) for split, names in subjects.items()} == {"training": 20, "test": 2}
    assert sum(name.startswith("hgg") for name in subjects["training"]) in (13, 14)  # of 20, the share is 13.3
    assert "20 training, not 271, 2 validation, not 32, 2 test, not 32" in caplog.text
    assert load_header(file)["split"] == "cmer"
    again = prepare_brats(source, tmp_path / "again", split="cmer", modalities=["FLAIR"])
    assert {item["subject"] for item in load_datalist(again, "test")} == subjects["test"]


def test_the_split_of_cmer_has_the_numbers_of_the_paper_on_brats_2019(monkeypatch):
    """259 high and 76 low grades: 271, 32 and 32, with the same share of high grades in each."""
    cases = [
        BratsCase(f"BraTS19_{number}", Path(f"/data/{'HGG' if number < 259 else 'LGG'}/BraTS19_{number}"), {}, None)
        for number in range(335)
    ]
    splits = splits_by_grade(cases, seed=0)
    counts = {split: list(splits.values()).count(split) for split in ("training", "validation", "test")}
    assert counts == {"training": 271, "validation": 32, "test": 32}
    for split, count in counts.items():
        high = sum(name == split for subject, name in splits.items() if int(subject.split("_")[1]) < 259)
        assert abs(high / count - 259 / 335) < 1 / 32


def test_the_split_of_cmer_needs_the_folders_of_the_grades(tmp_path):
    plain_case(tmp_path / "source" / "anna")
    plain_case(tmp_path / "source" / "bert")
    with pytest.raises(DataError, match=r"Case anna .* below one folder HGG or LGG(.|\n)*Case bert"):
        prepare_brats(tmp_path / "source", tmp_path / "out", split="cmer")
    assert not (tmp_path / "out").exists()


def test_slices_say_where_they_lie_in_their_volume(tmp_path):
    for word in ("flair", "seg"):
        save_mha(tmp_path / "source" / "anna" / f"{word}.mha", a_brain("FLAIR") if word == "flair" else a_tumor())
    file = prepare_brats(tmp_path / "source", tmp_path / "out", as_slices=True, fractions=(1.0, 0.0, 0.0))
    items = load_datalist(file, "training", masks=True)
    assert [item["slice"] for item in items] == [int(item["id"].rpartition("_")[2]) for item in items]
    assert {item["volume"] for item in items} == {"anna"}
    assert all(item["voxel_size"] == [1.0, 2.0, 3.0] for item in items)
    assert "volume" not in load_datalist(file, "training")[0]  # training does not read it
    content = json.loads(file.read_text(encoding="utf-8"))
    content["training"][0]["slice"] = -1
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="slice -1 and voxel_size"):
        load_datalist(file, "training")
