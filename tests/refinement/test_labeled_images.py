# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A batch as the makers of labels read it: what the host knows, choosing images, boxes and padding, mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_wsss.refinement import LabeledImages
from monai_wsss.refinement.pseudo_label import outside_boxes

LABELS = {
    1: torch.tensor([[1.0], [0.0], [1.0], [0.0]]),
    3: torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
}
BOXES = torch.tensor([[0, 6, 0, 5], [1, 4, 2, 5], [0, 6, 0, 1], [5, 6, 4, 5]])


def images_of(classes: int, **options) -> LabeledImages:
    image = torch.rand(4, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    return LabeledImages(image, LABELS[classes], **options)


@pytest.mark.parametrize("classes", [1, 3])
def test_what_labels_say_is_known_on_the_host(classes):
    images, label = images_of(classes), LABELS[classes].tolist()
    assert images.held.dtype == bool
    assert images.held.tolist() == [[value == 1 for value in row] for row in label]
    assert images.with_findings == [n for n, row in enumerate(label) if any(row)]
    assert images.without_some == [n for n, row in enumerate(label) if not all(row)]
    held = [k for k in range(classes) if any(row[k] for row in label)]
    assert images.classes.tolist() == held
    assert images.label_values == [0, *(k + 1 for k in held)]
    assert images.found.tolist() == [any(row) for row in label]
    assert torch.equal(images.label, LABELS[classes])
    assert len(images) == 4


def test_healthy_images_have_nothing_to_find():
    images = LabeledImages(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3))
    assert (images.with_findings, images.without_some) == ([], [0, 1])
    assert (images.classes.tolist(), images.label_values) == ([], [0])
    assert images.classes.dtype == torch.long
    assert not images.found.any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=5), st.data())
def test_chosen_images_know_what_all_know(label, data):
    """Choosing commutes with every question."""
    count = len(label)
    chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count).map(sorted))
    boxes = torch.tensor([[n % 3, 3 + n % 2, 0, 4] for n in range(count)])
    label, image = torch.tensor(label).float(), torch.rand(count, 1, 4, 4)
    images = LabeledImages(image, label, image.flip(-1), boxes)
    part = images.of(chosen)
    expected = LabeledImages(image[chosen], label[chosen], image.flip(-1)[chosen], boxes[chosen])
    for name in ("image", "label", "intensity", "padding", "found", "classes"):
        assert torch.equal(getattr(part, name), getattr(expected, name))
    assert np.array_equal(part.held, expected.held)
    for name in ("regions", "with_findings", "without_some", "label_values"):
        assert getattr(part, name) == getattr(expected, name)


def test_all_images_are_the_batch_itself():
    images = images_of(3)
    assert images.of([0, 1, 2, 3]) is images
    assert images.of(images.with_findings).intensity is not None


def test_labels_spread_along_the_images_unless_intensities_are_given():
    images = images_of(1)
    assert images.intensity is images.image
    part = images.of([1])
    assert part.intensity is part.image
    given = images_of(1, intensity=torch.zeros(4, 7, 6, 5))
    assert given.of([0, 2]).intensity.shape == (2, 7, 6, 5)


def test_boxes_are_regions_and_what_lies_outside_is_padding():
    images = images_of(1, boxes=BOXES)
    assert images.regions[1] == (slice(1, 4), slice(2, 5))
    assert torch.equal(images.padding, outside_boxes(BOXES, torch.Size((6, 5))))
    for padding, (top, bottom, left, right) in zip(images.padding, BOXES.tolist(), strict=True):
        inside = {(y, x) for y in range(top, bottom) for x in range(left, right)}
        assert {tuple(place) for place in (~padding).nonzero().tolist()} == inside
    assert images_of(1).padding is None
    assert images_of(1).regions is None
    assert torch.equal(images.of([3]).padding, images.padding[3:])


def test_volumes_have_boxes_of_six_ends():
    images = LabeledImages(torch.zeros(1, 1, 4, 5, 6), torch.ones(1, 1), boxes=torch.tensor([[0, 4, 1, 3, 2, 6]]))
    assert images.padding.shape == (1, 4, 5, 6)
    assert int((~images.padding).sum()) == 4 * 2 * 4


def test_a_batch_is_read_by_its_names_and_without_its_metadata():
    batch = {"image": torch.rand(4, 1, 6, 5), "label": LABELS[1], "intensity": torch.rand(4, 2, 6, 5), "boxes": BOXES}
    images = LabeledImages.from_batch({name: MetaTensor(value) for name, value in batch.items()})
    for name in ("image", "label", "intensity"):
        assert type(getattr(images, name)) is torch.Tensor
        assert torch.equal(getattr(images, name), batch[name])
    assert images.regions == LabeledImages.from_batch(batch).regions
    plain = LabeledImages.from_batch({"image": batch["image"], "label": batch["label"], "mask": None})
    assert (plain.regions, plain.intensity) == (None, plain.image)


def test_labels_of_any_dtype_become_the_images():
    image = torch.rand(4, 1, 6, 5, dtype=torch.float64)
    images = LabeledImages(image, LABELS[3].to(torch.uint8))
    assert images.label.dtype == torch.float64
    assert torch.equal(images.label, LABELS[3].double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intensity": torch.zeros(4, 1, 6, 6)}, r"`intensity` of the images' batch and size \(4, 2, 6, 5\), got"),
        ({"intensity": torch.zeros(3, 1, 6, 5)}, "`intensity` of the images' batch and size"),
        ({"boxes": BOXES.float()}, "`boxes` of integers of shape"),
        ({"boxes": BOXES[:3]}, r"= \(4, 4\), got torch.int64 of shape \(3, 4\)"),
        ({"boxes": BOXES + 1}, "`boxes` of 0 <= first < last.1 <= side along each axis"),
    ],
)
def test_what_does_not_fit_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        images_of(1, **options)


def test_images_are_given_in_the_order_that_is_asked_for():
    images = images_of(3)
    turned = images.of([3, 2, 1, 0])
    assert torch.equal(turned.image, images.image.flip(0))
    assert turned.held.tolist() == images.held[::-1].tolist()
    assert torch.equal(images.of([1, 1, 1, 1]).label, images.label[[1, 1, 1, 1]])
    assert images.of([0, 1, 2, 3]) is images


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.ones(3, 1), r"`label` of shape \(B, K\) = \(4, 1\), got \(3, 1\)"),
        (torch.ones(4), r"`label` of shape \(B, K\), got \(4,\)"),
        (torch.full((4, 1), 0.5), "`label` to hold 0 and 1 only"),
        (torch.full((4, 1), torch.nan), "`label` to hold 0 and 1 only"),
    ],
)
def test_labels_that_are_none_are_told(label, message):
    with pytest.raises(ValueError, match=message):
        LabeledImages(torch.zeros(4, 1, 6, 5), label)
