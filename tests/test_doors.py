# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Errors that wrong arguments cause are explained at the doors, and no others are."""

from __future__ import annotations

import doctest
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from monai_wsss import cams, losses, metrics
from monai_wsss._doors import _fits, explained  # its table of types is checked as such
from monai_wsss.inferers import VolumeInferer
from monai_wsss.losses import EquivarianceLoss
from monai_wsss.networks import CAMUNet


def add(image: torch.Tensor, weight: float = 1.0, *more: int, **words: str) -> torch.Tensor:
    return image + weight + sum(more) + len(words)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


for function in (add, product):
    # Errors of callers' own code are not explained: these are no caller's.
    function.__code__ = function.__code__.replace(co_filename="<library>")


def said(*args: Any, name: str = "", **kwargs: Any) -> str:
    try:
        add(*args, **kwargs)
    except Exception as error:
        return str(explained(error, add, args, kwargs, name=name))
    raise AssertionError("It fits.")


def test_the_argument_of_a_wrong_type_is_named():
    assert said("text") == "Expected `image` to be Tensor, got 'text'."
    assert said(torch.ones(1), "much") == "Expected `weight` to be float, got 'much'."
    assert said(torch.ones(1), 1.0, 2, "x") == "Expected `more` to be int, got 'x'."
    assert said("text", word=np.zeros(2)).startswith("Expected `image`")


def test_arguments_that_do_not_fit_together_are_told_where_it_is_asked_for():
    given = (torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(RuntimeError) as caught:
        product(*given)
    assert explained(caught.value, product, given, {}) is None
    assert str(explained(caught.value, product, given, {}, name="product")).startswith(
        "Expected arguments of product that fit together, got `a` a tensor (2, 3) of float32, `b` a tensor (2, 3) of"
    )


def test_the_outer_door_speaks():
    with pytest.raises(ValueError, match="Expected `counts` to be PixelCounts, got"):
        metrics.iou_score((1, 2))
    with pytest.raises(ValueError, match="`label` to be Tensor"):
        EquivarianceLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), "label")


@pytest.mark.parametrize("words", ["out of memory", "CUDA error: an illegal access", "DataLoader worker exited"])
def test_errors_that_no_argument_caused_pass(words):
    error = RuntimeError(words)
    assert explained(error, add, ("text",), {}, name="add") is None


def test_errors_of_the_callers_own_code_pass():
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        VolumeInferer()(torch.zeros(1, 1, 8, 8), Broken())


def test_sentences_of_the_package_stay():
    with pytest.raises(ValueError, match=r"^Expected `spatial_dims` to be 2 or 3"):
        CAMUNet(4, 1)


def test_a_call_that_python_refuses_stays():
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        cams.pool_maps()
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamda'"):
        CAMUNet(2, 1, lamda=1)


def test_functions_can_be_sent_to_other_processes():
    assert pickle.loads(pickle.dumps(cams.pool_maps)) is cams.pool_maps
    loss = pickle.loads(pickle.dumps(EquivarianceLoss()))
    assert isinstance(loss, EquivarianceLoss)


def test_examples_are_still_found():
    finder = doctest.DocTestFinder()
    module = __import__("monai_wsss.losses.equivariance", fromlist=["x"])
    names = {one.name for one in finder.find(module) if one.examples}
    assert "monai_wsss.losses.equivariance.equivariance_loss" in names
    assert not any(one.examples for one in finder.find(losses) if one.name.endswith("equivariance_loss"))


def test_compiled_losses_have_no_door():
    image = torch.rand(2, 1, 4, 4)
    compiled = torch.compile(EquivarianceLoss(), backend="eager")
    torch.testing.assert_close(
        compiled(image, image, torch.ones(2, 1)), EquivarianceLoss()(image, image, torch.ones(2, 1))
    )


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True), (np.int64(1), int, True), (1.5, int, False), (1, float, True), ("1", float, False),
        (None, int, False), (None, "int | None", True), (None, int | None, True), ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False), ([1, 2], Sequence[int], True), ([1, "2"], Sequence[int], False),
        ("12", Sequence[int], False), ("12", str, True), ((1, 2), tuple[int, int], True),
        ((1,), tuple[int, int], False),
        ((1, 2, 3), tuple[int, ...], True), ({"a": 1}, Mapping[str, int], True), ({"a": "b"}, Mapping[str, int], False),
        ({"a": "b"}, dict, True), (len, Callable[[Any], int], True), (3, Callable[[Any], int], False), (3, Any, True),
        (nn.Identity(), nn.Module, True), (torch.zeros(1), np.ndarray, False),
    ],
)  # fmt: skip
def test_types_are_looked_into(value, hint, fits):
    assert _fits(value, hint) is fits
