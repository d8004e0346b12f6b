# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Run every case of a folder of cases against today's code, and print what the project says of each.

    python checks/cases.py FOLDER [NAME ...]          (or the folder in WSSS_CASES)

A case is a folder with inputs and a README.  The line that begins with "Command:" or "Run:" says what is run, in a copy
of the case: `monai-wsss …`, `python run.py`, `sh run.sh`, a run of a bundle, several of them after "; then".  Where a
README says in words what to do, `DESCRIBED` does it.  The table, in Markdown, has one row per case: errors and
warnings, and the values of what was written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from monai_wsss.__main__ import main as run_command
from monai_wsss.data.reading import affine_of, read_image, read_labels

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "bundles"
BUNDLE = "brain_mri_cam_segmentation"
LIMIT_SECONDS = 1800
_TELLING = re.compile(r"(Error|error): |^broken|WARNING|tilted|left out|lies? ")
_NOISE = re.compile(r"INFO|Warning: |warnings\.warn|^\s*$|^Next,|^  (cd|python) |^\d{4}-\d\d-\d\d|^[|+-]+$")


@dataclass
class Answer:
    """What the project says of an input.

    Attributes:
        code: the exit status; 0 if all was done.
        sentences: errors and warnings.
        values: what was written, or printed.
    """

    code: int = 0
    sentences: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def add(self, other: Answer) -> None:
        """Add the answer of the next command."""
        self.code = self.code or other.code
        self.sentences += other.sentences
        self.values += other.values

    @property
    def words(self) -> str:
        """Give all in one text."""
        return " ".join([*self.sentences, *self.values])


class _Kept(logging.Handler):
    """Keep warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


def answer_of(arguments: Sequence[str], folder: Path) -> Answer:
    """Run `monai-wsss` in a folder, in this process, and describe what it prepared.

    Args:
        arguments: of the command; `--out` names the folder whose images are described.
        folder: where it runs.
    """
    kept, errors = _Kept(), io.StringIO()
    logger = logging.getLogger("monai_wsss")
    logger.addHandler(kept)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = run_command(arguments)
    finally:
        logger.removeHandler(kept)
    found = [line.removeprefix("error: ") for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    answer = Answer(code, found + kept.sentences)
    if code == 0 and "--out" in arguments:
        answer.values = values_of(folder / arguments[list(arguments).index("--out") + 1])
    return answer


def values_of(prepared: Path) -> list[str]:
    """Describe the images and masks of a prepared folder, a text per item."""
    content = json.loads((prepared / "datalist.json").read_text(encoding="utf-8"))
    items = [item for split in ("training", "validation", "test") for item in content.get(split, [])]
    return [f"{item['id']}: {_described(prepared, item)}" for item in items]


def _described(prepared: Path, item: dict[str, object]) -> str:
    files = item["image"] if isinstance(item["image"], list) else [item["image"]]
    image = read_image(prepared / files[0])
    parts = [f"{len(files)} sequences of" * (len(files) > 1) + " × ".join(map(str, image.shape[1:]))]
    parts[0] += " RGB" * (image.shape[0] == 3)
    if str(files[0]).endswith(".png") or item.get("unit") == "px" or image.meta.get("unit") == "px":
        parts.append("size of pixels unknown")
    else:
        axes = affine_of(image)[:3, : image.ndim - 1].T
        sides = np.linalg.norm(axes, axis=1)
        parts.append(" × ".join(f"{side:.4g}" for side in sides) + " mm")
        if np.abs((axes / sides[:, None]) @ (axes / sides[:, None]).T - np.eye(len(axes))).max() > 1e-3:
            parts.append(f"last axis ({', '.join(f'{part:.4g}' for part in axes[-1] + 0.0)})")
    parts.append(f"{image.min():.6g} to {image.max():.6g}")
    parts.append(f"label {item['label']}")
    if "mask" in item:
        mask = read_labels(prepared / str(item["mask"])).numpy()
        parts.append(f"{int((mask > 0).sum())} foreground")
        if image.shape[0] == 3:
            found = (image[0] - image[1]).numpy() > 100
            parts.append(f"Dice of red and mask {2 * (found & (mask[0] > 0)).sum() / (found.sum() + (mask > 0).sum()):g}")
    return ", ".join(parts)


def answer_of_process(command: Sequence[str] | str, folder: Path, **how: object) -> Answer:
    """Run a program in a folder, and keep the lines that say something."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        **how,  # type: ignore[call-overload]
    )
    printed = [line.strip() for line in ran.stdout.splitlines() if not _NOISE.search(line)]
    told = [line.strip() for line in ran.stderr.splitlines() if _TELLING.search(line) and "Traceback" not in line]
    own = [line for line in told if "monai_wsss" in line or line.startswith(("error: ", "ValueError", "DataError"))]
    told = [re.sub(r"^(\[rank\d\]: )?(monai_wsss\._checks\.)?(error: |DataError: )", "", line) for line in own or told]
    printed = [line for line in printed if not _TELLING.search(line)] + [
        line for line in printed if _TELLING.search(line)
    ]
    return Answer(ran.returncode, list(dict.fromkeys(told))[:6], list(dict.fromkeys(printed))[-8:])


# What READMEs say in words ----------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> Path:
    """Prepare four small images, and give their folder."""
    from PIL import Image

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "labels.csv").write_text("id,label,split\n0,1,train\n1,0,train\n2,1,val\n3,0,test\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_command([*_PREPARE, "--images", str(folder / "images"), "--labels", str(folder / "labels.csv"),
                     "--out", str(folder / "out")])  # fmt: skip
    return folder / "out"


_PREPARE = ("prepare", "folder")


def _bundle_run(config: str, *words: str) -> list[str]:
    own = ["--modalities", "['image']", "--in_channels", "1", "--load_pretrain", "False"]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}.json", *own, *words]


def _trained(folder: Path, epochs: int, resume: bool) -> None:
    """Train the smallest classifier on noise, with checkpoints in the folder."""
    from monai.transforms import Compose

    from monai_wsss.data import EpochCacheDataset
    from monai_wsss.engines import WSSSTrainer
    from monai_wsss.methods import ClassActivationMapping

    torch.manual_seed(0)
    items = [{"image": torch.rand(1, 32, 32), "label": torch.tensor([float(number % 2)])} for number in range(4)]
    method = ClassActivationMapping.tiny()
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        EpochCacheDataset(items, Compose([])), batch_size=2
    )
    optimizer = torch.optim.Adam(method.parameters())
    WSSSTrainer(
        method, optimizer, loader, epochs, checkpoint_dir=folder / "checkpoints", progress_bar=False, resume=resume
    ).run()


def foreign_checkpoint(folder: Path) -> Answer:
    """Resume a training whose last checkpoint holds other tensors."""
    _trained(folder, 2, resume=False)
    torch.save({"a": torch.zeros(1)}, folder / "checkpoints" / "epoch_0002.pt")
    kept = _Kept()
    logging.getLogger("monai_wsss").addHandler(kept)
    try:
        _trained(folder, 2, resume=True)
        return Answer(0, kept.sentences, ["resumed"])
    except ValueError as error:
        return Answer(1, [str(error), *kept.sentences])
    finally:
        logging.getLogger("monai_wsss").removeHandler(kept)


def predictions_header_formula(folder: Path) -> Answer:
    """Predict with a class whose name is a formula of spreadsheets."""
    out = _pictures(folder)
    content = json.loads((out / "datalist.json").read_text())
    content["classes"] = ['=HYPERLINK("http://x")']
    (out / "datalist.json").write_text(json.dumps(content))
    words = ["--rule", "otsu", "--split", "test", "--dataset_dir", str(out), "--output_dir", str(folder / "inf")]
    answer = answer_of_process(_bundle_run("inference", *words), BUNDLES / BUNDLE)
    table = folder / "inf" / "predictions.csv"
    answer.values = [table.read_text().splitlines()[0]] if table.exists() else answer.values
    return answer


def stale_partial_files(folder: Path) -> Answer:
    """Kill a process while it writes a checkpoint, and use the folder again."""
    (folder / "checkpoints").mkdir()
    killed = (
        "import os, signal; from monai_wsss._files import atomic_path\n"
        "with atomic_path('checkpoints/epoch_0002.pt') as path:\n"
        "    path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    answer_of_process([sys.executable, "-c", killed], folder)
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    _trained(folder, 2, resume=True)
    after = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return Answer(0, [], [f"before: {', '.join(before)}", f"after the next training: {', '.join(after)}"])


def train_on_read_only(folder: Path) -> Answer:
    """Train into a folder without the right to write there, not as root."""
    out = _pictures(folder)
    target = folder / "closed"
    target.mkdir(mode=0o555)
    folder.chmod(0o755)
    for parent in [folder, *folder.parents]:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    words = ["--epochs", "1", "--dataset_dir", str(out), "--output_dir", str(target / "t")]
    nobody = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
    return answer_of_process(_bundle_run("train", *words), BUNDLES / BUNDLE, **nobody)


DESCRIBED: dict[str, Callable[[Path], Answer]] = {
    function.__name__.replace("_", "-"): function
    for function in (foreign_checkpoint, predictions_header_formula, stale_partial_files, train_on_read_only)
}


# Cases ------------------------------------------------------------------------------------------------------------------


def steps_of(case: Path) -> list[str]:
    """Give the commands that the README of a case tells, in their order."""
    readme = next(iter(sorted(case.glob("README*"))), None)
    text = readme.read_text(encoding="utf-8") if readme else ""
    line = re.search(r"^(?:Command|Run): *(.*)$", text, re.MULTILINE)
    steps = re.split(r";(?: then)?,? *", line[1]) if line else []
    steps = [re.sub(r"^in bundles/\w+: *|   +\(.*|, with BUNDLE .*| \(python .*", "", step).strip() for step in steps]
    return [step for step in steps if step.startswith(("monai-wsss ", "python ", "sh ", "torchrun "))]


def answer_of_case(case: Path, work: Path) -> Answer:
    """Run the commands of a case in a copy of its folder.

    Args:
        case: the folder of the case.
        work: an empty folder, which may be on a path with other folders beside it.
    """
    folder = work / case.name
    shutil.copytree(case, folder)
    if case.name in DESCRIBED:
        own = work / "own"
        own.mkdir()
        return DESCRIBED[case.name](own)
    steps = steps_of(case)
    if not steps:
        return Answer(2, ["(described in words alone: not run)"])
    text = " ".join(path.read_text(encoding="utf-8") for path in case.glob("README*"))
    named = re.search(r"bundles/(\w+)", text)
    bundle = work / "bundles" / (named[1] if named else BUNDLE)
    shutil.copytree(BUNDLES / bundle.name, bundle)
    answer = Answer()
    for step in steps:
        step = step.replace(".../", f"{folder}/").replace(f"PATH_OF_bundles/{bundle.name}", str(bundle))
        step = re.sub(r"\bBUNDLE\b", str(bundle), step).replace("FILE.pt", str(next(bundle.glob("models/*.pt"))))
        if step.startswith("monai-wsss "):
            answer.add(answer_of(step.split()[1:], folder))
        else:
            answer.add(answer_of_process(step, bundle if "monai.bundle" in step else folder))
        if answer.code:
            break
    answer.sentences = [_shortened(text, folder, work) for text in answer.sentences]
    answer.values = [_shortened(text, folder, work) for text in answer.values]
    return answer


def _shortened(text: str, folder: Path, work: Path) -> str:
    return text.replace(f"{folder}/", "").replace(f"{work}/", "")


def cell(text: str) -> str:
    """Write a text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("WSSS_CASES"))
    parser.add_argument("names", nargs="*", help="only these cases")
    options = parser.parse_args()
    if options.folder is None or not Path(options.folder).is_dir():
        print("Give the folder of cases, or its path in WSSS_CASES.", file=sys.stderr)
        return 2
    print("| case | what the project says |\n|---|---|")
    for case in sorted(path for path in Path(options.folder).iterdir() if path.is_dir()):
        if options.names and case.name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as work:
            answer = answer_of_case(case, Path(work))
        said = "<br>".join(map(cell, [*answer.sentences, *answer.values])) or "(nothing)"
        print(f"| {case.name} | {said} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
