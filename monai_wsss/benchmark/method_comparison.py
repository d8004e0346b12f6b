# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""`monai-wsss benchmark --methods …`: its words, checked, as a comparison that can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from monai_wsss._checks import DataError, check_choice, check_device, check_seeds
from monai_wsss.benchmark.method_benchmark import Ensembles, MethodBenchmark
from monai_wsss.benchmark.method_budget import TrainingBudget
from monai_wsss.benchmark.method_data import method_data
from monai_wsss.benchmark.method_recipes import ENCODERS, METHODS, pairs_of

__all__ = ["SharingOptions", "make_method_benchmark"]


class SharingOptions(TypedDict, total=False):
    """Who trains; see :func:`make_method_benchmark`."""

    processes: int
    device: str | None
    ray: str | None


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
    runs: Path | None = None,
    ensembles: Ensembles = "mean",
    one_seed: Sequence[str] = (),
    **sharing: Unpack[SharingOptions],
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
        runs: folder with the JSON of runs of earlier sessions, kept and added to; None: ``runs`` below ``out``.
        ensembles: what several finished runs of weak methods decide together: by the ``"mean"`` of their
            probabilities, by ``"vote"`` of their masks, or ``"none"``.  Nothing is trained for it.
        one_seed: those of the methods that have the first seed alone.
        sharing: who trains.

            - ``processes``: so many trainings at once, each with one thread.  A time is turned into steps before they
              begin, so trainings that hinder one another take longer, and no method gets fewer steps.  Scripts need
              ``if __name__ == "__main__":`` for more than one, as all programs do that start processes.  Where
              ``torchrun`` has started several processes, they share the trainings.
            - ``device``: such as "cuda:0" or "cpu"; None takes a GPU where there is one, and each process of
              ``torchrun`` its own.
            - ``ray``: "local", "auto" or an address: trainings are shared by the processes of a cluster, see
              :func:`~monai_wsss.inferers.over_ray`.

    Raises:
        ValueError: an unknown method, encoder or ensemble, another form of the budget, a name that is given twice, a
            seed that is negative, 2**32 or more, or given twice, a side of less than a pixel, a method of one seed that
            is not compared, no process, or two ways to share.
        DataError: the output folder holds data, or the device is not there.
    """
    for method in methods:
        check_choice("methods", method, METHODS)
    for encoder in encoders:
        check_choice("encoders", encoder, ENCODERS)
    check_choice("ensembles", ensembles, get_args(Ensembles))
    check_seeds(seeds)
    for name, given in {"methods": methods, "encoders": encoders}.items():
        if len(set(given)) < len(given) or not given:
            raise ValueError(f"Expected `{name}` to hold each name once, and one at least, got {list(given)}.")
    for method in one_seed:
        check_choice("one_seed", method, tuple(methods))
    processes, ray = sharing.get("processes", 1), sharing.get("ray")
    if processes < 1:
        raise ValueError(f"Expected `processes` of at least 1, got {processes}.")
    if ray is not None and processes > 1:
        raise ValueError(f"Expected `processes` or `ray`, got both ({processes}, {ray!r}): leave one out.")
    if ray is None:  # else it is there on other machines
        check_device(sharing.get("device"))
    if (out / "datalist.json").exists():
        raise DataError(f"The output folder {out} holds data: choose another --out.")
    length = TrainingBudget.read(budget)
    kind, data = method_data(datalist, split, side)
    words: dict[str, Any] = {"runs": runs, "ensembles": ensembles, **sharing}
    seeds_of = {method: tuple(seeds[:1] if method in one_seed else seeds) for method in methods}
    return MethodBenchmark(data, kind, out, pairs_of(methods, encoders), length, seeds_of, **words)
