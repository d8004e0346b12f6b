# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Parts of CoinGAN around its losses: the way back, the watch for a collapse, and what keeps two players apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_wsss._checks import float32_or_wider
from monai_wsss.engines import ImagePool, Term
from monai_wsss.networks import CycleGenerator

__all__ = ["CollapseWatch", "Made", "WayBack", "away", "frozen", "healthy_part", "judged"]

LEAST_SPREAD = 0.3
LEAST_RATIO = 1.15


class Made(NamedTuple):
    """What the generators made of a batch in their step, for the step of the discriminators.

    Attributes:
        key: the images of the batch, by which it is known again.
        converted: of the diseased images.
        diseased: of the healthy images, where there is a way back.
    """

    key: torch.Tensor
    converted: torch.Tensor
    diseased: torch.Tensor | None


class WayBack(nn.Module):
    """Hold what the way back from healthy to diseased images needs.

    Args:
        generator: G', one that needs no healthy images beside its own.
        discriminator: D', which tells diseased images from those that G' made.
        cycle: the term by which images that went there and back are what they were.
        pool: images that G' made earlier, for D'.
    """

    def __init__(self, generator: CycleGenerator, discriminator: nn.Module, cycle: Term, pool: ImagePool) -> None:
        super().__init__()
        self.generator, self.discriminator, self.cycle, self.pool = generator, discriminator, cycle, pool


class CollapseWatch:
    """Measure the signs that a generator collapsed, to one image or to the identity.

    | value              | meaning                                                      | warned of                    |
    |--------------------|--------------------------------------------------------------|------------------------------|
    | `output_spread`    | how much converted images differ, as a share of what the     | below 0.3: one image         |
    |                    | diseased images do                                           |                              |
    | `difference_ratio` | mean change of diseased images over that of healthy ones     | below 1.15: nothing, or all  |
    | `gate_open`        | share of open gates of contrastive convolutions              | below 0.01 or above 0.99     |

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


def judged(discriminator: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Give a discriminator's logits; MONAI's gives a list of features, and the logits last."""
    given = discriminator(image)
    logits: torch.Tensor = given[-1] if isinstance(given, (list, tuple)) else given
    return logits


def away(loss: nn.Module, made: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
    """Tell how far an image that was made is from the one that it should be, in float32 or wider."""
    assert made is not None
    distance: torch.Tensor = loss(float32_or_wider(made), float32_or_wider(image))
    return distance


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
