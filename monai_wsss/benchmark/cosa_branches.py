# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The masks of both branches of both networks of CoSA, of whole images.

| name         | mask                                                                              | labels |
|--------------|-----------------------------------------------------------------------------------|--------|
| ``CPL``      | class maps M' above the dynamic threshold                                         | given  |
| ``CPL†``     | auxiliary class maps M†' above their own                                          | given  |
| ``ensemble`` | the mean of both maps above the mean of both thresholds                           | given  |
| ``S``        | segmentation                                                                      | none   |
| ``S given``  | segmentation without the classes that the image does not hold (the paper's column)| given  |

Maps and logits are those that teach: over the scales of the data and the mirror image.  Logits are summed over all
these passes, as the released code does, before a CRF reads their softmax as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from monai_wsss._resize import resize_linear
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.engines.branch_masks import branch_maps_of, decided_masks, in_batches, threshold_of
from monai_wsss.inferers import MultiScaleSeeds
from monai_wsss.inferers.multi_scale import sum_over_scales
from monai_wsss.refinement import LabeledImages, MaskRule

__all__ = [
    "BranchMaps",
    "Cuts",
    "LabelMaps",
    "branch_maps",
    "branch_masks",
    "cut_maps",
    "cuts_of",
    "segmentation_logits",
]

_TOGETHER = 32


class Cuts(NamedTuple):
    """The thresholds of the class maps and of the auxiliary class maps, in (0, 1)."""

    maps: float
    auxiliary: float


class BranchMaps(NamedTuple):
    """What both branches of one network say of one image.

    Attributes:
        maps: M' (K, *S) in [0, 1], 0 for classes that the image does not hold.
        auxiliary: M†', likewise.
        logits: segmentation logits (K + 1, *S), summed over the passes.
    """

    maps: torch.Tensor
    auxiliary: torch.Tensor
    logits: torch.Tensor


def cuts_of(method: Any) -> Cuts:
    """Read the thresholds that a trained method has come to; of two, the middle between them."""
    return Cuts(*(threshold_of(maker)() for maker in (method.labels, method.auxiliary_labels)))


@torch.no_grad()
def branch_maps(
    seeds: MultiScaleSeeds, network: Any, cases: Cases, grid: Sequence[int] | None = None
) -> list[BranchMaps]:
    """Give the maps of cases, those of one size together.

    Args:
        seeds: gives M', M†' and the logits over scales; what teaches in the training.
        network: the assignment or the online network, in evaluation mode.
        cases: with ``image`` (C, *S) and ``label``.
        grid: in-plane size of the network; None for the images' own.
    """
    result: list[BranchMaps] = []
    for image, label, size in _batches(cases, grid):
        result.extend(map(BranchMaps, *branch_maps_of(seeds, network, LabeledImages(image, label), size)))
    return result


@torch.no_grad()
def segmentation_logits(
    network: nn.Module, cases: Cases, scales: Sequence[float], grid: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """Give the logits (K + 1, *S) of any segmenter, summed over the same scales and the mirror image.

    Args:
        network: in evaluation mode.
        cases: see :func:`branch_maps`.
        scales: factors of the images' size.
        grid: see :func:`branch_maps`.
    """
    result: list[torch.Tensor] = []
    for image, _, size in _batches(cases, grid):
        (logits,) = sum_over_scales(lambda scaled: [network(scaled)], image, ["average"], scales)
        result.extend(resize_linear(2 * logits, size))  # two mirror images, of which it is the mean
    return result


def _batches(cases: Cases, grid: Sequence[int] | None) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Size]]:
    """Give images on the grid, labels and the images' own size; images of one size together."""
    with tqdm(total=len(cases), desc="branches", leave=False) as bar:
        for together in in_batches(cases, _TOGETHER, lambda case: tuple(case["image"].shape)):
            image = torch.stack([torch.as_tensor(case["image"]).float() for case in together])
            label = torch.stack([torch.as_tensor(case["label"]).float() for case in together])
            yield image if grid is None else resize_linear(image, grid), label, image.shape[2:]
            bar.update(len(together))


def cut_maps(maps: torch.Tensor, cut: float) -> torch.Tensor:
    """Cut maps (K, *S): the mask (1, *S), 0 below the cut, else the strongest class 1..K.

    Example:
        >>> cut_maps(torch.tensor([[[0.2, 0.5, 0.1]], [[0.1, 0.6, 0.7]]]), 0.5).tolist()
        [[[0, 2, 2]]]
    """
    return decided_masks(maps[None], cut)[0]


def branch_masks(maps: BranchMaps, cuts: Cuts, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give the masks (1, *S) of one image by name.

    Args:
        maps: of the image.
        cuts: thresholds of both class maps.
        label: (K,), 0/1.
    """
    both = (maps.maps + maps.auxiliary) / 2
    return {
        "CPL": cut_maps(maps.maps, cuts.maps),
        "CPL†": cut_maps(maps.auxiliary, cuts.auxiliary),
        "ensemble": cut_maps(both, (cuts.maps + cuts.auxiliary) / 2),
        "S": decided_masks(maps.logits[None], None)[0],
        "S given": decided_masks(maps.logits[None], None, label[None])[0],
    }


class LabelMaps(nn.Module):
    """A network's class maps as a network of their own: they become the pseudo-masks of CoSA-MS.

    Args:
        network: of two branches.
        cut: threshold of the maps, scaled from 0, or from the healthy level, to their peak, as those that teach.
        level: the healthy level (K,) that the class maps begin at; None: they begin at 0.

    Example:
        >>> from monai_wsss.networks import TwoBranchNetwork
        >>> LabelMaps(TwoBranchNetwork.tiny(), 0.4)(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    output_kind = "activation"

    def __init__(self, network: nn.Module, cut: float, level: torch.Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.cut = cut
        self.level = level

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give ReLU(max(M, mirrored M)), or max(M, mirrored M) - level: ``(B, C, *S) -> (B, K, *S)``."""
        network: Any = self.network
        maps = torch.maximum(network.branches(image).seeds, network.branches(image.flip(-1)).seeds.flip(-1))
        if self.level is None:
            return F.relu(maps)
        return maps - self.level.to(maps).reshape(1, -1, *[1] * (maps.ndim - 2))

    def mask_rule(self) -> MaskRule:
        """Give the rule of the maps: min-max, cut at :attr:`cut`."""
        return MaskRule(rule="minmax", threshold=self.cut)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of the network itself, as they lie in its file."""
        return self.network.load_state_dict(state_dict, strict, assign)
