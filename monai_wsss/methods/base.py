# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The interface of methods: a method maps a batch to named losses, and owns what only training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import check_image, check_label, checked_once, float32_or_wider
from monai_wsss._processes import broadcast_buffers, gather_objects
from monai_wsss.engines.schedules import Progress
from monai_wsss.networks import ActivationNetwork
from monai_wsss.networks.encoder_facts import new_layers_in
from monai_wsss.refinement import NegativeResponses

__all__ = ["WSSSMethod", "describe"]


class WSSSMethod(nn.Module):
    """Base of all methods: receives built parts, gives named and weighted scalar losses.

    Args:
        network: the deployable part.

    Attributes:
        players: names of the parts that are optimized in turn, each with its own optimizer.
        uses_masks: whether training reads pixel masks; true only for upper bounds.
        learns_presence: whether the labels teach which images have a class, for which it needs images with and without.
        makes_views: whether training makes other views of the images itself, for which it needs the images and not
            features that were computed before.
        settings: the settings that the method was built with, for the run's record: values that JSON can hold.
    """

    players: ClassVar[tuple[str, ...]] = ("network",)
    uses_masks: ClassVar[bool] = False
    learns_presence: ClassVar[bool] = True
    makes_views: ClassVar[bool] = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.settings: dict[str, Any] = {"method": type(self).__name__, **getattr(network, "settings", {})}
        # Share of foreground in the maps of positive images since the epoch began: (sum, count), on their device.
        self._foreground_share: torch.Tensor | None = None

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give named scalars, already weighted, whose sum the trainer minimizes for this player."""
        raise NotImplementedError(f"{type(self).__name__} must give its losses.")

    def forward(self, batch: dict[str, Any], progress: Progress, player: str = "network") -> dict[str, torch.Tensor]:
        """Check the batch and give its :meth:`losses`; ``DistributedDataParallel`` wraps a method by this.

        The trainer leaves labels on the CPU, where they are checked without waiting for a GPU.

        Raises:
            ValueError: a mask in the batch of a weakly supervised method, encoded images for one that makes views of
                them, an image or label of another shape, an empty batch, images without pixels, in half precision
                on a CPU, or with other channels than the network takes.
        """
        if "mask" in batch and not self.uses_masks:
            raise ValueError(
                f"{type(self).__name__} learns from image-level labels alone, but its batch holds `mask`: "
                "read the training split without masks=True."
            )
        if "encoded" in batch and self.makes_views:
            raise ValueError(
                f"{type(self).__name__} makes views of the images in each step, but its batch holds their encoded "
                "features: leave `encode` of the dataset out."
            )
        check_image(batch["image"])
        check_label(batch["label"], batch["image"].shape[0], self._num_classes(batch["label"]))
        with checked_once():
            return self.losses(batch, progress, player)

    def _num_classes(self, label: torch.Tensor) -> int:
        """Give K of the network, or of the label where the network is any segmenter without ``num_classes``."""
        return int(getattr(self.network, "num_classes", label.shape[-1]))

    def part_of(self, player: str | None = None) -> nn.Module:
        """Give the part that one player optimizes: the submodule of its name; None: of the first."""
        return self.get_submodule(player or self.players[0])

    def player_parameters(self, player: str | None = None) -> Iterator[nn.Parameter]:
        """Give the parameters of one player that are trained, for its optimizer and for clipping; None: the first."""
        return (parameter for parameter in self.part_of(player).parameters() if parameter.requires_grad)

    def parameter_groups(
        self, learning_rate: float, *, encoder_learning_rate: float | None = None, player: str | None = None
    ) -> list[dict[str, Any]]:
        """Split the trained parameters of a player by their rate.

        Args:
            learning_rate: of all parameters but the encoder's.
            encoder_learning_rate: of the encoder's parameters; None: the same.  They are those with ``encoder`` on
                their path, or ``backbone`` where the network has no encoder; not the layers that
                :class:`~monai_wsss.networks.AttentionPyramid` and :class:`~monai_wsss.networks.TwoFusedMaps` put
                around one, which are new.
            player: whose parameters; None: those of the first player.

        Returns:
            Groups for ``torch.optim``, in the order of the network, without frozen parameters and empty groups.

        Raises:
            ValueError: a rate for the encoder of a network without one.

        Example:
            >>> from monai_wsss.methods import ClassActivationMapping
            >>> groups = ClassActivationMapping.tiny().parameter_groups(2e-3, encoder_learning_rate=3e-4)
            >>> [group["lr"] for group in groups]
            [0.0003, 0.002]
        """
        network = self.part_of(player)
        if encoder_learning_rate is None:
            return grouped_parameters(network, lambda name: {"lr": learning_rate})
        part, new = encoder_part(network), new_layers_in(network)

        def options(name: str) -> dict[str, Any]:
            loaded = part in name.split(".") and not name.startswith(new)
            return {"lr": encoder_learning_rate if loaded else learning_rate}

        return grouped_parameters(network, options)

    def steps_of(self, player: str) -> int:
        """Tell how many steps a player makes on a batch before it is the next one's turn; one by default."""
        return 1

    def monitors(self, player: str) -> dict[str, torch.Tensor]:
        """Give scalars to log beside the :meth:`losses` that this player has just had; none by default.

        Nothing minimizes them, and they may have any value.
        """
        return {}

    def after_step(self, progress: Progress) -> None:
        """Do what follows a step of all players, e.g. average weights; nothing by default.

        The trainer calls it once per iteration in which the optimizer of every player stepped: not while gradients
        accumulate, and not where mixed precision skipped a step.  Update what has to see every batch in :meth:`losses`.
        """

    @torch.no_grad()
    def finalize(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Measure the network's healthy level (``negative_reference``, ``negative_quantile``, ``filled``).

        It looks at the training images without a class, and reads image-level labels only.  A network that gives
        segmentations has no such buffers and stays as it is.
        """
        if not isinstance(self.network, ActivationNetwork):
            return
        channels = self.network.groups * self.network.num_classes
        network = self.network
        responses = self._negative_responses(
            lambda image: network.of_classes(network(image)), channels, train_data_loader, device
        )
        self.network.set_healthy_level(responses.reference(), responses.quantile())

    def _negative_responses(
        self,
        maps_of: Callable[[torch.Tensor], torch.Tensor],
        channels: int,
        train_data_loader: Iterable,
        device: torch.device | str,
    ) -> NegativeResponses:
        """Collect, from all processes, the responses of the raw maps to training images without the class."""
        was_training = self.network.training
        self.network.eval()
        # Batch statistics differ between the processes after a step: all take those of the first.
        broadcast_buffers(self.network.buffers())
        responses = NegativeResponses(channels)
        for batch in train_data_loader:
            label = torch.as_tensor(batch["label"])
            check_label(label, len(label), self._num_classes(label))
            # A batch whose images hold every class has no negative image.
            if bool((label == 0).any()):
                responses.update(float32_or_wider(maps_of(batch["image"].to(device))), label.to(device))
        own, *others = gather_objects(responses.values)
        responses.values = own
        for values in others:
            responses.merge(values)
        self.network.train(was_training)
        return responses

    @torch.no_grad()
    def observe(self, maps: torch.Tensor, label: torch.Tensor) -> None:
        """Record which share of positive images the maps call foreground (raw logit above 0), for the collapse warning.

        Args:
            maps: raw class maps (B, G K, *S).
            label: (B, K), 0/1.
        """
        share = (maps > 0).flatten(2).float().mean(2)
        positive = label.to(share).repeat(1, share.shape[1] // label.shape[1])
        now = torch.stack(((share * positive).sum(), positive.sum()))
        self._foreground_share = now if self._foreground_share is None else self._foreground_share + now

    def collapse_warnings(self) -> list[str]:
        """Warn if, since the last call, maps of positive images were almost all or no foreground; else give no text."""
        if self._foreground_share is None:
            return []
        total, count = self._foreground_share.tolist()
        self._foreground_share = None
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


def encoder_part(network: nn.Module) -> str:
    """Name what lies on the path of the encoder's parameters: ``encoder``, or ``backbone`` where there is none.

    Raises:
        ValueError: the network has neither.
    """
    parts = {part for name, _ in network.named_parameters() for part in name.split(".")}
    for part in ("encoder", "backbone"):
        if part in parts:
            return part
    raise ValueError(
        f"Expected a network with a part `encoder` or `backbone` for `encoder_learning_rate`, {type(network).__name__} "
        "has neither."
    )


def grouped_parameters(network: nn.Module, options: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the trained parameters of a network into groups for ``torch.optim``, by the options of each.

    Args:
        network: the network.
        options: (name of a parameter) to the options of its group, such as ``{"lr": 1e-3}``.

    Returns:
        A group for each different value of ``options``, in the order in which they come first; the parameters of a
        group stand in the order of the network: an optimizer's state finds its parameters by their order.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            told = options(name)
            groups.setdefault(repr(sorted(told.items())), {"params": [], **told})["params"].append(parameter)
    return list(groups.values())


def describe(part: Any) -> Any:
    """Give the public settings of a part of a method as values that JSON can hold, for the run's record.

    Example:
        >>> from monai_wsss.engines import Term
        >>> from monai_wsss.losses import EquivarianceLoss
        >>> describe(Term(EquivarianceLoss(), 0.5))["loss"]
        {'kind': 'EquivarianceLoss', 'reduction': 'mean', 'mask': 'label', 'validate_args': True}
    """
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, (list, tuple)):
        return [describe(each) for each in part]
    told = {name: value for name, value in vars(part).items() if not name.startswith("_") and name != "training"}
    told |= dict(part.named_children()) if isinstance(part, nn.Module) else {}
    return {"kind": type(part).__name__, **{name: describe(value) for name, value in told.items()}}
