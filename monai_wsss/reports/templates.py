# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pages from templates of this folder: text is escaped, and a template may include another.

The one script of a page stands in it and is allowed by its hash; nothing else may run, and nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from monai_wsss._files import atomic_path
from monai_wsss.reports.charts import CHART_COLORS, CHART_STYLE, FONTS

__all__ = ["png_text", "write_page"]


def _source(name: str) -> str:
    return resources.files("monai_wsss.reports").joinpath(name).read_text(encoding="utf-8")


def write_page(path: Path, template: str, view: Mapping[str, Any]) -> Path:
    """Write a page, whole or not at all.

    Args:
        path: of the page.
        template: file name of the template.
        view: what the template shows.

    Raises:
        DataError: the page cannot be written.
    """
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    charts = {"style": CHART_STYLE, "colors": CHART_COLORS, "fonts": FONTS}
    script = _source("cases.js.jinja").removesuffix("\n")
    allowed = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    page = environment.get_template(template).render(charts=charts, script_hash=allowed, **view)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def png_text(path: Path) -> str | None:
    """Give a picture as text for a page; None where there is none."""
    content = path.read_bytes() if path.is_file() else b""
    return base64.b64encode(content).decode() if content.startswith(b"\x89PNG") else None
