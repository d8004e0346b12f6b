# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the comparison of methods trains, on an equal footing, and pairs that have no meaning."""

from __future__ import annotations

import json

import pytest
import torch

from monai_wsss.benchmark.method_recipes import (
    ENCODERS,
    METHODS,
    OWN_GENERATOR,
    Facts,
    Pair,
    method_recipes,
    pairs_of,
    why_not,
)
from monai_wsss.command_line.table import COMMANDS
from monai_wsss.methods import ClassActivationMapping

MRI = Facts("slices", ("T1", "FLAIR"), ("tumor",))
TISSUE = Facts("patches", ("red", "green", "blue"), ("gland", "other"))
TILES = Facts("tiles", ("red", "green", "blue"), ("lesion",))


def test_a_method_with_its_own_network_has_one_pair():
    pairs = pairs_of(["cam", "coingan", "full"], ["small", "efficientnet"])
    assert [pair.encoder for pair in pairs if pair.method == "coingan"] == [OWN_GENERATOR]
    assert [pair.encoder for pair in pairs if pair.method == "cam"] == ["small", "efficientnet"]


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        (MRI, {"gland"}),
        (TISSUE, {"cmer", "afa", "bmp", "cosa", "coingan"}),
        (TILES, {"cmer", "gland", "coingan"}),
        (Facts("slices", ("FLAIR",), ("tumor",)), {"cmer", "gland"}),
        (Facts("slices", ("T1", "T2"), ("core", "edema")), {"gland", "coingan"}),
        (Facts("slices", ("T1", "T2"), ("tumor",), training_masks=False), {"gland", "full"}),
        (Facts("slices", ("T1", "T2"), ("tumor",), without_healthy=True), {"gland", "coingan"}),
    ],
)
def test_pairs_without_a_meaning_are_refused_in_one_sentence(facts, refused):
    reasons = {method: why_not(method, facts) for method in METHODS}
    assert {method for method, reason in reasons.items() if reason} == refused
    for reason in filter(None, reasons.values()):
        assert reason.endswith(".")
        assert reason.count(". ") == 0


def recipes_of(method: str, kind: str = "slices", encoder: str = "small", steps: int = 40):
    channels = ("T1", "FLAIR") if kind == "slices" else ("red", "green", "blue")
    (pair,) = pairs_of([method], [encoder])
    return method_recipes(pair, kind, steps, channels), len(channels)


def test_the_command_line_names_all_methods():
    (benchmark,) = [command for command in COMMANDS if command.name == "benchmark"]
    (argument,) = [argument for argument in benchmark.arguments if argument.flag == "--methods"]
    assert argument.help.endswith(", ".join(METHODS))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_and_read_alike(method, encoder):
    kind = "patches" if method == "gland" else "slices"
    recipes, channels = recipes_of(method, kind, encoder)
    for recipe in recipes.values():
        built = recipe.build(channels, 2 if kind == "patches" else 1)
        assert built.uses_masks == (method == "full")
        assert recipe.views == "none"
        assert recipe.steps == (20 if method == "gland" else 40)
        json.dumps(recipe.settings)
    if method not in ("gland", "coingan"):
        cam = next(iter(recipes_of("cam", encoder=encoder)[0].values()))
        assert (recipe.optimizer, recipe.batch_size) == (cam.optimizer, cam.batch_size)


def test_the_small_encoder_has_the_presets_for_training_from_scratch():
    default = ClassActivationMapping.network_from_preset(in_channels=2).settings["pooling"]
    for encoder, pooling, preset in (("small", default, "scratch"), ("efficientnet", "topk", "default")):
        for method in ("cam", "seam", "cmer", "cosa", "bmp", "afa"):
            recipes, channels = recipes_of(method, encoder=encoder)
            (recipe,) = recipes.values()
            built = recipe.build(channels, 1)
            if method in ("bmp", "afa"):
                assert built.settings["preset"] == preset
                continue
            assert {part.pooling for part in built.network.modules() if hasattr(part, "pooling")} == {pooling}
            assert recipe.settings["pooling"] == pooling
    (on_tiles,) = recipes_of("cam", "tiles")[0].values()
    assert on_tiles.build(3, 1).settings["pooling"] == "topk"


def test_gradcam_explains_the_network_of_plain_cam():
    assert Pair("gradcam++", "small").trained == Pair("cam", "small").trained
    (of_cam,), (explained,) = (list(recipes_of(method)[0].values()) for method in ("cam", "gradcam++"))
    assert of_cam.settings == explained.settings


def test_settings_tell_the_length_and_change_with_it():
    short, long = (recipes_of("cosa", steps=steps)[0]["cosa small"].settings for steps in (40, 4000))
    assert (short["steps"], short["momentum"]) == (40, 0.5)
    assert (long["steps"], long["momentum"]) == (4000, 0.995)


def test_networks_of_one_encoder_have_it_alike():
    def parameters(method: str) -> int:
        recipes, channels = recipes_of(method)
        (recipe,) = recipes.values()
        return sum(parameter.numel() for parameter in recipe.build(channels, 1).network.parameters())

    torch.manual_seed(0)
    assert parameters("seam") == parameters("cam")
    assert parameters("cmer") > parameters("cam")  # a network per modality
