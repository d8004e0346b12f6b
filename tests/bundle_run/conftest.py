# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Inputs as somebody hands them over: studies, pictures, DICOM series with everything that a segmentation needs."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_wsss.data import make_phantoms


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with two whole studies to segment, ``images/<id>/<sequence>.nii.gz``."""
    return Path(make_phantoms(tmp_path_factory.mktemp("brains"), subjects=(1, 1, 2)))


@pytest.fixture
def studies(brains: Path, tmp_path: Path) -> Path:
    """The studies alone, as a folder of somebody who has no labels."""
    for item in json.loads((brains / "datalist.json").read_text(encoding="utf-8"))["test"]:
        for file in item["image"]:
            target = tmp_path / "studies" / item["id"] / Path(file).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(brains / file, target)
    return tmp_path / "studies"


@pytest.fixture
def skin(tmp_path: Path) -> Path:
    """A color picture with a dark disk, one in gray, and a file that is broken."""
    folder = tmp_path / "skin"
    folder.mkdir()
    rows, columns = np.mgrid[:96, :128]
    disk = (rows - 50) ** 2 + (columns - 60) ** 2 < 24**2
    noise = np.random.default_rng(0).normal(0, 4, (96, 128, 3))
    colors = np.where(disk[..., None], (96, 60, 48), (214, 170, 150)) + noise
    Image.fromarray(colors.clip(0, 255).astype(np.uint8)).save(folder / "color.png")
    Image.fromarray(colors.mean(-1).clip(0, 255).astype(np.uint8)).save(folder / "gray.jpg", quality=95)
    (folder / "broken.png").write_bytes((folder / "color.png").read_bytes()[:500])
    return folder


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    description: str = "",
    patient: str = "Doeringer^Jane",
    study: str = "1.2.826.1",
    series: str | None = None,
    directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] = (0, 0, 3),
) -> list[Path]:
    """Write ``volume[z, row, column]`` as an MR series of one file per slice, in a frame of reference."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = series or generate_uid()
    paths = []
    for z, plane in enumerate(volume):
        path = folder / f"IM{z:04d}"
        data = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MRImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = patient, "id-17", "19700101", "O"
        data.StudyInstanceUID, data.SeriesInstanceUID = study, uid
        data.FrameOfReferenceUID = f"{study}.9"
        data.StudyID, data.StudyDate, data.StudyTime, data.AccessionNumber = "1", "20200101", "120000", ""
        data.ReferringPhysicianName, data.Manufacturer, data.PositionReferenceIndicator = "", "", ""
        data.Modality, data.SeriesNumber, data.InstanceNumber = "MR", 4, z + 1
        data.SeriesDescription, data.ImageType = description, ["ORIGINAL", "PRIMARY"]
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing, data.SliceThickness = [0.9, 1.1], 3
        data.ImageOrientationPatient = list(directions)
        data.ImagePositionPatient = [round(-20 + z * float(part), 6) for part in step]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = np.ascontiguousarray(plane, dtype="<u2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture
def dicom() -> Callable[..., list[Path]]:
    """Give the function that writes a series."""
    return write_series


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, str]]]:
    """Give the function that reads a table."""
    return read_rows
