# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The scripts of ``speed/`` load with the present package, and their harness measures what it says."""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import monai_wsss.methods

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


@pytest.mark.slow
def test_the_parts_of_predict_are_measured(load, capsys):
    script = load("predict_parts")
    script.measure([32, 32, 6], 2)
    printed = capsys.readouterr().out
    parts = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", printed, flags=re.M))
    assert list(parts) == ["start", "reading", "normalizing", "network", "mask", "writing", "page"]
    assert float(parts["page"]) > 0
    assert "The second study was read while the first was segmented" in printed


def test_the_parts_of_predict_are_where_the_script_looks_for_them(load):
    with load("predict_parts").watched([]):
        pass


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


def test_the_check_of_a_gpu_runs_its_half_without_one(load):
    script = load("gpu_check")
    result = script.check(torch.device("cpu"), size=32, count=4, repeats=1, tiny=True, backend="eager")
    assert result["failed"] == []
    names = {method.__name__ for method in script.TINY}
    assert names == set(monai_wsss.methods.__all__) - {"SegmentationNetwork", "WSSSMethod"}
    assert set(result["parity"]) == names
    assert {name.partition(",")[0] for name in result["steps"]} == names
    assert json.loads(json.dumps(result)) == result


def test_without_a_gpu_it_says_so_and_succeeds(load, monkeypatch, capsys):
    script = load("gpu_check")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script, "check", lambda device, **_: {"device": device.type, "failed": []})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"device": "cpu", "failed": []}
    assert printed.err == "There is no GPU here: the steps run on the CPU alone.\n"
