# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is measured of a method: its masks, subject by subject, and what image-level labels alone can tell.

``image_auroc`` needs no mask: how well the network's own score of an image tells whether a class is in it, the pooled
map of networks that give class maps, and the mean probability of the class of networks that give segmentations.  On
tiles it is measured on the tiles of the split, else on its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from torch import nn

from monai_wsss.benchmark.encoder_recipes import BUDGETS
from monai_wsss.benchmark.encoder_table import Decided, decide_cases, rule_of_kind, table_of
from monai_wsss.benchmark.kept_cases import write_kept_cases
from monai_wsss.benchmark.prepared import PreparedData
from monai_wsss.benchmark.rows import Measured
from monai_wsss.benchmark.table import BenchmarkTable, Trained
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.data import load_datalist
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.metrics import CaseTable
from monai_wsss.metrics.bootstrap import bootstrap_interval, bootstrap_weights, mean_of_estimates, presence_estimate
from monai_wsss.refinement import MaskRule

__all__ = [
    "GradientMaps",
    "deciding_network",
    "image_auroc",
    "image_scores",
    "measure_method",
    "measured_tiles",
    "rule_words",
    "subject_dice",
    "tell_subjects",
    "tile_scores",
]

_SAMPLES = 1000
_TOGETHER = 32

Metrics = dict[str, dict[str, Any]]


class GradientMaps(nn.Module):
    """Grad-CAM++ of the fused maps of a class-map network, as a network of its own: ``(B, C, *S) -> (B, K, *S)``.

    Args:
        network: of :func:`~monai_wsss.networks.fused_cam_network`.
        gate: see :class:`~monai_wsss.inferers.GradientCAMInferer`.
    """

    output_kind = "activation"

    def __init__(self, network: nn.Module, gate: str) -> None:
        super().__init__()
        self.network = network
        self.inferer = GradientCAMInferer("backbone", variant="gradcam++", gate=gate)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the maps."""
        maps: torch.Tensor = self.inferer(image, self.network)
        return maps


class ClassMaps(nn.Module):
    """The class maps of a network with two branches, as a network of their own: ``(B, C, *S) -> (B, K, *S)``.

    Args:
        network: a :class:`~monai_wsss.networks.TwoBranchNetwork`.
    """

    output_kind = "activation"

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the maps."""
        maps: torch.Tensor = self.network.branches(image).seeds
        return maps


def measure_method(
    data: PreparedData,
    kind: str,
    method: str,
    table: BenchmarkTable,
    trained: Sequence[Trained],
    *,
    cases_file: Path | None = None,
) -> Iterator[Measured]:
    """Measure the masks of a trained method, its score maps, and its image-level score.

    Args:
        data: the dataset.
        kind: of the data, ``"slices"``, ``"tiles"`` or ``"patches"``.
        method: its name on the command line.
        table: the table that asks.
        trained: the one training.
        cases_file: where to keep small masks and score maps of the cases, for a page.
    """
    (one,) = trained
    network: Any = one.method.network
    shown, rule = deciding_network(network, method, kind, data)
    cases, maps = data.whole_maps(one.recipe, shown)
    decided = _with_scores(cases, maps, rule, decide_cases(cases, maps, rule, None))
    measured = table_of(data, cases, decided)
    metrics = measured.summary()
    metrics |= _class_map_quality(data, one)
    if cases_file is not None:
        write_kept_cases(cases_file, measured, decided, metrics)
    tell_subjects(metrics, measured)
    if kind == "tiles":
        scored = measured_tiles(data)
        scores = tile_scores(scored, network)
    else:
        scored = cases
        own = maps if shown is network else data.whole_maps(one.recipe, network)[1]
        scores = [image_scores(network, each, kind)[0] for each in own]
    metrics |= image_auroc([case["subject"] for case in scored], [case["label"] for case in scored], scores)
    count = sum(parameter.numel() for parameter in network.parameters())
    yield Measured("", {**metrics, "parameters": {"mean": count}})


def deciding_network(network: Any, method: str, kind: str, data: PreparedData | None = None) -> tuple[Any, MaskRule]:
    """Give the network whose maps are decided, and the rule; Grad-CAM++ is a network around that of plain CAM.

    Args:
        network: trained.
        method: its name on the command line.
        kind: of the data.
        data: see :func:`rule_words`.
    """
    words = rule_words(method, kind, data)
    if method == "gradcam++":
        # The maps themselves are gated.
        return GradientMaps(network, words["gate"]), MaskRule(rule=words["rule"], gate="none")
    gated = words["gate"] == "predicted"
    return network, rule_of_kind(network, words["rule"], gated=gated, topk_pixels=words.get("topk_pixels"))


def rule_words(method: str, kind: str, data: PreparedData | None = None) -> dict[str, Any]:
    """Name the rule that decides class maps, and its gate: those of the kind of the data, but of some methods.

    Grad-CAM++ has no healthy level, and is cut at half of an image's peak; CoinGAN's differences are cut by Otsu.
    Segmentations are decided by their own highest class.

    Args:
        method: its name on the command line.
        kind: of the data.
        data: the dataset; tiles of several classes add how many pixels of a whole image decide on presence.

    Example:
        >>> rule_words("coingan", "slices"), rule_words("cam", "patches")
        ({'rule': 'otsu', 'gate': 'predicted'}, {'rule': 'argmax', 'gate': 'none'})
    """
    rule = BUDGETS[kind].rule
    if method == "gradcam++" and kind != "patches":
        rule = "max"  # its maps have no healthy level
    if method == "coingan":
        rule = "otsu"
    words = {"rule": rule, "gate": "predicted" if kind == "slices" else "none"}
    pixels = data.topk_pixels(BUDGETS[kind].topk_share) if isinstance(data, Tiles) else None
    if pixels is None or method == "gradcam++":
        return words
    return {**words, "gate": "predicted", "topk_pixels": pixels}


def subject_dice(table: CaseTable) -> list[float | None]:
    """Give the Dice of each subject in the order of their names, which are left out; None without a finding.

    Of several classes it is the mean over those that the subject has, or that of the scored class.

    Example:
        >>> table = CaseTable(["tumor"])
        >>> mask = np.ones((1, 4, 4), dtype=np.uint8)
        >>> table.add(id="b1", subject="b", label=np.ones(1), prediction=mask, reference=mask)
        >>> table.add(id="a1", subject="a", label=np.zeros(1), prediction=mask)
        >>> subject_dice(table)
        [None, 1.0]
    """
    scheme = table.scheme
    labels = [scheme.classes.index(scheme.scored_class) + 1] if scheme.scored_class else list(scheme.labels)
    values = []
    for row in table.subject_rows:
        known = [row[scheme.key("dice", label)] for label in labels]
        known = [value for value in known if value is not None]
        values.append(float(np.mean(known)) if known else None)
    return values


def tell_subjects(metrics: Metrics, table: CaseTable) -> None:
    """Add to a summary what a leaderboard needs: the Dice of each subject, and the number of healthy images.

    Args:
        metrics: of the table; changed.
        table: of the cases.
    """
    if "dice_subject" in metrics:
        metrics["dice_subject"]["subjects"] = subject_dice(table)
    if "healthy_clean" in metrics:
        metrics["healthy_clean"]["images"] = sum(row.get("healthy") == 1 for row in table.rows)


@torch.no_grad()
def _with_scores(
    cases: Sequence[Any], maps: Sequence[torch.Tensor], rule: MaskRule, decided: Sequence[Decided]
) -> list[Decided]:
    """Add the score map of each case; a case that is decided in a region alone has none."""
    return [
        one if "region" in case else one._replace(scores=rule.score_maps(scores)[0])
        for case, scores, one in zip(cases, maps, decided, strict=True)
    ]


def _class_map_quality(data: PreparedData, one: Trained) -> Metrics:
    """Measure the class maps beside the segmentation of a network with two branches, from 0 to the peak of the image.

    Both numbers are of maps before any decision; the best threshold reads masks and is no result.
    """
    network: Any = one.method.network
    if not hasattr(network, "branches"):
        return {}
    cases, maps = data.whole_maps(one.recipe, ClassMaps(network))
    rule = MaskRule(rule="max", gate="none")
    found = table_of(data, cases, _with_scores(cases, maps, rule, decide_cases(cases, maps, rule, None))).summary()
    names = ("pixel_auroc", "oracle_dice_subject")
    return {f"class_map_{name}": found[name] for name in names if name in found}


@torch.no_grad()
def image_scores(network: Any, maps: torch.Tensor, kind: str) -> torch.Tensor:
    """Give the score of each class, (B, K), from what a network gives of whole images."""
    if network.output_kind == "segmentation":
        return maps.softmax(1).flatten(2).mean(2)[:, int(BUDGETS[kind].background) :]
    presence = MaskRule.of(network, gate="none")(maps).presence
    assert presence is not None
    return presence


@torch.no_grad()
def tile_scores(tiles: Sequence[Mapping[str, Any]], network: Any) -> list[torch.Tensor]:
    """Give the scores (K,) of tiles of one size."""
    scores: list[torch.Tensor] = []
    for start in range(0, len(tiles), _TOGETHER):
        images = torch.stack([torch.as_tensor(tile["image"]).float() for tile in tiles[start : start + _TOGETHER]])
        scores.extend(image_scores(network, network(images), "tiles"))
    return scores


def measured_tiles(data: PreparedData) -> list[dict[str, Any]]:
    """Read the tiles of the measured split."""
    items = load_datalist(data.datalist, f"{data.split}_tiles")
    return list(CacheDataset(items, Compose(data.reading(["image"])), progress=False))


def image_auroc(subjects: Sequence[str], labels: Sequence[Any], scores: Sequence[torch.Tensor]) -> Metrics:
    """Give the area under the ROC curve of image-level scores, mean over the classes, with its interval."""
    names = sorted(set(subjects))
    subject = np.array([names.index(name) for name in subjects])
    shown, scored = np.stack([np.asarray(label) for label in labels]), np.stack([each.numpy() for each in scores])
    estimate = mean_of_estimates(
        [presence_estimate(scored[:, k], shown[:, k], subject, num_subjects=len(names)) for k in range(shown.shape[1])]
    )
    interval = bootstrap_interval(estimate, bootstrap_weights(len(names), samples=_SAMPLES, seed=0))
    if interval is None:
        return {}
    return {"image_auroc": {"mean": interval.mean, "ci95": [interval.low, interval.high], "n": len(names)}}
