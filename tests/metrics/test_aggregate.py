# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The case table against loops over the same images, and every rule about empty, healthy and unknown cases."""

from __future__ import annotations

import csv
import json
import math
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import compute_roc_auc

from monai_wsss._checks import DataError
from monai_wsss.metrics import METRIC_DEFINITIONS, CaseTable, metric_definition, surface_distances
from monai_wsss.metrics.bootstrap import bootstrap_weights
from monai_wsss.metrics.estimates import CaseArrays, metric_estimates

ALWAYS = {
    "dice_subject", "dice_pooled", "iou_pooled", "miou_pooled", "dice_macro_pooled", "f1", "f1_from_miou", "accuracy",
    "sensitivity", "specificity", "healthy_clean", "presence_auroc", "pixel_auroc", "r_under", "r_over",
    "oracle_dice_subject",
}  # fmt: skip


OVERLAP = {
    "dice_subject", "dice_pooled", "iou_pooled", "f1", "miou_pooled", "dice_macro_pooled", "f1_from_miou",
}  # fmt: skip


def disc(center, radius, shape=(24, 20)):
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)) < radius**2


def cases(seed=0, subjects=6, slices=4, classes=1, shape=(24, 20)):
    """Some slices of some subjects: references with up to ``classes`` classes, predictions that are nearly right."""
    generator = np.random.default_rng(seed)
    made = []
    for s in range(subjects):
        for z in range(slices):
            reference, prediction = np.zeros((2, 1, *shape), dtype=np.uint8)
            label = np.zeros(classes, dtype=np.float32)
            for k in range(classes):
                center = generator.integers(6, 14, len(shape))
                if s and generator.random() < 0.6:  # subject 0 is healthy
                    reference[0][disc(center, 4, shape)] = k + 1
                if generator.random() < 0.7:
                    prediction[0][disc(center + generator.integers(-2, 3, len(shape)), 4, shape)] = k + 1
                label[k] = (reference == k + 1).any()
            cam = np.clip(
                np.stack([(prediction[0] == k + 1) * 0.6 for k in range(classes)])
                + generator.random((classes, *shape)) * 0.4,
                0,
                1,
            ).astype(np.float32)
            presence = np.round(label + generator.normal(size=classes), 1)
            made.append(
                {
                    "id": f"s{s}z{z}", "subject": f"s{s}", "label": label, "prediction": prediction,
                    "reference": reference, "presence": presence, "cam": cam,
                }
            )  # fmt: skip
    return made


def table_of(made, classes=("tumor",), **options):
    table = CaseTable(classes, **options)
    for case in made:
        table.add(**case)
    return table


def dice_of(prediction, reference):
    total = prediction.sum() + reference.sum()
    return 2 * (prediction & reference).sum() / total if total else 1.0


def stacked(made, subject, k=1):
    own = [case for case in made if case["subject"] == subject]
    return tuple(np.stack([case[name][0] == k for case in own]) for name in ("prediction", "reference"))


def test_every_number_matches_a_loop_over_the_images():
    made = cases()
    spacing = (0.5, 2.0)
    table = table_of([case | {"spacing": spacing} for case in made])
    metrics = table.summary(bootstrap=20)
    assert set(metrics) == ALWAYS | {"asd_mm", "assd_mm", "assd_directed_mm", "hd95_mm"}
    prediction, reference = (np.stack([case[name][0] == 1 for case in made]) for name in ("prediction", "reference"))
    tp, fp = (prediction & reference).sum(), (prediction & ~reference).sum()
    fn, tn = (~prediction & reference).sum(), (~prediction & ~reference).sum()
    iou, iou_background = tp / (tp + fp + fn), tn / (tn + fp + fn)
    pairs = [stacked(made, f"s{s}") for s in range(6)]
    with_finding = [pair for pair in pairs if pair[1].any()]
    healthy = [case for case in made if not case["reference"].any()]
    expected = {
        "dice_subject": np.mean([dice_of(*pair) for pair in with_finding]),
        "dice_pooled": dice_of(prediction, reference),
        "f1": dice_of(prediction, reference),
        "iou_pooled": iou,
        "miou_pooled": (iou + iou_background) / 2,
        "f1_from_miou": (iou + iou_background) / (1 + (iou + iou_background) / 2),
        "dice_macro_pooled": (dice_of(prediction, reference) + dice_of(~prediction, ~reference)) / 2,
        "accuracy": (tp + tn) / prediction.size,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "r_under": fn / tp,
        "r_over": fp / tp,
        "healthy_clean": np.mean([not case["prediction"].any() for case in healthy]),
        "presence_auroc": compute_roc_auc(
            *(torch.as_tensor(np.array([case[name][0] for case in made])) for name in ("presence", "label"))
        ),
    }
    for name, value in expected.items():
        assert metrics[name]["mean"] == pytest.approx(value), name
    for field in ("asd", "assd", "assd_directed", "hd95"):
        of_subjects = []
        for s in range(6):
            own = [surface_distances(p, r, spacing=spacing) for p, r in zip(*stacked(made, f"s{s}"), strict=True)]
            if values := [getattr(distances, field) for distances in own if distances]:
                of_subjects.append(np.mean(values))
        assert metrics[f"{field}_mm"]["mean"] == pytest.approx(np.mean(of_subjects)), field
        assert metrics[f"{field}_mm"]["n"] == len(of_subjects)
    assert metrics["dice_subject"]["n"] == len(with_finding) == 5
    assert metrics["dice_pooled"]["n"] == 6
    assert 0 < metrics["healthy_clean"]["mean"] < 1


def test_several_classes_have_their_own_names_and_the_mean_under_the_plain_one():
    made = cases(seed=1, classes=2, subjects=8)
    metrics = table_of(made, ("core", "edema")).summary(bootstrap=20)
    for k, name in ((1, "core"), (2, "edema")):
        pairs = [stacked(made, f"s{s}", k) for s in range(8)]
        dice = np.mean([dice_of(*pair) for pair in pairs if pair[1].any()])
        assert metrics[f"dice_subject/{name}"]["mean"] == pytest.approx(dice)
        tp, fn = (sum((f(p) & r).sum() for p, r in pairs) for f in (lambda p: p, lambda p: ~p))
        assert metrics[f"r_under/{name}"]["mean"] == pytest.approx(fn / tp)
    for name in ("dice_subject", "assd_px", "presence_auroc", "specificity"):
        both = [metrics[f"{name}/{label}"]["mean"] for label in ("core", "edema")]
        assert metrics[name]["mean"] == pytest.approx(np.mean(both))
    table = np.zeros((3, 3))
    for case in made:
        np.add.at(table, (case["reference"].ravel(), case["prediction"].ravel()), 1)
    iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
    assert metrics["miou_pooled"]["mean"] == pytest.approx(iou.mean())
    of_all = [metrics[f"iou_pooled/{name}"]["mean"] for name in ("background", "core", "edema")]
    assert of_all == pytest.approx(iou.tolist())
    assert {name for name in metrics if "background" in name} == {"iou_pooled/background"}
    assert "miou_pooled/core" not in metrics


def test_without_background_the_scored_class_has_the_plain_names():
    generator = np.random.default_rng(2)
    made = [
        {
            "id": f"{i}", "subject": f"{i}", "label": np.ones(2),
            "prediction": generator.integers(1, 3, (1, 16, 16)), "reference": generator.integers(1, 3, (1, 16, 16)),
        }
        for i in range(4)
    ]  # fmt: skip
    metrics = table_of(made, ("other", "gland"), background=False, scored_class="gland").summary(bootstrap=5)
    assert metrics["dice_pooled"] == metrics["dice_pooled/gland"] != metrics["dice_pooled/other"]
    both = [metrics[f"iou_pooled/{name}"]["mean"] for name in ("other", "gland")]
    assert metrics["miou_pooled"]["mean"] == pytest.approx(np.mean(both))
    assert not {"healthy_clean", "iou_pooled/background"} & metrics.keys()


def test_volumes_are_cases_too_and_tensors_are_welcome():
    shape = (12, 11, 9)
    reference = torch.as_tensor(disc((6, 5, 4), 4, shape))[None].to(torch.uint8)
    prediction = MetaTensor(torch.as_tensor(disc((6, 6, 4), 4, shape))[None].to(torch.uint8))
    table = CaseTable(["tumor"])
    options = {"label": torch.ones(1), "spacing": (1.0, 1.0, 3.0), "cam": prediction.float()}
    table.add(id="a", subject="a", prediction=prediction, reference=reference, presence=torch.ones(1), **options)
    metrics = table.summary(bootstrap=5)
    assert metrics["dice_subject"]["mean"] == pytest.approx(
        dice_of(*(m[0].numpy() > 0 for m in (prediction, reference)))
    )
    assert metrics["assd_mm"]["mean"] == pytest.approx(
        surface_distances(prediction[0], reference[0], spacing=(1, 1, 3)).assd
    )
    assert "presence_auroc" not in metrics  # no negative image
    assert any("With one subject" in note for note in table.notes)


def test_a_weight_is_a_number_of_copies():
    """The bootstrap's weights against tables in which a subject really is there as often as it was drawn."""
    made = cases(seed=3, classes=2, subjects=5)
    table = table_of(made, ("core", "edema"))
    arrays = CaseArrays(table.rows, table.scheme)
    weights = bootstrap_weights(5, samples=4, seed=1)
    assert (weights == 0).any()
    assert (weights > 1).any()
    values = {name: estimate.function(weights) for name, estimate in metric_estimates(arrays).items()}
    for sample, times in enumerate(weights.astype(int)):
        copied = CaseTable(("core", "edema"))
        for subject, copies in zip(arrays.subjects, times, strict=True):
            for copy in range(copies):
                own = [case for case in made if case["subject"] == subject]
                for case in own:
                    copied.add(**(case | {"id": f"{case['id']}c{copy}", "subject": f"{subject}c{copy}"}))
        metrics = copied.summary(bootstrap=1)
        for name in values:
            if name.startswith("oracle_"):  # keeps the threshold of the whole set
                continue
            expected = metrics[name]["mean"] if name in metrics else np.nan
            assert values[name][sample] == pytest.approx(expected, nan_ok=True), name


def test_intervals_hold_the_value_follow_the_seed_and_narrow_with_subjects():
    few, many = (table_of(cases(seed=4, subjects=n, slices=2)) for n in (6, 60))
    first, again, other = few.summary(seed=0), few.summary(seed=0), few.summary(seed=1)
    assert first == again
    assert first["dice_subject"]["ci95"] != other["dice_subject"]["ci95"]
    wide = narrow = 0.0
    for name, value in many.summary().items():
        low, high = value["ci95"]
        assert low <= value["mean"] <= high, name
        narrow += high - low
        wide += np.diff(first[name]["ci95"])[0]
    assert narrow < 0.6 * wide


def test_numbers_do_not_depend_on_the_order_or_the_process():
    made = cases(seed=5)
    whole, left, right = table_of(made), table_of(made[::2]), table_of(made[1::2] + made[:1])
    left.merge(pickle.loads(pickle.dumps(right.rows)))
    left.merge(table_of(made[1:2]).rows)  # of a third process, whose sampler repeats a case of the second
    assert len(left.rows) == len(whole.rows)
    with pytest.raises(ValueError, match="Expected every `id` once, but row 25 repeats an earlier one"):
        left.add(**made[1])
    one, two = whole.summary(bootstrap=50), left.summary(bootstrap=50)
    for name, value in one.items():
        assert two[name]["mean"] == pytest.approx(value["mean"]), name
        assert two[name]["ci95"] == pytest.approx(value["ci95"]), name


def plain(**changes):
    empty = np.zeros((1, 8, 8), dtype=np.uint8)
    return {"id": "a", "subject": "a", "label": np.ones(1), "prediction": empty, "reference": empty + 1} | changes


def test_empty_healthy_and_unknown_cases_are_told_apart_and_counted():
    empty, full = np.zeros((1, 8, 8), dtype=np.uint8), np.ones((1, 8, 8), dtype=np.uint8)
    table = CaseTable(["tumor"])
    zero = np.zeros(1)
    table.add(**plain(id="missed", subject="a"))
    table.add(**plain(id="hit", subject="a", prediction=full))
    table.add(id="clean", subject="b", label=zero, prediction=empty)
    table.add(id="alarm", subject="b", label=zero, prediction=full)
    table.add(id="alarm2", subject="b", label=zero, prediction=full, reference=empty)
    table.add(id="unknown", subject="c", label=np.ones(1), prediction=full, presence=np.ones(1))
    table.add(**plain(id="odd", subject="d", label=zero, prediction=full))  # the mask has a finding, the label none
    metrics = table.summary(bootstrap=30)
    assert metrics["healthy_clean"]["mean"] == pytest.approx(1 / 3)
    assert metrics["healthy_clean"]["n"] == 1
    assert metrics["dice_subject"] == {
        "mean": pytest.approx((2 / 3 + 1) / 2),
        "ci95": [pytest.approx(2 / 3), 1],
        "n": 2,
        "std": pytest.approx(2**-0.5 / 3),
    }
    assert metrics["dice_pooled"]["mean"] == pytest.approx(2 * 128 / (2 * 128 + 128 + 64))
    assert metrics["dice_pooled"]["n"] == 3
    rows = {row["id"]: row for row in table.rows}
    assert [rows[name]["dice"] for name in ("missed", "hit", "clean", "alarm", "alarm2")] == [0, 1, 1, 0, 0]
    assert "dice" not in rows["unknown"]
    assert "assd" not in rows["missed"]
    notes = "\n".join(table.notes)
    for words in (
        "7 cases of 4 subjects: 4 with a reference mask, 2 without a finding by label",
        "1 with a finding but without a reference mask",
        "In 1 cases the label and the reference mask disagree",
        "1 cases scored 1 by it, 2 scored 0",
        "measured in 2 cases, left out in 1 with an empty prediction and 2 with a prediction but no reference",
        "covers the 2 subjects with a finding",
        "Left out, since nothing here defines them: presence_auroc",
    ):
        assert words in notes, words
    assert not any(f"{name}" in notes for name in ("alarm2", "hit"))  # counts, no ids
    of_subject = [(row["subject"], row["healthy"], row["healthy_clean"]) for row in table.subject_rows]
    assert of_subject == [("a", 0, 0), ("b", 3, 1), ("c", 0, 0), ("d", 0, 0)]


def test_healthy_means_by_label_and_by_mask():
    empty, full = np.zeros((1, 8, 8), dtype=np.uint8), np.ones((1, 8, 8), dtype=np.uint8)
    table = CaseTable(["tumor"])
    table.add(**plain(id="a", label=np.ones(1), reference=empty))
    table.add(**plain(id="b", label=np.zeros(1), reference=full))
    assert [row["healthy"] for row in table.rows] == [0, 0]
    table.add(**plain(id="c", label=np.zeros(1), reference=empty))
    assert table.summary(bootstrap=2)["healthy_clean"]["mean"] == table.rows[2]["healthy"] == 1


def test_a_method_that_finds_nothing_gives_no_nan():
    table = CaseTable(["tumor"])
    for i in range(4):
        table.add(**plain(id=f"{i}", subject=f"{i}", cam=np.zeros((1, 8, 8)), presence=np.zeros(1)))
    metrics = table.summary(bootstrap=10)
    text = json.dumps(metrics, allow_nan=False)
    assert "NaN" not in text
    assert {"r_under", "r_over", "assd_px", "healthy_clean", "presence_auroc"}.isdisjoint(metrics)
    left_out = table.notes[-1]
    assert all(name in left_out for name in ("r_under", "r_over", "assd_px", "hd95_px", "healthy_clean"))
    assert metrics["dice_subject"]["mean"] == metrics["dice_pooled"]["mean"] == 0


def test_all_healthy_set():
    table = CaseTable(["tumor"])
    for i in range(4):
        table.add(id=f"{i}", subject=f"{i}", label=np.zeros(1), prediction=np.zeros((1, 8, 8)))
    metrics = table.summary(bootstrap=10)
    assert metrics["healthy_clean"] == {"mean": 1, "ci95": [1, 1], "n": 4}
    assert OVERLAP.isdisjoint(metrics)
    assert metrics["specificity"]["mean"] == metrics["accuracy"]["mean"] == 1
    assert any("No reference holds a pixel of it" in note for note in table.notes)
    assert "dice_subject" not in metrics


@pytest.mark.parametrize("found", [0, 1])
def test_without_the_pixels_of_positives_no_overlap_is_measured_on_healthy_images_alone(found, tmp_path):
    prediction = np.full((1, 8, 8), found, dtype=np.uint8)
    table = CaseTable(["tumor"])
    for i in range(3):
        table.add(id=f"p{i}", subject=f"p{i}", label=np.ones(1), prediction=prediction)
        table.add(id=f"h{i}", subject=f"h{i}", label=np.zeros(1), prediction=prediction, cam=np.zeros((1, 8, 8)))
    metrics = table.write(tmp_path, bootstrap=10)
    assert OVERLAP.isdisjoint(metrics)
    assert metrics["healthy_clean"]["mean"] == 1 - found
    assert set(table.notes[-1].removesuffix(".").replace(",", "").split()) >= OVERLAP
    assert any("the pixels of 3 cases with a finding are unknown" in note for note in table.notes)
    assert not (tmp_path / "sweep.json").exists()


def test_a_class_that_no_reference_holds_does_not_enter_the_means():
    made = cases(seed=1, classes=1)
    both = table_of(
        [case | {"label": np.append(case["label"], 0.0), "cam": None, "presence": None} for case in made], "ab"
    )
    alone = table_of(made).summary(bootstrap=3)
    metrics = both.summary(bootstrap=3)
    for name in ("dice_pooled", "miou_pooled", "dice_macro_pooled"):
        assert metrics[name]["mean"] == pytest.approx(alone[name]["mean"]), name
    assert "dice_pooled/b" not in metrics


def test_names_that_a_spreadsheet_would_take_for_formulas_are_quoted(tmp_path):
    table = CaseTable(["tumor"])
    for name in ("=1+1", "+a", "-a", "@a", "a=1"):
        table.add(**plain(id=name, subject=name))
    table.write(tmp_path, bootstrap=2)
    for file, column in (("per_case.csv", "id"), ("per_case.csv", "subject"), ("per_subject.csv", "subject")):
        cells = {row[column] for row in csv.DictReader((tmp_path / file).open())}
        assert cells == {"'=1+1", "'+a", "'-a", "'@a", "a=1"}
    assert table.rows[0]["id"] == "=1+1"


def test_undefined_bootstrap_samples_are_counted():
    full = np.ones((1, 8, 8), dtype=np.uint8)
    table = CaseTable(["tumor"])
    table.add(**plain(id="hit", subject="a", prediction=full))
    for name in "bc":
        table.add(id=name, subject=name, label=np.zeros(1), prediction=0 * full)
    metrics = table.summary(bootstrap=200)
    assert metrics["r_under"] == {"mean": 0, "ci95": [0, 0], "n": 3}
    note = next(note for note in table.notes if "leave these undefined" in note and "r_under" in note)
    assert 30 < int(note.split()[0]) < 90  # (2/3)**3 of 200 hold no subject with a finding


def test_mixed_units_are_kept_apart():
    full = np.ones((1, 8, 8), dtype=np.uint8)
    part = full.copy()
    part[:, :, 6:] = 0
    table = CaseTable(["tumor"])
    table.add(**plain(id="a", subject="a", prediction=part, reference=full, spacing=(1, 2)))
    table.add(**plain(id="b", subject="b", prediction=part, reference=full))
    metrics = table.summary(bootstrap=10)
    # The right border is 2 columns away: a nearest pixel of the prediction's edge is 2 px or 4 mm off.
    assert metrics["hd95_mm"]["mean"] == 2 * metrics["hd95_px"]["mean"] == 4
    assert metrics["hd95_mm"]["n"] == metrics["hd95_px"]["n"] == 1


def test_ignored_pixels_count_nowhere():
    reference = np.zeros((1, 8, 8), dtype=np.uint8)
    reference[0, 2:5, 2:5] = 1
    prediction, ignored = reference.copy(), reference.copy()
    prediction[0, 7], ignored[0, 7] = 1, 255
    table = CaseTable(["tumor"])
    table.add(**plain(prediction=prediction, reference=ignored, cam=prediction.astype(float)))
    metrics = table.summary(bootstrap=3)
    assert (
        metrics["dice_subject"]["mean"] == metrics["pixel_auroc"]["mean"] == metrics["oracle_dice_subject"]["mean"] == 1
    )
    assert metrics["hd95_px"]["mean"] == metrics["r_over"]["mean"] == 0


def test_the_notes_say_how_often_and_with_which_seed_subjects_are_resampled(tmp_path):
    made = cases(seed=6)
    said = table_of(made).write(tmp_path, bootstrap=1000, seed=0)
    for resample in (lambda table: table.summary(), lambda table: table.write(tmp_path)):
        table = table_of(made)
        assert resample(table) == said
        note = "Intervals: 2.5th and 97.5th percentiles of 1000 resamplings of the subjects, seed 0."
        assert note in table.notes
    assert table_of(made).summary(seed=1)["dice_subject"]["ci95"] != said["dice_subject"]["ci95"]


def test_written_files(tmp_path):
    table = table_of(cases(seed=6))
    metrics = table.write(tmp_path / "run", bootstrap=10)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json", "notes.txt", "per_case.csv", "per_subject.csv", "sweep.json",
    ]  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert (folder / "notes.txt").read_text(encoding="utf-8").splitlines() == table.notes
    rows = list(csv.DictReader((folder / "per_case.csv").open()))
    assert [row["row"] for row in rows] == [str(i) for i in range(1, 25)]
    assert rows[4]["id"] == "s1z0"
    assert float(rows[4]["dice"]) == table.rows[4]["dice"]
    assert "sweep" not in rows[0]
    subjects = list(csv.DictReader((folder / "per_subject.csv").open()))
    assert subjects[0]["dice"] == ""  # healthy
    dice = [float(row["dice"]) for row in subjects if row["dice"]]
    assert np.mean(dice) == pytest.approx(metrics["dice_subject"]["mean"])
    assert int(subjects[0]["cases"]) == 4
    assert sum(int(row["tp"]) for row in subjects) == sum(row["tp"] for row in table.rows)
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    curve = sweep["classes"]["tumor"]["dice_subject"]
    assert len(curve) == len(sweep["thresholds"]) == 100
    assert max(curve) == pytest.approx(metrics["oracle_dice_subject"]["mean"])
    assert sweep["classes"]["tumor"]["oracle_dice_subject"] == max(curve)
    assert sweep["cases"] == 24


@pytest.mark.parametrize("classes", [("tumor",), ("core", "edema")])
def test_columns_of_the_table_of_cases(tmp_path, classes):
    """Each column stands once; the mean Dice has one of its own beside those of several classes."""
    table = table_of(cases(classes=len(classes)), classes)
    table.write(tmp_path, bootstrap=2)
    with open(tmp_path / "per_case.csv", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    ends = [f"/{name}" for name in classes] if len(classes) > 1 else [""]
    pixels = ("tp", "fp", "fn", "tn", "dice", "iou", "asd", "assd", "assd_directed", "hd95", "pixel_auroc")
    assert header == [
        *("row", "id", "subject", "truth", "unit"),
        *(f"{name}{end}" for end in ends for name in ("label", "presence")),
        *("finding", "healthy", "found"),
        *(["dice"] if len(classes) > 1 else []),
        *(f"{name}{end}" for end in ends for name in pixels),
    ]
    assert [float(row[header.index("dice")]) for row in rows] == [row["dice"] for row in table.rows]


def test_sweep_of_the_table_is_thresholding_of_the_maps(tmp_path):
    made = cases(seed=7, classes=2)
    table_of(made, ("core", "edema")).write(tmp_path, bootstrap=2)
    sweep = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    for k, name in enumerate(("core", "edema")):
        for i in (0, 30, 60, 90):
            threshold = sweep["thresholds"][i]
            masks = [(case["subject"], case["cam"][k] > threshold, case["reference"][0] == k + 1) for case in made]
            found, wanted = (np.stack([mask[j] for mask in masks]) for j in (1, 2))
            assert sweep["classes"][name]["dice_pooled"][i] == pytest.approx(dice_of(found, wanted))
            of_subject = []
            for s in range(6):
                own = np.array([mask[0] == f"s{s}" for mask in masks])
                if wanted[own].any():
                    of_subject.append(dice_of(found[own], wanted[own]))
            assert sweep["classes"][name]["dice_subject"][i] == pytest.approx(np.mean(of_subject))


def test_a_finding_of_one_pixel_is_swept(tmp_path):
    """A class that one pixel of all references shows is no class without references."""
    reference, cam = np.zeros((1, 8, 8), dtype=np.uint8), np.zeros((1, 8, 8))
    reference[0, 2, 3], cam[0, 2, 2:4] = 1, (0.3, 0.7)
    table = CaseTable(["tumor"])
    table.add(**plain(reference=reference, cam=cam))
    table.write(tmp_path, bootstrap=2)
    sweep = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    for name in ("dice_subject", "dice_pooled"):
        curve = dict(zip(np.round(sweep["thresholds"], 2).tolist(), sweep["classes"]["tumor"][name], strict=True))
        assert [curve[threshold] for threshold in (0.1, 0.5, 0.9)] == [pytest.approx(2 / 3), 1, 0]
        assert sweep["classes"]["tumor"][f"oracle_{name}"] == 1


def test_a_second_evaluation_leaves_no_stale_sweep(tmp_path):
    made = cases(seed=8)
    table_of(made).write(tmp_path, bootstrap=2)
    assert (tmp_path / "sweep.json").exists()
    table_of([case | {"cam": None} for case in made]).write(tmp_path, bootstrap=2)
    assert not (tmp_path / "sweep.json").exists()


def test_rows_are_plain(tmp_path):
    def check(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                check(part)
            return
        assert type(value) in (str, int, float)
        assert not (isinstance(value, float) and not math.isfinite(value))

    for table in (table_of(cases(classes=2), ("core", "edema")), table_of(cases())):
        check(table.rows)
        check([{k: v for k, v in row.items() if v is not None} for row in table.subject_rows])


def test_every_metric_has_a_definition():
    metrics = table_of(cases(classes=2), ("core", "edema"), context=("core",)).summary(bootstrap=2)
    assert all(metric_definition(name) for name in metrics)
    of_ensembles = {name for name in METRIC_DEFINITIONS if name.startswith("error_auroc")}
    assert {name.split("/")[0].removesuffix("_px") for name in metrics} == set(METRIC_DEFINITIONS) - of_ensembles
    assert metric_definition("unknown") == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": np.zeros((8, 8))}, r"`prediction` of shape \(1, \*S\).* got \(8, 8\) in row 1"),
        ({"prediction": np.zeros((2, 8, 8))}, "`prediction` of shape"),
        ({"reference": np.zeros((1, 8, 9))}, "`reference` of shape"),
        ({"label": np.ones(2)}, r"`label` of shape \(K,\) of 0 and 1"),
        ({"label": np.full(1, 0.5)}, "`label` of shape"),
        ({"presence": np.full(1, np.nan)}, "`presence` of shape .* finite"),
        ({"presence": np.zeros(2)}, "`presence` of shape"),
        ({"cam": np.zeros((2, 8, 8))}, r"`cam` of shape \(K, \*S\)"),
        ({"cam": np.full((1, 8, 8), 3.0)}, r"`score_map` in \[0, 1\]"),
        ({"cam": np.full((1, 8, 8), np.nan)}, "finite scores"),
        ({"prediction": np.full((1, 8, 8), 2)}, "`prediction` to hold the labels"),
        ({"spacing": (1, 1, 1), "prediction": np.ones((1, 8, 8))}, "`spacing` as 2 positive sizes"),
    ],
)
def test_bad_cases_are_refused_and_leave_no_row(changes, words):
    table = CaseTable(["tumor"])
    with pytest.raises(ValueError, match=words):
        table.add(**plain(**changes))
    assert table.rows == []
    table.add(**plain())
    with pytest.raises(ValueError, match="every `id` once, but row 2 repeats"):
        table.add(**plain())


def test_bad_tables(tmp_path):
    for classes in ([], ["a", "a"], ["background"]):
        with pytest.raises(ValueError, match="`classes` to be unique"):
            CaseTable(classes)
    for options in ({"background": False}, {"scored_class": "a"}, {"background": False, "scored_class": "b"}):
        with pytest.raises(ValueError, match="`scored_class` to be one of the classes where"):
            CaseTable(["a"], **options)
    with pytest.raises(ValueError, match="at least one case"):
        CaseTable(["a"]).summary()
    with pytest.raises(ValueError, match="one bootstrap sample, got 24 and 0"):
        table_of(cases()).summary(bootstrap=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"):
        table_of(cases()).write(tmp_path / "file", bootstrap=1)


def test_the_label_filter_of_segmentations_is_named_in_the_table_and_its_notes(tmp_path):
    table = CaseTable(["lesion"])
    mask = np.ones((1, 4, 4), dtype=np.uint8)
    for number, name in enumerate(["given", "given", "none"]):
        words = {"label": np.ones(1), "prediction": mask, "reference": mask, "label_filter": name}
        table.add(id=f"{number}", subject=f"{number}", **words)
    table.write(tmp_path, bootstrap=10)
    rows = list(csv.DictReader((tmp_path / "per_case.csv").open()))
    assert [row["label_filter"] for row in rows] == ["given", "given", "none"]
    notes = (tmp_path / "notes.txt").read_text(encoding="utf-8")
    assert (
        "Label filter of the segmentations: given (2 cases; masks hold the classes of the image's label alone" in notes
    )
    assert "Label filter of the segmentations: none (1 cases; masks may hold every class)." in notes


def test_classes_with_a_context_have_a_mean_of_their_own():
    classes = ("bird", "train", "kite")
    made = cases(classes=3)
    table = table_of(made, classes, context=("bird", "train"))
    metrics = table.summary(bootstrap=20)
    own = [metrics[f"iou_pooled/{name}"]["mean"] for name in ("bird", "train")]
    assert metrics["context_miou_pooled"]["mean"] == pytest.approx(np.mean(own))
    low, high = metrics["context_miou_pooled"]["ci95"]
    assert low <= metrics["context_miou_pooled"]["mean"] <= high
    assert any(note.startswith("context_miou_pooled (C-mIoU) covers bird, train") for note in table.notes)
    assert "context_miou_pooled" not in table_of(made, classes).summary(bootstrap=20)
    with pytest.raises(ValueError, match="Expected `context` to name classes, got boat"):
        CaseTable(classes, context=["boat"])


def test_a_heat_map_alone_has_an_area_under_its_curve_and_no_best_threshold():
    reference = np.zeros((1, 8, 8), dtype=np.uint8)
    reference[0, 2:5, 2:5] = 1
    table = CaseTable(["tumor"])
    table.add(**plain(prediction=reference, reference=reference, heat=7.0 - reference))
    metrics = table.summary(bootstrap=3)
    assert metrics["pixel_auroc"]["mean"] == 0
    assert "oracle_dice_subject" not in metrics
