# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of files, folders, cases and subjects, which may be those of patients, out of logs, sentences and pages."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai_wsss.data.datalist import read_content
from monai_wsss.data.datalist_checks import placed_items
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.modalities import SEQUENCES, canonical_modality

__all__ = ["NameFilter", "filter_of_datalist", "hidden_names"]

_SHORT = 3  # digits of a number that is none of a patient, but of a series or an image
_START = r"(?:[A-Za-z]:[/\\]|\\\\|~?/|\.{1,2}/)"
_REST = r"[^\s,;:()'\"]"
_ANY_PATH = rf"(?<='){_START}[^']*(?=')|(?<=\"){_START}[^\"]*(?=\")|(?<![\w./]){_START}{_REST}+|"
_ANY_PATH += rf"{_REST}+[/\\]{_REST}*\.[A-Za-z]\w*"
"""A path in quotation marks, one that begins as such, or one to a file with a suffix."""


def hidden_names(cases: Sequence[InputCase], root: Path, damaged: Sequence[tuple[str, Path]] = ()) -> dict[str, str]:
    """Give, per path or name that no log may show, what stands in its place.

    Args:
        cases: those from DICOM count.
        root: the input; names of folders above it are the user's own words.
        damaged: name and path of further files.
    """
    hidden: dict[str, str] = {}
    files = [(case.name, file) for case in cases if case.kind == "dicom" for file in case.all_files]
    for name, file in [*files, *damaged]:
        hidden |= {str(file): name, str(file.parent): name}
        if _may_name(file.name):
            hidden.setdefault(file.name, "a file")
        for folder in file.parents:
            if folder == root or root not in folder.parents:
                break
            hidden.setdefault(str(folder), "a folder")
            if _may_name(folder.name):
                hidden.setdefault(folder.name, "a folder")
    hidden.pop(str(root), None)
    return hidden


def filter_of_datalist(datalist: Path, *folders: Path) -> NameFilter:
    """Give the filter of all that a datalist names: cases, subjects, sources, volumes and files; and of every path.

    Args:
        datalist: path of the ``datalist.json``.
        folders: further folders that hold files named as cases are; that of the datalist is one anyway.
    """
    hidden: dict[str, str] = {}
    for _, _, item in placed_items(read_content(datalist)):
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        for file in [*files, *(item[key] for key in ("mask", "region") if key in item)]:
            for name in {file, os.path.normpath(datalist.parent / file), Path(file).name}:
                hidden.setdefault(str(name), "a file")
        words = [str(item[key]) for key in ("id", "subject", "source", "statistics", "volume") if key in item]
        hidden |= {word: "a case" for word in words if _may_name(word) and len(word) > 1}
    for folder in (datalist.parent, *folders):
        # Else a path that breaks off at a space in the name of a folder would be known up to there alone.
        hidden |= {f"{one}{end}": "a folder" for one in (folder.absolute(), folder.resolve()) for end in ("", os.sep)}
    return NameFilter(hidden, any_path="a file")


def _may_name(word: str) -> bool:
    """Tell whether a name may be that of a patient: sequences and short numbers are not."""
    return canonical_modality(word) not in SEQUENCES and not (word.isdigit() and len(word) <= _SHORT)


class NameFilter(logging.Filter):
    """Replace names in every record; use it on handlers.

    Args:
        hidden: what to replace, and by what.  Whole words are replaced, and paths wherever they stand.
        any_path: what stands for every path, whether it is among the names or not; names are then replaced inside of
            longer words too, and one that ends in a slash is a folder with all that lies in it.  None for neither.
    """

    def __init__(self, hidden: Mapping[str, str], any_path: str | None = None) -> None:
        super().__init__()
        self._paths = sorted((name for name in hidden if re.search(r"[\s/\\,;:()'\"]", name)), key=len, reverse=True)
        self._hidden = dict(hidden)
        self._any_path = any_path

    def clean(self, text: str) -> str:
        """Replace the names in a text."""
        if self._any_path is not None:
            return self._clean_anywhere(text, self._any_path)
        for path in self._paths:
            if path in text:
                text = text.replace(path, self._hidden[path])
        return re.sub(r"[^\s,;:()'\"]+", lambda word: self._hidden.get(word[0], word[0]), text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the names in a record, which always passes."""
        record.msg, record.args = self.clean(record.getMessage()), None
        return True

    @contextmanager
    def on_all_handlers(self) -> Iterator[None]:
        """Use the filter on the handlers of the package's logger and of the root."""
        handlers = [*logging.getLogger("monai_wsss").handlers, *logging.getLogger().handlers]
        for handler in handlers:
            handler.addFilter(self)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(self)

    def _clean_anywhere(self, text: str, any_path: str) -> str:
        """Replace names and paths at once, so that no word that replaces one is replaced in turn."""
        patterns = []
        for name in sorted((name for name in self._hidden if name in text), key=len, reverse=True):
            end = f"{_REST}*" if name.endswith(("/", os.sep)) else "(?![A-Za-z0-9])"
            patterns.append(f"(?<![A-Za-z0-9]){re.escape(name)}{end}")
        pattern = "|".join([*patterns, _ANY_PATH])
        return re.sub(pattern, lambda found: self._hidden.get(found[0], any_path), text)
