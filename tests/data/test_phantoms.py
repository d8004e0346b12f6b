# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Phantoms: the same bytes for the same arguments, exact masks, and images that behave like brain MRI."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data import phantoms
from monai_wsss.data.datalist import load_datalist
from monai_wsss.data.phantom_brain import CONTRAST, draw_brain
from monai_wsss.data.phantoms import make_phantoms
from monai_wsss.data.reading import read_image

ALL = tuple(CONTRAST)
SMALL = {"modalities": ("T1", "FLAIR"), "subjects": (2, 1, 1)}


def fingerprints(folder: str | Path) -> dict[str, str]:
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "datalist.json").read_text(encoding="utf-8"))


def z_score(volume: np.ndarray) -> np.ndarray:
    values = volume.astype(np.float64)
    foreground = values[values > values.mean()]
    return (values - foreground.mean()) / foreground.std()


def rank_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return make_phantoms(str(tmp_path_factory.mktemp("phantoms")), **SMALL)


@pytest.fixture(scope="module")
def studies():
    """Draw sixteen subjects with all sequences; the even ones are diseased."""
    return [draw_brain(np.random.default_rng([7, i]), modalities=ALL, diseased=i % 2 == 0) for i in range(16)]


# --- what is drawn


def test_masks_say_who_is_diseased_and_lie_in_the_brain(studies):
    for number, study in enumerate(studies):
        assert study.mask.dtype == np.uint8
        assert set(np.unique(study.mask)) <= {0, 1}
        if number % 2:
            assert not study.mask.any()
        else:
            assert study.mask.sum() > 100
            inside = study.organ[study.mask > 0].mean()
            assert inside > 0.85, "the rest is partial volume at sulci and ventricles"


def test_contrasts_are_those_of_the_sequences(studies):
    """Compare tumor and other brain: dark on T1, bright on T2 and FLAIR, with z-scores as on TCGA-LGG (-0.34, 0.86)."""
    tumor, contrast = {name: [] for name in ALL}, {name: [] for name in ALL}
    for study in studies[::2]:
        lesion, rest = study.mask > 0, study.organ & (study.mask == 0)
        for name in ALL:
            z = z_score(study.volumes[name])
            tumor[name].append(z[lesion].mean())
            contrast[name].append(z[lesion].mean() - z[rest].mean())
    assert min(contrast["FLAIR"]) > 0.2
    assert np.mean(contrast["T2"]) > 0.5
    assert np.mean(contrast["T1"]) < -0.1
    assert -0.9 < np.mean(tumor["T1"]) < 0.1
    assert -0.9 < np.mean(tumor["T1c"]) < 0.2
    assert 0.3 < np.mean(tumor["FLAIR"]) < 1.4


def test_ventricles_are_dark_on_flair_and_bright_on_t2():
    study = draw_brain(np.random.default_rng(3), modalities=ALL, diseased=False)
    inner = np.zeros(study.organ.shape, dtype=bool)
    inner[22:42, 20:44, 10:15] = True
    t2, flair = study.volumes["T2"].astype(float), study.volumes["FLAIR"].astype(float)
    fluid = inner & (t2 > 1.6 * np.median(t2[study.organ]))
    assert fluid.sum() > 20
    assert np.median(flair[fluid]) < 0.6 * np.median(flair[study.organ])


def test_rims_enhance_on_t1c_alone(studies):
    """Check that contrast makes parts of the tumor much brighter, but no healthy brain other than vessels."""
    gains = []
    for study in studies[::2]:
        lesion = study.mask > 0
        gains.append(np.quantile((z_score(study.volumes["T1c"]) - z_score(study.volumes["T1"]))[lesion], 0.98))
    assert max(gains) > 1.0
    assert min(gains) < 0.6, "not every tumor enhances"


def test_a_threshold_is_not_enough(studies):
    """Check that the best threshold on FLAIR, chosen with the masks, is bad but better than chance."""
    flair = np.stack([z_score(study.volumes["FLAIR"]) for study in studies])
    mask = np.stack([study.mask > 0 for study in studies])
    dice = [2 * (mask & (flair > t)).sum() / (mask.sum() + (flair > t).sum()) for t in np.arange(-1, 4, 0.1)]
    assert max(dice) < 0.5
    areas = [
        rank_auc(z[study.mask > 0], z[study.organ & (study.mask == 0)])
        for z, study in zip(flair[::2], studies[::2], strict=True)
    ]
    assert np.median(areas) > 0.8


def test_tumor_areas_are_as_large_as_real_ones():
    """Check the mean area in slices with tumor, which is 127 pixels in TCGA-LGG at 64 x 64."""
    masks = [draw_brain(np.random.default_rng([1, i]), modalities=(), diseased=True).mask for i in range(24)]
    areas = np.concatenate([mask.sum(axis=(0, 1)) for mask in masks])
    assert 90 < areas[areas > 0].mean() < 170


def test_a_sequence_does_not_depend_on_the_others():
    alone = draw_brain(np.random.default_rng(5), modalities=("FLAIR",), diseased=True)
    among = draw_brain(np.random.default_rng(5), modalities=ALL, diseased=True)
    np.testing.assert_array_equal(alone.volumes["FLAIR"], among.volumes["FLAIR"])
    np.testing.assert_array_equal(alone.mask, among.mask)


def test_heads_differ_in_size_and_gain(studies):
    assert np.std([study.organ.sum() for study in studies]) > 0.03 * np.mean([study.organ.sum() for study in studies])
    assert np.std([np.median(study.volumes["T1"][study.organ]) for study in studies]) > 4


# --- what is written


def test_slices_labels_and_files(small):
    datalist = read(small)
    assert datalist["modality"] == {"0": "T1", "1": "FLAIR"}
    for item in datalist["training"] + datalist["validation"]:
        mask = np.asarray(Image.open(Path(small) / item["mask"]))
        assert item["label"] == [int(mask.any())]
        assert mask.max() <= 1
        assert [path.rsplit("_", 1)[1] for path in item["image"]] == ["T1.png", "FLAIR.png"]
        assert Path(item["image"][0]).parent.name == item["subject"]
    by_subject = {item["subject"]: 0 for item in datalist["training"]}
    for item in datalist["training"]:
        by_subject[item["subject"]] += item["label"][0]
    assert sorted(count > 0 for count in by_subject.values()) == [False, True]
    assert all(path.endswith(".nii.gz") for path in datalist["test"][0]["image"])


def test_slices_and_studies_are_the_same_subjects_the_right_way_up(small, tmp_path):
    """Check that a PNG, read by the package, is [x, y] of the study; in a viewer its rows are y."""
    folder = Path(make_phantoms(tmp_path, spatial_dims=3, **SMALL))
    study = next(item for item in read(folder)["training"] if item["label"] == [1])
    volume = np.asarray(nibabel.load(folder / study["image"][1]).dataobj)
    truth = np.asarray(nibabel.load(folder / study["mask"]).dataobj)
    slices = [item for item in read(small)["training"] if item["subject"] == study["subject"]]
    assert len(slices) > 12
    for item in slices:
        z = int(item["id"][-2:])
        np.testing.assert_array_equal(read_image(Path(small) / item["image"][1])[0].numpy(), volume[:, :, z])
        np.testing.assert_array_equal(np.asarray(Image.open(Path(small) / item["mask"])), truth[:, :, z].T)


def test_studies_have_the_geometry_of_brats(tmp_path):
    folder = Path(make_phantoms(tmp_path, spatial_dims=3, modalities=["FLAIR"], subjects=(2, 0, 0)))
    for item in read(folder)["training"]:
        image, mask = nibabel.load(folder / item["image"][0]), nibabel.load(folder / item["mask"])
        assert image.shape == mask.shape == (64, 64, 24)
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_allclose(image.header.get_zooms(), (3.75, 3.75, 6.0))
        np.testing.assert_allclose(image.affine, mask.affine)
        assert mask.get_data_dtype() == np.uint8
        assert item["label"] == [int(np.asarray(mask.dataobj).any())]


def test_statistics_are_those_of_the_whole_volume(tmp_path):
    folder = Path(make_phantoms(tmp_path, spatial_dims=3, modalities=["T1", "T2"], subjects=(1, 0, 0)))
    datalist = read(folder)
    (item,) = datalist["training"]
    for channel, path in enumerate(item["image"]):
        values = np.asarray(nibabel.load(folder / path).dataobj, dtype=np.float64)
        foreground = values[values > values.mean()]
        entry = datalist["statistics"][item["subject"]]
        assert entry["mean"][channel] == pytest.approx(foreground.mean(), rel=1e-9)
        assert entry["std"][channel] == pytest.approx(foreground.std(), rel=1e-9)


def test_slices_carry_the_statistics_of_the_volume(small, tmp_path):
    folder = make_phantoms(tmp_path, spatial_dims=3, **SMALL)
    assert read(small)["statistics"] == read(folder)["statistics"]


def test_the_datalist_is_read_by_the_package(small):
    items = load_datalist(Path(small) / "datalist.json", "training", masks=True)
    assert {float(item["label"][0]) for item in items} == {0.0, 1.0}
    assert items[0]["intensity_mean"].shape == (2,)
    assert Path(items[0]["mask"]).exists()


def test_test_studies_are_mostly_diseased(tmp_path):
    folder = make_phantoms(tmp_path, modalities=["T1"], subjects=(0, 0, 4))
    assert sorted(item["label"][0] for item in read(folder)["test"]) == [0, 1, 1, 1]


# --- the folder


def test_same_arguments_same_bytes(small, tmp_path):
    assert fingerprints(make_phantoms(tmp_path / Path(small).name, **SMALL)) == fingerprints(small)


def test_another_seed_gives_other_subjects(small, tmp_path):
    other = make_phantoms(tmp_path, seed=1, **SMALL)
    assert set(fingerprints(small).values()) & set(fingerprints(other).values()) <= empty_slices(small)


def empty_slices(folder: str) -> set[str]:
    """Give fingerprints of masks without tumor: only these may agree between subjects."""
    return {value for name, value in fingerprints(folder).items() if name.startswith("masks")}


def test_a_second_call_draws_nothing(small, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in Path(small).rglob("*")}
    # Private, since no public door tells a folder that was drawn again from one that was not.
    monkeypatch.setattr(phantoms, "_generate", lambda *_: pytest.fail("drew again"))
    assert make_phantoms(small, **SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in Path(small).rglob("*")} == before


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_phantoms_whose_files_were_deleted_are_drawn_anew(tmp_path, folder):
    make_phantoms(tmp_path, modalities=["FLAIR"], subjects=(1, 0, 1))
    before = fingerprints(tmp_path)
    next((tmp_path / folder).rglob("*.png")).unlink()
    assert fingerprints(tmp_path) != before
    make_phantoms(tmp_path, modalities=["FLAIR"], subjects=(1, 0, 1))
    assert fingerprints(tmp_path) == before


def test_other_arguments_replace_the_phantoms_and_nothing_else(tmp_path):
    folder = Path(make_phantoms(tmp_path, modalities=["T1"], subjects=(2, 0, 0)))
    (folder / "images" / "note.txt").write_text("mine")
    make_phantoms(folder, modalities=["FLAIR"], subjects=(1, 0, 0), seed=4)
    named = {path for item in read(folder)["training"] for path in (*item["image"], item["mask"])}
    assert set(fingerprints(folder)) == named | {"datalist.json", "images/note.txt"}


def test_no_file_outside_of_the_folder_is_removed(tmp_path):
    folder = Path(make_phantoms(tmp_path / "phantoms", modalities=["T1"], subjects=(1, 0, 0)))
    (tmp_path / "mine.txt").write_text("mine")
    datalist = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    datalist["raw"] = ["../mine.txt", str(tmp_path / "mine.txt")]
    (folder / "datalist.json").write_text(json.dumps(datalist))
    before = fingerprints(folder)
    with pytest.raises(DataError, match=r"datalist.json names .*mine.txt, which is no file of phantoms"):
        make_phantoms(folder, modalities=["FLAIR"], subjects=(1, 0, 0))
    assert fingerprints(folder) == before
    assert (tmp_path / "mine.txt").is_file()


def test_a_killed_replacement_leaves_the_old_phantoms_whole(tmp_path, monkeypatch):
    arguments = {"modalities": ["T1"], "subjects": (1, 0, 1)}
    folder = make_phantoms(tmp_path, **arguments)
    before = fingerprints(folder)
    monkeypatch.setattr(phantoms, "write_datalist", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(folder, **{**arguments, "seed": 1})
    after = fingerprints(folder)
    assert {name: after[name] for name in before} == before
    assert make_phantoms(folder, **arguments) == folder


def test_two_processes_may_race(small, tmp_path):
    folder = tmp_path / Path(small).name
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make_phantoms, args=(folder,), kwargs=SMALL) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert fingerprints(folder) == fingerprints(small)


@pytest.mark.parametrize("content", ['{"training": []}', "[]", "no json"])
def test_a_folder_of_real_data_is_not_overwritten(tmp_path, content):
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(DataError, match=r"datalist\.json is no datalist of phantoms.*choose another folder"):
        make_phantoms(tmp_path)
    assert (tmp_path / "datalist.json").read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "heart"}, r"`kind` to be one of brain, chest, gland, scene, skin, got 'heart'"),
        ({"modalities": ["T1", "ADC"]}, r"`modalities` to be one of T1, T1c, T2, FLAIR, got 'ADC'"),
        ({"modalities": []}, "`modalities` to name at least one"),
        ({"spatial_dims": 4}, "`spatial_dims` to be 2 or 3, got 4"),
        ({"subjects": (1, 2)}, "`subjects` to be three numbers"),
        ({"subjects": (1, 2, -1)}, "`subjects` to be three numbers"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        make_phantoms(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_slices_of_brains_keep_the_order_of_their_study_and_sections_are_rows_and_columns(tmp_path):
    for kind, order in (("brain", "xy"), ("gland", "rows_columns")):
        folder = make_phantoms(tmp_path / kind, kind=kind, subjects=(1, 0, 0))
        assert read(folder)["order"] == order
