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
from monai_wsss.benchmark.gland_recipes import CLASSIFIERS, GLAND_BOUND, SEGMENTERS
from monai_wsss.benchmark.gland_table import make_gland_adaptation, make_gland_table
from monai_wsss.benchmark.patches import Patches
from monai_wsss.data import make_phantoms
from monai_wsss.metrics import CaseTable
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
    assert lines[2].startswith("| baseline | 0.700 ± 0.000 | – | 0.450 ± 0.071 |")
    assert lines[2].endswith("| 0.56 | – |")
    assert lines[3].split(" | ")[-2] == "0.76"
    assert 0 < float(lines[3].split(" | ")[-1].strip(" |")) < 0.5


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

    trained, initial = tmp_path / "out" / "default_top_25" / "seed0", tmp_path / "initial"
    initial.mkdir()
    (trained / "classifier" / "model.pt").rename(initial / "classifier.pt")
    (trained / "segmenter" / "model.pt").rename(initial / "model.pt")
    adapted = make_gland_adaptation(datalist, tmp_path / "adapted", seeds=(0, 1), initial=initial, **SMALL).run()
    assert [row.seed for row in adapted] == [None, 0, 1, 0, 1, 0, 1, 0, 1]
    assert (tmp_path / "adapted" / "gland_adaptation.svg").read_text(encoding="utf-8").startswith("<svg")
