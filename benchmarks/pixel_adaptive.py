# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What pixel-adaptive refinement costs against its equations with 48 copies of the maps, and against the memory.

    python benchmarks/pixel_adaptive.py [--threads 1] [--repeats 5] [--literal-repeats 5 1] [--maps 2 21] [--side 512]

A Markdown table for two images of three channels and ten steps.  Literal means: (B, M, 48, H, W) neighbors times
(B, 1, 48, H, W) weights, summed, with the neighbors from one-hot dilated convolutions (``convolutions``) or from
shifted slices that are stacked (``stack``).  Times are medians of runs that take turns, of the literal ones as many as
the table says: at 21 maps one takes a minute or more, and 7 GB.  On a machine with other work the ratio of processor
times is the one to trust.  Memory is the growth of the peak resident size by one run in a process of its own.

The floor is the time in which a copy moves the bytes that no implementation with stored weights can save: weights
written once and read in each step, maps read and written in each; ``x`` is how many times it the package's processor
time is.  With a GPU a second table gives the bandwidth that these bytes make of the package's time, and that of a copy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cmer_step import Step, peak_alone

from monai_wsss.refinement.pixel_adaptive import pixel_adaptive_refinement

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS, BATCH, CHANNELS = 10, 2, 3


def convolved_neighbors(maps: torch.Tensor) -> torch.Tensor:
    """(B, M, 48, H, W) from an eight-filter one-hot convolution for each dilation and map."""
    batch, count, height, width = maps.shape
    one_hot = torch.eye(9)[[0, 1, 2, 3, 5, 6, 7, 8]].view(8, 1, 3, 3).repeat(count, 1, 1, 1)
    found = []
    for d in DILATIONS:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        found.append(F.conv2d(padded, one_hot, dilation=d, groups=count).view(batch, count, 8, height, width))
    return torch.cat(found, 2)


def stacked_neighbors(maps: torch.Tensor) -> torch.Tensor:
    """The same from slices."""
    height, width = maps.shape[2:]
    found = []
    for d in DILATIONS:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        corners = [(y, x) for y in (0, d, 2 * d) for x in (0, d, 2 * d) if (y, x) != (d, d)]
        found += [padded[..., y : y + height, x : x + width] for y, x in corners]
    return torch.stack(found, 2)


NEIGHBORS = {"convolutions": convolved_neighbors, "stack": stacked_neighbors}


def literal(image: torch.Tensor, maps: torch.Tensor, which: str) -> torch.Tensor:
    """The sheet's equations, a tensor for each symbol."""
    found = NEIGHBORS[which](image)
    logits = -(((found - image[:, :, None]).abs() / (found.std(2, keepdim=True) + 1e-8) / 0.3) ** 2)
    distances = torch.tensor([d * (1.0 if k in (1, 3, 4, 6) else 2**0.5) for d in DILATIONS for k in range(8)])
    position = -((distances / (distances.std() + 1e-8) / 0.3) ** 2)
    weights = logits.mean(1, keepdim=True).softmax(2) + 0.01 * position.softmax(0).view(1, 1, -1, 1, 1)
    for _ in range(STEPS):
        maps = (NEIGHBORS[which](maps) * weights).sum(2)
    return maps


def refinement_step(which: str, count: int, side: int, once: bool = False, device: str = "cpu") -> Step:
    """One refinement of random maps for a random smooth image; with ``once`` runs after the first do nothing."""
    torch.manual_seed(0)
    coarse = torch.rand(BATCH, CHANNELS, side // 8, side // 8)
    image = F.interpolate(coarse, (side, side), mode="bilinear") + 0.05 * torch.rand(BATCH, CHANNELS, side, side)
    maps = torch.rand(BATCH, count, side, side)
    image, maps = image.to(device), maps.to(device)

    @torch.no_grad()
    def step(number: int) -> torch.Tensor | None:
        if once and number:
            return None
        if which == "package":
            return pixel_adaptive_refinement(image, maps, dilations=DILATIONS, iterations=STEPS)
        return literal(image, maps, which)

    return step


def milliseconds_in_turn(
    steps: dict[str, Step], repeats: dict[str, int]
) -> tuple[dict[str, tuple[float, float]], list[torch.Tensor]]:
    """Medians of elapsed and of processor time, in each round of those that still have to run; and their results."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    results = {}
    for number in range(max(repeats.values())):
        for name, step in steps.items():
            if number < repeats[name]:
                start, start_cpu = time.perf_counter(), time.process_time()
                results[name] = step(number)
                seconds[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    medians = {
        name: tuple(1000 * statistics.median(values) for values in zip(*pairs, strict=True))
        for name, pairs in seconds.items()
    }
    return medians, list(results.values())


def bytes_that_must_move(count: int, side: int) -> int:
    values = BATCH * side * side
    return 4 * values * (CHANNELS + 48 + STEPS * (48 + 2 * count))


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes read and written in a second, of the processor's on a CPU, by a copy, median of nine."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)
    seconds = statistics.median(timed(lambda: target.copy_(source), device) for _ in range(9))
    return 2 * 4 * source.numel() / seconds


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of a call: elapsed between waits for the GPU, else of the processor."""
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
    print(
        "| maps | literal | runs | elapsed: literal | package | ratio | processor: literal | package | ratio ", end=""
    )
    print("| peak: literal | package | ratio | difference | floor | x |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for count, runs in zip(counts, literal_repeats, strict=True):
        memory = peak_alone(refinement_step, ("package", 1, 64, True), ("package", count, side, True))
        for which in kinds:
            steps = {name: refinement_step(name, count, side) for name in (which, "package")}
            times, results = milliseconds_in_turn(steps, {which: runs, "package": repeats})
            difference = (results[0] - results[1]).abs().max().item()
            results.clear()
            assert difference < 1e-5, f"With {count} maps the package differs from the equations by {difference:g}."
            steps.clear()
            peak = peak_alone(refinement_step, (which, 1, 64, True), (which, count, side, True))
            floor = 1000 * bytes_that_must_move(count, side) / copy_bandwidth()
            print(
                f"| {count} | {which} | {runs} "
                + "".join(
                    f"| {slow:.0f} ms | {fast:.0f} ms | {slow / fast:.1f} "
                    for slow, fast in zip(times[which], times["package"], strict=True)
                )
                + f"| {peak:.0f} MiB | {memory:.0f} MiB | {peak / memory:.1f} "
                f"| {difference:.0e} | {floor:.0f} ms | {times['package'][1] / floor:.1f} |",
                flush=True,
            )


def table_of_gpu(counts: list[int], side: int, repeats: int) -> None:
    print(f"\n{torch.cuda.get_device_name()}\n")
    print("| maps | package | bytes that must move | bandwidth | of a copy | share | peak |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for count in counts:
        step = refinement_step("package", count, side, device="cuda")
        step(0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = statistics.median(timed(lambda step=step: step(0), "cuda") for _ in range(repeats))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        moved, copy = bytes_that_must_move(count, side), copy_bandwidth("cuda", 1024)
        print(
            f"| {count} | {1000 * seconds:.1f} ms | {moved / 1e9:.2f} GB | {moved / seconds / 1e9:.0f} GB/s "
            f"| {copy / 1e9:.0f} GB/s | {moved / seconds / copy:.0%} | {peak:.0f} MiB |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="runs of the package, at least 5")
    parser.add_argument(
        "--literal-repeats", type=int, nargs="+", default=[5, 1], help="literal runs for each entry of --maps"
    )
    parser.add_argument("--literal", nargs="+", choices=list(NEIGHBORS), default=list(NEIGHBORS))
    parser.add_argument("--maps", type=int, nargs="+", default=[2, 21])
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    if len(options.literal_repeats) != len(options.maps):
        parser.error("give as many --literal-repeats as --maps")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeats}\n")
    table(options.literal, options.maps, options.side, options.repeats, options.literal_repeats)
    if torch.cuda.is_available():
        table_of_gpu(options.maps, options.side, options.repeats)


if __name__ == "__main__":
    main()
