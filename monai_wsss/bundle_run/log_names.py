# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of DICOM files and folders, which may be those of patients, out of logs and sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.modalities import SEQUENCES, canonical_modality

__all__ = ["NameFilter", "hidden_names"]


_SHORT = 3  # digits of a number that is none of a patient, but of a series or an image


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


def _may_name(word: str) -> bool:
    """Tell whether a name may be that of a patient: sequences and short numbers are not."""
    return canonical_modality(word) not in SEQUENCES and not (word.isdigit() and len(word) <= _SHORT)


class NameFilter(logging.Filter):
    """Replace names in every record; use it on handlers.

    Args:
        hidden: what to replace, and by what.
    """

    def __init__(self, hidden: Mapping[str, str]) -> None:
        super().__init__()
        self._paths = sorted((name for name in hidden if re.search(r"[\s/\\,;:()'\"]", name)), key=len, reverse=True)
        self._hidden = dict(hidden)

    def clean(self, text: str) -> str:
        """Replace the names in a text."""
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
