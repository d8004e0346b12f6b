# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Rules for a bundle's configurations, so that MONAI's tools, other programs and our overlays find what they need.

The rules name ids that must exist, properties that MONAI reads as plain references only, and handlers whose order
counts.  They find references that lead nowhere.  One rule is this project's own: nothing that training reads names a
mask.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai_wsss.bundle_scan.config_scan import iterate_config

__all__ = ["inference_faults", "training_faults"]

_COMMON_IDS = """
    imports bundle_root ckpt_dir output_dir dataset_dir datalist device amp network_def network num_workers
    initialize run
"""
_TRAIN_IDS = f"""
    {_COMMON_IDS} epochs val_interval learning_rate batch_size train_datalist val_datalist method optimizers
    lr_scheduler train#deterministic_transforms train#random_transforms train#preprocessing train#dataset#data
    train#dataloader train#inferer train#handlers train#trainer#max_epochs validate#preprocessing
    validate#dataset#data validate#dataloader validate#inferer validate#postprocessing validate#handlers
    validate#key_metric validate#evaluator
"""
_INFERENCE_IDS = f"""
    {_COMMON_IDS} load_pretrain preprocessing dataset#data dataloader inferer postprocessing handlers evaluator
"""
# MONAI's property check crashes on anything but these plain references.
_TRAIN_REFERENCES = {
    "train#trainer#max_epochs": "@epochs",
    "train#trainer#train_handlers": "@train#handlers",
    "train#trainer#postprocessing": "@train#postprocessing",
    "train#trainer#key_train_metric": "@train#key_metric",
    "train#dataset#data": "@train_datalist",
    "train#dataset#transform": "@train#preprocessing",
    "validate#evaluator#val_handlers": "@validate#handlers",
    "validate#evaluator#inferer": "@validate#inferer",
    "validate#evaluator#postprocessing": "@validate#postprocessing",
    "validate#evaluator#key_val_metric": "@validate#key_metric",
    "validate#dataset#transform": "@validate#preprocessing",
    "validate#dataloader#dataset": "@validate#dataset",
}
_INFERENCE_REFERENCES = {
    "dataset#transform": "@preprocessing",
    "evaluator#val_handlers": "@handlers",
    "evaluator#postprocessing": "@postprocessing",
    "evaluator#key_val_metric": "@key_metric",
}


_TRAINED_ON = ("train", "train_datalist", "patches", "classifier_stage", "pseudo")
"""First parts of the ids that trainings read: nothing below them may name the masks."""


def training_faults(configs: Mapping[str, dict[str, Any]]) -> list[str]:
    """Check ``train.json`` and its overlays ``evaluate.json`` and ``multi_gpu_train.json``.

    Args:
        configs: content of the bundle's configurations by file name.

    Returns:
        One sentence per fault, beginning with the file.

    Example:
        >>> training_faults({"train.json": {"bundle_root": "."}})[0]
        'configs/train.json: the id `imports` is missing.'
    """
    train = configs.get("train.json")
    if train is None:
        return []
    faults = [*_workflow_faults(train, _TRAIN_IDS, _TRAIN_REFERENCES), *_handler_faults(train)]
    faults = [f"configs/train.json: {fault}" for fault in faults]
    for name in ("train.json", "evaluate.json", "multi_gpu_train.json"):
        overlay = configs.get(name, {})
        merged = _overlaid(train, overlay)
        faults += [f"configs/{name}: {fault}" for fault in (*_dangling(overlay, merged), *_mask_faults(overlay))]
    evaluation = configs.get("evaluate.json")
    if evaluation is not None and not _is_a("CheckpointLoader", _find(_overlaid(evaluation), "validate#handlers#0")):
        faults.append("configs/evaluate.json: the first of `validate#handlers` must be CheckpointLoader.")
    return faults


def inference_faults(configs: Mapping[str, dict[str, Any]]) -> list[str]:
    """Check ``inference.json``.

    Args:
        configs: content of the bundle's configurations by file name.

    Returns:
        One sentence per fault, beginning with the file.

    Example:
        >>> inference_faults({"inference.json": {"bundle_root": "."}})[0]
        'configs/inference.json: the id `imports` is missing.'
    """
    inference = configs.get("inference.json")
    if inference is None:
        return []
    faults = [*_workflow_faults(inference, _INFERENCE_IDS, _INFERENCE_REFERENCES), *_dangling(inference, inference)]
    loader = _find(inference, "handlers#0")
    if not _is_a("CheckpointLoader", loader) or loader.get("_disabled_") != "$not @load_pretrain":
        faults.append(
            'the first of `handlers` must be CheckpointLoader with "_disabled_": "$not @load_pretrain": loading '
            "elsewhere breaks monai.bundle.load."
        )
    return [f"configs/inference.json: {fault}" for fault in faults]


def _parts(name: str) -> list[str]:
    return name.replace("::", "#").split("#")


def _find(config: Any, name: str) -> Any:
    """Give the content under an id such as ``train#handlers#0``, None where there is none."""
    for part in _parts(name):
        if isinstance(config, list):
            config = dict(enumerate(config)).get(int(part) if part.isdigit() else -1)
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config


def _overlaid(*configs: dict[str, Any]) -> dict[str, Any]:
    """Merge configurations as MONAI does: later ids replace earlier ones, at any depth."""
    merged: dict[str, Any] = {}
    for config in configs:
        for name, value in copy.deepcopy(config).items():
            *parents, last = _parts(name)
            place: Any = merged
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
            place[int(last) if isinstance(place, list) else last] = value
    return merged


def _is_a(class_name: str, component: Any) -> bool:
    return isinstance(component, dict) and str(component.get("_target_")).rsplit(".", 1)[-1] == class_name


def _workflow_faults(config: dict[str, Any], ids: str, references: Mapping[str, str]) -> Iterator[str]:
    """Check for the ids and references that MONAI's property check and other programs look for."""
    for name in ids.split():
        if _find(config, name) is None:
            yield f"the id `{name}` is missing."
    if config.get("imports") not in (None, ["$import monai_wsss"]):
        yield '`imports` must be ["$import monai_wsss"] and nothing more.'
    if config.get("bundle_root") not in (None, "."):
        yield '`bundle_root` must be ".".'
    for name, reference in references.items():
        if _find(config, name) not in (None, reference):
            yield f'`{name}` must be the plain reference "{reference}".'


def _handler_faults(train: dict[str, Any]) -> Iterator[str]:
    handlers = _find(train, "train#handlers") or []
    last = zip(handlers[-2:], ("StatsHandler", "TensorBoardStatsHandler"), strict=False)
    if len(handlers) < 2 or not all(_is_a(name, handler) for handler, name in last):
        yield "`train#handlers` must end with StatsHandler, TensorBoardStatsHandler: multi-GPU training cuts them off."
    for handler in handlers:
        references = {"validator": "@validate#evaluator", "interval": "@val_interval"}
        if _is_a("ValidationHandler", handler) and not references.items() <= handler.items():
            yield "ValidationHandler must have the plain references @validate#evaluator and @val_interval."


def _mask_faults(config: dict[str, Any]) -> Iterator[str]:
    """Find what names the masks on the training side, which reads images and image-level labels only."""
    for name, value in iterate_config(config):
        # Pseudo-masks follow from image-level labels, so they may be named.
        word = re.search(r"(?<![A-Za-z])(?<!pseudo_)masks?(?![A-Za-z])", f"{name} {value}")
        if word and _parts(name)[0] in _TRAINED_ON:
            yield f"`{name}` names the masks ({value!r}): training reads images and image-level labels alone."


def _dangling(config: dict[str, Any], merged: dict[str, Any]) -> Iterator[str]:
    """Find references to ids that do not exist in the merged configuration, and copies of such ids."""
    for name, value in iterate_config(config):
        if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
            continue
        for target in re.findall(r"^%[\w#:]+$" if value[0] == "%" else r"@\w+(?:(?:#|::)\w+)*", value):
            if not _exists(merged, target[1:]):
                yield f"`{name}` refers to {target}, which does not exist."


def _exists(config: dict[str, Any], name: str) -> bool:
    """Tell whether an id exists; anything inside a copied or computed value counts as existing."""
    place: Any = config
    for part in _parts(name):
        if isinstance(place, str):
            return True
        choices = place if isinstance(place, dict) else {str(index): item for index, item in enumerate(place or [])}
        if part not in choices:
            return False
        place = choices[part]
    return True
