# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The metric that collects the cases of an evaluation: labels and areas of the classes, and cases without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import write_datalist
from monai_wsss.engines import SegmentationScores, case_spacing


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    (tmp_path / "a.png").touch()
    case = {"id": "a", "image": "a.png", "label": [1, 0], "subject": "a"}
    return write_datalist(tmp_path, {"modality": {"0": "image"}, "classes": ["core", "edema"], "test": [case]})


def item(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "subject": name, "image": MetaTensor(torch.zeros(1, 4, 4)), **more}


def test_labels_and_the_shares_of_the_classes_are_kept_per_case(datalist):
    first, second = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    first[0, 0], first[0, 1, 0] = 1, 2
    scores = SegmentationScores(datalist, bootstrap=5)
    items = [item("a", label=torch.tensor([1.0, 1.0]), mask=first), item("b", label=torch.tensor([0.0, 1.0]))]
    scores.update((items[:1], [{"pred": first}]))
    scores.update((items[1:], [{"pred": second}]))
    np.testing.assert_array_equal(scores.labels, [[True, True], [False, True]])
    np.testing.assert_allclose(scores.areas, [[4 / 16, 1 / 16], [0, 0]])
    assert scores.compute() == 1.0
    scores.reset()
    assert (scores.labels, scores.areas, scores.table.rows) == ([], [], [])


@pytest.mark.parametrize("kind", ["volume", "slice of a volume", "image"])
def test_distances_are_in_the_millimeters_of_the_image(datalist, kind):
    affine, size = torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0])), (8, 8) if kind == "image" else (8, 8, 6)
    image = MetaTensor(torch.zeros(1, *size), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    if kind == "slice of a volume":
        image, size = image[..., 2], size[:2]
    assert case_spacing(image) == (0.5, 2.0, 3.0)[: len(size)]
    prediction, reference = torch.zeros(2, 1, *size, dtype=torch.long)
    prediction[:, 1, 4], reference[:, 6, 4] = 1, 1
    scores = SegmentationScores(datalist, bootstrap=5)
    case = item("a", label=torch.tensor([1.0, 0.0]), mask=reference) | {"image": image}
    scores.update(([case], [{"pred": prediction}]))
    scores.compute()
    assert scores.summary["assd_mm/core"]["mean"] == pytest.approx(5 * 0.5)


def test_a_case_without_a_label_cannot_be_measured(datalist):
    with pytest.raises(DataError, match='case "a" has no label, so it cannot be measured: predict it'):
        SegmentationScores(datalist).update(([item("a")], [{"pred": torch.zeros(1, 4, 4)}]))
