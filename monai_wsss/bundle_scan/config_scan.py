# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A lint for the code in a bundle's configuration, which is parsed and never run.

A MONAI configuration is code: every ``_target_`` is called and every string that begins with ``$`` is evaluated.
Targets and expressions may use what :mod:`monai_wsss.bundle_scan.allowed` lists of monai, torch and monai_wsss, and the
configuration's own ``@references``.  The lint keeps our bundles plain and shows a reader what to look at in others.  It
is no sandbox: it trusts what the listed parts do with their arguments, and does not know what a reference holds.  A
bundle of a stranger is a program of a stranger, whatever is found here.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from monai_wsss.bundle_scan.allowed import MEMBERS, argument_problem, is_allowed, told_arguments

__all__ = ["iterate_config", "scan_expressions"]

_PACKAGES = ("monai", "torch", "monai_wsss")
_IMPORT = "$import monai_wsss"
# How MONAI finds references in an expression, once `#` has become `::` (monai.bundle.ReferenceResolver).
_REFERENCE = re.compile(r"@\w*(?:::\w*)*")
_STAND_IN = "config_reference"
_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
# Names that reach the system from Python, and names of monai and torch that run, import, download or unpickle.
_UNSAFE = """
    builtins ctypes exec importlib inspect open os pathlib pickle popen shutil socket spawn subprocess sys system
    bundle cpp_extension hub instantiate load load_library load_url optional_import package run_cmd save
"""


def iterate_config(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a nested configuration: give each value that is no dict or list, with its id in MONAI's notation.

    Example:
        >>> list(iterate_config({"train": {"steps": [1, "@a"]}}))
        [('train#steps#0', 1), ('train#steps#1', '@a')]
    """
    if not isinstance(config, (dict, list)):
        yield name, config
        return
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield from iterate_config(value, f"{name}#{key}" if name else str(key))


def scan_expressions(config: Any) -> list[str]:
    """Find what a configuration should not do, without evaluating anything in it.

    Args:
        config: the content of a configuration file.

    Returns:
        One sentence per fault.  A ``_target_`` must be the full path of a class or function of monai, torch or
        monai_wsss that is on the list of what may be called.  An expression may use or call only these and
        ``@references``, of which it may take the attributes that are listed; it may not touch private attributes or
        import more than monai_wsss.

    Example:
        >>> scan_expressions({"size": "$torch.ones(@n).sum()", "n": 2})
        []
        >>> scan_expressions({"run": ["$os.remove('x')"]})
        ['`run#0` uses `os`: expressions may use monai, torch, monai_wsss and @references only.']
    """
    faults = []
    for name, value in iterate_config(config):
        if problem := _value_problem(name, value):
            faults.append(f"`{name}` {problem}.")
    for name, component in _components(config):
        if problem := _component_problem(component):
            faults.append(f"`{f'{name}#' if name else ''}{problem}.")
    return list(dict.fromkeys(faults))


def _value_problem(name: str, value: Any) -> str | None:
    """Say what is wrong with one value, by its id in either of MONAI's notations."""
    parts = name.replace("::", "#").split("#")
    if "_target_" in parts[:-1] or "_mode_" in parts[:-1]:
        return "lies below `_target_` or `_mode_`: write a plain text there"
    if parts[-1] == "_target_":
        return _target_problem(value)
    if parts[-1] == "_mode_":
        return None if value in ("default", "callable") else "may be `default` or `callable` only"
    # A word of the bundle itself may have the name of such an argument.
    key = next((part for part in reversed(parts) if not part.isdigit()), "")
    if (len(parts) > 1 or key == "workflow_name") and (problem := argument_problem(key, value, own=True)):
        return problem
    return _string_problem(value) if isinstance(value, str) else None


def _components(config: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each dictionary that MONAI makes an object of, with its id."""
    if isinstance(config, dict) and "_target_" in config:
        yield name, config
    if isinstance(config, (dict, list)):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            yield from _components(value, f"{name}#{key}" if name else str(key))


def _component_problem(component: dict[str, Any]) -> str | None:
    """Say which arguments of an allowed part ask for more than it may do, beginning with the argument's name."""
    target = component["_target_"]
    if not isinstance(target, str) or _target_problem(target) is not None:
        return None
    own = target.startswith("monai_wsss.")
    told = told_arguments(_locate(target)) if not own else {}
    for name, default in told.items():
        value = component.get(name, default)
        problem = None if isinstance(value, (dict, list, type)) else argument_problem(name, value)
        if problem:
            return f"{name}` {problem}"
    if told and component.get("_mode_", "default") != "default":
        return f"_mode_` leaves it to others what {target} imports, unpickles, compiles or downloads: do without"
    return None


def _locate(path: str) -> Any:
    """Give what lies at a path that has been checked."""
    thing: Any = importlib.import_module(path.split(".")[0])
    for part in path.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def _target_problem(target: Any) -> str | None:
    if not isinstance(target, str) or not _DOTTED.fullmatch(target) or target.split(".")[0] not in _PACKAGES:
        return f"is {target!r}: write the full path of a class or function of {', '.join(_PACKAGES)}"
    return _path_problem(target)


def _string_problem(text: str) -> str | None:
    if text.startswith("%") and re.search(r"\.(json|ya?ml)\b", text, flags=re.IGNORECASE):
        return f"copies from another file ({text!r}): keep what a configuration needs in itself"
    if not text.startswith("$") or text == _IMPORT:
        return None
    if re.match(r"\$\s*(import|from)\b", text):
        return f"imports more than monai_wsss ({text!r}): move the code into an installed package"
    expression = _REFERENCE.sub(_STAND_IN, text[1:].replace("#", "::"))
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        return f"is no Python expression ({text!r}): correct it"
    visitor = _ExpressionVisitor(tree)
    visitor.visit(tree)
    return visitor.problems[0] if visitor.problems else None


class _ExpressionVisitor(ast.NodeVisitor):
    """A visitor that collects what an expression does beyond the packages and the references."""

    def __init__(self, tree: ast.AST) -> None:
        self.problems: list[str] = []
        self.bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        self.bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if hidden := self.bound.intersection(_PACKAGES):
            self.problems.append(f"binds the name `{hidden.pop()}` to something else: choose another")

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in _PACKAGES:
            self.problems.append(f"hands out the package `{node.id}` itself: name what is needed of it")
        elif node.id != _STAND_IN and node.id not in self.bound:
            self.problems.append(f"uses `{node.id}`: expressions may use {', '.join(_PACKAGES)} and @references only")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = _dotted(node)
        if path is not None and path.split(".")[0] in _PACKAGES:
            problem = _path_problem(path) or _told_problem(path)
        else:
            problem = _part_problem(node.attr)
            if problem is None and node.attr not in MEMBERS:
                problem = f"takes `{node.attr}` of what it does not know: that is not on the list of what may be used"
            self.generic_visit(node)
        if problem:
            self.problems.append(problem)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if _root(node.func) not in (*_PACKAGES, _STAND_IN):
            self.problems.append(
                f"calls `{ast.unparse(node.func)}`: expressions may call what belongs to {', '.join(_PACKAGES)} "
                "or to a @reference only"
            )


def _dotted(node: ast.expr) -> str | None:
    """Give ``a.b.c`` of a chain of attributes that begins with a name, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := _dotted(node.value)) is not None:
        return f"{start}.{node.attr}"
    return None


def _root(node: ast.expr) -> str | None:
    """Give the name that a chain of attributes, subscripts and calls begins with, None where that is a literal."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _part_problem(part: str) -> str | None:
    if part.startswith("_"):
        return f"touches the private attribute `{part}`: use public ones"
    if part in _UNSAFE.split() or part.startswith("download"):
        return f"uses `{part}`, which can run, load or write whatever it is told to: do without"
    return None


def _told_problem(path: str) -> str | None:
    """Say why an expression may not use what can be told to import, unpickle, compile or download."""
    told = told_arguments(_locate(path)) if not path.startswith("monai_wsss.") else {}
    if not told:
        return None
    return f"uses {path}, whose `{next(iter(told))}` nobody can check here: write it as a `_target_`"


def _path_problem(path: str) -> str | None:
    """Say why ``torch.a.b`` may not be used; this imports the packages and evaluates nothing of the configuration."""
    parts = path.split(".")
    for part in parts[1:]:
        if problem := _part_problem(part):
            return problem
    thing: Any = importlib.import_module(parts[0])
    for length, part in enumerate(parts[1:], start=2):
        try:
            thing = getattr(thing, part) if hasattr(thing, part) else importlib.import_module(".".join(parts[:length]))
        except Exception:  # what modules raise that cannot be imported here, and torch's tables of compiled parts
            return f"names {path}, which does not exist: correct the path"
        owner = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
        if isinstance(owner, str) and owner.split(".")[0] not in _PACKAGES:
            return f"reaches {owner} through {path}: use what {parts[0]} itself defines"
    if isinstance(thing, ModuleType):
        return f"names the module {path} itself: name what is needed of it"
    if not is_allowed(path, thing):
        return f"uses {path}, which is not on the list of what a configuration may call: do without, or look at it"
    return None
