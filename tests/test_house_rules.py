# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The rules of size and English: limits of functions, signatures and files, docstrings that begin with a verb.

Each test names all violations at once, as ``file:line``. Exceptions from the limits stand in ``EXCEPTIONS`` with their
reasons.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import monai_wsss

PACKAGE = Path(monai_wsss.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHER_TEXTS = sorted(
    path
    for folder in ("bundles", "docs", "speed", "tutorials", "")
    for path in (ROOT / folder).glob("**/*" if folder else "*")
    if path.is_file() and path.suffix in {".py", ".md", ".json", ".yaml", ".toml", ".jinja"}
)

LINES_PER_FUNCTION = 60
PARAMETERS_PER_SIGNATURE = 12
LINES_PER_FILE = 400

# At most ten. A file has its path as key; a function has "path::name lines" or "path::name parameters".
EXCEPTIONS = {
    "refinement/pixel_adaptive.py": "one idea",
    "engines/trainer.py::WSSSTrainer.__init__ parameters": "what a config hands to MONAI's Trainer, and ours",
    "refinement/mask_rule.py::MaskRule parameters": "the words of to_mask, each with a default, as one value",
    "methods/bmp_settings.py::BmpSettings parameters": "a builder's words, the paper's switches",
    "methods/cmer_settings.py::CmerSettings parameters": "a builder's words, the paper's switches",
    "methods/coingan_settings.py::CoinganSettings parameters": "a builder's words, the paper's switches",
    "methods/cosa_settings.py::CosaSettings parameters": "a builder's words, the paper's switches",
}
# An algorithm box that no one can take in at a glance is none.
LINES_OF_FILES = {"methods/bmp.py": 260, "methods/cosa.py": 260}

# First words of docstrings that describe and do not tell what to do, whether they are lower case or not.
NO_VERBS = frozenset(
    """
    A About Absolute Affinities After All Also An And Another Any Area As At Attention Axis Background-aware
    Bare Batch-norm Before Behind Besides Bias Bilinear Both But By Class Classifier Column Connected
    Cross-entropy Cytoplasm Default Depth Dice Distance During Each Edema Either Elementwise Entropy Eval Every
    Everything False Features Few Final First Five For Four From Glands Grad-CAM Grad-CAM++ Gray Half-precision
    He Head Height How If Image Image-level Images In Indices Inside Intersection It Its Keys Kullback-Leibler
    Last Lateral Level-0 Log-probabilities Logits Loss Many Maps Marginals Markdown Masks Mass Mean Median
    Micrometers More Most Moving MONAI Named Names Neither No None Not Nuclei Number Of On One One-hot Only
    Optional Or Origin Origins Other Our Out Outputs Over-segmentation Overlapping Own Pairs Patches Per Picture
    Pillow Pixel Pixels Pooling Position Positions Private Probability Products Pseudo-masks Published Raw
    References Result Rooms Row Rows Same Scalar Scalp Scores Second Seeds Segmentation Sentences Sequence Shape
    Shared Shortcut Side Signed Small Softmax Some Spindle Squared Stains Standard Still Sums Such Surface Than
    That The Their Then There These They Third This Those Three Ticks Tiles Tissue To Total Training True Two
    Uncompressed Under Under-segmentation Uninitialized Until Up Used Value Values Voxel Wanted We Weighted
    Weights What Whatever When Whenever Where Whereas Whether Which While Whiskers Who Whole Whose Why Windows
    With Without Zero
    """.lower().split()
)
LOOK_INFLECTED = frozenset({"bring", "embed", "feed", "need", "proceed", "speed"})

# Documents that are not in the repository, and the folder beside it.
ELSEWHERE = re.compile(r"\bmethod sheet|\bfeasibility|(?<![\w/])(\.\./)?shared/", re.IGNORECASE)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(
    node: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Find the functions and classes of a module, nested ones too, with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + child.name, child
            yield from definitions(child, f"{prefix}{child.name}.")
        else:
            yield from definitions(child, prefix)


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, node in definitions(tree_of(path)):
        if not isinstance(node, ast.ClassDef):
            yield name, node


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count from ``def`` to the end, less the lines of the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count what a caller may give; builders, which are class methods, count as none."""
    if any(isinstance(decorator, ast.Name) and decorator.id == "classmethod" for decorator in function.decorator_list):
        return 0
    arguments = function.args
    named = arguments.posonlyargs + arguments.args
    own = bool(named) and named[0].arg in ("self", "cls")
    starred = sum(argument is not None for argument in (arguments.vararg, arguments.kwarg))
    return len(named) - own + len(arguments.kwonlyargs) + starred


def fields(node: ast.ClassDef) -> int:
    """Count the fields of a dataclass, which are the parameters of its constructor; other classes have none."""
    decorators = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
    if not any(isinstance(each, ast.Name) and each.id == "dataclass" for each in decorators):
        return 0
    return sum(isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation) for each in node.body)


def over_limits(path: Path) -> dict[str, str]:
    """Describe what is over a limit, by the keys of ``EXCEPTIONS``."""
    key = path.relative_to(PACKAGE).as_posix()
    found = {}
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > (limit := LINES_OF_FILES.get(key, LINES_PER_FILE)):
        found[key] = f"{key}:1: {lines} lines, the limit is {limit}"
    for name, node in definitions(tree_of(path)):
        if isinstance(node, ast.ClassDef) and (count := fields(node)) > PARAMETERS_PER_SIGNATURE:
            found[f"{key}::{name} parameters"] = (
                f"{key}:{node.lineno}: {name} has {count} fields, the limit is {PARAMETERS_PER_SIGNATURE}"
            )
    for name, function in functions(path):
        where = f"{key}:{function.lineno}: {name}"
        if (count := lines_without_docstring(function)) > LINES_PER_FUNCTION:
            found[f"{key}::{name} lines"] = f"{where} of {count} lines, the limit is {LINES_PER_FUNCTION}"
        if (count := parameters(function)) > PARAMETERS_PER_SIGNATURE:
            found[f"{key}::{name} parameters"] = (
                f"{where} takes {count} parameters, the limit is {PARAMETERS_PER_SIGNATURE}"
            )
    return found


def is_imperative(docstring: str) -> bool:
    """Tell whether the first word may be a verb in the imperative: a capitalized word that is none of ``NO_VERBS``."""
    first = docstring.split(maxsplit=1)[0].rstrip(",.:;")
    word = first.lower()
    if not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", first) or word in NO_VERBS:
        return False
    inflected = word.endswith(("ing", "ed")) or (word.endswith("s") and not word.endswith("ss"))
    return not inflected or word in LOOK_INFLECTED


def docstrings_without_verb(path: Path) -> list[str]:
    found = []
    for name, function in functions(path):
        docstring = ast.get_docstring(function)
        if docstring and not is_imperative(docstring):
            key = path.relative_to(PACKAGE).as_posix()
            found.append(f"{key}:{function.lineno}: {name} begins with {docstring.split()[0]!r}")
    return found


def mentions_elsewhere(path: Path, *, allowed: tuple[str, ...] = ()) -> list[str]:
    """Find lines that name a document outside of the repository; ``allowed``: words that excuse a line nearby."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT).as_posix()}:{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if ELSEWHERE.search(line)
        and not any(word in near for word in allowed for near in lines[max(number - 2, 0) : number + 1])
    ]


def names_of_package(tree: ast.Module) -> set[str]:
    """Collect the names under which a test file knows the package, its modules and what it imported of them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "monai_wsss":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] == "monai_wsss"
            }
    return names


def root_name(node: ast.AST) -> str:
    """Name what a chain of attributes and calls begins with, or give an empty string."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def nodes_with_lines(node: ast.AST, line: int = 1) -> Iterator[tuple[int, ast.AST]]:
    """Walk a tree with the first line of the innermost statement around each node."""
    for child in ast.iter_child_nodes(node):
        first = child.lineno if isinstance(child, ast.stmt) else line
        yield first, child
        yield from nodes_with_lines(child, first)


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find the private names of the package that a test file reaches, with the lines of their statements."""
    known = names_of_package(tree)
    for line, node in nodes_with_lines(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "monai_wsss":
            # A module of that kind, such as `_checks`, is the package's own floor; its names are public in the package.
            for alias in node.names:
                if is_private(alias.name) and not (PACKAGE / f"{alias.name}.py").exists():
                    yield line, alias.name
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and root_name(node) in known:
            yield line, node.attr
        elif isinstance(node, ast.Call) and root_name(node) in {"monkeypatch", "mock", "patch"}:
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    of_package = argument.value.startswith("monai_wsss.") or root_name(node.args[0]) in known
                    if of_package and is_private(argument.value.rpartition(".")[2]):
                        yield line, argument.value


def lines_with_comment(source: str) -> set[int]:
    return {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }


def unexplained_private_names(path: Path) -> list[str]:
    """Find private names in statements without a comment on their first line or the one before."""
    source = path.read_text(encoding="utf-8")
    explained = lines_with_comment(source)
    return [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for line, name in sorted(set(private_names(ast.parse(source))))
        if not {line, line - 1} & explained
    ]


def report(violations: list[str], remedy: str) -> str:
    return f"{len(violations)} violations; {remedy}\n" + "\n".join(violations)


def test_limits_of_size():
    found = [text for path in FILES for key, text in over_limits(path).items() if key not in EXCEPTIONS]
    assert not found, report(found, "take them apart along an idea.")


def test_exceptions_are_few_and_needed():
    found = {key for path in FILES for key in over_limits(path)}
    stale = sorted(set(EXCEPTIONS) - found)
    assert not stale, report(stale, "they are within the limits now: drop the exceptions.")
    assert len(EXCEPTIONS) <= 10
    assert all(reason.strip() for reason in EXCEPTIONS.values())


def test_docstrings_of_functions_begin_with_a_verb():
    found = [text for path in FILES for text in docstrings_without_verb(path)]
    assert not found, report(found, "say what to do, in the imperative.")


def test_nothing_refers_to_documents_elsewhere():
    found = [text for path in [*FILES, *OTHER_TEXTS] for text in mentions_elsewhere(path)]
    # The folders of reference vectors and of images have defaults beside the repository.
    for path in TESTS:
        if path.name != Path(__file__).name:
            found += mentions_elsewhere(path, allowed=("WSSS_GOLDEN", "WSSS_DATA"))
    assert not found, report(found, "say it here, or cite the paper.")


def test_private_names_in_tests_are_explained():
    found = [text for path in TESTS for text in unexplained_private_names(path)]
    assert not found, report(found, "use a public name, or say above the line why not.")


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Give the maps.", True), ("Bring maps to a size.", True), ("Pass it on.", True), ("Cross-check it.", True),
        ("What is given.", False), ("Gives the maps.", False), ("``(B, K)``", False), ("Averaging of maps.", False),
        ("the maps", False), ("Maps of a class.", False),
    ],
)  # fmt: skip
def test_imperative(docstring, expected):
    assert is_imperative(docstring) is expected


def test_sizes_are_counted_without_docstring_and_self():
    tree = ast.parse('class A:\n  def f(self, a, *b, c=1, **d):\n    """One.\n\n    Two.\n    """\n    return a\n')
    ((_, _), (name, function)) = definitions(tree)
    assert name == "A.f"
    assert lines_without_docstring(function) == 2
    assert parameters(function) == 4
    builder = ast.parse("class A:\n  @classmethod\n  def f(cls, a, b): ...\n").body[0].body[0]
    assert parameters(builder) == 0


def test_private_names_are_found_and_comments_excuse_them(tmp_path):
    source = (
        "from monai_wsss.cams import _a, b\nfrom monai_wsss import cams\nb.c()._d\nself._e\n"
        "monkeypatch.setattr(cams, '_f', 1)\nmonkeypatch.setattr('monai_wsss.cams.g._h', 1)\n"
        "monkeypatch.setattr(x, '_i')\n"
    )
    found = [name for _, name in private_names(ast.parse(source))]
    assert sorted(found) == ["_a", "_d", "_f", "monai_wsss.cams.g._h"]
    assert lines_with_comment("a = 1  # why\nb = '# no'\n") == {1}
