# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP and AFA by words: all numbers of their presets, and the parts that the words stand for.

|                        | ``"default"``    | ``"scratch"``     | ``"paper"``      | ``"released"``   |
|------------------------|------------------|-------------------|------------------|------------------|
| network                | MiT-B1, OFD      | ConvPyramid, OFD, | MiT-B1, OFD raw, | as default       |
|                        |                  | maps are pooled   | not detached     |                  |
| warm-ups c2s, s2c, BSP | 10, 20, 20 %     | 40, 70, 70 %      | 2000, 4000, 4000 | 2000, 2000, 4000 |
| teaching waits for     | –                | L_cls below 0.4   | –                | –                |
| seeds are 0 at         | their minimum    | the healthy level | their minimum    | their minimum    |
| sigma_c, sigma_s       | 0.75, 0.5        | 0.75, 0.5         | 0.75, 0.5        | 0.5, 0.75        |
| sigma_s compared with  | probabilities    | probabilities     | probabilities    | logits           |
| L_s2c on               | seeds            | seeds             | scores S^c       | seeds            |
| l_seg of L_s2c         | auto             | auto              | soft margin      | auto             |
| B^s                    | auto             | auto              | probability      | scaled logits    |
| S^c                    | shares           | shares            | shares           | as refined       |
| Y^s filtered by labels | yes              | yes               | yes              | no               |
| refinement's weights   | sum to 1         | sum to 1          | sum to 1         | sum to 1.01      |
| refinement reaches     | 24 pixels, at    | 4 pixels, at full | as default       | as default       |
|                        | half resolution  | resolution        |                  |                  |

All presets have lambda_1, _2, _3 = 0.7, 0.1, 0.1 and a soft margin in L_c2s.  ``"scratch"`` is for small encoders
trained from scratch on small images: its long warm-ups wait until the classifier has learned something to teach.
``"released"`` also makes its labels in training mode and treats healthy images like any other; so does AFA's
``"paper"``.  For one class the released code's L_s2c is a cross-entropy over one channel, which is always 0: ``auto``
takes the binary cross-entropy.  ``"paper"`` reads the shares S^c as logits, as its equation does, so that its L_s2c
lies between 0.5 and 1.0; without BSP and before it begins, the background in S^c is the score between ``low`` and
``high``.  A warm-up of more iterations than the run has never ends; a warning says so.

AFA's ``"paper"`` has a balanced cross-entropy with weight 0.1, labels spread by the learned affinity from iteration
6000 on, no feedback, no OFD, and seeds that its losses do not train.  AFA's ``"default"`` has the same terms, with the
warm-ups and the treatment of healthy images of BMP's default, and its ``"scratch"`` what BMP's has for small encoders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from monai_wsss._checks import as_flag, check_choice
from monai_wsss._labels import IGNORED
from monai_wsss._windows import check_radius
from monai_wsss.engines import LossGate, Term, WeightRamp
from monai_wsss.inferers import AboveHealthyLevel, MinMax, MultiScaleSeeds
from monai_wsss.losses import (
    AffinityLoss,
    BalancedCrossEntropyLoss,
    ClassToSegmentationLoss,
    SegmentationToClassLoss,
)
from monai_wsss.methods.segmentation_feedback import FeedbackThroughSpreading, SegmentationFeedback
from monai_wsss.networks import ConvPyramid, MixTransformer, TwoBranchNetwork
from monai_wsss.refinement import BackgroundAware, ConstantScores, LearnedAffinity, PixelAdaptiveRefinement

__all__ = ["AFA_PRESETS", "BMP_PRESETS", "BmpSettings", "preset_network"]

_RELEASED: dict[str, Any] = {
    "score_scale": "none",
    "background_scale": "minmax",
    "healthy_is_background": False,
    "healthy_affinity": True,
    "train_mode_labels": True,
    "row_stochastic": False,
    "c2s_ramp": WeightRamp("iteration", end=2000),
}
_SCRATCH: dict[str, Any] = {
    "seed_scale": "reference",
    "dilations": (1, 2, 4),
    "downscale": 1.0,
    "scales": (1.0,),
    "ready_below": 0.4,
    "c2s_ramp": 0.4,
    "s2c_ramp": 0.7,
    "propagation_ramp": 0.7,
}
_AFA: dict[str, Any] = {"c2s_weight": 0.1, "s2c_weight": 0.0, "propagation": "affinity", "c2s_loss": "balanced"}
_SMALL: dict[str, Any] = {"encoder": "conv_pyramid", "decoder_width": 32, "pooled": "maps"}
_WITHOUT_OFD: dict[str, Any] = {"ofd": False, "detach_seeds": True}

# For each preset the words of the method, and those of its network.
BMP_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "scratch": (_SCRATCH, _SMALL),
    "paper": (
        {
            "s2c_input": "scores",
            "s2c_loss": "softmargin",
            "background_scale": "softmax",
            "c2s_ramp": WeightRamp("iteration", end=2000),
            "s2c_ramp": WeightRamp("iteration", end=4000),
            "propagation_ramp": WeightRamp("iteration", end=4000),
        },
        {"ofd_activation": "none", "ofd_detach": False},
    ),
    "released": (
        {
            **_RELEASED,
            "class_confidence": 0.5,
            "segmentation_confidence": 0.75,
            "confidence_of": "logit",
            "filter_segmentation": False,
            "s2c_ramp": WeightRamp("iteration", end=2000),
            "propagation_ramp": WeightRamp("iteration", end=4000),
        },
        {},
    ),
}
AFA_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": (_AFA, _WITHOUT_OFD),
    "scratch": ({**_SCRATCH, **_AFA}, {**_SMALL, **_WITHOUT_OFD}),
    "paper": ({**_RELEASED, **_AFA, "propagation_ramp": WeightRamp("iteration", end=6000)}, _WITHOUT_OFD),
}


@dataclass(frozen=True)
class BmpSettings:
    """The words that choose BMP's parts; the defaults are those of the preset ``"default"``.

    Args:
        c2s_weight: lambda_1; 0 switches L_c2s off, and with it everything that needs Y^c except the affinity loss.
        s2c_weight: lambda_2.
        affinity_weight: lambda_3; 0 for networks whose encoder gives no attention.
        propagation: the maker of Y^c: ``"bsp"``; ``"par"``: constant background scores ``low`` and ``high``;
            ``"affinity"`` (AFA): the same scores, spread by the learned affinity before the refinement.
        c2s_loss: l_seg of L_c2s: ``"softmargin"``, ``"ce"``, ``"bce"``, or ``"balanced"`` (AFA).
        s2c_loss: l_seg of L_s2c: ``"ce"``, ``"softmargin"``, ``"bce"``; ``"auto"`` is ``"bce"`` for one class, where
            the cross-entropy over one channel is zero, and ``"ce"`` for several.
        s2c_input: the maps that L_s2c trains: ``"seeds"``: C upsampled, as released; ``"scores"``: S^c, as printed,
            whose background is the segmenter's where BSP is on, and the score between ``low`` and ``high`` elsewhere.
        s2c_background: take confident background pixels of images that hold any class as negatives of L_s2c.
        class_confidence: sigma_c.
        segmentation_confidence: sigma_s.
        confidence_of: compare probabilities with sigma_s (``"prob"``), or logits (``"logit"``), as released.
        filter_segmentation: leave classes that the image does not hold out of Y^s.
        seed_scale: ``"minmax"``: seeds are scaled per image and class (the paper); ``"reference"``: seeds are 0 at the
            level of images without the class, which training follows, and 1 at the image's peak: for networks with
            ``pooled="maps"`` trained from scratch.
        background_scale: B^s: ``"softmax"``: the probability of the background; ``"minmax"``: its logits scaled per
            image, as released.  ``"auto"`` is ``"minmax"`` for several classes and ``"softmax"`` for one: an image that
            one class fills has background nowhere.
        score_scale: normalization of S^c before sigma_c: ``"l1"``, ``"softmax"`` or ``"none"``.
        low: background score that lets seeds through.
        high: background score that holds them back.
        dilations: of the pixel-adaptive refinement, see
            :class:`~monai_wsss.refinement.PixelAdaptiveRefinement`.
        row_stochastic: whether the weights of the refinement sum to 1; see there.
        downscale: factor by which images shrink for the refinement; the authors take 2 for images of about 500 pixels.
        scales: of the passes that make pseudo-labels, each with its mirror image.
        healthy_is_background: healthy images are background throughout, whatever S^c says.
        healthy_affinity: whether healthy images, which have positive pairs only, take part in L_aff.
        train_mode_labels: make labels in training mode, as released: with dropout, and with updates of the batch
            statistics.
        c2s_ramp: when L_c2s and L_aff begin: a :class:`~monai_wsss.engines.WeightRamp`, or a share of the run.
        s2c_ramp: when L_s2c begins.
        propagation_ramp: when ``propagation`` replaces ``"par"``.
        ready_below: the branches teach nothing until the moving average of the classification loss was below this once.
            Seeds of a classifier that has not learned teach an empty segmentation, which then holds the encoder back.
            From scratch take about two thirds of the loss of a classifier that knows only how frequent the classes
            are: 0.4 where a third of the images hold the class.  None (``"off"``): only the warm-ups count.
        radius: largest offset of the affinity's pairs, in tokens.

    Raises:
        ValueError: an unknown choice, a negative weight, confidences or scores outside of their range, or options that
            do not go together.

    Example:
        >>> BmpSettings(c2s_ramp=0.3).c2s_ramp
        WeightRamp(shape='step', end=0.3)
    """

    c2s_weight: float = 0.7
    s2c_weight: float = 0.1
    affinity_weight: float = 0.1
    propagation: str = "bsp"
    c2s_loss: str = "softmargin"
    s2c_loss: str = "auto"
    s2c_input: str = "seeds"
    s2c_background: bool = False
    class_confidence: float = 0.75
    segmentation_confidence: float = 0.5
    confidence_of: str = "prob"
    filter_segmentation: bool = True
    seed_scale: str = "minmax"
    background_scale: str = "auto"
    score_scale: str = "l1"
    low: float = 0.35
    high: float = 0.55
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    row_stochastic: bool = True
    downscale: float = 2.0
    scales: tuple[float, ...] = (1.0, 0.5, 1.5)
    healthy_is_background: bool = True
    healthy_affinity: bool = False
    train_mode_labels: bool = False
    c2s_ramp: WeightRamp | float = 0.1
    s2c_ramp: WeightRamp | float = 0.2
    propagation_ramp: WeightRamp | float = 0.2
    ready_below: float | None = None
    radius: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                value = as_flag(field.name, value)
            elif field.name.endswith("_ramp"):
                value = WeightRamp.of(value)
            elif field.name in ("scales", "dilations"):
                value = tuple(value)
            elif field.name == "ready_below":
                value = None if value in (None, "off") else float(value)
            elif field.type == "float":
                value = float(value)
            object.__setattr__(self, field.name, value)
        check_choice("propagation", self.propagation, ("bsp", "par", "affinity"))
        check_choice("c2s_loss", self.c2s_loss, ("softmargin", "ce", "bce", "balanced"))
        check_choice("s2c_loss", self.s2c_loss, ("auto", "softmargin", "ce", "bce"))
        check_choice("s2c_input", self.s2c_input, ("seeds", "scores"))
        check_choice("seed_scale", self.seed_scale, ("minmax", "reference"))
        check_choice("background_scale", self.background_scale, ("auto", "softmax", "minmax"))
        check_radius(self.radius)
        weights = (self.c2s_weight, self.s2c_weight, self.affinity_weight)
        if not all(weight >= 0 for weight in weights):
            raise ValueError(
                f"Expected `c2s_weight`, `s2c_weight` and `affinity_weight` >= 0, got {weights[0]}, {weights[1]} and "
                f"{weights[2]}: 0 switches a term off."
            )
        confidences = (self.class_confidence, self.segmentation_confidence)
        if not 0 <= confidences[0] <= 1 or (self.confidence_of == "prob" and not 0 <= confidences[1] <= 1):
            raise ValueError(
                f"Expected `class_confidence` and `segmentation_confidence` in [0, 1], got {confidences[0]} and "
                f"{confidences[1]}: shares and probabilities are compared with them."
            )

    def for_classes(self, num_classes: int) -> BmpSettings:
        """Replace ``"auto"`` by the choice for K classes, and check the words that depend on K."""
        if num_classes >= IGNORED:
            raise ValueError(f"Expected fewer than {IGNORED} classes, a label that marks doubt, got {num_classes}.")
        one = num_classes == 1
        if one and self.s2c_loss == "ce" and self.s2c_input == "seeds" and self.s2c_weight > 0:
            raise ValueError("Expected `s2c_loss` 'bce' or 'auto' for a single class: the 'ce' over it is always 0.")
        chosen = replace(
            self,
            s2c_loss={"auto": "bce" if one else "ce"}.get(self.s2c_loss, self.s2c_loss),
            background_scale={"auto": "softmax" if one else "minmax"}.get(self.background_scale, self.background_scale),
        )
        if self.s2c_background and (chosen.s2c_loss != "bce" or self.s2c_input != "seeds"):
            raise ValueError(
                "Expected `s2c_loss` 'bce' and `s2c_input` 'seeds' for `s2c_background`: others have none."
            )
        return chosen

    def parts(self, num_classes: int, refine: PixelAdaptiveRefinement | None = None) -> dict[str, Any]:
        """Build the parts that :class:`~monai_wsss.methods.BMP` receives.

        Args:
            num_classes: K.
            refine: p of Eq. 13; None: pixel-adaptive refinement by ``dilations`` and ``row_stochastic``.
        """
        words = self.for_classes(num_classes)
        refine = refine or PixelAdaptiveRefinement(dilations=words.dilations, row_stochastic=words.row_stochastic)
        constant = {"low": words.low, "high": words.high, "downscale": words.downscale}
        scale = MinMax() if words.seed_scale == "minmax" else AboveHealthyLevel(num_classes)
        spread = BackgroundAware(
            refine,
            confidence=words.class_confidence,
            background=words.background_scale,
            scores=words.score_scale,
            downscale=words.downscale,
        )
        makers = {
            "bsp": lambda: spread,
            "par": lambda: None,
            "affinity": lambda: LearnedAffinity(refine, radius=words.radius, **constant),
        }
        affinity = AffinityLoss(radius=words.radius)
        return {
            "seeds": MultiScaleSeeds(scale, words.scales),
            "first_labels": ConstantScores(refine, **constant),
            "labels": makers[words.propagation](),
            "labels_ramp": words.propagation_ramp,
            "c2s": _term(_class_loss(words.c2s_loss), words.c2s_weight, words.c2s_ramp),
            "s2c": _term(words._feedback(scale, refine, spread), words.s2c_weight, words.s2c_ramp),
            "affinity": _term(affinity, words.affinity_weight, words.c2s_ramp),
            "gate": LossGate(words.ready_below),
            "healthy_is_background": words.healthy_is_background,
            "healthy_affinity": words.healthy_affinity,
            "train_mode_labels": words.train_mode_labels,
        }

    def _feedback(self, scale: Any, refine: Any, spread: BackgroundAware) -> SegmentationFeedback:
        options: dict[str, Any] = {
            "confidence": self.segmentation_confidence,
            "confidence_of": self.confidence_of,
            "filtered": self.filter_segmentation,
        }
        if self.s2c_input == "scores":
            loss = ClassToSegmentationLoss(kind=self.s2c_loss, validate_args=False)
            fixed = BackgroundAware(
                refine, background=(self.low + self.high) / 2, scores=self.score_scale, downscale=self.downscale
            )
            aware = spread if self.propagation == "bsp" else fixed
            return FeedbackThroughSpreading(loss, scale, aware, fixed, **options)
        return SegmentationFeedback(
            SegmentationToClassLoss(kind=self.s2c_loss, use_background=self.s2c_background, validate_args=False),
            **options,
        )

    def record(self) -> dict[str, Any]:
        """Give the words as values that JSON can hold."""
        return {
            name: f"{value['shape']} until {value['end']:g}" if isinstance(value, dict) else value
            for name, value in asdict(self).items()
        }


def preset_network(
    decoding: dict[str, Any],
    encoder: Any,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
) -> TwoBranchNetwork:
    """Build a network by words of ``TwoBranchNetwork.build``, around an encoder, or one that ``decoding`` names."""
    name = decoding.get("encoder", "mit_b1")
    if encoder is None and name == "conv_pyramid":
        encoder = ConvPyramid(spatial_dims, in_channels)
    elif encoder is None:
        encoder = MixTransformer.from_preset(name, spatial_dims=spatial_dims, in_channels=in_channels)
    words = {name: value for name, value in decoding.items() if name != "encoder"}
    return TwoBranchNetwork.build(encoder, num_classes, **words)


def _term(loss: Any, weight: float, ramp: Any) -> Term | None:
    return Term(loss, weight, ramp) if weight > 0 else None


def _class_loss(kind: str) -> BalancedCrossEntropyLoss | ClassToSegmentationLoss:
    if kind == "balanced":
        return BalancedCrossEntropyLoss(validate_args=False)
    return ClassToSegmentationLoss(kind=kind, validate_args=False)
