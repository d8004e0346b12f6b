# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a network cannot take is one sentence at the doors: methods and inferers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_wsss._checks import check_image, check_seed, check_seeds, misfit
from monai_wsss.data import draw_share, split_by_subject
from monai_wsss.engines import Progress
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMUNet

WRONG = {
    "an empty batch": (torch.zeros(0, 1, 8, 8), "at least one image, got an empty batch"),
    "no rows": (torch.zeros(2, 1, 0, 8), "with pixels along each axis"),
    "no columns": (torch.zeros(1, 1, 8, 0), "with pixels along each axis"),
    "no channels": (torch.zeros(1, 0, 8, 8), "with pixels along each axis"),
    "half precision": (torch.zeros(1, 1, 8, 8, dtype=torch.float16), "of float32 on a CPU, got float16"),
    "no batch": (torch.zeros(1, 8, 8), r"of shape \(B, C, \*S\)"),
    "two channels": (torch.zeros(1, 2, 8, 8), "of 1 channels, got 2: choose other images"),
    "a color image": (torch.zeros(2, 3, 8, 8), "of 1 channels, got 3: choose other images"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_methods_and_inferers_say_what_is_wrong(kind):
    image, words = WRONG[kind]
    network = CAMUNet(2, 1, 1, width=2)
    with pytest.raises(ValueError, match=words):
        VolumeInferer()(image, network)
    method = ClassActivationMapping(network)
    with pytest.raises(ValueError, match=words):
        method({"image": image, "label": torch.zeros(len(image), 1)}, Progress(1, 1, 0.0))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4, 4), (1, 1, 4, 0, 4), (1, 1, 4, 4, 0)])
def test_volumes_too(shape):
    with pytest.raises(ValueError, match=r"Expected `image` .*got"):
        VolumeInferer()(torch.zeros(shape), CAMUNet(2, 1, 1, width=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_images_pass(dtype):
    check_image(torch.zeros(1, 1, 1, 1, dtype=dtype))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 2, 3), nn.ConvTranspose2d(4, 2, 3), nn.Conv3d(4, 2, 1)])
def test_channels_of_every_kind_of_convolution_are_counted(layer):
    with pytest.raises(RuntimeError) as caught:
        layer(torch.zeros(1, 5, *[4] * (3 if isinstance(layer, nn.Conv3d) else 2)))
    assert "of 4 channels, got 5" in str(misfit(caught.value))


def test_other_errors_are_left_alone():
    assert misfit(RuntimeError("out of memory")) is None


@pytest.mark.parametrize("seeds", [[], [-1], [0.5], ["0"], [0, 0], [0, 2**32], [True, 0], [[0]]])
def test_seeds_of_a_table_are_whole_numbers_that_monai_tells_apart(seeds):
    check_seeds([0, 2**32 - 1, np.int64(1)])
    with pytest.raises(ValueError, match=r"`seeds` to be whole numbers from 0 to 2\*\*32 - 1, each once"):
        check_seeds(seeds)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(ValueError, match="`seed` to be a whole number from 0 up"):
        check_seed(seed)
    with pytest.raises(ValueError, match="`seed`"):
        split_by_subject(["a", "b"], [[0], [1]], seed=seed)
    with pytest.raises(ValueError, match="`seed`"):
        draw_share([{"label": [0]}, {"label": [1]}], 0.5, seed=seed)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="`num_classes` >= 1 foreground class, got 0"):
        CAMUNet(2, 1, 0, width=2)
