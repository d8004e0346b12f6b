# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Scenes: labels and masks agree, a context comes with its class and only with it, and the datalist says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_wsss._checks import DataError
from monai_wsss.data import check_trainable, load_datalist, load_header, make_phantoms, write_datalist
from monai_wsss.data.phantom_scene import CLASSES, CONTEXT, SHAPE, draw_scene
from monai_wsss.data.reading import read_image, read_labels


@pytest.mark.parametrize("number", range(16))
def test_masks_hold_the_classes_of_the_label(number):
    label = tuple(number >> place & 1 for place in range(3))
    drawn = draw_scene(np.random.default_rng([5, number]), label=label)
    assert drawn.image.shape == (3, *SHAPE)
    sizes = [int((drawn.mask == value).sum()) for value in (1, 2, 3)]
    assert all(size > 20 if present else size == 0 for size, present in zip(sizes, label, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("label", "has_context"), [((1, 0, 0), True), ((0, 1, 0), True), ((0, 0, 1), False)])
def test_a_context_comes_with_its_class_and_is_background(label, has_context, seed):
    """All chance is drawn apart for each class, so that two drawings differ in a class and its context alone."""
    alone, empty = (draw_scene(np.random.default_rng(seed), label=shown) for shown in (label, (0, 0, 0)))
    changed = np.abs(alone.image.astype(int) - empty.image).max(axis=0) > 25
    context = changed & (alone.mask[0] == 0)
    assert (changed & (alone.mask[0] > 0)).sum() > 0.8 * (alone.mask > 0).sum()
    assert bool(context[0].any() and context[-1].any()) == has_context, "branches and rails run from border to border"
    assert (context.sum() > 100) == has_context


def test_the_datalist_names_the_context_and_every_class_has_both_labels(tmp_path):
    folder = Path(make_phantoms(tmp_path, kind="scene", subjects=(8, 8, 1)))
    header = load_header(folder / "datalist.json")
    assert header["context"] == CONTEXT == {"bird": "branch", "train": "rails"}
    assert header["classes"] == list(CLASSES)
    for split in ("training", "validation"):
        items = load_datalist(folder / "datalist.json", split, masks=True)
        check_trainable(items)
        for item in items:
            shown = set(np.unique(read_labels(item["mask"]))) - {0}
            assert shown == {value for value, present in enumerate(item["label"], start=1) if present}
            assert read_image(item["image"]).shape == (3, *SHAPE)
            np.testing.assert_allclose(item["intensity_mean"], [123.675, 116.28, 103.53])


def test_other_seeds_give_other_scenes(tmp_path):
    files = [
        Path(make_phantoms(tmp_path / str(place), kind="scene", subjects=(2, 0, 0), seed=seed)) / "datalist.json"
        for place, seed in enumerate((0, 0, 1))
    ]
    same, again, other = (Path(load_datalist(file, "training")[1]["image"]).read_bytes() for file in files)
    assert same == again != other


@pytest.mark.parametrize("context", [["bird"], {"boat": "sea"}, {"bird": ""}, {"bird": 3}])
def test_a_context_maps_classes_to_words(tmp_path, context):
    folder = Path(make_phantoms(tmp_path, kind="scene", subjects=(1, 0, 0)))
    datalist = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    with pytest.raises(DataError, match='"context" must map classes to what always accompanies them'):
        write_datalist(folder, {**datalist, "context": context})
