# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The negative control of the bundle checks: each planted fault is found, and found alone; the real bundle has none."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties

from monai_wsss._checks import DataError
from monai_wsss.bundle_scan import bundle_checks, config_rules
from monai_wsss.bundle_scan.bundle_checks import check_bundle, metadata_schema
from monai_wsss.bundle_scan.config_scan import iterate_config, scan_expressions

REAL = Path(__file__).parents[2] / "bundles" / "brain_mri_cam_segmentation"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy to plant faults in."""
    return shutil.copytree(REAL, tmp_path / REAL.name, ignore=shutil.ignore_patterns("eval", "sample_data", "stage*"))


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A fault in a JSON file; the file stays as well formatted as it was."""

    def plant(bundle: Path) -> None:
        path = bundle / "configs" / name
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    return plant


def put(name: str, item: str, value: Any) -> Callable[[Path], None]:
    """A fault in a JSON file: another value at an id."""

    def change(content: Any) -> None:
        *parents, last = [item] if item in content else item.split("#")  # an overlay has flat ids
        for part in parents:
            content = content[int(part) if isinstance(content, list) else part]
        content[int(last) if isinstance(content, list) else last] = value

    return edit(name, change)


def drop(name: str, item: str) -> Callable[[Path], None]:
    """A fault in a JSON file: an id is gone."""

    def change(content: Any) -> None:
        *parents, last = item.split("#")
        for part in parents:
            content = content[int(part) if isinstance(content, list) else part]
        del content[last]

    return edit(name, change)


def rewrite(name: str, pattern: str, replacement: str) -> Callable[[Path], None]:
    """A fault in a text file; the pattern must be there, or the fault would not be planted."""

    def plant(bundle: Path) -> None:
        text = (bundle / name).read_text(encoding="utf-8")
        changed, times = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert times > 0
        (bundle / name).write_text(changed, encoding="utf-8")

    return plant


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_bytes(content)


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A fault in the weights."""

    def plant(bundle: Path) -> None:
        path = bundle / "models" / "model.pt"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return plant


def grow(bundle: Path) -> None:
    with open(bundle / "docs" / "picture.png", "wb") as file:
        file.truncate(25 * 2**20 + 1)


def wrong_performance(bundle: Path) -> None:
    """One digit of one number, in metadata alone."""

    def change(metadata: dict[str, Any]) -> None:
        block = next(iter(metadata["eval_metrics"]))
        metric, value = next(iter(metadata["eval_metrics"][block].items()))
        metadata["eval_metrics"][block][metric] = value + 0.1

    edit("metadata.json", change)(bundle)


def missing_performance(bundle: Path) -> None:
    edit("metadata.json", lambda metadata: metadata["eval_metrics"].update(elsewhere={"dice_subject": 0.5}))(bundle)


def swap_last_handlers(config: dict[str, Any]) -> None:
    handlers = config["train"]["handlers"]
    handlers[-1], handlers[-2] = handlers[-2], handlers[-1]


class Payload:
    """What an attacker would put beside the tensors."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


TRAIN_TARGET = "train#deterministic_transforms#0#_target_"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    # files
    "no license": (remove("LICENSE"), r"^LICENSE is missing"),
    "another license": (write("LICENSE", b"all rights reserved\n"), r"^LICENSE is not the Apache"),
    "empty data license": (write("docs/data_license.txt", b"\n"), r"^docs/data_license.txt is empty"),
    "no data license": (remove("docs/data_license.txt"), r"^docs/data_license.txt is missing"),
    "no overlay": (remove("configs/multi_gpu_train.json"), r"^configs/multi_gpu_train.json is missing"),
    "no weights": (remove("models/model.pt"), r"^models/model.pt is missing"),
    "no readme": (remove("docs/README.md"), r"^docs/README.md is missing"),
    "large file": (grow, r"^docs/picture.png is larger than 25 MB"),
    "python code": (write("configs/helper.py", b""), r"^configs/helper.py does not belong here"),
    "link list": (write("large_files.yml", b""), r"^large_files.yml does not belong here"),
    "a yaml config": (write("configs/train.yaml", b""), r"^configs/train.yaml does not belong here"),
    "indentation": (
        lambda bundle: (path := bundle / "configs/train.json").write_text(
            json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2) + "\n"
        ),
        r"^configs/train.json is not indented by 4",
    ),
    "no newline at the end": (
        lambda bundle: (path := bundle / "configs/inference.json").write_text(
            path.read_text(encoding="utf-8").rstrip("\n")
        ),
        r"^configs/inference.json is not indented by 4 with a newline",
    ),
    "broken json": (write("configs/evaluate.json", b'{"run": '), r"^configs/evaluate.json is no JSON"),
    "no dictionary": (write("configs/evaluate.json", b"[]\n"), r"^configs/evaluate.json holds no dictionary"),
    "personal path": (
        rewrite("docs/README.md", r"\Z", "Weights came from /home/jane/weights.\n"),
        r"^docs/README.md names /home/jane/weights",
    ),
    "absolute path": (put("train.json", "datalist", "/data/datalist.json"), r"^configs/train.json names /data/data"),
    "windows path": (
        rewrite("docs/data_license.txt", r"\Z", "see C:\\\\data\\\\license.txt\n"),
        r"^docs/data_license.txt names C:\\",
    ),
    # weights
    "an object among the weights": (weights(lambda state: state | {"x": Payload()}), r"weights_only=True"),
    "a plain pickle": (write("models/model.pt", pickle.dumps({"a": Payload()})), r"weights_only=True"),
    "nested weights": (weights(lambda state: {"model": state}), r"^models/model.pt is not a flat"),
    "no weights inside": (weights(lambda state: {}), r"^models/model.pt is not a flat"),
    "NaN weights": (
        weights(lambda state: state | {next(iter(state)): torch.full((2,), torch.nan)}),
        r"^models/model.pt holds NaN",
    ),
    # logging.conf, which MONAI evaluates
    "logging class": (
        rewrite("configs/logging.conf", r"^class=.*", "class=handlers.SocketHandler"),
        r"^configs/logging.conf: \[handler_consoleHandler\] asks for handlers.SocketHandler",
    ),
    "logging arguments": (
        rewrite("configs/logging.conf", r"^args=.*", "args=(__import__('os').system('id'),)"),
        r"^configs/logging.conf: \[handler_consoleHandler\] asks for StreamHandler\(__import__",
    ),
    "no logging configuration": (write("configs/logging.conf", b"level=INFO\n"), r"is no logging configuration"),
    # metadata
    "wrong changelog": (put("metadata.json", "changelog", {"0.0.1": "first"}), r"`changelog` lacks the version"),
    "no changelog": (drop("metadata.json", "changelog"), r"metadata.json: `changelog` is missing"),
    "no task": (drop("metadata.json", "task"), r"metadata.json: `it`: 'task' is a required property"),
    "no intended use": (put("metadata.json", "intended_use", ""), r"`intended_use` is missing"),
    "old schema": (
        put("metadata.json", "schema", "https://example.org/meta_schema_20220324.json"),
        r"`schema` is https://example.org/meta_schema_20220324.json",
    ),
    "old key": (
        edit("metadata.json", lambda meta: meta.update(optional_packages_version={})),
        r"`optional_packages_version` is of an old schema",
    ),
    "build in a version": (put("metadata.json", "pytorch_version", "2.13.0+cpu"), r"`pytorch_version` is 2.13.0\+cpu"),
    "channels as text": (
        put("metadata.json", "network_data_format#inputs#image#num_channels", "3"),
        r"`network_data_format#inputs#image#num_channels`: '3' is not of type 'integer'",
    ),
    "no output": (
        put("metadata.json", "network_data_format#outputs", {}),
        r"`network_data_format` lacks outputs#pred",
    ),
    "an expression in the metadata": (
        put("metadata.json", "description", "$torch.hub.list('x')"),
        r"^configs/metadata.json: `description` uses `hub`",
    ),
    # README
    "performance that disagrees": (wrong_performance, r"^docs/README.md gives `\w+` of `\w+` as"),
    "performance that is not shown": (missing_performance, r"has no table cell for `dice_subject` of `elsewhere`"),
    "no limitations": (rewrite("docs/README.md", r"^#.*[Ll]imit.*$", "# Notes"), r"no heading for the limitations"),
    "no TensorRT statement": (rewrite("docs/README.md", r"TensorRT", "that"), r"whether TensorRT is supported"),
    "no multi-GPU command": (rewrite("docs/README.md", r"torchrun", "run"), r"no command for multi-GPU training"),
    "no override": (rewrite("docs/README.md", r"--dataset_dir", "--folder"), r"no command for your own data"),
    "another paper": (rewrite("docs/README.md", "Zhou", "Them"), r"does not name the paper that it follows, Zhou in"),
    "another checksum": (rewrite("docs/README.md", r"\Z", "0123456789abcdef" * 4), r"states another SHA-256 than that"),
    # expressions and targets
    "relative target": (put("train.json", TRAIN_TARGET, "LoadImaged"), r"`train#\S+` is 'LoadImaged': write the full"),
    "foreign target": (put("train.json", TRAIN_TARGET, "os.system"), r"is 'os.system': write the full path"),
    "computed target": (put("train.json", TRAIN_TARGET, "$@method.losses"), r"is '\$@method.losses': write the full"),
    "target that is not there": (
        put("train.json", TRAIN_TARGET, "monai.transforms.Lod"),
        r"monai.transforms.Lod, which",
    ),
    "os call": (put("inference.json", "run#0", "$os.system('id')"), r"inference.json: `run#0` uses `os`"),
    "os through torch": (put("inference.json", "run#0", "$torch.os.system('id')"), r"`run#0` uses `os`, which can run"),
    "another import": (
        put("train.json", "initialize#0", "$import subprocess"),
        r"`initialize#0` imports more than monai_wsss",
    ),
    "import list": (
        put("train.json", "imports", ["$import monai_wsss", "$import monai_wsss"]),
        r"train.json: `imports` must be",
    ),
    "copy of another file": (put("train.json", "epochs", "%other.json#epochs"), r"`epochs` copies from another file"),
    # ids, references, handlers
    "missing id": (drop("train.json", "train#inferer"), r"^configs/train.json: the id `train#inferer` is missing"),
    "missing inference id": (drop("inference.json", "initialize"), r"inference.json: the id `initialize` is missing"),
    "root elsewhere": (put("inference.json", "bundle_root", "bundles/x"), r'inference.json: `bundle_root` must be "."'),
    "property given inline": (
        put("train.json", "train#trainer#max_epochs", 20),
        r'train.json: `train#trainer#max_epochs` must be the plain reference "@epochs"',
    ),
    "validation interval inline": (
        put("train.json", "train#handlers#1#interval", 1),
        r"train.json: ValidationHandler must have the plain references",
    ),
    "dangling reference": (
        put("multi_gpu_train.json", "train#trainer#method", "@wrapped"),
        r"^configs/multi_gpu_train.json: `train#trainer#method` refers to @wrapped, which does not exist",
    ),
    "handler order": (edit("train.json", swap_last_handlers), r"`train#handlers` must end with StatsHandler, Tensor"),
    "no loader in evaluation": (
        edit("evaluate.json", lambda config: config["validate#handlers"].pop(0)),
        r"^configs/evaluate.json: the first of `validate#handlers` must be CheckpointLoader",
    ),
    "loader that cannot be switched off": (
        drop("inference.json", "handlers#0#_disabled_"),
        r'the first of `handlers` must be CheckpointLoader with "_disabled_"',
    ),
    # weak supervision
    "mask key in training": (
        put("train.json", "train#deterministic_transforms#0#keys", ["image", "mask"]),
        r"`train#deterministic_transforms#0#keys#1` names the masks",
    ),
    "masks of the training list": (
        put("train.json", "train_datalist", "$monai_wsss.data.load_datalist(@datalist, 'training', masks=True)"),
        r"`train_datalist` names the masks",
    ),
    "masks by an overlay": (
        edit("multi_gpu_train.json", lambda config: config.update({"train#inferer#mask": True})),
        r"^configs/multi_gpu_train.json: `train#inferer#mask` names the masks",
    ),
    "validation cases to train on": (
        put("train.json", "train#dataset#data", "@val_datalist"),
        r'`train#dataset#data` must be the plain reference "@train_datalist"',
    ),
}


def test_the_real_bundle_has_no_faults():
    assert check_bundle(REAL) == []


def new_faults(bundle: Path) -> list[str]:
    """What is found in the copy beyond what the real bundle has, so that a fault there fails one test, not all."""
    known = check_bundle(REAL)
    return [fault for fault in check_bundle(bundle) if fault not in known]


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_alone(bundle, name):
    plant, sentence = FAULTS[name]
    plant(bundle)
    faults = new_faults(bundle)
    assert len(faults) == 1, faults
    assert re.search(sentence, faults[0])
    assert faults[0].endswith(".")


def test_the_folder_name_tells_the_task(bundle):
    for name in ("brain_mri_cam", "BrainSegmentation", "segmentation"):
        (fault,) = new_faults(bundle.rename(bundle.with_name(name)))
        assert f"The folder is called {name}:" in fault
        bundle = bundle.with_name(name)


def test_what_a_default_run_generates_is_not_looked_at(bundle):
    for name in ("eval", "sample_data", "models/stage1"):
        (bundle / name).mkdir()
        (bundle / name / "notes.csv").write_text("/home/jane")
    assert new_faults(bundle) == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere: give the folder of a bundle"):
        check_bundle(tmp_path / "nowhere")


def test_an_empty_folder_lacks_every_file(tmp_path):
    folder = tmp_path / "a_segmentation"
    folder.mkdir()
    faults = check_bundle(folder)
    assert len(faults) == 10
    assert all(fault.endswith(" is missing.") for fault in faults)


def test_without_jsonschema_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'monai-wsss\[bundle\]'"):
        check_bundle(REAL)


def test_nothing_is_executed(bundle, capsys):
    weights(lambda state: {"x": Payload()})(bundle)
    put("inference.json", "run#0", "$print('executed')")(bundle)
    assert len(new_faults(bundle)) == 2
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "expression",
    [
        "$@bundle_root + '/models'",
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "$@network_def.to(@device).eval()",
        "$@optimizers['network'].step()",
        "$@train#handlers[: -2 if torch.distributed.get_rank() > 0 else None]",
        "$[name for name in @train::names if name != 'x']",
        "$lambda item: torch.sigmoid(item)",
        "$not @load_pretrain",
        "$monai.handlers.from_engine(['loss'], first=True)",
        "$torch.nn.functional.relu(@x, inplace=True)",
        "$torch.float32",
        "$@#sibling * 2",
        "%network_def#members#0",
        "plain text with $ and @ and os.system('id')",
    ],
)
def test_what_expressions_may_do(expression):
    assert scan_expressions({"item": expression}) == []


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("$torch", "hands out the package `torch`"),
        ("$torch.nn.functional", "names the module torch.nn.functional"),
        ("$@x.__class__", "private attribute `__class__`"),
        ("$torch._C._cuda_init()", "private attribute `_C`"),
        ("$'{0.x}'.format(@x)", "takes `format` of"),
        ("$(lambda: 1)()", "calls `lambda: 1`"),
        ("$lambda f: f()", "calls `f`"),
        ("$[f() for f in @x]", "calls `f`"),
        ("$lambda x: x.load('a')", "uses `load`"),
        ("$open('x')", "uses `open`"),
        ("$eval('1')", "uses `eval`"),
        ("$exec('1')", "uses `exec`"),
        ("$getattr(@x, 'y')", "uses `getattr`"),
        ("$__import__('os')", "uses `__import__`"),
        ("$np.ones(2)", "uses `np`"),
        ("$subprocess.run(['id'])", "uses `subprocess`"),
        ("$torch.load(@x)", "uses `load`"),
        ("$torch.hub.help('x', 'y')", "uses `hub`"),
        ("$monai.bundle.run()", "uses `bundle`"),
        ("$monai.apps.download_url('x')", "uses `download_url`"),
        ("$monai.utils.module.locate('os.system')", "reaches pydoc through monai.utils.module.locate"),
        ("$@x.os.system('id')", "uses `os`"),
        ("$torch.nosuch(1)", "names torch.nosuch, which does not exist"),
        ("$import os", "imports more than monai_wsss"),
        ("$from os import system", "imports more than monai_wsss"),
        ("$import monai_wsss as m", "imports more than monai_wsss"),
        ("$ import os", "imports more than monai_wsss"),
        ("$1 +", "is no Python expression"),
        ("$(x := torch.ones(1))", None),
    ],
)
def test_what_expressions_may_not_do(expression, words):
    faults = scan_expressions({"item": [{"deep": expression}]})
    if words is None:  # harmless: a name that the expression binds itself
        assert faults == []
        return
    assert len(faults) == 1
    assert faults[0].startswith("`item#0#deep` ")
    assert words in faults[0]


@pytest.mark.parametrize(
    "expression",
    [
        "$torch.utils.collect_env.run('id')",
        "$torch.utils.benchmark.Timer('import os').timeit(1)",
        "$torch.distributed.run.main(['evil.txt'])",
        "$torch.distributed.launcher.api.elastic_launch(@a, @b)",
        "$torch.multiprocessing.spawn(@a)",
        "$torch.compile(@a)",
        "$torch.jit.script(@a)",
        "$torch.fx.symbolic_trace(@a)",
        "$torch.from_file('x')",
        "$torch.set_default_device('cpu')",
        "$torch.utils.tensorboard.SummaryWriter('x')",
        "$torch.profiler.profile()",
        "$torch.backends.cudnn.flags()",
        "$monai.networks.utils.convert_to_onnx(@a)",
        "$monai.utils.get_package_version('x')",
        "$monai.utils.require_pkg('x')",
        "$monai.data.PersistentDataset([], None, 'x')",
        "$monai.data.LMDBDataset([], None)",
        "$monai.data.CSVSaver('x')",
        "$monai.data.load_net_with_metadata('x')",
        "$monai.handlers.MLFlowHandler('http://x')",
        "$monai.handlers.write_metrics_reports('x')",
        "$monai.transforms.TorchVision('x')",
        "$monai.transforms.RandCuCIMd('x', 'y')",
        "$monai.transforms.WriteFileMapping('x')",
        "$monai.apps.DecathlonDataset('x')",
        "$monai.fl.client.MonaiAlgo()",
        "$monai_wsss.benchmark.scan_bundle('x')",
        "$monai_wsss.command_line.table.main()",
        "$monai_wsss.data.writing.write_nifti('x', @a, @b)",
        "$@tensor.tofile('x')",
        "$@tensor.numpy().dump('x')",
        "$@network.apply(@f)",
        "$@trainer.add_event_handler('x', @f)",
        "$@path.read_text()",
        "$lambda x: x.write_bytes('a')",
    ],
)
def test_what_is_not_on_the_list_is_refused(expression):
    """No deny list held these."""
    (fault,) = scan_expressions({"item": expression})
    assert fault.startswith("`item` ")


LOAD = "monai.transforms.LoadImaged"


@pytest.mark.parametrize("key", ["reader", "writer"])
@pytest.mark.parametrize("reader", ["subprocess.Popen", ["PILReader", "os.system"], "NumpyReader", "@r", "%r", "$'x'"])
def test_readers_that_monai_would_look_up_are_refused(reader, key):
    (fault,) = scan_expressions({"load": {"_target_": LOAD, "keys": "image", key: reader}, "r": "subprocess.Popen"})
    assert "what to import" in fault
    assert scan_expressions({"load": {"_target_": LOAD, "reader": "PILReader", "keys": "image"}}) == []


TOLD: dict[str, dict[str, Any]] = {
    "a reader by position": {"a": "$monai.transforms.LoadImage('subprocess.Popen', args='id', shell=True)"},
    "a reader later": {"a": {"_target_": LOAD, "keys": "x", "_mode_": "callable"}, "b": "$@a(reader='os.system')"},
    "a reader in the other notation": {"load::reader": "subprocess.Popen"},
    "a reader of an overlay": {"load#reader": "subprocess.Popen"},
    "a reader that is merged": {"+load": {"reader": "subprocess.Popen"}},
    "a reader of the whole configuration": {"_target_": "monai.transforms.LoadImage", "reader": "os.system"},
    "a merger": {"a": {"_target_": "monai.inferers.PatchInferer", "merger_cls": "os.system"}},
    "pickles": {"a": {"_target_": LOAD, "keys": "x", "allow_pickle": True}},
    "a compiler": {"a": {"_target_": "monai.engines.SupervisedTrainer", "compile": True}},
    "a compiler by reference": {"a#compile": "@yes", "yes": True},
    "a download": {"a": {"_target_": "monai.networks.nets.DenseNet121", "pretrained": True}},
    "a download by default": {"a": {"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "b0"}},
    "a download from anywhere": {"a": {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://x"}},
    "a download in an expression": {"a": "$monai.networks.nets.ResNetFeatures('resnet50')"},
    "a hub": {"a": {"_target_": "monai.losses.PerceptualLoss", "spatial_dims": 2}},
    "a function that downloads": {"a": "$monai.networks.nets.get_pretrained_resnet_medicalnet(50)"},
    "a name in torchvision": {"a": {"_target_": "monai.networks.nets.TorchVisionFCModel", "weights": "DEFAULT"}},
    "a module that pickles": {"a": {"_target_": "monai.optimizers.LearningRateFinder", "pickle_module": "@p"}},
    "a file of any name": {"a": {"_target_": "monai.handlers.ClassificationSaver", "filename": "../x"}},
    "a folder that is emptied": {"a": {"_target_": "monai_wsss.inferers.slide_writing.SlideScratch", "folder": "/x"}},
    "a copy": {"a": "$monai_wsss.data.writing.copy_file('a', '/b')"},
    "an output folder": {"a": "$monai_wsss.data.prepared_folder.check_output('/x')"},
    "a target in the other notation": {"x::_target_": "os.system"},
    "a mode in the other notation": {"x::_mode_": "debug"},
    "a target that is an object": {"a": {"_target_": {"_target_": "torch.nn.ReLU"}}},
    "a target that is a list": {"a": {"_target_": ["torch.nn.ReLU"]}},
    "a target by reference": {"a": {"_target_": "@b"}, "b": "os.system"},
    "torch by another name": {"a": "$[torch.nn.ReLU for torch in @x]"},
    "a table of compiled parts": {"a": "$torch.classes.foo.bar"},
    "an import after an empty line": {"a": "$\nimport os"},
    "an import on a continued line": {"a": "$\\\nimport os"},
    "letters of full width": {"a": "$torch.\uff4c\uff4f\uff41\uff44('x')"},
    "an f-string": {"a": "$f'{torch.load(1)}'"},
    "an assignment": {"a": "$(x := torch.load)"},
    "subclasses": {"a": "$[x for x in ().__class__.__base__.__subclasses__()]"},
    "a module of a module": {"a": "$monai.transforms.np.load('x')"},
    "torch of a module": {"a": "$torch.nn.functional.torch.hub.load('x')"},
    "an optional import": {"a": "$monai.utils.module.optional_import('os')"},
    "a storage": {"a": "$torch.UntypedStorage.from_file('x')"},
    "a partial of functools": {"a": {"_target_": "torch.optim.lr_scheduler.partial"}},
    "metadata": {"_meta_": {"x": "$os.system('id')"}},
    "a switch": {"a": {"_disabled_": "$os.system('id')"}},
    "what is needed": {"a": {"_requires_": ["$os.system('id')"]}},
    "a workflow": {"workflow_name": "evil.Workflow"},
    "another file": {"a": "%../evil.YAML#x"},
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_would_be_told_to_run_is_refused(kind):
    assert scan_expressions(TOLD[kind])


@pytest.mark.parametrize(
    "component",
    [
        {"_target_": LOAD, "keys": "x", "reader": None},
        {"_target_": "monai.networks.nets.DenseNet121", "pretrained": False},
        {"_target_": "monai.engines.SupervisedEvaluator", "amp": True},
        {"_target_": "monai.inferers.PatchInferer", "merger_cls": "AvgMerger"},
    ],
)
def test_harmless_arguments_may_be_given(component):
    assert scan_expressions({"a": component}) == []


HANDLER = "[loggers]\nkeys=root\n[handlers]\nkeys=a\n[formatters]\nkeys=f\n[logger_root]\nhandlers=a\n[handler_a]\n"
HIDDEN: dict[str, tuple[str, str, str]] = {
    "a configuration in a folder": ("configs/extra/evil.json", '{"run": ["$os.system(1)"]}', "uses `os`"),
    "a configuration elsewhere": ("docs/evil.json", '{"a": {"_target_": "os.system"}}', "'os.system': write the full"),
    "a configuration among results": ("eval/evil.json", '{"run": ["$os.system(1)"]}', "uses `os`"),
    "a configuration among data": ("sample_data/a/evil.json", '["$os.system(1)"]', "uses `os`"),
    "capitals": ("configs/evil.JSON", '{"run": ["$os.system(1)"]}', "uses `os`"),
    "no dot": ("configs/eviljson", '{"run": ["$os.system(1)"]}', "uses `os`"),
    "other suffixes": ("configs/evil.YAML", "run: 1", "does not belong here"),
    "a configuration in a cache": ("__pycache__/evil.json", '["$os.system(1)"]', "uses `os`"),
    "a configuration in a hidden folder": (".git/evil.json", '["$os.system(1)"]', "uses `os`"),
    "other forms among results": ("eval/evil.yaml", "run: 1", "does not belong here"),
    "a program among results": ("eval/numpy.py", "1", "does not belong here"),
    "a compiled module": ("numpy.cpython-311-x86_64-linux-gnu.so", "x", "does not belong here"),
    "an archive": ("sample_data/torch.zip", "x", "does not belong here"),
    "an array": ("configs/x.npy", "x", "does not belong here"),
    "a program in capitals": ("docs/x.PY", "1", "does not belong here"),
    "a deep configuration": ("configs/deep.json", "[" * 100_000, "is no JSON"),
    "no json": ("docs/evil.json", "{", "it is no JSON"),
    "weights": ("models/other.pt", "x", "does not load with weights_only=True"),
    "keyword arguments": ("docs/a.conf", HANDLER + "class=StreamHandler\nargs=()\nkwargs={}", "has the key `kwargs`"),
    "a handler by another name": ("docs/notes.txt", HANDLER + "class=evil.Handler\nargs=()", "asks for evil.Handler"),
    "a formatter": ("a.ini", HANDLER + "class=StreamHandler\n[formatter_f]\nclass=os.system", "has the key `class`"),
    "old line ends": ("docs/a.txt", HANDLER.replace("\n", "\r") + "class=evil.Handler", "asks for evil.Handler"),
    "indented": ("docs/a.conf", " " + HANDLER.replace("\n", "\n ") + "class=evil.Handler", "asks for evil.Handler"),
    "long": ("docs/a.txt", "#\n" * 600_000 + HANDLER + "class=evil.Handler", "asks for evil.Handler"),
    "weights among results": ("eval/x.pt", "x", "does not load with weights_only=True"),
    "defaults": ("docs/a.conf", "[DEFAULT]\nkwargs={}\n" + HANDLER + "class=StreamHandler", "has the key `kwargs`"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_every_file_that_monai_or_logging_would_read_is_read(bundle, kind):
    name, content, words = HIDDEN[kind]
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text(content, newline="")
    faults = new_faults(bundle)
    assert faults
    assert all(fault.startswith((name, f"{name.split('/')[0]} does not belong")) for fault in faults)
    assert any(words in fault for fault in faults), faults


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/train.json", "configs/logging.conf", "a.txt"],
)
def test_a_file_of_other_bytes_is_no_error_of_the_scan(bundle, name):
    (bundle / name).write_bytes(b"\xff\xfe\x00[handlers]\x80\n")
    faults = new_faults(bundle)
    assert all(fault.startswith((name, "configs/")) for fault in faults), faults


def test_links_are_named(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "evil.json").write_text('{"run": ["$os.system(1)"]}')
    (bundle / "configs" / "extra").symlink_to(tmp_path / "elsewhere")
    assert new_faults(bundle) == ["configs/extra is a link: put the file itself in its place."]


def test_modes_that_start_a_debugger_are_refused():
    component = {"_target_": "torch.nn.ReLU", "_mode_": "debug"}
    assert scan_expressions({"net": component}) == ["`net#_mode_` may be `default` or `callable` only."]
    assert scan_expressions({"net": component | {"_mode_": "callable"}}) == []


def test_ids_are_written_as_monai_does():
    config = {"a": {"b": [{"c": 1}, 2]}, "d": {}}
    parser = ConfigParser(config)
    assert {name: parser[name] for name, _ in iterate_config(config)} == dict(iterate_config(config))


def test_the_rules_cover_what_monai_requires():
    """Oracle: MONAI's own table of properties."""
    # The tables are no part of the public surface; MONAI's are compared with them directly.
    for properties, ids, references in (
        (TrainProperties, config_rules._TRAIN_IDS, config_rules._TRAIN_REFERENCES),
        (InferProperties, config_rules._INFERENCE_IDS, config_rules._INFERENCE_REFERENCES),
    ):
        required = {rule["id"].replace("::", "#") for rule in properties.values() if rule["required"]}
        demanded = {"#".join(name.split("#")[:n]) for name in ids.split() for n in (1, 2, 3)}
        assert required <= demanded
        linked = {
            rule["refer_id"].replace("::", "#"): "@" + rule["id"].replace("::", "#")
            for rule in properties.values()
            if "::" in (rule.get("refer_id") or "")
        }
        assert linked.items() <= references.items()


def test_the_schema_is_a_schema_and_lists_what_monai_requires(bundle):
    validator = pytest.importorskip("jsonschema").Draft201909Validator
    validator.check_schema(metadata_schema())
    meta = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    meta["generator_data_format"] = {"inputs": {"noise": {"type": "image"}}, "outputs": {"pred": 1}}
    missing = [error.message.split("'")[1] for error in validator(metadata_schema()).iter_errors(meta)]
    assert missing == ["format", "num_channels", "spatial_shape", "dtype", "value_range"]


@pytest.mark.parametrize(
    ("shown", "agrees"), [("0.61", True), ("0.612 (0.55-0.66)", True), ("0.60", False), ("", False)]
)
def test_numbers_agree_to_the_digits_shown(shown, agrees):
    table = f"| metric | lgg |\n|---|---:|\n| `dice_subject` | {shown} |\n"
    turned = f"| data | dice_subject |\n|---|---|\n| **lgg** | {shown} |\n"
    for text in (table, turned):
        # Alone: a whole bundle per number would hide what is read.
        cells = bundle_checks._table_cells(text)
        faults = list(bundle_checks._performance_faults(cells, {"lgg": {"dice_subject": 0.6123}}))  # as above
        assert (faults == []) == agrees
