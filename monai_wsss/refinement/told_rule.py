# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a mask has to know of the network that made a prediction, carried in the metadata of the prediction.

Servers and pipelines run a bundle's post-processing apart from its network: MONAI Label loads the weights into a copy
of the network, MONAI Deploy runs a compiled one.  The network that the configuration names then has no weights, and no
healthy level.  So the inferer writes the rule beside the maps, and :class:`~monai_wsss.refinement.ToMaskd` reads it
there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor

from monai_wsss.refinement.mask_rule import MaskRule
from monai_wsss.refinement.slice_axis import slicing_axis_of

__all__ = ["ToldRule", "tell_rule", "told_rule"]

_KEY = "mask_rule"


class ToldRule(NamedTuple):
    """What a prediction tells of its network.

    Attributes:
        rule: the network's own rule.
        slicing_axis: 1, 2 or 3, the anatomical axis along which the slices that trained it followed one another (left
            to right, back to front, feet to head); 0 where it has no record.
        network: the identity of the network in this process.
    """

    rule: MaskRule
    slicing_axis: int
    network: int


def tell_rule(maps: torch.Tensor, image: torch.Tensor, network: Any) -> torch.Tensor:
    """Give maps the metadata of their image, and the rule of the network that made them.

    Args:
        maps: what the network gives for ``image``, (B, channels, *S).
        image: (B, C, *S).
        network: any callable; what is no network of a known kind has no rule to tell.

    Returns:
        The maps; as a MetaTensor where the image is one and the network has a rule.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> image = MetaTensor(torch.rand(1, 1, 8, 8))
        >>> maps = tell_rule(torch.zeros(1, 1, 8, 8), image, CAMEncoder.tiny())
        >>> told_rule(maps[0]).rule.pooling
        'max'
    """
    if not isinstance(image, MetaTensor) or not hasattr(network, "output_kind"):
        return maps
    try:
        rule = MaskRule.of(network).settings()
    except ValueError:  # a network whose maps no rule decides; whoever asks for a mask says so
        return maps
    told = json.dumps({"rule": rule, "slicing_axis": slicing_axis_of(network), "network": id(network)})
    meta = {**image.meta, _KEY: [told] * len(maps) if image.is_batch else told}
    answer = MetaTensor(maps, meta=meta)
    answer.is_batch = image.is_batch
    return answer


def told_rule(prediction: Any) -> ToldRule | None:
    """Read what the maps (channels, *S) of one image tell of their network; None where they tell nothing."""
    text = prediction.meta.get(_KEY) if isinstance(prediction, MetaTensor) else None
    if not isinstance(text, str):
        return None
    told = json.loads(text)
    words = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in told["rule"].items()}
    return ToldRule(replace(MaskRule(), **words), told["slicing_axis"], told["network"])
