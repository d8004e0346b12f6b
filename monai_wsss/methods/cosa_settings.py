# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA by words: all values of its presets with their sources, and the parts that the words stand for.

``COSA_WORDS`` is the table of the method, ``COSA_NETWORKS`` that of its network.  A value has one of these sources:

- a section, an equation or a table of the paper (Yang et al., ECCV 2024; its supplement was not at hand);
- ``released``: the authors' code and the logs of its weights, where the paper says nothing or the preset is that code;
- ``ours``: where neither says anything, or is not what small medical data need.

``"paper"`` is the paper's method.  ``"released"`` is the authors' code, in which two thresholds, a balanced
cross-entropy and an energy stand in the place of RAW, CSC and DT.  ``"default"`` is the paper's method with warm-up and
averaging in proportion to short runs, on an encoder whose ImageNet weights are at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_wsss._checks import as_flag, check_choice
from monai_wsss._labels import IGNORED
from monai_wsss.engines import Term, WeightAverage, WeightRamp
from monai_wsss.inferers import AboveHealthyLevel, MinMax, MultiScaleSeeds
from monai_wsss.losses import (
    BalancedCrossEntropyLoss,
    ContrastiveSeparationLoss,
    DenseEnergyLoss,
    ReliabilityWeightedLoss,
    SegmentationToCamLoss,
)
from monai_wsss.refinement import (
    DynamicThreshold,
    NoiseLabels,
    SegmentationLabels,
    ThresholdLabels,
    TwoThresholdLabels,
)

__all__ = ["COSA_NETWORKS", "COSA_WORDS", "CosaSettings", "Sourced"]

logger = logging.getLogger(__name__)


class Sourced(NamedTuple):
    """A value of a preset, and where it is from.

    Attributes:
        value: as the builder takes it.
        source: a place in the paper, ``released`` or ``ours``, perhaps with a reason.
    """

    value: Any
    source: str


def _table(rows: dict[str, tuple[tuple[Any, str] | None, ...]]) -> dict[str, dict[str, Sourced]]:
    """Give each preset its values, in the order of a row; presets that a row leaves out have the first value."""
    presets: dict[str, dict[str, Sourced]] = {"paper": {}, "released": {}, "default": {}}
    for word, row in rows.items():
        for values, given in zip(presets.values(), (*row, *row[:1] * 2), strict=False):
            if given is not None:
                values[word] = Sourced(*given)
    return presets


# Each word: its value in the paper, in the released code if another, by default if another than in the paper.
COSA_WORDS = _table(
    {
        "gc": ((True, "Sec. 3.1"),),
        "sa": ((True, "Sec. 3.2"),),
        "raw": ((True, "Eq. 4-5"), (False, "released")),
        "csc": ((True, "Eq. 9-10"), (False, "released")),
        "dt": ((True, "Eq. 6"), (False, "released")),
        "aux_c2s": ((True, "Eq. 11"),),
        "energy": ((False, "Eq. 11"), (True, "released")),
        "guide": (("spl", "Sec. 3.1"),),
        "detach_seeds": ((None, "the network's; none in Tab. 4a's full row"),),
        "s2c_relu": ((False, "Eq. 8"), (True, "released")),
        "c2s_loss": (("ce", "Eq. 5"), ("balanced", "released")),
        "thresholds": (("one", "Eq. 3"), ("two", "released")),
        # The sum over both levels, as in Eq. 11; the code takes their mean.
        "c2s_weight": ((0.1, "Sec. 4.1"), (0.05, "released")),
        "s2c_weight": ((0.05, "Sec. 4.1"),),
        "csc_weight": ((0.1, "Sec. 4.1"),),
        "energy_weight": ((0.05, "released"),),
        "intensity_std": ((15.0, "released"), (15.0, "released"), (0.3, "ours: of z-scores")),
        "intensity_range": ((255.0, "released"), (255.0, "released"), (None, "ours: none, z-scores")),
        "warm_up": (
            (WeightRamp("iteration", end=6000), "released"),
            (WeightRamp("iteration", end=6000), "released"),
            (0.2, "ours: about the share of the released run"),
        ),
        "momentum": (
            (0.9994, "Sec. 4.1"),
            (0.9994, "Sec. 4.1"),
            (0.99, "ours: for runs of about 2000 steps, a twentieth of a run as in the paper"),
        ),
        "scales": (((1.0, 0.5, 1.5), "released"),),
        "aux_scales": (("all", "ours: the released code keeps the last scale, by mistake"), ("last", "released")),
        "temperature": ((0.01, "Sec. 4.1"),),
        "threshold": ((0.5, "ours: before the first fit, and without DT"),),
        "low": ((0.2, "released"),),
        "high": ((0.7, "released"),),
        "queue": ((100, "Sec. 4.1"),),
        "dt_momentum": ((0.99, "released"),),
        "dt_interval": ((1, "released"),),
        "perplexity_scale": ((0.8, "Sec. 4.1"),),
        "perplexity_power": ((1.0, "Sec. 4.1"),),
        "epsilon": ((1.0, "Sec. 4.1"),),
        "raw_norm": (("batch", "Eq. 5"),),
        "csc_vector": (("cosine", "Eq. 10: M itself; the similarity is ours"),),
        "csc_temperature": ((0.5, "ours: the paper gives none"),),
        "csc_pairs": (("image", "ours"),),
        "csc_max_anchors": ((None, "Eq. 9: all"),),
        "seed_scale": (
            ("minmax", "Sec. 3.1"),
            ("minmax", "released"),
            ("reference", "ours: as in BMP trained on small data; chosen by Dice on validation images of PH2"),
        ),
        "min_peak": ((0.0, "released"),),
        "over_processes": ((True, "ours: the released code has one threshold per process"),),
    }
)
COSA_NETWORKS = _table(
    {
        "encoder": (("vit_base", "Sec. 4.1"), ("vit_base", "Sec. 4.1"), ("lite0", "ours")),
        "early_block": ((-3, "released"), (-3, "released"), None),
        "decoder": (("large_fov", "Sec. 4.1"),),
        "decoder_width": ((512, "released"), (512, "released"), (128, "ours: for small data")),
        "pooling": (("max", "Sec. 4.1"),),
        "pooled": (("features", "released"), ("features", "released"), ("maps", "ours: features can peak apart")),
        "width": (None, None, (48, "ours")),
        "stride": (None, None, (4, "ours")),
    }
)
_OF_ONE_CLASS = ("bgcat", "feature")  # vectors that say something of a single class


class WithoutReliability(nn.Module):
    """A loss of logits and labels that takes no notice of the labels' perplexity.

    Args:
        loss: (logits, label) to a scalar.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, perplexity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compare logits (B, K + 1, *S) with labels (B, *S)."""
        loss: torch.Tensor = self.loss(logits, label)
        return loss


@dataclass(frozen=True, kw_only=True)
class CosaSettings:
    """The words that choose CoSA's parts; :meth:`of_preset` gives them the values of ``COSA_WORDS``.

    Args:
        gc: guided class maps: whether the segmentation teaches them (L_s2c).
        sa: swapped assignments: whether an averaged network makes the labels; else the online network does.
        raw: reliability-based adaptive weighting of L_c2s.
        csc: contrastive separation.
        dt: whether thresholds follow the class maps; else they stay at ``threshold``.
        aux_c2s: whether the class maps of the earlier level teach the segmentation, too.
        energy: the dense energy of the released code.
        guide: what guides the class maps: ``"spl"``; ``"noise"``, random masks; ``"none"``, as ``gc`` off.
        detach_seeds: what losses on the class maps do not train, see :class:`~monai_wsss.networks.TwoBranchNetwork`:
            ``"none"``, ``"features"``, ``"weights"`` or ``"all"``; None: as the network has it.
        s2c_relu: cut class maps at 0 before L_s2c.
        c2s_loss: ``"ce"``, or ``"balanced"`` between background and foreground, which ``raw`` cannot weight.
        thresholds: ``"one"``, or ``"two"``, ``low`` and ``high``, between which pixels are ignored; with ``dt`` they
            follow the limits of three Gaussians, as the released code can, which does not by default.
        c2s_weight: lambda_c2s, of each of both levels.
        s2c_weight: lambda_s2c.
        csc_weight: lambda_csc.
        energy_weight: of the energy.
        intensity_std: of the energy, see :class:`~monai_wsss.losses.DenseEnergyLoss`.
        intensity_range: of the images, see there.
        warm_up: when all terms but the classification begin: a :class:`~monai_wsss.engines.WeightRamp`, or a share of
            the run, or ``"none"``; a whole number above 1 is a number of iterations.
        momentum: m of the averaged network.
        scales: of the images that labels are made of.
        aux_scales: ``"all"`` of them for M†', or the ``"last"``.
        temperature: tau of Y^SPL.
        threshold: xi at first, or throughout without ``dt``.
        low: see ``thresholds``; at first, or throughout without ``dt``.
        high: see ``thresholds``.
        queue: images whose scores determine the threshold.
        dt_momentum: share of the past in each change of the threshold.
        dt_interval: steps between two fits.
        perplexity_scale: lambda_a.
        perplexity_power: lambda_b.
        epsilon: greatest perplexity of pixels in L_csc.
        raw_norm: the mean weight is 1 over the ``"batch"`` or over each ``"image"``.
        csc_vector: ``"cosine"`` of the class maps, of their ``"sigmoid"``, or ``"bgcat"``, with the background beside
            them; or of the encoder's last ``"feature"`` map. One class has ``"bgcat"`` or ``"feature"`` in any case.
        csc_temperature: tau of L_csc.
        csc_pairs: pairs of pixels within each ``"image"``, or within the ``"batch"``.
        csc_max_anchors: at most so many pixels per image, drawn at random; None: all.
        seed_scale: ``"minmax"``: class maps are scaled per image and class from 0 to the image's peak; ``"reference"``:
            they are 0 at the level of images without the class, which training follows, for networks with
            ``pooled="maps"``.
        min_peak: class maps that peak lower are not scaled to 1, see :class:`~monai_wsss.inferers.MinMax`; for
            ``seed_scale="minmax"`` alone.
        over_processes: whether thresholds, weights and separation are those of the batch of all processes.

    Raises:
        ValueError: an unknown choice, or words that do not go together.
    """

    gc: bool
    sa: bool
    raw: bool
    csc: bool
    dt: bool
    aux_c2s: bool
    energy: bool
    guide: str
    detach_seeds: str | None
    s2c_relu: bool
    c2s_loss: str
    thresholds: str
    c2s_weight: float
    s2c_weight: float
    csc_weight: float
    energy_weight: float
    intensity_std: float
    intensity_range: float | None
    warm_up: WeightRamp | float | str
    momentum: float
    scales: tuple[float, ...]
    aux_scales: str
    temperature: float
    threshold: float
    low: float
    high: float
    queue: int
    dt_momentum: float
    dt_interval: int
    perplexity_scale: float
    perplexity_power: float
    epsilon: float
    raw_norm: str
    csc_vector: str
    csc_temperature: float
    csc_pairs: str
    csc_max_anchors: int | None
    seed_scale: str
    min_peak: float
    over_processes: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                value = as_flag(field.name, value)
            elif field.name == "warm_up":
                value = _warm_up(value)
            elif field.name == "scales":
                value = tuple(value)
            elif field.type == "float":
                value = float(value)
            object.__setattr__(self, field.name, value)
        check_choice("guide", self.guide, ("spl", "noise", "none"))
        check_choice("c2s_loss", self.c2s_loss, ("ce", "balanced"))
        check_choice("thresholds", self.thresholds, ("one", "two"))
        check_choice("seed_scale", self.seed_scale, ("minmax", "reference"))
        check_choice("csc_vector", self.csc_vector, ("cosine", "sigmoid", "bgcat", "feature"))
        if self.raw and (self.c2s_loss == "balanced" or self.thresholds == "two"):
            raise ValueError(
                "Expected `raw` False for `c2s_loss` 'balanced' or `thresholds` 'two': neither has its weights."
            )
        if self.min_peak and self.seed_scale == "reference":
            raise ValueError("Expected `min_peak` 0 for `seed_scale` 'reference': only 'minmax' has a least peak.")

    @classmethod
    def of_preset(cls, preset: str = "default", **words: Any) -> CosaSettings:
        """Give the words of a preset, some of them set otherwise.

        Raises:
            ValueError: an unknown preset; TypeError: an unknown word.

        Example:
            >>> CosaSettings.of_preset("released").high, CosaSettings.of_preset("paper", raw=False).raw
            (0.7, False)
        """
        check_choice("preset", preset, tuple(COSA_WORDS))
        return cls(**{**{word: one.value for word, one in COSA_WORDS[preset].items()}, **words})

    def for_classes(self, num_classes: int) -> CosaSettings:
        """Replace what says nothing for K classes: the cosine of single numbers is 1 or -1, without gradient."""
        if num_classes >= IGNORED:
            raise ValueError(f"Expected fewer than {IGNORED} classes, a label that marks doubt, got {num_classes}.")
        if num_classes > 1 or not self.csc or self.csc_vector in _OF_ONE_CLASS:
            return self
        logger.warning(
            "L_csc of one class compares the class map and its background (`csc_vector` 'bgcat'): the %s of a single "
            "map would teach nothing.",
            self.csc_vector,
        )
        return replace(self, csc_vector="bgcat")

    def parts(self, num_classes: int) -> dict[str, Any]:
        """Build the parts that :class:`~monai_wsss.methods.CoSA` receives, for K classes."""
        words = self.for_classes(num_classes)
        c2s: nn.Module = ReliabilityWeightedLoss(
            normalize=words.raw_norm, over_processes=words.over_processes, validate_args=False
        )
        if words.c2s_loss == "balanced":
            c2s = BalancedCrossEntropyLoss(validate_args=False)
        c2s = c2s if words.raw else WithoutReliability(c2s)
        csc = ContrastiveSeparationLoss(
            vectors=words.csc_vector,
            temperature=words.csc_temperature,
            pairs=words.csc_pairs,
            max_anchors=words.csc_max_anchors,
            over_processes=words.over_processes,
        )
        guide = NoiseLabels if words.guide == "noise" else SegmentationLabels
        energy = DenseEnergyLoss(
            intensity_std=words.intensity_std, intensity_range=words.intensity_range, validate_args=False
        )
        return {
            "seeds": MultiScaleSeeds(
                words._scale(num_classes),
                words.scales,
                auxiliary_scale=words._scale(num_classes),
                seeds=("seeds", "auxiliary_seeds"),
                aux_scales=words.aux_scales,
                sum_logits=True,
                upsample=False,
            ),
            "labels": words._labels(),
            "auxiliary_labels": words._labels(),
            "guide": guide(words.temperature),
            "c2s": words._term(c2s, words.c2s_weight),
            "auxiliary_c2s": words._term(c2s, words.c2s_weight, words.aux_c2s),
            "s2c": words._term(
                SegmentationToCamLoss(relu=words.s2c_relu), words.s2c_weight, words.gc and words.guide != "none"
            ),
            "csc": words._term(csc, words.csc_weight, words.csc),
            "energy": words._term(energy, words.energy_weight, words.energy),
            "average": WeightAverage(words.momentum) if words.sa else None,
        }

    def _scale(self, num_classes: int) -> MinMax | AboveHealthyLevel:
        return MinMax(self.min_peak) if self.seed_scale == "minmax" else AboveHealthyLevel(num_classes)

    def _term(self, loss: nn.Module, weight: float, on: bool = True) -> Term | None:
        assert isinstance(self.warm_up, WeightRamp)
        return Term(loss, weight, self.warm_up) if on and weight > 0 else None

    def _labels(self) -> ThresholdLabels | TwoThresholdLabels:
        two = self.thresholds == "two"
        if two and not self.dt:
            return TwoThresholdLabels(low=self.low, high=self.high)
        options: Any = {"queue": self.queue, "momentum": self.dt_momentum, "interval": self.dt_interval}
        first = (self.low, self.high) if two else self.threshold
        kind = "three_components" if two else "mixture" if self.dt else "fixed"
        threshold = DynamicThreshold(first, kind=kind, over_processes=self.over_processes, **options)
        if two:
            return TwoThresholdLabels(low=self.low, high=self.high, threshold=threshold)
        return ThresholdLabels(
            threshold, scale=self.perplexity_scale, power=self.perplexity_power, epsilon=self.epsilon
        )

    def record(self, preset: str, num_classes: int, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the words as values that JSON can hold, and under ``sources`` where each is from, and the network's."""
        words = {field.name: getattr(self, field.name) for field in fields(self)}
        given = type(self).of_preset(preset)
        sources = {
            word: one.source if getattr(given, word) == words[word] else "set otherwise"
            for word, one in COSA_WORDS[preset].items()
        }
        if self.csc and num_classes == 1 and self.csc_vector not in _OF_ONE_CLASS:
            words["csc_vector"], sources["csc_vector"] = "bgcat", "ours: one class"
        ramp = self.warm_up
        assert isinstance(ramp, WeightRamp)
        words["warm_up"] = f"{ramp.shape} until {ramp.end:g}" if ramp.shape != "none" else "none"
        words["scales"] = list(self.scales)
        return {**words, "sources": (network or {}).get("sources", {}) | sources}


def _warm_up(given: Any) -> WeightRamp:
    """Read a ramp: a ramp, a share of the run, a number of iterations, or none."""
    if given in (None, 0, "none", "None"):
        return WeightRamp("none")
    if not isinstance(given, WeightRamp) and float(given) > 1:
        return WeightRamp("iteration", end=float(given))
    return WeightRamp.of(given)
