# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss``, or ``python -m monai_wsss``: prepares data, draws phantoms, writes reports, compares, scans bundles.

Training and inference stay ``python -m monai.bundle run``.  Exit codes: 0 done, 1 a mistake in data or arguments (one
line on stderr), 2 wrong usage.  torch and monai are imported when a command needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["main"]

_BUNDLE = "bundles/brain_mri_cam_segmentation"
_TISSUE_BUNDLE = "bundles/histology_gland_segmentation"
_SPLITS = ("training", "validation", "test")
_FEW_CLASSES = 6  # that a table has room for side by side
_TABLES = (
    "bmp",
    "cam",
    "cmer",
    "cmer-unet",
    "cmer-errors",
    "cmer-thresholds",
    "cmer-transforms",
    "gland",
    "gland-adaptation",
)


def _names(text: str) -> tuple[str, ...]:
    """``"T1,FLAIR"`` as a tuple."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return names


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """``"0.7,0.15,0.15"`` as a tuple of ``count`` numbers."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them, got {text!r}")
    return numbers


def _whole_numbers(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` as a tuple."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from error


def _add_command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """A subcommand with its one-line description and an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fractions",
        type=partial(_numbers, count=3),
        metavar="A,B,C",
        help="shares of the subjects for training, validation and test (default 0.7,0.15,0.15)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the split (default 0)")


def _add_folder(commands: Any) -> None:
    parser = _add_command(
        commands,
        "folder",
        "a folder of images and a table of labels (CSV)",
        "monai-wsss prepare folder --images scans --labels labels.csv --out prepared",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM")
    parser.add_argument("--labels", required=True, metavar="CSV", help="a row a case: id, 0/1 labels, perhaps a split")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--masks", metavar="DIR", help="masks named by the ids; used for evaluation only")
    parser.add_argument("--id-column", metavar="NAME", help="column with the ids (default id)")
    parser.add_argument(
        "--subject-column", metavar="NAME", help="column that says whose case it is (default subject, or the id)"
    )
    parser.add_argument(
        "--label-columns", type=_names, metavar="A,B", help="columns with 0/1 labels (default label, or all others)"
    )
    parser.add_argument(
        "--split-column", metavar="NAME", help="column with train, val or test (default split, or drawn)"
    )
    parser.add_argument("--modalities", type=_names, metavar="A,B", help="modalities to use, or names of the channels")
    parser.add_argument(
        "--no-background",
        action="store_false",
        dest="background",
        help="every pixel belongs to a class, e.g. gland or other; columns source, x, y tell where a patch was cut",
    )
    parser.add_argument(
        "--scored-class", metavar="NAME", help="without background, the class that is measured (default the first)"
    )
    parser.add_argument(
        "--as-slices", action="store_true", help="cut volumes into slices; the table has a row for each slice"
    )
    parser.add_argument(
        "--slice-column", metavar="NAME", help="column with the slice along the last axis, from 0 on (default slice)"
    )
    _add_draw(parser)
    parser.set_defaults(run=_prepare_folder)


def _add_brats(commands: Any) -> None:
    parser = _add_command(
        commands,
        "brats",
        "BraTS studies of any year, or folders with flair.nii.gz, t1c.nii.gz, seg.nii.gz, …",
        "monai-wsss prepare brats --root BraTS2021 --modalities T1,T1c,FLAIR --as-slices --out prepared",
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder with the studies")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--modalities", type=_names, metavar="A,B", help="any of T1, T1c, T2, FLAIR (default: all)")
    parser.add_argument("--as-slices", action="store_true", help="write labeled axial slices instead of whole volumes")
    parser.add_argument("--slice-step", type=int, metavar="N", help="take every N-th slice (default 1)")
    parser.add_argument(
        "--min-brain-fraction", type=float, metavar="F", help="leave out slices with less brain (default 0.02)"
    )
    parser.add_argument(
        "--min-tumor-pixels", type=int, metavar="N", help="leave out what has tumor, but less of it (default 1)"
    )
    parser.add_argument(
        "--percentiles",
        type=partial(_numbers, count=2),
        metavar="A,B",
        help="of the brain, black and white in slices (default 0.5,99.5)",
    )
    _add_draw(parser)
    parser.set_defaults(run=_prepare_brats)


def _add_cases(commands: Any) -> None:
    parser = _add_command(
        commands,
        "cases",
        "a folder with labels.csv and cases/*.npz, or images/ and masks/",
        "monai-wsss prepare cases --root acdc --label-columns rv,myo,lv --out prepared",
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder with labels.csv")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--label-columns", type=_names, metavar="A,B", help="columns with 0/1 labels (default label)")
    parser.add_argument("--modalities", type=_names, metavar="A,B", help="names of the stored channels, in their order")
    parser.set_defaults(run=_prepare_cases)


def _add_glands(commands: Any, name: str, what: str, splits: tuple[str, ...]) -> argparse.ArgumentParser:
    """What the commands for gland data have in common; the first of the splits is the default."""
    command = f"monai-wsss prepare {name} --root {name} --out prepared"
    parser = _add_command(commands, name, what, command)
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--split", choices=splits, help=f"what the split goes by (default {splits[0]})")
    parser.add_argument(
        "--presence", type=float, metavar="F", help="a class is tagged where it covers more of a patch (default 0.05)"
    )
    parser.add_argument(
        "--fractions",
        type=partial(_numbers, count=3),
        metavar="A,B,C",
        help="shares of the subjects for training, validation and test, where a split is drawn",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the split (default 0)")
    return parser


def _add_glas(commands: Any) -> None:
    what = "GlaS: train_1.bmp, train_1_anno.bmp, …, Grade.csv, or labels.csv with images/ and masks/"
    parser = _add_glands(commands, "glas", what, ("patient", "official"))
    parser.add_argument("--patch", type=int, metavar="N", help="size of the training patches (default 112)")
    parser.add_argument("--stride", type=int, metavar="N", help="step from patch to patch (default 56)")
    parser.add_argument("--white", type=float, metavar="F", help="leave out patches with more white (default 0.8)")
    parser.set_defaults(run=_prepare_glas)


def _add_prog(commands: Any) -> None:
    what = "ProG: images/ and masks/, with the split by table also labels.csv with id, case, split"
    parser = _add_glands(commands, "prog", what, ("image", "table"))
    parser.add_argument("--patch", type=int, metavar="N", help="size of the training patches (default 224)")
    parser.add_argument("--white", type=float, metavar="F", help="leave out patches with more white (default 1: none)")
    parser.set_defaults(run=_prepare_prog)


def _add_ebhi(commands: Any) -> None:
    what = "EBHI-Seg: a folder for each kind of tissue, with image/ and label/"
    _add_glands(commands, "ebhi", what, ("specimen", "image")).set_defaults(run=_prepare_ebhi)


def _add_photographs(commands: Any, name: str, what: str, listed: str) -> argparse.ArgumentParser:
    """What the commands for photographs have in common; ``listed`` is what names the images of a split."""
    command = f"monai-wsss prepare {name} --root {name} --out prepared"
    parser = _add_command(commands, name, what, command)
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--training", metavar="NAME", help=f"{listed} to train on (default: looked for)")
    parser.add_argument("--validation", metavar="NAME", help=f"{listed} to measure on (default: looked for)")
    parser.add_argument("--test", metavar="NAME", help=f"{listed} to test on (default none)")
    return parser


def _add_voc(commands: Any) -> None:
    what = "VOC: JPEGImages/, Annotations/, ImageSets/Segmentation/, perhaps SegmentationClass/ or …Aug/"
    parser = _add_photographs(commands, "voc", what, "list of images, e.g. trainaug, or a .txt file,")
    parser.add_argument(
        "--classes", type=_names, metavar="A,B", help="in the order of their values in masks (default VOC's 20)"
    )
    parser.add_argument(
        "--labels-from-masks",
        action="store_true",
        help="simulate the labels of images without annotation from their masks",
    )
    parser.set_defaults(run=_prepare_voc)


def _add_coco(commands: Any) -> None:
    what = "COCO: annotations/instances_<set>.json, and images in <set>/, images/<set>/ or images/"
    parser = _add_photographs(commands, "coco", what, "set, e.g. train2014,")
    parser.add_argument("--masks", action="store_true", help="draw masks from the outlines; used for evaluation only")
    parser.set_defaults(run=_prepare_coco)


def _add_phantom(commands: Any) -> None:
    parser = _add_command(
        commands,
        "phantom",
        "generate phantom studies with exact masks: MRI of brains with tumors, or stained sections with glands",
        "monai-wsss phantom --kind brain --modalities T1,FLAIR --out phantoms\n"
        "  monai-wsss phantom --kind gland --out phantoms",
    )
    parser.add_argument("--kind", choices=("brain", "gland"), help="what is drawn (default brain)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--spatial-dims", type=int, choices=(2, 3), help="of brains: slices or volumes (default 2)")
    parser.add_argument("--modalities", type=_names, metavar="A,B", help="of brains: any of T1, T1c, T2, FLAIR")
    parser.add_argument("--seed", type=int, metavar="N", help="another seed draws other subjects (default 0)")
    parser.set_defaults(run=_phantom)


def _add_report(commands: Any) -> None:
    parser = _add_command(
        commands,
        "report",
        "write report.html for a run that was evaluated",
        "monai-wsss report --run runs/brain",
    )
    parser.add_argument(
        "--run", required=True, metavar="DIR", dest="run_dir", help="folder with run.json, metrics.json"
    )
    parser.set_defaults(run=_report)


def _add_benchmark(commands: Any) -> None:
    parser = _add_command(
        commands,
        "benchmark",
        "train and measure: plain CAM, or the tables and figures of a paper, over seeds, beside full supervision",
        "monai-wsss benchmark --data prepared --out table --table cmer --seeds 0,1,2",
    )
    parser.add_argument("--table", choices=_TABLES, default="cam", help="which table or figure (default cam)")
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared folder of slices")
    parser.add_argument("--out", required=True, metavar="DIR", help="weights, rows and the table; goes on if killed")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of every training (default 8; gland: 6)")
    parser.add_argument("--seeds", type=_whole_numbers, metavar="A,B", help="seeds of every recipe (default 0,1,2)")
    parser.add_argument("--split", choices=_SPLITS, help="where to measure (default validation)")
    parser.add_argument("--every", type=int, metavar="N", help="gland tables: train on every n-th picture (default 1)")
    parser.add_argument("--width", type=int, metavar="N", help="gland tables: of the small ResNet38 (default 8)")
    parser.add_argument("--initial", type=Path, metavar="DIR", help="gland-adaptation: classifier.pt and model.pt")
    parser.set_defaults(run=_benchmark)


def _add_scan_bundle(commands: Any) -> None:
    parser = _add_command(
        commands,
        "scan-bundle",
        "check a bundle without running it: files, metadata, weights, every expression of its configs",
        "monai-wsss scan-bundle bundles/brain_mri_cam_segmentation",
    )
    parser.add_argument("bundle", metavar="DIR", help="the bundle's folder")
    parser.set_defaults(run=_scan_bundle)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="monai-wsss",
        description="Image-level labels in, masks out: prepare data, draw phantoms, write reports.",
        epilog="example:\n  monai-wsss prepare folder --images scans --labels labels.csv --out prepared\n\n"
        "Training, evaluation and inference are `python -m monai.bundle run`, see the README.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    prepare = commands.add_parser(
        "prepare",
        help="turn images and labels into a folder with a datalist",
        description="Turn images and image-level labels into a folder with a datalist.",
        epilog="example:\n  monai-wsss prepare folder --images scans --labels labels.csv --out prepared",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = prepare.add_subparsers(title="layouts", metavar="LAYOUT", required=True)
    for add in (_add_folder, _add_brats, _add_cases, _add_glas, _add_prog, _add_ebhi, _add_voc, _add_coco):
        add(kinds)
    _add_phantom(commands)
    _add_report(commands)
    _add_benchmark(commands)
    _add_scan_bundle(commands)
    return parser


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, by name; the functions have the defaults of the others."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _prepare_folder(options: argparse.Namespace) -> None:
    from monai_wsss.data.folder import prepare_folder

    columns = ("id_column", "subject_column", "label_columns", "split_column")
    classes = ("background", "scored_class")
    given = _given(options, "masks", *columns, "modalities", *classes, "as_slices", "slice_column", "fractions", "seed")
    _summarize(prepare_folder(options.images, options.labels, options.out, **given))


def _prepare_brats(options: argparse.Namespace) -> None:
    from monai_wsss.data.brats import prepare_brats

    rule = ("as_slices", "slice_step", "min_brain_fraction", "min_tumor_pixels", "percentiles")
    _summarize(prepare_brats(options.root, options.out, **_given(options, "modalities", *rule, "fractions", "seed")))


def _prepare_cases(options: argparse.Namespace) -> None:
    from monai_wsss.data.cases import prepare_cases

    _summarize(prepare_cases(options.root, options.out, **_given(options, "label_columns", "modalities")))


def _prepare_glas(options: argparse.Namespace) -> None:
    from monai_wsss.data.glas import prepare_glas

    rule = ("patch", "stride", "split", "presence", "white", "fractions", "seed")
    _summarize(prepare_glas(options.root, options.out, **_given(options, *rule)))


def _prepare_prog(options: argparse.Namespace) -> None:
    from monai_wsss.data.prog import prepare_prog

    rule = ("patch", "split", "presence", "white", "fractions", "seed")
    _summarize(prepare_prog(options.root, options.out, **_given(options, *rule)))


def _prepare_ebhi(options: argparse.Namespace) -> None:
    from monai_wsss.data.ebhi import prepare_ebhi

    _summarize(prepare_ebhi(options.root, options.out, **_given(options, "split", "presence", "fractions", "seed")))


def _prepare_voc(options: argparse.Namespace) -> None:
    from monai_wsss.data.voc import prepare_voc

    given = _given(options, "classes", "training", "validation", "test", "labels_from_masks")
    _summarize(prepare_voc(options.root, options.out, **given))


def _prepare_coco(options: argparse.Namespace) -> None:
    from monai_wsss.data.coco import prepare_coco

    _summarize(prepare_coco(options.root, options.out, **_given(options, "training", "validation", "test", "masks")))


def _phantom(options: argparse.Namespace) -> None:
    from monai_wsss.data.phantoms import make_phantoms

    folder = make_phantoms(options.out, **_given(options, "kind", "spatial_dims", "modalities", "seed"))
    _summarize(Path(folder) / "datalist.json")


def _report(options: argparse.Namespace) -> None:
    from monai_wsss.reports import write_report

    report = write_report(options.run_dir)
    run_dir = report.parent
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "dice_subject" in metrics:
        dice = metrics["dice_subject"]
        low, high = dice["ci95"]
        print(f"Dice per subject: {dice['mean']:.3f} (95 % interval {low:.3f} to {high:.3f}, {dice['n']} subjects)")
    masks = sorted((run_dir / "masks").glob("*"))
    if masks:
        print(f"Masks:  {run_dir / 'masks'} ({len(masks)} files, e.g. {masks[0].name})")
    print(f"Report: {report}")


def _benchmark(options: argparse.Namespace) -> None:
    from monai_wsss import benchmark
    from monai_wsss._checks import DataError

    given = _given(options, "epochs", "seeds", "split", "every", "width", "initial")
    if given.keys() & {"every", "width", "initial"} and not options.table.startswith("gland"):
        raise DataError(
            f"--every, --width, --initial are for the gland tables, not for {options.table}: leave them out."
        )
    table = benchmark.TABLES[options.table](Path(options.data) / "datalist.json", Path(options.out), **given)
    table.run()
    print((table.out / f"{table.name}.md").read_text(encoding="utf-8"))
    for figure in table.figures:
        print(f"Figure: {table.out / figure}")


def _scan_bundle(options: argparse.Namespace) -> None:
    from monai_wsss._checks import DataError
    from monai_wsss.bundle_scan import scan_bundle

    faults = scan_bundle(options.bundle)
    for fault in faults:
        print(fault)
    if faults:
        raise DataError(f"{options.bundle} has {len(faults)} faults: mend them, or do not run it.")
    print(f"{options.bundle}: no faults found")


def _summarize(path: Path) -> None:
    """Print what was written, and the command that comes next."""
    datalist = json.loads(path.read_text(encoding="utf-8"))
    classes, modality = datalist["classes"], datalist["modality"]
    print(f"Wrote {path}")
    print(f"classes:    {', '.join(classes)}")
    print(f"modalities: {', '.join(modality[str(channel)] for channel in range(len(modality)))}")
    rows: list[list[object]] = [["split", "images", "subjects", *(f"{name} = 1" for name in classes)]]
    for split in _SPLITS:
        items = datalist[split]
        positives = [sum(item["label"][index] for item in items) for index in range(len(classes))]
        rows.append([split, len(items), len({item["subject"] for item in items}), *positives])
    for row in rows if len(classes) <= _FEW_CLASSES else zip(*rows, strict=True):
        _print_row(*row)
    _print_next(path.parent.resolve(), datalist)


def _print_next(folder: Path, datalist: dict[str, Any]) -> None:
    """Print the command that trains on a prepared folder, or for volumes, which the bundle takes apart, segments it."""
    if not datalist.get("background", True):
        _print_training(_TISSUE_BUNDLE, f"--dataset_dir {shlex.quote(str(folder))}", folder)
        return
    names = [datalist["modality"][str(channel)] for channel in range(len(datalist["modality"]))]
    needed = ""
    if names != ["T1", "T1c", "FLAIR"]:
        needed += f" --modalities {_quoted(names)} --in_channels {len(names)}"
    if len(datalist["classes"]) > 1:
        needed += f" --num_classes {len(datalist['classes'])}"
    data = f"--dataset_dir {shlex.quote(str(folder))}{needed}"
    filled = [split for split in _SPLITS if datalist[split]]
    if filled and _is_volume(folder, datalist[filled[0]][0]["image"]):
        if needed:
            data += " --ckpt_dir RUN"
        if "test" not in filled:
            data += f" --split {filled[0]}"
        print("These are volumes, and the bundle trains on slices: to train, prepare again with --as-slices.")
        print(f"Next, to segment them{', with the folder RUN of a training on such slices' if needed else ''}:")
        _print_bundle(_BUNDLE, "inference", f"{data} --output_dir {shlex.quote(f'{folder}_masks')}")
    else:
        _print_training(_BUNDLE, data, folder)


def _print_training(bundle: str, data: str, folder: Path) -> None:
    print("Next, to train on it:")
    _print_bundle(bundle, "train", f"{data} --output_dir {shlex.quote(f'{folder}_run')}")


def _print_bundle(bundle: str, config: str, options: str) -> None:
    print(f"  cd {bundle}")
    print(f"  python -m monai.bundle run --config_file configs/{config}.json {options}")


def _quoted(names: list[str]) -> str:
    """A list as one word for any shell."""
    text = str(names)
    return f'"{text}"' if re.fullmatch(r"[\w .+,'\[\]-]+", text) else shlex.quote(text)


def _is_volume(folder: Path, image: str | list[str]) -> bool:
    """Whether the image of a case has three dimensions; NIfTI files hold two as well."""
    file = image if isinstance(image, str) else image[0]
    if not file.endswith((".nii", ".nii.gz")):
        return False
    import nibabel

    return len(nibabel.load(folder / file).header.get_data_shape()) > 2


def _print_row(first: object, *cells: object) -> None:
    print(f"{first!s:<10}", *(f"{cell!s:>14}" for cell in cells))


def _error_line(error: Exception) -> str:
    """The error as one line; one that is not a user's mistake gives its type too."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return f"error: {text}"
    return f"error: {type(error).__name__}: {text} (run again with --debug to see where)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0 done, 1 a mistake in data or arguments, 2 wrong usage.

    Example:
        >>> import tempfile
        >>> main(["prepare", "cases", "--root", tempfile.mkdtemp(), "--out", tempfile.mkdtemp()])
        1
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or has shown the help
        return int(stop.code or 0)
    logger, handler = logging.getLogger("monai_wsss"), logging.StreamHandler(sys.stderr)
    previous_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        options.run(options)
    except Exception as error:  # the one place where errors become a line for the user
        if options.debug:
            raise
        print(_error_line(error), file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous_level)
    return 0


if __name__ == "__main__":
    sys.exit(main())
