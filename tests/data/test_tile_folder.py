# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare cases --tiles``: what is written, where the tags come from, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss.data.cases import prepare_cases
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.reports.provenance import simulated_supervision

SIZE = (96, 64)  # columns, rows
SPLIT_OF = {"a": "train", "b": "train", "c": "val", "d": "test"}


def pixels_of(name: str, color: bool) -> np.ndarray:
    """Draw (rows, columns, channels) without equal pixels nearby."""
    rng = np.random.default_rng(ord(name))
    return rng.integers(120, 200, (SIZE[1], SIZE[0], 3 if color else 1)).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.squeeze()).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Write four color images, each with a lesion of 32 x 32 pixels at column 64, row 0."""
    folder = tmp_path / "root"
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    mask[:32, 64:] = 255
    rows = ["id,case,label,split"]
    for name, split in SPLIT_OF.items():
        save(folder / "images" / f"{name}.png", pixels_of(name, color=True))
        save(folder / "masks" / f"{name}.png", mask)
        rows.append(f"{name},{name},1,{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def prepare(root: Path, **options) -> Path:
    return prepare_cases(root, root.parent / "out", **{"tiles": 32, "labels_from_masks": True, **options})


def origins(path: Path, split: str, label: int) -> set[tuple[str, int, int]]:
    items = load_datalist(path, split)
    return {(item["source"], *item["origin"]) for item in items if item["label"].tolist() == [label]}


# --- what is written


def test_tiles_have_the_tags_of_the_mask_and_one_size(root, caplog):
    with caplog.at_level(logging.INFO):
        path = prepare(root, tile_stride=32, tile_margin=8)
    for split, names in (("training", "ab"), ("validation_tiles", "c"), ("test_tiles", "d")):
        assert origins(path, split, 1) == {(name, 64, 0) for name in names}
        # (32, 0) and (64, 32) touch the margin; (32, 32) touches its corner.
        assert origins(path, split, 0) == {(name, 0, y) for name in names for y in (0, 32)}
    for item in load_datalist(path, "training", masks=True):
        x, y = item["origin"]
        with Image.open(item["image"]) as tile, Image.open(item["mask"]) as mask:
            np.testing.assert_array_equal(
                np.asarray(tile), pixels_of(item["source"], color=True)[y : y + 32, x : x + 32]
            )
            assert mask.size == (32, 32)
            assert bool(np.asarray(mask).any()) == bool(item["label"][0])
    assert "training: 6 tiles of 2 images (2 with foreground, 4 without)." in caplog.text
    assert "12 tiles with too little of a finding, or too near to one, were left out." in caplog.text


def test_masks_that_contradict_their_labels_are_said(root, caplog):
    table = root / "labels.csv"
    table.write_text(table.read_text().replace("a,a,1", "a,a,0").replace("c,c,1", "c,c,0"))
    prepare(root)
    assert "2 masks show other classes than their labels say, first that of a." in caplog.text


def test_whole_images_stay_beside_their_tiles(root):
    path = prepare(root)
    assert [item["id"] for item in load_datalist(path, "training_images", masks=True)] == ["a", "b"]
    (case,) = load_datalist(path, "validation", masks=True)
    with Image.open(case["image"]) as image, Image.open(case["mask"]) as mask:
        np.testing.assert_array_equal(np.asarray(image), pixels_of("c", color=True))
        assert mask.size == SIZE
    assert "source" not in case
    assert all("mask" not in item for item in load_datalist(path, "validation_tiles", masks=True))


def test_tiles_and_whole_images_have_one_scale(root):
    path = prepare(root, tiles=16, scale=0.5)
    for split in ("training", "validation_tiles"):
        for item in load_datalist(path, split):
            with Image.open(item["image"]) as tile:
                assert tile.size == (16, 16)
    (case,) = load_datalist(path, "validation", masks=True)
    with Image.open(case["image"]) as image, Image.open(case["mask"]) as mask:
        assert image.size == mask.size == (48, 32)
        assert np.asarray(mask)[:16, 32:].all()
        assert np.asarray(mask).sum() == 256


def test_whole_images_keep_their_size_on_request(root):
    (case,) = load_datalist(prepare(root, tiles=16, longest_side=48, full_size=True), "test", masks=True)
    with Image.open(case["image"]) as image, Image.open(case["mask"]) as mask:
        assert image.size == mask.size == SIZE
    for case in load_datalist(root.parent / "out" / "datalist.json", "training_images"):
        with Image.open(case["image"]) as image:
            assert image.size == (48, 32)


def test_the_datalist_says_that_the_supervision_is_simulated(root):
    path = prepare(root)
    header = load_header(path)
    assert header["simulated_supervision"] is True
    assert header["labels"].startswith("simulated: tags of tiles from masks (present above 5 % of a tile")
    assert header["order"] == "rows_columns"
    assert header["tiles"]["tiles"] == 32
    assert header["tiles"]["tile_stride"] == 16
    assert "training_images" not in header
    (phrase,) = simulated_supervision(path)
    assert phrase.startswith("simulated supervision, tags of tiles from masks")
    assert simulated_supervision(prepare_cases(root, root.parent / "whole")) == []


def test_the_same_folder_gives_the_same_files(root):
    first = prepare(root).parent
    second = prepare_cases(root, root.parent / "other" / "out", tiles=32, labels_from_masks=True).parent
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.*"))
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)
    assert not [path for path in files if "partial" in path.name]


def test_a_tile_is_standardized_as_its_whole_image(root):
    path = prepare(root)
    mean, std = tissue_statistics(pixels_of("b", color=True).transpose(2, 1, 0))
    for item in load_datalist(path, "training"):
        if item["source"] == "b":
            np.testing.assert_allclose(item["intensity_mean"], mean, rtol=1e-5)
            np.testing.assert_allclose(item["intensity_std"], std, rtol=1e-5)


def test_gray_and_color_images_all_become_color(root):
    save(root / "images" / "a.png", pixels_of("a", color=False))
    path = prepare(root)
    assert load_header(path)["modality"] == {"0": "red", "1": "green", "2": "blue"}
    for item in load_datalist(path, "training"):
        with Image.open(item["image"]) as tile:
            assert tile.mode == "RGB"


# --- corners and regions


def test_dark_corners_are_left_out_in_both_classes_alike(root, caplog):
    for name in SPLIT_OF:
        image = pixels_of(name, color=True)
        image[:10, :10] = image[:10, -10:] = 4
        save(root / "images" / f"{name}.png", image)
    with caplog.at_level(logging.INFO):
        path = prepare(root, tile_stride=32)
    assert origins(path, "training", 1) == set()  # the only tile with the lesion has a dark corner
    assert origins(path, "training", 0) == {("a", 0, 32), ("b", 0, 32)}
    assert "8 tiles were left out for their dark corners, in both classes alike." in caplog.text
    assert "training: no tile is with foreground, so there is nothing to tell apart." in caplog.text
    kept = prepare_cases(
        root, root.parent / "kept", tiles=32, tile_stride=32, labels_from_masks=True, skip_dark_corners=False
    )
    assert origins(kept, "training", 1) == {("a", 64, 0), ("b", 64, 0)}
    assert origins(kept, "training", 0) == {(name, 0, y) for name in "ab" for y in (0, 32)}


def test_tiles_lie_in_the_region(root, caplog):
    for name in "acd":
        region = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        region[:34] = 1
        save(root / "lungs" / f"{name}.png", region)
    with caplog.at_level(logging.INFO):
        path = prepare(root, tile_stride=32, region="lungs")
    assert origins(path, "training", 1) == {("a", 64, 0)}
    assert origins(path, "training", 0) == {("a", 0, 0)}
    assert "1 images give no tile, since they have no region." in caplog.text
    (case,) = load_datalist(path, "validation", regions=True)
    with Image.open(case["region"]) as region:
        assert np.asarray(region).sum() == 34 * SIZE[0]
    assert "region" not in load_datalist(path, "validation", masks=True)[0]
    assert "region" not in load_datalist(path, "training_images", regions=True)[1]


# --- where tags come from


def label_zero(root: Path, name: str) -> None:
    table = root / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(f"{name},{name},1", f"{name},{name},0"))
    (root / "masks" / f"{name}.png").unlink()


def test_without_the_flag_a_table_lists_tiles(root):
    label_zero(root, "b")
    (root / "tiles.csv").write_text("id,x,y,label\na,0,32,0\na,64,0,1\na,7,3,1\n")
    path = prepare(root, tile_stride=32, labels_from_masks=False)
    assert origins(path, "training", 1) == {("a", 64, 0), ("a", 7, 3)}
    assert origins(path, "training", 0) == {("a", 0, 32)} | {("b", x, y) for x in (0, 32, 64) for y in (0, 32)}
    header = load_header(path)
    assert header["simulated_supervision"] is False
    assert header["labels"] == "of tiles, from tiles.csv and from images without finding"


def test_an_image_labeled_0_needs_no_mask_and_one_labeled_1_does(root, caplog):
    label_zero(root, "b")
    (root / "masks" / "c.png").unlink()
    with caplog.at_level(logging.INFO):
        path = prepare(root, tile_stride=32)
    assert origins(path, "training", 0) >= {("b", x, y) for x in (0, 32, 64) for y in (0, 32)}
    assert load_datalist(path, "validation_tiles") == []
    assert "1 images give no tile, since neither a mask nor a table says what their tiles show." in caplog.text


def test_without_tags_the_flag_is_named(root):
    with pytest.raises(DataError, match="Nothing says what the tiles show: take their tags from the masks"):
        prepare(root, labels_from_masks=False)


def test_all_faults_of_the_table_of_tiles_are_said_at_once(root):
    (root / "tiles.csv").write_text("id,x,y,label\nq,0,0,1\na,1.5,0,1\na,0,0,2\na,0,0\n")
    with pytest.raises(DataError) as error:
        prepare(root, labels_from_masks=False)
    for words in (
        'row 2: no image is called "q"',
        'row 3: x and y are "1.5" and "0", no whole numbers',
        'row 4: the label in column "label" is "2", neither 0 nor 1',
        "row 5: it has more or fewer fields",
    ):
        assert words in str(error.value)
    (root / "tiles.csv").write_text("id,x,y,label\na,0,0,1\na,0,0,0\n")
    with pytest.raises(DataError, match="row 3: the tile is listed before: correct the rows"):
        prepare(root, labels_from_masks=False)
    (root / "tiles.csv").write_text("id,x,label\na,0,1\n")
    with pytest.raises(DataError, match="lacks y: give id, x, y, label"):
        prepare(root, labels_from_masks=False)


# --- what is refused


def test_a_listed_tile_outside_of_its_image(root):
    (root / "tiles.csv").write_text("id,x,y,label\na,65,0,1\n")
    with pytest.raises(DataError, match='A tile of "a" at x = 65, y = 0 ends outside of the image of 96 x 64 pixels'):
        prepare(root, labels_from_masks=False)


def test_an_image_smaller_than_a_tile(root):
    with pytest.raises(DataError, match='row 2: the image of "a" is of 48 x 32 pixels where it is cut, smaller'):
        prepare(root, tiles=40, longest_side=48)


def test_no_tile_left(root):
    with pytest.raises(DataError, match="No tile of 64 pixels is left to train on"):
        prepare(root, tiles=64, tile_presence=0.9)
    assert not (root.parent / "out" / "datalist.json").exists()


def test_options_without_tiles(root):
    with pytest.raises(
        ValueError, match="Expected `tiles`, the size of the tiles, beside `scale`, `labels_from_masks`"
    ):
        prepare_cases(root, root.parent / "out", scale=0.5, labels_from_masks=True)


def heart_root(root: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write a slice of 16 rows and 24 columns with two classes that touch, and a healthy one; give both."""
    masks = np.zeros((2, 16, 24), dtype=np.uint8)
    masks[0, :8, :8], masks[0, :8, 8:16] = 1, 2
    images = np.random.default_rng(0).integers(0, 255, masks.shape).astype(np.uint8)
    (root / "cases").mkdir(parents=True)
    np.savez(root / "cases" / "p.npz", images=images, masks=masks)
    rows = ["id,case,index_in_npz,rv,lv,split,file", "a,p,0,1,1,train,cases/p.npz", "b,p,1,0,0,train,cases/p.npz"]
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root, images, masks


def heart(root: Path, **options) -> Path:
    words = {"tiles": 8, "tile_stride": 8, "skip_dark_corners": False, **options}
    return prepare(root, label_columns=("rv", "lv"), **words)


def test_slices_of_several_classes_are_cut(tmp_path, caplog):
    root, images, masks = heart_root(tmp_path / "root")
    with caplog.at_level(logging.INFO):
        path = heart(root, tile_margin=0)
    assert load_header(path)["order"] == "xy"
    assert load_header(path)["simulated_supervision"]
    items = load_datalist(path, "training", masks=True)
    tags = {(item["source"], *item["origin"]): item["label"].tolist() for item in items}
    assert tags.pop(("a", 0, 0)) == [1, 0]
    assert tags.pop(("a", 8, 0)) == [0, 1]
    assert len(tags) == 10, "tiles without any class stay, of both slices"
    assert not any(map(any, tags.values()))
    for item in items:
        x, y = item["origin"]
        window = (0 if item["source"] == "a" else 1, slice(y, y + 8), slice(x, x + 8))
        for key, values in (("image", images), ("mask", masks)):
            with Image.open(item[key]) as tile:
                np.testing.assert_array_equal(np.asarray(tile), values[window])
    mean, std = foreground_statistics([image.T[None] for image in images])
    np.testing.assert_allclose(items[0]["intensity_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(items[0]["intensity_std"], std, rtol=1e-5)
    (whole, _) = load_datalist(path, "training_images", masks=True)
    with Image.open(whole["mask"]) as mask:
        np.testing.assert_array_equal(np.asarray(mask), masks[0])
    assert "(1 with rv, 1 with lv, 10 without)" in caplog.text
    assert "so labels do not tell" not in caplog.text


def test_a_margin_holds_for_each_class(tmp_path):
    path = heart(heart_root(tmp_path / "root")[0], tile_margin=1)
    found = [(*item["origin"], item["source"]) for item in load_datalist(path, "training")]
    # Each class is within a pixel of the tile of the other one, and of three tiles around.
    assert sorted(found) == sorted((x, y, "b") for x in (0, 8, 16) for y in (0, 8))


def test_classes_that_never_show_apart_are_named(tmp_path, caplog):
    heart(heart_root(tmp_path / "root")[0], tile_margin=0, tiles=16)
    assert "training: every tile with rv shows lv, too, so labels do not tell one from the other" in caplog.text


def test_npz_files_have_no_region(tmp_path):
    with pytest.raises(DataError, match=r"slices in npz files, which have no masks of a region: leave `region` out"):
        heart(heart_root(tmp_path / "root")[0], region="lungs")


def test_gray_tiles_share_the_statistics_of_their_subject(tmp_path):
    root = tmp_path / "root"
    gray = [pixels_of(name, color=False) for name in "ab"]
    for name, pixels in zip("ab", gray, strict=True):
        save(root / "images" / f"{name}.png", pixels)
        save(root / "masks" / f"{name}.png", np.eye(SIZE[1], SIZE[0], dtype=np.uint8))
    (root / "labels.csv").write_text("id,case,label,split\na,s,1,train\nb,s,1,train\n")
    path = prepare(root, tile_presence=0.01)
    mean, _ = foreground_statistics([pixels.transpose(2, 1, 0) for pixels in gray])
    assert load_header(path)["modality"] == {"0": "image"}
    for item in load_datalist(path, "training"):
        np.testing.assert_allclose(item["intensity_mean"], mean, rtol=1e-5)


def test_from_the_command_line(root, capsys):
    out = root.parent / "out"
    options = ["--tiles", "32", "--tile-stride", "32", "--labels-from-masks", "--keep-dark-corners"]
    assert main(["prepare", "cases", "--root", str(root), "--out", str(out), *options]) == 0
    datalist = json.loads((out / "datalist.json").read_text(encoding="utf-8"))
    assert datalist["tiles"]["skip_dark_corners"] is False
    assert len(datalist["training"]) == 6
    assert main(["prepare", "cases", "--root", str(root), "--out", str(root.parent / "no"), "--tiles", "32"]) == 1
    assert "`--labels-from-masks`" in capsys.readouterr().err
