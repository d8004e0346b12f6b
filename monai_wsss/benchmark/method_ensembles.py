# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Rows of a comparison that several finished runs make together, and a map of uncertainty for each of their cases.

| row                          | members                                                                         |
|------------------------------|---------------------------------------------------------------------------------|
| ensemble of seeds: <method>  | all finished runs of one method and encoder, where there are two or more        |
| ensemble of all weak methods | all finished runs of all methods but full supervision, of two trainings or more |

Every run that finished is a member, whatever its results: neither masks nor labels choose among them, and networks that
were trained on masks are never members.  Each method counts the same with each encoder, however many seeds it has, and
Grad-CAM++ counts beside the CAM that it explains.  Each member's output becomes probabilities around its own cut
(:func:`~monai_wsss.refinement.rule_probabilities`), and their mean, or their votes, decide.  Nothing is trained.

Cases are taken a few at a time: the maps of a few cases by all members are in memory, and the probabilities of one.
The row of all members also tells how well each agrees with the other methods
(:mod:`~monai_wsss.benchmark.method_agreement`), and writes masks, entropy and disagreement of each case below
``uncertainty``, in the geometry of its image; their files are named as the cases are.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose
from scipy.stats import rankdata

from monai_wsss._checks import DataError
from monai_wsss._labels import IGNORED
from monai_wsss.benchmark.encoder_table import Decided, add_decided
from monai_wsss.benchmark.kept_cases import made_small, write_kept_cases
from monai_wsss.benchmark.leaderboard import Outcome
from monai_wsss.benchmark.method_agreement import MethodAgreement
from monai_wsss.benchmark.method_measures import (
    deciding_network,
    image_auroc,
    image_scores,
    measured_tiles,
    tell_subjects,
    tile_scores,
)
from monai_wsss.benchmark.method_recipes import ALL_WEAK, ENSEMBLE, Pair
from monai_wsss.benchmark.prepared import Cases, PreparedData
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Row, read_rows, write_rows
from monai_wsss.benchmark.run_table import made_by, run_place
from monai_wsss.benchmark.table import BenchmarkTable
from monai_wsss.metrics import ErrorRanking
from monai_wsss.refinement import EnsembleDecision, MaskRule, decide_ensemble, rule_probabilities
from monai_wsss.transforms import SaveImageMapd, SaveImageMaskd

__all__ = ["Member", "MethodEnsembles", "planned_ensembles"]

logger = logging.getLogger(__name__)

_PIXELS = 2**21  # of the images that are taken together
_UNCERTAINTIES = ("entropy", "disagreement")

Metrics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Member:
    """A finished run that takes part.

    Attributes:
        pair: method and encoder.
        seed: of its training.
        row: what was measured of it alone; costs are taken from there.
    """

    pair: Pair
    seed: int
    row: Row

    @property
    def name(self) -> str:
        """Name it.

        Example:
            >>> Member(Pair("cam", "small"), 0, Row("cam, small", "", "validation", 0, {})).name
            'cam, small, seed 0'
        """
        return f"{self.pair.name}, seed {self.seed}"


class _Voice(NamedTuple):
    """A member, ready to decide."""

    recipe: Recipe
    network: Any  # as trained: it scores images
    shown: Any  # gives the maps
    rule: MaskRule


def planned_ensembles(outcomes: Sequence[Outcome]) -> list[tuple[Pair, list[Member]]]:
    """Give the rows of ensembles and their members; that of all members is the last.

    Args:
        outcomes: of all runs.
    """
    by_pair: dict[Pair, list[Member]] = {}
    for one in outcomes:
        if one.row is not None and one.seed is not None and not one.row.reads_masks:
            by_pair.setdefault(one.pair, []).append(Member(one.pair, one.seed, one.row))
    planned = [
        (Pair(f"{ENSEMBLE}seeds: {pair.method}", pair.encoder), own) for pair, own in by_pair.items() if len(own) > 1
    ]
    everyone = [member for own in by_pair.values() for member in own]
    # Grad-CAM++ explains the training of plain CAM: both alone are one training.
    if len(by_pair) > 1 and len({(member.pair.trained, member.seed) for member in everyone}) > 1:
        encoders = {pair.encoder for pair in by_pair}
        encoder = encoders.pop() if len(encoders) == 1 else "several encoders"
        planned.append((Pair(ALL_WEAK, encoder), everyone))
    return planned


@dataclass(frozen=True)
class MethodEnsembles:
    """Make the rows of ensembles on one dataset.

    Attributes:
        data: the dataset.
        kind: of the data, ``"slices"``, ``"tiles"`` or ``"patches"``.
        out: folder of the comparison.
        runs: folder of the JSON of its runs, ``<runs>/methods_<data>``.
        table: gives the table of a run.
        aggregate: ``"mean"`` of the members' probabilities, or ``"vote"`` of their masks.
    """

    data: PreparedData
    kind: str
    out: Path
    runs: Path
    table: Callable[[Pair, int], BenchmarkTable]
    aggregate: Literal["mean", "vote"] = "mean"

    def row(self, pair: Pair, members: Sequence[Member], *, saves: bool) -> Row:
        """Give the row of an ensemble, from its JSON where members and data are the same.

        Args:
            pair: names the row.
            members: the runs.
            saves: whether to write masks and uncertainty at the size of the images.

        Raises:
            DataError: the weights of a member are gone.
        """
        record = (self.runs / self._place(pair)).with_suffix(".json")
        words = self._settings(pair, members)
        digest = sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
        source = {"settings_sha256": digest, "data_sha256": self.data.content_sha256}
        kept = read_rows(record, source)
        if kept is not None:
            return kept[0]
        folder = self.out / "uncertainty" / self._place(pair) if saves else None
        metrics = self._measure(pair, members, folder)
        # What several members have trained together is counted once.
        trained = {(member.pair.trained, member.seed): member.row for member in members}
        seconds = [row.seconds for row in trained.values() if row.seconds is not None]
        row = Row(
            # Votes and the mean of the same runs, kept side by side, are no seeds of one row.
            name=pair.name if self.aggregate == "mean" else f"{pair.method} by votes, {pair.encoder}",
            column="",
            split=self.data.split,
            seed=None,
            metrics={**metrics, **_costs(list(trained.values()))},
            seconds=sum(seconds) if len(seconds) == len(trained) else None,
            simulated_supervision=bool(self.data.header.get("simulated_supervision", False)),
        )
        write_rows(record, [row], source, settings=words, **made_by())
        found = metrics.get("dice_subject")
        logger.info("%s: Dice %s", pair.name, f"{found['mean']:.3f}" if found else "unknown")
        return row

    def _place(self, pair: Pair) -> Path:
        return run_place(self.data.split, pair.name, self.aggregate)

    def _settings(self, pair: Pair, members: Sequence[Member]) -> dict[str, Any]:
        """Tell what decides the row: the digest of each member's own settings and data among them."""
        told = []
        for member in members:
            place = run_place(self.data.split, member.pair.name, f"seed{member.seed}")
            path = (self.runs / place).with_suffix(".json")
            told.append({"run": member.name, **json.loads(path.read_text(encoding="utf-8"))["source"]})
        weights = _weights(members)
        measured: dict[str, Any] = {"aggregate": self.aggregate, "uncertainty": list(_UNCERTAINTIES)}
        return {
            "table": self.runs.name,
            "row": pair.name,
            # Rows of as many seeds for each method were kept before there were weights.
            "measured": measured if weights is None else {**measured, "weights": weights},
            "members": told,
            "split": self.data.split,
        }

    def _voice(self, member: Member) -> _Voice:
        table = self.table(member.pair, member.seed)
        recipe = list(table.recipes)[-1]
        if not (table.folder(recipe, member.seed) / "model.pt").is_file():
            raise DataError(
                f"The weights of {member.name} are not in {self.out}: remove its JSON below {self.runs}, and the next "
                "call trains it again, or leave ensembles out by --ensembles none."
            )
        trained = table.trained(recipe, member.seed)
        network: Any = trained.method.network
        return _Voice(trained.recipe, network, *deciding_network(network, member.pair.method, self.kind, self.data))

    def _measure(self, pair: Pair, members: Sequence[Member], folder: Path | None) -> Metrics:
        """Decide and measure all cases, a few at a time, and write what is kept of them."""
        voices = [self._voice(member) for member in members]
        cases = self.data.whole_maps(None, None)[0]
        table = self.data.case_table()
        weights = _weights(members)
        small: list[Decided] = []
        scores: list[list[torch.Tensor]] = [[] for _ in voices]
        rankings = {name: ErrorRanking() for name in _UNCERTAINTIES}
        # Of the seeds of one method there are no others to agree with, and nothing is told.
        pairs, seeds = [member.pair for member in members], [member.seed for member in members]
        agreement = MethodAgreement(pairs, seeds, weights=weights, num_classes=len(self.data.header["classes"]))
        write = None if folder is None else _writer(folder)
        for part in _parts(cases):
            maps = [self.data.case_maps(voice.recipe, voice.shown, part) for voice in voices]
            if self.kind != "tiles":
                self._score(voices, part, maps, scores)
            for place, case in enumerate(part):
                each = _probabilities(case, voices, [of_member[place] for of_member in maps])
                decision = decide_ensemble(each, vote=self.aggregate == "vote", weights=weights)
                agreement.add(each)
                decided = _decided(case, decision)
                add_decided(table, case, decided)
                _rank(rankings, case, decided, decision)
                small.append(made_small(decided))
                if write is not None:
                    write({**case, "entropy": decision.entropy[0], "disagreement": decision.disagreement[0],
                           "mask": decided.mask})  # fmt: skip
        metrics: Metrics = table.summary()
        write_kept_cases((self.out / "cases" / self._place(pair)).with_suffix(".npz"), table, small, metrics)
        tell_subjects(metrics, table)
        for name, ranking in rankings.items():
            metrics |= ranking.summary(f"error_auroc_{name}")
        metrics |= agreement.summary()
        scored: Sequence[Mapping[str, Any]] = cases
        if self.kind == "tiles":
            scored = measured_tiles(self.data)
            scores = [tile_scores(scored, voice.network) for voice in voices]
        return metrics | _mean_rank_auroc(scored, scores, weights)

    def _score(
        self,
        voices: Sequence[_Voice],
        part: Cases,
        maps: Sequence[Sequence[torch.Tensor]],
        scores: Sequence[list[torch.Tensor]],
    ) -> None:
        """Add the image-level scores (K,) of each member for a few cases, of the network as it was trained."""
        for voice, of_member, found in zip(voices, maps, scores, strict=True):
            own = of_member
            if voice.shown is not voice.network:
                own = self.data.case_maps(voice.recipe, voice.network, part)
            found += [image_scores(voice.network, each, self.kind)[0] for each in own]


def _weights(members: Sequence[Member]) -> list[int] | None:
    """Give what each member counts, so that each pair counts the same; None where all members do.

    They are whole numbers: of fractions such as 1/3 equal votes would not be equal.
    """
    seeds = Counter(member.pair for member in members)
    if len(set(seeds.values())) == 1:
        return None
    return [math.lcm(*seeds.values()) // seeds[member.pair] for member in members]


def _parts(cases: Cases) -> Iterator[Cases]:
    """Part cases so that the images of a part have at most some number of pixels together; a larger one is alone."""
    part: Cases = []
    pixels = 0
    for case in cases:
        own = int(np.prod(case["image"].shape[1:]))
        if part and pixels + own > _PIXELS:
            yield part
            part, pixels = [], 0
        part, pixels = [*part, case], pixels + own
    if part:
        yield part


def _probabilities(
    case: Mapping[str, Any], voices: Sequence[_Voice], maps: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Give the probabilities of one case by each member, in its region alone where it has one."""
    region = torch.as_tensor(case["region"])[None] if "region" in case else None
    return [
        rule_probabilities(voice.rule, of_member, region=region) for voice, of_member in zip(voices, maps, strict=True)
    ]


def _decided(case: Mapping[str, Any], decision: EnsembleDecision) -> Decided:
    """Give what was decided of a case, whose reference counts in its region alone."""
    reference = case.get("mask")
    if reference is not None and "region" in case:
        outside = torch.as_tensor(case["region"]) <= 0
        reference = torch.as_tensor(reference).masked_fill(outside, IGNORED)
    # As of a single method, a case that is decided in a region alone has no score map.
    scores = None if "region" in case else decision.probabilities[0, 1:]
    return Decided(decision.mask[0], reference, None, scores, decision.entropy[0])


def _rank(
    rankings: Mapping[str, ErrorRanking], case: Mapping[str, Any], decided: Decided, decision: EnsembleDecision
) -> None:
    """Rank the pixels of a case by their uncertainty, where their truth is known."""
    reference = decided.reference
    if reference is None:
        if np.any(np.asarray(case["label"])):
            return
        reference = torch.zeros_like(decided.mask)
    for name, ranking in rankings.items():
        ranking.add(case["subject"], getattr(decision, name)[0], decided.mask, torch.as_tensor(reference))


def _writer(folder: Path) -> Callable[[dict[Any, Any]], Any]:
    """Make what writes masks and uncertainty of a case, each beside the geometry of its image."""
    return Compose([SaveImageMapd(_UNCERTAINTIES, folder), SaveImageMaskd("mask", folder, palette="classes")])


def _mean_rank_auroc(
    cases: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[torch.Tensor]], weights: Sequence[int] | None
) -> Metrics:
    """Measure the image-level score of an ensemble: the members' ranks of the images, averaged; their scales differ."""
    ranks = [rankdata(np.stack([each.numpy() for each in of_member]), axis=0) for of_member in scores]
    mean = torch.as_tensor(np.average(ranks, axis=0, weights=weights))
    return image_auroc([case["subject"] for case in cases], [case["label"] for case in cases], list(mean))


def _costs(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Give steps and parameters of all trainings, and the memory of the one that needed most."""
    costs: dict[str, dict[str, float]] = {}
    for name, joined in (("steps", sum), ("parameters", sum), ("peak_memory_mb", max), ("gpu_memory_mb", max)):
        known = [row.metrics[name]["mean"] for row in rows if name in row.metrics]
        if len(known) == len(rows):
            costs[name] = {"mean": joined(known)}
    return costs
