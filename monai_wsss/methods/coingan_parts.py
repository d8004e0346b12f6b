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
EVERY = 50
"""Steps between measurements that need further conversions."""


class Made(NamedTuple):
    """What the generators made of a batch in their step, for the step of the discriminators.

    Attributes:
        key: the images of the batch, by which it is known again.
        converted: of the diseased images.
        diseased: of the healthy images, where there is a way back.
        steps: of the discriminators that are still to come.
    """

    key: torch.Tensor
    converted: torch.Tensor
    diseased: torch.Tensor | None
    steps: int


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
    """Measure the signs that a generator collapsed, to one image or to the identity, and what its own parts do.

    Warned of:

    - ``output_spread``: how much converted images differ from one another, as a share of what the diseased images do;
      below 0.3 the generator gives one image.
    - ``difference_ratio``: mean change of diseased images over that of healthy ones; below 1.15 it changes nothing, or
      everything.
    - ``gate_open``: share of open gates of contrastive convolutions; below 0.01 or above 0.99 they tell nothing apart.

    Only logged:

    - ``mask_open``: share of the features of diseased images that the attention calls specific.
    - ``commonality_ratio``: |M_c| / |P| of diseased images, before any scaling.
    - ``reference_sensitivity``: change of converted images if the mean of the diseased images takes the place of the
      healthy one, as a share of what the conversion changes.

    The limits are those of a toy task.  They are necessary signs alone: a generator with better values may be poor.
    """

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}
        # Numerators and denominators: summed up, one step without any contrast cannot outweigh the others.
        self._sums: dict[str, torch.Tensor] = {}
        self._attention: dict[str, torch.Tensor] = {}
        self._seldom: dict[str, torch.Tensor] = {}
        self._measured = (0, 0)  # the epoch, and the steps in it since values of `_seldom` were taken
        self._alone: tuple[torch.Tensor, torch.Tensor] | None = None
        self._incomplete = 0

    def count(self, complete: bool) -> None:
        """Count a batch without images of one kind."""
        self._incomplete += not complete
        if not complete:
            self.values = {}

    def look(self, network: nn.Module) -> None:
        """Note what the attention observed in the conversion of the diseased images, which has just been made."""
        self._attention = dict(getattr(getattr(network, "attention", None), "observed", {}))

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
            healthy: the same of healthy images; None for what they were converted to: it is done every 50 steps.
            reference: what the generator sees of healthy images.
        """
        images, converted = (float32_or_wider(each) for each in diseased)
        others, same = healthy
        if self._is_time(epoch):
            self._measure_seldom(network, (images, converted), others if same is None else None, reference)
        if same is not None:
            self._seldom["healthy_change"] = (float32_or_wider(same) - others).abs().mean()
        one = images.new_ones(())
        pairs = {"difference_ratio": ((converted - images).abs().mean(), self._seldom["healthy_change"])}
        if (spreads := self._spreads(images, converted)) is not None:
            pairs["output_spread"] = spreads
        gates = [part.open_fraction.value for part in network.modules() if hasattr(part, "open_fraction")]
        if gates:
            pairs["gate_open"] = (torch.stack(gates).mean(), one)
        sums = {name: torch.stack(pair).detach() for name, pair in pairs.items()}
        self._sums |= {name: self._sums.get(name, 0) + pair for name, pair in sums.items()}
        self.values = {name: pair[0] / pair[1].clamp(min=1e-8) for name, pair in sums.items()} | self._attention
        if "reference_sensitivity" in self._seldom:
            self.values["reference_sensitivity"] = self._seldom["reference_sensitivity"]

    def _is_time(self, epoch: int) -> bool:
        """Tell whether this is the first of ``EVERY`` steps; each epoch begins anew, as a resumed run does."""
        before, steps = self._measured
        self._measured = (epoch, 1 if epoch != before or steps >= EVERY else steps + 1)
        return self._measured[1] == 1

    def _measure_seldom(
        self,
        network: Any,
        diseased: tuple[torch.Tensor, torch.Tensor],
        healthy: torch.Tensor | None,
        reference: torch.Tensor | None,
    ) -> None:
        """Measure what costs further conversions: of diseased images and, if they are given, of healthy ones."""
        images, converted = diseased
        training = network.training
        network.eval()  # so that nothing that training follows takes notice
        if healthy is not None:
            same = float32_or_wider(network.translate(healthy, reference))
            self._seldom["healthy_change"] = (same - healthy).abs().mean()
        if reference is not None and getattr(network, "attention", None) is not None:
            other = network.translate(images, float32_or_wider(network.represent(images)).mean(0))
            changes = [(float32_or_wider(other) - converted).abs().mean(), (converted - images).abs().mean()]
            self._seldom["reference_sensitivity"] = changes[0] / changes[1].clamp(min=1e-8)
        network.train(training)

    def _spreads(self, images: torch.Tensor, converted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Tell how much the converted images differ, and the images; one that is alone is compared with the last."""
        if len(images) == 1:
            before, self._alone = self._alone, (images, converted.detach())
            if before is None or before[0].shape != images.shape:
                return None
            images, converted = (torch.cat(pair) for pair in zip(before, self._alone, strict=True))
        return converted.std(0).mean(), images.std(0).mean()

    def sentences(self) -> list[str]:
        """Say what the means since the last call are signs of."""
        sums, self._sums = self._sums, {}
        incomplete, self._incomplete = self._incomplete, 0
        read = torch.stack(list(sums.values())).tolist() if sums else []
        means = {
            name: over / max(under, 1e-8)
            for name, (over, under) in zip(sums, read, strict=True)
            if name != "output_spread" or under > 1e-6  # images that do not differ say nothing of the spread
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
    """Compute the loss of a made image against its target, in float32 or wider."""
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
