# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Train and measure methods, encoders and seeds on one dataset, on an equal footing, and write a leaderboard.

| below the folder             | what it is                                                                        |
|------------------------------|-----------------------------------------------------------------------------------|
| ``runs/methods_<data>/…``    | one JSON per run: settings, their SHA-256, versions, data, metrics, time, memory   |
| ``failures/…``               | one JSON per run that failed, with its whole reason; the next call tries it again   |
| ``steps.json``               | the steps that the budget has become                                              |
| ``weights/<digest>/…``       | weights and checkpoints, by the settings that decide them                         |
| ``leaderboard.md``, ``.json`` | the table, and all outcomes                                                       |
| ``cases/…``                  | per run what the page shows of its cases: small masks and score maps, curves       |
| ``uncertainty/…``            | masks and uncertainty of the ensemble of all weak methods, named as the cases are  |
| ``comparison.html``          | the page                                                                           |

Reasons in ``failures`` may hold names of cases and paths, so that folder stays with the owner of the data, as do
``weights`` and ``uncertainty``.  Leaderboard, page and log say "a case" and "a file" in their place.

Runs that are finished are taken from their JSON while settings and data are the same; a run that was killed goes on at
its last checkpoint.  Several processes share the runs out, each with one thread: those of this machine, those of
``torchrun``, each with a GPU of its own, or those of a cluster of Ray.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain, product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from monai.utils import set_determinism

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss._spread import over_ray
from monai_wsss.benchmark.comparison_page import ComparedRow, write_comparison
from monai_wsss.benchmark.failures import keep_failure
from monai_wsss.benchmark.kept_cases import read_kept_cases
from monai_wsss.benchmark.ladders import kept_ladders
from monai_wsss.benchmark.leaderboard import Outcome, format_leaderboard
from monai_wsss.benchmark.method_budget import BudgetRecord, TrainingBudget
from monai_wsss.benchmark.method_data import facts_of
from monai_wsss.benchmark.method_ensembles import MethodEnsembles, planned_ensembles
from monai_wsss.benchmark.method_measures import measure_method, rule_words
from monai_wsss.benchmark.method_recipes import ENCODERS, Pair, method_recipes, why_not
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.benchmark.run_table import RunTable, run_place
from monai_wsss.benchmark.shared_work import Ranks, SharedWork
from monai_wsss.benchmark.table import BenchmarkTable, Entry
from monai_wsss.benchmark.training import seconds_per_step
from monai_wsss.data import load_datalist
from monai_wsss.engines import local_device

__all__ = ["MethodBenchmark"]

logger = logging.getLogger(__name__)

_TABLE = "methods"
Ensembles = Literal["mean", "vote", "none"]
_Group = list[tuple[Pair, int]]  # runs that share a training


@dataclass(frozen=True)
class MethodBenchmark:
    """Methods, encoders and seeds on one prepared dataset.

    Attributes:
        data: the dataset, and how it is read.
        kind: of the data, ``"slices"``, ``"tiles"`` or ``"patches"``.
        out: folder for all that is written.
        pairs: methods with their encoders, in their order.
        budget: how long each is trained.
        seeds: method to its seeds; those with one have the first of the others.
        processes: so many trainings at once, each with one thread; 1: one after the other, with the threads of torch.
        device: trains, such as "cuda:0"; None takes a GPU where there is one.  What is measured is computed on the CPU.
        ray: see :func:`~monai_wsss.inferers.over_ray`; None: the workers around :meth:`run`, if any.
        runs: folder of the JSON of runs, such as one of earlier sessions; None: ``runs`` below ``out``.
        ensembles: how runs of weak methods decide together, ``"mean"`` or ``"vote"``; ``"none"`` for no such rows.
    """

    data: PreparedData
    kind: str
    out: Path
    pairs: Sequence[Pair]
    budget: TrainingBudget
    seeds: Mapping[str, Sequence[int]]
    processes: int = 1
    device: str | None = None
    ray: str | None = None
    runs: Path | None = None
    ensembles: Ensembles = "mean"
    name: ClassVar[str] = "leaderboard"
    """Of the files of the leaderboard."""
    figures: ClassVar[Mapping[str, Any]] = {}
    _counted: dict[Pair, int] = field(default_factory=dict, init=False, repr=False)

    def run(self) -> list[Outcome]:
        """Train and measure what is missing; write the leaderboard and the page.

        A pair without a meaning on these data is refused with a reason, and a run that fails does not stop the others.
        Of the processes of ``torchrun`` the first one writes.

        Returns:
            One outcome per pair and seed, one per pair that was refused, and one per ensemble.

        Raises:
            DataError: no method can be trained or measured on these data.
        """
        self.data.check()
        facts = facts_of(self.kind, self.data)
        metric = self.metric
        if metric != "dice_subject":
            logger.info(
                "No image with a finding has a mask in the split %s: methods are ranked by image AUROC, which "
                "image-level labels can tell.",
                self.data.split,
            )
        refused = {pair: reason for pair in self.pairs if (reason := why_not(pair.method, facts)) is not None}
        for pair, reason in refused.items():
            logger.info("%s is left out: %s", pair.name, reason)
        with over_ray(self.ray):  # before anything is written: Ray may not be there
            work = SharedWork(make_directory(self.out), self.processes, self.device, Ranks.of_torchrun())
            found = self._outcomes([pair for pair in self.pairs if pair not in refused], work)
        outcomes: list[Outcome] = []
        for pair in self.pairs:
            without = [Outcome(pair, None, reason=refused[pair])] if pair in refused else []
            outcomes += without or [found[pair, seed] for seed in self._seeds_of(pair)]
        if not work.writes:
            return outcomes
        outcomes += self._ensembles(outcomes)
        write_json(self.out / f"{self.name}.json", [outcome.to_json() for outcome in outcomes])
        with atomic_path(self.out / f"{self.name}.md") as temporary:
            temporary.write_text(format_leaderboard(outcomes, metric, self._title) + "\n", encoding="utf-8")
        page = self.out / "comparison.html"
        ladders = kept_ladders(self._runs, self.data.header["name"], self.data.split, self.data.content_sha256)
        compared = self._compared(outcomes)
        logger.info("%s", write_comparison(page, self._title, outcomes, metric, compared, self.data, ladders))
        return outcomes

    @cached_property
    def metric(self) -> str:
        """Name what methods are ranked by: Dice per subject, or image AUROC where the split has no masks.

        Raises:
            DataError: the split has no images or no labels, or neither masks nor images with and without a class.
        """
        items = load_datalist(self.data.datalist, self.data.split, masks=True)
        if not items or any(item["label"] is None for item in items):
            raise DataError(
                f"The split {self.data.split} of {self.data.datalist} has no labels: choose another `split`."
            )
        if any("mask" in item and np.any(item["label"]) for item in items):
            return "dice_subject"
        # Tiles are scored by themselves, and their data see to both kinds.
        labels = np.array([item["label"] for item in items])
        if self.kind != "tiles" and (labels == labels[0]).all():
            raise DataError(
                f"The split {self.data.split} of {self.data.datalist} has neither masks nor images with and without a "
                "class, so nothing ranks methods on it: choose another `split`."
            )
        return "image_auroc"

    def _compared(self, outcomes: Sequence[Outcome]) -> list[ComparedRow]:
        """Read what the runs kept, row by row."""
        compared = []
        for pair in dict.fromkeys(outcome.pair for outcome in outcomes):
            own = [outcome for outcome in outcomes if outcome.pair == pair and outcome.row is not None]
            if not own:
                continue
            runs = [self._runs / self._table / self._place(pair, one.seed) for one in own]
            records = [json.loads(run.with_suffix(".json").read_text(encoding="utf-8")) for run in runs]
            assert own[0].row is not None
            cases = read_kept_cases(self._cases_file(pair, own[0].seed), own[0].row.metrics)
            compared.append(ComparedRow(pair, self._command(own), records, cases, self._remark(own[0])))
        return compared

    def _command(self, outcomes: Sequence[Outcome]) -> str:
        """Write the command that makes a row again, with its steps, whatever budget they were counted from.

        An ensemble whose members differ in their steps has the budget itself, see :meth:`_remark`.
        """
        first = outcomes[0]
        pairs = self._behind(first)
        longest = max((self._seeds_of(pair) for pair in pairs), key=len, default=())
        seeds = longest if first.members else [one.seed for one in outcomes]
        methods = ",".join(dict.fromkeys(pair.method for pair in pairs))
        encoders = ",".join(dict.fromkeys(pair.encoder for pair in pairs if pair.encoder in ENCODERS))
        once = {pair.method for pair in pairs if len(seeds) > 1 and len(self._seeds_of(pair)) == 1}
        steps = {self.steps(pair) for pair in pairs}
        budget = f"{steps.pop()}-steps" if len(steps) == 1 else self.budget.text
        grid = self.data.settings.get("grid")
        side = grid[0] if isinstance(grid, list) else grid
        return (
            f"monai-wsss benchmark --data DIR --out DIR --methods {methods}"
            + (f" --encoders {encoders}" if encoders else "")
            + f" --seeds {','.join(map(str, seeds))}"
            + (f" --one-seed {','.join(sorted(once))}" if once else "")
            + f" --budget {budget} --split {self.data.split}"
            + ("" if side is None else f" --side {side}")
            + (f" --ensembles {self.ensembles}" if first.members else "")
        )

    def _behind(self, outcome: Outcome) -> list[Pair]:
        """Give the pairs behind a row: its own, or those of an ensemble's members."""
        if not outcome.members:
            return [outcome.pair]
        return [pair for pair in self.pairs if any(name.startswith(f"{pair.name}, ") for name in outcome.members)]

    def _remark(self, outcome: Outcome) -> str:
        """Tell the steps of an ensemble's members where no one number of steps makes it again; else nothing."""
        steps = {pair.name: self.steps(pair) for pair in self._behind(outcome)}
        if self.budget.kind != "seconds" or len(set(steps.values())) < 2:
            return ""
        told = "; ".join(f"{name}: {number}" for name, number in steps.items())
        return (
            "To make it again, copy this folder's steps.json, or run the commands of the members, which have these "
            f"steps: {told}."
        )

    @property
    def _runs(self) -> Path:
        return self.runs or self.out / "runs"

    @property
    def _table(self) -> str:
        """Name the folder of the runs, which tells the data; the settings of a run do not, nor does its digest."""
        return f"{_TABLE}_{self.data.header['name']}"

    def _place(self, pair: Pair, seed: int | None) -> Path:
        return run_place(self.data.split, pair.name, self.ensembles if seed is None else f"seed{seed}")

    def _cases_file(self, pair: Pair, seed: int | None) -> Path:
        return self.out / "cases" / self._place(pair, seed).with_suffix(".npz")

    @property
    def _title(self) -> str:
        budget = f"{self.budget.amount:g} {self.budget.kind} per training"
        simulated = self.data.header.get("simulated_supervision", False)
        labels = f"; simulated supervision: labels are {self.data.header.get('labels', '')}" if simulated else ""
        votes = "; ensembles by votes" if self.ensembles == "vote" else ""
        return f"{self.data.header['name']}, split {self.data.split}, {budget}{votes}{labels}"

    def _outcomes(self, pairs: Sequence[Pair], work: SharedWork) -> dict[tuple[Pair, int], Outcome]:
        """Count the steps of all pairs, then train and measure each with each seed."""
        counted, outcomes = work.first(self._steps_on, pairs)
        self._counted.update(counted)
        groups: dict[tuple[str, int], _Group] = {}
        for pair, seed in chain.from_iterable(product([pair], self._seeds_of(pair)) for pair in pairs):
            if (pair, seed) not in outcomes:
                # What is trained once is done by one process.
                groups.setdefault((pair.trained, seed), []).append((pair, seed))
        for group, found in work.each(self._group_on, list(groups.values())):
            made = found or [self._failed(*run) for run in group]
            outcomes |= {(one.pair, one.seed): one for one in made if one.seed is not None}
        return outcomes

    def _steps_on(
        self, device: str | None, pairs: Sequence[Pair]
    ) -> tuple[dict[Pair, int], dict[tuple[Pair, int], Outcome]]:
        here, failed = self._at(device), dict[tuple[Pair, int], Outcome]()
        for pair in pairs:
            try:
                here.steps(pair)
            except Exception as error:  # one method must not stop the others
                failed |= {(pair, seed): self._failed(pair, seed, error) for seed in self._seeds_of(pair)}
        return here._counted, failed

    def _group_on(self, device: str | None, runs: _Group) -> list[Outcome]:
        here = self._at(device)
        return [here._outcome(pair, seed) for pair, seed in runs]

    def _at(self, device: str | None) -> MethodBenchmark:
        """Give this benchmark as it trains on a device."""
        here = replace(self, device=device)
        here._counted.update(self._counted)
        return here

    def _outcome(self, pair: Pair, seed: int) -> Outcome:
        """Train and measure one run; an error becomes its reason."""
        try:
            (row,) = self.table(pair, seed).made_rows()
        except Exception as error:  # one method must not stop the others
            return self._failed(pair, seed, error)
        self._failure(pair, seed).unlink(missing_ok=True)
        return Outcome(pair, seed, row)

    def _failed(self, pair: Pair, seed: int | None, error: Exception | None = None) -> Outcome:
        """Record why a run has no result: the error, or the end of its process."""
        told = {"method": pair.method, "encoder": pair.encoder, "seed": seed}
        reason = keep_failure(self._failure(pair, seed), told, error, self.data.datalist, self.out)
        logger.warning("%s%s failed: %s", pair.name, "" if seed is None else f", seed {seed}", reason)
        return Outcome(pair, seed, reason=reason)

    def _failure(self, pair: Pair, seed: int | None) -> Path:
        name = self.ensembles if seed is None else f"seed{seed}"
        return self.out / "failures" / folder_name(pair.name) / f"{name}.json"

    def _ensembles(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Measure what the finished runs of weak methods make together; an error becomes its reason."""
        if self.ensembles == "none":
            return []
        together = MethodEnsembles(self.data, self.kind, self.out, self._runs / self._table, self.table, self.ensembles)
        planned = planned_ensembles(outcomes)
        found = []
        for pair, members in planned:
            try:
                row = together.row(pair, members, saves=pair == planned[-1][0])
            except Exception as error:  # the runs themselves have results
                outcome = self._failed(pair, None, error)
            else:
                self._failure(pair, None).unlink(missing_ok=True)
                outcome = Outcome(pair, None, row)
            found.append(replace(outcome, members=tuple(member.name for member in members)))
        return found

    def _seeds_of(self, pair: Pair) -> Sequence[int]:
        return self.seeds[pair.method]

    def table(self, pair: Pair, seed: int) -> BenchmarkTable:
        """Give the table of one run, with the recipes of its length.

        Args:
            pair: method and encoder.
            seed: of the training.
        """
        recipes = method_recipes(pair, self.kind, self.steps(pair), self.data.modalities)
        measure = partial(measure_method, self.data, self.kind, pair.method, cases_file=self._cases_file(pair, seed))
        words = {"method": pair.method, **rule_words(pair.method, self.kind, self.data)}
        entry = Entry(pair.name, measure, list(recipes)[-1], words=words)
        parts = self._parts(recipes)
        weights = self.out / "weights" / self._digest(recipes, parts)[:12]
        own: dict[str, Any] = {"seeds": [seed], "runs": self._runs, "device": self._trains_on}
        return RunTable(_TABLE, self.data, weights, recipes, [entry], [], epochs=1, settings={"parts": parts}, **own)

    @property
    def _trains_on(self) -> str:
        return self.device or str(local_device())

    def _parts(self, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
        shape = len(self.data.modalities), len(self.data.header["classes"])
        return {key: recipe.built_settings(*shape) for key, recipe in recipes.items()}

    def _digest(self, recipes: Mapping[str, Recipe], parts: Mapping[str, Any]) -> str:
        """Give the SHA-256 of all that decides weights besides the seed."""
        settings = {key: {**recipe.settings, **recipe.unusual} for key, recipe in recipes.items()}
        told = [settings, parts, self.data.settings, self.data.content_sha256]
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def steps(self, pair: Pair) -> int:
        """Give the steps that the budget is for a pair, counted once; those of all its stages together.

        Epochs are those of plain CAM's batches, so that all methods have as many steps; CoinGAN's are its own.

        Args:
            pair: method and encoder.
        """
        if pair not in self._counted:
            self._counted[pair] = self._count(pair)
        return self._counted[pair]

    def _count(self, pair: Pair) -> int:
        recipes = method_recipes(pair, self.kind, 1000, self.data.modalities)
        key = self._digest(recipes, self._parts(recipes))
        record = BudgetRecord(self.out / "steps.json", self.budget)
        first = next(iter(recipes.values()))
        return record.steps(key, pair.trained, self._steps_per_epoch(first), partial(self._time_step, first))

    def _steps_per_epoch(self, recipe: Recipe) -> int:
        if recipe.words["method"] == "coingan":
            items = self.data.items(recipe, 0)
            return math.ceil(2 * sum(bool(np.any(item["label"])) for item in items) / recipe.batch_size)
        cam = next(iter(method_recipes(Pair("cam", "small"), self.kind, 1).values()))
        samples = getattr(self.data, "samples", None) or len(self.data.items(cam, 0))
        return math.ceil(samples / cam.batch_size)

    def _time_step(self, recipe: Recipe) -> float:
        """Time a step of a recipe; the segmenter of two stages takes as long as the classifier before it."""
        set_determinism(0)
        method = recipe.build(len(self.data.modalities), len(self.data.header["classes"]))
        loader = self.data.loader(self.data.items(recipe, 0, masks=method.uses_masks), recipe, 0)
        return seconds_per_step(method, recipe, loader, self._trains_on)
