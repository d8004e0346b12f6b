# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one table of the benchmark: train recipes that are missing, measure them, keep finished rows, print.

A training leaves ``<out>/<recipe>/seed<k>/model.pt`` and is skipped when that is there, so that a killed benchmark goes
on.  Finished rows lie in ``<out>/rows``; they are measured anew when their weights or the version of this package
change.  Tables that share recipes and a folder train and measure them once.

A table that takes longer than a machine is at hand is made in parts: rows of the same settings and data that lie in
``runs`` are taken from there, and new ones are written there, without weights, paths or identifiers of cases.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from monai.utils import set_determinism

from monai_wsss import __version__
from monai_wsss._checks import DataError, check_seeds
from monai_wsss._files import atomic_path, file_sha256, make_directory, write_json
from monai_wsss.benchmark.formatting import Column, format_rows, values_of
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.benchmark.recipes import Recipe
from monai_wsss.benchmark.rows import Measured, Row, folder_name, read_rows, write_rows
from monai_wsss.benchmark.training import train_recipe
from monai_wsss.data import attach_pseudo_masks
from monai_wsss.engines import with_weights
from monai_wsss.methods import WSSSMethod
from monai_wsss.reports import write_svg

__all__ = ["BenchmarkTable", "Entry", "Trained"]

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A recipe with its weights: the method is in eval mode, on the CPU."""

    recipe: Recipe
    seed: int
    method: WSSSMethod


Measure = Callable[["BenchmarkTable", Sequence[Trained]], Iterable[Measured]]


@dataclass(frozen=True)
class Entry:
    """A name of a table with all that is measured for it.

    Attributes:
        name: the name of the rows; ``{seeds}`` in it becomes the number of seeds.
        measure: (table, trainings) to what was measured.
        recipe: key of the recipe to train; None for what needs no training.
        draws: ``"each"``: measure each seed by itself; ``"first"``: the first seed alone; ``"all"``: all together.
        words: settings of the measurement, for JSON; committed rows are found again by them.
    """

    name: str
    measure: Measure
    recipe: str | None
    draws: Literal["each", "first", "all"] = "each"
    words: Mapping[str, Any] = field(default_factory=dict)

    def groups(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """Give the seeds that are measured together, group by group."""
        if self.recipe is None:
            return [()]
        if self.draws == "all":
            return [tuple(seeds)]
        return [(seed,) for seed in (seeds if self.draws == "each" else seeds[:1])]


@dataclass(frozen=True)
class BenchmarkTable:
    """Recipes x seeds on one prepared dataset.

    Attributes:
        name: name of the files ``<name>.json`` and ``<name>.md``.
        data: the dataset, and how it is read.
        out: folder for weights, rows and the table.
        recipes: all recipes by key.  A key ``"row > stage"`` is a stage of a row; its weights lie in a folder of their
            own below the row's.
        entries: what is measured, in the order of the table.
        columns: the columns of the Markdown table.
        epochs: epochs of each training.
        seeds: seeds of each recipe.
        figures: file name to a function of (table, rows) that gives the SVG.
        settings: what else decides the weights of every recipe, for JSON.
        runs: folder of rows that are kept with the code, or None.
        rows: which rows to make, by the names of their folders, e.g. ``"cam_from_scratch"``; none: all.  Others are
            taken where they are finished.

    Raises:
        DataError: :meth:`run` finds data of another kind, or weights of other settings in ``out``.
        ValueError: a seed is negative, 2**32 or more, or given twice, or there is none; or :meth:`run` is asked for a
            row that the table does not have.
    """

    name: str
    data: PreparedData
    out: Path
    recipes: Mapping[str, Recipe]
    entries: Sequence[Entry]
    columns: Sequence[Column]
    epochs: int = 8
    seeds: Sequence[int] = (0, 1, 2)
    figures: Mapping[str, Callable[[BenchmarkTable, Sequence[Row]], Markup]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: Path | None = None
    rows: Sequence[str] = ()
    device = "cpu"
    """Trains; what is measured is computed on the CPU."""

    def __post_init__(self) -> None:
        check_seeds(self.seeds)

    def run(self) -> list[Row]:
        """Train and measure what is missing; write ``<name>.json``, ``<name>.md`` and the figures.

        Returns:
            One row per entry, column and seed, in the order of the table.
        """
        rows = self.made_rows()
        write_json(self.out / f"{self.name}.json", [row.to_json() for row in rows])
        with atomic_path(self.out / f"{self.name}.md") as temporary:
            temporary.write_text(self.format(rows) + "\n", encoding="utf-8")
        for figure, draw in self.figures.items():
            write_svg(self.out / figure, draw(self, rows))
        return rows

    def made_rows(self) -> list[Row]:
        """Train and measure what is missing; write the rows, but neither table nor figures."""
        self.data.check()
        known = {folder_name(self._name(entry)) for entry in self.entries}
        if unknown := sorted(set(self.rows) - known):
            raise ValueError(f"Expected `rows` among {', '.join(sorted(known))}, got {', '.join(unknown)}.")
        _claim_folder(self.out, {**self.data.settings, "epochs": self.epochs, **self.settings})
        rows: list[Row] = []
        for entry in self.entries:
            own = [row for seeds in entry.groups(self.seeds) for row in self._rows(entry, seeds)]
            dice = values_of(own, "dice_subject")
            logger.info("%s: Dice %s", entry.name, f"{np.mean(dice):.3f}" if dice else "unknown")
            # Rows that earlier versions kept do not say it.
            rows += [replace(row, simulated_supervision=self._simulated) for row in own]
        return rows

    def format(self, rows: Sequence[Row]) -> str:
        """Give rows of this table as Markdown."""
        table = format_rows(rows, self.columns)
        if not any(row.simulated_supervision for row in rows):
            return table
        return f"{table}\n\nSimulated supervision: labels are {self.data.header['labels'].removeprefix('simulated: ')}."

    @property
    def told(self) -> dict[str, Any]:
        """Tell what made the rows, for readers of those that are kept."""
        return {"version": __version__}

    def folder(self, recipe: str, seed: int) -> Path:
        """Give the folder of a recipe's weights."""
        row, _, stage = recipe.partition(" > ")
        return self.out / folder_name(row) / f"seed{seed}" / stage

    def trained(self, recipe: str, seed: int) -> Trained:
        """Give a recipe with its weights, which are trained where they are missing.

        Args:
            recipe: key of the recipe.
            seed: seed of its initial weights, batches and augmentation.
        """
        settings, folder = self.recipes[recipe], self.folder(recipe, seed)
        finished = (folder / "model.pt").is_file()
        pseudo_masks = None
        if settings.teacher is not None and not finished:
            pseudo_masks = self.pseudo_masks(settings.teacher, seed, **settings.pseudo)
        self._claim(recipe, seed)  # builds, so before the seed is set
        set_determinism(seed)
        method = settings.build(len(self.data.modalities), len(self.data.header["classes"]))
        if finished:
            with_weights(method.network, folder / "model.pt")
        else:
            with_weights(method.network, settings.begin)
            items = self.data.items(settings, seed, masks=method.uses_masks)
            if pseudo_masks is not None:
                items = attach_pseudo_masks(items, pseudo_masks)
            epochs = settings.epochs or self.epochs
            loader = self.data.loader(items, settings, seed)
            steps = settings.steps or epochs * len(loader)
            handlers = self.handlers(recipe, method, folder, steps)
            seconds = train_recipe(method, settings, loader, folder, epochs, self.data.header, handlers, self.device)
            logger.info("%s, seed %d: %.1f s per epoch", recipe, seed, seconds * len(loader) / steps)
        method.eval()
        return Trained(settings, seed, method)

    def handlers(self, recipe: str, method: WSSSMethod, folder: Path, steps: int) -> list[Any]:
        """Give further handlers of a training, which must not change it; none by default.

        Args:
            recipe: its key.
            method: what is trained.
            folder: of its weights.
            steps: of the whole training.
        """
        return []

    def pseudo_masks(self, teacher: str, seed: int, **words: Any) -> Path:
        """Give the folder of a teacher's pseudo-masks of its training items; missing ones are written.

        Args:
            teacher: key of the recipe that makes them.
            seed: seed of its training.
            words: words of the writer.
        """
        recipe, _, method = self.trained(teacher, seed)
        weights = self.folder(teacher, seed) / "model.pt"
        name = "_".join(["pseudo_masks", *(f"{key}_{value}" for key, value in sorted(words.items()))])
        # Beside the folder of a stage, as ever; below the folder of a seed where the row has one stage.
        folder = weights.parent.with_name(name) if " > " in teacher else weights.parent / name
        self.data.write_pseudo_masks(method.network, weights, self.data.pseudo_items(recipe, seed), folder, **words)
        return folder

    @property
    def _simulated(self) -> bool:
        return bool(self.data.header.get("simulated_supervision", False))

    def _name(self, entry: Entry) -> str:
        return entry.name.format(seeds=len(self.seeds))

    def _rows(self, entry: Entry, seeds: tuple[int, ...]) -> list[Row]:
        """Give the rows of one group of seeds, measured anew only where they are missing or old."""
        name = self._name(entry)
        path = self.out / "rows" / self.data.split / folder_name(name) / f"seed{'_'.join(map(str, seeds))}.json"
        weights = [self.folder(entry.recipe, seed) / "model.pt" for seed in seeds] if entry.recipe else []
        source = {"recipe": self._chain(entry.recipe), "measured": {**entry.words, **self.data.unusual}}
        kept, told = self._kept(entry, name, seeds)
        rows = None if kept is None else read_rows(kept, told["source"])
        if rows is not None:
            return rows
        if all(weight.is_file() for weight in weights):
            for seed in seeds:
                self._claim(entry.recipe, seed)
            rows = read_rows(path, _source(weights, source))
        if rows is not None:
            if kept is not None:
                write_rows(kept, rows, **told)
            return rows
        if self.rows and folder_name(name) not in self.rows:
            return []
        trained = [self.trained(entry.recipe, seed) for seed in seeds] if entry.recipe else []
        seconds = [self._seconds(entry.recipe, seed) for seed in seeds] if entry.recipe else []
        known = [value for value in seconds if value is not None]
        costs = self._costs(entry.recipe, seeds[0]) if entry.recipe and len(seeds) == 1 else {}
        rows = [
            Row(
                name=name,
                column=measured.column,
                split=measured.split or self.data.split,
                seed=seeds[0] if len(seeds) == 1 else None,
                metrics={**measured.metrics, **costs},
                seconds=sum(known) if known and len(known) == len(seconds) else None,
                reads_masks=measured.oracle or any(one.method.uses_masks for one in trained),
                simulated_supervision=self._simulated,
            )
            for measured in entry.measure(self, trained)
        ]
        write_rows(path, rows, _source(weights, source))
        if kept is not None:
            write_rows(kept, rows, **told)
        return rows

    def _kept(self, entry: Entry, name: str, seeds: tuple[int, ...]) -> tuple[Path | None, dict[str, Any]]:
        """Give the file of a group's rows in :attr:`runs` and what it says besides the rows."""
        if self.runs is None:
            return None, {}
        words = {
            "table": self.name,
            "row": name,
            "measured": dict(entry.words),
            "split": self.data.split,
            "seeds": list(seeds),
            "recipe": self._chain(entry.recipe),
            "data": {key: value for key, value in self.data.settings.items() if key != "datalist_sha256"}
            | self.data.unusual,
            **self.settings,
        }
        digest = sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
        source = {"settings_sha256": digest, "data_sha256": self.data.content_sha256}
        data = f"_{self.data.header['name']}"
        # Rows of several data lie side by side.
        table = self.name if f"{data}_" in f"{self.name}_" else self.name + data
        folder = self.runs / table / self.data.split / folder_name(name)
        file = folder / f"seed{'_'.join(map(str, seeds))}.json"
        return file, {"source": source, "settings": words, **self.told}

    def _chain(self, recipe: str | None) -> dict[str, Any] | None:
        """Give the settings of a recipe and of its teachers."""
        if recipe is None:
            return None
        one = self.recipes[recipe]
        length = {"epochs": one.epochs or self.epochs} if one.steps is None else {}
        own = {**one.settings, **one.unusual, **length, **self._built(one)}
        return {**own, "teacher": self._chain(one.teacher)}

    def _claim(self, recipe: str | None, seed: int) -> None:
        """Refuse a folder with weights of other settings."""
        if recipe is None:
            return
        _claim_folder(self.folder(recipe, seed), self._deciding(recipe))

    def _deciding(self, recipe: str) -> dict[str, Any]:
        """Give what decides the weights of a recipe besides data and epochs, those of its teachers included."""
        one = self.recipes[recipe]
        unusual = {name: value for name, value in one.unusual.items() if name not in ("views", "rules")}
        teacher = {} if one.teacher is None else {"teacher": self._deciding(one.teacher)}
        return {**one.settings, **unusual, **self._built(one), **teacher}

    def _built(self, recipe: Recipe) -> dict[str, Any]:
        """Give what the built method tells of itself, where the recipe does not tell it by its words."""
        if recipe.words:
            return {}
        return {"built": recipe.built_settings(len(self.data.modalities), len(self.data.header["classes"]))}

    def _costs(self, recipe: str, seed: int) -> dict[str, dict[str, float]]:
        """Give what the last training of a row cost, as metrics; nothing where it is not recorded."""
        path = self.folder(recipe, seed) / "seconds.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        costs = {name: found[name] for name in ("steps", "peak_memory_mb", "gpu_memory_mb") if name in found}
        # A training that was resumed counts the seconds and the steps of its last process.
        if timed := found.get("timed_steps", found.get("steps")):
            costs["seconds_per_step"] = found["seconds"] / timed
            if "cpu_seconds" in found:
                costs["cpu_seconds_per_step"] = found["cpu_seconds"] / timed
        return {name: {"mean": value} for name, value in costs.items()}

    def _seconds(self, recipe: str, seed: int) -> float | None:
        """Give the recorded seconds of a training and of its teacher's, None where one is not recorded.

        Of a training that was resumed, all steps count as those of its last process.
        """
        path = self.folder(recipe, seed) / "seconds.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        own = float(found["seconds"])
        if found.get("timed_steps"):
            own *= found["steps"] / found["timed_steps"]
        teacher = self.recipes[recipe].teacher
        if teacher is None:
            return own
        of_teacher = self._seconds(teacher, seed)
        return None if of_teacher is None else own + of_teacher


def _source(weights: Sequence[Path], told: Mapping[str, Any]) -> dict[str, Any]:
    """Give what finished rows follow from: the weights, and what a recipe and its measurement tell, as JSON has it."""
    plain = json.loads(json.dumps(dict(told)))
    return {"version": __version__, "weights": [file_sha256(path) for path in weights], **plain}


def _claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Write what decides the weights in a folder into its ``settings.json``.

    Raises:
        DataError: the folder belongs to other settings.
    """
    path = make_directory(folder) / "settings.json"
    if not path.is_file():
        write_json(path, settings)
        return
    # Earlier versions wrote more of the settings here.
    found = json.loads(path.read_text(encoding="utf-8"))
    settings = json.loads(json.dumps(settings))
    differing = [name for name, value in settings.items() if name in found and found[name] != value]
    missing = [name for name in settings if name not in found]
    if differing or missing:
        earlier = "" if differing else f", or by an earlier version that did not record {', '.join(missing)}"
        raise DataError(
            f"{folder} holds weights that were trained with other settings{earlier}: choose another folder."
        )
