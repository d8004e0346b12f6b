# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""DICOM in, DICOM segmentations and NIfTI out: on the source voxels, and no name of a patient anywhere."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from monai_wsss.__main__ import main
from monai_wsss.bundle_run import predict_masks
from monai_wsss.data import read_image
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.log_names import NameFilter, hidden_names

CAM = "brain_mri_cam_segmentation"
OBLIQUE = (0.9613, 0.1719, 0.2153, -0.1987, 0.9736, 0.1127)


def write_study(dicom, brains, folder, *, study="1.2.826.1", patient="Doeringer^Jane", mixed=False, depth=6, **more):
    """Write a phantom study as three series, from the middle of the brain."""
    item = json.loads((brains / "datalist.json").read_text(encoding="utf-8"))["test"][0]
    for number, (name, file) in enumerate(zip(("T1", "T1c", "FLAIR"), item["image"], strict=True)):
        volume = nibabel.load(brains / file).get_fdata()
        middle = volume.shape[2] // 2
        planes = volume[..., middle : middle + depth].transpose(2, 1, 0).round().clip(0).astype(np.uint16)
        words = {"T1": "AX T1", "T1c": "AX T1 POST GAD", "FLAIR": "AX FLAIR"}[name]
        place = folder if mixed else folder / name
        files = dicom(place, planes, description=words, study=study, patient=patient, **more)
        if mixed:
            for file in files:
                file.rename(file.with_name(f"{number}{file.name}"))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_study_becomes_one_case_without_the_name_of_the_patient(
    dicom, brains, tmp_path, mixed, caplog, capsys, rows_of
):
    source = tmp_path / "Doeringer_Jane"
    write_study(dicom, brains, source, mixed=mixed)
    with caplog.at_level(logging.INFO):
        code = main(["predict", str(source), "--bundle", CAM, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert code == 0
    (row,) = rows_of(tmp_path / "out" / "predictions.csv")
    assert row["id"].startswith("case001_")
    for path in (tmp_path / "out").rglob("*"):
        assert "Doeringer" not in path.name
        if path.is_file() and path.suffix != ".dcm":
            assert b"Doeringer" not in path.read_bytes(), path
    printed = capsys.readouterr()
    assert "Doeringer" not in printed.out + printed.err
    mask = nibabel.load(tmp_path / "out" / row["mask"])
    files = sorted(source.glob("0*") if mixed else (source / "T1").iterdir())
    image = read_image(files[0].parent, series=files)
    assert np.allclose(mask.affine, np.asarray(image.affine), atol=1e-4)
    assert mask.shape == tuple(image.shape[1:])


def test_two_patients_and_a_broken_file_are_two_cases_and_a_failure(dicom, brains, tmp_path, rows_of):
    source = tmp_path / "export"
    write_study(dicom, brains, source / "Doeringer_Jane", depth=3)
    write_study(dicom, brains, source / "Roebuck_Rick", study="1.2.826.2", patient="Roebuck^Rick", depth=3)
    (source / "Roebuck_Rick" / "T1" / "IM0001").write_bytes(
        (source / "Roebuck_Rick" / "T1" / "IM0001").read_bytes()[:2000]
    )
    result = predict_masks(source, CAM, tmp_path / "out", device="cpu", list_sources=True)
    assert len(result.rows) == 1
    assert len(result.failures) >= 1
    assert not any("Roebuck" in " ".join(failure) for failure in result.failures)
    assert "Roebuck" not in result.report.read_text(encoding="utf-8")
    names = {row["case"] for row in rows_of(result.out / "sources.csv")}
    assert {row["id"] for row in result.rows} <= names
    predict_masks(source, CAM, tmp_path / "out", device="cpu")
    assert not (result.out / "sources.csv").exists()


@pytest.mark.parametrize(
    ("directions", "step"),
    [((1, 0, 0, 0, 1, 0), (0, 0, 3)), (OBLIQUE, (-0.57, -0.45, 2.91)), ((1, 0, 0, 0, 1, 0), (0, 0.9, -2.8))],
    ids=["straight", "oblique", "tilted gantry"],
)
def test_a_segmentation_lies_on_the_source_voxels(dicom, brains, tmp_path, directions, step, rows_of):
    highdicom = pytest.importorskip("highdicom")
    normal = np.cross(directions[:3], directions[3:])
    if directions == OBLIQUE:
        step = tuple(3 * normal)
    source = tmp_path / "in"
    write_study(dicom, brains, source, directions=directions, step=step)
    result = predict_masks(source, CAM, tmp_path / "out", device="cpu")
    assert result.failures == []
    (row,) = rows_of(result.out / "predictions.csv")
    mask = np.asarray(nibabel.load(result.out / row["mask"]).dataobj)
    assert mask.any()
    seg = highdicom.seg.segread(result.out / row["segmentation"])
    files = {str(pydicom.dcmread(file).SOPInstanceUID): file for file in (source / "FLAIR").iterdir()}
    affine = np.linalg.inv(nibabel.load(result.out / row["mask"]).affine)
    read = seg.get_pixels_by_source_instance(list(files), combine_segments=True, ignore_spatial_locations=True)
    for frame, file in zip(read, files.values(), strict=True):
        position = np.asarray(pydicom.dcmread(file).ImagePositionPatient, dtype=float) * (-1, -1, 1)
        z = round((affine @ (*position, 1))[2])
        assert np.array_equal(frame, mask[..., z].T)
    image = pydicom.dcmread(next(iter(files.values())))
    assert seg.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert seg.PatientID == image.PatientID
    assert seg.StudyInstanceUID == image.StudyInstanceUID
    (segment,) = (seg.get_segment_description(number) for number in seg.segment_numbers)
    assert segment.segment_label == "tumor"
    assert segment.segmented_property_category.meaning == "Morphologically abnormal structure"
    assert segment.segmented_property_type.meaning == "Neoplasm", "by the codes in the bundle's metadata"


def test_without_highdicom_there_is_nifti_alone_and_it_is_said(dicom, brains, tmp_path, monkeypatch, caplog):
    for module in ("prediction", "case_run"):
        monkeypatch.setattr(f"monai_wsss.bundle_run.{module}.has_highdicom", lambda: False)
    write_study(dicom, brains, tmp_path / "in", depth=3)
    with caplog.at_level(logging.INFO):
        result = predict_masks(tmp_path / "in", CAM, tmp_path / "out", device="cpu")
    assert result.rows[0]["segmentation"] == ""
    assert "pip install 'monai-wsss[dicom]'" in result.report.read_text(encoding="utf-8").replace("&#39;", "'")


CLIENTS = Path(os.environ.get("WSSS_CLIENTS", "/nowhere"))


@pytest.mark.skipif(not (CLIENTS / "monai_deploy").exists(), reason="WSSS_CLIENTS names no environment monai_deploy")
def test_monai_deploy_writes_the_same_segmentation(dicom, brains, tmp_path, rows_of):
    """By ``integrations/monai_deploy/app.py``, in the environment that ``integrations/make_environment.sh`` makes."""
    highdicom = pytest.importorskip("highdicom")
    write_study(dicom, brains, tmp_path / "in", directions=OBLIQUE, step=tuple(3 * np.cross(OBLIQUE[:3], OBLIQUE[3:])))
    result = predict_masks(tmp_path / "in", CAM, tmp_path / "out", device="cpu")
    (row,) = rows_of(result.out / "predictions.csv")
    root = Path(__file__).parents[2]
    words = ("--input", tmp_path / "in", "--bundle", root / "bundles" / CAM, "--out", tmp_path / "deployed")
    done = subprocess.run(
        [str(CLIENTS / "monai_deploy/bin/python"), str(root / "integrations/monai_deploy/app.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = (result.out / row["segmentation"], tmp_path / "deployed" / "segmentation.dcm")
    read = [highdicom.seg.segread(file) for file in files]
    frames = []
    for one, name in zip(read, ("FLAIR", "T1"), strict=True):  # each refers to another series of the same places
        uids = [str(pydicom.dcmread(file).SOPInstanceUID) for file in sorted((tmp_path / "in" / name).iterdir())]
        words = {"combine_segments": True, "ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}
        frames.append(one.get_pixels_by_source_instance(uids, **words))
    assert np.array_equal(*frames)
    assert read[0].FrameOfReferenceUID == read[1].FrameOfReferenceUID


def test_names_are_hidden_and_sequences_and_numbers_are_not(tmp_path):
    root = tmp_path / "export"
    files = tuple(root / "Jane Doe" / "2020" / "T1" / name for name in ("1", "Doe.dcm"))
    damaged = [("file001", root / "Roe" / "x.dcm")]
    names = NameFilter(hidden_names([InputCase("case001_ab", {"T1": files}, "dicom")], root, damaged))
    assert names.clean(f"T1 of 1 channel in {files[1]}") == "T1 of 1 channel in case001_ab"
    assert names.clean(f"see {root}/Jane Doe and Doe.dcm, or Roe") == "see a folder and a file, or a folder"
    assert names.clean("Jane Doe is a folder") == "a folder is a folder"
    assert names.clean(str(damaged[0][1])) == "file001"


def test_a_missing_sequence_is_named_and_a_damaged_file_can_be_found(dicom, brains, tmp_path, rows_of):
    source = tmp_path / "Doeringer_Jane"
    write_study(dicom, brains, source, depth=3)
    for file in (source / "T1c").iterdir():
        file.unlink()
    (source / "T1" / "Doeringer_4").write_bytes(bytes(128) + b"DICM" + b"nothing" * 9)
    result = predict_masks(source, CAM, tmp_path / "out", device="cpu", list_sources=True)
    told = dict(result.failures)
    (name,) = set(told) - {"file001"}
    assert "T1c of the case is missing (there is FLAIR, T1)" in told[name]
    assert "sources.csv" in told["file001"]
    sources = {row["case"]: row["source"] for row in rows_of(result.out / "sources.csv")}
    assert sources["file001"].endswith("Doeringer_4")
    stands_in = predict_masks(
        source / "FLAIR", CAM, tmp_path / "alone", device="cpu", replace_missing={"T1": "FLAIR", "T1c": "FLAIR"}
    )
    assert stands_in.failures == []
