# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Gland phantoms: exact masks, glands with a ring of nuclei and a pale lumen, and no color that tells them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt, label

from monai_wsss.data.datalist import check_trainable, load_datalist
from monai_wsss.data.patches import patch_origins, presence_tags
from monai_wsss.data.phantom_gland import LAYOUTS, SHAPE, GlandSection, draw_gland, draw_laboratory
from monai_wsss.data.phantoms import make_phantoms
from monai_wsss.data.reading import read_image
from monai_wsss.transforms import NormalizeSubjectd
from monai_wsss.transforms.stain import estimate_stains


def draw(subject: int, layout: str) -> GlandSection:
    rng = np.random.default_rng([11, subject])
    return draw_gland(rng, laboratory=draw_laboratory(rng), layout=layout)


@pytest.fixture(scope="module")
def sections() -> list[GlandSection]:
    """Draw four subjects with one section per layout."""
    return [draw(subject, layout) for subject in range(4) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write enough subjects for every kind of patch."""
    return Path(make_phantoms(tmp_path_factory.mktemp("glands"), kind="gland", subjects=(3, 1, 1)))


def read(folder: Path) -> dict:
    return json.loads((folder / "datalist.json").read_text(encoding="utf-8"))


# --- what is drawn


def test_every_pixel_is_gland_or_other(sections):
    for section in sections:
        assert section.image.shape == (3, *SHAPE)
        assert section.image.dtype == section.mask.dtype == np.uint8
        assert section.mask.shape == (1, *SHAPE)
        assert set(np.unique(section.mask)) <= {1, 2}
    shares = np.array([(section.mask == 1).mean() for section in sections]).reshape(-1, len(LAYOUTS))
    assert (shares[:, 2] == 0).all()
    assert shares[:, :2].min() > 0.15
    assert shares[:, :2].max() < 0.9


def test_layouts_differ_in_the_number_and_size_of_glands(sections):
    counts = np.array([label(section.mask[0] == 1)[1] for section in sections]).reshape(-1, len(LAYOUTS))
    assert (counts[:, 0] > 2 * counts[:, 1]).all()
    assert (counts[:, 1] >= 1).all()


def test_the_border_of_a_gland_is_darker_than_what_lies_on_both_sides(sections):
    """Check that the ring of nuclei, which no other tissue has, lies 4 to 11 pixels inside of the border."""
    for section in sections[::3]:
        red = section.image[0].astype(float)
        gland = section.mask[0] == 1
        inside, outside = distance_transform_edt(gland), distance_transform_edt(~gland)
        ring = red[(inside > 4) & (inside < 11)].mean()
        assert ring < red[(inside > 24)].mean() - 10
        assert ring < red[(outside > 2) & (outside < 7)].mean() - 10


def test_lumina_are_gland_and_pale_though_not_bare(sections):
    for section in sections[0::3]:
        gland = binary_erosion(section.mask[0] == 1, iterations=10)
        pale = (section.image.min(axis=0) > 205) & gland
        assert pale.sum() > 100
        assert section.image[1][pale].mean() < 241


def test_other_tissue_has_pale_holes_and_dark_nuclei_as_well(sections):
    pale, dark = [], []
    for section in sections:
        other = section.mask[0] == 2
        pale.append((section.image.min(axis=0)[other] > 205).mean())
        dark.append((section.image[0][other] < np.quantile(section.image[0], 0.2)).mean())
    assert min(pale) > 0.005
    assert np.mean(dark) > 0.08


def best_miou(score: np.ndarray, gland: np.ndarray) -> float:
    """Check all thresholds, chosen with the masks, in both directions."""
    best = 0.0
    for threshold in np.quantile(score, np.linspace(0.02, 0.98, 33)):
        for guess in (score > threshold, score <= threshold):
            scores = [(guess & gland).sum() / (guess | gland).sum(), (~guess & ~gland).sum() / (~guess | ~gland).sum()]
            best = max(best, float(np.mean(scores)))
    return best


def test_a_threshold_on_a_color_is_not_enough(sections):
    gland = np.stack([section.mask[0, ::3, ::3] == 1 for section in sections]).ravel()
    pixels = np.stack([section.image[:, ::3, ::3] for section in sections]).astype(float)
    scores = [*pixels.transpose(1, 0, 2, 3), pixels.mean(axis=1), pixels[:, 0] / pixels[:, 2].clip(1)]
    assert max(best_miou(score.ravel(), gland) for score in scores) < 0.5


def test_mean_colors_of_glands_and_stroma_overlap(sections):
    """Compare colors within sections, without white, in units of the spread between subjects."""
    gland, other = [], []
    for section in sections:
        tissue = section.image.mean(axis=0) < 225
        for kind, means in ((1, gland), (2, other)):
            chosen = tissue & (section.mask[0] == kind)
            if chosen.sum() > 500:
                means.append(section.image[:, chosen].mean(axis=1))
    gap = np.abs(np.mean(gland, axis=0) - np.mean(other, axis=0))
    assert (gap < 1.5 * np.std(gland + other, axis=0)).all()


def test_subjects_are_stained_differently():
    found = [estimate_stains(torch.from_numpy(draw(subject, "many").image).float()) for subject in range(5)]
    assert all(one is not None for one in found)
    assert torch.stack([one.stains for one in found]).std(dim=0).max() > 0.02
    assert torch.stack([one.concentrations for one in found]).std(dim=0).min() > 0.03


def test_the_same_chance_draws_the_same():
    np.testing.assert_array_equal(draw(2, "few").image, draw(2, "few").image)
    assert (draw(2, "few").image != draw(3, "few").image).any()


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match="`layout` to be one of many, few, none, got 'some'"):
        draw(0, "some")


# --- what is written


def test_the_datalist_is_that_of_a_prepared_gland_folder(folder):
    datalist = read(folder)
    assert datalist["background"] is False
    assert datalist["classes"] == ["gland", "other"]
    assert datalist["scored_class"] == "gland"
    assert datalist["modality"] == {"0": "red", "1": "green", "2": "blue"}
    assert datalist["labels"] == "simulated: tags from masks (present above 5 % of a patch)"
    assert datalist["simulated_supervision"] is True
    assert set(datalist["statistics"]) == {
        item["statistics"] for split in ("training", "validation", "test") for item in datalist[split]
    }


def test_training_is_patches_of_every_kind_and_the_rest_whole_sections(folder):
    datalist = read(folder)
    kinds = {tuple(item["label"]) for item in datalist["training"]}
    assert kinds == {(1, 0), (0, 1), (1, 1)}
    check_trainable(datalist["training"])
    assert {tuple(item["origin"]) for item in datalist["training"]} <= set(patch_origins(SHAPE, 112, 56))
    for split, size in (("training", (112, 112)), ("validation", SHAPE), ("test", SHAPE)):
        for item in datalist[split]:
            with Image.open(folder / item["image"]) as picture:
                assert picture.size == size
                assert picture.mode == "RGB"
            mask = np.asarray(Image.open(folder / item["mask"]))
            assert item["label"] == presence_tags(mask, 2)


def test_overlapping_patches_show_the_same_pixels(folder):
    datalist = read(folder)
    by_source: dict[str, list[dict]] = {}
    for item in datalist["training"]:
        by_source.setdefault(item["source"], []).append(item)
    assert len(by_source) == 6
    for source, items in by_source.items():
        whole = np.zeros((3, *SHAPE), dtype=np.float32)
        for item in items:
            x, y = item["origin"]
            patch = read_image(folder / item["image"]).numpy()
            seen = whole[:, x : x + 112, y : y + 112]
            assert ((seen == 0) | (seen == patch)).all(), source
            whole[:, x : x + 112, y : y + 112] = patch


def test_patches_are_standardized_as_their_section(folder):
    items = load_datalist(folder / "datalist.json", "training")
    item = items[0]
    pixels = read_image(item["image"])
    standardized = NormalizeSubjectd("image", foreground="tissue")({**item, "image": pixels})["image"]
    expected = (pixels.numpy() - item["intensity_mean"][:, None, None]) / item["intensity_std"][:, None, None]
    np.testing.assert_allclose(standardized.numpy(), expected.clip(-4, 6), atol=1e-4)
    assert item["source"] in item["id"]
    others = {tuple(other["intensity_mean"]) for other in items}
    assert len(others) == 6, "one per section"


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    again = Path(make_phantoms(tmp_path / "again", kind="gland", subjects=(3, 1, 1)))
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*.png"))
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    make_phantoms(again, kind="gland", subjects=(3, 1, 1))
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before


def test_brains_replace_glands(tmp_path):
    make_phantoms(tmp_path, kind="gland", subjects=(0, 0, 1))
    make_phantoms(tmp_path, modalities=["T1"], subjects=(0, 0, 1))
    assert not list(tmp_path.rglob("*.png"))
    assert read(tmp_path)["name"] == "brain_phantoms"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"modalities": ["T1"]}, "no `modalities` for color images, got T1"),
        ({"spatial_dims": 3}, "`spatial_dims` to be 2 for color images, got 3"),
        ({"subjects": (1, 2)}, "`subjects` to be three numbers"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        make_phantoms(tmp_path / "new", kind="gland", **wrong)
    assert not (tmp_path / "new").exists()
