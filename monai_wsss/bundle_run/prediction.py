# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss predict``: whatever images there are in, masks, overlays, a table and a page out; no labels, no list.

    input → cases (data/input_cases) → one read ahead (case_reading) → the bundle's own inference (runner)
          → masks/ segmentations/ overlays/ records/ → predictions.csv, failures.csv, report.html

A case that cannot be read is listed and does not stop the others.  A killed run goes on: a case with a record of the
same digest is not repeated.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_wsss._checks import DataError, check_device
from monai_wsss._files import file_sha256, make_directory
from monai_wsss._locks import hold_folder, release_folder
from monai_wsss._spread import LOST, current_workers, over_ray, shared_folder
from monai_wsss.bundle_run.case_reading import CaseReader, ReadCase
from monai_wsss.bundle_run.case_run import CaseRun, SentRun
from monai_wsss.bundle_run.dicom_segmentation import has_highdicom
from monai_wsss.bundle_run.records import digest_of, drop_stale, finished_case, state_of
from monai_wsss.bundle_run.trained import TrainedWeights, weights_for
from monai_wsss.data.input_cases import FoundInputs, InputCase, find_inputs
from monai_wsss.data.log_names import NameFilter, hidden_names
from monai_wsss.refinement.slice_axis import slicing_axis_of
from monai_wsss.reports import collect_provenance, write_run
from monai_wsss.reports.class_names import write_class_names
from monai_wsss.reports.prediction_page import write_prediction_page
from monai_wsss.reports.prediction_rows import write_predictions
from monai_wsss.reports.provenance import read_run

__all__ = ["Prediction", "predict_masks"]

_logger = logging.getLogger(__name__)
_NO_HIGHDICOM = (
    "Masks of DICOM are NIfTI alone: for DICOM segmentations run pip install 'monai-wsss[dicom]', and choose another "
    "--out."
)
_FORMAT = 1  # of the records: raised when what they mean changes


@dataclass(frozen=True)
class Prediction:
    """Where the masks lie.

    Attributes:
        out: the folder.
        report: the page.
        rows: of ``predictions.csv``.
        failures: name of a case, a sentence; also in ``failures.csv``.
    """

    out: Path
    report: Path
    rows: list[dict[str, Any]]
    failures: list[tuple[str, str]]


def predict_masks(
    source: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    modalities: Sequence[str] | None = None,
    replace_missing: Mapping[str, str] | None = None,
    subject_pattern: str | None = None,
    settings: Mapping[str, Any] | None = None,
    list_sources: bool = False,
    ray: str | None = None,
) -> Prediction:
    """Segment images that nobody has labeled.

    Args:
        source: an image, a folder of images with all folders below it, DICOM of any number of series, or a slide.
        bundle: its name, or its folder.
        out: the folder to write.  A run that was killed goes on there.
        weights: the folder of a training, or a file of weights; None takes those of the bundle.
        device: such as "cuda:0" or "cpu"; None takes a GPU where there is one.
        modalities: names of the channels of files with several, in their order.
        replace_missing: by sequence, the one that may stand in for it.
        subject_pattern: a regular expression whose group takes the subject from the name of a case; gray 2D images of
            one subject are normalized together.  None: images in one folder below ``source`` are of one subject.
        settings: further settings of the bundle, as ``monai.bundle run`` takes them.
        list_sources: whether to write ``sources.csv``, which joins cases to their files, and may name patients.
        ray: "local", "auto" or an address spreads cases, and bands of slides, over the processes of a cluster, see
            :func:`~monai_wsss.inferers.over_ray`; None: those around this call, if any.

    Returns:
        Where everything lies, and what could not be read.

    Raises:
        DataError: there is nothing to segment, the bundle or its weights cannot be used, the folder cannot be written
            or holds other results, or there is no such cluster.
    """
    check_device(device)
    trained = weights_for(bundle, weights)
    folder = Path(out)
    slides = (trained.bundle.path / "configs" / "slide.json").is_file()
    found = find_inputs(
        source, trained.modalities, leave_out=folder.resolve(), slides=slides, subject_pattern=subject_pattern
    )
    own = {**trained.settings, "output_dir": str(folder), **({"device": device} if device else {}), **(settings or {})}
    depends = {name: value for name, value in own.items() if name not in ("output_dir", "ckpt_dir", "device")}
    depends |= {"modalities_named": modalities, "replaced": replace_missing, "subjects": subject_pattern}
    weights_digest = file_sha256(trained.weights)
    run_digest = digest_of(_FORMAT, trained.bundle.config("inference"), weights_digest, depends, trained.header)
    _check_folder(folder, Path(source), run_digest)
    names = NameFilter(hidden_names(found.cases, Path(source), found.damaged))
    with over_ray(ray):  # before anything is written: Ray may not be there
        hold_folder(make_directory(folder))
        try:
            with names.on_all_handlers():
                reader = _reader(trained, own, found, modalities, replace_missing)
                run = CaseRun(folder, trained.bundle, trained, own, reader, names)
                network = run.runner(tuple(trained.modalities)).network  # checks settings and weights before all else
                reader.slicing = slicing_axis_of(network)
                record = _describe(trained, own, run_digest, Path(source))
                write_run(folder, record)
                return _segment(run, found, record, run_digest, list_sources)
        finally:
            release_folder(folder)


def _normalizes_subjects(config: Mapping[str, Any]) -> bool:
    """Tell whether a bundle normalizes gray images by the bright pixels of their whole subject, also by a reference."""
    parts = [
        config.get(part.removeprefix("@")) if isinstance(part, str) else part
        for part in config["preprocessing"]["transforms"]
    ]
    return any(
        part.get("_target_", "").endswith("NormalizeSubjectd") and part.get("foreground", "bright") == "bright"
        for part in parts
        if isinstance(part, Mapping)
    )


def _reader(
    trained: TrainedWeights,
    own: Mapping[str, Any],
    found: FoundInputs,
    modalities: Sequence[str] | None,
    replace_missing: Mapping[str, str] | None,
) -> CaseReader:
    """Make the reader for the cases of these weights."""
    config = trained.bundle.config("inference")
    pooled = _normalizes_subjects(config)
    known = {} if trained.own else trained.bundle.metadata.get("training_images", {})
    return CaseReader(
        trained.modalities,
        modalities,
        dict(replace_missing or {}),
        some="present" in config,
        background=trained.header["background"],
        grid=own.get("grid", config.get("grid")),
        longest_side=known.get("longest_side"),
        micrometers=known.get("micrometers_per_pixel"),
        pooled=pooled,
        cases=found.cases,
    )


def _check_folder(out: Path, source: Path, digest: str) -> None:
    """Refuse a folder that holds data, or results of another input or of other settings."""
    if (out / "datalist.json").exists() or out.resolve() == source.resolve():
        raise DataError(f"The output folder {out} holds data: choose another --out.")
    earlier = read_run(out)
    if earlier is None and (out / "run.json").exists():
        raise DataError(f"The output folder {out} has a run.json that is damaged: choose another --out.")
    if earlier is not None and (earlier.get("prediction"), earlier.get("source")) != (digest, _place(source)):
        raise DataError(
            f"The output folder {out} holds results of another run, of other images or with other settings or weights: "
            "choose another --out, or delete it."
        )


def _place(source: Path) -> str:
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()


def _describe(trained: TrainedWeights, own: Mapping[str, Any], digest: str, source: Path) -> dict[str, Any]:
    """Describe the run, without names of files."""
    config = {key: value for key, value in own.items() if key not in ("output_dir", "ckpt_dir")}
    record = collect_provenance(
        config={"bundle": trained.bundle.name, **config},
        seed=None,
        data=None,
        weights=trained.weights,
        uses_masks=trained.uses_masks,
    )
    header = {name: trained.header.get(name) for name in ("classes", "background", "scored_class")}
    return {**record, **header, "prediction": digest, "source": _place(source)}


def _segment(
    run: CaseRun, found: FoundInputs, record: dict[str, Any], run_digest: str, list_sources: bool
) -> Prediction:
    """Segment all cases and write table and page."""
    failures = list(found.faults)
    if not has_highdicom() and any(case.kind == "dicom" for case in found.cases):
        found.notes.append(_NO_HIGHDICOM)
    digests = {case.name: digest_of(run_digest, state_of(case)) for case in found.cases}
    drop_stale(run.out, digests)
    results: dict[str, dict[str, Any] | str | None] = {
        case.name: finished_case(run.out, case.name, digests[case.name]) for case in found.cases
    }
    left = [case for case in found.cases if results[case.name] is None]
    with tqdm(total=len(found.cases), desc="cases", unit="case", disable=None) as bar:
        bar.update(len(found.cases) - len(left))
        for case, result in _outcomes(run, left, digests):
            results[case.name] = result
            bar.update()
            if isinstance(result, str):
                _logger.warning("%s: %s", case.name, result)
    kept = [result for result in results.values() if isinstance(result, dict)]
    failures += [(name, result) for name, result in results.items() if isinstance(result, str)]
    rows = [one["row"] for one in kept]
    write_predictions(run.out / "predictions.csv", rows)
    write_class_names(run.out, run.trained.header["classes"])
    _write_optional(run.out / "failures.csv", [{"case": name, "why": why} for name, why in failures])
    joined = [*((case.name, file) for case in found.cases for file in case.all_files), *found.damaged]
    sources = [{"case": name, "source": str(file.resolve())} for name, file in joined]
    _write_optional(run.out / "sources.csv", sources if list_sources else [])
    bundle = run.bundle
    about = {
        "bundle": bundle.name,
        "trained_on": run.trained.trained_on,
        "inputs": ", ".join(run.trained.modalities) if run.trained.own else bundle.inputs,
        "license": "your own training" if run.trained.own else bundle.license,
    }
    page = write_prediction_page(
        run.out,
        run=record,
        about=about,
        records=kept,
        failures=[_unnamed(why) for _, why in failures],
        notes=found.notes,
    )
    return Prediction(run.out, page, rows, failures)


def _outcomes(
    run: CaseRun, cases: Sequence[InputCase], digests: Mapping[str, str]
) -> Iterator[tuple[InputCase, dict[str, Any] | str]]:
    """Segment cases, here or by workers; give the record of each, or a sentence."""
    workers = current_workers()
    if workers is not None:  # of a slide, the bands are shared
        shared = [case for case in cases if case.kind != "slide"]
        cases = [case for case in cases if case.kind == "slide"]
        device = run.settings.get("device")
        gpu = workers.has_gpus if device is None else str(device).startswith("cuda")
        tasks = [(case, digests[case.name]) for case in shared]
        with shared_folder(run.out) as sign:
            for number, result in workers.each(SentRun.of(run, sign), tasks, gpu=gpu, lost=lambda _: LOST):
                yield shared[number], result
    with closing(_ahead(run, cases)) as ahead:
        for case in cases:
            yield case, run.outcome(case, digests[case.name], next(ahead))


def _ahead(run: CaseRun, cases: Sequence[InputCase]) -> Generator[ReadCase | Exception | None, None, None]:
    """Give what is read of each case; the next is read while the network works on this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(run.read, case) for case in cases[:1]]
        for following in [*cases[1:], None]:
            current = waiting.pop().result()
            if following is not None:
                waiting.append(pool.submit(run.read, following))
            yield current


def _write_optional(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table that has rows; remove one that an earlier run left."""
    if rows:
        write_predictions(path, rows)
    else:
        path.unlink(missing_ok=True)


def _unnamed(sentence: str) -> str:
    """Leave paths out of a sentence for the page."""
    return re.sub(r"[^\s'\"(),;:]*[/\\][^\s'\"(),;:]+", "a file", sentence)
