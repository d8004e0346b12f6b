# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss``, or ``python -m monai_wsss``: prepares data, draws phantoms, writes reports, compares, scans bundles.

:mod:`monai_wsss.command_line` holds the table of the commands; this module runs a row of it and prints the result.
Whole bundles are put to work by ``python -m monai.bundle run`` or, in one command, by ``predict`` and ``train``.  Exit
codes: 0 done, 1 mistakes in data or arguments (a line on stderr for each), 2 wrong usage, 3 done, but not all of it.
torch and monai are imported when a command needs them: ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from monai_wsss.command_line.arguments import REQUIRED, Argument, Command
from monai_wsss.command_line.table import COMMANDS, LAYOUTS, SPLITS
from monai_wsss.command_line.telling import NOT_ALL, tell_bundles, tell_prediction, tell_training

__all__ = ["main"]

_BUNDLE = "bundles/brain_mri_cam_segmentation"
_TISSUE_BUNDLE = "bundles/histology_gland_segmentation"
_TILE_BUNDLE = "bundles/dermoscopy_cam_segmentation"
TILE_SHARE = 0.25  # `topk_share` of that bundle; a test compares
_PHOTOGRAPH_BUNDLE = "bundles/dermoscopy_cosa_segmentation"
_CONVERSION_BUNDLE = "bundles/chest_xray_coingan_segmentation"
_COLORS = ["red", "green", "blue"]
_CHANNELS = {
    _BUNDLE: ["T1", "T1c", "FLAIR"],
    _TILE_BUNDLE: _COLORS,
    _PHOTOGRAPH_BUNDLE: _COLORS,
    _CONVERSION_BUNDLE: ["image"],
}
_FEW_CLASSES = 6  # that a table has room for side by side


def _add_parser(parsers: Any, command: Command) -> None:
    """Add a command with its description, its example and its arguments."""
    parser: argparse.ArgumentParser = parsers.add_parser(
        command.name,
        help=command.help,
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if command.chooser is not None:
        parser.add_argument(command.chooser.flag, **command.chooser.options())
    for argument in command.arguments:
        parser.add_argument(argument.flag, **argument.options())
    parser.set_defaults(command=command)


def _parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="monai-wsss",
        description="Image-level labels in, masks out: prepare data, train, segment, write reports.",
        epilog="examples:\n  monai-wsss predict scans --bundle brain_mri_cam --out masks\n"
        "  monai-wsss prepare folder --images scans --labels labels.csv --out prepared\n"
        "  monai-wsss train prepared --out run\n"
        "  monai-wsss predict scans --bundle brain_mri_cam --weights run --out masks\n\n"
        "Evaluation, and whatever else bundles can do, is `python -m monai.bundle run`, see the README.",
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
    layouts = prepare.add_subparsers(title="layouts", metavar="LAYOUT", required=True)
    for command in LAYOUTS:
        _add_parser(layouts, command)
    for command in COMMANDS:
        _add_parser(commands, command)
    return parser


def _chosen_function(command: Command, options: argparse.Namespace) -> Callable[..., Any]:
    """Import the function of a command; refuse arguments that the chosen one of several functions does not have."""
    path = command.function
    if command.chooser is not None:
        choice = _choice(command, command.chooser, options)
        path = command.functions[choice]
        foreign = [argument for argument in command.arguments if argument.only and choice not in argument.only]
        given = [argument for argument in foreign if getattr(options, argument.name) is not None]
        if given:
            _refuse(given, choice, command.chooser.name)
    module, name = path.rsplit(".", 1)
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _choice(command: Command, chooser: Argument, options: argparse.Namespace) -> str:
    """Give the word of the function that is meant: that of the chooser, or that of the other form of the command."""
    chosen: str | None = getattr(options, chooser.name)
    own = [argument for argument in command.arguments if argument.only == (command.other_form,)]
    given = [argument.flag for argument in own if getattr(options, argument.name) is not None]
    if given and chosen is not None:
        from monai_wsss._checks import DataError

        raise DataError(
            f"{chooser.flag} and {given[0]} are two forms of `{command.name}`, and a call has one: leave one out."
        )
    return command.other_form if given else chosen or chooser.default


def _refuse(foreign: Sequence[Argument], choice: str, kind: str) -> NoReturn:
    """Raise the error about arguments that only other functions of a command have."""
    from monai_wsss._checks import DataError

    wrong = [argument for argument in foreign if argument.only == foreign[0].only]
    flags = ", ".join(argument.flag for argument in wrong)
    verb, pronoun = ("is", "it") if len(wrong) == 1 else ("are", "them")
    owner = min(wrong[0].only, key=len)
    raise DataError(f"{flags} {verb} for the {owner} {kind}s, not for {choice}: leave {pronoun} out.")


def _run(options: argparse.Namespace) -> int:
    """Call the function of a command with the arguments that were given, tell its result, and give the exit code."""
    command: Command = options.command
    function = _chosen_function(command, options)
    values = {argument.name: getattr(options, argument.name) for argument in command.arguments}
    required = [values.pop(argument.name) for argument in command.arguments if argument.default is REQUIRED]
    given = {name: value for name, value in values.items() if value is not None}
    if "settings" in given:
        given["settings"] = {name: value for one in given["settings"] for name, value in one.items()}
    tell: dict[str, Callable[[Any], int | None]] = {
        "bundles": tell_bundles,
        "predict": tell_prediction,
        "train": tell_training,
        "phantom": lambda folder: _tell_prepared(Path(folder) / "datalist.json"),
        "report": _tell_report,
        "benchmark": _run_table,
        "scan-bundle": lambda faults: _tell_faults(options.path, faults),
    }
    return tell.get(command.name, _tell_prepared)(function(*required, **given)) or 0


def _tell_report(report: Path) -> None:
    """Print the Dice score, the folder of the masks and the page of a report."""
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


def _run_table(table: Any) -> int:
    """Train and measure the rows of a table; print the table and the paths of its figures; give the exit code."""
    made = table.run()
    if os.environ.get("RANK", "0") != "0":
        return 0  # of the processes of torchrun one writes and tells
    written = table.out / f"{table.name}.md"
    if written.is_file():  # figures alone write none
        print(written.read_text(encoding="utf-8"))
    for figure in table.figures:
        print(f"Figure: {table.out / figure}")
    failed = sum(getattr(one, "state", "") == "failed" for one in made or ())  # rows of tables have no state
    if failed:
        print(f"{'1 run' if failed == 1 else f'{failed} runs'} failed, see {table.out / 'failures'}.")
    return NOT_ALL if failed else 0


def _tell_faults(bundle: str, faults: Sequence[Any]) -> None:
    """Print the faults of a bundle; they are an error."""
    from monai_wsss._checks import DataError

    for fault in faults:
        print(fault)
    if faults:
        raise DataError(f"{bundle} has {len(faults)} faults: mend them, or do not run it.")
    print(f"{bundle}: no faults found")


def _tell_prepared(path: Path) -> None:
    """Print the path, the classes and the counts of a datalist, and the command that comes next."""
    datalist = json.loads(path.read_text(encoding="utf-8"))
    classes, modality = datalist["classes"], datalist["modality"]
    print(f"Wrote {path}")
    print(f"classes:    {', '.join(classes)}")
    print(f"modalities: {', '.join(modality[str(channel)] for channel in range(len(modality)))}")
    rows: list[list[object]] = [["split", "images", "subjects", *(f"{name} = 1" for name in classes)]]
    for split in SPLITS:
        items = datalist[split]
        labeled = [item for item in items if item["label"] is not None]
        positives: list[object] = [sum(item["label"][index] for item in labeled) for index in range(len(classes))]
        if items and not labeled:
            positives = ["no labels"] * len(classes)
        rows.append([split, len(items), len({item["subject"] for item in items}), *positives])
    for row in rows if len(classes) <= _FEW_CLASSES else zip(*rows, strict=True):
        _print_row(*row)
    _print_next(path.parent.resolve(), datalist)


def _print_next(folder: Path, datalist: dict[str, Any]) -> None:
    """Print the command that trains on a prepared folder of slices or tiles, or that segments a folder of volumes."""
    from monai_wsss.data.crops import presence_pixels

    if not datalist.get("background", True):
        _print_training(_TISSUE_BUNDLE, f"--dataset_dir {shlex.quote(str(folder))}", folder)
        return
    names = [datalist["modality"][str(channel)] for channel in range(len(datalist["modality"]))]
    filled = [split for split in SPLITS if datalist[split]]
    volumes = bool(filled) and _is_volume(folder, datalist[filled[0]][0]["image"])
    bundle = _BUNDLE if volumes else _bundle_for(datalist, names)
    needed = ""
    if names != _CHANNELS[bundle]:
        needed += f" --modalities {_quoted(names)} --in_channels {len(names)}"
    if len(datalist["classes"]) > 1:
        needed += f" --num_classes {len(datalist['classes'])}"
    if bundle == _TILE_BUNDLE and (pixels := presence_pixels(datalist, TILE_SHARE)):
        needed += f" --gate predicted --topk_pixels {pixels}"
    data = f"--dataset_dir {shlex.quote(str(folder))}{needed}"
    if volumes:
        if needed:
            data += " --ckpt_dir RUN"
        if "test" not in filled:
            data += f" --split {filled[0]}"
        print("These are volumes, and the bundle trains on slices: to train, prepare again with --as-slices.")
        print(f"Next, to segment them{', with the folder RUN of a training on such slices' if needed else ''}:")
        _print_bundle(_BUNDLE, ["inference"], f"{data} --output_dir {shlex.quote(f'{folder}_masks')}")
        return
    if bundle == _TILE_BUNDLE and needed:
        print("The bundle for tiles ships weights for color images of skin: these tiles need a training of their own.")
    if bundle == _PHOTOGRAPH_BUNDLE:
        print("Photographs take the settings of the paper: a GPU, and ImageNet weights by --pretrained PATH.")
    _print_training(bundle, data, folder)


def _bundle_for(datalist: dict[str, Any], names: list[str]) -> str:
    """Choose the bundle for images with background: of tiles, of slices, of photographs, of X-rays and the like."""
    if "tiles" in datalist:
        return _TILE_BUNDLE
    if len(datalist["classes"]) > 1:
        return _PHOTOGRAPH_BUNDLE if names == _COLORS else _BUNDLE
    # Levels of severity are converted into one another; slices of volumes are read in the order [x, y].
    return _CONVERSION_BUNDLE if "levels" in datalist or datalist.get("order") == "rows_columns" else _BUNDLE


def _print_training(bundle: str, data: str, folder: Path) -> None:
    configs = ["train", "paper"] if bundle == _PHOTOGRAPH_BUNDLE else ["train"]
    print("Next, to train on it:")
    print(f"  monai-wsss train {shlex.quote(str(folder))} --out {shlex.quote(f'{folder}_run')}")
    converted = " CoinGAN, which converts images to healthy ones and is not for a first try"
    print(f"Or by{converted if bundle == _CONVERSION_BUNDLE else ' the command of a bundle, with all its settings'}:")
    _print_bundle(bundle, configs, f"{data} --output_dir {shlex.quote(f'{folder}_run')}")


def _print_bundle(bundle: str, configs: list[str], options: str) -> None:
    installed = Path(__file__).parent / bundle  # in a wheel; in the sources the folder stands beside the package
    print(f"  cd {shlex.quote(str(installed)) if installed.is_dir() else bundle}")
    files = [f"configs/{config}.json" for config in configs]
    named = files[0] if len(files) == 1 else f'"{files}"'.replace(" ", "")
    print(f"  python -m monai.bundle run --config_file {named} {options}")


def _quoted(names: list[str]) -> str:
    """Write a list as one word for any shell."""
    text = str(names)
    return f'"{text}"' if re.fullmatch(r"[\w .+,'\[\]-]+", text) else shlex.quote(text)


def _is_volume(folder: Path, image: str | list[str]) -> bool:
    """Tell whether an image has three dimensions; a NIfTI file may also have two."""
    file = image if isinstance(image, str) else image[0]
    if not file.endswith((".nii", ".nii.gz")):
        return False
    import nibabel

    return len(nibabel.load(folder / file).header.get_data_shape()) > 2


def _print_row(first: object, *cells: object) -> None:
    print(f"{first!s:<10}", *(f"{cell!s:>14}" for cell in cells))


def _error_line(error: Exception) -> str:
    """Write an error as one line, or a line per mistake of the user; the type of any other error stands before it."""
    if isinstance(error, ValueError):
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        return "\n".join(f"error: {line}" for line in lines if line)
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {text} (run again with --debug to see where)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        0 done, 1 a mistake in data or arguments, 2 wrong usage, 3 done, but with cases that could not be read, with a
        training that did not learn, or with runs of a comparison that failed, 130 stopped by Ctrl-C.

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
        return _run(options)
    except KeyboardInterrupt as stop:
        print(str(stop) or "Stopped: the same command begins again, or goes on.", file=sys.stderr)
        return 130
    except Exception as error:  # the one place where errors become a line for the user
        if options.debug:
            raise
        print(_error_line(error), file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous_level)


if __name__ == "__main__":
    sys.exit(main())
