# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of a training step of plain CAM on EfficientNet-Lite0, fine-tuned and frozen, with its maps computed once.

    python speed/frozen_encoder.py [--threads 1] [--repeats 5] [--sides 64 96] [--batch 32]

A Markdown table.  The network fuses the maps of strides 4, 8 and 16; weights are random, which costs the same.  Times
are the processor's, per training step; "maps, once" is what an image and variant costs before training.
"""

from __future__ import annotations

import statistics

import torch
from harness import Step, begin, command_line, peak_alone, print_heads, print_line, rounds_in_turn

from monai_wsss.engines import Progress
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import EfficientNetLite, FrozenEncoder, fused_cam_network

NOW = Progress(epoch=1, iteration=1, fraction=0.0)
KINDS = {"fine-tuned": "none", "batch norms frozen": "batch_norm", "encoder frozen": "all", "maps cached": "all"}


def training_step(kind: str, side: int, batch: int) -> Step:
    """Build forward, loss, backward and step of the optimizer on a random batch, or on its packed maps."""
    torch.manual_seed(0)
    encoder = FrozenEncoder(EfficientNetLite("lite0", levels=(2, 3, 4), input_range="unit"), frozen=KINDS[kind])
    method = ClassActivationMapping(fused_cam_network(encoder)).train()
    optimizer = torch.optim.AdamW(method.parameter_groups(2e-3, encoder_learning_rate=3e-4))
    image = torch.rand(batch, 3, side, side)
    image = encoder.pack(image) if kind == "maps cached" else image
    data = {"image": image, "label": (torch.arange(batch)[:, None] % 2).float()}

    def step(number: int) -> None:
        optimizer.zero_grad()
        method(data, NOW)["classification"].backward()
        optimizer.step()

    return step


def packing_step(side: int, batch: int) -> Step:
    """Build the computation of the packed maps of a batch."""
    encoder = FrozenEncoder(EfficientNetLite("lite0", levels=(2, 3, 4), input_range="unit"))
    image = torch.rand(batch, 3, side, side)
    return lambda number: encoder.pack(image)


def main() -> None:
    options = begin(command_line(__doc__, sides=[64, 96], batch=32))
    print_heads("images", *KINDS, "peak, fine-tuned", "peak, maps cached", "maps, once")
    for side in options.sides:
        size = (side, options.batch)
        steps = {kind: training_step(kind, *size) for kind in KINDS} | {"maps, once": packing_step(*size)}
        rounds, _ = rounds_in_turn(steps, options.repeats)
        times = {name: statistics.median(one.processor for one in own) / 1000 for name, own in rounds.items()}
        peaks = [peak_alone(training_step, (kind, 32, 2), (kind, *size)) for kind in ("fine-tuned", "maps cached")]
        print_line(
            f"{options.batch} x 3 x {side} x {side}",
            *(f"{times[kind]:.3f} s" for kind in KINDS),
            *(f"{peak:.0f} MiB" for peak in peaks),
            f"{1000 * times['maps, once'] / options.batch:.1f} ms per image",
        )


if __name__ == "__main__":
    main()
