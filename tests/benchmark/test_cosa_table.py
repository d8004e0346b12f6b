# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table and the figures of CoSA: what rows differ in, which of them read masks, and small runs of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from monai_wsss._checks import DataError
from monai_wsss.benchmark import Row, make_cosa_figures, make_cosa_table
from monai_wsss.benchmark.cosa_branches import (
    BranchMaps,
    Cuts,
    LabelMaps,
    branch_maps,
    branch_masks,
    cut_maps,
    segmentation_logits,
)
from monai_wsss.benchmark.cosa_data import CosaSlices, CosaTiles, cosa_data
from monai_wsss.benchmark.cosa_figures import COSA_FIGURES
from monai_wsss.benchmark.cosa_followed import Follower
from monai_wsss.benchmark.cosa_guide import OracleCoSA
from monai_wsss.benchmark.cosa_recipes import (
    ADDITIVE,
    ALL,
    COSA_BUDGETS,
    ORACLE,
    SEGMENTERS,
    SUBTRACTIVE,
    WITHOUT_DT,
    cosa_recipes,
)
from monai_wsss.benchmark.cosa_table import cosa_sections
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.data import make_phantoms
from monai_wsss.engines import Progress
from monai_wsss.inferers import AboveHealthyLevel, MinMax, MultiScaleSeeds
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork, TwoFusedMaps
from monai_wsss.refinement import LabeledImages

pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing"),
    pytest.mark.filterwarnings("ignore:Epoch .* will not end in this run"),
]
LATE = Progress(epoch=20, iteration=20, fraction=0.9)
BOUND = "full supervision (masks), same network"
SWITCHES = ("gc", "sa", "raw", "csc", "dt")


@pytest.fixture(scope="module")
def skin(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("skin"), kind="skin", subjects=(3, 2, 0))) / "datalist.json"


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("brain"), subjects=(2, 2, 0))) / "datalist.json"


@pytest.fixture
def short(monkeypatch):
    """One or two steps per training, of few items, all terms from the first on."""
    for kind, budget in list(COSA_BUDGETS.items()):
        few = replace(budget, epochs=1, full=1, warm_up=0.0, batch_size=4, image_batch_size=2, scales=(1.0,))
        monkeypatch.setitem(COSA_BUDGETS, kind, few)


def batch(side: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, side, side, generator=generator) * 255
    return {"image": image, "strong": image.flip(1), "label": torch.tensor([[0.0], [1.0], [1.0], [0.0]])}


def test_the_ladder_climbs_by_one_part_but_for_the_fifth_row():
    recipes = cosa_recipes(COSA_BUDGETS["tiles"])
    on = {
        name: {switch for switch in SWITCHES if recipes[name].words.get(switch, True)}
        for name in (*ADDITIVE, *SUBTRACTIVE)
    }
    for name in ("base", ALL):
        method = recipes[name].build(3, 1)
        assert {switch for switch in SWITCHES if method.settings[switch]} == on[name]
        assert [method.csc is None, method.online is method.network] == [name == "base"] * 2
    assert list(on.values())[:7] == [
        set(),
        {"gc"},
        {"gc", "sa"},
        {"gc", "sa", "raw"},
        {"gc", "sa", "csc"},
        {"gc", "sa", "raw", "csc"},
        set(SWITCHES),
    ]
    assert [set(SWITCHES) - on[name] for name in (*SUBTRACTIVE, WITHOUT_DT)] == [
        {"csc"},
        {"raw"},
        {"sa"},
        {"gc"},
        {"dt"},
    ]


def test_rows_differ_in_what_their_names_say():
    recipes = cosa_recipes(COSA_BUDGETS["slices"])
    settings = [json.dumps(recipe.settings, sort_keys=True) for recipe in recipes.values()]
    assert len(set(settings)) == len(settings)
    detached = {name: recipes[name].build(3, 1).network.detach_seeds for name in recipes if "detached" in name}
    assert list(detached.values()) == ["features", "weights"]
    for name in ("preset paper, run small", "preset released, run small"):
        method = recipes[name].build(3, 1)
        assert method.settings["preset"] in name
        assert method.network.classifier.pooling == "max"
    steps = {recipe.words["method"]: recipe.epochs for recipe in recipes.values() if recipe.batch_size == 32}
    assert len(set(steps.values())) == 1, "other methods have the budget of CoSA"


def test_only_the_oracle_and_the_bound_read_masks(skin, brain):
    for data in (CosaTiles(skin), CosaSlices(brain)):
        kind = "tiles" if isinstance(data, CosaTiles) else "slices"
        for name, recipe in cosa_recipes(COSA_BUDGETS[kind]).items():
            reads = name in (ORACLE, BOUND)
            items = data.items(recipe, 0, masks=reads)
            assert items
            assert any("mask" in item for item in items) == reads, name


def test_the_oracle_guides_by_masks():
    method = OracleCoSA.tiny(in_channels=3)
    assert method.uses_masks
    told = batch()
    with pytest.raises(ValueError, match="needs `mask` in its batch"):
        method(told, LATE, "online")
    mask = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    mask[1, :, :8] = 1
    mask[1, :, 30:] = 255
    guide = method.guidance(None, torch.zeros(4, 2, 32, 32), {"mask": mask})
    assert torch.equal(guide[:, 1], (mask[:, 0] == 1).float())
    assert torch.equal(guide.sum(1), torch.ones(4, 32, 32))
    losses = method({**told, "mask": mask}, LATE, "online")
    assert losses["s2c"] > 0


def likeness(images: torch.Tensor, others: torch.Tensor) -> float:
    """Give the mean absolute correlation of the first channels."""
    pairs = torch.stack((images[:, 0].flatten(1), others[:, 0].flatten(1)), dim=1)
    return float(torch.stack([torch.corrcoef(pair)[0, 1].abs() for pair in pairs]).nanmean())


def test_both_views_have_one_geometry(skin, brain):
    """The strong view differs from the image, and is like it pixel by pixel."""
    for data, kind in ((CosaTiles(skin), "tiles"), (CosaSlices(brain), "slices")):
        recipe = cosa_recipes(COSA_BUDGETS[kind])[ALL]
        loader = data.loader(data.items(recipe, 0)[:16], recipe, 0)
        loader.dataset.set_epoch(1)
        item = next(iter(loader))
        assert not torch.equal(item["image"], item["strong"])
        assert likeness(item["image"], item["strong"]) > likeness(item["image"], item["strong"].flip(-1))


def test_the_energy_reads_colors_before_the_jitter(skin):
    """The jitter may leave 0 to 255, which the energy of the preset ``released`` refuses."""
    data, recipes = CosaTiles(skin), cosa_recipes(COSA_BUDGETS["tiles"])
    recipe = recipes["preset released, run small"]
    loader = data.loader(data.items(recipe, 0)[:16], recipe, 0)
    loader.dataset.set_epoch(1)
    item = next(iter(loader))
    assert 0 <= item["intensity"].min() <= item["intensity"].max() <= 255
    assert not torch.equal(item["intensity"], item["image"])
    assert likeness(item["intensity"], item["image"]) > 0.99
    energies = {name for name, each in recipes.items() if each.words.get("values", {}).get("energy")}
    assert energies == {"preset released, run small"}


def test_masks_of_branches():
    maps = BranchMaps(
        torch.tensor([[[0.9, 0.2, 0.0]]]),
        torch.tensor([[[0.5, 0.9, 0.0]]]),
        torch.tensor([[[0.0, 0, 1]], [[1.0, 1, 0]]]),
    )
    masks = branch_masks(maps, Cuts(0.5, 0.6), torch.ones(1))
    shown = {name: mask.flatten().tolist() for name, mask in masks.items()}
    assert shown == {"CPL": [1, 0, 0], "CPL†": [0, 1, 0], "ensemble": [1, 1, 0], "S": [1, 1, 0], "S given": [1, 1, 0]}
    healthy = branch_masks(maps, Cuts(0.5, 0.6), torch.zeros(1))
    assert healthy["S"].any()
    assert not healthy["S given"].any()


def row(name: str, column: str, **metrics: float) -> Row:
    return Row(name, column, "validation", 0, {key: {"mean": value} for key, value in metrics.items()})


def test_sections_leave_out_rows_without_a_value():
    rows = [
        row(ALL, "S", dice_pooled=0.6, miou_pooled=0.7, cpu_seconds_per_image=0.1),
        row(ALL, "CPL", miou_pooled=0.6, xi=0.4),
        row(WITHOUT_DT, "CPL at 0.3", miou_pooled=0.5),
        row(BOUND, "S", dice_pooled=0.8, miou_pooled=0.9),
    ]
    main, *_ = sections = list(cosa_sections(rows).values())
    assert main.splitlines()[2].endswith("| 0.75 |")
    swept = next(text for title, text in cosa_sections(rows).items() if "cut elsewhere" in title)
    assert swept.splitlines()[2:] == [f"| {WITHOUT_DT} | – | 0.500 | – | – | – | – | – |"]
    assert len(sections) == 5


def test_the_printed_tables_say_in_their_title_that_they_were_run_small(skin, tmp_path):
    for make in (make_cosa_table, make_cosa_figures):
        table = make(skin, tmp_path)
        title = table.format([row(ALL, "S", miou_pooled=0.6)]).splitlines()[0]
        assert f"run small on {table.data.header['name']}" in title
        assert "Not the paper's run" in title


def test_pairs_without_and_with_a_crf_tell_images_per_second():
    """As Table 4c of the paper: both mIoU and both speeds, of rows that have a CRF."""
    rows = [
        row("base", "S", miou_pooled=0.6, cpu_seconds_per_image=0.1),
        row(ALL, "S", miou_pooled=0.7, cpu_seconds_per_image=0.1),
        row(ALL, "S + CRF", miou_pooled=0.8, cpu_seconds_per_image=0.25),
    ]
    (pairs,) = (text for title, text in cosa_sections(rows).items() if "images per second" in title)
    assert pairs.splitlines()[2:] == [f"| {ALL} | 0.700 | 0.800 | – | – | 10.000 | 4.000 |"]


@pytest.mark.parametrize("kind", ["tiles", pytest.param("slices", marks=pytest.mark.slow)])
def test_a_small_run_measures_both_branches_of_both_networks(kind, skin, brain, tmp_path, short):
    few = [folder_name(name) for name in (WITHOUT_DT, ORACLE, BOUND)]
    table = make_cosa_table(
        skin if kind == "tiles" else brain, tmp_path / "out", seeds=(0,), runs=tmp_path / "runs", rows=few
    )
    if kind == "tiles":
        table.data.samples = 4
    rows = table.run()
    columns = {row.column for row in rows if row.name == WITHOUT_DT}
    branches = {"CPL", "CPL†", "ensemble", "S", "S given"}
    assert columns >= branches | {f"online {name} train" for name in branches} | {"CPL at 0.2", "S + CRF"}
    chosen = {row.column for row in rows if row.name == WITHOUT_DT and row.reads_masks}
    assert len(chosen) == 3
    assert all("chosen with masks" in column for column in chosen)
    assert all(row.reads_masks for row in rows if row.name in (ORACLE, BOUND))
    text = (tmp_path / "out" / f"{table.name}.md").read_text(encoding="utf-8")
    assert f"Read masks in training: {BOUND}; {ORACLE}." in text
    assert text.count("Simulated supervision") == (kind == "tiles")
    assert text.count("S: Dice per subject") == 1
    again = make_cosa_table(table.data.datalist, tmp_path / "elsewhere", seeds=(0,), runs=tmp_path / "runs", rows=few)
    again.data.samples = 4
    assert again.run() == rows
    assert not (tmp_path / "elsewhere" / folder_name(ORACLE)).exists()


def test_both_networks_and_thresholds_are_restored(skin, tmp_path, short):
    table = make_cosa_table(skin, tmp_path, seeds=(0,))
    table.data.samples = 4
    first = table.trained(ALL, 0).method
    first.labels.threshold.value.fill_(0.3)
    again = table.trained(ALL, 0).method
    assert not torch.equal(*(next(network.parameters()) for network in (again.network, again.online)))
    for name, value in again.online.state_dict().items():
        assert torch.equal(value, first.online.state_dict()[name]), name
    for path in (tmp_path / folder_name(ALL) / "seed0" / "checkpoints").glob("*.pt"):
        path.unlink()
    with pytest.raises(DataError, match="without a checkpoint"):
        table.trained(ALL, 0)


def test_a_second_stage_learns_from_class_maps(skin, tmp_path, short):
    table = make_cosa_table(skin, tmp_path, seeds=(0,))
    table.data.samples = 4
    assert not table.trained("CoSA-MS, same encoder", 0).method.uses_masks
    folder = tmp_path / folder_name(ALL) / "seed0" / "pseudo_masks_cpl"
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["weights_sha256"]
    assert len(list(folder.glob("*.png"))) == 3


def test_the_paper_s_segmenters_learn_from_the_same_class_maps_on_request(skin, tmp_path, short):
    """R101, WR38 and MONAI's Swin: trained where their rows are named, never by default."""
    recipes = cosa_recipes(COSA_BUDGETS["tiles"])
    same = recipes["CoSA-MS, same encoder"]
    parts = {}
    for name in SEGMENTERS:
        assert (recipes[name].teacher, recipes[name].pseudo) == (same.teacher, same.pseudo) == (ALL, {"maps": "cpl"})
        network = recipes[name].build(3, 1).network
        parts[name.partition(", ")[2]] = network.settings.get("backbone") or network.settings["segmenter"]
        assert network.eval()(torch.zeros(1, 3, 40, 33)).shape == (1, 2, 40, 33)
    assert parts == {
        "DeepLab on ResNet101, run small": "DilatedResNet",
        "ResNet38, run small": "ResNet38",
        "Swin (SwinUNETR), run small": "SwinUNETR",
    }
    table = make_cosa_table(skin, tmp_path, seeds=(0,))
    assert {entry.name for entry in table.entries} >= SEGMENTERS.keys()
    assert {folder_name(entry.name) for entry in table.entries} - set(table.rows) == set(map(folder_name, SEGMENTERS))
    asked = make_cosa_table(skin, tmp_path, seeds=(0,), rows=[folder_name(name) for name in SEGMENTERS])
    assert list(asked.rows) == [folder_name(name) for name in SEGMENTERS]


def test_the_energy_of_the_released_code_is_in_the_unit_of_the_images():
    stds = {}
    for kind in COSA_BUDGETS:
        settings = cosa_recipes(COSA_BUDGETS[kind])["preset released, run small"].build(3, 1).energy.loss.settings
        stds[kind] = (settings["intensity_std"], settings["intensity_range"])
    assert stds == {"tiles": (15.0, 255.0), "slices": (0.3, None)}


def test_class_maps_of_the_second_stage_are_scaled_as_those_that_teach():
    """Of one scale, and of an image in which some pixel is healthy, they are the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, image = TwoBranchNetwork.tiny().eval(), torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        network.classifier.weight *= 1000  # as of a trained network: far above the small numbers of the scaling
        level = network.branches(image).seeds.flatten().quantile(0.6)[None]
    above = AboveHealthyLevel(1)
    above.set_level(level)
    for scale, begins in ((above, level), (MinMax(), None)):
        maps, _ = MultiScaleSeeds(scale, (1.0,))(network, LabeledImages(image, torch.ones(1, 1)))
        own = LabelMaps(network, 0.4, begins)
        with torch.no_grad():
            mask = replace(own.mask_rule(), gate="given").mask(own(image), torch.ones(1, 1))[0]
        assert torch.equal(mask, cut_maps(maps[0], 0.4))
        assert 0 < mask.float().mean() < 1


def test_a_training_is_followed_once_its_class_maps_can_be_scaled(tmp_path):
    """The default begins them at the healthy level, which is unknown during the warm-up."""
    method = cosa_recipes(COSA_BUDGETS["slices"])[ALL].build(3, 1)
    case = {"image": torch.rand(3, 32, 32), "label": torch.ones(1), "mask": torch.ones(1, 32, 32, dtype=torch.uint8)}
    follower, engine = Follower(method, [case], None, tmp_path, 1), Engine(lambda *_: None)
    engine.state.iteration = 3
    follower(engine)
    assert not follower.path.exists()
    for scale in method.seeds.healthy_levels.values():
        scale.set_level(torch.zeros(1))
    follower(engine)
    assert list(json.loads(follower.path.read_text(encoding="utf-8"))) == ["000003"]


def test_the_kind_of_the_data_is_known(skin, brain):
    assert cosa_data(skin, "validation")[0] == "tiles"
    assert cosa_data(brain, "validation")[0] == "slices"


def test_figures_are_drawn_from_rows_and_say_that_they_read_masks(brain, tmp_path, short):
    table = make_cosa_figures(brain, tmp_path / "out", seeds=(0,), runs=tmp_path / "runs")
    rows = table.run()
    assert {row.name for row in rows} == {f"all {what}, followed" for what in ("of CoSA", "without SA", "without RAW")}
    assert all(row.metrics["by_confidence"]["pixels"] for row in rows)
    for name in COSA_FIGURES:
        chart = (tmp_path / "out" / f"{name}.svg").read_text(encoding="utf-8")
        assert chart.startswith("<svg")
        assert "reads masks" in chart
    again = make_cosa_figures(brain, tmp_path / "elsewhere", seeds=(0,), runs=tmp_path / "runs")
    assert again.run() == rows


def test_logits_are_summed_over_scales_and_mirror_images_as_the_label_makers_are():
    network = TwoBranchNetwork.with_auxiliary(
        TwoFusedMaps(ConvPyramid(2, 1, width=4, attention_heads=0), width=8, stride=2), 1, decoder_width=8
    ).eval()
    case = {"image": torch.rand(1, 16, 16), "label": torch.ones(1)}
    seeds = MultiScaleSeeds(MinMax(), (0.5, 1.0), seeds=("seeds", "auxiliary_seeds"), sum_logits=True)
    (own,) = branch_maps(seeds, network, [case])
    (other,) = segmentation_logits(network, [case], (0.5, 1.0))
    torch.testing.assert_close(own.logits, other)
    with torch.no_grad():
        image = case["image"][None]
        small = torch.nn.functional.interpolate(image, scale_factor=0.5, mode="bilinear")
        maps = [network(one) for one in (image, small)] + [network(one.flip(-1)).flip(-1) for one in (image, small)]
        expected = sum(torch.nn.functional.interpolate(one, (16, 16), mode="bilinear") for one in maps)
    torch.testing.assert_close(other, expected[0])


@pytest.mark.slow
def test_panels_show_the_additive_rows_that_are_trained(skin, tmp_path, short):
    few = [folder_name(name) for name in ("base", ALL)]
    table = make_cosa_table(skin, tmp_path, seeds=(0,), rows=few)
    table.data.samples = 4
    table.run()
    figures = make_cosa_figures(skin, tmp_path, seeds=(0,))
    figures.data.samples = 4
    figures.run()
    assert len(list((tmp_path / "panels").glob("*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", cosa_recipes(COSA_BUDGETS["tiles"]))
def test_every_recipe_trains(name):
    method = cosa_recipes(COSA_BUDGETS["tiles"])[name].build(3, 1)
    data = batch(64)  # AFA's label needs a grid of tokens
    if method.uses_masks:
        data["mask"] = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    if "MS" in name:
        data["pseudo_mask"] = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    torch.stack(list(method(data, LATE, method.players[0]).values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
