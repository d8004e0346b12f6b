# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A row of the table of commands, its arguments, and how their texts are read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

__all__ = [
    "REQUIRED",
    "Argument",
    "Command",
    "Elsewhere",
    "datalist_in",
    "names",
    "pair",
    "pairs",
    "setting",
    "triple",
    "whole_numbers",
]

REQUIRED = object()
"""Default of an argument without default."""


def names(text: str) -> tuple[str, ...]:
    """Read ``"T1,FLAIR"`` as a tuple."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return found


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """Read ``"0.7,0.15,0.15"`` as a tuple of ``count`` numbers."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them, got {text!r}")
    return numbers


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read ``"0,1,2"`` as a tuple."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from error


def pairs(text: str) -> dict[str, str]:
    """Read ``"T1=FLAIR,T2=FLAIR"`` as a table."""
    found = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in found):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with commas between them, got {text!r}")
    return {name.strip(): value.strip() for name, _, value in found}


def setting(text: str) -> dict[str, Any]:
    """Read ``"refine=par"`` as a table of one; a value in JSON's form, such as ``[64, 64]``, is read as such."""
    name, _, value = text.partition("=")
    if not name.strip() or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return {name.strip(): json.loads(value)}
    except ValueError:
        return {name.strip(): value}


def datalist_in(text: str) -> Path:
    """Give the datalist of a prepared folder."""
    return Path(text) / "datalist.json"


pair, triple = partial(_numbers, count=2), partial(_numbers, count=3)

_METAVARS = {names: "A,B", pairs: "A=B", whole_numbers: "A,B", pair: "A,B", triple: "A,B,C", int: "N", float: "F"}


@dataclass(frozen=True)
class Elsewhere:
    """A default that a constant of the package holds, too long for a help text.

    Attributes:
        path: dotted path of the constant.
        shown: the words for the help text.
    """

    path: str
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Argument:
    """An argument of a command, which is a parameter of its function.

    Attributes:
        flag: ``--out``, or a word for an argument by position.
        help: one line; a default that is a value is added to it, unless it is empty.
        default: default of the parameter.  :data:`REQUIRED` means that there is none, None that the help text says what
            happens.  True or False make a flag without value, which sets the parameter to the opposite.
        kind: function that reads the text; None keeps the text.
        metavar: the word for the value in help texts; None takes that of the kind.
        choices: the permitted values; none permit all.
        parameter: name of the parameter, for :attr:`name`; empty takes the name from the flag.
        only: words of the chooser whose functions have the parameter; empty means all functions.
        other_defaults: beginning of a word of the chooser -> default of its function, where functions differ.
        alone: the value where the flag is given without one; None asks for one.
    """

    flag: str
    help: str
    default: Any = None
    kind: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    parameter: str = ""
    only: tuple[str, ...] = ()
    other_defaults: Mapping[str, Any] = field(default_factory=dict)
    alone: str | None = None

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.parameter or self.flag.lstrip("-").replace("-", "_")

    def options(self) -> dict[str, Any]:
        """Give the keywords for argparse; an argument that is not given becomes None."""
        options: dict[str, Any] = {"help": self.help, "dest": self.name}
        if isinstance(self.default, bool):
            return {**options, "action": "store_const", "const": not self.default}
        if self.kind is setting:  # may be given several times
            return {**options, "type": setting, "action": "append", "metavar": "NAME=VALUE"}
        if self.default not in (None, (), REQUIRED):
            others = "".join(f"; {name}: {_shown(value)}" for name, value in self.other_defaults.items())
            options["help"] += f" (default {_shown(self.default)}{others})"
        if self.choices:
            options["choices"] = self.choices
        else:
            options["metavar"] = self.metavar or _METAVARS.get(self.kind or str)
        if not self.flag.startswith("-"):
            del options["dest"]
        elif self.default is REQUIRED:
            options["required"] = True
        if self.alone is not None:
            options |= {"nargs": "?", "const": self.alone}
        return {**options, "type": self.kind or str}


def _shown(default: Any) -> str:
    """Write a default as it is typed on the command line."""
    values = default if isinstance(default, tuple) else (default,)
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        name: the word on the command line.
        help: one line.
        example: command lines, for the help text.
        function: dotted path of the function that runs.  Required arguments are passed by position, others by name
            and only if they are given.
        arguments: the arguments; required ones in the order of the function.
        functions: word -> dotted path, for a command with several functions.
        chooser: for a command with several functions, the argument that takes one of the words.
        other_form: a word of ``functions`` that no value of the chooser means: it is meant where one of the arguments
            that only its function has is given, and the chooser is not.
    """

    name: str
    help: str
    example: str
    arguments: tuple[Argument, ...]
    function: str = ""
    functions: Mapping[str, str] = field(default_factory=dict)
    chooser: Argument | None = None
    other_form: str = ""
