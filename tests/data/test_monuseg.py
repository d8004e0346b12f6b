# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare monuseg``: outlines in XML, crops side by side, healthy tissue of both kinds, splits by patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.healthy import blur, healthy_tissue
from monai_wsss.data.monuseg import prepare_monuseg
from monai_wsss.data.reading import read_image, read_labels

NAMES = [f"TCGA-{part}-01Z-00-DX{slide}" for part in ("18-5592", "21-5784", "AR-A1AK") for slide in (1, 2)]
"""Two tiles per patient; the tiles of the last one are the released test set."""
NUCLEI = ((4, 6, 12, 16), (30, 20, 38, 29), (10, 40, 20, 46))  # first x and y, last x and y
SPLITS = ("training", "validation", "test")


def annotation(outlines: list[list[tuple[float, float]]]) -> str:
    """Write the outlines as Aperio ImageScope does, with a head that holds no vertices."""
    regions = "".join(
        f'<Region Id="{number}"><Attributes/><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in outline)
        + "</Vertices></Region>"
        for number, outline in enumerate(outlines, start=1)
    )
    head = '<RegionAttributeHeaders><AttributeHeader Name="Region"/></RegionAttributeHeaders>'
    return f'<Annotations><Annotation Id="1"><Regions>{head}{regions}</Regions></Annotation></Annotations>'


def tissue(number: int) -> np.ndarray:
    """Draw tissue of 52 columns and 50 rows with three dark nuclei."""
    image = np.random.default_rng(number).integers(170, 230, (50, 52, 3)).astype(np.uint8)
    for left, top, right, bottom in NUCLEI:
        image[top:bottom, left:right] = (90, 60, 120)
    return image


def make_monuseg(root: Path) -> Path:
    for number, name in enumerate(NAMES):
        part = "Test" if number > 3 else "Training"
        images, outlines = (root / f"MoNuSeg {part} Data" / kind for kind in ("Tissue Images", "Annotations"))
        images.mkdir(parents=True, exist_ok=True)
        outlines.mkdir(exist_ok=True)
        Image.fromarray(tissue(number)).save(images / f"{name}.tif")
        corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in NUCLEI]
        (outlines / f"{name}.xml").write_text(annotation(corners))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_monuseg(tmp_path / "monuseg")


def prepare(root: Path, out: str, **options: object) -> Path:
    return prepare_monuseg(root, root.parent / out, **{"crop": 24, "radius": 6, **options})


def all_items(file: Path) -> list[dict]:
    return [item for split in SPLITS for item in load_datalist(file, split, masks=True)]


def test_outlines_become_masks_of_the_crops(root):
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    crops = [items[f"{NAMES[0]}_{x}_{y}"] for x in (0, 24) for y in (0, 24)]
    whole = np.zeros((48, 48), dtype=int)
    for crop in crops:
        x, y = crop["origin"]
        whole[x : x + 24, y : y + 24] = read_labels(crop["mask"])[0]
    expected = np.zeros((52, 50), dtype=int)
    for left, top, right, bottom in NUCLEI:
        expected[left:right, top:bottom] = 1
    np.testing.assert_array_equal(whole, expected[:48, :48])
    pixels = read_image(crops[0]["image"]).numpy()
    np.testing.assert_array_equal(pixels, tissue(0).transpose(2, 1, 0)[:, :24, :24])


def test_crops_cover_wide_and_tall_tiles(root):
    folder = root / "MoNuSeg Training Data" / "Tissue Images"
    wide = np.concatenate([tissue(0), tissue(7)[:, :30]], axis=1)
    for name, pixels in ((NAMES[0], wide), (NAMES[1], wide.transpose(1, 0, 2))):
        Image.fromarray(pixels).save(folder / f"{name}.tif")
    items = [item for item in all_items(prepare(root, "out")) if item["label"].item()]
    origins = [[tuple(item["origin"]) for item in items if item["source"] == name] for name in NAMES[:3]]
    assert origins[0] == [(x, y) for x in (0, 24, 48) for y in (0, 24)]
    assert origins[1] == [(x, y) for x in (0, 24) for y in (0, 24, 48)]
    assert origins[2] == [(x, y) for x in (0, 24) for y in (0, 24)]
    last = next(item for item in items if item["source"] == NAMES[0] and item["origin"] == [48, 24])
    np.testing.assert_array_equal(read_image(last["image"]).numpy(), wide.transpose(2, 1, 0)[:, 48:72, 24:48])


@pytest.mark.parametrize("healthy", ["density", "paper"])
def test_healthy_crops_are_those_of_the_whole_tile_without_nuclei(root, healthy):
    file = prepare(root, healthy, healthy=healthy)
    items = {item["id"]: item for item in all_items(file)}
    name = next(name for name in NAMES if f"{name}_0_0_healthy" in items)
    made = healthy_tissue(tissue(NAMES.index(name)).transpose(2, 1, 0), how=healthy, radius=6)
    crop = items[f"{name}_24_0_healthy"]
    np.testing.assert_array_equal(read_image(crop["image"]).numpy(), made[:, 24:48, :24])
    assert crop["label"].tolist() == [0.0]
    assert "mask" not in crop
    assert load_header(file)["healthy"] == {"made_by": healthy, "radius": 6, "sigma": 2.0}
    assert (made.min() > 150) == (healthy == "density")


def test_the_test_split_holds_real_crops_alone(root):
    file = prepare(root, "out", split="released")
    check_trainable(load_datalist(file, "training"))
    assert {item["source"] for item in load_datalist(file, "test")} == set(NAMES[4:])
    assert [item["label"].item() for item in load_datalist(file, "test")] == [1.0] * 8
    assert load_datalist(file, "validation") == []


def test_a_patient_is_in_one_split_and_validation_comes_from_training(root):
    (root / "MoNuSeg Test Data").rename(root / "more")
    file = prepare(root, "out", split="paper", validation_share=0.5)
    patients = [{item["subject"] for item in load_datalist(file, split)} for split in SPLITS]
    assert [len(group) for group in patients] == [1, 1, 1]
    assert patients[0] | patients[1] | patients[2] == {name[:12] for name in NAMES}
    without = prepare(root, "two", split="paper")
    assert {item["subject"] for item in load_datalist(without, "test")} == patients[2]


def test_crops_with_nuclei_can_be_blurred_as_well(root):
    items = {item["id"]: item for item in all_items(prepare(root, "out", match_resampling=True))}
    blurred = blur(tissue(0).transpose(2, 1, 0), 2.0)
    np.testing.assert_array_equal(read_image(items[f"{NAMES[0]}_0_0"]["image"]).numpy(), blurred[:, :24, :24])


def test_masks_may_take_the_place_of_outlines(root):
    for file in root.rglob("*.xml"):
        (file.parents[1] / "masks").mkdir(exist_ok=True)
        mask = np.zeros((50, 52), dtype=np.uint8)
        mask[6:16, 4:12] = 255
        Image.fromarray(mask).save(file.parents[1] / "masks" / f"{file.stem}.png")
        file.unlink()
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    assert read_labels(items[f"{NAMES[0]}_0_0"]["mask"]).sum() == 80


def test_the_command_line_prepares_it(root, tmp_path):
    arguments = ["prepare", "monuseg", "--root", str(root), "--crop", "24", "--radius", "3", "--healthy", "paper"]
    assert main([*arguments, "--split", "paper", "--out", str(tmp_path / "out")]) == 0
    assert load_header(tmp_path / "out" / "datalist.json")["split"] == "paper"


def test_a_file_without_regions_shows_no_nucleus(root):
    next(root.rglob("*.xml")).write_text(annotation([]))
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    assert read_labels(items[f"{NAMES[4]}_0_0"]["mask"]).sum() in (0, 80)
    assert sum(int(read_labels(item["mask"]).sum() == 0) for item in items.values() if "mask" in item) >= 4


def test_bad_folders_and_options_are_refused(root, tmp_path):
    for options, sentence in (
        ({"healthy": "mask"}, "`healthy`"),
        ({"radius": 0}, "`radius` of at least 1"),
        ({"sigma": -1.0}, "`sigma` of at least 0"),
        ({"crop": 4}, "`crop` of at least 8"),
        ({"split": "given"}, "`split`"),
        ({"validation_share": 0.2}, "Expected no `validation_share`"),
    ):
        with pytest.raises(ValueError, match=sentence):
            prepare(root, "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="smaller than a crop of 224"):
        prepare_monuseg(root, tmp_path / "large")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no tiles"):
        prepare_monuseg(tmp_path / "empty", tmp_path / "out")
    broken = next(root.rglob("*.xml"))
    broken.write_text('<Annotations><Region><Vertex X="a" Y="1"/></Region></Annotations>')
    with pytest.raises(DataError, match="has a Vertex without the numbers X and Y"):
        prepare(root, "broken")
    Image.fromarray(tissue(0)).save(root / f"{NAMES[0]}.png")
    with pytest.raises(DataError, match="belong to the same tile"):
        prepare(root, "twice")


def test_the_split_of_the_paper_leaves_the_released_test_tiles_out(root, tmp_path, caplog):
    file = prepare(root, "out", split="paper")
    assert {item["source"] for split in SPLITS for item in load_datalist(file, split)} == set(NAMES[:4])
    assert "4 tiles, not 30" in caplog.text
    drawn = prepare(root, "drawn", split="drawn")
    assert {item["source"] for split in SPLITS for item in load_datalist(drawn, split)} == set(NAMES)


def test_folders_say_splits_by_words(root):
    (root / "MoNuSeg Training Data").rename(root / "contest MoNuSegTrainData")
    (root / "MoNuSeg Test Data").rename(root / "latest MoNuSegTestData")
    file = prepare(root, "out", split="released")
    assert {item["source"] for item in load_datalist(file, "test")} == set(NAMES[4:])
    (root / "latest MoNuSegTestData").rename(root / "latest contest")
    with pytest.raises(DataError) as caught:
        prepare(root, "two", split="released")
    assert str(caught.value).count('take the split "paper" or "drawn"') == 2


def test_a_patient_in_both_released_sets_is_refused_before_anything_is_written(root, tmp_path):
    folder = root / "MoNuSeg Test Data" / "Tissue Images"
    Image.fromarray(tissue(9)).save(folder / "TCGA-18-5592-01Z-00-DX9.tif")
    with pytest.raises(DataError, match='subject "TCGA-18-5592" is in both released sets'):
        prepare(root, "out", split="released")
    assert not (tmp_path / "out").exists()


def test_holes_regions_outside_and_both_directions_are_drawn(root):
    ring = [(4, 4), (20, 4), (20, 20), (4, 20)]
    hole = [(8, 8), (8, 12), (12, 12), (12, 8)]  # against the clock
    outside = [(-9, 30), (3, 30), (3, 34), (-9, 34)]
    far = [(100, 100), (120, 100), (120, 120)]
    text = annotation([ring, hole[::-1], outside, far, [(1, 1)], [(1, 1), (2, 2)], []])
    text = text.replace('<Region Id="2">', '<Region Id="2" NegativeROA="1">', 1)
    next(path for path in root.rglob("*.xml") if path.stem == NAMES[0]).write_text(text)
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    expected = np.zeros((48, 48), dtype=int)
    expected[4:20, 4:20] = 1
    expected[8:12, 8:12] = 0
    expected[:3, 30:34] = 1
    for x in (0, 24):
        for y in (0, 24):
            found = read_labels(items[f"{NAMES[0]}_{x}_{y}"]["mask"])[0]
            np.testing.assert_array_equal(found, expected[x : x + 24, y : y + 24])


def test_every_tile_has_its_own_statistics(root):
    pale = root / "MoNuSeg Training Data" / "Tissue Images" / f"{NAMES[1]}.tif"
    Image.fromarray(tissue(1) // 2 + 100).save(pale)
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    dark, light = (items[f"{name}_0_0"] for name in NAMES[:2])
    assert dark["subject"] == light["subject"]
    assert (light["intensity_mean"] > dark["intensity_mean"] + 3).all()
    np.testing.assert_allclose(dark["intensity_mean"], tissue(0).reshape(-1, 3).mean(axis=0), rtol=1e-6)


def test_transparent_pixels_are_glass(root):
    file = root / "MoNuSeg Training Data" / "Tissue Images" / f"{NAMES[0]}.tif"
    alpha = np.full((50, 52, 1), 255, dtype=np.uint8)
    alpha[:4] = 0
    Image.fromarray(np.concatenate([tissue(0), alpha], axis=2)).save(file)
    items = {item["id"]: item for item in all_items(prepare(root, "out"))}
    assert (read_image(items[f"{NAMES[0]}_0_0"]["image"])[:, :, :4] == 255).all()


def test_a_root_that_is_called_masks_holds_tiles(root):
    moved = root.rename(root.parent / "masks")
    (moved / "MoNuSeg Training Data" / "Tissue Images" / f"{NAMES[0]}.tif").rename(moved / f"{NAMES[0]}.TIF")
    assert f"{NAMES[0]}_0_0" in {item["id"] for item in all_items(prepare(moved, "out"))}


def test_all_faults_are_told_at_once_and_lost_outlines_are_counted(root, tmp_path, caplog):
    images = root / "MoNuSeg Training Data" / "Tissue Images"
    outlines = root / "MoNuSeg Training Data" / "Annotations"
    Image.fromarray(np.arange(2600, dtype=np.uint16).reshape(50, 52)).save(images / f"{NAMES[0]}.tif")
    Image.fromarray(tissue(1)[:20, :20]).save(images / f"{NAMES[1]}.tif")
    (outlines / f"{NAMES[2]}.xml").write_text("<Annotations><Region>")
    (outlines / f"{NAMES[3]}.xml").write_text(annotation([[(1, 1), (float("nan"), 4), (5, 5)]]))
    (outlines / "stranger.xml").write_text(annotation([]))
    with pytest.raises(DataError) as caught:
        prepare(root, "out")
    lines = str(caught.value).splitlines()
    for name, words in (
        (f"{NAMES[0]}.tif", "save it as RGB of 8 bits"),
        (f"{NAMES[1]}.tif", "smaller than a crop of 24"),
        (f"{NAMES[2]}.xml", "is no XML"),
        (f"{NAMES[3]}.xml", "write the coordinates"),
    ):
        assert [words in line for line in lines if name in line] == [True], name
    assert len(lines) == 4
    assert "1 files of outlines or masks belong to no tile" in caplog.text


def test_the_order_of_the_file_system_does_not_matter(root, tmp_path, monkeypatch):
    first = prepare(root, "one/out")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: sorted(listed(folder), reverse=True))
    assert prepare(root, "two/out").read_bytes() == first.read_bytes()
