# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN: a generator converts diseased images to healthy ones, and what it changes is the lesion.

"Commonality-specificity attention GAN for weakly supervised medical lesion segmentation" (under review; without code).
For unpaired images I_p with a finding and I_h without any, J = G(I_p | I_h) is the converted image; G sees the mean of
the healthy features of the batch.  D tells healthy images (high logits) from converted ones:

    L_G = adv(D(J)) + w_id (|G(I_h | I_h) - I_h| + |G'(I_p) - I_p|)                               Eq. 10, CycleGAN
          + w_cyc (|G'(J) - I_p| + |G(J' | I_h) - I_h|) + adv(D'(J'))        J' = G'(I_h)         CycleGAN
    L_D = adv(D(pool(J)), D(I_h)) + adv(D'(pool'(J')), D'(I_p))                                   Eq. 10, CycleGAN
    mask = cut(|I - G(I)|) where the image exceeds the presence level of healthy training images

Eq. 10 has the first term of L_G and of L_D; the paper names CycleGAN as its backbone.  G' converts healthy images to
diseased ones, and D' tells those apart; both are absent without the cycle.  ``network`` (G) is deployed.  Eq. 10 alone
does not tie J to I_p, so a generator may give one healthy image whatever it gets: monitors tell of that.  The presets
stand in ``coingan_settings.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._processes import broadcast_buffers, gather_objects, is_distributed
from monai_wsss.engines import ImagePool, Progress, Term, takes_arguments_of
from monai_wsss.methods.base import WSSSMethod, describe
from monai_wsss.methods.coingan_network import NETWORK_WORDS, coingan_network, reverse_of
from monai_wsss.methods.coingan_parts import CollapseWatch, Made, WayBack, away, frozen, healthy_part, judged
from monai_wsss.methods.coingan_settings import CoinganSettings
from monai_wsss.networks import CycleGenerator
from monai_wsss.refinement import LabeledImages

__all__ = ["CoinGAN"]


class CoinGAN(WSSSMethod):
    """Conversion of diseased images to healthy ones by a generator that a discriminator teaches.

    A batch holds as many images with a finding as without, see :class:`~monai_wsss.data.UnpairedSampler`; a batch
    without one of them teaches what it can.  Build it by words with :meth:`from_preset`.

    Args:
        network: G, which gives the difference of image and converted image as its map.
        discriminator: D, (N, C, *S) to logits (N, 1, *s), or to a list whose last entry they are.
        adversarial: the term of L_G; its loss gives the discriminator's, too.
        identity: the term that leaves images as they are, which need no conversion; None leaves it out.
        back: G', D' and the term of the cycle; None: there is one generator.
        pool: earlier converted images for D.
        judge_diseased: D learns to tell diseased images from healthy ones, too.
        d_steps: steps of D for each step of G, on the same converted images; of those from the pool each has others.
        presence_quantile: share of the healthy training images whose pooled map does not exceed the presence level.

    Raises:
        ValueError: a quantile outside [0, 1], no step of D, or a network that stores no mean of healthy images.

    Example:
        >>> batch = {"image": torch.rand(4, 1, 16, 16), "label": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
        >>> method, progress = CoinGAN.tiny(), Progress(epoch=1, iteration=1, fraction=0.0)
        >>> [list(method(batch, progress, player)) for player in method.players]
        [['adversarial', 'identity'], ['adversarial']]
    """

    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    makes_views: ClassVar[bool] = True
    network: CycleGenerator

    def __init__(
        self,
        network: CycleGenerator,
        *,
        discriminator: nn.Module,
        adversarial: Term,
        identity: Term | None = None,
        back: WayBack | None = None,
        pool: ImagePool | None = None,
        judge_diseased: bool = False,
        d_steps: int = 1,
        presence_quantile: float = 0.95,
    ) -> None:
        super().__init__(network)
        if getattr(getattr(network, "buffer", None), "inference", None) == "batch":
            raise ValueError(
                "Expected a network that stores the mean of healthy images, without which it converts no image after "
                "the training, got `inference` 'batch': choose 'calibrated' or 'last_batch'."
            )
        if d_steps < 1:
            raise ValueError(f"Expected `d_steps` of at least 1, got {d_steps}.")
        if not 0 <= presence_quantile <= 1:
            raise ValueError(f"Expected `presence_quantile` in [0, 1], got {presence_quantile}.")
        self.discriminator, self.back, self.pool = discriminator, back, pool or ImagePool(0)
        self.adversarial, self.identity = adversarial, identity
        self.judge_diseased, self.d_steps = judge_diseased, d_steps
        self.presence_quantile = presence_quantile
        self._made: Made | None = None
        self.watch = CollapseWatch()
        parts = {"adversarial": adversarial, "identity": identity, "cycle": back and back.cycle}
        self.settings |= {name: describe(part) for name, part in parts.items()}

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CoinGAN:
        """Build the method with its identity term on the tiny generator: overfits one batch in seconds on a CPU."""
        network = CycleGenerator.tiny(spatial_dims, in_channels, num_classes)
        return cls.from_preset(network=network, ndf=4, num_layers_d=1)

    @classmethod
    @takes_arguments_of(CoinganSettings)
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: CycleGenerator | None = None,
        reverse: CycleGenerator | None = None,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        **words: Any,
    ) -> CoinGAN:
        """Build the whole method by words.

        Args:
            preset: see the table of ``coingan_settings.py``: ``"paper"``, Eq. 10 as printed; ``"paper_cyclegan"``, the
                same with CycleGAN's cycle and identity; ``"cyclegan"`` and ``"identity"``, with a loss that teaches a
                weak generator more; ``"default"``, which is ``"identity"``.
            network: another G in the place of the preset's; it has dimensions and channels of its own.
            reverse: another G' in the place of the plain one of G's size, where there is a cycle.
            spatial_dims: of the preset's network, 2 or 3, as is ``in_channels``.
            num_classes: 1: a difference has no classes.
            words: fields of :class:`~monai_wsss.methods.coingan_settings.CoinganSettings` to set otherwise.

        Raises:
            ValueError: several classes, an unknown preset, or words that do not go together; TypeError: an unknown
                word.
        """
        _check_one_class(num_classes)
        settings = CoinganSettings.of_preset(preset, **words)
        network = network or cls.network_from_preset(
            preset, spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes
        )
        size = (network.spatial_dims, int(network.head.out_channels))
        settings.check_output(network)
        if settings.w_cycle > 0 and reverse is None:
            reverse = reverse_of(network, preset, *size)
        method = cls(network, **settings.parts(*size, reverse))
        method.settings |= {"preset": preset, **settings.record(preset)}
        return method.to(next(network.parameters()).device)

    @classmethod
    @takes_arguments_of(CycleGenerator, *NETWORK_WORDS)
    def network_from_preset(
        cls,
        preset: str = "default",
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        **changes: Any,
    ) -> CycleGenerator:
        """Build the generator of a preset, with random weights.

        Args:
            preset: as :meth:`from_preset`.
            spatial_dims: 2 or 3.
            in_channels: C; images have intensities in [-1, 1].
            num_classes: 1: a difference has no classes.
            changes: words of ``coingan_network.py`` to set otherwise; the rows of the paper's Table 6 are
                ``use_cconv``, ``use_ca`` and ``use_sa``.

        Raises:
            ValueError: several classes, an unknown preset or choice; TypeError: an unknown word.
        """
        _check_one_class(num_classes)
        return coingan_network(preset, spatial_dims, in_channels, **changes)

    def part_of(self, player: str | None = None) -> nn.Module:
        """Give the networks of a player: G and G', or D and D'."""
        check_choice("player", player or "generator", self.players)
        parts: list[nn.Module] = [self.discriminator] if player == "discriminator" else [self.network]
        if self.back is not None:
            parts.append(self.back.discriminator if player == "discriminator" else self.back.generator)
        return nn.ModuleList(parts)

    def steps_of(self, player: str) -> int:
        """Tell how many steps a player makes on a batch."""
        return self.d_steps if player == "discriminator" else 1

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``adversarial``, and for the generator ``identity`` and ``cycle`` where they are on; weighted.

        The generator's call makes the converted images, and the discriminator's calls on the same batch, as many as it
        has steps, take them over.
        """
        images = LabeledImages.from_batch(batch)
        ill, well = (np.flatnonzero(kind).tolist() for kind in (images.held.any(1), ~images.held.any(1)))
        if is_distributed() and not (ill and well):
            raise ValueError(
                f"Expected images with a finding and without in each process's batch, got {len(ill)} and {len(well)}: "
                "the processes would wait for one another; sample with UnpairedSampler and an even batch size."
            )
        diseased, healthy = images.image[images.index(ill)], images.image[images.index(well)]
        if player == "discriminator":
            return self._discriminator_losses(batch["image"], diseased, healthy)
        self.watch.count(bool(ill and well))
        return self._generator_losses(batch["image"], diseased, healthy, progress)

    def _generator_losses(
        self, key: torch.Tensor, diseased: torch.Tensor, healthy: torch.Tensor, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """Give L_G by its terms; a term that lacks its images is 0."""
        graph, both, back = next(self.network.parameters()), min(len(diseased), len(healthy)) > 0, self.back
        reference = self.network.reference_of(healthy) if len(healthy) else None
        translate = partial(self.network.translate, reference=reference)
        converted: Any = translate(diseased) if both else None
        self.watch.look(self.network)
        made_ill: Any = back.generator.translate(healthy) if both and back is not None else None
        same = translate(healthy) if self.identity is not None and len(healthy) else None

        def adversarial(loss: nn.Module) -> torch.Tensor:
            with frozen(self.part_of("discriminator")):
                own = loss(judged(self.discriminator, converted))
                return own if back is None else own + loss(judged(back.discriminator, made_ill))

        def identity(loss: nn.Module) -> torch.Tensor:
            own = away(loss, same, healthy)
            return own if back is None or not both else own + away(loss, back.generator.translate(diseased), diseased)

        losses = {"adversarial": self.adversarial(progress, graph, adversarial, when=both)}
        if self.identity is not None:
            losses["identity"] = self.identity(progress, graph, identity, when=same is not None)
        if back is not None:
            losses["cycle"] = back.cycle(
                progress,
                graph,
                lambda loss: (
                    away(loss, back.generator.translate(converted), diseased) + away(loss, translate(made_ill), healthy)
                ),
                when=both,
            )
        self._made = None
        if both:
            self._made = Made(key, converted.detach(), None if back is None else made_ill.detach(), self.d_steps)
            self.watch.measure(progress.epoch, self.network, (diseased, converted), (healthy, same), reference)
        return losses

    def _discriminator_losses(
        self, key: torch.Tensor, diseased: torch.Tensor, healthy: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Give L_D; it is 0 where one kind of image is missing."""
        made, self._made = self._made, None
        if not min(len(diseased), len(healthy)):
            return {"adversarial": 0 * next(self.discriminator.parameters()).sum()}
        if made is None or made.key is not key:
            with torch.no_grad():
                converted = self.network.translate(diseased, self.network.reference_of(healthy))
                made_ill = None if self.back is None else self.back.generator.translate(healthy)
            made = Made(key, converted, made_ill, self.d_steps)
        if made.steps > 1:
            self._made = made._replace(steps=made.steps - 1)
        told = float32_or_wider(self.pool(made.converted))
        told = torch.cat((told, diseased)) if self.judge_diseased else told
        loss = self.adversarial.loss
        losses = {"adversarial": loss(judged(self.discriminator, told), judged(self.discriminator, healthy))}
        if self.back is not None and made.diseased is not None:
            told, judge = float32_or_wider(self.back.pool(made.diseased)), self.back.discriminator
            losses["reverse_adversarial"] = loss(judged(judge, told), judged(judge, diseased))
        return losses

    def monitors(self, player: str) -> dict[str, torch.Tensor]:
        """Give the signs of a collapse in the generator's step, see :class:`CollapseWatch`."""
        return self.watch.values if player == "generator" else {}

    def collapse_warnings(self) -> list[str]:
        """Warn if the generator collapsed, to one image or to the identity, or if batches lacked one kind of image."""
        return super().collapse_warnings() + self.watch.sentences()

    @torch.no_grad()
    def finalize(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Store the mean of healthy training images in the network, its healthy level and its presence level.

        All three come from training images without any finding.  The presence level is the ``presence_quantile`` of
        their pooled maps.
        """
        network = self.network
        broadcast_buffers(network.buffers())  # statistics of batch norms, where they were chosen
        network.calibrate_reference(batch["image"].to(device) for batch in healthy_part(train_data_loader))
        pooled: list[torch.Tensor] = []

        def maps_of(image: torch.Tensor) -> torch.Tensor:
            maps: torch.Tensor = network(image)
            pooled.append(network.pool(maps).float().cpu())
            return maps

        channels = network.groups * network.num_classes
        responses = self._negative_responses(maps_of, channels, healthy_part(train_data_loader), device)
        network.set_healthy_level(responses.reference(), responses.quantile())
        of_all = torch.cat([values for part in gather_objects(pooled) for values in part])
        network.presence_level.copy_(of_all.quantile(self.presence_quantile, dim=0))


def _check_one_class(num_classes: int) -> None:
    if num_classes != 1:
        raise ValueError(
            f"Expected `num_classes` 1, since a difference has no classes, got {num_classes}: choose one class, or "
            "another method."
        )
