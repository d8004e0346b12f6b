# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Faults of a data set, collected so that all of them are told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from monai_wsss._checks import DataError
from monai_wsss._files import WriteError

__all__ = ["Faults"]

_MOST_OF_A_KIND = 20
_DETAIL = re.compile(r'"[^"]*"|\S*[/\\]\S*|[\d.]+')
"""Parts in which sentences on faults of one kind differ: quoted texts, paths and numbers."""


@dataclass
class Faults:
    """Collects the faults of a data set, so that all are told at once, not one per hour of preparation.

    Attributes:
        sentences: one per fault.

    Example:
        >>> faults = Faults()
        >>> for name in ("a.png", "b.png"):
        ...     with faults.gather():
        ...         raise DataError(f"{name} is empty: export it again.")
        >>> faults.sentences
        ['a.png is empty: export it again.', 'b.png is empty: export it again.']
    """

    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Keep the sentence of a ``DataError`` that the block raises; a file that cannot be written ends all."""
        try:
            yield
        except WriteError:
            raise
        except DataError as error:
            self.sentences.append(str(error))

    def add(self, sentence: str) -> None:
        """Keep the sentence of a fault."""
        self.sentences.append(sentence)

    def check(self) -> None:
        """Raise one ``DataError`` with a line per fault, if there are any; of many of a kind the first ones."""
        if not self.sentences:
            return
        kinds: dict[str, list[str]] = {}
        for sentence in self.sentences:
            line = " ".join(sentence.split())
            kinds.setdefault(_DETAIL.sub("", line), []).append(line)
        lines = []
        for sentences in kinds.values():
            lines += sentences[:_MOST_OF_A_KIND]
            more = len(sentences) - _MOST_OF_A_KIND
            lines += [f"{more} more faults are of this kind."] if more > 0 else []
        raise DataError("\n".join(lines))
