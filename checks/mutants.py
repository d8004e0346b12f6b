# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mutants of the package against the tests of their rooms: which small mistake would no test notice?

    python checks/mutants.py [--out mutants.jsonl] [--count 310] [--seed 0] [--minutes 90] [--again] [--report]

Draws ``--count`` mutants by a seed, equally over the rooms, and runs each in a copy of the tree, never in the tree
itself: first the examples of the changed file and the two test files that mirror it or speak of it most, then the
other tests of its room and the inventory of defaults, ``-x``.  One process at a time runs tests; it is forked from one
that has imported what the package needs, but nothing of the package.  Before mutants of a room run, its tests must pass
unchanged.

``--out`` gets one line per verdict, so a later call goes on where one ended; the last verdict of a mutant counts.
``--again`` runs the survivors once more, after new tests.  Mutants that nothing can tell from the original are listed
with their reasons in ``checks/equivalent_mutants.json``.

A mutant is a comparison negated or moved by one, an operator of arithmetic or logic exchanged, a condition or sign
turned, a constant or axis changed, a ``detach`` or a whole call left out.  Not mutated: messages (``raise``,
f-strings), annotations, docstrings, ``__all__``, and Python's own guards (``strict=``, ``frozen=``, ``stacklevel=``).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("losses", "refinement", "metrics", "data", "engines")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
OUT = ROOT / "docs" / "results" / "runs" / "mutants" / "verdicts.jsonl"
# CPU seconds of one run of tests, and how many times longer it may take by the clock.
NEAR_SECONDS, ROOM_SECONDS = 100, 400
WAIT = 10
MEMORY = 8 << 30
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

MOVED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NEGATED = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
CALCULATED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
              ast.Mod: ast.Mult, ast.Pow: ast.Mult}  # fmt: skip
PHANTOMS = "tests/data/test_phantom_values.py"
GUARDS = ("strict", "frozen", "stacklevel")


@dataclass(frozen=True)
class Mutant:
    """One changed expression: the file and function where it stands, what stood there and what stands now."""

    file: str
    function: str
    number: int
    kind: str
    before: str
    after: str
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def name(self) -> str:
        """Name the mutant by what it changes, so that it is known again when lines move."""
        return f"{self.file} {self.function}: {self.before} -> {self.after} ({self.kind} {self.number})"

    def applied(self, source: str) -> str:
        """Give the source with the mutant in the place of the original."""
        lines = source.splitlines(keepends=True)

        def offset(line: int, column: int) -> int:
            return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

        return f"{source[: offset(*self.start)]}({self.after}){source[offset(*self.end) :]}"


def _another(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 1.5 or 1.0


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Give each change of one expression, with its kind."""
    changed: Any = deepcopy(node)
    if isinstance(changed, ast.Compare):
        for kind, others in (("moved", MOVED), ("negated", NEGATED)):
            if type(changed.ops[0]) in others:
                other = deepcopy(changed)
                other.ops[0] = others[type(changed.ops[0])]()
                yield kind, other
    elif isinstance(changed, ast.BinOp) and type(changed.op) in CALCULATED:
        changed.op = CALCULATED[type(changed.op)]()
        yield "arithmetic", changed
    elif isinstance(changed, ast.BoolOp):
        changed.op = ast.Or() if isinstance(changed.op, ast.And) else ast.And()
        yield "boolean", changed
    elif isinstance(changed, ast.UnaryOp) and isinstance(changed.op, (ast.Not, ast.USub, ast.Invert)):
        yield "boolean" if isinstance(changed.op, ast.Not) else "sign", changed.operand
    elif isinstance(changed, ast.Constant) and isinstance(changed.value, (bool, int, float)):
        yield "constant", ast.Constant(_another(changed.value))
    elif isinstance(changed, ast.Call):
        if isinstance(changed.func, ast.Attribute) and changed.func.attr == "detach":
            yield "detach", changed.func.value
        for keyword in changed.keywords:
            value = keyword.value
            if keyword.arg in ("dim", "axis") and isinstance(value, ast.Constant) and isinstance(value.value, int):
                keyword.value = ast.Constant(0 if value.value else 1)
                yield "axis", changed
                return


class _Finder:
    """Walks over a file of the package and lists its mutants."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Mutant] = []
        self.inside: list[str] = []
        self.numbers: Counter[tuple[str, ...]] = Counter()

    def add(self, node: ast.expr, kind: str, changed: ast.expr) -> None:
        key = (".".join(self.inside) or "module", kind, ast.unparse(node), ast.unparse(changed))
        self.numbers[key] += 1
        end = (node.end_lineno or 0, node.end_col_offset or 0)
        self.found.append(
            Mutant(self.file, key[0], self.numbers[key], *key[1:], (node.lineno, node.col_offset), end)
        )  # fmt: skip

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr)) or (isinstance(node, ast.keyword) and node.arg in GUARDS):
            return
        if isinstance(node, ast.Assign) and any(getattr(one, "id", "") == "__all__" for one in node.targets):
            return
        if isinstance(node, ast.expr):
            for kind, changed in _changes(node):
                self.add(node, kind, changed)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self.add(node.value, "left out", ast.Constant(None))
        if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            self.add(node.test, "turned", ast.UnaryOp(ast.Not(), node.test))
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named:
            self.inside.append(node.name)  # type: ignore[attr-defined]
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    self.visit(child)
        if named:
            self.inside.pop()


def mutants_of(path: Path) -> list[Mutant]:
    """Find every mutant of a file of the package."""
    finder = _Finder(path.relative_to(ROOT).as_posix())
    finder.visit(ast.parse(path.read_text(encoding="utf-8")))
    return finder.found


def draw(count: int, seed: int) -> list[Mutant]:
    """Draw mutants by a seed, equally over the rooms; a changed line changes the draw by its own mutants alone."""

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).hexdigest()

    drawn = []
    for number, room in enumerate(ROOMS):
        files = sorted((ROOT / "monai_wsss" / room).glob("*.py"))
        own = sorted((one for path in files for one in mutants_of(path)), key=rank)
        drawn += own[: count // len(ROOMS) + (number < count % len(ROOMS))]
    return drawn


def tests_of_room(room: str) -> list[str]:
    """List the test files of a room."""
    own = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / room).glob("test_*.py"))
    own.append("tests/contract/test_defaults.py")
    return [*own, "tests/contract/test_every_loss.py"] if room == "losses" else own


def tests_of(file: str) -> tuple[list[str], list[str]]:
    """List what may kill a mutant of a file: the examples in it and its own tests, and the others of its room."""
    path = Path(file)
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {path.stem}

    def spoken_of(test: Path) -> tuple[bool, int]:
        text = test.read_text(encoding="utf-8")
        return test.stem != f"test_{path.stem}", -sum(text.count(name) for name in names)

    first, second, *others = (
        test.relative_to(ROOT).as_posix()
        for test in sorted(map(ROOT.joinpath, tests_of_room(path.parts[1])), key=spoken_of)
    )
    if path.stem.startswith("phantom") and second != PHANTOMS:
        others = [second, *(one for one in others if one != PHANTOMS)]
        second = PHANTOMS
    return [file, first, second], others


def copy_tree(folder: Path) -> Path:
    """Copy the repository, but for hidden folders and what is made."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def run_tests(tree: Path, tests: list[str], log: Path, seconds: int) -> str:
    """Run tests of a tree in a process of their own: ``killed``, ``survived`` or ``timeout``."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setpgid(0, 0)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            os.chdir(tree)
            os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
            sys.dont_write_bytecode = True
            sys.path[0] = str(tree)
            found = importlib.util.find_spec("monai_wsss")
            if found is None or not str(found.origin).startswith(str(tree)):
                raise RuntimeError(f"Expected the package of the copy, got {found}.")
            import pytest

            arguments = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={tree}-pytest"]
            code = int(pytest.main([*arguments, *tests]))
        finally:
            os._exit(code)
    until = time.monotonic() + WAIT * seconds
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


class Runner:
    """Runs mutants in one copy of the tree, one after another."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.tree, self.folder, self.out = copy_tree(folder / "tree"), folder, out
        digest = hashlib.sha256()
        for path in sorted([*self.tree.glob("monai_wsss/**/*.py"), *self.tree.glob("tests/**/*.*")]):
            digest.update(path.read_bytes())
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
        # Rooms whose tests passed in the very same tree before.
        self.digest = digest.hexdigest()[:16]
        self.sound = {room for room in ROOMS if json.dumps({"sound": room, "tree": self.digest}) in lines}

    def check_sound(self, room: str) -> None:
        """Stop if the tests of a room do not pass where nothing is changed, in half of the time that mutants have."""
        if room in self.sound:
            return
        log = self.folder / f"{room}.log"
        began = time.monotonic()
        if run_tests(self.tree, [f"monai_wsss/{room}", *tests_of_room(room)], log, ROOM_SECONDS // 2) != "survived":
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise SystemExit("\n".join([*last, f"The tests of {room} fail without any mutant."]))
        print(f"{room}: its tests pass unchanged, {time.monotonic() - began:.0f} s", flush=True)
        self.sound.add(room)
        keep(self.out, {"sound": room, "tree": self.digest})

    def failed_test(self) -> str:
        """Name the test that failed last, or that could not be collected."""
        text = (self.folder / "mutant.log").read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        return found[-1] if found else "import"

    def judge(self, mutant: Mutant) -> str:
        """Run one mutant, first against the tests near it."""
        self.check_sound(mutant.file.split("/")[1])
        path = self.tree / mutant.file
        original = path.read_text(encoding="utf-8")
        changed = mutant.applied(original)
        compile(changed, mutant.file, "exec")
        log = self.folder / "mutant.log"
        log.write_text("", encoding="utf-8")
        for tests, seconds in zip(tests_of(mutant.file), (NEAR_SECONDS, ROOM_SECONDS), strict=True):
            path.write_text(changed, encoding="utf-8")
            try:
                verdict = run_tests(self.tree, tests, log, seconds)
            finally:
                path.write_text(original, encoding="utf-8")
            if verdict != "survived":
                return verdict
        return "survived"


def read(path: Path) -> dict[str, str]:
    """Read the last verdict of each mutant; a line that a killed process left unfinished is passed over."""
    known: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            known |= {entry["mutant"]: entry["verdict"]} if "mutant" in entry else {}
    return known


def keep(path: Path, entry: dict[str, Any]) -> None:
    """Append one line in one write."""
    line = f"{json.dumps(entry)}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def report(drawn: list[Mutant], known: dict[str, str]) -> str:
    """Count verdicts by room and list the survivors, as Markdown."""
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    verdicts = {
        one.name: "equivalent" if one.name in equivalent and known.get(one.name) != "killed" else known[one.name]
        for one in drawn
        if one.name in known
    }
    lines = ["| room | drawn | run | killed | of it by time | survived | equivalent | killed of those that are not |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for room in (*ROOMS, "all"):
        inside = [one.name for one in drawn if room == "all" or one.file.startswith(f"monai_wsss/{room}/")]
        counts = Counter(verdicts[name] for name in inside if name in verdicts)
        dead, rest = counts["killed"] + counts["timeout"], counts.total() - counts["equivalent"]
        cells = (len(inside), counts.total(), dead, counts["timeout"], counts["survived"], counts["equivalent"])
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
    parser.add_argument("--out", type=Path, default=OUT, help="file of verdicts, one per line")
    parser.add_argument("--count", type=int, default=310)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=90, help="no mutant is begun after so many minutes")
    parser.add_argument("--again", action="store_true", help="run the survivors again")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    parser.add_argument("--first", type=int, help="run so many mutants at most")
    arguments = parser.parse_args()
    drawn, known = draw(arguments.count, arguments.seed), read(arguments.out)
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    todo = [
        one
        for one in drawn
        if one.name not in equivalent
        and one.file.split("/")[1] in arguments.rooms
        and (one.name not in known or (arguments.again and known[one.name] == "survived"))
    ]
    random.Random(arguments.seed).shuffle(todo)
    todo.sort(key=lambda one: one.name not in known)
    todo = [] if arguments.report else todo[: arguments.first]
    for name in LOADED if todo else ():
        importlib.import_module(name)
    until = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        runner = Runner(Path(folder), arguments.out) if todo else None
        for number, mutant in enumerate(todo):
            if runner is None or time.monotonic() > until:
                break
            began = time.monotonic()
            known[mutant.name] = runner.judge(mutant)
            seconds = round(time.monotonic() - began, 1)
            by = runner.failed_test() if known[mutant.name] == "killed" else ""
            keep(arguments.out, {"mutant": mutant.name, "verdict": known[mutant.name], "by": by, "seconds": seconds})
            print(f"{number:4} {seconds:6.1f} s {known[mutant.name]:9} {mutant.name} {by}", flush=True)
    print(report(drawn, known))


if __name__ == "__main__":
    main()
