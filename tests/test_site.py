# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The documentation site: every document and every public name has its page.

``make docs`` builds the site, and ends with an error where a link leads nowhere; its programs are in the extra
``docs``.  Tests of the parts that make pages are skipped where that is not installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]


class Loader(yaml.SafeLoader):
    """Reads over the tags by which MkDocs names functions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def named(nav: object) -> list[str]:
    """The pages and folders of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [name for entry in (nav.values() if isinstance(nav, dict) else nav) for name in named(entry)]


@pytest.fixture(scope="module")
def settings() -> dict:
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_document_has_a_place_in_the_navigation(settings):
    places = set(named(settings["nav"]))
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix().replace("README.md", "index.md")
        assert name in places or f"{name.rpartition('/')[0]}/" in places, name


def test_a_broken_link_is_an_error(settings):
    assert settings["strict"] is True
    assert set(settings["validation"]["links"].values()) == {"warn"}


def test_nothing_is_fetched_from_elsewhere(settings):
    assert settings["theme"]["font"] is False
    assert "offline" not in settings["plugins"]  # its pages load a script from unpkg.com
    assert settings["use_directory_urls"] is False  # so that pages open from the disk
    assert "http" not in str(settings["extra_css"])


def test_every_public_name_is_on_the_page_of_its_room(hooks):
    names = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    for room in {name.split(".")[1] for name in names}:
        shown = set(re.findall(r'"(\w+)"', hooks.room_page(room)))
        assert shown == {name.split(".")[2] for name in names if name.startswith(f"monai_wsss.{room}.")}


def test_links_turn_to_the_pages(hooks):
    text = "[a](../../../integrations/README.md) [b](data_license.txt) [c](https://a.b)\n```\n[d](e.md)\n```\n"
    turned = hooks.turn_links(text, "bundles/brain_mri_cam_segmentation/docs/README.md")
    links = "[a](../integrations/index.md) [b](brain_mri_cam_segmentation/data_license.txt) [c](https://a.b)"
    assert turned == f"{links}\n```\n[d](e.md)\n```\n"
    with pytest.raises(ValueError, match="the site has no page for nowhere"):
        hooks.turn_links("[a](nowhere/b.txt)", "README.md")
    assert (
        hooks.turn_links("[a](monai_wsss/methods/cam.py)", "README.md") == "[a](api/methods.md#monai_wsss.methods.cam)"
    )
    assert hooks.turn_links("[a](docs/results/lgg_cam.md#b)", "README.md") == "[a](results/lgg_cam.md#b)"


def test_a_tutorial_becomes_text_and_code(hooks):
    page = hooks.tutorial_page("# licensed\n\n# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nprint(1)\n")
    assert page == "# Title\n\nText.\n\n```python\nprint(1)\n```\n"
