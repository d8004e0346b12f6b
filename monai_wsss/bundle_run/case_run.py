# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One case of ``monai-wsss predict``: its mask, segmentation, overlay and record, in this process or in a worker."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_wsss._checks import DataError
from monai_wsss._files import WriteError, atomic_path, case_file_name, file_sha256, make_directory, write_json
from monai_wsss._pictures import as_stored
from monai_wsss._spread import check_shared
from monai_wsss.bundle_run.case_reading import CaseReader, ReadCase, size_of
from monai_wsss.bundle_run.dicom_segmentation import has_highdicom, write_dicom_segmentation
from monai_wsss.bundle_run.records import digest_of, record_path
from monai_wsss.bundle_run.runner import SHOWN, BundleRunner, inference_parser, own_error
from monai_wsss.bundle_run.shipped import ShippedBundle
from monai_wsss.bundle_run.slides import segment_slide_case
from monai_wsss.bundle_run.trained import TrainedWeights
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.log_names import NameFilter
from monai_wsss.reports.overlay import render_overlay
from monai_wsss.reports.prediction_rows import prediction_row

__all__ = ["CaseRun", "SentRun"]


@dataclass
class CaseRun:
    """What the cases of a run share.

    Attributes:
        out: the folder of the results.
        bundle: whose inference runs.
        trained: its weights.
        settings: of the bundle.
        reader: reads cases.
        names: what no log and no sentence may show.
        runners: a network for each set of sequences.
    """

    out: Path
    bundle: ShippedBundle
    trained: TrainedWeights
    settings: dict[str, Any]
    reader: CaseReader
    names: NameFilter
    runners: dict[tuple[str, ...], BundleRunner] = field(default_factory=dict)

    def runner(self, present: tuple[str, ...]) -> BundleRunner:
        """Give the network for the sequences of a case."""
        if present not in self.runners:
            some = {"present": list(present)} if self.reader.some else {}
            with tempfile.TemporaryDirectory() as work:
                parser = inference_parser(
                    self.bundle, ["inference"], {**self.settings, **some}, self.trained.header, Path(work)
                )
                try:
                    self.runners[present] = BundleRunner(parser, self.trained.weights)
                except Exception as error:
                    raise own_error(error) from error
        return self.runners[present]

    def outcome(self, case: InputCase, digest: str, read: ReadCase | Exception | None) -> dict[str, Any] | str:
        """Segment a case and write its results and record; give the record, or say why there is none.

        Args:
            case: the case.
            digest: of all that its results depend on.
            read: what was read of it, or the error; None for a slide.

        Raises:
            WriteError: nothing can be written.
        """
        try:
            result = _segment_case(self, case, read)
            result["digest"] = digest
            write_json(record_path(self.out, case.name), result)
        except Exception as caught:  # whatever is wrong with one case must not stop the others
            error = own_error(caught)
            if isinstance(error, WriteError):
                raise error from caught
            return self.names.clean(_sentence(error))
        return result

    def read(self, case: InputCase) -> ReadCase | Exception | None:
        """Read a case, None for a slide; an error is handed over, to be told when its turn comes."""
        try:
            return None if case.kind == "slide" else self.reader(case)
        except Exception as error:
            return error


@dataclass(frozen=True)
class SentRun:
    """A run in another process.

    Attributes:
        run: where it began; its networks stay there.
        sign: see :func:`~monai_wsss._spread.shared_folder`.
        content: digest of bundle and weights, which a worker reads from its own disk.
    """

    run: CaseRun
    sign: Path
    content: str

    @classmethod
    def of(cls, run: CaseRun, sign: Path) -> SentRun:
        """Give a run as it is sent."""
        return cls(replace(run, runners={}), sign, _content(run))

    def __call__(self, device: str) -> Callable[[tuple[InputCase, str]], dict[str, Any] | str]:
        """Give the function that reads and segments a case, which comes with its digest."""
        check_shared(self.sign, f"the output folder {self.run.out}")
        self._check_content()
        run = replace(self.run, settings={**self.run.settings, "device": device}, runners={})

        def segment(task: tuple[InputCase, str]) -> dict[str, Any] | str:
            case, digest = task
            for file in case.all_files:
                check_shared(file, f"the images of {case.name}")
            return run.outcome(case, digest, run.read(case))

        return segment

    def _check_content(self) -> None:
        """Refuse a machine with other weights or another bundle."""
        try:
            same = _content(self.run) == self.content
        except DataError:
            same = False
        if not same:
            raise DataError(
                f"{socket.gethostname()} does not have the same files at {self.run.trained.weights} and "
                f"{self.run.bundle.path} as the machine where the run began: copy them there, or use a shared disk."
            )


def _content(run: CaseRun) -> str:
    return digest_of(run.bundle.config("inference"), file_sha256(run.trained.weights))


def _segment_case(run: CaseRun, case: InputCase, read: ReadCase | Exception | None) -> dict[str, Any]:
    """Segment a case, write its results, and give its record."""
    if isinstance(read, Exception):
        raise read
    if read is None:
        return _segment_slide(run, case)
    classes: list[str] = run.trained.header["classes"]
    size = size_of(read.item["image"])
    runner = run.runner(read.present)
    result, notes = runner(read.item)
    row = prediction_row(case.name, result, classes, run.out, read.replaced)
    mask = torch.as_tensor(result["pred"])
    notes += runner.contradictions(result, classes)
    row |= {f"{name}_present": int((mask == number).any()) for number, name in enumerate(classes, start=1)}
    if case.kind == "dicom":
        written, told = _segmentation(run, case, result)
        row["segmentation"] = written
        notes += told
    picture = result["image"] if result["image"].ndim == 4 else result[SHOWN]
    drawn = render_overlay(picture, mask[0].cpu(), classes, list(read.present), network=runner.network)
    row["overlay"] = _write_overlay(run.out, case.name, drawn)
    return {"row": row, "notes": [*read.notes, *notes], "size": size, "overlay": row["overlay"]}


def _segment_slide(run: CaseRun, case: InputCase) -> dict[str, Any]:
    own = {key: value for key, value in run.settings.items() if key != "output_dir"}
    with tempfile.TemporaryDirectory() as work:
        folders = {"results": run.out / "slides" / case_file_name(case.name), "out": run.out, "work": Path(work)}
        row, drawn, notes, size = segment_slide_case(case, run.bundle, own, run.trained.header, folders)
    row["overlay"] = _write_overlay(run.out, case.name, drawn)
    return {"row": row, "notes": notes, "size": size, "overlay": row["overlay"]}


def _write_overlay(out: Path, name: str, drawn: bytes) -> str:
    path = make_directory(out / "overlays") / f"{case_file_name(name)}.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(drawn)
    return path.relative_to(out).as_posix()


def _segmentation(run: CaseRun, case: InputCase, result: Mapping[Any, Any]) -> tuple[str, list[str]]:
    """Write the DICOM segmentation beside the NIfTI mask; give its path, and why there is none."""
    if not has_highdicom():
        return "", []
    stored, affine = as_stored(result["pred"], result["image"])
    path = run.out / "segmentations" / f"{case_file_name(case.name)}.dcm"
    files = next(iter(case.files.values()))
    values = np.asarray(torch.as_tensor(stored).cpu())[0].astype(np.uint8)
    try:
        write_dicom_segmentation(
            path,
            values,
            np.asarray(affine),
            files,
            run.trained.header["classes"],
            algorithm=run.bundle.name,
            codes=run.bundle.metadata.get("segment_codes"),
        )
    except WriteError:
        raise
    except DataError as error:
        return "", [run.names.clean(str(error)).rstrip(".")]
    return path.relative_to(run.out).as_posix(), []


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
