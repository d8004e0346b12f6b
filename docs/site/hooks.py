# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Gather the pages of the documentation site: hooks of MkDocs, which by itself takes files from one folder only.

Nothing is written twice. A document keeps its path in the repository, so its links to other documents hold as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "docs/**/*.md",
    "docs/images/*",
    "docs/results/runs/mutants/verdicts.jsonl",
    "bundles/*/docs/*",
    "bundles/*/LICENSE",
    "integrations/**/README.md",
)
"""Documents, and the files that they link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's documents, the tutorials, and a page per room of the package."""
    for path in sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT).as_posix()
        file = File.generated(config, name, abs_src_path=str(path))
        if path.suffix in ("", ".cff"):
            file.dest_uri = f"{name}.txt"  # so that browsers show it
        files.append(file)
    for path in sorted(ROOT.glob("tutorials/*.py")):
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=tutorial_page(path)))
    for path in sorted(ROOT.glob("monai_wsss/*/__init__.py")):
        if "__all__" in path.read_text(encoding="utf-8"):
            room = path.parent.name
            files.append(File.generated(config, f"api/{room}.md", content=f"::: monai_wsss.{room}\n"))
    return files


def tutorial_page(path: Path) -> str:
    """Write a script in the percent format as Markdown, without its license."""
    notebook = jupytext.read(path)
    del notebook.cells[0]
    return jupytext.writes(notebook, "md")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Turn links to scripts and modules, which are no pages, to the pages that are made of them."""
    markdown = re.sub(r"\]\(((?:\.\./)*tutorials/\w+)\.py\)", r"](\1.md)", markdown)
    return re.sub(r"\]\((?:\.\./)*monai_wsss/(\w+)/(\w+)\.py\)", r"][monai_wsss.\1.\2]", markdown)
