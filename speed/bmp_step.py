# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of the parts of a training step of BMP, with the package's mechanisms and with their literal equations.

    python speed/bmp_step.py [--threads 1] [--repeats 5] [--sides 256 512] [--batch 1] [--classes 1]

A Markdown table for MiT-B1 with all terms on.  "before" is the step with the literal 48-copy refinement of
``pixel_adaptive.py`` and the literal affinity label and loss of ``affinity.py``, whose mask of near pairs is made once;
"after" is the package's.  Parts do not overlap: a part that another part calls counts there.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from affinity import literal_label, literal_loss, literal_mask
from harness import Step, begin, command_line, peak_alone, print_heads, print_line
from pixel_adaptive import STEPS, literal
from torch import nn

from monai_wsss.engines import Progress
from monai_wsss.methods import BMP

LATE = Progress(epoch=9, iteration=9, fraction=0.9)  # after the warm-ups: every term counts
KINDS = ("before", "after")
PARTS = ("forward", "labels: passes over scales", "labels: refinement", "affinity label and loss", "backward", "rest")


class LiteralRefinement(nn.Module):
    """Eq. 12 by 48 copies of every map."""

    def forward(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        maps = F.interpolate(maps, size=image.shape[2:], mode="bilinear", align_corners=True)
        return literal(image, maps, "convolutions") / 1.01**STEPS  # as if the weights summed to 1


class LiteralAffinity(nn.Module):
    """Label of all pairs of tokens, and its loss."""

    def __init__(self, side: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        self.mask = literal_mask(side, radius)

    def forward(
        self, affinity: torch.Tensor, label: torch.Tensor, include: torch.Tensor | None, values: object = None
    ) -> torch.Tensor:
        kept = slice(None) if include is None else include
        return literal_loss(affinity[kept], literal_label(label[kept], self.mask))


class Clock:
    """Elapsed seconds of named parts; a part within another counts as the outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = False

    def timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.running:
                return run(*arguments, **options)
            self.running = True
            start = time.perf_counter()
            result = run(*arguments, **options)
            self.seconds[name] += time.perf_counter() - start
            self.running = False
            return result

        return call


def training_step(kind: str, side: int, batch: int, classes: int) -> Step:
    """Build forward, losses and backward of images that hold every class; the step gives the seconds of each part."""
    torch.manual_seed(0)
    refine = LiteralRefinement() if kind == "before" else None
    method = BMP.from_preset(in_channels=3, num_classes=classes, refine=refine)
    if kind == "before":
        method.affinity.loss = LiteralAffinity(side // 16, method.affinity.loss.radius)
        # All pairs, however many.
        method.branches = lambda image, affinity: method.network.branches(image, affinity=affinity, upsample=False)
    coarse = torch.rand(batch, 3, side // 8, side // 8)
    image = F.interpolate(coarse, (side, side), mode="bilinear") + 0.05 * torch.rand(batch, 3, side, side)
    data = {"image": image, "label": torch.ones(batch, classes)}
    clock = Clock()
    method.network.branches = clock.timed("forward", method.network.branches)
    method.seeds.forward = clock.timed("labels: passes over scales", method.seeds.forward)
    method.labels.refine.forward = clock.timed("labels: refinement", method.labels.refine.forward)
    method.affinity.forward = clock.timed("affinity label and loss", method.affinity.forward)

    def step(number: int) -> dict[str, float]:
        clock.seconds.clear()
        method.zero_grad()
        start = time.perf_counter()
        loss = torch.stack(list(method.losses(data, LATE, "network").values())).sum()
        clock.timed("backward", loss.backward)()
        seconds = dict(clock.seconds) | {"step": time.perf_counter() - start, "loss": loss.item()}
        return seconds | {"rest": seconds["step"] - sum(clock.seconds.values())}

    return step


def table(sides: list[int], batch: int, classes: int, repeats: int) -> None:
    print_heads("side", "part", "before", "share", "after", "share", "before / after")
    for side in sides:
        steps = {kind: training_step(kind, side, batch, classes) for kind in KINDS}
        rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for number in range(repeats + 1):
            for kind, step in steps.items():
                torch.manual_seed(number)  # the same paths are dropped
                rounds[kind].append(step(number))
        for before, after in zip(rounds["before"], rounds["after"], strict=True):
            if abs(before["loss"] - after["loss"]) > 1e-3 * abs(after["loss"]):
                raise AssertionError(f"Both have to have one loss, got {before['loss']} and {after['loss']}.")
        steps.clear()
        median = {
            kind: {
                part: 1000 * statistics.median(found[part] for found in rounds[kind][1:]) for part in (*PARTS, "step")
            }
            for kind in KINDS
        }
        for part in (*PARTS, "step"):
            cells = [
                cell
                for kind in KINDS
                for cell in (f"{median[kind][part]:.0f} ms", f"{median[kind][part] / median[kind]['step']:.0%}")
            ]
            print_line(side, part, *cells, f"{median['before'][part] / median['after'][part]:.1f}")
        peaks = [peak_alone(training_step, (kind, 64, 1, classes), (kind, side, batch, classes)) for kind in KINDS]
        print_line(side, "peak", f"{peaks[0]:.0f} MiB", "", f"{peaks[1]:.0f} MiB", "", f"{peaks[0] / peaks[1]:.1f}")


def main() -> None:
    options = begin(command_line(__doc__, sides=[256, 512], batch=1, classes=1))
    table(options.sides, options.batch, options.classes, options.repeats)


if __name__ == "__main__":
    main()
