# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Slices measured one by one give the 3D distances of their volumes, in mm, beside those within slices."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from monai_wsss.metrics import CaseTable, SlicePlace, metric_definition, surface_distances

SIZE = (0.5, 1.0, 3.0)


def study(seed: int, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A mask and its reference, blocks that overlap and end at other slices."""
    rng = np.random.default_rng(seed)
    found, wanted = np.zeros((2, 12, 10, 8), dtype=np.uint8)
    for label in range(1, classes + 1):
        x, y, z = rng.integers(0, 3, 3)
        wanted[x : x + 5, 5 * (label - 1) : 5 * label, z : z + 4] = label
        found[x + 1 : x + 6, 5 * (label - 1) + y % 2 : 5 * label, z + 2 : z + 5] = label
    return found, wanted


def table_of_slices(studies: dict[str, tuple[np.ndarray, np.ndarray]], step: int = 1, size=SIZE, classes=("tumor",)):
    table = CaseTable(classes)
    for name, (found, wanted) in studies.items():
        for z in range(0, found.shape[2], step):
            label = np.array([(wanted[..., z] == k).any() for k in range(1, len(classes) + 1)], dtype=float)
            table.add(
                id=f"{name}_{z}",
                subject=name.split("-")[0],
                label=label,
                prediction=found[None, ..., z],
                reference=wanted[None, ..., z],
                place=SlicePlace(name, z, size),
            )
    return table


def test_distances_are_those_of_the_volume_and_their_spread_is_over_patients(tmp_path):
    studies = {name: study(seed) for seed, name in enumerate(("a", "b", "c"))}
    summary = table_of_slices(studies).write(tmp_path, bootstrap=20)
    for name in ("asd", "assd", "assd_directed", "hd95"):
        of_volumes = [getattr(surface_distances(*pair, spacing=SIZE), name) for pair in studies.values()]
        assert summary[f"volume_{name}_mm"]["mean"] == pytest.approx(np.mean(of_volumes))
        assert summary[f"volume_{name}_mm"]["std"] == pytest.approx(np.std(of_volumes, ddof=1))
    assert "assd_directed_px" in summary  # within slices, under its own name
    assert summary["dice_subject"]["std"] > 0
    assert "std" not in summary["dice_pooled"]
    assert "volumes whose slices were restacked" in (tmp_path / "notes.txt").read_text(encoding="utf-8")
    with open(tmp_path / "per_subject.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["volume_assd"]) == pytest.approx(surface_distances(*studies["a"], spacing=SIZE).assd)


def test_missed_slices_and_false_alarms_count():
    """Within slices both sides agree wherever both are; in 3D the missed slices cost."""
    wanted = np.zeros((6, 6, 6), dtype=np.uint8)
    wanted[1:5, 1:5, 1:5] = 1
    found = wanted.copy()
    found[..., 3:] = 0
    summary = table_of_slices({"a": (found, wanted)}, size=None).summary(bootstrap=10)
    assert summary["assd_directed_px"]["mean"] == 0
    assert summary["volume_assd_directed_px"]["mean"] == pytest.approx(surface_distances(found, wanted).assd_directed)
    assert summary["volume_assd_directed_px"]["mean"] > 0.2


def test_slices_that_were_left_out_evenly_lie_further_apart():
    found, wanted = study(3)
    summary = table_of_slices({"a": (found, wanted)}, step=2).summary(bootstrap=10)
    expected = surface_distances(found[..., ::2], wanted[..., ::2], spacing=(0.5, 1.0, 6.0))
    assert summary["volume_assd_mm"]["mean"] == pytest.approx(expected.assd)


def test_slices_that_lack_between_others_are_told():
    table = table_of_slices({name: study(seed) for seed, name in enumerate("ab")})
    table.rows = [row for row in table.rows if row["id"] != "a_3"]
    table.summary(bootstrap=10)
    assert any("1 of them lack slices between others, which count as empty" in note for note in table.notes)
    table = table_of_slices({"a": study(3)}, step=2)
    table.summary(bootstrap=10)
    assert not any("lack slices" in note for note in table.notes)


def test_order_processes_and_studies_of_a_subject_do_not_matter():
    studies = {f"a-{seed}": study(seed) for seed in range(2)}
    table = table_of_slices(studies)
    one, two = CaseTable(["tumor"]), CaseTable(["tumor"])
    one.merge(table.rows[::2])
    two.merge(reversed(table.rows[1::2]))
    one.merge(two.rows)
    expected = np.mean([surface_distances(*pair, spacing=SIZE).hd95 for pair in studies.values()])
    for each in (table, one):
        assert each.summary(bootstrap=10)["volume_hd95_mm"]["mean"] == pytest.approx(expected)


def test_classes_have_distances_of_their_own():
    found, wanted = study(1, classes=2)
    summary = table_of_slices({"a": (found, wanted)}, classes=("core", "edema")).summary(bootstrap=10)
    of_class = [surface_distances(found == k, wanted == k, spacing=SIZE).assd for k in (1, 2)]
    assert summary["volume_assd_mm/edema"]["mean"] == pytest.approx(of_class[1])
    assert summary["volume_assd_mm"]["mean"] == pytest.approx(np.mean(of_class))
    assert metric_definition("volume_assd_mm/edema").startswith("Of volumes, whose slices were restacked")
    assert metric_definition("volume_nothing_mm") == ""


def test_volumes_with_unknown_slices_are_left_out_and_mistakes_are_named():
    found, wanted = study(2)
    table = table_of_slices({"a": (found, wanted)})
    table.add(id="more", subject="a", label=np.ones(1), prediction=found[None, ..., 0], place=SlicePlace("a", 20, SIZE))
    assert not [name for name in table.summary(bootstrap=10) if name.startswith("volume_")]
    table = table_of_slices({"a": (found, wanted)})
    table.add(
        id="again",
        subject="a",
        label=np.zeros(1),
        prediction=0 * found[None, ..., 0],
        place=SlicePlace("a", 0, SIZE),
    )
    with pytest.raises(ValueError, match="slices of one size, each once, in volume a of subject a"):
        table.summary(bootstrap=10)
    with pytest.raises(ValueError, match="got 3 axes"):
        CaseTable(["tumor"]).add(
            id="a", subject="a", label=np.zeros(1), prediction=0 * found[None], place=SlicePlace("a", 0)
        )
