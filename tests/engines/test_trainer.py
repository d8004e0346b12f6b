# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The training loop: learning, exact resume, players, accumulation, failures."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler, from_engine
from monai.transforms import Compose, Lambda, RandFlipd, RandGaussianNoised, RandRotate90d
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.data import EpochCacheDataset
from monai_wsss.engines import NonFiniteLossError, TrainingLog, WSSSTrainer, one_cycle
from monai_wsss.methods import ClassActivationMapping, CoinGAN, CoSA, FullSupervision, WSSSMethod
from monai_wsss.networks import (
    CAMAdapter,
    CAMEncoder,
    EfficientNetLite,
    load_encoder_weights,
    reading_order,
    recorded_reading,
)
from monai_wsss.reports.provenance import settings_of


def make_items(count: int = 12, size: int = 16) -> list[dict[str, Any]]:
    """Noise; every other image with a bright square, which is its finding."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(count):
        image = torch.rand(1, size, size, generator=generator)
        label = torch.tensor([float(index % 2)])
        if index % 2:
            image[:, 4:9, 5:11] += 2.0
        items.append({"image": image, "label": label, "id": f"case{index}"})
    return items


def make_loader(items: list[dict[str, Any]], num_workers: int = 0) -> DataLoader:
    augment = Compose([RandRotate90d("image"), RandFlipd("image", 0.5, 0), RandGaussianNoised("image", prob=0.5)])
    dataset = EpochCacheDataset(items, Compose([]), augment, seed=3, progress=False)
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=3)
    return DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers)


class Dropping(CAMEncoder):
    """An encoder that draws from the global generator in each forward pass."""

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        return super().class_maps(nn.functional.dropout(image, 0.1, self.training))


def make_trainer(tmp_path, epochs: int = 4, **options) -> WSSSTrainer:
    torch.manual_seed(0)
    method = ClassActivationMapping(Dropping(2, 1, 1, width=2))
    loader = make_loader(make_items(), options.pop("num_workers", 0))
    optimizer = torch.optim.AdamW(method.player_parameters("network"), lr=0.01)
    scheduler = one_cycle(optimizer, 0.01, 4, loader)
    handlers = [LrScheduleHandler(scheduler, print_lr=False, epoch_level=False), TrainingLog(tmp_path)]
    options = {"checkpoint_dir": tmp_path / "checkpoints", "model_path": tmp_path / "model.pt"} | options
    return WSSSTrainer(
        method,
        optimizer,
        loader,
        epochs,
        lr_schedulers=scheduler,
        train_handlers=handlers,
        progress_bar=False,
        **options,
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_killed_and_resumed_run_ends_bit_for_bit_as_the_unkilled_one(tmp_path, num_workers):
    whole = make_trainer(tmp_path / "whole", num_workers=num_workers)
    whole.run()

    killed = make_trainer(tmp_path / "killed", num_workers=num_workers)

    @killed.on(Events.ITERATION_COMPLETED(once=8))  # in the middle of the third of four epochs
    def kill(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    torch.rand(17)  # another process has another state
    resumed = make_trainer(tmp_path / "killed", num_workers=num_workers, resume=True)
    resumed.run()

    assert resumed.state.iteration == whole.state.iteration == 12
    first, second = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [(tmp_path / run / "training_log.csv").read_text(encoding="utf-8") for run in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 5


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    make_trainer(tmp_path).run()
    before = torch.load(tmp_path / "model.pt", weights_only=True)
    again = make_trainer(tmp_path, resume=True)
    again.run()
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert again.state.epoch == 4
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_records_how_its_images_are_read(tmp_path):
    """In the weights, in checkpoints, and after resuming from a checkpoint that recorded nothing."""
    make_trainer(tmp_path, epochs=2).run()
    assert reading_order(tmp_path / "model.pt", {"order": "rows_columns"}) == "xy"
    header = {"name": "x", "order": "rows_columns", "slicing_axis": "SI", "in_plane_axes": "LP"}
    resumed = make_trainer(tmp_path, epochs=2, resume=True, reading=header)
    resumed.run()
    assert recorded_reading(resumed.core.network) == {key: header[key] for key in ("order", *list(header)[2:])}
    assert reading_order(tmp_path / "model.pt") == "rows_columns"
    make_trainer(tmp_path, epochs=2, reading=header).run()
    again = make_trainer(tmp_path, epochs=2, resume=True)
    again.run()
    assert recorded_reading(again.core.network)["order"] == "rows_columns"


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kill_at", [2, 8])
def test_a_run_of_iterations_stops_after_them_and_resumes_bit_for_bit(tmp_path, num_workers, kill_at):
    """Eleven iterations are three epochs of three and one of two."""
    whole = make_trainer(tmp_path / "whole", num_workers=num_workers, max_iterations=11)
    steps = []
    whole.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.progress.fraction))
    whole.run()
    assert whole.state.iteration == 11
    assert steps == pytest.approx([index / 11 for index in range(11)])

    killed = make_trainer(tmp_path / "killed", num_workers=num_workers, max_iterations=11)

    @killed.on(Events.ITERATION_COMPLETED(once=kill_at))
    def kill(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    torch.rand(17)
    for _ in range(2):  # the second time there is nothing left to do
        resumed = make_trainer(tmp_path / "killed", num_workers=num_workers, max_iterations=11, resume=True)
        resumed.run()
        assert resumed.state.iteration == 11
        first, second = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed"))
        assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [(tmp_path / run / "training_log.csv").read_text(encoding="utf-8") for run in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 5


def test_a_run_of_iterations_begins_as_one_of_epochs_with_the_same_draws(tmp_path):
    """Where the rate is constant, the first whole epochs of both are the same bits, and the log means over what ran."""
    rows = []
    for name, options in (("epochs", {"epochs": 2}), ("iterations", {"max_iterations": 7})):
        trainer = make_trainer(tmp_path / name, **options)
        trainer.run()
        rows.append((tmp_path / name / "training_log.csv").read_text(encoding="utf-8").splitlines())
    assert rows[0] == rows[1][:3]
    assert len(rows[1]) == 4
    assert 0 < float(rows[1][3].split(",")[1]) < 2 * float(rows[1][2].split(",")[1])


@pytest.mark.parametrize(("iterations", "epochs", "handled"), [(1, 1, [1]), (3, 1, [1]), (7, 3, [1, 2, 3])])
def test_the_last_epoch_of_a_run_of_iterations_ends_like_any_other(tmp_path, iterations, epochs, handled):
    trainer = make_trainer(tmp_path, max_iterations=iterations)
    ended = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=1), lambda engine: ended.append(engine.state.epoch))
    trainer.run()
    assert (trainer.state.iteration, trainer.state.epoch, trainer.state.max_epochs) == (iterations, epochs, epochs)
    assert ended == handled


def test_iterations_that_cannot_be_counted_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`max_iterations` to be a whole number of at least 1, got 0"):
        make_trainer(tmp_path, max_iterations=0)
    method = Quadratic()
    with pytest.raises(ValueError, match="a loader with a length of at least 1 batch"):
        WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), iter([{}]), 1, max_iterations=3)


def test_resuming_with_other_iterations_is_refused(tmp_path):
    make_trainer(tmp_path, max_iterations=7).run()
    with pytest.raises(DataError, match="of 3 epochs of 3 iterations, 7 in all, this one has 3 of 3, 8 in all"):
        make_trainer(tmp_path, max_iterations=8, resume=True).run()
    with pytest.raises(DataError, match="of 3 epochs of 3 iterations, 7 in all, this one has 4 of 3: resume"):
        make_trainer(tmp_path, resume=True).run()


def test_checkpoints_are_tensors_and_only_the_last_stay(tmp_path):
    make_trainer(tmp_path, keep_checkpoints=2).run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch_0003.pt", "epoch_0004.pt"]
    content = torch.load(tmp_path / "checkpoints" / names[-1], weights_only=True)
    states = {"method", "optimizers", "lr_schedulers", "scaler", "rng"}
    assert set(content) == {"epoch", "length", "settings", "iteration", *states}


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch_0001.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"Cannot read .*epoch_0001.pt as tensors"):
        make_trainer(tmp_path, resume=True).run()


def test_nothing_to_resume_is_said(tmp_path, caplog):
    make_trainer(tmp_path, epochs=1, resume=True).run()
    assert "No checkpoint to resume from" in caplog.text


def test_a_training_does_not_go_on_with_images_in_another_order(tmp_path):
    make_trainer(tmp_path, epochs=1, reading={"order": "xy"}).run()
    make_trainer(tmp_path, epochs=1, resume=True, reading={}).run()
    with pytest.raises(
        DataError, match="on images in the order xy, but the data now say rows_columns: go on with the same data"
    ):
        make_trainer(tmp_path, epochs=1, resume=True, reading={"order": "rows_columns"}).run()


def test_one_batch_is_overfitted_and_the_square_is_found():
    torch.manual_seed(0)
    items = make_items(8)
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "label")}
    method = ClassActivationMapping.tiny()
    trainer = WSSSTrainer(method, torch.optim.AdamW(method.parameters(), lr=0.02), [batch], 60, progress_bar=False)
    trainer.run()
    assert trainer.state.output["classification"] < 0.05
    maps = method.network.eval()(batch["image"][1:2])[0, 0]
    inside = torch.zeros_like(maps, dtype=torch.bool)
    inside[4:9, 5:11] = True
    assert maps[inside].mean() > maps[~inside].mean() + 1
    assert method.network.negative_reference < 0


def test_the_negative_reference_is_the_median_over_negative_images_alone():
    items = make_items(6)
    method = ClassActivationMapping.tiny()
    batches = [{"image": item["image"][None], "label": item["label"][None]} for item in items]
    method.finalize(batches)
    maps = method.network.eval()(torch.stack([item["image"] for item in items[0::2]]))
    torch.testing.assert_close(method.network.negative_reference[0], maps.flatten().median(), atol=1e-3, rtol=1e-3)
    assert method.network.negative_quantile > method.network.negative_reference


class TwoPlayers(WSSSMethod):
    """x follows y, y runs from x: shows who is stepped, in which order, with which loss."""

    players: ClassVar[tuple[str, ...]] = ("chaser", "runner")

    def __init__(self) -> None:
        super().__init__(CAMEncoder.tiny())
        self.chaser = nn.Linear(1, 1, bias=False)
        self.runner = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.chaser.weight)
        nn.init.constant_(self.runner.weight, 3.0)
        self.calls: list[str] = []

    def losses(self, batch, progress, player):
        self.calls.append(player)
        gap = (self.chaser.weight - self.runner.weight).square().sum()
        return {"gap": gap if player == "chaser" else -gap}

    def finalize(self, train_data_loader, device="cpu"):
        self.calls.append("finalize")


def test_players_step_in_turn_each_on_its_own_loss():
    method = TwoPlayers()
    optimizers = {name: torch.optim.SGD(method.player_parameters(name), lr=0.1) for name in method.players}
    loader = [{"image": torch.zeros(1, 1, 8, 8), "label": torch.zeros(1, 1)}]
    trainer = WSSSTrainer(method, optimizers, loader, 1, progress_bar=False)
    trainer.run()
    assert method.calls == ["chaser", "runner", "finalize"]
    # chaser: 1 - 0.1 * 2 (1 - 3) = 1.4; runner then: 3 + 0.1 * 2 (3 - 1.4) = 3.32
    assert method.chaser.weight.item() == pytest.approx(1.4)
    assert method.runner.weight.item() == pytest.approx(3.32)
    assert trainer.state.output["chaser/gap"] == pytest.approx(4.0)
    assert trainer.state.output["runner/gap"] == pytest.approx(-2.56)


def test_players_that_accumulate_keep_their_gradients_apart():
    method = TwoPlayers()
    optimizers = {name: torch.optim.SGD(method.player_parameters(name), lr=0.1) for name in method.players}
    loader = [{"image": torch.zeros(1, 1, 8, 8), "label": torch.zeros(1, 1)}] * 2
    WSSSTrainer(method, optimizers, loader, 1, accumulation_steps=2, progress_bar=False).run()
    # chaser: 2 (1 - 3) twice at half weight. runner: -2 (3 - 1) and, after the chaser's step, -2 (3 - 1.4), halved.
    assert method.chaser.weight.item() == pytest.approx(1.4)
    assert method.runner.weight.item() == pytest.approx(3 + 0.1 * (4.0 + 3.2) / 2)


class Hasty(TwoPlayers):
    """The runner has two steps on each batch."""

    def steps_of(self, player):
        return 2 if player == "runner" else 1


@pytest.mark.parametrize("scale", [None, 256.0])
def test_a_player_may_have_several_steps_on_a_batch(scale):
    method = Hasty()
    optimizers = {name: torch.optim.SGD(method.player_parameters(name), lr=0.1) for name in method.players}
    loader = [{"image": torch.zeros(1, 1, 8, 8), "label": torch.zeros(1, 1)}]
    trainer = WSSSTrainer(method, optimizers, loader, 1, progress_bar=False)
    if scale is not None:
        scale_losses(trainer, scale)
    trainer.run()
    assert method.calls == ["chaser", "runner", "runner", "finalize"]
    # chaser: 1 - 0.1 * 2 (1 - 3) = 1.4; runner then: 3 + 0.2 (3 - 1.4) = 3.32, and 3.32 + 0.2 (3.32 - 1.4) = 3.704
    assert method.chaser.weight.item() == pytest.approx(1.4)
    assert method.runner.weight.item() == pytest.approx(3.704)
    assert trainer.state.output["runner/gap"] == pytest.approx(-(1.92**2)), "the last of its steps is logged"
    assert trainer.state.output["loss"] == pytest.approx(4.0 - 1.92**2)
    with pytest.raises(ValueError, match="`accumulation_steps` 1 where a player has several steps on a batch, got 2"):
        WSSSTrainer(method, optimizers, loader, 1, accumulation_steps=2, progress_bar=False)


class Quadratic(WSSSMethod):
    """Mean over the batch of (w - x)^2: gradients add up over batches."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        nn.init.zeros_(self.network.weight)

    def losses(self, batch, progress, player):
        return {"distance": (self.network.weight - batch["image"].flatten(1)).square().mean()}


def scale_losses(trainer: WSSSTrainer, scale: float) -> None:
    """Let a trainer scale its losses on the CPU, as it does with mixed precision on a GPU."""

    @trainer.on(Events.STARTED)
    def begin(engine):
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


def run_quadratic(batches, *, scale: float | None = None, **options) -> float:
    method = Quadratic()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    trainer = WSSSTrainer(method, optimizer, batches, 1, progress_bar=False, **options)
    if scale is not None:
        scale_losses(trainer, scale)
    trainer.run()
    return method.network.weight.item()


def test_accumulated_batches_step_as_one_and_the_rest_is_not_lost():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(5, 1, 1, 1, 1).expand(5, 1, 1, 4, 4)
    batches = [{"image": value, "label": torch.zeros(1, 1)} for value in values]
    pairs = [
        {"image": values[start : start + 2].flatten(0, 1), "label": torch.zeros(len(values[start : start + 2]), 1)}
        for start in (0, 2)
    ]
    assert run_quadratic(batches[:4], accumulation_steps=2) == pytest.approx(run_quadratic(pairs))
    # The fifth batch is stepped on its own, at half weight, rather than dropped.
    assert run_quadratic(batches, accumulation_steps=2) > run_quadratic(batches[:4], accumulation_steps=2)


def test_clipping_bounds_the_step():
    batch = {"image": torch.full((1, 1, 4, 4), 100.0), "label": torch.zeros(1, 1)}
    assert run_quadratic([batch]) == pytest.approx(20.0)
    assert run_quadratic([batch], clip_norm=1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("clip_norm", [None, 1.0, 1e3])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_scale_of_losses_changes_no_step(clip_norm, accumulation_steps):
    batch = {"image": torch.full((1, 1, 4, 4), 100.0), "label": torch.zeros(1, 1)}
    words = {"clip_norm": clip_norm, "accumulation_steps": accumulation_steps}
    expected = run_quadratic([batch] * 4, **words)
    assert run_quadratic([batch] * 4, scale=256.0, **words) == pytest.approx(expected)


def test_progress_runs_from_zero_towards_one():
    seen = []

    class Watching(Quadratic):
        def losses(self, batch, progress, player):
            seen.append((progress.epoch, progress.iteration, progress.fraction))
            return super().losses(batch, progress, player)

    method = Watching()
    batch = {"image": torch.zeros(1, 1, 4, 4), "label": torch.zeros(1, 1)}
    WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), [batch] * 2, 2, progress_bar=False).run()
    assert seen == [(1, 1, 0.0), (1, 2, 0.25), (2, 3, 0.5), (2, 4, 0.75)]


def test_a_loss_that_is_not_finite_names_itself_and_the_images():
    items = make_items(4)
    items[2]["image"][0, 3, 3] = float("nan")
    method = ClassActivationMapping.tiny()
    trainer = WSSSTrainer(
        method, torch.optim.SGD(method.parameters(), lr=0.1), make_loader(items), 1, progress_bar=False
    )
    with pytest.raises(NonFiniteLossError, match=r"Loss `classification` is nan in epoch 1, iteration 1 .*case2"):
        trainer.run()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_of_several_sizes_are_told_in_a_sentence(num_workers):
    items = make_items(4) + [{**item, "id": f"{item['id']}b"} for item in make_items(4, size=12)]
    method = ClassActivationMapping(CAMEncoder(2, 1, 1, width=2))
    loader = make_loader(items, num_workers)
    trainer = WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), loader, 1, progress_bar=False)
    with pytest.raises(
        DataError, match=r"several sizes(, e\.g\. \[1, 1\d, 1\d\] and \[1, 1\d, 1\d\])?: bring them to one"
    ):
        trainer.run()


def test_images_of_other_channels_are_one_sentence():
    method = ClassActivationMapping(CAMEncoder(2, 3, 1, width=2))  # three channels, the images have one
    trainer = WSSSTrainer(
        method, torch.optim.SGD(method.parameters(), lr=0.1), make_loader(make_items()), 1, progress_bar=False
    )
    with pytest.raises(ValueError, match="of 3 channels, got 1: choose other images"):
        trainer.run()


def test_an_error_in_a_transform_keeps_its_cause():
    """MONAI's error names the object alone."""

    def refuse(item):
        raise ValueError("too dark")

    method = ClassActivationMapping.tiny()
    dataset = EpochCacheDataset(make_items(4), Compose([]), Compose([Lambda(refuse)]), progress=False)
    loader = DataLoader(dataset, batch_size=4)
    trainer = WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), loader, 1, progress_bar=False)
    with pytest.raises(RuntimeError, match=r"^applying transform") as caught:
        trainer.run()
    assert str(caught.value.__cause__) == "too dark"


def test_a_full_device_is_told_in_torch_s_words(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)

    @trainer.on(Events.ITERATION_STARTED)
    def fail(engine):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory"):
        trainer.run()


def test_a_batch_with_masks_is_refused():
    batch = {"image": torch.zeros(1, 1, 8, 8), "label": torch.zeros(1, 1), "mask": torch.zeros(1, 1, 8, 8)}
    method = ClassActivationMapping.tiny()
    trainer = WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), [batch], 1, progress_bar=False)
    with pytest.raises(ValueError, match="learns from image-level labels alone, but its batch holds `mask`"):
        trainer.run()


@pytest.mark.parametrize(("label", "kind"), [(0.0, "positive"), (1.0, "negative")])
def test_one_kind_of_image_alone_is_refused_when_training_starts(tmp_path, label, kind):
    items = [item | {"label": torch.tensor([label])} for item in make_items(4)]
    method = ClassActivationMapping.tiny()
    trainer = WSSSTrainer(
        method, torch.optim.SGD(method.parameters(), lr=0.1), make_loader(items), 1, progress_bar=False
    )
    with pytest.raises(DataError, match=f"None of the 4 cases is {kind}"):
        trainer.run()


class Counting(ClassActivationMapping):
    """Counts the calls that follow a step."""

    def __init__(self) -> None:
        super().__init__(CAMEncoder.tiny())
        self.calls: list[int] = []

    def losses(self, batch, progress, player):
        return {name: 1000 * loss for name, loss in super().losses(batch, progress, player).items()}

    def after_step(self, progress) -> None:
        self.calls.append(progress.iteration)


def run_counting(batches: int, *, scale: float | None = None, **options) -> tuple[Counting, list[int]]:
    """Train an epoch; gives the method and the iterations in which its optimizer really stepped."""
    torch.manual_seed(0)
    method, stepped = Counting(), []
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-6)
    data = make_items(4)
    batch = {key: torch.stack([item[key] for item in data]) for key in ("image", "label")}
    trainer = WSSSTrainer(method, optimizer, [batch] * batches, 1, progress_bar=False, **options)
    optimizer.register_step_post_hook(lambda *_: stepped.append(trainer.state.iteration))
    if scale is not None:
        scale_losses(trainer, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.run()
    return method, stepped


@pytest.mark.parametrize(
    ("batches", "accumulation", "after"),
    [(8, 4, [4, 8]), (8, 1, list(range(1, 9))), (7, 4, [4, 7])],  # the rest of an epoch is a step, too
)
def test_what_follows_a_step_runs_once_per_real_step(batches, accumulation, after):
    method, stepped = run_counting(batches, accumulation_steps=accumulation)
    assert method.calls == stepped == after


def test_a_run_that_ends_within_accumulated_batches_steps_once_more():
    method, stepped = run_counting(4, accumulation_steps=2, max_iterations=3)
    assert method.calls == stepped == [2, 3]


def test_what_follows_a_step_does_not_run_where_the_scaler_skipped_it():
    """A scale so large that gradients overflow: the scaler halves it and skips the optimizer until they do not."""
    method, stepped = run_counting(40, scale=2.0**127)
    assert method.calls == stepped
    assert 0 < len(stepped) < 40
    assert 1 not in stepped


@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")
@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
@pytest.mark.parametrize("fused", [False, True])
def test_optimizers_that_hide_skipped_steps_are_told(fused, caplog):
    """Mixed precision on a GPU begins; the training itself runs on the CPU, as one without a GPU can be tested."""
    torch.manual_seed(0)
    method = ClassActivationMapping.tiny()
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-6, fused=fused)
    trainer = WSSSTrainer(method, optimizer, make_loader(make_items(4)), 1, amp=True, progress_bar=False)
    trainer.state.device = torch.device("cuda")

    @trainer.on(Events.STARTED)
    def go_on_without_gpu(engine):
        assert trainer.scaler is not None
        trainer.scaler, trainer.state.device = None, torch.device("cpu")

    trainer.run()
    assert ("Fused optimizers do not tell skipped steps: `after_step`" in caplog.text) == fused


def test_with_several_players_all_have_to_step():
    method = TwoPlayers()
    calls = []
    method.after_step = lambda progress: calls.append(progress.iteration)
    optimizers = {player: torch.optim.SGD(method.player_parameters(player), lr=0.1) for player in method.players}
    batch = {"image": torch.rand(2, 1, 4, 4), "label": torch.tensor([[0.0], [1.0]])}
    WSSSTrainer(method, optimizers, [batch] * 4, 1, accumulation_steps=2, progress_bar=False).run()
    assert calls == [2, 4]


def test_the_losses_are_read_once_per_player(monkeypatch):
    """One wait for a GPU: the finite check reads all losses and their sum together."""
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.shape) or original(self))
    for name in ("item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: pytest.fail(f"{name} waits for the device"))
    method = ClassActivationMapping.tiny()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, foreach=False)
    batch = {"image": torch.rand(2, 1, 8, 8), "label": torch.tensor([[0.0], [1.0]])}
    trainer = WSSSTrainer(method, optimizer, [batch], 1, progress_bar=False)
    trainer.state.epoch_length, trainer.state.iteration, trainer.scaler = 1, 1, None
    # The iteration alone: what an epoch reads at its end is another matter.
    trainer._iteration(trainer, batch)
    assert reads == [(2, 2)], "of this process, and the means over processes"


@pytest.mark.parametrize(("bias", "sentence"), [(-50.0, "almost all background"), (50.0, "almost all foreground")])
def test_collapsed_maps_warn(bias, sentence):
    method = ClassActivationMapping.tiny()
    nn.init.constant_(method.network.head.bias, bias)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-9)
    with pytest.warns(UserWarning, match=sentence):
        WSSSTrainer(method, optimizer, make_loader(make_items()), 1, progress_bar=False).run()


@pytest.mark.parametrize(("epochs", "told"), [(4, [2, 3, 4]), (3, [2, 3])])
def test_collapsed_maps_are_told_from_the_half_of_a_run_on(epochs, told):
    method = ClassActivationMapping.tiny()
    nn.init.constant_(method.network.head.bias, -50.0)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-9)
    with pytest.warns(UserWarning, match="almost all background") as caught:
        WSSSTrainer(method, optimizer, make_loader(make_items()), epochs, progress_bar=False).run()
    sentences = [str(one.message) for one in caught if "almost all background" in str(one.message)]
    assert [sentence.partition(":")[0] for sentence in sentences] == [f"Epoch {epoch}" for epoch in told]


def test_healthy_maps_do_not_warn():
    method = ClassActivationMapping.tiny()
    nn.init.zeros_(method.network.head.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        method.observe(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2), torch.ones(1, 1))
        assert method.collapse_warnings() == []


def test_full_supervision_says_that_it_reads_masks(caplog):
    torch.manual_seed(0)
    items = make_items(4)
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "label")}
    batch["mask"] = (batch["image"] > 1.5).to(torch.uint8)
    method = FullSupervision.tiny()
    trainer = WSSSTrainer(method, torch.optim.AdamW(method.parameters(), lr=0.02), [batch], 30, progress_bar=False)
    trainer.run()
    assert "reads pixel masks" in caplog.text
    assert trainer.state.output["full_supervision"] < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision_on_the_cpu_learns(dtype):
    torch.manual_seed(0)
    method = ClassActivationMapping.tiny()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.02)
    trainer = WSSSTrainer(method, optimizer, make_loader(make_items()), 8, amp=True, progress_bar=False)
    trainer.run()
    assert trainer.state.output["loss"] < 0.69


def test_optimizers_must_fit_the_players():
    method = TwoPlayers()
    with pytest.raises(ValueError, match="`optimizers` for the players chaser, runner, got chaser"):
        WSSSTrainer(method, torch.optim.SGD(method.parameters(), lr=0.1), [], 1)
    with pytest.raises(ValueError, match="`accumulation_steps` and `keep_checkpoints` of at least 1"):
        WSSSTrainer(method, {}, [], 1, accumulation_steps=0)


@pytest.mark.parametrize(("given", "resumed"), [(True, True), ("true", True), (False, False), ("false", False)])
def test_the_command_line_hands_flags_over_as_text(tmp_path, given, resumed):
    assert make_trainer(tmp_path, resume=given).resume is resumed
    with pytest.raises(ValueError, match="`resume` to be true or false, got 'yes'"):
        make_trainer(tmp_path, resume="yes")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_an_encoder_that_begins_at_random_in_silence_is_named(told, resume, caplog):
    encoder = EfficientNetLite("lite0", 1, levels=(2,), input_range="z_scores")
    method = ClassActivationMapping(CAMAdapter(encoder, 24))
    if told:
        load_encoder_weights(method.network, "none")
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.001)
    # A training that may resume, but has nothing to resume from, begins like any other.
    WSSSTrainer(method, optimizer, make_loader(make_items()), 1, resume=resume, progress_bar=False).run()
    assert ("EfficientNet-Lite0 presumes published weights" in caplog.text) is not told


def test_a_new_run_leaves_no_checkpoint_of_an_earlier_one_to_resume_from(tmp_path, caplog):
    make_trainer(tmp_path).run()
    killed = make_trainer(tmp_path)
    killed.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: killed.terminate())
    killed.run()
    assert "earlier checkpoints" in caplog.text
    resumed = make_trainer(tmp_path, resume=True)
    resumed.run()
    assert resumed.state.iteration == 12
    assert "No checkpoint to resume from" in caplog.text


def test_resuming_with_other_epochs_or_another_network_is_refused(tmp_path):
    make_trainer(tmp_path).run()
    with pytest.raises(DataError, match="is of a run of 4 epochs of 3 iterations, this one has 2 of 3"):
        make_trainer(tmp_path, epochs=2, resume=True).run()
    other = make_trainer(tmp_path, resume=True)
    other.core.network.head = nn.Conv2d(3, 1, 1)
    with pytest.raises(DataError, match="holds another network: resume with the same settings"):
        other.run()


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)

    @trainer.on(Events.EPOCH_STARTED(once=3))
    def fill(engine):
        def refuse(path, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", refuse)

    with pytest.raises(DataError, match=r"Cannot write .*epoch_0003.pt: the disk is full"):
        trainer.run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch_0001.pt", "epoch_0002.pt"]


@pytest.mark.parametrize(("amp", "precision"), [(False, "float32"), (True, "mixed, bfloat16")])
def test_the_log_says_where_and_with_which_numbers_it_trains(amp, precision, tmp_path, caplog):
    trainer = make_trainer(tmp_path, epochs=1, amp=amp)
    with caplog.at_level(logging.INFO, "monai_wsss.engines.trainer"):
        trainer.run()
    assert f"Training on cpu, precision: {precision}." in caplog.text
    assert settings_of(trainer).items() >= {"amp": amp, "precision": precision}.items()


class Watched(ClassActivationMapping):
    """A method that tells of a value that nothing minimizes."""

    def monitors(self, player: str) -> dict[str, torch.Tensor]:
        return {"players": torch.tensor(float(len(player))), "unknown": torch.tensor(torch.nan)}


def test_monitors_are_logged_and_no_part_of_the_loss():
    torch.manual_seed(0)
    method = Watched(CAMEncoder(2, 1, 1, width=2))
    optimizer = torch.optim.AdamW(method.player_parameters("network"), lr=0.01)
    trainer = WSSSTrainer(method, optimizer, make_loader(make_items()), 1, progress_bar=False)
    trainer.run()
    output = trainer.state.output
    assert output["players"] == len("network")
    assert output["unknown"] != output["unknown"]
    assert output["loss"] == pytest.approx(sum(output[name] for name in output.keys() - {"loss", "players", "unknown"}))


def test_other_programs_find_the_network_and_the_optimizer_of_the_first_player():
    for kind, players in ((ClassActivationMapping, ["network"]), (CoinGAN, ["generator", "discriminator"])):
        method = kind.tiny()
        optimizers = {player: torch.optim.SGD(method.player_parameters(player), lr=0.1) for player in players}
        trainer = WSSSTrainer(method, optimizers, [{}], 1, progress_bar=False)
        assert isinstance(trainer, SupervisedTrainer)
        assert trainer.network is method.network
        assert next(trainer.network.parameters()) is next(method.player_parameters(players[0]))
        assert trainer.optimizer is optimizers[players[0]]


def as_a_federation(trainer):
    """Run a trainer as FLARE does in its own process."""
    exec("trainer.run()", {"__name__": "nvflare.client", "trainer": trainer})


def test_rounds_of_a_federation_are_parts_of_one_run(tmp_path):
    """Ramps count all rounds, checkpoints of earlier rounds stay, and weights that came in between count."""
    method, seen = ClassActivationMapping.tiny(), []
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    trainer = WSSSTrainer(
        method, optimizer, make_loader(make_items(8)), 4, checkpoint_dir=tmp_path, resume=True, progress_bar=False
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.progress.fraction))
    for number in (1, 2, 3, 4):
        weight = next(trainer.network.parameters())
        with torch.no_grad():
            weight.fill_(number / 10)
        trainer.state.max_epochs = trainer.state.epoch + 1
        as_a_federation(trainer)
        assert bool((weight == number / 10).all()), "the round before did not come back"
        assert trainer.state.epoch == number
    assert seen == [place / 8 for place in range(8)]


def test_a_trainer_that_failed_resumes_when_it_is_run_again(tmp_path):
    method, faults = ClassActivationMapping.tiny(), [6]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    trainer = WSSSTrainer(
        method, optimizer, make_loader(make_items(8)), 4, checkpoint_dir=tmp_path, resume=True, progress_bar=False
    )
    done = []

    def follow(engine):
        if engine.state.iteration in faults:
            faults.clear()
            raise OSError("the disk went away")
        done.append(engine.state.iteration)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, follow)
    with pytest.raises(OSError, match="went away"):
        trainer.run()
    trainer.run()
    assert done == [1, 2, 3, 4, 5, 5, 6, 7, 8]


def test_several_players_are_refused_by_a_federation():
    method = CoinGAN.tiny()
    optimizers = {player: torch.optim.SGD(method.player_parameters(player), lr=0.1) for player in method.players}
    with pytest.raises(ValueError, match="which belong together: train it at one site"):
        as_a_federation(WSSSTrainer(method, optimizers, [{}], 1, progress_bar=False))


@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
def test_an_average_begins_with_the_weights_that_a_federation_sent():
    method = CoSA.tiny()
    optimizer = torch.optim.SGD(method.player_parameters("online"), lr=0.0)
    trainer = WSSSTrainer(method, optimizer, make_loader(make_items(8)), 1, progress_bar=False)
    sent = {
        name: value + 0.01 if value.is_floating_point() else value
        for name, value in trainer.network.state_dict().items()
    }
    trainer.network.load_state_dict(sent)
    as_a_federation(trainer)
    for network in (trainer.network, method.network):
        first = next(iter(sent))
        assert torch.allclose(network.state_dict()[first], sent[first])


def test_a_handler_reads_the_loss_as_monai_tracks_it():
    """By ``from_engine``, with which ``--tracking mlflow`` makes its handler."""

    class Tracking:
        def __init__(self):
            self.output_transform, self.seen = from_engine(["loss"], first=True), []

        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            self.seen.append(self.output_transform(engine.state.output))

    method, tracking = ClassActivationMapping.tiny(), Tracking()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    WSSSTrainer(method, optimizer, make_loader(make_items(8)), 1, train_handlers=[tracking], progress_bar=False).run()
    assert len(tracking.seen) == 2
    assert all(isinstance(loss, float) for loss in tracking.seen)


def test_the_progress_of_an_epoch_of_unknown_length_counts_epochs(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.state.epoch_length, trainer.state.iteration = None, 3
    assert trainer.progress.fraction == 2 / 4
