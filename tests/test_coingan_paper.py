# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The frozen list of CoinGAN: what the paper says, item by item, against the resolved configurations.

No network is built at the paper's size: a value is looked up in ``train.json`` or ``inference.json`` with the overlays
as MONAI merges them, and the words of the method in its tables of presets.  Change a number here only if the source
says so.

Sources: a section, an equation, a table or an appendix of the paper; ``CycleGAN`` is the backbone that it names;
``ours`` is a decision where neither says anything.  What the choices mean: docs/differences_from_the_papers.md.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from paper_lists import Item
from test_every_bundle import ROOT

from monai_wsss.data import LabelNoise, brats, isic_background, mela, monuseg, qata
from monai_wsss.engines import SegmentationScores, polynomial
from monai_wsss.methods import CoinGAN
from monai_wsss.methods.coingan_settings import (
    COINGAN_NETWORKS,
    COINGAN_OPTIMIZERS,
    COINGAN_WORDS,
    CoinganSettings,
    coingan_optimizers,
)
from monai_wsss.metrics import PAPER_GRID, CaseTable
from monai_wsss.networks import ContrastiveConvolution, CycleGenerator

BUNDLES = {
    "brain": ROOT / "bundles" / "brain_mri_coingan_segmentation",
    "chest": ROOT / "bundles" / "chest_xray_coingan_segmentation",
}
OVERLAYS = {"paper": ("paper.json",), "paper_cyclegan": ("paper.json", "paper_cyclegan.json")}


class Run:
    """The configurations of a bundle with overlays, merged and not built."""

    def __init__(self, bundle: str, kind: str) -> None:
        self.bundle = bundle
        self.parsers = {}
        for first in ("train", "inference"):
            parser = ConfigParser()
            names = (f"{first}.json", *OVERLAYS[kind])
            parser.read_config([str(BUNDLES[bundle] / "configs" / name) for name in names])
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
    def words(self) -> CoinganSettings:
        """The words of the losses: those of the preset, and what the configuration sets otherwise."""
        method = self("method")
        assert method["_target_"] == "monai_wsss.methods.CoinGAN.from_preset"
        own = {name: value for name, value in method.items() if name not in ("_target_", "preset", "network")}
        return CoinganSettings.of_preset(method["preset"], **own)

    def network(self, word: str) -> Any:
        """A word of the generator, which inference has, too."""
        for of in ("train", "inference"):
            definition = self("network_def", of)
            assert definition["_target_"] == "monai_wsss.methods.CoinGAN.network_from_preset"
            assert definition.get(word) is None
        return COINGAN_NETWORKS[definition["preset"]][word].value

    def optimizer(self, word: str) -> Any:
        """A word of the optimizers: that of their preset, and the same where the configuration sets it."""
        told = self("optimizers")
        assert told["_target_"] == "monai_wsss.methods.coingan_settings.coingan_optimizers"
        value = COINGAN_OPTIMIZERS[told["preset"]][word].value
        assert told.get(word, value) == value
        return value


@cache
def merged(bundle: str, kind: str) -> Run:
    return Run(bundle, kind)


def word(name: str) -> Callable[[Run], Any]:
    return lambda run: getattr(run.words, name)


def network(name: str) -> Callable[[Run], Any]:
    return lambda run: run.network(name)


def optimizer(name: str) -> Callable[[Run], Any]:
    return lambda run: run.optimizer(name)


def called(name: str, key: str) -> Callable[[Run], Any]:
    return lambda run: run(name)[key]


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def shares(adapter: Any) -> Callable[[Run], Any]:
    """Shares of training, validation and test with ``--split paper``."""
    # No public name tells them.
    return lambda run: adapter._PAPER


def numbers(adapter: Any) -> Callable[[Run], Any]:
    """Images, scans or tiles that ``--split paper`` expects, and warns of others."""
    # No public name tells them.
    return lambda run: list(adapter._PAPER_NUMBERS.values())


def sizes(run: Run) -> Any:
    """The size of images, which training, validation and inference have alike."""
    size = run("train#deterministic_transforms#2")["grid"]
    assert run("validate#inferer")["grid"] == run("inferer", "inference")["grid"] == size
    return size


def intensities(run: Run) -> Any:
    """The range of intensities, likewise; black and white of files of 8 or of 16 bits become its ends."""
    step = run("train#deterministic_transforms#1")
    assert run("validate#preprocessing#transforms#1") == run("preprocessing#transforms#2", "inference") == step
    assert step["_target_"] == "monai.transforms.ScaleIntensityRanged"
    assert (step["a_min"], step["a_max"], step["clip"]) == (0, {"brain": 65535, "chest": 255}[run.bundle], True)
    return step["b_min"], step["b_max"]


def both(key: str) -> Callable[[Run], Any]:
    """An entry of the schedule of both players."""

    def found(run: Run) -> Any:
        first, second = (run(f"lr_scheduler#{player}")[key] for player in CoinGAN.players)
        assert first == second
        return first

    return found


def steps_of_the_schedule(run: Run) -> Any:
    """How the schedules of both players count; two handlers step them at every iteration."""
    handlers = [part for part in run("train#handlers") if part["_target_"] == "monai.handlers.LrScheduleHandler"]
    assert [part["epoch_level"] for part in handlers] == [False, False]
    assert [part["lr_scheduler"] for part in handlers] == [run(f"lr_scheduler#{player}") for player in CoinGAN.players]
    assert not any("step" in run(f"lr_scheduler#{player}") for player in CoinGAN.players)
    return default_of(polynomial, "step")


def precisions(run: Run) -> Any:
    assert run("amp", "inference") is run("validate#evaluator")["amp"] is run("train#trainer")["amp"]
    return run("amp")


def decision(key: str) -> Callable[[Run], Any]:
    """A word of the decision, which evaluation and inference have alike."""

    def found(run: Run) -> Any:
        assert run("to_mask") == run("to_mask", "inference")
        return run("to_mask")[key]

    return found


def heat(name: str) -> Callable[[Run], Any]:
    """A word of the difference, which no configuration and no preset sets."""

    def found(run: Run) -> Any:
        assert name not in run("network_def")
        assert name not in COINGAN_NETWORKS[run("preset")]
        return getattr(CycleGenerator.tiny(), name)

    return found


@cache
def measured() -> tuple[CaseTable, dict[str, Any]]:
    """Two positive images of different sizes and a healthy one that is all alarm, in the paper's protocol."""
    table = CaseTable(["lesion"], paper_grid=PAPER_GRID)
    large, small = np.zeros((2, 1, 448, 448), np.uint8), np.zeros((2, 1, 224, 224), np.uint8)
    large[:, 0, :112] = 1
    large[0, 0, 112:168] = 1
    small[1, 0, :56] = 1
    table.add(id="a", subject="a", label=np.ones(1), prediction=large[0], reference=large[1])
    table.add(id="b", subject="b", label=np.ones(1), prediction=small[0], reference=small[1])
    table.add(id="c", subject="c", label=np.zeros(1), prediction=np.ones((1, 224, 224), np.uint8))
    return table, table.summary(bootstrap=2)


def metric(name: str) -> Callable[[Run], Any]:
    return lambda run: round(measured()[1][name]["mean"], 6)


def counted(run: Run) -> Any:
    """Which cases of the table the protocol counts."""
    return [row["id"] for row in measured()[0].rows if "paper_tp" in row]


def distance(run: Run) -> Any:
    """ASD of two images of 0.5 mm per pixel in which a pixel of the grid is missed by 10 and by 20."""
    table = CaseTable(["lesion"], paper_grid=PAPER_GRID)
    for scale, missed in ((1, 10), (2, 20)):
        masks = np.zeros((2, 1, 224 * scale, 224 * scale), np.uint8)
        for mask, column in zip(masks, (5, 5 + missed), strict=True):
            mask[0, :scale, column * scale : (column + 1) * scale] = 1
        table.add(
            id=str(scale), subject=str(scale), label=np.ones(1), prediction=masks[0], reference=masks[1],
            spacing=(0.5, 0.5),
        )  # fmt: skip
    return table.summary(bootstrap=2)["paper_assd_px"]["mean"]


# On the grid, of two images of 224 rows: 56 + 56 rows are lesion, 56 of them found and 28 more; the rest is background.
TP, FP, FN, TN = 56, 28, 56, 2 * 224 - 140

LIST = [
    # Data
    Item("split of QaTa-COV19", (0.8, 0.0, 0.2), "App. E", shares(qata)),
    Item("split of MoNuSeg", (0.8, 0.0, 0.2), "App. E", shares(monuseg)),
    Item("split of BraTS, scored on validation", (0.8, 0.1, 0.1), "App. E", shares(brats)),
    Item("QaTa-COV19: with pneumonia, controls", [9258, 12_544], "App. E", numbers(qata)),
    Item("ISIC 2018: training, test", [2594, 100], "App. E", numbers(isic_background)),
    Item("MoNuSeg: tiles", [30], "App. E: those with 21,623 nuclei", numbers(monuseg)),
    Item("MELA: training, validation, test", [770, 110, 220], "App. E", numbers(mela)),
    Item("crops of MoNuSeg", 224, "ours: not said", lambda run: default_of(monuseg.prepare_monuseg, "crop")),
    Item("wrong labels", 0.0, "Table 9 alone has some", called("noise", "share")),
    Item("image size", [224, 224], "App. E: QaTa-COV19", sizes),
    Item("range of intensities", (-1.0, 1.0), "CycleGAN", intensities),
    Item("images per batch, half of them healthy", 8, "ours: N is not given", called("train#dataloader", "batch_size")),
    Item("sampler", "monai_wsss.data.UnpairedSampler", "ours", called("train#sampler", "_target_")),
    Item("pairs of an epoch: one per image with a finding", None, "ours", called("train#sampler", "num_pairs")),
    Item("augmentation: flips left-right, but not of chests", True, "ours: none is named",
         lambda run: [part["prob"] for part in run("train#random_transforms")] == [0.5 * (run.bundle == "brain")]),
    # Generator
    Item("weights at the start", "none", "Sec. 4: without pre-trained weights", lambda run: run("pretrained")),
    Item("convolutions of stride 2, down and up", 3, "Sec. 4", network("num_down")),
    Item("residual blocks", 9, "Sec. 4", network("num_res_blocks")),
    Item("width", 64, "CycleGAN", network("width")),
    Item("output", "image", "CycleGAN: tanh", network("output")),
    Item("stride of EM", 1, "ours: Eq. 1 says one layer", network("embed_stride")),
    Item("place of the attention", "stem", "Eq. 1: before the deeper network", network("csa_position")),
    Item("contrastive convolution", True, "Table 6", network("use_cconv")),
    Item("commonality", True, "Table 6", network("use_ca")),
    Item("specificity", True, "Table 6", network("use_sa")),
    Item("lambda", 0.3, "Fig. 4", network("lam")),
    Item("k", 3, "ours: Eq. 4 asks 2 k' - k >= 3", network("kernel_size")),
    Item("k'", 3, "ours: Eq. 4 asks 2 k' - k >= 3", network("epz_kernel_size")),
    Item("gates", "channel", "Eq. 5, extended to channels", network("gate")),
    Item("gradient through gates", "none", "Eq. 5", network("gate_gradient")),
    Item("one kernel for both zones", True, "Eq. 2 and 4: one letter W", network("share_weights")),
    Item("padding", "reflect", "ours", network("padding_mode")),
    Item("reduction of the squeeze-and-excitation", 16, "ours: as Hu et al. 2018", network("se_reduction")),
    Item("gradient through the healthy mean", True, "ours", lambda run: not run.network("detach")),
    Item("healthy mean at inference", "calibrated", "ours: nothing is said", network("inference")),
    Item("softmax of Eq. 6", "reference_channel", "Eq. 6", network("incidence")),
    Item("scale of M_c", "none", "Eq. 7", network("commonality_scale")),
    Item("values of M_c", "pathological", "Eq. 7", network("commonality_values")),
    Item("softmax of Eq. 8", "channel", "Eq. 8", network("specificity")),
    # Discriminator and losses
    Item("channels of the discriminator", 64, "CycleGAN", word("ndf")),
    Item("its layers: patches of 70 pixels", 3, "CycleGAN", word("num_layers_d")),
    Item("it judges diseased images", False, "Eq. 10: converted and healthy ones", word("judge_diseased")),
    Item("form of Eq. 10", "minimax", "Eq. 10", word("gan_mode")),
    Item("reduction of Eq. 10 over patches", "sum", "Eq. 10", word("adv_reduction")),
    Item("weight of Eq. 10", 1.0, "Eq. 10", word("w_adversarial")),
    # Optimization
    Item("generator: optimizer", "sgd", "Sec. 4", optimizer("generator")),
    Item("generator: learning rate", 2.5e-4, "Sec. 4", optimizer("generator_rate")),
    Item("generator: momentum", 0.9, "Sec. 4", optimizer("momentum")),
    Item("generator: weight decay", 5e-4, "Sec. 4", optimizer("weight_decay")),
    Item("norms, biases and an outer zone decay", False, "ours", optimizer("decay_all")),
    Item("discriminator: learning rate of Adam", 1e-4, "Sec. 4", optimizer("discriminator_rate")),
    Item("discriminator: betas", (0.5, 0.999), "CycleGAN", optimizer("betas")),
    Item("schedule", "monai_wsss.engines.polynomial", "Sec. 4", both("_target_")),
    Item("its power", 0.9, "Sec. 4", both("power")),
    Item("its step", "iteration", "ours: not said", steps_of_the_schedule),
    Item("epochs", 100, "Sec. 4", called("train#trainer", "max_epochs")),
    Item("iterations", None, "Sec. 4: epochs count", called("train#trainer", "max_iterations")),
    Item("mixed precision", False, "ours: a P40 has none", precisions),
    # Decision
    Item("difference over channels", "mean", "ours", heat("reduction")),
    Item("sign of the difference", "both", "Sec. 3.4: the difference", heat("sign")),
    Item("smoothing in pixels", 1, "Sec. 3.4: none", heat("smooth")),
    Item("contrast below which there is no mask", 0.1, "ours: thresholds split any image", heat("min_contrast")),
    Item("threshold", "otsu", "ours: none is named", decision("rule")),
    Item("filter by presence", "none", "Sec. 3.4: no image is left out", decision("gate")),
    Item("refinement", "none", "Sec. 3.4: none", lambda run: run("refine", "inference")),
    Item("views", "none", "Sec. 4: none", lambda run: run("views", "inference")),
    # Measuring
    Item("grid", (224, 224), "App. E: QaTa-COV19", lambda run: default_of(SegmentationScores.__init__, "grid")),
    Item("images that are measured: positive ones", ["a", "b"], "Tables 1 to 3 by their numbers", counted),
    Item("DSC: two classes, all pixels pooled", round(TP / (2 * TP + FP + FN) + TN / (2 * TN + FP + FN), 6),
         "Tables 1 to 3 by their numbers", metric("paper_dice_macro_pooled")),
    Item("JC: the same", round((TP / (TP + FP + FN) + TN / (TN + FP + FN)) / 2, 6),
         "Tables 1 to 3 by their numbers", metric("paper_miou_pooled")),
    Item("ACC", round((TP + TN) / (2 * 224), 6), "Sec. 4", metric("paper_accuracy")),
    Item("SP", round(TN / (TN + FP), 6), "Sec. 4", metric("paper_specificity")),
    Item("SE", round(TP / (TP + FN), 6), "Sec. 4", metric("paper_sensitivity")),
    Item("ASD: pixels of the grid, mean over images", (10.0 + 20.0) / 2, "ours: neither is said", distance),
]  # fmt: skip

TERMS = {
    "paper": [
        Item("cycle", 0.0, "Eq. 10", word("w_cycle")),
        Item("identity", 0.0, "Eq. 10", word("w_identity")),
        Item("earlier images", 0, "ours: none are named", word("pool_size")),
    ],
    "paper_cyclegan": [
        Item("cycle", 10.0, "CycleGAN", word("w_cycle")),
        Item("identity", 5.0, "CycleGAN", word("w_identity")),
        Item("earlier images", 50, "CycleGAN", word("pool_size")),
        Item("share of the images that are exchanged", 0.5, "CycleGAN", word("pool_share")),
    ],
}

EVERY = [
    pytest.param(bundle, kind, item, id=f"{bundle}, {kind}: {item.name}")
    for bundle in BUNDLES
    for kind in OVERLAYS
    for item in [*LIST, *TERMS[kind]]
]


@pytest.mark.parametrize(("bundle", "kind", "item"), EVERY)
def test_the_configuration_holds_what_the_source_says(bundle, kind, item):
    assert item.found(merged(bundle, kind)) == item.value, item.source


def test_the_readmes_have_the_splits_of_the_paper():
    """Sec. 4 and App. E."""
    expected = {
        "chest": ("9,258", "12,544", "80 %", "20 %", "2,594", "the 100 of the released validation set"),
        "brain": ("FLAIR slices", "8:1:1 by subject, measured on validation", "770 CT scans", "110", "220 to test"),
    }
    for bundle, words in expected.items():
        text = (BUNDLES[bundle] / "docs" / "README.md").read_text(encoding="utf-8")
        assert [one for one in words if one not in text] == []


def test_the_optimizers_are_those_of_the_list():
    """Their words reach torch: SGD for the generator and all that is before it, Adam for the discriminator."""
    generator, discriminator = coingan_optimizers(CoinGAN.tiny(), "paper").values()
    assert (type(generator), type(discriminator)) == (torch.optim.SGD, torch.optim.Adam)
    groups = generator.param_groups
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in groups] == [
        (2.5e-4, 0.9, 5e-4),
        (2.5e-4, 0.9, 0.0),
    ]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"]), "norms and biases"
    assert [(group["lr"], group["betas"], group["weight_decay"]) for group in discriminator.param_groups] == [
        (1e-4, (0.5, 0.999), 0)
    ]


# ---- docs/differences_from_the_papers.md -----------------------------------------------------------------------------

PRESETS = ("paper", "paper_cyclegan", "cyclegan", "identity")
BUILT = {
    "match_kernel_sums": lambda: ContrastiveConvolution(1, 1).match_kernel_sums,
    **{
        name: (lambda name=name: getattr(CycleGenerator.tiny(), name))
        for name in ("reduction", "sign", "smooth", "min_contrast")
    },
}
"""Words that no preset sets: what is built without them."""


@cache
def tables() -> list[dict[str, list[str]]]:
    """The tables of the document's section: first cell of a row (the second where it is a dash) → the other cells."""
    text = (ROOT / "docs" / "differences_from_the_papers.md").read_text(encoding="utf-8")
    section = text.partition("\n## CoinGAN\n")[2].partition("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.M):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]]
        assert len({len(line) for line in lines}) == 1
        found.append({line[0].strip("`"): line[1:] for line in lines})
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`(.+?)`", cell)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return (" x " if isinstance(value, list) else ", ").join(map(shown, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def test_the_document_answers_every_question_of_the_register():
    readings, runs, _ = tables()
    assert {*readings, *runs} - {"–"} == {f"A{number}" for number in range(1, 27)}


def test_the_document_has_the_words_of_all_presets():
    readings = tables()[0]
    of_presets = {**COINGAN_WORDS["paper"], **COINGAN_NETWORKS["paper"]}
    assert {name for row in readings.values() for name in names(row[1])} == {*of_presets, *BUILT}
    assert COINGAN_WORDS["default"] is COINGAN_WORDS["identity"]
    assert COINGAN_NETWORKS["default"] is COINGAN_NETWORKS["identity"]
    for question, row in readings.items():
        for preset, cell in zip(PRESETS, row[2:6], strict=True):
            words = {**COINGAN_WORDS[preset], **COINGAN_NETWORKS[preset]}
            values = [words[name].value if name in words else BUILT[name]() for name in names(row[1])]
            assert cell == ", ".join(map(shown, values)), f"{question}, {preset}"


@pytest.mark.parametrize("kind", OVERLAYS)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_document_has_the_values_of_a_run(bundle, kind):
    runs, told = tables()[1], merged(bundle, kind)
    defaults = {"--noise#among": default_of(LabelNoise, "among"), "--lr_scheduler#generator#step": "iteration"}
    for question in ("A19", "A20", "A21", "A23", "A24"):
        found = [defaults.get(name) or told(name.removeprefix("--")) for name in names(runs[question][1])]
        assert runs[question][2] == ", ".join(map(shown, found)), question


def test_the_document_has_the_words_of_the_optimizers():
    found = tables()[2]
    assert found.keys() == COINGAN_OPTIMIZERS["paper"].keys()
    for name, cells in found.items():
        told = [COINGAN_OPTIMIZERS[preset][name] for preset in ("paper", "adam")]
        assert cells == [f"{shown(one.value)} ({one.source})" for one in told], name
