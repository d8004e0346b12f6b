# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the fully connected CRF costs on the permutohedral lattice against the exact kernel, and how far they agree.

    python benchmarks/dense_crf.py [--threads 1] [--repeats 5] [--sides 32 48 64 96] [--large 256 512] [--volume 64]

Two Markdown tables, preset ``bmp`` (10 iterations), float32.  Images have three channels and as many textured regions
as classes; probabilities are those regions, blurred, and wrong in patches.  Changed: pixels to which the exact CRF
gives another class than the probabilities.  Agreement: pixels to which both ways give the same class.  Times are
medians of rounds that take turns; memory is the growth of the peak resident size of a process of its own over what
image and probabilities take.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from cmer_step import Step, milliseconds, peak_alone

from monai_wsss.refinement.dense_crf import DenseCRF


def smooth(maps: int, size: tuple[int, ...], knots: int) -> torch.Tensor:
    """Random fields (maps, *size) with so many knots along each axis."""
    coarse = torch.randn(1, maps, *[knots] * len(size))
    return F.interpolate(coarse, size=size, mode="bicubic" if len(size) == 2 else "trilinear")[0]


def scene(size: tuple[int, ...], classes: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1, C, *S) in 0..255 and probabilities (1, K, *S)."""
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
    """The CRF of one image; gives its marginals."""
    crf = DenseCRF.from_preset("bmp", method=method)
    image, probabilities = scene(size, classes)

    def step(number: int) -> torch.Tensor:
        return crf(image, probabilities)

    return step


def peak(method: str, size: tuple[int, ...], classes: int) -> float:
    return peak_alone(crf_step, (method, (8,) * len(size), 2), (method, size, classes))


def table_of_methods(sides: list[int], repeats: int) -> None:
    print("| image | K | exact | lattice | ratio | peak, exact | peak | changed | agreement | mean difference |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for side in sides:
        for classes in (2, 21):
            size = (side, side)
            steps = {method: crf_step(method, size, classes) for method in ("exact", "lattice")}
            exact, lattice = (step(0) for step in steps.values())
            agreement = (exact.argmax(1) == lattice.argmax(1)).float().mean().item()
            assert agreement > 0.97, f"At {side}^2 with {classes} classes only {agreement:.1%} of the pixels agree."
            changed = (exact.argmax(1) != scene(size, classes)[1].argmax(1)).float().mean().item()
            times = {name: statistics.median(values) for name, values in milliseconds(steps, repeats).items()}
            print(
                f"| 3 x {side} x {side} | {classes} | {times['exact']:.0f} ms | {times['lattice']:.0f} ms "
                f"| {times['exact'] / times['lattice']:.1f} | {peak('exact', size, classes):.0f} MiB "
                f"| {peak('lattice', size, classes):.0f} MiB | {changed:.1%} | {agreement:.2%} "
                f"| {(exact - lattice).abs().mean().item():.4f} |",
                flush=True,
            )


def table_of_sizes(sizes: list[tuple[int, ...]], repeats: int) -> None:
    print("| image | K | lattice | peak |")
    print("|---|--:|--:|--:|")
    for size in sizes:
        for classes in (2, 21):
            steps = {"lattice": crf_step("lattice", size, classes)}
            seconds = statistics.median(milliseconds(steps, repeats)["lattice"]) / 1000
            print(
                f"| 3 x {' x '.join(map(str, size))} | {classes} | {seconds:.2f} s "
                f"| {peak('lattice', size, classes):.0f} MiB |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="rounds, at least 5")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64, 96])
    parser.add_argument("--large", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--volume", type=int, default=64, help="side of a volume")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeats}\n")
    table_of_methods(options.sides, options.repeats)
    print()
    table_of_sizes([(side, side) for side in options.large] + [(options.volume,) * 3], options.repeats)


if __name__ == "__main__":
    main()
