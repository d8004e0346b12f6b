# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a method is to the trainer: a value that maps a batch to named losses, and owns what only training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import check_label, check_shape, float32_or_wider
from monai_wsss.engines.schedules import Progress
from monai_wsss.networks import ActivationNetwork
from monai_wsss.refinement import NegativeResponses

__all__ = ["WSSSMethod"]


class WSSSMethod(nn.Module):
    """Base of all methods: receives built parts, gives named and weighted scalar losses.

    Args:
        network: the deployable part.

    Attributes:
        players: names of the parties that are optimized in turn, each with its own optimizer.
        uses_masks: whether training reads pixel masks; true for upper bounds alone.
    """

    players: ClassVar[tuple[str, ...]] = ("network",)
    uses_masks: ClassVar[bool] = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Share of foreground in the maps of positive images since the epoch began: (sum, count).
        self._foreground_share: list[float] = [0.0, 0.0]

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Named scalars, already weighted, whose sum the trainer minimizes for this player."""
        raise NotImplementedError(f"{type(self).__name__} must give its losses.")

    def forward(self, batch: dict[str, Any], progress: Progress, player: str = "network") -> dict[str, torch.Tensor]:
        """:meth:`losses`, after the batch was checked; so that ``DistributedDataParallel`` wraps the method.

        Raises:
            ValueError: a mask in the batch of a weakly supervised method, or an image or label of another shape.
        """
        if "mask" in batch and not self.uses_masks:
            raise ValueError(
                f"{type(self).__name__} learns from image-level labels alone, but its batch holds `mask`: "
                "read the training split without masks=True."
            )
        check_shape("image", batch["image"], "(B, C, *S)")
        check_label(batch["label"], batch["image"].shape[0], self._num_classes(batch["label"]))
        return self.losses(batch, progress, player)

    def _num_classes(self, label: torch.Tensor) -> int:
        """K of the network; of the label where the network is anybody's segmenter and does not say."""
        return int(getattr(self.network, "num_classes", label.shape[-1]))

    def player_parameters(self, player: str) -> Iterator[nn.Parameter]:
        """The parameters of one party, for its optimizer and for clipping."""
        return self.get_submodule(player).parameters()

    def after_step(self, progress: Progress) -> None:
        """What follows a step of all players: moving averages, queues. Nothing by default."""

    @torch.no_grad()
    def finalize(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Fill the network's ``negative_reference`` and ``negative_quantile`` from training-negative images.

        Reads image-level labels only.  A network that gives segmentations has neither and is left alone.
        """
        if not isinstance(self.network, ActivationNetwork):
            return
        channels = self.network.groups * self.network.num_classes
        responses = self._negative_responses(self.network, channels, train_data_loader, device)
        self.network.set_healthy_level(responses.reference(), responses.quantile())

    def _negative_responses(
        self,
        maps_of: Callable[[torch.Tensor], torch.Tensor],
        channels: int,
        train_data_loader: Iterable,
        device: torch.device | str,
    ) -> NegativeResponses:
        """What the network's raw maps say of training images without the class, of all processes."""
        was_training = self.network.training
        self.network.eval()
        _broadcast_buffers(self.network)
        responses = NegativeResponses(channels)
        for batch in train_data_loader:
            label = torch.as_tensor(batch["label"])
            check_label(label, len(label), self._num_classes(label))
            # Whole batches of positives for every class have nothing to tell.
            if bool((label == 0).any()):
                responses.update(float32_or_wider(maps_of(batch["image"].to(device))), label.to(device))
        _gather(responses)
        self.network.train(was_training)
        return responses

    def observe(self, maps: torch.Tensor, label: torch.Tensor) -> None:
        """Note how much of positive images the maps call foreground (raw logit above 0), for the collapse warning."""
        share = (maps.detach() > 0).flatten(2).float().mean(2)
        positive = label.repeat(1, share.shape[1] // label.shape[1]) > 0
        self._foreground_share[0] += float(share[positive].sum())
        self._foreground_share[1] += float(positive.sum())

    def collapse_warnings(self) -> list[str]:
        """Sentences about maps that are all or nothing on positive images since the last call; empty when healthy."""
        total, count = self._foreground_share
        self._foreground_share = [0.0, 0.0]
        if count == 0:
            return []
        share = total / count
        if share < 1e-3:
            return [
                f"the maps of positive images are almost all background ({share:.2%} foreground): "
                "train longer, or check that labels and images belong together."
            ]
        if share > 0.95:
            return [
                f"the maps of positive images are almost all foreground ({share:.2%}): "
                "use max-like pooling, a lower learning rate, or more negative images."
            ]
        return []


def _broadcast_buffers(network: nn.Module) -> None:
    """Batch-norm statistics differ between the processes after a step: all measure with those of the first."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def mean_of_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean over the processes of a distributed run, in place, of those that have a value and not NaN."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        known = (~values.isnan()).to(values.dtype)
        values.nan_to_num_(nan=0.0)
        for part in (values, known):
            torch.distributed.all_reduce(part)
        values /= known  # 0 / 0 where no process has one
    return values


def _gather(responses: NegativeResponses) -> None:
    """Give every process of a distributed run the responses of all."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, responses.values)
        for values in gathered[:rank] + gathered[rank + 1 :]:
            responses.merge(values)
