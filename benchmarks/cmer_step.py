# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a training step of CMER costs for G modalities, and what its loss between modalities costs against a loop.

    python benchmarks/cmer_step.py [--threads 1] [--repeats 8]

Two Markdown tables.  Times are medians over steps that take turns: with all terms, with the two views alone (what the
consistency losses add to) and with one view (plain class activation maps), the four kinds of transform in turn.
Memory is the growth of the peak resident size of a process of its own over what networks and data take.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from monai_wsss.engines import Progress
from monai_wsss.losses import cross_modal_equivariance_loss, peer_weights
from monai_wsss.methods import CMER
from monai_wsss.networks import networks_by_modality
from monai_wsss.transforms import SPATIAL_KINDS, PairedSpatialTransform

Step = Callable[[int], object]

SETTINGS = {
    "stride-4 encoder, width 16, 64 x 64": ("encoder", 64, 32),
    "U-Net, width 16, 128 x 128": ("unet", 128, 8),
}  # backbone, side, batch
VARIANTS: dict[str, dict[str, object]] = {
    "all terms": {},
    "two views alone": {"equivariance": None, "cross_modal": None, "distillation": None},
    "one view": {"equivariance": None, "cross_modal": None, "distillation": None, "second_view": False},
}
LATE = Progress(epoch=9, iteration=9, fraction=0.9)  # after the ramp: every term counts


def training_step(backbone: str, side: int, batch: int, groups: int, variant: str) -> Step:
    """Forward, losses and backward of a random batch; the number of the step says which transform."""
    torch.manual_seed(0)
    network = networks_by_modality([str(k) for k in range(groups)], backbone=backbone, width=16)
    method = CMER.from_preset(network=network, **VARIANTS[variant])
    data = {"image": torch.rand(batch, groups, side, side), "label": (torch.arange(batch)[:, None] % 2).float()}

    def step(number: int) -> None:
        torch.manual_seed(number)
        method.transform = PairedSpatialTransform((SPATIAL_KINDS[number % 4],))
        method.zero_grad()
        torch.stack(list(method.losses(data, LATE, "network").values())).sum().backward()

    return step


def loop_over_pairs(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Eq. 4 as it is written: for each ordered pair, both maps scaled to unit norm and subtracted."""
    groups = student.shape[1]
    terms = []
    for k in range(groups):
        for other in range(groups):
            if other != k:
                own = torch.nn.functional.normalize(student[:, k].flatten(2), dim=-1)
                goal = torch.nn.functional.normalize(teacher[:, other].detach().flatten(2), dim=-1)
                terms.append((goal - own).square().sum((1, 2)).mean() / (groups - 1))
    return torch.stack(terms).sum() / groups


def matrix_of_pairs(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same, as the package computes it."""
    groups = student.shape[1]
    return cross_modal_equivariance_loss(student, teacher, peer_weights(torch.ones(groups, groups, dtype=torch.bool)))


LOSSES = {"loop": loop_over_pairs, "package": matrix_of_pairs}


def loss_step(name: str, groups: int, side: int, batch: int = 16) -> Step:
    """Loss and its gradient for random maps; gives both."""
    torch.manual_seed(0)
    student = torch.rand(batch, groups, 1, side, side, requires_grad=True)
    teacher = torch.rand(batch, groups, 1, side, side)

    def step(number: int) -> tuple[float, torch.Tensor]:
        student.grad = None
        loss = LOSSES[name](student, teacher)
        loss.backward()
        return loss.item(), student.grad

    return step


def peak_mib(build: Callable[..., Step], small: tuple, full: tuple, threads: int) -> float:
    """Growth of the peak resident size by four steps, measured in this process, which nothing else has used."""
    torch.set_num_threads(threads)
    build(*small)(0)  # what libraries load at their first use is not the step's
    step = build(*full)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = _resident_peak()
    for number in range(4):
        step(number)
    return _resident_peak() - before


def _resident_peak() -> float:
    """MiB; of this program's memory only, where getrusage may tell of the program that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def peak_alone(build: Callable[..., Step], small: tuple, full: tuple) -> float:
    """:func:`peak_mib` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_mib, build, small, full, torch.get_num_threads()).result()


def milliseconds(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Of each round of each step; they take turns, so that a busy moment of the machine meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, repeats):  # the first round warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step(max(number, 0))
            seconds[name].append(time.perf_counter() - start)
    return {name: [1000 * value for value in values[1:]] for name, values in seconds.items()}


def table_of_steps(repeats: int) -> None:
    print("| network, batch | G | step | two views alone | one view | consistency losses | peak | of one view |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for title, (backbone, side, batch) in SETTINGS.items():
        for groups in (1, 2, 4):
            steps = {name: training_step(backbone, side, batch, groups, name) for name in VARIANTS}
            times = milliseconds(steps, repeats)
            full, views, single = map(statistics.median, times.values())
            # Round by round, since transforms cost differently.
            shares = [
                1 - part / whole for whole, part in zip(times["all terms"], times["two views alone"], strict=True)
            ]
            memory = [
                peak_alone(training_step, (backbone, 32, 2, groups, name), (backbone, side, batch, groups, name))
                for name in ("all terms", "one view")
            ]
            print(
                f"| {title}, {batch} | {groups} | {full:.0f} ms | {views:.0f} ms | {single:.0f} ms "
                f"| {statistics.median(shares):.0%} | {memory[0]:.0f} MiB | {memory[1]:.0f} MiB |",
                flush=True,
            )


def table_of_losses(repeats: int, side: int = 240) -> None:
    print("| maps | loop over pairs | package | ratio | peak of the loop | peak | ratio | difference | of gradients |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for groups in (2, 4, 8):
        steps = {name: loss_step(name, groups, side) for name in LOSSES}
        (loop_value, loop_gradient), (value, gradient) = (step(0) for step in steps.values())
        difference = abs(loop_value - value) / loop_value
        of_gradients = ((loop_gradient - gradient).abs().max() / loop_gradient.abs().max()).item()
        assert difference < 1e-5, f"The loop gives {loop_value}, the package {value}."
        times = {name: statistics.median(values) for name, values in milliseconds(steps, repeats).items()}
        memory = {name: peak_alone(loss_step, (name, groups, 16), (name, groups, side)) for name in LOSSES}
        print(
            f"| 16 x {groups} x 1 x {side} x {side} | {times['loop']:.0f} ms | {times['package']:.0f} ms "
            f"| {times['loop'] / times['package']:.1f} | {memory['loop']:.0f} MiB | {memory['package']:.0f} MiB "
            f"| {memory['loop'] / memory['package']:.1f} | {difference:.0e} | {of_gradients:.0e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--repeats", type=int, default=8, help="steps of each kind, at least 5 and best a multiple of 4"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), medians of {options.repeats}\n")
    table_of_steps(options.repeats)
    print()
    table_of_losses(options.repeats)


if __name__ == "__main__":
    main()
