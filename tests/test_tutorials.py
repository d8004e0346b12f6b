# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every tutorial runs as a newcomer would run it, and finds the findings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kind, _, shown = done.stdout.strip().splitlines()[-1].partition(": ")
    assert kind in ("Report", "Picture")
    assert Path(shown).is_file()
    dice = [float(value) for value in re.findall(r"^\w*:? ?Dice .*?(\d\.\d\d)", done.stdout, re.MULTILINE)]
    assert dice, "no Dice is told"
    assert dice[0] > 0.3, "a threshold on FLAIR does better"


def test_tutorials_are_numbered_in_percent_format():
    assert [path.name[:2] for path in TUTORIALS] == [f"{number:02}" for number in range(1, len(TUTORIALS) + 1)]
    for path in TUTORIALS:
        _, first, second = path.read_text(encoding="utf-8").split("\n# %%", 2)
        assert first.startswith(" [markdown]\n# # "), path.name
        assert "Research use only, not for diagnosis." in first
        assert not second.startswith(" [markdown]"), path.name


def test_own_loop_is_as_short_as_it_says():
    (script,) = (path for path in TUTORIALS if "own_loop" in path.stem)
    cell = script.read_text(encoding="utf-8").split("\n# %%\n")[2].split("\n# %%")[0]
    lines = [line for line in cell.splitlines() if line.strip()]
    assert lines[0].startswith("unet = ")
    assert 20 < len(lines) <= 30
