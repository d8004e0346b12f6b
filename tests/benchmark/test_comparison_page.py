# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The page of a comparison, from made-up runs: what it tells, what it must never hold, and its use in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monai_wsss.benchmark import Outcome, Row, comparison_cases
from monai_wsss.benchmark.comparison_charts import reliability
from monai_wsss.benchmark.comparison_page import ComparedRow, write_comparison
from monai_wsss.benchmark.encoder_table import Decided, table_of
from monai_wsss.benchmark.kept_cases import read_kept_cases, write_kept_cases
from monai_wsss.benchmark.ladders import LADDERS
from monai_wsss.benchmark.method_measures import tell_subjects
from monai_wsss.benchmark.method_recipes import ALL_WEAK, ENSEMBLE, Pair
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.metrics import CaseTable

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "PATIENT_4711"
CAM, COSA, FULL, CMER = (Pair(method, "small") for method in ("cam", "cosa", "full", "cmer"))
DIGEST = "5e77" * 16
SIDE = 24


class MadeUp:
    """Cases as a prepared dataset gives them: eight subjects, each with two images of a finding and a healthy one."""

    def __init__(self, classes=("tumor",), *, side: int = SIDE, masks: bool = True) -> None:
        self.header = {"name": "made-up", "classes": list(classes), "background": True}
        self.modalities = ["T1", "FLAIR"]
        self.split = "validation"
        generator = np.random.default_rng(0)
        self.cases = []
        for subject in range(8):
            for number in range(3):
                mask = np.zeros((1, side, side), dtype=np.uint8)
                if number:
                    mask[0, 6 : 12 + number, 8:16] = 1 + (number - 1) % len(classes)
                case = {
                    "id": f"{SECRET}_{subject}_{number}",
                    "subject": f"{SECRET}_{subject}",
                    "label": np.array([float((mask == k).any()) for k in range(1, len(classes) + 1)]),
                    "image": generator.random((2, side, side), dtype=np.float32) + mask,
                }
                self.cases.append(case | ({"mask": mask} if masks else {}))

    def case_table(self) -> CaseTable:
        return CaseTable(self.header["classes"])

    def whole_maps(self, recipe, network):
        assert recipe is network is None
        return self.cases, []


def decided(
    data: MadeUp, shift: int, *, empty: int | None = None, false_alarm: int | None = None, uncertain: bool = False
) -> list[Decided]:
    """Move the references, so that a row of a larger shift is worse; one case is missed, one healthy one marked."""
    found = []
    for place, case in enumerate(data.cases):
        mask = torch.as_tensor(np.roll(case.get("mask", np.zeros((1, SIDE, SIDE), np.uint8)), shift, 1))
        if place == empty:
            mask = torch.zeros_like(mask)
        if place == false_alarm:
            mask[0, :5, :5] = 1
        scores = torch.stack([(mask[0] == k) * 0.7 + 0.1 for k in range(1, len(data.header["classes"]) + 1)])
        found.append(Decided(mask, case.get("mask"), None, scores, torch.full_like(scores, 0.1) if uncertain else None))
    return found


def measured(data: MadeUp, pair: Pair, folder, shift: int, **words) -> tuple[Outcome, ComparedRow]:
    choices = decided(data, shift, **words)
    table = table_of(data, data.cases, choices)
    metrics = table.summary(bootstrap=20)
    path = folder / f"{folder_name(pair.method)}.npz"
    write_kept_cases(path, table, choices, metrics)
    subjects = [row["dice"] for row in table.subject_rows] if len(data.header["classes"]) == 1 else [0.5] * 8
    tell_subjects(metrics, table)
    if "dice_subject" in metrics:
        metrics["dice_subject"]["subjects"] = subjects
    metrics |= {"steps": {"mean": 30}, "parameters": {"mean": 1234567}, "peak_memory_mb": {"mean": 512.0}}
    record = {
        "source": {"settings_sha256": DIGEST, "data_sha256": "da7a" * 16},
        "settings": {"seeds": [0], "row": pair.name, "recipe": {"steps": 30}},
        "version": "0.1.0",
        "code_sha256": "c0de" * 16,
        "versions": {"torch": "2"},
    }
    command = f"monai-wsss benchmark --methods {pair.method}"
    row = Row(pair.name, "", "validation", 0, metrics, 90.0, reads_masks=pair == FULL)
    return Outcome(pair, 0, row), ComparedRow(pair, command, [record], read_kept_cases(path, metrics))


CLIMBED = {
    ("base", "S", "validation", 0): 0.5, ("base", "S", "validation", 1): 0.6, ("+ GC", "S", "validation", 0): 0.5,
}  # fmt: skip
"""Rows of an ablation with their mIoU."""


def made_page(folder, data: MadeUp | None = None, metric: str = "dice_subject") -> str:
    data = data or MadeUp()
    found = [
        measured(data, CAM, folder, 4, empty=4, false_alarm=0),
        measured(data, COSA, folder, 2),
        measured(data, FULL, folder, 0),
    ]
    outcomes = [outcome for outcome, _ in found]
    outcomes += [
        Outcome(CMER, None, reason="One <modality> alone."),
        Outcome(Pair("bmp", "small"), 0, reason="RuntimeError: no memory left"),
    ]
    rows = [row for _, row in found]
    ladder = next(one for one in LADDERS if one.table == "cosa")
    rungs = ladder.climbed([Row(*seed, {"miou_pooled": {"mean": value}}) for seed, value in CLIMBED.items()])
    ladders = [(ladder, rungs)]
    path = write_comparison(folder / "comparison.html", "made-up, 30 steps", outcomes, metric, rows, data, ladders)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return made_page(tmp_path_factory.mktemp("page"))


class Parsed(HTMLParser):
    """Collect text, tags and attributes; fail on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def test_tells_ranks_costs_reasons_and_what_makes_a_row_again(page):
    text = Parsed(page).text
    for words in (
        "Research use only.",
        "Masks chose what Failures shows",
        "Dice per subject is that of 8 subjects with a finding.",
        "made-up, 30 steps. 3 runs, 3 of 5 rows measured.",
        "settings 1 full trained on masks small 1 1.000 [1.000, 1.000] 1.00",
        "settings 2 cosa small 1 0.7",
        "reason – cmer small",
        "Refused: One <modality> alone.",
        "cmer, small refused One <modality> alone.",
        "bmp, small, seed 0 failed RuntimeError: no memory left",
        "monai-wsss benchmark --methods cosa",
        f"Settings, SHA-256, seed 0 {DIGEST}",
        "Data, SHA-256 da7ada7a",
        "full small 30 1.5 512 1\u202f234\u202f567".replace("\u202f", " "),
        "Score map: pixel AUROC",
        "chosen with reference masks",
        "Highest: full supervision, small 1.000 at 0.10; cosa, small 0.7",
        "Calibration error: full supervision, small 0.1",
    ):
        assert words in text, words
    assert "p against cam" in text
    assert "Healthy clean: share of the healthy images whose mask is empty (n = 8)." in text
    assert "Class maps apart from the segmentation are measured of AFA, BMP and CoSA" in text
    assert "of the classifier nothing is measured apart" in text
    assert "Versions monai_wsss 0.1.0, torch 2" in text
    # 0.0078 = 2 / 2**8: all signs of eight subjects agree.
    assert text.count("0.008") == 2


def test_an_ablation_has_a_mark_for_each_part_and_a_step_from_the_first_row(page):
    text = Parsed(page).text
    section = text[text.index("CoSA, Table 3") :]
    assert "base no no no no no 2 0.550 ± 0.071 –" in section
    assert "+ GC ✓ yes no no no no 1 0.500 −0.050" in section


def test_cases_are_sorted_by_disagreement_with_all_rows_side_by_side(page):
    numbers = [int(number) for number in re.findall(r'<tbody id="case-(\d+)"', page)]
    assert sorted(numbers) == list(range(1, 25))
    assert 'aria-sort="descending"><button type="button">Disagreement' in page
    values = [re.findall(r'data-value="([^"]*)"', part) for part in page.split('<tbody id="case-')[1:]]
    differing = [float(value[3]) for value in values]
    assert differing == sorted(differing, reverse=True)
    # One row misses case 5, of which the others share 5 rows of 9, and one row alone marks the healthy case 1.
    assert numbers[:2] == [5, 1]
    assert differing[:2] == pytest.approx([22 / 27, 2 / 3])
    first = page[page.index(f'id="large-{numbers[0]}"') :]
    panels = re.findall(r'alt="Case \d+, ([^:]+): ', first[: first.index("</tbody>")])
    assert panels == ["FLAIR", "full supervision, small", "cosa, small", "cam, small"]


def test_the_worst_cases_of_a_row_are_the_missed_and_the_false_alarm(page):
    failures = page[page.index('<section id="failures">') : page.index('<section id="cases">')]
    of_cam = failures[failures.index("<h3>cam, small</h3>") :]
    assert '<a href="#case-5"><b>Case 5</b></a>: Dice 0.00, missed (lowest Dice)' in of_cam
    assert '<a href="#case-1"><b>Case 1</b></a>: false alarm, 25 pixels (most pixels on a healthy image)' in of_cam


@pytest.mark.parametrize("most", [1, 12, 23])
def test_says_how_many_cases_it_lists_and_lists_all_that_it_links_to(tmp_path, monkeypatch, page, most):
    assert "cases: those that differ most" not in page
    monkeypatch.setattr(comparison_cases, "LISTED", most)
    cut = made_page(tmp_path)
    listed, linked = (re.findall(pattern, cut) for pattern in (r'<tbody id="case-(\d+)"', r'href="#case-(\d+)"'))
    assert set(linked) <= set(listed)
    assert len(listed) == len(set(listed)) == max(most, len(set(linked))) < 24
    assert f"{len(listed)} of 24 cases: those that differ most, and all that Failures shows." in Parsed(cut).text
    # What is left of the table keeps its order.
    whole = re.findall(r'<tbody id="case-(\d+)"', page)
    assert listed == [number for number in whole if number in listed]


def test_names_no_case_loads_nothing_and_allows_its_own_script_alone(page, tmp_path):
    assert SECRET not in page
    assert str(tmp_path.parent) not in page
    parsed = Parsed(page)
    for name, value in parsed.attributes:
        assert name not in ("src", "href") or value.startswith(("data:", "#")), value
        assert not name.startswith("on")
    assert parsed.tags.count("script") == 1
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_several_classes_are_told_by_text_beside_their_colors(tmp_path):
    page = made_page(tmp_path, MadeUp(("core", "edema")))
    text = Parsed(page).text
    assert "Colors of the classes: core, edema." in text
    assert "mask in the colors of its classes" in page
    assert "Outlines:" not in text
    assert "core, all rows." in text
    assert "edema, all rows." in text


def test_without_masks_it_says_so_and_shows_masks_alone(tmp_path):
    data = MadeUp(masks=False)
    page = made_page(tmp_path, data, "image_auroc")
    text = Parsed(page).text
    assert "No image with a finding has a mask in this split" in text
    assert "No run kept score maps that were measured against reference masks." in text
    assert "image, without a reference" in text


def test_ensembles_show_their_uncertainty_and_sort_cases_by_it(tmp_path):
    data = MadeUp()
    pair = Pair(ALL_WEAK, "small")
    choices = [
        one._replace(uncertainty=torch.full((1, SIDE, SIDE), place / 100))
        for place, one in enumerate(decided(data, 1, empty=4))
    ]
    table = table_of(data, data.cases, choices)
    metrics = table.summary(bootstrap=20)
    write_kept_cases(tmp_path / "together.npz", table, choices, metrics)
    kept = read_kept_cases(tmp_path / "together.npz", metrics)
    assert kept.uncertain[7] == pytest.approx(0.07)
    assert kept.uncertainties([7])[7] == pytest.approx(np.full((1, SIDE, SIDE), 0.07), abs=1 / 255)
    for name in ("entropy", "disagreement"):
        metrics[f"error_auroc_{name}"] = {"mean": 0.75, "ci95": [0.7, 0.8], "without_error": 3, "without_right": 1}
    record = {
        "source": {"settings_sha256": DIGEST, "data_sha256": "da7a" * 16},
        "settings": {"members": [{"run": "cam, small, seed 0"}, {"run": "cosa, small, seed 0"}]},
        "versions": {"python": "3"},
    }
    members = ("cam, small, seed 0", "cosa, small, seed 0")
    outcome = Outcome(pair, None, Row(pair.name, "", "validation", None, metrics), members=members)
    single = measured(data, CAM, tmp_path, 4)
    assert single[1].cases.uncertainties([0]) == {}
    rows = [ComparedRow(pair, "monai-wsss benchmark", [record], kept, "cam, small: 3"), single[1]]
    path = write_comparison(tmp_path / "c.html", "made-up", [single[0], outcome], "dice_subject", rows, data)
    page = path.read_text(encoding="utf-8")
    text = Parsed(page).text
    assert "ensemble of all weak methods, small 0.750 [0.700, 0.800] – 0.750 [0.700, 0.800] – 3, 1" in text
    assert "2 runs" in text
    # Ensembles were kept without the version of the package.
    assert "Versions python 3" in text
    assert "Command monai-wsss benchmark Steps cam, small: 3" in text
    assert "ensemble of all weak methods, small: monai-wsss benchmark cam, small: 3" in text
    assert "Member cam, small, seed 0 Member cosa, small, seed 0" in text
    assert '">Uncertainty' in page
    fifth = page[page.index('<tbody id="case-5"') :]
    assert ">0.040<" in fifth[: fifth.index("</tr>")]
    assert "missed; uncertainty 0.040" in fifth[: fifth.index("</tbody>")]
    assert "outlines of reference and mask, uncertainty" in fifth[: fifth.index("</tbody>")]


def test_runs_without_kept_cases_are_named_and_lack_nothing_else(tmp_path):
    data = MadeUp()
    outcome, row = measured(data, CAM, tmp_path, 2)
    bare = ComparedRow(row.pair, row.command, row.records)
    path = write_comparison(tmp_path / "c.html", "made-up", [outcome], "dice_subject", [bare], data)
    text = Parsed(path.read_text(encoding="utf-8")).text
    assert "cam, small kept no cases" in text
    assert "No run kept its cases, so none are shown." in text


def test_kept_cases_are_small_and_belong_to_their_run(tmp_path):
    data = MadeUp(side=300)
    choices = decided(data, 3)
    table = table_of(data, data.cases, choices)
    metrics = table.summary(bootstrap=20)
    write_kept_cases(tmp_path / "a.npz", table, choices, metrics)
    kept = read_kept_cases(tmp_path / "a.npz", metrics)
    assert [mask.shape for mask in kept.masks] == [(128, 128)] * 24
    assert set(np.unique(np.stack(kept.masks))) == {0, 1}
    scores = kept.scores([1, 5])
    assert scores.keys() == {1, 5}
    assert scores[5].shape == (1, 128, 128)
    assert scores[5].max() == pytest.approx(0.8, abs=1 / 255)
    assert kept.rows[1]["dice"] == str(table.rows[1]["dice"])
    inside, outside = kept.pixels["tumor"]
    assert sum(inside) == sum(int((case["mask"] == 1).sum()) for case in data.cases)
    assert sum(inside) + sum(outside) == 24 * 300 * 300
    assert read_kept_cases(tmp_path / "a.npz", {**metrics, "dice_pooled": {"mean": 0.1}}) is None
    assert read_kept_cases(tmp_path / "b.npz", metrics) is None
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert read_kept_cases(tmp_path / "a.npz", metrics) is None


def test_calibration_is_right_for_scores_that_say_the_share():
    generator = np.random.default_rng(0)
    scores = generator.random(200_000)
    truth = generator.random(len(scores)) < scores
    steps = np.ceil(scores * 100).astype(int)
    inside, outside = (np.bincount(steps[part], minlength=101).tolist() for part in (truth, ~truth))
    found = reliability(inside, outside)
    assert len(found.score) == 10
    assert found.error < 0.01
    assert reliability(outside, inside).error == pytest.approx(0.5, abs=0.02)
    assert reliability([0] * 101, [0] * 101) is None


DRIVER = """
window.addEventListener("error", (event) => { document.body.dataset.errors = event.message; });
const order = (table) => [...table.tBodies].map((body) => body.id).join(" ");
const opened = () =>
  [...document.querySelectorAll("tr.large")].filter((row) => !row.hidden).map((row) => row.id).join(" ");
const heading = (table, text) =>
  [...table.querySelectorAll("thead button")].find((button) => button.textContent.trim() === text);
const [board, cases] = document.querySelectorAll("table.cases");
document.body.dataset.linked = opened();
document.body.dataset.before = order(board);
heading(board, "Method").click();
document.body.dataset.methods = order(board);
document.querySelector("#row-1 button.open").click();
document.body.dataset.opened = opened();
heading(cases, "Case").click();
document.body.dataset.cases = order(cases);
const first = document.querySelector("#case-1 button.open");
first.focus();
first.click();
document.body.dataset.panels = document.querySelectorAll("#large-1 img").length;
first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
document.body.dataset.focus = document.activeElement.closest("tbody").id;
document.body.dataset.wide = document.documentElement.scrollWidth > window.innerWidth;
"""


def seen_in_browser(page: str, folder, driver: str, *words: str, address: str = "") -> tuple[SimpleNamespace, str]:
    """Run a script at the end of the page, and give what it wrote on the body, and what the browser logged."""
    digest = base64.b64encode(hashlib.sha256(driver.encode()).digest()).decode()
    tested = page.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{driver}</script></body>"
    )
    (folder / "page.html").write_text(tested, encoding="utf-8")
    words = ("--enable-logging=stderr", "--virtual-time-budget=2000", *words, "--dump-dom")
    done = browse(folder, f"{(folder / 'page.html').as_uri()}{address}", *words)
    found = re.findall(r'data-([a-z]+)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout)[0])
    return SimpleNamespace(**dict(found)), done.stderr


def browse(folder, address: str, *words: str) -> subprocess.CompletedProcess:
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
        *words, address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


IN_A_BROWSER = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)


@IN_A_BROWSER
def test_opens_in_a_browser_sorts_and_shows_cases(page, tmp_path):
    seen, log = seen_in_browser(page, tmp_path, DRIVER, address="#case-7")
    assert "CONSOLE" not in log
    assert not hasattr(seen, "errors")
    assert seen.linked == "large-7"
    assert seen.before == "row-1 row-2 row-3 row-4 row-5"
    assert seen.methods == "row-5 row-3 row-4 row-2 row-1"
    assert seen.opened == "settings-1 large-7"
    assert seen.cases == " ".join(f"case-{number}" for number in range(1, 25))
    assert seen.panels == "4"
    assert seen.focus == "case-2"
    assert seen.wide == "false"


def crowded_page(folder) -> str:
    """Write a page as wide as pages become: many rows with long names, ensembles with uncertainty, long commands."""
    data = MadeUp()
    pairs = [Pair(method, "dense_pyramid") for method in ("cam", "gradcam++", "seam", "afa", "bmp", "cosa", "full")]
    pairs += [Pair(f"{ENSEMBLE}seeds: gradcam++", "dense_pyramid"), Pair(ALL_WEAK, "several encoders")]
    outcomes, rows = [], []
    for shift, pair in enumerate(pairs):
        outcome, row = measured(data, pair, folder, shift, uncertain=pair.is_ensemble)
        if pair.is_ensemble:
            outcome.row.metrics["error_auroc_entropy"] = {"mean": 0.75, "ci95": [0.7, 0.8]}
        command = f"monai-wsss benchmark --data DIR --out DIR --methods {','.join(one.method for one in pairs)}"
        members = tuple(one.name for one in pairs[:7]) if pair.is_ensemble else ()
        outcomes.append(replace(outcome, members=members))
        rows.append(replace(row, command=f"{command} --seeds 0,1,2 --budget {shift}-steps --split validation"))
    path = write_comparison(folder / "crowded.html", "made-up", outcomes, "dice_subject", rows, data)
    return path.read_text(encoding="utf-8")


PRINTED = """
for (const sheet of document.styleSheets)
  for (const rule of sheet.cssRules)
    if (rule instanceof CSSMediaRule && rule.conditionText === "print") rule.media.mediaText = "all";
const shown = (query) => [...document.querySelectorAll(query)].filter((one) => one.getClientRects().length).length;
document.body.dataset.commands = shown(".commands code");
document.body.dataset.buttons = shown(".board button.open");
document.body.dataset.needed = document.documentElement.scrollWidth;
document.body.dataset.given = window.innerWidth;
"""


@IN_A_BROWSER
def test_on_paper_the_commands_stand_in_place_of_the_buttons(tmp_path):
    page = crowded_page(tmp_path)
    # The width of a landscape page of the paper "letter" between margins of 15 mm, in CSS pixels.
    seen, _ = seen_in_browser(page, tmp_path, PRINTED, "--hide-scrollbars", "--window-size=942,700")
    assert (seen.commands, seen.buttons) == ("9", "0")
    assert int(seen.needed) <= int(seen.given) == 942


@IN_A_BROWSER
def test_the_printed_page_lies_on_its_side_and_nothing_is_wider(tmp_path):
    # A page that needs more width than the paper has is printed smaller as a whole, and this link with it.
    link = '<a href="https://example.org" style="display:block;width:400px;height:20px">400 px</a>'
    (tmp_path / "page.html").write_text(crowded_page(tmp_path).replace("</header>", f"{link}</header>"), "utf-8")
    browse(tmp_path, (tmp_path / "page.html").as_uri(), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pdf = (tmp_path / "page.pdf").read_bytes()
    for box in set(re.findall(rb"/MediaBox ?\[([^]]+)\]", pdf)):
        _, _, width, height = map(float, box.split())
        assert width > height
    (marked,) = (part for part in pdf.split(b"endobj") if b"(https://example.org" in part)
    left, _, right, _ = map(float, re.search(rb"/Rect ?\[([^]]+)\]", marked)[1].split())
    assert right - left == pytest.approx(400 * 72 / 96, abs=2)
