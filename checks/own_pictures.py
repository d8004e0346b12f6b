# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Inputs of our own: pictures, masks, names and tables (K3, K4, K6 to K11, K13)."""

from __future__ import annotations

import json
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from answers import Answer, answer_of, answer_of_call
from PIL import Image
from writers import Input, entry, gray_pictures, labels, nifti, noise, picture, prepare, prepared_item, square_mask

from monai_wsss.data.reading import read_image
from monai_wsss.inferers import SlideReading
from monai_wsss.refinement import dense_crf_refinement

PICTURES: list[Input] = []
tried = partial(entry, PICTURES)
SQUARE = "20 foreground"

# K3, pictures ----------------------------------------------------------------------------------------


def _turned(at: Path, orientation: int, suffix: str, mask_too: bool = False) -> Answer:
    """Write a red square as a camera stores it, with an EXIF entry, and its mask as viewers show it."""
    backs = {1: None, 3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    backs |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in "ab":
        shown = np.stack([40 + 200 * square_mask((16, 16)), *([np.full((16, 16), 40, np.uint8)] * 2)], axis=-1)
        back = backs[orientation if name == "a" else 1]
        stored = Image.fromarray(shown) if back is None else Image.fromarray(shown).transpose(back)
        (at / "images").mkdir(exist_ok=True)
        quality = {} if suffix != "jpg" else {"quality": 100, "subsampling": 0}
        stored.save(at / f"images/{name}.{suffix}", exif=exif if name == "a" else Image.Exif(), **quality)
        mask = Image.fromarray(255 * square_mask((16, 16)))
        (at / "masks").mkdir(exist_ok=True)
        stored_mask = mask.transpose(back) if back is not None and mask_too else mask
        stored_mask.save(at / f"masks/{name}.png", exif=exif if name == "a" and mask_too else Image.Exif())
    return prepare(at)


@tried(
    "K3",
    "JPEG whose EXIF entry mirrors it (2), its mask as shown",
    "Dice 1, and a word",
    "a: .*and mask 1$|a: .*and mask 1 ",
    "viewers turn",
)
def mirrored(at: Path) -> Answer:
    return _turned(at, 2, "jpg")


@tried("K3", "PNG whose EXIF entry transposes it (5)", "Dice 1, and a word", "a: .*and mask 1 ", "viewers turn")
def transposed(at: Path) -> Answer:
    return _turned(at, 5, "png")


@tried(
    "K3",
    "TIFF whose Orientation is 8, and its mask, stored as the camera did, with the entry",
    "Dice 1",
    "a: .*and mask 1 ",
)
def turned_mask(at: Path) -> Answer:
    return _turned(at, 8, "tif", mask_too=True)


@tried("K3", "gray PNG of 16 bits with 12-bit values", "all levels kept", r"a: 16 × 12, .*, 3 to 4\d\d\d")
def sixteen_bits(at: Path) -> Answer:
    for seed, name in enumerate("ab"):
        values = noise((12, 16), seed, 3, 4096).astype(np.uint16)
        values[0, 0], values[0, 1] = 3, 4095
        picture(at / f"images/{name}.png", values)
    return prepare(at)


@tried("K3", "RGB TIFF of 16 bits per channel", "one sentence: 8 bits", "16 bits per channel|colors of 16 bits", code=1)
def rgb_tiff(at: Path) -> Answer:
    (at / "images").mkdir()
    for name in "ab":
        tifffile.imwrite(at / f"images/{name}.tif", noise((12, 16, 3), 0, 0, 4096).astype(np.uint16), photometric="rgb")
    return prepare(at)


@tried(
    "K3", "gray TIFF that stores white as 0, 8 bits", "bright where viewers show it bright", "square 0, around it 55"
)
def white_as_zero(at: Path) -> Answer:
    (at / "images").mkdir()
    for name in "ab":
        values = np.full((12, 16), 200, np.uint8)
        values[2:6, 3:8] = 255
        tifffile.imwrite(at / f"images/{name}.tif", values, photometric="miniswhite")
    answer = prepare(at)
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, "a")["image"])[0]
        answer.values.append(f"square {float(image[5, 3]):g}, around it {float(image[0, 0]):g}")
    return answer


@tried(
    "K3", "a slide (TIFF) with an Orientation entry of 6", "one sentence, or turned", "(?i)orientation|turn", code=None
)
def turned_slide(at: Path) -> Answer:
    tag = (274, "H", 1, 6, True)
    tifffile.imwrite(
        at / "s.tif", noise((64, 96, 3)).astype(np.uint8), photometric="rgb", tile=(32, 32), extratags=[tag]
    )
    return answer_of_call(lambda: SlideReading(slide_mpp=0.5).open(at / "s.tif").sizes)


@tried("K3", "a slide (TIFF) that says 72 dots per inch", "one sentence: no microscope gives that", "slide_mpp", code=1)
def slide_of_screens(at: Path) -> Answer:
    values = noise((64, 96, 3)).astype(np.uint8)
    how: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "resolution": (72, 72), "resolutionunit": 2}
    tifffile.imwrite(at / "s.tif", values, **how)
    return answer_of_call(lambda: SlideReading(backend="tifffile").open(at / "s.tif").mpp)


# K4 ----------------------------------------------------------------------------------------


def _masked(at: Path, mask: Image.Image, suffix: str = "png", header: str = "id,label,split", **saving: Any) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    (at / "masks").mkdir()
    mask.save(at / f"masks/a.{suffix}", **saving)
    width = header.count(",") - 1
    labels(at, f"a{',1' * width},train", f"b{',0' * width},train", header=header)
    return prepare(at)


def _with_palette(*colors: int, values: np.ndarray | None = None) -> Image.Image:
    mask = Image.fromarray(square_mask() if values is None else values, mode="P")
    mask.putpalette([*colors, *[0] * (768 - len(colors))])
    return mask


@tried(
    "K4",
    "a palette of white, black: the square is black on white",
    "not the square as foreground in silence: its surroundings are, and a word",
    "172 foreground|not clear|corners",
    code=None,
)
def black_square(at: Path) -> Answer:
    return _masked(at, _with_palette(255, 255, 255, 0, 0, 0))


@tried("K4", "a palette of blue background and red object", "one sentence: no black", "has colors and no black", code=1)
def blue_and_red(at: Path) -> Answer:
    return _masked(at, _with_palette(0, 0, 255, 255, 0, 0))


@tried("K4", "two classes by palette, entry 0 black", "their indices", "a: .*30 foreground", r"classes 1: 20, 2: 10")
def palette_of_classes(at: Path) -> Answer:
    values = square_mask()
    values[8:10, 9:14] = 2
    answer = _masked(at, _with_palette(0, 0, 0, 128, 0, 0, 0, 128, 0, values=values), header="id,one,two,split")
    if not answer.code:
        mask = np.asarray(Image.open(at / "out" / prepared_item(at, "a")["mask"]))
        answer.values.append(f"classes 1: {(mask == 1).sum()}, 2: {(mask == 2).sum()}")
    return answer


@tried("K4", "RGBA: a white square, the rest transparent white", "the square", SQUARE)
def transparent_white(at: Path) -> Answer:
    values = np.full((12, 16, 4), 255, np.uint8)
    values[..., 3] = 255 * square_mask()
    return _masked(at, Image.fromarray(values))


@tried("K4", "RGBA: a black square, the rest transparent", "one sentence", "black on nothing", code=1)
def transparent_black(at: Path) -> Answer:
    values = np.zeros((12, 16, 4), np.uint8)
    values[..., 3] = 255 * square_mask()
    return _masked(at, Image.fromarray(values))


@tried("K4", "gray with alpha, all opaque", "the square", SQUARE)
def gray_and_alpha(at: Path) -> Answer:
    return _masked(at, Image.merge("LA", [Image.fromarray(255 * square_mask()), Image.new("L", (16, 12), 255)]))


@tried("K4", "one bit per pixel", "the square", SQUARE)
def one_bit(at: Path) -> Answer:
    return _masked(at, Image.fromarray(255 * square_mask()).convert("1"))


@tried("K4", "TIFF of one bit that stores white as 0", "the square", SQUARE)
def fax(at: Path) -> Answer:
    mask = Image.fromarray(255 * square_mask()).convert("1")
    return _masked(at, mask, "tif", compression="group4")


@tried("K4", "gray, black object on white", "a word: foreground at all corners", "foreground at all corners")
def inverted(at: Path) -> Answer:
    return _masked(at, Image.fromarray(255 - 255 * square_mask()))


@tried("K4", "JPEG of black and white, blurred by it", "the square", SQUARE)
def jpeg_mask(at: Path) -> Answer:
    return _masked(at, Image.fromarray(255 * square_mask()), "jpg", quality=75)


@tried(
    "K4",
    "gray with 0, 128 and 255, and one class with a name",
    "one sentence that lists the values",
    "128, 255",
    code=1,
)
def three_levels(at: Path) -> Answer:
    values = 255 * square_mask()
    values[8:10, 9:14] = 128
    return _masked(at, Image.fromarray(values), header="id,tumor,split")


# K6, K7 ----------------------------------------------------------------------------------------


@tried("K6", "A.PNG, b.Jpg and C.TIF", "all read", "A: ", "b: ", "C: ")
def capitals(at: Path) -> Answer:
    for seed, name in enumerate(("A.PNG", "b.Jpg", "C.TIF")):
        picture(at / "images" / name, noise((12, 16), seed))
    return prepare(at)


@tried("K6", "NIfTI called A.Nii.Gz and B.NII", "both read", r"A: 6 × 5 × 4", "B: 6 × 5 × 4")
def mixed_nifti(at: Path) -> Answer:
    nifti(at / "images/x.nii.gz", noise((6, 5, 4))).rename(at / "images/A.Nii.Gz")
    nifti(at / "images/y.nii", noise((6, 5, 4), 1)).rename(at / "images/B.NII")
    labels(at, "A,1,train", "B,0,train")
    return prepare(at)


@tried("K6", "VOC images called .JPG, lists with the line ends of Windows", "read", "x1: ", "x2: ")
def voc_capitals(at: Path) -> Answer:
    for name, objects in (("x1", "cat"), ("x2", "dog")):
        picture(at / f"JPEGImages/{name}.JPG", noise((12, 16, 3)).astype(np.uint8))
        (at / "Annotations").mkdir(exist_ok=True)
        (at / f"Annotations/{name}.xml").write_text(f"<annotation><object><name>{objects}</name></object></annotation>")
    (at / "ImageSets/Segmentation").mkdir(parents=True)
    (at / "ImageSets/Segmentation/train.txt").write_bytes(b"x1\r\nx2\r\n\r\n")
    return answer_of(["prepare", "voc", "--root", ".", "--out", "out", "--classes", "cat,dog"], at)


@tried(
    "K7",
    "a mask for an image that is not in the table",
    "those of the table, and a word on the other",
    "a: .*" + SQUARE,
    "1 of 3 masks in masks belong to no row",
)
def masks_of_nobody(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    for name in ("a", "b", "z9"):
        picture(at / f"masks/{name}.png", 255 * square_mask())
    labels(at, "a,1,train", "b,1,train")
    return prepare(at)


@tried(
    "K7",
    "a column PatientID, of whom one is in training and in test",
    "a word: the column was not used",
    "PatientID",
    code=None,
)
def patients(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png", "c.png", "d.png")
    rows = ("a,p1,1,train", "b,p2,0,train", "c,p1,0,test", "d,p3,1,test")
    labels(at, *rows, header="id,PatientID,label,split")
    return prepare(at)


@tried(
    "K7",
    "a mask called a_label.png, and one called a.png for the same image",
    "one sentence that names both, or a word",
    "a_label.png|a.png.*a_label|two masks|several",
    code=None,
)
def two_masks(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    for name in ("a", "a_label", "b"):
        picture(at / f"masks/{name}.png", 255 * square_mask())
    labels(at, "a,1,train", "b,1,train")
    return prepare(at)


# K8, K9 ----------------------------------------------------------------------------------------


@tried(
    "K8",
    "a table from Excel: UTF-16, tabs, ids with suffixes and blanks, yes and no",
    "read",
    r"a: .*label \[1\]",
    r"b: .*label \[0\]",
)
def excel(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    text = "ID\tLabel\tSplit\n a.png \tYes\tTraining\nb.png\tno\ttrain\n\t\t\n"
    (at / "labels.csv").write_text(text, encoding="utf-16")
    return prepare(at)


@tried("K8", "a semicolon table of a German Excel with 1,0 and 0,0 as labels", "read", r"a: .*\[1\]", r"b: .*\[0\]")
def german(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    (at / "labels.csv").write_bytes("\ufeffid;label;split\r\na;1,0;train\r\nb;0,0;train\r\n".encode())
    return prepare(at)


@tried(
    "K8",
    "ids that differ in a no-break space and in case",
    "read, or one sentence that names the near match",
    r"lesion_a: .*label \[1\]",
)
def near_names(at: Path) -> Answer:
    gray_pictures(at, "Lesion_A.png", "b.png")
    labels(at, "lesion_a\u00a0,1,train", "b,0,train")
    return prepare(at)


@tried(
    "K8",
    "decomposed letters in the table, composed ones in names of files and of masks",
    "matched",
    "a: |Zoë: ",
    SQUARE,
)
def unicode_forms(at: Path) -> Answer:
    gray_pictures(at, unicodedata.normalize("NFC", "Zoë.png"), "b.png")
    picture(at / unicodedata.normalize("NFD", "masks/Zoë.png"), 255 * square_mask())
    labels(at, unicodedata.normalize("NFD", "Zoë,1,train"), "b,0,train")
    return prepare(at)


@tried(
    "K8",
    "three faults at once: a label 2, an id twice, a split dev",
    "one run says all with their rows",
    "row 3",
    "row 4",
    "row 5",
    code=1,
)
def three_faults(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png", "c.png")
    labels(at, "a,1,train", "b,2,train", "a,1,train", "c,0,devel")
    return prepare(at)


@tried("K8", "ids 7 and 12, files 0007.png and 0012.png", "one sentence: zeros", "0007", "zeros", code=1)
def zeros(at: Path) -> Answer:
    gray_pictures(at, "0007.png", "0012.png")
    labels(at, "7,1,train", "12,0,train")
    return prepare(at)


@tried("K9", "images as WebP and as GIF", "one sentence each: save as PNG", "a.webp.*save it as PNG", "b.gif", code=1)
def webp(at: Path) -> Answer:
    picture(at / "images/a.webp", noise((12, 16, 3)).astype(np.uint8))
    picture(at / "images/b.gif", noise((12, 16)))
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


@tried("K9", "masks as .npy", "one sentence or a word: not read", r"\.npy", code=None)
def npy_masks(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    (at / "masks").mkdir()
    for name in "ab":
        np.save(at / f"masks/{name}.npy", square_mask())
    labels(at, "a,1,train", "b,1,train")
    return prepare(at)


@tried(
    "K9",
    "a photograph of a phone (HEIC) renamed to .jpg",
    "one sentence: of another kind",
    "a.jpg.*another kind",
    code=1,
)
def heic(at: Path) -> Answer:
    gray_pictures(at, "b.jpg")
    (at / "images/a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    labels(at, "a,1,train", "b,0,train")
    return prepare(at)


# K10, K11, K13 ----------------------------------------------------------------------------------------


def _lesion(at: Path, values: np.ndarray) -> Answer:
    """Cut a volume with a dark lesion into slices, and tell how the lesion and its surroundings come out."""
    values = values.copy()
    nifti(at / "images/b.nii.gz", np.roll(values, 3, axis=0))
    values[5:9, 5:9, 3] -= (values.max() - values.min()) // 3
    nifti(at / "images/a.nii.gz", values)
    labels(at, *(f"{name},{z},{z % 2},train" for name in "ab" for z in range(6)), header="id,slice,label,split")
    answer = prepare(at, "--as-slices")
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, "a_003")["image"])[0].numpy()
        around = np.delete(image.ravel(), np.ravel_multi_index(np.mgrid[5:9, 5:9], image.shape).ravel())
        lesion, around = float(np.median(image[5:9, 5:9])), float(np.median(around))
        answer.values.append(f"the lesion is {'darker' if lesion < around - 1000 else 'NOT darker'}")
    return answer


@tried("K10", "MR cropped to an organ, no background", "the dark lesion stays darker", "the lesion is darker")
def cropped_mr(at: Path) -> Answer:
    return _lesion(at, noise((14, 14, 6), 3, 300, 340))


@tried("K10", "CT with air of -1024 in its corners", "the dark lesion stays darker", "the lesion is darker")
def ct_with_air(at: Path) -> Answer:
    values = noise((14, 14, 6), 3, 40, 70)
    values[:3], values[-2:] = -1024, -1024
    values[5, 5, 3] = -900
    return _lesion(at, values)


@tried("K10", "z-scores, of which half are negative", "the dark lesion stays darker", "the lesion is darker")
def z_scores(at: Path) -> Answer:
    values = np.random.default_rng(1).normal(0, 0.2, (14, 14, 6)).astype(np.float32)
    values = np.clip(values, -0.5, 0.5) + 0.0
    nifti(at / "images/b.nii.gz", values[::-1].copy())
    values[5:9, 5:9, 3] = -3
    nifti(at / "images/a.nii.gz", values)
    labels(at, *(f"{name},{z},{z % 2},train" for name in "ab" for z in range(6)), header="id,slice,label,split")
    answer = prepare(at, "--as-slices")
    if not answer.code:
        image = read_image(at / "out" / prepared_item(at, "a_003")["image"])[0].numpy()
        darker = image[5:9, 5:9].mean() < image[:4].mean() - 1000
        answer.values.append(f"the lesion is {'darker' if darker else 'NOT darker'}")
    return answer


def _crf(image: torch.Tensor) -> Answer:
    truth = torch.zeros(1, 1, 24, 24)
    truth[..., 8:16, 8:16] = 1
    probabilities = torch.cat((0.85 - 0.5 * truth, 0.15 + 0.5 * truth), 1)
    return answer_of_call(lambda: f"{int(dense_crf_refinement(image, probabilities).argmax(1).sum())} pixels of 64")


def _gray(low: float, high: float) -> torch.Tensor:
    image = torch.full((1, 1, 24, 24), low)
    image[..., 8:16, 8:16] = high
    return image


@tried("K11", "dense CRF on an image of -1 to 1", "one sentence: the range", "intensity_range", code=1)
def crf_signed(_: Path) -> Answer:
    return _crf(_gray(-1, 1))


@tried("K11", "dense CRF on 12 bits, 0 to 4095", "one sentence: the range", "intensity_range", code=1)
def crf_twelve_bits(_: Path) -> Answer:
    return _crf(_gray(0, 4095))


@tried("K11", "dense CRF on Hounsfield units, -1000 to 400", "one sentence: the range", "intensity_range", code=1)
def crf_hounsfield(_: Path) -> Answer:
    return _crf(_gray(-1000, 400))


@tried("K11", "dense CRF on 8 bits", "the object", "64 pixels of 64")
def crf_eight_bits(_: Path) -> Answer:
    return _crf(_gray(40, 220))


def coco(at: Path, *annotations: dict[str, Any], file: str = "{}.png", **entries: Any) -> Answer:
    """Prepare two images with annotations of the first, in COCO's format."""
    for seed, name in enumerate("ab"):
        picture(at / "train" / f"{name}.png", np.repeat(noise((12, 16, 1), seed), 3, axis=2))
    images = [{"id": n, "file_name": file.format(name), "width": 16, "height": 12} for n, name in enumerate("ab")]
    square = [[3, 2, 8, 2, 8, 6, 3, 6]]
    content = {
        "images": images,
        "categories": [{"id": 0, "name": "one"}, {"id": 1, "name": "two"}],
        "annotations": [
            {"id": 9, "image_id": 1, "category_id": 1, "segmentation": square, "bbox": [3, 2, 5, 4]},
            *({"id": n, "image_id": 0, "category_id": 0} | one for n, one in enumerate(annotations)),
        ],
    } | entries
    (at / "annotations").mkdir()
    (at / "annotations/instances_train.json").write_text(json.dumps(content))
    return answer_of(["prepare", "coco", "--root", ".", "--masks", "--out", "out"], at)


@tried(
    "K13",
    "COCO: segmentation null, a box alone",
    "the box is ignored (255), a word",
    "1 annotations .* have a box",
    r"a: .*\[1, 0\], 20 foreground",
)
def null_segmentation(at: Path) -> Answer:
    return coco(at, {"segmentation": None, "bbox": [3, 2, 5, 4]})


@tried(
    "K13",
    "COCO: run lengths of another image size in one annotation",
    "the others have masks; a sentence names it",
    r"cannot be drawn|for the size",
    "b: .*20 foreground",
    code=None,
)
def wrong_size(at: Path) -> Answer:
    return coco(at, {"segmentation": {"size": [5, 5], "counts": [3, 4, 18]}, "bbox": [3, 2, 5, 4]})


@tried(
    "K13",
    "COCO: an outline that leaves the image on two sides",
    "cut at the border, without a word",
    "a: .*12 foreground",
    never="drawn|ignored",
)
def outside(at: Path) -> Answer:
    return coco(at, {"segmentation": [[-4, -4, 4, -4, 4, 3, -4, 3]], "bbox": [-4, -4, 8, 7]})
