# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands of ``monai-wsss`` as a table: one row per command, with the function that runs and its arguments.

Nothing of this package is imported here, so that ``--help`` needs no torch.  A test compares every row with the
signature of its function.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "LAYOUTS", "REQUIRED", "SPLITS", "Argument", "Command", "Elsewhere"]

SPLITS = ("training", "validation", "test")

REQUIRED = object()
"""Default of an argument without default."""


def _names(text: str) -> tuple[str, ...]:
    """Read ``"T1,FLAIR"`` as a tuple."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return names


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """Read ``"0.7,0.15,0.15"`` as a tuple of ``count`` numbers."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them, got {text!r}")
    return numbers


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Read ``"0,1,2"`` as a tuple."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from error


def _datalist_in(text: str) -> Path:
    """Give the datalist of a prepared folder."""
    return Path(text) / "datalist.json"


_PAIR, _TRIPLE = partial(_numbers, count=2), partial(_numbers, count=3)
_METAVARS = {_names: "A,B", _whole_numbers: "A,B", _PAIR: "A,B", _TRIPLE: "A,B,C", int: "N", float: "F"}


@dataclass(frozen=True)
class Elsewhere:
    """A default that a constant of the package holds, too long for a help text.

    Attributes:
        path: dotted path of the constant.
        shown: the words for the help text.
    """

    path: str
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Argument:
    """An argument of a command, which is a parameter of its function.

    Attributes:
        flag: ``--out``, or a word for an argument by position.
        help: one line; a default that is a value is added to it.
        default: default of the parameter.  :data:`REQUIRED` stands for none, None for a default that the function
            explains, and True or False make a flag without value that turns the parameter round.
        kind: function that reads the text; None keeps the text.
        metavar: the word for the value in help texts; None takes that of the kind.
        choices: the permitted values; none permit all.
        parameter: name of the parameter; empty takes it from the flag.
        only: of a command with several functions, those that have the parameter; empty means all.
        other_defaults: beginning of the name of a function -> its default, where functions differ.
    """

    flag: str
    help: str
    default: Any = None
    kind: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    parameter: str = ""
    only: tuple[str, ...] = ()
    other_defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.parameter or self.flag.lstrip("-").replace("-", "_")

    def options(self) -> dict[str, Any]:
        """Give the keywords for argparse; an argument that is not given becomes None."""
        options: dict[str, Any] = {"help": self.help, "dest": self.name}
        if isinstance(self.default, bool):
            return {**options, "action": "store_const", "const": not self.default}
        if self.default is not None and self.default is not REQUIRED:
            others = "".join(f"; {name}: {_shown(value)}" for name, value in self.other_defaults.items())
            options["help"] += f" (default {_shown(self.default)}{others})"
        if self.choices:
            options["choices"] = self.choices
        else:
            options["metavar"] = self.metavar or _METAVARS.get(self.kind or str)
        if not self.flag.startswith("-"):
            del options["dest"]
        elif self.default is REQUIRED:
            options["required"] = True
        return {**options, "type": self.kind or str}


def _shown(default: Any) -> str:
    """Write a default as it is typed on the command line."""
    values = default if isinstance(default, tuple) else (default,)
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        name: the word on the command line.
        help: what the command does, in one line.
        example: command lines, for the help text.
        function: dotted path of the function that runs.  Required arguments are passed by position, others by name
            and only if they are given.
        arguments: the arguments; required ones in the order of the function.
        functions: dotted paths by a word, where the argument ``chooser`` chooses one of several functions.
        chooser: the argument that holds this word.
    """

    name: str
    help: str
    example: str
    arguments: tuple[Argument, ...]
    function: str = ""
    functions: Mapping[str, str] = field(default_factory=dict)
    chooser: Argument | None = None


_ROOT = Argument("--root", "the folder of the data set", REQUIRED, metavar="DIR")
_OUT = Argument("--out", "the folder to write", REQUIRED, metavar="DIR")
_SHARES = "shares of the subjects for training, validation and test"
_SEED = Argument("--seed", "seed of the split", 0, int)
_DRAW = (Argument("--fractions", _SHARES, (0.7, 0.15, 0.15), _TRIPLE), _SEED)


def _tissue(splits: tuple[str, ...], fractions: Any) -> tuple[Argument, ...]:
    """Give the arguments that the commands for gland data share; the first of the splits is the default."""
    return (
        _ROOT,
        _OUT,
        Argument("--split", "what the split goes by", splits[0], choices=splits),
        Argument("--presence", "a class is tagged where it covers more of a patch", 0.05, float),
        Argument("--fractions", f"{_SHARES}, where a split is drawn", fractions, _TRIPLE),
        _SEED,
    )


def _photographs(listed: str) -> tuple[Argument, ...]:
    """Give the arguments that the commands for photographs share; ``listed`` is what names the images of a split."""
    return (
        _ROOT,
        _OUT,
        Argument("--training", f"{listed} to train on (default: looked for)", metavar="NAME"),
        Argument("--validation", f"{listed} to measure on (default: looked for)", metavar="NAME"),
        Argument("--test", f"{listed} to test on (default none)", metavar="NAME"),
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
            Argument("--label-columns", "columns with 0/1 labels (default label, or all others)", kind=_names),
            Argument("--split-column", "column with train, val or test (default split, or drawn)", metavar="NAME"),
            Argument("--modalities", "modalities to use, or names of the channels", kind=_names),
            Argument(
                "--no-background",
                "every pixel belongs to a class, e.g. gland or other; columns source, x, y tell where a patch was cut",
                True,
                parameter="background",
            ),
            Argument(
                "--scored-class",
                "without background, the class that is measured (default the first)",
                metavar="NAME",
            ),
            Argument("--as-slices", "cut volumes into slices; the table has one row per slice", False),
            Argument("--slice-column", "column with the slice along the last axis, from 0 on", "slice", metavar="NAME"),
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
            Argument("--modalities", "any of T1, T1c, T2, FLAIR (default: all)", kind=_names),
            Argument("--as-slices", "write labeled axial slices instead of whole volumes", False),
            Argument("--slice-step", "take every N-th slice", 1, int),
            Argument("--min-brain-fraction", "leave out slices with less brain", 0.02, float),
            Argument("--min-tumor-pixels", "leave out images that have tumor, but less of it", 1, int),
            Argument("--percentiles", "of the brain, black and white in slices", (0.5, 99.5), _PAIR),
            *_DRAW,
        ),
    ),
    Command(
        "cases",
        "a folder with labels.csv and cases/*.npz, or images/ and masks/",
        "monai-wsss prepare cases --root acdc --label-columns rv,myo,lv --out prepared",
        function="monai_wsss.data.cases.prepare_cases",
        arguments=(
            Argument("--root", "the folder with labels.csv", REQUIRED, metavar="DIR"),
            _OUT,
            Argument("--label-columns", "columns with 0/1 labels", ("label",), _names),
            Argument("--modalities", "names of the stored channels, in their order", kind=_names),
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
            Argument("--white", "leave out patches with more white", 0.8, float),
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
            Argument("--white", "leave out patches with more white, none with 1", 1.0, float),
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
        "voc",
        "VOC: JPEGImages/, Annotations/, ImageSets/Segmentation/, optionally SegmentationClass/ or …Aug/",
        "monai-wsss prepare voc --root voc --out prepared",
        function="monai_wsss.data.voc.prepare_voc",
        arguments=(
            *_photographs("list of images, e.g. trainaug, or a .txt file,"),
            Argument(
                "--classes",
                "in the order of their values in masks",
                Elsewhere("monai_wsss.data.voc.VOC_CLASSES", "VOC's 20"),
                _names,
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
            *_photographs("set, e.g. train2014,"),
            Argument("--masks", "draw masks from the outlines; used for evaluation only", False),
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
    "gland": "make_gland_table",
    "gland-adaptation": "make_gland_adaptation",
}

COMMANDS = (
    Command(
        "phantom",
        "generate phantom studies with exact masks: MRI of brains with tumors, or stained sections with glands",
        "monai-wsss phantom --kind brain --modalities T1,FLAIR --out phantoms\n"
        "  monai-wsss phantom --kind gland --out phantoms",
        function="monai_wsss.data.phantoms.make_phantoms",
        arguments=(
            Argument("--kind", "what is drawn", "brain", choices=("brain", "gland")),
            Argument("--out", "the folder to write", REQUIRED, metavar="DIR", parameter="directory"),
            Argument("--spatial-dims", "of brains: slices or volumes", 2, int, choices=(2, 3)),
            Argument("--modalities", "of brains: any of T1, T1c, T2, FLAIR", kind=_names),
            Argument("--seed", "another seed draws other subjects", 0, int),
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
        chooser=Argument("--table", "which table or figure", "cam", choices=tuple(_TABLES)),
        arguments=(
            Argument("--data", "a prepared folder of slices", REQUIRED, _datalist_in, "DIR", parameter="datalist"),
            Argument("--out", "weights, rows and the table; goes on if killed", REQUIRED, Path, "DIR"),
            Argument("--epochs", "epochs of every training", 8, int, other_defaults={"gland": 6}),
            Argument("--seeds", "seeds of every recipe", (0, 1, 2), _whole_numbers),
            Argument("--split", "where to measure", "validation", choices=SPLITS),
            Argument(
                "--every",
                "gland tables: train on every n-th image",
                1,
                int,
                only=("gland", "gland-adaptation"),
            ),
            Argument("--width", "gland tables: of the small ResNet38", 8, int, only=("gland", "gland-adaptation")),
            Argument(
                "--initial",
                "gland-adaptation: classifier.pt and model.pt",
                Path("models"),
                Path,
                "DIR",
                only=("gland-adaptation",),
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
