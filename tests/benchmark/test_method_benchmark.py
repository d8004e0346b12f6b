# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The comparison of methods on phantoms: one JSON per run, finished runs, failures, refusals, data without masks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from monai_wsss._checks import DataError
from monai_wsss.benchmark import make_method_benchmark
from monai_wsss.data import make_phantoms
from monai_wsss.methods import CoSA

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
    return make_method_benchmark(datalist, out, methods=methods, seeds=seeds, budget=budget, side=32)


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
    kept = json.loads((tmp_path / "runs/methods/validation/cam_small/seed0.json").read_text(encoding="utf-8"))
    assert kept["source"].keys() == {"settings_sha256", "data_sha256"}
    assert kept["settings"]["recipe"]["steps"] == 2
    assert "epochs" not in kept["settings"]["recipe"]
    assert kept["versions"].keys() == {"python", "torch", "monai", "numpy"}
    assert len(kept["code_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(kept)
    # Grad-CAM++ has trained nothing of its own.
    assert len(list((tmp_path / "weights").glob("*/*/seed0/model.pt"))) == 2
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "- gland, small (refused): The gland method tells two tissues or more" in text
    told = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert [one["state"] for one in told] == ["measured", "measured", "refused", "measured"]

    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert compare(datalist, tmp_path, "cam", "gradcam++", "gland", "full").run() == outcomes
        assert "per epoch" not in caplog.text
        (changed,) = compare(datalist, tmp_path, "cam", budget="3-steps").run()
    assert "per epoch" in caplog.text
    assert changed.row.metrics["steps"] == {"mean": 3}


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(datalist, tmp_path, monkeypatch):
    def broken(*args: object, **words: object) -> None:
        raise RuntimeError("no memory\nleft")

    with monkeypatch.context() as patch:
        patch.setattr(CoSA, "from_preset", broken)
        failed, cam = compare(datalist, tmp_path, "cosa", "cam").run()
    assert (failed.state, failed.reason, cam.state) == ("failed", "RuntimeError: no memory left", "measured")
    (record,) = (tmp_path / "failures").glob("*/*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["reason"] == failed.reason
    again, same = compare(datalist, tmp_path, "cosa", "cam").run()
    assert (again.state, same) == ("measured", cam)
    assert not record.exists()


def test_a_time_is_turned_into_recorded_steps(datalist, tmp_path):
    (outcome,) = compare(datalist, tmp_path, "cam", budget="0.5s").run()
    (record,) = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8")).values()
    assert record["budget"] == "0.5 seconds"
    assert outcome.row.metrics["steps"]["mean"] == record["steps"] == max(1, int(0.5 / record["seconds_per_step"]))


@pytest.mark.parametrize("method", ["seam", "cmer", "afa", "bmp", "coingan"])
def test_the_other_methods_run_on_slices(datalist, tmp_path, method):
    (outcome,) = compare(datalist, tmp_path, method).run()
    assert outcome.state == "measured", outcome.reason
    assert "image_auroc" in outcome.row.metrics


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
    assert outcome.row.metrics["steps"] == {"mean": 2}
