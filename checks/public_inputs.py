# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Run the project on situations from public issue threads, rebuilt small, and print its answers.

    python checks/public_inputs.py [THREAD | NUMBER ...]

A thread is a repository and a number, e.g. nipy/nibabel#898.  All inputs are written from fixed seeds; none is a file
of these threads.  The exit status is 0 if each answer is the expected one.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from answers import Answer, answer_of, answer_of_call
from own_pictures import coco
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from writers import (
    AXIAL,
    Input,
    dicom,
    enhanced,
    entry,
    gray_pictures,
    labels,
    nifti,
    noise,
    ordinary,
    picture,
    plane,
    prepare,
    prepared_item,
    print_table,
    series,
    square_mask,
    stack,
    with_order,
)

from monai_wsss.data.reading import read_image
from monai_wsss.inferers import SlideReading

PUBLIC: list[Input] = []
thread = partial(entry, PUBLIC)
SQUARE = "20 foreground"

# DICOM ----------------------------------------------------------------------------------------------------------------


@thread(
    "rordenlab/dcm2niix#529",
    "slices acquired and numbered in six passes, so that the order of numbers is not that of positions",
    "ordered by position",
    "in the order 0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11",
    r"0\.000 mm off",
)
def passes(at: Path) -> Answer:
    positions = [(0.0, 0.0, 2.0 * (2 * (number % 6) + number // 6)) for number in range(12)]
    wanted = series(at / "images/a", positions)
    ordinary(at)
    return with_order(prepare(at), at, "a", wanted)


@thread(
    "rordenlab/dcm2niix#372",
    "an enhanced file whose frames are in random order, without a stack",
    "ordered by the positions of its frames",
    "in the order 2, 0, 3, 1",
)
def random_frames(at: Path) -> Answer:
    enhanced(at / "images/a.dcm", [2.5, 7.5, 0, 5], SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", Modality="CT")
    ordinary(at)
    return with_order(prepare(at), at, "a")


@thread(
    "InsightSoftwareConsortium/ITK#1607",
    "steps of 0.3 mm that differ in the 15th digit",
    "no word of uneven steps",
    r"0\.7 × 0\.5 × 0\.3 mm",
    never="even|lacks|shifted",
)
def rounding(at: Path) -> Answer:
    series(at / "images/a", [(0, 0, round(sum([0.3] * number), 16)) for number in range(8)])
    ordinary(at)
    return prepare(at)


@thread(
    "BRAINSia/BRAINSTools#334",
    "SpacingBetweenSlices that says 5 mm where positions are 3 mm apart",
    "the positions rule, and a word",
    r"a: .*× 3 mm",
    "SpacingBetweenSlices",
)
def stated_spacing(at: Path) -> Answer:
    series(at / "images/a", stack(), SpacingBetweenSlices=5, SliceThickness=5)
    ordinary(at)
    return prepare(at)


@thread(
    "rordenlab/dcm2niix#248",
    "a series that lacks a whole block in its middle",
    "one sentence: how many slices, and where",
    "lacks 113 slices, between 28.8 and 211.2 mm",
    code=1,
)
def lost_block(at: Path) -> Answer:
    positions = [(0, 0, round(1.6 * number, 4)) for number in [*range(19), *range(132, 150)]]
    series(at / "images/a", positions[:37])
    ordinary(at)
    return prepare(at)


@thread(
    "rordenlab/dcm2niix#379",
    "diffusion images of which 33 lie at some positions and 34 at others",
    "one sentence: several images at a position",
    "5 images at one position",
    "b-value",
    code=1,
)
def uneven_repeats(at: Path) -> Answer:
    places = [place for place in stack(5.2) for _ in range(4)] + stack(5.2)[1::2]
    each = [{"DiffusionBValue": float(200 * (number % 4)) if number < 24 else 1000.0} for number in range(27)]
    series(at / "images/a", places, each=each)
    ordinary(at)
    return prepare(at)


@thread(
    "rordenlab/dcm2niix#550",
    "a mosaic whose private header was removed, so that nobody knows its number of tiles",
    "one sentence: a mosaic",
    "is a mosaic",
    code=1,
)
def mosaic(at: Path) -> Answer:
    kind = ["DERIVED", "PRIMARY", "DIFFUSION", "NONE", "ND", "MOSAIC"]
    dicom(at / "images/a.dcm", np.tile(plane(), (9, 9)), ImageType=kind)
    ordinary(at)
    return prepare(at)


@thread(
    "rordenlab/dcm2niix#553",
    "an enhanced file that was taken apart, but is still called a mosaic",
    "read as the volume that it is",
    "a: 10 × 8 × 4",
)
def called_mosaic(at: Path) -> Answer:
    kind = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    enhanced(at / "images/a.dcm", [0, 2, 4, 6], ImageType=kind)
    ordinary(at)
    return prepare(at)


@thread(
    "rordenlab/dcm2niix#978",
    "PET with another slope in each slice",
    "every slice by its own slope",
    "first pixels 100, 202, 306, 412",
)
def slopes(at: Path) -> Answer:
    each = [{"RescaleSlope": number + 1, "RescaleIntercept": 0, "Modality": "PT"} for number in range(4)]
    series(at / "images/a", stack(count=4), each=each)
    ordinary(at)
    answer = prepare(at)
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, "a")["image"])
        answer.values.append(f"first pixels {', '.join(f'{value:g}' for value in image[0, 0, 0].tolist())}")
    return answer


@thread(
    "pydicom/pydicom#1149",
    "JPEG 2000 that codes its values without a sign, while PixelRepresentation says that they have one",
    "signed, as the header says: -1000 in the square",
    "square -1000, around it 200",
)
def sign_of_jpeg2000(at: Path) -> Answer:
    values = np.full((32, 32), 200, np.int16)
    values[8:16, 8:16] = -1000
    stream = io.BytesIO()
    stored = Image.fromarray((values.astype(np.int32) & 0x1FFF).astype(np.uint16))
    stored.save(stream, "JPEG2000", no_jp2=True, irreversible=False)
    tags = {"BitsStored": 13, "PixelRepresentation": 1, "syntax": JPEG2000Lossless}
    dicom(at / "images/a.dcm", values.astype(np.uint16), PixelData=encapsulate([stream.getvalue()]), **tags)
    dicom(at / "images/b.dcm", noise((32, 32)).astype(np.uint16))
    answer = prepare(at)
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, "a")["image"])[0]
        answer.values.append(f"square {float(image[10, 10]):g}, around it {float(image[0, 0]):g}")
    return answer


@thread(
    "ayselafsar/dicomviewer#173",
    "a folder of a burned disc: DICOMDIR and images without suffix",
    "the images are read, the index is passed over",
    "a: 10 × 8 × 6",
)
def burned(at: Path) -> Answer:
    series(at / "images/a", stack(), names="IM{:06d}".format)
    shutil.copy(at / "images/a/IM000000", at / "images/a/DICOMDIR")
    ordinary(at)
    return prepare(at)


@thread(
    "Project-MONAI/monai-deploy-app-sdk#532",
    "each slice twice in a series, as two archives had sent it",
    "one sentence: copies",
    "2 images at each of its 6 positions",
    "copies",
    code=1,
)
def twice(at: Path) -> Answer:
    positions = stack()
    series(at / "images/a", positions)
    for number in range(6):
        where = {"ImagePositionPatient": list(positions[number]), "ImageOrientationPatient": list(AXIAL)}
        dicom(at / "images/a" / f"again{number}.dcm", plane(number), InstanceNumber=number + 1, **where)
    ordinary(at)
    return prepare(at)


@thread(
    "dgobbi/vtk-dicom#173",
    "CT with padding of -2000 around the field of view",
    "kept, and a word",
    r"PixelPaddingValue -2000",
)
def padding(at: Path) -> Answer:
    values = noise((16, 16)).astype(np.int16)
    values[:2] = -2000
    for name in "ab":
        dicom(at / f"images/{name}.dcm", values, Modality="CT", PixelPaddingValue=-2000)
    return prepare(at)


@thread(
    "wasserth/TotalSegmentator#610",
    "CT of a head with a tilted gantry",
    "a sheared affine, and a word",
    "tilted by 16.7",
    r"last axis \(0, 0\.9\d*, 3\)",
)
def tilted_head(at: Path) -> Answer:
    series(at / "images/a", stack(shift=-0.3), Modality="CT")
    ordinary(at)
    return prepare(at)


# NIfTI ----------------------------------------------------------------------------------------------------------------


def _two(at: Path, **how: object) -> None:
    nifti(at / "images/a.nii.gz", noise((9, 8, 6)), **how)  # type: ignore[arg-type]
    nifti(at / "images/b.nii.gz", noise((9, 8, 6), 1))


@thread(
    "nipy/nibabel#624",
    "sform with code 1 and nothing but zeros, beside a valid qform",
    "the qform counts, and a word",
    "the qform counts",
    "a: 9 × 8 × 6, 1 × 1 × 2 mm",
)
def empty_sform(at: Path) -> Answer:
    nifti(at / "images/b.nii.gz", noise((9, 8, 6), 1))
    nifti(at / "images/a.nii", noise((9, 8, 6)))
    content = bytearray((at / "images/a.nii").read_bytes())
    content[252:256], content[280:328] = bytes([1, 0, 1, 0]), bytes(48)  # codes, and the rows of the sform
    (at / "images/a.nii").unlink()
    with gzip.open(at / "images/a.nii.gz", "wb") as file:
        file.write(bytes(content))
    return prepare(at)


@thread(
    "nipy/nipype#3266",
    "pixdim 1.75 × 1.75 × 5.47 with an sform of 2 mm, and no qform",
    "the sform counts, and a word",
    "contradicts its sform: the sform counts",
    "a: 9 × 8 × 6, 2 × 2 × 2 mm",
)
def contradicting_sizes(at: Path) -> Answer:
    def change(image: object) -> None:
        image.header["pixdim"][1:4] = 1.75, 1.75, 5.47  # type: ignore[attr-defined]

    _two(at, affine=np.diag([2.0, 2.0, 2.0, 1.0]), change=change)
    return prepare(at)


@thread(
    "MIC-DKFZ/nnUNet#2265",
    "a sheared sform, which ITK refuses",
    "read with its shear",
    r"a: .*last axis \(0, 0\.5, 2\)",
)
def sheared(at: Path) -> Answer:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 0.5
    _two(at, affine=affine)
    return prepare(at)


@thread(
    "MIC-DKFZ/nnUNet#1287",
    "an image and a mask whose directions differ in the eighth digit",
    "one grid",
    SQUARE,
    never="lie|grid",
)
def eighth_digit(at: Path) -> Answer:
    angle = 0.0166
    affine = np.array(
        [[np.cos(angle), -np.sin(angle), 0, -90], [np.sin(angle), np.cos(angle), 0, 7], [0, 0, 2, 0], [0, 0, 0, 1]]
    )
    nifti(at / "images/a.nii.gz", noise((16, 12, 3)), affine)
    nifti(at / "images/b.nii.gz", noise((16, 12, 3), 1))
    values = np.zeros((16, 12, 3), np.uint8)
    values[..., 1] = square_mask().T
    nifti(at / "masks/a.nii.gz", values, affine + 2e-8)
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@thread(
    "MIC-DKFZ/nnUNet#2551",
    "a mask of the size of its image, whose origin is hundreds of millimeters away",
    "one sentence that names both",
    "masks/a.nii.gz",
    code=1,
)
def far_mask(at: Path) -> Answer:
    near, far = np.diag([1.0, 1.0, 2.0, 1.0]), np.diag([1.0, 1.0, 2.0, 1.0])
    near[:3, 3], far[:3, 3] = (-123, 215.3, 271.4), (-124.5, 124.5, -74.3)
    nifti(at / "images/a.nii.gz", noise((16, 12, 3)), near)
    nifti(at / "images/b.nii.gz", noise((16, 12, 3), 1))
    nifti(at / "masks/a.nii.gz", np.repeat(square_mask().T[..., None], 3, axis=2), far)
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@thread(
    "MIC-DKFZ/nnUNet#1183",
    "three classes, and masks of BraTS with the value 4",
    "one sentence: the value and the classes",
    "holds the value 4, but there are 3 classes",
    code=1,
)
def fourth_label(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        nifti(at / f"images/{name}.nii.gz", noise((16, 12, 3), seed))
        nifti(at / f"masks/{name}.nii.gz", np.repeat(4 * square_mask().T[..., None], 3, axis=2))
    labels(at, "a,1,1,1,train", "b,0,0,0,train", header="id,core,edema,enhancing,split")
    return prepare(at)


@thread(
    "BioMedIA/dhcp-structural-pipeline#3",
    "a mask that was resampled linearly: 0.4 and 0.7 at its border",
    "one sentence: not whole numbers",
    "masks/a.nii.gz holds values other than whole numbers",
    code=1,
)
def linear_mask(at: Path) -> Answer:
    _two(at)
    values = np.zeros((9, 8, 6), np.float32)
    values[2:5, 2:5, 2] = 1
    values[2, 2:5, 2], values[4, 2:5, 2] = 0.4, 0.7
    nifti(at / "masks/a.nii.gz", values)
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@thread(
    "nipy/nibabel#966",
    "a file called .nii.gz that was never compressed",
    "one sentence: no gzip",
    "a.nii.gz.*not a gzip file",
    code=1,
)
def not_compressed(at: Path) -> Answer:
    _two(at)
    (at / "images/a.nii.gz").write_bytes(gzip.decompress((at / "images/a.nii.gz").read_bytes()))
    return prepare(at)


@thread(
    "wasserth/TotalSegmentator#24",
    "a .nii.gz with a wrong checksum at its end",
    "one sentence: its checksum",
    "a.nii.gz.*checksum is wrong.*damaged",
    code=1,
)
def wrong_checksum(at: Path) -> Answer:
    _two(at)
    content = bytearray((at / "images/a.nii.gz").read_bytes())
    content[-6] ^= 1
    (at / "images/a.nii.gz").write_bytes(content)
    return prepare(at)


# Pictures, slides, tables ---------------------------------------------------------------------------------------------


@thread(
    "HKUSTCV/FSS-1000#23",
    "a mask that is a photograph, as one was exchanged for the other",
    "one sentence: several colors",
    "masks/a.png",
    "not clear",
    code=1,
)
def photograph_as_mask(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    picture(at / "masks/a.png", noise((12, 16, 3)).astype(np.uint8))
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@thread(
    "aurooj/Hand-Segmentation-in-the-Wild#4",
    "masks saved as JPEG",
    "the two levels are restored",
    SQUARE,
)
def jpeg_masks(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    picture(at / "masks/a.jpg", 255 * square_mask(), quality=60)
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@thread(
    "cgohlke/tifffile#196",
    "a stack of three slices, which a library writes as the planes of an RGB image",
    "read as the colors that the file says it holds",
    "a: 16 × 12 RGB",
)
def three_planes(at: Path) -> Answer:
    (at / "images").mkdir()
    for seed, name in enumerate("ab"):
        values = noise((3, 12, 16), seed).astype(np.uint8)
        tifffile.imwrite(at / f"images/{name}.tif", values, photometric="rgb", planarconfig="separate")
    return prepare(at)


@thread(
    "imageio/imageio#226",
    "a hyperstack of ImageJ with slices and channels",
    "one sentence: several pages",
    r"a\.tif.*(pages|images|frames)",
    code=1,
)
def hyperstack(at: Path) -> Answer:
    (at / "images").mkdir()
    for seed, name in enumerate("ab"):
        values = noise((4, 2, 12, 16), seed).astype(np.uint8)
        tifffile.imwrite(at / f"images/{name}.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    return prepare(at)


@thread(
    "mahmoodlab/TRIDENT#135",
    "a slide whose resolution is ten times too high, 0.025 µm per pixel",
    "one sentence: no microscope gives that",
    "0.025 x 0.025, which no microscope gives",
    code=1,
)
def ten_times(at: Path) -> Answer:
    values, resolution = noise((64, 96, 3)).astype(np.uint8), (1e4 / 0.025, 1e4 / 0.025)
    tifffile.imwrite(
        at / "s.tif", values, photometric="rgb", tile=(32, 32), resolution=resolution, resolutionunit="CENTIMETER"
    )
    return answer_of_call(lambda: SlideReading(backend="tifffile").open(at / "s.tif").mpp)


@thread(
    "cocodataset/cocoapi#348",
    "a polygon of two corners beside real ones",
    "the others are drawn",
    "a: .*20 foreground",
)
def two_corners(at: Path) -> Answer:
    square = [3, 2, 8, 2, 8, 6, 3, 6]
    return coco(at, {"segmentation": [[12, 10, 12, 11], square], "bbox": [3, 2, 10, 9]})


@thread(
    "facebookresearch/maskrcnn-benchmark#480",
    "annotations without bbox",
    "the outlines are drawn",
    "a: .*20 foreground",
)
def no_box(at: Path) -> Answer:
    return coco(at, {"segmentation": [[3, 2, 8, 2, 8, 6, 3, 6]]})


@thread(
    "cvat-ai/cvat#7523",
    "two images with the same id, as their names differ in the suffix alone",
    "one sentence that names the id",
    "id.* 1",
    code=1,
)
def same_id(at: Path) -> Answer:
    images = [{"id": 1, "file_name": f"{name}.png", "width": 16, "height": 12} for name in "ab"]
    return coco(at, {"image_id": 1, "segmentation": [[3, 2, 8, 2, 8, 6]]}, images=images)


@thread(
    "HumanSignal/label-studio#9366",
    "file names that lead out of the folder, to the storage of the program that wrote them",
    "one sentence",
    r"\.\./",
    code=1,
)
def outside_of_the_folder(at: Path) -> Answer:
    return coco(at, {"segmentation": [[3, 2, 8, 2, 8, 6]]}, file="../../data/media/upload/{}.png")


@thread(
    "datitran/raccoon_dataset#27",
    "VOC annotations that say .png of images that are .jpg",
    "read by the names in the lists",
    r"x1: .*\[1\]",
)
def wrong_suffix(at: Path) -> Answer:
    for name in ("x1", "x2"):
        picture(at / f"JPEGImages/{name}.jpg", np.repeat(noise((12, 16, 1)), 3, axis=2))
        (at / "Annotations").mkdir(exist_ok=True)
        objects = "<object><name>raccoon</name></object>" * (name == "x1")
        text = f"<annotation><filename>{name}.png</filename>{objects}</annotation>"
        (at / f"Annotations/{name}.xml").write_text(text)
    (at / "ImageSets/Segmentation").mkdir(parents=True)
    (at / "ImageSets/Segmentation/train.txt").write_text("x1\nx2\n")
    return answer_of(["prepare", "voc", "--root", ".", "--out", "out", "--classes", "raccoon"], at)


@thread(
    "Unstructured-IO/unstructured#4443",
    "a table in UTF-16, little-endian, as Excel's Unicode text",
    "read",
    r"a: .*label \[1\]",
)
def unicode_text(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    (at / "labels.csv").write_bytes("\ufeffid\tlabel\tsplit\r\na\t1\ttrain\r\nb\t0\ttrain\r\n".encode("utf-16-le"))
    return prepare(at)


@thread(
    "iolag/UPD_study#3",
    "a BraTS study whose segmentation is called W39_1998.09.19_Segm.nii",
    "one sentence that names the study, or the segmentation is found",
    "355",
    code=None,
)
def renamed_segmentation(at: Path) -> Answer:
    for number in (354, 355, 356):
        folder = at / "brats" / f"BraTS20_Training_{number}"
        for seed, name in enumerate(("t1", "t1ce", "t2", "flair")):
            values = np.zeros((16, 12, 4), np.int16)
            values[2:14, 2:10] = noise((12, 8, 4), 10 * number + seed)
            nifti(folder / f"{folder.name}_{name}.nii", values)
        mask = np.zeros((16, 12, 4), np.uint8)
        mask[4:6, 4:6, 1] = 1
        nifti(folder / (f"{folder.name}_seg.nii" if number != 355 else "W39_1998.09.19_Segm.nii"), mask)
    answer = answer_of(["prepare", "brats", "--root", "brats", "--out", "out", "--modalities", "T1,FLAIR"], at)
    if not answer.code:
        content = json.loads((at / "out/datalist.json").read_text())
        items = [item for split in ("training", "validation", "test") for item in content.get(split, [])]
        found = [f"{item['id']} {'with' if 'mask' in item else 'WITHOUT'} mask" for item in items]
        answer.values = [", ".join(sorted(found))]
    return answer


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these threads or numbers")
    return print_table(PUBLIC, parser.parse_args().names, first="thread")


if __name__ == "__main__":
    sys.exit(main())
