# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The frozen list of BMP: what the paper and its code say, item by item, against the resolved configurations.

Nothing is trained: a value is looked up in ``train.json`` or ``inference.json`` with the overlays as MONAI merges them,
in the words of the method, which are those of its preset and what the configuration sets otherwise, or in a network
that the configuration names.  Change a number here only if the source says so.

Sources: a section, an equation or a table of Zhu et al., arXiv:2308.04949; ``AFA`` (Ru et al., CVPR 2022) for what the
paper takes from there; ``released`` is the authors' code, for what the paper leaves open; ``ours`` is a decision where
neither says anything.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from paper_lists import Item
from test_every_bundle import ROOT

from monai_wsss._checks import DataError
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES, TABLE_SIX
from monai_wsss.data import VOC_CLASSES, voc
from monai_wsss.engines import BranchEvaluation, WeightRamp, polynomial_after_warm_up
from monai_wsss.methods import BMP
from monai_wsss.methods.bmp_settings import BMP_PRESETS, BmpSettings
from monai_wsss.methods.segmentation_feedback import FeedbackThroughSpreading
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork, load_encoder_weights
from monai_wsss.refinement import DenseCRF, LabeledImages
from monai_wsss.transforms import RandScalePadCropd

BUNDLE = ROOT / "bundles" / "brain_mri_bmp_segmentation"
OVERLAYS = {
    "voc": ("paper", "paper_voc"),
    "coco": ("paper", "paper_coco"),
    "released": ("released", "paper_voc"),
}


@cache
def network(preset: str) -> Any:
    """The network of a preset, as Python has it, for the classes of VOC."""
    return BMP.network_from_preset(preset, num_classes=20)


class Run:
    """The configurations of a run with overlays, merged and not built."""

    def __init__(self, kind: str) -> None:
        self.parsers = {}
        for first in ("train", "inference"):
            parser = ConfigParser()
            parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in (first, *OVERLAYS[kind])])
            self.parsers[first] = parser
        # Nothing of the network is set beside its preset.
        assert set(self("network_def")) == {"_target_", "preset", "in_channels", "num_classes"}
        assert self("network_def") == self("network_def", "inference")

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

    @property
    def network(self) -> Any:
        """The network that the configuration names."""
        return network(self("network_def#preset"))

    @property
    def words(self) -> BmpSettings:
        """The words of the method, for the classes of the configuration."""
        method = self("method")
        assert method["_target_"] == "monai_wsss.methods.BMP.from_preset"
        own = {name: value for name, value in method.items() if name not in ("_target_", "preset", "network")}
        for name, value in own.items():
            if isinstance(value, dict):
                assert value.pop("_target_") == "monai_wsss.engines.WeightRamp"
                own[name] = WeightRamp(**value)
        return BmpSettings(**{**BMP_PRESETS[method["preset"]][0], **own}).for_classes(self("num_classes"))

    def part(self, name: str) -> Any:
        """A part of the method that these words stand for."""
        return self.words.parts(self("num_classes"))[name]


def word(*names: str) -> Callable[[Run], Any]:
    def found(run: Run) -> Any:
        values = tuple(getattr(run.words, name) for name in names)
        return values if len(values) > 1 else values[0]

    return found


def warm_ups(run: Run) -> tuple[float, ...]:
    ramps = [getattr(run.words, f"{name}_ramp") for name in ("c2s", "s2c", "propagation")]
    assert {ramp.shape for ramp in ramps} == {"iteration"}
    return tuple(ramp.end for ramp in ramps)


def of_encoder(run: Run) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The kind of the encoder, its feature channels, and the strides of its levels."""
    encoder = run.network.encoder
    with torch.no_grad():
        levels = encoder.eval()(torch.zeros(1, 3, 64, 64))
    levels = levels[0] if isinstance(levels[0], list | tuple) else levels
    return type(encoder).__name__, tuple(encoder.feature_channels), tuple(64 // level.shape[-1] for level in levels)


def heads(run: Run) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernels of the classification head and of the segmentation head."""
    weights = [run.network.classifier.weight, run.network.decoder.linear_pred.weight]
    return tuple(tuple(weight.shape[2:]) for weight in weights)


def affinity(run: Run) -> tuple[int, ...]:
    """Shape of what turns the raw attention of both blocks of the last stage, 8 heads each, into the affinity."""
    return tuple(run.network.attn_proj.weight.shape)


def prior(run: Run) -> tuple[str, bool]:
    """Give what the decoder multiplies features by: its activation, and whether it is detached."""
    return run.network.prior.activation, run.network.prior.detach


def refused(run: Run) -> str:
    """Give how the answer to a missing file of weights begins."""
    with pytest.raises(DataError) as error:
        load_encoder_weights(run.network, run("pretrained"))
    return str(error.value).partition(" of ")[0]


def measured_branches(run: Run) -> set[str]:
    """Give the branches that the configurations of logging and of evaluation measure."""
    for name in ("log_branches", "evaluate_branches"):
        parser = ConfigParser()
        parser.read_config(str(BUNDLE / "configs" / f"{name}.json"))
        assert parser["branches#evaluation#_target_"] == "monai_wsss.engines.BranchEvaluation.of"
        assert "given" in parser["branches#evaluation#label_filters"]
        assert "'training'" in parser["branches#dataset#data"]
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    item = {"image": image, "label": torch.ones(1, 1), "mask": torch.ones(1, 1, 16, 16)}
    tiny = TwoBranchNetwork.tiny(2, 3)
    evaluation = BranchEvaluation(
        {"network": tiny}, run.part("seeds"), [lambda: 0.45], ["one"], label_maker=lambda: run.part("labels")
    )
    return {row["branch"] for row in evaluation.measure([item])}


def transforms(run: Run) -> list[str]:
    return [step["_target_"].rpartition(".")[2] for step in run("train#random_transforms")]


def crop(run: Run) -> tuple[int, list[float]]:
    """Side and range of the crops, which tell where the image lies in them."""
    step = run("augmentation#1")
    words = {name: value for name, value in step.items() if name != "_target_"}
    transform = RandScalePadCropd(**words)
    item = transform({"image": torch.ones(3, 8, 9)})
    assert item["image"].shape == (3, step["crop_size"], step["crop_size"])
    assert "boxes" in item
    return step["crop_size"], list(transform.scale_range)


def readers(run: Run) -> set[str]:
    """Give what reads images, wherever they are read."""
    places = {
        "train": ("train#deterministic_transforms#0", "validate#preprocessing#transforms#0"),
        "inference": ("preprocessing#transforms#0",),
    }
    return {run(f"{name}#_target_", of) for of, names in places.items() for name in names}


def mirrored_axis(run: Run) -> int:
    """Give the axis along which label passes mirror images (C, rows, columns)."""
    seen: list[torch.Tensor] = []
    small = TwoBranchNetwork.build(ConvPyramid(2, 3, width=8), run("num_classes"), decoder_width=8).eval()
    small.encoder.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    image = torch.arange(3 * 32 * 48.0).reshape(1, 3, 32, 48)
    with torch.no_grad():
        run.part("seeds")(small, LabeledImages(image, torch.ones(1, run("num_classes"))))
    both = next(views for views in seen if views.shape[2:] == image.shape[2:])
    (axis,) = (axis for axis in (1, 2) if torch.equal(both[1], both[0].flip(axis)))
    return axis


def rates(run: Run) -> Any:
    """Give the optimizer's groups where the configuration makes several, else its one rate."""
    params = run("optimizers#network#params")
    if params == "$@method.player_parameters('network')":
        return run("optimizers#network#lr")
    assert params == "$@method.parameter_groups(@learning_rate)"
    assert "lr" not in run("optimizers#network")
    method = BMP.from_preset(run("preset"), network=run.network)
    rate = run("learning_rate")
    return sorted({round(group["lr"] / rate, 6) for group in method.parameter_groups(rate)})


def propagation(run: Run) -> tuple[str, str]:
    """Give what makes Y^c once BSP has begun, and its B^s."""
    maker = run.part("labels")
    return type(maker).__name__, maker.background


def feedback(run: Run) -> tuple[str, str, float]:
    """Give what L_s2c compares with Y^s, and the background of S^c with BSP and without."""
    loss = run.part("s2c").loss
    assert isinstance(loss, FeedbackThroughSpreading)
    return loss.loss.kind, loss.scores.background, round(loss.fixed_scores.background, 6)


def without_propagation(run: Run) -> float:
    """Give the background of S^c in L_s2c where BSP is switched off (Tab. VI, row 3)."""
    words = replace(run.words, propagation="par")
    loss = words.parts(run("num_classes"))["s2c"].loss
    assert loss.scores is loss.fixed_scores
    return round(loss.scores.background, 6)


def refinement(run: Run) -> tuple[str, tuple[int, ...], int]:
    part = run.part("labels").refine
    return type(part).__name__, part.dilations, part.iterations


def crf(run: Run) -> tuple[float, ...]:
    """Give the settings of the CRF; its colors are those of ImageNet's normalization, of which 1 is 57.4 of 255."""
    words = {name: value for name, value in run.both("crf").items() if name not in ("_target_", "preset")}
    settings = DenseCRF.from_preset("bmp", **words).settings
    color = round(settings["bilateral_intensity_std"] * 57.4)
    names = ("iterations", "position_std", "position_weight", "bilateral_position_std", "bilateral_weight")
    return (*(settings[name] for name in names), color)


def searched(split: str) -> Any:
    """Give the first list of VOC that is searched for a split."""
    # No public name tells them.
    return voc._LISTS[split][0]


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


COMMON = [
    # Network
    Item("encoder, channels and strides of X^1 to X^4", ("MixTransformer", (64, 128, 320, 512), (4, 8, 16, 16)),
         "Sec. IV-A: MiT-B1; AFA", of_encoder),
    Item("its weights", "imagenet", "Sec. IV-A", lambda run: run("pretrained")),
    Item("without them", "No package has ImageNet weights", "Sec. IV-A", refused),
    Item("decoder", "AllMLPDecoder", "Sec. IV-A", lambda run: type(run.network.decoder).__name__),
    Item("kernels of both heads", ((1, 1), (1, 1)), "Sec. IV-A", heads),
    Item("channels of the segmentation", 21, "Sec. III-A: K + 1",
         lambda run: run.network.decoder.linear_pred.out_channels),
    Item("global pooling, of what", ("max", "features"), "Sec. III-A",
         lambda run: (run.network.classifier.pooling, run.network.classifier.pooled)),
    Item("self-attention maps of the affinity", (1, 16, 1, 1), "Sec. III-E; AFA", affinity),
    # Data and pipeline
    Item("photographs are read", {"monai_wsss.transforms.LoadImageOrderedd"},
         "Sec. III-A: 3 x H x W; the datalist says (C, rows, columns)", readers),
    Item("normalization", "monai_wsss.transforms.imagenet_normalization", "Sec. IV-A: ImageNet's weights",
         lambda run: run.both("normalization#_target_")),
    Item("channels", (3, ["red", "green", "blue"]), "Sec. III-A",
         lambda run: (run.both("in_channels"), run.both("modalities"))),
    Item("size before augmentation: the image's own", None, "Sec. IV-A", lambda run: run.both("grid")),
    Item("augmentation", ["RandFlipd", "RandScalePadCropd"], "Sec. IV-A", transforms),
    Item("crop, scale", (512, [0.5, 2.0]), "Sec. IV-A", crop),
    Item("flip of (C, rows, columns)", (1, 0.5), "Sec. IV-A: random flipping; released: left and right",
         lambda run: (run("augmentation#0#spatial_axis"), run("augmentation#0#prob"))),
    # Pseudo-labels
    Item("scales", [0.5, 1.0, 1.5], "Sec. IV-A", lambda run: sorted(run.part("seeds").scales)),
    Item("mirrored along", 2, "Sec. IV-A: flip; released: left and right", mirrored_axis),
    Item("Y^c from BSP", True, "Eq. 13", lambda run: run.words.propagation == "bsp"),
    Item("refinement", ("PixelAdaptiveRefinement", (1, 2, 4, 8, 12, 24), 10), "Sec. IV-A: PAR; AFA", refinement),
    Item("fixed background before, low and high", (0.35, 0.55), "Sec. IV-B; AFA", word("low", "high")),
    Item("l_seg of L_c2s", "softmargin", "Eq. 6: soft margin or cross-entropy", word("c2s_loss")),
    Item("radius of the affinity's pairs", 8, "AFA", word("radius")),
    # Optimization
    Item("optimizer", "torch.optim.AdamW", "Sec. IV-A", lambda run: run("optimizers#network#_target_")),
    Item("initial rate", 6e-5, "Sec. IV-A", lambda run: run("learning_rate")),
    Item("steps of the schedule", False, "Sec. IV-A: each iteration",
         lambda run: run("train#handlers#0#epoch_level")),
    Item("length of the schedule, of the training", ("@iterations", "@iterations"), "Sec. IV-A",
         lambda run: (run.parsers["train"]["lr_scheduler#max_iterations"],
                      run.parsers["train"]["train#trainer#max_iterations"])),
    Item("mixed precision", False, "ours", lambda run: run("amp")),
    # Inference
    Item("scales of inference", [0.5, 0.75, 1.0], "released", lambda run: run.both("inference_scales")),
    Item("views of inference", "mirror", "released", lambda run: run.both("views")),
    Item("over scales", "max", "released", lambda run: run.both("reduction")),
    Item("CRF: iterations, a, w_1, b, w_2, c of 255", (10, 3.0, 3.0, 64.0, 4.0, 5), "released", crf),
    # Measurement
    Item("branches that are logged and measured", {"M", "S", "Y"}, "Tab. II, VI; Fig. 7", measured_branches),
]  # fmt: skip

PAPER = [
    *COMMON,
    Item("OFD, of what, detached", ("none", False), "Eq. 9-11: the maximum itself", prior),
    Item("sigma^c, sigma^s", (0.75, 0.5), "Sec. IV-B", word("class_confidence", "segmentation_confidence")),
    Item("sigma^s is compared with", "prob", "Sec. III-A: S^s is the probability", word("confidence_of")),
    Item("B^s", ("BackgroundAware", "softmax"), "Eq. 12, Sec. III-A", propagation),
    Item("L_s2c: l_seg, background with BSP and without", ("softmargin", "softmax", 0.45), "Eq. 8, 13, 2", feedback),
    Item("background of L_s2c, BSP off", 0.45, "Tab. VI, row 3", without_propagation),
    Item("absent classes in Y^s", True, "Sec. IV-A: removed", word("filter_segmentation")),
    Item("batch", 8, "Sec. IV-A", lambda run: run("batch_size")),
    Item("one rate for all parameters", 6e-5, "Sec. IV-A", rates),
    Item("schedule", ("monai_wsss.engines.polynomial", 1.0), "Sec. IV-A; released: the power",
         lambda run: (run("lr_scheduler#_target_"), run("lr_scheduler#power"))),
    Item("weight decay", 0.01, "released", lambda run: run("optimizers#network#weight_decay")),
    Item("labels are made in", False, "ours: evaluation mode", word("train_mode_labels")),
    Item("S^c before sigma^c", "l1", "ours: shares", word("score_scale")),
]  # fmt: skip

VOC = [
    *PAPER,
    Item("classes", 20, "Sec. IV-B", lambda run: run.both("num_classes")),
    Item("their names", 20, "Sec. IV-B", lambda run: len(VOC_CLASSES)),
    Item("iterations", 20_000, "Sec. IV-A", lambda run: run("iterations")),
    Item("lambda_1, lambda_2, lambda_3", (0.7, 0.1, 0.1), "Sec. IV-B",
         word("c2s_weight", "s2c_weight", "affinity_weight")),
    Item("warm-ups of L_c2s, L_s2c, BSP", (2000, 4000, 4000), "Sec. IV-B", warm_ups),
    Item("list of the 10,582 training images", "train_aug", "Sec. IV-B", lambda run: searched("training")),
    Item("list of the 1,449 validation images", "val", "Sec. IV-B", lambda run: searched("validation")),
]  # fmt: skip

COCO = [
    *PAPER,
    Item("classes", 80, "Sec. IV-C: 81 with the background", lambda run: run.both("num_classes")),
    Item("iterations", 80_000, "Sec. IV-C", lambda run: run("iterations")),
    Item("lambda_1, lambda_2, lambda_3", (0.1, 0.1, 0.1), "Sec. IV-C",
         word("c2s_weight", "s2c_weight", "affinity_weight")),
    Item("warm-ups of L_c2s, L_s2c, BSP", (13_000,) * 3,
         "Sec. IV-C: of the classification branch, so that nothing else is trained before", warm_ups),
]  # fmt: skip

RELEASED = [
    *COMMON,
    Item("OFD, of what, detached", ("sigmoid", True), "released", prior),
    Item("sigma^c, sigma^s", (0.5, 0.75), "released", word("class_confidence", "segmentation_confidence")),
    Item("sigma^s is compared with", "logit", "released", word("confidence_of")),
    Item("B^s", ("BackgroundAware", "minmax"), "released", propagation),
    Item("L_s2c of", ("seeds", "ce"), "released", word("s2c_input", "s2c_loss")),
    Item("absent classes in Y^s", False, "released: kept", word("filter_segmentation")),
    Item("lambda_1, lambda_2, lambda_3", (0.7, 0.1, 0.1), "released",
         word("c2s_weight", "s2c_weight", "affinity_weight")),
    Item("warm-ups of L_c2s, L_s2c, BSP", (2000, 2000, 4000), "released", warm_ups),
    Item("batch", 4, "released: 2 on each of 2 GPUs", lambda run: run("batch_size")),
    Item("rates of norms, encoder and heads, in initial rates", [0.0, 1.0, 10.0], "released", rates),
    Item("schedule", "monai_wsss.engines.polynomial_after_warm_up", "released",
         lambda run: run("lr_scheduler#_target_")),
    Item("its warm-up", 1500, "released", lambda run: default_of(polynomial_after_warm_up, "warm_up")),
    Item("labels are made in", True, "released: training mode", word("train_mode_labels")),
    Item("S^c before sigma^c", "none", "released", word("score_scale")),
    Item("weights of PAR sum to 1", False, "released: 1.01", word("row_stochastic")),
]  # fmt: skip

LISTS = {"voc": VOC, "coco": COCO, "released": RELEASED}


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


def test_the_ladder_of_table_six_is_the_paper_s():
    """Tab. VI: six rows, each with one part more; rows of the small networks are not called the paper's."""
    rungs = [
        (recipe.build(3, 20).settings, recipe.build(3, 20).network.prior is not None) for recipe in TABLE_SIX.values()
    ]
    parts = [
        (
            words["c2s_weight"] > 0,
            words["s2c_weight"] > 0,
            words["propagation"] == "bsp",
            ofd,
            words["affinity_weight"] > 0,
        )
        for words, ofd in rungs
    ]
    assert parts == [tuple(place < count for place in range(5)) for count in range(6)]
    assert not [name for name in (*BMP_RECIPES, *BMP_BOUND) if "(paper)" in name]


def test_the_readme_has_the_data_of_the_paper():
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"prepare coco .*--masks .*--annotated-only", readme)
    assert re.search(r"prepare voc .*--training train ", readme)
    for number in ("10,582", "1,464", "1,449", "1,456", "82,081", "40,137"):
        assert number in readme


def test_nothing_of_the_default_changed_with_the_paper():
    """The shipped weights are of the preset for small images, on 64 x 64, with mean maps of one scale."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    assert (parser["preset"], parser["grid"], parser["reduction"]) == ("scratch", [64, 64], "mean")
    assert (BmpSettings().background_scale, BmpSettings().s2c_input) == ("auto", "seeds")
