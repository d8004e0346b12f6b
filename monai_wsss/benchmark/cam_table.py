# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of plain CAM: poolings x decision rules x seeds, beside full supervision and trivial references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from monai_wsss.benchmark.recipe_table import Cases, RecipeTable, Row, decision_options, maps_of
from monai_wsss.benchmark.recipes import RECIPES, Recipe
from monai_wsss.cams import pool_maps
from monai_wsss.data import load_header
from monai_wsss.inferers import GradientCAMInferer, VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import MapEnsemble
from monai_wsss.refinement.oracle import oracle_raw_threshold
from monai_wsss.transforms import resize_in_plane

__all__ = ["CamTable"]


@dataclass(frozen=True)
class CamTable(RecipeTable):
    """The benchmark of plain CAM; the arguments are those of :class:`RecipeTable`."""

    name: ClassVar[str] = "table"

    def _all_rows(self) -> Iterator[tuple[str, list[Row]]]:
        header = load_header(self.datalist)
        channels, classes = len(header["modality"]), len(header["classes"])
        trained: dict[str, list[torch.nn.Module]] = {}
        for name, recipe in RECIPES.items():
            networks = [self._train(name, recipe, seed, channels, classes).network.eval() for seed in self.seeds]
            trained[name] = list(networks)
            yield from self._network_rows(name, recipe, networks)
        singles = trained["max"]
        yield "max / Grad-CAM++, max-norm 0.5", self._gradient_rows(singles)
        ensemble = ClassActivationMapping(MapEnsemble(singles)).eval()  # type: ignore[arg-type]
        ensemble.finalize(self._loader(RECIPES["max"], 0, masks=False))
        yield from self._network_rows(f"max, mean of {len(self.seeds)} seeds", RECIPES["max"], [ensemble.network])
        yield from self._trivial_rows(singles[0])

    def _network_rows(
        self, name: str, recipe: Recipe, networks: Sequence[torch.nn.Module]
    ) -> Iterator[tuple[str, list[Row]]]:
        cases = self._cases(recipe.by_subject)
        inferer = VolumeInferer(2, grid=self.grid, views=recipe.views)
        maps = [maps_of(cases, partial(inferer, network=network)) for network in networks]
        for rule in recipe.rules:
            results = [
                self._measure(cases, per_case, decision_options(network, rule))
                for network, per_case in zip(networks, maps, strict=True)
            ]
            yield f"{name} / {rule or 'argmax'}", results
        if "negative_reference" in recipe.rules[:1]:
            results = [
                self._measure(cases, per_case, _oracle_options(network, cases, per_case))
                for network, per_case in zip(networks, maps, strict=True)
            ]
            yield f"{name} / ORACLE raw threshold (chosen on the masks)", results

    def _gradient_rows(self, networks: Sequence[torch.nn.Module]) -> list[Row]:
        """Grad-CAM++ at the last block of each network, gated by the network's own logits."""
        cases = self._cases(by_subject=True)
        inferer = GradientCAMInferer("encoder", variant="gradcam++", gate="predicted")
        options = {"rule": "max", "gate": "none"}
        maps = [maps_of(cases, partial(self._on_grid, inferer, network)) for network in networks]
        return [self._measure(cases, per_case, options) for per_case in maps]

    def _on_grid(self, inferer: GradientCAMInferer, network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        return resize_in_plane(inferer(resize_in_plane(image, self.grid), network), image.shape[2:])

    def _trivial_rows(self, network: torch.nn.Module) -> Iterator[tuple[str, list[Row]]]:
        """References without a learned map: FLAIR above a level; the whole image where the network sees a finding."""
        header = load_header(self.datalist)
        cases = self._cases(by_subject=True)
        names = [header["modality"][str(channel)] for channel in range(len(header["modality"]))]
        if "FLAIR" in names:
            channel = names.index("FLAIR")
            flair = [torch.as_tensor(case["image"])[None, channel : channel + 1].float() for case in cases]
            for level in (0.0, 1.0, 1.5, 2.0):
                options = {"rule": "fixed", "threshold": level, "gate": "none"}
                yield f"trivial: FLAIR > {level} SD", [self._measure(cases, flair, options)]
        inferer = VolumeInferer(2, grid=self.grid)
        present = maps_of(cases, lambda image: (inferer(image, network).amax((2, 3), keepdim=True) > 0).float())
        whole = [value.expand(-1, -1, *case["image"].shape[1:]) for value, case in zip(present, cases, strict=True)]
        options = {"rule": "fixed", "threshold": 0.5, "gate": "none"}
        yield "trivial: whole slice where the network sees a finding", [self._measure(cases, whole, options)]


def _oracle_options(network: torch.nn.Module, cases: Cases, maps: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The raw threshold, of 121 from -6 to 6, that the masks call best: a bound of fixed thresholds, no rule to use."""
    options = decision_options(network, "fixed")
    gated = []
    for scores in maps:
        presence = pool_maps(scores, options["pooling"], topk_share=network.topk_share)[0, 0] > 0  # type: ignore[arg-type]
        gated.append(scores[0] if presence else torch.full_like(scores[0], -torch.inf))
    masks = [
        torch.as_tensor(case.get("mask", torch.zeros_like(scores))) for case, scores in zip(cases, gated, strict=True)
    ]
    candidates = torch.linspace(-6, 6, 121).tolist()
    chosen = oracle_raw_threshold(gated, masks, candidates, subjects=[case["subject"] for case in cases])
    return options | {"threshold": chosen.oracle_threshold}
