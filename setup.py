# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Put the bundles into the wheel: their folder stands beside the package in the sources, and inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("LICENSE", "configs/*.json", "configs/logging.conf", "docs/*", "models/*.pt", "models/run.json")


class BuildWithBundles(build_py):
    """Copy what a bundle ships to ``monai_wsss/bundles``, but no result of a run in the sources."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        root = Path(__file__).parent / "bundles"
        for bundle in sorted(root.glob("*_segmentation")):
            for file in (file for pattern in SHIPPED for file in sorted(bundle.glob(pattern))):
                target = Path(self.build_lib) / "monai_wsss" / "bundles" / file.relative_to(root)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target), preserve_mode=False)


setup(cmdclass={"build_py": BuildWithBundles})
