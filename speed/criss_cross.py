# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of the gland paper's attention against its equations taken literally, at 28^2, 56^2 and 112^2.

    python speed/criss_cross.py [--threads 1] [--repeats 5] [--channels 64] [--sides 28 56 112]

A Markdown table.  The literal criss-cross attention (Eq. 1) gathers for each position the h + w - 1 keys and values of
its own row and column; the literal position attention (Eq. 2, over keys) holds all N x N weights.  Both get the
package's weights.  Memory is what the step adds to module and input.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Step, begin, command_line, print_heads, print_line, side_by_side
from torch import nn

from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.position_attention import PositionAttention

MODULES = {"criss-cross": CrissCrossAttention, "position": PositionAttention}


def own_lines(height: int, width: int) -> torch.Tensor:
    """Give the positions of each position's row and column, itself once: (h w, h + w - 1), in reading order."""
    positions = torch.arange(height * width).view(height, width)
    lines = []
    for row in range(height):
        for column in range(width):
            others = torch.cat((positions[:row, column], positions[row + 1 :, column]))
            lines.append(torch.cat((others, positions[row])))
    return torch.stack(lines)


def literal_criss_cross(module: CrissCrossAttention, features: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Compute Eq. 1: X + γ Σ_i A_i ξ_i, with the vectors ξ of every position's own lines side by side."""
    queries, keys, values = (
        conv(features).flatten(2).transpose(1, 2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    weights = (queries[:, :, None] * keys[:, lines]).sum(-1).softmax(-1)  # (B, N, h + w - 1)
    gathered = (weights[..., None] * values[:, lines]).sum(2)
    return features + module.gamma * gathered.transpose(1, 2).reshape(features.shape)


def literal_position(module: PositionAttention, features: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Compute Eq. 2 over keys: X' + γ softmax(H M) N."""
    queries, keys, values = (
        conv(features).flatten(2).transpose(1, 2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    gathered = (queries @ keys.transpose(1, 2)).softmax(-1) @ values
    return features + module.gamma * gathered.transpose(1, 2).reshape(features.shape)


LITERAL = {"criss-cross": literal_criss_cross, "position": literal_position}


def attention_step(which: str, name: str, training: bool, channels: int, side: int) -> Step:
    """Build forward, and in training backward, of one random image; the step gives result and gradient of the input."""
    torch.manual_seed(0)
    module = MODULES[name](channels, gamma_init=1.0)
    features = torch.randn(1, channels, side, side, requires_grad=training)
    run: nn.Module | partial = module
    if which == "literal":
        run = partial(LITERAL[name], module, lines=own_lines(side, side) if name == "criss-cross" else None)

    def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        features.grad = None
        module.zero_grad()
        with torch.set_grad_enabled(training):
            result = run(features)
        if training:
            result.square().mean().backward()
        return result.detach(), features.grad if training else result.detach()

    return step


def largest_differences(results: dict[str, Any]) -> list[float]:
    """Give the largest differences of results and of gradients, relative to the largest entry."""
    pairs = zip(results["literal"], results["package"], strict=True)
    return [((ours - theirs).abs().max() / ours.abs().max()).item() for ours, theirs in pairs]


def table(channels: int, sides: list[int], repeats: int) -> None:
    print_heads(
        *("attention", "step", "map", "literal", "package", "ratio", "peak, literal", "peak", "ratio"),
        *("difference", "gradient"),
    )
    for name in MODULES:
        for training in (False, True):
            for side in sides:
                differences: list[float] = []

                def check(results: dict[str, Any], differences: list[float] = differences) -> None:
                    differences += largest_differences(results)
                    assert max(differences) < 1e-5, f"The package differs from the equation by {differences}."

                small, full = (name, training, channels, 8), (name, training, channels, side)
                costs = side_by_side(attention_step, ("literal", "package"), small, full, repeats, check)
                literal, package = costs["literal"], costs["package"]
                print_line(
                    name,
                    "forward, backward" if training else "forward",
                    f"{channels} x {side} x {side}",
                    f"{literal.milliseconds:.0f} ms",
                    f"{package.milliseconds:.0f} ms",
                    f"{literal.milliseconds / package.milliseconds:.1f}",
                    f"{literal.mebibytes:.0f} MiB",
                    f"{package.mebibytes:.0f} MiB",
                    f"{literal.mebibytes / max(package.mebibytes, 0.1):.1f}",
                    *(f"{difference:.0e}" for difference in differences),
                )


def main() -> None:
    options = begin(command_line(__doc__, channels=64, sides=[28, 56, 112]))
    table(options.channels, options.sides, options.repeats)


if __name__ == "__main__":
    main()
