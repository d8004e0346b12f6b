# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The measured tables are those of the rows that are kept, and the rows hold nothing that they must not."""

from __future__ import annotations

import importlib.util
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from monai_wsss.benchmark import Row
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES
from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.choice_table import choice_recipes
from monai_wsss.benchmark.cmer_recipes import BOUND_RECIPES, CMER_RECIPES
from monai_wsss.benchmark.coingan_recipes import coingan_recipes

# Private: which rows the figures follow is told by their names alone.
from monai_wsss.benchmark.cosa_figures import _FOLLOWED
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.decision_table import CLASSIFIER, SELF_TRAINED
from monai_wsss.benchmark.encoder_recipes import BUDGETS, decision_recipes, encoder_recipes, lever_recipes
from monai_wsss.benchmark.gland_recipes import gland_recipes
from monai_wsss.benchmark.method_recipes import Pair, method_recipes
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import folder_name, write_rows

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_results", RESULTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_numbers_are_written_from_the_kept_rows(generator):
    assert {path.name for path in generator.PAGES} >= {"README.md", "which_method.md", "encoders.md", "methods.md"}
    for path, text in generator.contents().items():
        assert path.read_text(encoding="utf-8") == text, "run `python docs/results/generate.py`"


def keep(runs: Path, table: str, name: str, values: tuple[float, ...], metrics: tuple[str, ...]) -> None:
    for seed in range(3):
        row = Row(
            name, "as they are", "validation", seed, {m: {"mean": v} for m, v in zip(metrics, values, strict=True)}
        )
        write_rows(runs / table / "validation" / name / f"seed{seed}.json", [row], {})


@pytest.mark.parametrize(
    ("metrics", "default"),
    [(("tile_auroc", "tile_clean"), "top 25 %"), (("presence_auroc", "healthy_clean"), "top 10 %")],
)
def test_the_rule_of_defaults_is_applied_to_the_kept_rows(generator, tmp_path, metrics, default):
    """Tables at another size or in standardized colors are held against the same default."""
    assert generator._rule("levers_some", tmp_path) == "No row yet."
    keep(tmp_path, "levers_some", default, (0.90, 0.90), metrics)
    keep(tmp_path, "levers_some", "max", (0.95, 0.90), metrics)
    keep(tmp_path, "levers_some", "stride 8", (0.95, 0.80), metrics)
    keep(tmp_path, "levers_some_128", default, (0.92, 0.90), metrics)
    keep(tmp_path, "levers_some_crf", default, (0.99, 0.90), metrics)
    page = generator.generate("<!-- rule levers_some -->\nold\n<!-- end -->\n", tmp_path)
    assert page.splitlines()[3:] == [
        f"| {default} | 3 | 0.900 |  | 0.900 |  | the default |",
        "| max | 3 | 0.950 | +0.050 | 0.900 | +0.000 | preferred |",
        "| stride 8 | 3 | 0.950 | +0.050 | 0.800 | -0.100 | not preferred |",
        f"| {default}, 128 | 3 | 0.920 | +0.020 | 0.900 | +0.000 | preferred |",
        "<!-- end -->",
    ]


def test_agreement_between_methods_is_studied_once_a_row_has_it(generator, tmp_path):
    page = "<!-- agreement methods -->\nold\n<!-- end -->\n"
    metrics: dict[str, Any] = {}
    for place, name in enumerate(("cam", "seam", "bmp"), start=1):
        row = Row(f"{name}, small", "", "validation", 0, {"dice_subject": {"mean": place / 10}})
        write_rows(tmp_path / "methods_some" / "validation" / name / "seed0.json", [row], {})
        metrics[f"agreement/{name}, small, seed 0"] = {"mean": place / 5}
    together = tmp_path / "methods_some" / "validation" / "together" / "mean.json"
    write_rows(together, [Row("ensemble of all weak methods, small", "", "validation", None, {})], {})
    assert generator.generate(page, tmp_path).splitlines()[1] == "No row yet."
    write_rows(together, [Row("ensemble of all weak methods, small", "", "validation", None, metrics)], {})
    lines = generator.generate(page, tmp_path).splitlines()
    assert lines[3] == "| some | 3 | +1.00 | bmp, small | 0.300 | 0.200 | 0.300 |"
    assert "+1.00 on some." in lines[5]


def test_an_encoder_at_another_size_is_held_against_itself_and_not_against_random_weights(generator, tmp_path):
    metrics, usual = ("presence_auroc", "healthy_clean"), "CAM, ImageNet weights"
    keep(tmp_path, "encoder_some", "CAM, from scratch", (0.90, 0.90), metrics)
    keep(tmp_path, "encoder_some", usual, (0.96, 0.90), metrics)
    keep(tmp_path, "encoder_some_128", usual, (0.965, 0.90), metrics)
    keep(tmp_path, "encoder_some_128", "full supervision, from scratch", (0.99,), ("healthy_clean",))
    lines = generator._rule("encoder_some", tmp_path).splitlines()
    assert [line for line in lines if "CAM" in line] == [
        "| CAM, from scratch | 3 | 0.900 |  | 0.900 |  | the default |",
        f"| {usual} | 3 | 0.960 | +0.060 | 0.900 | +0.000 | preferred |",
        f"| {usual} | 3 | 0.960 |  | 0.900 |  | the default |",
        f"| {usual}, 128 | 3 | 0.965 | +0.005 | 0.900 | +0.000 | not preferred |",
    ]
    assert "full supervision" not in "".join(lines)


def test_kept_rows_hold_no_paths_and_no_identifiers():
    for path in (RESULTS / "runs").rglob("*"):
        if path.is_dir() or path.parent.name == "mutants":
            continue
        assert path.suffix == ".json"
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        told = {"weights_sha256", "configs_sha256"} if "shipped" in path.parts else set()
        assert set(content["source"]) == {"settings_sha256", "data_sha256"} | told
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in content["source"].values())
        assert [Row(**row) for row in content["rows"]]
        assert not re.search(r"\"/|\.png|\.npz|\.jpg|\.pt\b", text), path


def test_kept_verdicts_on_mutants_hold_no_paths():
    lines = (RESULTS / "runs" / "mutants" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    for entry in map(json.loads, lines):
        assert "sound" in entry or entry["verdict"] in ("killed", "survived", "timeout")
        assert not any(str(value).startswith("/") for value in entry.values())


def test_seeds_of_a_kept_row_differ_in_nothing_else():
    """A page averages them."""
    for folder in {path.parent for path in (RESULTS / "runs").rglob("seed*.json")}:
        told = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("seed*.json")]
        alike = [{**one["settings"], "seeds": None, "data_sha256": one["source"]["data_sha256"]} for one in told]
        assert all(one == alike[0] for one in alike), folder


def check_run_of_methods(path: Path, told: dict[str, Any]) -> None:
    """Hold all stages of a run against the recipes of today, and the members of an ensemble against their own rows."""
    if "members" in told:
        kept = {
            json.loads(run.read_text("utf-8"))["source"]["settings_sha256"] for run in path.parents[1].rglob("seed*")
        }
        assert {member["settings_sha256"] for member in told["members"]} <= kept, path
        return
    stages = [told["recipe"]]
    while stages[0]["teacher"]:
        stages.insert(0, stages[0]["teacher"])
    steps = sum(stage["steps"] for stage in stages)
    data, modalities = told["data"], stages[0].get("modalities", ())
    kind = "patches" if "every" in data else "tiles" if "crop" in data else "slices"
    pair = Pair(told["measured"]["method"], told["row"].rpartition(", ")[2])
    made = method_recipes(pair, kind, steps, modalities).values()
    own = [{name: value for name, value in stage.items() if name != "teacher"} for stage in stages]
    assert own == json.loads(json.dumps([{**recipe.settings, **recipe.unusual} for recipe in made])), path


def test_rows_of_the_comparison_are_marked_where_masks_chose_their_settings(generator):
    for name, (clean, chosen) in generator.CHOSEN_WITH_MASKS.items():
        text = generator._methods(name, RESULTS / "runs")
        if text == generator.NOTHING:
            continue
        assert f"† {chosen} chosen with masks" in text
        kept = generator.kept_outcomes(RESULTS / "runs" / f"methods_{name}" / "validation")
        for method in {outcome.pair.method for outcome in kept}:
            assert (f"\n| {method} † |" in text) == (method not in clean)
            assert (f"\n| {method} |" in text) == (method in clean)


RECIPES_OF_PAPERS = {
    "cam": CAM_RECIPES,
    "cmer": {**CMER_RECIPES, **BOUND_RECIPES},
    "bmp": {**BMP_RECIPES, **BMP_BOUND},
    "gland": gland_recipes(8, batch_size=32),
}


def check_row_of_a_paper(path: Path, told: dict[str, Any]) -> None:
    """Hold a row of the table of one method against its recipes: that of its name, or the one it measures otherwise."""
    if told["recipe"] is None:
        return
    recipes = RECIPES_OF_PAPERS[told["table"]]
    stages, stage = [], told["recipe"]
    while stage:
        stages.insert(0, {name: value for name, value in stage.items() if name not in ("teacher", "epochs")})
        stage = stage["teacher"]
    own = told["row"]
    behind = ("max / ", "trivial: whole slice")  # of the table of plain CAM: measured of its recipe "max"
    known = "max" if own.startswith(behind) else ""
    measured_otherwise = max((name for name in recipes if own.startswith(f"{name}, ")), key=len, default=known)
    names = [name for name in (own, f"{own} > segmenter", measured_otherwise) if name in recipes][:1]
    assert names, f"no recipe of {told['table']} has the row {own}"
    while teacher := recipes[names[0]].teacher:
        names.insert(0, teacher)
    made = [recipes[name] for name in names]
    # lgg_mri_64 has three channels and one class, GlaS three and two.
    classes = 2 if told["table"] == "gland" else 1
    today = [{**one.settings, **one.unusual} | _built(one, classes) for one in made]
    assert stages == json.loads(json.dumps(today)), path


def _built(recipe: Recipe, classes: int) -> dict[str, Any]:
    return {} if recipe.words else {"built": recipe.built_settings(3, classes)}


@pytest.mark.parametrize(
    ("table", "names", "column", "head"),
    [
        ("cam_some", ["lse", "max", "trivial: whole slice", "full supervision (masks)"], "logit", "dice_subject"),
        ("cmer_some", ["KD", "full supervision (masks), same networks", "plain CAM"], "fused", "fused dice"),
        ("bmp_some", ["+ c2s", "classification branch only", "full supervision (masks), same network"], "S", "S"),
        ("gland_some", ["default: top 25 %", "baseline, average pooling", "full supervision (masks)"], "", "mIoU"),
    ],
)
def test_tables_of_one_method_have_the_order_and_columns_of_their_command(
    generator, tmp_path, table, names, column, head
):
    metric = "miou_pooled" if "gland" in table else "dice_subject"
    for name in names:
        for seed in (0, 1):
            row = Row(name, column, "validation", seed, {metric: {"mean": 0.4 if "full" in name else 0.2}})
            write_rows(tmp_path / table / "validation" / folder_name(name) / f"seed{seed}.json", [row], {})
    first, _, *lines = generator._table(table, tmp_path).splitlines()
    heads = first.strip("| ").split(" | ")
    known = RECIPES_OF_PAPERS[table.partition("_")[0]]
    order = [line.strip("| ").split(" | ")[0].partition(" / ")[0] for line in lines]
    assert sorted(order) == sorted(names)
    assert order == sorted(order, key=lambda name: [*known, name].index(name))
    cells = dict(zip(heads, lines[0].strip("| ").split(" | "), strict=True))
    ratio = next(name for name in heads if name.startswith("ratio") and "reliable" not in name)
    assert (cells["seeds"], cells[head], cells[ratio]) == ("2", "0.200 ± 0.000", "0.50")


EARLIER = ("methods_lgg_top_10_percent",)
"""Rows of settings that were given up, which a page tells and no table shows."""


def test_kept_rows_are_those_of_the_recipes_of_today():
    """A page must not show rows that the command would make anew."""
    for path in sorted((RESULTS / "runs").rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        told = content["settings"]
        if "shipped" in path.parts:
            continue  # see test_generated_numbers.py
        digest = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        assert digest == content["source"]["settings_sha256"], path
        if told["table"].startswith(("coingan", "cosa")):
            tiles = "crop" in told["data"]
            of_cosa = told["table"].startswith("cosa")
            made = cosa_recipes(COSA_BUDGETS["tiles" if tiles else "slices"]) if of_cosa else coingan_recipes()
            recipe = made.get(_FOLLOWED.get(told["row"], told["row"]))  # none of a trivial answer
            kept = recipe and json.loads(json.dumps({**recipe.settings, **recipe.unusual}))
            own = told["recipe"] and {name: value for name, value in told["recipe"].items() if name != "teacher"}
            assert own == kept, path
            continue
        if path.parents[2].name in EARLIER:
            continue
        if told["table"].startswith("methods"):
            assert path.parents[2].name.startswith("methods_"), path
            check_run_of_methods(path, told)
            continue
        if told["table"] in RECIPES_OF_PAPERS:
            check_row_of_a_paper(path, told)
            continue
        data = told["data"]
        kind = "patches" if "every" in data else "tiles" if "crop" in data else "slices"
        budget = BUDGETS[kind]
        recipes = {
            **encoder_recipes(budget, refined=told["measured"].get("refine", "par")),
            **lever_recipes(budget, in_channels=4),
            **decision_recipes(budget, classifier=CLASSIFIER, self_trained=SELF_TRAINED),
            **choice_recipes(budget, small=kind == "slices", in_channels=4),
        }
        assert told["measured"]["rule"] == budget.rule or told["row"].startswith(("rule", "healthy")), path
        if told["recipe"] is not None:
            recipe = recipes[told["row"] if told["row"] in recipes else CLASSIFIER]
            own = {name: value for name, value in told["recipe"].items() if name != "teacher"}
            assert own == json.loads(json.dumps({**recipe.settings, **recipe.unusual})), path
