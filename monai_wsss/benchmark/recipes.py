# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A recipe of the benchmark: a method, how it is optimized, and how its images are read and its maps decided."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from monai_wsss._files import file_sha256
from monai_wsss.engines import one_cycle
from monai_wsss.methods import WSSSMethod

__all__ = ["FULL_SUPERVISION", "AdamWOneCycle", "OptimizerRecipe", "Recipe"]

FULL_SUPERVISION = "full supervision"
"""What the names of rows begin with whose weights are trained on masks: the upper bound that ratios refer to."""


class OptimizerRecipe(Protocol):
    """How the parameters of a method are optimized."""

    @property
    def settings(self) -> dict[str, Any]:
        """Tell all of it, for JSON."""

    def __call__(
        self, method: WSSSMethod, epochs: int, loader: DataLoader, *, max_iterations: int | None = None
    ) -> tuple[Any, Any]:
        """Build optimizer and schedule of one training, of several players dicts of both by player.

        Args:
            method: the method to train.
            epochs: epochs of the training.
            loader: the batches of an epoch.
            max_iterations: steps of the training, in place of ``epochs``.
        """


@dataclass(frozen=True)
class AdamWOneCycle:
    """AdamW over one cycle of the learning rate, stepped per iteration.

    Attributes:
        learning_rate: the peak of the cycle.
        weight_decay: decoupled weight decay.
        encoder_learning_rate: the peak of the encoder's own cycle; None for the same as of the other layers.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    encoder_learning_rate: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Tell the name and the values, for JSON."""
        told = {"name": type(self).__name__, **dataclasses.asdict(self)}
        # Settings that are not used are left out, so that folders of earlier versions still belong to these.
        return {name: value for name, value in told.items() if value is not None}

    def __call__(
        self, method: WSSSMethod, epochs: int, loader: DataLoader, *, max_iterations: int | None = None
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the optimizer and the schedule of one training.

        Args:
            method: the method to train, with one player.
            epochs: epochs of the training.
            loader: the batches of an epoch.
            max_iterations: steps of the training, in place of ``epochs``.
        """
        groups: Any = method.player_parameters()
        if self.encoder_learning_rate is not None:
            groups = method.parameter_groups(self.learning_rate, encoder_learning_rate=self.encoder_learning_rate)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        return optimizer, one_cycle(optimizer, self.learning_rate, epochs, loader, max_iterations=max_iterations)


@dataclass(frozen=True)
class Recipe:
    """One way to train and to decide.

    Attributes:
        build: (in_channels, num_classes) to a new method.
        optimizer: (method, epochs, loader) to an optimizer and a schedule that is stepped per iteration.
        batch_size: images per training step.
        by_subject: normalize slices by their subject's statistics; else each slice by itself.
        views: views of the inference, see :func:`~monai_wsss.inferers.multi_view_maps`.
        rules: decision rules to report; the first is the recipe's own.
        share: share of the training items to train on, in (0, 1]; the seed draws it.
        teacher: key of the recipe in the same table whose pseudo-masks this one trains on.
        begin: weights that the training begins from.
        epochs: epochs of the training; None for those of the table.
        pseudo: words of the :class:`~monai_wsss.inferers.PseudoMaskWriter` that writes the teacher's pseudo-masks.
        words: what ``build`` was given, for JSON; committed rows are found again by it.  ``steps`` among them are the
            length of the training, in place of epochs.
    """

    build: Callable[[int, int], WSSSMethod]
    optimizer: OptimizerRecipe = AdamWOneCycle()
    batch_size: int = 32
    by_subject: bool = True
    views: str = "dihedral"
    rules: tuple[str | None, ...] = ("negative_reference", "negative_quantile", "logit", "minmax", "otsu", "mixture")
    share: float = 1.0
    teacher: str | None = None
    begin: Path | None = None
    epochs: int | None = None
    pseudo: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int | None:
        """Give the steps of the training, where they count and not epochs."""
        return self.words.get("steps")

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what decides the weights besides method, data and epochs, for JSON."""
        own: dict[str, Any] = {"epochs": self.epochs, "pseudo": dict(self.pseudo), **self.words}
        used = {name: value for name, value in own.items() if value not in (None, {})}
        return {"batch_size": self.batch_size, "share": self.share, "optimizer": self.optimizer.settings, **used}

    @property
    def unusual(self) -> dict[str, Any]:
        """Tell what else decides a row, where it is not the default, for JSON; committed rows are found again by it."""
        usual = {each.name: each.default for each in dataclasses.fields(self)}
        own = {name: getattr(self, name) for name in ("by_subject", "views", "rules")}
        begin = {} if self.begin is None else {"begin_sha256": file_sha256(self.begin)}
        return {**{name: value for name, value in own.items() if value != usual[name]}, **begin}

    def built_settings(self, in_channels: int, num_classes: int) -> dict[str, Any]:
        """Ask the built method for all its settings, defaults too, so that no run of other defaults is reused.

        Args:
            in_channels: channels of the images.
            num_classes: classes of the labels.

        Returns:
            Plain values, among them the number of parameters.
        """
        method: Any = self.build(in_channels, num_classes)
        told = {name: value for name, value in method.settings.items() if name != "sources"}
        count = sum(parameter.numel() for parameter in method.parameters())
        return dict(json.loads(json.dumps({**told, "parameters": count}, default=str)))
