# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Whether a run can write its results, before anything is computed."""

from __future__ import annotations

import os

from monai_wsss._files import atomic_path, make_directory

__all__ = ["check_output_dir"]


def check_output_dir(path: str | os.PathLike[str]) -> None:
    """Make an output folder and write a file there that goes at once, so that a run fails before it has begun.

    TensorBoard's handler, for one, would stop with an error of its own in a folder that cannot be written.

    Raises:
        DataError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> check_output_dir(folder)
        >>> os.listdir(folder)
        []
    """
    folder = make_directory(path)
    with atomic_path(folder / "probe") as temporary:
        temporary.touch()
    (folder / "probe").unlink(missing_ok=True)
