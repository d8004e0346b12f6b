# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The frozen list of CMER: what the paper and its code say, item by item, against the resolved configurations.

Nothing is trained: a value is looked up in ``train.json`` or ``inference.json`` with ``paper.json`` or
``released.json`` as MONAI merges them, or in the method that the preset of that name builds in Python.  Change a number
here only if the source says so.

Sources: a section, an equation, a table or a footnote of Patel & Dolz, arXiv:2104.02488; ``released`` is the authors'
code, for what the paper leaves open; ``ours`` is a decision where neither says anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from paper_lists import Item
from test_every_bundle import ROOT

from monai_wsss.benchmark.cmer_paper_recipes import PAPER_SCALE, comparison_recipes
from monai_wsss.data.brats import splits_by_grade
from monai_wsss.data.brats_layouts import BratsCase
from monai_wsss.methods import CMER
from monai_wsss.methods.cmer_settings import CmerSettings
from monai_wsss.metrics import surface_distances

BUNDLE = ROOT / "bundles" / "brain_mri_cmer_segmentation"


@cache
def method(preset: str) -> CMER:
    """Build the preset as Python has it, for the paper's four modalities, on a network of its width."""
    return CMER.from_preset(preset, modalities=("T1", "T1c", "T2", "FLAIR"))


class Run:
    """The configurations of a run with an overlay, merged and not built, beside the preset of its name in Python."""

    def __init__(self, preset: str) -> None:
        self.method = method(preset)
        self.parsers = {}
        for first in ("train", "inference"):
            parser = ConfigParser()
            parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in (first, preset)])
            self.parsers[first] = parser
        # Nothing of the method or of the network is set beside its preset.
        assert set(self("method")) == {"_target_", "preset", "network"}
        assert set(self("network_def")) == {"_target_", "preset", "modalities", "num_classes", "present"}
        assert self("network_def") == self("network_def", "inference")
        assert self("preset") == self("preset", "inference") == preset

    def __call__(self, name: str, of: str = "train") -> Any:
        """Look up an id; references are followed, expressions stay as they are written."""
        return self._followed(self.parsers[of][name], of)

    def _followed(self, value: Any, of: str) -> Any:
        if isinstance(value, str) and value.startswith("@") and value != "@network":
            return self(value[1:], of)
        if isinstance(value, dict):
            return {name: self._followed(part, of) for name, part in value.items()}
        return [self._followed(part, of) for part in value] if isinstance(value, list) else value

    def both(self, name: str) -> Any:
        """Look up what training and inference have alike."""
        assert self(name) == self(name, "inference")
        return self(name)


def ramp(term: str) -> Callable[[Run], tuple[str, float]]:
    def found(run: Run) -> tuple[str, float]:
        of_term = getattr(run.method, term).ramp
        return of_term.shape, of_term.end

    return found


def classifier(run: Run) -> tuple[int, int]:
    """Maps of a network, and of them those whose gradient the class map has."""
    network = run.method.network
    image = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = network.eval()(image)
    return output.shape[1] // network.groups, network.of_classes(output).shape[1] // network.groups


def normalizations(run: Run) -> list[Any]:
    """Whether intensities are clipped before the z-score, wherever they are read."""
    places = (("train", "train#deterministic_transforms#1"), ("train", "validate#preprocessing#transforms#1"))
    return [run(f"{name}#clip", of) for of, name in (*places, ("inference", "preprocessing#transforms#2"))]


def decision(run: Run) -> tuple[Any, ...]:
    """The word of the rule is the network's own, which is what ``to_mask`` takes if no word is given."""
    for of in ("train", "inference"):
        assert run("to_mask#rule", of) == "$'max' if @cam else None"
    rule = run.method.network.mask_rule()
    return rule.rule, rule.threshold if rule.threshold is not None else 0.5


def split_sizes(run: Run) -> list[int]:
    """Of the 335 studies of BraTS 2019, 259 of high and 76 of low grade."""
    cases = [BratsCase(f"{n}", Path(f"/{'HGG' if n < 259 else 'LGG'}/{n}"), {}, None) for n in range(335)]
    drawn = list(splits_by_grade(cases, seed=0).values())
    return [drawn.count(split) for split in ("training", "validation", "test")]


def is_medpys_assd(run: Run) -> bool:
    """Nested squares, of sides 15 and 5: the mean of the two directed means, not that of all distances together."""
    outer, inner = torch.zeros(2, 21, 21)
    outer[3:18, 3:18], inner[8:13, 8:13] = 1, 1
    outer[4:17, 4:17], edge = 0, inner.clone()
    edge[9:12, 9:12] = 0
    between = torch.cdist(outer.nonzero().float(), edge.nonzero().float())
    forth, back = between.amin(1), between.amin(0)
    outer[4:17, 4:17] = 1
    found = surface_distances(outer, inner)
    assert found is not None
    pooled = torch.cat((forth, back)).mean().item()
    return found.assd_directed == pytest.approx((forth.mean() + back.mean()).item() / 2) != pytest.approx(pooled)


def of_scale(name: str) -> Callable[[Run], Any]:
    return lambda run: getattr(PAPER_SCALE, name)


COMMON = [
    # Network
    Item("networks", 4, "Sec. III-A, III-E: one per modality", lambda run: len(run.method.network.members)),
    Item("maps of a network, and of them class maps", (2, 1), "Sec. III-A, III-C, footnote 2", classifier),
    Item("kind of the network", "CAMUNet", "Sec. IV-C: U-Net",
         lambda run: type(run.method.network.members[0]).__name__),
    Item("its width", 64, "released", lambda run: run.method.network.members[0].stem[1].conv.out_channels),
    Item("where the map is made", (1, 1), "footnote 1: single step, Sec. III-C",
         lambda run: run.method.network.members[0].head.kernel_size),
    Item("pooling", "average", "Sec. III-C", lambda run: run.method.network.pooling),
    Item("z-score of each slice, in the network", True, "released", lambda run: run.method.network.standardize),
    Item("clip before it", [False] * 3, "released", normalizations),
    Item("grid", [240, 240], "released; BraTS (Sec. IV-A) has it", lambda run: run.both("grid")),
    # Losses
    Item("both views are classified", True, "Eq. 5", lambda run: run.method.second_view),
    Item("lambda_KD", 0.5, "Sec. IV-C", lambda run: run.method.distillation.weight),
    Item("it rises", "none", "Eq. 8", lambda run: run.method.distillation.ramp.shape),
    Item("weights of L_ER and L_CMER", (1.0, 1.0), "Eq. 8",
         lambda run: (run.method.equivariance.weight, run.method.cross_modal.weight)),
    Item("who teaches", "all", "Eq. 8: the mean over l != k", lambda run: run.method.teachers),
    Item("borders of L_ER", False, "Eq. 2: no pixel is left out", lambda run: run.method.ignore_border),
    # Transforms
    Item("kinds", ("flip", "rotate", "scale", "translate"), "Sec. IV-C", lambda run: run.method.transform.kinds),
    Item("drawn", "one_of", "released", lambda run: run.method.transform.mode),
    Item("scaling", (0.8, 1.2), "Sec. IV-C", lambda run: run.method.transform.scale_range),
    Item("shift, of the side", 0.3, "Sec. IV-C", lambda run: run.method.transform.translate_range),
    Item("other augmentation", [], "Sec. IV-C: pi alone", lambda run: run("augmentation")),
    # Optimization
    Item("optimizer", "torch.optim.AdamW", "Sec. IV-C", lambda run: run("optimizers#network#_target_")),
    Item("learning rate", 5e-5, "Sec. IV-C", lambda run: run("optimizers#network#lr")),
    Item("schedule, a constant factor", ("torch.optim.lr_scheduler.ConstantLR", 1.0), "Sec. IV-C: none",
         lambda run: (run("lr_scheduler#_target_"), run("lr_scheduler#factor"))),
    Item("batch", 16, "Sec. IV-C", lambda run: run("batch_size")),
    Item("epochs", 30, "released", lambda run: run("epochs")),
    Item("mixed precision", False, "released", lambda run: run("amp")),
    # Inference
    Item("views", "none", "released", lambda run: run.both("views")),
    Item("fused", False, "Sec. V-A.1: of all modalities", lambda run: run.both("to_mask#reliable_only")),
    Item("how", "max", "Sec. V-A.1", lambda run: run.method.network.mask_rule().fusion),
    Item("gate", "predicted", "released", lambda run: run.method.network.mask_rule().gate),
    Item("studies, slice by slice", True, "Sec. IV-C: 2D networks", lambda run: run.both("to_mask#by_slice")),
    # Data and metrics
    Item("training, validation, test", [271, 32, 32], "Sec. IV-A, stratified by grade", split_sizes),
    Item("ASSD", True, "released: medpy's", is_medpys_assd),
]  # fmt: skip

PAPER = [
    *COMMON,
    Item("normalization of maps", "max", "Sec. III-A: max-normalized", lambda run: run.method.norm),
    Item("rule and threshold of masks", ("max", 0.5), "Sec. III-A, IV-C", decision),
    Item("L_ER", ("sum", "none"), "Eq. 2: a squared norm, of every image",
         lambda run: (run.method.equivariance.loss.reduction, run.method.equivariance.loss.mask)),
    Item("L_CMER", ("sum", "none"), "Eq. 4",
         lambda run: (run.method.cross_modal.loss.reduction, run.method.cross_modal.loss.mask)),
    Item("its unit norm before pi", True, "Eq. 4", lambda run: run.method.cross_modal.loss.l2_before_warp),
    Item("temperature of L_KD", 1.0, "Eq. 3", lambda run: run.method.distillation.loss.temperature),
    Item("lambda_E of L_ER: shape, T", ("exponential", 15), "Sec. IV-C", ramp("equivariance")),
    Item("lambda_E of L_CMER: shape, T", ("exponential", 15), "Sec. IV-C", ramp("cross_modal")),
    Item("quarter turns", (0, 1, 2, 3), "Sec. IV-C", lambda run: run.method.transform.turns),
    Item("weight decay", 0.1, "Sec. IV-C", lambda run: run("optimizers#network#weight_decay")),
    # The tables of the benchmark at the paper's size
    Item("grid of the tables", (240, 240), "as above", of_scale("grid")),
    Item("width of their networks", 64, "as above", of_scale("width")),
    Item("epochs of their trainings", 30, "as above", of_scale("epochs")),
    Item("T of their ramp", 15, "Sec. IV-C", of_scale("ramp_end")),
    Item("their batch", 16, "Sec. IV-C", of_scale("batch_size")),
    Item("their optimizer", {"name": "AdamWConstant", "learning_rate": 5e-5, "weight_decay": 0.1}, "Sec. IV-C",
         lambda run: PAPER_SCALE.optimizer.settings),
    Item("rows of Tables I, II and IV", 4, "Tab. I: baseline, SEAM (scale), SEAM (all), proposed",
         lambda run: len(comparison_recipes(PAPER_SCALE, papers=True))),
]  # fmt: skip

RELEASED = [
    *COMMON,
    Item("normalization of maps", "minmax", "released", lambda run: run.method.norm),
    Item("rule and threshold of masks", ("minmax", 0.5), "released", decision),
    Item("L_ER", ("mean", "label"), "released",
         lambda run: (run.method.equivariance.loss.reduction, run.method.equivariance.loss.mask)),
    Item("L_CMER", ("mean", "label_and_teacher"), "released",
         lambda run: (run.method.cross_modal.loss.reduction, run.method.cross_modal.loss.mask)),
    Item("its unit norm before pi", False, "released", lambda run: run.method.cross_modal.loss.l2_before_warp),
    Item("temperature of L_KD", 10.0, "released", lambda run: run.method.distillation.loss.temperature),
    Item("lambda_E", "none", "released", lambda run: run.method.equivariance.ramp.shape),
    Item("quarter turns", (1, 2, 3), "released", lambda run: run.method.transform.turns),
    Item("weight decay", 0.5, "released", lambda run: run("optimizers#network#weight_decay")),
]  # fmt: skip

LISTS = {"paper": PAPER, "released": RELEASED}


@pytest.fixture(scope="module", params=list(LISTS))
def run(request: pytest.FixtureRequest) -> tuple[str, Run]:
    return request.param, Run(request.param)


def test_the_list_holds(run):
    kind, found = run
    wrong = []
    for item in LISTS[kind]:
        value = item.found(found)
        if value != item.value:
            wrong.append(f"{item.name}: {value!r}, not {item.value!r} ({item.source})")
    assert not wrong, "\n".join(wrong)


def test_every_item_stands_once_and_has_a_source():
    for items in LISTS.values():
        names = [item.name for item in items]
        assert len(set(names)) == len(names)
        assert all(item.source for item in items)


def test_nothing_of_the_default_changed_with_the_paper():
    """The shipped weights are of the default: one logit per class, studies as a whole, clipped, on 64 x 64."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    assert (parser["clip"], parser["by_slice"], parser["grid"]) == (True, False, [64, 64])
    network = CMER.network_from_preset(modalities=("T1", "FLAIR"))
    assert (network.background_map, network.mask_rule().rule) == (False, "negative_reference")
    assert CmerSettings().norm == "minmax"
