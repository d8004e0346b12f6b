# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The examples of ``integrations/``: those of installed packages run here, clients in environments of their own.

``WSSS_CLIENTS`` names a folder of environments that ``integrations/make_environment.sh`` made.
"""

import ast
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from monai_wsss.data import load_datalist, make_phantoms

# The words alone: `find_series` would need a file per description.
from monai_wsss.data.dicom_series import _sequence
from monai_wsss.inferers import VolumeInferer
from monai_wsss.networks import ActivationNetwork
from monai_wsss.refinement import ToMaskd
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "integrations"
CAM = ROOT / "bundles" / "brain_mri_cam_segmentation"
CLIENTS = os.environ.get("WSSS_CLIENTS")


def needs(client):
    """Skip where the environment of a client was not made."""
    there = CLIENTS is not None and (Path(CLIENTS) / client / "bin" / "python").exists()
    return pytest.mark.skipif(not there, reason=f"WSSS_CLIENTS names no folder with an environment {client}")


def program(client, name="python"):
    return str(Path(CLIENTS) / client / "bin" / name)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*words, cwd):
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def test_deploys_patterns_tell_the_sequences_that_our_reader_tells():
    """By descriptions of scanners; the app itself imports the SDK."""
    tree = ast.parse((EXAMPLES / "monai_deploy" / "app.py").read_text(encoding="utf-8"))
    lines = [node for node in tree.body if isinstance(node, ast.Assign)]
    found = {}
    exec(compile(ast.Module(lines, []), "app.py", "exec"), found)
    for description, sequence in {
        "T1 SPACE sag": "T1",
        "Ax T1 MPRAGE": "T1",
        "T1_CE": "T1c",
        "t1 mprage +C": "T1c",
        "AX T1 POST GAD": "T1c",
        "POST T1 ax": "T1c",
        "FLAIR T2 ax": "FLAIR",
        "t1 km": "T1c",
        "AX T2 FLAIR": "FLAIR",
        "Ax T1 FLAIR": "FLAIR",
        "T2 TSE": "T2",
        "T2* GRE": None,
        "localizer": None,
    }.items():
        told = [name for name, pattern in found["PATTERNS"].items() if re.search(pattern, description, re.IGNORECASE)]
        assert told == ([] if sequence is None else [sequence]), description
        assert _sequence([Path("1/a.dcm"), Path("1/b.dcm")], description) == sequence, description


@pytest.mark.parametrize("name", ["ignite", "lightning"])
def test_a_method_trains_in_another_loop(name, tmp_path):
    pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / name / "train.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    data = make_phantoms(tmp_path / "data", modalities=["FLAIR"], subjects=(2, 0, 1))
    network = example.train(f"{data}/datalist.json", 1, 1, str(tmp_path / "model.pt")).eval()
    assert isinstance(network, ActivationNetwork)
    assert bool(network.filled.all()), "the healthy level was measured"
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    item = NormalizeSubjectd("image")(LoadImageOrderedd("image")(load_datalist(f"{data}/datalist.json", "test")[0]))
    with torch.no_grad():
        maps = VolumeInferer(tell_rule=True)(item["image"][None], network)
    assert ToMaskd("pred")({**item, "pred": maps[0]})["pred"].shape == item["image"].shape


@pytest.mark.slow
def test_mlflow_follows_a_training(tmp_path):
    """By MONAI's own words behind a training: ``--tracking mlflow``."""
    mlflow = pytest.importorskip("mlflow")
    from monai.bundle import run as run_bundle

    data = make_phantoms(tmp_path / "data", modalities=["T1", "T1c", "FLAIR"], subjects=(2, 2, 1))
    run_bundle(
        config_file=str(CAM / "configs" / "train.json"),
        logging_file=False,
        tracking="mlflow",
        bundle_root=str(CAM),
        dataset_dir=str(data),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        epochs=1,
        grid=[32, 32],
        **{"network_def#members": 1},
    )
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/out/mlruns.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert any("train_loss" in one.data.metrics for one in runs)


@needs("flare")
def test_flare_simulates_two_sites_for_two_rounds(tmp_path):
    for site in ("site-1", "site-2"):
        make_phantoms(tmp_path / "data" / site, modalities=["T1", "T1c", "FLAIR"], subjects=(2, 2, 1))
    words = ("--bundle", CAM, "--data", tmp_path / "data", "--rounds", 2, "--out", tmp_path / "out")
    printed = run(program("flare"), EXAMPLES / "flare" / "job.py", *words, cwd=tmp_path)
    assert "Result:" in printed
    (file,) = (tmp_path / "out").rglob("FL_global_model.pt")
    weights = torch.load(file, weights_only=False)
    state = weights.get("model", weights)
    assert all(bool(torch.as_tensor(value).isfinite().all()) for value in state.values())


@pytest.fixture
def study(tmp_path):
    """Give a study as one image of several channels, and the mask that the bundle's own run writes."""
    data = Path(make_phantoms(tmp_path / "data", modalities=["T1", "T1c", "FLAIR"], subjects=(1, 1, 1)))
    run(
        shutil.which("python") or "python3",
        *("-m", "monai.bundle", "run", "--config_file", CAM / "configs" / "inference.json"),
        *("--bundle_root", CAM, "--dataset_dir", data, "--output_dir", tmp_path / "own", "--device", "cpu"),
        cwd=tmp_path,
    )
    item = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["test"][0]
    files = [nibabel.load(data / file) for file in item["image"]]
    (tmp_path / "studies").mkdir()
    stacked = np.stack([file.get_fdata() for file in files], axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stacked, files[0].affine), tmp_path / "studies" / "case.nii.gz")
    return tmp_path / "studies", np.asarray(nibabel.load(tmp_path / "own" / "masks" / f"{item['id']}.nii.gz").dataobj)


@needs("monailabel")
def test_a_label_server_answers_with_the_bundles_mask(study, tmp_path):
    studies, expected = study
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = ("start_server", "--app", EXAMPLES / "monailabel" / "app", "--studies", studies, "--port", port)
    conf = ("--conf", "bundles", CAM.parent, "--conf", "models", CAM.name)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            list(map(str, (program("monailabel", "monailabel"), *words, *conf))),
            cwd=tmp_path,
            env={**environment(), "PATH": f"{CLIENTS}/monailabel/bin:{os.environ['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(300):
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                urllib.request.urlopen(f"{address}/info/"),
            ):
                break
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(1)
        info = json.load(urllib.request.urlopen(f"{address}/info/"))
        assert info["models"][CAM.name]["labels"] == {"tumor": 1}
        assert info["models"][CAM.name]["dimension"] == 3
        asked = urllib.request.Request(f"{address}/infer/{CAM.name}?image=case&output=image", method="POST")
        (tmp_path / "mask.nii.gz").write_bytes(urllib.request.urlopen(asked).read())
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), expected)
        train = urllib.request.Request(f"{address}/train/{CAM.name}?run_sync=true", data=b"{}", method="POST")
        train.add_header("Content-Type", "application/json")
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(train).read()
        assert "learns from labels of whole images" in (tmp_path / "log").read_text()
    finally:
        server.terminate()
        server.wait(30)
