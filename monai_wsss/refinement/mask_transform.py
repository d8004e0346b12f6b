# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``to_mask`` as a dictionary transform, for the post-processing of bundles: whole raw maps in, mask and CAM out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn

from monai_wsss._checks import float32_or_wider, plain_tensor
from monai_wsss.cams import decision_rule, pool_maps
from monai_wsss.refinement.dense_crf import DenseCRF
from monai_wsss.refinement.masks import cut_score_maps, score_maps, to_mask

__all__ = ["ToMaskd"]


class ToMaskd(MapTransform):
    """Replace a network's output for a whole image (G*K, *S) by its mask (1, *S), uint8 0..K.

    Adds ``cam`` (K, *S), the normalized map in [0, 1] that was cut, and ``presence`` (K,), the pooled raw logits whose
    sign gates the classes; both for activations only.

    Args:
        keys: the network's output.
        network: deployable network; its ``output_kind``, ``pooling`` and references say how to decide.
        rule: see :func:`~monai_wsss.refinement.to_mask`; None for the rule that the pooling calls for.
        threshold: see there.
        gate: ``predicted`` (default for activations), ``given`` (by ``label_key``) or ``none`` (default for
            segmentations).
        fusion: see there.
        reliable_only: leave out the groups that the network's training found unreliable; False fuses all of them.
        label_key: image-level label (K,), read with ``gate="given"`` alone.
        crf: of segmentations: draws the probabilities to the edges of the image before they are decided.
        image_key: the image (C, *S) of the same size, read by ``crf`` alone.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: as :func:`~monai_wsss.refinement.to_mask`.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> item = {"pred": torch.zeros(1, 8, 8)}
        >>> sorted(ToMaskd("pred", CAMEncoder.tiny(), rule="logit")(item))
        ['cam', 'pred', 'presence']
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module,
        rule: str | None = None,
        threshold: float | None = None,
        gate: str | None = None,
        fusion: str = "max",
        reliable_only: bool = True,
        label_key: str = "label",
        crf: DenseCRF | None = None,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.network = network
        self.rule = rule
        self.threshold = threshold
        self.gate = gate
        self.fusion = fusion
        self.reliable_only = reliable_only
        self.label_key = label_key
        self.crf = crf
        self.image_key = image_key
        if crf is not None and network.output_kind != "segmentation":
            raise ValueError("Expected a network that gives segmentations with `crf`, not activations.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = torch.as_tensor(item[self.label_key])[None] if self.gate == "given" else None
        for key in self.key_iterator(item):
            scores = item[key]
            scores = plain_tensor(scores)[None]
            arguments = {
                "rule": self.rule,
                "threshold": self.threshold,
                "gate": self.gate,
                "fusion": self.fusion,
                "label": label,
                **_traits(self.network),
            }
            if not self.reliable_only:
                arguments.pop("reliable", None)
            if arguments["output_kind"] == "segmentation":
                if self.crf is not None:
                    image = plain_tensor(item[self.image_key])[None].to(scores.device)
                    scores = self.crf(image, float32_or_wider(scores).softmax(1)).log()
                item[key] = to_mask(scores, **arguments)[0]
                continue
            rule = self.rule or decision_rule(arguments["pooling"])
            maps = score_maps(scores, **arguments)
            argmax = rule == "argmax"
            item[key] = (to_mask(scores, **arguments) if argmax else cut_score_maps(maps, rule, self.threshold))[0]
            item["cam"] = maps[0]
            item["presence"] = self._presence(scores, arguments)[0]
        return item

    def _presence(self, scores: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """(1, K): of each class the greatest logit over the groups that take part."""
        options = {name: arguments[name] for name in ("topk_share", "lse_sharpness")}
        logits = pool_maps(scores, arguments["pooling"], **options).unflatten(1, (arguments["groups"], -1))
        reliable = arguments.get("reliable")
        return (logits if reliable is None else logits[:, reliable.to(logits.device)]).amax(1)


def _traits(network: nn.Module) -> dict[str, Any]:
    """What a deployable network says about its output; see docs/architecture.md."""
    if network.output_kind == "segmentation":
        return {"output_kind": "segmentation"}
    if hasattr(network, "decision_traits") and not isinstance(network, torch.jit.ScriptModule):
        return network.decision_traits()  # type: ignore[operator]
    # Compiled, or anybody's network: what it has as attributes.
    names = ("pooling", "topk_share", "lse_sharpness", "groups", "negative_reference", "negative_quantile")
    traits = {"output_kind": "activation", **{name: getattr(network, name) for name in names}}
    if not hasattr(network, "reliable"):
        return traits
    if -1 in list(network.channels):  # type: ignore[arg-type]
        raise ValueError("A compiled network with `present` modalities cannot be decided: use the network itself.")
    return traits | {"reliable": network.reliable}
