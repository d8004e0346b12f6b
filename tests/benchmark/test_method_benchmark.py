# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The comparison of methods on phantoms: one JSON per run, finished runs, failures, refusals, data without masks."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from workers_here import workers_here

from monai_wsss._checks import DataError
from monai_wsss.benchmark import make_method_benchmark, method_measures, method_recipes, shared_work
from monai_wsss.benchmark.leaderboard import kept_outcomes
from monai_wsss.benchmark.spread_runs import LOST
from monai_wsss.data import make_phantoms, prepare_folder
from monai_wsss.engines import trainer
from monai_wsss.engines.checkpoint import save_checkpoint
from monai_wsss.methods import CoSA
from monai_wsss.metrics import CaseTable
from monai_wsss.networks import ConvPyramid

pytestmark = pytest.mark.filterwarnings("ignore")  # of networks that have learned nothing in two steps


@pytest.fixture(scope="module")
def datalist(tmp_path_factory) -> Path:
    folder = make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=["T1", "FLAIR"], subjects=(2, 2, 0))
    content = json.loads((Path(folder) / "datalist.json").read_text(encoding="utf-8"))
    # A few slices of each subject: these are tests of what is written.
    for split in ("training", "validation"):
        content[split] = content[split][::4]
    (Path(folder) / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    return Path(folder) / "datalist.json"


def compare(datalist: Path, out: Path, *methods: str, budget: str = "2-steps", seeds: tuple[int, ...] = (0,)):
    """Compare single runs; tests/benchmark/test_method_ensembles.py has several together."""
    words = {"seeds": seeds, "budget": budget, "side": 32, "ensembles": "none"}
    return make_method_benchmark(datalist, out, methods=methods, **words)


def test_runs_are_kept_with_their_settings_and_never_repeated(datalist, tmp_path, caplog):
    outcomes = compare(datalist, tmp_path, "cam", "gradcam++", "gland", "full").run()
    assert [(outcome.pair.method, outcome.state) for outcome in outcomes] == [
        ("cam", "measured"), ("gradcam++", "measured"), ("gland", "refused"), ("full", "measured"),
    ]  # fmt: skip
    cam = outcomes[0].row
    assert cam.metrics["steps"] == {"mean": 2}
    assert cam.metrics["parameters"]["mean"] > 1000
    assert 0 <= cam.metrics["image_auroc"]["mean"] <= 1
    assert len(cam.metrics["dice_subject"]["subjects"]) == 2
    assert [outcome.row.reads_masks for outcome in outcomes if outcome.row] == [False, False, True]
    kept = json.loads(
        (tmp_path / "runs/methods_brain_phantoms/validation/cam_small/seed0.json").read_text(encoding="utf-8")
    )
    assert kept["source"].keys() == {"settings_sha256", "data_sha256"}
    assert kept["settings"]["recipe"]["steps"] == 2
    assert "epochs" not in kept["settings"]["recipe"]
    assert kept["settings"]["parts"]["cam small"]["dropout"] == 0.1, "defaults are told, too"
    assert kept["settings"]["measured"] == {"method": "cam", "rule": "negative_reference", "gate": "predicted"}
    assert kept["versions"].keys() == {"python", "torch", "monai", "numpy"}
    assert kept["device"] in ("cpu", *(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))
    assert len(kept["code_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(kept)
    # Grad-CAM++ has trained nothing of its own.
    assert len(list((tmp_path / "weights").glob("*/*/seed0/model.pt"))) == 2
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "- gland, small (refused): The gland method tells two tissues or more" in text
    told = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert [one["state"] for one in told] == ["measured", "measured", "refused", "measured"]
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert kept["source"]["settings_sha256"] in page
    assert "--methods cam --encoders small --seeds 0 --budget 2-steps --split validation --side 32" in page
    assert "kept no cases" not in page
    assert str(tmp_path) not in page

    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert compare(datalist, tmp_path, "cam", "gradcam++", "gland", "full").run() == outcomes
        assert "per epoch" not in caplog.text
        (changed,) = compare(datalist, tmp_path, "cam", budget="3-steps").run()
    assert "per epoch" in caplog.text
    assert changed.row.metrics["steps"] == {"mean": 3}


def test_runs_of_earlier_sessions_are_taken_from_a_folder_and_added_to_it(datalist, tmp_path, caplog):
    words = {"methods": ["cam"], "seeds": [0], "budget": "2-steps", "side": 32, "runs": tmp_path / "runs"}
    earlier = make_method_benchmark(datalist, tmp_path / "earlier", **words).run()
    assert (tmp_path / "runs/methods_brain_phantoms/validation/cam_small/seed0.json").is_file()
    assert kept_outcomes(tmp_path / "runs/methods_brain_phantoms/validation") == earlier
    caplog.clear()
    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert make_method_benchmark(datalist, tmp_path / "later", **words).run() == earlier
    assert "per epoch" not in caplog.text
    assert not list((tmp_path / "later").rglob("model.pt"))
    assert "kept no cases" in (tmp_path / "later" / "comparison.html").read_text(encoding="utf-8")


def test_some_methods_have_the_first_seed_alone(datalist, tmp_path):
    words = {
        "methods": ["cam", "gradcam++"],
        "seeds": [1, 0],
        "budget": "2-steps",
        "side": 32,
        "one_seed": ["gradcam++"],
    }
    outcomes = make_method_benchmark(datalist, tmp_path, **words).run()
    assert [(one.pair.method, one.seed) for one in outcomes[:3]] == [("cam", 1), ("cam", 0), ("gradcam++", 1)]
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "--methods cam,gradcam++ --encoders small --seeds 1,0 --one-seed gradcam++ --budget 2-steps" in page
    assert "--methods gradcam++ --encoders small --seeds 1 --budget 2-steps" in page
    with pytest.raises(ValueError, match="`one_seed` to be one of cam, gradcam"):
        make_method_benchmark(datalist, tmp_path, **words | {"one_seed": ["bmp"]})


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(datalist, tmp_path, monkeypatch):
    def broken(*args: object, **words: object) -> None:
        raise RuntimeError("no memory\nleft")

    with monkeypatch.context() as patch:
        patch.setattr(CoSA, "from_preset", broken)
        failed, cam = compare(datalist, tmp_path, "cosa", "cam").run()
    assert (failed.state, failed.reason, cam.state) == ("failed", "RuntimeError: no memory left", "measured")
    (record,) = (tmp_path / "failures").glob("*/*.json")
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["reason"] == failed.reason
    assert "broken" in "".join(told["traceback"])
    again, same = compare(datalist, tmp_path, "cosa", "cam").run()
    assert (again.state, same) == ("measured", cam)
    assert not record.exists()


def test_the_reason_of_a_failure_names_cases_in_the_folder_of_failures_alone(datalist, tmp_path, monkeypatch, caplog):
    item = json.loads(datalist.read_text(encoding="utf-8"))["training"][0]
    file = item["image"] if isinstance(item["image"], str) else item["image"][0]
    whole = f"cannot identify image file '{datalist.parent / file}' of {{'id': '{item['id']}'}} in {tmp_path}/weights."

    def broken(*args: object, **words: object) -> None:
        raise ValueError(whole)

    monkeypatch.setattr(CoSA, "from_preset", broken)
    with caplog.at_level(logging.INFO, "monai_wsss"):
        (failed,) = compare(datalist, tmp_path, "cosa").run()
    assert failed.reason == "cannot identify image file 'a file' of {'id': 'a case'} in a file"
    (record,) = (tmp_path / "failures").glob("*/*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["reason"] == whole
    written = [(tmp_path / name).read_text(encoding="utf-8") for name in ("leaderboard.md", "leaderboard.json")]
    written.append((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    told = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert told
    for text in (*written, *told):
        assert "cannot identify image file" in text
        for secret in (item["id"], item["subject"], str(datalist.parent), str(tmp_path), file):
            assert secret not in text


def test_an_error_in_a_transform_is_told_by_its_cause(datalist, tmp_path, monkeypatch):
    def broken(*args: object, **words: object) -> None:
        raise RuntimeError("applying transform <object at 0x7f>") from ValueError("The image is dark.")

    monkeypatch.setattr(CoSA, "from_preset", broken)
    (failed,) = compare(datalist, tmp_path, "cosa").run()
    assert (failed.state, failed.reason) == ("failed", "The image is dark.")


def test_a_time_is_turned_into_recorded_steps(datalist, tmp_path):
    (outcome,) = compare(datalist, tmp_path, "cam", budget="0.5s").run()
    (record,) = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8")).values()
    assert record["budget"] == "0.5 seconds"
    assert outcome.row.metrics["steps"]["mean"] == record["steps"] == max(1, int(0.5 / record["seconds_per_step"]))


def test_runs_of_other_images_or_other_defaults_are_not_reused(datalist, tmp_path, monkeypatch, caplog):
    copy = tmp_path / "data" / "datalist.json"
    shutil.copytree(datalist.parent, copy.parent)
    compare(copy, tmp_path / "out", "cam").run()
    content = json.loads(copy.read_text(encoding="utf-8"))
    image, other = (content["training"][index]["image"] for index in (0, 1))
    one, another = (copy.parent / (each if isinstance(each, str) else each[0]) for each in (image, other))
    one.write_bytes(another.read_bytes())
    trained = []
    for change in (False, True, False):
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "monai_wsss"):
            caplog.clear()
            if change:
                patch.setattr(method_recipes, "ConvPyramid", partial(ConvPyramid, width=8))
            assert compare(copy, tmp_path / "out", "cam").run()[0].state == "measured"
        trained.append("per epoch" in caplog.text)
    assert trained == [True, True, False]


def test_a_run_that_was_killed_goes_on(datalist, tmp_path, monkeypatch, caplog):
    (whole,) = compare(datalist, tmp_path / "whole", "cam", budget="2-epochs").run()

    def killed(directory: object, epoch: int, *args: object, **words: object) -> None:
        save_checkpoint(directory, epoch, *args, **words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(datalist, tmp_path / "killed", "cam", budget="2-epochs").run()
    with caplog.at_level(logging.INFO, "monai_wsss"):
        (resumed,) = compare(datalist, tmp_path / "killed", "cam", budget="2-epochs").run()
    assert "after epoch 1 of 2" in caplog.text
    shown = [
        {name: one.row.metrics[name] for name in ("dice_subject", "image_auroc", "steps")} for one in (whole, resumed)
    ]
    assert shown[0] == shown[1]


def test_processes_share_the_runs_out(datalist, tmp_path):
    both = [
        make_method_benchmark(
            datalist, tmp_path / str(processes), methods=["cam", "gradcam++", "full"], seeds=[0], budget="2-steps",
            side=32, processes=processes,
        ).run()
        for processes in (1, 2)
    ]  # fmt: skip
    assert [one.pair.method for one in both[1]] == ["cam", "gradcam++", "full"]
    costs = ("steps", "parameters", "dice_subject", "image_auroc")
    shown = [[{name: one.row.metrics[name] for name in costs} for one in outcomes] for outcomes in both]
    assert shown[0] == shown[1]
    assert len(list((tmp_path / "2" / "weights").glob("*/*/seed0/model.pt"))) == 2


def test_workers_of_a_cluster_count_the_steps_and_share_the_runs(datalist, tmp_path):
    words = {"methods": ["cam", "full"], "seeds": [0], "budget": "0.5s", "side": 32}
    with workers_here():
        outcomes = make_method_benchmark(datalist, tmp_path / "out", **words).run()
    records = json.loads((tmp_path / "out" / "steps.json").read_text(encoding="utf-8")).values()
    assert [one.row.metrics["steps"]["mean"] for one in outcomes] == [record["steps"] for record in records]
    kept = json.loads(
        (tmp_path / "out/runs/methods_brain_phantoms/validation/cam_small/seed0.json").read_text(encoding="utf-8")
    )
    assert kept["device"] == "cpu"
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_two_ways_to_share_and_a_device_that_is_not_there_are_refused(datalist, tmp_path):
    with pytest.raises(ValueError, match="`processes` or `ray`"):
        make_method_benchmark(datalist, tmp_path, processes=2, ray="local")
    with pytest.raises(DataError, match="Expected `device` to be one of cpu"):
        make_method_benchmark(datalist, tmp_path, device="cuda:99")


def test_a_process_that_dies_is_a_reason(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_work, "each_in_processes", lambda work, items, n: [(one, None) for one in items])
    bench = make_method_benchmark(
        datalist, tmp_path, methods=["cam", "full"], seeds=[0], budget="2-steps", side=32, processes=2
    )
    assert [one.reason for one in bench.run()] == [LOST] * 2


def test_pretrained_encoders_learn_from_a_folder_of_pictures(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    lines = ["id,subject,lesion,split"]
    for number in range(12):
        picture = generator.normal(130, 12, size=(48, 56, 3))
        picture[12:30, 10:30] -= 60 * (number % 2)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / "pictures" / f"p{number}.png")
        lines.append(f"p{number},s{number},{number % 2},{'train' if number < 8 else 'val'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    datalist = prepare_folder(images=tmp_path / "pictures", labels=tmp_path / "labels.csv", out=tmp_path / "prepared")
    outcomes = make_method_benchmark(
        datalist, tmp_path / "out", methods=["cam", "cosa", "cmer"], encoders=["efficientnet"], seeds=[0],
        budget="2-steps", side=48,
    ).run()  # fmt: skip
    assert [one.state for one in outcomes] == ["measured", "measured", "refused", "measured"], outcomes
    assert [one.row.metrics["steps"]["mean"] for one in outcomes if one.row] == [2, 2, 4]
    (saved,) = tmp_path.glob("out/uncertainty/validation/*/mean/entropy/p8.png")
    with Image.open(saved) as entropy:
        assert entropy.size == (56, 48)


def test_tiles_are_compared(tmp_path):
    datalist = Path(make_phantoms(tmp_path / "skin", kind="skin", subjects=(3, 2, 0))) / "datalist.json"
    bench = make_method_benchmark(datalist, tmp_path / "out", methods=["cam", "gradcam++"], seeds=[0], budget="1-step")
    assert [(one.state, one.reason) for one in bench.run()] == [("measured", "")] * 2


@pytest.mark.parametrize("method", ["seam", "cmer", "afa", "bmp", "coingan"])
def test_the_other_methods_run_on_slices(datalist, tmp_path, method):
    (outcome,) = compare(datalist, tmp_path, method).run()
    assert outcome.state == "measured", outcome.reason
    assert "image_auroc" in outcome.row.metrics
    apart = {"class_map_pixel_auroc", "class_map_oracle_dice_subject"}
    assert apart & outcome.row.metrics.keys() == (apart if method in ("afa", "bmp") else set())


def test_class_maps_are_measured_apart_from_the_segmentation(tmp_path):
    """A network whose class maps are right and whose segmentation is empty."""
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:5] = 1
    cases = [{"id": "a", "subject": "a", "label": np.ones(1), "mask": mask.to(torch.uint8), "image": mask}]

    class Branches(torch.nn.Module):
        def branches(self, image: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(seeds=image)

    data = SimpleNamespace(
        whole_maps=lambda recipe, network: (cases, [network(mask[None])]), case_table=lambda: CaseTable(["finding"])
    )
    one = SimpleNamespace(recipe=None, method=SimpleNamespace(network=Branches()))
    found = method_measures._class_map_quality(data, one)  # part of what a row measures
    assert {name: entry["mean"] for name, entry in found.items()} == {
        "class_map_pixel_auroc": 1.0, "class_map_oracle_dice_subject": 1.0,
    }  # fmt: skip


def test_without_masks_methods_are_ranked_by_image_level_labels(datalist, tmp_path, caplog):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    for split in ("training", "validation"):
        content[split] = [{key: value for key, value in item.items() if key != "mask"} for item in content[split]]
    without = datalist.with_name("without.json")
    without.write_text(json.dumps(content), encoding="utf-8")
    with caplog.at_level(logging.INFO, "monai_wsss"):
        cam, full = compare(without, tmp_path, "cam", "full").run()
    assert (cam.state, full.state) == ("measured", "refused")
    assert "dice_subject" not in cam.row.metrics
    first = caplog.text.index("methods are ranked by image AUROC")
    assert first < caplog.text.index("per epoch")
    assert "Sorted by image AUROC" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_a_split_that_ranks_nothing_is_refused_before_training(datalist, tmp_path):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    content["validation"] = [
        {key: value for key, value in item.items() if key != "mask"}
        for item in content["validation"]
        if item["label"][0]
    ]
    alike = datalist.with_name("alike.json")
    alike.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="neither masks nor images with and without a class"):
        compare(alike, tmp_path, "cam").run()
    assert not (tmp_path / "weights").exists()


def test_a_folder_with_data_and_a_split_without_images_are_refused(datalist):
    with pytest.raises(DataError, match="holds data: choose another --out"):
        compare(datalist, datalist.parent, "cam")
    with pytest.raises(DataError, match=r"The split test of .* has no labels"):
        make_method_benchmark(datalist, datalist.parent / "out", methods=["cam"], split="test", side=32).run()


def test_glands_are_trained_in_two_stages(tmp_path):
    datalist = Path(make_phantoms(tmp_path / "glands", kind="gland", subjects=(2, 2, 0))) / "datalist.json"
    bench = make_method_benchmark(datalist, tmp_path / "out", methods=["gland"], seeds=[0], budget="4-steps", side=32)
    (outcome,) = bench.run()
    assert outcome.state == "measured", outcome.reason
    assert outcome.row.metrics["steps"] == {"mean": 4}
    assert outcome.row.metrics["peak_memory_mb"]["mean"] > 0
