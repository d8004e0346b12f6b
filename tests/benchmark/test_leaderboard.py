# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The leaderboard: its order, intervals and tests by subject, ratios, and what has no result."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monai_wsss.benchmark import Outcome, Row
from monai_wsss.benchmark.leaderboard import format_leaderboard, kept_outcomes, standings
from monai_wsss.benchmark.method_recipes import ALL_WEAK, OWN_GENERATOR, Pair
from monai_wsss.benchmark.rows import write_rows

CAM, COSA, FULL = Pair("cam", "small"), Pair("cosa", "small"), Pair("full", "small")
COINGAN, CMER = Pair("coingan", OWN_GENERATOR), Pair("cmer", "small")


def measured(pair: Pair, dice: list[float | None], seed: int = 0) -> Outcome:
    known = [value for value in dice if value is not None]
    metrics = {"dice_subject": {"mean": sum(known) / len(known), "subjects": dice}, "steps": {"mean": 30}}
    return Outcome(pair, seed, Row(pair.name, "", "validation", seed, metrics, 90.0, reads_masks=pair == FULL))


def of(lines, pair):
    (line,) = [line for line in lines if line.pair == pair]
    return line


def test_lines_are_sorted_and_held_against_cam_and_full_supervision():
    low, high = [0.2, 0.3, 0.1, 0.2, 0.3, 0.2], [0.7, 0.9, 0.8, 0.7, 0.9, 0.8]
    outcomes = [measured(CAM, low), measured(COINGAN, low[::-1]), measured(COSA, high), measured(FULL, [0.8] * 6)]
    lines = standings([*outcomes, Outcome(CMER, None, reason="No.")], "dice_subject")
    assert [line.pair for line in lines] == [COSA, FULL, CAM, COINGAN, CMER]
    assert of(lines, COSA).ratio == pytest.approx(1.0)
    assert of(lines, COSA).p == 2 / 2**6
    assert of(lines, CAM).p is None
    # A generator of its own is held against those of any encoder.
    assert of(lines, COINGAN).ratio == pytest.approx(of(lines, CAM).ratio)
    assert of(lines, COINGAN).p is not None
    low_end, high_end = of(lines, COSA).interval
    assert 0.7 <= low_end < 0.8 < high_end <= 0.9
    assert of(lines, CMER).value is None


def test_below_six_subjects_there_is_no_p():
    outcomes = [measured(CAM, [0.1, 0.2, 0.1, 0.2, 0.1, None]), measured(COSA, [0.9] * 6)]
    assert of(standings(outcomes, "dice_subject"), COSA).p is None


def test_a_seed_is_no_subject():
    dice = [0.2, 0.4, 0.6, 0.8, 0.5, 0.3]
    once, thrice = ([measured(CAM, dice, seed) for seed in range(seeds)] for seeds in (1, 3))
    assert standings(once, "dice_subject")[0].interval == standings(thrice, "dice_subject")[0].interval


def test_without_masks_image_level_scores_rank():
    def scored(pair: Pair, auroc: float) -> Outcome:
        metrics = {"image_auroc": {"mean": auroc, "ci95": [auroc - 0.1, auroc + 0.1], "n": 8}}
        return Outcome(pair, 0, Row(pair.name, "", "validation", 0, metrics))

    outcomes = [scored(CAM, 0.7), scored(COSA, 0.8)]
    lines = standings(outcomes, "image_auroc")
    assert [line.pair for line in lines] == [COSA, CAM]
    assert lines[0].ratio is lines[0].p is None
    text = format_leaderboard(outcomes, "image_auroc", "data")
    assert "Sorted by image AUROC, which needs no mask." in text
    assert "| cosa | small | 1 | – | – | – | – | – | 0.800 [0.700, 0.900] |" in text


def test_several_seeds_without_masks_have_a_spread_and_the_ranking_a_warning():
    def scored(seed: int, auroc: float) -> Outcome:
        metrics = {"image_auroc": {"mean": auroc, "ci95": [auroc - 0.1, auroc + 0.1], "n": 8}}
        return Outcome(CAM, seed, Row(CAM.name, "", "validation", seed, metrics))

    outcomes = [scored(0, 0.7), scored(1, 0.8)]
    text = format_leaderboard(outcomes, "image_auroc", "data")
    assert "| cam | small | 2 | – | – | – | – | – | 0.750 ± 0.071 |" in text
    assert "After ± stands the standard deviation over several seeds" in text
    assert "which is not how good their masks are." in text
    assert standings(outcomes, "image_auroc")[0].interval is None
    by_dice = format_leaderboard([measured(CAM, [0.5] * 6, seed) for seed in (0, 1)], "dice_subject", "data")
    assert "±" not in by_dice
    assert "how good their masks are" not in by_dice


def test_healthy_images_are_counted_or_their_lack_is_told():
    row = measured(CAM, [0.5] * 6).row
    for entry, told in (
        (None, " is empty: no measured image lacks the finding, or the data have no background"),
        ({"mean": 0.5, "n": 3, "images": 20}, ": share of the healthy images whose mask is empty (n = 20)."),
        ({"mean": 0.5, "n": 3}, ": share of the healthy images whose mask is empty (images of n = 3 subjects)."),
    ):
        metrics = row.metrics if entry is None else {**row.metrics, "healthy_clean": entry}
        text = format_leaderboard([Outcome(CAM, 0, replace(row, metrics=metrics))], "dice_subject", "title")
        assert f"Healthy clean{told}" in text
    assert "Healthy clean" not in format_leaderboard([Outcome(CAM, 0, reason="No.")], "dice_subject", "title")


def test_the_footnote_tells_which_rows_are_held_against_the_best_encoder():
    together = Pair(ALL_WEAK, "several encoders")
    other = Pair("cam", "resnet")
    outcomes = [measured(CAM, [0.4] * 6), measured(other, [0.5] * 6), measured(together, [0.6] * 6)]
    outcomes += [measured(FULL, [0.8] * 6), measured(Pair("full", "resnet"), [0.75] * 6)]
    assert of(standings(outcomes, "dice_subject"), together).ratio == pytest.approx(0.6 / 0.8)
    text = format_leaderboard(outcomes, "dice_subject", "title")
    assert (
        "such as a generator of its own or an ensemble of several encoders, the row is compared with their best" in text
    )


def test_what_has_no_result_is_shown_empty_with_its_reason():
    outcomes = [
        measured(CAM, [0.5] * 6),
        Outcome(COSA, 0, reason="It broke."),
        Outcome(CMER, None, reason="One modality alone."),
        measured(FULL, [0.5] * 6),
    ]
    assert [outcome.state for outcome in outcomes] == ["measured", "failed", "refused", "measured"]
    lines = format_leaderboard(outcomes, "dice_subject", "phantoms").splitlines()
    assert lines[0] == "**phantoms**"
    assert lines[4].startswith("| cam | small | 1 | 0.500 [0.500, 0.500] | 1.00 | – | – |")
    assert f"| cmer | small |{' – |' * 11}" in lines
    assert f"| cosa | small |{' – |' * 11}" in lines
    assert "Read masks in training: full supervision, small." in lines
    assert lines[-2:] == ["- cosa, small, seed 0 (failed): It broke.", "- cmer, small (refused): One modality alone."]


def test_kept_ensembles_tell_their_members_and_are_no_seeds_of_one_another(tmp_path):
    members = [{"run": f"cam, small, seed {seed}"} for seed in (0, 1)]
    for file, by, dice in (("mean", "", 0.8), ("vote", " by votes", 0.6)):
        row = Row(f"ensemble of seeds: cam{by}, small", "", "validation", None, {"dice_subject": {"mean": dice}})
        write_rows(tmp_path / "ensemble_of_seeds_cam_small" / f"{file}.json", [row], {}, settings={"members": members})
    write_rows(tmp_path / "cam_small" / "seed0.json", [measured(CAM, [0.5]).row], {}, settings={})
    lines = standings(kept_outcomes(tmp_path), "dice_subject")
    found = [(line.pair.method, line.value, line.members) for line in lines]
    assert found == [
        ("ensemble of seeds: cam", 0.8, 2),
        ("ensemble of seeds: cam by votes", 0.6, 2),
        ("cam", 0.5, 0),
    ]


def test_the_memory_of_a_gpu_is_told_as_such():
    row = measured(CAM, [0.5]).row
    host, gpu = {"peak_memory_mb": {"mean": 900.0}}, {"gpu_memory_mb": {"mean": 2345.0}}
    for more, text in ((host, "| 900 |"), ({**host, **gpu}, "| 2345 of the GPU |")):
        outcome = Outcome(CAM, 0, replace(row, metrics={**row.metrics, **more}))
        assert text in format_leaderboard([outcome], "dice_subject", "title")
