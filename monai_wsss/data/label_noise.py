# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Wrong image-level labels on purpose: how much a method suffers from the mistakes of those who labeled.

A share of the training images gets a wrong label: one class, drawn for each of them, is turned from present to absent
or back.  With one class that is the other label.  Labels of validation and test stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_wsss._checks import as_flag, check_choice

__all__ = ["LabelNoise"]

logger = logging.getLogger(__name__)


class LabelNoise:
    """Give training items of which a share has a wrong label; the same for the same seed and items.

    Args:
        share: of the items, in [0, 1]; 0 leaves all as they are.
        among: which items may get a wrong label: ``"all"``, drawn regardless of their labels; ``"each"``, the same
            share of those with a finding and of healthy ones; ``"diseased"`` or ``"healthy"``, the share of these.
        keep_one: an image that has a class keeps one: for data without background, whose images all have some.
        seed: of the draws.

    Attributes:
        settings: the words, and how many labels were changed in the last call, for the run's record.

    Raises:
        ValueError: a share outside [0, 1], or an unknown choice.

    Example:
        >>> noise = LabelNoise(0.5)
        >>> [int(item["label"][0]) for item in noise([{"label": [1.0]}] * 2 + [{"label": [0.0]}] * 2)]
        [1, 0, 1, 0]
        >>> noise.settings["label_noise"]["lost"], noise.settings["label_noise"]["gained"]
        (1, 1)
    """

    def __init__(self, share: float = 0.1, *, among: str = "all", keep_one: bool | str = False, seed: int = 0) -> None:
        share = float(share)
        if not 0 <= share <= 1:
            raise ValueError(f"Expected `share` of wrong labels in [0, 1], got {share}.")
        check_choice("among", among, ("all", "each", "diseased", "healthy"))
        self.share = share
        self.among = among
        self.keep_one = as_flag("keep_one", keep_one)
        self.seed = int(seed)
        self._changed = {"lost": 0, "gained": 0}

    @property
    def settings(self) -> dict[str, Any]:
        """Give the words, the number of classes that images lost and that of those they gained."""
        if not self.share:
            return {"label_noise": {"share": 0.0}}
        words = {"share": self.share, "among": self.among, "keep_one": self.keep_one, "seed": self.seed}
        return {"label_noise": {**words, **self._changed}}

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give the items in their order; those with a wrong label are copies."""
        given = [dict(item) for item in items]
        labels = [np.array(item["label"], dtype=np.float32) for item in items]
        draw = np.random.default_rng((self.seed, len(items)))
        self._changed = {"lost": 0, "gained": 0}
        for place in self._chosen(np.array([bool(label.any()) for label in labels], dtype=bool), draw):
            label = labels[place]
            classes = np.arange(len(label))
            if self.keep_one and label.sum() == 1:
                classes = np.flatnonzero(label == 0)
            if not len(classes):
                continue
            which = int(draw.choice(classes))
            self._changed["lost" if label[which] else "gained"] += 1
            label[which] = 1 - label[which]
            given[place]["label"] = label
        if self.share:
            logger.warning(
                "Wrong labels on purpose: %d images lost a class and %d gained one, of %d.",
                self._changed["lost"],
                self._changed["gained"],
                len(items),
            )
        return given

    def _chosen(self, found: np.ndarray, draw: np.random.Generator) -> list[int]:
        """Draw the places of the items that get a wrong label."""
        diseased, healthy = np.flatnonzero(found), np.flatnonzero(~found)
        candidates = {
            "all": [np.arange(len(found))],
            "each": [diseased, healthy],
            "diseased": [diseased],
            "healthy": [healthy],
        }[self.among]
        chosen = [draw.permutation(each)[: round(self.share * len(each))] for each in candidates]
        return sorted(np.concatenate(chosen).tolist())
