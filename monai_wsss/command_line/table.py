# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands of ``monai-wsss``: one row per command, with the function that runs and its arguments.

A test compares every row with the signature of its function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_wsss.command_line.arguments import (
    REQUIRED,
    Argument,
    Command,
    Elsewhere,
    datalist_in,
    names,
    pair,
    triple,
    whole_numbers,
)

__all__ = ["COMMANDS", "LAYOUTS", "SPLITS"]

SPLITS = ("training", "validation", "test")
"""The splits of every datalist, as in :mod:`monai_wsss.data.splits`, which needs numpy."""

_ROOT = Argument("--root", "the folder of the data set", REQUIRED, metavar="DIR")
_OUT = Argument("--out", "the folder to write", REQUIRED, metavar="DIR")
_SHARES = "shares of the subjects for training, validation and test"
_SEED = Argument("--seed", "seed of the split", 0, int)
_DRAW = (Argument("--fractions", _SHARES, (0.7, 0.15, 0.15), triple), _SEED)


def _tissue(splits: tuple[str, ...], fractions: Any) -> tuple[Argument, ...]:
    """Give the arguments that the commands for gland data share; the first of the splits is the default."""
    return (
        _ROOT,
        _OUT,
        Argument("--split", "basis of the split", splits[0], choices=splits),
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
                "column with the slice along the last axis, from 0 on",
                "slice",
                metavar="NAME",
            ),
            *_DRAW,
        ),
    ),
    Command(
        "brats",
        "BraTS studies of any year, or folders with flair.nii.gz, t1c.nii.gz, seg.nii.gz, …",
        "monai-wsss prepare brats --root BraTS2021 --modalities T1,T1c,FLAIR --as-slices --out prepared",
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
            *_DRAW,
        ),
    ),
    Command(
        "cases",
        "a folder with labels.csv and cases/*.npz, or images/ and masks/",
        "monai-wsss prepare cases --root acdc --label-columns rv,myo,lv --out prepared\n"
        "  monai-wsss prepare cases --root ph2 --longest-side 256 --tiles 64 --labels-from-masks --out prepared",
        function="monai_wsss.data.cases.prepare_cases",
        arguments=(
            Argument("--root", "the folder with labels.csv", REQUIRED, metavar="DIR"),
            _OUT,
            Argument("--label-columns", "columns with 0/1 labels", ("label",), names),
            Argument("--modalities", "names of the stored channels, in their order", kind=names),
            *_tiles(None, "cut images/ into tiles of N pixels, with and without the finding", ""),
        ),
    ),
    Command(
        "glas",
        "GlaS: train_1.bmp, train_1_anno.bmp, …, Grade.csv, or labels.csv with images/ and masks/",
        "monai-wsss prepare glas --root glas --out prepared",
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
        "monai-wsss prepare prog --root prog --out prepared",
        function="monai_wsss.data.prog.prepare_prog",
        arguments=(
            *_tissue(("image", "table"), Elsewhere("monai_wsss.data.prog.PAPER_FRACTIONS", "those of the paper")),
            Argument("--patch", "size of the training patches", 224, int),
            Argument("--white", "leave out patches with a larger share of white, none with 1", 1.0, float),
        ),
    ),
    Command(
        "ebhi",
        "EBHI-Seg: one folder per kind of tissue, with image/ and label/",
        "monai-wsss prepare ebhi --root ebhi --out prepared",
        function="monai_wsss.data.ebhi.prepare_ebhi",
        arguments=_tissue(("specimen", "image"), (0.7, 0.1, 0.2)),
    ),
    Command(
        "isic",
        "ISIC 2016, 2017 or 2018: the folders of images and of masks, as the archives unpack",
        "monai-wsss prepare isic --root isic2018 --labels-from-masks --out prepared",
        function="monai_wsss.data.isic.prepare_isic",
        arguments=(
            _ROOT,
            _OUT,
            Argument("--edition", "year of the challenge (default the only one that is there)", kind=int),
            Argument("--validation-share", "2016: share of the training images taken for validation", 0.0, float),
            Argument("--seed", "seed of that draw", 0, int),
            *_tiles(64, "size of the tiles, with and without the lesion", " (default 256)"),
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

_TABLES = {
    "bmp": "make_bmp_table",
    "cam": "make_cam_table",
    "cmer": "make_cmer_table",
    "cmer-unet": "make_cmer_full_resolution",
    "cmer-errors": "make_cmer_errors",
    "cmer-thresholds": "make_cmer_thresholds",
    "cmer-transforms": "make_cmer_transforms",
    "cosa": "make_cosa_table",
    "cosa-figures": "make_cosa_figures",
    "decisions": "make_decision_table",
    "encoder": "make_encoder_table",
    "gland": "make_gland_table",
    "gland-adaptation": "make_gland_adaptation",
    "levers": "make_lever_table",
}
_REFINED_TABLES = ("encoder", "levers")
_ENCODER_TABLES = ("encoder", "levers", "decisions")
_COSA_TABLES = ("cosa", "cosa-figures")
_FIXED_TABLES = (*_COSA_TABLES, *_ENCODER_TABLES)

COMMANDS = (
    Command(
        "phantom",
        "generate phantom studies with exact masks: MRI of brains with tumors, chest X-rays with opacities, stained "
        "sections with glands, dermoscopy of pigmented lesions, or scenes whose classes have an unlabeled context",
        "monai-wsss phantom --kind brain --modalities T1,FLAIR --out phantoms\n"
        "  monai-wsss phantom --kind gland --out phantoms\n"
        "  monai-wsss phantom --kind skin --out phantoms",
        function="monai_wsss.data.phantoms.make_phantoms",
        arguments=(
            Argument("--kind", "kind of the phantoms", "brain", choices=("brain", "chest", "gland", "scene", "skin")),
            Argument("--out", "the folder to write", REQUIRED, metavar="DIR", parameter="directory"),
            Argument("--spatial-dims", "brains: slices (2) or volumes (3)", 2, int, choices=(2, 3)),
            Argument("--modalities", "brains: any of T1, T1c, T2, FLAIR", kind=names),
            Argument("--seed", "seed of the subjects", 0, int),
        ),
    ),
    Command(
        "report",
        "write report.html for a run that was evaluated",
        "monai-wsss report --run runs/brain",
        function="monai_wsss.reports.write_report",
        arguments=(
            Argument("--run", "folder with run.json, metrics.json", REQUIRED, metavar="DIR", parameter="run_dir"),
        ),
    ),
    Command(
        "benchmark",
        "train and measure: plain CAM, or the tables and figures of a paper, over seeds, beside full supervision",
        "monai-wsss benchmark --data prepared --out table --table cmer --seeds 0,1,2",
        functions={name: f"monai_wsss.benchmark.{table}" for name, table in _TABLES.items()},
        chooser=Argument("--table", "the table or figure", "cam", choices=tuple(_TABLES)),
        arguments=(
            Argument("--data", "a prepared folder of slices", REQUIRED, datalist_in, "DIR", parameter="datalist"),
            Argument("--out", "weights, rows and the table; a killed run goes on there", REQUIRED, Path, "DIR"),
            Argument(
                "--epochs",
                "epochs of every training",
                8,
                int,
                only=tuple(name for name in _TABLES if name not in _FIXED_TABLES),
                other_defaults={"gland": 6},
            ),
            Argument("--seeds", "seeds of every recipe", (0, 1, 2), whole_numbers),
            Argument("--split", "the split to measure on", "validation", choices=SPLITS),
            Argument(
                "--every",
                "gland tables: train on every n-th image",
                1,
                int,
                only=("gland", "gland-adaptation"),
            ),
            Argument("--width", "gland tables: width of ResNet38", 8, int, only=("gland", "gland-adaptation")),
            Argument(
                "--initial",
                "gland-adaptation: classifier.pt and model.pt",
                Path("models"),
                Path,
                "DIR",
                only=("gland-adaptation",),
            ),
            Argument(
                "--refine",
                "encoder tables: refinement beside none",
                "par",
                choices=("par", "crf"),
                only=_REFINED_TABLES,
            ),
            Argument("--side", "encoder tables: side of slices and patches in pixels", kind=int, only=_ENCODER_TABLES),
            Argument(
                "--colors",
                "encoder tables: colors of tiles",
                "as_they_are",
                choices=("as_they_are", "standardized"),
                only=_REFINED_TABLES,
            ),
            Argument(
                "--rows",
                "encoder and CoSA tables: make these rows alone, by the names of their folders, e.g. base,gc",
                (),
                names,
                "A,B",
                only=_FIXED_TABLES,
            ),
            Argument(
                "--runs",
                "encoder and CoSA tables: rows of earlier runs, kept and added to",
                kind=Path,
                metavar="DIR",
                only=_FIXED_TABLES,
            ),
        ),
    ),
    Command(
        "scan-bundle",
        "check a bundle without running it: files, metadata, weights, every expression of its configs",
        "monai-wsss scan-bundle bundles/brain_mri_cam_segmentation",
        function="monai_wsss.bundle_scan.scan_bundle",
        arguments=(Argument("path", "the folder of the bundle", REQUIRED, metavar="DIR"),),
    ),
)
"""The other commands."""
