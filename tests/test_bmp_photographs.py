# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP on folders as VOC and COCO have them: the paper's settings by its overlays, and short runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_every_bundle import AT_ONCE, ROOT, offline, read_json, read_rows, run, start

from monai_wsss._checks import DataError
from monai_wsss.data import VOC_CLASSES, prepare_coco, prepare_voc
from monai_wsss.engines import WeightRamp

BUNDLE = ROOT / "bundles" / "brain_mri_bmp_segmentation"
OVERLAYS = {"voc": ("paper.json", "paper_voc.json"), "coco": ("paper.json", "paper_coco.json")}
CLASSES = {"voc": 20, "coco": 80}
# Rows and columns of the images, of which the first are for training; the classes of training images name all.
SIZES = {"a": (40, 52), "b": (61, 37), "c": (33, 33), "d": (48, 64), "e": (35, 50)}
TRAINING = "abc"
TINY: dict[str, Any] = {
    "crop": 48,
    "batch_size": 2,
    "network_def#encoder": {"_target_": "monai_wsss.networks.MixTransformer.tiny", "in_channels": 3},
    "network_def#decoder_width": 8,
}

# Nothing that has not learned is sure of one class among many.
CONFIDENT = {"method#class_confidence": 0.01, "method#segmentation_confidence": 0.01}

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


def held(name: str, count: int) -> list[int]:
    """Give the classes of an image, from 0: a third of all for training, two for validation."""
    place = "abcde".index(name)
    return list(range(place, count, 3)) if name in TRAINING else [place - 3, place]


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).integers(0, 255, (*SIZES[name], 3)).astype(np.uint8)


def make_voc(root: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, size in SIZES.items():
        Image.fromarray(pixels(name)).save(root / "JPEGImages" / f"{name}.jpg")
        objects = "".join(f"<object><name>{VOC_CLASSES[index]}</name></object>" for index in held(name, 20))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        mask = np.zeros(size, np.uint8)
        for number, index in enumerate(held(name, 20)[:2]):
            mask[4:20, 4 + 14 * number : 16 + 14 * number] = index + 1
        mask[3, :] = 255
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("\n".join(TRAINING))
    (lists / "train.txt").write_text("a\nb")
    (lists / "val.txt").write_text("d\ne")
    # As the test list comes: neither annotation nor mask.
    Image.fromarray(pixels("d")[:, ::-1]).save(root / "JPEGImages" / "f.jpg")
    (lists / "test.txt").write_text("f")


def make_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": index + 1, "name": f"class{index}"} for index in range(80)]
    for split, names in (("train2014", TRAINING), ("val2014", "de")):
        (root / split).mkdir()
        images, annotations = [], []
        for number, name in enumerate(names, start=1):
            Image.fromarray(pixels(name)).save(root / split / f"{name}.jpg")
            rows, columns = SIZES[name]
            images.append({"id": number, "file_name": f"{name}.jpg", "height": rows, "width": columns})
            outline = [[4, 4, 20, 4, 20, 16, 4, 16]]
            annotations += [
                {"image_id": number, "category_id": index + 1, "segmentation": outline} for index in held(name, 80)
            ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module", params=["voc", "coco"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with three training images and two to validate, all of several sizes."""
    folder = tmp_path_factory.mktemp(kind)
    if kind == "voc":
        make_voc(folder / "raw")
        prepare_voc(folder / "raw", folder / "prepared")
    else:
        make_coco(folder / "raw")
        prepare_coco(folder / "raw", folder / "prepared", masks=True)
    return folder / "prepared"


def test_the_overlays_hold_the_settings_of_the_paper(kind, data, tmp_path):
    """Sec. IV-A: crop 512, scale 0.5 to 2, flip, batch 8, AdamW 6e-5, polynomial decay; Sec. IV-B and IV-C."""
    small = {"network_def#encoder": TINY["network_def#encoder"]}  # MiT-B1 is checked by test_bmp_bundle.py
    folders = {"dataset_dir": str(data), "output_dir": str(tmp_path)}
    parser = start(BUNDLE, "train", overlays=OVERLAYS[kind], **folders, **small).parser
    trainer = parser.get_parsed_content("train#trainer")
    iterations, epochs = (20_000, 20_000) if kind == "voc" else (80_000, 80_000)  # of one batch each here
    assert (trainer.max_iterations, trainer.state.max_epochs) == (iterations, epochs)
    assert trainer.data_loader.batch_size == 8
    settings = trainer.method.settings
    weights, warm_ups = ((0.7, 0.1, 0.1), (2000, 4000, 4000)) if kind == "voc" else ((0.1,) * 3, (13_000,) * 3)
    assert tuple(settings[f"{name}_weight"] for name in ("c2s", "s2c", "affinity")) == weights
    ramps = tuple(settings[f"{name}_ramp"] for name in ("c2s", "s2c", "propagation"))
    assert ramps == tuple(f"iteration until {end}" for end in warm_ups)
    assert WeightRamp("iteration", end=warm_ups[0])(trainer.progress) == 0
    scheduler = trainer.lr_schedulers["network"]
    assert scheduler.base_lrs == [6e-5]  # of everything: rates by layer are the released code's
    assert (scheduler.total_iters, scheduler.power) == (iterations, 1.0)
    trained = sum(len(group["params"]) for group in trainer.optimizers["network"].param_groups)
    assert trained == len(list(trainer.method.network.parameters()))  # norms, too
    batch = next(iter(trainer.data_loader))
    assert batch["image"].shape == (3, 3, 512, 512)
    assert batch["label"].shape == (3, CLASSES[kind])
    assert set(batch) >= {"boxes", "id"}
    assert "mask" not in batch
    sides = batch["boxes"][:, 1::2] - batch["boxes"][:, ::2]
    sizes = torch.tensor([SIZES[name] for name in batch["id"]])
    factors = sides / sizes  # of rows and of columns alike: photographs enter as (C, rows, columns)
    assert ((factors[:, 0] - factors[:, 1]).abs() < 0.06).all()
    assert (sides >= 0.5 * sizes.amin() - 1).all()
    assert (sides <= 2 * sizes.amax()).all()


def test_a_short_run_from_end_to_end(kind, data, tmp_path):
    """Both branches teach, within boxes; validation images keep their own sizes, and so do their masks."""
    short: dict[str, Any] = {"overlays": OVERLAYS[kind], **TINY}
    training = run(
        BUNDLE, "train", tmp_path / "run", data,
        iterations=3, val_interval=1, pretrained="none", **AT_ONCE, **CONFIDENT, **short,
    )  # fmt: skip
    rows = read_rows(training / "training_log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(rows[-1][name]) > 0 for name in ("classification", "c2s", "s2c", "affinity"))
    record = read_json(training / "run.json")
    assert record["config"]["iterations"] == 3
    assert record["uses_masks"] == []
    state = torch.load(training / "model.pt", weights_only=True)
    assert state["decoder.linear_pred.weight"].shape[0] == CLASSES[kind] + 1

    scores = run(BUNDLE, "evaluate", tmp_path / "scores", data, ckpt_dir=str(training), **short)
    assert 0 <= read_json(scores / "metrics.json")["miou_pooled"]["mean"] <= 1
    options = {"ckpt_dir": str(training), "split": "validation", **short}
    masks = run(BUNDLE, "inference", tmp_path / "masks", data, **options)
    for output in (scores, masks):
        for name in "de":
            mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
            assert mask.shape == SIZES[name]
            assert mask.max() <= CLASSES[kind]


def test_both_branches_are_logged_by_iterations_and_measured_for_all_classes(kind, data, tmp_path):
    """Zhu et al., Tab. II (seeds), Tab. VI (Y^c, Y^s) and Fig. 7 (by iteration), for the classes of VOC and COCO."""
    short: dict[str, Any] = {**TINY, **CONFIDENT, "branches#evaluation#label_filters": ["given"]}
    training = run(
        BUNDLE, "train", tmp_path / "run", data,
        iterations=4, val_interval=5, pretrained="none", overlays=(*OVERLAYS[kind], "log_branches.json"),
        **{"branches#log#iterations": 2, "method#scales": [1.0], **AT_ONCE, **short},
    )  # fmt: skip
    logged = read_rows(training / "branches.csv")
    assert [row["iteration"] for row in logged] == ["2"] * 6 + ["4"] * 6
    assert {(row["split"], row["branch"]) for row in logged} == {
        (split, branch) for split in ("training", "validation") for branch in "MSY"
    }
    options = {"overlays": (*OVERLAYS[kind], "evaluate_branches.json"), "ckpt_dir": str(training), **short}
    measured = run(BUNDLE, "train", tmp_path / "branches", data, **{"method#scales": [1.0], **options})
    rows = read_json(measured / "branches.json")["rows"]
    assert len(rows) == 6
    assert all(len(row["iou"]) == CLASSES[kind] + 1 and "background" in row["iou"] for row in rows)
    for row, last in zip(rows, logged[-6:], strict=True):
        assert (row["split"], row["branch"]) == (last["split"], last["branch"])
        assert row["miou"] == pytest.approx(float(last["miou"]))


def test_one_run_of_the_paper_itself_says_that_it_is_too_short(data, kind, tmp_path):
    with pytest.warns(UserWarning, match="`propagation_ramp` will not end in this run"):
        run(
            BUNDLE, "train", tmp_path / "run", data,
            iterations=2, val_interval=1, pretrained="none", overlays=OVERLAYS[kind], **TINY,
        )  # fmt: skip


def test_the_paper_s_overlays_never_begin_with_random_weights_in_silence(data, kind, tmp_path):
    with pytest.raises((DataError, RuntimeError)) as found:
        run(BUNDLE, "train", tmp_path / "run", data, iterations=2, overlays=OVERLAYS[kind], **TINY)
    assert "No package has ImageNet weights of MixTransformer" in str(found.value.__cause__ or found.value)
