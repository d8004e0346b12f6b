# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Deployable networks behind ``torch.compile`` give the same maps and the same mask rule, by inventory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from test_every_network import DEPLOYABLE, tiny_and_image

from monai_wsss.refinement import MaskRule, ToMaskd

IN_PARTS = {"CAMUNet": "MONAI's UpCat calls `torch.jit.isinstance`, which is not traced"}
"""Networks that `torch.compile` splits in several graphs, and why."""


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Nothing that was compiled before."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compare(name: str, backend: str) -> None:
    """Compare a network with itself, compiled: output, mask rule, and masks by way of the transform of bundles."""
    made, image = tiny_and_image(DEPLOYABLE[name], 2)
    if made.output_kind == "activation":
        made.set_healthy_level(-1.0, 0.5)
    made.eval()
    compiled = torch.compile(made, backend=backend, fullgraph=name not in IN_PARTS)
    with torch.no_grad():
        expected, found = made(image), compiled(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert compiled.output_kind == made.output_kind
    assert MaskRule.of(compiled).settings() == MaskRule.of(made).settings()
    assert MaskRule.of(compiled, gate="none").settings() == MaskRule.of(made, gate="none").settings()
    masks = [ToMaskd("pred", network)({"pred": expected[0]})["pred"] for network in (made, compiled)]
    assert torch.equal(*masks)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("name", sorted(DEPLOYABLE))
def test_traced_networks_agree_and_tell_their_rule(name):
    compare(name, "eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for the CPU needs g++")
@pytest.mark.parametrize("name", ["CAMEncoder", "GlandClassifier", "TwoBranchNetwork"])
def test_compiled_networks_agree(name):
    compare(name, "inductor")
