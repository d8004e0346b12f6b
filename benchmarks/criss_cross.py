# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the attention of the gland paper costs against its equations taken literally, at 28^2, 56^2 and 112^2.

    python benchmarks/criss_cross.py [--threads 1] [--repeats 5] [--channels 64] [--sides 28 56 112]

A Markdown table.  Literal means: criss-cross attention (Eq. 1) gathers for each position the h + w - 1 keys and values
of its own row and column; position attention (Eq. 2, over keys) holds all N x N weights.  Both get the package's
weights.  Times are medians of steps that take turns; memory is the growth of the peak resident size of a process of
its own over what module and input take.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from cmer_step import Step, milliseconds, peak_alone
from torch import nn

from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.position_attention import PositionAttention

MODULES = {"criss-cross": CrissCrossAttention, "position": PositionAttention}


def own_lines(height: int, width: int) -> torch.Tensor:
    """Of each position, in reading order, the positions of its row and column, itself once: (h w, h + w - 1)."""
    positions = torch.arange(height * width).view(height, width)
    lines = []
    for row in range(height):
        for column in range(width):
            others = torch.cat((positions[:row, column], positions[row + 1 :, column]))
            lines.append(torch.cat((others, positions[row])))
    return torch.stack(lines)


def literal_criss_cross(module: CrissCrossAttention, features: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Eq. 1: X + γ Σ_i A_i ξ_i, with the vectors ξ of every position's own lines side by side."""
    queries, keys, values = (
        conv(features).flatten(2).transpose(1, 2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    weights = (queries[:, :, None] * keys[:, lines]).sum(-1).softmax(-1)  # (B, N, h + w - 1)
    gathered = (weights[..., None] * values[:, lines]).sum(2)
    return features + module.gamma * gathered.transpose(1, 2).reshape(features.shape)


def literal_position(module: PositionAttention, features: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Eq. 2 over keys: X' + γ softmax(H M) N."""
    queries, keys, values = (
        conv(features).flatten(2).transpose(1, 2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    gathered = (queries @ keys.transpose(1, 2)).softmax(-1) @ values
    return features + module.gamma * gathered.transpose(1, 2).reshape(features.shape)


LITERAL = {"criss-cross": literal_criss_cross, "position": literal_position}


def attention_step(name: str, which: str, training: bool, channels: int, side: int) -> Step:
    """Forward, and in training backward, of one random image; gives result and gradient of the input."""
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


def largest_difference(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Of two tensors, relative to the largest entry."""
    return ((pair[0] - pair[1]).abs().max() / pair[0].abs().max()).item()


def table(channels: int, sides: list[int], repeats: int) -> None:
    print(
        "| attention | step | map | literal | package | ratio | peak, literal | peak | ratio | difference | gradient |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in MODULES:
        for training in (False, True):
            for side in sides:
                kinds = ("literal", "package")
                steps = {which: attention_step(name, which, training, channels, side) for which in kinds}
                differences = [
                    largest_difference(pair) for pair in zip(*(step(0) for step in steps.values()), strict=True)
                ]
                assert max(differences) < 1e-5, f"{name} at {side}^2 differs from its equation by {differences}."
                times = {which: statistics.median(values) for which, values in milliseconds(steps, repeats).items()}
                steps.clear()
                memory = {
                    which: peak_alone(
                        attention_step, (name, which, training, channels, 8), (name, which, training, channels, side)
                    )
                    for which in kinds
                }
                print(
                    f"| {name} | {'forward, backward' if training else 'forward'} | {channels} x {side} x {side} "
                    f"| {times['literal']:.0f} ms | {times['package']:.0f} ms "
                    f"| {times['literal'] / times['package']:.1f} | {memory['literal']:.0f} MiB "
                    f"| {memory['package']:.0f} MiB | {memory['literal'] / max(memory['package'], 0.1):.1f} "
                    f"| {differences[0]:.0e} | {differences[1]:.0e} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind, at least 5")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 56, 112])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeats}\n")
    table(options.channels, options.sides, options.repeats)


if __name__ == "__main__":
    main()
