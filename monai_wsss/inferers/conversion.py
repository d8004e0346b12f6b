# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a network that converts images made of one, beside its mask: the converted image and the heat map."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn

from monai_wsss._checks import plain_tensor
from monai_wsss.inferers.volume import VolumeInferer
from monai_wsss.refinement import told_rule

__all__ = ["AddConversiond"]


class AddConversiond(MapTransform):
    """Add ``converted``, G(I), and ``heat``, the raw map |I - G(I)|, to an item whose map was inferred.

    Put it before :class:`~monai_wsss.refinement.ToMaskd`, which replaces the raw map by a mask.  The image is converted
    once more, as the inferer shows it to the network: on its grid, slice by slice in a volume, over the same views.
    The intensities are the network's own, in [-1, 1] as a rule, and those of the item's normalized image.  A map that
    tells of another network, as in a server which loads the weights into a copy, is left as it is: what this network
    makes of the image has nothing to do with it.

    Args:
        keys: the raw map (G, *S) of the network; of several groups ``heat`` is the largest.
        network: has ``translate(image)``, such as :class:`~monai_wsss.networks.CycleGenerator`.
        inferer: the one that inferred the map; None: the image is given to the network as it is.
        image_key: the image (C, *S) as the network got it.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: a network that converts no images, or an item without the image.

    Example:
        >>> from monai_wsss.networks import CycleGenerator
        >>> add = AddConversiond("pred", CycleGenerator.tiny().eval())
        >>> item = add({"image": torch.zeros(1, 16, 16), "pred": torch.rand(1, 16, 16)})
        >>> item["converted"].shape, item["heat"].shape
        (torch.Size([1, 16, 16]), torch.Size([1, 16, 16]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module,
        inferer: VolumeInferer | None = None,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not hasattr(network, "translate"):
            raise ValueError(
                f"Expected a network with `translate`, which converts images, got {type(network).__name__}: leave "
                "`AddConversiond` out."
            )
        self.network = network
        self.inferer = copy.copy(inferer or VolumeInferer(getattr(network, "spatial_dims", 2)))
        self.inferer.cam = _translate
        self.inferer.reduction = "mean"  # a sum over views is no image
        self.image_key = image_key

    @torch.no_grad()
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            told = told_rule(item[key])
            if told is not None and told.network != id(self.network):
                continue
            if self.image_key not in item:
                raise ValueError(f"Expected the key `{self.image_key}` in the item, which is converted: keep it.")
            image = torch.as_tensor(item[self.image_key])
            device = next(self.network.parameters()).device
            item["heat"] = plain_tensor(item[key]).amax(dim=0, keepdim=True)
            item["converted"] = plain_tensor(self.inferer(image[None].to(device).float(), self.network)[0])
        return item


def _translate(image: torch.Tensor, network: Any, *_: Any, **__: Any) -> torch.Tensor:
    converted: torch.Tensor = network.translate(image)
    return converted
