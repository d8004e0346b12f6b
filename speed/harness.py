# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one way in which the scripts of this folder measure: times in turn, peak memory alone, versions side by side.

A *step* is a function of the number of its round.  Times are medians of rounds in which all versions take turns, so
that a busy moment of the machine meets all of them.  Memory is the growth of the peak resident size of a process of its
own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

Step = Callable[[int], object]


class Round(NamedTuple):
    """Elapsed milliseconds of one step, and those of the processor."""

    elapsed: float
    processor: float


class Cost(NamedTuple):
    """Median milliseconds of a step and, in MiB, what it adds to the memory of a process."""

    milliseconds: float
    mebibytes: float


def rounds_in_turn(
    steps: Mapping[str, Step], repeats: int | Mapping[str, int], *, warm_up: bool = True
) -> tuple[dict[str, list[Round]], dict[str, object]]:
    """Run steps in turn; give the rounds of each step and its last result.

    Args:
        steps: the steps by name.
        repeats: rounds of all steps, or of each by name.
        warm_up: run each step once before, unmeasured.
    """
    wanted = {name: repeats if isinstance(repeats, int) else repeats[name] for name in steps}
    if warm_up:
        for step in steps.values():
            step(0)
    rounds: dict[str, list[Round]] = {name: [] for name in steps}
    results: dict[str, object] = {}
    for number in range(max(wanted.values())):
        for name, step in steps.items():
            if number < wanted[name]:
                start, busy = time.perf_counter(), time.process_time()
                results[name] = step(number)
                end, busy_end = time.perf_counter(), time.process_time()
                rounds[name].append(Round(1000 * (end - start), 1000 * (busy_end - busy)))
    return rounds, results


def median_milliseconds(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Give the median elapsed milliseconds of steps that take turns."""
    rounds, _ = rounds_in_turn(steps, repeats)
    return {name: statistics.median(one.elapsed for one in own) for name, own in rounds.items()}


def resident_peak_mib() -> float:
    """Give the peak resident memory of this program in MiB; getrusage may tell of the program that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def _peak_here(build: Callable[..., Step], small: tuple, full: tuple, threads: int, rounds: int) -> float:
    torch.set_num_threads(threads)
    build(*small)(0)  # libraries load at their first use: that is not the step's
    step = build(*full)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = resident_peak_mib()
    for number in range(rounds):
        step(number)
    return resident_peak_mib() - before


def peak_alone(build: Callable[..., Step], small: tuple, full: tuple, rounds: int = 4) -> float:
    """Measure how much a step adds to the peak resident size, in MiB, in a process of its own.

    Args:
        build: builds a step; importable, since another process calls it.
        small: arguments of a small step, which loads the libraries.
        full: arguments of the step to measure.
        rounds: rounds of the step.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, build, small, full, torch.get_num_threads(), rounds).result()


def side_by_side(
    build: Callable[..., Step],
    kinds: Sequence[str],
    small: tuple,
    full: tuple,
    repeats: int,
    check: Callable[[dict[str, object]], None],
) -> dict[str, Cost]:
    """Measure versions of one computation.

    Args:
        build: (kind, *arguments) to a step.
        kinds: the versions.
        small: arguments of a small step, after the kind.
        full: arguments of the steps to measure, after the kind.
        repeats: rounds of each version.
        check: raises if the results of the versions, by kind, differ.
    """
    steps = {kind: build(kind, *full) for kind in kinds}
    check({kind: step(0) for kind, step in steps.items()})
    times = median_milliseconds(steps, repeats)
    steps.clear()
    return {kind: Cost(times[kind], peak_alone(build, (kind, *small), (kind, *full))) for kind in kinds}


def command_line(doc: str | None, repeats: int = 5, **numbers: int | list[int]) -> argparse.ArgumentParser:
    """Give a parser with the options of every script, ``--threads`` and ``--repeats``, and those of one.

    Args:
        doc: docstring of the script.
        repeats: default of ``--repeats``.
        numbers: whole numbers by name of their option, or lists of them, as defaults.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds of each step, at least 5")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, nargs="+" if isinstance(default, list) else None)
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, set the number of threads, print it with the version of torch, and give the options."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeats}\n")
    return options


def print_heads(*heads: str) -> None:
    """Print the first two lines of a Markdown table; all columns but the first are numbers."""
    print(f"| {' | '.join(heads)} |\n|---{'|--:' * (len(heads) - 1)}|")


def print_line(*cells: object) -> None:
    """Print one line of a Markdown table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
