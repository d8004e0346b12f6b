# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Turn what docstrings hold beyond Markdown into Markdown: an extension of Griffe, which reads them without importing.

References such as ``:class:`~monai_wsss.refinement.MaskRule` `` become links where the site has the name, and code
elsewhere. Shapes such as ``(B, K, *S)`` keep their stars.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Alias, Extension, GriffeLoader, Module, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([^`]+)`")
CODE = re.compile(r"(``.+?``|`[^`]+`|\[`[^`]+`\]\[[^\]]+\])", re.DOTALL)


class Docstrings(Extension):
    """Rewrite all docstrings of a package once it has been read."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstrings of the package's modules and of all that is in them."""
        public = {
            found.canonical_path
            for room in pkg.modules.values()
            if room.is_package or room.is_subpackage
            for name in room.exports or []
            if (found := _follow(room, str(name))) is not None
        }
        public |= {path.rpartition(".")[0] for path in public}
        _rewrite(pkg, pkg, public)


def _follow(scope: Object, dotted: str) -> Object | None:
    """Give what a dotted name means in a scope, or None if it is nothing of this package."""
    found: Any = scope
    for name in dotted.split("."):
        found = found.all_members.get(name) if isinstance(found, Object) else None
        while isinstance(found, Alias):
            if not found.target_path.startswith("monai_wsss."):
                return None
            try:
                found = found.target if found.resolved else found.modules_collection[found.target_path]
            except KeyError:
                return None
    return found


def _rewrite(scope: Object, package: Module, public: set[str]) -> None:
    if scope.docstring is not None:
        scope.docstring.value = _markdown(scope.docstring.value, scope, package, public)
    for member in scope.members.values():
        if not isinstance(member, Alias):
            _rewrite(member, package, public)


def _markdown(text: str, scope: Object, package: Module, public: set[str]) -> str:
    def link(role: re.Match[str]) -> str:
        short, name = role.groups()
        label = name.rpartition(".")[2] if short else name
        found = _meaning(name, scope, package)
        if found is None or not _is_shown(found, public):
            return f"`{label}`"
        return f"[`{label}`][{found.canonical_path}]"

    lines = []
    for line in ROLE.sub(link, text).splitlines():
        if line.strip() == "Example:":
            line = line.replace("Example:", "Examples:")  # the word that Griffe knows
        is_code = line.startswith("    ") and not _in_section(lines)
        lines.append(line if is_code or ">>>" in line else _escape(line))
    return "\n".join(lines)


def _in_section(lines: list[str]) -> bool:
    """Tell whether the next indented line belongs to a section such as `Args:`, and so is text, not code."""
    for line in reversed(lines):
        if line and not line.startswith(" "):
            return bool(re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes|Note|Warning):", line))
    return False


def _escape(line: str) -> str:
    parts = CODE.split(line)
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def _meaning(name: str, scope: Object, package: Module) -> Object | None:
    """Give what a name in a docstring means, from its scope outward."""
    if name.startswith("monai_wsss."):
        return _follow(package, name.removeprefix("monai_wsss."))
    around: Object | None = scope
    while around is not None:
        if (found := _follow(around, name)) is not None:
            return found
        around = around.parent if isinstance(around.parent, Object) else None
    return None


def _is_shown(found: Object, public: set[str]) -> bool:
    """Tell whether a page shows it: a public name, its module, or a public member of a public class."""
    path = found.canonical_path
    if path in public:
        return True
    inner = found.parent is not None and found.parent.is_class and path.rpartition(".")[0] in public
    return inner and found.docstring is not None and not found.name.startswith("_")
