# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a network that converts images made of one, beside its mask: the converted image and the heat map.

A map is the difference of an image and its converted image.  So :class:`ConversionInferer` keeps the converted image
when it makes the map, in the metadata of the map, and :class:`AddConversiond` takes it from there.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import nn

from monai_wsss._checks import check_image, plain_tensor
from monai_wsss.inferers.volume import VolumeInferer
from monai_wsss.refinement import tell_rule, told_rule

__all__ = ["AddConversiond", "ConversionInferer"]

_KEY = "converted"


class ConversionInferer(VolumeInferer):
    """Give the maps of :class:`VolumeInferer`, and beside them the converted images, in one pass through the network.

    The converted images (B, C, *S) lie in the metadata of the maps.  They are those of the maps: on the same grid,
    slice by slice in a volume, over the same windows, and of several views the mean.  There are none, and the maps are
    those of :class:`VolumeInferer`, where the network converts no images, where the images have no metadata, with
    ``cam``, and with a ``reduction`` other than ``mean``, which would make no image of several.

    Arguments and errors are those of :class:`VolumeInferer`.

    Example:
        >>> from monai_wsss.networks import CycleGenerator
        >>> maps = ConversionInferer()(MetaTensor(torch.zeros(2, 1, 16, 16)), CycleGenerator.tiny().eval())
        >>> maps.shape, maps.meta["converted"].shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 1, 16, 16]))
    """

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give raw maps (B, G, *S) of ``inputs`` (B, C, *S), a MetaTensor; further arguments are the network's."""
        converts = hasattr(network, "translate") and hasattr(network, "difference")
        if not (converts and isinstance(inputs, MetaTensor) and self.cam is None and self.reduction == "mean"):
            return super().__call__(inputs, network, *args, **kwargs)
        check_image(inputs)
        both = copy.copy(self)
        both.cam = _map_and_conversion
        given = both._maps(inputs, network)
        channels = inputs.shape[1]
        maps, converted = given[:, :-channels], given[:, -channels:]
        told = tell_rule(maps, inputs, network) if self.tell_rule else maps
        meta = told.meta if isinstance(told, MetaTensor) else inputs.meta
        answer = MetaTensor(plain_tensor(told), meta={**meta, _KEY: converted})
        answer.is_batch = inputs.is_batch
        return answer


class AddConversiond(MapTransform):
    """Add ``converted``, G(I), and ``heat``, the raw map |I - G(I)|, to an item whose map was inferred.

    Put it before :class:`~monai_wsss.refinement.ToMaskd`, which replaces the raw map by a mask.  A map of
    :class:`ConversionInferer` has the converted image with it.  Otherwise the image is converted once more, as the
    inferer shows it to the network: on its grid, slice by slice in a volume, over the same views.  A map that tells of
    another network then, as in a server which loads the weights into a copy, is left as it is: what this network makes
    of the image has nothing to do with it.  The intensities are the network's own, in [-1, 1] as a rule, and those of
    the item's normalized image.

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
            converted = item[key].meta.get(_KEY) if isinstance(item[key], MetaTensor) else None
            if converted is None:
                told = told_rule(item[key])
                if told is not None and told.network != id(self.network):
                    continue
                converted = self._convert(item)
            item["heat"] = plain_tensor(item[key]).amax(dim=0, keepdim=True)
            item["converted"] = plain_tensor(converted)
        return item

    def _convert(self, item: Mapping[Hashable, Any]) -> torch.Tensor:
        """Convert the image of an item: (C, *S)."""
        if self.image_key not in item:
            raise ValueError(f"Expected the key `{self.image_key}` in the item, which is converted: keep it.")
        image = torch.as_tensor(item[self.image_key])
        device = next(self.network.parameters()).device
        converted: torch.Tensor = self.inferer(image[None].to(device).float(), self.network)[0]
        return converted


def _map_and_conversion(image: torch.Tensor, network: Any, *_: Any, **__: Any) -> torch.Tensor:
    converted = network.translate(image)
    return torch.cat((network.difference(image, converted), converted), dim=1)


def _translate(image: torch.Tensor, network: Any, *_: Any, **__: Any) -> torch.Tensor:
    converted: torch.Tensor = network.translate(image)
    return converted
