# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The documentation site: every document and every public name is in it, and it needs no other site.

The tests of the built site are skipped where the extra ``docs`` is not installed; CI has it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//""")


class Loader(yaml.SafeLoader):
    """Reads over the tags by which MkDocs names functions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def named(nav: object) -> list[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [name for entry in (nav.values() if isinstance(nav, dict) else nav) for name in named(entry)]


@pytest.fixture(scope="module")
def settings() -> dict:
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


@pytest.fixture(scope="module")
def public_names() -> list[str]:
    return (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a link that leads nowhere is an error."""
    if not all(map(find_spec, ("mkdocs", "material", "mkdocstrings_handlers", "jupytext"))):
        pytest.skip("the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_every_document_is_in_the_navigation(settings, public_names):
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("bundles/*/docs/*.md")]
    documents += [*ROOT.glob("integrations/**/README.md"), *ROOT.glob("tutorials/*.py")]
    pages = {path.relative_to(ROOT).with_suffix(".md").as_posix() for path in documents}
    pages |= {f"api/{name.split('.')[1]}.md" for name in public_names}
    assert sorted(named(settings["nav"])) == sorted(pages)


def test_what_leads_nowhere_is_an_error(settings):
    assert settings["strict"] is True
    assert {level for part in settings["validation"].values() for level in part.values()} == {"warn"}


def test_settings_fetch_nothing(settings):
    assert settings["theme"]["font"] is False
    assert settings["use_directory_urls"] is False  # so that pages open from the disk
    assert "offline" not in str(settings["plugins"])  # its pages load a script from unpkg.com


@pytest.mark.slow
def test_every_public_name_is_on_the_page_of_its_room(site, public_names):
    shown = set()
    for page in (site / "api").glob("*.html"):
        found = re.findall(r'<h\d id="monai_wsss\.(\w+)\.\w+\.(\w+)"', page.read_text(encoding="utf-8"))
        shown |= {f"monai_wsss.{room}.{name}" for room, name in found}
    assert sorted(shown) == sorted(public_names)


@pytest.mark.slow
def test_pages_fetch_nothing(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if FETCHED.search(page.read_text(encoding="utf-8"))] == []
    assert FETCHED.search('<script src="https://unpkg.com/iframe-worker/shim"></script>')


@pytest.mark.slow
def test_docstrings_become_markdown(site):
    page = (site / "api" / "refinement.html").read_text(encoding="utf-8")
    assert re.search(r'href="#monai_wsss\.refinement\.\w+\.MaskRule"[^>]*><code>MaskRule</code>', page)
    text = re.sub(r"<details.*?</details>|<code>.*?</code>", "", page, flags=re.DOTALL)  # without listings
    assert ":class:`" not in text
    assert "(B, 1, *S)" in text  # a star that is no emphasis


@pytest.mark.slow
def test_tutorials_become_pages(site):
    page = (site / "tutorials" / "01_images_and_labels.html").read_text(encoding="utf-8")
    assert "From a folder of images and a table of labels to masks and a report</h1>" in re.sub(r"<a .*?</a>", "", page)
    assert "Copyright" not in page
    assert "%%" not in page
