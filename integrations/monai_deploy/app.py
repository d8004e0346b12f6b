# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A MONAI Deploy app: DICOM series in, a DICOM segmentation in their frame of reference out, by a bundle of ours.

python integrations/monai_deploy/app.py --input DICOM --bundle bundles/brain_mri_cam_segmentation --out OUT
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

from monai_wsss.bundle_run.dicom_segmentation import write_dicom_segmentation
from monai_wsss.data import read_image

CONTRAST = r"(POST|GD|GAD|CONTRAST|\+ ?C|(?<![A-Z])(CE|KM)(?![A-Z])|T1C)"
PATTERNS = {
    "T1c": rf"(?i)^(?!.*FLAIR)(?=.*{CONTRAST}).*T1.*",
    "T1": rf"(?i)^(?!.*FLAIR)(?!.*{CONTRAST}).*T1.*",
    "T2": r"(?i)^(?!.*FLAIR)(?!.*T1).*T2(?!\*|STAR).*",
    "FLAIR": r"(?i).*FLAIR.*",
}
"""How the description of a series tells its sequence; adapt it to the scanner."""


def files_of(selected: list[Any], name: str) -> list[Path]:
    """Give the files of the series that was selected as one of the network's channels."""
    for study in selected:
        for series in study.selected_series:
            if series.selection_name == name:
                return [Path(one.get_native_sop_instance().filename) for one in series.series.get_sop_instances()]
    raise ValueError(f"No series was found for {name}: adapt the patterns of the descriptions.")


class StackSeries(Operator):
    """Read one series per channel and stack them as the channels of one image, on the grid of the first."""

    def __init__(self, fragment: Application, *args: Any, channels: list[str], **words: Any) -> None:
        self.channels = channels
        super().__init__(fragment, *args, **words)

    def setup(self, spec: OperatorSpec) -> None:
        """Name what comes in and goes out."""
        spec.input("series")
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Stack (x, y, z) arrays along a last axis."""
        selected = op_input.receive("series")
        volumes = []
        for name in self.channels:
            files = files_of(selected, name)
            volumes.append(read_image(files[0].parent, series=files))
        arrays = [np.asarray(volume[0]) for volume in volumes]
        affine = np.asarray(volumes[0].affine)
        alike = (array.shape == arrays[0].shape for array in arrays)
        if not all(alike) or not all(np.allclose(volume.affine, affine, rtol=0, atol=0.01) for volume in volumes):
            raise ValueError("The series lie on several grids: resample them first.")
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spacing": np.linalg.norm(affine[:3, :3], axis=0),
            "spatial_shape": np.asarray(arrays[0].shape),
            "original_channel_dim": -1,
        }
        op_output.emit(Image(np.stack(arrays, axis=-1), meta), "image")


class WriteSegmentation(Operator):
    """Write the mask as a DICOM segmentation of the first series, with the bundle's segment codes."""

    def __init__(self, fragment: Application, *args: Any, metadata: dict[str, Any], out: Path, **words: Any) -> None:
        self.of_bundle, self.out = metadata, out  # `metadata` is a property of Holoscan's operators
        super().__init__(fragment, *args, **words)

    def setup(self, spec: OperatorSpec) -> None:
        """Name what comes in."""
        spec.input("mask")
        spec.input("series")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write ``segmentation.dcm``."""
        image, selected = op_input.receive("mask"), op_input.receive("series")
        form = self.of_bundle["network_data_format"]
        named = form["outputs"]["pred"]["channel_def"]
        first = form["inputs"]["image"]["channel_def"]["0"]
        write_dicom_segmentation(
            self.out / "segmentation.dcm",
            np.swapaxes(image.asnumpy(), 0, 2),
            np.asarray(image.metadata()["affine"]),
            files_of(selected, first),
            [named[number] for number in sorted(named, key=int) if number != "0"],
            algorithm=self.of_bundle["name"][:64],
            codes=self.of_bundle["segment_codes"],
        )


class SegmentStudy(Application):
    """Load, select, stack, segment, write."""

    def __init__(self, source: Path, bundle: Path, out: Path) -> None:
        self.source, self.bundle, self.out = source, bundle, out
        super().__init__()

    def compose(self) -> None:
        """Chain the operators."""
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        channels = list(metadata["network_data_format"]["inputs"]["image"]["channel_def"].values())
        rules = [{"name": name, "conditions": {"SeriesDescription": PATTERNS.get(name, ".*")}} for name in channels]
        # The SDK opens a bundle that is a folder only where it finds no model of a single file.
        context = AppContext({"model": str(self.bundle / "none.ts"), "input": str(self.source)})
        # Without the count the loader would begin again and again.
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=self.source, name="load")
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps({"selections": rules}), name="select")
        stack = StackSeries(self, channels=channels, name="stack")
        infer = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=self.bundle,
            name="infer",
        )
        write = WriteSegmentation(self, metadata=metadata, out=self.out, name="write")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, stack, {("study_selected_series_list", "series")})
        self.add_flow(stack, infer, {("image", "image")})
        self.add_flow(select, write, {("study_selected_series_list", "series")})
        self.add_flow(infer, write, {("pred", "mask")})


def main() -> None:
    """Read the command line and run the app."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="folder of DICOM files, one study")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    app = SegmentStudy(arguments.input.resolve(), arguments.bundle.resolve(), arguments.out.resolve())
    os.chdir(app.bundle)  # the SDK leaves `bundle_root` at ".", where the configuration looks for the weights
    app.run()


if __name__ == "__main__":
    main()
