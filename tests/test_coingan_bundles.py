# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the bundles of CoinGAN have to themselves: two players, even batches, rows of tables, pool and resume."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from test_every_bundle import ROOT, call, command, configs, environment, offline, read_json, read_rows, run, start

from monai_wsss.data import UnpairedSampler, make_phantoms
from monai_wsss.engines import Progress
from monai_wsss.methods import CoinGAN
from monai_wsss.networks import CycleGenerator

BUNDLES = [ROOT / "bundles" / f"{name}_coingan_segmentation" for name in ("brain_mri", "chest_xray")]
SMALL: dict[str, Any] = {"network_def#width": 4, "network_def#num_res_blocks": 1, "method#ndf": 4}
"""Networks that learn nothing, but at once."""
BESIDE = ("masks", "heat", "converted")
LATE = Progress(epoch=9, iteration=900, fraction=0.9)

__all__ = ["environment", "offline"]  # one thread and no GPU; no network

pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* the generator changes images"),
    pytest.mark.filterwarnings("ignore:Epoch .* converted images differ"),
    pytest.mark.filterwarnings("ignore:Epoch .* the gates of the contrastive convolution"),
]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def phantoms(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few X-rays, or the slices of two subjects."""
    brain = "brain" in bundle.name
    words: dict[str, Any] = {"modalities": ["FLAIR"]} if brain else {"kind": "chest"}
    subjects = (2, 2, 1) if brain else (12, 4, 1)
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=subjects, **words))


def built(bundle: Path, phantoms: Path, **overrides: Any) -> Any:
    """Give what looks up the contents of the training's configuration; what it writes lies beside the data."""
    places = {"dataset_dir": str(phantoms), "output_dir": str(phantoms.with_name(f"{phantoms.name}_out"))}
    return start(bundle, "train", **places, **{**SMALL, **overrides}).parser.get_parsed_content


# ---- the shipped weights ---------------------------------------------------------------------------------------------


def test_readme_and_metadata_state_the_same_numbers_beside_trivial_answers(bundle):
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- numbers \w+ -->\n(.*?)\n\n", text, flags=re.DOTALL)
    assert found is not None
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines())
    table = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
    for block, metrics in read_json(bundle / "configs" / "metadata.json")["eval_metrics"].items():
        assert any(name.startswith(f"{block}, Otsu") for name in names)
        for metric, value in metrics.items():
            assert table[metric][block] == f"{value:.4f}"


@pytest.mark.slow
def test_the_shipped_weights_give_the_stated_numbers(bundle, tmp_path):
    words: dict[str, Any] = {"modalities": ["FLAIR"]} if "brain" in bundle.name else {"kind": "chest"}
    data = Path(make_phantoms(tmp_path / "phantoms", **words))
    measured = read_json(run(bundle, "evaluate", tmp_path / "scores", data) / "metrics.json")
    stated = read_json(bundle / "configs" / "metadata.json")["eval_metrics"]["phantom"]
    for name, value in stated.items():
        assert measured[name]["mean"] == pytest.approx(value, abs=1e-3), name


# ---- what is trained on ----------------------------------------------------------------------------------------------


def test_batches_are_even_and_intensities_lie_between_minus_one_and_one(bundle, phantoms):
    content = built(bundle, phantoms, batch_size=4)
    loader = content("train#dataloader")
    assert isinstance(loader.sampler, UnpairedSampler)
    batches = list(loader)
    assert len(loader.sampler) == 2 * sum(bool(item["label"].any()) for item in content("train_datalist"))
    for batch in batches:
        assert int(batch["label"].sum()) * 2 == len(batch["label"])
        assert float(batch["image"].min()) >= -1
        assert float(batch["image"].max()) <= 1
    image = torch.cat([batch["image"] for batch in batches])
    assert float(image.min()) < -0.9
    assert float(image.max()) > 0.5
    for item in content("validate#dataset"):
        assert float(item["image"].abs().max()) <= 1


def test_x_rays_of_any_depth_are_scaled_alike():
    bundle = BUNDLES[1]
    scale = start(bundle, "inference").parser.get_parsed_content("normalization")
    gray = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0))
    eight, twelve = (scale({"image": depth * gray})["image"] for depth in (255.0, 4095.0))
    assert torch.allclose(eight, twelve, atol=1e-5)
    assert (float(eight.min()), float(eight.max())) == pytest.approx((-1, 1))


def test_both_players_have_an_optimizer_and_a_schedule(bundle, phantoms):
    content = built(bundle, phantoms, learning_rate=1e-3, discriminator_rate=2e-4, power=0.5, iterations=10)
    trainer = content("train#trainer")
    assert list(trainer.optimizers) == ["generator", "discriminator"]
    rates = [one.param_groups[0]["lr"] for one in trainer.optimizers.values()]
    assert rates == [1e-3, 2e-4]
    for (player, schedule), rate in zip(trainer.lr_schedulers.items(), rates, strict=True):
        assert schedule.optimizer is trainer.optimizers[player]
        assert (schedule.power, schedule.total_iters) == (0.5, 10)
        for _ in range(5):
            schedule.optimizer.step()
            schedule.step()
        assert schedule.get_last_lr()[0] == pytest.approx(rate * math.sqrt(0.5))
    stepped = [handler.lr_scheduler for handler in content("train#handlers")[:2]]
    assert stepped == list(trainer.lr_schedulers.values())


def test_the_paper_s_optimizers_are_an_override(bundle, phantoms):
    words = {"optimizers#preset": "paper", "optimizers#weight_decay": 1e-3}
    optimizers = built(bundle, phantoms, **words)("optimizers")
    assert [type(one).__name__ for one in optimizers.values()] == ["SGD", "Adam"]
    assert {group["weight_decay"] for group in optimizers["generator"].param_groups} == {0.0, 1e-3}


ROWS: dict[str, dict[str, Any]] = {
    "backbone": {"network_def#use_cconv": False, "network_def#use_ca": False, "network_def#use_sa": False},
    "+C-Conv": {"network_def#use_ca": False, "network_def#use_sa": False},
    "+C-Conv+CA": {"network_def#use_sa": False},
    "+C-Conv+SA": {"network_def#use_ca": False},
    "+C-Conv+CA+SA": {},
    "lambda": {"network_def#lam": 0.7},
    "cyclegan": {"preset": "cyclegan"},
    "minimax": {"method#gan_mode": "minimax", "method#adv_reduction": "sum"},
    "residual": {"network_def#output": "residual"},
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_paper_s_tables_is_an_override_and_steps(row, phantoms, bundle):
    content = built(bundle, phantoms, **ROWS[row])
    trainer, method = content("train#trainer"), content("method")
    assert isinstance(method, CoinGAN)
    batch = next(iter(trainer.data_loader))
    for player, optimizer in content("optimizers").items():
        losses = method(batch, LATE, player)
        assert ("cycle" in losses) == (row == "cyclegan" and player == "generator")
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert all(bool(tensor.isfinite().all()) for tensor in method.state_dict().values() if tensor.is_floating_point())


# ---- a training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(bundle: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs in mixed precision, with wrong labels and a pool."""
    words = {"epochs": 2, "val_interval": 2, "method#pool_size": 6, "amp": True, "label_noise": 0.2, **SMALL}
    return run(bundle, "train", tmp_path_factory.mktemp("training") / "run", phantoms, **words)


def test_it_trains_in_mixed_precision_and_logs_the_signs_of_a_collapse(training):
    rows = read_rows(training / "training_log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in ("adversarial", "identity", "difference_ratio", "output_spread", "gate_open"):
        assert all(math.isfinite(float(row[f"generator/{name}"])) for row in rows)
    assert all(float(row["discriminator/adversarial"]) > 0 for row in rows)
    record = read_json(training / "run.json")["config"]
    assert record["precision"] == "mixed, bfloat16"
    assert record["label_noise"]["share"] == 0.2
    assert record["pool_size"] == 6


def test_the_checkpoint_holds_pool_and_levels_and_the_weights_the_mean_of_healthy_images(training, bundle, phantoms):
    checkpoint = torch.load(training / "checkpoints" / "epoch_0002.pt", weights_only=True)
    method = built(bundle, phantoms, **{"method#pool_size": 6})("method")
    method.load_state_dict(checkpoint["method"])
    assert len(method.pool.images) == 6
    state = torch.load(training / "model.pt", weights_only=True)
    network = start(bundle, "inference", **{k: v for k, v in SMALL.items() if "network" in k}).network_def
    blank = network.buffer.reference.clone()
    network.load_state_dict(state)
    assert bool(network.buffer.filled)
    assert bool(network.filled.all())
    assert not torch.allclose(network.buffer.reference, blank, atol=1e-3)
    assert not any("discriminator" in name for name in state)


def test_evaluation_by_the_paper_s_protocol_stands_beside_ours(training, bundle, phantoms, tmp_path):
    words = {name: value for name, value in SMALL.items() if "network" in name}
    options = {"ckpt_dir": str(training), "protocol": "paper", **words}
    output = run(bundle, "evaluate", tmp_path / "scores", phantoms, **options)
    metrics = read_json(output / "metrics.json")
    assert {"dice_subject", "dice_macro_pooled", "pixel_auroc", "healthy_clean"} <= metrics.keys()
    paper = {name for name in metrics if name.startswith("paper_")}
    assert len(paper) >= 6
    assert all(metrics[name]["mean"] >= 0 for name in paper)
    saved = [{path.name.replace("_normalized", "") for path in (output / name).iterdir()} for name in BESIDE]
    assert saved[0] == saved[1] == saved[2]
    assert (output / "conversions.png").is_file()
    assert set(read_json(output / "intensities.json")["distance_to_healthy"]) > {"finding", "finding_converted"}
    assert "<h2>Conversion</h2>" in (output / "report.html").read_text(encoding="utf-8")


def values(path: Path, low: float, high: float) -> np.ndarray:
    """Give the values of a NIfTI file, or of a PNG file of 16 bits where ``low`` is black and ``high`` is white."""
    if path.suffix == ".gz":
        return np.asarray(nibabel.load(path).dataobj)
    return low + (high - low) * np.asarray(Image.open(path)).astype(float) / 65535


def test_heat_map_and_converted_image_lie_beside_the_mask_in_its_geometry(training, phantoms, bundle, tmp_path):
    words = {name: value for name, value in SMALL.items() if "network" in name}
    output = run(bundle, "inference", tmp_path / "out", phantoms, ckpt_dir=str(training), **words)
    (row,) = read_rows(output / "predictions.csv")
    (presence,) = [name for name in row if "_presence_" in name]
    assert presence.endswith("_presence_difference"), "a difference is no logit"
    mask, heat, converted = (output / row[name] for name in ("mask", "heat", "converted"))
    assert [path.parent.name for path in (mask, heat, converted)] == list(BESIDE)
    found, change, healthy = values(mask, 0, 65535), values(heat, 0, 2), values(converted, -1, 1)
    assert found.shape == change.shape == healthy.shape
    assert float(change.max()) > 0.01
    assert float(row[presence]) == pytest.approx(float(change.max()), abs=2e-4)
    assert -1 <= float(healthy.min()) < float(healthy.max()) <= 1
    if mask.suffix == ".gz":
        affines = [nibabel.load(path).affine for path in (mask, heat, converted)]
        assert np.array_equal(affines[0], affines[1])
        assert np.array_equal(affines[0], affines[2])
    assert not list(output.rglob("*.tmp*"))


def test_an_evaluation_converts_each_image_once_and_tells_words_other_than_the_training_s(
    training, phantoms, bundle, tmp_path, monkeypatch, caplog
):
    converted = []
    translate = CycleGenerator.translate

    def counted(self: CycleGenerator, image: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        converted.append(len(image))
        return translate(self, image, reference)

    monkeypatch.setattr(CycleGenerator, "translate", counted)
    words = {name: value for name, value in SMALL.items() if "network" in name}
    run(bundle, "evaluate", tmp_path / "same", phantoms, ckpt_dir=str(training), **words)
    assert sum(converted) == len(list((tmp_path / "same" / "masks").iterdir()))
    assert "The weights were trained with" not in caplog.text
    words |= {"network_def#specificity": "channel", "network_def#sign": "positive"}
    run(bundle, "evaluate", tmp_path / "other", phantoms, ckpt_dir=str(training), **words)
    assert 'trained with specificity "sigmoid", and this network has "channel"' in caplog.text
    assert 'trained with sign "both", and this network has "positive"' in caplog.text


def same(first: Any, second: Any) -> bool:
    """Compare two checkpoints bit by bit (NaN equals NaN)."""
    if isinstance(first, torch.Tensor):
        return np.array_equal(first.numpy(), second.numpy(), equal_nan=first.is_floating_point())
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["identity", "cyclegan"])
def test_a_killed_run_goes_on_with_pool_levels_and_both_optimizers(bundle, phantoms, preset, environment, tmp_path):
    """After kill -9 and resume, the last checkpoint is that of the whole run, tensor by tensor."""
    words: dict[str, Any] = {"epochs": 4, "val_interval": 2, "preset": preset, "method#pool_size": 6, **SMALL}
    places = {"bundle_root": bundle, "dataset_dir": phantoms, "output_dir": tmp_path / "killed", "device": "cpu"}
    typed = command(*configs(bundle, "train.json"), **places, **words)
    with subprocess.Popen(
        typed, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        second = tmp_path / "killed" / "checkpoints" / "epoch_0002.pt"
        while not second.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    assert "after epoch" in call([*typed, "--resume", "true"], environment, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(bundle, "train", tmp_path / "whole", phantoms, **words)
    finally:
        torch.set_num_threads(threads)
    last = [
        torch.load(folder / "checkpoints" / "epoch_0004.pt", weights_only=True)
        for folder in (tmp_path / "killed", whole)
    ]
    assert set(last[0]["optimizers"]) == {"generator", "discriminator"}
    assert any("pool" in name for name in last[0]["method"])
    assert all(same(last[0][part], last[1][part]) for part in ("method", "optimizers", "lr_schedulers", "iteration"))
    weights = [torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path / "killed", whole)]
    assert same(*weights)
