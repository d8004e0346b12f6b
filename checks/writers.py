# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Small faulty inputs, written from fixed seeds, and the runs that answer them; made-up data, nobody's images.

`tried` enters an input into a list: what it is, what is expected of the project in words, and, as regular expressions,
what the answer has to hold.  Volumes are written so that pixel (0, 0) of slice n is 100 + n.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from answers import Answer, answer_of, cell, said
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from monai_wsss.data.reading import affine_of, read_image

# DICOM files are written by what writes those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "data"))
from dicom_files import save_file

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
ROWS, COLUMNS = 8, 10
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Run = Callable[[Path], Answer]


@dataclass(frozen=True)
class Input:
    """An input with what is expected of it.

    Attributes:
        kind: of fault, or the public thread that reports it.
        what: the input in words.
        expected: of the project, in words.
        run: writes the input into an empty folder, runs the project on it, and gives the answer.
        tells: regular expressions that are all found in the answer.
        code: the exit status, None for any.
        never: a regular expression that is not found.
    """

    kind: str
    what: str
    expected: str
    run: Run
    tells: tuple[str, ...]
    code: int | None
    never: str | None

    def is_right(self, answer: Answer) -> bool:
        """Tell whether an answer is the expected one, in the package's own words."""
        raw = re.search(r"\bRAW |Traceback|Error: ", answer.words)
        if raw or (self.never is not None and re.search(self.never, answer.words)):
            return False
        has_code = self.code is None or bool(answer.code) == bool(self.code)
        return has_code and all(re.search(told, answer.words) for told in self.tells)


def entry(inputs: list[Input], kind: str, what: str, expected: str, *tells: str, **how: Any) -> Callable[[Run], Run]:
    """Enter a function into a list of inputs; `code` and `never` as in :class:`Input`."""

    def enter(run: Run) -> Run:
        inputs.append(Input(kind, what, expected, run, tells, how.get("code", 0), how.get("never")))
        return run

    return enter


def print_table(inputs: Sequence[Input], names: Sequence[str], first: str = "kind") -> int:
    """Run inputs, print a table in Markdown, and give 1 if an answer is not the expected one.

    Args:
        inputs: all of them.
        names: only these: kinds, or numbers of rows; all where there is none.
        first: heading of the first column.
    """
    print(f"|  | {first} | input | expected | what the project says | right |\n|---|---|---|---|---|---|")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    wrong = 0
    for number, one in enumerate(inputs, 1):
        if names and str(number) not in names and one.kind not in names:
            continue
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work).resolve()
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = _answer(one, folder).relative_to(folder)
        right = one.is_right(answer)
        wrong += not right
        cells = [one.kind, cell(one.what), cell(one.expected), said(answer), "yes" if right else "**no**"]
        print(f"| {number} | {' | '.join(cells)} |", flush=True)
    return int(wrong > 0)


def _answer(one: Input, folder: Path) -> Answer:
    try:
        return one.run(folder)
    except Exception as error:  # the project broke, or the input could not be written
        return Answer(1, [f"RAW {type(error).__name__}: {error}"])


# Runs ------------------------------------------------------------------------------------------------------


def labels(at: Path, *rows: str, header: str = "id,label,split", encoding: str = "utf-8") -> None:
    """Write `labels.csv`; without rows, all images are positive and negative in turn, for training."""
    names = sorted({path.name.split(".")[0] for path in (at / "images").iterdir() if not path.name.startswith(".")})
    rows = rows or tuple(f"{name},{number % 2},train" for number, name in enumerate(names))
    (at / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def prepare(at: Path, *words: str, images: str = "images") -> Answer:
    """Prepare the folder, with a table of all images where there is none."""
    if not (at / "labels.csv").exists():
        labels(at)
    command = ["prepare", "folder", "--images", images, "--labels", "labels.csv", "--out", "out"]
    masks = ["--masks", "masks"] if (at / "masks").is_dir() else []
    return answer_of([*command, *masks, *words], at)


def with_order(answer: Answer, at: Path, name: str, wanted: np.ndarray | None = None) -> Answer:
    """Add the order of the slices of a volume, and how far its first axis of slices is from the wanted places.

    Args:
        answer: of the preparation.
        at: the folder.
        name: id of the volume.
        wanted: (number of slices, 3), positions of their first pixels in DICOM's LPS; None for no distances.
    """
    files = sorted((at / "out" / "images").rglob(f"{name}.nii.gz"))
    if answer.code or not files:
        return answer
    image = read_image(files[0])
    order = [int(value) - 100 for value in image[0, 0, 0]]
    answer.values.append(f"slices in the order {', '.join(map(str, order))}")
    if wanted is not None:
        places = np.stack([(TO_RAS @ affine_of(image) @ [0, 0, z, 1])[:3] for z in range(len(order))])
        answer.values.append(f"{np.abs(places - wanted[order]).max():.3f} mm off")
    return answer


def prepared_item(at: Path, name: str) -> dict[str, Any]:
    """Give the item of a case in the datalist that was written."""
    content = json.loads((at / "out" / "datalist.json").read_text(encoding="utf-8"))
    items = [item for split in ("training", "validation", "test") for item in content.get(split, [])]
    return next(item for item in items if item["id"] == name)


# DICOM ------------------------------------------------------------------------------------------------------


def plane(number: int = 0, dtype: Any = np.uint16) -> np.ndarray:
    """Make a slice (rows, columns) whose first pixel tells its number."""
    pixels = np.arange(ROWS * COLUMNS, dtype=dtype).reshape(ROWS, COLUMNS)
    pixels[0, 0] = 100 + number
    return pixels


def dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """Write a DICOM file, the same in every run; None leaves an element out."""
    return save_file(path, pixels, instance=f"1.2.3.{zlib.crc32(path.name.encode() + pixels.tobytes())}", **tags)


def series(
    folder: Path,
    positions: Sequence[Sequence[float]],
    directions: Sequence[float] = AXIAL,
    each: Sequence[Mapping[str, Any]] | None = None,
    names: Callable[[int], str] = "{:02d}.dcm".format,
    **tags: Any,
) -> np.ndarray:
    """Write one file per position, in this order, and give the positions."""
    for number, position in enumerate(positions):
        own = {"ImagePositionPatient": list(position), "ImageOrientationPatient": list(directions)}
        own |= {"InstanceNumber": number + 1} | tags | dict(each[number] if each else {})
        dicom(folder / names(number), plane(number), **own)
    return np.asarray(positions)


def stack(step: float = 3.0, count: int = 6, shift: float = 0.0) -> list[tuple[float, float, float]]:
    """Give the positions of axial slices, shifted to the front by a share of each step."""
    return [(-8.0, -9.0 + shift * step * number, step * number) for number in range(count)]


def group(**sequences: Mapping[str, Any]) -> Dataset:
    """Make a functional group."""
    made = Dataset()
    for name, elements in sequences.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(made, name, DicomSequence([item]))
    return made


def enhanced(
    path: Path, heights: Sequence[float], each: Sequence[Mapping[str, Any]] | None = None, **tags: Any
) -> Path:
    """Write an enhanced file whose frames lie at these heights."""
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7], "SliceThickness": 3},
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
    )
    frames = [
        group(PlanePositionSequence={"ImagePositionPatient": [-8, -9, height]}, **(each[number] if each else {}))
        for number, height in enumerate(heights)
    ]
    tags = {"SharedFunctionalGroupsSequence": DicomSequence([shared]), "PixelSpacing": None} | tags
    tags["PerFrameFunctionalGroupsSequence"] = DicomSequence(frames)
    return dicom(path, np.stack([plane(number) for number in range(len(heights))]), **tags)


def ordinary(at: Path, name: str = "ok") -> None:
    """Write an ordinary series beside a faulty one."""
    series(at / "images" / name, stack(), SeriesInstanceUID="1.2.4")


# NIfTI and pictures ------------------------------------------------------------------------------------------------


def noise(shape: Sequence[int], seed: int = 0, low: int = 50, high: int = 250) -> np.ndarray:
    """Make whole numbers of an image."""
    return np.random.default_rng(seed).integers(low, high, shape)


def nifti(
    path: Path, values: np.ndarray, affine: np.ndarray | None = None, change: Callable[[Any], object] | None = None
) -> Path:
    """Write a NIfTI file in millimeters; `change` gets its header before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.astype(np.int16) if values.dtype == np.int64 else values
    image = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    if change is not None:
        change(image)
    nibabel.save(image, path)
    return path


def picture(path: Path, values: np.ndarray, mode: str | None = None, **saving: Any) -> Path:
    """Write a picture; the suffix says its kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(values if values.dtype != np.int64 else values.astype(np.uint8))
    (made if mode is None else made.convert(mode)).save(path, **saving)
    return path


def gray_pictures(at: Path, *names: str, folder: str = "images") -> None:
    """Write gray pictures of noise, 16 × 12."""
    for seed, name in enumerate(names):
        picture(at / folder / name, noise((12, 16), seed))


def square_mask(shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    """Make a mask with a square of 20 pixels off the center."""
    mask = np.zeros(shape, np.uint8)
    mask[2:6, 3:8] = 1
    return mask
