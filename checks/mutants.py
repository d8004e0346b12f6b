# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mutants of the package against the tests of their rooms: which small mistake would no test notice?

    python checks/mutants.py --out mutants [--count 310] [--seed 0] [--jobs 1] [--minutes 25] [--again]

Draws ``--count`` mutants by a seed, equally over the rooms, and runs each against the tests of its room, ``-x``: the
test file of the same name first, then those that speak of the file most.  Each mutant gets its own copy of package and
tests in a temporary folder.  ``out/mutants.json`` keeps what is known, so a later call goes on where one ended;
``--again`` runs the survivors once more, after new tests.  Mutants that nothing can tell from the original are listed
with their reasons in ``checks/equivalent_mutants.json``.

Not mutated: messages (``raise``, f-strings), annotations, docstrings, ``__all__``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("losses", "refinement", "metrics", "data", "engines")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
CPU_SECONDS = 240
# What the tests import and the package does not change: loaded once, before the processes part.
LOADED = [
    "torch",
    "monai.bundle",
    "monai.transforms",
    "monai.networks.nets",
    "monai.data",
    "monai.engines",
    "monai.handlers",
    "ignite.engine",
    "nibabel",
    "SimpleITK",
    "PIL.Image",
    "scipy.ndimage",
    "scipy.stats",
    "scipy.sparse",
    "pydicom",
    "hypothesis",
    "pytest",
    "skimage.measure",
    "numpy.testing",
    "torch.utils.tensorboard",
    "torch.distributed",
]

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
CALCULATED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
              ast.Mod: ast.Mult, ast.Pow: ast.Mult}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed expression: the file from the package on, where it stands, what stood there and what stands now."""

    file: str
    line: int
    column: int
    end: tuple[int, int]
    kind: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """Name the mutant by what it changes, so that it is known again when lines move."""
        return f"{self.file}: {self.before} -> {self.after} ({self.kind}, line {self.line})"

    def applied(self, source: str) -> str:
        """Give the source with the mutant in the place of the original."""
        lines = source.splitlines(keepends=True)

        def offset(line: int, column: int) -> int:
            return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

        start, end = offset(self.line, self.column), offset(*self.end)
        return f"{source[:start]}({self.after}){source[end:]}"


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Give each change of one expression, with its kind."""
    changed = deepcopy(node)
    if isinstance(changed, ast.Compare) and type(changed.ops[0]) in COMPARED:
        changed.ops[0] = COMPARED[type(changed.ops[0])]()
        yield "comparison", changed
    elif isinstance(changed, ast.BinOp) and type(changed.op) in CALCULATED:
        changed.op = CALCULATED[type(changed.op)]()
        yield "arithmetic", changed
    elif isinstance(changed, ast.BoolOp):
        changed.op = ast.Or() if isinstance(changed.op, ast.And) else ast.And()
        yield "boolean", changed
    elif isinstance(changed, ast.UnaryOp) and isinstance(changed.op, (ast.Not, ast.USub, ast.Invert)):
        yield "boolean" if isinstance(changed.op, ast.Not) else "sign", changed.operand
    elif isinstance(changed, ast.Constant) and type(changed.value) in (bool, int, float):
        value = changed.value
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 1.5 or 1.0
        yield "constant", ast.Constant(other)
    elif isinstance(changed, ast.Call):
        if isinstance(changed.func, ast.Attribute) and changed.func.attr == "detach":
            yield "detach", changed.func.value
        for keyword in changed.keywords:
            value = keyword.value
            if keyword.arg in ("dim", "axis") and isinstance(value, ast.Constant) and isinstance(value.value, int):
                keyword.value = ast.Constant(0 if value.value else 1)
                yield "axis", changed
                return


def mutants_of(path: Path) -> list[Mutant]:
    """Find every mutant of a file of the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[Mutant] = []
    file = path.relative_to(ROOT).as_posix()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr)):
            return
        if isinstance(node, ast.Assign) and any(getattr(one, "id", "") == "__all__" for one in node.targets):
            return
        if isinstance(node, ast.expr):
            for kind, changed in _changes(node):
                place = (node.lineno, node.col_offset, (node.end_lineno or 0, node.end_col_offset or 0))
                found.append(Mutant(file, *place, kind, ast.unparse(node), ast.unparse(changed)))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return found


def draw(count: int, seed: int) -> list[Mutant]:
    """Draw mutants by a seed, equally over the rooms."""
    generator = random.Random(seed)
    drawn = []
    for number, room in enumerate(ROOMS):
        files = sorted((ROOT / "monai_wsss" / room).glob("*.py"))
        own = [one for path in files for one in mutants_of(path)]
        share = count // len(ROOMS) + (number < count % len(ROOMS))
        drawn += generator.sample(own, min(share, len(own)))
    return drawn


def tests_of(file: str) -> list[str]:
    """List what may kill a mutant of a file, the most likely first; the examples in the file are among it."""
    path = Path(file)
    room = path.parts[1]
    own = sorted((ROOT / "tests" / room).glob("test_*.py"))
    if room == "losses":
        own.append(ROOT / "tests" / "contract" / "test_every_loss.py")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {path.stem}

    def spoken_of(test: Path) -> tuple[bool, int]:
        text = test.read_text(encoding="utf-8")
        return test.stem != f"test_{path.stem}", -sum(text.count(name) for name in names)

    return [file, *(test.relative_to(ROOT).as_posix() for test in sorted(own, key=spoken_of))]


def copied(folder: Path) -> Path:
    """Copy package and tests; the other folders of the repository are links."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("monai_wsss", "tests"):
            shutil.copytree(path, folder / path.name)
        elif not path.name.startswith(".") or path.name == ".ci":
            (folder / path.name).symlink_to(path)
    return folder


def run_tests(tree: Path, tests: list[str], log: Path) -> str:
    """Run tests of a tree in a process of their own: ``killed``, ``survived`` or ``timeout``."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setpgid(0, 0)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            os.chdir(tree)
            os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
            sys.dont_write_bytecode = True
            sys.path.insert(0, str(tree))
            import pytest

            arguments = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={tree}/pytest"]
            code = int(pytest.main([*arguments, *tests]))
        finally:
            os._exit(code)
    until = time.monotonic() + 6 * CPU_SECONDS
    ended, status = 0, 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return "timeout"
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def judge(mutant: Mutant, log: Path) -> str:
    """Run one mutant in its own copy of the tree."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copied(Path(folder) / "tree")
        path = tree / mutant.file
        changed = mutant.applied(path.read_text(encoding="utf-8"))
        compile(changed, str(path), "exec")
        path.write_text(changed, encoding="utf-8")
        return run_tests(tree, tests_of(mutant.file), log)


def report(drawn: list[Mutant], known: dict[str, str]) -> str:
    """Count verdicts by room and list the survivors, as Markdown."""
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    verdicts = {
        one.name: "equivalent" if one.name in equivalent else known[one.name] for one in drawn if one.name in known
    }
    lines = ["| room | drawn and run | killed | timeout | survived | equivalent | killed of those that are not |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for room in (*ROOMS, "all"):
        counts = Counter(v for name, v in verdicts.items() if room == "all" or name.startswith(f"monai_wsss/{room}/"))
        dead, rest = counts["killed"] + counts["timeout"], counts.total() - counts["equivalent"]
        cells = (counts.total(), counts["killed"], counts["timeout"], counts["survived"], counts["equivalent"])
        share = f"{100 * dead / rest:.1f} %" if rest else "–"
        lines.append(f"| {room} | {' | '.join(map(str, cells))} | {share} |")
    for title, verdict in (("Survivors", "survived"), ("Equivalent", "equivalent")):
        names = [name for name, value in verdicts.items() if value == verdict]
        lines += ["", f"{title}: {len(names)}", ""]
        lines += [f"- `{name}`" + (f": {equivalent[name]}" if name in equivalent else "") for name in names]
    return "\n".join(lines)


def main() -> None:
    """Draw, run what is not known yet, keep the verdicts, and print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of verdicts and logs")
    parser.add_argument("--count", type=int, default=310)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25, help="no mutant is begun after so many minutes")
    parser.add_argument("--part", default="1/1", help="e.g. 1/2: every other mutant, for a process beside another one")
    parser.add_argument("--again", action="store_true", help="run the survivors again")
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.part.split("/"))
    kept = arguments.out / f"mutants_{part}_of_{parts}.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for other in arguments.out.glob("mutants_*.json"):
        known = json.loads(other.read_text(encoding="utf-8")) | known
    drawn = draw(arguments.count, arguments.seed)
    until = time.monotonic() + 60 * arguments.minutes
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    todo = [
        one
        for one in drawn
        if one.name not in equivalent
        and one.file.split("/")[1] in arguments.rooms
        and (one.name not in known or (arguments.again and known[one.name] == "survived"))
    ]
    for name in LOADED if todo else ():
        importlib.import_module(name)
    random.Random(arguments.seed).shuffle(todo)
    for number, mutant in enumerate(todo[part - 1 :: parts]):
        if time.monotonic() > until:
            break
        began = time.monotonic()
        log = arguments.out / f"{drawn.index(mutant):03}.log"
        known[mutant.name] = judge(mutant, log)
        print(f"{number:4} {time.monotonic() - began:6.1f} s {known[mutant.name]:9} {mutant.name}", flush=True)
        kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(report(drawn, known))


if __name__ == "__main__":
    main()
