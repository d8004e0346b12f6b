# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One classifier per modality, with weights of its own, as one deployable network: G groups of K activation maps.

Patel & Dolz, "Weakly supervised segmentation with cross-modality equivariant constraints" (CMER), train such networks
side by side. At test time each gives its own map, and :class:`monai_wsss.refinement.MaskRule` fuses the maps. The
networks share nothing, so a study that lacks a modality can be segmented by the networks of those it has.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import DataError, check_choice
from monai_wsss.cams.normalize import zscore_images
from monai_wsss.networks.activation import ActivationNetwork
from monai_wsss.networks.aspp_resnet import ASPPResNet
from monai_wsss.networks.cam_encoder import CAMEncoder
from monai_wsss.networks.cam_unet import CAMUNet
from monai_wsss.networks.feature_fusion import fused_cam_network
from monai_wsss.refinement import MaskRule

__all__ = ["ModalityNetworks", "networks_by_modality"]


_NAME_BYTES = 128


class ModalityNetworks(ActivationNetwork):
    """G networks side by side, network g on channel g of the image: ``(B, G, *S) -> (B, G*K, *S)``.

    Members with a map of the background (``background_map``) give ``(B, G*(K+1), *S)``, it first in each group.

    Args:
        members: an activation network of one input channel for each modality; they agree in spatial dimensions,
            classes and pooling, and share no weights.
        modalities: the names of the modalities, in the order of ``members``; None for ``"0"``, ``"1"``, …
        present: the names of the input's channels, in their order, where they are not ``modalities``. Channels find
            their network by name, absent modalities take no part, and ``groups`` counts those present. Weights are
            stored alike whatever is present, so that a network of four modalities can be loaded for two.
        standardize: z-score each image and modality first (the paper's step for slices). It is done in the network, so
            that training, the transformed second view and inference do the same; not for windows of a larger volume.

    Attributes:
        modalities: the names, a tuple.
        present_modalities: the names of the groups in the output, in the order of ``modalities``.
        reliable: (G,) bool buffer: which modalities' maps are fused. It is true for all until training has found some
            weak.

    Raises:
        ValueError: no member, members that disagree or share weights, names that do not fit, or an image of another
            number of channels.

    Example:
        >>> import torch
        >>> members = [CAMEncoder.tiny() for _ in range(3)]
        >>> network = ModalityNetworks(members, ("T1", "T1c", "FLAIR"))
        >>> network(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
        >>> ModalityNetworks(members, ("T1", "T1c", "FLAIR"), present=("FLAIR",))(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    reliable: torch.Tensor
    modality_names: torch.Tensor
    channels: list[int]

    def __init__(
        self,
        members: Sequence[ActivationNetwork],
        modalities: Sequence[str] | None = None,
        *,
        present: Sequence[str] | None = None,
        standardize: bool = False,
    ) -> None:
        if not members:
            raise ValueError("Expected `members` to hold at least one network, got none.")
        first = members[0]
        for name in ("spatial_dims", "num_classes", "pooling", "topk_share", "lse_sharpness", "background_map"):
            values = {getattr(member, name) for member in members}
            if len(values) > 1:
                raise ValueError(f"Expected `members` that agree in {name}, got {sorted(values)}.")
        if len({id(member) for member in members}) < len(members):
            raise ValueError("Expected `members` with weights of their own, got the same network twice.")
        if any(member.groups != 1 for member in members):
            raise ValueError("Expected `members` of one modality each, got networks of several groups.")
        names = tuple(map(str, range(len(members)))) if modalities is None else tuple(modalities)
        if len(set(names)) != len(members) or len(names) != len(members):
            raise ValueError(f"Expected {len(members)} different `modalities`, one per member, got {names}.")
        channels = names if present is None else tuple(present)
        if not channels or len(set(channels)) < len(channels) or not set(channels) <= set(names):
            raise ValueError(f"Expected `present` to name some of the modalities {names}, each once, got {channels}.")
        super().__init__(
            first.spatial_dims,
            first.num_classes,
            groups=len(members),
            pooling=first.pooling,
            topk_share=first.topk_share,
            lse_sharpness=first.lse_sharpness,
            background_map=first.background_map,
        )
        # The buffers of the base stay those of all modalities; the output has the groups that are present.
        self.groups = len(channels)
        self.members = nn.ModuleList(members)
        self.modalities = names
        self.present_modalities = tuple(name for name in names if name in channels)
        self.standardize = standardize
        # In the weights, so that they are not loaded into networks of other modalities or in another order.
        self.register_buffer("modality_names", torch.tensor(list(_encoded(names)), dtype=torch.uint8))
        self.register_buffer("reliable", torch.ones(len(members), dtype=torch.bool))
        # The channel of each member in the image, -1 for members that take no part.
        self.channels = [channels.index(name) if name in channels else -1 for name in names]

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "ModalityNetworks":
        """Build an encoder of width 4 per channel, which trains in seconds on a CPU."""
        return cls([CAMEncoder.tiny(spatial_dims, 1, num_classes) for _ in range(in_channels)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw maps at the input's size, group by group in the order of ``modalities``."""
        if image.shape[1] != self.groups:
            raise ValueError(
                f"Expected an image of {self.groups} channels, one per modality, got {image.shape[1]}: "
                "name the modalities at hand as `present`."
            )
        if self.standardize:
            image = zscore_images(image)
        maps: list[torch.Tensor] = []
        for g, member in enumerate(self.members):  # TorchScript zips no list with the networks
            channel = self.channels[g]
            if channel >= 0:
                maps.append(member(image[:, channel : channel + 1]))
        return torch.cat(maps, dim=1)

    @torch.jit.unused
    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *arguments: Any) -> None:
        """Load as torch does, after the names of the modalities were compared.

        Raises:
            DataError: the weights are of other modalities, or of the same in another order.
        """
        stored = state_dict.get(f"{prefix}modality_names")
        if stored is not None and stored.is_floating_point():  # a mean over the weights of several sites
            stored = state_dict[f"{prefix}modality_names"] = stored.round().to(torch.uint8)
        if stored is not None and bytes(stored.tolist()) != _encoded(self.modalities):
            names = bytes(stored.tolist()).rstrip().decode(errors="replace")
            raise DataError(
                f"The weights are of the modalities {names}, the network was built for {','.join(self.modalities)}: "
                "give `modalities` as trained, and name those at hand, in the order of the channels, as `present`."
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @torch.jit.unused
    def parts(self, image: torch.Tensor) -> list[tuple[ActivationNetwork, torch.Tensor]]:
        """List each network that takes part with its input (B, 1, *S), in the order of ``modalities``."""
        if self.standardize:
            image = zscore_images(image)
        return [
            (member, image[:, channel : channel + 1])  # type: ignore[misc]
            for member, channel in zip(self.members, self.channels, strict=True)
            if channel >= 0
        ]

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule of the modalities present; unreliable ones count, with a warning, where no reliable one is."""
        present = torch.tensor([channel >= 0 for channel in self.channels], device=self.reliable.device)
        reliable = self.reliable[present]
        if not bool(reliable.any()):
            names = ", ".join(self.present_modalities)
            warnings.warn(f"Training found {names} unreliable, and no other modality is present.", stacklevel=2)
            reliable = ~reliable
        rule = super().mask_rule()
        channels = present.repeat_interleave(self.num_classes)
        changes: dict[str, Any] = {"reliable": reliable}
        for name in ("negative_reference", "negative_quantile", "filled", "presence_level"):
            value = getattr(rule, name)
            changes[name] = value[channels] if isinstance(value, torch.Tensor) and value.ndim else value
        return replace(rule, **changes)


def _encoded(names: Sequence[str]) -> bytes:
    """Encode names as bytes of one length, so that they are compared before sizes could mismatch."""
    text = ",".join(names).encode()
    if len(text) > _NAME_BYTES:
        raise ValueError(f"Expected names of `modalities` of at most {_NAME_BYTES} bytes together, got {len(text)}.")
    return text.ljust(_NAME_BYTES)


def networks_by_modality(
    modalities: Sequence[str],
    *,
    backbone: str = "encoder",
    encoder: Callable[[], nn.Module] | None = None,
    spatial_dims: int = 2,
    num_classes: int = 1,
    width: int | None = None,
    stride: int = 4,
    pooling: str = "max",
    topk_share: float = 0.1,
    present: Sequence[str] | None = None,
    standardize: bool = False,
    background_map: bool = False,
) -> ModalityNetworks:
    """Build the same kind of network for each modality; for configurations, which have no loops.

    Args:
        modalities: their names, one per network.
        backbone: ``"encoder"`` (:class:`~monai_wsss.networks.CAMEncoder`), ``"unet"``
            (:class:`~monai_wsss.networks.CAMUNet`, the paper's) or ``"aspp_resnet"``
            (:class:`~monai_wsss.networks.ASPPResNet`, the paper's Table IV).
        encoder: in the place of ``backbone``, makes an encoder of one channel at each call, whose fused maps have the
            CAM head (:func:`~monai_wsss.networks.fused_cam_network`); in a configuration a block with
            ``"_mode_": "callable"``.
        spatial_dims: 2 or 3; an ``encoder`` has its own.
        num_classes: K, the foreground classes.
        width: channels of the first block, or of the fused maps; None for the network's own default.
        stride: of :class:`~monai_wsss.networks.CAMEncoder`, or of the fused maps.
        pooling: see :class:`~monai_wsss.networks.ActivationNetwork`; the paper's is ``"average"``.
        topk_share: see there.
        present: see :class:`ModalityNetworks`.
        standardize: see there; the paper's way.
        background_map: see :class:`~monai_wsss.networks.ActivationNetwork`; the paper's softmax over background and
            tumor. ``backbone`` has it, ``encoder`` has not.

    Raises:
        ValueError: an unknown backbone, names that do not fit, an ``encoder`` with ``background_map``, or one that
            gives the same network twice.

    Example:
        >>> networks_by_modality(["T1", "FLAIR"], width=4).groups
        2
        >>> from monai_wsss.networks import EfficientNetLite
        >>> networks_by_modality(["T1", "FLAIR"], encoder=EfficientNetLite.tiny, width=8).groups
        2
    """
    backbones: dict[str, Callable[..., ActivationNetwork]] = {
        "encoder": CAMEncoder,
        "unet": CAMUNet,
        "aspp_resnet": ASPPResNet,
    }
    check_choice("backbone", backbone, tuple(backbones))
    options: dict[str, Any] = {"pooling": pooling, "topk_share": topk_share}
    options |= {} if width is None else {"width": width}
    options |= {"stride": stride} if backbone == "encoder" or encoder is not None else {}
    members: list[ActivationNetwork]
    if encoder is None:
        options |= {"background_map": background_map}
        members = [backbones[backbone](spatial_dims, 1, num_classes, **options) for _ in modalities]
    elif background_map:
        raise ValueError("Expected `background_map` with a `backbone`, not with an `encoder`, whose head has none.")
    else:
        encoders = [encoder() for _ in modalities]
        if len({id(one) for one in encoders}) < len(encoders):
            raise ValueError("Expected `encoder` to make a new encoder at each call, got the same one twice.")
        members = [fused_cam_network(one, num_classes, **options) for one in encoders]
    return ModalityNetworks(members, modalities, present=present, standardize=standardize)
