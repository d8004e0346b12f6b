# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Train and measure methods, encoders and seeds on one dataset, on an equal footing, and write a leaderboard.

| below the folder             | what it is                                                                        |
|------------------------------|-----------------------------------------------------------------------------------|
| ``runs/methods/<split>/…``   | one JSON per run: settings, their SHA-256, versions, data, metrics, time, memory   |
| ``failures/…``               | one JSON per run that failed, with its reason; the next call tries it again         |
| ``steps.json``               | the steps that the budget has become                                              |
| ``weights/<digest>/…``       | weights and checkpoints, by the settings that decide them                         |
| ``leaderboard.md``, ``.json`` | the table, and all outcomes                                                       |

Runs that are finished are taken from their JSON while settings and data are the same; a run that was killed goes on at
its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import set_determinism

import monai_wsss
from monai_wsss import __version__
from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import atomic_path, make_directory, write_json
from monai_wsss.benchmark.leaderboard import Outcome, format_leaderboard
from monai_wsss.benchmark.method_budget import BudgetRecord, TrainingBudget
from monai_wsss.benchmark.method_data import facts_of, method_data
from monai_wsss.benchmark.method_measures import measure_method
from monai_wsss.benchmark.method_recipes import ENCODERS, METHODS, Pair, method_recipes, pairs_of, why_not
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.benchmark.table import BenchmarkTable, Entry
from monai_wsss.benchmark.training import seconds_per_step
from monai_wsss.data import load_datalist

__all__ = ["MethodBenchmark", "make_method_benchmark"]

logger = logging.getLogger(__name__)
_TABLE = "methods"
_LIBRARIES = ("torch", "monai", "numpy")


class _RunTable(BenchmarkTable):
    """The table of one run, whose JSON tells the versions of everything."""

    @property
    def told(self) -> dict[str, Any]:
        """Tell what made the rows."""
        versions = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
        return {**super().told, "code_sha256": _code_sha256(), "versions": versions}


@dataclass(frozen=True)
class MethodBenchmark:
    """Methods, encoders and seeds on one prepared dataset.

    Attributes:
        data: the dataset, and how it is read.
        kind: of the data, ``"slices"``, ``"tiles"`` or ``"patches"``.
        out: folder for all that is written.
        pairs: methods with their encoders, in their order.
        budget: how long each is trained.
        seeds: seeds of each pair.
        name: of the files of the leaderboard.
        figures: none.
    """

    data: PreparedData
    kind: str
    out: Path
    pairs: Sequence[Pair]
    budget: TrainingBudget
    seeds: Sequence[int] = (0, 1, 2)
    name: str = "leaderboard"
    figures: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def run(self) -> list[Outcome]:
        """Train and measure what is missing; write the leaderboard.

        A pair without a meaning on these data is refused with a reason, and a run that fails does not stop the others.

        Returns:
            One outcome per pair and seed, and one per pair that was refused.

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
        outcomes: list[Outcome] = []
        for pair in self.pairs:
            reason = why_not(pair.method, facts)
            if reason is not None:
                logger.info("%s is left out: %s", pair.name, reason)
                outcomes.append(Outcome(pair, None, reason=reason))
            else:
                outcomes += [self._outcome(pair, seed) for seed in self.seeds]
        write_json(self.out / f"{self.name}.json", [outcome.to_json() for outcome in outcomes])
        with atomic_path(self.out / f"{self.name}.md") as temporary:
            temporary.write_text(format_leaderboard(outcomes, metric, self._title) + "\n", encoding="utf-8")
        return outcomes

    @cached_property
    def metric(self) -> str:
        """Name what methods are ranked by: Dice per subject, or image AUROC where the split has no masks.

        Raises:
            DataError: the split has no labels either, or no images.
        """
        items = load_datalist(self.data.datalist, self.data.split, masks=True)
        if not items or any(item["label"] is None for item in items):
            raise DataError(
                f"The split {self.data.split} of {self.data.datalist} has no labels: choose another `split`."
            )
        known = any("mask" in item and np.any(item["label"]) for item in items)
        return "dice_subject" if known else "image_auroc"

    @property
    def _title(self) -> str:
        budget = f"{self.budget.amount:g} {self.budget.kind} per training"
        simulated = self.data.header.get("simulated_supervision", False)
        labels = f"; simulated supervision: labels are {self.data.header.get('labels', '')}" if simulated else ""
        return f"{self.data.header['name']}, split {self.data.split}, {budget}{labels}"

    def _outcome(self, pair: Pair, seed: int) -> Outcome:
        """Train and measure one run; an error becomes its reason."""
        failure = self.out / "failures" / folder_name(pair.name) / f"seed{seed}.json"
        try:
            (row,) = self.table(pair, seed).made_rows()
        except Exception as error:  # one method must not stop the others
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            logger.warning("%s, seed %d failed: %s", pair.name, seed, reason)
            logger.debug("The traceback:", exc_info=True)
            make_directory(failure.parent)
            write_json(failure, {"method": pair.method, "encoder": pair.encoder, "seed": seed, "reason": reason})
            return Outcome(pair, seed, reason=reason)
        failure.unlink(missing_ok=True)
        return Outcome(pair, seed, row)

    def table(self, pair: Pair, seed: int) -> BenchmarkTable:
        """Give the table of one run, with the recipes of its length.

        Args:
            pair: method and encoder.
            seed: of the training.
        """
        recipes = method_recipes(pair, self.kind, self.steps(pair), self.data.modalities)
        measure = partial(measure_method, self.data, self.kind, pair.method)
        entry = Entry(pair.name, measure, list(recipes)[-1], words={"method": pair.method})
        weights = self.out / "weights" / _digest(_settings(recipes), self.data.settings)[:12]
        return _RunTable(
            _TABLE, self.data, weights, recipes, [entry], [], epochs=1, seeds=[seed], runs=self.out / "runs"
        )

    def steps(self, pair: Pair) -> int:
        """Give the steps that the budget is for a pair, counted once; those of all its stages together.

        Epochs are those of plain CAM's batches, so that all methods have as many steps; CoinGAN's are its own.

        Args:
            pair: method and encoder.
        """
        recipes = method_recipes(pair, self.kind, 1000, self.data.modalities)
        key = _digest(_settings(recipes), {"content": self.data.content_sha256})
        record = BudgetRecord(self.out / "steps.json", self.budget)
        key_recipe = next(iter(recipes.values()))
        return record.steps(key, pair.trained, self._steps_per_epoch(key_recipe), partial(self._time_step, key_recipe))

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
        return seconds_per_step(method, recipe, loader)


def make_method_benchmark(
    datalist: Path,
    out: Path,
    *,
    methods: Sequence[str] = ("cam", "full"),
    encoders: Sequence[str] = ("small",),
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "300-steps",
    split: str = "validation",
    side: int | None = None,
) -> MethodBenchmark:
    """Compare methods on one prepared dataset: the same images, encoders and length of training for all.

    Args:
        datalist: path of a prepared ``datalist.json``.
        out: folder for weights, runs and the leaderboard; a killed call goes on there.
        methods: of :data:`~monai_wsss.benchmark.method_recipes.METHODS`.
        encoders: of :data:`~monai_wsss.benchmark.method_recipes.ENCODERS`.
        seeds: seeds of each.
        budget: of each training: a time (``"20m"``), ``"8-epochs"`` or ``"300-steps"``.
        split: where to measure.
        side: side of slices, and of patches, as the networks see them, in pixels; None for the usual.

    Raises:
        ValueError: an unknown method, encoder or form of the budget, or a name that is given twice.
        DataError: the output folder holds data.
    """
    for method in methods:
        check_choice("methods", method, METHODS)
    for encoder in encoders:
        check_choice("encoders", encoder, ENCODERS)
    for name, given in {"methods": methods, "encoders": encoders, "seeds": seeds}.items():
        if len(set(given)) < len(given) or not given:
            raise ValueError(f"Expected `{name}` to hold each name once, and one at least, got {list(given)}.")
    if (out / "datalist.json").exists():
        raise DataError(f"The output folder {out} holds data: choose another --out.")
    length = TrainingBudget.read(budget)
    kind, data = method_data(datalist, split, side)
    return MethodBenchmark(data, kind, out, pairs_of(methods, encoders), length, tuple(seeds))


def _settings(recipes: Mapping[str, Recipe]) -> list[dict[str, Any]]:
    return [{**recipe.settings, **recipe.unusual} for recipe in recipes.values()]


def _digest(recipes: Sequence[dict[str, Any]], data: Mapping[str, Any]) -> str:
    return sha256(json.dumps([recipes, dict(data)], sort_keys=True).encode()).hexdigest()


@cache
def _code_sha256() -> str:
    """Give one digest of the version and of all source files of this package."""
    root = Path(monai_wsss.__file__).parent
    digest = sha256(__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
