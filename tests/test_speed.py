# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The scripts of ``speed/`` load with the present package, and their harness measures what it says."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "speed"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_loads_and_is_on_the_page_of_results(load, name):
    if name == "whole_slide":
        pytest.importorskip("tifffile")
    module = load(name)
    assert module.__doc__
    if name != "harness":
        assert f"python speed/{name}.py" in module.__doc__
        assert callable(module.main)
        page = (FOLDER.parent / "docs" / "results" / "speed.md").read_text(encoding="utf-8")
        assert f"speed/{name}.py" in page


def test_steps_take_turns(load):
    harness = load("harness")
    order = []

    def step(name):
        return lambda number: order.append((name, number)) or len(order)

    rounds, results = harness.rounds_in_turn({"a": step("a"), "b": step("b")}, {"a": 2, "b": 1})
    assert order == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1)]
    assert {name: len(own) for name, own in rounds.items()} == {"a": 2, "b": 1}
    assert results == {"a": 5, "b": 4}
    assert harness.median_milliseconds({"sleep": lambda number: time.sleep(0.01)}, 3)["sleep"] >= 10


def test_a_table_is_markdown(load, capsys):
    harness = load("harness")
    harness.print_heads("map", "time")
    harness.print_line("8 x 8", 3)
    assert capsys.readouterr().out == "| map | time |\n|---|--:|\n| 8 x 8 | 3 |\n"
