# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the MONAI Model Zoo checks before it takes a bundle; more of it is in ``test_every_bundle.py``."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_wsss.bundle_scan.bundle_checks import metadata_schema
from monai_wsss.engines import check_overrides

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/train.json"))
UNIT_TESTS = ROOT / "integrations" / "model_zoo" / "ci" / "unit_tests"
ZOO = os.environ.get("WSSS_MODEL_ZOO")

bundles = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def unit_tests(bundle, monkeypatch):
    """Import the unit tests of a bundle, with the folder on the path as the zoo's runner has it."""
    monkeypatch.syspath_prepend(str(UNIT_TESTS))
    spec = importlib.util.spec_from_file_location(f"zoo_{bundle.name}", UNIT_TESTS / f"test_{bundle.name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@bundles
def test_version_and_files_are_those_that_the_zoo_asks_for(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]
    for name in ("monai_version", "pytorch_version", "numpy_version"):
        assert metadata[name].replace(".", "").isdigit(), "the zoo installs exactly this version"
    for name, version in metadata["required_packages_version"].items():
        assert version.replace(".", "").isdigit(), name
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    wanted = {"LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "docs/data_license.txt"}
    assert wanted <= files
    assert not {"large_files.yml", "large_files.json"} & files, "the weights lie beside the configurations"
    assert bundle.name == bundle.name.lower()


@bundles
def test_unit_tests_are_in_the_zoos_form(bundle, monkeypatch):
    module = unit_tests(bundle, monkeypatch)
    assert bundle.name == module.BUNDLE
    (case,) = (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, unittest.TestCase))
    assert (case.bundle, case.phantoms, case.training) == (module.BUNDLE, module.PHANTOMS, module.TRAINING)
    found = unittest.TestLoader().loadTestsFromModule(module)
    names = {one.id().rpartition(".")[2] for one in next(iter(found))}
    assert names == {"test_train_eval_config", "test_infer_config"}
    assert found.countTestCases() == 2, "of this bundle alone"
    check_overrides([str(bundle / "configs" / "train.json")], module.TRAINING)
    assert all(
        name in ConfigParser.load_config_file(str(bundle / "configs" / "train.json")) for name in module.TRAINING
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
def test_a_unit_test_passes_where_the_zoo_runs_it(tmp_path):
    bundle = ROOT / "bundles" / "brain_mri_cam_segmentation"
    shutil.copytree(bundle, tmp_path / "models" / bundle.name)
    test = UNIT_TESTS / f"test_{bundle.name}.py"
    run(tmp_path, test)


@pytest.mark.skipif(ZOO is None, reason="WSSS_MODEL_ZOO names no checkout of the model zoo")
@bundles
def test_the_zoos_own_script_finds_no_fault(bundle, tmp_path):
    """As the zoo's continuous integration calls it: from the folder that holds ``ci`` and ``models``."""
    shutil.copytree(Path(ZOO) / "ci", tmp_path / "ci")
    shutil.copytree(bundle, tmp_path / "models" / bundle.name)
    (tmp_path / "models" / "model_info.json").write_text("{}", encoding="utf-8")
    schema = tmp_path / "models" / bundle.name / "eval" / "schema.json"
    schema.parent.mkdir(exist_ok=True)
    schema.write_text(json.dumps(metadata_schema()), encoding="utf-8")
    if "--mode" in (tmp_path / "ci" / "verify_bundle.py").read_text(encoding="utf-8"):
        for mode in ("min", "full"):
            run(tmp_path, "ci/verify_bundle.py", "--b", bundle.name, "--mode", mode)
    else:
        run(tmp_path, "ci/verify_bundle.py", "--f", f"models/{bundle.name}/configs/metadata.json")


def run(folder, script, *words):
    path = os.pathsep.join([str(ROOT), str(folder / "ci")])
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
