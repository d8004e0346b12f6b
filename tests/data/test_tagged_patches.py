# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Patches that somebody tagged: ``prepare folder --no-background``, its columns, statistics, warnings and mistakes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss._intensity import tissue_statistics
from monai_wsss.data.datalist import load_datalist, load_header, write_datalist
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.label_table import read_label_table
from monai_wsss.data.reading import read_image

HEADER = "id,gland,other,source,x,y,split\n"
ROWS = "a,1,0,s1,0,0,train\nb,1,1,s1,8,0,train\nc,0,1,s2,0,0,train\nd,1,1,s3,0,0,val\n"


def tiles(root: Path, rows: str = ROWS, header: str = HEADER) -> tuple[Path, Path]:
    """Write a folder of RGB tiles and their table."""
    (root / "tiles").mkdir(parents=True)
    for seed, line in enumerate(rows.split()):
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "tiles" / f"{line.split(',')[0]}.png")
    (root / "labels.csv").write_text(header + rows)
    return root / "tiles", root / "labels.csv"


def prepare(root: Path, rows: str = ROWS, header: str = HEADER, **options: object) -> Path:
    images, labels = tiles(root, rows, header)
    return prepare_folder(images, labels, root / "out", **{"background": False, **options})


def test_source_and_origin_are_kept_and_the_source_is_the_subject(tmp_path):
    path = prepare(tmp_path)
    header = load_header(path)
    assert (header["background"], header["classes"], header["scored_class"]) == (False, ["gland", "other"], "gland")
    items = load_datalist(path, "training")
    assert [(item["id"], item["source"], item["origin"], item["subject"]) for item in items] == [
        ("a", "s1", [0, 0], "s1"),
        ("b", "s1", [8, 0], "s1"),
        ("c", "s2", [0, 0], "s2"),
    ]
    assert items[1]["label"].tolist() == [1.0, 1.0]


def test_patches_are_standardized_as_their_source(tmp_path):
    items = load_datalist(prepare(tmp_path), "training")
    pixels = [read_image(item["image"]).numpy() for item in items]
    for item, pictures in zip(items, (pixels[:2], pixels[:2], pixels[2:]), strict=True):
        mean, std = tissue_statistics(pictures)
        np.testing.assert_allclose(item["intensity_mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(item["intensity_std"], std, rtol=1e-6)


def test_the_columns_are_optional(tmp_path):
    path = prepare(tmp_path, "a,1,0\nb,0,1\n", "id,gland,other\n", scored_class="other", fractions=(1, 0, 0))
    assert load_header(path)["scored_class"] == "other"
    items = load_datalist(path, "training")
    assert all("source" not in item and "origin" not in item for item in items)
    np.testing.assert_allclose(
        items[0]["intensity_mean"], tissue_statistics(read_image(items[0]["image"]).numpy())[0], rtol=1e-6
    )
    assert all("intensity_mean" in item for item in items)


def test_a_source_without_origin(tmp_path):
    items = load_datalist(
        prepare(tmp_path, "a,1,0,s\nb,0,1,s\n", "id,gland,other,source\n", fractions=(1, 0, 0)), "training"
    )
    assert [(item["source"], "origin" in item) for item in items] == [("s", False)] * 2


def test_with_background_nothing_changes(tmp_path):
    images, labels = tiles(tmp_path, "a,1,0\nb,0,0\n", "id,gland,other\n")
    path = prepare_folder(images, labels, tmp_path / "out", fractions=(1, 0, 0))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["background"] is True
    assert "scored_class" not in content
    assert "statistics" not in content


@pytest.mark.parametrize(
    ("rows", "header", "options", "message"),
    [
        (ROWS + "e,0,0,s1,0,8,train\n", HEADER, {}, r'row 6: all labels of "e" are 0, but without background .*gland'),
        ("a,1\n", "id,gland\n", {}, r"there must be several label columns, got gland alone: add a column"),
        ("a,1\n", "id,label\n", {}, r"there must be several label columns, got foreground alone"),
        (ROWS, HEADER, {"scored_class": "tumor"}, r'The scored class is "tumor", but the classes are gland, other'),
        ("a,1,0,s,1.5,0\n", "id,gland,other,source,x,y\n", {}, r'row 2: x and y are "1.5" and "0": write the first'),
        ("a,1,0,s,-1,0\n", "id,gland,other,source,x,y\n", {}, r'x and y are "-1" and "0"'),
        (
            "a,1,0,s,p\nb,1,0,s,q\n",
            "id,gland,other,source,subject\n",
            {},
            r'row 3: source "s" is of subject "q", but of "p" in .*row 2: give all patches of a source the same',
        ),
    ],
)
def test_mistakes_in_the_table(tmp_path, rows, header, options, message):
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, rows, header, **options)


def test_a_scored_class_needs_that_there_is_no_background(tmp_path):
    _, labels = tiles(tmp_path)
    with pytest.raises(ValueError, match='Expected no `scored_class` with background, got "other"'):
        read_label_table(labels, label_columns=["gland", "other"], scored_class="other")


def test_overlapping_patches_whose_tags_contradict_each_other_are_reported(tmp_path, caplog):
    prepare(tmp_path, "a,1,0,s1,0,0,train\nb,0,1,s1,8,0,train\nc,0,1,s1,16,0,train\nd,0,1,s2,0,0,train\n")
    assert "1 pairs of overlapping patches have no class in common, first a and b" in caplog.text
    assert "row 3" in caplog.text


def test_patches_of_several_sizes_are_accepted_and_said(tmp_path, caplog):
    images, labels = tiles(tmp_path)
    Image.open(images / "a.png").resize((20, 20)).save(images / "a.png")
    with caplog.at_level(logging.INFO):
        prepare_folder(images, labels, tmp_path / "out", background=False)
    assert "The images have 2 sizes, from 16 x 12 to 20 x 20: they are kept, but a batch needs one size" in caplog.text


def test_transparent_gray_and_cmyk_tiles_become_rgb(tmp_path):
    images, labels = tiles(tmp_path)
    pixels = np.asarray(Image.open(images / "a.png"))
    alpha = np.where(np.arange(16) < 8, 255, 0).astype(np.uint8)[None].repeat(12, axis=0)
    Image.fromarray(np.dstack([pixels, alpha])).save(images / "a.png")
    Image.fromarray(pixels[..., 0]).save(images / "b.png")
    (images / "c.png").unlink()
    Image.fromarray(pixels).convert("CMYK").save(images / "c.jpg")
    a, b, c = load_datalist(prepare_folder(images, labels, tmp_path / "out", background=False), "training")
    composed = np.where(alpha[..., None] > 0, pixels, 255)
    np.testing.assert_array_equal(np.asarray(Image.open(a["image"])), composed)
    np.testing.assert_array_equal(np.asarray(Image.open(b["image"])), pixels[..., :1].repeat(3, axis=2))
    with Image.open(c["image"]) as picture:
        assert picture.mode == "RGB"


def test_deep_gray_among_colors_and_truncated_tiles(tmp_path):
    images, labels = tiles(tmp_path)
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(images / "a.png")
    with pytest.raises(DataError, match=r"row 2: the color image of a has no whole values up to 255"):
        prepare_folder(images, labels, tmp_path / "out", background=False)
    (images / "a.png").write_bytes((images / "b.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"Cannot read .*a.png as picture"):
        prepare_folder(images, labels, tmp_path / "out2", background=False)


def test_transparency_of_a_palette_shows_white(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png", on_white=True)[:, :, 0].T.tolist() == [[10, 20, 30], [255] * 3, [70, 80, 90]]
    assert read_image(tmp_path / "a.png")[:, 1, 0].tolist() == [40, 50, 60]


def case(name: str, **more: object) -> dict:
    return {"id": name, "image": "a.png", "label": [1, 0], "subject": "s", **more}


def datalist(*cases: dict, **more: object) -> dict:
    header = {"modality": {"0": "red"}, "classes": ["gland", "other"], "background": False, "scored_class": "gland"}
    return {**header, "training": list(cases), **more}


def test_a_case_may_name_its_statistics_and_falls_back_to_its_subject(tmp_path):
    (tmp_path / "a.png").touch()
    numbers = {name: {"mean": [float(n)], "std": [1.0]} for n, name in enumerate(("s", "pic"))}
    cases = [case("a", statistics="pic"), case("b"), case("c", statistics="unknown"), case("d", subject="nobody")]
    path = write_datalist(tmp_path, datalist(*cases, statistics=numbers))
    items = load_datalist(path, "training")
    assert [item["intensity_mean"].tolist() for item in items[:3]] == [[1.0], [0.0], [0.0]]
    assert "intensity_mean" not in items[3]
    assert all("statistics" not in item for item in items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 0]}, r'\(id "a"\) has a label of zeros, but "background" is false'),
        ({"origin": [0, -8]}, r"has origin \[0, -8\]: give the first column and row as whole numbers from 0 on"),
        ({"origin": "0,8"}, r"has origin '0,8'"),
        ({"source": 7}, r'has source 7: give a text in quotes, as "source": "a1"'),
        ({"statistics": ""}, r'has statistics \'\': give a text in quotes, as "statistics"'),
    ],
)
def test_mistakes_in_the_datalist(tmp_path, change, message):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=message):
        write_datalist(tmp_path, datalist(case("a", **change)))
    (tmp_path / "datalist.json").write_text(json.dumps(datalist(case("a", **change))))
    with pytest.raises(DataError, match=message):
        load_datalist(tmp_path / "datalist.json", "training")


def test_tissue_statistics_against_numpy():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(150, 256, (3, 9, 7)).astype(np.uint8), rng.integers(220, 256, (3, 5, 5)).astype(np.uint8)]
    pixels = np.concatenate([picture.reshape(3, -1) for picture in pictures], axis=1).astype(np.float64)
    tissue = pixels[:, pixels.mean(axis=0) < 235]
    mean, std = tissue_statistics(pictures)
    np.testing.assert_allclose(mean, tissue.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, tissue.std(axis=1), rtol=1e-12)
    mean, std = tissue_statistics(np.full((3, 4, 4), 250, dtype=np.uint8))
    assert (mean.tolist(), std.tolist()) == ([250.0] * 3, [1.0] * 3)


def test_commands(tmp_path, capsys):
    images, labels = tiles(tmp_path)
    command = ["prepare", "folder", "--images", str(images), "--labels", str(labels), "--no-background"]
    assert main([*command, "--out", str(tmp_path / "out"), "--scored-class", "other"]) == 0
    text = capsys.readouterr().out
    assert "cd bundles/histology_gland_segmentation" in text
    assert load_header(tmp_path / "out" / "datalist.json")["scored_class"] == "other"
    labels.write_text(labels.read_text(encoding="utf-8").replace("a,1,0", "a,0,0"))
    assert main([*command, "--out", str(tmp_path / "out2")]) == 1
    assert 'row 2: all labels of "a" are 0' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("glas", ["--patch", "9", "--stride", "3", "--white", "0.9", "--split", "official"], "neither labels.csv nor"),
        ("prog", ["--patch", "9", "--white", "0.5", "--split", "image", "--seed", "1"], "no folder with images"),
        ("ebhi", ["--presence", "0.1", "--fractions", "0.5,0.2,0.3", "--split", "image"], "for each kind of tissue"),
    ],
)
def test_commands_of_the_gland_data_sets(tmp_path, capsys, kind, options, message):
    assert main(["prepare", kind, "--root", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
