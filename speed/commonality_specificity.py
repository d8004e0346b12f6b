# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of CoinGAN's attention against its equations taken literally, and of its parts in the generator.

    python speed/commonality_specificity.py [--threads 1] [--repeats 5] [--channels 64] [--sides 64 112 224]
                                            [--width 64] [--images 224 512]

Two tables.  The first is of the attention at 64^2, 112^2 and 224^2 positions, forward and backward: literally, with
the incidence matrix of all pairs of positions (L x L), and as the package factors it.  One above 1 GiB is computed,
not run.  "per position" shows that the package grows linearly.  The second table is of the generator beside the same
network without contrastive convolution and attention, one image: inference, and a step of training with a healthy image
as reference, in time of the processor.  Looked for: at most 1.3 times.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from harness import (
    Step,
    begin,
    command_line,
    median_milliseconds,
    peak_alone,
    print_heads,
    print_line,
    rounds_in_turn,
    side_by_side,
)

from monai_wsss.networks.commonality_specificity import CommonalitySpecificityAttention
from monai_wsss.networks.cycle_generator import CycleGenerator

LARGEST_MATRIX = 2**28
"""Most entries of the incidence matrix that is run, 1 GiB in float32."""


def literal_attention(
    module: CommonalitySpecificityAttention, features: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Compute R = softmax(B)^T P and M_c = P R with all entries of R, then the rest of the default readings."""
    own = features.flatten(2)
    weights = module.excite(mean).flatten(1).softmax(0)
    common = own @ (weights.T @ own)
    scaled = common * (own.square().mean((1, 2), keepdim=True) / common.square().mean((1, 2), keepdim=True)).sqrt()
    return (own + scaled - own * (common.sigmoid() < 0.5)).reshape(features.shape)


def attention_step(which: str, channels: int, side: int) -> Step:
    """Build forward and backward of one image; the step gives the result and the gradient of the features."""
    torch.manual_seed(0)
    module = CommonalitySpecificityAttention(channels)
    features = torch.randn(1, channels, side, side, requires_grad=True)
    mean = torch.randn(channels, side, side)

    def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        features.grad = None
        module.zero_grad()
        result = module(features, mean) if which == "package" else literal_attention(module, features, mean)
        result.square().mean().backward()
        assert features.grad is not None
        return result.detach(), features.grad

    return step


def check_alike(results: dict[str, Any]) -> None:
    """Raise unless results and gradients agree; a decision by rounding may differ in one entry of a thousand."""
    for ours, theirs in zip(results["package"], results["literal"], strict=True):
        differing = ((ours - theirs).abs() > 1e-4 * theirs.abs().max()).float().mean().item()
        assert differing < 1e-3, f"The package differs from the equations in {differing:.1%} of the entries."


def attention_table(channels: int, sides: list[int], repeats: int) -> None:
    print_heads("positions", "literal", "package", "per position", "peak, literal", "peak", "one matrix")
    for side in sides:
        entries = side**4
        matrix = f"{entries / 2**28:.2f} GiB"
        if entries > LARGEST_MATRIX:
            milliseconds = median_milliseconds({"package": attention_step("package", channels, side)}, repeats)[
                "package"
            ]
            peak = peak_alone(attention_step, ("package", channels, 8), ("package", channels, side))
            theirs = ("not run", "not run")
        else:
            kinds = ("literal", "package")
            costs = side_by_side(attention_step, kinds, (channels, 8), (channels, side), repeats, check_alike)
            (milliseconds, peak), literal = costs["package"], costs["literal"]
            theirs = (f"{literal.milliseconds:.0f} ms", f"{literal.mebibytes:.0f} MiB")
        each = f"{1e6 * milliseconds / side**2:.0f} ns"
        print_line(
            f"{channels} x {side} x {side}",
            theirs[0],
            f"{milliseconds:.0f} ms",
            each,
            theirs[1],
            f"{peak:.0f} MiB",
            matrix,
        )


def generator_step(which: str, training: bool, width: int, side: int) -> Step:
    """Build inference or a training step of the generator, whole or without its own parts."""
    torch.manual_seed(0)
    words: dict[str, Any] = {} if which == "whole" else {"contrastive": None, "attention": None}
    network = CycleGenerator(width=width, **words).train(training)
    image, healthy = 2 * torch.rand(2, 1, 1, side, side) - 1
    if not training:
        network.calibrate_reference([healthy])

    def step(number: int) -> None:
        network.zero_grad()
        with torch.set_grad_enabled(training):
            converted = network.translate(image, network.reference_of(healthy) if training else None)
        if training:
            converted.square().mean().backward()

    return step


def generator_table(width: int, sides: list[int], repeats: int) -> None:
    print_heads("image", "step", "backbone", "whole", "ratio")
    for training in (False, True):
        for side in sides:
            kinds = ("backbone", "whole")
            steps = {which: generator_step(which, training, width, side) for which in kinds}
            rounds, _ = rounds_in_turn(steps, repeats)
            times = {which: statistics.median(one.processor for one in rounds[which]) for which in kinds}
            print_line(
                f"{side} x {side}",
                "training" if training else "inference",
                *(f"{times[which]:.0f} ms" for which in kinds),
                f"{times['whole'] / times['backbone']:.2f}",
            )


def main() -> None:
    options = begin(command_line(__doc__, channels=64, sides=[64, 112, 224], width=64, images=[224, 512]))
    attention_table(options.channels, options.sides, options.repeats)
    print()
    generator_table(options.width, options.images, options.repeats)


if __name__ == "__main__":
    main()
