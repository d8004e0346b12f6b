# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA's words: each has a value and a source in every preset, an effect, and a place in the record."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
import torch

from monai_wsss.engines import WeightRamp
from monai_wsss.losses import BalancedCrossEntropyLoss, ReliabilityWeightedLoss
from monai_wsss.methods import CoSA
from monai_wsss.methods.cosa_settings import COSA_NETWORKS, COSA_WORDS, CosaSettings, WithoutReliability
from monai_wsss.networks import EfficientNetLite, LargeFOV, MixTransformer, TwoFusedMaps, VisionTransformer
from monai_wsss.refinement import (
    DynamicThreshold,
    LabeledImages,
    NoiseLabels,
    ThresholdLabels,
    TwoThresholdLabels,
    two_threshold_label,
)

PRESETS = ("default", "paper", "released")
SOURCE = re.compile(r"(Sec|Eq|Tab)\. \d.*|released|ours(: .+)?|the network's.*")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_word_has_a_value_with_a_source(preset):
    words = COSA_WORDS[preset]
    assert list(words) and set(words) == {field.name for field in fields(CosaSettings)}  # noqa: PT018
    for name, one in (*words.items(), *COSA_NETWORKS[preset].items()):
        assert SOURCE.fullmatch(one.source), (name, one.source)


def test_the_paper_s_values():
    words = CosaSettings.of_preset("paper")
    assert all((words.gc, words.sa, words.raw, words.csc, words.dt, words.aux_c2s))
    assert not words.energy and not words.s2c_relu  # noqa: PT018
    assert (words.c2s_weight, words.s2c_weight, words.csc_weight) == (0.1, 0.05, 0.1)
    assert (words.perplexity_scale, words.perplexity_power, words.epsilon) == (0.8, 1.0, 1.0)
    assert (words.momentum, words.queue, words.temperature) == (0.9994, 100, 0.01)
    assert words.warm_up == WeightRamp("iteration", end=6000)
    sources = {name: one.source for name, one in COSA_WORDS["paper"].items()}
    assert sources["momentum"] == sources["queue"] == sources["epsilon"] == "Sec. 4.1"
    assert sources["csc_temperature"].startswith("ours")


def test_the_released_code_s_values():
    words = CosaSettings.of_preset("released")
    assert not any((words.raw, words.csc, words.dt))
    assert words.energy and words.s2c_relu  # noqa: PT018
    assert (words.thresholds, words.low, words.high) == ("two", 0.2, 0.7)
    assert (words.c2s_loss, words.c2s_weight, words.aux_scales) == ("balanced", 0.05, "last")
    parts = words.parts(3)
    assert isinstance(parts["labels"], TwoThresholdLabels)
    assert isinstance(parts["c2s"].loss.loss, BalancedCrossEntropyLoss)


@pytest.mark.parametrize(
    ("word", "value", "look"),
    [
        ("raw", "false", lambda parts: isinstance(parts["c2s"].loss, WithoutReliability)),
        ("raw", True, lambda parts: isinstance(parts["auxiliary_c2s"].loss, ReliabilityWeightedLoss)),
        ("raw_norm", "image", lambda parts: parts["c2s"].loss.normalize == "image"),
        ("sa", False, lambda parts: parts["average"] is None),
        ("momentum", 0.5, lambda parts: parts["average"].momentum == 0.5),
        ("dt", False, lambda parts: parts["labels"].threshold.kind == "fixed"),
        ("threshold", 0.4, lambda parts: abs(parts["labels"].threshold() - 0.4) < 1e-6),
        ("dt_interval", 3, lambda parts: parts["auxiliary_labels"].threshold.interval == 3),
        ("csc", False, lambda parts: parts["csc"] is None),
        ("csc_vector", "sigmoid", lambda parts: parts["csc"].loss.vectors == "sigmoid"),
        ("csc_vector", "feature", lambda parts: parts["csc"].loss.vectors == "feature"),
        ("csc_pairs", "batch", lambda parts: parts["csc"].loss.pairs == "batch"),
        ("csc_max_anchors", 64, lambda parts: parts["csc"].loss.max_anchors == 64),
        ("epsilon", 0.5, lambda parts: parts["auxiliary_labels"].epsilon == 0.5),
        ("guide", "noise", lambda parts: isinstance(parts["guide"], NoiseLabels)),
        ("guide", "none", lambda parts: parts["s2c"] is None),
        ("gc", False, lambda parts: parts["s2c"] is None),
        ("s2c_relu", True, lambda parts: parts["s2c"].loss.relu),
        ("aux_c2s", False, lambda parts: parts["auxiliary_c2s"] is None),
        ("energy", True, lambda parts: parts["energy"].weight == 0.05),
        ("aux_scales", "last", lambda parts: parts["seeds"].aux_scales == "last"),
        ("min_peak", 0.2, lambda parts: parts["seeds"].scale.min_peak == 0.2),
        ("warm_up", 0.4, lambda parts: parts["c2s"].ramp == WeightRamp("step", end=0.4)),
        ("warm_up", 50, lambda parts: parts["csc"].ramp == WeightRamp("iteration", end=50)),
        ("warm_up", "none", lambda parts: parts["s2c"].ramp == WeightRamp("none")),
        ("over_processes", False, lambda parts: not parts["csc"].loss.over_processes),
    ],
)
def test_each_word_chooses_a_part(word, value, look):
    parts = CosaSettings.of_preset("paper", **{word: value}).parts(3)
    assert look(parts)
    assert isinstance(parts["labels"], ThresholdLabels)
    assert parts["labels"].threshold is not parts["auxiliary_labels"].threshold


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"guide": "oracle"}, "`guide` to be one of spl, noise, none, got 'oracle'"),
        ({"c2s_loss": "balanced"}, "Expected `raw` False for `c2s_loss` 'balanced'"),
        ({"raw": "perhaps"}, "`raw`"),
        ({"csc_vector": "features"}, "`csc_vector` to be one of cosine, sigmoid, bgcat, feature"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        CosaSettings.of_preset("paper", **words)
    with pytest.raises(TypeError, match="unknown"):
        CosaSettings.of_preset("paper", unknown=1)
    with pytest.raises(ValueError, match="`preset` to be one of"):
        CosaSettings.of_preset("best")


def test_two_thresholds_follow_three_gaussians_on_request():
    words = {"raw": False, "csc": False, "low": 0.2, "high": 0.7, "queue": 8}
    parts = CosaSettings.of_preset("paper", thresholds="two", dt=True, **words).parts(2)
    labels, auxiliary = parts["labels"], parts["auxiliary_labels"]
    assert labels.threshold.kind == "three_components"
    assert labels.threshold is not auxiliary.threshold
    torch.testing.assert_close(labels.threshold(), torch.tensor([0.2, 0.7]))
    assert CosaSettings.of_preset("released").parts(2)["labels"].threshold is None
    images = LabeledImages(torch.zeros(2, 1, 20, 20), torch.ones(2, 2))
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 2, 20, 20, generator=generator)
    labels.eval().follow(images, maps)
    torch.testing.assert_close(labels.threshold(), torch.tensor([0.2, 0.7]))
    labels.train().follow(images, maps)
    low, high = labels.threshold().tolist()
    assert (low, high) != pytest.approx((0.2, 0.7))
    expected = two_threshold_label(maps, images.label, low=low, high=high)
    assert torch.equal(labels(images, maps).label, expected)
    with pytest.raises(ValueError, match="`threshold` of the kind 'three_components', got 'mixture'"):
        TwoThresholdLabels(threshold=DynamicThreshold())


def test_a_least_peak_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match="`min_peak` 0 for `seed_scale` 'reference'"):
        CosaSettings.of_preset("default", min_peak=0.5)
    assert CosaSettings.of_preset("default", min_peak=0.5, seed_scale="minmax").min_peak == 0.5


def test_the_record_tells_sources_and_what_was_set_otherwise():
    method = CoSA.from_preset("paper", network=CoSA.tiny(2, 1, 2).online, csc_temperature=0.2)
    told = json.loads(json.dumps(method.settings))
    assert told["preset"] == "paper"
    assert told["warm_up"] == "iteration until 6000"
    assert told["sources"]["csc_temperature"] == "set otherwise"
    assert told["sources"]["momentum"] == "Sec. 4.1"
    assert set(told["sources"]) >= set(COSA_WORDS["paper"])


def test_the_record_tells_the_sources_of_the_network_s_words():
    """Beside those of the method; what was set otherwise says so, and what a user's encoder takes the place of."""
    with torch.device("meta"):
        paper = CoSA.network_from_preset("paper", num_classes=2, decoder_width=4)
    sources = paper.settings["sources"]
    assert sources.keys() == COSA_NETWORKS["paper"].keys()
    assert (sources["encoder"], sources["decoder"], sources["early_block"]) == ("Sec. 4.1", "Sec. 4.1", "released")
    assert sources["decoder_width"] == "set otherwise"
    told = CoSA.tiny(2, 1, 2).settings["sources"]
    assert told.keys() == COSA_WORDS["default"].keys() | COSA_NETWORKS["default"].keys()
    assert (told["pooling"], told["encoder"], told["momentum"]) == ("Sec. 4.1", "set otherwise", "set otherwise")


def test_networks_of_the_presets():
    """On the device "meta": shapes without memory."""
    with torch.device("meta"):
        paper = CoSA.network_from_preset("paper", num_classes=20)
        default = CoSA.network_from_preset(num_classes=2)
        small = CoSA.network_from_preset(encoder="vit_tiny", in_channels=1, early_block=-4)
        volumes = CoSA.network_from_preset(encoder="conv_pyramid", spatial_dims=3, in_channels=2, stride=2)
    assert isinstance(paper.encoder, VisionTransformer)
    assert isinstance(paper.decoder, LargeFOV)
    assert paper.classifier.weight.shape == paper.auxiliary.weight.shape == (20, 768, 1, 1)
    assert paper.decoder.conv7.weight.shape == (512, 512, 3, 3)
    assert sum(parameter.numel() for parameter in paper.parameters()) == pytest.approx(92e6, rel=0.02)
    assert isinstance(default.encoder, TwoFusedMaps)
    assert isinstance(default.encoder.fused.encoder, EfficientNetLite)
    assert small.encoder.in_channels == 1
    assert small.settings["encoder"] == "vit_tiny"
    with torch.device("meta"):
        fine = CoSA.network_from_preset("paper", encoder="vit_tiny", patch_size=8, image_size=64)
    assert fine.encoder.feature_strides == (8, 8)
    assert fine.encoder.grid == [8, 8]
    assert (fine.settings["patch_size"], fine.settings["image_size"]) == (8, 64)
    assert (volumes.spatial_dims, volumes.encoder.feature_strides) == (3, (2, 2))
    assert default.settings["decoder"] == "large_fov"
    changed = CoSA.network_from_preset(encoder=MixTransformer.tiny(2, 1), detach_seeds="features", decoder_width=4)
    assert changed.detach_seeds == "features"
    assert changed.settings["encoder"] == "MixTransformer"
    with pytest.raises(ValueError, match="`encoder` to be one of vit_tiny"):
        CoSA.network_from_preset(encoder="resnet")
