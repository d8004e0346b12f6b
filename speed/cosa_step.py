# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of a training step of CoSA at the paper's size, with all parts and without each of them.

    python speed/cosa_step.py [--threads 1] [--repeats 5] [--side 448] [--batch 4] [--classes 20] [--tiny 0]
        [--versions "all parts" warm-up]

A Markdown table for the preset ``paper`` (ViT-B, late enough that every part counts): seconds of the processor per
step, elapsed seconds, what leaving the part out saves, and the peak memory of the process, with libraries, both
networks and gradients.  "warm-up" is a step before the parts begin.  ``--tiny 1`` takes a transformer of a few channels
instead, to try the script.  ``--repeats 1`` measures the first step of each version.  The versions run one after the
other, each in a process of its own, since two networks of this size in memory are enough.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from harness import Step, begin, command_line, print_heads, print_line, resident_peak_mib

from monai_wsss.engines import Progress
from monai_wsss.methods import CoSA
from monai_wsss.networks import VisionTransformer

EARLY, LATE = (Progress(epoch=1, iteration=n, fraction=f) for n, f in ((1, 0.0), (31_000, 0.97)))
VERSIONS: Mapping[str, dict[str, Any]] = {
    "all parts": {},
    "without GC": {"gc": False},
    "without SA": {"sa": False},
    "without RAW": {"raw": False},
    "without CSC": {"csc": False},
    "without DT": {"dt": False},
    "without the second L_c2s": {"aux_c2s": False},
    "with the energy of the released code": {"energy": True},
    "warm-up": {},
}


def training_step(name: str, side: int, batch: int, classes: int, tiny: bool) -> Step:
    """Build labels, losses, gradients and the moving average of images that hold a few classes each."""
    torch.manual_seed(0)
    encoder = VisionTransformer.tiny(2, 3) if tiny else None
    network = CoSA.network_from_preset("paper", encoder=encoder, in_channels=3, num_classes=classes)
    method = CoSA.from_preset("paper", network=network, **VERSIONS[name]).train()
    label = (torch.rand(batch, classes) < 3 / classes).float()
    label[:, 0] = 1.0
    data = {"image": torch.rand(batch, 3, side, side), "label": label}
    data |= {"strong": data["image"] * 0.9, "intensity": data["image"] * 255}
    progress = EARLY if name == "warm-up" else LATE

    def step(number: int) -> float:
        method.zero_grad()
        loss = torch.stack(list(method.losses(data, progress, method.players[0]).values())).sum()
        loss.backward()
        method.after_step(progress)
        return loss.item()

    return step


class Cost(NamedTuple):
    """Median seconds of a step, of the processor and elapsed, and the peak memory of its process in GiB."""

    processor: float
    elapsed: float
    gibibytes: float


def measured(threads: int, repeats: int, *arguments: Any) -> Cost:
    """Measure one version in this process; of more than one round, a round before them is not counted."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UserWarning)
    step = training_step(*arguments)
    if repeats > 1:
        step(0)
    rounds = []
    for number in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        step(number)
        rounds.append((time.process_time() - busy, time.perf_counter() - start))
    processor, elapsed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Cost(processor, elapsed, resident_peak_mib() / 1024)


def table(versions: Sequence[str], threads: int, repeats: int, *arguments: Any) -> None:
    print_heads("step", "processor s", "elapsed s", "saved", "peak memory, GiB")
    whole = 0.0
    for name in versions:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            cost = pool.submit(measured, threads, repeats, name, *arguments).result()
        whole = whole or cost.processor
        saved = f"{1 - cost.processor / whole:.0%}"
        print_line(name, f"{cost.processor:.2f}", f"{cost.elapsed:.2f}", saved, f"{cost.gibibytes:.1f}")


def main() -> None:
    parser = command_line(__doc__, side=448, batch=4, classes=20, tiny=0)
    parser.add_argument("--versions", nargs="+", choices=[*VERSIONS], default=[*VERSIONS], metavar="NAME")
    options = begin(parser)
    sizes = (options.side, options.batch, options.classes, bool(options.tiny))
    table(options.versions, options.threads, options.repeats, *sizes)


if __name__ == "__main__":
    main()
