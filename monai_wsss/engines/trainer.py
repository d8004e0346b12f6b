# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one training loop of all methods, on ``monai.engines.SupervisedTrainer``.

It knows no paper.  A method turns a batch into named, weighted losses.  The loop minimizes their sum for each of the
method's players in turn, logs each loss, checks that it is finite, writes checkpoints and resumes from them.  On a CPU,
a run that was killed and resumed gives the same bits as an uninterrupted one: the checkpoint holds every state that the
rest of the run depends on, and the random draws of the data depend only on (seed, epoch, index).
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from monai_wsss._checks import DataError, as_flag, plain_tensor
from monai_wsss._files import make_directory
from monai_wsss._labels import ON_HOST
from monai_wsss._locks import hold_folder, release_folder
from monai_wsss._processes import is_main_process, own_and_mean
from monai_wsss.data import check_trainable
from monai_wsss.data.dataset import check_workers
from monai_wsss.engines.checkpoint import remove_checkpoints, save_checkpoint, save_weights
from monai_wsss.engines.other_programs import ProgressBar, is_federated, with_readable_output
from monai_wsss.engines.resume import checkpoint_content, resume_training, run_settings
from monai_wsss.engines.schedules import Progress, epochs_of
from monai_wsss.networks import record_reading
from monai_wsss.networks.published_weights import unfilled_sentence

__all__ = ["NonFiniteLossError", "WSSSTrainer"]

logger = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """A loss became NaN or infinite; the message names the loss and the images of the batch."""


class WSSSTrainer(SupervisedTrainer):
    """Train any :class:`~monai_wsss.methods.WSSSMethod` from image-level labels.

    ``engine.state.output`` holds ``loss`` (the sum), every named loss and the method's ``monitors`` as floats; with
    several players the names are ``player/loss``.  In a distributed run they are means over the processes.

    ``network`` and ``optimizer`` are those of the first player, as other programs look for them.  MONAI's federated
    client trains methods of one player, several rounds with one trainer, and is refused for methods of several.

    A run holds the folder of its checkpoints: a second one that would write there is refused.  A run that resumes must
    have the length, the seed, the learning rates and the method's settings of the run that it goes on with.  A last
    checkpoint that cannot be read is passed over for the one before it.

    Args:
        method: maps a batch to named losses; may be wrapped in ``DistributedDataParallel``.
        optimizers: one optimizer per player of ``method.players``, by name; for a single player, the optimizer itself.
        train_data_loader: batches ``{"image": (B, C, *S), "label": (B, K)}`` and what else the method reads.
        max_epochs: epochs of the whole run, including those before a resume.
        max_iterations: iterations of the whole run, in place of ``max_epochs``. An epoch is still one pass over the
            data, and the last one ends early. None: ``max_epochs`` counts.
        device: the device to train on.
        amp: mixed precision: float16 with loss scaling on a GPU, bfloat16 on a CPU.
        accumulation_steps: batches whose gradients are averaged before a step.
        clip_norm: the greatest norm of a player's gradients; None: no clipping.
        lr_schedulers: schedulers to keep in the checkpoint, by player; handlers step them.
        train_handlers: ignite handlers, in order.
        checkpoint_dir: folder of the checkpoints ``epoch_<n>.pt``; None: none are written.
        keep_checkpoints: number of latest checkpoints to keep.
        model_path: file for the deployable network's weights, written when training ends; None: they are not written.
        resume: continue from the last checkpoint in ``checkpoint_dir``; a bundle's command line gives ``"true"`` or
            ``"false"``.
        finalize_interval: epochs between refreshes of the network's healthy level, so that a validation in between
            can use it; the end of training always refreshes it.
        progress_bar: whether to show a progress bar.
        reading: header of the datalist, as :func:`~monai_wsss.data.load_header` gives it: the networks record how it
            says that images are read and volumes cut, see :func:`~monai_wsss.networks.record_reading`.  None: they
            record nothing.

    Raises:
        ValueError: optimizers that do not fit the players, a count below one, or, when a federated client starts the
            training, a method of several players.
        DataError: no positive or no negative image for a class, when training starts; images of several sizes in a
            batch; another process writes to ``checkpoint_dir``; nothing there fits a run that resumes.
        NonFiniteLossError: a loss is NaN or infinite.
    """

    def __init__(
        self,
        method: nn.Module,
        optimizers: Mapping[str, Optimizer] | Optimizer,
        train_data_loader: Iterable | DataLoader,
        max_epochs: int,
        *,
        max_iterations: int | None = None,
        device: torch.device | str = "cpu",
        amp: bool = False,
        accumulation_steps: int = 1,
        clip_norm: float | None = None,
        lr_schedulers: Mapping[str, LRScheduler] | LRScheduler | None = None,
        train_handlers: Sequence | None = None,
        checkpoint_dir: str | Path | None = None,
        keep_checkpoints: int = 2,
        model_path: str | Path | None = None,
        resume: bool | str = False,
        finalize_interval: int | None = None,
        progress_bar: bool = True,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        if accumulation_steps < 1 or keep_checkpoints < 1:
            raise ValueError(
                "Expected `accumulation_steps` and `keep_checkpoints` of at least 1, "
                f"got {accumulation_steps} and {keep_checkpoints}."
            )
        if max_iterations is not None:
            max_epochs = epochs_of(max_iterations, train_data_loader)
        core: Any = getattr(method, "module", method)
        if accumulation_steps > 1 and any(core.steps_of(player) > 1 for player in core.players):
            raise ValueError(
                "Expected `accumulation_steps` 1 where a player has several steps on a batch, got "
                f"{accumulation_steps}: its gradients would be accumulated over its own steps."
            )
        by_player = _by_player("optimizers", optimizers, core.players)
        # CoinGAN's first player is several parts, of which its network is one.
        network, optimizer = getattr(core, core.players[0], core.network), by_player[core.players[0]]
        super().__init__(device, max_epochs, train_data_loader, network, optimizer, method, amp=amp, decollate=False)
        self.max_iterations = max_iterations
        self.method = method
        self.core = core
        self.optimizers = by_player
        self.lr_schedulers = _by_player("lr_schedulers", lr_schedulers, self.core.players) if lr_schedulers else {}
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.checkpoint_dir = checkpoint_dir
        self.keep_checkpoints = keep_checkpoints
        self.model_path = model_path
        self.resume = as_flag("resume", resume)
        self.reading = reading
        self._planned_epochs = int(self.state.max_epochs)
        self._trained = False
        self._settings: dict[str, Any] = {}
        self._stepped: set[str] = set()
        for player, optimizer in self.optimizers.items():
            optimizer.register_step_post_hook(lambda *_, player=player: self._stepped.add(player))
        self._attach(train_handlers or (), finalize_interval, progress_bar)

    def _attach(self, train_handlers: Sequence, finalize_interval: int | None, progress_bar: bool) -> None:
        """Register what happens around the steps, in the order in which it has to happen."""
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        if self.max_iterations is not None:
            self.add_event_handler(Events.ITERATION_COMPLETED(once=self.max_iterations), self._end_within_epoch)
        if finalize_interval is not None:
            self.add_event_handler(Events.EPOCH_COMPLETED(every=finalize_interval), self._finalize)
        if progress_bar and is_main_process():
            bar = ProgressBar(persist=True, mininterval=1.0)
            bar.attach(self, output_transform=lambda output: {"loss": output["loss"]})
        self._register_handlers(with_readable_output(train_handlers))
        # Added last, so that a checkpoint holds what the other handlers did in its epoch.
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def run(self) -> None:
        """Train to the end of the run, then fill the network's healthy level and write its weights."""
        if len(self.optimizers) > 1 and is_federated():
            raise ValueError(
                f"Federated training exchanges one network, and {type(self.core).__name__} trains "
                f"{' and '.join(self.optimizers)}, which belong together: train it at one site."
            )
        check_workers(self.data_loader)
        logger.info("Training on %s, precision: %s.", self.state.device, self.precision)
        if self.core.uses_masks:
            logger.warning("Full supervision: this training reads pixel masks, an upper bound and no weak result.")
        elif self.core.learns_presence and isinstance(
            items := getattr(getattr(self.data_loader, "dataset", None), "data", None), Sequence
        ):
            check_trainable(items)
        if self.checkpoint_dir is None or not is_main_process():
            self._train()
            return
        hold_folder(make_directory(self.checkpoint_dir))
        try:
            self._train()
        finally:
            release_folder(self.checkpoint_dir)

    def _train(self) -> None:
        """Begin anew or resume, and run to the end."""
        self._settings = run_settings(self)
        self.scaler = torch.amp.GradScaler("cuda") if self.amp and self.state.device.type == "cuda" else None
        fused = any(hasattr(one, "_step_supports_amp_scaling") for one in self.optimizers.values())
        if self.scaler is not None and fused:
            logger.warning("Fused optimizers do not tell skipped steps: `after_step` of the method follows those, too.")
        if self.resume and not self._trained:
            resume_training(self, self._length, self._settings)
        elif self.state.epoch:
            logger.info("The training goes on, in epoch %d.", self.state.epoch + 1)
        elif self.checkpoint_dir is not None and is_main_process() and remove_checkpoints(self.checkpoint_dir):
            logger.warning("A new training: the earlier checkpoints in %s are removed.", self.checkpoint_dir)
        # Not where a training goes on: its weights are those of the checkpoint.
        if not self.state.epoch and (sentence := unfilled_sentence(self.core)):
            logger.warning("%s", sentence)
        if self.reading is not None:
            record_reading(self.core, self.reading)
        if not self.state.epoch and self.network is not self.core.network and is_federated():
            # What was sent lies in the network that is trained; the average that is deployed begins with it.
            self.core.network.load_state_dict(self.network.state_dict())
        if self.state.epoch < self.state.max_epochs:
            steps: Any = getattr(self, "_internal_run_generator", None)
            if steps is not None and steps.gi_frame is None:
                self._internal_run_generator = None  # of a run that failed: ignite would take it for one that ended
            try:
                Workflow.run(self)
            except RuntimeError as error:
                _refuse_several_sizes(error)
                raise  # with its own cause
        self._finalize()
        self._trained = True
        if self.model_path is not None and is_main_process():
            save_weights(self.model_path, self.core.network)
            logger.info("Wrote the deployable network to %s.", self.model_path)

    @property
    def precision(self) -> str:
        """Name the numbers that the run computes with: ``float32``, or what mixed precision mixes it with."""
        if not self.amp:
            return "float32"
        half = self.amp_kwargs.get("dtype") or torch.get_autocast_dtype(self.state.device.type)
        return f"mixed, {str(half).removeprefix('torch.')}"

    @property
    def progress(self) -> Progress:
        """Give the point that the run has reached in the present iteration."""
        return Progress(self.state.epoch, self.state.iteration, (self.state.iteration - 1) / max(1, self._total))

    @property
    def _total(self) -> int:
        """Count the iterations of the whole run, of which a federated client trains one round after the other."""
        whole: int = max(self.state.max_epochs, self._planned_epochs) * (self.state.epoch_length or 1)
        return whole if self.max_iterations is None else self.max_iterations

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, float]:
        """Train on one batch: each player in turn computes its losses on it and steps."""
        batch = {
            name: value.to(self.state.device, non_blocking=self.non_blocking)
            if torch.is_tensor(value) and name not in ON_HOST
            else value
            for name, value in batchdata.items()
        }
        self.method.train()
        self._stepped.clear()
        output: dict[str, float] = {"loss": 0.0}
        for player, optimizer in self.optimizers.items():
            for left in reversed(range(self.core.steps_of(player))):
                logged, of_player = self._play(player, optimizer, batch)
                if left and self.scaler is not None:
                    self.scaler.update()  # a scaler lets an optimizer step once
            output |= logged  # of several steps the last
            output["loss"] += of_player
        # Updated once for all players: another scale would not fit the gradients that later players have accumulated.
        if self.scaler is not None and self._accumulated:
            self.scaler.update()
        # Not while gradients accumulate, nor where the scaler skipped the step of a player.
        if self._stepped == set(self.optimizers):
            self.core.after_step(self.progress)
        self.state.output = output
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _play(self, player: str, optimizer: Optimizer, batch: dict[str, Any]) -> tuple[dict[str, float], float]:
        """Let a player compute its losses on a batch and step; give what is logged of it, and the sum of its losses."""
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            losses = self.method(batch, self.progress, player)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        prefix = f"{player}/" if len(self.optimizers) > 1 else ""
        total = torch.stack([plain_tensor(loss).float() for loss in losses.values()]).sum()
        logged = losses | self.core.monitors(player)
        read = torch.stack([plain_tensor(value).detach().float() for value in (*logged.values(), total)])
        *values, of_player = self._finite(list(losses), own_and_mean(read), batch)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self._step(player, optimizer, total)
        return {prefix + name: value for name, value in zip(logged, values, strict=True)}, of_player

    @property
    def _position(self) -> int:
        """Give the place of the present iteration in its epoch, from 0."""
        return (self.state.iteration - 1) % self.state.epoch_length

    @property
    def _accumulated(self) -> bool:
        """Tell whether this iteration ends a step; the last iteration of an epoch does, so that no gradient is lost."""
        done = self._position + 1
        last = done == self.state.epoch_length or self.state.iteration == self.max_iterations
        return done % self.accumulation_steps == 0 or last

    def _step(self, player: str, optimizer: Optimizer, total: torch.Tensor) -> None:
        """Accumulate the gradients of one player's loss, and step at the end of the accumulated batches."""
        if self._position % self.accumulation_steps == 0:
            optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.scale if self.scaler is not None else (lambda loss: loss)
        # With several players, the loss of one must add nothing to the gradients that another is still accumulating.
        shared = len(self.optimizers) > 1 and self.accumulation_steps > 1
        own = list(self.core.player_parameters(player)) if shared else None
        scale(total / self.accumulation_steps).backward(inputs=own)
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if not self._accumulated:
            return
        if self.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.core.player_parameters(player), self.clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def _finite(self, names: list[str], values: torch.Tensor, batch: dict[str, Any]) -> list[float]:
        """Read the losses and what is logged beside them from the device, at once, and check the losses.

        ``values`` (2, N) are those of this process, which are checked, and their means over processes, which are given.
        """
        own, means = values.tolist()
        for name, value in zip(names, own, strict=False):
            if not math.isfinite(value):
                ids = ", ".join(map(str, batch.get("id", ["unknown"])))
                raise NonFiniteLossError(
                    f"Loss `{name}` is {value} in epoch {self.state.epoch}, iteration {self.state.iteration} "
                    f"(images: {ids}): look at these images, or lower the learning rate."
                )
        return means

    def _start_epoch(self, engine: Engine | None = None) -> None:
        """Tell the dataset and the sampler which epoch they draw for."""
        for part in ("dataset", "sampler"):
            drawn: Any = getattr(self.data_loader, part, None)
            if hasattr(drawn, "set_epoch"):
                drawn.set_epoch(self.state.epoch)

    def _end_within_epoch(self, engine: Engine) -> None:
        """End the last epoch early, with all that the end of an epoch does."""
        if self._position + 1 < self.state.epoch_length:
            self.terminate_epoch()

    def _end_epoch(self, engine: Engine) -> None:
        for sentence in self.core.collapse_warnings():
            # The first half of a run may still be all background.
            if 2 * self.state.epoch >= self.state.max_epochs:
                warnings.warn(f"Epoch {self.state.epoch}: {sentence}", stacklevel=1)
        if self.checkpoint_dir is not None and is_main_process():
            content = checkpoint_content(self, self._length, self._settings)
            save_checkpoint(self.checkpoint_dir, self.state.epoch, content, keep=self.keep_checkpoints)

    def _finalize(self, engine: Engine | None = None) -> None:
        self._start_epoch()  # so that a finished run that is resumed makes the same draws
        self.core.finalize(self.data_loader, self.state.device)

    @property
    def _length(self) -> list[int]:
        """Give what a resumed run must have in common: epochs, iterations per epoch and, if asked for, in all."""
        own = [] if self.max_iterations is None else [self.max_iterations]
        return [self.state.max_epochs, self.state.epoch_length, *own]


def _refuse_several_sizes(error: RuntimeError) -> None:
    """Raise a sentence in place of torch's complaint that it cannot stack the images of a batch; pass other errors."""
    sizes = re.search(r"equal size, but got (\[[\d, ]+\]) at entry 0 and (\[[\d, ]+\])", str(error))
    # A worker process stacks in shared memory, where torch reports only that it cannot resize.
    if sizes is None and "resize storage that is not resizable" not in str(error):
        return
    example = f", e.g. {sizes[1]} and {sizes[2]}" if sizes else ""
    raise DataError(
        f"The images of a batch are of several sizes{example}: bring them to one size (patches of one size when they "
        "are prepared, or a transform such as ResizeInPlaned), or take a batch size of 1."
    ) from error


def _by_player(name: str, given: Any, players: tuple[str, ...]) -> dict[str, Any]:
    """Bring ``given`` into a dict in the order of the players; for a single player it may be the value itself."""
    table = dict(given) if isinstance(given, Mapping) else {players[0]: given}
    if set(table) != set(players):
        raise ValueError(f"Expected `{name}` for the players {', '.join(players)}, got {', '.join(table)}.")
    return {player: table[player] for player in players}
