# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN: a generator converts diseased images to healthy ones, and what it changes is the lesion.

"Commonality-specificity attention GAN for weakly supervised medical lesion segmentation" (under review; without code).
For unpaired images I_p with a finding and I_h without any, J = G(I_p | I_h) is the converted image; G sees the mean of
the healthy features of the batch.  D tells healthy images (high logits) from converted ones:

    L_G = adv(D(J)) + w_id (|G(I_h | I_h) - I_h| + |G'(I_p) - I_p|)                                        Eq. 10, CycleGAN
                    + w_cyc (|G'(J) - I_p| + |G(J' | I_h) - I_h|) + adv(D'(J'))          J' = G'(I_h)          CycleGAN
    L_D = adv(D(pool(J)), D(I_h)) + adv(D'(pool'(J')), D'(I_p))                                            Eq. 10, CycleGAN
    mask = cut(|I - G(I)|) where the image exceeds the presence level of healthy training images

Eq. 10 has the first term of L_G and of L_D; the paper names CycleGAN as its backbone.  G' converts healthy images to
diseased ones, and D' tells those apart; both are absent without the cycle.  ``network`` (G) is deployed.  Eq. 10 alone
does not tie J to I_p, so a generator may give one healthy image whatever it gets: two monitors tell of that.  The
presets: ``coingan_settings.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._processes import gather_objects
from monai_wsss.engines import ImagePool, Progress, Term, takes_arguments_of
from monai_wsss.methods.base import WSSSMethod, describe
from monai_wsss.methods.coingan_parts import CollapseWatch, frozen, healthy_part, judged
from monai_wsss.methods.coingan_settings import CoinganSettings
from monai_wsss.refinement import LabeledImages

__all__ = ["CoinGAN"]


class CoinGAN(WSSSMethod):
    """Conversion of diseased images to healthy ones by a generator that a discriminator teaches.

    A batch holds as many images with a finding as without, see :class:`~monai_wsss.data.UnpairedSampler`; a batch
    without one of them teaches what it can.  Build it by words with :meth:`from_preset`.

    Args:
        network: G, which gives the difference of image and converted image as its map.  It has
            ``reference_of(healthy)``, the mean representation of healthy images; ``translate(image, reference)``;
            ``calibrate_reference(batches)``, which stores that mean for inference; and a buffer ``presence_level``.
        discriminator: D, (N, C, *S) to logits (N, 1, *s), or to a list whose last entry they are.
        adversarial: the term of L_G; its loss gives the discriminator's, too.
        identity: the term that leaves images as they are, which need no conversion; None leaves it out.
        cycle: the term that converts back and forth; None: there are no G' and D'.
        reverse: G', with ``translate(image)``, for the cycle alone.
        reverse_discriminator: D', for the cycle alone.
        pool: earlier converted images for D.
        reverse_pool: the same for D'.
        judge_diseased: D learns to tell diseased images from healthy ones, too.
        presence_quantile: share of the healthy training images whose pooled map does not exceed the presence level.

    Raises:
        ValueError: a cycle without G' and D', or the reverse; a quantile outside [0, 1].

    Example:
        >>> batch = {"image": torch.rand(4, 1, 16, 16), "label": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
        >>> method, progress = CoinGAN.tiny(), Progress(epoch=1, iteration=1, fraction=0.0)
        >>> [list(method(batch, progress, player)) for player in method.players]
        [['adversarial', 'identity'], ['adversarial']]
    """

    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    makes_views: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        *,
        discriminator: nn.Module,
        adversarial: Term,
        identity: Term | None = None,
        cycle: Term | None = None,
        reverse: nn.Module | None = None,
        reverse_discriminator: nn.Module | None = None,
        pool: ImagePool | None = None,
        reverse_pool: ImagePool | None = None,
        judge_diseased: bool = False,
        presence_quantile: float = 0.95,
    ) -> None:
        super().__init__(network)
        if len({part is None for part in (cycle, reverse, reverse_discriminator)}) > 1:
            raise ValueError(
                "Expected `cycle`, `reverse` and `reverse_discriminator` together or none of them, got "
                f"{describe(cycle)}, {type(reverse).__name__} and {type(reverse_discriminator).__name__}."
            )
        if not 0 <= presence_quantile <= 1:
            raise ValueError(f"Expected `presence_quantile` in [0, 1], got {presence_quantile}.")
        self.discriminator, self.reverse, self.reverse_discriminator = discriminator, reverse, reverse_discriminator
        self.adversarial, self.identity, self.cycle = adversarial, identity, cycle
        self.pool, self.reverse_pool = pool or ImagePool(0), reverse_pool or ImagePool(0)
        self.judge_diseased = judge_diseased
        self.presence_quantile = presence_quantile
        self._shared: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] | None = None
        self.watch = CollapseWatch()
        parts = {"adversarial": adversarial, "identity": identity, "cycle": cycle, "pool_size": self.pool.size}
        self.settings |= {name: describe(part) for name, part in parts.items()}

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CoinGAN:
        """Build the method with its identity term on a plain generator: overfits one batch in seconds on a CPU."""
        words = {"ndf": 4, "num_layers_d": 1, "spatial_dims": spatial_dims, "in_channels": in_channels}
        return cls.from_preset(PlainGenerator.tiny(spatial_dims, in_channels, num_classes), **words)

    @classmethod
    @takes_arguments_of(CoinganSettings)
    def from_preset(
        cls,
        network: nn.Module,
        preset: str = "default",
        *,
        reverse: nn.Module | None = None,
        spatial_dims: int = 2,
        in_channels: int = 1,
        **words: Any,
    ) -> CoinGAN:
        """Build the whole method by words.

        Args:
            network: G, as above.
            preset: see the table of ``coingan_settings.py``: ``"paper"``, Eq. 10 as printed; ``"paper_cyclegan"``, the
                same with CycleGAN's cycle and identity; ``"cyclegan"`` and ``"identity"``, with a loss that teaches a
                weak generator more; ``"default"``, which is ``"identity"``.
            reverse: G', needed where there is a cycle.
            spatial_dims: of the images, 2 or 3.
            in_channels: C.
            words: fields of :class:`~monai_wsss.methods.coingan_settings.CoinganSettings` to set otherwise.

        Raises:
            ValueError: an unknown preset, or words that do not go together; TypeError: an unknown word.
        """
        settings = CoinganSettings.of_preset(preset, **words)
        settings.check_output(network)
        method = cls(network, reverse=reverse, **settings.parts(spatial_dims, in_channels))
        method.settings |= {"preset": preset, **settings.record(preset)}
        return method

    def part_of(self, player: str | None = None) -> nn.Module:
        """Give the networks of a player: G and G', or D and D'."""
        check_choice("player", player or "generator", self.players)
        parts = (self.discriminator, self.reverse_discriminator) if player == "discriminator" else None
        return nn.ModuleList(part for part in parts or (self.network, self.reverse) if part is not None)

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``adversarial``, and for the generator ``identity`` and ``cycle`` where they are on; weighted.

        The generator's call makes the converted images, and the discriminator's call on the same batch takes them over.
        """
        images = LabeledImages.from_batch(batch)
        ill = images.with_findings
        well = [place for place in range(len(images)) if place not in set(ill)]
        diseased, healthy = images.image[images.index(ill)], images.image[images.index(well)]
        if player == "discriminator":
            return self._discriminator_losses(batch["image"], diseased, healthy)
        self.watch.count(bool(ill and well))
        return self._generator_losses(batch["image"], diseased, healthy, progress)

    def _generator_losses(
        self, key: torch.Tensor, diseased: torch.Tensor, healthy: torch.Tensor, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """Give L_G by its terms; a term that lacks its images is 0."""
        graph, both = next(self.network.parameters()), min(len(diseased), len(healthy)) > 0
        reference = self.network.reference_of(healthy) if len(healthy) else None
        converted = self.network.translate(diseased, reference) if both else None
        made_ill = self.reverse.translate(healthy) if both and self.reverse is not None else None
        same = self.network.translate(healthy, reference) if self.identity is not None and len(healthy) else None

        def adversarial(loss: nn.Module) -> torch.Tensor:
            with frozen(self.part_of("discriminator")):
                own = loss(judged(self.discriminator, converted))
                return own if made_ill is None else own + loss(judged(self.reverse_discriminator, made_ill))

        def identity(loss: nn.Module) -> torch.Tensor:
            own = loss(float32_or_wider(same), healthy)
            if self.reverse is None or not len(diseased):
                return own
            return own + loss(float32_or_wider(self.reverse.translate(diseased)), diseased)

        def cycle(loss: nn.Module) -> torch.Tensor:
            back = loss(float32_or_wider(self.reverse.translate(converted)), diseased)
            return back + loss(float32_or_wider(self.network.translate(made_ill, reference)), healthy)

        losses = {"adversarial": self.adversarial(progress, graph, adversarial, when=both)}
        if self.identity is not None:
            losses["identity"] = self.identity(progress, graph, identity, when=same is not None)
        if self.cycle is not None:
            losses["cycle"] = self.cycle(progress, graph, cycle, when=both)
        self._shared = (key, *(None if one is None else one.detach() for one in (converted, made_ill)))
        if converted is not None:
            self.watch.measure(progress.epoch, self.network, (diseased, converted), (healthy, same), reference)
        return losses

    def _discriminator_losses(
        self, key: torch.Tensor, diseased: torch.Tensor, healthy: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Give L_D; it is 0 where one kind of image is missing."""
        shared, self._shared = self._shared, None
        converted, made_ill = (None, None) if shared is None or shared[0] is not key else shared[1:]
        if not min(len(diseased), len(healthy)):
            return {"adversarial": 0 * next(self.discriminator.parameters()).sum()}
        if converted is None:
            with torch.no_grad():
                converted = self.network.translate(diseased, self.network.reference_of(healthy))
                made_ill = None if self.reverse is None else self.reverse.translate(healthy)
        told = float32_or_wider(self.pool(converted))
        told = torch.cat((told, diseased)) if self.judge_diseased else told
        losses = {"adversarial": self._told_apart(self.discriminator, told, healthy)}
        if made_ill is not None:
            told = float32_or_wider(self.reverse_pool(made_ill))
            losses["reverse_adversarial"] = self._told_apart(self.reverse_discriminator, told, diseased)
        return losses

    def _told_apart(self, discriminator: nn.Module, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.adversarial.loss(judged(discriminator, made), judged(discriminator, real))
        return loss

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
