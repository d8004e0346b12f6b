# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Several networks of one shape as one deployable network: the mean of their raw maps.

Class activation maps differ much between trainings. Averaging the raw maps before any normalization removes the bad
ones and costs nothing but the forward passes. Members are trained side by side on the same batches, each by its own
loss, and never see one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_wsss._pictures import XY
from monai_wsss.networks.activation import ActivationNetwork
from monai_wsss.networks.cam_encoder import CAMEncoder
from monai_wsss.networks.reading_record import record_reading, recorded_reading

__all__ = ["MapEnsemble"]


class MapEnsemble(ActivationNetwork):
    """Mean of the members' raw activation maps: one plain tensor out, members trained independently.

    Args:
        members: activation networks that agree in spatial dimensions, classes, groups, pooling and the order in which
            they get images.  What all of them recorded of their training images, the ensemble records too.

    Raises:
        ValueError: no member, or members that disagree.

    Example:
        >>> import torch
        >>> network = MapEnsemble([CAMEncoder.tiny() for _ in range(3)]).eval()
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
        >>> network.member_maps(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([3, 2, 1, 16, 16])
    """

    def __init__(self, members: Sequence[ActivationNetwork]) -> None:
        if not members:
            raise ValueError("Expected `members` to hold at least one network, got none.")
        first = members[0]
        for name in ("spatial_dims", "num_classes", "groups", "pooling", "topk_share", "lse_sharpness"):
            values = {getattr(member, name) for member in members}
            if len(values) > 1:
                raise ValueError(f"Expected `members` that agree in {name}, got {sorted(values)}.")
        super().__init__(
            first.spatial_dims,
            first.num_classes,
            groups=first.groups,
            pooling=first.pooling,
            topk_share=first.topk_share,
            lse_sharpness=first.lse_sharpness,
        )
        self.members = nn.ModuleList(members)
        records = [recorded_reading(member) for member in members]
        orders = {record["order"] or XY for record in records}
        if len(orders) > 1:
            raise ValueError(f"Expected `members` that get images in the same order, got {sorted(orders)}.")
        if records[0]["order"] is not None and all(record == records[0] for record in records):
            record_reading(self, records[0])

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> MapEnsemble:
        """Build two members of width 4, which train in seconds on a CPU."""
        return cls([CAMEncoder.tiny(spatial_dims, in_channels, num_classes) for _ in range(2)])

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Average the members' maps at their own resolution: ``(B, C, *S) -> (B, G*K, *s)``."""
        return torch.stack([member.class_maps(image) for member in self.members]).mean(0)  # type: ignore[operator]

    @torch.jit.unused
    def member_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give each member's maps at the input's size: ``(B, C, *S) -> (M, B, G*K, *S)``."""
        return torch.stack([member(image) for member in self.members])
