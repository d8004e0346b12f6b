# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the pixels of DICOM files mean, and how large they are: look-up tables, bits, colors, codecs, spacings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from monai_wsss._checks import DataError
from monai_wsss.data import load_datalist
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.reading import affine_of, read_image, read_labels
from monai_wsss.engines import case_spacing
from monai_wsss.transforms import LoadImageOrderedd

RNG = np.random.default_rng(0)
STORED = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
COLOR = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
PROJECTION = {"Modality": "DX", "PixelSpacing": None}

Save = Callable[..., Path]


def values(path: Path) -> np.ndarray:
    """Read an image as (rows, columns), or (rows, columns, 3) in colors."""
    image = read_image(path).numpy()
    return image[0].T if len(image) == 1 else image.transpose(2, 1, 0)


# Modality LUT --------------------------------------------------------------------------------------------------------


def lookup(first: int, table: list[int], bits: int = 16) -> dict[str, Any]:
    item = Dataset()
    item.LUTDescriptor = [len(table), first, bits]
    item.add_new("LUTData", "US", table)
    item.ModalityLUTType = "US"
    return {"ModalityLUTSequence": DicomSequence([item])}


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_modality_lut_is_applied_and_ends_where_it_ends(tmp_path, save_dicom, syntax):
    stored = np.array([[0, 10, 11, 12, 13, 200]], np.uint16)
    coding = {} if syntax is None else {"syntax": syntax}
    path = save_dicom(tmp_path / "a.dcm", stored, **lookup(10, [1550, 900, 350], 12), **coding)
    assert values(path).tolist() == [[1550, 1550, 900, 350, 350, 350]]


@pytest.mark.parametrize("kind", ["u1", "<u2"])
def test_a_modality_lut_may_come_as_bytes(tmp_path, save_dicom, kind):
    table = lookup(0, [0, 0, 0, 0], 8)
    table["ModalityLUTSequence"][0]["LUTData"].VR = "OW"
    table["ModalityLUTSequence"][0]["LUTData"].value = np.array([9, 7, 5, 3], kind).tobytes()
    stored = np.array([[0, 1, 2, 3]], np.uint16)
    assert values(save_dicom(tmp_path / "a.dcm", stored, **table)).tolist() == [[9, 7, 5, 3]]


def test_a_modality_lut_of_signed_pixels_begins_below_zero(tmp_path, save_dicom):
    stored = np.array([[-3, -2, -1, 0, 5]], np.int16)
    path = save_dicom(tmp_path / "a.dcm", stored, **lookup(-2, [7, 8, 9]))
    assert values(path).tolist() == [[7, 7, 8, 9, 9]]


def test_every_slice_has_its_own_slope(tmp_path, save_dicom):
    for number, slope in enumerate((0.5, 2.0, 3.0)):
        place = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(tmp_path / "pet" / f"{number}.dcm", STORED, RescaleSlope=slope, RescaleIntercept=-4, **place)
    image = read_image(tmp_path / "pet")[0].numpy()
    for number, slope in enumerate((0.5, 2.0, 3.0)):
        np.testing.assert_allclose(image[..., number].T, STORED * slope - 4, rtol=1e-6)


def test_windows_and_voi_luts_change_nothing(tmp_path, save_dicom):
    item = Dataset()
    item.LUTDescriptor = [2, 0, 8]
    item.add_new("LUTData", "US", [255, 0])
    tags = {"WindowCenter": 100, "WindowWidth": 10, "VOILUTSequence": DicomSequence([item])}
    np.testing.assert_array_equal(values(save_dicom(tmp_path / "a.dcm", STORED, **tags)), STORED)


# MONOCHROME1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "tags", "expected"),
    [
        (np.array([[0, 100, 4095]], np.uint16), {"BitsStored": 12}, [[4095, 3995, 0]]),
        (np.array([[0, 100, 255]], np.uint8), {}, [[255, 155, 0]]),
        (np.array([[-2048, 0, 2047]], np.int16), {"BitsStored": 12}, [[2047, -1, -2048]]),
        (
            np.array([[0, 100, 4095]], np.uint16),
            {"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": -10},
            [[8180, 7980, -10]],
        ),
        (np.array([[0, 1, 2]], np.uint16), lookup(0, [10, 20, 30], 12), [[4085, 4075, 4065]]),
    ],
)
def test_monochrome1_is_inverted_so_that_bright_means_much(tmp_path, save_dicom, stored, tags, expected):
    path = save_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1", **tags)
    assert values(path).tolist() == expected


# Bits ----------------------------------------------------------------------------------------------------------------


def test_twelve_signed_bits_in_sixteen_keep_their_sign(tmp_path, save_dicom):
    wanted = np.array([[-2048, -1, 0, 5, 2047]], np.int16)
    stored = wanted.view(np.uint16) & 0x0FFF  # the upper bits are not the sign's
    path = save_dicom(tmp_path / "a.dcm", stored, BitsStored=12, PixelRepresentation=1)
    np.testing.assert_array_equal(values(path), wanted)


@pytest.mark.parametrize("syntax", [None, ExplicitVRBigEndian])
def test_overlays_in_unused_bits_are_taken_out(tmp_path, save_dicom, syntax):
    coding = {} if syntax is None else {"syntax": syntax}
    tags = {"BitsStored": 12, **coding}
    np.testing.assert_array_equal(values(save_dicom(tmp_path / "a.dcm", STORED | 0x8000, **tags)), STORED)


def test_bits_in_the_upper_part(tmp_path, save_dicom):
    path = save_dicom(tmp_path / "a.dcm", STORED << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(values(path), STORED)


def test_separate_overlays_are_left_alone(tmp_path, save_dicom):
    path = save_dicom(tmp_path / "a.dcm", STORED)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000010, "US", 5)
    dataset.add_new(0x60000011, "US", 7)
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60003000, "OW", b"\xff" * 6)
    dataset.save_as(path)
    np.testing.assert_array_equal(values(path), STORED)


# Colors --------------------------------------------------------------------------------------------------------------


def test_planes_of_colors_in_either_configuration(tmp_path, save_dicom):
    planes = np.ascontiguousarray(COLOR.transpose(2, 0, 1)).tobytes()
    for name, tags in (("a", {}), ("b", {"PlanarConfiguration": 1, "PixelData": planes})):
        np.testing.assert_array_equal(values(save_dicom(tmp_path / f"{name}.dcm", COLOR, **tags)), COLOR)


def test_ybr_becomes_rgb(tmp_path, save_dicom):
    ybr = np.asarray(Image.fromarray(COLOR).convert("YCbCr"))
    path = save_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(values(path), COLOR, atol=3)


def test_a_palette_becomes_what_it_shows(tmp_path, save_dicom):
    palette = RNG.integers(0, 256, (4, 3)).astype(np.uint16)
    stored = RNG.integers(0, 4, (6, 8)).astype(np.uint8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, color in enumerate(("Red", "Green", "Blue")):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tags[f"{color}PaletteColorLookupTableData"] = (palette[:, number] * 257).astype("<u2").tobytes()
    np.testing.assert_array_equal(values(save_dicom(tmp_path / "a.dcm", stored, **tags)), palette[stored])


def test_an_unknown_meaning_is_refused(tmp_path, save_dicom):
    path = save_dicom(tmp_path / "a.dcm", STORED, PhotometricInterpretation="HSV")
    with pytest.raises(DataError, match=r"a.dcm as dicom \(the photometric interpretation HSV is not known\)"):
        read_image(path)


# Codecs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
        *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
    ],
)
def test_codecs_without_loss_give_what_is_not_compressed(name):
    plain = read_image(get_testdata_file("MR_small.dcm", download=False))
    np.testing.assert_array_equal(read_image(get_testdata_file(name, download=False)), plain)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "JPEGLS"])
def test_compressed_slices_keep_their_slope_and_sign(tmp_path, save_dicom, compressor):
    signed = (STORED.astype(np.int16) - 2000)[:, :, None].repeat(8, 1).reshape(5, 56)
    plain = save_dicom(tmp_path / "a.dcm", signed)
    writer = SimpleITK.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.Execute(SimpleITK.ReadImage(str(plain)))
    dataset = pydicom.dcmread(tmp_path / "b.dcm")
    assert dataset.file_meta.TransferSyntaxUID.is_compressed
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, 7
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(values(tmp_path / "b.dcm"), signed * 2.0 + 7)


def test_jpeg_in_color_and_a_damaged_one(tmp_path, save_dicom):
    smooth = np.asarray(Image.fromarray(COLOR[:2, :2]).resize((32, 32), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    code = (tmp_path / "a.jpg").read_bytes()
    tags = {"PhotometricInterpretation": "YBR_FULL_422", "syntax": JPEGBaseline8Bit}
    path = save_dicom(tmp_path / "a.dcm", smooth, PixelData=encapsulate([code]), **tags)
    np.testing.assert_allclose(values(path), smooth, atol=12)
    with pytest.raises(DataError, match=r"Cannot read .*b.dcm as dicom \(.*so copy or export it again"):
        read_image(save_dicom(tmp_path / "b.dcm", smooth, PixelData=encapsulate([code[:200]]), **tags))


@pytest.mark.parametrize("said", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("stored", [{}, {"keep_rgb": True}])
def test_colors_of_jpeg_are_those_that_its_stream_says(tmp_path, save_dicom, said, stored):
    smooth = np.asarray(Image.fromarray(COLOR[:2, :2]).resize((32, 32), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=95, subsampling=0, **stored)
    code = stream.getvalue()
    if stored:  # Adobe's marker, with 0 for no transform
        code = code[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + code[2:]
    tags = {"PhotometricInterpretation": said, "syntax": JPEGBaseline8Bit, "PixelData": encapsulate([code])}
    np.testing.assert_allclose(values(save_dicom(tmp_path / "a.dcm", smooth, **tags)), smooth, atol=12)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_a_preamble_are_read(tmp_path, save_dicom, syntax):
    content = save_dicom(tmp_path / "a.dcm", STORED, syntax=syntax).read_bytes()
    start = 132 + 12 + int.from_bytes(content[140:144], "little")  # after the length of the file's own header
    (tmp_path / "b.dcm").write_bytes(content[start:])
    np.testing.assert_array_equal(values(tmp_path / "b.dcm"), STORED)


# Sizes ---------------------------------------------------------------------------------------------------------------


def ultrasound(*deltas: float, unit: int = 3) -> dict[str, Any]:
    regions = []
    for delta in deltas:
        region = Dataset()
        region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, unit, unit
        region.PhysicalDeltaX, region.PhysicalDeltaY = delta, 2 * delta
        regions.append(region)
    return {"PixelSpacing": None, "Modality": "US", "SequenceOfUltrasoundRegions": DicomSequence(regions)}


@pytest.mark.parametrize(
    ("tags", "sides"),
    [
        ({"PixelSpacing": [0.3, 0.4]}, (0.4, 0.3)),
        ({**PROJECTION, "ImagerPixelSpacing": [0.2, 0.3]}, (0.3, 0.2)),
        ({**PROJECTION, "ImagerPixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 2}, (0.15, 0.1)),
        ({**PROJECTION, "PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.2]}, (0.1, 0.1)),
        ({"PixelSpacing": None, "NominalScannedPixelSpacing": [0.5, 0.5]}, (0.5, 0.5)),
        (ultrasound(0.01), (0.1, 0.2)),
        (ultrasound(0.01, 0.01), (0.1, 0.2)),
    ],
)
def test_sizes_that_a_header_says(tmp_path, save_dicom, tags, sides):
    image = read_image(save_dicom(tmp_path / "a.dcm", STORED, **tags))
    np.testing.assert_allclose(np.abs(affine_of(image).diagonal()[:2]), sides, rtol=1e-6)
    assert image.meta["unit"] == "mm"
    loaded = LoadImageOrderedd("image")({"image": str(tmp_path / "a.dcm")})["image"]
    np.testing.assert_allclose(case_spacing(loaded), sides, rtol=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": None},
        {"PixelSpacing": [0, 0]},
        {"PixelSpacing": [-1, 1]},
        {"PixelSpacing": ["nan", "nan"]},
        {"PixelSpacing": ["1.0", "inf"]},
        {**PROJECTION, "ImagerPixelSpacing": [0, 0]},
        ultrasound(0.01, 0.02),
        ultrasound(0.01, unit=4),
    ],
)
def test_sizes_that_nobody_knows_stay_unknown(tmp_path, save_dicom, tags):
    path = save_dicom(tmp_path / "images" / "a.dcm", STORED, **tags)
    assert read_image(path).meta["unit"] == "px"
    loaded = LoadImageOrderedd("image")({"image": str(path)})["image"]
    assert case_spacing(loaded) is None
    (tmp_path / "labels.csv").write_text("id,label,split\na,1,train\n")
    datalist = prepare_folder(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "out")
    (item,) = load_datalist(datalist, "training")
    assert item["image"].endswith("a.png")
    assert case_spacing(LoadImageOrderedd("image")(item)["image"]) is None


def test_a_volume_of_unknown_size_is_nifti_that_is_measured_in_pixels(tmp_path, save_dicom):
    for number in range(3):
        place = {"ImagePositionPatient": [0, 0, 2 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(tmp_path / "images" / "a" / f"{number}.dcm", STORED, PixelSpacing=None, **place)
    save_dicom(tmp_path / "negative.dcm", STORED.astype(np.int16) - 900, PixelSpacing=None)
    (tmp_path / "labels.csv").write_text("id,label,split\na,1,train\n")
    datalist = prepare_folder(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "out")
    assert json.loads(datalist.read_text(encoding="utf-8"))["training"][0]["unit"] == "px"
    (item,) = load_datalist(datalist, "training")
    image = LoadImageOrderedd("image")(item)["image"]
    assert image.shape == (1, 7, 5, 3)
    assert case_spacing(image) is None


def test_masks_in_dicom_lie_as_their_images(tmp_path, save_dicom):
    for number in range(3):
        place = {"ImagePositionPatient": [0, 0, -2 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save_dicom(tmp_path / "images" / "a" / f"{number}.dcm", STORED + 1, **place)
        mask = np.full((5, 7), number == 0, np.uint8)
        save_dicom(tmp_path / "masks" / "a" / f"{number}.dcm", mask, SeriesInstanceUID="7.7", **place)
    (tmp_path / "labels.csv").write_text("id,label,split\na,1,train\n")
    datalist = prepare_folder(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "out", masks=tmp_path / "masks")
    (item,) = load_datalist(datalist, "training", masks=True)
    assert read_labels(item["mask"])[0, 0, 0].tolist() == [0, 0, 1], "the highest position comes last"
    np.testing.assert_array_equal(nibabel.load(item["mask"]).affine, nibabel.load(item["image"]).affine)
