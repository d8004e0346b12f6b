# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The documents keep their word: links lead somewhere, Python blocks run, commands are typed.

Commands whose data cannot be here (BraTS, VOC, the datasets of the benchmark) are typed all the same: they must get as
far as missing the data.  Trainings are typed with ``--epochs 1`` behind them; the slow tests do that.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from PIL import Image

import monai_wsss
from monai_wsss.__main__ import main
from monai_wsss.data import load_datalist, make_phantoms

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = [*PAGES, *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("bundles/*/docs/*.md"))]
HEIGHT = 64  # of phantoms
MADE = {
    "monai_wsss/methods/mirror.py",
    "tests/methods/test_mirror.py",
    "monai_wsss/data/two_folders.py",
    "tests/data/test_two_folders.py",
}
"""Files that a reader is to write."""
NOT_TYPED = {
    "git clone": "there is no address yet",
    ".venv/bin/pre-commit": "it changes the checkout",
    ". .venv/bin/activate": "the tests run in an environment already",
    "make setup": "it installs",
}
"""Beginnings of commands that no test types, and why."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[str]:
    """The commands of a bash block: without comments, continued lines joined."""
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith(tuple(NOT_TYPED))]


def commands(page: Path) -> list[str]:
    """The commands of a page."""
    return [command for block in fences(page, "bash") for command in commands_of(block)]


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", dict.fromkeys(EVERY_PAGE), ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_text_exist(page):
    """Names of files of this repository in backticks, from the root, the package or the page's folder."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`((?:monai_wsss|tests|tutorials|bundles|docs|[a-z_]+)/[\w/]+\.(?:py|md|json|txt))`", text):
        places = [ROOT / name, ROOT / "monai_wsss" / name, page.parent / name, *ROOT.glob(f"bundles/*/{name}")]
        assert any(place.exists() for place in places) or name in MADE, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_text_exist(page):
    """Names in backticks that begin with a room of the package: `refinement.MaskRule`."""
    rooms = "|".join(monai_wsss.ROOMS)
    for name in re.findall(rf"`(?:monai_wsss\.)?((?:{rooms})\.\w+(?:\.\w+)*)`", page.read_text(encoding="utf-8")):
        assert locate(f"monai_wsss.{name}") is not None or name.endswith((".json", ".csv")), name


# ---- Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in; the random state is left as it was found."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    set_determinism(None)


def run_python(page: Path, *shorter: str) -> dict[str, Any]:
    """The names that a page's Python blocks leave behind, run in one go; ``shorter`` is replaced by something else."""
    code = "\n".join(fences(page, "python"))
    if shorter:
        assert shorter[0] in code
        code = code.replace(*shorter)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, name_of(page), "exec"), names)
    return names


def check_mask(mask: torch.Tensor) -> None:
    assert mask.dtype == torch.uint8
    assert mask.shape[1:] == (1, HEIGHT, HEIGHT)
    assert set(mask.unique().tolist()) <= {0, 1}


def test_pages_with_python_are_known():
    with_python = [name_of(page) for page in PAGES if fences(page, "python")]
    assert with_python == ["README.md", "docs/add_a_data_set.md", "docs/add_a_method.md", "docs/which_method.md"]


@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
def test_the_readme_s_python_takes_a_dozen_lines_and_gives_a_mask(elsewhere):
    page = ROOT / "README.md"
    assert len([line for line in fences(page, "python")[0].splitlines() if line]) <= 12
    check_mask(run_python(page, "max_epochs=8", "max_epochs=1")["mask"])


def test_several_methods_together_take_a_dozen_lines(elsewhere):
    page = ROOT / "docs" / "which_method.md"
    assert len([line for line in fences(page, "python")[0].splitlines() if line]) <= 12
    names = run_python(page)
    assert names["mask"].shape == names["entropy"].shape == (1, 1, 64, 64)
    assert names["entropy"].max() > 0


@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
def test_a_method_takes_sixty_lines_and_learns(elsewhere):
    page = ROOT / "docs" / "add_a_method.md"
    assert len([line for line in fences(page, "python")[0].splitlines() if line]) <= 60
    names = run_python(page)
    check_mask(names["mask"])
    with open("run/training_log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classification, mirror = ([float(row[name]) for row in rows] for name in ("classification", "mirror"))
    assert classification[-1] < 0.6 * classification[0]
    assert mirror[0] == 0 < mirror[-1] < 1


def test_an_adapter_takes_sixty_lines_and_its_data_can_be_trained_on(elsewhere):
    page = ROOT / "docs" / "add_a_data_set.md"
    adapter = fences(page, "python")[1]
    assert len([line for line in adapter.splitlines() if line]) <= 60
    run_python(page)
    items = load_datalist("prepared/datalist.json", "training", masks=True)
    assert len(items) == 28
    assert all(("mask" in item) == (item["label"] == [1]) for item in items)
    with pytest.raises(ValueError, match="Cannot open the folder"):
        run_python(page, 'prepare_two_folders("two_folders", "prepared")', 'prepare_two_folders("nowhere", "other")')


def test_the_method_of_the_page_is_what_it_says(elsewhere):
    """The second term by hand, its switch, and the masks that it refuses."""
    names: dict[str, Any] = {}
    exec(fences(ROOT / "docs" / "add_a_method.md", "python")[0], names)
    torch.manual_seed(0)
    method = names["MirrorConsistency"].tiny().eval()
    method.network.head.bias.data.fill_(1.0)  # so that maps are not negative throughout
    batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.tensor([[0.0], [1.0]])}
    maps, mirrored = (method.network(view).clamp(min=0) for view in (batch["image"], batch["image"].flip(-1)))
    first, second = ((one - one.min()) / (one.max() - one.min()) for one in (maps[1], mirrored[1]))
    expected = 10 * (first.flip(-1) - second).square().mean() / 2  # a mean over both images; the healthy one adds 0
    end = names["Progress"](epoch=9, iteration=9, fraction=0.9)
    assert method(batch, end)["mirror"].item() == pytest.approx(expected.item(), rel=1e-3)
    plain = type(method).from_preset(network=method.network, weight=0.0)
    assert list(plain(batch, end)) == ["classification"]
    with pytest.raises(ValueError, match="its batch holds `mask`"):
        method(batch | {"mask": batch["image"]}, end)


def test_the_method_of_the_page_goes_into_a_bundle_and_the_benchmark(elsewhere, monkeypatch):
    page = ROOT / "docs" / "add_a_method.md"
    first, *_, last = fences(page, "python")
    names: dict[str, Any] = {}
    exec(first + last, names)
    assert isinstance(names["recipe"].build(3, 2), names["MirrorConsistency"])
    monkeypatch.setattr("monai_wsss.methods.MirrorConsistency", names["MirrorConsistency"], raising=False)
    (block,) = fences(page, "json")
    network = {"_target_": "monai_wsss.networks.CAMEncoder.tiny"}
    parser = ConfigParser({"network": network, **json.loads(block)})
    assert parser.get_parsed_content("method").mirror.weight == 10
    parser["method#weight"] = 0
    parser.parse(reset=True)
    assert parser.get_parsed_content("method").mirror is None


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README has it: five images, their masks and the README's table.  Tests work on copies."""
    desk = tmp_path_factory.mktemp("desk")
    (table,) = fences(ROOT / "README.md", "csv")
    (desk / "labels.csv").write_text(table, encoding="utf-8")
    for folder in ("images", "masks"):
        (desk / folder).mkdir()
    phantoms = make_phantoms(desk / "drawn", modalities=("T1", "T1c", "FLAIR"), subjects=(4, 0, 0))
    items = load_datalist(f"{phantoms}/datalist.json", "training", masks=True)
    by_label = {number: [item for item in items if item["label"] == [number]] for number in (0, 1)}
    for row in csv.DictReader(table.splitlines()):
        item = by_label[int(row["tumor"])].pop()
        for source, sequence in zip(item["image"], ("T1", "T1c", "FLAIR"), strict=True):
            shutil.copyfile(source, desk / "images" / f"{row['id']}_{sequence}.png")
        if "mask" in item:
            shutil.copyfile(item["mask"], desk / "masks" / f"{row['id']}.png")
        else:
            Image.new("L", (HEIGHT, HEIGHT)).save(desk / "masks" / f"{row['id']}.png")
    for folder in ("new_images", "scans"):
        shutil.copytree(desk / "images", desk / folder)
    return desk


PREPARATIONS = {page: [command for command in commands(page) if command.startswith("monai-wsss ")] for page in PAGES}


def lacks_data(command: str, place: Path) -> bool:
    """Whether a command names a folder of data that is not there, or that no preparation has finished."""
    words = shlex.split(command)
    folders = [value for flag, value in pairwise(words) if flag in ("--root", "--data", "--images")]
    return any(not any((place / folder).glob("[!.]*")) for folder in folders)


@pytest.mark.parametrize("page", [page for page in PAGES if PREPARATIONS[page]], ids=name_of)
def test_our_own_commands_are_typed(page, desk, tmp_path, monkeypatch, capsys):
    work = shutil.copytree(desk, tmp_path / "work")
    monkeypatch.chdir(work)
    # Drawing all of the default subjects would take the time of ten tests.
    monkeypatch.setattr("monai_wsss.data.phantoms.make_phantoms", partial(make_phantoms, subjects=(2, 1, 1)))
    for command in PREPARATIONS[page]:
        absent = lacks_data(command, work)
        trains = command.startswith("monai-wsss train ")
        words = [*shlex.split(command)[1:], *(["--epochs", "1"] if trains else [])]
        code, printed = main(words), capsys.readouterr()
        # One epoch on five images teaches nothing, which is said.
        assert code in ([1] if absent else [0, 3] if trains else [0]), f"{command}\n{printed.err}"
        assert not absent or printed.err.startswith("error: "), command


MAKES = [command for page in PAGES for command in commands(page) if command.startswith("make")]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("command", dict.fromkeys(MAKES))
def test_makes_know_what_to_do(command):
    """Dry: it installs and trains.  The steps of ``make demo`` are those of the tests of every bundle."""
    words = [*shlex.split(command), "--dry-run", "--always-make"]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    if "demo" in command:
        bundle = re.search(r"BUNDLE=(\S+)", command)
        config = f"{bundle[1] if bundle else 'bundles/brain_mri_cam_segmentation'}/configs/train.json"
        assert config in printed
        assert (ROOT / config).is_file()


def test_every_command_is_typed_by_some_test():
    known = ("monai-wsss ", "make ", "python -m monai.bundle run ", "cd bundles/")
    rest = [command for page in PAGES for command in commands(page) if not command.startswith(known)]
    assert rest == []


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """One thread, no GPU, this checkout, and its interpreter under the names that the commands use."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def type_block(block: str, desk: Path, environment: dict[str, str]) -> None:
    """Type a bash block from the top of the desk, trainings with ``--epochs 1``; all must end well.

    Data that are not there, and phantoms, are left to the test that types our own commands.
    """
    place = desk
    for command in commands_of(block):
        if command.startswith("cd "):
            place = place / command.removeprefix("cd ")
        elif not (lacks_data(command, place) or command.startswith(("make ", "monai-wsss phantom"))):
            short = " --epochs 1" if "configs/train.json" in command and "evaluate.json" not in command else ""
            typed = ["bash", "-c", command + short]
            done = subprocess.run(typed, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


WITH_RUNS = [page for page in PAGES if any("monai.bundle run" in command for command in commands(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_RUNS, ids=name_of)
def test_bundles_run_as_written(page, desk, environment, tmp_path):
    work = shutil.copytree(desk, tmp_path / "work")
    shutil.copytree(ROOT / "bundles", work / "bundles", ignore=shutil.ignore_patterns("eval", "sample_data"))
    for block in fences(page, "bash"):
        type_block(block, work, environment)
    for command in commands(page):
        if "monai.bundle run" in command:
            output = re.search(r"--output_dir \.\./\.\./(\S+)", command)
            assert output, command
            assert list((work / output[1]).iterdir()), command
    if page.name == "README.md":  # what it says that you will see
        assert (work / "run" / "model.pt").is_file()
        assert len(list((work / "results" / "masks").iterdir())) == 1
        assert (work / "results" / "predictions.csv").is_file()
