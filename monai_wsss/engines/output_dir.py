# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whether a run can write its results, before anything is computed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from monai_wsss._files import write_error

__all__ = ["check_output_dir"]


def check_output_dir(path: str | os.PathLike[str]) -> None:
    """Check that an output folder can be written, or made where it does not exist yet; nothing stays.

    TensorBoard's handler, for one, would stop with an error of its own in a folder that cannot be written.

    Raises:
        DataError: the folder cannot be made or written.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> check_output_dir(folder + "/run")
        >>> os.listdir(folder)
        []
    """
    folder = Path(path).absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise write_error(folder, error) from error
