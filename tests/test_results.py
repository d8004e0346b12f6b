# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The measured tables are those of the rows that are kept, and the rows hold nothing that they must not."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from monai_wsss.benchmark import Row

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def test_tables_are_written_from_the_kept_rows():
    spec = importlib.util.spec_from_file_location("generate_results", RESULTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {path.name for path in module.PAGES} == {"encoders.md", "cosa.md"}
    for path in module.PAGES:
        page = path.read_text(encoding="utf-8")
        assert module.generate(page) == page, "run `python docs/results/generate.py`"


def test_kept_rows_hold_no_paths_and_no_identifiers():
    for path in (RESULTS / "runs").rglob("*"):
        if path.is_dir():
            continue
        assert path.suffix == ".json"
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        assert set(content["source"]) == {"settings_sha256", "data_sha256"}
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in content["source"].values())
        assert [Row(**row) for row in content["rows"]]
        assert not re.search(r"\"/|\.png|\.npz|\.jpg|\.pt\b", text), path
