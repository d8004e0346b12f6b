# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of one class in every form in which copies of a set hold them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.binary_masks import read_binary_mask

LESION = np.zeros((24, 40), dtype=bool)
LESION[8:16, 8:24] = True


def palette(image: Image.Image, colors: list[int]) -> Image.Image:
    image.putpalette(colors)
    return image


def indices(values: np.ndarray) -> Image.Image:
    return Image.frombytes("P", values.shape[::-1], values.astype(np.uint8).tobytes())


def soft() -> Image.Image:
    """The mask with edges of three grays, as resizing leaves them."""
    large = Image.fromarray(np.uint8(255) * LESION).resize((120, 72), Image.Resampling.BICUBIC)
    return large.resize((40, 24), Image.Resampling.BILINEAR)


FORMS: dict[str, Callable[[], Image.Image]] = {
    "ones.png": lambda: Image.fromarray(LESION.astype(np.uint8)),
    "white.png": lambda: Image.fromarray(np.uint8(255) * LESION),
    "white.PNG": lambda: Image.fromarray(np.uint8(255) * LESION),
    "bits.png": lambda: Image.fromarray(LESION),
    "sixteen bits.png": lambda: Image.fromarray(np.uint16(65535) * LESION),
    "rgb.png": lambda: Image.fromarray(np.uint8(255) * LESION).convert("RGB"),
    "palette.png": lambda: palette(indices(LESION), [0, 0, 0, 128, 0, 0]),
    "white first.png": lambda: palette(indices(~LESION), [255, 255, 255, 0, 0, 0]),
    "lossy.jpg": lambda: Image.fromarray(np.uint8(255) * LESION),
    "soft.png": soft,
    "whole.tif": lambda: Image.fromarray(np.uint8(255) * LESION),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_mask(name, tmp_path):
    FORMS[name]().save(tmp_path / name)
    mask = read_binary_mask(tmp_path / name, MetaTensor(torch.zeros(1, 40, 24)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask[0].T, LESION)


def test_an_empty_mask_stays_empty(tmp_path):
    Image.fromarray(np.zeros((24, 40), dtype=np.uint8)).save(tmp_path / "none.jpg")
    assert not read_binary_mask(tmp_path / "none.jpg", MetaTensor(torch.zeros(1, 40, 24))).any()


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 128, 255), (0, 3, 200)])
def test_several_labels_are_refused(values, tmp_path):
    image = np.full((24, 40), values[0], dtype=np.uint8)
    image[:, 4:30], image[:, 30:34] = values[1], values[2]
    Image.fromarray(image).save(tmp_path / "several.png")
    if values == (0, 3, 200):  # dark noise beside white is an edge
        assert read_binary_mask(tmp_path / "several.png", MetaTensor(torch.zeros(1, 40, 24))).sum() == 4 * 24
        return
    with pytest.raises(DataError, match=rf"several.png holds the values {values[1]}, {values[2]}, but .* one class"):
        read_binary_mask(tmp_path / "several.png", MetaTensor(torch.zeros(1, 40, 24)))


def test_masks_of_half_white_may_have_gray_edges_and_darker_ones_hold_labels(tmp_path):
    """Some copies of sets show the class by 128; several labels are small numbers."""
    for white, taken in ((128, True), (127, False)):
        image = np.where(LESION, white, 0).astype(np.uint8)
        image[8, 8:24], image[15, 8:24] = white // 8, white * 7 // 8  # edges
        Image.fromarray(image).save(tmp_path / "mask.png")
        like = MetaTensor(torch.zeros(1, 40, 24))
        if taken:
            np.testing.assert_array_equal(read_binary_mask(tmp_path / "mask.png", like)[0].T, image > 64)
        else:
            with pytest.raises(DataError, match=r"mask.png holds the values 15, 111, 127, but it is .* one class"):
                read_binary_mask(tmp_path / "mask.png", like)


def test_another_size_is_refused(tmp_path):
    Image.fromarray(np.uint8(255) * LESION).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png is of size 40 x 24 but its image of 41 x 24"):
        read_binary_mask(tmp_path / "a.png", MetaTensor(torch.zeros(1, 41, 24)))
    with pytest.raises(DataError, match="turn the mask as the image is shown"):
        read_binary_mask(tmp_path / "a.png", MetaTensor(torch.zeros(1, 24, 40)))
