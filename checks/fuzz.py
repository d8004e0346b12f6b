# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Call everything public with arguments that do not fit, and count what is answered by a raw error or by NaN.

    python checks/fuzz.py [--calls 12] [--seed 0] [--only TEXT] [--out fuzz.json]

The examples in the docstrings and the calls in :func:`other_calls` give correct calls of functions, constructors,
builders, modules, and methods of what is no module.  Each of them is made again with one or two arguments changed:
tensors that are empty, of another rank, size or type, constant or extreme; sequences that are empty or of a wrong
length; numbers at and beyond their limits; words, paths and objects of a wrong kind.  The seed draws ``--calls`` of
them per callable.  What has no correct call here, because it trains or reads whole data sets, is called with what
fits nothing.

An answer is *fine* if nothing is raised, a *sentence* if the package itself raises an error with a message, *raw* if
anything else is raised (by torch, NumPy, Python, or an operation inside the package), and *NaN* if finite arguments
give a result that is not finite.  The exit status is 0 if no answer is raw or NaN.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import doctest
import functools
import importlib
import inspect
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

import monai_wsss
from monai_wsss import _checks

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = str(ROOT / "monai_wsss")
SECONDS = 10
WATCH = "<watch>"
# What they give where nothing can be computed is NaN, as their docstrings say.
UNDEFINED_IS_NAN = (
    "metrics.presence_auroc", "metrics.pixel_auroc", "metrics.r_over", "metrics.r_under", "metrics.sensitivity",
    "metrics.specificity", "metrics.surface_distances", "metrics.blanked_presence", "metrics.map_distance",
    "metrics.mask_agreement", "metrics.left_clean", "metrics.rank_correlation", "benchmark.equivariance_residual",
)  # fmt: skip


class TooLong(BaseException):
    """A call that ran out of time: its arguments may be correct."""


# --- Arguments that do not fit -----------------------------------------------------------------------------------


def changed(value: Any, folder: Path) -> list[tuple[str, Any]]:
    """List changes of an argument, each with its name; the kind of the value decides which."""
    if isinstance(value, torch.Tensor):
        return _changed_tensor(value)
    if isinstance(value, np.ndarray):
        return [(name, one.numpy() if torch.is_tensor(one) and one.dtype != torch.bfloat16 else one)
                for name, one in _changed_tensor(torch.from_numpy(value.copy()))]  # fmt: skip
    if isinstance(value, bool):
        return [("text", "perhaps"), ("none", None), ("two", 2)]
    if isinstance(value, int):
        return [("zero", 0), ("minus one", -1), ("more", value + 1), ("half", value + 0.5), ("text", "many"),
                ("none", None)]  # fmt: skip
    if isinstance(value, float):
        return [("zero", 0.0), ("minus one", -1.0), ("two", 2.0), ("tiny", 1e-30), ("huge", 1e30),
                ("nan", float("nan")), ("infinite", float("inf")), ("text", "much"), ("none", None)]  # fmt: skip
    if isinstance(value, (str, os.PathLike)):
        text = folder / "text.txt"
        text.write_text("text\n", encoding="utf-8")
        (folder / "empty").mkdir(exist_ok=True)
        return [("word", "nonsense"), ("no word", ""), ("none", None), ("number", 3), ("missing", folder / "missing"),
                ("text file", text), ("empty folder", folder / "empty")]  # fmt: skip
    if isinstance(value, (list, tuple)):
        of = type(value) if type(value) in (list, tuple) else tuple
        changes: list[tuple[str, Any]] = [("empty", of()), ("one more", of([*value, *value[-1:]])),
                   ("one less", of(value[:-1])),
                   ("scalar", 3), ("text", "nonsense"), ("none", None),
                   ("wrong element", of([*value[:-1], object()]))]  # fmt: skip
        if value:
            changes += [(f"element {name}", of([one, *value[1:]])) for name, one in changed(value[0], folder)]
        return changes
    if isinstance(value, Mapping):
        changes = [("empty", {}), ("none", None), ("list", list(value)), ("text", "nonsense")]
        for key in list(value)[:4]:
            changes.append((f"no {key}", {one: kept for one, kept in value.items() if one != key}))
            changes += [(f"{key} {name}", {**value, key: one}) for name, one in changed(value[key], folder)]
        return changes
    if isinstance(value, nn.Module):
        return [("none", None), ("text", "network"), ("identity", nn.Identity()), ("number", 3)]
    return [("none", None), ("text", "nonsense"), ("number", 3), ("object", object())]


def _changed_tensor(value: torch.Tensor) -> list[tuple[str, Any]]:
    float_like = value if value.is_floating_point() else value.float()
    changes: list[tuple[str, Any]] = [
        ("one axis more", value[None]),
        ("float64", value.double()),
        ("float16", value.half()),
        ("bfloat16", value.bfloat16()),
        ("int64", value.long()),
        ("uint8", float_like.abs().clamp(max=255).to(torch.uint8)),
        ("bool", value != 0),
        ("zeros", torch.zeros_like(value)),
        ("ones", torch.ones_like(value)),
        ("minus one", -torch.ones_like(value)) if value.dtype != torch.bool else ("all", torch.ones_like(value)),
        ("huge", torch.full_like(float_like, 1e6)),
        ("tiny", torch.full_like(float_like, 1e-30)),
        ("fractions", torch.full_like(float_like, 0.3)),
        ("NaN", torch.full_like(float_like, torch.nan)),
        ("scalar", torch.tensor(1.0)),
        ("nothing", torch.zeros(0)),
        ("array", value.detach().float().numpy()),
        ("list", value.detach().tolist()),
        ("none", None),
        ("text", "nonsense"),
        ("number", 3),
    ]
    if value.ndim:
        changes += (
            [("empty batch", value[:0]), ("no pixels", value[..., :0]), ("one axis less", value[0])]
            if len(value)
            else []
        )
        changes += [("one pixel less", value[..., :-1]), ("twice the batch", torch.cat((value, value)))]
    if value.ndim > 1 and value.shape[1]:
        changes += [("one channel more", torch.cat((value, value[:, -1:]), 1)), ("no channels", value[:, :0])]
        changes += [("one pixel", value[..., :1] if value.ndim == 3 else value[..., :1, :1])]
    return changes


def finite(value: Any, depth: int = 0) -> bool:
    """Tell whether all numbers in a value, its parts included, are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.detach().isfinite().all())
    if isinstance(value, np.ndarray):
        return not np.issubdtype(value.dtype, np.floating) or bool(np.isfinite(value).all())
    if isinstance(value, float):
        return np.isfinite(value).item()
    if depth < 9 and isinstance(value, (list, tuple)):
        return all(finite(part, depth + 1) for part in value)
    if depth < 9 and isinstance(value, Mapping):
        return all(finite(part, depth + 1) for part in value.values())
    return True


# --- Answers -----------------------------------------------------------------------------------------------------


@functools.cache
def raising_lines(file: str) -> frozenset[int]:
    """Give the lines of a file of the package that are part of a ``raise``."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return frozenset(line for node in found for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def deepest(trace: TracebackType | None) -> tuple[str, int]:
    """Give file and line where an error came from."""
    last = traceback.extract_tb(trace)[-1]
    return last.filename, last.lineno or 0


def judge_error(error: BaseException) -> str:
    """Tell a sentence of the package from a raw error; ``binding`` is Python's refusal of a call as such."""
    file, line = deepest(error.__traceback__)
    if file in (__file__, WATCH):
        return "binding"
    own = file.startswith(PACKAGE) and line in raising_lines(file)
    # MONAI's own sentence of each of its dictionary transforms, which ours keep.
    own = own or (isinstance(error, KeyError) and "allow_missing_keys" in str(error))
    return "sentence" if own and isinstance(error, Exception) and len(str(error)) > 15 else "raw"


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise :class:`TooLong` after some seconds."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- Correct calls, and calls like them --------------------------------------------------------------------------


class Fuzzer:
    """Watches correct calls of public callables, and makes calls like each that do not fit."""

    def __init__(self, calls: int, seed: int, only: str, folder: Path) -> None:
        self.calls, self.seed, self.only, self.folder = calls, seed, only, folder
        self.busy = False
        self.made: Counter[str] = Counter()
        self.answers: list[dict[str, Any]] = []
        self.seen: set[str] = set()

    def like(self, name: str, call: Callable[..., Any], given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        """Make calls like a correct one, ``--calls`` per callable over all its correct calls."""
        generator = random.Random(f"{self.seed} {name} {self.made[name]}")
        args, kwargs = given
        places = [*range(len(args)), *kwargs]
        # Of the later calls of the same callable, few: they are much like the first.
        budget = self.calls if not self.made[name] else min(4, 2 * self.calls - self.made[name])
        if not places:
            return
        options = [
            (place, kind, value)
            for place in places
            for kind, value in changed(args[place] if isinstance(place, int) else kwargs[place], self.folder)
        ]
        options.extend(
            (parameter.name, f"given {kind}", value)
            for parameter in self._left_out(call, args, kwargs)
            for kind, value in changed(parameter.default, self.folder)
        )
        generator.shuffle(options)
        for place, kind, value in options[: max(budget, 0)]:
            second = generator.choice(options) if generator.random() < 0.15 else None
            self.call(name, call, given, [(place, kind, value), *([second] if second else [])])

    @staticmethod
    def _left_out(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[inspect.Parameter]:
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except (TypeError, ValueError):
            return []
        return [
            one
            for one in parameters[len(args) :]
            if one.name not in kwargs and one.default not in (inspect.Parameter.empty, None)
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ]

    def call(
        self,
        name: str,
        call: Callable[..., Any],
        given: tuple[tuple[Any, ...], dict[str, Any]],
        changes: list[tuple[Any, str, Any]],
    ) -> None:
        args, kwargs = copied(list(given[0])), copied(dict(given[1]))
        for place, _, value in changes:
            if isinstance(place, int):
                args[place] = copied(value)
            else:
                kwargs[place] = copied(value)
        what = "; ".join(f"{place}: {kind}" for place, kind, _ in changes)
        self.made[name] += 1
        before = finite([args, kwargs])
        error: BaseException | None = None
        torch.manual_seed(0)
        owner = getattr(call, "__self__", None)
        if owner is not None and not inspect.isclass(owner):
            call = getattr(copied(owner), call.__name__)
        noise = io.StringIO()
        try:
            with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with limited(SECONDS):
                    result = call(*args, **kwargs)
            answer = "fine"
            if before and not finite(result):
                answer = "defined NaN" if name in UNDEFINED_IS_NAN else "NaN"
        except TooLong:
            answer = "too long"
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as caught:
            error, answer = caught, judge_error(caught)
        entry = {"name": name, "change": what, "answer": answer}
        if error is not None:
            file, line = deepest(error.__traceback__)
            own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
            place = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else f"{file}:{line}"
            entry |= {"error": type(error).__name__, "says": str(error)[:200], "at": place}
        self.answers.append(entry)

    def watching(self, name: str, function: Callable[..., Any], kind: str, owner: str = "") -> Callable[..., Any]:
        """Wrap a function, constructor or method, so that calls like each of its calls are made, too."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.seen.add(name)
            if self.busy or self.made[name] >= 2 * self.calls or self.only not in name:
                return function(*args, **kwargs)
            if kind == "init" and f"{type(args[0]).__module__}.{type(args[0]).__qualname__}" != owner:
                return function(*args, **kwargs)
            own = args if kind == "function" else args[1:]
            given = (tuple(copied(list(own))), copied(kwargs))
            result = function(*args, **kwargs)
            self.busy = True
            # A caller's own calls do not come from within a network that has checked its input for its parts.
            trusted, _checks._running.checked = _checks.parts_are_trusted(), False
            try:
                if kind == "init":
                    self.like(name, type(args[0]), given)
                elif kind == "classmethod":
                    self.like(name, getattr(args[0], function.__name__), given)
                elif kind == "method":
                    called = "__call__" if function.__name__ == "forward" else function.__name__
                    self.like(name, getattr(args[0], called), given)
                else:
                    self.like(name, watched, given)
            finally:
                self.busy, _checks._running.checked = False, trusted
            return result

        # Not the code of a caller, whose own errors no door explains.
        watched.__code__ = watched.__code__.replace(co_filename=WATCH)  # type: ignore[attr-defined]
        return watched


def copied(value: Any) -> Any:
    """Copy arguments, so that no call changes those of another one; what cannot be copied is shared."""
    if isinstance(value, list):
        return [copied(one) for one in value]
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def watch(fuzzer: Fuzzer) -> list[tuple[str, Any]]:
    """Put the watch on every public function, constructor and method; give the public things by name."""
    public = []
    for room in monai_wsss.ROOMS:
        module = importlib.import_module(f"monai_wsss.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            path = f"{room}.{name}"
            public.append((path, value))
            if inspect.isclass(value):
                _watch_class(fuzzer, path, value)
            elif inspect.isfunction(value):
                watched = fuzzer.watching(path, value, "function")
                for each in list(sys.modules.values()):
                    if getattr(each, "__name__", "").startswith("monai_wsss") and getattr(each, name, None) is value:
                        setattr(each, name, watched)
    return public


def _watch_class(fuzzer: Fuzzer, path: str, value: type) -> None:
    for key, function in list(vars(value).items()):
        # Other methods of modules are inner parts: what is called from outside is the module.
        public = not key.startswith("_") and (key == "forward" or not issubclass(value, nn.Module))
        if inspect.isfunction(function) and (public or key in ("__init__", "__call__")):
            kind = "init" if key == "__init__" else "method"
            owner = f"{value.__module__}.{value.__qualname__}"
            watched = fuzzer.watching(path if key == "__init__" else f"{path}.{key}", function, kind, owner)
            with contextlib.suppress(AttributeError, TypeError):
                setattr(value, key, watched)
        elif isinstance(function, classmethod) and not key.startswith("_"):
            made = fuzzer.watching(f"{path}.{key}", function.__func__, "classmethod")
            setattr(value, key, classmethod(made))


def run_examples(public: list[tuple[str, Any]], only: str) -> None:
    """Run the docstring examples of everything public."""
    finder = doctest.DocTestFinder(recurse=False)
    for path, value in public:
        if only.split(".")[0] not in path:
            continue
        members = [value]
        if inspect.isclass(value):
            own = {key: one for key, one in vars(value).items() if not key.startswith("_")}
            members += [
                getattr(value, key)
                for key, one in own.items()
                if inspect.isfunction(one) or isinstance(one, classmethod)
            ]
        for member in members:
            known = {
                **getattr(inspect.unwrap(member), "__globals__", {}),
                **vars(sys.modules[getattr(value, "__module__", "monai_wsss")]),
            }
            known |= vars(sys.modules[f"monai_wsss.{path.split('.')[0]}"])
            for test in finder.find(inspect.unwrap(member), path, module=False, globs=known):
                with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                    silent = io.StringIO()
                    with warnings.catch_warnings(), contextlib.redirect_stderr(silent):
                        warnings.simplefilter("ignore")
                        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
                            test, out=silent.write, clear_globs=True
                        )


def other_calls(folder: Path) -> Iterator[Callable[[], Any]]:
    """Give correct calls of what has no example of its own: networks, methods and losses, as the contract tests do."""
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT / "tests" / "contract"))
    from monai_wsss import losses, methods

    contract_losses = importlib.import_module("test_every_loss")
    contract_networks = importlib.import_module("test_every_network")
    contract_transforms = importlib.import_module("test_every_transform")
    for name in contract_losses.GIVEN:
        for dims in (2, 3):
            given, others = contract_losses.draw(name, dims)
            yield functools.partial(lambda n, g, o: getattr(losses, n)()(g.float(), *o), name, given, others)
    for name, (make, give) in contract_networks.PARTS.items():
        yield functools.partial(lambda n, m, g: contract_networks.run(m(2), n, g(2)), name, make, give)
    for network in contract_networks.NETWORKS.values():
        yield functools.partial(lambda n: n.tiny(2, 3)(torch.rand(2, 3, 32, 32)), network)
    for make, item in contract_transforms.MADE.values():
        yield functools.partial(lambda m, i: m(folder)(i), make, item)
    progress = importlib.import_module("monai_wsss.engines").Progress(1, 1, 0.5)
    for name in methods.__all__:
        method = getattr(methods, name)
        if hasattr(method, "tiny"):

            def train(made: Any = method, name: str = name) -> None:
                classes, channels = (2, 3) if name.startswith("Gland") else (1, 1)
                one = made.tiny(2, channels, classes)
                label = torch.eye(2)[:, :classes]
                batch = {"image": torch.rand(2, channels, 32, 32), "label": label}
                if one.uses_masks:
                    batch["mask"] = torch.ones(2, 1, 32, 32, dtype=torch.uint8)
                one(batch, progress, one.players[0])

            yield (
                train
                if name != "SegmentationNetwork"
                else lambda: methods.SegmentationNetwork.tiny()(torch.rand(2, 1, 32, 32))
            )


def call_the_others(fuzzer: Fuzzer, public: list[tuple[str, Any]]) -> None:
    """Call what has no correct call here, because it trains, or reads whole data sets, with what fits nothing."""
    pool = [None, "nonsense", 3, 0.5, -1, object(), [], {}, torch.zeros(0), torch.zeros(1, 1, 4, 4), np.zeros((2, 2)),
            nn.Identity(), Path("missing"), print, [1.0, "a"], {"image": torch.zeros(0)}]  # fmt: skip
    for path, value in public:
        if path in fuzzer.seen or not callable(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
            continue
        parameters = inspect.signature(value).parameters.values()
        needed = [
            one.name
            for one in parameters
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
        generator = random.Random(f"{fuzzer.seed} {path}")
        for _ in range(fuzzer.calls if needed and fuzzer.only in path else 0):
            given = {name: generator.choice(pool) for name in needed}
            fuzzer.busy = True
            fuzzer.call(path, value, ((), given), [(name, type(one).__name__, one) for name, one in given.items()])
            fuzzer.busy = False


def table(answers: list[dict[str, Any]]) -> str:
    """Count answers by room, as Markdown."""
    kinds = ("fine", "sentence", "raw", "NaN", "defined NaN", "binding", "too long")
    lines = [f"| room | callables | calls | {' | '.join(kinds)} |", "|---|" + "--:|" * (len(kinds) + 2)]
    rooms = [*monai_wsss.ROOMS, "all"]
    for room in rooms:
        own = [one for one in answers if room == "all" or one["name"].startswith(f"{room}.")]
        counts = Counter(one["answer"] for one in own)
        cells = [len({one["name"] for one in own}), len(own), *(counts[kind] for kind in kinds)]
        lines.append(f"| {room} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run the correct calls under the watch, and print the table and what is raw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a name, e.g. losses.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.resolve() if arguments.out else None
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        fuzzer = Fuzzer(arguments.calls, arguments.seed, arguments.only, Path(name))
        calls = list(other_calls(Path(name)))
        public = watch(fuzzer)
        run_examples(public, arguments.only)
        for call in calls:
            try:
                call()
            except Exception as error:
                print(f"{getattr(call, 'args', call)}: {error!r}"[:300], file=sys.stderr)
        call_the_others(fuzzer, public)
    unseen = [path for path, value in public if callable(value) and path not in fuzzer.seen]
    faults = [one for one in fuzzer.answers if one["answer"] in ("raw", "NaN")]
    for one in faults:
        print(f"{one['answer']} {one['name']} ({one['change']}): {one.get('error', '')} {one.get('says', '')!r} "
              f"{one.get('at', '')}")  # fmt: skip
    print(table(fuzzer.answers))
    print(f"without a correct call: {', '.join(unseen)}")
    print(f"{len(fuzzer.answers)} calls in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    if out:
        content = {"seed": arguments.seed, "table": table(fuzzer.answers), "faults": faults, "unseen": unseen,
                   "answers": fuzzer.answers}  # fmt: skip
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
