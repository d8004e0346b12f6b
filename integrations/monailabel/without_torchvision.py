# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Put an empty torchvision into this environment: MONAI Label imports it, and uses it for nothing that we run."""

import sysconfig
from pathlib import Path

FOLDER = Path(sysconfig.get_path("purelib")) / "torchvision"

FOLDER.mkdir(parents=True, exist_ok=True)
(FOLDER / "__init__.py").write_text("", encoding="utf-8")
(FOLDER / "utils.py").write_text("make_grid = save_image = None\n", encoding="utf-8")
