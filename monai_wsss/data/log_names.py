# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of files, folders, cases and subjects, which may be those of patients, out of logs, sentences and pages."""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_wsss._files import case_file_name
from monai_wsss.data.datalist import read_content
from monai_wsss.data.datalist_checks import placed_items
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.modalities import SEQUENCES, canonical_modality

__all__ = ["NameFilter", "filter_of_datalist", "hidden_names"]

_SHORT = 3  # digits of a number that is none of a patient, but of a series or an image
_REST = r"[^\s,;:()'\"]"
_FOLDER, _FILE, _OTHERS = "\ue000", "\ue001", 0xE002
"""Private characters that stand for known folders, files and other names while paths are looked for."""
_PRIVATE = "[\ue000-\uf8ff]"
_SUFFIX = r"\.[A-Za-z]\w*"


def _any_path() -> str:
    """Give the pattern of a path, where known names are private characters.

    A path is one in quotation marks, up to the closing one; one that begins as such, up to the suffix of a file, be
    there blanks before it, or else up to a blank; a relative one that ends in a suffix or in a known name.
    """
    start = r"(?<![\w./])(?:[A-Za-z]:[/\\]|\\\\|~?/|\.{1,2}/)"
    head = rf"(?:(?:(?<!{_REST}){_REST}*)?{_FOLDER}[/\\]|{start})(?=[^\s'\"])"
    patterns = []
    for first, last in ("''", '""', "``", "‘’", "“”"):
        patterns.append(rf"(?<={first}){head}.*?(?={last}(?!\w))")
        patterns.append(rf"(?<={first})[^{first}{last}]*[/\\][^{first}{last}]*(?:{_SUFFIX}|{_PRIVATE})(?={last})")
    end = rf"(?:{_FILE}|{_SUFFIX})(?![\w/\\]|[.-]\w)"
    patterns.append(rf"{head}(?:(?:[^'\":]|:(?!\s))*?{end}|{_REST}*)")
    part = r"[^\s,;:()'\"/\\]"
    # One slash alone is sought, from the begin of a part on, else the time would grow with a power of the length.
    patterns.append(rf"(?<!{part}){part}+[/\\]{_REST}*{_SUFFIX}")
    patterns.append(rf"(?<!{part}){part}*[/\\]{_REST}*{_PRIVATE}{_REST}*")
    return "|".join([*patterns, f"{_FOLDER}[/\\\\]?", _PRIVATE])


_ANY_PATH = re.compile(_any_path(), re.DOTALL)


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
    content = read_content(datalist)
    absolute, resolved = os.path.normpath(datalist.parent.absolute()), os.path.realpath(datalist.parent)
    words = {*_texts(list(content.get("statistics") or {}))}
    for _, _, item in placed_items(content):
        for file in (text for key in ("image", "mask", "region") for text in _texts(item.get(key))):
            for name in {file, *(os.path.normpath(os.path.join(folder, file)) for folder in (absolute, resolved))}:
                hidden.setdefault(name, "a file")
            if _may_name(Path(file).name):
                hidden.setdefault(Path(file).name, "a file")
            parents = () if os.path.isabs(file) else Path(file).parent.parts
            hidden |= {f"{part}/": "a folder" for part in parents if _may_name(part)}
        words |= {text for key in ("id", "subject", "source", "statistics", "volume") for text in _texts(item.get(key))}
    hidden |= {word: "a case" for word in words if _may_name(word) and len(word) > 1}
    for directory in (datalist.parent, *folders):
        hidden |= _folder_names(directory)
    return NameFilter(hidden, any_path="a file")


def _texts(value: Any) -> list[str]:
    """Give all texts and numbers in a value of a datalist, which nobody has checked."""
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in _texts(one)]
    if isinstance(value, Mapping):
        return _texts([*value, *value.values()])
    return [] if value is None else [str(value)]


def _folder_names(folder: Path) -> dict[str, str]:
    """Give what a path in a folder may begin with: the folder as typed, as it is, and as seen from those above it."""
    names = {f"{folder}/"}
    for whole in (Path(os.path.normpath(folder.absolute())), folder.resolve()):
        parts = whole.parts[1:]
        names |= {"/".join(parts[first:]) + "/" for first in range(len(parts))}
        names |= {str(whole), f"{whole}/"} if parts else set()
    return dict.fromkeys(names, "a folder")


def _may_name(word: str) -> bool:
    """Tell whether a name may be that of a patient: sequences and short numbers are not."""
    return canonical_modality(word) not in SEQUENCES and not (word.isdigit() and len(word) <= _SHORT)


class NameFilter(logging.Filter):
    """Replace names in every record; use it on handlers.

    Args:
        hidden: what to replace, and by what.  Whole words are replaced, and paths wherever they stand.
        any_path: what stands for every path, whether it is among the names or not.  Where it is given, names are
            replaced inside of longer words too, in any case, Unicode form or escape, and a name that ends in a slash
            is a folder with all that lies in it.  Without it (None), only the names are replaced.
    """

    def __init__(self, hidden: Mapping[str, str], any_path: str | None = None) -> None:
        super().__init__()
        self._paths = sorted((name for name in hidden if re.search(r"[\s/\\,;:()'\"]", name)), key=len, reverse=True)
        self._hidden = dict(hidden)
        self._any_path = any_path
        self._runs = [] if any_path is None else [(_plain_runs(name), name) for name in hidden]

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
        """Replace folders, then names, then paths, by characters that no name holds, and these by words at last."""
        text = re.sub(_PRIVATE, "?", unicodedata.normalize("NFC", text))
        folded = _folded(text)
        spelled = _all_spellings(name for runs, name in self._runs if all(run in folded for run in runs))
        there = [(name, spelling) for name, spelling in spelled if _folded(spelling) in folded]
        others = sorted({*self._hidden.values()} - {any_path})
        sign = {any_path: _FILE} | {value: chr(_OTHERS + number) for number, value in enumerate(others)}
        for signs, chosen in (
            (dict.fromkeys(self._hidden, _FOLDER), [(name, one) for name, one in there if name.endswith("/")]),
            (
                {name: sign[value] for name, value in self._hidden.items()},
                [(name, one) for name, one in there if not name.endswith("/")],
            ),
        ):
            for name, spelling in chosen:
                text = re.sub(_pattern(spelling), signs[name], text, flags=re.IGNORECASE)
        words = {mark: value for value, mark in sign.items()} | {
            f"{_FOLDER}{end}": "a folder" for end in ("", "/", "\\")
        }
        return _ANY_PATH.sub(lambda found: words.get(found[0], any_path), text)


def _plain_runs(name: str) -> list[str]:
    """Give the runs of plain letters and digits in a name, in lower case: every spelling of it has them."""
    return re.findall(r"[a-z0-9]+", unicodedata.normalize("NFC", name).lower())


def _all_spellings(names: Iterable[str]) -> list[tuple[str, str]]:
    """Give (name, one of its spellings) of all names, the longest first."""
    spelled = {(name, one) for name in names for one in _spellings(name) if re.search(r"\w", one)}
    return sorted(spelled, key=lambda each: (-len(each[1]), each))


def _spellings(name: str) -> set[str]:
    """Give a name as it is and in other case, and as JSON, Python and names of files escape these."""
    name = re.sub(_PRIVATE, "?", name.strip())
    cases = {name} if name.isascii() else {name, name.lower(), name.upper()}
    forms = {unicodedata.normalize(form, one) for one in cases for form in ("NFC", "NFD")}
    escaped = {text for one in forms for text in (json.dumps(one)[1:-1], ascii(one)[1:-1], case_file_name(one))}
    return forms | escaped


def _folded(text: str) -> str:
    """Give a text without what :func:`_pattern` does not tell apart."""
    return re.sub(r"\s+", " ", re.sub(r"[/\\]+", "/", text)).lower()


def _pattern(name: str) -> str:
    """Give the pattern of a name, whatever its blanks and slashes are; of a folder, where its end is a slash."""
    pieces = re.split(r"(\s+|[/\\]+)", name.rstrip("/"))
    same = {True: r"\s+", False: r"[/\\]+"}
    inner = "".join(re.escape(one) if number % 2 == 0 else same[one.isspace()] for number, one in enumerate(pieces))
    end = r"(?=[/\\])" if name.endswith("/") else r"(?![\w-])" if os.path.isabs(name) else "(?![A-Za-z0-9])"
    return rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])){inner}{end}"
