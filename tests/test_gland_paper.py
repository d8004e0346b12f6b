# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The frozen list of the gland paper: what it says, item by item, against the resolved configurations and presets.

Networks are built narrow; values are looked up in ``train.json`` with ``paper.json`` as MONAI merges them, and in the
Python preset.  Change a number here only if the source says so.

Sources: a section, an equation or a table of Feng et al., AAAI 2025; ``parents`` is the code that the paper builds on;
``ours`` is a decision where neither says anything.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from paper_lists import Item
from test_every_bundle import ROOT

from monai_wsss._checks import DataError
from monai_wsss.benchmark import published_tables
from monai_wsss.benchmark.gland_recipes import CLASSIFIERS, PYRAMIDS, STRUCTURES, TEACHER
from monai_wsss.data import ebhi, glas, prog
from monai_wsss.data.gland_folder import GlandImage
from monai_wsss.engines import check_overrides
from monai_wsss.methods import GlandClassification
from monai_wsss.metrics.definitions import METRIC_DEFINITIONS
from monai_wsss.networks import ConsistencyCorrelationAttention, load_encoder_weights
from monai_wsss.transforms import gland_augmentation

BUNDLE = ROOT / "bundles" / "histology_gland_segmentation"
FILES = {"paper": ("train", "paper"), "bound": ("train", "paper", "full_supervision")}


@cache
def merged(kind: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in FILES[kind]])
    return parser


def told(name: str, kind: str = "paper") -> Any:
    """Look up an id; references are followed, expressions stay as they are written."""
    return followed(merged(kind)[name], kind)


def followed(value: Any, kind: str) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        return told(value[1:], kind)
    if isinstance(value, dict):
        return {name: followed(part, kind) for name, part in value.items()}
    return [followed(part, kind) for part in value] if isinstance(value, list) else value


@cache
def classifier(**words: Any) -> Any:
    """The classifier of the overlay, narrow, with words of an ablation."""
    definition = told("classifier_def")
    assert definition.pop("_target_") == "monai_wsss.methods.GlandClassification.network_from_preset"
    assert definition.get("encoder") is None
    return GlandClassification.network_from_preset(**{**definition, "width": 2, "attention": "cca"} | words)


def attention_stages() -> list[int]:
    backbone = classifier().backbone
    return [stage for stage in (4, 5, 6, 7) if hasattr(getattr(backbone, f"attention{stage}"), "pam")]


def baseline() -> tuple[Any, str]:
    network = classifier(attention="none", pyramid=None)
    return network.pyramid, network.pooling


def augmentation() -> list[str]:
    assert told("train#dataset#random_transform") == told("classifier_stage#dataset#random_transform")
    assert told("augmentation") == {"_target_": "monai_wsss.transforms.gland_augmentation"}
    return [type(step).__name__ for step in gland_augmentation().transforms]


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def split_of_glas() -> list[int]:
    """What the official split draws of 85 training and 80 test images."""
    names = [f"train_{n}" for n in range(85)] + [f"testA_{n}" for n in range(60)] + [f"testB_{n}" for n in range(20)]
    images = [GlandImage(name, name, None, Path(name), Path(name)) for name in names]
    drawn = [case.split for case in glas._split_officially(images, seed=0)]  # no public name draws without files
    return [drawn.count(split) for split in glas.PAPER_NUMBERS]


def images_of_ebhi() -> list[int]:
    # No public name tells them.
    return list(ebhi._PAPER_NUMBERS.values())


LIST = [
    # Classifier
    Item("backbone", "ResNet38", "Settings", lambda: type(classifier().backbone).__name__),
    Item("its weights", "imagenet", "Settings", lambda: told("pretrained")),
    Item("CCA behind stages", [4, 5, 6], "CCA, Fig. 2", attention_stages),
    Item("reduction of position attention", 4, "CCA: c' = c / 4",
         lambda: default_of(ConsistencyCorrelationAttention, "pam_reduction")),
    Item("gamma at the start", 0.0, "ours: Eq. 1 has none",
         lambda: float(classifier().backbone.attention4.cc1.gamma.detach())),
    Item("levels of MPFP", [2, 4, 8, 16], "MPFP", lambda: classifier().pyramid.levels),
    Item("fusion", "sign", "Eq. 5-8", lambda: classifier().pyramid.fusion),
    Item("logit", "weighted", "Eq. 9", lambda: classifier().pyramid.logit),
    Item("tau", "grid", "ours: Tab. 4 fits this reading alone", lambda: classifier().pyramid.pool_mode),
    Item("signed map", False, "Eq. 6-8", lambda: classifier().pyramid.relu_class_map),
    Item("baseline: no pyramid, GAP", (None, "average"), "Eq. 3, Tab. 2 row 1", baseline),
    Item("class map", "class_map", "released", lambda: classifier().cam_source),
    Item("rate", 0.01, "Settings", lambda: told("classifier_learning_rate")),
    Item("epochs", 20, "Settings", lambda: told("classifier_stage#trainer#max_epochs")),
    Item("schedule", "monai_wsss.engines.polynomial", "Settings",
         lambda: told("classifier_stage#lr_scheduler#_target_")),
    Item("optimizer", "torch.optim.SGD", "parents", lambda: told("classifier_stage#optimizers#network#_target_")),
    Item("batch", 20, "Settings", lambda: told("classifier_stage#dataloader#batch_size")),
    # Pseudo-masks
    Item("scores", "cam", "Eq. 4", lambda: told("pseudo#writer#scores")),
    Item("label filter", "patch", "ours: not described", lambda: told("pseudo#writer#label_filter")),
    # Segmenter
    Item("segmenter", "monai_wsss.networks.PyramidSceneParsing", "Settings", lambda: told("network_def#_target_")),
    Item("its backbone", ("monai_wsss.networks.ResNeSt", 200), "Settings",
         lambda: (told("network_def#backbone#_target_"), told("network_def#backbone#depth"))),
    Item("loss", "paper", "Eq. 10-11", lambda: told("method#plf")),
    Item("optimizer of stage 2", "torch.optim.SGD", "Settings", lambda: told("optimizers#network#_target_")),
    Item("rate of stage 2", 0.005, "Settings", lambda: told("learning_rate")),
    Item("momentum", 0.9, "Settings", lambda: told("optimizers#network#momentum")),
    Item("weight decay", 0.0005, "Settings", lambda: told("optimizers#network#weight_decay")),
    Item("batch of stage 2", 20, "Settings", lambda: told("train#dataloader#batch_size")),
    Item("epochs of stage 2", 30, "Settings", lambda: told("train#trainer#max_epochs")),
    Item("augmentation", ["RandFlipd", "RandFlipd", "RandPhotometricDistortiond", "RandBlurd", "NormalizeIntensityd"],
         "Settings", augmentation),
    Item("input", [224, 224], "Datasets", lambda: told("input_size")),
    Item("mixed precision", False, "ours", lambda: told("train#trainer#amp")),
    # Bound
    Item("bound: method", "monai_wsss.methods.FullSupervision", "Tab. 1", lambda: told("method#_target_", "bound")),
    Item("bound: segmenter", "monai_wsss.networks.PyramidSceneParsing", "Tab. 1",
         lambda: told("network_def#_target_", "bound")),
    Item("bound: what it learns", (["image", "mask"], "mask"), "Tab. 1",
         lambda: (told("shown", "bound")[0]["keys"], told("augmentation", "bound")["label"])),
    # Data
    Item("GlaS: patch, stride", (112, 56), "Datasets",
         lambda: (default_of(glas.prepare_glas, "patch"), default_of(glas.prepare_glas, "stride"))),
    Item("GlaS: images", [70, 15, 80], "Datasets", split_of_glas),
    Item("GlaS: what is warned of", [70, 15, 80], "Datasets", lambda: list(glas.PAPER_NUMBERS.values())),
    Item("ProG: patch", 224, "Datasets", lambda: default_of(prog.prepare_prog, "patch")),
    Item("ProG: patches", [36_000, 8_244, 9_756], "Datasets", lambda: list(prog.PAPER_NUMBERS.values())),
    Item("EBHI: ratio", (0.7, 0.1, 0.2), "Datasets", lambda: default_of(ebhi.prepare_ebhi, "fractions")),
    Item("EBHI: images with glands", [1169], "Datasets", images_of_ebhi),
    Item("domain adaptation: shares of", "images", "Fig. 4", lambda: told("training_share_of")),
]  # fmt: skip


@pytest.mark.parametrize("item", LIST, ids=lambda item: item.name)
def test_the_configuration_holds_what_the_source_says(item):
    assert item.found() == item.value, item.source


def test_the_preset_in_python_is_that_of_the_overlay():
    assert told("preset") == "paper"
    network = GlandClassification.from_preset("paper", width=2).network
    assert network.pyramid.levels == [2, 4, 8, 16]
    assert (
        GlandClassification.from_preset("paper", width=2, attention="none", pyramid=None).network.pooling == "average"
    )


@pytest.mark.parametrize("word", ["gamma_init", "pool_mode", "share_sign_weights", "relu_class_map"])
def test_the_readings_of_the_parts_are_reachable_from_the_bundle(word):
    files = [BUNDLE / "configs" / f"{name}.json" for name in FILES["paper"]]
    check_overrides([str(file) for file in files], [f"classifier_def#{word}"])


def test_the_readings_reach_the_parts():
    words = {"gamma_init": 1.0, "pool_mode": "kernel", "share_sign_weights": True, "relu_class_map": True}
    network = classifier(**words)
    assert float(network.backbone.attention5.pam.gamma.detach()) == 1.0
    assert (network.pyramid.pool_mode, network.pyramid.relu_class_map) == ("kernel", True)
    assert sum(name.startswith("spconv") for name, _ in network.pyramid.named_children()) == 1


def test_missing_weights_are_refused_or_told(caplog):
    """Settings: ImageNet weights.  Without them the frozen stages and norms of the classifier never learn."""
    network = GlandClassification.network_from_preset("paper", width=2)
    with pytest.raises(DataError, match="No package has ImageNet weights of ResNet38"):
        load_encoder_weights(network, told("pretrained"))
    assert load_encoder_weights(network, "none")["pretrained"] == "none"
    assert "the first stages of the ResNet38 stay at their random beginnings" in caplog.text


def test_rows_called_by_an_equation_have_all_of_it():
    """The rows of Eq. 9 have the levels of Eq. 9; Tables 3 and 4 have the paper's rows, the whole system besides."""
    of_equation = [settings["pyramid"] for name, settings in CLASSIFIERS.items() if "Eq. 9" in name]
    assert of_equation == [(2, 4, 8, 16)] * 2
    assert CLASSIFIERS[TEACHER]["attention_stages"] == (4, 5, 6)
    assert len(STRUCTURES) + 1 == len(published_tables("gland")["3"].rows) - 1  # the system stands there twice
    assert len(PYRAMIDS) + 1 == len(published_tables("gland")["4"].rows)


def test_the_f1_of_the_paper_follows_from_its_miou():
    """F1 = 2 m / (1 + m); ReCAM and, on EBHI, SEAM do not fit, and other rows of EBHI by a tenth."""
    assert "f1_from_miou" in METRIC_DEFINITIONS
    for row in published_tables("gland")["1"].rows:
        for miou, f1 in zip(row.values[::2], row.values[1::2], strict=True):
            if row.name not in ("SEAM (2020)", "ReCAM (2022)"):
                assert 200 * miou / (100 + miou) == pytest.approx(f1, abs=0.15), row.name


def test_the_readme_has_the_protocols_of_the_paper():
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"prepare glas .*--split official", readme)
    assert re.search(r"prepare prog .*--measure patches", readme)
    assert re.search(r"prepare ebhi .*--split image --glands-only", readme)
    for number in ("70, 15 and 80", "36,000, 8,244 and 9,756", "1,169", "7:1:2"):
        assert number in readme
