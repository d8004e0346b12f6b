# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of pixel-adaptive refinement against its equations with 48 copies of the maps, and against the memory.

    python speed/pixel_adaptive.py [--threads 1] [--repeats 5] [--literal-repeats 5 1] [--maps 2 21] [--side 512]

A Markdown table for two images of three channels and ten steps.  The literal versions sum (B, M, 48, H, W) neighbors
times (B, 1, 48, H, W) weights; the neighbors come from one-hot dilated convolutions (``convolutions``) or from shifted
slices that are stacked (``stack``).  The table says how many literal runs were made: at 21 maps one takes a minute or
more, and 7 GB.  On a machine with other work, trust the ratio of processor times.  Memory is that of one run.

The floor is the time in which a copy moves the bytes that no implementation with stored weights can save: weights are
written once and read in each step, maps are read and written in each.  ``x`` is the package's processor time divided by
the floor.  With a GPU, a second table compares the bandwidth of the package with that of a copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Step, begin, command_line, peak_alone, print_heads, print_line, rounds_in_turn

from monai_wsss.refinement.pixel_adaptive import pixel_adaptive_refinement

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS, BATCH, CHANNELS = 10, 2, 3


def convolved_neighbors(maps: torch.Tensor) -> torch.Tensor:
    """Give (B, M, 48, H, W) from an eight-filter one-hot convolution per dilation and map."""
    batch, count, height, width = maps.shape
    one_hot = torch.eye(9)[[0, 1, 2, 3, 5, 6, 7, 8]].view(8, 1, 3, 3).repeat(count, 1, 1, 1)
    found = []
    for d in DILATIONS:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        found.append(F.conv2d(padded, one_hot, dilation=d, groups=count).view(batch, count, 8, height, width))
    return torch.cat(found, 2)


def stacked_neighbors(maps: torch.Tensor) -> torch.Tensor:
    """Give the same from slices."""
    height, width = maps.shape[2:]
    found = []
    for d in DILATIONS:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        corners = [(y, x) for y in (0, d, 2 * d) for x in (0, d, 2 * d) if (y, x) != (d, d)]
        found += [padded[..., y : y + height, x : x + width] for y, x in corners]
    return torch.stack(found, 2)


NEIGHBORS = {"convolutions": convolved_neighbors, "stack": stacked_neighbors}


def literal(image: torch.Tensor, maps: torch.Tensor, which: str) -> torch.Tensor:
    """Compute the paper's equations with one tensor per symbol."""
    found = NEIGHBORS[which](image)
    logits = -(((found - image[:, :, None]).abs() / (found.std(2, keepdim=True) + 1e-8) / 0.3) ** 2)
    distances = torch.tensor([d * (1.0 if k in (1, 3, 4, 6) else 2**0.5) for d in DILATIONS for k in range(8)])
    position = -((distances / (distances.std() + 1e-8) / 0.3) ** 2)
    weights = logits.mean(1, keepdim=True).softmax(2) + 0.01 * position.softmax(0).view(1, 1, -1, 1, 1)
    for _ in range(STEPS):
        maps = (NEIGHBORS[which](maps) * weights).sum(2)
    return maps


def refinement_step(which: str, count: int, side: int, device: str = "cpu") -> Step:
    """Build one refinement of random maps for a random smooth image; the step gives the maps."""
    torch.manual_seed(0)
    coarse = torch.rand(BATCH, CHANNELS, side // 8, side // 8)
    image = F.interpolate(coarse, (side, side), mode="bilinear") + 0.05 * torch.rand(BATCH, CHANNELS, side, side)
    maps = torch.rand(BATCH, count, side, side)
    image, maps = image.to(device), maps.to(device)

    @torch.no_grad()
    def step(number: int) -> torch.Tensor:
        if which == "package":
            return pixel_adaptive_refinement(image, maps, dilations=DILATIONS, iterations=STEPS)
        return literal(image, maps, which)

    return step


def bytes_that_must_move(count: int, side: int) -> int:
    values = BATCH * side * side
    return 4 * values * (CHANNELS + 48 + STEPS * (48 + 2 * count))


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Measure the bytes that a copy reads and writes per second (of the processor on a CPU), median of nine."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)
    seconds = statistics.median(timed(lambda: target.copy_(source), device) for _ in range(9))
    return 2 * 4 * source.numel() / seconds


def timed(run: Callable[[], object], device: str) -> float:
    """Measure the seconds of a call: elapsed between waits for the GPU, else of the processor."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def table(kinds: list[str], counts: list[int], side: int, repeats: int, literal_repeats: list[int]) -> None:
    print_heads(
        *("maps", "literal", "runs", "elapsed: literal", "package", "ratio", "processor: literal", "package", "ratio"),
        *("peak: literal", "package", "ratio", "difference", "floor", "x"),
    )
    for count, runs in zip(counts, literal_repeats, strict=True):
        memory = peak_alone(refinement_step, ("package", 1, 64), ("package", count, side), rounds=1)
        for which in kinds:
            steps = {name: refinement_step(name, count, side) for name in (which, "package")}
            rounds, results = rounds_in_turn(steps, {which: runs, "package": repeats}, warm_up=False)
            steps.clear()
            difference = (results[which] - results["package"]).abs().max().item()
            results.clear()
            assert difference < 1e-5, f"With {count} maps the package differs from the equations by {difference:g}."
            slow, fast = (
                [statistics.median(values) for values in zip(*rounds[name], strict=True)] for name in (which, "package")
            )
            peak = peak_alone(refinement_step, (which, 1, 64), (which, count, side), rounds=1)
            floor = 1000 * bytes_that_must_move(count, side) / copy_bandwidth()
            cells = [
                cell
                for literal_time, time in zip(slow, fast, strict=True)
                for cell in (f"{literal_time:.0f} ms", f"{time:.0f} ms", f"{literal_time / time:.1f}")
            ]
            memories = (f"{peak:.0f} MiB", f"{memory:.0f} MiB", f"{peak / memory:.1f}")
            print_line(
                count, which, runs, *cells, *memories, f"{difference:.0e}", f"{floor:.0f} ms", f"{fast[1] / floor:.1f}"
            )


def table_of_gpu(counts: list[int], side: int, repeats: int) -> None:
    print(f"\n{torch.cuda.get_device_name()}\n")
    print_heads("maps", "package", "bytes that must move", "bandwidth", "of a copy", "share", "peak")
    for count in counts:
        step = refinement_step("package", count, side, device="cuda")
        step(0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = statistics.median(timed(lambda step=step: step(0), "cuda") for _ in range(repeats))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        moved, copy = bytes_that_must_move(count, side), copy_bandwidth("cuda", 1024)
        print_line(
            count,
            f"{1000 * seconds:.1f} ms",
            f"{moved / 1e9:.2f} GB",
            f"{moved / seconds / 1e9:.0f} GB/s",
            f"{copy / 1e9:.0f} GB/s",
            f"{moved / seconds / copy:.0%}",
            f"{peak:.0f} MiB",
        )


def main() -> None:
    parser = command_line(__doc__, maps=[2, 21], side=512)
    parser.add_argument(
        "--literal-repeats", type=int, nargs="+", default=[5, 1], help="literal runs for each entry of --maps"
    )
    parser.add_argument("--literal", nargs="+", choices=list(NEIGHBORS), default=list(NEIGHBORS))
    options = begin(parser)
    if len(options.literal_repeats) != len(options.maps):
        parser.error("give as many --literal-repeats as --maps")
    table(options.literal, options.maps, options.side, options.repeats, options.literal_repeats)
    if torch.cuda.is_available():
        table_of_gpu(options.maps, options.side, options.repeats)


if __name__ == "__main__":
    main()
