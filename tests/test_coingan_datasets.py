# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The five data sets of CoinGAN's paper: the commands of the READMEs, typed on small trees of the same layout.

Each set is prepared with the paper's split, trained by ``paper.json`` for an epoch and measured by its protocol.
The commands are those of the bundles' READMEs; what makes them small stands in ``SMALL`` and ``NARROW``.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from test_every_bundle import ROOT, offline, read_json, read_rows, run, start

from monai_wsss.__main__ import main
from monai_wsss.data import lesion_boxes, load_datalist, prepare_qata
from monai_wsss.data.writing import write_nifti
from monai_wsss.reports import intensities

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

CHEST = ROOT / "bundles" / "chest_xray_coingan_segmentation"

# A generator of four channels has learned nothing after an epoch.
pytestmark = pytest.mark.filterwarnings("ignore:Epoch .*")

NARROW: dict[str, Any] = {
    "grid": [32, 32],
    "batch_size": 4,
    "network_def#width": 4,
    "network_def#num_res_blocks": 1,
    "method#ndf": 4,
}
"""Overrides of every run: 32 x 32 pixels, 4 channels, one residual block."""

SHORT = {"epochs": 1, "val_interval": 1}
"""Overrides of a training: one epoch, measured at its end where the split holds validation images."""

PAPER_METRICS = {
    f"paper_{metric}"
    for metric in (
        "dice_macro_pooled", "miou_pooled", "dice_pooled", "iou_pooled", "accuracy", "sensitivity", "specificity",
        "assd_px",
    )
}  # fmt: skip

SMALL = {"isic": ["--size", "48"], "monuseg": ["--crop", "48"]}
"""What is appended to `prepare` of sets that it cuts into images of 224 pixels."""


# ---- trees -----------------------------------------------------------------------------------------------------------


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def rectangle(shape: tuple[int, ...], value: float = 255) -> np.ndarray:
    """An image of zeros with a rectangle in its middle."""
    made = np.zeros(shape)
    made[tuple(slice(side // 3, 2 * side // 3) for side in shape)] = value
    return made


def make_qata(root: Path) -> None:
    """Ten X-rays with pneumonia, brighter where it is, and ten controls."""
    for number in range(10):
        noise = np.random.default_rng(number).integers(20, 120, (2, 40, 48))
        for kind, healthy in (("Train Set", False), ("Control_Group", True)):
            name = f"{'healthy' if healthy else 'covid'}_{number}.png"
            folder = root / kind if healthy else root / kind / "Images"
            save(folder / name, noise[int(healthy)] + (0 if healthy else rectangle((40, 48), 100)))
            if not healthy:
                save(root / kind / "Ground-truths" / f"mask_{name}", rectangle((40, 48)))


def make_isic(root: Path) -> None:
    """Skin with a dark lesion: six images for training, and two of the released validation set."""
    for split, numbers in (("Training", range(6)), ("Validation", range(6, 8))):
        for number in numbers:
            skin = np.random.default_rng(number).integers(190, 210, (64, 96, 3)) - rectangle((64, 96), 120)[..., None]
            save(root / f"ISIC2018_Task1-2_{split}_Input" / f"ISIC_{number:07d}.jpg", skin)
            truth = root / f"ISIC2018_Task1_{split}_GroundTruth"
            save(truth / f"ISIC_{number:07d}_segmentation.png", rectangle((64, 96)))


def make_monuseg(root: Path) -> None:
    """Tissue of five patients with an outlined dark nucleus in each quarter of a tile."""
    corners = [(x, y) for x in (10, 60) for y in (10, 60)]
    for number in range(5):
        name = f"TCGA-18-000{number}-01Z-00-DX1"
        tissue = np.random.default_rng(number).integers(170, 230, (100, 100, 3))
        regions = ""
        for x, y in corners:
            tissue[y : y + 12, x : x + 12] = (90, 60, 120)
            outline = ((x, y), (x + 12, y), (x + 12, y + 12), (x, y + 12))
            vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in outline)
            regions += f"<Region><Vertices>{vertices}</Vertices></Region>"
        save(root / "Tissue Images" / f"{name}.tif", tissue)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<Annotations>{regions}</Annotations>", encoding="utf-8")


def make_brats(root: Path) -> None:
    """Ten subjects with a tumor in the upper of six slices, bright on FLAIR."""
    for number in range(10):
        name = f"BraTS2021_{number:05d}"
        brain, tumor = np.zeros((24, 20, 6)), np.zeros((24, 20, 6))
        brain[4:20, 3:17] = np.random.default_rng(number).integers(80, 120, (16, 14, 6))
        tumor[8:14, 6:12, 3:] = 1
        for word, values in (("flair", brain + 100 * tumor), ("seg", tumor)):
            write_nifti(root / name / f"{name}_{word}.nii.gz", values, np.eye(4))


def make_mela(root: Path) -> None:
    """Four scans for training, one to validate and two to test, with small and large boxes in turn."""
    for number, split in enumerate(("train",) * 4 + ("val", "test", "test")):
        side = 4 + 4 * (number % 2)
        volume = np.random.default_rng(number).integers(-200, 300, (24, 20, 8)).astype(np.float64)
        write_nifti(root / split.capitalize() / f"mela_{number}.nii.gz", volume, np.eye(4))
        table = root / f"{split}.csv"
        head = "public_id,coordX,coordY,coordZ,x_length,y_length,z_length"
        rows = table.read_text(encoding="utf-8") if table.exists() else head
        table.write_text(f"{rows}\nmela_{number},12,10,4,{side},{side},2", encoding="utf-8")


class DataSet(NamedTuple):
    """A data set of the paper.

    Attributes:
        bundle: whose README has its commands.
        make: writes a small tree of its layout.
        splits: images with a finding and without, in training, validation and test.
        scored: the split that the paper measures.
        white: what becomes 1 in [-1, 1].
    """

    bundle: str
    make: Callable[[Path], None]
    splits: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    scored: str
    white: float


DATA_SETS = {
    "qata": DataSet("chest_xray", make_qata, ((8, 8), (0, 0), (2, 2)), "test", 255),
    "isic": DataSet("chest_xray", make_isic, ((6, 6), (0, 0), (2, 0)), "test", 255),
    "monuseg": DataSet("chest_xray", make_monuseg, ((16, 16), (0, 0), (4, 0)), "test", 255),
    "brats": DataSet("brain_mri", make_brats, ((24, 24), (3, 3), (3, 3)), "validation", 65535),
    "mela": DataSet("brain_mri", make_mela, ((2, 2), (1, 0), (1, 1)), "test", 65535),
}


# ---- commands --------------------------------------------------------------------------------------------------------


def bundle_of(name: str) -> Path:
    return ROOT / "bundles" / f"{DATA_SETS[name].bundle}_coingan_segmentation"


def commands(name: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The words of `prepare`, and the options of the training and of the evaluation, as the README has them."""
    text = (bundle_of(name) / "docs" / "README.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    prepare, *runs = (shlex.split(line) for line in lines if f"/my/{name}" in line)
    assert prepare[:3] == ["monai-wsss", "prepare", name]
    train, evaluate = map(options, runs)
    assert train.pop("config_file") == ["configs/train.json", "configs/paper.json"]
    assert evaluate.pop("config_file") == ["configs/train.json", "configs/evaluate.json", "configs/paper.json"]
    assert evaluate.pop("protocol") == "paper"
    return prepare[2:], train, evaluate


def options(words: list[str]) -> dict[str, Any]:
    """The options of a command, as `python -m monai.bundle run` reads them."""
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    return {name.removeprefix("--"): read(value) for name, value in zip(words[4::2], words[5::2], strict=True)}


def read(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value


@pytest.fixture(scope="module", params=DATA_SETS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prepared(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's `prepare` writes from the small tree."""
    my = tmp_path_factory.mktemp(name)
    DATA_SETS[name].make(my / name)
    words = [word.replace("/my", str(my)) for word in commands(name)[0]]
    assert main(["prepare", *words, *SMALL.get(name, [])]) == 0
    return my / f"{name}_prepared"


def test_the_split_is_that_of_the_paper(name, prepared):
    found = []
    for split in ("training", "validation", "test"):
        labels = [int(item["label"].any()) for item in load_datalist(prepared / "datalist.json", split)]
        found.append((sum(labels), len(labels) - sum(labels)))
    assert tuple(found) == DATA_SETS[name].splits
    assert read_json(prepared / "datalist.json")["split"] == "paper"


FOLDERS = ("dataset_dir", "output_dir", "ckpt_dir", "num_workers")


def of_data(told: dict[str, Any]) -> dict[str, Any]:
    """The options of a command that say what the data are."""
    return {key: value for key, value in told.items() if key not in (*FOLDERS, "split")}


def test_it_is_trained_for_an_epoch_and_measured_as_in_the_paper(name, prepared, tmp_path, monkeypatch):
    drawn: list[Any] = []
    render = intensities.render_conversions
    monkeypatch.setattr(
        intensities,
        "render_conversions",
        lambda *words, **more: (drawn.append(more["boxes"]), render(*words, **more))[1],
    )
    _, train, evaluate = commands(name)
    of_set, words = DATA_SETS[name], of_data(train)
    assert of_data(evaluate) == words
    training = run(
        bundle_of(name), "train", tmp_path / "run", prepared, overlays=("paper.json",), **words, **NARROW, **SHORT
    )
    (row,) = read_rows(training / "training_log.csv")
    assert {"generator/adversarial", "discriminator/adversarial"} <= {key for key, value in row.items() if value}
    assert not {"generator/cycle", "generator/identity"} & row.keys()
    assert ("val_dice_pooled" in row) == (name == "brats"), "the other splits of the paper have no masks to validate by"
    record = read_json(training / "run.json")
    assert record["config"]["preset"] == "paper"

    assert evaluate.get("split", "validation") == of_set.scored
    scores = run(
        bundle_of(name), "evaluate", tmp_path / "scores", prepared, overlays=("paper.json",),
        ckpt_dir=str(training), protocol="paper", split=of_set.scored, **words, **NARROW,
    )  # fmt: skip
    metrics = read_json(scores / "metrics.json")
    measured = {key for key in metrics if key.startswith("paper_")}
    positive, healthy = of_set.splits[("training", "validation", "test").index(of_set.scored)]
    cover = f"cover the {0 if name == 'mela' else positive} images with a finding in label and reference alone"
    assert f"{cover}, resized to 224 x 224 pixels" in (scores / "notes.txt").read_text(encoding="utf-8")
    assert measured == (set() if name == "mela" else PAPER_METRICS)
    assert all(0 <= metrics[key]["mean"] <= 1 for key in measured - {"paper_assd_px"})
    assert len(read_rows(scores / "per_case.csv")) == positive + healthy
    (boxes,) = drawn
    assert all((box is not None) == (name == "mela") for box in boxes), "the progression grid marks the lesion"
    assert name != "mela" or set(boxes) <= set(lesion_boxes(prepared / "datalist.json").values())


ROWS: dict[str, dict[str, bool]] = {
    "backbone": {"use_cconv": False, "use_ca": False, "use_sa": False},
    "C-Conv": {"use_ca": False, "use_sa": False},
    "C-Conv, CA": {"use_sa": False},
    "C-Conv, SA": {"use_ca": False},
    "C-Conv, CA, SA": {},
}
"""Table 6: what is switched off in each row."""


@pytest.fixture(scope="module")
def qata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    my = tmp_path_factory.mktemp("rows")
    make_qata(my / "qata")
    return prepare_qata(my / "qata", my / "prepared", split="paper").parent


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_table_6_is_trained(row, qata, tmp_path):
    switches = {f"network_def#{word}": value for word, value in ROWS[row].items()}
    training = run(CHEST, "train", tmp_path / "run", qata, overlays=("paper.json",), **switches, **NARROW, **SHORT)
    state = torch.load(training / "model.pt", weights_only=True)
    assert any(name.startswith("contrastive") for name in state) == ("C-Conv" in row)
    assert any(name.startswith("attention") for name in state) == any(part in row for part in ("CA", "SA"))
    config = read_json(training / "run.json")["config"]
    assert [config[word] for word in ("use_cconv", "use_ca", "use_sa")] == [
        part in row for part in ("C-Conv", "CA", "SA")
    ]


def test_the_readme_names_the_rows_of_table_6():
    text = (CHEST / "docs" / "README.md").read_text(encoding="utf-8").partition("| parts |")[2].partition("\n\n")[0]
    found = {cells[0]: cells[1] for cells in re.findall(r"^\| (.+?) \| [\d.]+ \| (.+?) \|$", text, re.M)}
    expected = {
        row: " ".join(f"`--network_def#{word} {value}`" for word, value in switches.items()) or "nothing"
        for row, switches in ROWS.items()
    }
    assert found == {**expected, "C-Conv, CA, SA, saliency maps": "not described in the paper"}


def test_the_terms_of_the_backbone_are_one_more_overlay(qata, tmp_path):
    overlays = ("paper.json", "paper_cyclegan.json")
    training = run(CHEST, "train", tmp_path / "run", qata, overlays=overlays, **NARROW, **SHORT)
    (row,) = read_rows(training / "training_log.csv")
    assert {"generator/cycle", "generator/identity", "discriminator/reverse_adversarial"} <= row.keys()
    config = read_json(training / "run.json")["config"]
    assert (config["preset"], config["w_cycle"], config["w_identity"]) == ("paper_cyclegan", 10, 5)
    options = {"ckpt_dir": str(training), "overlays": overlays, **NARROW}
    del options["batch_size"], options["method#ndf"]  # of a training alone
    masks = run(CHEST, "inference", tmp_path / "masks", qata, **options)
    found = [np.asarray(Image.open(path)) for path in sorted((masks / "masks").iterdir())]
    assert [mask.shape for mask in found] == [(40, 48)] * 4
    assert all(0 < mask.mean() < 1 for mask in found), "every image has a mask"


def test_rates_may_decay_by_epochs(qata, tmp_path):
    by_epoch = {f"lr_scheduler#{player}#step": "epoch" for player in ("generator", "discriminator")}
    folders = {"dataset_dir": str(qata), "output_dir": str(tmp_path)}
    parser = start(CHEST, "train", overlays=("paper.json",), **folders, **NARROW, **by_epoch).parser
    schedules = parser.get_parsed_content("train#trainer").lr_schedulers
    length = 4  # batches of two X-rays with pneumonia, of eight
    for schedule, rate in zip(schedules.values(), (2.5e-4, 1e-4), strict=True):
        shares = [schedule.lr_lambdas[0](done) for done in (0, length - 1, length, 50 * length)]
        assert (schedule.base_lrs[0], shares) == (rate, pytest.approx([1, 1, 0.99**0.9, 0.5**0.9]))
