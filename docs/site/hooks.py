# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Make the pages of the documentation site from the repository's own documents: hooks of MkDocs, see `mkdocs.yml`.

Nothing is written twice. A document outside of `docs/` becomes a page at the address that ``address_of`` gives, a room
of the package a page of its docstrings, a tutorial a page of its text and code. Links between documents are those of
the repository; here they are turned to the pages.
"""

from __future__ import annotations

import ast
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "monai_wsss"
ADDRESSES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
    "docs/results/runs": "results/runs.md",
}
"""What stands at the root of the repository, and the folder that gets a page of its own."""
PATTERNS = (
    (r"docs/(.+)/README\.md", r"\1/index.md"),
    (r"docs/(.+)", r"\1"),
    (r"bundles/(\w+)/docs/README\.md", r"bundles/\1.md"),
    (r"bundles/(\w+)/docs/(data_license\.txt)", r"bundles/\1/\2"),
    (r"bundles/(\w+)/LICENSE", r"bundles/\1/LICENSE.txt"),
    (r"integrations/README\.md", r"integrations/index.md"),
    (r"integrations/(\w+)/README\.md", r"integrations/\1.md"),
    (r"tutorials/(\w+)\.py", r"tutorials/\1.md"),
    (r"monai_wsss/(\w+)/(\w+)\.py", r"api/\1.md#monai_wsss.\1.\2"),
)
"""The other documents: a path in the repository, and its address in the site."""
SHARED = (
    "bundles/*/docs/README.md",
    "bundles/*/docs/data_license.txt",
    "bundles/*/LICENSE",
    "integrations/**/README.md",
    "tutorials/*.py",
)


# ---- addresses -------------------------------------------------------------------------------------------------------


def address_of(path: str) -> str | None:
    """Give the address of a file or folder of the repository in the site; None if the site does not have it."""
    if path in ADDRESSES:
        return ADDRESSES[path]
    for pattern, address in PATTERNS:
        if found := re.fullmatch(pattern, path):
            return found.expand(address)
    return None


def turn_links(text: str, path: str) -> str:
    """Turn the links of a document at ``path`` of the repository to the pages of the site."""
    folder = PurePosixPath(path).parent
    here = str(PurePosixPath(address_of(path) or path).parent)

    def turn(link: re.Match[str]) -> str:
        target, _, anchor = link[1].partition("#")
        if not target or re.match(r"\w+:", target):
            return link[0]
        address = address_of(os.path.normpath(folder / target).replace(os.sep, "/"))
        if address is None:
            raise ValueError(f"{path}: the site has no page for {link[1]}; add it to {Path(__file__).name}.")
        address, _, own = address.partition("#")
        turned = os.path.relpath(address, here).replace(os.sep, "/")
        return f"]({turned}{f'#{anchor or own}' if anchor or own else ''})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", turn, part) for part in parts[::2]]
    return "".join(parts)


# ---- pages that are made ---------------------------------------------------------------------------------------------


@cache
def public_modules(room: str) -> tuple[str, dict[str, list[str]]]:
    """Give a room's docstring, and by module the public names that it defines, as the room's `__init__` lists them."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        name.asname or name.name: str(line.module)
        for line in ast.walk(tree)
        if isinstance(line, ast.ImportFrom) and str(line.module).startswith("monai_wsss.")
        for name in line.names
    }
    (names,) = (
        ast.literal_eval(line.value)
        for line in tree.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__"
    )
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(homes[name], []).append(name)
    return ast.get_docstring(tree) or "", dict(sorted(modules.items()))


def room_page(room: str) -> str:
    """Write the page of a room: each module's docstring with its equations, and the public names below it."""
    docstring, modules = public_modules(room)
    lines = [f"# {room}", "", docstring, "", "```python", f"from monai_wsss.{room} import …", "```", ""]
    for module, names in modules.items():
        listed = ", ".join(f'"{name}"' for name in names)
        lines += [f"::: {module}", "    options:", f"      members: [{listed}]", ""]
    return "\n".join(lines)


def tutorial_page(script: str) -> str:
    """Write a script in the percent format as Markdown: its text, and its code between fences."""
    parts = []
    for cell in re.split(r"^# %% ?", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if kind.startswith("[markdown]"):
            parts.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def runs_page() -> str:
    """Write the list of the rows that the tables are made of: a JSON file per row and seed."""
    lines = ["# Runs behind the tables", "", "A file per row and seed, as the benchmark wrote it.", ""]
    runs = ROOT / "docs" / "results" / "runs"
    for table in sorted(path for path in runs.iterdir() if path.is_dir()):
        lines += ["", f"## {table.name}", "", "| row | files |", "|---|---|"]
        rows: dict[str, list[str]] = {}
        for file in sorted(table.rglob("*.json*")):
            link = f"[{file.stem}](runs/{file.relative_to(runs).as_posix()})"
            rows.setdefault(file.parent.name.replace("_", " "), []).append(link)
        lines += [f"| {name} | {', '.join(links)} |" for name, links in rows.items()]
    return "\n".join(lines) + "\n"


def overview(title: str, files: list[File]) -> str:
    """Write the page that lists the pages of a folder by their titles."""
    links = [f"- [{title_of(file)}]({PurePosixPath(file.src_uri).name})" for file in files]
    return "\n".join([f"# {title}", "", *links, ""])


def title_of(file: File) -> str:
    """Give the first heading of a page, without marks."""
    found = re.search(r"^# (.+)$", file.content_string, re.MULTILINE)
    return found[1].replace("`", "") if found else file.name


# ---- hooks -----------------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from outside of `docs/`, the rooms, the tutorials and the runs, and fill the navigation."""
    shared = [path for pattern in SHARED for path in sorted(ROOT.glob(pattern))]
    for path in [*(ROOT / name for name in ADDRESSES), *shared]:
        address = address_of(path.relative_to(ROOT).as_posix())
        if address and path.suffix == ".py":
            files.append(File.generated(config, address, content=tutorial_page(path.read_text(encoding="utf-8"))))
        elif address and path.is_file():
            files.append(File.generated(config, address, abs_src_path=str(path)))
    files.append(File.generated(config, ADDRESSES["docs/results/runs"], content=runs_page()))
    for file in [*files]:
        if file.src_uri.endswith("/README.md"):  # of docs/results, which the site calls index
            files.remove(file)
            index = f"{file.src_uri.removesuffix('README.md')}index.md"
            files.append(File.generated(config, index, abs_src_path=str(file.abs_src_path)))
    for init in sorted(PACKAGE.glob("*/__init__.py")):
        if "__all__" in init.read_text(encoding="utf-8"):
            room = init.parent.name
            files.append(File.generated(config, f"api/{room}.md", content=room_page(room)))
    for folder, title in (("tutorials", "Tutorials"), ("bundles", "Bundles"), ("api", "Rooms")):
        pages = sorted((file for file in files if is_in(file, folder)), key=lambda file: file.src_uri)
        files.append(File.generated(config, f"{folder}/index.md", content=overview(title, pages)))
    named = set(named_pages(config.nav))
    config.nav = [fill(entry, files, named) for entry in config.nav or []]
    return files


def is_in(file: File, folder: str) -> bool:
    """Tell whether a file is a page of a folder."""
    return file.is_documentation_page() and str(PurePosixPath(file.src_uri).parent) == folder


def named_pages(nav: Any) -> list[str]:
    """Give the pages that a navigation names one by one."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav or []
    return [name for entry in entries for name in named_pages(entry)]


def fill(entry: Any, files: Files, named: set[str]) -> Any:
    """Replace the names of folders in a navigation, such as `bundles/`, by their pages that it does not name."""
    if isinstance(entry, dict):
        return {title: fill(value, files, named) for title, value in entry.items()}
    if isinstance(entry, str):
        return pages_of(entry, files, named) if entry.endswith("/") else entry
    filled: list[Any] = []
    for one in entry:
        inner = fill(one, files, named)
        filled += inner if isinstance(one, str) and isinstance(inner, list) else [inner]
    return filled


def pages_of(folder: str, files: Files, named: set[str]) -> list[Any]:
    """Give the pages of a folder for a navigation: its index, then the others in the order of their files."""
    pages = sorted((file for file in files if is_in(file, folder.rstrip("/"))), key=lambda file: file.src_uri)
    pages = [file for file in pages if file.src_uri not in named]
    index = [file.src_uri for file in pages if file.name == "index"]
    return [*index, *({title_of(file): file.src_uri} for file in pages if file.name != "index")]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a document to the pages of the site."""
    source = page.file.abs_src_path
    return turn_links(markdown, Path(source).relative_to(ROOT).as_posix()) if source else markdown
