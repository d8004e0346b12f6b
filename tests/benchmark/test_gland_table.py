# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables of the gland paper: small runs are whole, resumed, and refuse what they are not for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark import Row, patches
from monai_wsss.benchmark.gland_recipes import CLASSIFIERS, GLAND_BOUND, OEEM, OURS, ROWS, SEGMENTERS
from monai_wsss.benchmark.gland_table import (
    make_gland_adaptation,
    make_gland_attention,
    make_gland_comparison,
    make_gland_pyramid,
    make_gland_table,
)
from monai_wsss.benchmark.patches import Patches
from monai_wsss.data import make_phantoms
from monai_wsss.metrics import CaseTable, welch_t_test
from monai_wsss.refinement import pooled_mixture

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
SMALL = {"epochs": 1, "samples": 16, "batch_size": 8, "width": 4}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("glands"), kind="gland", subjects=(2, 1, 1))) / "datalist.json"


def test_data_with_a_background_and_other_settings_are_refused(datalist, tmp_path):
    brains = Path(make_phantoms(tmp_path / "brains", subjects=(1, 1, 0))) / "datalist.json"
    with pytest.raises(DataError, match="classes that are all real tissue"):
        make_gland_table(brains, tmp_path / "out").run()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "settings.json").write_text("{}")
    with pytest.raises(DataError, match="trained with other settings"):
        make_gland_table(datalist, tmp_path / "out").run()


def test_the_table_compares_with_full_supervision_and_the_baseline(datalist, tmp_path):
    values = {"baseline": (0.4, 0.5), "better": (0.6, 0.62), GLAND_BOUND: (0.8, 0.8)}
    rows = [
        Row(name, "", "validation", seed, {"miou_pooled": {"mean": value}, "pseudo_miou": {"mean": 0.7}})
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    lines = make_gland_table(datalist, tmp_path).format(rows).splitlines()
    assert lines[4].startswith("| baseline | 0.700 ± 0.000 | – | 0.450 ± 0.071 |")
    assert lines[4].endswith("| 0.56 | – |")
    assert lines[5].split(" | ")[-2] == "0.76"
    assert 0 < float(lines[5].split(" | ")[-1].strip(" |")) < 0.5


def test_the_comparison_tests_every_row_against_the_system(datalist, tmp_path):
    """Table 1 compares others with Ours, not with the baseline."""
    values = {GLAND_BOUND: (0.8, 0.81), OEEM: (0.4, 0.5), OURS: (0.7, 0.72)}
    rows = [
        Row(name, "", "validation", seed, {"miou_pooled": {"mean": value}})
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    table = make_gland_comparison(datalist, tmp_path)
    text = table.format(rows)
    measured, _, published = text.partition("as published")
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip(" |") for line in measured.splitlines()}
    assert lines["row"] == f"p against {OURS}"
    assert lines[OURS] == "–"
    assert float(lines[OEEM]) == pytest.approx(welch_t_test(values[OURS], values[OEEM]).p, abs=0.005)
    assert "F1 of the paper, 2m / (1 + m)" in text
    assert "| HAMIL (2023) |" in published


@pytest.mark.parametrize("make", [make_gland_table, make_gland_comparison, make_gland_attention, make_gland_pyramid])
def test_titles_say_that_a_table_was_run_small_and_rows_share_their_weights(make, datalist, tmp_path):
    table = make(datalist, tmp_path, **SMALL)
    assert table.format([]).startswith("**Table ")
    assert "run small on" in table.title
    assert table.title.endswith("Not the paper's run")
    assert table.epochs == 1
    assert table.recipes[next(iter(table.entries)).recipe].batch_size == 8
    assert [entry.name for entry in table.entries] == list(ROWS[table.name])
    assert OURS in [entry.name for entry in table.entries]


def test_the_folders_of_the_rows_keep_their_names(datalist, tmp_path):
    # A benchmark goes on in the folder of an earlier version: renamed rows would be trained again.
    table = make_gland_table(datalist, tmp_path)
    folders = {entry.name: table.folder(entry.recipe, 1) for entry in table.entries}
    assert {folder.relative_to(folder.parents[1]).as_posix() for folder in folders.values()} == {"seed1/segmenter"}
    assert table.folder("+ CCA > classifier", 1) == tmp_path / "cca" / "seed1" / "classifier"
    assert {name: folder.parents[1].name for name, folder in folders.items()} == {
        "baseline, average pooling": "baseline_average_pooling",
        "+ CCA": "cca",
        "+ MPFP (Eq. 9)": "mpfp_eq_9",
        "CCA + MPFP (Eq. 9)": "cca_mpfp_eq_9",
        "default: top 25 %": "default_top_25",
        "CCA + MPFP (Eq. 9), PLF (paper)": "cca_mpfp_eq_9_plf_paper",
        "CCA + MPFP (Eq. 9), PLF (official)": "cca_mpfp_eq_9_plf_official",
        "CCA + MPFP (Eq. 9), PLF (oeem)": "cca_mpfp_eq_9_plf_oeem",
        "full supervision (masks)": "full_supervision_masks",
    }


class Contrast(torch.nn.Module):
    """The first channel against 0: maps of two classes without training."""

    def forward(self, image):
        return torch.cat((image[:, :1], torch.zeros_like(image[:, :1])), dim=1)


def test_the_mixture_parts_two_classes_by_one_cut_for_all_images(datalist, monkeypatch):
    data = Patches(datalist)
    cases, maps = data.whole_maps(None, Contrast())
    probabilities = [image.sigmoid()[:, :1] for image in (of_image[:, :1] - of_image[:, 1:] for of_image in maps)]
    fit = pooled_mixture(probabilities)
    chosen = []
    monkeypatch.setattr(patches, "add_case", lambda table, case, mask: chosen.append(mask))
    monkeypatch.setattr(CaseTable, "summary", lambda table: {"miou_pooled": {"mean": 0.0}})
    assert data.measure_mixture(Contrast())
    scored = data.header["classes"].index(data.header["scored_class"])
    cut = fit.threshold.item() if fit.found else 0.5
    assert len(chosen) == len(cases) > 0
    for mask, share in zip(chosen, probabilities, strict=True):
        expected = (share[0] if scored == 0 else 1 - share[0]) > (cut if scored == 0 else 1 - cut)
        assert torch.equal(mask == scored + 1, expected)
        assert set(mask.unique().tolist()) <= {1, 2}


def test_more_than_two_classes_have_no_mixture(datalist, monkeypatch):
    data = Patches(datalist)
    monkeypatch.setitem(data.header, "classes", ["a", "b", "c"])
    assert data.measure_mixture(Contrast()) == {}


@pytest.mark.slow
def test_small_runs_are_whole_and_fine_tuned(datalist, tmp_path, caplog):
    table = make_gland_table(datalist, tmp_path / "out", seeds=(0,), **SMALL)
    rows = table.run()
    assert [row.name for row in rows] == [*CLASSIFIERS, *SEGMENTERS, GLAND_BOUND]
    assert [Row(**row) for row in json.loads((tmp_path / "out" / "gland.json").read_text(encoding="utf-8"))] == rows
    assert [row.name for row in rows if row.reads_masks] == [GLAND_BOUND]
    assert {row.name for row in rows if "map_miou_mixture" in row.metrics} == set(CLASSIFIERS)
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("model.pt")}
    assert table.run() == rows
    assert all(path.stat().st_mtime_ns == before for path, before in weights.items())

    out, initial = tmp_path / "out", tmp_path / "initial"
    initial.mkdir()
    (out / "cca_mpfp_eq_9" / "seed0" / "classifier" / "model.pt").rename(initial / "classifier.pt")
    (out / "cca_mpfp_eq_9_plf_paper" / "seed0" / "segmenter" / "model.pt").rename(initial / "model.pt")
    adapted = make_gland_adaptation(datalist, tmp_path / "adapted", seeds=(0, 1), initial=initial, **SMALL).run()
    assert [row.seed for row in adapted] == [None, 0, 1, 0, 1, 0, 1, 0, 1]
    assert (tmp_path / "adapted" / "gland_adaptation.svg").read_text(encoding="utf-8").startswith("<svg")
