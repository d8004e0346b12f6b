# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one table class: what is trained and measured anew, what is kept, and the form of its rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark import (
    AdamWOneCycle,
    BenchmarkTable,
    Column,
    Entry,
    Measured,
    Recipe,
    Row,
    Slices,
    format_rows,
)
from monai_wsss.data import make_phantoms
from monai_wsss.methods import ClassActivationMapping

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


def build(channels: int, classes: int) -> ClassActivationMapping:
    return ClassActivationMapping.from_preset("default", in_channels=channels, num_classes=classes)


class Counted:
    """A measurement that counts its calls, and gives the sum of the weights."""

    def __init__(self) -> None:
        self.seeds: list[list[int]] = []

    def __call__(self, table, trained):
        self.seeds.append([one.seed for one in trained])
        assert not any(one.method.training for one in trained)
        total = sum(float(p.detach().sum()) for one in trained for p in one.method.network.parameters())
        yield Measured("left", {"dice_subject": {"mean": total}})
        yield Measured("right", {"dice_subject": {"mean": 2 * total}}, split="training", oracle=True)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=(2, 2, 0))) / "datalist.json"


def make(datalist: Path, out: Path, measure: Counted, learning_rate: float = 1e-3, epochs: int = 1) -> BenchmarkTable:
    recipe = Recipe(build, AdamWOneCycle(learning_rate), batch_size=64)
    entries = [
        Entry("each", measure, "plain"),
        Entry("first", measure, "plain", "first"),
        Entry("mean of {seeds}", measure, "plain", "all"),
        Entry("nothing", measure, None),
    ]
    data = Slices(datalist, grid=(32, 32))
    columns = [Column("left", "dice_subject", "left"), Column("right", "dice_subject", "right")]
    return BenchmarkTable("few", data, out, {"plain": recipe}, entries, columns, epochs=epochs, seeds=(3, 4))


def test_rows_are_measured_once_and_again_when_the_weights_change(datalist, tmp_path):
    measure = Counted()
    rows = make(datalist, tmp_path, measure).run()
    assert measure.seeds == [[3], [4], [3], [3, 4], []]
    named = [(row.name, row.column, row.seed, row.split, row.reads_masks) for row in rows[::2]]
    assert named == [
        ("each", "left", 3, "validation", False),
        ("each", "left", 4, "validation", False),
        ("first", "left", 3, "validation", False),
        ("mean of 2", "left", None, "validation", False),
        ("nothing", "left", None, "validation", False),
    ]
    assert all(row.column == "right" and row.split == "training" and row.reads_masks for row in rows[1::2])
    assert all((row.seconds is None) == (row.name == "nothing") for row in rows)
    assert rows[6].seconds == rows[0].seconds + rows[2].seconds  # of both seeds
    assert str(tmp_path) not in (tmp_path / "few.json").read_text(encoding="utf-8")
    assert [Row(**row) for row in json.loads((tmp_path / "few.json").read_text(encoding="utf-8"))] == rows

    again = Counted()
    assert make(datalist, tmp_path, again).run() == rows
    assert again.seeds == []

    path = tmp_path / "plain" / "seed4" / "model.pt"
    torch.save({name: torch.zeros_like(value) for name, value in torch.load(path, weights_only=True).items()}, path)
    changed = make(datalist, tmp_path, again).run()
    assert again.seeds == [[4], [3, 4]]
    assert changed[:2] == rows[:2]
    assert changed[2].metrics["dice_subject"]["mean"] == 0.0


def test_rows_of_labels_made_from_masks_say_so(datalist, tmp_path):
    table = make(datalist, tmp_path, Counted())
    row = Row("max", "left", "validation", 0, {"dice_subject": {"mean": 0.5}})
    assert "imulated" not in table.format([row])
    table.data.header |= {"simulated_supervision": True, "labels": "simulated: tags of tiles from masks"}
    assert table.format([replace(row, simulated_supervision=True)]).endswith(
        "\n\nSimulated supervision: labels are tags of tiles from masks."
    )
    rows = replace(table, entries=[entry for entry in table.entries if entry.recipe is None]).run()
    assert all(row.simulated_supervision for row in rows)
    assert json.loads((tmp_path / "few.json").read_text(encoding="utf-8"))[0]["simulated_supervision"] is True
    assert "Simulated supervision" in (tmp_path / "few.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("changed", [{"learning_rate": 1e-2}, {"epochs": 2}])
def test_weights_of_other_settings_are_refused(datalist, tmp_path, changed):
    make(datalist, tmp_path, Counted()).run()
    (tmp_path / "rows" / "validation" / "each" / "seed3.json").unlink()
    with pytest.raises(DataError, match="trained with other settings"):
        make(datalist, tmp_path, Counted(), **changed).run()


def test_weights_of_earlier_versions_are_taken_over(datalist, tmp_path):
    """They have one file of settings at the top, with more in it, and no record of seconds."""
    table = make(datalist, tmp_path, Counted())
    table.run()
    content = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    (tmp_path / "settings.json").write_text(json.dumps({**content, "batch_size": 64, "learning_rate": 1e-3}))
    for name in ("settings.json", "seconds.json"):
        for path in tmp_path.glob(f"plain/*/{name}"):
            path.unlink()
    (tmp_path / "rows" / "validation" / "first" / "seed3.json").unlink()
    before = (tmp_path / "plain" / "seed3" / "model.pt").stat().st_mtime_ns
    (row,) = (row for row in table.run() if row.label == "first / left")
    assert row.seconds is None
    assert (tmp_path / "plain" / "seed3" / "model.pt").stat().st_mtime_ns == before


def test_data_with_several_classes_is_refused(datalist, tmp_path):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    several = tmp_path / "datalist.json"
    several.write_text(json.dumps({**content, "classes": ["edema", "core"]}))
    with pytest.raises(DataError, match="has the classes edema, core: this table is for one class"):
        make(several, tmp_path / "out", Counted()).run()


def test_a_line_is_a_name_where_columns_show_columns():
    rows = [Row("a", column, "validation", 0, {"f1": {"mean": value}}) for column, value in (("x", 0.25), ("y", 0.5))]
    assert format_rows(rows, [Column("F1", "f1")]).splitlines()[2:] == ["| a / x | 0.250 |", "| a / y | 0.500 |"]
    by_column = [Column("x", "f1", "x"), Column("none", "f1", "z"), Column("y / x", "f1", "y", "ratio")]
    assert format_rows(rows, by_column).splitlines() == [
        "| row | x | none | y / x |",
        "|---|---|---|---|",
        "| a | 0.250 | – | – |",
    ]
