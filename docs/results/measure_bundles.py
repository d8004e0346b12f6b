# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Measure the weights that the bundles ship: `python docs/results/measure_bundles.py DATA --out FOLDER`.

DATA holds the data sets by name (`lgg_mri_64`, `ph2_dermoscopy`, `glas_gland`).  Each is prepared as the README of its
bundles says, under FOLDER, and each bundle's `evaluate.json` is run on it and on the default phantoms.  The metrics,
without paths and cases, go to `runs/shipped/<bundle>/<data>.json`, beside trivial answers that need no training, with
the SHA-256 of weights, data, configuration and settings; what lies there of the same four is not measured again.  All
of it takes some ten minutes of a processor.  Then `python docs/results/generate.py` writes the numbers into the pages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigWorkflow

from monai_wsss._files import file_sha256
from monai_wsss.benchmark.content import content_sha256
from monai_wsss.benchmark.rows import Row, read_rows, write_rows
from monai_wsss.data import load_header, make_phantoms, prepare_cases, prepare_glas
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import MaskRule

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHIPPED = HERE / "runs" / "shipped"
FILES = ("configs/train.json", "configs/evaluate.json")
WEIGHTS = "shipped weights"
TOLD = ("versions", "config")  # what of a run's record is kept

_tiles = partial(prepare_cases, longest_side=256, tiles=64, labels_from_masks=True)
PREPARE: dict[str, Callable[[Path, Path], str]] = {
    "lgg_mri_64": prepare_cases,
    "ph2_dermoscopy": _tiles,
    "glas_gland": prepare_glas,
}
"""Name of a data set -> what prepares its folder as the READMEs of its bundles do."""

PHANTOMS: dict[str, dict[str, Any]] = {
    "brain_phantoms": {"modalities": ["T1", "T1c", "FLAIR"]},
    "flair_phantoms": {"modalities": ["FLAIR"]},
    "chest_phantoms": {"kind": "chest"},
    "skin_phantoms": {"kind": "skin"},
    "gland_phantoms": {"kind": "gland"},
}
"""Folder -> the arguments of its phantoms, as the bundles' `train.json` draw them."""


@dataclass(frozen=True)
class Measurement:
    """One file of rows.

    Attributes:
        bundle: name of the bundle without `_segmentation`.
        name: of the file; `phantom`, or the name of a data set, where nothing is overridden.
        data: a key of `PREPARE` or `PHANTOMS`.
        overrides: further words of the command.
        trivial: heads of trivial answers, see `trivial_rows`.
    """

    bundle: str
    name: str
    data: str
    overrides: dict[str, str] = field(default_factory=dict)
    trivial: tuple[str, ...] = ()


_BLUE, _FLAIR, _INTENSITY = "Otsu on blue", "Otsu on FLAIR", "Otsu on intensity"
_DISTANCE = "distance to the healthy mean"
_BRAINS = ("brain_mri_cam", "brain_mri_bmp", "brain_mri_cmer")
_SKINS = ("dermoscopy_cam", "dermoscopy_cosa")
_UNREFINED = {"refine": "none"}
MEASUREMENTS = (
    *(Measurement(bundle, "phantom", "brain_phantoms") for bundle in _BRAINS),
    *(Measurement(bundle, "lgg_mri_64", "lgg_mri_64") for bundle in _BRAINS),
    Measurement("brain_mri_coingan", "phantom", "flair_phantoms", trivial=(_FLAIR,)),
    Measurement("brain_mri_coingan", "lgg_mri_64", "lgg_mri_64", trivial=(_FLAIR, _DISTANCE)),
    Measurement("chest_xray_coingan", "phantom", "chest_phantoms", trivial=(_INTENSITY, _DISTANCE)),
    *(Measurement(bundle, "phantom", "skin_phantoms", trivial=(_BLUE,)) for bundle in _SKINS),
    *(Measurement(bundle, "ph2_dermoscopy", "ph2_dermoscopy", trivial=(_BLUE,)) for bundle in _SKINS),
    Measurement("dermoscopy_cam", "ph2_dermoscopy_unrefined", "ph2_dermoscopy", _UNREFINED),
    Measurement("histology_gland", "phantom", "gland_phantoms"),
    Measurement("histology_gland", "glas_gland", "glas_gland"),
)


def main() -> None:
    """Prepare the data, and measure what is not there yet."""
    parser = argparse.ArgumentParser(description="Measure the weights that the bundles ship.")
    parser.add_argument("data", type=Path, help="folder with the data sets, by name")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared data and for runs")
    parser.add_argument("--only", nargs="+", metavar="BUNDLE/NAME", help="these measurements, in this order")
    told = parser.parse_args()
    known = {f"{one.bundle}/{one.name}": one for one in MEASUREMENTS}
    if strange := set(told.only or ()) - known.keys():
        parser.error(f"there is no {', '.join(sorted(strange))}: choose from {', '.join(known)}")
    for name in told.only or known:
        one, file = known[name], SHIPPED / f"{name}.json"
        datalist = prepared(one.data, told.data, told.out)
        outcome = "measured" if measure(one, datalist, told.out / "runs" / name, file) else "kept"
        sys.stdout.write(f"{outcome}: {name}\n")
        sys.stdout.flush()


def prepared(data: str, raw: Path, out: Path) -> Path:
    """Give the datalist of a data set or of phantoms, prepared at the first call.

    Args:
        data: a key of `PREPARE` or `PHANTOMS`.
        raw: folder with the data sets.
        out: folder to write below.
    """
    datalist = out / data / "datalist.json"
    if not datalist.is_file():
        if data in PHANTOMS:
            make_phantoms(out / data, **PHANTOMS[data])
        else:
            PREPARE[data](raw / data, out / data)
    return datalist


def measure(one: Measurement, datalist: Path, output: Path, file: Path) -> bool:
    """Measure the shipped weights of a bundle as a user would, and trivial answers; False if rows were there.

    Args:
        one: what to measure.
        datalist: of the prepared data.
        output: folder of the run.
        file: where the rows go.
    """
    bundle = ROOT / "bundles" / f"{one.bundle}_segmentation"
    settings = {"bundle": bundle.name, "data": one.data, "overrides": one.overrides, "trivial": list(one.trivial)}
    source = {
        "weights_sha256": file_sha256(bundle / "models" / "model.pt"),
        "data_sha256": content_sha256(datalist),
        "configs_sha256": sha256("".join((bundle / name).read_text("utf-8") for name in FILES).encode()).hexdigest(),
        "settings_sha256": sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
    }
    if read_rows(file, source) is not None:
        return False
    words = {"dataset_dir": str(datalist.parent.resolve()), "output_dir": str(output.resolve()), **one.overrides}
    files = [str(bundle / name) for name in FILES]
    monai.bundle.run(config_file=files, bundle_root=str(bundle), logging_file=False, **words)
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    training = json.loads((bundle / "models" / "run.json").read_text(encoding="utf-8"))
    row = Row(
        name=WEIGHTS,
        column="",
        split=record["config"]["split"],
        seed=training["seed"],
        metrics=json.loads((output / "metrics.json").read_text(encoding="utf-8")),
        simulated_supervision=any(use.startswith("simulated supervision") for use in training["uses_masks"]),
    )
    rows = [row, *trivial_rows(bundle, words, one.trivial)]
    write_rows(file, rows, source, settings=settings, **{name: record[name] for name in TOLD})
    return True


def trivial_rows(bundle: Path, words: dict[str, str], names: tuple[str, ...]) -> Iterator[Row]:
    """Measure answers that need no training on the images that the bundle's evaluation reads.

    `Otsu on …` cuts each image: what is darker in the blue channel, or brighter in another one.  `distance to the
    healthy mean` cuts the difference to the mean of the healthy training images, which are of one size.

    Args:
        bundle: folder of the bundle.
        words: overrides of its evaluation.
        names: of the answers.
    """
    if not names:
        return
    places = {"bundle_root": str(bundle), "device": "cpu", **words}
    files = [str(bundle / name) for name in FILES]
    started = {
        split: ConfigWorkflow(files, logging_file=False, workflow_type="train", **{**places, "split": split})
        for split in ("validation", "training")
    }
    for name in names:
        healthy = []
        if name == _DISTANCE:
            started["training"].initialize()
            cases = started["training"].parser.get_parsed_content("validate#dataset")
            healthy = [tensor_of(case) for case in cases if not torch.as_tensor(case["label"]).any()]
        mean = torch.stack(healthy).mean(0) if healthy else None
        started["validation"].initialize()
        cases = started["validation"].parser.get_parsed_content("validate#dataset")
        table = CaseTable(load_header(Path(words["dataset_dir"]) / "datalist.json")["classes"])
        for case in cases:
            image = tensor_of(case)
            heat = -image[2:3] if name == _BLUE else image if mean is None else (image - mean).abs()
            mask = MaskRule(rule="otsu", gate="none")(heat[None]).mask[0]
            known = {key: case[key] for key in ("id", "subject") if key in case}
            reference = torch.as_tensor(case["mask"]) if "mask" in case else None
            label = torch.as_tensor(case["label"])
            table.add(**known, label=label, prediction=mask, reference=reference, heat=heat)
        yield Row(f"trivial: {name}", "", "validation", None, table.summary())


def tensor_of(case: dict[str, Any]) -> torch.Tensor:
    """Give the image of a case, (C, *S)."""
    return torch.as_tensor(case["image"]).float().as_subclass(torch.Tensor)


if __name__ == "__main__":
    main()
