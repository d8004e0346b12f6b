# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One contract for all methods, by inventory: a new one that does not keep it fails here."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import pytest
import torch

import monai_wsss.methods
from monai_wsss.engines import Progress, WSSSTrainer
from monai_wsss.methods import WSSSMethod
from monai_wsss.networks import ActivationNetwork

EVERY = {name: getattr(monai_wsss.methods, name) for name in monai_wsss.methods.__all__}
METHODS = [value for value in EVERY.values() if issubclass(value, WSSSMethod) and value is not WSSSMethod]
# Late enough for every warm-up that is a share of the run.
LATE = Progress(epoch=9, iteration=9, fraction=0.9)
# A difference of two images has no classes.
ONE_CLASS = {"CoinGAN"}


def tiny(method: type[WSSSMethod], spatial_dims: int = 2, channels: int = 3, classes: int = 2) -> WSSSMethod:
    """Build a tiny method, for as many of the classes as it knows."""
    return method.tiny(spatial_dims, channels, 1 if method.__name__ in ONE_CLASS else classes)


def make_batch(
    method: type[WSSSMethod], spatial_dims: int = 2, channels: int = 1, classes: int = 1, size: int = 16
) -> dict[str, Any]:
    """Make three images, the last one healthy, with what the method reads."""
    generator = torch.Generator().manual_seed(1)
    classes = 1 if method.__name__ in ONE_CLASS else classes
    batch = {"image": torch.rand((3, channels, *(size,) * spatial_dims), generator=generator)}
    batch["label"] = torch.zeros(3, classes)
    batch["label"][0] = 1.0
    batch["label"][1, -1] = 1.0
    mask = torch.zeros((3, 1, *(size,) * spatial_dims), dtype=torch.uint8)
    mask[0, 0, 2:6] = 1
    if method.uses_masks:
        batch["mask"] = mask
    if method.__name__ == "PseudoMaskSupervision":
        batch["pseudo_mask"] = mask
    return batch


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def test_every_method_is_in_the_inventory():
    """By class of the modules, so that one that a room does not export is found, too."""
    found = {
        value
        for name in dir(monai_wsss.methods)
        if inspect.ismodule(module := getattr(monai_wsss.methods, name))
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, WSSSMethod) and value.__module__ == module.__name__
    }
    bases = {value for value in found if any(issubclass(other, value) for other in found - {value})}
    assert found - bases <= set(METHODS)
    assert len(METHODS) >= 7


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize(("spatial_dims", "channels", "classes"), [(2, 1, 1), (2, 4, 3), (3, 2, 2)])
def test_losses_are_named_finite_scalars_that_reach_every_parameter(method, spatial_dims, channels, classes):
    torch.manual_seed(0)
    size = 32 if spatial_dims == 2 else 16
    made = tiny(method, spatial_dims, channels, classes)
    batch = make_batch(method, spatial_dims, channels, classes, size)
    for player in made.players:
        losses = made(batch, LATE, player)
        assert losses
        assert all(loss.ndim == 0 and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        total(losses).backward()
        parameters = list(made.player_parameters(player))
        assert parameters
        if not getattr(made, "may_leave_parameters_unused", False):
            assert all(parameter.grad is not None for parameter in parameters if parameter.requires_grad)
        assert all(parameter.grad.isfinite().all() for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_healthy_images_stay_finite(method, value):
    batch = {name: torch.zeros_like(part) for name, part in make_batch(method, 2, 3, 2, 32).items()}
    batch["image"] += value
    made = tiny(method)
    total(made(batch, LATE, made.players[0])).backward()
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_half_precision_gives_float32_losses(method):
    made = tiny(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = made(make_batch(method, 2, 3, 2, 32), LATE, made.players[0])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_saved_state_goes_on_as_it_was(method):
    """What only training needs (moving averages, gates, levels) is in the state, finite, and restored."""
    batch = make_batch(method, 2, 3, 2, 32)
    torch.manual_seed(0)
    made = tiny(method)
    made(batch, LATE, made.players[0])
    made.after_step(LATE)
    assert all(value.isfinite().all() for value in made.state_dict().values())
    torch.manual_seed(1)
    other = tiny(method)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    results = []
    for one in (made, other):
        torch.manual_seed(2)
        results.append(one(batch, LATE, one.players[0]))
    assert list(results[0]) == list(results[1])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_settings_can_be_recorded(method):
    settings = tiny(method).settings
    assert settings["method"] == method.__name__
    assert json.loads(json.dumps(settings, allow_nan=False)).keys() == settings.keys()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_masks_are_read_by_those_that_say_so(method):
    batch = make_batch(method, 2, 3, 2, 32)
    batch["mask"] = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    made = tiny(method)
    if method.uses_masks:
        assert method.__name__ == "FullSupervision"
        made(batch, LATE)
    else:
        with pytest.raises(ValueError, match=f"{method.__name__} learns from image-level labels alone"):
            made(batch, LATE)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 0.5}, "`label` to hold 0 and 1 only"),
        ({"image": torch.zeros(3, 32, 32)}, r"`image` of shape \(B, C, \*S\), got \(3, 32, 32\)"),
    ],
)
def test_wrong_batches_are_named(method, change, message):
    batch = make_batch(method, 2, 3, 2, 32)
    if "label" in change:
        change = {"label": torch.full_like(batch["label"], change["label"])}
    with pytest.raises(ValueError, match=message):
        tiny(method)(batch | change, LATE)


@pytest.mark.filterwarnings("ignore:Epoch")  # so short a run may end with maps that are all or nothing
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_training_lowers_the_loss_and_deploys_the_network(method, tmp_path):
    """A few steps on one batch: the trainer, the healthy level, the weights."""
    torch.manual_seed(0)
    made = tiny(method)
    batch = make_batch(method, 2, 3, 2, 32) | {"id": ["a", "b", "c"]}
    optimizers = {player: torch.optim.AdamW(made.player_parameters(player), lr=0.01) for player in made.players}
    first: list[float] = []
    trainer = WSSSTrainer(made, optimizers, [batch] * 10, 2, progress_bar=False, model_path=tmp_path / "model.pt")
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: first.append(engine.state.output["loss"]))
    trainer.run()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    made.network.load_state_dict(weights)
    if isinstance(made.network, ActivationNetwork):
        assert made.network.filled.all()
    output = made.network.eval()(batch["image"])
    assert output.shape[2:] == batch["image"].shape[2:]
    assert min(first[-3:]) < first[0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_no_state_is_ever_nan(method):
    assert all(bool(value.isfinite().all()) for value in method.tiny().state_dict().values())
