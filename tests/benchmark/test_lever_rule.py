# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The rule of defaults: both of its halves, for tiles and for slices, and never from fewer seeds than three."""

from __future__ import annotations

import pytest

from monai_wsss.benchmark import Row
from monai_wsss.benchmark.lever_rule import NO_EVIDENCE, format_lever_rule

TILES = ("tile_auroc", "tile_clean")
SLICES = ("presence_auroc", "healthy_clean")


def rows_of(
    name: str, auroc: list[float], clean: list[float], *, names=TILES, column: str = "as they are"
) -> list[Row]:
    return [
        Row(
            name,
            column,
            "validation",
            seed,
            {names[0]: {"mean": a}, names[1]: {"mean": c}, "dice_pooled": {"mean": 0.5}},
        )
        for seed, (a, c) in enumerate(zip(auroc, clean, strict=True))
    ]


def verdicts(rows: list[Row], default: str = "top 25 %") -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in format_lever_rule(rows, default).splitlines()[2:]]
    return {cells[0]: cells[-1] for cells in lines}


@pytest.mark.parametrize("names", [TILES, SLICES])
def test_both_halves_of_the_rule_decide(names):
    default = rows_of("top 25 %", [0.90, 0.92, 0.94], [0.80, 0.90, 1.00], names=names)
    levers = {
        "better and as clean": ([0.93, 0.95, 0.97], [0.9, 0.9, 0.9], "preferred"),
        "better by less than the margin": ([0.91, 0.93, 0.945], [0.9, 0.9, 0.9], "not preferred"),
        "better in two of three": ([0.99, 0.99, 0.70], [0.9, 0.9, 0.9], "not preferred"),
        "a little less clean": ([0.93, 0.95, 0.97], [0.895, 0.895, 0.89], "preferred"),
        "much less clean": ([0.99, 0.99, 0.99], [0.8, 0.9, 0.9], "not preferred"),
    }
    rows = [row for name, (auroc, clean, _) in levers.items() for row in rows_of(name, auroc, clean, names=names)]
    assert verdicts(rows + default) == {"top 25 %": "the default"} | {name: each[2] for name, each in levers.items()}
    (line,) = [line for line in format_lever_rule(rows + default, "top 25 %").splitlines() if "as clean" in line]
    assert line == "| better and as clean | 3 | 0.950 | +0.030 | 0.900 | +0.000 | preferred |"


def test_a_verdict_waits_for_the_same_three_seeds():
    default = rows_of("top 25 %", [0.9] * 3, [0.9] * 3)
    two = rows_of("max", [0.99] * 2, [0.9] * 2)
    assert "not yet" in verdicts(default + two)["max"]
    assert "not yet" in verdicts(default[:2] + rows_of("max", [0.99] * 3, [0.9] * 3))["max"]
    assert verdicts(two)["top 25 %"] == "no row yet"
    # A seed whose share could not be measured does not count.
    unknown = Row("max", "as they are", "validation", 2, {"tile_auroc": {"mean": 0.99}})
    assert "not yet" in verdicts([*default, *two, unknown])["max"]


def test_other_rows_say_nothing():
    default = rows_of("top 25 %", [0.9] * 3, [0.9] * 3)
    refined = rows_of("top 25 %", [0.1] * 3, [0.1] * 3, column="par")
    trivial = Row("trivial: everything", "", "validation", None, {"dice_pooled": {"mean": 0.5}})
    assert verdicts([*default, *refined, trivial]) == {"top 25 %": "the default"}
    masks_alone = [Row("max", "as they are", "validation", 0, {"dice_pooled": {"mean": 0.9}})]
    assert format_lever_rule(masks_alone, "top 25 %") == NO_EVIDENCE
