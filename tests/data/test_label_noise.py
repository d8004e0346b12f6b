# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Wrong labels on purpose: how many, among which, seeded, and in the record."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from monai_wsss.data import LabelNoise
from monai_wsss.reports.provenance import settings_of

ITEMS = [{"id": str(number), "label": np.array([float(number < 60)], dtype=np.float32)} for number in range(200)]


def changed(given: list[dict[str, Any]], items: Any = ITEMS) -> list[int]:
    return [
        place for place, (one, other) in enumerate(zip(given, items, strict=True)) if one["label"] != other["label"]
    ]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_the_share_is_exact_and_items_stay_as_they_were(share):
    before = [item["label"].copy() for item in ITEMS]
    given = LabelNoise(share)(ITEMS)
    assert len(changed(given)) == round(200 * share)
    assert [item["id"] for item in given] == [item["id"] for item in ITEMS]
    assert all(np.array_equal(item["label"], label) for item, label in zip(ITEMS, before, strict=True))
    assert all(item["label"].dtype == np.float32 for item in given)


@pytest.mark.parametrize(("among", "diseased", "healthy"), [("each", 12, 28), ("diseased", 12, 0), ("healthy", 0, 28)])
def test_the_share_may_be_that_of_a_kind(among, diseased, healthy):
    places = changed(LabelNoise(0.2, among=among)(ITEMS))
    assert (sum(place < 60 for place in places), sum(place >= 60 for place in places)) == (diseased, healthy)


def test_draws_depend_on_the_seed_alone():
    noise = LabelNoise(0.1, seed=3)
    assert changed(noise(ITEMS)) == changed(noise(ITEMS)) == changed(LabelNoise(0.1, seed="3")(ITEMS))  # type: ignore[arg-type]
    assert changed(noise(ITEMS)) != changed(LabelNoise(0.1, seed=4)(ITEMS))


def test_one_class_of_several_changes_and_one_may_be_kept():
    items = [{"label": np.array(label, dtype=np.float32)} for label in [(1, 0, 0)] * 30 + [(1, 1, 0)] * 30]
    for keep_one in (False, True):
        given = LabelNoise(1.0, keep_one=keep_one)(items)
        assert all(np.abs(one["label"] - other["label"]).sum() == 1 for one, other in zip(given, items, strict=True))
        assert any(not one["label"].any() for one in given) != keep_one


def test_a_single_class_that_has_to_stay_stays():
    items = [{"label": [1.0]}] * 4
    assert [item["label"] for item in LabelNoise(1.0, keep_one="true")(items)] == [[1.0]] * 4


def test_the_record_tells_what_was_changed(caplog):
    noise = LabelNoise("0.1", seed=5)  # type: ignore[arg-type]
    given = noise(ITEMS)
    record = settings_of(noise)["label_noise"]
    lost = sum(place < 60 for place in changed(given))
    assert record == {
        "share": 0.1, "among": "all", "keep_one": False, "seed": 5, "lost": lost, "gained": 20 - lost,
    }  # fmt: skip
    assert json.loads(json.dumps(record)) == record
    assert "Wrong labels on purpose" in caplog.text
    assert settings_of(LabelNoise(0)) == {"label_noise": {"share": 0.0}}


@pytest.mark.parametrize("words", [{"share": 1.5}, {"share": -0.1}, {"share": "nan"}, {"among": "some"}])
def test_mistakes_are_named(words):
    with pytest.raises(ValueError, match=r"`share` of wrong labels in \[0, 1\]|`among` to be one of"):
        LabelNoise(**words)
