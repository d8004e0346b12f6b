# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss train``: the run that ``python -m monai.bundle run`` makes of a bundle, and a verdict at its end."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.apps import get_logger
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_wsss._checks import DataError, check_choice, check_device
from monai_wsss.bundle_run.method_choice import TRAINING_METHODS, choose_method
from monai_wsss.bundle_run.runner import own_error
from monai_wsss.bundle_run.shipped import ShippedBundle, find_bundle
from monai_wsss.bundle_run.verdict import Verdict, judge, mask_metrics, tile_metrics
from monai_wsss.data import load_datalist, load_header
from monai_wsss.data.crops import presence_pixels
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.reading import image_format
from monai_wsss.engines import check_overrides

__all__ = ["Training", "TrainingInterrupted", "train_bundle"]

_logger = logging.getLogger(__name__)
LEAST_STEPS = 300
"""Steps that a training on a small folder gets at least; fewer teach a network nothing."""
_COLLAPSE = re.compile("almost all (back|fore)ground|converted images differ by|the generator changes images")
"""Warnings of methods about an epoch that are signs of a collapse; others are advice."""
_BUNDLES = {
    "cmer": "brain_mri_cmer_segmentation",
    "gland": "histology_gland_segmentation",
    "bmp": "brain_mri_bmp_segmentation",
    "cosa": "dermoscopy_cosa_segmentation",
}


class TrainingInterrupted(KeyboardInterrupt):
    """A training was stopped by Ctrl-C; the message says how to go on."""


@dataclass(frozen=True)
class Training:
    """What a training left.

    Attributes:
        out: the folder of the run, with ``model.pt``.
        command: the same run by ``python -m monai.bundle run``.
        verdict: whether it learned, by image-level labels alone.
        predict: the command that segments images with it.
    """

    out: Path
    command: str
    verdict: Verdict
    predict: str


def _bundle_for(method: str, header: Mapping[str, Any]) -> str:
    """Name the bundle of a method for the images of a datalist."""
    if method == "cam":
        return "dermoscopy_cam_segmentation" if "tiles" in header else "brain_mri_cam_segmentation"
    if method == "coingan":
        pictures = "levels" in header or header.get("order") == "rows_columns"
        return f"{'chest_xray' if pictures else 'brain_mri'}_coingan_segmentation"
    return _BUNDLES[method]


def train_bundle(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str = "auto",
    bundle: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    pretrained: str | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Training:
    """Train on a prepared folder, and say whether the network learned.

    Args:
        data: a folder that ``monai-wsss prepare`` wrote.
        out: the folder of the run.
        method: see :data:`TRAINING_METHODS`; "auto" follows the document on methods.
        bundle: name or folder of the bundle; None takes that of the method for these images.
        epochs: passes over the images; None takes those of the bundle, and more for few images.
        steps: instead of ``epochs``: at least so many steps.
        seed: of all chance.
        device: such as "cuda:0" or "cpu"; None takes a GPU where there is one.
        pretrained: "imagenet", "none" or a file of encoder weights; None takes the default of the bundle.
        resume: whether to go on with a run that was stopped.
        settings: further settings of the bundle.

    Raises:
        DataError: the folder is not prepared, or does not fit the method; or whatever the run refuses.
        TrainingInterrupted: it was stopped by Ctrl-C.
    """
    check_choice("method", method, TRAINING_METHODS)
    datalist = Path(data) / "datalist.json" if Path(data).is_dir() else Path(data)
    if not datalist.is_file():
        raise DataError(f"{data} is no prepared folder: run `monai-wsss prepare folder --help` to see how to make one.")
    if epochs is not None and steps is not None:
        raise DataError("--epochs and --steps are given together: give one of them.")
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and number < 1:
            raise DataError(f"Expected `{name}` to be 1 or more, got {number}.")
    check_device(device)
    if (Path(out) / "datalist.json").exists():
        raise DataError(f"The output folder {out} holds data: choose another --out.")
    header = load_header(datalist)
    chosen = method
    if method == "auto" and bundle is None:
        labels = [item["label"] for item in load_datalist(datalist, "training")]
        gpu = torch.cuda.is_available() if device is None else device != "cpu"
        chosen, reason = choose_method(header, labels, gpu=gpu)
        _logger.info("Method %s (%s): %s.", chosen, _bundle_for(chosen, header), reason)
    _tell_scale(header)
    found = find_bundle(bundle if bundle is not None else _bundle_for(chosen, header))
    run = _settings_for(found, datalist, header) | {"output_dir": str(Path(out).resolve())}
    images = load_datalist(datalist, "training", modalities=run.get("modalities"))
    _refuse_volumes(images[0]["image"])
    run |= _length({**found.config("train"), **(settings or {})}, len(images), epochs, steps)
    more = {"seed": seed, "device": device, "pretrained": pretrained, "resume": resume or None}
    run |= {name: value for name, value in more.items() if value is not None}
    run |= dict(settings or {})
    command = _command(found, run)
    _logger.info("This is %s", command)
    verdict = _run(found, run, Path(out), len(images))
    return Training(Path(out), command, verdict, _predict_command(found, Path(out), settings or {}))


def _settings_for(bundle: ShippedBundle, datalist: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings in which a run on a datalist differs from the default of its bundle."""
    config, tissue = bundle.config("train"), bundle.name.endswith("gland_segmentation")
    if tissue and (header["background"] or len(header["classes"]) != config["num_classes"]):
        raise DataError(
            f"{bundle.name} learns from patches that are tagged with {config['num_classes']} tissues, one of which is "
            f"everywhere, and these images show {', '.join(header['classes'])} on a background: take --method cam."
        )
    if not tissue and not header["background"] and _comes_with_package(bundle):
        raise DataError(
            f"{bundle.name} finds classes on a background, and in these images there is none, since all of "
            f"{', '.join(header['classes'])} are tissues: take --method gland."
        )
    if "tiles" in header and "grid" in config and _comes_with_package(bundle):
        raise DataError(
            f"{bundle.name} brings whole slices to one size, and these are tiles, which must keep the size that their "
            "findings have in whole images: take --method cam or cosa."
        )
    names = [header["modality"][str(channel)] for channel in range(len(header["modality"]))]
    if "modalities" not in config and tuple(names) != COLORS:
        raise DataError(f"{bundle.name} takes color images, and these have the channels {', '.join(names)}.")
    made = {"modalities": names, "in_channels": len(names), "num_classes": len(header["classes"])}
    if tissue:
        made.pop("num_classes")
    if "topk_pixels" in config and (pixels := presence_pixels(header, config["network_def"]["topk_share"])):
        made |= {"gate": "predicted", "topk_pixels": pixels}  # an image may lack some of several classes
    needed = {name: value for name, value in made.items() if name in config and config[name] != value}
    return {"dataset_dir": str(datalist.parent.resolve()), **needed}


def _tell_scale(header: Mapping[str, Any]) -> None:
    """Log how images have to be scaled for a network that learned from tiles of scaled ones; no weights know it."""
    rule = header.get("tiles") or {}
    if rule.get("longest_side"):
        how = f"so that their longer side has {rule['longest_side']} pixels"
    elif rule.get("scale") not in (None, 1):
        how = f"by {rule['scale']:g}"
    else:
        return
    _logger.warning(
        "Tiles were cut from images that were scaled %s: scale others alike before they are segmented.", how
    )


def _refuse_volumes(image: Any) -> None:
    file = Path(image if isinstance(image, str) else image[0])
    if image_format(file) == "nifti":
        import nibabel

        if len(nibabel.load(file).header.get_data_shape()) > 2:
            raise DataError("The training images are volumes, and bundles train on slices: prepare with --as-slices.")


def _length(config: Mapping[str, Any], images: int, epochs: int | None, steps: int | None) -> dict[str, int]:
    """Give epochs and the interval of validations: few images are seen often enough, and the end is measured."""
    per_epoch = max(math.ceil((config.get("samples") or images) / config["batch_size"]), 1)
    usual = int(config["epochs"])
    if epochs is None:
        wanted = math.ceil((steps or LEAST_STEPS) / per_epoch)
        epochs = max(wanted, 1) if steps is not None else max(usual, 5 * math.ceil(wanted / 5))
    if epochs == usual:
        return {}
    interval = int(config["val_interval"]) if epochs < 5 * usual else epochs // 10
    interval = next(one for one in range(min(max(interval, 1), epochs), 0, -1) if epochs % one == 0)
    return {"epochs": epochs, "val_interval": interval}


def _run(bundle: ShippedBundle, run: dict[str, Any], out: Path, images: int) -> Verdict:
    """Run the training of a bundle and judge it."""
    config = str(bundle.path / "configs" / "train.json")
    check_overrides([config], run)
    sentences: list[str] = []
    try:
        with _noted(sentences), _without_tracebacks():
            workflow = ConfigWorkflow(
                config, workflow_type="train", logging_file=False, bundle_root=str(bundle.path), **run
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()
    except KeyboardInterrupt as stop:
        folders = (out / "checkpoints", out / "classifier" / "checkpoints")
        there = any(True for folder in folders for _ in folder.glob("*"))
        how = "give the same command again with --resume to go on" if there else "no epoch was finished, so begin anew"
        raise TrainingInterrupted(f"Training stopped: {how}.") from stop
    except Exception as error:
        raise own_error(error) from error
    parser = workflow.parser
    trainer = parser.get_parsed_content("train#trainer")
    metrics = _validated(parser)
    steps, epochs = int(trainer.state.iteration), int(trainer.state.max_epochs)
    last = [text.partition(": ")[2] for text in sentences if text.startswith(f"Epoch {epochs}: ")]
    collapse, what = [text for text in last if _COLLAPSE.search(text)], "images"
    if not any(math.isfinite(metrics.get(name, math.nan)) for name in ("presence_auroc", "area_auroc")):
        tiles = _validation_tiles(Path(run["dataset_dir"]) / "datalist.json", run.get("modalities"))
        if tiles and "validate#postprocessing" in parser:  # whole images all show the finding, their tiles do not
            metrics |= tile_metrics(parser, tiles)
            what = "tiles"
    return judge(metrics, collapse, images=images, steps=steps, epochs=epochs, what=what)


def _validated(parser: ConfigParser) -> dict[str, float]:
    """Give the metrics of the last validation, and of its masks; validate where a run that had ended was resumed."""
    if "validate#evaluator" not in parser:
        return {}
    evaluator = parser.get_parsed_content("validate#evaluator")
    if not evaluator.state.metrics:
        evaluator.run()
    metrics = dict(evaluator.state.metrics)
    if "validate#scores" in parser:
        scores = parser.get_parsed_content("validate#scores")
        metrics |= mask_metrics(scores.labels, scores.areas)
    return metrics


def _validation_tiles(datalist: Path, modalities: Any) -> list[dict[str, Any]]:
    if "tiles" not in load_header(datalist):
        return []
    return load_datalist(datalist, "validation_tiles", modalities=modalities)


@contextmanager
def _noted(sentences: list[str]) -> Iterator[None]:
    """Log warnings once, without the place in the code, and keep those about an epoch."""
    told: set[str] = set()
    with warnings.catch_warnings():

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            text = str(message)
            if issubclass(category, UserWarning) and text.startswith("Epoch "):
                sentences.append(text)
                text = text.partition(": ")[2]
            if text not in told and issubclass(category, UserWarning):
                told.add(text)
                _logger.warning("%s", text)

        warnings.showwarning = note
        yield


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep back what MONAI and ignite log about an error that is told in one sentence, about a log file, and as NaN."""
    unwanted = ("Logging file is set to False", "Engine run is terminating")

    def wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if " Metrics -- " in text:  # without masks no Dice is known, and that is said once
            record.msg, record.args = re.sub(r"\S+: nan\b ?", "", text), None
        return not (record.exc_info or text.startswith(unwanted) or "best value: nan" in text)

    loggers = [get_logger(name) for name in ("monai.handlers.StatsHandler", "monai.bundle.workflows")]
    last = [logging.lastResort] if logging.lastResort is not None else []
    places: list[logging.Filterer] = [*loggers, *logging.getLogger().handlers, *last]
    for place in places:
        place.addFilter(wanted)
    try:
        yield
    finally:
        for place in places:
            place.removeFilter(wanted)


def _word(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if re.fullmatch(r"[\w .+,'\[\]-]+", text) and "'" in text else shlex.quote(text)


def _command(bundle: ShippedBundle, run: Mapping[str, Any]) -> str:
    """Write the run as a command of MONAI."""
    options = " ".join(f"--{shlex.quote(name)} {_word(value)}" for name, value in run.items())
    root = shlex.quote(str(bundle.path))
    config = shlex.quote(str(bundle.path / "configs" / "train.json"))
    return f"python -m monai.bundle run --config_file {config} --bundle_root {root} {options}"


def _predict_command(bundle: ShippedBundle, out: Path, settings: Mapping[str, Any]) -> str:
    """Write the command that segments images with the trained network, with the settings that both share."""
    inference = bundle.config("inference")
    shared = [f" --set {_word(f'{name}={value}')}" for name, value in settings.items() if name in inference]
    named = bundle.name if _comes_with_package(bundle) else str(bundle.path)
    return (
        f"monai-wsss predict IMAGES --bundle {shlex.quote(named)} --weights {shlex.quote(str(out))} --out MASKS"
        f"{''.join(shared)}"
    )


def _comes_with_package(bundle: ShippedBundle) -> bool:
    """Tell whether a bundle is one of those that come with the package."""
    try:
        return find_bundle(bundle.name).path == bundle.path
    except DataError:
        return False
