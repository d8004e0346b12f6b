# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Slices of volumes: along one anatomical axis however files store them, numbered as the table means it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from monai_wsss._checks import DataError
from monai_wsss.data import load_datalist, load_header
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.reading import read_image, read_labels

VALUES = np.random.default_rng(0).integers(1, 2000, (9, 8, 6)).astype(np.int16)
AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])
AFFINE[:3, 3] = 20, 30, -10
AXIAL = [1, 0, 0, 0, 1, 0]


def store(path: Path, codes: str, values: np.ndarray = VALUES, tilt: float = 0.0) -> None:
    """Write the same voxels in the same places in another array order, perhaps oblique."""
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    affine = AFFINE @ inv_ornt_aff(turn, values.shape)
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    path.parent.mkdir(parents=True, exist_ok=True)
    oblique = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ affine
    nibabel.save(nibabel.Nifti1Image(apply_orientation(values, turn), oblique), path)


def cut(root: Path, *rows: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Prepare slices; give the items by their ids."""
    (root / "labels.csv").write_text("id,slice,label,split\n" + "".join(f"{row},train\n" for row in rows))
    path = prepare_folder(root / "images", root / "labels.csv", root / "out", as_slices=True, **options)
    return {item["id"]: item for item in load_datalist(path, "training", masks="masks" in options)}


def pixels(item: dict[str, Any]) -> np.ndarray:
    """Give the pixels of a slice, of its first modality."""
    files = item["image"]
    return read_image(files[0] if isinstance(files, list) else files)[0].numpy()


@pytest.mark.parametrize("tilt", [0.0, 30.0])
def test_volumes_are_cut_along_one_anatomical_axis_however_files_store_them(tmp_path, caplog, tilt):
    mask = (VALUES > 1990).astype(np.uint8)
    orders = {"a": "LPS", "b": "PSL", "c": "IRA", "d": "LPI"}
    for name, codes in orders.items():
        store(tmp_path / "images" / f"{name}.nii.gz", codes, tilt=tilt)
        store(tmp_path / "masks" / f"{name}.nii.gz", codes, mask, tilt=tilt)
    found = cut(tmp_path, "a,1,1", "b,1,1", "c,1,1", "d,4,1", masks=tmp_path / "masks")
    expected = pixels(found["a_001"])
    for item in found.values():
        np.testing.assert_array_equal(pixels(item), expected)
        np.testing.assert_array_equal(read_labels(item["mask"])[0].numpy(), mask[..., 1])
        np.testing.assert_allclose(item["voxel_size"], [1.5, 1.5, 4.0], rtol=1e-5)
    assert [(item["volume"], item["slice"]) for item in found.values()] == [("a", 1), ("b", 1), ("c", 1), ("d", 4)]
    header = load_header(tmp_path / "out" / "datalist.json")
    assert (header["slicing_axis"], header["in_plane_axes"]) == ("SI", "LP")
    (record,) = (one for one in caplog.records if one.name.endswith("slice_cutting"))
    assert 'Volume "b" is stored along other axes (PSL): it is cut along SI all the same, and turned to LPS' in (
        record.message
    )


@pytest.mark.parametrize(("codes", "tilt"), [("LPS", 44.0), ("PSL", 40.0)])
def test_slices_that_lie_oblique_are_told(tmp_path, caplog, codes, tilt):
    store(tmp_path / "images" / "a.nii.gz", codes, tilt=tilt)
    cut(tmp_path, "a,1,1")
    assert 'Volume "a" lies oblique: its slices, cut along the array axis that is nearest to SI,' in caplog.text
    assert f"are tilted by {tilt:g} degrees" in caplog.text


@pytest.mark.parametrize(("axis", "in_plane"), [("SI", "LP"), ("RL", "PI"), ("AP", "LI")])
def test_an_axis_may_be_named(tmp_path, axis, in_plane):
    for name, codes in zip("ab", {"SI": ("PSL", "LIP"), "RL": ("LPS", "LIP"), "AP": ("SPR", "LPS")}[axis], strict=True):
        store(tmp_path / "images" / f"{name}.nii.gz", codes)
    found = cut(tmp_path, "a,1,1", "b,1,1", slicing_axis=axis)
    header = load_header(tmp_path / "out" / "datalist.json")
    assert (header["slicing_axis"], header["in_plane_axes"]) == (axis, in_plane)
    np.testing.assert_array_equal(pixels(found["a_001"]), pixels(found["b_001"]))
    with pytest.raises(ValueError, match="Expected `slicing_axis` to be one of RL, AP, SI"):
        cut(tmp_path, "a,1,1", slicing_axis="XY")


def test_slices_are_axial_where_nothing_else_is_said(tmp_path, caplog):
    store(tmp_path / "images" / "a.nii.gz", "PSL")
    found = cut(tmp_path, "a,0,1", "a,5,1")
    for item, index in zip(found.values(), (0, 5), strict=True):
        assert np.corrcoef(pixels(item).ravel(), VALUES[..., index].ravel())[0, 1] > 0.99
    assert "numbered from 0 on toward S; --slicing-axis names another axis" in caplog.text


# DICOM ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path, save_dicom):
    """Write a series of six slices, 3 mm apart, whose number 1 is at the top; pixel (0, 0) is the number."""

    def write(name: str = "a", directions: Any = AXIAL, step: Any = (0, 0, -3), begin: int = 1, **tags: Any) -> None:
        for number in range(1, 7):
            plane = np.full((5, 7), 1000, np.uint16)
            plane[0, 0], plane[1, :3], plane[2, :3] = number * 100, 5000, 50
            place = {"ImagePositionPatient": [n + (number - 1) * s for n, s in zip((-8, -9, 15), step, strict=True)]}
            own = {"InstanceNumber": begin + number - 1, "ImageOrientationPatient": list(directions)} | place | tags
            save_dicom(tmp_path / "images" / name / f"IM{number:04d}.dcm", plane, **own)

    return write


def number_of(item: dict[str, Any], of: dict[str, dict[str, Any]]) -> int:
    """Give the InstanceNumber of a slice, from the rank of its first pixel among those of all slices."""
    levels = sorted(pixels(one)[0, 0] for one in of.values())
    return 1 + levels.index(pixels(item)[0, 0])


ALL = {
    "index": [0, 1, 2, 3, 4, 5],
    "instance": [6, 5, 4, 3, 2, 1],
    "position": [0, 3.2, 5.9, 9, 12, 15],
}


@pytest.mark.parametrize("numbers", ALL)
def test_slices_are_numbered_as_the_table_says(tmp_path, series, caplog, numbers):
    series()
    found = cut(tmp_path, *(f"a,{one},1" for one in ALL[numbers]), slice_numbers=numbers)
    assert [number_of(item, found) for item in found.values()] == [6, 5, 4, 3, 2, 1], "from the feet upward"
    names = {"index": "a_000", "instance": "a_006", "position": "a_0"}
    assert next(iter(found)) == names[numbers]
    assert ("InstanceNumber runs the other way" in caplog.text) == (numbers == "index")
    assert ('in "a" toward S' in caplog.text) == (numbers == "index")


ACROSS: dict[str, Any] = {"slice_numbers": "position", "slicing_axis": "RL"}


def test_positions_count_toward_the_left_and_the_back_as_in_dicom(tmp_path, series):
    series("a", (0, 1, 0, 0, 0, -1), (-3, 0, 0))  # toward the right
    found = cut(tmp_path, "a,-8,1", "a,-11,1", "a,-14,1", "a,-17,1", "a,-20,1", "a,-23,1", **ACROSS)
    assert [number_of(item, found) for item in found.values()] == [1, 2, 3, 4, 5, 6]


def test_a_series_of_other_than_axial_images_has_to_name_its_axis(tmp_path, series):
    series("a", (0, 1, 0, 0, 0, -1), (-3, 0, 0))
    with pytest.raises(DataError, match=r'series "a" lie across RL, so they are not axial: give --slicing-axis RL if'):
        cut(tmp_path, "a,1,1")
    rows = [f"a,{one},1" for one in range(1, 7)]
    found = cut(tmp_path, *rows, slice_numbers="instance", slicing_axis="RL")
    assert [number_of(item, found) for item in found.values()] == [1, 2, 3, 4, 5, 6]


def test_a_series_in_rising_order_is_not_told(tmp_path, series, caplog):
    series(step=(0, 0, 3))
    cut(tmp_path, "a,0,1")
    assert "InstanceNumber" not in caplog.text


def test_frames_of_an_enhanced_file_are_numbered_from_1_on(tmp_path, save_dicom):
    frames = np.full((3, 5, 7), 1000, np.uint16)
    frames[:, 0, 0], frames[:, 1, 1] = [100, 200, 300], 5000
    tags = {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": AXIAL, "Modality": "RTDOSE"}
    save_dicom(tmp_path / "images" / "a.dcm", frames, GridFrameOffsetVector=[0, -2, -4], **tags)
    found = cut(tmp_path, "a,1,1", "a,2,1", "a,3,1", slice_numbers="instance")
    assert [number_of(item, found) for item in found.values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["a,0,1"], {"slice_numbers": "instance"}, r'slice is 0, but volume "a" has the instances 1 to 6'),
        (["a,1.5,1"], {"slice_numbers": "instance"}, r'is "1.5": write its InstanceNumber'),
        (["a,z,1"], {"slice_numbers": "position"}, r'is "z": write its position in millimeters, as 12.5'),
        (["a,17,1"], {"slice_numbers": "position"}, r"is at 17 mm, but volume .a. reaches from 0 to 15 mm along SI"),
        (["a,3,1", "a,3.4,1"], {"slice_numbers": "position"}, r"row 3: this slice is also in .*row 2: give each"),
        (["a,3,1"], {"slice_numbers": "instance", "slicing_axis": "RL"}, r"has no images with numbers along RL"),
    ],
)
def test_numbers_that_no_slice_has(tmp_path, series, rows, options, message):
    series()
    with pytest.raises(DataError, match=message):
        cut(tmp_path, *rows, **options)


def test_modalities_share_their_numbers(tmp_path, series):
    for name in ("t1", "flair"):
        series(f"a/{name}")
    found = cut(tmp_path, *(f"a,{number},1" for number in range(1, 7)), slice_numbers="instance")
    assert [number_of(item, found) for item in found.values()] == [1, 2, 3, 4, 5, 6]
    assert {len(item["image"]) for item in found.values()} == {2}


def test_modalities_with_other_numbers_are_cut_by_index_alone(tmp_path, series):
    series("a/t1")
    series("a/flair", begin=7)
    with pytest.raises(
        DataError, match=r'Images of "a" have no InstanceNumber, share one, or differ in it by modality'
    ):
        cut(tmp_path, "a,1,1", slice_numbers="instance")
    found = cut(tmp_path, *(f"a,{index},1" for index in range(6)))
    assert [number_of(item, found) for item in found.values()] == [6, 5, 4, 3, 2, 1], "from the feet upward"


def test_numbers_that_files_do_not_say(tmp_path, series):
    series("a", InstanceNumber=1)
    with pytest.raises(DataError, match=r'Images of "a" have no InstanceNumber, share one, or .*: give'):
        cut(tmp_path, "a,1,1", slice_numbers="instance")
    series("b", PixelSpacing=None)
    with pytest.raises(
        DataError, match=r'No file says where the slices of "b" lie in millimeters: give --slice-numbers index'
    ):
        cut(tmp_path, "b,3,1", slice_numbers="position")
    store(tmp_path / "images" / "c.nii.gz", "LPS")
    with pytest.raises(DataError, match=r'Volume "c" has no images with numbers along SI: only DICOM'):
        cut(tmp_path, "c,3,1", slice_numbers="instance")
    with pytest.raises(ValueError, match="Expected `slice_numbers` to be one of"):
        cut(tmp_path, "c,3,1", slice_numbers="file")
