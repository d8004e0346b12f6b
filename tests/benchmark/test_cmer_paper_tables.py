# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables and figures of the CMER paper: rows, columns and titles, and one tiny run of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monai_wsss.benchmark import (
    CmerPaper,
    make_cmer_backbone,
    make_cmer_comparison,
    make_cmer_errors,
    make_cmer_losses,
    make_cmer_thresholds,
    make_cmer_transforms,
)
from monai_wsss.benchmark.cmer_paper_recipes import (
    BASELINE,
    PAPER_SCALE,
    SEAM_ALL,
    SEAM_SCALE,
    SMALL_SCALE,
    bound_recipes,
    comparison_recipes,
    loss_recipes,
    proposed_name,
    transform_recipes,
)
from monai_wsss.data import make_phantoms
from monai_wsss.engines import Progress
from monai_wsss.methods import CMER
from monai_wsss.transforms import NormalizeSubjectd

TINY = replace(SMALL_SCALE, grid=(32, 32), width=2, epochs=1, ramp_end=1)
LATE = Progress(epoch=20, iteration=20, fraction=0.9)
PROPOSED = proposed_name(TINY, papers=False)
RECIPES = {
    **comparison_recipes(TINY, False),
    **loss_recipes(TINY, False),
    **transform_recipes(TINY),
    **bound_recipes(TINY, ("T1", "T2")),
    **{f"{name}, DeepLabV3": recipe for name, recipe in comparison_recipes(TINY, False, "aspp_resnet").items()},
}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=("T1", "T1c", "FLAIR"), subjects=(2, 4, 0))
    return Path(folder) / "datalist.json"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    method = RECIPES[name].build(2, 1)
    assert method.uses_masks == ("masks" in name)
    batch = {"image": torch.rand(4, 2, 32, 32), "label": torch.tensor([[0.0], [1.0], [1.0], [0.0]])}
    if method.uses_masks:
        batch["mask"] = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    torch.stack(list(method(batch, LATE).values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        (BASELINE, set()),
        (SEAM_SCALE, {"equivariance"}),
        (SEAM_ALL, {"equivariance"}),
        ("L_ER alone, flip", {"equivariance"}),
        ("KD", {"distillation"}),
        ("KD + ER", {"distillation", "equivariance"}),
        ("ER + CMER", {"equivariance", "cross_modal"}),
        (PROPOSED, {"distillation", "equivariance", "cross_modal"}),
    ],
)
def test_a_row_has_the_terms_that_it_names_and_the_papers_classifier(name, terms):
    method = RECIPES[name].build(2, 1)
    assert isinstance(method, CMER)
    told = ("equivariance", "cross_modal", "distillation")
    assert {term for term in told if getattr(method, term) is not None} == terms
    assert method.second_view is (name != BASELINE)
    assert method.network.background_map
    assert method.network.mask_rule().rule == "max"
    kinds = {SEAM_SCALE: ("scale",), "L_ER alone, flip": ("flip",)}
    assert method.transform.kinds == kinds.get(name, ("flip", "rotate", "scale", "translate"))


@pytest.fixture(scope="module")
def of_paper(datalist: Path) -> Path:
    """A datalist of as many subjects as the paper has, of slices that are here."""
    content = json.loads(datalist.read_text(encoding="utf-8"))
    numbers = {"training": 271, "validation": 32, "test": 32}
    for split, number in numbers.items():
        slices = [content["training"][0], content["validation"][-1]]
        content[split] = [
            {**one, "id": f"{split}_{n}_{place}", "subject": f"{split}_{n}", "statistics": one["subject"]}
            for n in range(number)
            for place, one in enumerate(slices)
        ]
    path = datalist.with_name("of_paper.json")
    path.write_text(json.dumps(content | {"split": "cmer"}), encoding="utf-8")
    return path


def changed(path: Path, name: str, **words: object) -> Path:
    """The datalist with other words."""
    content = json.loads(path.read_text(encoding="utf-8")) | words
    other = path.with_name(f"{name}.json")
    other.write_text(json.dumps(content), encoding="utf-8")
    return other


@pytest.mark.parametrize("make", [make_cmer_comparison, make_cmer_losses, make_cmer_errors, make_cmer_thresholds])
def test_a_row_is_the_papers_only_at_its_size_and_on_its_split(datalist, of_paper, tmp_path, make):
    """Other data, another size or another split than the test split: title and row say that it is not the paper's."""
    content = json.loads(of_paper.read_text(encoding="utf-8"))
    fewer = changed(of_paper, "fewer", test=content["test"][2:])
    drawn = changed(of_paper, "drawn", split="drawn")
    whole = [{key: value for key, value in item.items() if key != "volume"} for item in content["test"]]
    studies = changed(of_paper, "studies", test=[{k: v for k, v in one.items() if k != "slice"} for one in whole])
    tables = {
        name: make(path, tmp_path, sets=("T1+FLAIR",), size=size, split=split)
        for name, path, size, split in (
            ("paper", of_paper, "paper", "test"),
            ("validation", of_paper, "paper", "validation"),
            ("other data", datalist, "paper", "validation"),
            ("fewer", fewer, "paper", "test"),
            ("drawn", drawn, "paper", "test"),
            ("studies", studies, "paper", "test"),
            ("small", of_paper, "small", "test"),
        )
    }
    assert tables["paper"].title.endswith(" of the CMER paper")
    assert tables["validation"].title.endswith(" of the CMER paper, but on the validation split")
    for name in ("other data", "fewer", "drawn", "studies"):
        assert ", not on its data: 240 x 240 pixels, width 64, 30 epochs" in tables[name].title, name
    assert ", run small: 64 x 64 pixels, width 8, 8 epochs" in tables["small"].title
    names = {key: {entry.name for entry in table.tables["T1+FLAIR"].entries} for key, table in tables.items()}
    assert [key for key in tables if "CMER (paper)" in names[key]] == ["paper", "validation"]
    assert "CMER, the paper's losses, not on its data" in names["fewer"]
    assert "CMER, the paper's losses, run small" in names["small"]


def test_the_papers_rows_have_its_optimizer_and_table_iv_is_never_called_the_papers(of_paper, tmp_path):
    recipe = comparison_recipes(PAPER_SCALE, True)["CMER (paper)"]
    assert recipe.settings["optimizer"] == {"name": "AdamWConstant", "learning_rate": 5e-5, "weight_decay": 0.1}
    table = make_cmer_backbone(of_paper, tmp_path, sets=("T1+FLAIR",), size="paper", split="test")
    assert table.title.endswith("from random weights")
    assert "CMER (paper)" not in {entry.name for entry in table.tables["T1+FLAIR"].entries}


def columns_of(paper: CmerPaper, one: str) -> list[str]:
    return [column.head for column in paper.tables[one].columns]


def test_sets_are_those_of_the_paper_that_the_data_have(datalist, tmp_path):
    assert list(make_cmer_comparison(datalist, tmp_path).tables) == ["T1c+FLAIR", "T1+FLAIR", "T1+T1c+FLAIR"]
    assert list(make_cmer_backbone(datalist, tmp_path).tables) == ["T1c+FLAIR", "T1+FLAIR"]
    assert list(make_cmer_errors(datalist, tmp_path).tables) == ["T1+T1c+FLAIR"]
    heads = columns_of(make_cmer_comparison(datalist, tmp_path), "T1+FLAIR")
    assert heads == ["T1 DSC", "T1 ASSD", "FLAIR DSC", "FLAIR ASSD", "fused DSC", "fused ASSD"]
    heads = columns_of(make_cmer_errors(datalist, tmp_path, sets=("T1+FLAIR",)), "T1+FLAIR")
    assert heads == ["T1 r_u", "T1 r_o", "FLAIR r_u", "FLAIR r_o"]
    with pytest.raises(ValueError, match=r"`sets` of the modalities T1, T1c, FLAIR, such as T1\+T1c\+FLAIR, got T2"):
        make_cmer_comparison(datalist, tmp_path, sets=("T1+T2",))
    with pytest.raises(ValueError, match="`size` to be one of small, paper, got 'large'"):
        make_cmer_comparison(datalist, tmp_path, size="large")
    with pytest.raises(ValueError, match="one set in `sets`"):
        make_cmer_transforms(datalist, tmp_path, sets=("T1+FLAIR", "T1c+FLAIR"))


def test_slices_are_read_as_the_paper_has_it(datalist, tmp_path):
    """Neither clipped nor flipped; a set has its own channels."""
    data = make_cmer_comparison(datalist, tmp_path, sets=("FLAIR+T1",)).tables["FLAIR+T1"].data
    (normalize,) = [step for step in data.reading(["image"]) if isinstance(step, NormalizeSubjectd)]
    assert not normalize.clip
    assert data.augmentation(["image"], RECIPES[BASELINE]) == []
    assert data.modalities == ["FLAIR", "T1"]
    item = data.items(RECIPES[BASELINE], 0)[0]
    assert ["FLAIR" in item["image"][0], "T1" in item["image"][1]] == [True, True]
    assert "intensity_mean" not in item


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer", "ignore:Epoch .* maps of positive images")
@pytest.mark.filterwarnings("ignore:Training found .* unreliable")
def test_tiny_runs_leave_tables_and_figures_and_train_nothing_twice(datalist, tmp_path):
    words = {"seeds": (0,), "scale": TINY}
    out = tmp_path / "out"
    make_cmer_comparison(datalist, out, sets=("T1+FLAIR",), **words).run()
    text = (out / "cmer_comparison.md").read_text(encoding="utf-8")
    assert text.startswith("**Tables I and II of the CMER paper, run small: 32 x 32 pixels, width 2, 1 epochs")
    for row in (BASELINE, SEAM_SCALE, SEAM_ALL, PROPOSED):
        assert f"| {row} |" in text
        assert f"| {row}, Grad-CAM++ |" in text
    lines = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in text.splitlines()}
    bound = lines["full supervision (masks), FLAIR"]
    assert ("±" in bound[2], bound[0]) == (True, "–")
    assert "±" in lines[f"{BASELINE}"][4]  # over the patients of one seed
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/*/seed0/model.pt")}
    make_cmer_errors(datalist, out, sets=("T1+FLAIR",), **words).run()
    figure = make_cmer_thresholds(datalist, out, sets=("T1+FLAIR", "T1c+FLAIR"), **words)
    figure.run()
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())
    assert figure.figures == tuple(f"cmer_thresholds_{name}.svg" for name in ("T1", "FLAIR", "T1c"))
    curves = json.loads((out / "cmer_thresholds_FLAIR.json").read_text(encoding="utf-8"))
    of_sets = {f"{PROPOSED}, {one}" for one in ("T1+FLAIR", "T1c+FLAIR")}
    assert list(curves)[:3] == [BASELINE, SEAM_SCALE, SEAM_ALL]
    assert set(curves) == {BASELINE, SEAM_SCALE, SEAM_ALL} | of_sets
    drawn = (out / "cmer_thresholds_FLAIR.svg").read_text(encoding="utf-8")
    assert drawn.count("FLAIR. Fig. 4 of the CMER paper, run small") == 2  # for readers of screens, and seen
    make_cmer_losses(datalist, out, sets=("T1+FLAIR", "T1c+FLAIR"), **words).run()
    head = (out / "cmer_losses.md").read_text(encoding="utf-8").splitlines()[2]
    assert head == "| row | T1+FLAIR DSC | T1+FLAIR ASSD | T1c+FLAIR DSC | T1c+FLAIR ASSD |"
    make_cmer_backbone(datalist, out, sets=("T1+FLAIR",), **words).run()
    assert f"| {SEAM_ALL}, Grad-CAM++ |" in (out / "cmer_backbone.md").read_text(encoding="utf-8")
    make_cmer_transforms(datalist, out, sets=("T1+FLAIR",), **words).run()
    for name in (*figure.figures, "cmer_transforms.svg"):
        assert (out / name).read_text(encoding="utf-8").startswith("<svg")
    drawn = (out / "cmer_transforms.svg").read_text(encoding="utf-8")
    assert all(f">{kind}<" in drawn for kind in (BASELINE, "flip", "rotate", "scale", "translate", "all"))
