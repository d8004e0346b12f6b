# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Base of methods on a two-branch network: passes that make labels, the healthy level of the seeds, learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_label, float32_or_wider
from monai_wsss._resize import resize_linear
from monai_wsss.inferers import MultiScaleSeeds
from monai_wsss.methods.base import WSSSMethod, grouped_parameters
from monai_wsss.networks import BranchOutputs, TwoBranchNetwork
from monai_wsss.networks.encoder_facts import new_layers_in
from monai_wsss.refinement import LabeledImages

__all__ = ["TwoBranchMethod", "classification_loss"]


_ENOUGH = 20  # images with a finding, to tell that the segmentation marks hardly any


class TwoBranchMethod(WSSSMethod):
    """Base of methods whose network has a classification and a segmentation branch.

    Attributes:
        trains_norms: whether :meth:`parameter_groups` trains the normalizations of the encoder as its other layers.

    Args:
        network: the two branches.
        seeds: makes seeds and segmentation over scales, without gradient.
        radii: largest offset of the affinity's pairs, in tokens, for each part of the method that uses the affinity;
            None for parts that do not.
        train_mode_labels: make labels in training mode: with dropout, and with updates of the batch statistics.

    Raises:
        ValueError: the method needs an affinity, and the network has none; or its parts ask for several radii.
    """

    network: TwoBranchNetwork
    makes_views: ClassVar[bool] = True
    trains_norms: ClassVar[bool] = False

    def __init__(
        self,
        network: TwoBranchNetwork,
        *,
        seeds: MultiScaleSeeds,
        radii: Sequence[int | None] = (),
        train_mode_labels: bool = False,
    ) -> None:
        super().__init__(network)
        asked = sorted({radius for radius in radii if radius is not None})
        if len(asked) > 1:
            raise ValueError(f"Expected one radius for all parts that use the affinity, got {asked}.")
        if network.attn_proj is None and asked:
            raise ValueError(
                "Expected an encoder with attention for the affinity: wrap it in AttentionPyramid, or train without "
                "L_aff (`affinity_weight` 0) and without its labels (`propagation` other than 'affinity')."
            )
        self.seeds = seeds
        self.radius = asked[0] if asked else None
        self.train_mode_labels = train_mode_labels
        self._marked: torch.Tensor | None = None

    def parameter_groups(
        self, learning_rate: float, *, encoder_learning_rate: float | None = None, player: str | None = None
    ) -> list[dict[str, Any]]:
        """Split the parameters by rate: the encoder's at the given rate, others at 10 times.

        The encoder's norms are frozen at rate 0 (AFA, BMP), or have the encoder's rate (CoSA).  The layers that
        :class:`~monai_wsss.networks.AttentionPyramid` or :class:`~monai_wsss.networks.TwoFusedMaps` puts around an
        encoder are among the others.

        Args:
            learning_rate: rate of the encoder; 6e-5 in the papers.
            encoder_learning_rate: the plain division instead: the encoder, with its norms, has this rate, all other
                layers have ``learning_rate``.
            player: the one player, or None.

        Returns:
            At most three groups for ``torch.optim``, without frozen parameters.
        """
        if encoder_learning_rate is not None:
            return super().parameter_groups(learning_rate, encoder_learning_rate=encoder_learning_rate, player=player)
        network: Any = self.get_submodule(player or self.players[0])
        norms = {
            f"encoder.{path}.{name}"
            for path, module in network.encoder.named_modules()
            if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._NormBase)) and not self.trains_norms
            for name, _ in module.named_parameters(recurse=False)
        }

        new = new_layers_in(network)

        def options(name: str) -> dict[str, Any]:
            if name in norms:
                return {"lr": 0.0, "weight_decay": 0.0}
            loaded = name.startswith("encoder.") and not name.startswith(new)
            return {"lr": learning_rate * (1 if loaded else 10)}

        return grouped_parameters(network, options)

    @torch.no_grad()
    def measure_negative_reference(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Set the healthy level of the seeds from the training images; the network's weights do not hold it.

        Nothing happens for seeds that need no healthy level.

        Args:
            train_data_loader: batches with ``image`` and ``label``.
            device: of the network.
        """
        levels = self.seeds.healthy_levels
        if not levels:
            return

        def seeds(image: torch.Tensor) -> torch.Tensor:
            outputs = self.network.branches(image, upsample=False)
            return torch.cat([getattr(outputs, name) for name in levels], dim=1)

        channels = len(levels) * self.network.num_classes
        responses = self._negative_responses(seeds, channels, train_data_loader, device)
        for scale, level in zip(levels.values(), responses.reference().chunk(len(levels)), strict=True):
            scale.set_level(level)

    @property
    def label_maker(self) -> Any:
        """Give what makes the labels of the classification branch, with a method ``mask``."""
        raise NotImplementedError(f"{type(self).__name__} must name what makes its labels.")

    @torch.no_grad()
    def class_branch_mask(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Give the classification branch's own masks: its labels with nothing ignored.

        Args:
            image: (B, C, *S).
            label: (B, K), 0/1: given, or predicted.

        Returns:
            uint8 (B, 1, *S), 0..K.

        Raises:
            ValueError: labels of another shape or with other values.
        """
        check_label(label, len(image), self.network.num_classes)
        images = LabeledImages(image, label)
        seeds, segmentation = self.seeds_and_segmentation(images)
        return self.label_maker.mask(images, seeds, segmentation)[:, None].to(torch.uint8)

    @torch.no_grad()
    def observe_segmentation(self, segmentation: torch.Tensor, images: LabeledImages, *, when: bool = True) -> None:
        """Record in how many images with a finding the segmentation marks a pixel of any class, for the warning.

        Args:
            segmentation: logits (B, K + 1, *S), of training.
            images: the batch.
            when: False where nothing teaches it yet.
        """
        if not when:
            return
        marks = (segmentation[:, 1:].amax(dim=1) > segmentation[:, 0]).flatten(1).any(dim=1)
        found = images.found.to(marks)
        now = torch.stack(((marks & found).sum(), found.sum()))
        self._marked = now if self._marked is None else self._marked + now

    def collapse_warnings(self) -> list[str]:
        """Add to those of every method that a segmentation that is taught marks hardly anything."""
        sentences = super().collapse_warnings()
        marked, count = (0, 0) if self._marked is None else self._marked.tolist()
        self._marked = None
        if count >= _ENOUGH and marked < 0.1 * count:
            sentences.append(
                f"the segmentation marks nothing in {1 - marked / count:.0%} of the images with a finding, so masks "
                "may be empty: train longer, or with another seed or decoder."
            )
        return sentences

    def seeds_and_segmentation(self, images: LabeledImages) -> tuple[torch.Tensor, torch.Tensor]:
        """Give C' and S' of images, computed in the mode for labels."""
        with self.label_mode():
            seeds, *_, segmentation = self.seeds(self.network, images)
        return seeds, segmentation

    @torch.no_grad()
    def follow_healthy_level(self, images: LabeledImages) -> None:
        """Update the healthy level of the seeds, if they have one, by the images of a batch that lack a class.

        The pass runs in the mode for labels: with the statistics of the batch the responses would differ.
        """
        levels = self.seeds.healthy_levels
        if not levels or not self.training:
            return
        some, outputs = images.of(images.without_some), None
        if len(some):
            with self.label_mode():
                outputs = self.network.branches(some.image, upsample=False)
        for name, scale in levels.items():
            # Also where no image lacks a class: the other processes of a run wait for this one.
            scale.follow(None if outputs is None else self.at_size(getattr(outputs, name), some), some)

    @contextmanager
    def label_mode(self) -> Iterator[None]:
        """Make passes for labels in evaluation mode, unless ``train_mode_labels``."""
        training = self.network.training
        self.network.train(training and self.train_mode_labels)
        try:
            yield
        finally:
            self.network.train(training)

    def branches(self, image: torch.Tensor, *, affinity: bool) -> BranchOutputs:
        """Give the network's branches at the sizes of its levels."""
        return self.network.branches(image, affinity=affinity, radius=self.radius, upsample=False)

    def pairs(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        """Give the affinity of images at the largest scale, for AFA's labels, and the grid of its tokens."""
        large = resize_linear(image, [int(side * max(self.seeds.scales)) for side in image.shape[2:]])
        with self.label_mode():
            outputs = self.branches(large, affinity=True)
        assert outputs.affinity is not None
        return outputs.affinity, outputs.seeds.shape[2:]

    def at_size(self, maps: torch.Tensor, images: LabeledImages) -> torch.Tensor:
        """Bring maps to the images' size, in float32 or wider."""
        return resize_linear(float32_or_wider(maps), images.image.shape[2:])


def classification_loss(logits: Any, label: torch.Tensor) -> torch.Tensor:
    """Give L_cls, the multi-label soft-margin loss of image-level logits (B, K), in float32 or wider."""
    return F.multilabel_soft_margin_loss(float32_or_wider(logits), label)
