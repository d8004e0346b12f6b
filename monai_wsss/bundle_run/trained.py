# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Weights with what they need to be used: the bundle, its settings, and the names of channels and classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss._pictures import ROWS_COLUMNS, XY
from monai_wsss.bundle_run.shipped import ShippedBundle, find_bundle
from monai_wsss.data.modalities import COLORS, canonical_modality
from monai_wsss.reports.provenance import read_run

__all__ = ["TrainedWeights", "weights_for"]


@dataclass(frozen=True)
class TrainedWeights:
    """Weights and how they are used.

    Attributes:
        bundle: whose inference uses them.
        weights: the file.
        modalities: the channels, in their order.
        header: of a datalist: ``modality``, ``classes``, ``background``, ``order``, perhaps ``scored_class``.
        settings: of the bundle, so that its network is that of the weights.
        own: whether they are of a training of the user's, and not those of the bundle.
        trained_on: in words.
        uses_masks: what read pixel masks in training; None where nobody knows.
    """

    bundle: ShippedBundle
    weights: Path
    modalities: list[str]
    header: dict[str, Any]
    settings: dict[str, Any]
    own: bool
    trained_on: str
    uses_masks: list[str] | None


def weights_for(bundle: str | os.PathLike[str], weights: str | os.PathLike[str] | None) -> TrainedWeights:
    """Find weights and what their training recorded.

    Args:
        bundle: name or folder.
        weights: the folder of a training, or a file in it; None takes those of the bundle.

    Raises:
        DataError: there are no weights, or they are of another bundle.
    """
    found = find_bundle(bundle)
    path = found.path / "models" if weights is None else Path(weights)
    file = path / "model.pt" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"No weights at {file}: give --weights the folder of a training that has ended, or train first by "
            "`monai-wsss train`."
        )
    run = read_run(file.parent) or {}
    config = run.get("config") or {}
    recorded = config.get("bundle")
    if weights is not None and recorded not in (None, found.name):
        raise DataError(f"{file} was trained by the bundle {recorded}, not by {found.name}: give --bundle {recorded}.")
    inference = found.config("inference")
    wanted = [canonical_modality(name) for name in inference.get("modalities", ["image"])]
    own = weights is not None
    names = wanted if weights is None else _names(config, wanted)
    classes = found.classes if weights is None else (run.get("classes") or found.classes)
    header: dict[str, Any] = {
        "name": "inputs",
        "modality": {str(place): name for place, name in enumerate(names)},
        "classes": list(classes),
        "background": found.background if run.get("background") is None else bool(run["background"]),
        "order": _order(names, found.metadata, run),
        "training": [],
        "validation": [],
        "test": [],
    }
    if not header["background"]:
        header["scored_class"] = run.get("scored_class") or classes[0]
    return TrainedWeights(
        found,
        file,
        names,
        header,
        _settings(inference, names, classes, config if own else {}) | {"ckpt_dir": str(file.parent)},
        own,
        "your own data (its record is beside the weights)." if own else f"{found.trained_on}.",
        run.get("uses_masks"),
    )


def _names(config: Mapping[str, Any], wanted: list[str]) -> list[str]:
    names = config.get("modalities")
    return [canonical_modality(str(name)) for name in names] if isinstance(names, list) and names else wanted


def _order(names: list[str], metadata: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Give the order of 2D images for weights without a record of it: that of slices, or of pictures."""
    recorded = (run.get("reading") or {}).get("order")
    pictures = tuple(names) == COLORS or "X-ray" in str(metadata.get("image_classes"))
    return str(recorded) if recorded else (ROWS_COLUMNS if pictures else XY)


def _settings(
    inference: Mapping[str, Any], names: list[str], classes: list[str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the settings in which the network, and its gate as trained, differ from the default of their bundle."""
    made = {"modalities": names, "in_channels": len(names), "num_classes": len(classes)}
    made |= {name: config[name] for name in ("gate", "topk_pixels") if config.get(name) is not None}
    return {key: value for key, value in made.items() if key in inference and inference[key] != value}
