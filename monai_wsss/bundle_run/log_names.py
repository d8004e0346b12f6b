# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of DICOM files and folders, which may be those of patients, out of logs and sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from monai_wsss.data.input_cases import InputCase

__all__ = ["NameFilter", "hidden_names"]


def hidden_names(cases: Sequence[InputCase]) -> dict[str, str]:
    """Give, per path or name that no log may show, the name of its case."""
    hidden: dict[str, str] = {}
    for case in cases:
        if case.kind == "dicom":
            for file in case.all_files:
                hidden |= dict.fromkeys((str(file), str(file.parent)), case.name)
                hidden.setdefault(file.name, "a file")
                hidden.setdefault(file.parent.name, case.name)
    return hidden


class NameFilter(logging.Filter):
    """Replace names in every record; use it on handlers.

    Args:
        hidden: what to replace, and by what.
    """

    def __init__(self, hidden: Mapping[str, str]) -> None:
        super().__init__()
        self._paths = sorted((name for name in hidden if "/" in name or "\\" in name), key=len, reverse=True)
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
