# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Static checks of a bundle's folder: files are read, nothing in them is executed.

The checks compare layout, metadata, weights, README and configurations with MONAI's bundle specification, with what
MONAI's model zoo asks for, and with this project's own rules (docs/architecture.md, "Bundles").  Each fault is one
sentence.  Besides, the tests run every bundle (tests/test_every_bundle.py).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.bundle_scan.config_rules import inference_faults, training_faults
from monai_wsss.bundle_scan.config_scan import scan_expressions
from monai_wsss.bundle_scan.other_files import bundle_files, foreign_faults, hidden_faults, logging_faults

__all__ = ["check_bundle", "metadata_schema", "scan_bundle"]

_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/logging.conf",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/multi_gpu_train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
_LARGEST = 25 * 2**20
_TASKS = ("segmentation", "classification", "detection", "annotation")
# Folders of one machine or one person. In prose, `/my/data` and `/path/to` are plain placeholders.
_PERSONAL = (
    r"(?<![\w./~-])(?:~/|[A-Za-z]:\\|/(?:home|Users|root|workspace|work|mnt|media|tmp|var|opt|scratch|private|srv)/)"
    r"[^\s'\"`]*"
)
_ABSOLUTE = r"(?<=\")/\w[^\"]*"
_SCHEMAS = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
    "https://project-monai.github.io/schema/meta_schema_20240725.json",
)
_METADATA_KEYS = (
    "changelog name intended_use weights_license data_source image_classes label_classes pred_classes eval_metrics "
    "references"
)
_README_HEADINGS = {
    "the data": r"\bdata\b",
    "the performance": r"performance|results",
    "the commands": r"command|usage|how to run",
    "the limitations": r"limit",
}
_README_COMMANDS = {
    "training": (r"monai\.bundle run", r"^(?!.*(evaluate|multi_gpu)).*configs/train\.json"),
    "evaluation": (r"monai\.bundle run", r"configs/evaluate\.json"),
    "inference": (r"monai\.bundle run", r"configs/inference\.json"),
    "multi-GPU training": (r"\btorchrun\b", r"configs/multi_gpu_train\.json"),
    "your own data (`--dataset_dir`)": (r"monai\.bundle run", r"--dataset_dir"),
}
_README_WORDS = {
    "whether TorchScript is supported": r"TorchScript",
    "whether TensorRT is supported": r"TensorRT",
    "that it is for research use only": r"research[- ]use|for research|not for (clinical|diagnostic)",
}


def check_bundle(path: str | os.PathLike[str]) -> list[str]:
    """Check a bundle's files without executing anything in them.

    Args:
        path: the bundle's folder, ``<data>_<method>_segmentation``.

    Returns:
        One sentence per fault, beginning with the file; empty for a bundle without faults.

    Raises:
        DataError: there is no such folder.
        ModuleNotFoundError: jsonschema is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "brain_cam_segmentation"
        >>> folder.mkdir()
        >>> check_bundle(folder)[0]
        'LICENSE is missing.'
    """
    root = Path(path).resolve()
    if not root.is_dir():
        raise DataError(f"There is no folder {path}: give the folder of a bundle, which holds configs/ and models/.")
    configs, faults = _read_configs(root)
    faults += _layout_faults(root)
    faults += foreign_faults(root)
    faults += _personal_path_faults(root)
    faults += _weight_faults(root / "models" / "model.pt") or _checksum_faults(root)
    faults += logging_faults(root)
    faults += hidden_faults(root)
    metadata = configs.get("metadata.json")
    if metadata is not None:
        faults += _metadata_faults(metadata)
    faults += _readme_faults(root / "docs" / "README.md", metadata or {})
    for name, config in configs.items():
        faults += [f"configs/{name}: {fault}" for fault in scan_expressions(config)]
    faults += training_faults(configs) + inference_faults(configs)
    return list(dict.fromkeys(faults))


scan_bundle = check_bundle
"""Another name of :func:`check_bundle`."""


def metadata_schema() -> dict[str, Any]:
    """Read the JSON schema of ``metadata.json``: MONAI's meta_schema_20240725 in our own words, for use offline.

    Example:
        >>> "network_data_format" in metadata_schema()["required"]
        True
    """
    text = resources.files("monai_wsss.bundle_scan").joinpath("metadata_schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


# ---- files -----------------------------------------------------------------------------------------------------------


def _layout_faults(root: Path) -> list[str]:
    faults = [f"{name} is missing." for name in _FILES if not (root / name).is_file()]
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", root.name) or not any(task in root.name for task in _TASKS):
        faults.append(
            f"The folder is called {root.name}: use lower_snake_case <data>_<method>_segmentation, from which other "
            "programs read the task."
        )
    for name, file in bundle_files(root):
        if not file.is_file():
            continue
        if file.stat().st_size > _LARGEST:
            faults.append(f"{name} is larger than 25 MB: a bundle's files stay below.")
        if name in ("LICENSE", "docs/data_license.txt") and not file.read_bytes().strip():
            faults.append(f"{name} is empty: state the license.")
    license_file = root / "LICENSE"
    if license_file.is_file() and b"Apache License" not in license_file.read_bytes():
        faults.append("LICENSE is not the Apache License 2.0, under which our bundles are.")
    return faults


def _personal_path_faults(root: Path) -> list[str]:
    faults = []
    for name, file in bundle_files(root):
        if file.is_file() and file.suffix in (".json", ".md", ".txt", ".conf"):
            pattern = f"{_PERSONAL}|{_ABSOLUTE}" if file.suffix == ".json" else _PERSONAL
            if found := re.search(pattern, file.read_text(encoding="utf-8", errors="replace")):
                faults.append(f"{name} names {found[0]}, a path of one machine: write it relative to the bundle.")
    return faults


def _read_configs(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the JSON files of ``configs/``: their contents by name, and the faults of the files."""
    configs, faults = {}, []
    for file in sorted(path for path in (root / "configs").glob("*.json") if path.is_file()):
        try:
            text = file.read_text(encoding="utf-8")
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            faults.append(f"configs/{file.name} is no JSON ({error}): correct it.")
            continue
        if not isinstance(content, dict):
            faults.append(f"configs/{file.name} holds no dictionary: a configuration maps ids to content.")
            continue
        configs[file.name] = content
        forms = {json.dumps(content, indent=4, ensure_ascii=ascii_only) + "\n" for ascii_only in (True, False)}
        if text not in forms:
            faults.append(f"configs/{file.name} is not indented by 4 with a newline at its end: format it so.")
    return configs, faults


def _weight_faults(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types of errors here
        return ["models/model.pt does not load with weights_only=True: save the network's state dict and nothing else."]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(tensor) for tensor in content.values()):
        return ["models/model.pt is not a flat name -> tensor table: save the network's state dict and nothing else."]
    # Members of an ensemble have healthy levels of their own, which were never measured.
    named = {name: tensor for name, tensor in content.items() if not re.search(r"\.negative_\w+$", name)}
    broken = [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]
    return [f"models/model.pt holds NaN or infinite values in {', '.join(broken)}: train anew."] if broken else []


def _checksum_faults(root: Path) -> list[str]:
    readme, weights = root / "docs" / "README.md", root / "models" / "model.pt"
    if not (readme.is_file() and weights.is_file()):
        return []
    stated = re.findall(r"\b[0-9a-f]{64}\b", readme.read_text(encoding="utf-8", errors="replace"))
    shipped = {file_sha256(path) for path in weights.parent.glob("*.pt")}
    if set(stated) <= shipped:
        return []
    return ["docs/README.md states another SHA-256 than that of the weights in models/."]


# ---- metadata and README ---------------------------------------------------------------------------------------------


def _metadata_faults(metadata: dict[str, Any]) -> list[str]:
    faults = [f"`{key}` is missing." for key in _METADATA_KEYS.split() if not metadata.get(key)]
    faults += _schema_faults(metadata)
    if metadata.get("changelog") and metadata.get("version") not in metadata["changelog"]:
        faults.append(f"`changelog` lacks the version {metadata.get('version')}: say what is new in it.")
    if "schema" in metadata and metadata["schema"] not in _SCHEMAS:
        faults.append(f"`schema` is {metadata['schema']}: the current one is {_SCHEMAS[0]}.")
    if "optional_packages_version" in metadata:
        faults.append("`optional_packages_version` is of an old schema: use `required_packages_version`.")
    for key in ("monai_version", "pytorch_version", "numpy_version"):
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?(rc\d+)?", str(metadata.get(key, "0.0"))):
            faults.append(f"`{key}` is {metadata[key]}: give the plain version without a build such as +cpu.")
    network = metadata.get("network_data_format", {})
    for direction, name in (("inputs", "image"), ("outputs", "pred")):
        if network and name not in network.get(direction, {}):
            faults.append(f"`network_data_format` lacks {direction}#{name}, which MONAI's tools look for.")
    return [f"configs/metadata.json: {fault}" for fault in faults]


def _schema_faults(metadata: dict[str, Any]) -> list[str]:
    try:
        from jsonschema import Draft201909Validator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Checking a bundle's metadata needs jsonschema: install it with `pip install 'monai-wsss[bundle]'`."
        ) from error
    errors = Draft201909Validator(metadata_schema()).iter_errors(metadata)
    return [f"`{'#'.join(map(str, error.absolute_path)) or 'it'}`: {error.message}." for error in errors]


def _readme_faults(path: Path, metadata: dict[str, Any]) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    commands = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    faults = [
        f"has no heading for {part}"
        for part, pattern in _README_HEADINGS.items()
        if not any(re.search(pattern, heading, flags=re.IGNORECASE) for heading in headings)
    ]
    faults += [
        f"shows no command for {task}"
        for task, patterns in _README_COMMANDS.items()
        if not any(all(re.search(pattern, command) for pattern in patterns) for command in commands)
    ]
    faults += [
        f"does not say {what}"
        for what, pattern in _README_WORDS.items()
        if not re.search(pattern, text, flags=re.IGNORECASE)
    ]
    author = re.match(r"\w+", str((metadata.get("references") or [""])[0]))
    if author and author[0] not in text:
        faults.append(f"does not name the paper that it follows, {author[0]} in metadata.json")
    faults += _performance_faults(_table_cells(prose), metadata.get("eval_metrics") or {})
    return [f"docs/README.md {fault}." for fault in faults]


def _table_cells(text: str) -> dict[tuple[str, str], str]:
    """Give the cells of all Markdown tables by (first cell of the row, head of the column) and the other way round."""
    cells: dict[tuple[str, str], str] = {}
    head: list[str] = []
    for line in text.splitlines():
        row = [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")] if "|" in line else []
        if not row:
            head = []
        elif not head:
            head = row
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in row):
            for column, cell in zip(head[1:], row[1:], strict=False):
                cells[row[0], column] = cells[column, row[0]] = cell
    return cells


def _performance_faults(cells: dict[tuple[str, str], str], metrics: dict[str, Any]) -> Iterator[str]:
    """Compare each number of ``eval_metrics`` with the README's tables, rounded to the digits shown there."""
    for block, values in metrics.items():
        for metric, value in values.items() if isinstance(values, dict) else ():
            shown = re.match(r"-?\d+(?:\.(\d+))?", cells.get((metric, block), ""))
            if shown is None:
                yield f"has no table cell for `{metric}` of `{block}`, which metadata.json states as {value}"
            elif not math.isclose(float(shown[0]), value, rel_tol=0, abs_tol=0.5001 * 10 ** -len(shown[1] or "")):
                yield f"gives `{metric}` of `{block}` as {shown[0]}, metadata.json as {value}"
