# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The page of a run folder: its content, its sentences on missing pieces, and what it must never hold."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from monai_wsss._checks import DataError
from monai_wsss.metrics import CaseTable
from monai_wsss.reports import collect_provenance, render_panel, write_report, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "PATIENT_4711"


def study(generator, *, diseased, channels=3, size=64):
    """Draw a brain-like slice, a map that is nearly right, its mask and the reference."""
    x, y = np.ogrid[:size, :size]
    brain = ((x - 32) / 22) ** 2 + ((y - 32) / 28) ** 2 < 1
    cx, cy, rx, ry = generator.integers((22, 20, 4, 4), (42, 44, 9, 9))
    reference = (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1) & brain & diseased
    texture = gaussian_filter(generator.normal(size=(channels, size, size)), (0, 2, 2))
    image = brain * (0.6 + 0.5 * texture + np.linspace(0.15, 0.6, channels)[:, None, None] * reference)
    shift = generator.integers(-3, 4, 2)
    strength = generator.uniform(0.35, 1) if diseased else max(0, generator.uniform(-2.5, 0.7))
    blob = np.roll(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1.3, shift, (0, 1))
    cam = (strength * gaussian_filter(blob.astype(float), 2)).clip(0, 1)
    return image, cam, (cam > 0.3).astype(np.uint8), reference.astype(np.uint8)


def fake_run_folder(folder: Path, *, classes=("tumor",), uses_masks=(), subjects=10, seed=0) -> Path:
    """Write a run folder as an evaluation of brain slices would leave it, with subjects named after a secret."""
    generator = np.random.default_rng(seed)
    table = CaseTable(classes)
    (folder / "panels").mkdir(parents=True)
    for s in range(subjects):
        for z in range(6):
            image, cam, mask, reference = study(generator, diseased=bool(s % 5 and z % 2))
            label = np.zeros(len(classes))
            label[0] = reference.any()
            maps = np.concatenate([cam[None], np.zeros((len(classes) - 1, *cam.shape))])
            presence = label * 1.5 + generator.normal(size=len(classes))
            table.add(
                id=f"{SECRET}_{s}_{z}", subject=f"{SECRET}_{s}", label=label, prediction=mask[None],
                reference=reference[None], spacing=(2.0, 2.0), presence=presence, cam=maps,
            )  # fmt: skip
            panel = render_panel(image, cam, mask, reference, channel_names=["T1", "T1c", "FLAIR"])
            (folder / "panels" / f"{len(table.rows)}.png").write_bytes(panel)
    table.write(folder, bootstrap=200)
    weights = folder / "model.pt"
    weights.write_bytes(b"weights")
    config = {"epochs": 8, "pooling": "max", "rule": "negative_reference", "dataset_dir": str(Path.home() / "data")}
    run = collect_provenance(config=config, seed=0, data=weights, weights=weights, uses_masks=uses_masks)
    write_run(folder, run)
    weights.unlink()
    write_training_log(folder, generator)
    return folder


def write_training_log(folder, generator):
    with (folder / "training_log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", "classification", "val_dice_subject", "val_iou_pooled", "val_mean_dice"])
        for epoch in range(1, 13):
            loss = 0.7 * np.exp(-epoch / 5) + 0.02 * generator.random()
            dice = f"{0.6 * (1 - np.exp(-epoch / 4)):.3f}" if epoch % 2 == 0 else ""
            writer.writerow([epoch, f"{loss:.4f}", f"{loss * 0.8:.4f}", dice, dice, dice])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return fake_run_folder(tmp_path_factory.mktemp("run") / "evaluation")


@pytest.fixture(scope="module")
def page(run_folder):
    return write_report(run_folder).read_text(encoding="utf-8")


class Checker(HTMLParser):
    """A parser that collects text and tags, and fails on tags that do not close."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def test_shows_every_number_with_its_interval_and_definition(page, run_folder):
    text = Checker(page).text
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics) == 20
    for name, entry in metrics.items():
        digits = 2 if name.startswith(("a", "hd95", "r_")) and name != "accuracy" else 3
        assert f"{name} {entry['mean']:.{digits}f}" in text, name
        assert f"{entry['ci95'][0]:.{digits}f} to {entry['ci95'][1]:.{digits}f}" in text, name
    assert "Share of the healthy images whose mask is empty." in text
    for note in (run_folder / "notes.txt").read_text(encoding="utf-8").splitlines():
        assert note in text
    for words in (
        "Research use only. Not for diagnosis",
        "Supervision: image-level labels only.",
        "This curve reads the reference masks, so no threshold was chosen on it.",
        f"Weights, SHA-256 {hashlib.sha256(b'weights').hexdigest()}",
        "Version of monai_wsss 0.1.0",
        '"pooling": "max"',
        "60 cases of 10 subjects: 24 with a finding in the reference, 36 healthy.",
    ):
        assert words in text, words


def test_shows_the_chosen_cases_by_their_rows(page, run_folder):
    rows = list(csv.DictReader((run_folder / "per_case.csv").open()))
    dice = {int(row["row"]): float(row["dice"]) for row in rows if row["finding"] == "1"}
    best, worst = max(dice, key=dice.get), min(dice, key=dice.get)
    text = Checker(page).text
    positions = [
        text.index(words)
        for words in (
            "Best cases",
            f"Row {best} of per_case.csv: Dice {dice[best]:.2f}",
            "Median cases",
            "Worst cases",
            f"Row {worst} of per_case.csv: Dice {dice[worst]:.2f}",
            "Healthy images with a mask",
            "pixels marked",
        )
    ]
    assert positions == sorted(positions)
    picture = base64.b64encode((run_folder / "panels" / f"{best}.png").read_bytes()).decode()
    assert picture in page


def test_charts(page):
    checker = Checker(page)
    assert checker.tags.count("svg") == checker.tags.count("title") - 1 + page.count('class="bar"')
    for title in (
        "Dice against the threshold of the map, tumor",
        "Dice of each subject",
        "loss by epoch",
        "val_dice_subject by epoch",
        "val_mean_dice by epoch",
    ):
        assert title in page
    assert "val_iou_pooled by epoch" not in page  # only the headlines of the validation metrics are drawn


def script_of(page):
    return re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]


def digest_of(script):
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def test_holds_no_identifier_no_remote_asset_and_no_script_but_its_own(page):
    assert SECRET not in page
    assert str(Path.home()) not in page
    without_pictures = re.sub(r"(?<=base64,)[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|url\(|@import", without_pictures)
    checker = Checker(page)
    assert not {"link", "iframe", "object", "form", "base"} & set(checker.tags)
    assert checker.tags.count("script") == 1
    assert f"script-src '{digest_of(script_of(page))}'" in page
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-" in page
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert all(
        re.match(r"data:image/(png|jpeg|webp);base64,", value) for name, value in checker.attributes if name == "src"
    )
    ids = {value for name, value in checker.attributes if name == "id"}
    for value in [value for name, value in checker.attributes if name == "href"]:
        assert value[1:] in ids if value.startswith("#") else re.fullmatch(r"panels/\d+\.png", value)
    assert page.count("<img") == page.count(" alt=")


def test_text_is_escaped_wherever_it_comes_from(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=y>\"'"
    folder = fake_run_folder(tmp_path / "run", classes=("tumor", evil), uses_masks=[evil], subjects=6)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run |= {"git_commit": evil, "time_utc": evil, "config": {evil: evil}, "versions": {evil: evil}}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "notes.txt").write_text(evil)
    (folder / "training_log.csv").write_text(f'epoch,"{evil.replace(chr(34), chr(34) * 2)}"\n1,0.5\n2,0.4\n')
    page = write_report(folder).read_text(encoding="utf-8")
    checker = Checker(page)
    assert checker.tags.count("script") == 1
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in page
    assert "used pixel masks: <script>" in checker.text
    assert f"specificity/{evil}" in checker.text
    assert f"{evil} , last 0.4" in checker.text


def test_several_classes(tmp_path):
    folder = fake_run_folder(tmp_path / "run", classes=("core", "edema"), uses_masks=["training targets"], subjects=6)
    text = Checker(write_report(folder).read_text(encoding="utf-8")).text
    assert "Supervision: used pixel masks: training targets." in text
    assert text.index("dice_subject ") < text.index("dice_subject/core") < text.index("dice_pooled ")
    assert "core. Oracle: per subject" in text
    assert "edema. Oracle" not in text  # no reference holds edema, so there is no curve
    assert "dice_pooled/edema" in text[text.index("Left out, since") :]


def test_headings_follow_the_background_of_the_data(run_folder, tmp_path):
    """Check headings against ``run.json``; an older file does not say, and the heading then leaves it open."""
    shutil.copy(run_folder / "metrics.json", tmp_path)
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    headings = {
        "Averaged with the background, as some papers do": {"background": True, "scored_class": None},
        "Averaged over the classes, all of them real tissue": {"background": False, "scored_class": "<gland>"},
        "Averaged over the classes, the background among them if there is one": {},
    }
    for heading, record in headings.items():
        (tmp_path / "run.json").write_text(json.dumps(run | record))
        text = Checker(write_report(tmp_path).read_text(encoding="utf-8")).text
        assert [other for other in headings if other in text] == [heading]
        assert ("The foreground of a number that names no class is <gland>" in text) == ("<gland>" in record.values())


def test_classes_that_are_all_tissue_have_no_healthy_images(tmp_path):
    table = CaseTable(["gland", "other"], background=False, scored_class="gland")
    mask = np.repeat([[[1, 2]]], 8, axis=1)
    table.add(id="a", subject="a", label=np.ones(2), prediction=mask, reference=mask)
    table.write(tmp_path, bootstrap=2)
    write_run(tmp_path, {"uses_masks": [], "background": False, "scored_class": "gland"})
    text = Checker(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "1 case of 1 subject. " in text
    assert "healthy." not in text
    assert "Averaged with the background" not in text


PIECES = {
    "run.json": "run.json is missing in this folder: versions, seed",
    "metrics.json": "metrics.json is missing in this folder, so there are no numbers",
    "per_case.csv": "per_case.csv is missing in this folder, so no cases",
    "per_subject.csv": "per_subject.csv is missing in this folder",
    "sweep.json": "sweep.json is missing in this folder: no maps were swept, or",
    "training_log.csv": "training_log.csv is missing in this folder or empty",
    "panels": "is missing.",
}


@pytest.mark.parametrize("piece", PIECES)
def test_a_missing_piece_is_said_in_a_sentence(run_folder, tmp_path, piece):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder, ignore=lambda *_: [piece])
    assert not (folder / piece).exists()
    text = Checker(write_report(folder).read_text(encoding="utf-8")).text
    for name, words in PIECES.items():
        assert (words in text) == (name == piece), name


def test_each_piece_alone_gives_a_page(run_folder, tmp_path):
    for name in ("run.json", "metrics.json", "per_case.csv"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        shutil.copy(run_folder / name, folder)
        Checker(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("content", ["{", "[1]", '{"dice_subject": {"mean": "x"}}', '{"a": 1}', '"a"'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics.json does not hold what .* run the evaluation anew"):
        write_report(tmp_path)


def test_broken_tables_are_named(run_folder, tmp_path):
    for name, content in (
        ("per_case.csv", "row,id\n1,a\n"),
        ("per_subject.csv", "subject,dice\na,high\n"),
        ("sweep.json", '{"classes": {"tumor": {"dice_subject": []}}}'),
        ("training_log.csv", "loss\n1\n"),
        ("run.json", "[]"),
    ):
        folder = tmp_path / name.replace(".", "_")
        shutil.copytree(run_folder, folder)
        (folder / name).write_text(content)
        with pytest.raises(DataError, match=f"{name} does not hold"):
            write_report(folder)


def test_empty_tables_and_a_run_without_findings(tmp_path):
    table = CaseTable(["tumor"])
    table.add(id="a", subject="a", label=np.zeros(1), prediction=np.zeros((1, 8, 8)))
    table.write(tmp_path, bootstrap=2)
    (tmp_path / "training_log.csv").write_text("epoch,loss\n")
    text = Checker(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "No case has a finding in the reference or a false alarm" in text
    assert "No subject has a finding in the reference" in text
    assert "Supervision: not recorded" in text


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(DataError, match=r"is no run folder: it holds none of run.json, metrics.json and per_case.csv"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="is no run folder"):
        write_report(tmp_path / "nowhere")


def test_a_row_per_case_with_its_own_picture(page, run_folder):
    rows = list(csv.DictReader((run_folder / "per_case.csv").open()))
    parts = re.findall(r'<tbody id="case-(\d+)">(.*?)</tbody>', page, re.DOTALL)
    assert [int(number) for number, _ in parts] == list(range(1, 61))
    smalls = [re.search(r'src="(data:image/jpeg[^"]+)"', part)[1] for _, part in parts]
    assert len(set(smalls)) > 50
    for row, (number, part) in zip(rows, parts, strict=True):
        values = re.findall(r'data-value="([^"]*)"', part)
        assert values[0] == number
        assert values[1] == str(int(row["subject"].rpartition("_")[2]) + 1)
        assert values[3] == (str(float(row["dice"])) if row["finding"] == "1" else "")
        words = re.search(r"(found|elsewhere|missed|clean|false alarm)</td>", part)[1]
        assert (words in ("clean", "false alarm")) == (row["healthy"] == "1")
        assert f"panels/{number}.png" in part


def one_subject(folder, prediction, healthy=False):
    mask = np.zeros((1, 8, 8), dtype=np.uint8)
    mask[0, 2:6, 2:6] = 1
    table = CaseTable(["tumor"])
    table.add(id="a1", subject="a", label=np.ones(1), prediction=prediction * mask, reference=mask)
    if healthy:
        table.add(id="a2", subject="a", label=np.zeros(1), prediction=mask)
    table.write(folder, bootstrap=5)
    return write_report(folder).read_text(encoding="utf-8")


def test_one_subject_has_no_interval(tmp_path):
    page = one_subject(tmp_path, 1)
    text = Checker(page).text
    assert "one subject: no interval" in text
    assert "All cases are of one subject" in text
    assert "1.000 to 1.000" not in text
    assert 'class="bar"' not in page


def test_warnings_stand_on_top(tmp_path):
    text = Checker(one_subject(tmp_path, 0, healthy=True)).text
    for words in (
        "Masks hardly overlap the reference: mean Dice per subject 0.00.",
        "The mask does not touch the finding in 1 of 1 case that have one.",
        "1 of 1 healthy case got a mask.",
    ):
        assert text.index(words) < text.index("Pictures") < text.index("dice_subject")


def test_data_and_bundle_are_in_the_title(run_folder, tmp_path):
    shutil.copy(run_folder / "per_case.csv", tmp_path)
    write_run(tmp_path, {"data": "<ours>", "config": {"bundle": "brain", "split": "test"}, "time_utc": "2026-01-02"})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<title>Segmentation of &lt;ours&gt; by brain, 2026-01-02</title>" in page
    assert "<h1>Segmentation of &lt;ours&gt;</h1>" in page


DRIVER = """
addEventListener("error", (event) => { document.body.dataset.errors = event.message; });
const order = () => [...document.querySelectorAll("table.cases tbody")].map((body) => body.id.slice(5)).join(" ");
const dice = [...document.querySelectorAll("table.cases th button")].find((one) => one.textContent === "Dice");
const openCases = () => [...document.querySelectorAll("tr.large")].filter((row) => !row.hidden).map((row) => row.id);
document.body.dataset.linked = openCases().join(" ");
dice.click();
document.body.dataset.up = order();
dice.click();
document.body.dataset.down = order();
document.body.dataset.sort = dice.closest("th").getAttribute("aria-sort");
const second = document.querySelector("#case-2 button.open");
second.focus();
second.click();
document.body.dataset.opened = openCases().join(" ");
second.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
document.body.dataset.closed = openCases().join(" ");
second.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
document.body.dataset.focus = document.activeElement.closest("tbody").id;
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_opens_in_a_browser_sorts_and_shows_a_case(run_folder, page, tmp_path):
    tested = page.replace("script-src ", f"script-src '{digest_of(DRIVER)}' ")
    (tmp_path / "page.html").write_text(
        tested.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8"
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
        f"{(tmp_path / 'page.html').as_uri()}#case-7",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    dom = Checker(done.stdout)
    assert "Segmentation report" in dom.text
    for name in json.loads((run_folder / "metrics.json").read_text(encoding="utf-8")):
        assert name in dom.text
    assert dom.tags.count("img") == page.count("<img") >= 10
    assert dom.tags.count("polyline") == page.count("<polyline") >= 5
    assert "CONSOLE" not in done.stderr
    assert "Content Security Policy" not in done.stderr
    seen = {name: value for name, value in dom.attributes if name.startswith("data-") and name != "data-value"}
    assert "data-errors" not in seen
    rows = list(csv.DictReader((run_folder / "per_case.csv").open()))
    scored = [row for row in rows if row["finding"] == "1"]
    unscored = [row["row"] for row in rows if row["finding"] != "1"]
    upward = [row["row"] for row in sorted(scored, key=lambda row: float(row["dice"]))]
    assert seen["data-up"].split() == [*upward, *unscored]
    downward = seen["data-down"].split()
    assert [dict(zip([r["row"] for r in rows], rows, strict=True))[n]["dice"] for n in downward[: len(scored)]] == [
        row["dice"] for row in sorted(scored, key=lambda row: -float(row["dice"]))
    ]
    assert set(downward[len(scored) :]) == set(unscored)
    assert seen["data-sort"] == "descending"
    assert seen["data-linked"] == "large-7"
    assert set(seen["data-opened"].split()) == {"large-2", "large-7"}
    assert seen["data-closed"] == "large-7"
    assert seen["data-focus"] == f"case-{downward[downward.index('2') + 1]}"
