# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of CoSA's mixture threshold against scikit-learn's fit of the same scores, 100 maps of 784.

    python speed/mixture_threshold.py [--threads 1] [--repeats 5] [--maps 100] [--points 784]

A Markdown table.  "scikit-learn" begins as the authors do, with the lowest and the highest score as means and variances
of 1, and goes on until a step changes the mean log-likelihood by less than 1e-6: its fit is that of the package, which
is checked.  "scikit-learn, 1e-3" ends where the authors' does, mostly unfitted.  Where scikit-learn, one of the
development tools, is not installed, the package is measured alone.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from harness import Step, begin, command_line, print_heads, print_line, side_by_side

from monai_wsss.refinement import DynamicThreshold, assigned_thresholds, mixture_threshold

OURS = ("package", "package, every score", "package, three components", "package, a whole update")
THEIRS = ("scikit-learn", "scikit-learn, 1e-3", "scikit-learn, three components")
IGNORED = 0.05


def scores_of(maps: int, points: int) -> torch.Tensor:
    """Draw scores of maps (maps, points): 60 % around 0.22, 40 % around 0.75."""
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(maps, points, generator=generator) < 0.4
    noise = torch.randn(maps, points, generator=generator)
    return torch.where(high, 0.75 + 0.13 * noise, 0.22 + 0.1 * noise).clamp(0, 1)


def fitted(values: np.ndarray, components: int, tolerance: float) -> Any:
    """Fit scikit-learn's mixture from the authors' start."""
    from sklearn.mixture import GaussianMixture

    means = [values.min(), *([np.median(values)] if components == 3 else []), values.max()]
    return GaussianMixture(
        components,
        weights_init=[1 / components] * components,
        means_init=np.reshape(means, (-1, 1)),
        precisions_init=np.ones((components, 1, 1)),
        tol=tolerance,
        max_iter=500,
    ).fit(values)


def threshold_step(which: str, maps: int, points: int) -> Step:
    """Build one fit; the step gives the means, or the thresholds of three components."""
    queue = scores_of(maps, points)

    def sklearn_step(number: int) -> list[float]:
        values = queue.double().numpy()
        values = values[values > IGNORED].reshape(-1, 1)
        if which == "scikit-learn, three components":
            found = fitted(values, 3, 1e-3).predict(values)
            return [float(values[found == 0].max()), float(values[found == 2].min())]
        return sorted(fitted(values, 2, 1e-6 if which == "scikit-learn" else 1e-3).means_.ravel().tolist())

    def package_step(number: int) -> list[float]:
        if which == "package, three components":
            return torch.stack(assigned_thresholds(queue.flatten())[:2]).tolist()
        return mixture_threshold(queue.flatten(), bins=None if which == "package, every score" else 512).means.tolist()

    if which != "package, a whole update":
        return package_step if which in OURS else sklearn_step
    threshold = DynamicThreshold(queue=maps, points=points)
    threshold.scores.copy_(queue)
    batch, found = queue[:4].reshape(4, 1, -1), torch.ones(4)

    def update(number: int) -> float:
        threshold.update(batch, found)
        return threshold().item()

    return update


def check(results: dict[str, Any]) -> None:
    """Compare the fits that have converged, and the thresholds of three components."""
    np.testing.assert_allclose(results["package"], results["package, every score"], atol=1e-3)
    if "scikit-learn" in results:
        np.testing.assert_allclose(results["package"], results["scikit-learn"], atol=1e-3)
        theirs = results["scikit-learn, three components"]
        np.testing.assert_allclose(results["package, three components"], theirs, atol=5e-3)


def table(maps: int, points: int, repeats: int) -> None:
    kinds = OURS + (THEIRS if importlib.util.find_spec("sklearn") else ())
    costs = side_by_side(threshold_step, kinds, (8, 100), (maps, points), repeats, check)
    print_heads("fit", "time", "scikit-learn / it", "peak")
    for which, cost in costs.items():
        ratio = f"{costs['scikit-learn'].milliseconds / cost.milliseconds:.1f}" if "scikit-learn" in costs else "–"
        print_line(which, f"{cost.milliseconds:.1f} ms", ratio, f"{cost.mebibytes:.0f} MiB")


def main() -> None:
    options = begin(command_line(__doc__, maps=100, points=784))
    table(options.maps, options.points, options.repeats)


if __name__ == "__main__":
    main()
