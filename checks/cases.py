# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Run every case of a folder of cases against today's code, and print what the project says of each.

    python checks/cases.py FOLDER [NAME ...]          (or the folder in WSSS_CASES)

A case is a folder with inputs and a README.  The line that begins with "Command:" or "Run:" says what is run, in a copy
of the case: `monai-wsss …`, `python run.py`, `sh run.sh`, a run of a bundle, several of them after "; then".  Where a
README has no command, what `DESCRIBED` finds in its words is done.  The table, in Markdown, has one row per case:
errors and warnings, and the values of what was written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answers import BUNDLES, Answer, answer_of, answer_of_call, answer_of_process, said

from monai_wsss.__main__ import main as run_command

BUNDLE = "brain_mri_cam_segmentation"
RENAMED = re.compile(r"`([\w#]+)` is now `([\w#]+)`")
MOVED = {"from monai_wsss.benchmark import scan_bundle": "from monai_wsss.bundle_scan import scan_bundle"}
"""Imports of scripts that were written before a room moved, and what they are today."""


# What READMEs say in words -------------------------------------------------------------------------------------------


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
    own = ["--modalities", "['image']", "--in_channels", "1"]
    own += ["--load_pretrain", "False"] * (config == "inference")
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}.json", *own, *words]


def _trained(folder: Path, epochs: int, resume: bool) -> str:
    """Train the smallest classifier on noise, with checkpoints in the folder; give the files of these."""
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
    own: dict[str, Any] = {"checkpoint_dir": folder / "checkpoints", "reading": {"order": "xy"}, "progress_bar": False}
    WSSSTrainer(method, optimizer, loader, epochs, resume=resume, **own).run()
    return ", ".join(sorted(path.name for path in (folder / "checkpoints").iterdir()))


def foreign_checkpoint(folder: Path) -> Answer:
    """Resume a training whose last checkpoint holds other tensors."""
    _trained(folder, 2, resume=False)
    torch.save({"a": torch.zeros(1)}, folder / "checkpoints" / "epoch_0002.pt")
    return answer_of_call(lambda: _trained(folder, 2, resume=True))


def predictions_header_formula(folder: Path) -> Answer:
    """Predict with a class whose name is a formula of spreadsheets."""
    out = _pictures(folder)
    content = json.loads((out / "datalist.json").read_text())
    content["classes"] = ['=HYPERLINK("http://x")']
    (out / "datalist.json").write_text(json.dumps(content))
    words = [
        "--to_mask#rule",
        "otsu",
        "--split",
        "test",
        "--dataset_dir",
        str(out),
        "--output_dir",
        str(folder / "inf"),
    ]
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
    words = ["--epochs", "1", "--dataset_dir", str(out), "--output_dir", str(target / "t")]
    command = _bundle_run("train", *words)
    if os.geteuid() == 0:  # who may write everywhere
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return answer_of_process(command, BUNDLES / BUNDLE)


DESCRIBED: dict[str, Callable[[Path], Answer]] = {
    r"--resume true": foreign_checkpoint,
    r"predictions\.csv": predictions_header_formula,
    r"\.partial\.": stale_partial_files,
    r"read-only": train_on_read_only,
}
"""What a README without a command speaks of, and what is done for it."""


# Cases ---------------------------------------------------------------------------------------------------------------


def readme_of(case: Path) -> str:
    """Give the text of the README of a case."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(case.glob("README*")))


def steps_of(case: Path) -> list[str]:
    """Give the commands that the README of a case tells, in their order; without one, its run.py or run.sh."""
    line = re.search(r"^(?:Commands?|Run)\b *:? *(.*(?:\n[ \t]+.*)*)$", readme_of(case), re.MULTILINE)
    steps = re.split(r"; *(?:then\b)?,? *|`", " ".join(line[1].split())) if line else []
    steps = [re.sub(r"^(then,? *)?(in|from) \S*: *|  *\(.*|, with BUNDLE .*|[.,]$", "", step.strip()) for step in steps]
    steps = [step for step in steps if step.startswith(("monai-wsss ", "python ", "sh ", "bash ", "torchrun "))]
    for script, program in (("run.py", "python"), ("run.sh", "sh")):
        if not steps and (case / script).exists():
            bundle = " BUNDLE" * bool(re.search(r"sys\.argv\[1\]|\$1", (case / script).read_text(encoding="utf-8")))
            steps = [f"{program} {script}{bundle}"]
    return steps


def answer_of_case(case: Path, work: Path) -> Answer:
    """Run the commands of a case in a copy of its folder.

    Args:
        case: the folder of the case.
        work: an empty folder, which may be on a path with other folders beside it.
    """
    folder = work / case.name
    shutil.copytree(case, folder)
    for script in folder.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        script.write_text(
            re.sub("|".join(map(re.escape, MOVED)), lambda found: MOVED[found[0]], text), encoding="utf-8"
        )
    steps = steps_of(case)
    if not steps:
        own = work / "own"
        own.mkdir()
        found = [do for words, do in DESCRIBED.items() if re.search(words, readme_of(case))]
        return found[0](own).relative_to(own, work) if found else Answer(2, ["(described in words alone: not run)"])
    named = re.search(r"bundles/(\w+)", readme_of(case))
    bundle = work / "bundles" / (named[1] if named and (BUNDLES / named[1]).is_dir() else BUNDLE)
    shutil.copytree(BUNDLES / bundle.name, bundle)
    answer = Answer()
    for step in steps:
        answer.add(_answer_of_step(step, folder, bundle))
        if answer.code:
            break
    return answer.relative_to(folder, work)


def _answer_of_step(step: str, folder: Path, bundle: Path) -> Answer:
    """Run one command of a README; options that have another name today are given by it, as the project says."""
    step = re.sub(r"(?<=\s)(\.\.\.|…|PATH)/", f"{folder}/", step)
    step = re.sub(r"PATH_OF_bundles/\w+|\bBUNDLE\b", str(bundle), step).replace(
        "FILE.pt", str(next(bundle.glob("models/*.pt")))
    )
    if step.startswith("monai-wsss "):
        return answer_of(shlex.split(step)[1:], folder)
    where = bundle if "monai.bundle" in step else folder
    answer = answer_of_process(step, where)
    renamed = dict(RENAMED.findall(answer.words))
    if answer.code and renamed:
        for old, new in renamed.items():
            step = re.sub(rf"--{re.escape(old)}(?=[ =])", f"--{new}", step)
        again = answer_of_process(step, where)
        again.sentences = [f"(`--{old}` is `--{new}` today, as the project says)" for old, new in renamed.items()] + (
            again.sentences
        )
        return again
    return answer


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
    for case in sorted(path for path in Path(options.folder).resolve().iterdir() if path.is_dir()):
        if options.names and case.name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                answer = answer_of_case(case, Path(work).resolve())
            except Exception as error:  # a case that cannot be run costs no other
                answer = Answer(2, [f"(could not be run: {type(error).__name__}: {error})"])
        print(f"| {case.name} | {said(answer)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
