# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Making phantoms removes nothing but phantoms."""

from __future__ import annotations

import json

import pytest

from monai_wsss._checks import DataError
from monai_wsss.data import make_phantoms


def contents(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "item",
    [
        {"image": "../victim.txt", "mask": "../victim.txt"},
        {"image": ["images/a.png", "../victim.txt"]},
        {"image": "images/../../victim.txt"},
        {"image": "{absolute}"},
        {"image": "images/link/victim.txt"},
        {"image": "datalist.json"},
        {"image": "notes.txt"},
        {"image": "images"},
        {"image": ""},
        {"mask": "masks/a.png"},
        {"image": 5},
        {"image": None},
        {"image": [["images/a.png"]]},
        {"image": "images/a\0.png"},
        "images/a.png",
    ],
)
def test_a_datalist_with_other_files_is_refused_and_nothing_changes(tmp_path, item):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "link").symlink_to(tmp_path)
    for name in ("victim.txt", "data/notes.txt", "data/images/a.png"):
        (tmp_path / name).write_text("precious")
    if isinstance(item, dict) and item.get("image") == "{absolute}":
        item = {"image": str(tmp_path / "victim.txt")}
    (data / "datalist.json").write_text(json.dumps({"phantom": {"kind": "x"}, "training": [item]}))
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"datalist\.json .*choose another folder"):
        make_phantoms(data, kind="gland", subjects=(1, 0, 0))
    assert contents(tmp_path) == before


def test_phantoms_replace_phantoms(tmp_path):
    for kind in ("skin", "chest", "brain"):
        make_phantoms(tmp_path, kind=kind, subjects=(2, 0, 0))
    make_phantoms(tmp_path, kind="brain", modalities=["FLAIR"], subjects=(1, 0, 0))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"datalist.json", "images", "masks"} | ({"raw"} if (tmp_path / "raw").exists() else set())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "skin" in path.name]
