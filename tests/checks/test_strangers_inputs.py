# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The scripts that run strangers' inputs: commands of a README, and the verdict on an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "checks"))


def make_case(folder: Path, readme: str) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(folder / "images" / f"{name}.png")
    (folder / "labels.csv").write_text("id,label,split\na,1,train\nb,2,train\n")
    (folder / "README.md").write_text(readme)
    return folder


PREPARE = "monai-wsss prepare folder --images images --labels labels.csv --out out"


@pytest.mark.parametrize(
    ("readme", "steps"),
    [
        (f"What: a label 2.\nCommand: {PREPARE}\nExpected: a sentence.", [PREPARE]),
        (f"Command: {PREPARE}; then, in bundles/x_y: python -m a\nSeen: b", [PREPARE, "python -m a"]),
        ("Run: python run.py FILE.pt          (any model.pt)", ["python run.py FILE.pt"]),
        ("Command: `sh run.sh`; then any training", ["sh run.sh"]),
        ("Run: write something, then inference.json.", []),
    ],
)
def test_steps_are_the_commands_of_the_readme(tmp_path, readme, steps):
    import cases

    assert cases.steps_of(make_case(tmp_path / "case", readme)) == steps


def test_a_case_gives_the_sentence_of_the_project_without_paths(tmp_path):
    import answers
    import cases

    (tmp_path / "work").mkdir()
    case = make_case(tmp_path / "case", f"Command: {PREPARE}")
    answer = cases.answer_of_case(case, tmp_path / "work")
    assert answer.code == 1
    assert "labels.csv, row 3: the label in column" in answers.said(answer)
    assert str(tmp_path) not in answers.said(answer)


def test_an_answer_is_right_if_it_tells_what_is_expected(capsys):
    import writers
    from answers import Answer

    inputs: list[writers.Input] = []
    for code, text in ((0, "a word"), (1, "a word"), (0, "nothing"), (0, "a word, RAW KeyError: 1")):
        writers.entry(inputs, "K1", "an input", "a word", "word")(lambda _, code=code, text=text: Answer(code, [text]))
    assert writers.print_table(inputs, []) == 1
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["yes", "**no**", "**no**", "**no**"]
    assert writers.print_table(inputs, ["1"]) == 0
