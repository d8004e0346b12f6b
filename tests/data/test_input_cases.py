# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cases in what somebody hands over: names, sequences, folders, DICOM series, slides, and what is no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.input_cases import UNNAMED, find_inputs

BRAIN = ["T1", "T1c", "FLAIR"]
COLORS = ["red", "green", "blue"]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def shape_of(found) -> dict[str, list[str]]:
    return {case.name: sorted(case.files) for case in found.cases}


@pytest.mark.parametrize(
    "names",
    [
        ["a_T1.nii.gz", "a_t1ce.nii.gz", "a_FLAIR.nii.gz"],
        ["a/T1.nii.gz", "a/T1c.nii.gz", "a/flair.nii.gz"],
        ["deep/er/a-t1.nii", "deep/er/a-t1c.nii", "deep/er/a-flair.nii"],
        ["a_T1.nii.gz", "a_T1c.nii.gz", "a_FLAIR.nii.gz", ".a_T2.nii.gz", "._a_T1.nii.gz", "notes.txt"],
    ],
)
def test_files_of_one_study_are_one_case(tmp_path, names):
    assert shape_of(find_inputs(touch(tmp_path, *names), BRAIN)) == {"a": ["FLAIR", "T1", "T1c"]}


def test_masks_by_their_names_are_left_out_and_it_is_said(tmp_path):
    found = find_inputs(touch(tmp_path, "a.png", "a_mask.png", "b.jpg", "b_seg.png"), COLORS)
    assert shape_of(found) == {"a": [UNNAMED], "b": [UNNAMED]}
    assert "2 files look like masks" in found.notes[0]


def test_a_name_is_never_used_twice(tmp_path):
    found = find_inputs(touch(tmp_path, "one/x.png", "two/x.png", "x.png", "X.bmp", "y.png", "y.jpg"), COLORS)
    names = [case.name for case in found.cases]
    assert len({name.casefold() for name in names}) == len(names) == 6
    assert {"one/x", "two/x", "y"} < set(names)
    assert found.faults == []
    assert names == sorted(names, key=str.casefold)


def test_pictures_that_share_a_stem_are_cases_of_their_own(tmp_path):
    found = find_inputs(touch(tmp_path, "a.jpg", "a.png", "a_png.tif"), COLORS)
    files = {case.name: case.all_files[0].name for case in found.cases}
    assert files == {"a": "a.jpg", "a_png": "a_png.tif", "a_png_2": "a.png"}


def test_faults_of_single_files_stand_beside_the_cases(tmp_path):
    found = find_inputs(touch(tmp_path, "a_T1.nii", "a_t1.nii.gz", "a_T1c.nii", "b.nii", "b_T1.nii", "c.heic"), BRAIN)
    assert dict(found.faults) == {
        "c": "c.heic is of a kind that is not read: save it as PNG.",
        "a": "a_T1.nii and a_t1.nii.gz are both T1 of one case: keep one. The first was taken.",
        "b": "b.nii stands beside files of sequences: add its sequence to its name, as in b_T1, or take it away.",
    }
    assert shape_of(found) == {"a": ["T1", "T1c"]}


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_inputs(tmp_path / "nowhere", BRAIN)
    with pytest.raises(DataError, match="holds no image"):
        find_inputs(touch(tmp_path, "notes.txt"), BRAIN)
    with pytest.raises(DataError, match="regular expression with one group"):
        find_inputs(touch(tmp_path, "a.png"), COLORS, subject_pattern="p[0-9]+")


def test_results_are_not_taken_for_input(tmp_path):
    touch(tmp_path, "a.png", "out/masks/a.png", "out/overlays/a.png")
    assert shape_of(find_inputs(tmp_path, COLORS, leave_out=(tmp_path / "out").resolve())) == {"a": [UNNAMED]}


def test_subjects_are_folders_or_a_pattern(tmp_path):
    touch(tmp_path, "p1/s1.png", "p1/s2.png", "p2_s1.png")
    found = find_inputs(tmp_path, ["FLAIR"])
    assert {case.name: case.subject for case in found.cases} == {"s1": "p1", "s2": "p1", "p2_s1": None}
    found = find_inputs(tmp_path, ["FLAIR"], subject_pattern="^(p[0-9]+)")
    assert "p2" in {case.subject for case in found.cases}


def test_series_of_one_folder_are_sorted_by_their_headers(tmp_path, save_dicom):
    plane = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for number, words in enumerate(("ax flair", "AX T1", "t1 mprage post gad", "localizer")):
        for z in range(2):
            save_dicom(
                tmp_path / f"IM{number}{z}",
                plane,
                SeriesInstanceUID=f"1.2.{number}",
                StudyInstanceUID="1.9",
                SeriesDescription=words,
                ImagePositionPatient=[0, 0, 2 * z],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            )
    found = find_inputs(tmp_path, BRAIN)
    (case,) = found.cases
    assert case.kind == "dicom"
    assert {name: len(files) for name, files in case.files.items()} == {"FLAIR": 2, "T1": 2, "T1c": 2}
    assert "1 series of no known sequence" in found.notes[0]
    assert case.name.startswith("case001_")
    assert case.name == find_inputs(tmp_path, BRAIN).cases[0].name
    one = find_inputs(tmp_path, ["FLAIR"])
    assert len(one.cases) == 2  # FLAIR, and the one of which nobody knows what it is
    assert len(one.faults) == 2


def save_plane(save_dicom, path, number, words, *, study="1.9", z=0.0):
    save_dicom(
        path,
        np.zeros((8, 8), dtype=np.uint16),
        SeriesInstanceUID=f"1.2.{number}",
        StudyInstanceUID=study,
        SeriesDescription=words,
        ImagePositionPatient=[0, 0, z],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    )


def test_the_only_series_of_a_study_keeps_its_sequence(tmp_path, save_dicom):
    save_plane(save_dicom, tmp_path / "a.dcm", 1, "ax flair")
    save_plane(save_dicom, tmp_path / "b.dcm", 2, "what is this", study="1.8")
    assert sorted(key for case in find_inputs(tmp_path, BRAIN).cases for key in case.files) == ["", "FLAIR"]


def test_a_study_whose_series_say_nothing_is_a_fault_with_a_remedy(tmp_path, save_dicom):
    for number in range(2):
        save_plane(save_dicom, tmp_path / f"{number}.dcm", number, "one of them")
    found = find_inputs(tmp_path, BRAIN)
    assert found.cases == []
    assert "put each into a folder of its own, named T1, T1c, FLAIR" in found.faults[0][1]


def test_a_file_cut_off_before_its_image_is_damaged_and_no_report(tmp_path, save_dicom):
    for z in range(3):
        save_plane(save_dicom, tmp_path / f"IM{z}", 1, "ax flair", z=2.0 * z)
    content = (tmp_path / "IM2").read_bytes()
    (tmp_path / "IM2").write_bytes(content[: content.index(b"1.2.1") + 2])
    (tmp_path / "garbage.dcm").write_bytes(bytes(128) + b"DICM" + b"nothing" * 9)
    (tmp_path / "IM3").write_bytes(b"")
    found = find_inputs(tmp_path, ["FLAIR"])
    assert [name for name, _ in found.faults] == ["file001", "file002"]
    assert {path.name for _, path in found.damaged} == {"IM2", "garbage.dcm"}
    assert not any("IM2" in text for _, text in found.faults)
    assert found.notes == ["1 file beside DICOM files without DICOM content, left out."]


def test_slides_are_told_from_pictures(tmp_path):
    pixels = np.zeros((512, 512, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(pixels, tile=(256, 256), photometric="rgb")
        file.write(pixels[::4, ::4], tile=(64, 64), photometric="rgb")
    Image.fromarray(pixels).save(tmp_path / "picture.tif")
    touch(tmp_path, "scan.svs")
    kinds = {case.name: case.kind for case in find_inputs(tmp_path, COLORS, slides=True).cases}
    assert kinds == {"pyramid": "slide", "scan": "slide", "picture": "image"}
