# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The sheet of pseudo-masks: a row per combination of tags, masks in color, ignored pixels hatched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.reports import write_pseudo_sheet

TILE, CAPTION, GAP = 112, 20, 4


def test_a_row_per_combination_of_tags(tmp_path):
    (tmp_path / "pseudo").mkdir()
    items = []
    for number, label in enumerate([[1, 0], [1, 0], [1, 1]]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(path)
        mask = np.zeros((32, 32), np.uint8)
        mask[:16], mask[16:, :16], mask[16:, 16:] = 1, 2, 255
        Image.fromarray(mask).save(tmp_path / "pseudo" / f"{number}.png")
        items.append({"id": str(number), "image": str(path), "label": np.asarray(label), "order": "rows_columns"})
    write_pseudo_sheet(items, tmp_path / "pseudo", tmp_path / "sheet.png", ["gland", "other"], each=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert sheet.shape[1] == 3 * (2 * TILE + 3 * GAP)
    assert 2 * (TILE + CAPTION + GAP) < sheet.shape[0] < 2 * (TILE + CAPTION + GAP) + 60
    image, mask = (sheet[CAPTION : CAPTION + TILE, left : left + TILE] for left in (0, TILE + 1))
    assert (image == 128).all()
    first = mask[: TILE // 2 - 2]  # without the light line at its border
    assert (first[..., 0] > first[..., 2] + 40).all()  # orange
    second = mask[TILE // 2 + 2 :, : TILE // 2 - 2]
    assert (second[..., 1] > second[..., 0] + 40).all()  # green
    corner = mask[TILE // 2 :, TILE // 2 :].mean(axis=-1)
    assert 0.2 < (corner > 200).mean() < 0.5  # hatched
    empty = sheet[TILE + 2 * CAPTION + GAP : 2 * TILE, -TILE:]
    assert (empty == [0x14, 0x17, 0x1C]).all()  # of the second combination there is one patch


def test_a_missing_pseudo_mask_is_named(tmp_path):
    with pytest.raises(DataError, match="pseudo-mask"):
        write_pseudo_sheet([{"id": "a", "image": "a.png", "label": [1]}], tmp_path, tmp_path / "sheet.png", ["gland"])
