# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss phantom`` in colors from the command to the files, with fewer subjects than it draws by default."""

from __future__ import annotations

import ast
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# What is printed after a preparation is asked for kinds of data that would take long to prepare.
from monai_wsss.__main__ import _print_next, main
from monai_wsss.data import load_datalist, load_header, make_phantoms

ROOT = Path(__file__).parents[1]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one subject per split, since drawing takes the time."""
    monkeypatch.setattr("monai_wsss.data.phantoms.make_phantoms", partial(make_phantoms, subjects=(1, 1, 1)))


def command_after(text: str) -> tuple[str, list[str]]:
    """The folder of the bundle and the words of the command that are told last."""
    folder, command = text.splitlines()[-2:]
    return folder.split()[1], shlex.split(command)


def test_glands_are_written_and_the_next_command_is_of_their_bundle(few, tmp_path, capsys):
    out = tmp_path / "my glands"
    assert main(["phantom", "--kind", "gland", "--out", str(out), "--seed", "3"]) == 0
    text = capsys.readouterr().out
    datalist = out / "datalist.json"
    header = load_header(datalist)
    assert (header["classes"], header["background"], header["scored_class"]) == (["gland", "other"], False, "gland")
    training, test = (load_datalist(datalist, split, masks=True) for split in ("training", "test"))
    assert all("gland3-" in item["subject"] for item in training + test)
    assert Image.open(training[0]["image"]).size == (112, 112)
    assert Image.open(test[0]["image"]).mode == "RGB"
    assert set(np.unique(np.asarray(Image.open(test[0]["mask"])))) <= {1, 2}

    lines = [line.split() for line in text.splitlines()]
    assert ["modalities:", "red,", "green,", "blue"] in lines
    tags = [sum(item["label"][index] for item in training) for index in range(2)]
    assert ["training", str(len(training)), "1", *(f"{tag:g}" for tag in tags)] in lines
    bundle, words = command_after(text)
    assert (ROOT / bundle / words[words.index("--config_file") + 1]).is_file()
    assert Path(words[words.index("--dataset_dir") + 1]) == out


def test_after_tiles_of_skin_comes_the_bundle_of_dermoscopy(few, tmp_path, capsys):
    """Drawn, and prepared from images as a real set has them: the bundle needs no further option for either."""
    drawn, prepared = tmp_path / "drawn", tmp_path / "prepared"
    tiles = ["--tiles", "64", "--labels-from-masks"]
    assert main(["phantom", "--kind", "skin", "--out", str(drawn)]) == 0
    bundle, words = command_after(capsys.readouterr().out)
    assert bundle == "bundles/dermoscopy_cam_segmentation"
    assert (ROOT / bundle / words[words.index("--config_file") + 1]).is_file()
    assert words[words.index("--dataset_dir") :] == ["--dataset_dir", str(drawn), "--output_dir", f"{drawn}_run"]
    assert main(["prepare", "cases", "--root", str(drawn / "raw"), *tiles, "--out", str(prepared)]) == 0
    bundle, words = command_after(capsys.readouterr().out)
    assert bundle == "bundles/dermoscopy_cam_segmentation"
    assert words[words.index("--dataset_dir") :] == ["--dataset_dir", str(prepared), "--output_dir", f"{prepared}_run"]


def test_gray_tiles_get_the_bundle_for_tiles_with_its_channels(tmp_path, capsys):
    root = tmp_path / "xrays"
    lesion = np.zeros((64, 96), dtype=np.uint8)
    lesion[16:48, 48:80] = 255
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(90, 200, lesion.shape).astype(np.uint8)).save(
        root / "images/a.png"
    )
    Image.fromarray(lesion).save(root / "masks" / "a.png")
    (root / "labels.csv").write_text("id,case,label,split\na,a,1,train\n")
    tiles = ["--tiles", "32", "--labels-from-masks", "--out", str(tmp_path / "out")]
    assert main(["prepare", "cases", "--root", str(root), *tiles]) == 0
    text = capsys.readouterr().out
    assert "ships weights for color images of skin: these tiles need a training of their own." in text
    bundle, words = command_after(text)
    assert bundle == "bundles/dermoscopy_cam_segmentation"
    assert words[words.index("--modalities") :][:4] == ["--modalities", "['image']", "--in_channels", "1"]


def test_scenes_are_drawn_by_the_command_and_get_the_bundle_for_photographs(few, tmp_path, capsys):
    assert main(["phantom", "--kind", "scene", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "classes:    bird, train, kite" in text
    assert "a GPU, and ImageNet weights by --pretrained PATH" in text
    bundle, words = command_after(text)
    assert bundle == "bundles/dermoscopy_cosa_segmentation"
    files = ast.literal_eval(words[words.index("--config_file") + 1])
    assert files == ["configs/train.json", "configs/paper.json"]
    assert all((ROOT / bundle / file).is_file() for file in files)
    assert words[words.index("--num_classes") + 1] == "3"


KINDS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "X-rays": ({}, "chest_xray_coingan", []),
    "one finding in color": (
        {"modality": {"0": "red", "1": "green", "2": "blue"}},
        "chest_xray_coingan",
        ["--modalities", "['red', 'green', 'blue']", "--in_channels", "3"],
    ),
    "levels of severity": (
        {"modality": {"0": "CT"}, "order": "xy", "levels": {"0": "severe", "1": "mild"}},
        "chest_xray_coingan",
        ["--modalities", "['CT']", "--in_channels", "1"],
    ),
    "slices": (
        {"modality": {"0": "FLAIR"}, "order": "xy"},
        "brain_mri_cam",
        ["--modalities", "['FLAIR']", "--in_channels", "1"],
    ),
    "several findings in gray": (
        {"classes": ["a", "b"]},
        "brain_mri_cam",
        ["--modalities", "['image']", "--in_channels", "1", "--num_classes", "2"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_gets_the_bundle_that_fits(kind, tmp_path, capsys):
    changes, bundle, options = KINDS[kind]
    datalist = {"modality": {"0": "image"}, "classes": ["opacity"], "order": "rows_columns", **changes}
    _print_next(tmp_path, {**datalist, "training": [{"image": "a.png"}], "validation": [], "test": []})
    text = capsys.readouterr().out
    told, words = command_after(text)
    assert told == f"bundles/{bundle}_segmentation"
    assert ("CoinGAN, which converts images to healthy ones and is not for a first try:" in text) == ("coingan" in told)
    assert (ROOT / told / words[words.index("--config_file") + 1]).is_file()
    assert words[words.index("--dataset_dir") + 2 : words.index("--output_dir")] == options


def test_an_installed_package_tells_where_its_bundles_are(tmp_path, monkeypatch, capsys):
    home = tmp_path / "site packages" / "monai_wsss"
    (home / "bundles" / "brain_mri_cam_segmentation").mkdir(parents=True)
    monkeypatch.setattr("monai_wsss.__main__.__file__", str(home / "__main__.py"))
    datalist = {"modality": {"0": "FLAIR"}, "classes": ["tumor"], "order": "xy", "validation": [], "test": []}
    _print_next(tmp_path, {**datalist, "training": [{"image": "a.png"}]})
    cd = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  cd "))
    assert shlex.split(cd) == ["cd", str(home / "bundles" / "brain_mri_cam_segmentation")]


def test_phantoms_of_chests_get_the_bundle_for_x_rays(few, tmp_path, capsys):
    assert main(["phantom", "--kind", "chest", "--out", str(tmp_path)]) == 0
    bundle, words = command_after(capsys.readouterr().out)
    assert bundle == "bundles/chest_xray_coingan_segmentation"
    assert words[words.index("--dataset_dir") :][2] == "--output_dir"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--modalities", "T1"], "Expected no `modalities` for color images, got T1"),
        (["--spatial-dims", "3"], "Expected `spatial_dims` to be 2 for color images, got 3"),
    ],
)
def test_options_of_brains_are_refused(option, words, tmp_path, capsys):
    assert main(["phantom", "--kind", "gland", "--out", str(tmp_path / "out"), *option]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
