# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What CoinGAN does besides its losses: it watches for a collapse, and keeps the two players apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import float32_or_wider

__all__ = ["CollapseWatch", "frozen", "healthy_part", "judged"]

LEAST_SPREAD = 0.3
LEAST_RATIO = 1.15


class CollapseWatch:
    """Measure the signs that a generator collapsed, to one image or to the identity.

    | value              | meaning                                                        | warned of                      |
    |--------------------|----------------------------------------------------------------|--------------------------------|
    | `output_spread`    | how much converted images differ, as a share of what images do | below 0.3: G gives one image   |
    | `difference_ratio` | mean change of diseased images over that of healthy ones       | below 1.15: nothing, or all    |
    | `gate_open`        | share of open gates of contrastive convolutions                | below 0.01 or above 0.99       |

    The limits are those of a toy task.  They are necessary signs alone: a generator above both may still be poor.
    """

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}
        self._epoch: list[dict[str, torch.Tensor]] = []
        self._healthy: tuple[int, torch.Tensor] | None = None
        self._incomplete = 0

    def count(self, complete: bool) -> None:
        """Count a batch without images of one kind."""
        self._incomplete += not complete

    @torch.no_grad()
    def measure(
        self,
        epoch: int,
        network: Any,
        diseased: tuple[torch.Tensor, torch.Tensor],
        healthy: tuple[torch.Tensor, torch.Tensor | None],
        reference: torch.Tensor | None,
    ) -> None:
        """Measure a step.

        Args:
            epoch: the present one.
            network: the generator.
            diseased: images with a finding (N, C, *S), and what they were converted to.
            healthy: the same of healthy images; where these were not converted, it is done once per epoch.
            reference: what the generator sees of healthy images.
        """
        images, converted = (float32_or_wider(each) for each in diseased)
        others, same = healthy
        if same is not None or self._healthy is None or self._healthy[0] != epoch:
            same = network.translate(others, reference) if same is None else same
            self._healthy = (epoch, (float32_or_wider(same) - others).abs().mean())
        self.values = {"difference_ratio": (converted - images).abs().mean() / self._healthy[1].clamp(min=1e-8)}
        if len(images) > 1:
            spread, of_images = (each.std(0).mean() for each in (converted, images))
            self.values["output_spread"] = spread / of_images.clamp(min=1e-8)
        gates = [part.open_fraction.value for part in network.modules() if hasattr(part, "open_fraction")]
        if gates:
            self.values["gate_open"] = torch.stack(gates).mean()
        self._epoch.append(self.values)

    def sentences(self) -> list[str]:
        """Say what the means since the last call are signs of."""
        epoch, self._epoch = self._epoch, []
        incomplete, self._incomplete = self._incomplete, 0
        means = {
            name: torch.stack([one[name].detach().clone() for one in epoch if name in one]).mean().item()
            for name in ({name for one in epoch for name in one})
        }
        found = []
        if incomplete:
            found.append(
                f"{incomplete} batches had images of one kind alone, and taught the discriminator nothing: sample as "
                "many with a finding as without (UnpairedSampler)."
            )
        if means.get("output_spread", 1.0) < LEAST_SPREAD:
            found.append(
                f"converted images differ by {means['output_spread']:.0%} of what the images do: the generator gives "
                "nearly one image whatever it gets; add the identity term (preset 'identity')."
            )
        if means.get("difference_ratio", LEAST_RATIO) < LEAST_RATIO:
            found.append(
                f"the generator changes images with a finding {means['difference_ratio']:.2f} times as much as healthy "
                "ones: it converts nothing, or everything; train longer, or use other weights of identity and cycle."
            )
        if not 0.01 <= means.get("gate_open", 0.5) <= 0.99:
            found.append(
                f"the gates of the contrastive convolution are open at {means['gate_open']:.1%} of all places: they "
                "tell nothing apart; share the weights of both zones, or change the threshold."
            )
        return found


def healthy_part(batches: Iterable) -> Iterator[dict[str, torch.Tensor]]:
    """Give the images and labels of each batch that have no finding; batches without such images are left out."""
    for batch in batches:
        label = torch.as_tensor(batch["label"])
        well = (label == 0).flatten(1).all(1)
        if bool(well.any()):
            image = batch["image"]
            yield {"image": image[well.to(image.device)], "label": label[well]}


def judged(discriminator: nn.Module | None, image: torch.Tensor | None) -> torch.Tensor:
    """Give a discriminator's logits; MONAI's gives a list of features, and the logits last."""
    assert discriminator is not None and image is not None
    given = discriminator(image)
    logits: torch.Tensor = given[-1] if isinstance(given, (list, tuple)) else given
    return logits


@contextmanager
def frozen(part: nn.Module) -> Iterator[None]:
    """Compute no gradient for the parameters of a part: the step of one player costs the other nothing."""
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
