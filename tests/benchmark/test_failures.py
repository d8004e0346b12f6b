# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Reasons of failures name no patient, and no datalist makes their record fail."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from monai_wsss.benchmark import make_method_benchmark
from monai_wsss.benchmark.failures import keep_failure
from monai_wsss.benchmark.spread_runs import LOST
from monai_wsss.data import make_phantoms
from monai_wsss.methods import CoSA


def test_no_patient_is_named_where_the_datalist_is_given_by_a_relative_path(tmp_path, monkeypatch, caplog):
    datalist = (
        Path(make_phantoms(tmp_path / "clinic", modalities=["T1", "FLAIR"], subjects=(2, 2, 0))) / "datalist.json"
    )
    content = json.loads(datalist.read_text(encoding="utf-8"))
    item = content["training"][0]
    source = item["image"] if isinstance(item["image"], str) else item["image"][0]
    file = str(Path(source).with_name("Doe Jane.png"))
    (tmp_path / "clinic" / source).rename(tmp_path / "clinic" / file)
    item |= {"id": "Doe Jane", "image": file if isinstance(item["image"], str) else [file, *item["image"][1:]]}
    former = item["subject"]
    for one in content["training"]:
        one["subject"] = "Doe Jane" if one["subject"] == former else one["subject"]
    content["statistics"] = {"Doe Jane" if key == former else key: one for key, one in content["statistics"].items()}
    datalist.write_text(json.dumps(content), encoding="utf-8")
    whole = f"cannot identify image file '{tmp_path}/clinic/{file}' or {tmp_path}/out/uncertainty/Doe Jane_mask.npy"

    def broken(*args: object, **words: object) -> None:
        raise ValueError(whole)

    monkeypatch.setattr(CoSA, "from_preset", broken)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "monai_wsss"):
        (failed,) = make_method_benchmark(
            Path("clinic/datalist.json"), Path("out"), methods=["cosa"], seeds=[0], budget="2-steps", side=32
        ).run()
    assert failed.reason == "cannot identify image file 'a file' or a file"
    told = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert told
    names = ("leaderboard.md", "leaderboard.json", "comparison.html")
    for text in (*told, *((tmp_path / "out" / name).read_text(encoding="utf-8") for name in names)):
        assert "cannot identify image file" in text
        assert "Doe" not in text
        assert "Jane" not in text


def test_a_reason_is_withheld_where_the_names_to_leave_out_are_unknown(tmp_path):
    names = tmp_path / "gone.json"
    reason = keep_failure(tmp_path / "failure.json", {}, RuntimeError("Jane Doe"), names, tmp_path)
    assert reason == "RuntimeError, see the folder failures."
    assert "Jane Doe" in (tmp_path / "failure.json").read_text(encoding="utf-8")


def test_the_end_of_a_process_is_told_without_the_datalist(tmp_path):
    assert keep_failure(tmp_path / "failure.json", {}, None, tmp_path / "gone.json", tmp_path) == LOST


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{", "\xff", '{"training": 5}', '{"training": ["Jane"]}', '{"training": [null]}', '{"test": null}',
        "[" * 100_000, '{"statistics": 5}',
    ],
)  # fmt: skip
def test_no_datalist_makes_the_record_of_a_failure_fail(tmp_path, content):
    (tmp_path / "datalist.json").write_text(content, encoding="latin-1")
    reason = keep_failure(tmp_path / "f.json", {}, ValueError("Jane Doe"), tmp_path / "datalist.json", tmp_path)
    assert reason == "ValueError, see the folder failures."


def test_a_case_without_an_image_keeps_the_reason_and_hides_the_names(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": [{"id": "Jane Doe"}]}', encoding="utf-8")
    words = (ValueError("Jane Doe is dark"), tmp_path / "datalist.json", tmp_path)
    assert keep_failure(tmp_path / "failure.json", {}, *words) == "a case is dark"
