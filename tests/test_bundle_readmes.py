# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every command of every bundle's README, typed as it stands, one after the other, in a copy of the bundle.

Trainings are shortened by options that are appended, phantoms are few, `/my/…` lies in a temporary folder, and raw data
that nobody may ship are replaced by small ones of the same layout.  One process types all commands of a bundle, so that
MONAI is imported once; what `torchrun` is given is typed in test_every_bundle.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_bmp_photographs import make_coco, make_voc
from test_coingan_datasets import DATA_SETS, NARROW, SMALL
from test_every_bundle import BUNDLES, PATCHES, call, environment, phantom_kind, read_json, read_rows

from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.data.writing import write_nifti
from monai_wsss.networks import MixTransformer, ResNeSt, VisionTransformer, resnet38_classifier

__all__ = ["environment"]  # one thread, no GPU, no network

pytestmark = pytest.mark.slow

SHORT = ["--epochs", "1", "--val_interval", "1"]
NARROW_PAPER = {
    "classifier_def#small": "True",
    "classifier_def#width": "4",
    "network_def": "{'_target_': 'monai_wsss.networks.PyramidSceneParsing.tiny'}",
    "batch_size": "4",
    "classifier_epochs": "1",
    "classifier_learning_rate": "0.0001",
    "training_share": "0.1",
}
"""The published system of glands takes a GPU: appended, these leave its stages and its data as they are.

Its rate is for ImageNet weights, whose normalization stays as it is; random ones diverge."""

NARROW_PHOTOGRAPHS = {
    "network_def#encoder": "{'_target_': 'monai_wsss.networks.MixTransformer.tiny'}",
    "network_def#decoder_width": "8",
    "crop": "48",
    "batch_size": "2",
}
"""The paper's crops of photographs take a GPU, too."""

NARROW_COSA = {
    "network_def#encoder": "{'_target_': 'monai_wsss.networks.VisionTransformer.tiny', 'in_channels': 3}",
    "network_def#decoder_width": "8",
    "crop": "48",
    "batch_size": "2",
}
"""So do those of CoSA, and its ViT-B."""

DRIVER = """
import functools, json, logging, runpy, sys

import monai_wsss.data.phantoms as drawn

# For the command alone: the bundles draw all of their default subjects, whose metrics are stated.
drawn.make_phantoms = functools.partial(drawn.make_phantoms, subjects=(2, 2, 1))
for number, words in enumerate(json.load(open(sys.argv[1]))):
    print("TYPED", " ".join(words), flush=True)
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
    module, words = (words[2], words[3:]) if words[0] == "python" else ("monai_wsss", words[1:])
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
"""


def commands(bundle: Path) -> list[list[str]]:
    """The words of each command in the README's fenced blocks."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    # Between double quotes a shell reads `\$` as `$`, which shlex does not know.
    return [shlex.split(line.replace("\\$", "$")) for line in lines if line.strip() and not line.startswith("#")]


def slices(root: Path) -> None:
    """Labeled slices of three sequences as `prepare cases` reads them: noise, with a bright square where found."""
    (root / "cases").mkdir(parents=True)
    rows = ["id,case,index_in_npz,slice,label,brain_px,split,file"]
    rng = np.random.default_rng(0)
    for patient, split in (("p1", "train"), ("p2", "train"), ("p3", "val")):
        images = rng.integers(20, 120, (6, 64, 64, 3)).astype(np.uint8)
        masks = np.zeros((6, 64, 64), np.uint8)
        masks[3:, 20:40, 20:40] = 255
        images[masks > 0] += 100
        np.savez(root / "cases" / f"{patient}.npz", images=images, masks=masks, slices=np.arange(6))
        rows += [f"{patient}_{n},{patient},{n},{n},{int(n > 2)},2000,{split},cases/{patient}.npz" for n in range(6)]
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def glands(root: Path, *, official: bool) -> None:
    """Two kinds of tissue as GlaS has them, in one layout or the other."""
    rng = np.random.default_rng(0)
    names = [f"train_{number}" for number in range(1, 18)] + ["testA_1", "testB_1"]
    folder, suffix = (root, "bmp") if official else (root / "images", "png")
    folder.mkdir(parents=True)
    (root / "masks").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        mask = np.zeros((224, 224), np.uint8)
        mask[:, : (0, 112, 224)[number % 3]] = 1
        pixels = rng.normal(np.where(mask[..., None] == 1, 190, 110), 20, (224, 224, 3)).clip(0, 230).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.{suffix}")
        if official:
            Image.fromarray(mask).save(root / f"{name}_anno.bmp")
        else:
            Image.fromarray(mask * 255).save(root / "masks" / f"{name}.png")
    if official:
        rows = [f"{name},{number % 6 + 1}, benign" for number, name in enumerate(names)]
        (root / "Grade.csv").write_text("name,patient ID, grade (GlaS)\n" + "\n".join(rows), encoding="utf-8")
    else:
        splits = ["train"] * 14 + ["val"] * 3 + ["test"] * 2
        rows = [
            f"{name},{split}{number % 3},{split}"
            for number, (name, split) in enumerate(zip(names, splits, strict=True))
        ]
        (root / "labels.csv").write_text("id,case,split\n" + "\n".join(rows) + "\n", encoding="utf-8")


def other_glands(mine: Path) -> None:
    """ProG and EBHI as they unpack, few images of each."""
    rng = np.random.default_rng(0)
    for number in range(12):
        mask = np.zeros((230, 230), np.uint8)
        mask[:, : (60, 120, 230)[number % 3]] = 255
        pixels = rng.integers(60, 200, (230, 230, 3)).astype(np.uint8)
        for folder, array in (("prog/images", pixels), ("prog/masks", mask)):
            (mine / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(mine / folder / f"{number}.png")
        for folder, array in (("image", pixels), ("label", mask)):
            (mine / "ebhi" / "Normal" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array[:224, :224]).save(mine / "ebhi" / "Normal" / folder / f"GT{number}-1-400-001.png")


def patches(folder: Path, table: Path) -> None:
    """Tagged patches of six patients, as `prepare folder` reads them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["id,patient,gland,other"]
    for number in range(24):
        gland, other = ((1, 0), (0, 1), (1, 1))[number % 3]
        Image.fromarray(rng.integers(60, 200, (112, 112, 3)).astype(np.uint8)).save(folder / f"p{number}.png")
        rows.append(f"p{number},{number // 4},{gland},{other}")
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")


def tagged_skin(phantoms: Path, root: Path) -> None:
    """Images of skin with a table of the tags of their tiles, as somebody gave them."""
    shutil.copytree(phantoms / "raw", root)
    datalist = phantoms / "datalist.json"
    tiles = [
        tile for split in ("training", "validation_tiles", "test_tiles") for tile in load_datalist(datalist, split)
    ]
    rows = [",".join(map(str, (tile["source"], *tile["origin"], int(tile["label"][0])))) for tile in tiles]
    (root / "tiles.csv").write_text("id,x,y,label\n" + "\n".join(rows) + "\n", encoding="utf-8")


def brats(root: Path) -> None:
    """Twelve studies in the folders of their grades: noise, with a bright block in half of the slices."""
    rng = np.random.default_rng(0)
    tumor = np.zeros((24, 24, 6), np.uint8)
    tumor[8:16, 8:16, 3:] = 1
    for number in range(12):
        name = f"BraTS19_{number}"
        folder = root / ("HGG" if number % 4 else "LGG") / name
        for word in ("t1", "t1ce", "t2", "flair"):
            write_nifti(folder / f"{name}_{word}.nii.gz", rng.uniform(50, 150, tumor.shape) + 99 * tumor, np.eye(4))
        write_nifti(folder / f"{name}_seg.nii.gz", tumor, np.eye(4))


def prepare_surroundings(bundle: Path, mine: Path) -> None:
    """Put what the README takes as given beside the copy of the bundle and under `/my`."""
    kind = phantom_kind(bundle)
    for name, of_set in DATA_SETS.items():
        if bundle.name.startswith(f"{of_set.bundle}_coingan"):
            of_set.make(mine / name)
    if kind == "brain":
        modalities = read_json(bundle / "configs" / "train.json")["modalities"]
        make_phantoms(mine / "data", modalities=modalities, subjects=(2, 2, 1))
        slices(bundle / "lgg_mri_64")
        if "cmer" in bundle.name:
            brats(bundle / "BraTS2019")
        if "bmp" in bundle.name:
            make_voc(mine / "VOCdevkit" / "VOC2012")
            make_coco(mine / "coco2014")
            torch.save(MixTransformer.tiny(2, 3).state_dict(), mine / "mit_b1.pth")
        return
    make_phantoms(mine / "data", kind=kind, subjects=(2, 1, 1))
    if kind == "chest":
        return
    if kind == "skin":
        if "cosa" in bundle.name:
            make_voc(mine / "VOCdevkit" / "VOC2012")
            make_coco(mine / "coco2014")
            torch.save(VisionTransformer.tiny(2, 3).state_dict(), mine / "vit_b.pth")
        shutil.copytree(mine / "data" / "raw", bundle / "ph2_dermoscopy")
        tagged_skin(mine / "data", mine / "skin")
        return
    glands(mine / "glas", official=True)
    glands(bundle / "glas_gland", official=False)
    other_glands(mine)
    patches(bundle / "patches", bundle / "labels.csv")
    pixels = np.random.default_rng(0).integers(60, 200, (512, 512, 3)).astype(np.uint8)
    resolution: dict[str, Any] = {"resolution": (1e4 / 0.62, 1e4 / 0.62), "resolutionunit": 3, "photometric": "rgb"}
    tifffile.imwrite(mine / "data" / "slide.svs", pixels, tile=(128, 128), **resolution)
    torch.manual_seed(0)
    torch.save(resnet38_classifier(small=True, width=4).backbone.state_dict(), mine / "resnet38.pth")
    torch.save(ResNeSt.tiny(2, 3).state_dict(), mine / "resnest200.pth")


def adapted(words: list[str], bundle: Path, mine: Path) -> list[str]:
    """The command with `/my` in its place, a training of one short epoch, and small data where it names none."""
    words = [word.replace("/my/", f"{mine}/") for word in words]
    if words[1] == "benchmark" and "--size" in words:
        words[words.index("--size") + 1] = "small"
        return [*words, "--seeds", "0"]
    if words[:3] != ["python", "-m", "monai.bundle"]:
        return words + (SMALL.get(words[2], []) if "coingan" in bundle.name else [])
    if "--iterations" in words:
        words[words.index("--iterations") + 1] = "2"
    files, gland = words[words.index("--config_file") + 1], "histology" in bundle.name
    default = words[-1] == "./out" or files.endswith("'configs/evaluate.json']")  # both are looked at
    training = "configs/train" in files and not re.search(r"evaluate|generate_pseudo|score_pseudo", files)
    if "cosa" in bundle.name and re.search(r"paper|released", files):
        words += [word for name, value in NARROW_COSA.items() for word in (f"--{name}", value)]
        words += ["--iterations", "2"] if training else []
    elif "coingan" in bundle.name and "paper.json" in files:
        words += [word for name, value in NARROW.items() for word in (f"--{name}", str(value))]
    elif "paper.json" in files:
        more = NARROW_PAPER if gland else {"network_def#width": "4", "grid": "[64,64]"} if "cmer" in bundle.name else {}
        if "paper_voc.json" in files or "paper_coco.json" in files:
            more = NARROW_PHOTOGRAPHS | ({"iterations": "2"} if training else {})
        words += [word for name, value in more.items() for word in (f"--{name}", value)]
    if training:
        words += [*SHORT, *(["--samples", "64"] if phantom_kind(bundle) in PATCHES else [])]
    if "slide.json" in files:
        words += ["--backend", "tifffile"]
    elif "--dataset_dir" not in words and not default:
        words += ["--dataset_dir", str(mine / "data")]
    return words


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_command_of_its_readme_works(bundle, environment, tmp_path):
    own = shutil.copytree(bundle, tmp_path / bundle.name, ignore=shutil.ignore_patterns("eval", "sample_data"))
    mine = tmp_path / "my"
    mine.mkdir()
    prepare_surroundings(own, mine)
    typed = [adapted(words, own, mine) for words in commands(own)]
    (launched,) = (words for words in typed if words[0] == "torchrun")
    assert launched[1:4] == ["--standalone", "--nnodes=1", "--nproc_per_node=2"]
    assert launched[4:-1] == ["-m", "monai.bundle", "run", "--config_file"]
    assert launched[-1] == "['configs/train.json','configs/multi_gpu_train.json']"
    typed.remove(launched)
    plain = [words for words in typed if words[:2] == ["python", "-c"]]
    runs = [words for words in typed if words not in plain]
    assert {"python", "monai-wsss"} == {words[0] for words in runs}
    for words in plain:
        subprocess.run([sys.executable, *words[1:]], cwd=own, env=environment, check=True, timeout=300)
    # The default evaluation and inference are looked at before a later command writes into the same folders.
    stop = 1 + max(number for number, words in enumerate(runs) if words[-1] == "./out")
    for number, part in enumerate((runs[:stop], runs[stop:])):
        (tmp_path / f"{number}.json").write_text(json.dumps(part), encoding="utf-8")
        (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
        call([sys.executable, str(tmp_path / "driver.py"), str(tmp_path / f"{number}.json")], environment, own)
        if number == 0:
            check_the_default_runs(own)
    assert (mine / "run" / "model.pt").is_file()


def check_the_default_runs(own: Path) -> None:
    measured = read_json(own / "eval" / "metrics.json")
    for name, value in read_json(own / "configs" / "metadata.json")["eval_metrics"]["phantom"].items():
        assert measured[name]["mean"] == pytest.approx(value, abs=1e-3), name
    cases = load_datalist(own / "sample_data" / "datalist.json", "test")
    assert len(list((own / "out" / "masks").iterdir())) == len(read_rows(own / "out" / "predictions.csv")) == len(cases)
