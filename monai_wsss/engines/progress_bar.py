# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The progress bar of a training."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["ProgressBar"]


class ProgressBar:
    """A tqdm bar per epoch with the present loss."""

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        title = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
        total, most = engine.state.epoch_length, getattr(engine, "max_iterations", None)
        left = total if most is None else min(total, most - engine.state.iteration)
        self._bar = tqdm(total=left, desc=title, mininterval=1.0, leave=True)

    def _update(self, engine: Engine) -> None:
        self._bar.set_postfix(loss=f"{engine.state.output['loss']:.3f}", refresh=False)
        self._bar.update()

    def _close(self, engine: Engine) -> None:
        self._bar.close()
