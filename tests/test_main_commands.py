# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of commands: every row fits the signature of its function, and help texts load no heavy package."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pydoc import locate
from types import SimpleNamespace
from typing import Any

import pytest

from monai_wsss.__main__ import main
from monai_wsss.benchmark.cmer_paper import CmerOptions, CmerRun
from monai_wsss.benchmark.gland_table import GlandOptions, make_gland_table
from monai_wsss.benchmark.method_benchmark import MethodBenchmark
from monai_wsss.benchmark.method_comparison import SharingOptions
from monai_wsss.command_line.arguments import REQUIRED, Argument, Command, Elsewhere
from monai_wsss.command_line.table import COMMANDS, LAYOUTS, SPLITS
from monai_wsss.data import splits
from monai_wsss.data.crops import TileOptions, TileRule
from monai_wsss.data.folder import LabelColumns
from monai_wsss.data.label_table import read_label_table

ROWS = [
    pytest.param(command, choice, path, id=f"{command.name} {choice}".strip())
    for command in (*LAYOUTS, *COMMANDS)
    for choice, path in (command.functions or {"": command.function}).items()
]
# Parameters that the command line leaves to Python on purpose.
ONLY_IN_PYTHON = {
    "phantom": {"subjects"},
    "benchmark": {"name", "recipes", "grid", "samples", "batch_size", "window", "scale"},
}
# Options that functions hand on together -> their names, and what takes them.
HANDED_ON = {
    "CmerOptions": (CmerOptions, CmerRun.of),
    "GlandOptions": (GlandOptions, make_gland_table),
    "SharingOptions": (SharingOptions, MethodBenchmark),
    "LabelColumns": (LabelColumns, read_label_table),
    "TileOptions": (TileOptions, TileRule),
}


def parameters_of(function: Any) -> dict[str, Any]:
    """Name -> default of all parameters; those that a function hands on stand at the one that takes them."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (handed, taker) = next(pair for name, pair in HANDED_ON.items() if name in str(parameter.annotation))
            taken = inspect.signature(taker).parameters
            found |= {option: taken[option].default for option in handed.__annotations__}
        else:
            found[name] = parameter.default
    return {name: REQUIRED if default is inspect.Parameter.empty else default for name, default in found.items()}


def default_of(argument: Argument, choice: str) -> Any:
    for beginning, default in argument.other_defaults.items():
        if choice.startswith(beginning):
            return default
    return locate(argument.default.path) if isinstance(argument.default, Elsewhere) else argument.default


@pytest.mark.parametrize(("command", "choice", "path"), ROWS)
def test_a_row_has_the_arguments_and_defaults_of_its_function(command: Command, choice: str, path: str):
    function = locate(path)
    assert callable(function), f"{path} does not exist"
    arguments = [argument for argument in command.arguments if not argument.only or choice in argument.only]
    parameters = parameters_of(function)
    required = [argument for argument in arguments if argument.default is REQUIRED]
    names = [name for name, default in parameters.items() if default is REQUIRED]
    assert [argument.name for argument in required] == names, "required arguments are passed by position"
    expected = {
        name: default for name, default in parameters.items() if name not in ONLY_IN_PYTHON.get(command.name, ())
    }
    assert {argument.name: default_of(argument, choice) for argument in arguments} == expected


def test_parameters_that_the_command_line_lacks_exist():
    for command in COMMANDS:
        paths = command.functions.values() or [command.function]
        known = set().union(*(parameters_of(locate(path)) for path in paths))
        assert ONLY_IN_PYTHON.get(command.name, set()) <= known


def test_names_are_given_once():
    for command in (*LAYOUTS, *COMMANDS):
        flags = [argument.flag for argument in command.arguments]
        assert len(set(flags)) == len(flags)
    words = [command.name for command in (*LAYOUTS, *COMMANDS)]
    assert len(set(words)) == len(words)


def test_the_splits_are_those_of_the_datalist():
    assert splits.SPLITS == SPLITS


HELPS = [
    [],
    ["prepare"],
    ["benchmark"],
    *(["prepare", layout.name] for layout in LAYOUTS),
    *([command.name] for command in COMMANDS),
]


def test_no_help_loads_a_heavy_package():
    code = (
        "import sys; from monai_wsss.__main__ import main; "
        f"assert not any(main([*command, '--help']) for command in {HELPS!r}); "
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prepare folder", ["(default id)", "(default 0.7,0.15,0.15)", "(default 0)", "default subject, or the id"]),
        ("prepare prog", ["(default those of the paper)", "(default 224)", "{image,table}"]),
        ("prepare voc", ["(default VOC's 20)"]),
        ("prepare brats", ["(default 0.5,99.5)", "--percentiles A,B"]),
        ("benchmark", ["(default 8; gland: 6)", "(default 0,1,2)", "(default cam)", "slices, tiles or patches"]),
    ],
)
def test_help_shows_the_defaults(command: str, words: list[str], capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "(default )" not in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--width", "3"],
            "error: --width is for the gland tables, not for cam: leave it out.\n",
        ),
        (
            ["--width", "3", "--every", "2"],
            "error: --every, --width are for the gland tables, not for cam: leave them out.\n",
        ),
        (["--refine", "par"], "error: --refine is for the levers tables, not for cam: leave it out.\n"),
        (
            ["--table", "gland", "--initial", "x"],
            "error: --initial is for the gland-adaptation tables, not for gland: leave it out.\n",
        ),
    ],
)
def test_arguments_of_other_tables_are_refused(arguments, sentence, capsys):
    assert main(["benchmark", "--data", "x", "--out", "y", *arguments]) == 1
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    "argument", [["--methods", "cam"], ["--encoders", "small"], ["--budget", "20m"], ["--processes", "2"]]
)
def test_both_forms_of_the_benchmark_in_one_call_are_refused(argument, capsys):
    assert main(["benchmark", "--data", "x", "--out", "y", "--table", "cam", *argument]) == 1
    assert capsys.readouterr().err == (
        f"error: --table and {argument[0]} are two forms of `benchmark`, and a call has one: leave one out.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--methods", "cam", "--width", "3"],
            "error: --width is for the gland tables, not for methods: leave it out.",
        ),
        (["--methods", "cam,nothing"], "error: Expected `methods` to be one of cam, "),
        (["--methods", "cam,cam"], "error: Expected `methods` to hold each name once, and one at least, "),
        (["--methods", "cam", "--encoders", "vgg"], "error: Expected `encoders` to be one of small, "),
        (["--budget", "20"], "error: Expected `budget` as a time such as 20m, or as 8-epochs or 300-steps, got '20'."),
        (["--budget", "0-steps"], "error: Expected `budget` as a time "),
        (["--processes", "0"], "error: Expected `processes` of at least 1, got 0."),
        (["--methods", "cam", "--side", "0"], "error: Expected `side` of at least 1 pixel, got 0."),
        (["--table", "encoder", "--side", "-5"], "error: Expected `side` of at least 1 pixel, got -5."),
        (
            ["--methods", "cam", "--seeds=-1"],
            "error: Expected `seeds` to be whole numbers from 0 to 2**32 - 1, each once, got [-1].",
        ),
        (
            ["--methods", "cam", "--seeds", "1,1"],
            "error: Expected `seeds` to be whole numbers from 0 to 2**32 - 1, each once, got ",
        ),
        (
            ["--table", "bmp", "--seeds=-1"],
            "error: Expected `seeds` to be whole numbers from 0 to 2**32 - 1, each once, got [-1].",
        ),
        (["--seeds", "0,0"], "error: Expected `seeds` to be whole numbers from 0 to 2**32 - 1, each once, got [0, 0]."),
    ],
)
def test_methods_that_make_no_sense_are_refused_in_a_sentence(arguments, sentence, capsys, tmp_path):
    assert main(["benchmark", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(sentence)


def test_only_given_arguments_are_passed(monkeypatch, tmp_path):
    passed: list[tuple[object, dict[str, object]]] = []

    def prepare(*paths: object, **options: object) -> None:
        passed.append((paths, options))
        raise ValueError("enough")

    monkeypatch.setattr("monai_wsss.data.folder.prepare_folder", prepare)
    arguments = ["prepare", "folder", "--out", "c", "--labels", "b", "--images", "a"]
    assert main(arguments) == main([*arguments, "--no-background", "--as-slices", "--label-columns", "x, y"]) == 1
    options = {"background": False, "as_slices": True, "label_columns": ("x", "y")}
    assert passed == [(("a", "b", "c"), {}), (("a", "b", "c"), options)]


def test_a_table_that_writes_figures_alone_ends_without_an_error(tmp_path, monkeypatch, capsys):
    table = SimpleNamespace(name="some", out=tmp_path, figures={"a.svg": None}, run=list)
    monkeypatch.setattr("monai_wsss.benchmark.make_cam_table", lambda *args, **words: table)
    (tmp_path / "datalist.json").write_text("{}", encoding="utf-8")
    command = ["benchmark", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"Figure: {tmp_path / 'a.svg'}\n"
    (tmp_path / "some.md").write_text("| row |", encoding="utf-8")
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("| row |\n")
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 0
    assert capsys.readouterr().out == ""


def test_runs_that_failed_are_told_by_the_exit_code_and_refused_ones_are_not(tmp_path, monkeypatch, capsys):
    states: list[str] = []
    bench = SimpleNamespace(
        name="leaderboard", out=tmp_path, figures={}, run=lambda: [SimpleNamespace(state=state) for state in states]
    )
    monkeypatch.setattr("monai_wsss.benchmark.make_method_benchmark", lambda *args, **words: bench)
    command = ["benchmark", "--data", str(tmp_path), "--out", str(tmp_path), "--methods", "cam"]
    for states[:], code, told in (
        (["measured", "refused"], 0, ""),
        (["measured", "failed", "refused"], 3, f"1 run failed, see {tmp_path / 'failures'}.\n"),
        (["failed", "failed"], 3, f"2 runs failed, see {tmp_path / 'failures'}.\n"),
    ):
        assert main(command) == code
        assert capsys.readouterr().out == told
    # Else torchrun would end the first process, which writes for all.
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 0
