# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Numbers in pages stand in marks that are filled from rows, and what a mark names is there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import markdown
import pytest
from test_dermoscopy_bundle import otsu_on_blue
from test_every_bundle import BUNDLES
from test_results import RESULTS, generator

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.benchmark.rows import Row, write_rows
from monai_wsss.data import make_phantoms

__all__ = ["generator"]

ROOT = RESULTS.parents[1]
SHIPPED = RESULTS / "runs" / "shipped"
MARK = re.compile(r"<!--= [^<>]+ -->([^<]*)<!--/-->")
DIGEST = re.compile(r"[0-9a-f]{64}")

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "docs/results/lgg_cam.md": ("0.58", "0.61", "0.19", "0.26", "0.00", "0.05"),
    "docs/results/lgg_bmp.md": ("0.015",),
    "bundles/chest_xray_coingan_segmentation/docs/README.md": ("0.40", "0.58"),  # of weights that are not shipped
}
"""Numbers of `docs/which_method.md` that no mark can give, by the page that has them and that it links to: the rows of
older tables were not kept as JSON.  To be shortened, never extended: a table that is measured anew leaves its rows in
`docs/results/runs`."""
TYPED: dict[str, dict[str, tuple[str, ...]]] = {
    "README.md": {},
    "docs/which_method.md": {
        "`make demo` prints it, whose weights are trained on the way": ("0.71",),
        **{f"stands in {page}": numbers for page, numbers in ELSEWHERE.items()},
    },
    "docs/results/encoders.md": {
        "settings": ("0.002 (weights from ImageNet: 0.0003), weight decay 0.01", "the highest, 0.999,"),
        "the size of the network, counted": ("0.73 million parameters",),
        "the rule of defaults and the aim, fixed beforehand": (
            "by more than 0.01",
            "where 0.01 is asked",
            "The 0.95 that was looked for",
        ),
    },
    "docs/results/cosa.md": {
        "settings": ("| 0.95, 0.95 |", "| 0.97, 0.97 |", "0.002 (encoder: 0.0003), weight decay 0.01"),
        "the aim, fixed beforehand": ("The 0.95 that was looked for",),
        "cuts that were tried": ("the highest tried, 0.95,", "the empty rows is 0.45"),
        "a trial before the rows, whose weights were not kept": ("Dice of 0.641, and the threshold was 0.32",),
        "a trial of another network": ("S has 0.433 for", "and 0.268 for all of CoSA"),
    },
    "docs/results/coingan.md": {"settings": ("Adam 5e-4 (0.5, 0.999)", "one cycle to 0.001")},
    "docs/results/choosing.md": {
        "a setting": ("scaled (0.75)",),
        "what a rank correlation of six means": ("a rank correlation of 0.89 or more has a two-sided p below 0.05",),
    },
    "docs/results/methods.md": {
        "settings": ("one cycle to 0.002", "pretrained encoder: 0.0003"),
        "the aims, fixed beforehand": (
            *("the 0.90 that was looked for", "the 0.95 that was looked for"),
            "0.90 of full supervision on brain MRI and 0.95 on dermoscopy and glands",
        ),
        "a row without CoSA, which has one now": ("together had 0.598",),
    },
    "docs/results/lgg_cam.md": {
        "what 16 patients cannot tell": ("less than about 0.05 mean little",),
        "trials of the shipped weights, whose rows were not kept": (
            *("(0.610 without phantoms)", "0.773 on the three", "0.50 on a four-sequence", "0.19, 0.26 and 0.00"),
        ),
        "printed by the tutorial": ("0.58 (0.45 to 0.68) against 0.61 (0.50 to 0.70)", "On phantoms 0.46 against 0.75"),
    },
    "docs/results/glas_gland.md": {
        "of the paper": ("reaches 0.998 of full supervision",),
        "of version 0.1.0, whose rows were not kept": (
            "mIoU 0.595 on the same 22 images, 0.486 on phantoms; pseudo-masks of the training patches 0.755.",
            "a mIoU of 0.26 but a Dice of 0.69,",
            "over a pixel 0.78, the patch's own 0.74, none 0.68 mIoU",
        ),
    },
    "docs/results/lgg_bmp.md": {
        "an earlier table, whose rows were not kept": ("had 0.58 for all of BMP",),
        "trials whose rows were not kept": (
            "0.71 with one thread, 0.61 with two,",
            "subject 0.015 (rv 0.000, myo 0.028, lv 0.018)",
        ),
    },
    "docs/results/lgg_cmer.md": {"of the paper": ("reports 0.71 of full supervision",)},
    "docs/results/cardiac.md": {
        "a row that was measured anew": ("plain CAM had 0.027",),
        "what ten patients cannot tell": ("differences below 0.05 mean little",),
        "of another page, whose rows were not kept": ("had 0.015 on slices",),
    },
}
"""Pages whose numbers stand in marks, and by its reason what may be typed there all the same, with words around it."""
GENERATED_OR_CODE = re.compile(
    r"^```.*?^```$|<!-- (?:table|rule|choice|methods|agreement|numbers) \w+ -->\n.*?<!-- end -->|`[^`]*`|Python \d\.\d+"
    f"|{MARK.pattern}",
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture(scope="module")
def measuring() -> Any:
    spec = importlib.util.spec_from_file_location("measure_bundles", RESULTS / "measure_bundles.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


# ---- marks -----------------------------------------------------------------------------------------------------------


def keep(runs: Path, source: str, *values: float, column: str = "", **more: Any) -> None:
    for seed, value in enumerate(values):
        rows = [Row("some", column, "validation", seed, {"dice": {"mean": value, **more}})]
        write_rows(runs / f"{source}{seed if len(values) > 1 else ''}.json", rows, {})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    keep(tmp_path, "shipped/one/data", 0.6092, ci95=[0.4981, 0.7049], n=16)
    keep(tmp_path, "table/validation/cam/seed", 0.5, 0.6, 0.7)
    rows = [
        Row(name, column, "validation", None, {"dice": {"mean": value}})
        for name, column, value in (("shipped weights", "", 0.8), ("trivial: Otsu on blue", "", 0.1))
    ]
    write_rows(tmp_path / "shipped/two/data.json", rows, {})
    return tmp_path


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("one/data dice", "0.61"),
        ("one/data dice 4", "0.6092"),
        ("one/data dice ci", "0.61 [0.50, 0.70]"),
        ("one/data dice to", "0.50 to 0.70"),
        ("one/data dice n", "16"),
        ("table/cam dice 3", "0.600"),
        ("table/cam dice sd", "0.600 ± 0.100"),
        ("two/data dice 1", "0.8"),
        ("two/data:otsu_on_blue dice 1", "0.1"),
        ("table/cam dice / two/data", "0.75"),
        ("table/cam dice 3/ two/data", "0.750"),
        ("two/data dice - table/cam", "0.200"),
        ("table/cam dice - two/data", "-0.200"),
        ("table/cam/seed2 dice 3", "0.700"),
    ],
)
def test_a_mark_is_filled(generator, runs, told, shown):
    page = f"| a | Dice <!--= {told} -->old<!--/-->, and <!--= {told} --><!--/--> more |"
    wanted = f"<!--= {told} -->{shown}<!--/-->"
    assert generator.generate(page, runs) == f"| a | Dice {wanted}, and {wanted} more |"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("three/data dice", "there is no row three/data"),
        ("table/seam dice sd", "there is no row table/seam"),
        ("table/cam/seed7 dice", "there is no row table/cam/seed7"),
        ("table dice", "there is no row table"),
        ("two/data:par dice", "there is no row two/data:par"),
        ("one/data iou", "one/data has no iou"),
        ("one/data dice sd", "nothing to show as `sd`"),
        ("table/cam dice ci", "nothing to show as `ci`"),
        ("two/data dice ci", "nothing to show as `ci`"),
        ("one/data dice bold", "nothing to show as `bold`"),
        ("table/cam dice / table/full", "there is no row table/full"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_named(generator, runs, told, reason):
    with pytest.raises(
        DataError, match=rf"Cannot fill the mark <!--= {told} -->: .*{reason}.*; correct it, or measure"
    ):
        generator.generate(f"Dice <!--= {told} -->0.61<!--/-->", runs)


def test_marks_of_what_is_to_be_measured_keep_their_text(generator, runs, monkeypatch):
    single = "<!--= one/other dice -->0.12<!--/--> <!--= one/data dice -->0.12<!--/-->"
    page = f"{single}\n<!-- numbers one -->\nold\n<!-- end -->"
    monkeypatch.setattr(generator, "PENDING", frozenset({"one/other"}))
    assert generator.generate(page, runs) == page.replace("data dice -->0.12", "data dice -->0.61")


def test_marks_are_whole_and_begin_no_line(generator):
    """Behind a comment that begins a line, Markdown ends."""
    for path in generator.PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(MARK.findall(text)) == text.count("<!--=") == text.count("<!--/"), path
        assert not re.search(r"^[\s>*-]*<!--=", text, re.MULTILINE), path


def test_differences_have_the_sign_that_the_words_around_them_say(generator):
    """ "Adds", "takes" and "costs" stand before a difference, whose sources are in the order that makes it positive."""
    for page in generator.PAGES:
        for found in re.finditer(r"<!--= \S+ \S+ - \S+ -->([^<]*)<!--/-->", page.read_text(encoding="utf-8")):
            assert float(found[1]) >= 0, f"{page.name}: {found[0]}: turn the sources, and the word before it"


def test_marks_do_not_show():
    page = markdown.markdown((ROOT / "README.md").read_text(encoding="utf-8"), extensions=["tables"])
    (row,) = re.findall(r"<tr>\s*<td>images with all their sequences</td>.*?</tr>", page, re.DOTALL)
    cell = re.findall(r"<td>(.*?)</td>", row, re.DOTALL)[-1]
    assert re.fullmatch(r"Dice 0\.\d\d \[0\.\d\d, 0\.\d\d\]", re.sub(r"<!--.*?-->", "", cell))


def typed_numbers(page: str, excepted: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Give the numbers of a page with two digits or more behind their point that are typed, and unused exceptions."""
    text = " ".join(GENERATED_OR_CODE.sub("", page).split())
    unused = []
    for words in sorted(set(excepted), key=len, reverse=True):
        text, count = re.subn(rf"(?<![\d.]){re.escape(words)}(?!\d)", "", text)
        unused += [] if count else [words]
    return re.findall(r"\d+\.\d{2,}(?: ± \d+\.\d{2,})?", text), unused


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (
            "Dice 0.61 <!--= a/b dice 3 -->0.62<!--/-->, 0.63 ± 0.01, cut at 0.5\n",
            (["0.61", "0.63 ± 0.01"], ["by 0.6"]),
        ),
        (
            "<!-- table some -->\n| 0.61 |\n<!-- end -->\n```bash\n--a 0.62\n```\n`--share\n0.63`, Python 3.11",
            ([], ["by 0.6"]),
        ),
        ("higher by\n0.6, by 0.61", (["0.61"], [])),
    ],
)
def test_typed_numbers_are_found(page, told):
    assert typed_numbers(page, ["by 0.6"]) == told


@pytest.mark.parametrize("name", TYPED)
def test_numbers_in_texts_are_generated(name):
    excepted = [words for phrases in TYPED[name].values() for words in phrases]
    typed, unused = typed_numbers((ROOT / name).read_text(encoding="utf-8"), excepted)
    assert typed == [], f"put these numbers of {name} into marks"
    assert unused == [], f"{name} needs these exceptions no more"


def test_numbers_from_elsewhere_stand_on_a_linked_page():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "which_method.md").read_text(encoding="utf-8"))
    linked = {(ROOT / "docs" / link).resolve() for link in links}
    for page, numbers in ELSEWHERE.items():
        assert ROOT / page in linked, page
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [number for number in numbers if number not in text] == [], page


# ---- shipped weights -------------------------------------------------------------------------------------------------


def test_kept_measurements_are_of_the_weights_that_are_shipped(generator, measuring):
    planned = {f"{one.bundle}/{one.name}": one for one in measuring.MEASUREMENTS}
    assert {f"{one.bundle}_segmentation" for one in measuring.MEASUREMENTS} == {bundle.name for bundle in BUNDLES}
    assert planned.keys() > generator.PENDING, "these are not planned"
    files = {SHIPPED / f"{name}.json": planned[name] for name in planned.keys() - generator.PENDING}
    assert {*SHIPPED.rglob("*.json")} == files.keys(), "what is measured is not PENDING in generate.py"
    for path, one in files.items():
        content = json.loads(path.read_text(encoding="utf-8"))
        weights = ROOT / "bundles" / f"{one.bundle}_segmentation" / "models" / "model.pt"
        assert content["source"]["weights_sha256"] == file_sha256(weights), "run docs/results/measure_bundles.py"
        assert content["settings"]["overrides"] == one.overrides
        names = [row["name"] for row in content["rows"]]
        assert names == ["shipped weights", *(f"trivial: {name}" for name in one.trivial)]


def test_a_trivial_answer_is_that_of_the_table_of_encoders():
    """Both mechanisms measure Otsu's threshold on the same 30 images."""
    kept = RESULTS / "runs/encoder_ph2/validation/trivial_otsu_on_the_blue_channel/seed.json"
    (told, *_) = json.loads(kept.read_text(encoding="utf-8"))["rows"]
    for path in SHIPPED.glob("dermoscopy_*/ph2_dermoscopy.json"):
        _, own = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for metric in ("dice_subject", "dice_pooled", "assd_px", "r_over"):
            assert own["metrics"][metric]["mean"] == pytest.approx(told["metrics"][metric]["mean"], abs=1e-6)


def test_trivial_rows_are_measured_on_what_the_bundle_reads(measuring, tmp_path):
    datalist = Path(make_phantoms(tmp_path / "data", kind="skin", subjects=(1, 2, 1))) / "datalist.json"
    bundle = next(bundle for bundle in BUNDLES if bundle.name == "dermoscopy_cam_segmentation")
    words = {"dataset_dir": str(datalist.parent), "output_dir": str(tmp_path / "out")}
    (row,) = measuring.trivial_rows(bundle, words, ("Otsu on blue",))
    expected = otsu_on_blue(datalist)
    assert row.metrics["dice_subject"]["mean"] == pytest.approx(expected["dice_subject"]["mean"], abs=1e-6)
    assert row.metrics["dice_subject"]["n"] == 2


def test_what_was_measured_is_not_measured_again(measuring, tmp_path, monkeypatch):
    calls = []

    def evaluate(**words: Any) -> None:
        calls.append(words)
        output = Path(words["output_dir"])
        output.mkdir(parents=True, exist_ok=True)
        record = {"versions": {"torch": "2"}, "config": {"split": "validation"}, "data": "/a/b"}
        (output / "run.json").write_text(json.dumps(record), encoding="utf-8")
        (output / "metrics.json").write_text('{"dice_subject": {"mean": 0.5, "n": 2}}', encoding="utf-8")

    monkeypatch.setattr(measuring.monai.bundle, "run", evaluate)
    datalist = Path(make_phantoms(tmp_path / "data", subjects=(2, 1, 1))) / "datalist.json"
    file = tmp_path / "shipped" / "phantom.json"
    one = measuring.Measurement("brain_mri_cam", "phantom", "brain_phantoms")
    outcomes = [measuring.measure(one, datalist, tmp_path / "out", file) for _ in range(2)]
    assert (outcomes, len(calls)) == ([True, False], 1)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert all(DIGEST.fullmatch(digest) for digest in content["source"].values())
    assert [Row(**row).metrics["dice_subject"]["mean"] for row in content["rows"]] == [0.5]
    assert str(tmp_path) not in file.read_text(encoding="utf-8")
    unrefined = measuring.Measurement("brain_mri_cam", "phantom", "brain_phantoms", {"refine": "par"})
    assert measuring.measure(unrefined, datalist, tmp_path / "out", file)
    assert [words.get("refine") for words in calls] == [None, "par"]
