# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Inputs of our own: damaged, foreign and hostile files, folders in use, values that fit nothing (F1 to F13, K12)."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from answers import BUNDLES, ROOT, Answer, answer_of, answer_of_call, answer_of_process
from monai.transforms import Compose
from writers import Input, entry, gray_pictures, labels, nifti, noise, picture, prepare

from monai_wsss._locks import LOCK, hold_folder, release_folder
from monai_wsss.bundle_scan import scan_bundle
from monai_wsss.data import EpochCacheDataset
from monai_wsss.data.reading import read_image
from monai_wsss.engines import WSSSTrainer, load_tensors
from monai_wsss.losses import PurifiedLabelLoss
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.metrics.csv_tables import write_csv
from monai_wsss.transforms import SaveImageMaskd

FAULTS: list[Input] = []
tried = partial(entry, FAULTS)
BUNDLE = BUNDLES / "brain_mri_cam_segmentation"

# F1, F2 -----------------------------------------------------------------------------------------


@tried(
    "F1",
    "masks written into a prepared folder that is reached by a link",
    "one sentence, nothing replaced",
    "holds data.*another output folder",
    "the reference is there",
    code=1,
)
def through_a_link(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    picture(at / "masks/a.png", 255 * torch.eye(16)[:12].numpy().astype("uint8"))
    labels(at, "a,1,train", "b,0,train")
    prepare(at)
    (at / "link").symlink_to(at / "out")
    reference = next((at / "out/masks").rglob("*.png"))
    before = reference.read_bytes()
    item = {"id": "a", "image": torch.zeros(1, 16, 12), "mask": torch.zeros(1, 16, 12)}
    answer = answer_of_call(lambda: SaveImageMaskd("mask", at / "link")(item))
    answer.values.append(f"the reference is {'there' if reference.read_bytes() == before else 'REPLACED'}")
    return answer


def _phantoms(at: Path, name: str) -> Answer:
    """Make phantoms where a datalist of phantoms names another file."""
    (at / "data").mkdir(exist_ok=True)
    (at / "victim.txt").write_text("precious")
    case = {"id": "a", "image": name, "mask": name}
    (at / "data/datalist.json").write_text(json.dumps({"phantom": {"kind": "x"}, "training": [case]}))
    answer = answer_of(["phantom", "--kind", "gland", "--out", "data"], at)
    answer.values = [f"the victim is {'there' if (at / 'victim.txt').exists() else 'GONE'}"]
    return answer


@tried(
    "F2", "a datalist of phantoms with an absolute path", "one sentence, the file stays", "the victim is there", code=1
)
def absolute(at: Path) -> Answer:
    return _phantoms(at, str(at / "victim.txt"))


@tried(
    "F2",
    "a datalist of phantoms with a path through a link",
    "one sentence, the file stays",
    "the victim is there",
    code=1,
)
def linked(at: Path) -> Answer:
    (at / "data/images").mkdir(parents=True)
    (at / "data/images/up").symlink_to(at)
    return _phantoms(at, "images/up/victim.txt")


# F3, F4, F7 -----------------------------------------------------------------------------------------


def _weights(at: Path, content: bytes) -> Answer:
    (at / "model.pt").write_bytes(content)
    return answer_of_call(lambda: len(load_tensors(at / "model.pt")))


@tried("F3", "weights that are a pointer of git-lfs", "one sentence with the file", "model.pt", code=1)
def pointer(at: Path) -> Answer:
    return _weights(at, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@tried("F3", "weights that are a page of a log-in", "one sentence with the file", "model.pt", code=1)
def page(at: Path) -> Answer:
    return _weights(at, b"<!DOCTYPE html><html><title>Sign in</title></html>")


@tried(
    "F3",
    "weights with a pickle that runs a command",
    "one sentence, the command does not run",
    "model.pt",
    "the command did not run",
    code=1,
)
def payload(at: Path) -> Answer:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {at}/PWNED",)

    torch.save({"a": Evil()}, at / "evil.pt")
    answer = answer_of_call(lambda: load_tensors(at / "evil.pt"))
    answer = answer.relative_to(at)
    answer.sentences = [text.replace("evil.pt", "model.pt") for text in answer.sentences]
    answer.values.append("the command RAN" if (at / "PWNED").exists() else "the command did not run")
    return answer


@tried("F4", "one bit flipped at 24 places of a checkpoint", "each is noticed", "24 of 24 noticed")
def bits(at: Path) -> Answer:
    _trained(at, 1)
    content = bytearray((at / "checkpoints/epoch_0001.pt").read_bytes())
    noticed = 0
    for place in range(24):
        position = (place * 2654435761 + 97) % len(content)
        content[position] ^= 1 << place % 8
        noticed += _weights(at, bytes(content)).code
        content[position] ^= 1 << place % 8
    return Answer(0, [], [f"{noticed} of 24 noticed"])


def _trained(at: Path, epochs: int, seed: int = 0, rate: float = 1e-3, **words: bool) -> str:
    torch.manual_seed(seed)
    items = [{"image": torch.rand(1, 32, 32), "label": torch.tensor([float(number % 2)])} for number in range(4)]
    method = ClassActivationMapping.tiny()
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        EpochCacheDataset(items, Compose([])), batch_size=2
    )
    own: dict[str, Any] = {"checkpoint_dir": at / "checkpoints", "reading": {"order": "xy"}, "progress_bar": False}
    WSSSTrainer(method, torch.optim.Adam(method.parameters(), rate), loader, epochs, **own, **words).run()
    return ", ".join(sorted(path.name for path in (at / "checkpoints").iterdir()))


@tried(
    "F7",
    "the last checkpoint is empty, as after a full disk",
    "the one before goes on, a word",
    "earlier epoch_0001",
    "epoch_0003.pt",
)
def empty_checkpoint(at: Path) -> Answer:
    _trained(at, 3)
    (at / "checkpoints/epoch_0003.pt").write_bytes(b"")
    shutil.copy(at / "checkpoints/epoch_0002.pt", at / "checkpoints/epoch_0001.pt")
    (at / "checkpoints/epoch_0002.pt").unlink()
    return answer_of_call(lambda: _trained(at, 3, resume=True))


@tried("F10", "a run resumed with another learning rate", "one sentence that names both", "0.001", "0.01", code=1)
def other_rate(at: Path) -> Answer:
    _trained(at, 2)
    return answer_of_call(lambda: _trained(at, 2, rate=1e-2, resume=True))


@tried(
    "F7",
    "a checkpoint that lacks the state of the optimizers",
    "one sentence that names what it lacks",
    "epoch_0001.pt",
    "optimizers",
    code=1,
)
def no_optimizers(at: Path) -> Answer:
    _trained(at, 1)
    path = at / "checkpoints/epoch_0001.pt"
    content = {name: value for name, value in torch.load(path, weights_only=True).items() if name != "optimizers"}
    path.unlink()
    torch.save(content, path)
    return answer_of_call(lambda: _trained(at, 1, resume=True))


# F5 -----------------------------------------------------------------------------------------


def _scanned(at: Path, change: Callable[[Path], object]) -> Answer:
    bundle = at / BUNDLE.name
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "sample_data", "eval"))
    shutil.copytree(BUNDLE / "models", bundle / "models")
    before = set(scan_bundle(bundle))
    change(bundle)
    faults = [fault for fault in scan_bundle(bundle) if fault not in before]
    return Answer(int(bool(faults)), faults)


def _expression(text: str) -> Callable[[Path], object]:
    def change(bundle: Path) -> None:
        path = bundle / "configs/inference.json"
        content = json.loads(path.read_text())
        content["initialize"] = [text]
        path.write_text(json.dumps(content, indent=4) + "\n")

    return change


@tried("F5", "an expression that finds os in a module that may be used", "a fault", "initialize", code=1)
def through_a_module(at: Path) -> Answer:
    return _scanned(at, _expression("$torch.utils.data.sys.modules['os'].system('id')"))


@tried("F5", "an expression that calls a method of a string by its name", "a fault", "initialize", code=1)
def by_name(at: Path) -> Answer:
    return _scanned(at, _expression("$getattr(torch, 'lo' + 'ad')('x', weights_only=False)"))


@tried("F5", "a component that opens a process", "a fault", "Popen", code=1)
def component(at: Path) -> Answer:
    def change(bundle: Path) -> None:
        path = bundle / "configs/inference.json"
        content = json.loads(path.read_text())
        content["helper"] = {"_target_": "subprocess.Popen", "args": ["id"]}
        path.write_text(json.dumps(content, indent=4) + "\n")

    return _scanned(at, change)


@tried("F5", "a script beside the configs, and a YAML with a Python tag", "two faults", r"\.py", r"\.ya?ml", code=1)
def other_files(at: Path) -> Answer:
    def change(bundle: Path) -> None:
        (bundle / "scripts").mkdir()
        (bundle / "scripts/__init__.py").write_text("import os\nos.system('id')\n")
        (bundle / "configs/more.yaml").write_text("run: !!python/object/apply:os.system ['id']\n")

    return _scanned(at, change)


# F6, F8, F10 -----------------------------------------------------------------------------------------


@tried(
    "F6",
    "left-overs of a dead writer, and a file that only looks so",
    "the first goes, the second stays",
    "stay: mine.partial.txt, epoch_0001.pt|stay: epoch_0001.pt, mine.partial.txt",
)
def left_overs(at: Path) -> Answer:
    folder = at / "checkpoints"
    folder.mkdir()
    code = (
        "import os, signal\nfrom monai_wsss._files import atomic_path\n"
        "with atomic_path('checkpoints/epoch_0009.pt') as path:\n"
        "    path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    answer_of_process([sys.executable, "-c", code], at)
    (folder / "mine.partial.txt").write_text("mine")
    left = sum(path.name.startswith(".") for path in folder.iterdir())
    _trained(at, 1)
    return Answer(0, [], [f"{left} left over; stay: {', '.join(sorted(path.name for path in folder.iterdir()))}"])


@tried(
    "F8",
    "an output folder whose name is that of a file",
    "one sentence",
    "out",
    "Cannot|is a file|not a directory|folder",
    code=1,
)
def file_in_place(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    (at / "out").write_text("mine")
    return prepare(at)


@tried("F8", "an output folder in a device", "one sentence", "Cannot write|cannot be", code=1)
def nowhere(at: Path) -> Answer:
    gray_pictures(at, "a.png", "b.png")
    labels(at)
    return answer_of(
        ["prepare", "folder", "--images", "images", "--labels", "labels.csv", "--out", "/dev/null/out"], at
    )


@tried(
    "F10",
    "a folder that a process which still runs holds, and one that a dead process held",
    "the first is refused, the second taken over",
    "in use by process",
    "the second is free",
    code=1,
)
def locks(at: Path) -> Answer:
    for name in ("one", "two"):
        (at / name).mkdir()
    code = (
        "import sys, time\nfrom monai_wsss._locks import hold_folder\nhold_folder(sys.argv[1])\nprint(1, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}time.sleep(60)", str(at / "one")], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        answer = answer_of_call(lambda: hold_folder(at / "one"))
        process.kill()
    (at / "two" / LOCK).write_text((at / "one" / LOCK).read_text())
    second = answer_of_call(lambda: hold_folder(at / "two"))
    release_folder(at / "two")
    answer.values.append("the second is free" if second.code == 0 else "the second is NOT free")
    pid = str(process.pid)
    answer.sentences = [
        text.replace(f"process {pid} on {os.uname().nodename}", "process N") for text in answer.sentences
    ]
    return answer


# F9, F11, F12, F13, K12 -----------------------------------------------------------------------------------------


@tried(
    "F9",
    "ids, columns and classes that begin with =, +, -, @, TAB, CR or a full-width =",
    "none is a formula",
    "0 of 16 cells",
)
def formulas(at: Path) -> Answer:
    names = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", " =1"]
    write_csv(at / "t.csv", [{name: name for name in names}], names)
    with open(at / "t.csv", newline="", encoding="utf-8") as file:
        cells = [one for row in csv.reader(file) for one in row]
    formulas = [one for one in cells if one.lstrip()[:1] in tuple("=+-@\uff1d") or one[:1] in "\t\r"]
    return Answer(0, [], [f"{len(formulas)} of {len(cells)} cells are formulas"])


@tried(
    "F11",
    "one bit flipped in each of a PNG, a .nii.gz and a compressed MetaImage",
    "one sentence each: the checksum",
    "3 of 3 refused",
)
def flipped_images(at: Path) -> Answer:
    values = noise((9, 8, 7)).astype(np.uint8)
    paths = [picture(at / "a.png", values[0]), nifti(at / "b.nii.gz", values), at / "c.mha"]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(paths[2]), True)
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-20 if path.suffix == ".png" else -6] ^= 1
        path.write_bytes(content)
    return _all_refused([partial(read_image, path) for path in paths])


@tried(
    "F11",
    "a picture that claims 20000 × 20000 pixels",
    "one sentence: too many pixels, cut tiles",
    "a.bmp",
    "more pixels than are read",
    code=1,
)
def too_large(at: Path) -> Answer:
    gray_pictures(at, "a.bmp", "b.bmp")
    content = (at / "images/a.bmp").read_bytes()
    side = (20000).to_bytes(4, "little")
    (at / "images/a.bmp").write_bytes(content[:18] + side * 2 + content[26:])
    return prepare(at)


@tried(
    "F11",
    "an image of no bytes, one cut in half, and one that is a folder",
    "one sentence each",
    "a.png",
    "b.jpg",
    code=1,
)
def broken(at: Path) -> Answer:
    gray_pictures(at, "b.jpg", "c.png")
    (at / "images/a.png").write_bytes(b"")
    half = (at / "images/b.jpg").read_bytes()
    (at / "images/b.jpg").write_bytes(half[: len(half) // 2])
    labels(at, "a,1,train", "b,0,train", "c,1,train")
    return prepare(at)


def _all_refused(calls: Sequence[Callable[[], object]]) -> Answer:
    answers = [answer_of_call(call) for call in calls]
    sentences = [text for one in answers for text in one.sentences]
    refused = sum(one.code for one in answers)
    return Answer(0, sentences, [f"{refused} of {len(calls)} refused"])


@tried(
    "F12",
    "a network gets an image of no pixels, of two channels, and in half precision on a CPU",
    "one sentence each",
    "3 of 3 refused",
)
def wrong_images(_: Path) -> Answer:
    method = ClassActivationMapping.tiny()
    images = (torch.zeros(1, 1, 0, 32), torch.zeros(1, 2, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.float16))
    return _all_refused([partial(method.network, image) for image in images])


@tried("F12", "a loss gets no classes, and an empty batch", "one sentence each", "2 of 2 refused")
def no_classes(_: Path) -> Answer:
    loss = PurifiedLabelLoss()
    shapes = ((1, 0, 8, 8), (0, 1, 8, 8))
    return _all_refused([partial(loss, torch.zeros(one), torch.zeros(one[:2])) for one in shapes])


@tried(
    "K12",
    "two processes, one image for validation",
    "trains to its end, or one sentence that names the split",
    "runs to its end|validation",
    code=None,
)
def one_validation_image(at: Path) -> Answer:
    gray_pictures(at, *(f"{number}.png" for number in range(7)))
    labels(at, *(f"{number},{number % 2},{'val' if number == 6 else 'train'}" for number in range(7)))
    answer = prepare(at)
    if answer.code:
        return answer
    command = ["torchrun", "--standalone", "--nnodes=1", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
    command += ["--config_file", "['configs/train.json','configs/multi_gpu_train.json']", "--dataset_dir"]
    command += [str(at / "out"), "--output_dir", str(at / "run"), "--modalities", "['image']", "--in_channels", "1"]
    return answer_of_process([*command, "--epochs", "1", "--batch_size", "2"], BUNDLE)
