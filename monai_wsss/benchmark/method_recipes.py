# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What ``monai-wsss benchmark --methods`` trains: every method on an equal footing, and pairs that have no meaning.

All methods have the same images, splits and optimizer, and one of two encoders:

| encoder        | what it is                                                                      |
|----------------|---------------------------------------------------------------------------------|
| `small`        | a convolutional pyramid of width 16, from scratch                               |
| `efficientnet` | EfficientNet-Lite0 up to stride 16, with ImageNet's weights                     |

| method      | network around the encoder                     | parts                                          |
|-------------|------------------------------------------------|------------------------------------------------|
| `cam`       | fused maps at stride 4                         | classification                                 |
| `gradcam++` | that of `cam`, and its training                | Grad-CAM++ of the fused maps                   |
| `seam`      | that of `cam`                                  | classification, equivariance                   |
| `cmer`      | that of `cam`, once per modality               | preset `default`                               |
| `gland`     | fused maps with CCA and MPFP, then a segmenter | classification, then pseudo-masks with PLF     |
| `afa`       | four maps, All-MLP decoder                     | preset `default`; `small`: `scratch`           |
| `bmp`       | four maps, All-MLP decoder                     | preset `default`; `small`: `scratch`           |
| `cosa`      | an early and a final fused map, LargeFOV       | preset `default`                               |
| `coingan`   | a generator of its own, whatever the encoder   | preset `default`                               |
| `full`      | fused maps at stride 4, a segmenter            | reads masks: the upper bound                   |

Warm-ups are shares of the run, those of the table of CoSA or of the preset `scratch`, and CoSA's averages are as long
as a twentieth of it.  What depends on the data and on the encoder is what the package's presets and bundles have for
them: on slices a network from scratch pools the maximum, as plain CAM's preset `default` does, and others the top of
their maps.  Weights are those of the last step, and masks are decided by the rule of the kind of the data, those of
Grad-CAM++ at half of the peak and of CoinGAN by Otsu: no mask chooses weights, and none a threshold of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from monai_wsss.benchmark.coingan_recipes import COINGAN_BUDGET, CoinganOptimizers
from monai_wsss.benchmark.cosa_recipes import AllChannels
from monai_wsss.benchmark.encoder_recipes import BUDGETS
from monai_wsss.benchmark.recipes import FULL_SUPERVISION, AdamWOneCycle, Recipe
from monai_wsss.data.modalities import COLORS
from monai_wsss.methods import (
    AFA,
    BMP,
    CMER,
    ClassActivationMapping,
    CoinGAN,
    CoSA,
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    WSSSMethod,
)
from monai_wsss.networks import (
    AttentionPyramid,
    ConvPyramid,
    EfficientNetLite,
    FusedSegmenter,
    ModalityNetworks,
    TwoBranchNetwork,
    TwoFusedMaps,
    fused_cam_network,
    load_encoder_weights,
)

__all__ = [
    "ALL_WEAK",
    "ENCODERS",
    "ENSEMBLE",
    "METHODS",
    "OWN_GENERATOR",
    "Facts",
    "Pair",
    "method_recipes",
    "pairs_of",
    "why_not",
]

METHODS = ("cam", "gradcam++", "seam", "cmer", "gland", "afa", "bmp", "cosa", "coingan", "full")
"""What ``--methods`` takes."""
ENCODERS = ("small", "efficientnet")
"""What ``--encoders`` takes."""
ENSEMBLE = "ensemble of "
"""Begins the name of the method of a row that several runs make together."""
ALL_WEAK = f"{ENSEMBLE}all weak methods"
"""The method of the row that all finished runs of weak methods make together."""
OWN_GENERATOR = "own generator"
"""The encoder of a method that has a network of its own."""

_FUSED: dict[str, Any] = {"width": 48, "stride": 4}
_LEVELS = (2, 3, 4)
_DECODER_WIDTH = 64
_WARM_UP = 0.4
_AVERAGED = 20  # a moving average is as long as one part in so many of the run
_BATCH = 32

Words = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A method and its encoder.

    Attributes:
        method: one of :data:`METHODS`, or the name of an ensemble.
        encoder: one of :data:`ENCODERS`, or :data:`OWN_GENERATOR`, or what the members of an ensemble have.
    """

    method: str
    encoder: str

    @property
    def name(self) -> str:
        """Name the row.

        Example:
            >>> Pair("full", "small").name
            'full supervision, small'
        """
        return f"{FULL_SUPERVISION if self.method == 'full' else self.method}, {self.encoder}"

    @property
    def is_ensemble(self) -> bool:
        """Tell whether several runs make the row together."""
        return self.method.startswith(ENSEMBLE)

    @property
    def trained(self) -> str:
        """Name what is trained: Grad-CAM++ explains the network of plain CAM."""
        return f"{'cam' if self.method == 'gradcam++' else self.method} {self.encoder}"


@dataclass(frozen=True)
class Facts:
    """What of a dataset decides which methods have a meaning on it.

    Attributes:
        kind: ``"slices"``, ``"tiles"`` or ``"patches"``.
        modalities: names of the channels.
        classes: names of the classes.
        training_masks: whether any training image has a mask.
        without_healthy: whether no training image is healthy.
    """

    kind: str
    modalities: Sequence[str] = field(default_factory=tuple)
    classes: Sequence[str] = field(default_factory=tuple)
    training_masks: bool = True
    without_healthy: bool = False


def pairs_of(methods: Sequence[str], encoders: Sequence[str]) -> list[Pair]:
    """Give the pairs to train, in the order of the methods; CoinGAN has one.

    Example:
        >>> [pair.name for pair in pairs_of(["cam", "coingan"], ["small", "efficientnet"])]
        ['cam, small', 'cam, efficientnet', 'coingan, own generator']
    """
    return [
        Pair(method, encoder)
        for method in methods
        for encoder in ((OWN_GENERATOR,) if method == "coingan" else encoders)
    ]


def why_not(method: str, facts: Facts) -> str | None:
    """Say in one sentence why a method has no meaning on a dataset; None where it has one.

    Example:
        >>> why_not("cmer", Facts("slices", ["FLAIR"], ["tumor"]))
        'CMER lets the networks of several modalities teach one another, and these images have FLAIR alone.'
    """
    tissue, several = facts.kind == "patches", len(facts.classes) > 1
    if method == "cmer" and len(facts.modalities) < 2:
        return (
            "CMER lets the networks of several modalities teach one another, and these images have "
            f"{', '.join(facts.modalities)} alone."
        )
    if method == "cmer" and tuple(facts.modalities) == COLORS:
        return "CMER lets the networks of several modalities teach one another, and these are the colors of one image."
    if method == "gland" and not (tissue and several):
        return (
            "The gland method tells two tissues or more from one another, one of which is everywhere, and these images "
            "have a background."
        )
    if method in ("afa", "bmp", "cosa") and tissue:
        return f"{_TITLES[method]} tells classes from a background, and these images have none."
    if method == "coingan" and tissue:
        return "CoinGAN makes healthy images of diseased ones, and these images show tissues without a background."
    if method == "coingan" and several:
        return f"CoinGAN tells diseased from healthy, and these images have {len(facts.classes)} classes."
    if method == "coingan" and facts.kind == "tiles":
        return "CoinGAN compares with the mean of healthy images that lie alike, and tiles lie anywhere."
    if method == "coingan" and facts.without_healthy:
        return "CoinGAN learns from healthy images, and there is none among the training images."
    if method == "full" and not facts.training_masks:
        return "Full supervision learns from masks, and no training image has one."
    return None


_TITLES = {"afa": "AFA", "bmp": "BMP", "cosa": "CoSA"}


def method_recipes(pair: Pair, kind: str, steps: int, modalities: Sequence[str] = ()) -> dict[str, Recipe]:
    """Give the recipes of a pair by their keys; the last one is that of the row.

    Args:
        pair: method and encoder.
        kind: of the data, see :class:`Facts`.
        steps: of all trainings of the pair together.
        modalities: names of the channels, for networks that know them.
    """
    if pair.method == "gland":
        return _two_stages(pair, kind, steps)
    if pair.method == "coingan":
        return {pair.trained: _coingan(steps)}
    words: Words = {"encoder": pair.encoder, "kind": kind}
    if pair.method == "cosa":
        words |= _cosa_words(kind, steps)
    if pair.method == "cmer":
        words |= {"modalities": list(modalities)}
    method = "cam" if pair.method == "gradcam++" else pair.method
    told = {"method": method, **_told(kind, pair.encoder), **words, "steps": steps} | (
        {"strong": True} if method == "cosa" else {}
    )
    # Segmenters learn from larger images than classifiers, where these learn from tiles.
    batch_size = BUDGETS[kind].image_batch_size if method == "full" else _BATCH
    build = partial(_BUILDERS[method], **words)
    return {pair.trained: Recipe(build, _optimizer(pair.encoder), **_reading(told, batch_size))}


def _reading(told: Words, batch_size: int = _BATCH) -> Words:
    return {"batch_size": batch_size, "views": "none", "words": told}


def _told(kind: str, encoder: str) -> Words:
    """Tell what networks have by the kind of the data and the encoder, and what they have in common.

    The pooling is that of the methods that pool class maps.  AFA, BMP, the gland method and full supervision are told
    it, too, and do not use it; what they have stands among the settings of the built method.
    """
    return {**_FUSED, **_pooling(kind, encoder), "input_range": BUDGETS[kind].input_range}


def _two_stages(pair: Pair, kind: str, steps: int) -> dict[str, Recipe]:
    """Give the classifier and the segmenter of the gland method, with half of the steps each."""
    words: Words = {"encoder": pair.encoder, "kind": kind}
    told = {"method": "gland", **_told(kind, pair.encoder), **words, "steps": max(steps // 2, 1)}
    first, second = f"{pair.trained} > classifier", f"{pair.trained} > segmenter"
    optimizer = _optimizer(pair.encoder)
    return {
        first: Recipe(partial(_gland, **words), optimizer, **_reading(told)),
        second: Recipe(
            partial(_student, **words), optimizer, teacher=first, **_reading({**told, "plf": "paper"})
        ),
    }  # fmt: skip


def _coingan(steps: int) -> Recipe:
    """Give the recipe of CoinGAN's default at the size of its own table."""
    budget = COINGAN_BUDGET
    words: Words = {"width": budget.width, "ndf": budget.ndf, "num_layers_d": budget.num_layers_d}
    rates = {f"{player}_rate": budget.learning_rate for player in ("generator", "discriminator")}
    return Recipe(
        partial(_generator, **words),
        CoinganOptimizers(words=rates),
        batch_size=budget.batch_size,
        views="none",
        rules=("otsu",),
        words={"method": "coingan", "preset": "default", **words, "steps": steps},
    )


def _cosa_words(kind: str, steps: int) -> Words:
    momentum = round(max(1 - _AVERAGED / steps, 0.5), 6)
    scales = [0.5, 1.0] if kind == "tiles" else [1.0]
    return {"warm_up": _WARM_UP, "momentum": momentum, "dt_momentum": momentum, "scales": scales}


def _optimizer(encoder: str) -> AdamWOneCycle:
    """Give the one optimizer, with a rate of its own for a pretrained encoder."""
    return AdamWOneCycle(learning_rate=2e-3, encoder_learning_rate=None if encoder == "small" else 3e-4)


def _pooling(kind: str, encoder: str) -> Words:
    """Give the pooling of all methods that pool class maps.

    With ImageNet's weights the maximum is unstable: see the lever ``max`` in ``docs/results/encoders.md``.
    """
    if kind == "slices" and encoder == "small":
        return {"pooling": "max"}
    return {"pooling": "topk", "topk_share": BUDGETS[kind].topk_share}


# ---- networks --------------------------------------------------------------------------------------------------------


def _encoder(encoder: str, kind: str, channels: int, *, levels: Sequence[int] = _LEVELS) -> nn.Module:
    """Build an encoder with random weights; the small one has its four maps whatever the levels are."""
    if encoder == "small":
        return ConvPyramid(2, channels)
    return EfficientNetLite("lite0", channels, levels=levels, input_range=BUDGETS[kind].input_range)


def _filled(network: Any, encoder: str) -> Any:
    """Fill a network with ImageNet's weights where its encoder has any."""
    if encoder == "efficientnet":
        load_encoder_weights(network, "imagenet")
    return network


def _class_maps(encoder: str, kind: str, channels: int, num_classes: int) -> Any:
    return fused_cam_network(_encoder(encoder, kind, channels), num_classes, **_FUSED, **_pooling(kind, encoder))


def _cam(channels: int, num_classes: int, *, encoder: str, kind: str) -> WSSSMethod:
    return ClassActivationMapping(_filled(_class_maps(encoder, kind, channels, num_classes), encoder))


def _seam(channels: int, num_classes: int, *, encoder: str, kind: str) -> WSSSMethod:
    network = AllChannels([_filled(_class_maps(encoder, kind, channels, num_classes), encoder)])
    return CMER.from_preset(network=network, cross_modal=False, distillation=False)


def _cmer(channels: int, num_classes: int, *, encoder: str, kind: str, modalities: Sequence[str]) -> WSSSMethod:
    members = [_class_maps(encoder, kind, 1, num_classes) for _ in range(channels)]
    return CMER.from_preset(network=_filled(ModalityNetworks(members, modalities), encoder))


def _mutual(channels: int, num_classes: int, *, encoder: str, kind: str, method: type[BMP]) -> WSSSMethod:
    """Build AFA or BMP, their labels as fine as small images need, their warm-ups as long as short runs need."""
    maps = _encoder(encoder, kind, channels, levels=(1, 2, 3, 4))
    preset = "scratch" if encoder == "small" else "default"
    words: Words = {"scales": (0.5, 1.0) if kind == "tiles" else (1.0,)}
    if encoder != "small":
        maps = AttentionPyramid(maps, heads=8)
        words |= {"dilations": (1, 2, 4), "downscale": 1.0}
        words |= {"c2s_ramp": _WARM_UP, "s2c_ramp": 0.5, "propagation_ramp": 0.5}
    built: Words = {"encoder": maps, "num_classes": num_classes, "decoder_width": _DECODER_WIDTH}
    network = method.network_from_preset(preset, **built)
    return method.from_preset(preset, network=_filled(network, encoder), **words)


def _cosa(channels: int, num_classes: int, *, encoder: str, kind: str, **words: Any) -> WSSSMethod:
    maps = TwoFusedMaps(_encoder(encoder, kind, channels), **_FUSED)
    branches: Words = {
        "decoder": "large_fov",
        "decoder_width": _DECODER_WIDTH,
        "pooled": "maps",
        **_pooling(kind, encoder),
    }
    network = TwoBranchNetwork.with_auxiliary(maps, num_classes, **branches)
    return CoSA.from_preset(network=_filled(network, encoder), **words)


def _gland(channels: int, num_classes: int, *, encoder: str, kind: str) -> WSSSMethod:
    parts: Words = {"attention": "cca", "pyramid": (2, 4, 8, 16), "fusion": "sign", "logit": "weighted"}
    return GlandClassification(
        _filled(
            GlandClassification.network_from_preset(
                encoder=_encoder(encoder, kind, channels), num_classes=num_classes, **parts, **_FUSED
            ),
            encoder,
        )
    )


def _segmenter(channels: int, num_classes: int, encoder: str, kind: str) -> Any:
    outputs = num_classes + BUDGETS[kind].background
    return _filled(FusedSegmenter(_encoder(encoder, kind, channels), outputs, **_FUSED), encoder)


def _student(channels: int, num_classes: int, *, encoder: str, kind: str) -> WSSSMethod:
    network = _segmenter(channels, num_classes, encoder, kind)
    return PseudoMaskSupervision.build(network, background=BUDGETS[kind].background, plf="paper")


def _full(channels: int, num_classes: int, *, encoder: str, kind: str) -> WSSSMethod:
    network = _segmenter(channels, num_classes, encoder, kind)
    return FullSupervision(network, background=BUDGETS[kind].background)


def _generator(channels: int, num_classes: int, *, width: int, **losses: Any) -> WSSSMethod:
    network = CoinGAN.network_from_preset(in_channels=channels, num_classes=num_classes, width=width)
    return CoinGAN.from_preset(network=network, **losses)


_BUILDERS: Mapping[str, Any] = {
    "cam": _cam,
    "seam": _seam,
    "cmer": _cmer,
    "afa": partial(_mutual, method=AFA),
    "bmp": partial(_mutual, method=BMP),
    "cosa": _cosa,
    "full": _full,
}
