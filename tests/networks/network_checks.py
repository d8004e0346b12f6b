# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checks that the tests of several networks share."""

from __future__ import annotations

import io

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomize_norms(network: nn.Module) -> None:
    """Draw batch norms that differ from the identity, so that a wrong order or a lost one shows."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def with_and_without_neighbor(network: nn.Module, image: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the outputs of two images, and those with NaN in place of the image that is not ``index``."""
    with torch.no_grad():
        together = network(image)
        image[1 - index] = torch.nan
        return together, network(image)


def assert_scripts_and_exports(module: nn.Module, features: torch.Tensor) -> None:
    """Check that the scripted and loaded module and the exported one give what the module gives, at other sizes too."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for other in (features, features[..., :3, :2]):
        torch.testing.assert_close(scripted(other), module(other))
    sides = {0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("side", min=2)}
    exported = torch.export.export(module, (features,), dynamic_shapes=(sides,)).module()
    for other in (features, features[:, :, :3].repeat(2, *[1] * (features.ndim - 1))):
        torch.testing.assert_close(exported(other), module(other))
