# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of the fully connected CRF on the permutohedral lattice against the exact kernel, and their agreement.

    python speed/dense_crf.py [--threads 1] [--repeats 5] [--sides 32 48 64 96] [--large 256 512] [--volume 64]

Two Markdown tables, preset ``bmp`` (10 iterations), float32.  Images have three channels and as many textured regions
as classes; probabilities are those regions, blurred, and wrong in patches.  Changed: pixels to which the exact CRF
gives another class than the probabilities.  Agreement: pixels to which both ways give the same class.  Memory is what
the CRF adds to image and probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from harness import (
    Step,
    begin,
    command_line,
    median_milliseconds,
    peak_alone,
    print_heads,
    print_line,
    side_by_side,
)

from monai_wsss.refinement.dense_crf import DenseCRF


def smooth(maps: int, size: tuple[int, ...], knots: int) -> torch.Tensor:
    """Draw random fields (maps, *size) with so many knots along each axis."""
    coarse = torch.randn(1, maps, *[knots] * len(size))
    return F.interpolate(coarse, size=size, mode="bicubic" if len(size) == 2 else "trilinear")[0]


def scene(size: tuple[int, ...], classes: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an image (1, C, *S) in 0..255 and probabilities (1, K, *S)."""
    torch.manual_seed(0)
    regions = smooth(classes, size, 7).argmax(0)
    colors = 30 + 195 * torch.rand(channels, classes)
    shade = 8 * smooth(channels, size, 5) + 5 * torch.randn(channels, *size)
    image = (colors[:, regions] + shade).clamp(0, 255)
    truth = torch.zeros(classes, *size).scatter_(0, regions[None], 1.0)
    blurred = F.interpolate(
        F.adaptive_avg_pool2d(truth, 16)[None] if len(size) == 2 else F.adaptive_avg_pool3d(truth, 16)[None],
        size=size,
        mode="bilinear" if len(size) == 2 else "trilinear",
    )[0]
    return image[None], (4 * blurred + 1.5 * smooth(classes, size, 12)).softmax(0)[None]


def crf_step(method: str, size: tuple[int, ...], classes: int) -> Step:
    """Build the CRF of one image; the step gives its marginals."""
    crf = DenseCRF.from_preset("bmp", method=method)
    image, probabilities = scene(size, classes)

    def step(number: int) -> torch.Tensor:
        return crf(image, probabilities)

    return step


def table_of_methods(sides: list[int], repeats: int) -> None:
    print_heads(
        *("image", "K", "exact", "lattice", "ratio", "peak, exact", "peak"),
        *("changed", "agreement", "mean difference"),
    )
    for side in sides:
        for classes in (2, 21):
            size = (side, side)
            found: dict[str, Any] = {}

            def check(results: dict[str, Any], found: dict[str, Any] = found) -> None:
                found.update(results)
                agreement = (results["exact"].argmax(1) == results["lattice"].argmax(1)).float().mean().item()
                assert agreement > 0.97, f"Only {agreement:.1%} of the pixels agree."

            costs = side_by_side(crf_step, ("exact", "lattice"), ((8, 8), 2), (size, classes), repeats, check)
            exact, lattice = found["exact"], found["lattice"]
            changed = (exact.argmax(1) != scene(size, classes)[1].argmax(1)).float().mean().item()
            print_line(
                f"3 x {side} x {side}",
                classes,
                f"{costs['exact'].milliseconds:.0f} ms",
                f"{costs['lattice'].milliseconds:.0f} ms",
                f"{costs['exact'].milliseconds / costs['lattice'].milliseconds:.1f}",
                f"{costs['exact'].mebibytes:.0f} MiB",
                f"{costs['lattice'].mebibytes:.0f} MiB",
                f"{changed:.1%}",
                f"{(exact.argmax(1) == lattice.argmax(1)).float().mean().item():.2%}",
                f"{(exact - lattice).abs().mean().item():.4f}",
            )


def table_of_sizes(sizes: list[tuple[int, ...]], repeats: int) -> None:
    print_heads("image", "K", "lattice", "peak")
    for size in sizes:
        for classes in (2, 21):
            step = crf_step("lattice", size, classes)
            seconds = median_milliseconds({"lattice": step}, repeats)["lattice"] / 1000
            peak = peak_alone(crf_step, ("lattice", (8,) * len(size), 2), ("lattice", size, classes))
            print_line(f"3 x {' x '.join(map(str, size))}", classes, f"{seconds:.2f} s", f"{peak:.0f} MiB")


def main() -> None:
    options = begin(command_line(__doc__, sides=[32, 48, 64, 96], large=[256, 512], volume=64))
    table_of_methods(options.sides, options.repeats)
    print()
    table_of_sizes([(side, side) for side in options.large] + [(options.volume,) * 3], options.repeats)


if __name__ == "__main__":
    main()
