# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``run.json``: complete, hashed, and silent about who ran it where."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import monai
import numpy as np
import pytest
import torch
from monai.data import DataLoader

import monai_wsss
from monai_wsss._checks import DataError
from monai_wsss.engines import WSSSTrainer, one_cycle
from monai_wsss.inferers import GradientCAMInferer, VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.reports import collect_provenance, provenance, write_run
from monai_wsss.reports.provenance import other_than_trained, settings_of

NOTHING = {"config": None, "seed": None, "data": None, "weights": None, "uses_masks": []}


def test_versions_hashes_seed_and_time(tmp_path):
    data, weights = tmp_path / "datalist.json", tmp_path / "model.pt"
    data.write_bytes(b"{}")
    weights.write_bytes(b"abc")
    run = collect_provenance(config={"a": 1}, seed=7, data=data, weights=weights, uses_masks=["oracle"])
    assert run["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert run["versions"]["monai"] == monai.__version__
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["monai_wsss"] == monai_wsss.__version__
    assert run["versions"]["python"] == platform.python_version()
    assert run["datalist_sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert run["weights_sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert (run["seed"], run["config"], run["uses_masks"]) == (7, {"a": 1}, ["oracle"])
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(run["time_utc"]) < timedelta(minutes=1)
    path = write_run(tmp_path / "new" / "run", run)
    assert json.loads(path.read_text(encoding="utf-8")) == run
    assert "tmp" not in path.read_text(encoding="utf-8")  # hashes, not paths


def trainer_of(method, optimizers, schedulers):
    loader = DataLoader([{"image": torch.zeros(1, 8, 8), "label": torch.zeros(1)}] * 6, batch_size=2)
    return WSSSTrainer(method, optimizers, loader, 3, lr_schedulers=schedulers, progress_bar=False)


def test_a_trainer_tells_what_it_was_built_with():
    method = ClassActivationMapping.tiny()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.1)
    told = settings_of(trainer_of(method, optimizer, one_cycle(optimizer, 0.01, 3, range(3))))
    assert told == {
        **method.settings,
        "method": "ClassActivationMapping",
        "epochs": 3,
        "iterations_per_epoch": 3,
        "batch_size": 2,
        "accumulation_steps": 1,
        "amp": False,
        "precision": "float32",
        "optimizer": "AdamW",
        "learning_rate": 0.01,  # the peak, where the schedule begins with less
        "weight_decay": 0.1,
        "lr_scheduler": "OneCycleLR",
    }


def test_parameters_with_rates_of_their_own_are_told_group_by_group():
    method = ClassActivationMapping.tiny()
    first, *others = method.parameters()
    groups = [{"params": [first], "lr": 0.1}, {"params": others, "lr": 1.0, "weight_decay": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    told = settings_of(trainer_of(method, optimizer, None))
    assert (told["learning_rate"], told["weight_decay"], told["lr_scheduler"]) == ([0.1, 1.0], [0, 0.5], None)


def test_an_inferer_tells_how_it_infers():
    assert settings_of(VolumeInferer(roi_size=(8, 8), views="flips"))["window"] == (8, 8)
    told = settings_of(VolumeInferer(cam=GradientCAMInferer("encoder", variant="gradcam++")))
    assert told == {"grid": None, "views": "none", "scales": (1.0,), "cam": "gradcam++"}


def test_nothing_given():
    run = collect_provenance(**NOTHING)
    assert run["datalist_sha256"] is run["weights_sha256"] is run["seed"] is None
    assert run["uses_masks"] == []
    json.dumps(run, allow_nan=False)


def test_says_nothing_about_user_host_and_home(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setattr(platform, "node", lambda: "ward7pc")
    monkeypatch.setattr(Path, "home", lambda: Path("/data/homes/jd"))
    config = {
        "own": "/data/homes/jd/brats",
        "linux": "/home/someone/data",
        "root": "/root/x",
        "mac": ["/Users/Jane Roe/x", Path("/Users/jane")],
        "windows": "C:\\Users\\Jane\\data",
        "scratch": "/scratch/jdoe/run1",
        "share": "//ward7pc/share",
        "/home/key/x": 1,
        "command": "python train.py --dataset_dir=/home/me/x --out /tmp/y",
    }
    text = json.dumps(collect_provenance(**NOTHING | {"config": config}))
    for word in ("jdoe", "ward7pc", "homes", "someone", "Jane", "jane", "root/", "/key", "/me/"):
        assert word not in text, word
    plain = collect_provenance(**NOTHING | {"config": config})["config"]
    assert plain["own"] == "~/brats"
    assert plain["linux"] == "~/data"
    assert plain["command"] == "python train.py --dataset_dir=~/x --out /tmp/y"


def test_other_settings_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    config = {
        "bundle_root": "@bundle_root/models", "lr": 1e-3, "flag": True, "none": None, "list": [1, (2, "x")],
        "path": Path("data/root/home"), "expression": "$monai_wsss.engines.start_distributed()", "home": "/homepage/x",
    }  # fmt: skip
    plain = collect_provenance(**NOTHING | {"config": config})["config"]
    assert plain == config | {"list": [1, [2, "x"]], "path": "data/root/home"}


def test_values_that_json_cannot_hold_become_words():
    config = {"nan": float("nan"), "inf": float("inf"), "tensor": torch.zeros(2), 3: {"function": print}}
    plain = collect_provenance(**NOTHING | {"config": config})["config"]
    assert plain == {"nan": "nan", "inf": "inf", "tensor": "Tensor", "3": {"function": "builtin_function_or_method"}}


def test_git_commit_is_read_from_the_checkout(tmp_path, monkeypatch):
    def commit_of(checkout):
        monkeypatch.setattr(monai_wsss, "__file__", str(checkout / "monai_wsss" / "__init__.py"))
        return collect_provenance(**NOTHING)["git_commit"]

    commit = "0123456789" * 4
    git = tmp_path / "checkout" / ".git"
    assert commit_of(git.parent) is None
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(git.parent) is None  # no commit yet
    (git / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{commit[::-1]} refs/heads/other\n{commit} refs/heads/main\n"
    )
    assert commit_of(git.parent) == commit
    (git / "refs" / "heads" / "main").write_text(f"{'a' * 40}\n")
    assert commit_of(git.parent) == "a" * 40
    (git / "HEAD").write_text(f"{commit}\n")
    assert commit_of(git.parent) == commit
    tree = git / "worktrees" / "second"
    tree.mkdir(parents=True)
    (tree / "HEAD").write_text("ref: refs/heads/main\n")
    (tree / "commondir").write_text("../..\n")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / ".git").write_text(f"gitdir: {tree}\n")
    assert commit_of(tmp_path / "second") == "a" * 40


def test_missing_package_and_unknown_user(monkeypatch):
    def without(package):
        raise PackageNotFoundError(package)

    def nobody():
        raise OSError("no such user")

    monkeypatch.setattr(provenance, "version", without)
    monkeypatch.setattr(getpass, "getuser", nobody)
    run = collect_provenance(**NOTHING | {"config": {"path": "a/b"}})
    assert run["versions"]["torch"] == "not installed"
    assert run["config"] == {"path": "a/b"}


def test_bad_paths(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the weights .*model.pt: No such file .* check the path"):
        collect_provenance(**NOTHING | {"weights": tmp_path / "model.pt"})
    with pytest.raises(DataError, match="Cannot read the data list"):
        collect_provenance(**NOTHING | {"data": tmp_path})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"):
        write_run(tmp_path / "file", {})


def test_words_that_no_weight_shows_are_compared_with_the_training_s(tmp_path):
    weights, network = tmp_path / "model.pt", torch.nn.Identity()
    weights.write_bytes(b"abc")
    assert other_than_trained(network, weights) == [], "nothing recorded, nothing told"
    run = collect_provenance(
        config={"method": "CoinGAN", "preset": "paper", "specificity": "channel", "image_size": [64, 64]},
        seed=0, data=None, weights=None, uses_masks=[],
    )  # fmt: skip
    write_run(tmp_path, run)
    assert other_than_trained(network, weights) == []
    network.settings = {"preset": "default", "specificity": "channel", "image_size": (64, 64), "new": 1}
    assert other_than_trained(network, weights) == []
    network.settings |= {"specificity": "sigmoid"}
    (sentence,) = other_than_trained(network, weights)
    assert 'trained with specificity "channel", and this network has "sigmoid"' in sentence
    assert "--network_def#specificity" in sentence
    write_run(tmp_path, {**run, "weights_sha256": "of another file"})
    assert other_than_trained(network, weights) == []
    write_run(tmp_path, {**run, "config": {"specificity": "channel"}})
    assert other_than_trained(network, weights) == [], "the record of an evaluation"
