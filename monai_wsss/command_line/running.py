# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands that put bundles to work, ``predict``, ``train`` and ``bundles``; a test compares rows and functions."""

from __future__ import annotations

from monai_wsss.command_line.arguments import Argument, Command

__all__ = ["RUNNING"]

RUNNING = (
    Command(
        "bundles",
        "list the bundles that come with the package and the terms of their weights; copy or check one",
        "monai-wsss bundles\n"
        "  monai-wsss bundles --copy brain_mri_cam_segmentation --out bundles\n"
        "  monai-wsss bundles --check brain_mri_cam_segmentation",
        function="monai_wsss.bundle_run.manage_bundles",
        arguments=(
            Argument("--copy", "copy this bundle", metavar="NAME"),
            Argument("--out", "folder for the copy (default the working folder)", metavar="DIR"),
            Argument("--check", "check this bundle, or a folder with one, without running it", metavar="NAME"),
        ),
    ),
)
