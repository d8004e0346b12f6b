# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare glas``: both layouts, both splits, patches compared with their source image, and bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._intensity import tissue_statistics
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.glas import prepare_glas
from monai_wsss.data.reading import read_image, read_labels

SIZE = (44, 30)  # columns, rows


def tissue(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image [row, column, color] with bare glass on the right, and instance labels with gland on the left."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 200, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    pixels[:, 28:] = 250
    labels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    labels[:20, :20] = 1
    labels[20:, :20] = 7
    return pixels, labels


def table_layout(root: Path, rows: str = "a,p1,train\nb,p1,train\nc,p2,val\nd,p3,test\n") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "labels.csv").write_text("id,case,split\n" + rows)
    for seed, line in enumerate(rows.split()):
        pixels, labels = tissue(seed)
        Image.fromarray(pixels).save(root / "images" / f"{line.split(',')[0]}.png")
        Image.fromarray((labels > 0).astype(np.uint8) * 255).save(root / "masks" / f"{line.split(',')[0]}.png")
    return root


def official_layout(root: Path, train: int = 17) -> Path:
    root.mkdir(parents=True)
    names = [f"train_{n}" for n in range(1, train + 1)] + ["testA_1", "testA_2", "testB_1"]
    lines = ["name,patient ID, grade (GlaS)"]
    for seed, name in enumerate(names):
        pixels, labels = tissue(seed)
        Image.fromarray(pixels).save(root / f"{name}.bmp")
        Image.fromarray(labels).save(root / f"{name}_anno.bmp")
        lines.append(f"{name},{seed % 6 + 1}, benign")
    (root / "Grade.csv").write_bytes("\r".join(lines).encode())
    return root


def prepare(root: Path, **options: object) -> Path:
    return prepare_glas(root, root.parent / "out", **{"patch": 16, "stride": 8, **options})


def test_the_datalist_says_what_it_is(tmp_path):
    path = prepare(table_layout(tmp_path / "glas"))
    header = load_header(path)
    assert header == {
        "name": "out",
        "modality": {"0": "red", "1": "green", "2": "blue"},
        "classes": ["gland", "other"],
        "background": False,
        "scored_class": "gland",
        "order": "rows_columns",
        "labels": "simulated: tags from masks (present above 5 % of a patch)",
        "simulated_supervision": True,
        "subjects": "patients",
        "patches": {"size": 16, "stride": 8},
    }


def test_patches_are_windows_of_their_source(tmp_path):
    root = table_layout(tmp_path / "glas")
    items = load_datalist(prepare(root), "training", masks=True)
    check_trainable(items)
    assert {item["source"] for item in items} == {"a", "b"}
    assert {item["subject"] for item in items} == {"p1"}
    for item in items:
        x, y = item["origin"]
        assert item["id"] == f"{item['source']}_{x}_{y}"
        whole = read_image(root / "images" / f"{item['source']}.png").numpy()
        glands = read_labels(root / "masks" / f"{item['source']}.png").numpy() > 0
        window = (slice(None), slice(x, x + 16), slice(y, y + 16))
        np.testing.assert_array_equal(read_image(item["image"]).numpy(), whole[window])
        mask = read_labels(item["mask"]).numpy()
        np.testing.assert_array_equal(mask, np.where(glands[window], 1, 2))
        share = glands[window].mean()
        assert item["label"].tolist() == [share > 0.05, 1 - share > 0.05]
        expected, _ = tissue_statistics(whole)
        np.testing.assert_allclose(item["intensity_mean"], expected, rtol=1e-6)
        assert Path(item["image"]).name == f"{item['id']}.png"


def test_patches_of_white_background_are_left_out_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        items = load_datalist(prepare(table_layout(tmp_path / "glas")), "training")
    # Columns 0, 8, 16, 24, 28 by rows 0, 8, 14; at 28 all, at 24 75 % is glass.
    assert len(items) == 2 * 4 * 3
    assert max(item["origin"][0] for item in items) == 24
    text = caplog.text
    assert "6 patches of white background were left out; the labels are simulated: tags from masks (present" in text
    assert "training: 24 patches of 2 images (6 gland alone, 6 other alone, 12 both)" in text
    assert "validation: 1 whole images (0 gland alone, 0 other alone, 1 both)" in text
    everything = prepare_glas(tmp_path / "glas", tmp_path / "all", patch=16, stride=8, white=1.0)
    assert len(load_datalist(everything, "training")) == 30


def test_validation_and_test_are_whole_images(tmp_path):
    root = table_layout(tmp_path / "glas")
    path = prepare(root)
    for split, name, subject in (("validation", "c", "p2"), ("test", "d", "p3")):
        (item,) = load_datalist(path, split, masks=True)
        assert (item["id"], item["subject"], item["label"].tolist()) == (name, subject, [1.0, 1.0])
        assert "origin" not in item
        whole = read_image(root / "images" / f"{name}.png")
        np.testing.assert_array_equal(read_image(item["image"]).numpy(), whole.numpy())
        assert set(np.unique(read_labels(item["mask"]))) == {1, 2}
        np.testing.assert_allclose(item["intensity_mean"], tissue_statistics(whole.numpy())[0], rtol=1e-6)


def test_masks_stay_away_unless_asked(tmp_path):
    path = prepare(table_layout(tmp_path / "glas"))
    assert all("mask" not in item for split in ("training", "test") for item in load_datalist(path, split))


def test_the_presence_threshold_moves_the_tags(tmp_path):
    root = table_layout(tmp_path / "glas")
    few = load_datalist(prepare_glas(root, tmp_path / "few", patch=16, stride=8, presence=0.45), "training")
    many = load_datalist(prepare_glas(root, tmp_path / "many", patch=16, stride=8, presence=0.0), "training")
    assert sum(item["label"].sum() for item in few) < sum(item["label"].sum() for item in many)
    with pytest.raises(ValueError, match=r"from 0 to below 1/2"):
        prepare_glas(root, tmp_path / "wrong", patch=16, stride=8, presence=0.5)


def test_the_official_layout_by_patient(tmp_path):
    path = prepare(official_layout(tmp_path / "glas"), fractions=(0.5, 0.25, 0.25))
    splits = {split: load_datalist(path, split) for split in ("training", "validation", "test")}
    subjects = {split: {item["subject"] for item in items} for split, items in splits.items()}
    assert sum(len(names) for names in subjects.values()) == 6
    assert set.union(*subjects.values()) == {f"patient0{n}" for n in range(1, 7)}
    assert all("_anno" not in item["id"] for items in splits.values() for item in items)


def test_the_official_split(tmp_path, caplog):
    root = official_layout(tmp_path / "glas")
    (root / "Grade.csv").unlink()  # it is not needed
    path = prepare(root, split="official")
    assert {item["id"] for item in load_datalist(path, "test")} == {"testA_1", "testA_2", "testB_1"}
    validation = load_datalist(path, "validation")
    assert len(validation) == 3  # 15 of 85, of 17
    assert all(item["subject"] == item["id"] for item in validation)
    sources = {item["source"] for item in load_datalist(path, "training")}
    assert sources | {item["id"] for item in validation} == {f"train_{n}" for n in range(1, 18)}
    assert load_header(path)["subjects"] == "images"
    assert "images of a patient may be in several splits" in caplog.text
    assert "14 training, not 70, 3 validation, not 15, 3 test, not 80" in caplog.text


def test_the_official_split_of_the_table_layout(tmp_path):
    rows = "".join(f"train_{n},p1,train\n" for n in range(1, 7)) + "testA_1,p1,train\n"
    path = prepare(table_layout(tmp_path / "glas", rows), split="official")
    assert [item["id"] for item in load_datalist(path, "test")] == ["testA_1"]
    assert len(load_datalist(path, "validation")) == 1
    with pytest.raises(DataError, match='The official split of GlaS has no image "a"'):
        prepare_glas(table_layout(tmp_path / "other"), tmp_path / "wrong", split="official")


def test_the_seed_draws_another_split(tmp_path):
    root = official_layout(tmp_path / "glas", train=9)
    drawn = []
    for number, seed in enumerate((0, 0, 1, 2)):
        path = prepare_glas(root, tmp_path / str(number), patch=24, stride=24, split="official", seed=seed)
        drawn.append(tuple(item["id"] for item in load_datalist(path, "validation")))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("mode", ["RGBA", "L", "CMYK"])
def test_other_pictures_become_rgb(tmp_path, mode):
    root = table_layout(tmp_path / "glas")
    pixels, _ = tissue(0)
    (root / "images" / "a.png").unlink()
    if mode == "RGBA":
        alpha = np.full(pixels.shape[:2], 255, dtype=np.uint8)
        alpha[:, 5:] = 0
        expected = np.where(alpha[..., None] > 0, pixels, 255)
        Image.fromarray(np.dstack([pixels, alpha])).save(root / "images" / "a.png")
    elif mode == "L":
        expected = np.repeat(pixels[..., :1], 3, axis=2)
        Image.fromarray(pixels[..., 0]).save(root / "images" / "a.png")
    else:
        smooth = Image.fromarray(pixels).resize((4, 4)).resize(SIZE)
        smooth.convert("CMYK").save(root / "images" / "a.jpg", quality=98)
        expected = np.asarray(smooth)
    items = load_datalist(prepare(root, white=1.0), "training")
    for item in [item for item in items if item["source"] == "a"]:
        x, y = item["origin"]
        values = read_window(item["image"])
        np.testing.assert_allclose(values, expected[y : y + 16, x : x + 16], atol=12 if mode == "CMYK" else 0)


def read_window(path: str) -> np.ndarray:
    """Read [row, column, color], also of a patch that is all white."""
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def broken(root: Path, change: str) -> None:
    image, mask = root / "images" / "a.png", root / "masks" / "a.png"
    if change == "truncated":
        image.write_bytes(image.read_bytes()[:200])
    elif change == "deep":
        Image.fromarray(np.arange(1320, dtype=np.uint16).reshape(30, 44) * 40).save(image)
    elif change == "no mask":
        mask.unlink()
    elif change == "no image":
        image.unlink()
    elif change == "other size":
        Image.fromarray(np.zeros((30, 40), dtype=np.uint8)).save(mask)
    elif change == "small":
        for path in (image, mask):
            Image.open(path).crop((0, 0, 44, 15)).save(path)
    elif change == "case":
        (root / "labels.csv").write_text("id,case,split\na,p1,train\nA,p1,train\n")
        for path in [*root.glob("*/[b-d].png")]:
            path.unlink()
        for path in (image, mask):
            path.with_name("A.png").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", r"Cannot read .*a.png as picture .*copy or export it again"),
        ("deep", r"a.png has values up to 52760 in 1 channels: save it as an image of 8 bits"),
        ("no mask", r'row 2: the image "a" has no mask in .*masks, from which its tags would come: add the mask'),
        ("no image", r'has no image for the id "a"'),
        ("other size", r"is of size 40 x 30 but its image of 44 x 30"),
        ("small", r"a.png is of 44 x 15 pixels, smaller than a patch of 16: take smaller patches"),
        ("case", r"a.png and .*A.png would have the same name: rename one of them"),
    ],
)
def test_bad_input_is_said_in_one_sentence(tmp_path, change, message):
    root = table_layout(tmp_path / "glas")
    broken(root, change)
    with pytest.raises(DataError, match=message):
        prepare(root)
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_images_of_several_sizes_are_fine(tmp_path):
    root = table_layout(tmp_path / "glas")
    for folder in ("images", "masks"):
        path = root / folder / "b.png"
        Image.open(path).crop((0, 0, 20, 20)).save(path)
    sources = [item["source"] for item in load_datalist(prepare(root, white=1.0), "training")]
    assert (sources.count("a"), sources.count("b")) == (15, 4)


def test_bad_folders_of_the_challenge(tmp_path):
    root = official_layout(tmp_path / "glas", train=2)
    (root / "Grade.csv").write_text("name,patient ID\ntrain_1,1\n")
    with pytest.raises(DataError, match=r'Grade.csv does not say which patient "testA_1" is of'):
        prepare(root)
    (root / "Grade.csv").write_text("image,who\ntrain_1,1\n")
    with pytest.raises(DataError, match=r'Grade.csv has no columns "name" and "patient ID"'):
        prepare(root)
    (root / "Grade.csv").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*Grade.csv, which says whose image is whose"):
        prepare(root)
    (root / "train_2_anno.bmp").unlink()
    with pytest.raises(DataError, match=r'train_2.bmp: the image "train_2" has no mask'):
        prepare(root, split="official")
    with pytest.raises(DataError, match=r"holds neither labels.csv nor images of GlaS"):
        prepare_glas(tmp_path / "nothing", tmp_path / "out2")
    with pytest.raises(ValueError, match="`split` to be one of patient, official, got 'random'"):
        prepare_glas(root, tmp_path / "out3", split="random")


def test_a_prepared_folder_is_not_written_over(tmp_path):
    root = table_layout(tmp_path / "glas")
    before = json.loads(prepare(root).read_text(encoding="utf-8"))
    with pytest.raises(DataError, match="holds a datalist"):
        prepare(root, stride=4)
    assert json.loads((tmp_path / "out" / "datalist.json").read_text(encoding="utf-8")) == before
