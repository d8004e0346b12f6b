# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A run folder as one page: ``report.html``, without remote assets or patient identifiers.

Its one script sorts the table of cases and opens their pictures; without it all pictures stand open.  The page shows
what the folder holds and says in a sentence what is missing.  It names cases by their row of ``per_case.csv``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.metrics import metric_definition
from monai_wsss.reports.case_table import count, evaluated_cases, outcome_of, pixels_of
from monai_wsss.reports.charts import ChartLine, interval_bar, line_chart, value_strip
from monai_wsss.reports.intensities import intensity_view
from monai_wsss.reports.page_warnings import evaluation_warnings
from monai_wsss.reports.panels import MASK_COLOR, REFERENCE_COLOR, choose_cases
from monai_wsss.reports.templates import png_text, write_page

__all__ = ["write_report"]

_TALL = 300  # pixels of the height of a picture of several slices
_AVERAGED = "Averaged over the classes"
_GROUPS: dict[str, dict[str, str]] = {
    "Overlap with the reference": {
        "dice_subject": "Dice, per subject",
        "dice_pooled": "Dice, pooled",
        "iou_pooled": "IoU, pooled",
        "f1": "F1, pooled",
    },
    "Surface distances": {
        "assd": "ASSD, pooled directions",
        "assd_directed": "ASSD, mean of directions",
        "asd": "ASD, mask to reference",
        "hd95": "HD95",
        "volume_assd": "ASSD, of restacked volumes",
        "volume_assd_directed": "ASSD, mean of directions, of restacked volumes",
        "volume_asd": "ASD, of restacked volumes",
        "volume_hd95": "HD95, of restacked volumes",
    },
    "Healthy images and presence": {
        "healthy_clean": "Healthy images left clean",
        "presence_auroc": "Presence AUROC",
    },
    "Too little, too much": {"r_under": "Under-segmentation", "r_over": "Over-segmentation"},
    "Pixels": {"sensitivity": "Sensitivity", "specificity": "Specificity", "accuracy": "Accuracy"},
    _AVERAGED: {
        "miou_pooled": "Mean IoU",
        "dice_macro_pooled": "Macro Dice",
        "f1_from_miou": "F1 from mean IoU",
    },
    "The map itself": {
        "pixel_auroc": "Pixel AUROC",
        "oracle_dice_subject": "Oracle Dice (threshold from reference masks)",
    },
}
_AVERAGED_HEADINGS = {
    True: "Averaged with the background, as some papers do",
    False: "Averaged over the classes, all of them real tissue",
    None: "Averaged over the classes, the background among them if there is one",
}
"""Keys: whether the data have a background; None where ``run.json`` does not say."""
_HEADLINES = ("dice_subject", "dice_pooled", "assd", "healthy_clean", "presence_auroc")
_UNBOUNDED = {*_GROUPS["Surface distances"], *_GROUPS["Too little, too much"]}
_CASE_KINDS = {
    "best": "Best cases",
    "median": "Median cases",
    "worst": "Worst cases",
    "false alarm": "Healthy images with a mask",
}
_RUN_LABELS = {
    "time_utc": "Time (UTC)",
    "platform": "Platform",
    "accelerator": "Accelerator",
    "git_commit": "Git commit",
    "seed": "Seed",
    "datalist_sha256": "Data list, SHA-256",
    "weights_sha256": "Weights, SHA-256",
}


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a run folder.

    It shows ``run.json``, ``metrics.json``, ``notes.txt``, ``per_case.csv``, ``per_subject.csv``, ``sweep.json``,
    ``training_log.csv``, ``panels/<row>.png``, ``intensities.json`` and ``conversions.png``; each may be missing.

    Args:
        run_dir: the folder of an evaluation or a training.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds no run, the content of a file in it is not what it should be, or the page cannot be
            written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.json").write_text('{"dice_subject": {"mean": 0.6, "ci95": [0.5, 0.7], "n": 16}}')
        >>> "0.600" in write_report(folder).read_text(encoding="utf-8")
        True
    """
    folder = Path(run_dir)
    if not any((folder / name).is_file() for name in ("run.json", "metrics.json", "per_case.csv")):
        raise DataError(
            f"{folder} is no run folder: it holds none of run.json, metrics.json and per_case.csv; "
            "give the folder that an evaluation wrote."
        )
    return write_page(folder / "report.html", "page.html.jinja", _view(folder))


def _view(folder: Path) -> dict[str, Any]:
    """Collect everything that the template shows; parts that the folder lacks are ``None``."""
    run = _read(folder / "run.json", _run)
    log = folder / "training_log.csv"
    # An evaluation records the log of its weights; the record of a training names no log.
    foreign = (
        run is not None and run["training_log"] != "" and log.is_file() and file_sha256(log) != run["training_log"]
    )
    background = None if run is None else run["background"]
    rows = _read(folder / "per_case.csv", _table)
    cases = _read(folder / "per_case.csv", lambda text: _cases(_table(text), folder / "panels", background))
    metrics = folder / "metrics.json"
    return {
        **_title(run, rows),
        "run": run,
        "warnings": _read(metrics, lambda text: evaluation_warnings(json.loads(text), rows or [], run)) or [],
        "metrics": _read(metrics, lambda text: _metrics(text, background)),
        "notes": _read(folder / "notes.txt", str.splitlines) or [],
        "cases": cases,
        "subject_charts": _read(folder / "per_subject.csv", _subject_charts),
        "intensities": _read(folder / "intensities.json", intensity_view),
        "conversions": png_text(folder / "conversions.png"),
        "pseudo_masks": png_text(folder / "pseudo_masks.png"),
        "sweep_charts": _read(folder / "sweep.json", _sweep_charts),
        "training_charts": None if foreign else _read(log, _training_charts),
        "foreign_log": foreign,
        "colors": {"reference": REFERENCE_COLOR, "mask": MASK_COLOR},
    }


def _title(run: Mapping[str, Any] | None, rows: Sequence[Any] | None) -> dict[str, str]:
    """Name data and bundle, as far as ``run.json`` does."""
    data, bundle = (None, None) if run is None else (run["data"], run["bundle"])
    what = "Training" if rows is None and run is not None else "Segmentation"
    heading = (f"{what} of {data}" if rows is not None else f"{what} on {data}") if data else f"{what} report"
    title = heading + (f" by {bundle}" if bundle else "") + (f", {run['date']}" if run and run["date"] else "")
    return {"heading": heading, "title": title}


def _read(path: Path, view: Callable[[str], Any]) -> Any:
    """Apply ``view`` to the file's text, or give ``None`` where there is no file."""
    if not path.is_file():
        return None
    try:
        return view(path.read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error) as error:
        raise DataError(
            f"{path} does not hold what a run folder's file of that name holds ({type(error).__name__}): "
            "run the evaluation anew."
        ) from error


def _table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _run(text: str) -> dict[str, Any]:
    """Prepare ``run.json``: labeled rows, versions, uses of masks, and the configuration as text."""
    run = json.loads(text)
    rows = [(label, run[name]) for name, label in _RUN_LABELS.items() if run.get(name) is not None]
    return {
        "rows": [*rows, *((f"Version of {name}", number) for name, number in (run.get("versions") or {}).items())],
        "date": str(run.get("time_utc", ""))[:10],
        "uses_masks": None if run.get("uses_masks") is None else [str(use) for use in run["uses_masks"]],
        "replaced": list((run.get("replaced") or {}).items()),
        "training_log": run.get("training_log_sha256", ""),
        "background": None if run.get("background") is None else bool(run["background"]),
        "scored_class": run.get("scored_class"),
        "data": run.get("data"),
        "bundle": (run.get("config") or {}).get("bundle"),
        "split": (run.get("config") or {}).get("split"),
        "assumed_units": run.get("assumed_units"),
        "config": json.dumps(run["config"], indent=2, ensure_ascii=False) if run.get("config") else "",
    }


def _metrics(text: str, background: bool | None) -> dict[str, Any]:
    """Prepare ``metrics.json`` as headlines and as groups of rows; ``background`` comes from ``run.json``."""
    metrics = {
        name: _metric_row(name, float(entry["mean"]), [float(end) for end in entry["ci95"]], int(entry["n"]))
        for name, entry in json.loads(text).items()
    }
    bases = {name: row["base"] for name, row in metrics.items()}
    order = [base for names in _GROUPS.values() for base in names]
    headings = {_AVERAGED: _AVERAGED_HEADINGS[background]}
    groups = [
        (headings.get(title, title), [metrics[name] for base in names for name in metrics if bases[name] == base])
        for title, names in _GROUPS.items()
    ]
    groups.append(("Other numbers", [row for row in metrics.values() if row["base"] not in order]))
    headlines = [metrics[name] for base in _HEADLINES for name in metrics if bases[name] == base and "/" not in name]
    return {"headlines": headlines, "groups": [(title, rows) for title, rows in groups if rows]}


def _metric_row(name: str, mean: float, interval: Sequence[float], subjects: int) -> dict[str, Any]:
    plain, _, label = name.partition("/")
    base = plain.removesuffix("_mm").removesuffix("_px")
    unit = plain.removeprefix(base).replace("_", " ") if base in _GROUPS["Surface distances"] else ""
    low, high = interval
    digits = 2 if base in _UNBOUNDED else 3
    titles = {key: title for names in _GROUPS.values() for key, title in names.items()}
    return {
        "name": name,
        "base": base,
        "title": titles.get(base, base),
        "label": label,
        "unit": unit,
        "definition": "" if label else metric_definition(name),
        "value": f"{mean:.{digits}f}",
        "interval": f"{low:.{digits}f} to {high:.{digits}f}" if subjects > 1 else "",
        "n": subjects,
        "bar": interval_bar(mean, low, high) if subjects > 1 and base in titles and base not in _UNBOUNDED else "",
    }


def _cases(rows: Sequence[Mapping[str, str]], panels: Path, background: bool | None) -> dict[str, Any]:
    """Prepare the cases: numbers of cases and subjects, selected panels, and the table."""
    chosen = choose_cases(rows, each=_each(panels))
    findings, healthy = (sum(row[name] == "1" for row in rows) for name in ("finding", "healthy"))
    return {
        "lead": f"{count(len(rows), 'case')} of {count(len({row['subject'] for row in rows}), 'subject')}",
        "truth": f"{findings} with a finding in the reference, {healthy} healthy",
        "groups": [
            (title, [_panel(number, rows[number - 1], panels) for number in chosen[kind]])
            for kind, title in _CASE_KINDS.items()
            if chosen[kind]
        ],
        "table": evaluated_cases(rows, panels, background=background is not False),
    }


def _each(panels: Path) -> int:
    """Give the number of pictures of a kind: one where they show several slices."""
    try:
        with Image.open(panels / "1.png") as picture:
            return 1 if picture.height > _TALL else 2
    except OSError:
        return 2


def _panel(number: int, row: Mapping[str, str], panels: Path) -> dict[str, Any]:
    """Prepare picture and caption of a case; the picture is ``None`` where it was not drawn."""
    distance = f", ASSD {float(row['assd']):.2f} {row['unit']}" if row.get("assd") else ""
    score = (
        f"Dice {float(row['dice']):.2f}{distance}" if row["finding"] == "1" else f"{pixels_of(row, 'fp')} pixels marked"
    )
    if outcome_of(row) == "missed":
        score += ", nothing marked"
    return {"number": number, "score": score, "png": png_text(panels / f"{number}.png")}


def _subject_charts(text: str) -> list[dict[str, Any]]:
    """Draw one strip of per-subject Dice per class, and write the numbers that a strip does not show."""
    rows = _table(text)
    charts = []
    for column in rows[0] if rows else ():
        values = sorted(float(row[column]) for row in rows if row[column]) if column.split("/")[0] == "dice" else []
        if values:
            label = column.partition("/")[2]
            lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
            charts.append(
                {
                    "label": label,
                    "svg": value_strip(values, title=f"Dice of each subject {label}", x_label="Dice of a subject"),
                    "text": f"{len(values)} subjects: lowest {values[0]:.2f}, quartiles {lower:.2f}, {median:.2f} and "
                    f"{upper:.2f}, highest {values[-1]:.2f}.",
                }
            )
    return charts


def _sweep_charts(text: str) -> list[dict[str, Any]]:
    """Draw Dice against the threshold per class, with a ring around the oracle's choice."""
    sweep = json.loads(text)
    charts = []
    for label, curves in sweep["classes"].items():
        lines = [
            ChartLine(title, sweep["thresholds"], curves[name], mark=curves[name].index(max(curves[name])))
            for name, title in (("dice_subject", "per subject"), ("dice_pooled", "pooled"))
            if name in curves
        ]
        best = [f"{line.name} {max(line.y):.3f} at {line.x[line.mark or 0]:.2f}" for line in lines]
        title = f"Dice against the threshold of the map, {label}"
        charts.append(
            {
                "label": label,
                "svg": line_chart(lines, title=title, x_label="threshold on the map", y_range=(0.0, 1.0)),
                "text": f"Oracle: {'; '.join(best)}.",
            }
        )
    return charts


def _training_charts(text: str) -> list[dict[str, Any]]:
    """Draw a small chart per column of the log, but only the headlines of the validation metrics."""
    rows = _table(text)
    charts = []
    for column in rows[0] if rows else ():
        points = [(float(row["epoch"]), float(row[column])) for row in rows if row[column]]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        if column == "epoch" or not points or _is_minor(column):
            continue
        line = ChartLine(column, [epoch for epoch, _ in points], [value for _, value in points])
        chart = line_chart([line], title=f"{column} by epoch", x_label="epoch", size=(300, 190))
        charts.append({"label": column, "svg": chart, "last": f"{line.y[-1]:.4g}"})
    return charts


def _is_minor(column: str) -> bool:
    name = column.removeprefix("val_")
    base = name.removesuffix("_mm").removesuffix("_px")
    return bool(metric_definition(name)) and base not in _HEADLINES
