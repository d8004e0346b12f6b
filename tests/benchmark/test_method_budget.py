# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Budgets of the comparison of methods: their forms, and that a time becomes steps once."""

from __future__ import annotations

import json

import pytest

from monai_wsss.benchmark.method_budget import BudgetRecord, TrainingBudget


@pytest.mark.parametrize(
    ("text", "amount", "kind"),
    [
        ("20m", 1200.0, "seconds"), ("90s", 90.0, "seconds"), ("1.5h", 5400.0, "seconds"),
        ("8-epochs", 8, "epochs"), ("1-epoch", 1, "epochs"), ("300-steps", 300, "steps"), (" 1-step ", 1, "steps"),
    ],
)  # fmt: skip
def test_forms(text, amount, kind):
    assert TrainingBudget.read(text) == TrainingBudget(amount, kind)


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "0-steps", "-3-steps", "20-minutes", "2.5-epochs", "8 epochs"])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match="Expected `budget` as a time such as 20m, or as 8-epochs or 300-steps, got"):
        TrainingBudget.read(text)


def test_a_time_is_turned_into_steps_once(tmp_path):
    timed = []

    def time_step() -> float:
        timed.append(1)
        return 0.5 * len(timed)

    record = BudgetRecord(tmp_path / "steps.json", TrainingBudget.read("10s"))
    assert record.steps("a", "cam small", 7, time_step) == 20
    again = BudgetRecord(tmp_path / "steps.json", TrainingBudget.read("10s"))
    assert again.steps("a", "cam small", 7, time_step) == 20
    assert len(timed) == 1
    assert again.steps("b", "seam small", 7, time_step) == 10
    content = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    assert content["a"] == {
        "row": "cam small", "budget": "10 seconds", "seconds_per_step": 0.5, "steps_per_epoch": 7, "steps": 20,
    }  # fmt: skip


def test_another_time_is_counted_by_the_same_seconds(tmp_path):
    timed = [0.5, 0.3]
    for text, steps in [("10s", 20), ("5s", 10), ("7-steps", 7), ("10s", 20)]:
        record = BudgetRecord(tmp_path / "steps.json", TrainingBudget.read(text))
        assert record.steps("a", "cam small", 7, lambda: timed.pop(0)) == steps
    assert timed == [0.3]


def test_another_budget_is_counted_anew_without_timing(tmp_path):
    def never() -> float:
        raise AssertionError("epochs and steps need no time")

    path = tmp_path / "steps.json"
    assert BudgetRecord(path, TrainingBudget.read("3-epochs")).steps("a", "cam", 7, never) == 21
    assert BudgetRecord(path, TrainingBudget.read("5-steps")).steps("a", "cam", 7, never) == 5


def test_a_time_shorter_than_a_step_is_a_step():
    assert TrainingBudget.read("1s").steps(10, 4.0) == 1
