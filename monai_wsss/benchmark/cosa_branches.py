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

Maps and logits are those that teach: over the scales of the data and the mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from monai_wsss._resize import resize_linear
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.inferers import MultiScaleSeeds
from monai_wsss.refinement import LabeledImages, MaskRule

__all__ = ["ENSEMBLE", "BranchMaps", "Cuts", "LabelMaps", "branch_maps", "branch_masks", "cut_maps", "cuts_of"]

ENSEMBLE = "ensemble"
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
        logits: segmentation logits (K + 1, *S).
    """

    maps: torch.Tensor
    auxiliary: torch.Tensor
    logits: torch.Tensor


def cuts_of(method: Any) -> Cuts:
    """Read the thresholds that a trained method has come to."""
    return Cuts(float(method.threshold.value), float(method.auxiliary_threshold.value))


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
    for start in tqdm(range(0, len(cases), _TOGETHER), desc="branches", leave=False):
        images = [torch.as_tensor(case["image"]).float() for case in cases[start : start + _TOGETHER]]
        labels = torch.stack([torch.as_tensor(case["label"]).float() for case in cases[start : start + _TOGETHER]])
        alike = len({image.shape for image in images}) == 1
        batches = [(torch.stack(images), labels)] if alike else list(zip([i[None] for i in images], labels.split(1)))
        for image, label in batches:
            on_grid = image if grid is None else resize_linear(image, grid)
            found = seeds(network, LabeledImages(on_grid, label))
            found = tuple(resize_linear(each, image.shape[2:]) for each in found)
            result.extend(map(BranchMaps, *(each.unbind(0) for each in found)))
    return result


def cut_maps(maps: torch.Tensor, cut: float) -> torch.Tensor:
    """Cut maps (K, *S): the mask (1, *S), 0 below the cut, else the strongest class 1..K.

    Example:
        >>> cut_maps(torch.tensor([[0.2, 0.5, 0.1], [0.1, 0.6, 0.7]]), 0.5).tolist()
        [[0, 2, 2]]
    """
    strength, winner = maps.max(dim=0, keepdim=True)
    return torch.where(strength >= cut, winner + 1, 0).to(torch.uint8)


def branch_masks(maps: BranchMaps, cuts: Cuts, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give the masks (1, *S) of one image by name.

    Args:
        maps: of the image.
        cuts: thresholds of both class maps.
        label: (K,), 0/1.
    """
    absent = F.pad(label == 0, (1, 0)).reshape(-1, *[1] * (maps.logits.ndim - 1))
    return {
        "CPL": cut_maps(maps.maps, cuts.maps),
        "CPL†": cut_maps(maps.auxiliary, cuts.auxiliary),
        ENSEMBLE: cut_maps((maps.maps + maps.auxiliary) / 2, (cuts.maps + cuts.auxiliary) / 2),
        "S": maps.logits.argmax(0, keepdim=True).to(torch.uint8),
        "S given": maps.logits.masked_fill(absent, -torch.inf).argmax(0, keepdim=True).to(torch.uint8),
    }


class LabelMaps(nn.Module):
    """A network's rectified class maps as a network of their own: they become the pseudo-masks of CoSA-MS.

    Args:
        network: of two branches.
        cut: threshold of the maps, scaled from their lowest to their highest value.

    Example:
        >>> from monai_wsss.networks import TwoBranchNetwork
        >>> LabelMaps(TwoBranchNetwork.tiny(), 0.4)(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    output_kind = "activation"

    def __init__(self, network: nn.Module, cut: float) -> None:
        super().__init__()
        self.network = network
        self.cut = cut

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give ReLU(max(M, mirrored M)): ``(B, C, *S) -> (B, K, *S)``."""
        network: Any = self.network
        mirrored = network.branches(image.flip(-1)).seeds.flip(-1)
        return F.relu(torch.maximum(network.branches(image).seeds, mirrored))

    def mask_rule(self) -> MaskRule:
        """Give the rule of the maps: min-max, cut at :attr:`cut`."""
        return MaskRule(rule="minmax", threshold=self.cut)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of the network itself, as they lie in its file."""
        return self.network.load_state_dict(state_dict, strict, assign)
