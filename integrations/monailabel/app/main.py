# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A MONAI Label app that offers the bundles of a folder: masks by ``POST /infer``.

    monailabel start_server --app integrations/monailabel/app --studies STUDIES \\
        --conf bundles bundles --conf models brain_mri_cam_segmentation
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.infer.bundle import BundleInferTask


class ImageLevelTraining(TrainTask):
    """Refuse to train here: viewers draw outlines, and these methods learn from labels of whole images."""

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Say in one sentence what to do instead."""
        # MONAI Label's own exception loses its message on the way to the client and to the log.
        raise HTTPException(
            400,
            "This model learns from labels of whole images, not from outlines: list the images and their labels in a "
            "table and run `monai-wsss prepare folder`, then `monai-wsss train`.",
        )


class MyApp(MONAILabelApp):
    """The bundles named by ``--conf models``, or all in the folder ``--conf bundles``.

    Args:
        app_dir: this folder.
        studies: folder of images, or a DICOMweb server.
        conf: what the command line says.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folder = Path(conf.get("bundles", Path(app_dir).parents[2] / "bundles")).resolve()
        names = [name for name in conf.get("models", "").split(",") if name]
        self.bundles = {
            path.name: path
            for path in sorted(folder.iterdir())
            if (path / "configs" / "inference.json").is_file() and (not names or path.name in names)
        }
        super().__init__(app_dir, studies, conf, name="monai_wsss", description="Masks from image-level labels")

    def init_infers(self) -> dict[str, InferTask]:
        """Offer each bundle; studies are volumes, whatever the size of the images that trained a network."""
        tasks: dict[str, InferTask] = {}
        for name, path in self.bundles.items():
            task = BundleInferTask(str(path), self.conf)
            metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
            if metadata["network_data_format"]["inputs"]["image"]["modality"] == "MR":
                task.dimension = 3
            tasks[name] = task
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Offer what refuses to train."""
        return {name: ImageLevelTraining(f"Training of {name}") for name in self.bundles}
