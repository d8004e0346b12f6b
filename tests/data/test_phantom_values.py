# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Phantoms of a seed stay as they are: results of the demo and of many tests depend on each number in them.

``python tests/data/test_phantom_values.py`` writes the numbers anew, where a change is meant.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss.data import make_phantoms
from monai_wsss.data.phantoms import PHANTOM_KINDS

VALUES = Path(__file__).parents[1] / "vectors" / "phantoms.json"
FILES, BLOCKS = 8, 4


def blocks(values: np.ndarray) -> np.ndarray:
    """Average an image over four parts of each axis; the channels of colors stay."""
    for axis in range(min(values.ndim, 3) - (values.ndim == 3 and values.shape[2] <= 4)):
        parts = np.array_split(values, BLOCKS, axis)
        values = np.stack([part.mean(axis) for part in parts], axis)
    return values


def measured(kind: str, folder: Path) -> dict[str, Any]:
    make_phantoms(folder, kind=kind, subjects=(3, 1, 1), seed=5)
    files = sorted(path for path in folder.rglob("*") if path.name.endswith((".png", ".nii.gz")))
    shown = [files[int(place)] for place in np.linspace(0, len(files) - 1, min(FILES, len(files)))]
    found: dict[str, Any] = {"files": len(files)}
    for path in shown:
        opened = Image.open(path) if path.suffix == ".png" else nibabel.load(path).dataobj
        values = np.asarray(opened, dtype=np.float64)
        found[path.relative_to(folder).as_posix()] = np.round(blocks(values), 3).ravel().tolist()
    return found


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_phantoms_of_a_seed_stay_as_they_are(kind, tmp_path):
    expected, found = json.loads(VALUES.read_text(encoding="utf-8"))[kind], measured(kind, tmp_path)
    assert set(found) == set(expected)
    for name, values in expected.items():
        # A pixel that another library rounds the other way moves the mean of a block by a few thousandths.
        np.testing.assert_allclose(found[name], values, atol=0.03, rtol=1e-4, err_msg=name)


if __name__ == "__main__":
    written = {}
    for each in PHANTOM_KINDS:
        with tempfile.TemporaryDirectory() as made:
            written[each] = measured(each, Path(made))
    VALUES.write_text(json.dumps(written) + "\n", encoding="utf-8")
