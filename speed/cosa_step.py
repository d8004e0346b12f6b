# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of a training step of CoSA at the paper's size, with all parts and without each of them.

    python speed/cosa_step.py [--threads 1] [--repeats 5] [--side 448] [--batch 4] [--classes 20] [--tiny 0]

A Markdown table for the preset ``paper`` (ViT-B, late enough that every part counts): seconds of the processor per
step, elapsed seconds, and what leaving the part out saves.  "warm-up" is a step before the parts begin.  ``--tiny 1``
takes a transformer of a few channels instead, to try the script.  The versions run one after the other, since two
networks of this size in memory are enough.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from harness import Step, begin, command_line, print_heads, print_line

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


def table(side: int, batch: int, classes: int, tiny: bool, repeats: int) -> None:
    print_heads("step", "processor s", "elapsed s", "saved")
    whole = 0.0
    for name in VERSIONS:
        step = training_step(name, side, batch, classes, tiny)
        step(0)
        rounds = []
        for number in range(repeats):
            start, busy = time.perf_counter(), time.process_time()
            step(number)
            rounds.append((time.process_time() - busy, time.perf_counter() - start))
        processor, elapsed = (statistics.median(column) for column in zip(*rounds, strict=True))
        whole = whole or processor
        print_line(name, f"{processor:.2f}", f"{elapsed:.2f}", f"{1 - processor / whole:.0%}")
        del step
        gc.collect()


def main() -> None:
    options = begin(command_line(__doc__, side=448, batch=4, classes=20, tiny=0))
    warnings.simplefilter("ignore", UserWarning)
    table(options.side, options.batch, options.classes, bool(options.tiny), options.repeats)


if __name__ == "__main__":
    main()
