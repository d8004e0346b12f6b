# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The leaderboard of methods as Markdown: intervals and paired tests by subject, ratios, costs, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss.benchmark.formatting import values_of
from monai_wsss.benchmark.method_agreement import AGREEMENT_HEADS, AGREEMENT_NOTE, agreement_rows, agreements
from monai_wsss.benchmark.method_recipes import ALL_WEAK, Pair
from monai_wsss.benchmark.recipes import FULL_SUPERVISION
from monai_wsss.benchmark.rows import Row, read_kept
from monai_wsss.metrics.bootstrap import bootstrap_interval, bootstrap_weights, subject_mean_estimate
from monai_wsss.metrics.comparison import LEAST_PAIRS, paired_test

__all__ = [
    "HEADS",
    "UNCERTAINTY_HEADS",
    "UNCERTAINTY_NOTE",
    "WITHOUT_MASKS",
    "Outcome",
    "Standing",
    "cells_of",
    "footnotes",
    "format_leaderboard",
    "kept_outcomes",
    "reasons_of",
    "standings",
    "uncertainty_rows",
]

_SAMPLES = 1000
_NOTHING = "–"
HEADS = (
    "method", "encoder", "seeds", "Dice per subject [95 %]", "of full supervision", "p against cam", "Dice pooled",
    "healthy clean", "image AUROC", "steps", "minutes", "memory, MB", "parameters",
)  # fmt: skip
"""Titles of the columns."""
UNCERTAINTY_HEADS = (
    "entropy, by case", "entropy, pooled", "disagreement, by case", "disagreement, pooled", "left out",
)  # fmt: skip
"""Titles of what is measured of the uncertainty of ensembles."""
UNCERTAINTY_NOTE = (
    "Error-uncertainty AUROC, with its 95 % interval: the probability that a wrong pixel is more uncertain than a "
    "right one, by case (mean over subjects) and over the pixels of all cases together. 0.5 is chance. Cases without "
    "an error, and those without a right pixel, rank nothing: by case they are left out, and these are their numbers."
)
"""What they mean."""
WITHOUT_MASKS = (
    "No image with a finding has a mask in this split: methods are ranked by what image-level labels can tell, which "
    "is not how good their masks are."
)
"""Warns of a ranking that read no masks."""
_UNCERTAINTY = tuple(
    f"error_auroc_{name}{pooled}" for name in ("entropy", "disagreement") for pooled in ("", "_pooled")
)
_BY_SUBJECT = (
    "Intervals and p are by subject, each subject averaged over the seeds; p is that of all signs of the differences "
    f"to cam with the same encoder, one test per row, and there is none below {LEAST_PAIRS} subjects. Where cam or "
    "full supervision was not trained with the encoder of a row, such as a generator of its own or an ensemble of "
    "several encoders, the row is compared with their best encoder."
)
_BY_SEED = (
    "An interval in brackets is by subject, of one training or one ensemble. After ± stands the standard deviation "
    "over several seeds: rows do not keep the scores of the images, which an interval of their mean would need. "
    "There is no p without masks."
)
_ENSEMBLE_NOTES = (
    "Ensembles: every finished run is a member, whatever its results, and full supervision never is. Each method "
    "counts the same with each encoder, however many seeds it has; gradcam++ counts beside the cam that it explains. "
    "Their image AUROC is that of the members' ranks, averaged.",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one method, encoder and seed.

    Attributes:
        pair: method and encoder.
        seed: of the training; None for a pair that has no meaning.
        row: what was measured; None where nothing was.
        reason: why nothing was.
        members: of an ensemble, the names of the runs that make it.
        state: ``"measured"``, ``"failed"`` or ``"refused"``.
    """

    pair: Pair
    seed: int | None
    row: Row | None = None
    reason: str = ""
    members: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """Name what became of it."""
        if self.row is not None:
            return "measured"
        return "refused" if self.seed is None and not self.pair.is_ensemble else "failed"

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON-able content."""
        return {
            "method": self.pair.method,
            "encoder": self.pair.encoder,
            "seed": self.seed,
            "state": self.state,
            "reason": self.reason,
            **({"members": list(self.members)} if self.members else {}),
            "row": None if self.row is None else self.row.to_json(),
        }


def kept_outcomes(folder: Path) -> list[Outcome]:
    """Read the outcomes of all runs whose JSON lies in a folder, by the names of their folders, then by seed.

    Args:
        folder: ``<runs>/methods_<data>/<split>``.
    """
    outcomes = []
    for content in read_kept(folder):
        members = tuple(member["run"] for member in content["settings"].get("members", ()))
        for row in (Row(**each) for each in content["rows"]):
            shown, _, encoder = row.name.rpartition(", ")
            pair = Pair("full" if shown == FULL_SUPERVISION else shown, encoder)
            outcomes.append(Outcome(pair, row.seed, row, members=members))
    return outcomes


@dataclass(frozen=True)
class Standing:
    """A line of the leaderboard: one pair over all its seeds.

    Attributes:
        pair: method and encoder.
        rows: of the seeds that were measured.
        value: what the leaderboard is sorted by; None where it is unknown.
        interval: its 95 % interval over the subjects; None where it is unknown.
        ratio: the value divided by that of full supervision; None without it.
        p: of the paired test against plain CAM with the same encoder; None without it, or for too few subjects.
        members: how many runs make an ensemble; 0 for others.
        spread: the standard deviation of the value over several seeds; None where subjects are resampled instead.
    """

    pair: Pair
    rows: Sequence[Row]
    value: float | None = None
    interval: tuple[float, float] | None = None
    ratio: float | None = None
    p: float | None = None
    members: int = 0
    spread: float | None = None


def standings(outcomes: Sequence[Outcome], metric: str) -> list[Standing]:
    """Give the lines of the leaderboard, the best first; those without a result come last, in their order.

    Subjects are averaged over the seeds before they are compared or resampled, so that a seed is no subject.

    Args:
        outcomes: of all pairs and seeds.
        metric: ``"dice_subject"``, or ``"image_auroc"`` where no masks are known.
    """
    by_pair: dict[Pair, list[Row]] = {}
    members = {outcome.pair: len(outcome.members) for outcome in outcomes}
    for outcome in outcomes:
        by_pair.setdefault(outcome.pair, []).extend([] if outcome.row is None else [outcome.row])
    values = {pair: _mean(values_of(rows, metric)) for pair, rows in by_pair.items()}
    lines = []
    for pair, rows in by_pair.items():
        full = _partner("full", pair, values)
        cam = _partner("cam", pair, values)
        value, bound = values[pair], None if full is None else values[full]
        ratio = value / bound if metric == "dice_subject" and value is not None and bound else None
        tested = cam is not None and cam != pair
        p = _tested(rows, by_pair[cam]) if tested and cam is not None else None
        spread = _spread(rows, metric)
        lines.append(Standing(pair, rows, value, _interval(rows, metric), ratio, p, members[pair], spread))
    return sorted(lines, key=lambda line: -np.inf if line.value is None else line.value, reverse=True)


def _partner(method: str, pair: Pair, values: Mapping[Pair, float | None]) -> Pair | None:
    """Give the pair of another method with the same encoder, else the best of that method."""
    known = {one: value for one, value in values.items() if one.method == method and value is not None}
    same = [one for one in known if one.encoder == pair.encoder]
    return same[0] if same else max(known, key=lambda one: known[one], default=None)


def _by_subject(rows: Sequence[Row]) -> np.ndarray:
    """Give the Dice of each subject, (S,), mean over the seeds, NaN without a finding; empty where it is unknown."""
    lists = [row.metrics.get("dice_subject", {}).get("subjects") for row in rows]
    if not lists or any(one is None for one in lists):
        return np.empty(0)
    return np.array(lists, dtype=np.float64).mean(axis=0)


def _interval(rows: Sequence[Row], metric: str) -> tuple[float, float] | None:
    if metric != "dice_subject":
        # Image-level scores are not kept by subject: that of a single seed was measured, several have a spread.
        found = [row.metrics[metric]["ci95"] for row in rows if metric in row.metrics]
        return (found[0][0], found[0][1]) if len(found) == 1 else None
    values = _by_subject(rows)
    if not values.size:
        return None
    interval = bootstrap_interval(
        subject_mean_estimate(values), bootstrap_weights(len(values), samples=_SAMPLES, seed=0)
    )
    return None if interval is None else (interval.low, interval.high)


def _spread(rows: Sequence[Row], metric: str) -> float | None:
    values = values_of(rows, metric)
    return None if metric == "dice_subject" or len(values) < 2 else float(np.std(values, ddof=1))


def _tested(rows: Sequence[Row], others: Sequence[Row]) -> float | None:
    own, other = _by_subject(rows), _by_subject(others)
    if own.shape != other.shape:
        return None
    known = ~(np.isnan(own) | np.isnan(other))
    return paired_test(own[known].tolist(), other[known].tolist())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def format_leaderboard(outcomes: Sequence[Outcome], metric: str, title: str) -> str:
    """Format the leaderboard as Markdown, and below it what was refused or failed, each with its reason.

    Args:
        outcomes: of all pairs and seeds.
        metric: what it is sorted by, see :func:`standings`.
        title: stands above it.
    """
    lines = [f"**{title}**", "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    found = standings(outcomes, metric)
    uncertain = uncertainty_rows(found)
    lines += [f"| {' | '.join(text for text, _ in cells_of(line, metric))} |" for line in found]
    reasons = [f"- {name} ({state}): {reason}" for name, state, reason in reasons_of(outcomes)]
    agreeing = agreement_rows(agreements(row for line in found for row in line.rows))
    table = _below(("ensemble", *UNCERTAINTY_HEADS), uncertain, UNCERTAINTY_NOTE)
    table += _below(("row", *AGREEMENT_HEADS), agreeing, AGREEMENT_NOTE)
    without = ["", "Without a result:", "", *reasons] if reasons else []
    warned = [] if metric == "dice_subject" else [WITHOUT_MASKS]
    return "\n".join([*lines, "", *warned, *footnotes(found, metric), *table, *without])


def _below(heads: Sequence[str], rows: Sequence[tuple[str, list[str]]], note: str) -> list[str]:
    """Give the lines of a table and of its note; nothing without rows."""
    if not rows:
        return []
    lines = ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join([name, *cells])} |" for name, cells in rows), "", note]


def footnotes(lines: Sequence[Standing], metric: str) -> list[str]:
    """Say in sentences how the lines are sorted and compared, and which methods read masks in training.

    Args:
        lines: of the leaderboard.
        metric: what it is sorted by, see :func:`standings`.
    """
    by = "Dice per subject" if metric == "dice_subject" else "image AUROC, which needs no mask"
    learned = sorted({line.pair.name for line in lines if any(row.reads_masks for row in line.rows)})
    together = any(line.pair.is_ensemble and line.rows for line in lines)
    return [
        f"Sorted by {by}. Weights are those of the last step; no mask chose weights or thresholds.",
        _BY_SUBJECT if metric == "dice_subject" else _BY_SEED,
        *_of_healthy_images(lines),
        *([*_ENSEMBLE_NOTES, *_against_the_best(lines, metric)] if together else []),
        *([f"Read masks in training: {'; '.join(learned)}."] if learned else []),
    ]


def _of_healthy_images(lines: Sequence[Standing]) -> list[str]:
    """Say how many healthy images stand behind their column, or why it is empty; nothing where nothing was measured."""
    rows = [row for line in lines for row in line.rows]
    found = [row.metrics["healthy_clean"] for row in rows if "healthy_clean" in row.metrics]
    if not found:
        reason = "no measured image lacks the finding, or the data have no background (of tiles, whole images count)"
        return [f"Healthy clean is empty: {reason}."] if rows else []
    images = next((entry["images"] for entry in found if "images" in entry), None)
    subjects = next((entry["n"] for entry in found if "n" in entry), None)
    share = "Healthy clean: share of the healthy images whose mask is empty"
    if images is not None:
        return [f"{share} (n = {images})."]
    # Rows of earlier versions did not count the images.
    return [f"{share}." if subjects is None else f"{share} (images of n = {subjects} subjects)."]


def _against_the_best(lines: Sequence[Standing], metric: str) -> list[str]:
    """Hold the ensemble of all weak methods against the best of them, which masks choose; nothing without masks."""
    together = [line for line in lines if line.pair.method == ALL_WEAK and line.value is not None]
    single = [
        line
        for line in lines
        if not line.pair.is_ensemble and line.value is not None and not any(row.reads_masks for row in line.rows)
    ]
    if metric != "dice_subject" or not together or not single:
        return []
    ours, best = together[0], single[0]
    p = _tested(ours.rows, best.rows)
    tested = "" if p is None else f"; p {_p_text(p)}, not corrected for that choice"
    return [
        f"Ensemble of all weak methods: {_number(ours.value)}; best single weak row, chosen with masks: "
        f"{best.pair.name}, {_number(best.value)}{tested}."
    ]


def uncertainty_rows(lines: Sequence[Standing]) -> list[tuple[str, list[str]]]:
    """Give the error-uncertainty AUROC of ensembles: names and cells below :data:`UNCERTAINTY_HEADS`.

    Args:
        lines: of the leaderboard.
    """
    rows = []
    for line in lines:
        known = {name: entry for row in line.rows for name, entry in row.metrics.items() if name in _UNCERTAINTY}
        if known:
            left = next((entry for entry in known.values() if "without_error" in entry), {})
            counts = ", ".join(str(left[name]) for name in ("without_error", "without_right") if name in left)
            cells = [_with_interval(known.get(name)) for name in _UNCERTAINTY]
            rows.append((line.pair.name, [*cells, counts or _NOTHING]))
    return rows


def _with_interval(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return _NOTHING
    low, high = entry["ci95"]
    return f"{entry['mean']:.3f} [{low:.3f}, {high:.3f}]"


def reasons_of(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """Give name, state and reason of what has no result, each once."""
    found: dict[tuple[str, str, str], None] = {}
    for outcome in outcomes:
        if outcome.row is None:
            seed = "" if outcome.seed is None else f", seed {outcome.seed}"
            found[f"{outcome.pair.name}{seed}", outcome.state, outcome.reason] = None
    return list(found)


def cells_of(line: Standing, metric: str) -> list[tuple[str, float | str | None]]:
    """Give the cells of a line, below :data:`HEADS`: text, and the value that it is sorted by.

    All but its name are empty where nothing was measured.
    """
    rows, of_dice = line.rows, metric == "dice_subject"
    seconds = _mean([row.seconds for row in rows if row.seconds is not None])
    minutes = None if seconds is None else seconds / 60
    headline = _number(line.value)
    if line.interval is not None:
        headline += f" [{line.interval[0]:.3f}, {line.interval[1]:.3f}]"
    elif line.spread is not None:
        headline += f" ± {line.spread:.3f}"

    def shown(name: str, digits: int = 3) -> tuple[str, float | None]:
        value = _mean(values_of(rows, name))
        return _number(value, digits), value

    memory = shown("peak_memory_mb", 0)
    if values_of(rows, "gpu_memory_mb"):
        number, value = shown("gpu_memory_mb", 0)
        memory = f"{number} of the GPU", value
    return [
        (line.pair.method, line.pair.method),
        (line.pair.encoder, line.pair.encoder),
        (f"{line.members} runs" if line.members else str(len(rows)) if rows else _NOTHING, line.members or len(rows)),
        (headline, line.value) if of_dice else shown("dice_subject"),
        (_number(line.ratio, 2), line.ratio),
        (_NOTHING if line.p is None else _p_text(line.p), line.p),
        shown("dice_pooled"),
        shown("healthy_clean"),
        shown("image_auroc") if of_dice else (headline, line.value),
        shown("steps", 0),
        (_number(minutes, 1), minutes),
        memory,
        shown("parameters", 0),
    ]


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"
