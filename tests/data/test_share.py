# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A share of the items: the same share of every combination of labels, at least one of each, fixed by the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_wsss.data import draw_share

LABELS = st.lists(st.sampled_from([(1, 0), (0, 1), (1, 1)]), min_size=1, max_size=60)


@given(LABELS, st.floats(0.01, 1.0), st.integers(0, 5))
def test_every_combination_is_there_and_the_order_is_kept(labels, share, seed):
    items = [{"id": number, "label": label} for number, label in enumerate(labels)]
    drawn = draw_share(items, share, seed=seed)
    assert drawn == draw_share(items, share, seed=seed)
    assert [item["id"] for item in drawn] == sorted({item["id"] for item in drawn})
    for label in set(labels):
        count = sum(item["label"] == label for item in drawn)
        assert count == max(1, round(share * labels.count(label)))


def test_another_seed_is_another_draw():
    items = [{"id": number, "label": [1, 0]} for number in range(100)]
    assert draw_share(items, 0.1, seed=0) != draw_share(items, 0.1, seed=1)
    assert draw_share(items, 1.0) == items


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_outside_is_refused(share):
    with pytest.raises(ValueError, match="`share` in"):
        draw_share([{"label": [1]}], share)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.1, 2), (1.0, 20)])
def test_a_share_of_the_images_is_all_patches_of_few_images(share, count):
    """Fig. 4 of the gland paper: 1 % of the samples must not be one patch of every image."""
    patches = [
        {"id": f"{image}_{patch}", "source": f"i{image}", "label": [patch % 2, 1 - patch % 2]}
        for image in range(20)
        for patch in range(5)
    ]
    drawn = draw_share(patches, share, seed=1, of="images")
    assert len({item["source"] for item in drawn}) == count
    assert len(drawn) == 5 * count
    assert drawn == [item for item in patches if item in drawn]


def test_images_are_drawn_until_every_class_is_there():
    patches = [{"id": str(n), "source": f"i{n // 2}", "label": [1, int(n // 2 == 7)]} for n in range(20)]
    for seed in range(5):
        drawn = draw_share(patches, 0.01, seed=seed, of="images")
        assert any(item["label"][1] for item in drawn)


def test_an_unknown_share_is_refused():
    with pytest.raises(ValueError, match="`of` to be one of items, images"):
        draw_share([{"label": [1]}], 0.5, of="patches")
