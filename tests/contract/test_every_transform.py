# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One contract for all transforms, by inventory: a new one that does not keep it fails here."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform

import monai_wsss.refinement
import monai_wsss.transforms
from monai_wsss.networks import CAMEncoder
from monai_wsss.refinement import ToMaskBySliced, ToMaskd
from monai_wsss.transforms import (
    NormalizeStaind,
    NormalizeSubjectd,
    PairedSpatialTransform,
    RandBlurd,
    RandColorOperationd,
    RandPhotometricDistortiond,
    RandScalePadCropd,
    RandStainJitterd,
    ResizeInPlaned,
    SaveImageMapd,
    SaveImageMaskd,
    SpatialRecord,
)

ROOMS = (monai_wsss.transforms, monai_wsss.refinement)
CLASSES = {name: getattr(room, name) for room in ROOMS for name in room.__all__ if inspect.isclass(getattr(room, name))}
DICTIONARY = {name for name, value in CLASSES.items() if issubclass(value, MapTransform)}
# Steps of a SpatialRecord, which test_paired_spatial.py tests; values, not transforms.
STEPS = {"FlipStep", "QuarterTurnStep", "ResizeStep", "ShiftStep", "SpatialRecord"}
BATCH = {"PairedSpatialTransform"}
# Reads files, not tensors; test_load_ordered.py tests it.
READERS = {"LoadImageOrderedd"}
FUNCTIONS = {
    "change_color",
    "gland_augmentation",
    "has_geometry",
    "imagenet_normalization",
    "resize_in_plane",
    "strong_and_weak_views",
    "write_mask",
}
CONSTANTS = {"COLOR_OPERATIONS", "SPATIAL_KINDS"}


def color(side: int = 16) -> torch.Tensor:
    """A stained section: purple and pink, bright background."""
    generator = torch.Generator().manual_seed(0)
    return 60 + 180 * torch.rand((3, side, side), generator=generator)


def network() -> CAMEncoder:
    made = CAMEncoder.tiny()
    made.set_healthy_level(-1.0, 0.0)
    return made


WRITERS = {"SaveImageMapd", "SaveImageMaskd"}
# How each is made, given a folder, and the item that it gets.
MADE: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "NormalizeStaind": (lambda folder: NormalizeStaind("image"), {"image": color()}),
    "NormalizeSubjectd": (lambda folder: NormalizeSubjectd("image"), {"image": color()}),
    "RandBlurd": (lambda folder: RandBlurd("image", 1.0), {"image": color()}),
    "RandColorOperationd": (
        lambda folder: RandColorOperationd("image", operations=["color", "brightness"]),
        {"image": color()},
    ),
    "RandPhotometricDistortiond": (lambda folder: RandPhotometricDistortiond("image"), {"image": color()}),
    "RandScalePadCropd": (lambda folder: RandScalePadCropd("image", (12, 20)), {"image": color()}),
    "RandStainJitterd": (lambda folder: RandStainJitterd("image", 1.0), {"image": color()}),
    "ResizeInPlaned": (lambda folder: ResizeInPlaned("image", (8, 12)), {"image": color()}),
    "SaveImageMapd": (
        lambda folder: SaveImageMapd("image", folder, image_key="source"),
        {"image": torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), "source": color(8), "id": "one"},
    ),
    "SaveImageMaskd": (
        lambda folder: SaveImageMaskd("image", folder, image_key="source"),
        {"image": torch.ones(1, 8, 8, dtype=torch.uint8), "source": color(8), "id": "one"},
    ),
    "ToMaskBySliced": (
        lambda folder: ToMaskBySliced("image", network()),
        {"image": torch.linspace(-2, 2, 64).reshape(1, 8, 8)},
    ),
    "ToMaskd": (lambda folder: ToMaskd("image", network()), {"image": torch.linspace(-2, 2, 64).reshape(1, 8, 8)}),
}


def test_every_transform_is_in_the_inventory():
    assert set(MADE) == DICTIONARY - READERS
    others = {name for name, value in CLASSES.items() if issubclass(value, Transform)} - DICTIONARY
    assert others <= BATCH
    of_room = set(monai_wsss.transforms.__all__) - DICTIONARY - STEPS - BATCH - CONSTANTS
    assert of_room == FUNCTIONS, "a new function of transforms/ needs its place in this contract"


def fresh(name: str) -> dict[str, Any]:
    item = MADE[name][1]
    return {key: value.clone() if torch.is_tensor(value) else value for key, value in item.items()} | {"other": "kept"}


def apply(transform: Any, item: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed)
    return transform(item)


@pytest.mark.parametrize("name", sorted(MADE))
def test_other_keys_and_the_item_itself_are_left_alone(name, tmp_path):
    item = fresh(name)
    before = item["image"].clone()
    result = apply(MADE[name][0](tmp_path), item)
    assert result is not item
    assert result["other"] == "kept"
    assert torch.equal(item["image"], before), "the input was changed in place"
    assert torch.as_tensor(result["image"]).isfinite().all()


@pytest.mark.parametrize("name", sorted(set(MADE) - WRITERS))
def test_random_draws_follow_the_seed(name, tmp_path):
    transform = MADE[name][0](tmp_path)
    first, second, third = (apply(transform, fresh(name), seed)["image"] for seed in (1, 1, 2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(first, third) is not isinstance(transform, Randomizable)


@pytest.mark.parametrize("name", sorted(set(MADE) - WRITERS))
def test_tensors_with_metadata_give_the_same_values(name, tmp_path):
    transform = MADE[name][0](tmp_path)
    plain = apply(transform, fresh(name))["image"]
    item = fresh(name)
    item["image"] = MetaTensor(item["image"])
    wrapped = apply(transform, item)["image"]
    torch.testing.assert_close(
        torch.as_tensor(wrapped.as_tensor() if isinstance(wrapped, MetaTensor) else wrapped), plain
    )


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_missing_key_is_an_error_unless_allowed(name, tmp_path):
    transform = MADE[name][0](tmp_path)
    item = {key: value for key, value in fresh(name).items() if key != "image"}
    with pytest.raises(KeyError):
        apply(transform, dict(item))
    transform.allow_missing_keys = True
    assert "image" not in apply(transform, dict(item))


@pytest.mark.parametrize("name", sorted(MADE))
def test_workers_of_a_loader_get_a_copy(name, tmp_path):
    transform = MADE[name][0](tmp_path)
    copied = pickle.loads(pickle.dumps(transform))
    results = [torch.as_tensor(apply(one, fresh(name))["image"]) for one in (transform, copied)]
    torch.testing.assert_close(*results)


def test_transforms_of_batches_draw_a_record_that_moves_images_and_maps_alike():
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.manual_seed(0)
    record = PairedSpatialTransform().draw(image.shape)
    assert isinstance(record, SpatialRecord)
    moved = record(image)
    torch.testing.assert_close(record(torch.cat((image, 2 * image), 1)), torch.cat((moved, 2 * moved), 1))
    moved.sum().backward()
    assert image.grad.isfinite().all()
