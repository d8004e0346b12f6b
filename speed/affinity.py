# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of label and loss of the affinity against their definition taken literally, at 32^2 and 48^2 tokens.

    python speed/affinity.py [--threads 1] [--repeats 5] [--batch 2] [--radius 8] [--sides 32 48]

A Markdown table of forward and backward.  "literal" finds near pairs by loops over tokens and window, labels all N x N
pairs in int64 (0, 1, 255), and takes the loss of masks of that label.  "mask kept" finds the near pairs once, as a
training of one size may.  "windowed" is the package's other form, (B, W, *s) instead of (B, N, N).  Memory includes the
gradient of the affinities.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Step, begin, command_line, print_heads, print_line, side_by_side

from monai_wsss.losses.affinity import affinity_loss

KINDS = ("literal", "mask kept", "package", "windowed")


def literal_mask(side: int, radius: int) -> torch.Tensor:
    """Give uint8 (N, N), by loops over both coordinates of a token and of its window."""
    rows = []
    for y in range(side):
        for x in range(side):
            row = [0] * (side * side)
            for v in range(max(0, y - radius), min(side, y + radius + 1)):
                for u in range(max(0, x - radius), min(side, x + radius + 1)):
                    row[v * side + u] = 1
            rows.append(row)
    return torch.tensor(rows, dtype=torch.uint8)


def literal_label(label: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give int64 (B, N, N): 1 for pairs of equal labels, 0 for others, 255 for pairs that do not count."""
    flat = label.flatten(1)
    pairs = (flat[:, :, None] == flat[:, None, :]).long()
    for image, tokens in zip(pairs, flat, strict=True):
        image[mask == 0] = 255
        image[tokens == 255, :] = 255
        image[:, tokens == 255] = 255
    return pairs


def literal_loss(affinity: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Compute 1/2 sum_pos (1 - A) / (n_pos + 1) + 1/2 sum_neg A / (n_neg + 1)."""
    positive, negative = (pairs == 1).to(affinity.dtype), (pairs == 0).to(affinity.dtype)
    of_positive = (positive * (1 - affinity)).sum() / (positive.sum() + 1)
    of_negative = (negative * affinity).sum() / (negative.sum() + 1)
    return 0.5 * of_positive + 0.5 * of_negative


def blobs(batch: int, side: int) -> torch.Tensor:
    """Draw labels (B, side, side) of three classes in connected regions, a part ignored."""
    coarse = torch.rand(batch, 4, 4, 4)
    scores = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").softmax(1)
    return torch.tensor([0, 1, 2, 255])[scores.argmax(1)]


def affinity_step(which: str, batch: int, side: int, radius: int) -> Step:
    """Build label, loss and its gradient for random affinities; the step gives loss and gradient."""
    torch.manual_seed(0)
    label = blobs(batch, side)
    shape = (batch, (2 * radius + 1) ** 2, side, side) if which == "windowed" else (batch, side**2, side**2)
    affinity = torch.rand(shape, requires_grad=True)
    mask = literal_mask(side, radius) if which == "mask kept" else None

    def step(number: int) -> tuple[float, torch.Tensor | None]:
        affinity.grad = None
        if which in ("package", "windowed"):
            loss = affinity_loss(affinity, label, radius=radius)
        else:
            near = literal_mask(side, radius) if mask is None else mask
            loss = literal_loss(affinity, literal_label(label, near))
        loss.backward()
        return loss.item(), affinity.grad

    return step


def check(results: dict[str, Any]) -> None:
    """Compare losses and gradients; the windowed form holds other affinities."""
    expected, of_expected = results["literal"]
    for which in ("mask kept", "package"):
        loss, gradient = results[which]
        assert abs(loss - expected) < 1e-5, f"{which}: loss {loss}, expected {expected}."
        torch.testing.assert_close(gradient, of_expected, rtol=1e-5, atol=1e-10)


def table(batch: int, sides: list[int], radius: int, repeats: int) -> None:
    print_heads("tokens", "version", "time", "literal / it", "mask kept / it", "peak", "literal / it")
    for side in sides:
        costs = side_by_side(affinity_step, KINDS, (batch, 4, radius), (batch, side, radius), repeats, check)
        literal, kept = costs["literal"], costs["mask kept"]
        for which, cost in costs.items():
            print_line(
                f"{side} x {side}",
                which,
                f"{cost.milliseconds:.1f} ms",
                f"{literal.milliseconds / cost.milliseconds:.1f}",
                f"{kept.milliseconds / cost.milliseconds:.1f}",
                f"{cost.mebibytes:.0f} MiB",
                f"{literal.mebibytes / max(cost.mebibytes, 0.1):.1f}",
            )


def main() -> None:
    options = begin(command_line(__doc__, batch=2, radius=8, sides=[32, 48]))
    table(options.batch, options.sides, options.radius, options.repeats)


if __name__ == "__main__":
    main()
