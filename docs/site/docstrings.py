# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Prepare docstrings for the site: an extension of Griffe, which reads the package without importing it.

Griffe reads Google style; mkdocstrings takes the text for Markdown. Ours has references as MONAI writes them, such as
``:class:`~monai_wsss.refinement.MaskRule` ``, and shapes such as ``(B, K, *S)``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from griffe import Alias, Extension, GriffeLoader, Module, NameResolutionError, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)(?: <([\w.]+)>)?`")
SHAPE = re.compile(r"(`+)[^`]+\1|\*S\b")


class Docstrings(Extension):
    """Choose what the site shows of each room, and turn references into those of Markdown."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Show the names that each room lists, below the modules that define them."""
        for room in pkg.modules.values():
            homes = [room.imports.get(str(name), "").rpartition(".") for name in room.exports or []]
            for module in room.modules.values():
                module.exports = [name for home, _, name in homes if home == module.path]
                module.public = bool(module.exports)
            room.exports = None
        _rewrite(pkg)


def _rewrite(scope: Object) -> None:
    """Rewrite the docstring of an object, and of all that is in it."""
    if scope.docstring is not None:
        text = re.sub(r"^( *)Example:$", r"\1Examples:", scope.docstring.value, flags=re.MULTILINE)  # Griffe's word
        text = SHAPE.sub(lambda found: found[0] if found[1] else r"\*S", text)
        scope.docstring.value = ROLE.sub(lambda role: _reference(scope, *role.groups()), text)
    for member in scope.members.values():
        if not isinstance(member, Alias):
            _rewrite(member)


def _reference(scope: Object, short: str, name: str, target: str | None) -> str:
    """Give a reference that is a link where the site shows what is meant, and code elsewhere."""
    first, dot, rest = (target or name).partition(".")
    with suppress(NameResolutionError):  # where it is a whole path already
        first = scope.resolve(first)
    label = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{first}{dot}{rest}" optional>`{label}`</autoref>'
