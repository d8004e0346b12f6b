# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Batches and tiny methods that the tests of BMP and AFA share."""

from __future__ import annotations

from typing import Any

import torch

from monai_wsss.engines import Progress
from monai_wsss.methods import BMP
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork
from monai_wsss.refinement import LabeledImages, PixelAdaptiveRefinement

EARLY, LATE = (Progress(epoch=1, iteration=1, fraction=fraction) for fraction in (0.0, 0.9))
TERMS = ["classification", "c2s", "s2c", "affinity"]


def make_batch(spatial_dims: int = 2, channels: int = 1, classes: int = 1, size: int = 16) -> dict[str, torch.Tensor]:
    """Give an image of all classes, one of the last class and a healthy one."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(3, classes)
    label[0], label[1, -1] = 1.0, 1.0
    return {"image": torch.rand((3, channels, *(size,) * spatial_dims), generator=generator), "label": label}


def small_refinement() -> PixelAdaptiveRefinement:
    return PixelAdaptiveRefinement(dilations=(1, 2), iterations=3, row_stochastic=True)


def quiet_network(classes: int = 1, spatial_dims: int = 2, **options: Any) -> TwoBranchNetwork:
    """Build one without dropout, so that what training and evaluation give differs by batch norm alone."""
    torch.manual_seed(0)
    encoder = ConvPyramid.tiny(spatial_dims, 1)
    return TwoBranchNetwork.build(encoder, classes, decoder_width=8, dropout=0.0, **options)


def method_of(classes: int = 1, spatial_dims: int = 2, **words: Any) -> BMP:
    return BMP.from_preset(network=quiet_network(classes, spatial_dims), refine=small_refinement(), **words)


def labels_of(method: BMP, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Give Y^c and Y^0, which a step makes from a batch, at the images' size."""
    # Private: the affinity's loss receives Y^0 at the encoder's tokens alone.
    return method._class_labels(LabeledImages.from_batch(batch), LATE)
