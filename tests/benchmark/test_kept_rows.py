# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Rows that are kept with the code: found again without weights, and not for other settings or data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.benchmark import (
    AdamWOneCycle,
    BenchmarkTable,
    Column,
    Entry,
    Measured,
    Patches,
    Recipe,
    Row,
    Slices,
    Tiles,
    format_rows,
)
from monai_wsss.benchmark.content import content_sha256
from monai_wsss.benchmark.costs import forget_peak_memory, peak_memory_mb
from monai_wsss.data import make_phantoms
from monai_wsss.methods import ClassActivationMapping

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=(2, 2, 0))) / "datalist.json"


def build(channels: int, classes: int, pooling: str = "max") -> ClassActivationMapping:
    words = {"in_channels": channels, "num_classes": classes, "members": 1, "pooling": pooling}
    return ClassActivationMapping(ClassActivationMapping.network_from_preset(**words))


def make(datalist: Path, out: Path, runs: Path, calls: list[int], *, rate: float = 1e-3, rule: str = "logit"):
    def measure(table, trained):
        calls.append(trained[0].seed)
        yield Measured("", {"dice_subject": {"mean": 0.5}})

    recipe = Recipe(build, AdamWOneCycle(rate), batch_size=64, words={"pooling": "max"})
    entries = [Entry("plain", measure, "plain", words={"rule": rule})]
    data = Slices(datalist, grid=(32, 32))
    columns = [Column("Dice", "dice_subject")]
    return BenchmarkTable("kept", data, out, {"plain": recipe}, entries, columns, epochs=1, seeds=(3,), runs=runs)


def test_kept_rows_need_no_weights(datalist, tmp_path):
    calls: list[int] = []
    rows = make(datalist, tmp_path / "a", tmp_path / "runs", calls).run()
    kept = tmp_path / "runs" / "kept_brain_phantoms" / "validation" / "plain" / "seed3.json"
    text = kept.read_text(encoding="utf-8")
    assert calls == [3]
    assert str(tmp_path) not in text
    assert not any(item["id"] in text for item in _items(datalist))
    assert json.loads(text)["settings"]["recipe"]["pooling"] == "max"
    assert rows[0].metrics["steps"]["mean"] >= 1
    assert rows[0].metrics["seconds_per_step"]["mean"] > 0
    assert rows[0].metrics["cpu_seconds_per_step"]["mean"] > 0

    assert make(datalist, tmp_path / "b", tmp_path / "runs", calls).run() == rows
    assert calls == [3]
    assert not (tmp_path / "b" / "plain").exists()


@pytest.mark.parametrize("changed", [{"rate": 1e-2}, {"rule": "otsu"}])
def test_rows_of_other_settings_are_made_anew(datalist, tmp_path, changed):
    calls: list[int] = []
    make(datalist, tmp_path / "a", tmp_path / "runs", calls).run()
    make(datalist, tmp_path / "b", tmp_path / "runs", calls, **changed).run()
    assert calls == [3, 3]


def test_rows_of_a_folder_are_kept_later(datalist, tmp_path):
    calls: list[int] = []
    table = make(datalist, tmp_path / "out", tmp_path / "runs", calls)
    rows = replace(table, runs=None).run()
    assert not (tmp_path / "runs").exists()
    assert table.run() == rows
    assert calls == [3]
    assert make(datalist, tmp_path / "elsewhere", tmp_path / "runs", calls).run() == rows
    assert calls == [3]


def test_a_recipe_without_words_asks_the_built_method(datalist, tmp_path):
    """A method that is built otherwise has rows, and a folder of weights, of its own."""
    table = make(datalist, tmp_path / "out", tmp_path / "runs", calls := [])
    tables = [
        replace(table, recipes={"plain": replace(table.recipes["plain"], build=partial(build, pooling=one), words={})})
        for one in ("max", "average", "max")
    ]
    tables[0].run()
    with pytest.raises(DataError, match="trained with other settings"):
        tables[1].run()
    replace(tables[1], out=tmp_path / "other").run()
    assert calls == [3, 3]
    replace(tables[1], out=tmp_path / "third").run()
    assert calls == [3, 3]
    kept = json.loads(next((tmp_path / "runs").rglob("seed3.json")).read_text(encoding="utf-8"))
    assert kept["settings"]["recipe"]["built"]["pooling"] == "average"
    assert kept["settings"]["recipe"]["built"]["parameters"] > 1000


@pytest.mark.parametrize("change", ["views", "rules"])
def test_rows_of_a_folder_are_measured_anew_for_another_reading_of_the_maps(datalist, tmp_path, change):
    """Views and rules change rows and no weights."""
    table = make(datalist, tmp_path / "out", tmp_path / "runs", calls := [])
    other = {"views": "none", "rules": ("otsu",)}[change]
    table.run()
    changed = replace(table, recipes={"plain": replace(table.recipes["plain"], **{change: other})})
    changed.run()
    assert calls == [3, 3]
    kept = json.loads(next((tmp_path / "runs").rglob("seed3.json")).read_text(encoding="utf-8"))
    assert kept["settings"]["recipe"][change] == json.loads(json.dumps(other))


@pytest.mark.parametrize("change", ["by_subject", "begin"])
def test_weights_of_another_reading_of_the_images_are_refused(datalist, tmp_path, change):
    table = make(datalist, tmp_path / "out", tmp_path / "runs", [])
    table.run()
    begin = tmp_path / "out" / "plain" / "seed3" / "model.pt"
    other = {"by_subject": False, "begin": begin}[change]
    changed = replace(table, recipes={"plain": replace(table.recipes["plain"], **{change: other})})
    with pytest.raises(
        DataError, match=r"other settings, or by an earlier version that did not record (by_sub|begin_)"
    ):
        changed.run()


def test_weights_that_another_teacher_taught_are_refused(datalist, tmp_path):
    table = make(datalist, tmp_path / "out", tmp_path / "runs", [])
    first = table.recipes["plain"]
    # Private: a table of two stages would be trained for the sake of one comparison.
    for batch_size in (64, 32):
        pair = {"teacher": replace(first, batch_size=batch_size), "plain": replace(first, teacher="teacher")}
        two = replace(table, recipes=pair)
        if batch_size == 64:
            two._claim("plain", 3)
            two._claim("plain", 3)
        else:
            with pytest.raises(DataError, match="trained with other settings"):
                two._claim("plain", 3)


def test_weights_of_a_version_that_recorded_less_are_refused_by_that_reason(datalist, tmp_path):
    table = make(datalist, tmp_path / "out", tmp_path / "runs", [])
    table = replace(table, recipes={"plain": replace(table.recipes["plain"], words={})})
    table.run()
    path = tmp_path / "out" / "plain" / "seed3" / "settings.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "built"}), encoding="utf-8")
    with pytest.raises(DataError, match="or by an earlier version that did not record built: choose another folder"):
        replace(table, runs=None).run()


def test_all_that_decides_a_row_and_is_unusual_is_in_its_digest(datalist, tmp_path):
    """What is as usual adds nothing: rows of before are found again."""
    table = make(datalist, tmp_path / "out", tmp_path / "runs", [])
    recipe = table.recipes["plain"]

    def digest(**words) -> str:
        other = replace(table, recipes={"plain": replace(recipe, **words)})
        return other._kept(table.entries[0], "plain", (3,))[1]["source"]["settings_sha256"]

    (tmp_path / "begin.pt").write_bytes(b"weights")
    changes = [{}, {"views": "none"}, {"by_subject": False}, {"rules": ("otsu",)}, {"begin": tmp_path / "begin.pt"}]
    assert len({digest(**words) for words in changes}) == len(changes)
    assert recipe.unusual == {}
    for data, words in ((Tiles, {"scales": (1.0,)}), (Patches, {"window": 64})):
        assert data(datalist).unusual == {}
        assert list(data(datalist, **words).unusual) == list(words)


def test_a_resumed_training_counts_the_steps_of_its_last_process(datalist, tmp_path):
    table = make(datalist, tmp_path / "out", tmp_path / "runs", [])
    folder = table.folder("plain", 3)
    folder.mkdir(parents=True)
    (folder / "seconds.json").write_text('{"seconds": 6.0, "steps": 100, "timed_steps": 3}')
    assert table._costs("plain", 3) == {"steps": {"mean": 100}, "seconds_per_step": {"mean": 2.0}}
    table.run()
    costs = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    assert costs["timed_steps"] == costs["steps"] > 0


def test_the_digest_is_of_the_content_and_not_of_the_place(datalist, tmp_path):
    moved = Path(shutil.copytree(datalist.parent, tmp_path / "elsewhere"))
    digest = content_sha256(datalist)
    assert content_sha256(moved / "datalist.json") == digest
    image = moved / _items(moved / "datalist.json")[0]["image"][0]
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(image)
    assert content_sha256(moved / "datalist.json") != digest


def _items(datalist: Path) -> list[dict]:
    return json.loads(datalist.read_text(encoding="utf-8"))["training"]


def test_ratios_are_held_against_the_best_bound():
    def row(name: str, column: str, value: float) -> Row:
        return Row(name, column, "validation", 0, {"f1": {"mean": value}})

    rows = [
        row("CAM", "plain", 0.4),
        row("CAM", "par", 0.6),
        row("full supervision, from scratch", "plain", 0.5),
        row("full supervision, ImageNet weights", "plain", 0.8),
        row("full supervision, ImageNet weights", "par", 0.75),
    ]
    columns = [Column("alike", "f1", kind="ratio alike"), Column("best", "f1", kind="ratio best")]
    lines = format_rows(rows, columns).splitlines()[2:]
    assert lines[:2] == ["| CAM / plain | 0.50 | 0.50 |", "| CAM / par | 0.80 | 0.75 |"]
    assert format_rows(rows[:2], columns).splitlines()[2] == "| CAM / plain | – | – |"
    # Bounds are not averaged: that of a training from scratch would flatter the others.
    plain = [Column("plain", "f1", kind="ratio", bound="plain")]
    assert format_rows(rows, plain).splitlines()[2:4] == ["| CAM / plain | 0.50 |", "| CAM / par | 0.75 |"]
    shown = [Column("PAR", "f1", "par"), Column("alike", "f1", "par", kind="ratio alike")]
    assert format_rows(rows, shown).splitlines()[2] == "| CAM | 0.600 | 0.80 |"


def test_the_peak_of_memory_begins_anew():
    before = peak_memory_mb()
    if before is None:
        pytest.skip("this system does not tell the size of a process")
    block = np.ones(40_000_000, dtype=np.uint8)
    high = peak_memory_mb()
    assert high is not None
    assert high > 1
    assert block.any()
    del block
    forget_peak_memory()
    low = peak_memory_mb()
    assert low is not None
    assert low <= high
