# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Damaged weights are one sentence with their name, in every bundle and before anything else reads them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss._files import load_tensors, save_tensors
from monai_wsss.engines import with_weights
from monai_wsss.networks import CAMUNet, reading_order

WEIGHTS = sorted((Path(__file__).parents[1] / "bundles").glob("*_segmentation/models/*.pt"))
BUNDLES = sorted((Path(__file__).parents[1] / "bundles").glob("*_segmentation"))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def whole(folder: Path) -> bytes:
    save_tensors(folder / "whole.pt", CAMUNet(2, 1, 1, width=2).state_dict())
    return (folder / "whole.pt").read_bytes()


DAMAGED = {
    "empty": lambda folder: b"",
    "cut": lambda folder: whole(folder)[:-1000],
    "only the beginning": lambda folder: whole(folder)[:64],
    "one bit": lambda folder: (content := bytearray(whole(folder))).__setitem__(3000, content[3000] ^ 4) or content,
    "text": lambda folder: b"<html>404</html>",
    "a pickle that runs": lambda folder: pickle.dumps({"a": Payload(str(folder / "executed"))}),
    "a pointer of git-lfs": lambda folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_weights_are_named_and_nothing_in_them_runs(tmp_path, kind):
    path = tmp_path / "model.pt"
    path.write_bytes(DAMAGED[kind](tmp_path))
    for read in (reading_order, lambda path: with_weights(CAMUNet(2, 1, 1, width=2), path)):
        with pytest.raises(DataError, match=r"model\.pt.* damaged"):
            read(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_flipped_bit_of_shipped_weights_is_noticed(tmp_path, path):
    """Also where no checksum of an entry covers it, such as in the padding between tensors."""
    content = bytearray(path.read_bytes())
    load_tensors(path)
    for place in (40, len(content) // 3, len(content) // 2, len(content) - 120, len(content) - 70, len(content) - 1):
        content[place] ^= 1
        (tmp_path / "model.pt").write_bytes(content)
        content[place] ^= 1
        with pytest.raises(DataError, match=r"model\.pt.* damaged"):
            load_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("kind", ["a list", "a tensor", "nested", "other tensors"])
def test_tensors_that_are_no_weights_are_named(tmp_path, kind):
    content: Any = {
        "a list": [1, 2],
        "a tensor": torch.ones(2),
        "nested": {"model": {"a": torch.ones(1)}},
        "other tensors": {"a": torch.ones(1)},
    }[kind]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt"):
        with_weights(CAMUNet(2, 1, 1, width=2), tmp_path / "model.pt")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("config", ["inference.json", "evaluate.json"])
def test_every_bundle_reads_its_weights_by_this_check_first(bundle, config):
    """The order of the loading transform is asked of the weights when the data are set up, before MONAI's loader."""
    text = json.dumps(json.loads((bundle / "configs" / config).read_text()))
    assert "monai_wsss.networks.reading_order(@ckpt_dir + '/model.pt'" in text
