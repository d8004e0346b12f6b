# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""From which checkpoint a training goes on, with which settings it must, and that one process trains in a folder."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Events

from monai_wsss._checks import DataError
from monai_wsss._files import load_tensors, save_tensors
from monai_wsss._locks import LOCK
from monai_wsss.engines import TrainingLog, WSSSTrainer
from monai_wsss.engines.checkpoint import read_checkpoint, restore_rng_state, rng_state
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMUNet

# The runs are too short to find anything.
pytestmark = pytest.mark.filterwarnings("ignore:Epoch")


class Items(torch.utils.data.Dataset):
    """Four images, of which every other one has the finding."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.data = [{"id": str(number), "subject": str(number), "label": [number % 2]} for number in range(4)]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": torch.tensor([float(index % 2)]), "id": str(index)}


def make_trainer(folder, *, epochs=3, lr=0.01, seed=0, rule=None, handlers=(), resume=True) -> WSSSTrainer:
    torch.manual_seed(0)
    method = ClassActivationMapping(CAMUNet(2, 1, 1, width=2))
    method.settings |= {} if rule is None else {"rule": rule}
    return WSSSTrainer(
        method,
        torch.optim.AdamW(method.player_parameters("network"), lr=lr),
        torch.utils.data.DataLoader(Items(seed), batch_size=2),
        epochs,
        checkpoint_dir=folder / "checkpoints",
        model_path=folder / "model.pt",
        train_handlers=handlers,
        progress_bar=False,
        resume=resume,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder).run()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """Give a copy of a run whose last two checkpoints are kept."""
    (tmp_path / "checkpoints").mkdir()
    for file in (finished / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / file.name).write_bytes(file.read_bytes())
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without(key):
    def spoil(path):
        save_tensors(path, {name: value for name, value in load_tensors(path).items() if name != key})

    return spoil


SPOILED = {
    "cut": cut,
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("epoch 3"),
    "another table": lambda path: torch.save({"a": torch.zeros(1)}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "a tensor": lambda path: torch.save(torch.ones(2), path),
    "no optimizers": without("optimizers"),
    "no random states": without("rng"),
    "weights": lambda path: save_tensors(path, CAMUNet(2, 1, 1, width=2).state_dict()),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_the_checkpoint_before_a_spoiled_one_is_taken_and_the_end_is_the_same(finished, run, kind, caplog):
    spoiled = run / "checkpoints" / "epoch_0003.pt"
    SPOILED[kind](spoiled)
    with caplog.at_level(logging.INFO):
        make_trainer(run).run()
    assert "epoch_0003.pt" in caplog.text
    assert "training goes on from the earlier epoch_0002.pt" in caplog.text
    assert f"Resumed {run / 'checkpoints' / 'epoch_0002.pt'} after epoch 2 of 3." in caplog.messages
    whole, resumed = (load_tensors(folder / "model.pt") for folder in (finished, run))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_checkpoint(spoiled)["epoch"] == 3, "it is written anew"


@pytest.mark.parametrize("kind", SPOILED)
def test_where_no_checkpoint_can_be_read_each_is_named(run, kind):
    for name in ("epoch_0002.pt", "epoch_0003.pt"):
        SPOILED[kind](run / "checkpoints" / name)
    with pytest.raises(DataError, match=r"(?s)epoch_0003\.pt.*epoch_0002\.pt.*start a new training"):
        make_trainer(run).run()


def test_optimizers_of_another_kind_are_one_sentence(run):
    for name in ("epoch_0002.pt", "epoch_0003.pt"):
        path = run / "checkpoints" / name
        save_tensors(path, load_tensors(path) | {"optimizers": {"generator": {}}})
    with pytest.raises(DataError, match=r"epoch_0003\.pt does not fit this run's optimizers"):
        make_trainer(run).run()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"lr": 0.02},
            r"run with learning_rate \[?0.01\]?, this one has learning_rate \[?0.02\]?: resume with the same",
        ),
        ({"seed": 5}, "run with seed 0, this one has seed 5: resume with the same"),
        ({"lr": 1.0, "seed": 7}, "run with seed 0, learning_rate 0.01, this one has seed 7, learning_rate 1.0"),
        ({"epochs": 4}, "run of 3 epochs of 2 iterations, this one has 4"),
    ],
)
def test_a_training_goes_on_with_its_own_settings_alone(run, other, words):
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    with pytest.raises(DataError, match=words):
        make_trainer(run, **other).run()
    assert before == {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}


def test_a_setting_of_the_method_is_compared(tmp_path):
    make_trainer(tmp_path, rule="minmax").run()
    with pytest.raises(DataError, match="run with rule minmax, this one has rule fixed"):
        make_trainer(tmp_path, rule="fixed").run()


def test_where_a_value_is_from_is_not_compared(tmp_path):
    """A version that names a source, or words one better, goes on with the runs of the one before it."""
    for sources in ({"momentum": "Sec. 4"}, {"momentum": "Sec. 4.1", "encoder": "ours"}):
        trainer = make_trainer(tmp_path, epochs=1)
        trainer.core.settings |= {"sources": sources}
        trainer.run()


def test_checkpoints_of_earlier_versions_go_on_and_it_is_said(run, caplog):
    for name in ("epoch_0002.pt", "epoch_0003.pt"):
        without("settings")(run / "checkpoints" / name)
    with caplog.at_level(logging.INFO):
        make_trainer(run, lr=0.5).run()
    assert "seed, learning rate and method are not compared" in caplog.text


def test_a_second_training_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lock = tmp_path / "checkpoints" / LOCK
    lock.write_text("1-1-00000000 elsewhere")
    with pytest.raises(DataError, match=r"checkpoints is in use by process 1 on elsewhere"):
        make_trainer(tmp_path, resume=False).run()
    lock.unlink()
    make_trainer(tmp_path, epochs=1, resume=False).run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch_0001.pt"]


def test_a_training_that_fails_frees_its_folder(tmp_path):
    failing = make_trainer(tmp_path, resume=False)

    @failing.on(Events.ITERATION_COMPLETED)
    def fail(engine):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing.run()
    assert not (tmp_path / "checkpoints" / LOCK).exists()


def test_logged_losses_are_means_over_processes(tmp_path, monkeypatch):
    """The other process is played: its losses are three times as large."""
    log = TrainingLog(tmp_path / "alone")
    make_trainer(tmp_path / "alone", epochs=1, handlers=[log], resume=False).run()
    monkeypatch.setattr(
        "monai_wsss.engines.trainer.own_and_mean", lambda values: torch.stack([values, (values + 3 * values) / 2])
    )
    log = TrainingLog(tmp_path / "two")
    make_trainer(tmp_path / "two", epochs=1, handlers=[log], resume=False).run()
    alone, two = (
        [float(cell) for cell in (tmp_path / name / "training_log.csv").read_text().splitlines()[1].split(",")[1:]]
        for name in ("alone", "two")
    )
    assert two == pytest.approx([2 * value for value in alone], rel=1e-5)


def test_states_of_gpus_that_are_not_there_are_passed_over(monkeypatch):
    state, asked = rng_state(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", asked.append)
    for gpus in ([], [torch.zeros(16), torch.zeros(16)], [torch.ones(16)]):
        restore_rng_state(state | {"cuda": gpus})
    assert len(asked) == 1
    assert len(asked[0]) == 1
