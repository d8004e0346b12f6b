# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the project says of an input: errors, warnings, and the values of what it wrote; and tables of these."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss.__main__ import main as run_command
from monai_wsss.data.reading import affine_of, read_image, read_labels

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "bundles"
LIMIT_SECONDS = 1800
SHOWN = 8
"""Items of a prepared folder that an answer describes."""
_TELLING = re.compile(r"(Error|error): |^monai.bundle run: |^broken|WARNING|tilted|left out|lies? ")
_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")
_NOISE = re.compile(r"INFO|Warning: |warnings\.warn|^\s*$|^Next,|^  (cd|python) |^\d{4}-\d\d-\d\d|^[|+-]+$")
_SAID = re.compile(r"^(\[rank\d\]: )?(monai_wsss\.\w+\.)?(monai\.bundle run: |error: |(Data|Write)Error: )")
_FEW = re.compile(r"^training: there are few images, \d+: results will depend on chance\.$")


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

    def relative_to(self, *folders: Path) -> Answer:
        """Give the answer without the paths of these folders."""
        own = "|".join(re.escape(str(folder)) for folder in folders)
        paths = re.compile(rf"({own}|{re.escape(tempfile.gettempdir())}/tmp\w+)(/|(?=\W|$))")
        self.sentences = [paths.sub(lambda found: "" if found[2] else ".", text) for text in self.sentences]
        self.values = [paths.sub(lambda found: "" if found[2] else ".", text) for text in self.values]
        return self

    @property
    def words(self) -> str:
        """Give all in one text."""
        return " ".join([*self.sentences, *self.values])


class Kept(logging.Handler):
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
    kept, errors = Kept(), io.StringIO()
    with contextlib.chdir(folder), _unprinted(errors), listening(kept):
        code = run_command(arguments)
    lines = [line for line in errors.getvalue().splitlines() if "Error" in line or line.startswith("error: ")]
    answer = Answer(code, [line.removeprefix("error: ") for line in lines] + kept.sentences)
    out = folder / arguments[list(arguments).index("--out") + 1] if "--out" in arguments else folder
    if code == 0 and (out / "datalist.json").exists():
        values = values_of(out)
        answer.values = values if len(values) <= SHOWN else [*values[:SHOWN], "…"]
    return answer.relative_to(folder)


@contextlib.contextmanager
def _unprinted(errors: io.StringIO) -> Iterator[None]:
    """Print nothing meanwhile, and keep what goes to the stream of errors."""
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def listening(kept: Kept) -> Iterator[None]:
    """Keep the warnings of the package meanwhile, also those that it tells once per folder and told before."""
    for name, module in list(sys.modules.items()):
        told = getattr(module, "_told", None) if name.startswith("monai_wsss.") else None
        if isinstance(told, set):
            told.clear()
    logger = logging.getLogger("monai_wsss")
    logger.addHandler(kept)
    try:
        yield
    finally:
        logger.removeHandler(kept)


def answer_of_call(call: Callable[[], object]) -> Answer:
    """Call a function of the package: its error or what it gives, and its warnings."""
    kept = Kept()
    with listening(kept), _unprinted(io.StringIO()):
        try:
            found = call()
        except ValueError as error:  # what the package raises; anything else is a fault
            return Answer(1, [str(error), *kept.sentences])
        except Exception as error:
            return Answer(1, [f"RAW {type(error).__name__}: {error}", *kept.sentences])
    return Answer(0, kept.sentences, [] if found is None else [str(found)])


def values_of(prepared: Path) -> list[str]:
    """Describe the images and masks of a prepared folder, a text per item."""
    content = json.loads((prepared / "datalist.json").read_text(encoding="utf-8"))
    items = [item for split in ("training", "validation", "test") for item in content.get(split, [])]
    return [f"{item['id']}: {_described(prepared, item)}" for item in items]


def _described(prepared: Path, item: dict[str, Any]) -> str:
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
        red, *others = image.numpy() if image.shape[0] == 3 else np.zeros((3, 2, 2))
        found = red - others[0] > 100
        neighbors = found[1:] & found[:-1]
        if neighbors.sum() > 0.5 * found.sum():  # an object, no noise
            parts.append(
                f"Dice of red and mask {2 * (found & (mask[0] > 0)).sum() / (found.sum() + (mask > 0).sum()):g}"
            )
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
    told = [line.strip() for line in ran.stderr.splitlines() if _TELLING.search(line) and "Traceback" not in line]
    own = [line for line in told if _SAID.search(line) or line.startswith("ValueError")]
    told = [_SAID.sub("", line) for line in own or told]
    if ran.returncode and not told:
        told = [line.strip() for line in ran.stderr.splitlines() if not _NOISE.search(line)][-1:]
    printed = [line.strip() for line in ran.stdout.splitlines() if not _NOISE.search(line)]
    if any(_SAID.search(line) for line in printed):  # what led to it, and what followed
        printed = [line for line in printed if _SAID.search(line) or not _ERROR.search(line)]
    printed = [_SAID.sub("", line) for line in printed]
    printed.sort(key=lambda line: bool(_TELLING.search(line)))
    printed += ["(runs to its end)"] * (not told and not printed and not ran.returncode)
    return Answer(ran.returncode, list(dict.fromkeys(told))[:6], list(dict.fromkeys(printed))[-8:])


def cell(text: str) -> str:
    """Write a text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def said(answer: Answer) -> str:
    """Write an answer as a cell: sentences but that of few images, which small inputs all get, then values."""
    sentences = [text for text in answer.sentences if not _FEW.match(text)]
    return "<br>".join(map(cell, [*dict.fromkeys(sentences), *answer.values])) or "(nothing)"
