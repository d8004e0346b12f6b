# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP and AFA by words: every number of every preset, what `auto` stands for, mistakes, the record of a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bmp_cases import TERMS, make_batch, method_of, quiet_network, small_refinement

from monai_wsss.engines import Progress, WeightRamp
from monai_wsss.inferers import AboveHealthyLevel, MinMax
from monai_wsss.losses import BalancedCrossEntropyLoss
from monai_wsss.methods import AFA, BMP
from monai_wsss.methods.bmp_settings import BmpSettings
from monai_wsss.methods.segmentation_feedback import FeedbackThroughSpreading, SegmentationFeedback
from monai_wsss.networks import ConvPyramid, MixTransformer
from monai_wsss.refinement import BackgroundAware, ConstantScores, LearnedAffinity

# ------------------------------------------------------------------------------------------------ the presets' numbers


def step(end: float) -> WeightRamp:
    return WeightRamp("step", end=end)


def iterations(end: int) -> WeightRamp:
    return WeightRamp("iteration", end=end)


# BMP's default for two classes: what the built parts hold.
DEFAULT: dict[str, Any] = {
    # Network.
    "encoder": MixTransformer, "levels": (64, 128, 320, 512), "decoder_width": 256, "dropout": 0.1, "pooling": "max",
    "pooled": "features", "prior": "sigmoid", "prior_detached": True, "detach_seeds": "none",
    # Seeds.
    "seed_scale": MinMax, "scales": (1.0, 0.5, 1.5),
    # Labels.
    "first_labels": ConstantScores, "low": 0.35, "high": 0.55, "first_downscale": 2.0,
    "labels": BackgroundAware, "labels_ramp": step(0.2), "downscale": 2.0,
    "class_confidence": 0.75, "background": "minmax", "score": "l1",
    "dilations": (1, 2, 4, 8, 12, 24), "iterations": 10, "row_stochastic": True,
    # Terms.
    "c2s_weight": 0.7, "c2s_ramp": step(0.1), "c2s_kind": "softmargin",
    "s2c_weight": 0.1, "s2c_ramp": step(0.2), "s2c_kind": "ce", "feedback": SegmentationFeedback,
    "s2c_background": False, "segmentation_confidence": 0.5, "confidence_of": "prob", "filtered": True,
    "affinity_weight": 0.1, "affinity_ramp": step(0.1), "radius": 8, "pairs_radius": 8,
    # The rest.
    "ready_below": None, "healthy_is_background": True, "healthy_affinity": False, "train_mode_labels": False,
}  # fmt: skip
WITHOUT_FEEDBACK = dict.fromkeys(
    (
        "s2c_weight", "s2c_ramp", "s2c_kind", "feedback", "s2c_background", "segmentation_confidence",
        "confidence_of", "filtered",
    )
)  # fmt: skip
OF_AFA: dict[str, Any] = {
    **WITHOUT_FEEDBACK, "prior": None, "prior_detached": None, "detach_seeds": "all", "c2s_weight": 0.1,
    "c2s_kind": "balanced", "labels": LearnedAffinity, "class_confidence": None, "background": None, "score": None,
}  # fmt: skip
AS_ANY_OTHER_IMAGE = {
    "healthy_is_background": False, "healthy_affinity": True, "train_mode_labels": True, "row_stochastic": False,
}  # fmt: skip
FROM_SCRATCH: dict[str, Any] = {
    "encoder": ConvPyramid, "levels": (16, 32, 64, 64), "decoder_width": 32, "pooled": "maps",
    "seed_scale": AboveHealthyLevel, "scales": (1.0,), "first_downscale": 1.0, "downscale": 1.0,
    "dilations": (1, 2, 4), "labels_ramp": step(0.7), "c2s_ramp": step(0.4), "affinity_ramp": step(0.4),
    "s2c_ramp": step(0.7), "ready_below": 0.4,
}  # fmt: skip
PRESETS: dict[tuple[type[BMP], str], dict[str, Any]] = {
    (BMP, "default"): {},
    (BMP, "scratch"): FROM_SCRATCH,
    (BMP, "paper"): {
        "prior": "none", "prior_detached": False, "labels_ramp": iterations(4000), "c2s_ramp": iterations(2000),
        "affinity_ramp": iterations(2000), "s2c_ramp": iterations(4000), "feedback": FeedbackThroughSpreading,
        "s2c_kind": "softmargin", "s2c_background": None, "background": "softmax",
    },
    (BMP, "released"): {
        **AS_ANY_OTHER_IMAGE, "score": "none", "class_confidence": 0.5, "segmentation_confidence": 0.75,
        "confidence_of": "logit", "filtered": False, "labels_ramp": iterations(4000), "c2s_ramp": iterations(2000),
        "affinity_ramp": iterations(2000), "s2c_ramp": iterations(2000),
    },
    (AFA, "default"): OF_AFA,
    (AFA, "scratch"): {**FROM_SCRATCH, **OF_AFA},
    (AFA, "paper"): {
        **OF_AFA, **AS_ANY_OTHER_IMAGE, "labels_ramp": iterations(6000), "c2s_ramp": iterations(2000),
        "affinity_ramp": iterations(2000),
    },
}  # fmt: skip


def parts_of(method: BMP) -> dict[str, Any]:
    """Read the numbers back from the parts that were built."""
    network, first, labels, c2s, s2c = method.network, method.first_labels, method.labels, method.c2s, method.s2c
    prior, decoder, refine = network.prior, network.decoder, first.refine
    feedback = None if s2c is None else s2c.loss
    return {
        "encoder": type(network.encoder), "levels": tuple(network.encoder.feature_channels),
        "decoder_width": decoder.linear_pred.in_channels, "dropout": decoder.dropout.p,
        "pooling": network.classifier.pooling, "pooled": network.classifier.pooled,
        "prior": None if prior is None else prior.activation, "prior_detached": None if prior is None else prior.detach,
        "detach_seeds": network.detach_seeds,
        "seed_scale": type(method.seeds.scale), "scales": method.seeds.scales,
        "first_labels": type(first), "low": first.low, "high": first.high, "first_downscale": first.downscale,
        "labels": type(labels), "labels_ramp": method.labels_ramp, "downscale": labels.downscale,
        "class_confidence": getattr(labels, "confidence", None), "background": getattr(labels, "background", None),
        "score": getattr(labels, "kind", None),
        "dilations": refine.dilations, "iterations": refine.iterations, "row_stochastic": refine.row_stochastic,
        "c2s_weight": c2s.weight, "c2s_ramp": c2s.ramp,
        "c2s_kind": "balanced" if isinstance(c2s.loss, BalancedCrossEntropyLoss) else c2s.loss.kind,
        "s2c_weight": getattr(s2c, "weight", None), "s2c_ramp": getattr(s2c, "ramp", None),
        "s2c_kind": None if s2c is None else feedback.loss.kind, "feedback": None if s2c is None else type(feedback),
        "s2c_background": None if s2c is None else getattr(feedback.loss, "use_background", None),
        "segmentation_confidence": getattr(feedback, "confidence", None),
        "confidence_of": getattr(feedback, "confidence_of", None), "filtered": getattr(feedback, "filtered", None),
        "affinity_weight": method.affinity.weight, "affinity_ramp": method.affinity.ramp,
        "radius": method.affinity.loss.radius, "pairs_radius": method.radius,
        "ready_below": method.gate.below, "healthy_is_background": method.healthy_is_background,
        "healthy_affinity": method.healthy_affinity, "train_mode_labels": method.train_mode_labels,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "preset"), PRESETS)
def test_a_preset_builds_what_its_table_says(kind, preset):
    method = kind.from_preset(preset, in_channels=1, num_classes=2)
    assert parts_of(method) == DEFAULT | PRESETS[kind, preset]
    assert method.labels.refine is method.first_labels.refine
    assert type(method) is kind


def test_the_tables_name_every_preset():
    assert {(kind, preset) for kind in (BMP, AFA) for preset in kind.presets} == set(PRESETS)


@pytest.mark.parametrize(("kind", "preset"), PRESETS)
def test_presets_train(kind, preset):
    """On a network of yours: two classes, all warm-ups over, every parameter learns."""
    _, decoding = kind.presets[preset]
    options = {name: value for name, value in decoding.items() if name not in ("encoder", "decoder_width")}
    at_once = dict.fromkeys(("c2s_ramp", "s2c_ramp", "propagation_ramp"), WeightRamp("none"))
    network = quiet_network(2, **options)
    method = kind.from_preset(preset, network=network, refine=small_refinement(), ready_below=None, **at_once)
    losses = method(make_batch(classes=2), Progress(epoch=1, iteration=1, fraction=0.0))
    assert list(losses) == [name for name in TERMS if kind is BMP or name != "s2c"]
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_an_optimizer_of_the_published_network_has_three_groups():
    method = BMP.from_preset("released", in_channels=1, num_classes=2)
    groups = method.parameter_groups(1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 0.0, 1e-2]
    norms = {id(parameter) for parameter in groups[1]["params"]}
    assert id(method.network.encoder.norm1.weight) in norms
    assert sum(len(group["params"]) for group in groups) == len(list(method.network.parameters()))


def test_the_network_of_a_preset_takes_another_encoder_and_other_words():
    network = BMP.network_from_preset("paper", encoder=ConvPyramid.tiny(3, 2), num_classes=3, decoder_width=4)
    assert (network.spatial_dims, network.num_classes) == (3, 3)
    assert network.prior.activation == "none"
    assert network.decoder.linear_pred.in_channels == 4
    assert AFA.network_from_preset("default", encoder=ConvPyramid.tiny(2, 1)).prior is None
    small = BMP.network_from_preset("default", encoder=None, in_channels=1, ofd="false")
    assert isinstance(small.encoder, MixTransformer)
    assert small.prior is None


# ---------------------------------------------------------------------------------------------- what words stand for


@pytest.mark.parametrize(("classes", "loss", "background"), [(1, "bce", "softmax"), (2, "ce", "minmax")])
def test_one_class_has_losses_and_a_background_of_its_own(classes, loss, background):
    """A cross-entropy over one channel is 0, and an image that one class fills has background nowhere."""
    words = BmpSettings().for_classes(classes)
    assert (words.s2c_loss, words.background_scale) == (loss, background)
    method = method_of(classes=classes)
    assert (method.s2c.loss.loss.kind, method.labels.background) == (loss, background)
    assert (method.settings["s2c_loss"], method.settings["background_scale"]) == (loss, background)
    paper = BMP.from_preset("paper", network=quiet_network(classes))
    assert (paper.s2c.loss.loss.kind, paper.labels.background) == ("softmargin", "softmax")


def test_words_choose_what_makes_labels():
    assert method_of(propagation="par").labels is None
    assert isinstance(method_of(propagation="affinity").labels, LearnedAffinity)
    feedback = method_of(s2c_input="scores").s2c.loss
    assert feedback.scores.kind == feedback.fixed_scores.kind == "l1"
    assert (feedback.scores.background, feedback.fixed_scores.background) == ("softmax", pytest.approx(0.45))
    assert isinstance(feedback.scale, MinMax)
    without = method_of(s2c_input="scores", propagation="par").s2c.loss
    assert without.scores is without.fixed_scores


def test_feedback_on_scores_scales_seeds_by_the_level_that_labels_use():
    """Both hold the same part: what training measures for one is known to the other."""
    method = method_of(s2c_input="scores", seed_scale="reference")
    assert method.s2c.loss.scale is method.seeds.scale


def test_flags_and_ramps_are_read_as_a_command_line_writes_them():
    words = BmpSettings(train_mode_labels="true", row_stochastic="false", s2c_ramp=0.3, scales=[1.0], ready_below="off")
    assert (words.train_mode_labels, words.row_stochastic) == (True, False)
    assert words.s2c_ramp == WeightRamp("step", end=0.3)
    assert (words.scales, words.ready_below) == ((1.0,), None)
    with pytest.raises(ValueError, match="`healthy_affinity` to be true or false, got 'maybe'"):
        BmpSettings(healthy_affinity="maybe")


def test_settings_tell_the_record_of_a_run_what_was_resolved():
    method = method_of(c2s_ramp=WeightRamp("iteration", end=40), s2c_weight=0.0)
    told = json.loads(json.dumps(method.settings))
    assert (told["method"], told["preset"]) == ("BMP", "default")
    assert (told["s2c_weight"], told["s2c_loss"], told["propagation"]) == (0.0, "bce", "bsp")
    assert (told["c2s_ramp"], told["propagation_ramp"]) == ("iteration until 40", "step until 0.2")
    assert told["scales"] == [1.0, 0.5, 1.5]
    assert AFA.from_preset("paper", network=quiet_network(ofd=False)).settings["method"] == "AFA"


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"propagation": "crf"}, "`propagation` to be one of"),
        ({"seed_scale": "max"}, "`seed_scale` to be one of"),
        ({"s2c_input": "masks"}, "`s2c_input` to be one of"),
        ({"confidence_of": "share"}, "`confidence_of` to be one of"),
        ({"score_scale": "l2"}, "`scores` to be one of none, l1, softmax, got 'l2'"),
        ({"downscale": 0.5}, "`downscale` >= 1"),
        ({"c2s_loss": "dice"}, "`c2s_loss` to be one of"),
        ({"s2c_loss": "dice"}, "`s2c_loss` to be one of"),
        ({"s2c_weight": -1.0}, "0 switches a term off"),
        ({"low": 0.7, "high": 0.5}, "`low` <= `high`"),
        ({"s2c_loss": "ce"}, "single class"),
        ({"s2c_loss": "softmargin", "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"s2c_input": "scores", "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"classes": 3, "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"class_confidence": 75.0}, "in .0, 1., got 75.0 and 0.5"),
        ({"segmentation_confidence": -3.0}, "in .0, 1., got 0.75 and -3.0"),
        ({"background_scale": "l1"}, "`background_scale` to be one of"),
        ({"scales": ()}, "one or more `scales` > 0"),
        ({"radius": -1}, "`radius` of at least 0 tokens"),
        ({"dilations": ()}, "`dilations` to be whole numbers"),
        ({"classes": 255}, "fewer than 255 classes"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings, message):
    classes = settings.pop("classes", 1)
    network = quiet_network(classes)
    with pytest.raises(ValueError, match=message):
        BMP.from_preset(network=network, **settings)


def test_a_loss_that_is_off_may_be_any():
    assert method_of(s2c_loss="ce", s2c_weight=0.0).s2c is None


@pytest.mark.parametrize("kind", [BMP, AFA])
def test_presets_and_words_that_do_not_exist_are_named(kind):
    names = ", ".join(kind.presets)
    with pytest.raises(ValueError, match=f"`preset` to be one of {names}, got 'best'"):
        kind.from_preset("best")
    with pytest.raises(ValueError, match=f"`preset` to be one of {names}, got 'best'"):
        kind.network_from_preset("best")
    with pytest.raises(TypeError, match="unexpected keyword argument 'ramp'"):
        kind.from_preset(network=quiet_network(), ramp=0.5)
