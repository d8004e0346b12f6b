# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One contract for everything public, by inventory: what fits nothing is refused in a sentence."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import nn

import monai_wsss
from monai_wsss import networks

EVERY = {
    f"{room}.{name}": getattr(module, name)
    for room in monai_wsss.ROOMS
    for module in [importlib.import_module(f"monai_wsss.{room}")]
    for name in module.__all__
}
FUNCTIONS = {name: value for name, value in EVERY.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in EVERY.items() if inspect.isclass(value)}
MODULES = {name: value for name, value in CLASSES.items() if issubclass(value, nn.Module)}
FITS_NOTHING = object()
SENTENCES = ("Expected ", "Cannot ", "No ", "There ")


def required(function) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [one for one in parameters if one.default is one.empty and one.kind in kinds]


ERRORS = {name for name, value in CLASSES.items() if issubclass(value, BaseException)}
CALLED = [name for name, value in EVERY.items() if callable(value) and name not in ERRORS and required(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_a_door(name):
    assert FUNCTIONS[name].has_door or inspect.isgeneratorfunction(FUNCTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_have_a_door(name):
    own = next(vars(one)["__init__"] for one in CLASSES[name].__mro__ if "__init__" in vars(one))
    of_ours = inspect.isfunction(own) and own.__globals__["__name__"].startswith("monai_wsss")
    assert hasattr(own, "has_door") or not of_ours


@pytest.mark.parametrize("name", CALLED)
def test_what_fits_nothing_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {one.name: FITS_NOTHING for one in required(EVERY[name])}
    error: Exception | None = None
    try:
        EVERY[name](**given)
    except (ValueError, TypeError) as caught:
        error = caught
    # Constructors of plain values take what they are given.
    assert error is None or str(error).startswith(SENTENCES)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", [name for name in MODULES if hasattr(MODULES[name], "tiny")])
@pytest.mark.parametrize("image", [None, "image", 3, torch.zeros(2, 3, 8, 8).numpy(), [0.0, 1.0]], ids=type)
def test_modules_refuse_what_is_no_tensor(name, image):
    module = MODULES[name].tiny()
    with pytest.raises(ValueError, match=r"^Expected "):
        module(image, *[FITS_NOTHING] * (len(required(module.forward)) - 1))


def test_networks_refuse_every_type_that_they_do_not_take():
    network = networks.CAMUNet.tiny()
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16):
        with pytest.raises(ValueError, match="Expected"):
            network(torch.zeros(2, 1, 16, 16, dtype=dtype))
