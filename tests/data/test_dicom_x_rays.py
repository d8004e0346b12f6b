# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""X-rays in DICOM: negatives are inverted, whatever their coding; a size of pixels that is not told stays unknown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from monai_wsss._checks import DataError
from monai_wsss.data import load_datalist, prepare_folder
from monai_wsss.data.reading import affine_of, read_image
from monai_wsss.engines import case_spacing
from monai_wsss.transforms import LoadImageOrderedd

CR, DX, SECONDARY = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("1", "1.1", "7"))
PIXELS = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)


def write(path: Path, photometric: str = "MONOCHROME1", kind: str = CR, bits: int = 12, **tags: Any) -> Path:
    """Write an X-ray of 24 rows and 32 columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    coding = {"is_implicit_VR": False, "is_little_endian": True}  # for pydicom 2
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, **coding)
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.Modality = generate_uid(), {CR: "CR", DX: "DX", SECONDARY: "OT"}[kind]
    file.PhotometricInterpretation, file.SamplesPerPixel = photometric, 1
    file.Rows, file.Columns = PIXELS.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, bits, bits - 1, 0
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = PIXELS.tobytes()
    file.save_as(path)
    return path


def rows(path: Path) -> np.ndarray:
    return read_image(path)[0].numpy().T


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("kind", [CR, DX])
def test_a_negative_is_inverted_within_its_stored_bits(tmp_path, bits, kind):
    positive, negative = (
        write(tmp_path / f"{name}.dcm", name, kind, bits, PixelSpacing=[0.2, 0.3])
        for name in ("MONOCHROME2", "MONOCHROME1")
    )
    np.testing.assert_array_equal(rows(positive), PIXELS)
    np.testing.assert_array_equal(rows(negative), 2.0**bits - 1 - PIXELS)


def test_a_negative_is_inverted_after_its_rescaling(tmp_path):
    path = write(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-100)
    np.testing.assert_array_equal(rows(path), 2.0 * (4095 - PIXELS) - 100)


@pytest.mark.parametrize("coding", ["RLE", "JPEG 2000"])
def test_compressed_negatives_are_inverted_too(tmp_path, coding):
    path = write(tmp_path / "a.dcm", bits=16)
    file = pydicom.dcmread(path)
    if coding == "RLE":
        file.compress(RLELossless)
    else:
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, "JPEG2000", no_jp2=True)
        file.PixelData = encapsulate([stream.getvalue()])
        file["PixelData"].VR, file["PixelData"].is_undefined_length = "OB", True
        file.file_meta.TransferSyntaxUID = JPEG2000Lossless
    file.save_as(path)
    np.testing.assert_array_equal(rows(path), 65535.0 - PIXELS)


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        (CR, "PixelSpacing"),
        (CR, "ImagerPixelSpacing"),
        (DX, "PixelSpacing"),
        (SECONDARY, "PixelSpacing"),
        (SECONDARY, "NominalScannedPixelSpacing"),
    ],
)
def test_the_size_of_pixels_is_read_from_each_of_its_tags(tmp_path, caplog, kind, tag):
    image = read_image(write(tmp_path / "a.dcm", kind=kind, **{tag: [0.2, 0.3]}))
    np.testing.assert_allclose(np.abs(affine_of(image)).diagonal()[:2], [0.3, 0.2], rtol=1e-6)
    assert image.meta.get("unit") != "px"
    assert not caplog.text


def test_an_unknown_size_of_pixels_is_told_once_per_folder(tmp_path, caplog):
    for name in ("a", "b"):
        assert read_image(write(tmp_path / f"{name}.dcm")).meta["unit"] == "px"
    (record,) = caplog.records
    assert record.message.count("\n") == 0
    assert f"{tmp_path} holds images that do not say the size of their pixels, first a.dcm" in record.message


@pytest.mark.parametrize("tags", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": -100}])
def test_an_unknown_size_stays_unknown_in_prepared_data(tmp_path, tags):
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.dcm", **tags)
    write(tmp_path / "known" / "a.dcm", PixelSpacing=[0.2, 0.3])
    (tmp_path / "labels.csv").write_text("id,label,split\na,1,train\nb,0,train\n")
    (tmp_path / "one.csv").write_text("id,label,split\na,1,train\n")
    path = prepare_folder(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "out")
    image = LoadImageOrderedd("image")(load_datalist(path, "training")[0])["image"]
    assert case_spacing(image) is None
    inverted = 4095.0 - PIXELS
    values = image[0].numpy()
    if not tags:
        np.testing.assert_array_equal(values, inverted)
    else:
        assert np.corrcoef(values.ravel(), inverted.ravel())[0, 1] > 0.9999
    path = prepare_folder(tmp_path / "known", tmp_path / "one.csv", tmp_path / "millimeters")
    image = LoadImageOrderedd("image")(load_datalist(path, "training")[0])["image"]
    np.testing.assert_allclose(case_spacing(image), [0.2, 0.3], rtol=1e-5)


@pytest.mark.parametrize(("calibration", "side"), [({}, 0.1), ({"PixelSpacingCalibrationType": "FIDUCIAL"}, 0.2)])
def test_a_spacing_that_repeats_that_of_the_detector_is_magnified(tmp_path, calibration, side):
    sides = {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}
    path = write(tmp_path / "a.dcm", kind=DX, EstimatedRadiographicMagnificationFactor=2, **sides, **calibration)
    np.testing.assert_allclose(np.abs(affine_of(read_image(path))).diagonal()[:2], side)


def test_pixels_of_more_frames_than_the_header_says_are_refused(tmp_path, save_dicom):
    path = save_dicom(tmp_path / "a.dcm", np.stack([PIXELS] * 3), NumberOfFrames=None)
    with pytest.raises(DataError, match=r"a.dcm as dicom \(it holds pixels of 3 frames, but NumberOfFrames says 1\)"):
        read_image(path)


def test_padding_that_is_not_0_is_told(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.dcm", PixelPaddingValue=int(PIXELS[0, 0]), PixelSpacing=[0.2, 0.2])
        read_image(tmp_path / f"{name}.dcm")
    (record,) = caplog.records
    assert (
        f"holds DICOM images with padding (PixelPaddingValue {PIXELS[0, 0]}), which keeps its value" in record.message
    )


def test_wide_negatives_of_a_series_are_inverted_alike(tmp_path, save_dicom):
    for number in range(2):
        place = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        wide = PIXELS.astype(np.uint32) + 100 * number
        save_dicom(tmp_path / "s" / f"{number}.dcm", wide, PhotometricInterpretation="MONOCHROME1", **place)
    image = read_image(tmp_path / "s")[0]
    np.testing.assert_array_equal(image[..., 0] - image[..., 1], 100)
