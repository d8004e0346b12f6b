# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of a training step of CMER for G modalities, and of its loss between modalities against a loop.

    python speed/cmer_step.py [--threads 1] [--repeats 8]

Two Markdown tables.  The first compares a step with all terms, a step with the two views alone, to which the
consistency losses add, and a step with one view (plain class activation maps); the four kinds of transform take turns.
Memory is what the step adds to networks and data.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from harness import Step, begin, command_line, peak_alone, print_heads, print_line, rounds_in_turn, side_by_side

from monai_wsss.engines import Progress
from monai_wsss.losses import cross_modal_equivariance_loss, peer_weights
from monai_wsss.methods import CMER
from monai_wsss.networks import networks_by_modality
from monai_wsss.transforms import SPATIAL_KINDS, PairedSpatialTransform

SETTINGS = {
    "stride-4 encoder, width 16, 64 x 64": ("encoder", 64, 32),
    "U-Net, width 16, 128 x 128": ("unet", 128, 8),
}  # backbone, side, batch
VARIANTS: dict[str, dict[str, object]] = {
    "all terms": {},
    "two views alone": {"equivariance": False, "cross_modal": False, "distillation": False},
    "one view": {"equivariance": False, "cross_modal": False, "distillation": False, "second_view": False},
}
LATE = Progress(epoch=9, iteration=9, fraction=0.9)  # after the ramp: every term counts


def training_step(backbone: str, side: int, batch: int, groups: int, variant: str) -> Step:
    """Build forward, losses and backward of a random batch; the number of the round chooses the transform."""
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
    """Compute Eq. 4 as it is written: for each ordered pair, both maps are scaled to unit norm and subtracted."""
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
    """Compute Eq. 4 as the package does."""
    groups = student.shape[1]
    return cross_modal_equivariance_loss(student, teacher, peer_weights(torch.ones(groups, groups, dtype=torch.bool)))


LOSSES = {"loop": loop_over_pairs, "package": matrix_of_pairs}


def loss_step(name: str, groups: int, side: int, batch: int = 16) -> Step:
    """Build the loss and its gradient for random maps; the step gives both."""
    torch.manual_seed(0)
    student = torch.rand(batch, groups, 1, side, side, requires_grad=True)
    teacher = torch.rand(batch, groups, 1, side, side)

    def step(number: int) -> tuple[float, torch.Tensor]:
        student.grad = None
        loss = LOSSES[name](student, teacher)
        loss.backward()
        return loss.item(), student.grad

    return step


def table_of_steps(repeats: int) -> None:
    print_heads(
        *("network, batch", "G", "step", "two views alone", "one view", "consistency losses", "peak", "of one view")
    )
    for title, (backbone, side, batch) in SETTINGS.items():
        for groups in (1, 2, 4):
            steps = {name: training_step(backbone, side, batch, groups, name) for name in VARIANTS}
            rounds, _ = rounds_in_turn(steps, repeats)
            times = {name: [one.elapsed for one in own] for name, own in rounds.items()}
            # Round by round, since transforms cost differently.
            shares = [
                1 - part / whole for whole, part in zip(times["all terms"], times["two views alone"], strict=True)
            ]
            memory = [
                peak_alone(training_step, (backbone, 32, 2, groups, name), (backbone, side, batch, groups, name))
                for name in ("all terms", "one view")
            ]
            print_line(
                f"{title}, {batch}",
                groups,
                *(f"{statistics.median(values):.0f} ms" for values in times.values()),
                f"{statistics.median(shares):.0%}",
                *(f"{peak:.0f} MiB" for peak in memory),
            )


def table_of_losses(repeats: int, side: int = 240) -> None:
    print_heads(
        *("maps", "loop over pairs", "package", "ratio", "peak of the loop", "peak", "ratio"),
        *("difference", "of gradients"),
    )
    for groups in (2, 4, 8):
        differences: list[float] = []

        def check(results: dict[str, Any], differences: list[float] = differences) -> None:
            (loop, loop_gradient), (value, gradient) = results["loop"], results["package"]
            differences += [
                abs(loop - value) / loop,
                ((loop_gradient - gradient).abs().max() / loop_gradient.abs().max()).item(),
            ]
            assert differences[0] < 1e-5, f"The loop gives {loop}, the package {value}."

        costs = side_by_side(loss_step, tuple(LOSSES), (groups, 16), (groups, side), repeats, check)
        loop, package = costs["loop"], costs["package"]
        print_line(
            f"16 x {groups} x 1 x {side} x {side}",
            f"{loop.milliseconds:.0f} ms",
            f"{package.milliseconds:.0f} ms",
            f"{loop.milliseconds / package.milliseconds:.1f}",
            f"{loop.mebibytes:.0f} MiB",
            f"{package.mebibytes:.0f} MiB",
            f"{loop.mebibytes / package.mebibytes:.1f}",
            *(f"{difference:.0e}" for difference in differences),
        )


def main() -> None:
    options = begin(command_line(__doc__, repeats=8))  # a multiple of the four transforms
    table_of_steps(options.repeats)
    print()
    table_of_losses(options.repeats)


if __name__ == "__main__":
    main()
