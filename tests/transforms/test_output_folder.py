# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks and maps never replace those of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import SaveImaged

from monai_wsss._checks import DataError
from monai_wsss.transforms import SaveImageMapd, SaveImageMaskd


@pytest.mark.parametrize("save", [SaveImageMaskd("pred", "{0}"), SaveImageMapd("pred", "{0}")])
def test_a_folder_with_a_datalist_is_refused(tmp_path, save):
    item = {"id": "a", "image": MetaTensor(torch.zeros(1, 4, 4)), "pred": torch.zeros(1, 4, 4)}
    save.output_dir = tmp_path
    (tmp_path / "datalist.json").write_text("{}")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("drawn by hand")
    with pytest.raises(DataError, match=r"holds data, datalist.json: results would replace its masks"):
        save(item)
    assert (tmp_path / "masks" / "a.png").read_text() == "drawn by hand"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datalist.json", "masks"]


def test_without_an_id_results_are_named_by_the_file_of_the_image(tmp_path):
    for file, name in (("a/T1 axial.nii.gz", "T1%20axial"), ("b/scan.2.png", "scan.2"), ("c/IM0001", "IM0001")):
        image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": file})
        saved = SaveImageMaskd("pred", tmp_path)({"image": image, "pred": torch.zeros(1, 4, 4)})
        assert saved["pred_path"] in [str(tmp_path / "masks" / f"{name}{ending}") for ending in (".png", ".nii.gz")]
    with pytest.raises(DataError, match="has no `id`, and its `image` knows no file"):
        SaveImageMaskd("pred", tmp_path)({"image": MetaTensor(torch.zeros(1, 4, 4)), "pred": torch.zeros(1, 4, 4)})


def test_two_files_of_one_name_do_not_share_a_result(tmp_path):
    """Sequences are often called alike in the folder of each subject; the same file again is written again."""
    masks, maps = SaveImageMaskd("pred", tmp_path), SaveImageMapd("heat", tmp_path)
    files = ["p1/T1.nii.gz", "p2/T1.nii.gz", "old/p2/T1.nii.gz", "p2/T1.nii.gz", "p1/T1.nii.gz"]
    names = []
    for number, file in enumerate(files):
        image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": file})
        values = torch.full((1, 4, 4), float(number))
        saved = maps(masks({"image": image, "pred": values, "heat": values}))
        names.append(Path(saved["pred_path"]).name)
        assert Path(saved["heat_path"]).name == names[-1]
    assert len(set(names)) == 3
    assert [name.split(".")[0] for name in names] == ["T1", "p2_T1", "old_p2_T1", "p2_T1", "T1"]


def test_programs_that_write_masks_themselves_know_what_to_leave_out(tmp_path):
    for save in (SaveImageMaskd("pred", tmp_path), SaveImageMapd("pred", tmp_path)):
        assert isinstance(save, SaveImaged)
