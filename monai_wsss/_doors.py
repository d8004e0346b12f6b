# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Explain at the public doors why arguments do not fit, where no check has said it before.

Each room ends with ``open_doors(globals())``.  From then on its functions, the constructors and builders of its
classes, and calls of their instances have one more sentence: an error of torch, NumPy or Python that wrong arguments
caused becomes a ``ValueError`` that names the argument, or says what all of them were.  Nothing is looked at before an
error, so a call that fits costs nothing more, and no tensor is read.  Inner parts import each other from the modules,
not from the rooms, and have no door.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dis
import functools
import inspect
import numbers
import re
import reprlib
import sys
import sysconfig
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_wsss._checks import misfit

__all__ = ["explained", "open_doors"]

_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"])
_KINDS = (
    TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError, IndexError, KeyError, AssertionError,
    ZeroDivisionError, OverflowError,
)  # fmt: skip
# Rooms whose functions and modules calculate: there an error that nothing else explains comes from the arguments.
_CALCULATING = ("cams", "inferers", "losses", "methods", "metrics", "networks", "refinement", "transforms")
# Rooms that also read, write and train: there a RuntimeError may be a failure of the machine.
_HANDLING = ("data", "engines", "reports")
_NO_MISFIT = ("out of memory", "CUDA", "DataLoader", "allow_missing_keys", "unexpected keyword argument")


# --- Where an error comes from -----------------------------------------------------------------------------------


def _is_told(trace: TracebackType | None) -> bool:
    """Tell whether this package raised the error itself, or code that is neither its own nor of a library did."""
    frames: list[tuple[FrameType, int]] = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lasti))
        trace = trace.tb_next
    frame, at = frames[-1]
    if frame.f_code.co_filename.startswith(_PACKAGE):
        return frame.f_code.co_code[at] == dis.opmap["RAISE_VARARGS"]
    files = (frame.f_code.co_filename for frame, _ in frames[1:])
    return any(not file.startswith((_PACKAGE, *_LIBRARIES, "<")) and not file.endswith(".pyx") for file in files)


# --- Whether an argument is of the type that the signature says --------------------------------------------------

_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real, complex: numbers.Complex}


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type; types that cannot be looked into fit all values."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value is one or (isinstance(value, type(one)) and value == one) for one in inner)
    if origin is collections.abc.Callable or hint is Callable:
        return callable(value)
    if origin is tuple:
        of_one = len(inner) == 2 and inner[1] is Ellipsis
        return isinstance(value, (tuple, list)) and (
            all(_fits(one, inner[0]) for one in value)
            if of_one
            else len(value) == len(inner) and all(map(_fits, value, inner))
        )
    kind = origin or _NUMBERS.get(hint, hint)
    if not inspect.isclass(kind):
        return True
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:
        return True
    return _parts_fit(value, kind, inner)


def _parts_fit(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, str) and kind is not str and inner:
        return False
    if issubclass(kind, Mapping) and len(inner) == 2:
        return all(_fits(key, inner[0]) and _fits(one, inner[1]) for key, one in list(value.items())[:50])
    if isinstance(value, Sequence) and len(inner) == 1:
        return all(_fits(one, inner[0]) for one in value[:50])
    return True


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Give the types of a function's parameters; those that cannot be resolved are left out."""
    known: dict[str, Any] = {}
    known_names = getattr(inspect.unwrap(function), "__globals__", None) or vars(sys.modules[function.__module__])
    for name, hint in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        with contextlib.suppress(Exception):
            known |= typing.get_type_hints(alone, known_names)
    return known


def _wrong_type(function: Callable[..., Any], bound: inspect.BoundArguments) -> str:
    """Say which argument has another type than the signature says, or nothing."""
    hints = _hints(function)
    for name, value in bound.arguments.items():
        if name not in hints:
            continue
        kind = bound.signature.parameters[name].kind
        each = [(name, value, hints[name])]
        if kind is inspect.Parameter.VAR_POSITIONAL:
            each = [(name, one, hints[name]) for one in value]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            options = _hints(typing.get_args(hints[name])[0]) if typing.get_args(hints[name]) else {}
            each = [(key, one, options.get(key, Any if options else hints[name])) for key, one in value.items()]
        for key, one, hint in each:
            if not _fits(one, hint):
                wanted = re.sub(r"\b\w+\.", "", inspect.formatannotation(hint))
                return f"Expected `{key}` to be {wanted}, got {_described(one)}."
    return ""


def _described(value: Any) -> str:
    """Describe a value in a few words: tensors and arrays by type and shape, objects by their class."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "a tensor" if torch.is_tensor(value) else "an array"
        return f"{kind} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (list, tuple)) and any(isinstance(one, (torch.Tensor, nn.Module)) for one in value):
        return f"{type(value).__name__} of {len(value)}: {', '.join(map(_described, value[:3]))}"
    if isinstance(value, (bool, int, float, str, list, tuple, dict, type(None), Path)):
        return reprlib.repr(value)
    return value.__name__ if inspect.isclass(value) else f"a {type(value).__name__}"


def _room_of(function: Callable[..., Any]) -> str:
    return (function.__module__ or "").removeprefix("monai_wsss.").split(".")[0]


# --- The sentence ------------------------------------------------------------------------------------------------


def explained(
    error: Exception, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str = ""
) -> ValueError | None:
    """Explain an error that arguments of a function caused; None where it has been said, or has another cause.

    Args:
        error: what was raised.
        function: whose signature says what was expected.
        args: what it was called with.
        kwargs: the same, by name.
        name: what the function is called in the message where nothing but all arguments can be named; "" leaves such
            errors unexplained.
    """
    # An inner door may not have known which argument it was; this one may.
    raw = getattr(error, "raw", error)
    told = not (type(raw) in _KINDS or isinstance(raw, TypeError)) or any(one in str(raw) for one in _NO_MISFIT)
    if told or (raw is error and _is_told(error.__traceback__)):
        return None
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return None
    if wrong := _wrong_type(function, bound):
        return ValueError(wrong)
    given = {key: value for key, value in bound.arguments.items() if key not in ("self", "cls")}
    tensors = [key for key, value in given.items() if torch.is_tensor(value)]
    if isinstance(raw, RuntimeError) and tensors and (said := misfit(raw, tensors[0])):
        return said
    if not name or not given or (isinstance(raw, RuntimeError) and _room_of(function) in _HANDLING):
        return None
    words = ", ".join(f"`{key}` {_described(value)}" for key, value in given.items())
    first = (str(raw).splitlines() or [""])[0].rstrip(".")
    unfit = ValueError(f"Expected arguments of {name} that fit together, got {words}: {first or type(raw).__name__}.")
    unfit.raw = raw  # type: ignore[attr-defined]
    return unfit


def _with_door(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Give a function that explains its errors."""
    explain, kinds, compiling = explained, _KINDS, torch.compiler.is_compiling

    def door(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except kinds as error:
            if (said := explain(error, function, args, kwargs, name=name)) is None:
                raise
            raise said from error

    # With the globals of the function, so that its examples are found and run as before.
    made = types.FunctionType(door.__code__, function.__globals__, function.__name__, None, door.__closure__)
    functools.update_wrapper(made, function)
    made.__kwdefaults__ = None
    made.has_door = True  # type: ignore[attr-defined]
    return made


def _call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module, and explain its errors by the signature of its ``forward``."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return nn.Module.__call__(module, *args, **kwargs)
    try:
        return nn.Module.__call__(module, *args, **kwargs)
    except _KINDS as error:
        forward, name = type(module).forward, type(module).__name__
        if (said := explained(error, forward, (module, *args), kwargs, name=name)) is None:
            raise
        raise said from error


def _of_class(value: type, room: str) -> None:
    """Open the doors of a class: its constructor, its builders, and calls; unless it is a module, its methods, too."""
    name = value.__name__ if room in (*_CALCULATING, *_HANDLING) else ""
    for key, function in [*vars(value).items()]:
        inner = key.startswith("_") or issubclass(value, nn.Module)
        if isinstance(function, classmethod) and not key.startswith("_"):
            if not hasattr(function.__func__, "has_door"):
                setattr(value, key, classmethod(_with_door(function.__func__, name and f"{name}.{key}")))
        elif not inspect.isfunction(function) or hasattr(function, "has_door"):
            continue
        elif key == "__init__":
            setattr(value, key, _with_door(function, name))
        elif (key == "__call__" or not inner) and not inspect.isgeneratorfunction(function):
            setattr(value, key, _with_door(function, name and f"{name}.{key}"))
    if issubclass(value, nn.Module) and value.__call__ is nn.Module.__call__:
        value.__call__ = _call_module  # type: ignore[method-assign]


def open_doors(room: dict[str, Any]) -> None:
    """Open the door of each public function and class of a room.

    Args:
        room: the names of the room's module, as ``globals()`` gives them; its functions are replaced there alone.
    """
    short = room["__name__"].rpartition(".")[2]
    for name in room["__all__"]:
        value = room[name]
        if inspect.isclass(value):
            for one in value.__mro__:
                if one.__module__.startswith("monai_wsss.") and one is not value and "__init__" in vars(one):
                    _of_class(one, short)
            _of_class(value, short)
        elif inspect.isfunction(value) and not inspect.isgeneratorfunction(value):
            door = _with_door(
                value, name if short in (*_CALCULATING, *_HANDLING) and not name.startswith("prepare_") else ""
            )
            # Other processes find it as an attribute of the function, which its module keeps.
            door.__qualname__, value.door = f"{name}.door", door  # type: ignore[attr-defined]
            room[name] = door
