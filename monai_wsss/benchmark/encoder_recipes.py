# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the table of encoders trains: CAM, second stages and full supervision, from scratch and from ImageNet's weights.

All recipes have one network, EfficientNet-Lite0 up to stride 16 with its maps fused, so that a row differs from another
by what its name says.  Steps are fixed here, before any training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from monai_wsss.benchmark.recipes import FULL_SUPERVISION, AdamWOneCycle, Recipe
from monai_wsss.methods import ClassActivationMapping, FullSupervision, PseudoMaskSupervision, WSSSMethod
from monai_wsss.networks import EfficientNetLite, FrozenEncoder, FusedSegmenter, fused_cam_network, load_encoder_weights

__all__ = ["BUDGETS", "Budget", "decision_recipes", "default_lever", "encoder_recipes", "lever_recipes"]

_NETWORK: dict[str, Any] = {"encoder": "lite0", "levels": [2, 3, 4], "stride": 4, "width": 48, "norm_momentum": 0.1}
_FUSED = {name: _NETWORK[name] for name in ("width", "stride")}
_FROM_SCRATCH = AdamWOneCycle(learning_rate=2e-3)
_FINE_TUNED = AdamWOneCycle(learning_rate=2e-3, encoder_learning_rate=3e-4)


@dataclass(frozen=True)
class Budget:
    """How long each kind of recipe is trained on a kind of data, and what its network is.

    Attributes:
        cam: epochs of a classifier.
        second_stage: epochs of a segmenter on pseudo-masks.
        full: epochs of full supervision.
        batch_size: tiles, patches or slices per step of a classifier.
        image_batch_size: items per step of a segmenter.
        topk_share: share of a map that its pooling averages: 25 % for textures, 10 % for small findings.
        grid: side of slices and patches as the network sees them, in pixels; None leaves them as they are.
        input_range: see :class:`~monai_wsss.networks.EfficientNetLite`.
        rule: rule that decides masks and pseudo-masks.
        background: whether there is a background.
    """

    cam: int
    second_stage: int
    full: int
    batch_size: int = 32
    image_batch_size: int = 8
    topk_share: float = 0.25
    grid: int | None = None
    input_range: str = "pixels"
    rule: str = "otsu"
    background: bool = True


BUDGETS: dict[str, Budget] = {
    "tiles": Budget(cam=10, second_stage=10, full=30),
    "patches": Budget(
        cam=4,
        second_stage=4,
        full=12,
        image_batch_size=32,
        grid=64,
        input_range="z_scores",
        rule="argmax",
        background=False,
    ),
    "slices": Budget(
        cam=4,
        second_stage=3,
        full=8,
        image_batch_size=32,
        topk_share=0.1,
        grid=96,
        input_range="z_scores",
        rule="negative_reference",
    ),
}
"""Kind of data -> its budget: 150 steps of a classifier on tiles, 200 on patches, about 280 on the slices of LGG."""


def encoder_recipes(budget: Budget, *, refined: str) -> dict[str, Recipe]:
    """Give the recipes of the table by their names, in its order.

    Args:
        budget: of the kind of data.
        refined: refinement of the pseudo-masks of the second of the two second stages, ``"par"`` or ``"crf"``.
    """
    rule = {"rule": budget.rule} if budget.background else {}
    taught = partial(_segmenter, budget, "imagenet", budget.second_stage, teacher="CAM, ImageNet weights")
    return {
        "CAM, from scratch": _classifier(budget, "none"),
        "CAM, ImageNet weights": _classifier(budget, "imagenet"),
        "second stage, ImageNet weights": taught(pseudo=rule),
        f"second stage, {refined.upper()} on pseudo-masks": taught(pseudo={**rule, "refine": refined}),
        f"{FULL_SUPERVISION}, from scratch": _segmenter(budget, "none", budget.full),
        f"{FULL_SUPERVISION}, ImageNet weights": _segmenter(budget, "imagenet", budget.full),
    }


def lever_recipes(budget: Budget, *, in_channels: int = 3) -> dict[str, Recipe]:
    """Give one recipe per lever of the classifier: pooling, stride, depth and stem of the encoder, freezing.

    Args:
        budget: of the kind of data.
        in_channels: channels of the images; the stem is a lever where there are neither one nor three.
    """
    levers: dict[str, Mapping[str, Any]] = {
        "top 10 %": {"topk_share": 0.1},
        "top 25 %": {"topk_share": 0.25},
        "average": {"pooling": "average"},
        "max": {"pooling": "max"},
        "log-sum-exp": {"pooling": "lse"},
        "stride 8": {"stride": 8},
        "to stride 32": {"levels": [2, 3, 4, 5]},
        "output stride 8": {"output_stride": 8},
        "frozen encoder": {"frozen": True},
    }
    if in_channels not in (1, 3):
        levers |= {f"{stem} stem": {"stem": stem} for stem in ("average", "learned")}
    return {name: _classifier(budget, "imagenet", **words) for name, words in levers.items()}


def default_lever(budget: Budget) -> str:
    """Name the lever that is no change: the classifier of the table of encoders.

    Example:
        >>> default_lever(BUDGETS["slices"]) in lever_recipes(BUDGETS["slices"])
        True
    """
    return f"top {budget.topk_share:.0%}".replace("%", " %")


def decision_recipes(budget: Budget, *, classifier: str, self_trained: str) -> dict[str, Recipe]:
    """Give the pretrained classifier of the table of encoders, its second stage, and a third training on their masks.

    Args:
        budget: of the kind of data.
        classifier: name of the classifier.
        self_trained: name of the third training.
    """
    rule = {"rule": budget.rule} if budget.background else {}
    second = "second stage, ImageNet weights"
    taught = partial(_segmenter, budget, "imagenet", budget.second_stage)
    return {
        classifier: _classifier(budget, "imagenet"),
        second: taught(teacher=classifier, pseudo=rule),
        # A segmentation's masks keep the classes of the labels alone.
        self_trained: taught(teacher=second),
    }


def _classifier(budget: Budget, pretrained: str, **words: Any) -> Recipe:
    words = {"input_range": budget.input_range, "topk_share": budget.topk_share, "pretrained": pretrained, **words}
    return Recipe(
        partial(_build_cam, **words),
        _optimizer("none" if words.get("frozen") else pretrained),
        batch_size=budget.batch_size,
        epochs=budget.cam,
        words={"method": "cam", **_NETWORK, **words},
    )


def _segmenter(budget: Budget, pretrained: str, epochs: int, *, teacher: str | None = None, **options: Any) -> Recipe:
    words: dict[str, Any] = {
        "input_range": budget.input_range,
        "pretrained": pretrained,
        "background": budget.background,
    }
    build = _build_full if teacher is None else _build_student
    return Recipe(
        partial(build, **words),
        _optimizer(pretrained),
        batch_size=budget.image_batch_size,
        epochs=epochs,
        teacher=teacher,
        words={"method": "full supervision" if teacher is None else "second stage", **_NETWORK, **words},
        **options,
    )


def _optimizer(pretrained: str) -> AdamWOneCycle:
    return _FROM_SCRATCH if pretrained == "none" else _FINE_TUNED


def _encoder(in_channels: int, words: dict[str, Any]) -> EfficientNetLite:
    """Build the encoder of the words that are its own, and take them out."""
    own = {name: words.pop(name) for name in ("input_range", "levels", "output_stride", "stem") if name in words}
    return EfficientNetLite(_NETWORK["encoder"], in_channels, **{"levels": _NETWORK["levels"], **own})


def _build_cam(in_channels: int, num_classes: int, *, pretrained: str, **words: Any) -> WSSSMethod:
    frozen = words.pop("frozen", False)
    encoder = _encoder(in_channels, words)
    fused = {**_FUSED, **words}
    network = fused_cam_network(FrozenEncoder(encoder) if frozen else encoder, num_classes, **fused)
    load_encoder_weights(network, pretrained)
    return ClassActivationMapping(network)


def _build_segmenter(in_channels: int, num_classes: int, pretrained: str, input_range: str, background: bool) -> Any:
    encoder = _encoder(in_channels, {"input_range": input_range})
    network = FusedSegmenter(encoder, num_classes + background, **_FUSED)
    load_encoder_weights(network, pretrained)
    return network


def _build_student(in_channels: int, num_classes: int, **words: Any) -> WSSSMethod:
    network = _build_segmenter(in_channels, num_classes, **words)
    return PseudoMaskSupervision.build(network, background=words["background"])


def _build_full(in_channels: int, num_classes: int, **words: Any) -> WSSSMethod:
    network = _build_segmenter(in_channels, num_classes, **words)
    return FullSupervision(network, background=words["background"])
