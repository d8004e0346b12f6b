# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands ``monai-wsss prepare LAYOUT``, one row per layout; a test compares every row with its function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from monai_wsss.command_line.arguments import REQUIRED, Argument, Command, Elsewhere, names, pair, triple

__all__ = ["LAYOUTS"]

_ROOT = Argument("--root", "the folder of the data set", REQUIRED, metavar="DIR")
_OUT = Argument("--out", "the folder to write", REQUIRED, metavar="DIR")
_SHARES = "shares of the subjects for training, validation and test"
_SEED = Argument("--seed", "seed of the split", 0, int)
_DRAW = (Argument("--fractions", _SHARES, (0.7, 0.15, 0.15), triple), _SEED)


_TAKEN = "share of the training subjects taken for validation, where there is none"
_MATCH = Argument("--match-resampling", "make the other images as blurred as the healthy ones", False)


def _split(*splits: str) -> Argument:
    """Give the argument of the split; the first of the splits is the default."""
    return Argument("--split", "basis of the split", splits[0], choices=splits)


def _only(choice: str, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Limit arguments to one word of the chooser."""
    return tuple(replace(argument, only=(choice,)) for argument in arguments)


def _tissue(splits: tuple[str, ...], fractions: Any) -> tuple[Argument, ...]:
    """Give the arguments that the commands for gland data share; the first of the splits is the default."""
    return (
        _ROOT,
        _OUT,
        _split(*splits),
        Argument("--presence", "a class is tagged if it covers a larger share of a patch", 0.05, float),
        Argument("--fractions", f"{_SHARES}, where a split is drawn", fractions, triple),
        _SEED,
    )


def _photographs(listed: str, unlabeled: str) -> tuple[Argument, ...]:
    """Give the arguments that the commands for photographs share.

    Args:
        listed: the help of the list of a split.
        unlabeled: the help of test images without label.
    """
    return (
        _ROOT,
        _OUT,
        Argument("--training", f"{listed} to train on (default: the usual name)", metavar="NAME"),
        Argument("--validation", f"{listed} to evaluate on (default: the usual name)", metavar="NAME"),
        Argument("--test", f"{listed} to test on (default none){unlabeled}", metavar="NAME"),
    )


def _tiles(size: int | None, text: str, side: str) -> tuple[Argument, ...]:
    """Give the arguments of tiles; a test compares them with the fields of :class:`~monai_wsss.data.crops.TileRule`.

    Args:
        size: the default size.
        text: the help of the size.
        side: the help of the default side of images.
    """
    return (
        Argument("--tiles", text, size, int),
        Argument("--labels-from-masks", "simulate the labels of tiles from masks (recorded)", False),
        Argument("--tile-stride", "step from tile to tile (default half a tile)", kind=int),
        Argument("--scale", "scale images by this factor first", kind=float),
        Argument("--longest-side", f"scale images to this length of the longer side first{side}", kind=int),
        Argument("--tile-presence", "a finding is present if it covers a larger share of a tile", 0.05, float),
        Argument("--tile-margin", "a tile without finding has none in this many pixels around it", 8, int),
        Argument("--region", "folder of masks, e.g. lungs, in which tiles must lie", metavar="NAME"),
        Argument("--region-share", "least share of a tile within the region", 0.9, float),
        Argument(
            "--keep-dark-corners", "keep tiles with dark corners, a shortcut", True, parameter="skip_dark_corners"
        ),
        Argument("--full-size", "do not scale the images that are measured", False),
    )


LAYOUTS = (
    Command(
        "folder",
        "a folder of images and a table of labels (CSV)",
        "monai-wsss prepare folder --images scans --labels labels.csv --out prepared",
        function="monai_wsss.data.folder.prepare_folder",
        arguments=(
            Argument("--images", "PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM", REQUIRED, metavar="DIR"),
            Argument("--labels", "one row per case: id, 0/1 labels, optionally a split", REQUIRED, metavar="CSV"),
            _OUT,
            Argument("--masks", "masks named by the ids; used for evaluation only", metavar="DIR"),
            Argument("--id-column", "column with the ids", "id", metavar="NAME"),
            Argument("--subject-column", "column with the subjects (default subject, or the id)", metavar="NAME"),
            Argument("--label-columns", "columns with 0/1 labels (default label, or all others)", kind=names),
            Argument("--split-column", "column with train, val or test (default split, or drawn)", metavar="NAME"),
            Argument("--modalities", "modalities to use, or names of the channels", kind=names),
            Argument(
                "--no-background",
                "every pixel belongs to a class, e.g. gland or other; columns source, x, y say where a patch was cut",
                True,
                parameter="background",
            ),
            Argument(
                "--scored-class",
                "without background, the class that is measured (default the first)",
                metavar="NAME",
            ),
            Argument("--as-slices", "cut volumes into slices; the table has one row per slice", False),
            Argument(
                "--slice-column",
                "column with the number of the slice (default slice)",
                metavar="NAME",
            ),
            Argument(
                "--slice-numbers",
                "what it is: index (from 0 on along the volume; DICOM by position), instance (InstanceNumber), or "
                "position (mm)",
                "index",
                choices=("index", "instance", "position"),
            ),
            Argument(
                "--slicing-axis",
                "anatomical axis along which volumes are cut (default SI, axial slices)",
                choices=("RL", "AP", "SI"),
            ),
            Argument("--leave-out-localizers", "leave out localizers among the images of a DICOM series", False),
            *_DRAW,
        ),
    ),
    Command(
        "brats",
        "BraTS studies of any year, or folders with flair.nii.gz, t1c.nii.gz, seg.nii.gz, …",
        "monai-wsss prepare brats --root BraTS2021 --modalities T1,T1c,FLAIR --as-slices --out prepared\n"
        "  monai-wsss prepare brats --root BraTS2019 --as-slices --split cmer --out prepared",
        function="monai_wsss.data.brats.prepare_brats",
        arguments=(
            Argument("--root", "the folder with the studies", REQUIRED, metavar="DIR"),
            _OUT,
            Argument("--modalities", "any of T1, T1c, T2, FLAIR (default those of all cases)", kind=names),
            Argument("--as-slices", "write labeled axial slices instead of whole volumes", False),
            Argument("--slice-step", "take every N-th slice", 1, int),
            Argument("--min-brain-fraction", "leave out slices with a smaller share of brain", 0.02, float),
            Argument("--min-tumor-pixels", "leave out images with tumor in fewer pixels", 1, int),
            Argument("--percentiles", "percentiles of the brain for black and white in slices", (0.5, 99.5), pair),
            _split("drawn", "paper", "cmer"),
            *_DRAW,
        ),
    ),
    Command(
        "cases",
        "a folder with labels.csv and cases/*.npz, or images/ and masks/",
        "monai-wsss prepare cases --root acdc --label-columns rv,myo,lv --out prepared\n"
        "  monai-wsss prepare cases --root ph2 --longest-side 256 --tiles 64 --labels-from-masks --out prepared\n"
        "  monai-wsss prepare cases --root acdc --label-columns rv,myo,lv --scale 2 --tiles 32 --tile-margin 0 "
        "--labels-from-masks --out prepared",
        function="monai_wsss.data.cases.prepare_cases",
        arguments=(
            Argument("--root", "the folder with labels.csv", REQUIRED, metavar="DIR"),
            _OUT,
            Argument("--label-columns", "columns with 0/1 labels", ("label",), names),
            Argument("--modalities", "names of the stored channels, in their order", kind=names),
            *_tiles(None, "cut images into tiles of N pixels, with and without the findings", ""),
        ),
    ),
    Command(
        "glas",
        "GlaS: train_1.bmp, train_1_anno.bmp, …, Grade.csv, or labels.csv with images/ and masks/",
        "monai-wsss prepare glas --root glas --out prepared\n"
        "  monai-wsss prepare glas --root glas --split official --out prepared",
        function="monai_wsss.data.glas.prepare_glas",
        arguments=(
            *_tissue(("patient", "official"), (0.7, 0.15, 0.15)),
            Argument("--patch", "size of the training patches", 112, int),
            Argument("--stride", "step from patch to patch", 56, int),
            Argument("--white", "leave out patches with a larger share of white", 0.8, float),
        ),
    ),
    Command(
        "prog",
        "ProG: images/ and masks/, with the split by table also labels.csv with id, case, split",
        "monai-wsss prepare prog --root prog --out prepared\n"
        "  monai-wsss prepare prog --root prog --measure patches --out prepared",
        function="monai_wsss.data.prog.prepare_prog",
        arguments=(
            *_tissue(("image", "table"), Elsewhere("monai_wsss.data.prog.PAPER_FRACTIONS", "those of the paper")),
            Argument(
                "--measure",
                "images of validation and test, whole or cut into patches as the paper's",
                "whole",
                choices=("whole", "patches"),
            ),
            Argument("--patch", "size of the training patches", 224, int),
            Argument("--white", "leave out patches with a larger share of white, none with 1", 1.0, float),
        ),
    ),
    Command(
        "ebhi",
        "EBHI-Seg: one folder per kind of tissue, with image/ and label/",
        "monai-wsss prepare ebhi --root ebhi --out prepared\n"
        "  monai-wsss prepare ebhi --root ebhi --split image --glands-only --out prepared",
        function="monai_wsss.data.ebhi.prepare_ebhi",
        arguments=(
            *_tissue(("specimen", "image"), (0.7, 0.1, 0.2)),
            Argument("--glands-only", "take the images alone that hold glands, as the paper does", False),
        ),
    ),
    Command(
        "isic",
        "ISIC 2016, 2017 or 2018: the folders of images and of masks, as the archives unpack",
        "monai-wsss prepare isic --root isic2018 --labels-from-masks --out prepared\n"
        "  monai-wsss prepare isic --root isic2018 --protocol coingan --split paper --out prepared",
        functions={
            "tiles": "monai_wsss.data.isic.prepare_isic",
            "coingan": "monai_wsss.data.isic_background.prepare_isic_background",
        },
        chooser=Argument(
            "--protocol",
            "tiles with and without the lesion, or whole images against crops of healthy skin",
            "tiles",
            choices=("tiles", "coingan"),
        ),
        arguments=(
            _ROOT,
            _OUT,
            Argument("--edition", "year of the challenge (default the only one that is there)", kind=int),
            Argument("--validation-share", _TAKEN, 0.0, float),
            Argument("--seed", "seed of that draw", 0, int),
            *_only("tiles", _tiles(64, "size of the tiles, with and without the lesion", " (default 256)")),
            *_only(
                "coingan",
                (
                    _split("released", "paper"),
                    Argument("--size", "side of the resized images in pixels", 224, int),
                    Argument("--crop-share", "side of a crop, as a share of the shorter side", 0.3, float),
                    Argument(
                        "--healthy-source",
                        "where crops come from; mask leaks pixel-level labels (recorded)",
                        "border",
                        choices=("border", "mask"),
                    ),
                    _MATCH,
                ),
            ),
        ),
    ),
    Command(
        "qata",
        "QaTa-COV19: Images/ and Ground-truths/ of Train Set and Test Set, and a folder Control_Group",
        "monai-wsss prepare qata --root qata --split paper --out prepared",
        function="monai_wsss.data.qata.prepare_qata",
        arguments=(
            _ROOT,
            _OUT,
            _split("drawn", "paper", "released"),
            *_DRAW,
            Argument("--validation-share", _TAKEN, 0.0, float),
        ),
    ),
    Command(
        "monuseg",
        "MoNuSeg: Tissue Images/*.tif and Annotations/*.xml",
        "monai-wsss prepare monuseg --root monuseg --split paper --out prepared",
        function="monai_wsss.data.monuseg.prepare_monuseg",
        arguments=(
            _ROOT,
            _OUT,
            _split("drawn", "paper", "released"),
            *_DRAW,
            Argument("--validation-share", _TAKEN, 0.0, float),
            Argument(
                "--healthy",
                "how tissue without nuclei is made: density removes them, paper is as printed",
                "density",
                choices=("density", "paper"),
            ),
            Argument("--radius", "radius of the erosion in pixels", 7, int),
            Argument("--sigma", "width of the blur in pixels", 2.0, float),
            Argument("--crop", "size of the crops in pixels", 224, int),
            _MATCH,
        ),
    ),
    Command(
        "mela",
        "MELA: CT volumes and tables of boxes; smaller lesions are mild, larger ones severe",
        "monai-wsss prepare mela --root mela --split paper --out prepared",
        function="monai_wsss.data.mela.prepare_mela",
        arguments=(
            _ROOT,
            _OUT,
            _split("drawn", "paper"),
            *_DRAW,
            Argument("--severe-from", "diameter in mm of a severe lesion (default the median in training)", kind=float),
            Argument("--window", "Hounsfield units of black and white, e.g. --window=-160,240", (-160.0, 240.0), pair),
            Argument(
                "--box-unit",
                "unit of the boxes: voxels, or millimeters toward left and back (lps), or right and front (ras)",
                "voxel",
                choices=("voxel", "ras", "lps"),
            ),
        ),
    ),
    Command(
        "voc",
        "VOC: JPEGImages/, Annotations/, ImageSets/Segmentation/, optionally SegmentationClass/ or …Aug/",
        "monai-wsss prepare voc --root voc --out prepared",
        function="monai_wsss.data.voc.prepare_voc",
        arguments=(
            *_photographs("list of images, e.g. trainaug, or a .txt file,", "; labels may be missing"),
            Argument(
                "--classes",
                "classes, in the order of their values in masks",
                Elsewhere("monai_wsss.data.voc.VOC_CLASSES", "VOC's 20"),
                names,
            ),
            Argument("--labels-from-masks", "simulate the labels of images without annotation from their masks", False),
        ),
    ),
    Command(
        "coco",
        "COCO: annotations/instances_<set>.json, and images in <set>/, images/<set>/ or images/",
        "monai-wsss prepare coco --root coco --out prepared",
        function="monai_wsss.data.coco.prepare_coco",
        arguments=(
            *_photographs("set, e.g. train2014,", ""),
            Argument("--masks", "draw masks from the outlines; used for evaluation only", False),
            Argument("--annotated-only", "leave out images without annotation, as papers do (recorded)", False),
        ),
    ),
)
"""The commands ``monai-wsss prepare LAYOUT``; their functions give the path of the datalist."""
