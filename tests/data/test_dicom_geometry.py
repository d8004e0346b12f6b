# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Where the slices of DICOM series lie: orders, oblique and tilted stacks, one sentence where they make no stack."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_wsss._checks import DataError
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.reading import affine_of, image_format, read_image

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
ROWS, COLUMNS = 5, 7
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Save = Callable[..., Path]


def plane(value: int) -> np.ndarray:
    """Make a slice whose first pixel tells which one it is."""
    pixels = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS)
    pixels[0, 0] = 100 + value
    return pixels


def save_series(
    save: Save,
    folder: Path,
    positions: Sequence[Sequence[float]],
    directions: Sequence[float] = AXIAL,
    each: Sequence[dict[str, Any]] | None = None,
    **tags: Any,
) -> Path:
    """Write one file per position, in this order; pixel (0, 0) is 100 and the number of the slice."""
    for number, position in enumerate(positions):
        own = {"ImagePositionPatient": list(position), "ImageOrientationPatient": list(directions)}
        own |= {"InstanceNumber": number + 1} | tags | (each[number] if each else {})
        save(folder / f"{number:02d}.dcm", plane(number), **own)
    return folder


def along(step: float, count: int = 6) -> list[tuple[float, float, float]]:
    return [(-8.0, -9.0, step * number) for number in range(count)]


def group(**sequences: dict[str, Any]) -> Dataset:
    """Make a functional group."""
    made = Dataset()
    for name, elements in sequences.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(made, name, DicomSequence([item]))
    return made


def save_enhanced(
    save: Save, path: Path, heights: Sequence[float], each: Sequence[dict[str, Any]] | None = None, **tags: Any
) -> Path:
    """Write an enhanced file whose frames lie at these heights."""
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7], "SliceThickness": 2},
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
    )
    frames = [
        group(PlanePositionSequence={"ImagePositionPatient": [-8, -9, height]}, **(each[number] if each else {}))
        for number, height in enumerate(heights)
    ]
    tags = {"SharedFunctionalGroupsSequence": DicomSequence([shared]), "PixelSpacing": None} | tags
    tags["PerFrameFunctionalGroupsSequence"] = DicomSequence(frames)
    return save(path, np.stack([plane(number) for number in range(len(heights))]), **tags)


def order_of(image: Any) -> list[int]:
    return [int(value) - 100 for value in image[0, 0, 0]]


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


# Order and place -----------------------------------------------------------------------------------------------------


def test_files_are_ordered_by_position_whatever_their_names_and_numbers_say(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "s", [(-8, -9, height) for height in (4, 0, 6, 2)])
    image = read_image(folder)
    assert order_of(image) == [1, 3, 0, 2]
    np.testing.assert_allclose(affine_of(image), [[-0.7, 0, 0, 8], [0, -0.5, 0, 9], [0, 0, 2, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("directions", "step"),
    [(SAGITTAL, (-2.0, 0, 0)), ((1, 0, 0, 0, 0, -1), (0, 3.0, 0)), ((0.8, 0.6, 0, 0, 0, -1), (-1.2, 1.6, 0))],
)
def test_an_affine_maps_every_pixel_to_its_place(tmp_path, save_dicom, directions, step):
    positions = [tuple(np.array([-5, 6, 7]) + number * np.array(step)) for number in range(4)]
    folder = save_series(save_dicom, tmp_path / "s", positions, directions)
    image = read_image(folder)
    for place, number in enumerate(order_of(image)):
        for column, row in ((0, 0), (6, 4)):
            # DICOM PS3.3 C.7.6.2.1.1, in LPS.
            wanted = np.array(positions[number]) + np.array(directions[:3]) * 0.7 * column
            wanted = wanted + np.array(directions[3:]) * 0.5 * row
            found = TO_RAS @ affine_of(image) @ [column, row, place, 1]
            np.testing.assert_allclose(found[:3], wanted, atol=1e-6)


@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL])
def test_a_straight_stack_lies_where_itk_puts_it(tmp_path, save_dicom, directions):
    normal = np.cross(directions[:3], directions[3:])
    folder = save_series(save_dicom, tmp_path / "s", [tuple(3.0 * number * normal) for number in range(4)], directions)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    wanted = SimpleITK.ReadImage(names)
    image = read_image(folder)
    np.testing.assert_array_equal(image[0].numpy(), SimpleITK.GetArrayFromImage(wanted).T)
    for index in ((0, 0, 0), (6, 4, 3)):
        point = wanted.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((TO_RAS @ affine_of(image) @ [*index, 1])[:3], point, atol=1e-5)


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path, save_dicom, caplog):
    positions = [(-8, 1.5 * number, 3.0 * number) for number in range(6)]
    folder = save_series(save_dicom, tmp_path / "s", positions, GantryDetectorTilt=26.6)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(affine_of(read_image(folder))[:3, 2], [0, -1.5, 3])
    assert "s are tilted by 26.6 degrees: its affine is sheared" in caplog.text


def test_positions_with_the_jitter_of_rounding_are_taken(tmp_path, save_dicom):
    jitter = [0, 0.004, -0.003, 0.005, 0.002, -0.004, 0]
    folder = save_series(save_dicom, tmp_path / "s", [(-8 + j, -9, 0.625 * n + j) for n, j in enumerate(jitter)])
    np.testing.assert_allclose(affine_of(read_image(folder))[:3, 2], [0, 0, 0.625], atol=1e-9)


def test_positions_rule_over_the_stated_spacing(tmp_path, save_dicom, caplog):
    folder = save_series(save_dicom, tmp_path / "s", along(3), SpacingBetweenSlices=5, SliceThickness=5)
    with caplog.at_level(logging.WARNING):
        assert affine_of(read_image(folder))[2, 2] == 3
    assert "lie 3 mm apart by their positions, which count, but 5 mm by SpacingBetweenSlices" in caplog.text


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_single_slice_is_two_dimensional_and_keeps_its_place(tmp_path, save_dicom, as_folder):
    folder = save_series(save_dicom, tmp_path / "s", [(1, 2, 3)], SAGITTAL, SliceThickness=4)
    image = read_image(folder if as_folder else folder / "00.dcm")
    assert image.shape == (1, COLUMNS, ROWS)
    np.testing.assert_allclose(affine_of(image), [[0, 0, 4, -1], [-0.7, 0, 0, -2], [0, -0.5, 0, 3], [0, 0, 0, 1]])


def test_hidden_files_folders_and_reports_are_passed_over(tmp_path, save_dicom, caplog):
    folder = save_series(save_dicom, tmp_path / "s", along(2, 3))
    (folder / "._00.dcm").write_bytes(b"\0\5\x16\7AppleDouble")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "notes.txt").write_text("note")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    save_dicom(folder / "report.dcm", plane(0), Rows=None, Columns=None, Modality="SR", SeriesInstanceUID="9.9")
    with caplog.at_level(logging.WARNING):
        assert read_image(folder).shape == (1, COLUMNS, ROWS, 3)
    assert "holds 1 DICOM files without an image, first report.dcm: they are passed over" in caplog.text
    only_hidden = tmp_path / "hidden"
    only_hidden.mkdir()
    shutil.copy(folder / "00.dcm", only_hidden / "._00.dcm")
    assert image_format(only_hidden) is None


# Series that make no stack -------------------------------------------------------------------------------------------


def test_a_missing_slice_is_named_by_its_place_and_neighbors(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "case", [one for one in along(3, 10) if one[2] != 12])
    refused(folder, r"case lacks 1 slice, between 9 and 15 mm \(03.dcm, 04.dcm\), while the others are 3 mm apart")


def test_several_missing_slices(tmp_path, save_dicom):
    heights = [0, 2, 4, 10, 12, 16, 18]
    folder = save_series(save_dicom, tmp_path / "case", [(0, 0, height) for height in heights])
    refused(folder, r"lacks 3 slices, between 4 and 10 mm \(02.dcm, 03.dcm\), 12 and 16 mm")


def test_uneven_steps(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "case", [(0, 0, height) for height in (0, 3, 6, 9, 13.5, 18)])
    refused(folder, r"case are not evenly spaced: 3 to 4.5 mm, first 4.5 mm between 03.dcm and 04.dcm")


def test_a_slice_that_is_shifted_to_a_side(tmp_path, save_dicom):
    positions = along(3)
    positions[2] = (-3.0, -9.0, 6.0)
    refused(
        save_series(save_dicom, tmp_path / "case", positions), r"case are shifted sideways, up to 5 mm from the line"
    )


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("EchoTime", (10, 20), r"echo time \(EchoTime\): 10(\.0)?, 20"),
        ("DiffusionBValue", (0.0, 1000.0), r"b-value \(DiffusionBValue\): 0.0, 1000.0"),
        ("TemporalPositionIdentifier", (1, 2), r"point in time \(TemporalPositionIdentifier\): 1, 2"),
        ("TriggerTime", (0, 40), r"trigger time \(TriggerTime\): 0(\.0)?, 40"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), r"type of image \(ImageType\)"),
        ("KVP", (80, 140), r"tube voltage \(KVP\): 80(\.0)?, 140"),
        ("AcquisitionNumber", (1, 2), r"acquisition number"),
    ],
)
def test_repeated_positions_say_which_tag_differs(tmp_path, save_dicom, keyword, values, words):
    positions = [one for one in along(3, 4) for _ in (0, 1)]
    each = [{keyword: values[number % 2], "ContentTime": f"1200{number:02d}"} for number in range(8)]
    folder = save_series(save_dicom, tmp_path / "case", positions, each=each, NumberOfTemporalPositions=2)
    refused(
        folder, rf"case holds 2 images at each of its 4 positions \(first 0.\.dcm, 0.\.dcm\), .*{words}.*keep one of"
    )


def test_a_copy_among_the_files(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "case", along(3))
    shutil.copy(folder / "02.dcm", folder / "copy of 02.dcm")
    refused(folder, r"holds 2 images at one position \(first 02.dcm, copy of 02.dcm\), which differ in no tag.*copies")


def test_two_stacks_side_by_side(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "case", [*along(3, 3), *((40.0, -9.0, z) for z in (0.0, 3.0, 6.0))])
    refused(folder, r"holds 2 images at each of its 3 positions .* which lie side by side, up to 48 mm apart")


def save_with_localizer(save: Save, folder: Path, **tags: Any) -> Path:
    save_series(save, folder, along(3, 5))
    own = {"ImagePositionPatient": [0, -9, 9], "ImageOrientationPatient": list(SAGITTAL)} | tags
    save(folder / "99.dcm", plane(99), **own)
    return folder


def test_a_localizer_is_refused_or_left_out_on_request(tmp_path, save_dicom, caplog):
    folder = save_with_localizer(save_dicom, tmp_path / "case")
    refused(folder, r"holds 1 image of another orientation than the other 5 \(99.dcm\), perhaps localizers: move them")
    with caplog.at_level(logging.WARNING):
        image = read_image(folder, leave_out_localizers=True)
    assert image.shape == (1, COLUMNS, ROWS, 5)
    assert affine_of(image)[2, 2] == 3
    assert "(99.dcm): they are left out, as asked" in caplog.text


def test_localizers_of_another_series_are_known_by_their_type(tmp_path, save_dicom, caplog):
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.4"}
    folder = save_with_localizer(save_dicom, tmp_path / "case", SeriesDescription="Scout", **kind)
    refused(folder, r"case holds 2 DICOM series: keep one series in a folder \(.*5, first 00.dcm; 'Scout': 1, first 99")
    with caplog.at_level(logging.WARNING):
        assert read_image(folder, leave_out_localizers=True).shape[-1] == 5
    assert "holds 1 localizers, first 99.dcm: they are left out, as asked" in caplog.text


def test_slices_of_another_size(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "case", along(3, 4))
    larger = np.zeros((9, 9), np.uint16)
    save_dicom(folder / "9.dcm", larger, ImagePositionPatient=[0, 0, 12], ImageOrientationPatient=list(AXIAL))
    refused(folder, r"holds 1 image of another size than the other 4 \(9.dcm\)")


def test_pixels_of_several_sizes(tmp_path, save_dicom):
    each = [{"PixelSpacing": [0.5, 0.7 if number < 4 else 0.8]} for number in range(6)]
    refused(save_series(save_dicom, tmp_path / "case", along(3), each=each), r"case has pixels of several sizes \(")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", None),
        ("ImageOrientationPatient", None),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImagePositionPatient", [0, "nan", 0]),
    ],
)
def test_slices_without_a_place(tmp_path, save_dicom, keyword, value):
    folder = save_series(save_dicom, tmp_path / "case", along(3), **{keyword: value})
    if keyword == "ImagePositionPatient":
        each = [{keyword: value}] * 6
        folder = save_series(save_dicom, tmp_path / "case", along(3), each=each)
    refused(folder, rf"case has no valid {keyword} in 00.dcm")


def test_color_slices_are_no_volume(tmp_path, save_dicom):
    folder = tmp_path / "case"
    for number, position in enumerate(along(3, 3)):
        pixels = np.stack([plane(number) % 256] * 3, -1).astype(np.uint8)
        own = {"ImagePositionPatient": list(position), "ImageOrientationPatient": list(AXIAL)}
        save_dicom(folder / f"{number}.dcm", pixels, **own)
    refused(folder, r"case is a stack of 3 color images: give them one by one")


# Files of many frames ------------------------------------------------------------------------------------------------


def test_frames_of_an_enhanced_file_are_ordered_by_their_positions(tmp_path, save_dicom):
    path = save_enhanced(save_dicom, tmp_path / "e.dcm", [6, 0, 4, 2])
    image = read_image(path)
    assert order_of(image) == [1, 3, 2, 0]
    np.testing.assert_allclose(affine_of(image), [[-0.7, 0, 0, 8], [0, -0.5, 0, 9], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_frames_of_two_files_make_one_volume(tmp_path, save_dicom):
    save_enhanced(save_dicom, tmp_path / "s" / "a.dcm", [0, 4])
    save_enhanced(save_dicom, tmp_path / "s" / "b.dcm", [6, 2])
    image = read_image(tmp_path / "s")
    assert order_of(image) == [0, 1, 1, 0]
    assert affine_of(image)[2, 2] == 2


def test_every_frame_has_its_own_slope(tmp_path, save_dicom):
    each = [{"PixelValueTransformationSequence": {"RescaleSlope": 2, "RescaleIntercept": n}} for n in range(3)]
    image = read_image(save_enhanced(save_dicom, tmp_path / "e.dcm", [4, 2, 0], each))
    assert image[0, 0, 0].tolist() == [2 * 102 + 2, 2 * 101 + 1, 2 * 100]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ({"FrameContentSequence": "TemporalPositionIndex"}, (1, 2), r"point in time \(TemporalPositionIndex\): 1, 2"),
        ({"FrameContentSequence": "StackID"}, ("1", "2"), r"stack \(StackID\): 1, 2"),
        ({"MRDiffusionSequence": "DiffusionBValue"}, (0.0, 800.0), r"b-value \(DiffusionBValue\): 0.0, 800.0"),
        ({"MREchoSequence": "EffectiveEchoTime"}, (5.0, 9.0), r"echo time \(EffectiveEchoTime\): 5.0, 9.0"),
    ],
)
def test_repeated_frames_say_which_tag_differs(tmp_path, save_dicom, name, values, words):
    ((sequence, keyword),) = name.items()
    each = [{sequence: {keyword: values[number % 2]}} for number in range(6)]
    path = save_enhanced(save_dicom, tmp_path / "e.dcm", [0, 0, 2, 2, 4, 4], each)
    refused(path, rf"e.dcm holds 2 images at each of its 3 positions \(first e.dcm, frame 2 of e.dcm\), .*{words}")


def test_a_missing_frame_and_one_of_another_orientation(tmp_path, save_dicom):
    path = save_enhanced(save_dicom, tmp_path / "e.dcm", [0, 2, 6, 8])
    refused(path, r"lacks 1 slice, between 2 and 6 mm \(frame 2 of e.dcm, frame 3 of e.dcm\)")
    each: list[dict[str, Any]] = [{}, {}, {"PlaneOrientationSequence": {"ImageOrientationPatient": list(SAGITTAL)}}]
    path = save_enhanced(save_dicom, tmp_path / "f.dcm", [0, 2, 4], each)
    refused(path, r"holds 1 image of another orientation than the other 2 \(frame 3 of f.dcm\)")


def test_a_film_has_no_places(tmp_path, save_dicom):
    frames = np.stack([plane(number) for number in range(4)])
    refused(
        save_dicom(tmp_path / "us.dcm", frames, Modality="US"), r"us.dcm has no valid ImagePositionPatient .*a film\?"
    )


def test_slices_of_nuclear_medicine_are_stacked_by_their_spacing(tmp_path, save_dicom):
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-8, -9, 30], list(AXIAL)
    tags = {"DetectorInformationSequence": DicomSequence([detector]), "NumberOfSlices": 4, "Modality": "NM"}
    frames = np.stack([plane(number) for number in range(4)])
    image = read_image(save_dicom(tmp_path / "nm.dcm", frames, SpacingBetweenSlices=-3, SliceThickness=3, **tags))
    assert order_of(image) == [3, 2, 1, 0]
    np.testing.assert_allclose(affine_of(image)[:3, 2:], [[0, 8], [0, 9], [3, 21]])


def test_doses_are_stacked_by_their_offsets_and_scaled(tmp_path, save_dicom):
    tags = {"ImagePositionPatient": [-8, -9, 5], "ImageOrientationPatient": list(AXIAL), "Modality": "RTDOSE"}
    tags |= {"GridFrameOffsetVector": [0, 2.5, 5.0], "DoseGridScaling": 0.01}
    image = read_image(save_dicom(tmp_path / "d.dcm", np.stack([plane(number) for number in range(3)]), **tags))
    np.testing.assert_allclose(image[0, 0, 0], [1.0, 1.01, 1.02], rtol=1e-6)
    np.testing.assert_allclose(affine_of(image)[:3, 2:], [[0, 8], [0, 9], [2.5, 5]])


# Through `prepare folder` --------------------------------------------------------------------------------------------


def prepare(root: Path, *ids: str, **options: Any) -> Path:
    (root / "labels.csv").write_text("id,label,split\n" + "".join(f"{name},1,train\n" for name in ids))
    return prepare_folder(root / "images", root / "labels.csv", root / "out", **options)


def test_prepare_refuses_or_leaves_out_localizers(tmp_path, save_dicom):
    save_with_localizer(save_dicom, tmp_path / "images" / "scan")
    save_series(save_dicom, tmp_path / "images" / "ok", along(3, 5))
    with pytest.raises(DataError, match=r"scan holds 1 image of another orientation .*--leave-out-localizers"):
        prepare(tmp_path, "scan", "ok")
    shutil.rmtree(tmp_path / "out")
    prepare(tmp_path, "scan", "ok", leave_out_localizers=True)
    written = [nibabel.load(tmp_path / "out" / "images" / name / f"{name}.nii.gz") for name in ("scan", "ok")]
    np.testing.assert_array_equal(*(np.asarray(one.dataobj) for one in written))
    np.testing.assert_array_equal(written[0].affine, written[1].affine)


def test_prepare_passes_over_what_macos_leaves_beside_a_series(tmp_path, save_dicom):
    save_series(save_dicom, tmp_path / "images" / "a", along(3, 5))
    (tmp_path / "images" / "a" / "._00.dcm").write_bytes(b"\0\5\x16\7")
    shutil.copytree(tmp_path / "images" / "a", tmp_path / "images" / ".trash")
    (tmp_path / "images" / "__MACOSX").mkdir()
    (tmp_path / "images" / "__MACOSX" / "._00.dcm").write_bytes(b"\0\5\x16\7")
    prepare(tmp_path, "a")
    assert nibabel.load(tmp_path / "out" / "images" / "a" / "a.nii.gz").shape == (COLUMNS, ROWS, 5)


# What stands in a stack without a fault in its positions -------------------------------------------------------------


def test_positions_that_are_rounded_to_tenths_are_taken(tmp_path, save_dicom):
    folder = save_series(save_dicom, tmp_path / "s", [(0, 0, round(0.625 * n + 1e-4, 1)) for n in range(9)])
    np.testing.assert_allclose(affine_of(read_image(folder))[:3, 2], [0, 0, 0.625], atol=1e-9)


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("EchoTime", (10, 20), r"echo time \(EchoTime\) \(10(\.0)?, 20"),
        ("ConvolutionKernel", "AB", r"kernel \(ConvolutionKernel\) \(A, B\)"),
        ("FrameOfReferenceUID", ("1.2", "1.3"), r"frame of reference \(FrameOfReferenceUID\) \(1.2, 1.3\)"),
        ("PatientID", ("Doe", "Roe"), r"patient \(PatientID\) \(#\w{8}, #\w{8}\)"),
    ],
)
def test_images_of_several_kinds_in_one_stack_are_told(tmp_path, save_dicom, caplog, keyword, values, words):
    each = [{keyword: values[number // 3]} for number in range(6)]
    read_image(save_series(save_dicom, tmp_path / "s", along(3), each=each))
    (record,) = caplog.records
    assert re.search(rf"/s differ in their {words}", record.message)
    assert "Doe" not in record.message


def test_as_many_localizers_as_images_are_refused_also_on_request(tmp_path, save_dicom):
    save_series(save_dicom, tmp_path / "s", along(3, 2))
    for number in range(2):
        place = {"ImagePositionPatient": [3 * number, 0, 0], "ImageOrientationPatient": list(SAGITTAL)}
        save_dicom(tmp_path / "s" / f"s{number}.dcm", plane(9), **place)
    with pytest.raises(
        DataError, match=r"holds 2 images of another orientation .*nobody knows which are the localizer"
    ):
        read_image(tmp_path / "s", leave_out_localizers=True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_suffix_and_preamble_belong_to_their_series(tmp_path, save_dicom, syntax):
    save_series(save_dicom, tmp_path / "s", along(3), syntax=syntax)
    for path in list((tmp_path / "s").iterdir()):
        content = path.read_bytes()
        start = 132 + 12 + int.from_bytes(content[140:144], "little") if path.name == "05.dcm" else 0
        path.with_suffix("").write_bytes(content[start:])
        path.unlink()
    (tmp_path / "s" / "notes").write_text("08 " * 100)
    assert order_of(read_image(tmp_path / "s")) == [0, 1, 2, 3, 4, 5]


def test_the_slice_vector_of_nuclear_medicine_orders_its_frames(tmp_path, save_dicom):
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-8, -9, 30], list(AXIAL)
    tags = {"DetectorInformationSequence": DicomSequence([detector]), "NumberOfSlices": 4, "SpacingBetweenSlices": 3}
    frames = np.stack([plane(number) for number in range(4)])
    path = save_dicom(tmp_path / "nm.dcm", frames, Modality="NM", SliceVector=[2, 1, 4, 3], **tags)
    image = read_image(path)
    assert order_of(image) == [1, 0, 3, 2]
    assert affine_of(image)[2, 3] == 30


@pytest.mark.parametrize(
    ("offsets", "heights"), [([5, 7, 9], {0: 5, 1: 7, 2: 9}), ([0, 2, 4], {0: 5, 1: 3, 2: 1})], ids=["own", "steps"]
)
def test_planes_of_a_dose_by_their_heights_or_their_distances(tmp_path, save_dicom, offsets, heights):
    directions = [1, 0, 0, 0, -1, 0]  # the normal runs toward the feet
    tags = {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": directions, "Modality": "RTDOSE"}
    frames = np.stack([plane(number) for number in range(3)])
    image = read_image(save_dicom(tmp_path / "d.dcm", frames, GridFrameOffsetVector=offsets, **tags))
    affine = affine_of(image)
    for place, number in enumerate(order_of(image)):
        assert (affine @ [0, 0, place, 1])[2] == heights[number]


def test_one_position_for_many_frames_places_none_of_them(tmp_path, save_dicom):
    frames = np.stack([plane(number) for number in range(4)])
    tags = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(AXIAL)}
    refused(save_dicom(tmp_path / "a.dcm", frames, **tags), r"a.dcm has no valid ImagePositionPatient .*4 images lie")


def test_a_mosaic_is_refused_and_frames_that_are_only_called_so_are_read(tmp_path, save_dicom):
    kind = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    file = save_dicom(tmp_path / "m.dcm", np.tile(plane(0), (3, 3)), ImageType=kind)
    refused(file, r"m\.dcm is a mosaic: .* Convert it to NIfTI with a program that takes it apart")
    frames = save_enhanced(save_dicom, tmp_path / "e.dcm", [0, 2, 4], ImageType=kind)
    assert order_of(read_image(frames)) == [0, 1, 2]
