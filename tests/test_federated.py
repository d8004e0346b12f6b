# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Federated training by MONAI's own client: sites train in turn, and the mean of their weights goes back to them."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism

from monai_wsss.data import make_phantoms

BUNDLES = Path(__file__).parents[1] / "bundles"

pytestmark = [
    pytest.mark.filterwarnings("ignore:executing the bundle config"),
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer"),
    pytest.mark.filterwarnings("ignore:Epoch .* the generator changes images"),
    pytest.mark.filterwarnings("ignore:Epoch .* converted images differ"),
]


@pytest.fixture(autouse=True)
def determinism():
    yield
    set_determinism(None)


def client(name, bundle, folder, monkeypatch, **words):
    """Start a client with data of its own, as a federation does it."""
    monkeypatch.setattr("sys.argv", ["client"])
    shutil.copytree(BUNDLES / bundle / "configs", folder / name / "configs")
    data = {"modalities": words.pop("modalities")} if "modalities" in words else {}
    phantoms = make_phantoms(folder / name / "data", subjects=(2, 2, 1), seed=len(name), **data)
    common = {"dataset_dir": str(phantoms), "device": "cpu", "output_dir": str(folder / name / "out"), **words}
    site = MonaiAlgo(
        str(folder / name),
        local_epochs=1,
        train_kwargs={**common, "val_interval": 1},
        eval_kwargs={**common, "ckpt_dir": str(folder / name / "out")},
        config_evaluate_filename=None,
        send_weight_diff=True,
    )
    site.initialize({ExtraItems.CLIENT_NAME: name})
    return site


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        ("brain_mri_cam_segmentation", {"network_def#members": 1}),
        pytest.param("brain_mri_cmer_segmentation", {}, marks=pytest.mark.slow),
    ],
)
def test_two_sites_train_for_two_rounds(bundle, words, tmp_path, monkeypatch):
    grid = {"grid": [32, 32], "views": "none", "epochs": 2}
    sites = [client(name, bundle, tmp_path, monkeypatch, **grid, **words) for name in ("first", "second site")]
    assert all(isinstance(site.trainer, SupervisedTrainer) for site in sites)
    weights = {name: value.clone() for name, value in sites[0].trainer.network.state_dict().items()}
    rounds = [weights]
    for number in (1, 2):
        changes = []
        for site in sites:
            site.train(ExchangeObject(weights=dict(weights)))
            assert site.trainer.state.epoch == number
            sent = site.get_weights()
            assert sent.weight_type == WeightType.WEIGHT_DIFF
            assert all(torch.isfinite(value).all() for value in sent.weights.values())
            changes.append(sent.weights)
        weights = {
            name: value + torch.stack([change[name].double() for change in changes]).mean(0)
            for name, value in weights.items()
        }
        rounds.append(weights)
    for before, after in pairwise(rounds):
        assert any(not torch.equal(before[name].double(), after[name].double()) for name in before)
    network = sites[0].trainer.network
    network.load_state_dict(weights)
    assert bool(network.filled.all()), "the healthy level is measured at each site, and its mean goes with the weights"
    assert len(list((tmp_path / "first" / "out" / "checkpoints").glob("*.pt"))) == 2, "no round removes another's"
    for site in sites:
        site.finalize()


def test_a_method_of_several_players_is_refused_in_one_sentence(tmp_path, monkeypatch):
    site = client(
        "one", "brain_mri_coingan_segmentation", tmp_path, monkeypatch, modalities=["FLAIR"], grid=[32, 32], pairs=8
    )
    weights = site.trainer.network.state_dict()
    with pytest.raises(ValueError, match="CoinGAN trains generator and discriminator, which belong together"):
        site.train(ExchangeObject(weights=weights))
