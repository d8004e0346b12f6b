# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Workers of this process, in place of Ray's: work is sent to them, done in another order, and some of it twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from monai_wsss import _spread
from monai_wsss._spread import Make, RayWorkers


class WorkersHere(RayWorkers):
    """Two workers; each item is done twice, as after a kill, the last one first."""

    def count(self, *, gpu: bool) -> int:
        return 0 if gpu else 2

    def each(
        self, make: Make, items: Sequence[Any], *, gpu: bool, lost: Callable[[int], Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        assert not gpu
        sent = pickle.dumps(make)
        for number in reversed(range(len(items))):
            item = pickle.dumps(items[number])
            pickle.loads(sent)("cpu")(pickle.loads(item))
            yield number, pickle.loads(sent)("cpu")(pickle.loads(item))


@contextmanager
def workers_here() -> Iterator[None]:
    """Spread what is inside over workers of this process."""
    # What `over_ray` sets, without Ray.
    token = _spread._active.set(WorkersHere())
    try:
        yield
    finally:
        # The same, undone.
        _spread._active.reset(token)
