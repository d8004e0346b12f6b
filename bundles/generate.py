# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Write the files that all bundles have in common: `make bundles`, after a change in bundles/source/.

A bundle is complete in itself, so that MONAI's tools and users find everything in its `configs/`.  What is the same in
all of them has its source here once:

    source/common.json       fragments of each configuration file, by name
    source/<bundle>.json     each file of one bundle: what is its own, and `"<name>"` where a fragment goes
    source/logging.conf, ../LICENSE    copied

`"<name>": {"train#sampler": …}` says what a bundle changes in the fragment: ids as in MONAI's overlays, `"<absent>"` to
leave one out, and `"train#handlers#0+"` to add an item to a list after its item 0.  `<bundle>` in a text is the name of
the bundle.  Fragments of `"all"` may go into any file.  Other overlays, metadata, README and weights are written by
hand, but for the numbers in metadata and README, which `docs/results/generate.py` writes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

BUNDLES = Path(__file__).parent
SOURCE = BUNDLES / "source"


def generate() -> dict[Path, str]:
    """Give the content of every generated file by its path."""
    fragments = _read(SOURCE / "common.json")
    copied = {
        "LICENSE": (BUNDLES.parent / "LICENSE").read_text(encoding="utf-8"),
        "configs/logging.conf": (SOURCE / "logging.conf").read_text(encoding="utf-8"),
    }
    content = {}
    for path in sorted(SOURCE.glob("*_segmentation.json")):
        bundle = BUNDLES / path.stem
        content |= {bundle / name: text for name, text in copied.items()}
        for name, own in _read(path).items():
            config = _assemble(own, {**fragments["all"], **fragments.get(name, {})})
            text = json.dumps(config, indent=4, ensure_ascii=False).replace("<bundle>", path.stem)
            content[bundle / "configs" / f"{name}.json"] = text + "\n"
    return content


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _assemble(own: dict[str, Any], fragments: dict[str, Any]) -> dict[str, Any]:
    """Put the fragments in their places."""
    config: dict[str, Any] = {}
    for key, value in own.items():
        if key.startswith("<"):
            fragment = copy.deepcopy(fragments[key.strip("<>")])
            for name, change in value.items():
                _change(fragment, name, change)
            config |= fragment
        else:
            config[key] = value
    return config


def _change(fragment: Any, name: str, value: Any) -> None:
    """Set, add or leave out the item of an id such as ``train#handlers#0``; keys of overlays are ids themselves."""
    keys = list(fragment) if isinstance(fragment, dict) else [str(index) for index in range(len(fragment))]
    above = next((key for key in keys if name.startswith(f"{key}#")), None)
    if above is not None:
        part = fragment[above] if isinstance(fragment, dict) else fragment[int(above)]
        _change(part, name.removeprefix(f"{above}#"), value)
    elif name.endswith("+") and isinstance(fragment, list):
        fragment.insert(int(name.removesuffix("+")) + 1, value)
    elif value == "<absent>":
        del fragment[name if isinstance(fragment, dict) else int(name)]
    else:
        fragment[name if isinstance(fragment, dict) else int(name)] = value


def main() -> None:
    """Write the files, or tell with `--check` which differ."""
    parser = argparse.ArgumentParser(description="Write the files that all bundles have in common.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not as generated")
    check = parser.parse_args().check
    content = generate()
    differing = [path for path, text in content.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in differing:
        if not check:
            path.write_text(content[path], encoding="utf-8")
        sys.stdout.write(f"{'differs' if check else 'written'}: {path.relative_to(BUNDLES)}\n")
    raise SystemExit(1 if check and differing else 0)


if __name__ == "__main__":
    main()
