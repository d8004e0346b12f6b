# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of contrastive separation, forward and backward, at 56^2 pixels and batch 4.

    python speed/contrastive_separation.py [--threads 1] [--repeats 5] [--batch 4] [--sides 56]
                                           [--classes 20] [--width 256]

Two tables. With `bgcat`: the package beside the same equation with all N x N similarities at once ("whole"). With
features: the package beside the bare matrix of similarities and its gradient ("bare"), which has the same three
products of N x N. Every pixel is an anchor, the worst case. To hold: with `bgcat` at most 2 times "whole", with
features at most 3 times "bare", and less than 100 MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Step, begin, command_line, print_heads, print_line, side_by_side

from monai_wsss.losses.contrastive_separation import contrastive_separation_loss

TEMPERATURE = 0.1


def unit_vectors(maps: torch.Tensor, kind: str) -> torch.Tensor:
    """Give (B, N, C), of length 1."""
    if kind == "bgcat":
        maps = maps.sigmoid()
        maps = torch.cat((1 - maps.amax(1, keepdim=True), maps), 1)
    return F.normalize(maps.flatten(2).transpose(1, 2), dim=2)


def whole_loss(maps: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Take the equation of all pairs at once, every pixel an anchor."""
    unit = unit_vectors(maps, kind)
    scores = unit @ unit.transpose(1, 2) / TEMPERATURE
    same = label.flatten(1)[:, :, None] == label.flatten(1)[:, None]
    repel = scores.masked_fill(same, -torch.inf).logsumexp(2, keepdim=True)
    pairs = same & ~torch.eye(same.shape[1], dtype=torch.bool)
    count = pairs.sum(2)
    of_anchors = (F.softplus(repel - scores) * pairs).sum(2) / count.clamp(min=1)
    return (of_anchors.sum(1) / (count > 0).sum(1)).mean()


def bare_similarities(maps: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Compute the similarities alone; the gradient at each of them is 1 / N^2."""
    unit = unit_vectors(maps, kind)
    return (unit @ unit.transpose(1, 2)).mean()


def build(which: str, kind: str, batch: int, side: int, channels: int) -> Step:
    """Build loss and gradient for random maps and labels in regions; the step gives both."""
    torch.manual_seed(0)
    maps = torch.randn(batch, channels, side, side, requires_grad=True)
    label = F.interpolate(torch.rand(batch, 4, 7, 7), size=(side, side), mode="bilinear").argmax(1)
    anchors = torch.ones_like(label, dtype=torch.bool)
    forms: dict[str, Callable[[], torch.Tensor]] = {
        "package": partial(contrastive_separation_loss, maps, label, anchors, kind=kind, temperature=TEMPERATURE),
        "whole": partial(whole_loss, maps, label, kind),
        "bare": partial(bare_similarities, maps, label, kind),
    }

    def step(number: int) -> tuple[float, torch.Tensor | None]:
        maps.grad = None
        loss = forms[which]()
        loss.backward()
        return loss.item(), maps.grad

    return step


def check(results: dict[str, Any]) -> None:
    """Compare loss and gradient with the whole form."""
    if "whole" in results:
        (expected, of_expected), (loss, gradient) = results["whole"], results["package"]
        assert abs(loss - expected) < 1e-4, f"loss {loss}, expected {expected}."
        torch.testing.assert_close(gradient, of_expected, rtol=1e-3, atol=1e-8)


def table(kind: str, forms: tuple[str, ...], batch: int, sides: list[int], channels: int, repeats: int) -> None:
    print_heads(f"{kind}, {channels} channels", "version", "time", f"it / {forms[0]}", "peak")
    for side in sides:
        costs = side_by_side(build, forms, (kind, 1, 8, channels), (kind, batch, side, channels), repeats, check)
        for which, cost in costs.items():
            print_line(
                f"{batch} x {side}²",
                which,
                f"{cost.milliseconds:.0f} ms",
                f"{cost.milliseconds / costs[forms[0]].milliseconds:.2f}",
                f"{cost.mebibytes:.0f} MiB",
            )
    print()


def main() -> None:
    options = begin(command_line(__doc__, batch=4, sides=[56], classes=20, width=256))
    table("bgcat", ("whole", "package"), options.batch, options.sides, options.classes, options.repeats)
    table("feature", ("bare", "package"), options.batch, options.sides, options.width, options.repeats)


if __name__ == "__main__":
    main()
