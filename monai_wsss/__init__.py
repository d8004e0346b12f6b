# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Image-level labels in, pixel masks out: weakly supervised segmentation for MONAI."""

from importlib import import_module

__version__ = "0.1.0"

ROOMS = (
    "benchmark", "bundle_run", "bundle_scan", "cams", "data", "engines", "inferers", "losses", "methods",
    "metrics", "networks", "refinement", "reports", "transforms",
)  # fmt: skip

__all__ = [*ROOMS, "__version__"]


def __getattr__(name: str) -> object:
    """Load a room when it is first named, so that ``import monai_wsss`` and the command line's help stay quick."""
    if name in ROOMS:
        return import_module(f"monai_wsss.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
