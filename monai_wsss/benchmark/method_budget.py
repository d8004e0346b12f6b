# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""How long each method is trained: a time, or epochs, or steps; a time is turned into steps once, and recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_wsss._files import make_directory, write_json

__all__ = ["BudgetRecord", "TrainingBudget"]

_UNITS = {"s": 1, "m": 60, "h": 3600}
_FORM = re.compile(r"(?P<time>\d+(?:\.\d+)?)(?P<unit>[smh])|(?P<number>\d+)-(?P<kind>epoch|step)s?")


@dataclass(frozen=True)
class TrainingBudget:
    """The length of every training.

    Attributes:
        amount: seconds, epochs or steps.
        kind: which of them.
    """

    amount: float
    kind: Literal["seconds", "epochs", "steps"]

    @classmethod
    def read(cls, text: str) -> TrainingBudget:
        """Read ``"20m"``, ``"90s"``, ``"1.5h"``, ``"8-epochs"`` or ``"300-steps"``.

        Raises:
            ValueError: another form, or nothing at all to train.

        Example:
            >>> TrainingBudget.read("20m")
            TrainingBudget(amount=1200.0, kind='seconds')
            >>> TrainingBudget.read("300-steps")
            TrainingBudget(amount=300, kind='steps')
        """
        found = _FORM.fullmatch(text.strip())
        amount: float = 0
        if found and found["time"]:
            amount = float(found["time"]) * _UNITS[found["unit"]]
            kind: Literal["seconds", "epochs", "steps"] = "seconds"
        elif found:
            amount, kind = int(found["number"]), "epochs" if found["kind"] == "epoch" else "steps"
        if amount <= 0:
            raise ValueError(f"Expected `budget` as a time such as 20m, or as 8-epochs or 300-steps, got {text!r}.")
        return cls(amount, kind)

    @property
    def text(self) -> str:
        """Give the text that :meth:`read` reads.

        Example:
            >>> TrainingBudget.read("20m").text, TrainingBudget.read("8-epochs").text
            ('1200s', '8-epochs')
        """
        return f"{self.amount:.12g}s" if self.kind == "seconds" else f"{self.amount:g}-{self.kind}"

    def steps(self, per_epoch: int, seconds_per_step: float | None) -> int:
        """Count the steps of a training, at least one.

        Args:
            per_epoch: steps of an epoch.
            seconds_per_step: what a step takes; only a time asks.

        Example:
            >>> TrainingBudget.read("1m").steps(10, 0.5), TrainingBudget.read("3-epochs").steps(10, None)
            (120, 30)
        """
        if self.kind == "steps":
            return int(self.amount)
        if self.kind == "epochs":
            return int(self.amount) * per_epoch
        assert seconds_per_step is not None
        return max(1, int(self.amount / seconds_per_step))


class BudgetRecord:
    """The steps that a budget has become, by what is trained; a step is never timed twice for the same thing.

    So a budget gives the same steps again after another one was tried.

    Args:
        path: the JSON file.
        budget: the budget.
    """

    def __init__(self, path: Path, budget: TrainingBudget) -> None:
        self.path = path
        self.budget = budget

    def steps(self, key: str, name: str, per_epoch: int, time_step: Callable[[], float]) -> int:
        """Give the steps of a training: those recorded, or those that follow from the budget now.

        Args:
            key: digest of what is trained and on what; another one is counted anew.
            name: of the row, for readers.
            per_epoch: steps of an epoch.
            time_step: gives the seconds of a step; only a time asks, where no step was timed before.
        """
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        own = f"{self.budget.amount:g} {self.budget.kind}"
        entry = found.get(key, {})
        if entry.get("budget") != own:
            seconds = entry.get("seconds_per_step")
            if seconds is None and self.budget.kind == "seconds":
                seconds = time_step()
            entry = {
                "row": name,
                "budget": own,
                "seconds_per_step": seconds,
                "steps_per_epoch": per_epoch,
                "steps": self.budget.steps(per_epoch, seconds),
            }
            make_directory(self.path.parent)
            write_json(self.path, {**found, key: entry})
        return int(entry["steps"])
