# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Bundles that come with the package: listed with their terms, found by name, copied whole, checked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.bundle_run import check_shipped, copy_shipped, find_bundle, list_bundles

ROOT = Path(__file__).parents[2]
NAMES = [bundle.name for bundle in list_bundles()]


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_names_its_classes_and_the_terms_of_its_weights(name):
    bundle = find_bundle(name)
    config = bundle.config("inference")
    assert len(bundle.classes) == config["num_classes"]
    assert len(bundle.metadata["weights_license"]) > 20
    text = " ".join((bundle.path / "docs" / "data_license.txt").read_text(encoding="utf-8").split())
    for word in ("citation", "attribution", "unclear", "non-commercial", "Non-commercial"):
        assert (word.lower() in bundle.license.lower()) <= (word.lower() in text.lower())
    assert bundle.background == (name != "histology_gland_segmentation")


def test_all_of_them_fit_a_wheel():
    assert sum(bundle.size_mb for bundle in list_bundles()) < 100


def test_a_bundle_is_found_by_the_beginning_of_its_name_or_by_its_folder(tmp_path, monkeypatch):
    assert find_bundle("histology").name == "histology_gland_segmentation"
    copy = copy_shipped("histology", tmp_path)
    assert find_bundle(copy).path == copy.resolve()
    monkeypatch.chdir(tmp_path)  # a copy here does not stand for the package's own
    assert find_bundle("histology_gland_segmentation").path != copy.resolve()
    assert find_bundle("./histology_gland_segmentation").path == copy.resolve()
    with pytest.raises(DataError, match=r"several bundles begin with 'brain': there are brain_mri_bmp_segmentation, b"):
        find_bundle("brain")
    with pytest.raises(DataError, match=r"no bundle is called 'heart': there are brain_mri_bmp_segmentation"):
        find_bundle("heart")
    with pytest.raises(DataError, match=r"no bundle with configs/metadata.json"):
        find_bundle(tmp_path)


def test_a_copy_is_whole_without_results_of_runs_and_never_replaces(tmp_path):
    source = copy_shipped("chest", tmp_path / "first")
    (source / "eval").mkdir()
    copy = copy_shipped(source, tmp_path / "second")
    assert not (copy / "eval").exists()
    assert (copy / "models" / "model.pt").is_file()
    assert json.loads((copy / "configs" / "metadata.json").read_text(encoding="utf-8"))["weights_license"]
    with pytest.raises(DataError, match="exists already"):
        copy_shipped(source, tmp_path / "second")


def test_damaged_weights_are_a_fault(tmp_path):
    copy = copy_shipped("chest", tmp_path)
    weights = copy / "models" / "model.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert any("damaged" in fault for fault in check_shipped(copy))


def test_the_command_lists_copies_and_checks(tmp_path, capsys):
    assert main(["bundles"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert "Non-commercial research use" in " ".join(shown.split())
    assert main(["bundles", "--copy", "chest", "--out", str(tmp_path)]) == 0
    assert "data_license.txt" in capsys.readouterr().out
    copy = tmp_path / "chest_xray_coingan_segmentation"
    assert main(["bundles", "--check", str(copy)]) == 0
    (copy / "configs" / "inference.json").write_text('{"run": ["$os.remove(1)"]}', encoding="utf-8")
    assert main(["bundles", "--check", str(copy)]) == 1
    assert "uses `os`" in capsys.readouterr().out
    assert main(["bundles", "--out", "x"]) == 1


def test_a_wheel_holds_the_bundles_and_no_results_of_runs(tmp_path):
    """Build as a wheel is built, without fetching anything; ``.ci/wheel`` installs one and predicts with it."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in (
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "monai_wsss",
        "bundles",
    ):
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, sources / name)
    (sources / "bundles" / NAMES[0] / "eval").mkdir(exist_ok=True)
    (sources / "bundles" / NAMES[0] / "eval" / "report.html").touch()
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(command, cwd=sources, check=True, capture_output=True, timeout=120)
    home = tmp_path / "built" / "monai_wsss" / "bundles"
    assert sorted(path.name for path in home.iterdir()) == NAMES
    assert not list(home.rglob("report.html"))
    for name in NAMES:
        for file in (
            "LICENSE",
            "configs/inference.json",
            "docs/data_license.txt",
            "models/model.pt",
            "models/run.json",
        ):
            assert (home / name / file).is_file()
    assert (tmp_path / "built" / "monai_wsss" / "reports" / "prediction.html.jinja").is_file()


def test_the_public_workflow_covers_what_the_metadata_promise():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert matrix["python"] == promised
    assert len(matrix["os"]) == 3
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert len({"run", "uses"} & set(step)) == 1
            checks_out = step.get("uses", "").startswith("actions/checkout@")
            assert not checks_out or step["with"]["persist-credentials"] is False, "no step pushes"
            words = step.get("run", "").split()
            assert not words or not words[0].startswith(".ci/") or (ROOT / words[0]).is_file()
