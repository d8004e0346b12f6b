# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The frozen list of CoSA: what the paper and its code say, item by item, against the resolved configurations.

Nothing is built: a value is looked up in ``train.json`` or ``inference.json`` with the overlays as MONAI merges them,
and the words of the method in its table of presets.  Change a number here only if the source says so.

Sources: a section, an equation or a table of Yang et al., ECCV 2024; ``released`` is the authors' code and the logs of
its weights, for what the paper leaves open; ``ours`` is a decision where neither says anything.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from monai.bundle import ConfigParser
from paper_lists import Item
from test_every_bundle import ROOT

from monai_wsss.data import voc
from monai_wsss.engines import WeightRamp, polynomial_after_warm_up
from monai_wsss.methods import CoSA
from monai_wsss.methods.cosa_settings import COSA_NETWORKS, COSA_WORDS, CosaSettings
from monai_wsss.metrics.definitions import METRIC_DEFINITIONS
from monai_wsss.networks import VisionTransformer
from monai_wsss.transforms import COLOR_OPERATIONS, RandColorOperationd, RandScalePadCropd, strong_and_weak_views

BUNDLE = ROOT / "bundles" / "dermoscopy_cosa_segmentation"
OVERLAYS = {
    "paper": ("paper.json",),
    "coco": ("paper.json", "paper_coco.json"),
    "released": ("released.json",),
}


class Run:
    """The configurations of a run with overlays, merged and not built."""

    def __init__(self, kind: str) -> None:
        self.parsers = {}
        for first in ("train", "inference"):
            parser = ConfigParser()
            parser.read_config([str(BUNDLE / "configs" / name) for name in (f"{first}.json", *OVERLAYS[kind])])
            self.parsers[first] = parser

    def __call__(self, name: str, of: str = "train") -> Any:
        """Look up an id; references are followed, expressions stay as they are written."""
        return self._followed(self.parsers[of][name], of)

    def _followed(self, value: Any, of: str) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            return self(value[1:], of)
        if isinstance(value, dict):
            return {name: self._followed(part, of) for name, part in value.items()}
        return [self._followed(part, of) for part in value] if isinstance(value, list) else value

    @property
    def words(self) -> CosaSettings:
        """The words of the method: those of its preset, and what the configuration sets otherwise."""
        method = self("method")
        assert method["_target_"] == "monai_wsss.methods.CoSA.from_preset"
        own = {name: value for name, value in method.items() if name not in ("_target_", "preset", "network")}
        return CosaSettings.of_preset(method["preset"], **own)

    def network(self, word: str) -> Any:
        """A word of the network, which inference has, too."""
        for of in ("train", "inference"):
            definition = self("network_def", of)
            assert definition["_target_"] == "monai_wsss.methods.CoSA.network_from_preset"
            assert definition.get(word) is None
        return COSA_NETWORKS[definition["preset"]][word].value


def word(name: str) -> Callable[[Run], Any]:
    return lambda run: getattr(run.words, name)


def called(name: str, key: str) -> Callable[[Run], Any]:
    return lambda run: run(name)[key]


def scale_range(run: Run) -> list[float]:
    """Give the range of the crops, which no configuration sets."""
    words = {name: value for name, value in run("augmentation#1").items() if name != "_target_"}
    return list(RandScalePadCropd(**words).scale_range)


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def searched(split: str) -> tuple[str, ...]:
    """Give the lists of VOC that are searched for a split, in their order."""
    # No public name tells them.
    return voc._LISTS[split]


def transforms(run: Run) -> list[str]:
    return [step["_target_"].rpartition(".")[2] for step in run("train#random_transforms")]


def views(run: Run) -> list[str]:
    """Classes of the steps that make the two views, and their normalization."""
    assert run("augmentation#2") == {"_target_": "monai_wsss.transforms.strong_and_weak_views"}
    return [type(step).__name__ for step in strong_and_weak_views().transforms]


def blurs(run: Run) -> list[tuple[float, tuple[float, ...]]]:
    return [(step.prob, step.sigma) for step in strong_and_weak_views().transforms[2:4]]


def inference(key: str) -> Callable[[Run], Any]:
    """A word of the inferer, which evaluation and inference have alike."""

    def found(run: Run) -> Any:
        value = run("inferer", "inference")[key]
        assert run("validate#inferer")[key] == value
        return value

    return found


LIST = [
    # Data and pipeline
    Item("training images of VOC", "train_aug", "Sec. 4.1", lambda run: searched("training")[0]),
    Item("validation images of VOC", ("val",), "Sec. 4.1", lambda run: searched("validation")),
    Item("crop", 448, "Sec. 4.1", called("augmentation#1", "crop_size")),
    Item(
        "order", ["RandFlipd", "RandScalePadCropd", "strong_and_weak_views"], "Sec. 4.1: crop, then colors", transforms
    ),
    Item("scale", [0.5, 2.0], "released", scale_range),
    Item("padding, before the normalization", 0.0, "released", called("augmentation#1", "fill")),
    Item("chance of a flip", 0.5, "released", called("augmentation#0", "prob")),
    Item("flip axis of (C, rows, columns)", 1, "released: left and right", called("augmentation#0", "spatial_axis")),
    Item(
        "views",
        ["CopyItemsd", "RandColorOperationd", "RandBlurd", "RandBlurd", "NormalizeIntensityd"],
        "released; Sec. 4.1 refers to the supplement",
        views,
    ),
    Item("operations of the strong view", 9, "released", lambda run: len(COLOR_OPERATIONS)),
    Item("their strengths, of 10", (1, 9), "released", lambda run: default_of(RandColorOperationd, "strengths")),
    Item("blur of both: chance, deviation in pixels", [(0.5, (0.1, 2.0))] * 2, "released", blurs),
    Item("loader", "monai.data.DistributedSampler", "released", called("train#sampler", "_target_")),
    Item("normalization of inference", "monai_wsss.transforms.imagenet_normalization", "released",
         lambda run: run("preprocessing#transforms#2", "inference")["transforms"][1]["_target_"]),
    # Network
    Item("encoder", "vit_base", "Sec. 4.1", lambda run: run.network("encoder")),
    Item("weights", "imagenet", "Sec. 4.1", lambda run: run("pretrained")),
    Item("patch", 16, "Sec. 4.1", lambda run: default_of(VisionTransformer, "patch_size")),
    Item("early map: block from the end", -3, "released", lambda run: run.network("early_block")),
    Item("pooling", "max", "Sec. 4.1", lambda run: run.network("pooling")),
    Item("what is pooled", "features", "released", lambda run: run.network("pooled")),
    Item("decoder", "large_fov", "Sec. 4.1", lambda run: run.network("decoder")),
    Item("its width", 512, "released", lambda run: run.network("decoder_width")),
    # Optimization
    Item("optimizer", "torch.optim.AdamW", "Sec. 4.1", called("optimizers#online", "_target_")),
    Item("learning rate", 6e-5, "Sec. 4.1", lambda run: run("learning_rate")),
    Item("groups", "$@method.parameter_groups(@learning_rate)", "released", called("optimizers#online", "params")),
    Item("weight decay", 0.01, "released", called("optimizers#online", "weight_decay")),
    Item("schedule", "monai_wsss.engines.polynomial_after_warm_up", "Sec. 4.1", called("lr_scheduler", "_target_")),
    Item("its power", 0.9, "released", called("lr_scheduler", "power")),
    Item("rise of the rate", 1500, "released", lambda run: default_of(polynomial_after_warm_up, "warm_up")),
    Item("share of the rate at first", 1e-6, "released", lambda run: default_of(polynomial_after_warm_up, "start")),
    Item("mixed precision", False, "released", called("train#trainer", "amp")),
    Item("momentum of the assignment network", 0.9994, "Sec. 4.1", word("momentum")),
    # Labels
    Item("scales of the labels", (1.0, 0.5, 1.5), "released", word("scales")),
    Item("scale of the class maps", "minmax", "released; Sec. 3.1", word("seed_scale")),
    Item("lambda_a", 0.8, "Sec. 4.1", word("perplexity_scale")),
    Item("lambda_b", 1.0, "Sec. 4.1", word("perplexity_power")),
    Item("epsilon", 1.0, "Sec. 4.1", word("epsilon")),
    Item("queue", 100, "Sec. 4.1", word("queue")),
    Item("tau of the segmentation's labels", 0.01, "Sec. 4.1", word("temperature")),
    # Losses
    Item("lambda_s2c", 0.05, "Sec. 4.1", word("s2c_weight")),
    Item("lambda_csc", 0.1, "Sec. 4.1", word("csc_weight")),
    Item("swapped assignments", True, "Sec. 3.2", word("sa")),
    Item("guided class maps", (True, "spl"), "Sec. 3.1", lambda run: (run.words.gc, run.words.guide)),
    Item("what they train", None, "Tab. 4a: nothing is detached", word("detach_seeds")),
    Item("both class maps teach", True, "Eq. 11", word("aux_c2s")),
    Item("RAW over", "batch", "Eq. 5", word("raw_norm")),
    # Inference
    Item("squeezed into", [448, 448], "released", inference("grid")),
    Item("scales", [0.5, 0.75, 1.0, 1.25, 1.5], "released", inference("scales")),
    Item("mirrored left-right", "mirror", "released", inference("views")),
    Item("logits over them", "sum", "released", inference("reduction")),
    Item("label filter", None, "ours: the paper filters by given labels, Sec. 4.1, footnote 3",
         lambda run: run("to_mask", "inference").get("gate")),
    Item("refinement", "none", "Sec. 4.3: no CRF", lambda run: run("refine", "inference")),
]  # fmt: skip

METHOD = [  # what the paper's method and its code have of their own
    Item("lambda_c2s, of each of both", 0.1, "Sec. 4.1", word("c2s_weight")),
    Item("RAW", True, "Eq. 4-5", word("raw")),
    Item("CSC", True, "Eq. 9-10", word("csc")),
    Item("vectors of CSC", "cosine", "Eq. 10: M itself; the similarity is ours", word("csc_vector")),
    Item("pairs of CSC", "image", "ours", word("csc_pairs")),
    Item("tau of CSC", 0.5, "ours: the paper gives none", word("csc_temperature")),
    Item("anchors of CSC", None, "Eq. 9: all", word("csc_max_anchors")),
    Item("dynamic threshold", True, "Eq. 6", word("dt")),
    Item("thresholds", "one", "Eq. 3", word("thresholds")),
    Item("scales of M†'", "all", "ours: the released code keeps the last, by mistake", word("aux_scales")),
    Item("L_c2s", "ce", "Eq. 5", word("c2s_loss")),
    Item("ReLU before L_s2c", False, "Eq. 8", word("s2c_relu")),
    Item("energy", False, "Eq. 11", word("energy")),
]
SIZES = {
    "paper": (32_000, 4, 6000, "released: VOC"),
    "coco": (60_000, 8, 10_000, "released: COCO"),
    "released": (32_000, 4, 6000, "released: VOC"),
}
"""Iterations, batch over all processes, warm-up of the terms, source."""
RELEASED = [
    Item("lambda_c2s, of each of both", 0.05, "released: the mean of both by 0.1", word("c2s_weight")),
    Item("RAW", False, "released", word("raw")),
    Item("CSC", False, "released", word("csc")),
    Item("dynamic threshold", False, "released", word("dt")),
    Item("thresholds", ("two", 0.2, 0.7), "released: VOC's log",
         lambda run: (run.words.thresholds, run.words.low, run.words.high)),
    Item("scales of M†'", "last", "released", word("aux_scales")),
    Item("L_c2s", "balanced", "released", word("c2s_loss")),
    Item("ReLU before L_s2c", True, "released", word("s2c_relu")),
    Item("energy", (True, 0.05), "released", lambda run: (run.words.energy, run.words.energy_weight)),
]  # fmt: skip


def items(kind: str) -> list[Item]:
    iterations, batch, warm_up, source = SIZES[kind]
    sizes = [
        Item("iterations", iterations, source, called("train#trainer", "max_iterations")),
        Item("batch", batch, source, called("train#dataloader", "batch_size")),
        Item("warm-up", WeightRamp("iteration", end=warm_up), source, word("warm_up")),
    ]
    return [*LIST, *(RELEASED if kind == "released" else METHOD), *sizes]


EVERY = [pytest.param(kind, item, id=f"{kind}: {item.name}") for kind in OVERLAYS for item in items(kind)]


@pytest.mark.parametrize(("kind", "item"), EVERY)
def test_the_configuration_holds_what_the_source_says(kind, item):
    assert item.found(Run(kind)) == item.value, item.source


def test_the_groups_of_the_optimizer_have_the_rates_of_the_released_code():
    """The encoder with its norms at the rate, classifiers and decoder at ten times; nothing is frozen but positions."""
    method = CoSA.tiny()
    groups = method.parameter_groups(6e-5)
    assert sorted(group["lr"] for group in groups) == pytest.approx([6e-5, 6e-4])
    count = sum(len(group["params"]) for group in groups)
    assert count == sum(parameter.requires_grad for parameter in method.online.parameters())


def test_evaluation_reports_the_metrics_of_the_paper():
    """Sec. 4.1: mIoU over the classes and the background, of pixels pooled over the images; Tab. 4b: C-mIoU."""
    assert {"miou_pooled", "context_miou_pooled"} <= METRIC_DEFINITIONS.keys()
    assert Run("paper")("validate#scores")["_target_"] == "monai_wsss.engines.SegmentationScores"


def test_the_readme_has_the_splits_of_the_paper():
    """Sec. 4.1: 10,582 images to train on, 1,449 to validate, 1,456 to submit; some 82 000 and 40 000 of COCO."""
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    for text in ("10,582", "1,449", "1,456", "82 000", "40 000", "prepare voc --root", "--test test"):
        assert text in readme
    # The released list of COCO leaves out images without any annotation.
    assert re.search(r"prepare coco .*--annotated-only", readme)


def test_every_word_has_a_source_that_the_document_repeats():
    """docs/differences_from_the_papers.md lists each word with its values and sources, and nothing else."""
    text = (ROOT / "docs" / "differences_from_the_papers.md").read_text(encoding="utf-8")
    section = text.partition("\n## CoSA\n")[2].partition("\n## ")[0]
    rows = {
        cells[0].strip(" `"): cells[1:]
        for cells in re.findall(r"^\| (`\w+`) \| (.*?) \| (.*?) \| (.*?) \|$", section, re.M)
    }
    words = {name: (table, name) for table in (COSA_WORDS, COSA_NETWORKS) for name in table["default"] | table["paper"]}
    assert rows.keys() == words.keys()
    for name, (table, _) in words.items():
        for cell, preset in zip(rows[name], ("paper", "released", "default"), strict=True):
            if (one := table[preset].get(name)) is None:
                assert cell == "–", name
            else:
                assert cell == f"{shown(one.value)} ({one.source})", name


def shown(value: Any) -> str:
    if isinstance(value, WeightRamp):
        return f"{value.end:g} iterations"
    return ("yes" if value else "no") if isinstance(value, bool) else "–" if value is None else f"{value}"
