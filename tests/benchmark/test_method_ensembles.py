# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Rows that several runs make together: who takes part, what they decide, what is written, and that it is kept."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wsss import __version__
from monai_wsss.benchmark import Outcome, Row, make_method_benchmark, method_benchmark, method_ensembles
from monai_wsss.benchmark.kept_cases import read_kept_cases
from monai_wsss.benchmark.leaderboard import format_leaderboard
from monai_wsss.benchmark.method_agreement import MethodAgreement, agreement_rows, agreements
from monai_wsss.benchmark.method_ensembles import planned_ensembles
from monai_wsss.benchmark.method_recipes import OWN_GENERATOR, Pair
from monai_wsss.data import make_phantoms
from monai_wsss.metrics import error_auroc
from monai_wsss.refinement import MaskRule, decide_ensemble, rule_probabilities

pytestmark = pytest.mark.filterwarnings("ignore")  # of networks that have learned nothing in two steps


@pytest.fixture(scope="module")
def datalist(tmp_path_factory) -> Path:
    folder = Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=["T1", "FLAIR"], subjects=(2, 2, 0)))
    content = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    for split in ("training", "validation"):
        content[split] = content[split][::4]
    (folder / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "datalist.json"


def compare(datalist: Path, out: Path, *methods: str, seeds: tuple[int, ...] = (0,), **words):
    return make_method_benchmark(datalist, out, methods=methods, seeds=seeds, budget="2-steps", side=32, **words)


@pytest.fixture(scope="module")
def done(datalist, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, compare(datalist, out, "cam", "seam", "full", seeds=(0, 1)).run()


def finished(pair: Pair, seed: int, *, reads_masks: bool = False) -> Outcome:
    return Outcome(pair, seed, Row(pair.name, "", "validation", seed, {}, reads_masks=reads_masks))


def test_all_finished_runs_of_weak_methods_are_members_and_no_others():
    cam, coingan, full = Pair("cam", "small"), Pair("coingan", OWN_GENERATOR), Pair("full", "small")
    outcomes = [finished(cam, 0), finished(cam, 1), finished(coingan, 0), Outcome(coingan, 1, reason="No memory.")]
    outcomes += [finished(full, seed, reads_masks=True) for seed in (0, 1)]
    outcomes += [Outcome(Pair("gland", "small"), None, reason="No tissue.")]
    planned = planned_ensembles(outcomes)
    assert [(pair.name, [one.name for one in members]) for pair, members in planned] == [
        ("ensemble of seeds: cam, small", ["cam, small, seed 0", "cam, small, seed 1"]),
        (
            "ensemble of all weak methods, several encoders",
            ["cam, small, seed 0", "cam, small, seed 1", "coingan, own generator, seed 0"],
        ),
    ]
    assert planned_ensembles(outcomes[2:]) == []


def test_each_method_counts_the_same_however_many_seeds_it_has(datalist, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    part = compare(datalist, tmp_path / "out", "cam", "seam", seeds=(0, 1), one_seed=["seam"])
    together = part.run()[-1]
    assert together.members == ("cam, small, seed 0", "cam, small, seed 1", "seam, small, seed 0")
    kept = json.loads(next((tmp_path / "out").glob("runs/*/*/ensemble_of_all*/mean.json")).read_text(encoding="utf-8"))
    assert kept["settings"]["measured"]["weights"] == [1, 1, 2]
    members = [of_member(part, "cam", 0), of_member(part, "cam", 1), of_member(part, "seam", 0)]
    decided = [decide_ensemble(of_case, weights=[1, 1, 2]) for of_case in zip(*members, strict=True)]
    check_written(tmp_path / "out", part.data.whole_maps(None, None)[0], decided)
    assert "weights" not in json.dumps(json.loads((done[0] / "leaderboard.json").read_text(encoding="utf-8")))


def test_ranks_are_averaged_by_weight():
    cases = [{"subject": str(number), "label": [number % 2]} for number in range(4)]
    right, wrong = ([torch.tensor([sign * (number % 2)]) for number in range(4)] for sign in (1.0, -1.0))
    for weights, expected in (([2, 1], 1), ([1, 2], 0), (None, 0.5)):
        # Private: a row of a training that has learned nothing tells no order.
        found = method_ensembles._mean_rank_auroc(cases, [right, wrong], weights)
        assert found["image_auroc"]["mean"] == expected


@pytest.mark.parametrize("seeds", [(3, 1, 3, 1), (3, 1, 1, 3, 1, 1), (2, 3)])
def test_equal_votes_of_methods_with_unequal_seeds_are_equal(seeds):
    """Half of the methods see the finding in all of their seeds, or thirds of it: the background wins a tie."""
    members = [
        finished(Pair(f"method {place}", "small"), seed) for place, count in enumerate(seeds) for seed in range(count)
    ]
    # Private: ties of votes come of weights alone.
    weights = method_ensembles._weights(
        [planned for _, of_row in planned_ensembles(members)[-1:] for planned in of_row]
    )
    assert weights is not None
    background, finding = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    for finds in product([False, True], repeat=len(members)):
        for_it = sum(weight for weight, one in zip(weights, finds, strict=True) if one)
        decided = decide_ensemble([finding if one else background for one in finds], vote=True, weights=weights)
        assert decided.mask.item() == (2 * for_it > sum(weights))


def test_one_training_that_is_explained_twice_is_no_ensemble():
    cam, explained = Pair("cam", "small"), Pair("gradcam++", "small")
    assert planned_ensembles([finished(cam, 0), finished(explained, 0)]) == []
    assert len(planned_ensembles([finished(cam, 0), finished(explained, 1)])) == 1


def test_rows_of_ensembles_stand_in_the_table_the_json_and_the_page(done):
    out, outcomes = done
    names = [one.pair.method for one in outcomes[6:]]
    assert names == ["ensemble of seeds: cam", "ensemble of seeds: seam", "ensemble of all weak methods"]
    last = outcomes[-1]
    assert (last.state, last.seed, len(last.members)) == ("measured", None, 4)
    assert not last.row.reads_masks
    single = [one.row.metrics for one in outcomes[:4]]
    assert last.row.metrics["parameters"]["mean"] == sum(one["parameters"]["mean"] for one in single)
    assert last.row.metrics["steps"]["mean"] == 8
    assert len(last.row.metrics["dice_subject"]["subjects"]) == 2
    assert {"image_auroc", "error_auroc_entropy_pooled"} <= last.row.metrics.keys()
    told = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    assert told[-1]["members"] == list(last.members)
    text = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert "| ensemble of all weak methods | small | 4 runs |" in text
    assert "full supervision never is" in text
    assert "Error-uncertainty AUROC" in text
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert "4 runs" in page
    assert ">Uncertainty<" in page
    assert '<section id="uncertainty">' in page
    assert "--methods cam,seam --encoders small --seeds 0,1 --budget 2-steps" in page
    assert "kept no cases" not in page
    assert str(out) not in page


def test_an_ensemble_tells_its_version_and_how_many_healthy_images_it_saw(done):
    kept = json.loads(next(done[0].glob("runs/*/*/ensemble_of_all*/mean.json")).read_text(encoding="utf-8"))
    assert kept["version"] == __version__
    counts = {one.row.metrics["healthy_clean"]["images"] for one in done[1]}
    assert len(counts) == 1
    assert f"whose mask is empty (n = {counts.pop()})." in (done[0] / "leaderboard.md").read_text(encoding="utf-8")


def test_members_of_unequal_length_are_told_with_their_steps(datalist, tmp_path, monkeypatch):
    def timed(method, recipe, *others: object) -> float:
        return 2.0 if recipe.words["method"] == "seam" else 1.0

    monkeypatch.setattr(method_benchmark, "seconds_per_step", timed)
    words = {"methods": ["cam", "seam"], "seeds": [0, 1], "budget": "2s", "side": 32}
    make_method_benchmark(datalist, tmp_path, **words).run()
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    told = page[page.index('<ul class="small commands">') : page.index('<section id="parts">')]
    commands = {item.split(": <code>")[0]: item for item in told.split("<li>")[1:]}
    of_cam, of_seam = commands["ensemble of seeds: cam, small"], commands["ensemble of seeds: seam, small"]
    assert "--budget 2-steps" in of_cam
    assert "--budget 1-steps" in of_seam
    everyone = commands["ensemble of all weak methods, small"]
    assert "--budget 2s" in everyone
    assert "which have these steps: cam, small: 2; seam, small: 1." in everyone
    assert "steps.json" not in of_cam + of_seam + commands["cam, small"]


def of_member(bench, method: str, seed: int) -> list[torch.Tensor]:
    """Give the probabilities of a member for each case."""
    table = bench.table(Pair(method, "small"), seed)
    one = table.trained(list(table.recipes)[-1], seed)
    rule = MaskRule.of(one.method.network, rule="negative_reference")
    return [rule_probabilities(rule, each) for each in bench.data.whole_maps(one.recipe, one.method.network)[1]]


def check_written(out: Path, cases, decided) -> None:
    """Compare the written masks and maps of the ensemble of all methods with decisions."""
    (folder,) = out.glob("uncertainty/*/*/mean")
    for case, decision in zip(cases, decided, strict=True):
        for name, expected in {
            "masks": decision.mask, "entropy": decision.entropy, "disagreement": decision.disagreement,
        }.items():  # fmt: skip
            with Image.open(folder / name / f"{case['id']}.png") as picture:
                values = np.asarray(picture).T / (1 if name == "masks" else 65535)
            np.testing.assert_allclose(values, expected[0, 0], atol=1e-4)


def test_masks_and_uncertainty_are_those_of_the_members(datalist, done):
    out, outcomes = done
    bench = compare(datalist, out, "cam", "seam", seeds=(0, 1))
    cases = bench.data.whole_maps(None, None)[0]
    members = [of_member(bench, method, seed) for method in ("cam", "seam") for seed in (0, 1)]
    decided = [decide_ensemble(of_case) for of_case in zip(*members, strict=True)]
    check_written(out, cases, decided)
    (folder,) = out.glob("uncertainty/*/*/mean")
    areas = []
    for case, decision in zip(cases, decided, strict=True):
        area = error_auroc(decision.entropy[0], decision.mask[0], torch.as_tensor(case["mask"]))
        areas.append((case["subject"], area))
    found = outcomes[-1].row.metrics.get("error_auroc_entropy")
    known = [(subject, area) for subject, area in areas if area is not None]
    if known:
        means = [np.mean([area for of, area in known if of == subject]) for subject in {one for one, _ in known}]
        assert found["mean"] == pytest.approx(np.mean(means), abs=1e-4)
    else:
        assert found is None
    kept = read_kept_cases(
        out / "cases" / folder.relative_to(out / "uncertainty").with_suffix(".npz"), outcomes[-1].row.metrics
    )
    assert len(kept.uncertain) == len(cases)
    assert kept.uncertainties([0])[0].shape == (1, *kept.masks[0].shape)


def of_pixels(*pixels: float) -> torch.Tensor:
    """Give the probabilities (1, 2, 1, S) of a finding in each pixel."""
    found = torch.tensor(pixels).reshape(1, 1, 1, -1)
    return torch.cat((1 - found, found), dim=1)


def test_a_method_is_held_against_the_mean_of_the_others_and_not_against_its_own_seeds():
    """Grad-CAM++ explains the training of plain CAM, and is no other method to it."""
    pairs = [Pair(method, "small") for method in ("cam", "cam", "gradcam++", "seam", "bmp", "bmp")]
    agreement = MethodAgreement(pairs, [0, 1, 0, 0, 0, 1], weights=[1, 1, 2, 2, 1, 1], num_classes=1)
    cam, seam, bmp = of_pixels(1, 1, 0, 0), of_pixels(0.4, 0.4, 0.8, 0), of_pixels(0.4, 0.8, 0.0, 0)
    agreement.add([cam, of_pixels(1, 0, 0, 0), cam, seam, bmp, bmp])
    empty = of_pixels(0, 0, 0, 0)
    agreement.add([empty] * 6)
    # To CAM the mean of SEAM and BMP is (0.4, 0.6, 0.4, 0): its second pixel alone.
    expected = {"cam, small, seed 0": 2 / 3, "cam, small, seed 1": 0.0, "gradcam++, small, seed 0": 2 / 3}
    # To SEAM that of CAM, Grad-CAM++ and BMP is (0.8, 0.77, 0, 0); to BMP with SEAM (0.8, 0.63, 0.27, 0).
    expected |= {"seam, small, seed 0": 0.0, "bmp, small, seed 0": 2 / 3, "bmp, small, seed 1": 2 / 3}
    found = agreement.summary()
    assert found.keys() == {f"agreement/{name}" for name in expected}
    for name, dice in expected.items():
        assert found[f"agreement/{name}"] == {"mean": pytest.approx((dice + 1) / 2), "n": 2}


def test_agreement_counts_methods_and_not_runs():
    pairs = [Pair("cam", "small"), Pair("seam", "small"), *[Pair("bmp", "small")] * 3]
    one, other = of_pixels(1, 0), of_pixels(0.2, 1)
    found = []
    for weights in ([3, 3, 1, 1, 1], None):
        agreement = MethodAgreement(pairs, [0, 0, 0, 1, 2], weights=weights, num_classes=1)
        agreement.add([one, of_pixels(1, 0.1), *[other] * 3])
        found.append(agreement.summary()["agreement/cam, small, seed 0"]["mean"])
    assert found == [pytest.approx(2 / 3), 0.0]


def test_classes_are_averaged_and_one_method_tells_nothing():
    one = torch.eye(3)[[1, 1, 2, 0]].T.reshape(1, 3, 1, 4)
    other = torch.eye(3)[[1, 1, 0, 0]].T.reshape(1, 3, 1, 4)
    agreement = MethodAgreement([Pair("cam", "a"), Pair("seam", "a")], [0, 0], weights=None, num_classes=2)
    agreement.add([one, other])
    assert [entry["mean"] for entry in agreement.summary().values()] == [0.5, 0.5]
    for pairs in ([Pair("cam", "a"), Pair("gradcam++", "a")], [Pair("cam", "a"), Pair("cam", "b")]):
        alone = MethodAgreement(pairs, [0, 1], weights=None, num_classes=2)
        alone.add([one, other])
        assert alone.summary() == {}
    assert agreements([]) == {}


def test_the_ensemble_of_all_methods_tells_agreement_in_its_json_the_table_and_the_page(datalist, done):
    out, outcomes = done
    together = outcomes[-1].row
    assert not any(name.startswith("agreement/") for one in outcomes[:-1] for name in one.row.metrics)
    bench = compare(datalist, out, "cam", "seam", seeds=(0, 1))
    members = {Pair(method, "small"): [of_member(bench, method, seed) for seed in (0, 1)] for method in ("cam", "seam")}
    expected = {}
    for (pair, own), others in zip(members.items(), reversed(members.values()), strict=True):
        for seed, each in enumerate(own):
            dice = []
            for case, *rest in zip(each, *others, strict=True):
                mask, other = case.argmax(1) > 0, decide_ensemble(rest).mask[0] > 0
                both = int(mask.sum() + other.sum())
                dice.append(2 * float((mask & other).sum()) / both if both else 1.0)
            expected[f"agreement/{pair.name}, seed {seed}"] = {"mean": pytest.approx(np.mean(dice)), "n": len(dice)}
    found = {name: entry for name, entry in together.metrics.items() if name.startswith("agreement/")}
    assert found == expected
    (file,) = out.glob("runs/*/*/ensemble_of_all*/mean.json")
    (kept,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert kept["metrics"].keys() >= expected.keys()
    lines = [f"| {' | '.join([name, *cells])} |" for name, cells in agreement_rows(agreements([together]))]
    assert len(lines) == 2
    text = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert "| row | runs | agreement with the others, without masks |" in text
    assert all(line in text for line in lines)
    page = (out / "comparison.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="agreement">') : page.index('<section id="costs">')]
    assert all(name in section for name in ("cam, small", "seam, small", "No mask of a case is read"))


def test_an_ensemble_is_kept_until_its_members_or_its_data_change(datalist, done, tmp_path, monkeypatch, caplog):
    out, outcomes = done
    again = tmp_path / "again"
    shutil.copytree(out, again)
    measured = []
    written = method_ensembles.write_kept_cases

    def counted(path, *rest):
        measured.append(path.parent.name)
        written(path, *rest)

    monkeypatch.setattr(method_ensembles, "write_kept_cases", counted)
    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert compare(datalist, again, "cam", "seam", "full", seeds=(0, 1)).run() == outcomes
    assert measured == []
    fewer = compare(datalist, again, "cam", "seam", seeds=(0,)).run()
    assert measured == ["ensemble_of_all_weak_methods_small"]
    assert fewer[-1].members == ("cam, small, seed 0", "seam, small, seed 0")
    voted = compare(datalist, again, "cam", seeds=(0, 1), ensembles="vote").run()
    assert measured[1:] == ["ensemble_of_seeds_cam_small"]
    path = again / "uncertainty/validation/ensemble_of_seeds_cam_small/vote/entropy"
    levels = {value for one in path.iterdir() for value in np.unique(np.asarray(Image.open(one)))}
    assert levels <= {0, 65535}, "two votes are alike or even"
    assert voted[-1].state == "measured"
    assert [one.pair.method for one in compare(datalist, again, "cam", seeds=(0, 1), ensembles="none").run()] == [
        "cam", "cam",
    ]  # fmt: skip


def test_a_member_without_weights_is_a_reason_and_the_runs_stand(datalist, done, tmp_path):
    out, _ = done
    again = tmp_path / "again"
    shutil.copytree(out, again)
    shutil.rmtree(again / "weights")
    for path in again.glob("runs/methods_*/*/ensemble*/mean.json"):
        path.unlink()
    outcomes = compare(datalist, again, "cam", seeds=(0, 1)).run()
    assert [one.state for one in outcomes] == ["measured", "measured", "failed"]
    assert "The weights of cam, small, seed 0 are not in" in outcomes[-1].reason
    assert list((again / "failures").glob("ensemble*/mean.json"))
    text = format_leaderboard(outcomes, "dice_subject", "title")
    assert "- ensemble of seeds: cam, small (failed): " in text


@pytest.mark.parametrize(("ensembles", "told"), [("vote", True), ("mean", False)])
def test_the_page_tells_that_ensembles_vote(datalist, tmp_path, ensembles, told):
    assert ("ensembles by votes" in compare(datalist, tmp_path, "cam", ensembles=ensembles)._title) is told


def test_an_unknown_aggregate_is_refused(datalist, tmp_path):
    with pytest.raises(ValueError, match="mean, vote, none"):
        compare(datalist, tmp_path, "cam", ensembles="median")


@pytest.mark.slow
def test_members_of_all_kinds_decide_together(datalist, tmp_path):
    """Class maps, Grad-CAM++, segmentations and a generator that converts images."""
    outcomes = compare(datalist, tmp_path, "cam", "gradcam++", "bmp", "coingan").run()
    assert [one.state for one in outcomes] == ["measured"] * 5, [one.reason for one in outcomes]
    assert outcomes[-1].pair == Pair("ensemble of all weak methods", "several encoders")
    # Grad-CAM++ has trained nothing.
    assert outcomes[-1].row.metrics["steps"]["mean"] == 6
    found = agreements([outcomes[-1].row])
    assert [*found] == ["cam, small", "gradcam++, small", "bmp, small", "coingan, own generator"]
    assert all(0 <= value <= 1 for of_seeds in found.values() for value in of_seeds.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "words"), [("skin", {}), ("gland", {"side": 32})])
def test_tiles_and_tissues_have_ensembles(kind, words, tmp_path):
    datalist = Path(make_phantoms(tmp_path / "data", kind=kind, subjects=(2, 2, 0))) / "datalist.json"
    *runs, together = make_method_benchmark(
        datalist, tmp_path / "out", methods=["cam", "seam"], seeds=[0], budget="1-step", **words
    ).run()
    assert [one.state for one in (*runs, together)] == ["measured"] * 3, together.reason
    assert all(0 <= one[0] <= 1 for one in agreements([together.row]).values())
    assert len(agreements([together.row])) == 2
    assert 0 <= together.row.metrics["error_auroc_entropy_pooled"]["mean"] <= 1
    assert list(tmp_path.glob("out/uncertainty/*/*/mean/disagreement/*"))


def test_without_masks_nothing_is_said_of_errors(datalist, tmp_path):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    for split in ("training", "validation"):
        content[split] = [{key: value for key, value in item.items() if key != "mask"} for item in content[split]]
    without = datalist.with_name("without_any.json")
    without.write_text(json.dumps(content), encoding="utf-8")
    together = compare(without, tmp_path, "cam", seeds=(0, 1)).run()[-1]
    assert together.state == "measured"
    assert "image_auroc" in together.row.metrics
    assert not any(name.startswith("agreement/") for name in together.row.metrics), "there is one method"
    assert "Sorted by image AUROC" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
