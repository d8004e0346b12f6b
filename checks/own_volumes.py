# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Inputs of our own: DICOM and NIfTI (K1, K2, K5, K14, K15) and values of DICOM (K3)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
import torch
from answers import Answer
from writers import (
    CORONAL,
    SAGITTAL,
    Input,
    dicom,
    enhanced,
    entry,
    labels,
    nifti,
    noise,
    ordinary,
    picture,
    plane,
    prepare,
    prepared_item,
    series,
    square_mask,
    stack,
    with_order,
)

from monai_wsss.data.reading import read_image
from monai_wsss.transforms import LoadImageOrderedd, SaveImageMaskd

VOLUMES: list[Input] = []
tried = partial(entry, VOLUMES)

# K1 ----------------------------------------------------------------------------------------------


@tried(
    "K1",
    "an oblique series (30 degrees), files named from the other end",
    "one volume in the order of positions, every slice in its place",
    "order 5, 4, 3, 2, 1, 0|order 0, 1, 2, 3, 4, 5",
    r"0\.000 mm off",
)
def oblique(at: Path) -> Answer:
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    positions = [(-8.0, -sine * 3 * z, cosine * 3 * z) for z in range(6)]
    wanted = series(at / "images/a", positions, (1, 0, 0, 0, cosine, sine), names=lambda z: f"{9 - z}.dcm")
    ordinary(at)
    return with_order(prepare(at), at, "a", wanted)


@tried(
    "K1",
    "a coronal series whose InstanceNumber is that of acquisition, every second slice first",
    "one volume in the order of positions",
    r"in the order (0, 3, 1, 4, 2, 5|5, 2, 4, 1, 3, 0)\b",
    r"0\.000 mm off",
)
def interleaved(at: Path) -> Answer:
    positions = [(-8.0, 3.0 * y, 5.0) for y in (0, 2, 4, 1, 3, 5)]
    wanted = series(at / "images/a", positions, CORONAL)
    ordinary(at)
    return with_order(prepare(at), at, "a", wanted)


@tried(
    "K1",
    "a tilted series (gantry, 20 degrees) that lacks its third slice",
    "one sentence: the slice that is missing",
    "lacks 1 slice",
    code=1,
)
def tilted_with_hole(at: Path) -> Answer:
    series(at / "images/a", [place for z, place in enumerate(stack(shift=-0.364, count=7)) if z != 2])
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "diffusion: b-values 0 and 1000 at each of six positions of one series",
    "one sentence that names the b-value",
    "2 images at each of its 6 positions",
    "b-value.*: 0",
    code=1,
)
def diffusion(at: Path) -> Answer:
    each = [{"DiffusionBValue": float(number % 2 * 1000)} for number in range(12)]
    series(at / "images/a", [place for place in stack() for _ in range(2)], each=each)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a cine series: four phases of the heart at each of five positions, told by TriggerTime alone",
    "one sentence that names the trigger time",
    "4 images at each of its 5 positions",
    "trigger time",
    code=1,
)
def cine(at: Path) -> Answer:
    each = [{"TriggerTime": 25.0 * (number % 4)} for number in range(20)]
    series(at / "images/a", [place for place in stack(count=5) for _ in range(4)], each=each)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a dynamic series whose last point in time was cut off after three of six positions",
    "one sentence: several images at a position",
    "2 images at one position",
    "point in time",
    code=1,
)
def cut_off(at: Path) -> Answer:
    each = [{"TemporalPositionIdentifier": 1 + (number >= 6)} for number in range(9)]
    series(at / "images/a", [*stack(), *stack()[:3]], each=each)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "an enhanced file with its frames in random order",
    "one volume in the order of positions",
    "in the order 3, 0, 5, 1, 4, 2",
    r"0\.000 mm off",
)
def shuffled_frames(at: Path) -> Answer:
    heights = [3.0, 9.0, 15.0, 0.0, 12.0, 6.0]
    enhanced(at / "images/a.dcm", heights, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1")
    enhanced(at / "images/b.dcm", sorted(heights))
    return with_order(prepare(at), at, "a", np.array([[-8, -9, height] for height in heights]))


@tried("K1", "an enhanced file that lacks a frame", "one sentence: the frame that is missing", "lacks 1 slice", code=1)
def missing_frame(at: Path) -> Answer:
    enhanced(at / "images/a.dcm", [0, 3, 6, 12, 15])
    enhanced(at / "images/b.dcm", [0, 3, 6])
    return prepare(at)


@tried(
    "K1",
    "three localizers of three planes before an axial series, left out on request",
    "six slices, 3 mm, and a word",
    "left out, as asked",
    r"10 × 8 × 6, 0\.7 × 0\.5 × 3 mm",
)
def localizers(at: Path) -> Answer:
    series(at / "images/a", stack())
    for number, directions in enumerate((CORONAL, SAGITTAL, (0.0, 0.0, -1.0, 0.0, 1.0, 0.0))):
        where = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(directions)}
        dicom(at / "images/a" / f"scout{number}.dcm", plane(50 + number), **where)
    ordinary(at)
    return prepare(at, "--leave-out-localizers")


@tried(
    "K1",
    "steps of 2.5 mm in the base of the skull and of 5 mm above, as in CT of heads",
    "one sentence: not evenly spaced, or slices missing",
    r"evenly spaced: 2\.5 to 5 mm|lacks",
    code=1,
)
def two_steps(at: Path) -> Answer:
    series(at / "images/a", [(0, 0, height) for height in (0, 2.5, 5, 7.5, 12.5, 17.5, 22.5)])
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "positions rounded to hundredths in a series of 0.333 mm",
    "read without a word, 0.333 mm",
    r"0\.7 × 0\.5 × 0\.333\d? mm",
    never="evenly|lacks",
)
def rounded(at: Path) -> Answer:
    series(at / "images/a", [(0, 0, round(z / 3, 2)) for z in range(30)])
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a series with a report, a DICOMDIR, a text and the hidden files of macOS beside its slices",
    "six slices, and a word on the report",
    "without an image.*passed over",
    "10 × 8 × 6",
)
def other_files(at: Path) -> Answer:
    folder = at / "images/a"
    series(folder, stack())
    report = dicom(folder / "report.dcm", plane(), Rows=None, Columns=None, PixelData=b"\0\0", Modality="SR")
    shutil.copy(report, folder / "DICOMDIR")
    (folder / "._00.dcm").write_bytes(b"\0\5\x16\7" + b"\0" * 200)
    (folder / "readme.txt").write_text("from the archive")
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a folder with a T1 and a T2 series, not named as modalities",
    "one sentence that describes both",
    "holds 2 DICOM series",
    "T1 ax.*T2 ax|T2 ax.*T1 ax",
    code=1,
)
def two_series(at: Path) -> Answer:
    series(at / "images/a", stack(), SeriesInstanceUID="1.1", SeriesDescription="T1 ax")
    more = "t{:02d}.dcm".format
    series(at / "images/a", stack(), SeriesInstanceUID="1.2", SeriesDescription="T2 ax", names=more)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a series with one slice of 10 × 12 instead of 8 × 10 pixels",
    "one sentence that names the file",
    "another size.*odd.dcm",
    code=1,
)
def odd_size(at: Path) -> Answer:
    series(at / "images/a", stack())
    where = {"ImagePositionPatient": [-8, -9, 18], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    dicom(at / "images/a/odd.dcm", noise((12, 10)).astype(np.uint16), **where)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a slice without ImagePositionPatient among six",
    "one sentence that names the tag and the file",
    "ImagePositionPatient in 03.dcm",
    code=1,
)
def no_position(at: Path) -> Answer:
    each = [{"ImagePositionPatient": None} if z == 3 else {} for z in range(6)]
    series(at / "images/a", stack(), each=each)
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a file copied by a browser, `02 (1).dcm`, beside the others",
    "one sentence: copies",
    "2 images at one position",
    "copies",
    code=1,
)
def copied(at: Path) -> Answer:
    series(at / "images/a", stack())
    shutil.copy(at / "images/a/02.dcm", at / "images/a/02 (1).dcm")
    ordinary(at)
    return prepare(at)


@tried(
    "K1",
    "a mosaic: slices as tiles of one image, as some MR scanners store functional series",
    "one sentence: tiles of slices are not an image",
    "(?i)mosaic",
    code=1,
)
def mosaic(at: Path) -> Answer:
    for name in "ab":
        tiles = np.tile(plane(), (3, 3)).astype(np.uint16)
        kind = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        where = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(at / "images" / f"{name}.dcm", tiles, ImageType=kind, **where)
    return prepare(at)


# K2 ----------------------------------------------------------------------------------------------


@tried("K2", "NIfTI in micrometers", "millimeters: 0.5 × 0.5 × 2 mm", r"a: 6 × 5 × 4, 0\.5 × 0\.5 × 2 mm")
def micrometers(at: Path) -> Answer:
    affine = np.diag([500.0, 500, 2000, 1])
    nifti(at / "images/a.nii.gz", noise((6, 5, 4)), affine, lambda image: image.header.set_xyzt_units("micron"))
    nifti(at / "images/b.nii.gz", noise((6, 5, 4), 1))
    return prepare(at)


@tried("K2", "NIfTI in meters", "millimeters: 0.5 × 0.5 × 2 mm", r"a: 6 × 5 × 4, 0\.5 × 0\.5 × 2 mm")
def meters(at: Path) -> Answer:
    affine = np.diag([0.0005, 0.0005, 0.002, 1])
    nifti(at / "images/a.nii.gz", noise((6, 5, 4)), affine, lambda image: image.header.set_xyzt_units("meter"))
    nifti(at / "images/b.nii.gz", noise((6, 5, 4), 1))
    return prepare(at)


@tried(
    "K2",
    "NIfTI whose header says no size at all: pixdim 0, no form",
    "unknown, in pixels, and a word",
    "a: .*size of pixels unknown",
    "do not say the size",
)
def no_pixdim(at: Path) -> Answer:
    path = nifti(at / "images/a.nii", noise((6, 5, 4)))
    content = bytearray(path.read_bytes())
    content[80:92] = bytes(12)  # pixdim[1..3]
    content[252:256] = bytes(4)  # codes of the forms
    path.write_bytes(content)
    nifti(at / "images/b.nii", noise((6, 5, 4), 1))
    return prepare(at)


@tried(
    "K2",
    "a chest film with 0.2 mm on the detector, magnified 1.25 times",
    "0.16 mm in the patient",
    r"a: 10 × 8, 0\.16 × 0\.16 mm",
)
def magnified(at: Path) -> Answer:
    size = {"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.2]}
    for name in "ab":
        dicom(at / f"images/{name}.dcm", plane(), EstimatedRadiographicMagnificationFactor=1.25, Modality="DX", **size)
    return prepare(at)


@tried(
    "K2", "PNG files that say 72 dots per inch, as screens do", "unknown", "a: .*size of pixels unknown", never=" mm"
)
def screen_dots(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        picture(at / f"images/{name}.png", noise((12, 16), seed), dpi=(72, 72))
    return prepare(at)


@tried(
    "K2",
    "MetaImage without ElementSpacing",
    "unknown, in pixels, and a word",
    "a: .*size of pixels unknown",
    "do not say the size",
)
def no_element_spacing(at: Path) -> Answer:
    (at / "images").mkdir()
    for seed, name in enumerate("ab"):
        values = noise((4, 5, 6), seed).astype(np.uint8)
        header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
        (at / f"images/{name}.mha").write_bytes(header.encode() + values.tobytes())
    return prepare(at)


@tried(
    "K2",
    "a DICOM volume whose PixelSpacing is 0, as some de-identifiers write it",
    "unknown, in pixels, and a word",
    "a: .*size of pixels unknown",
    "do not say the size",
)
def zero_spacing(at: Path) -> Answer:
    series(at / "images/a", stack(), PixelSpacing=[0, 0])
    ordinary(at)
    return prepare(at)


# K3, values of DICOM ----------------------------------------------------------------------------------------------


def _brighter(answer: Answer, at: Path, name: str) -> Answer:
    """Add the values of a small square and of its surroundings."""
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, name)["image"])[0]
        answer.values.append(f"square {float(image[4, 3]):g}, around it {float(image[0, 0]):g}")
    return answer


def _square(inside: int, outside: int, dtype: type = np.uint16) -> np.ndarray:
    pixels = np.full((ROWS_OF_SQUARE, ROWS_OF_SQUARE), outside, dtype)
    pixels[2:5, 3:6] = inside
    return pixels


ROWS_OF_SQUARE = 8


@tried(
    "K3",
    "MONOCHROME1 of 12 bits, rescaled by -1 and 4095 besides: inverted twice",
    "as shown, by both tags: a dark square, 300, in 3000",
    "square 300, around it 3000",
)
def inverted_twice(at: Path) -> Answer:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "RescaleSlope": -1, "RescaleIntercept": 4095}
    dicom(at / "images/a.dcm", _square(300, 3000), **tags)
    dicom(at / "images/b.dcm", _square(300, 3000))
    return _brighter(prepare(at), at, "a")


@tried("K3", "12 signed bits in 16, upper bits not extended", "-100 in the square", "square -100, around it 200")
def signed_bits(at: Path) -> Answer:
    tags = {"BitsStored": 12, "PixelRepresentation": 1, "RescaleIntercept": 0, "RescaleSlope": 1}
    dicom(at / "images/a.dcm", _square(-100 & 0xFFF, 200), **tags)
    dicom(at / "images/b.dcm", _square(1, 2))
    return _brighter(prepare(at), at, "a")


@tried("K3", "an overlay in the four upper bits of CT", "the 12 bits of the image", "square 900, around it 400")
def overlay_bits(at: Path) -> Answer:
    dicom(at / "images/a.dcm", _square(900 | 0x1000, 400 | 0x8000), BitsStored=12)
    dicom(at / "images/b.dcm", _square(1, 2))
    return _brighter(prepare(at), at, "a")


@tried(
    "K3",
    "a presentation LUT that inverts, INVERSE, on MONOCHROME2",
    "values as stored, not as shown",
    "square 900, around it 400",
)
def presentation(at: Path) -> Answer:
    dicom(at / "images/a.dcm", _square(900, 400), PresentationLUTShape="INVERSE", WindowCenter=40, WindowWidth=80)
    dicom(at / "images/b.dcm", _square(1, 2))
    return _brighter(prepare(at), at, "a")


# K5 ----------------------------------------------------------------------------------------------


def _mask_on(at: Path) -> Answer:
    """Write a mask by the product on image `a`, and tell how far it lies from it for nibabel and for ITK."""
    answer = prepare(at)
    if answer.code:
        return answer
    source = at / "out" / prepared_item(at, "a")["image"]
    image = LoadImageOrderedd("image")({"image": str(source)})["image"]
    mask = torch.zeros(1, *image.shape[1:])
    mask[0, 1:3, 1:3] = 1
    SaveImageMaskd("mask", at / "run")({"id": "a", "image": image, "mask": mask})
    written = at / "run/masks/a.nii.gz"
    one, other = nibabel.load(source), nibabel.load(written)
    names = ("sform_code", "qform_code", "xyzt_units")
    same = all(int(one.header[name]) == int(other.header[name]) for name in names)
    same = same and np.allclose(one.affine, other.affine, atol=1e-4)
    places = [SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint((5, 4, 3)) for path in (source, written)]
    far = float(np.linalg.norm(np.subtract(*places)))
    answer.values.append(f"codes and unit {'kept' if same else 'CHANGED'}, {far:.3f} mm apart in ITK")
    return answer


_KEPT = "codes and unit kept, 0.000 mm apart"


@tried("K5", "NIfTI with a qform alone, code 1", "the mask has the same", _KEPT)
def qform_alone(at: Path) -> Answer:
    def change(image: nibabel.Nifti1Image) -> None:
        turned = np.array([[0.0, -1.2, 0, 7], [1.1, 0, 0, -3], [0, 0, 2.5, 4], [0, 0, 0, 1]])
        image.set_qform(turned, 1)
        image.set_sform(None, 0)

    nifti(at / "images/a.nii.gz", noise((6, 5, 4)), None, change)
    nifti(at / "images/b.nii.gz", noise((6, 5, 4), 1))
    return _mask_on(at)


@tried(
    "K5", "NIfTI in MNI space, sform code 4, and a qform of the scanner that is turned", "the mask has the same", _KEPT
)
def mni(at: Path) -> Answer:
    def change(image: nibabel.Nifti1Image) -> None:
        image.set_qform(np.array([[-1.0, 0, 0, 9], [0, 0.8, -0.6, 0], [0, 0.6, 0.8, 2], [0, 0, 0, 1]]), 1)
        image.set_sform(np.diag([-1.0, 1, 1, 1]), 4)

    nifti(at / "images/a.nii.gz", noise((6, 5, 4)), None, change)
    nifti(at / "images/b.nii.gz", noise((6, 5, 4), 1))
    return _mask_on(at)


@tried("K5", "NIfTI in micrometers", "the mask is in micrometers, too", _KEPT)
def mask_in_micrometers(at: Path) -> Answer:
    affine = np.diag([500.0, 500, 2000, 1])
    nifti(at / "images/a.nii.gz", noise((6, 5, 4)), affine, lambda image: image.header.set_xyzt_units("micron"))
    nifti(at / "images/b.nii.gz", noise((6, 5, 4), 1))
    return _mask_on(at)


@tried(
    "K5",
    "a reference mask with another sform code than its image",
    "the prepared mask lies as its image",
    "20 foreground",
    "prepared mask: codes of its image",
)
def reference_mask(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        nifti(at / f"images/{name}.nii.gz", noise((16, 12, 3), seed), None, lambda i: i.set_sform(i.affine, 3))
        values = np.repeat(square_mask().T[..., None], 3, axis=2)
        values[..., 1:] = 0
        nifti(at / f"masks/{name}.nii.gz", values, None, lambda i: i.set_sform(i.affine, 1))
    answer = prepare(at)
    if not answer.code:
        item = prepared_item(at, "a")
        codes = [int(nibabel.load(at / "out" / item[key]).header["sform_code"]) for key in ("image", "mask")]
        answer.values.append(f"prepared mask: codes of {'its image' if codes[0] == codes[1] else f'another {codes}'}")
    return answer


# K14, K15 ----------------------------------------------------------------------------------------------


def _turned(at: Path, name: str, order: tuple[int, int, int], flips: tuple[int, ...] = ()) -> None:
    """Store a volume with a bright axial slice 2 of 5 with its axes in another order, and a right affine."""
    values = noise((9, 8, 5), low=10, high=20)
    values[3:6, 2:5, 2] = 200
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    turn = np.zeros((4, 4))
    turn[[*order, 3], [0, 1, 2, 3]] = 1
    values, affine = values.transpose(order), affine @ turn
    for axis in flips:
        change = np.eye(4)
        change[axis, axis], change[axis, 3] = -1, values.shape[axis] - 1
        values, affine = np.flip(values, axis), affine @ change
    nifti(at / f"images/{name}.nii.gz", values, affine)


def _bright_slice(at: Path, answer: Answer) -> Answer:
    if answer.code:
        return answer
    top = [int((read_image(path)[0] > 60000).sum() > 3) for path in sorted((at / "out/images/a").glob("*.png"))]
    answer.values.append(f"bright slices of a: {', '.join(str(number) for number, one in enumerate(top) if one)}")
    return answer


@tried(
    "K14",
    "a volume stored coronal, cut into slices",
    "axial slices by the affine: slice 2 is the bright one",
    "bright slices of a: 2$",
)
def stored_coronal(at: Path) -> Answer:
    _turned(at, "a", (0, 2, 1))
    _turned(at, "b", (0, 1, 2))
    labels(at, *(f"{name},{z},{int(z == 2)},train" for name in "ab" for z in range(5)), header="id,slice,label,split")
    return _bright_slice(at, prepare(at, "--as-slices"))


@tried(
    "K14",
    "a volume stored sagittal, two axes mirrored, cut into slices",
    "axial slices by the affine: slice 2 is the bright one",
    "bright slices of a: 2$",
)
def stored_sagittal(at: Path) -> Answer:
    _turned(at, "a", (1, 2, 0), flips=(0, 2))
    _turned(at, "b", (0, 1, 2))
    labels(at, *(f"{name},{z},{int(z == 2)},train" for name in "ab" for z in range(5)), header="id,slice,label,split")
    return _bright_slice(at, prepare(at, "--as-slices"))


@tried(
    "K14",
    "a volume whose axes lie at 45 degrees to the body",
    "one sentence, or a word that the axis is not clear",
    "lies oblique.*45 degrees",
)
def oblique_axes(at: Path) -> Answer:
    half = np.sqrt(0.5)
    turned = np.array([[1.0, 0, 0, 0], [0, half, -half, 0], [0, half, half, 0], [0, 0, 0, 1]])
    for seed, name in enumerate("ab"):
        nifti(at / f"images/{name}.nii.gz", noise((9, 8, 5), seed), turned)
    labels(at, *(f"{name},{z},{int(z == 2)},train" for name in "ab" for z in range(5)), header="id,slice,label,split")
    answer = prepare(at, "--as-slices")
    return answer


@tried(
    "K15",
    "a table with InstanceNumber, which counts from the head, given as such",
    "the label on the slice of that image",
    "label 1 on the slice of image 2",
)
def instance_numbers(at: Path) -> Answer:
    for name, uid in (("a", "1.1"), ("b", "1.2")):
        series(at / "images" / name, stack()[::-1], SeriesInstanceUID=uid)
    rows = [f"{name},{z + 1},{int(z == 1)},train" for name in "ab" for z in range(6)]
    labels(at, *rows, header="id,slice,label,split")
    answer = prepare(at, "--as-slices", "--slice-numbers", "instance")
    if not answer.code:
        item = next(one for one in (prepared_item(at, f"a_{z:03d}") for z in range(1, 7)) if one["label"] == [1])
        first = [read_image(at / "out" / prepared_item(at, f"a_{z:03d}")["image"])[0, 0, 0] for z in range(1, 7)]
        shown = read_image(at / "out" / item["image"])[0, 0, 0]
        answer.values.append(f"label 1 on the slice of image {1 + sorted(map(float, first)).index(float(shown))}")
    return answer


@tried(
    "K15",
    "numbers from 1 to 6 for six slices, which are numbered from 0",
    "one sentence that names the slice which is not there, and how they are numbered",
    "6",
    "0 to 5|from 0",
    code=1,
)
def numbers_from_one(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        nifti(at / f"images/{name}.nii.gz", noise((9, 8, 6), seed))
    rows = [f"{name},{z},{z % 2},train" for name in "ab" for z in range(1, 7)]
    labels(at, *rows, header="id,slice,label,split")
    return prepare(at, "--as-slices")


@tried(
    "K15",
    "positions in millimeters, one beyond the last slice by more than half a step",
    "one sentence that names the position, and how far the volume reaches",
    "at 18 mm.*0 to 15 mm",
    code=1,
)
def positions(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        nifti(at / f"images/{name}.nii.gz", noise((9, 8, 4), seed), np.diag([1.0, 1, 5, 1]))
    rows = ["a,0,1,train", "a,18,0,train", "b,5,1,train", "b,10,0,train"]
    labels(at, *rows, header="id,slice,label,split")
    return prepare(at, "--as-slices", "--slice-numbers", "position")
