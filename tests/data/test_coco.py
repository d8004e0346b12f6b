# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare coco``: labels from the annotations of instances, masks only if asked, crowds, and bad input."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.coco import prepare_coco
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.reading import read_image, read_labels

COLUMNS, ROWS = 20, 14
CATEGORIES = [
    {"id": 90, "name": "dog", "supercategory": "animal"},
    {"id": 1, "name": "person"},
    {"id": 17, "name": "cat"},
]


def box(left: int, top: int, width: int, height: int) -> list[list[float]]:
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def crowd() -> dict[str, Any]:
    """Write the columns 10 to 14 as COCO writes crowds."""
    return {"size": [ROWS, COLUMNS], "counts": [10 * ROWS, 5 * ROWS, 5 * ROWS]}


def instances(numbers: range, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": COLUMNS, "height": ROWS} for n in numbers]
    return {"info": {}, "images": images, "categories": CATEGORIES, "annotations": annotations}


TRAIN = [
    {"image_id": 1, "category_id": 17, "iscrowd": 0, "segmentation": box(2, 3, 4, 5)},
    {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": box(0, 0, 9, 9)},
    {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": box(12, 0, 1, 1)},
    {"image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": crowd()},
    {"image_id": 2, "category_id": 90, "iscrowd": 1, "segmentation": crowd()},
]
VALIDATION = [{"image_id": 8, "category_id": 90, "iscrowd": 0, "segmentation": box(1, 1, 3, 3)}]


def make_coco(root: Path, images: str = "{}") -> Path:
    (root / "annotations").mkdir(parents=True)
    for name, content in (
        ("train2014", instances(range(1, 4), TRAIN)),
        ("val2014", instances(range(8, 9), VALIDATION)),
    ):
        write(root, name, content)
        folder = root / images.format(name)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in content["images"]:
            pixels = np.random.default_rng(entry["id"]).integers(0, 255, (ROWS, COLUMNS, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / entry["file_name"], exif=b"Exif\0\0secret")
    return root


def write(root: Path, name: str, content: object) -> None:
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def change_training(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))


def prepare(root: Path, **options: Any) -> Path:
    return prepare_coco(root, root.parent / "out", **options)


def test_the_datalist_says_what_it_is(tmp_path):
    path = prepare(make_coco(tmp_path / "coco"))
    assert load_header(path) == {
        "background": True,
        "name": "out",
        "modality": {"0": "red", "1": "green", "2": "blue"},
        "classes": ["person", "cat", "dog"],
        "labels": "of the image, from its annotations of instances",
        "simulated_supervision": False,
        "subjects": "images",
        "order": "rows_columns",
    }
    check_trainable(load_datalist(path, "training"))


def test_images_without_annotation_are_left_out_on_request_and_the_datalist_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        path = prepare(make_coco(tmp_path / "coco"), annotated_only=True)
    assert [item["id"] for item in load_datalist(path, "training")] == ["000000000001", "000000000002"]
    assert load_header(path)["left_out"] == {"images without annotation": {"training": 1, "validation": 0}}
    assert "training: 1 images without annotation were left out." in caplog.text


@pytest.mark.parametrize("layout", ["{}", "images/{}", "images"])
def test_labels_are_the_categories_of_all_annotations(tmp_path, layout):
    root = make_coco(tmp_path / "coco", layout)
    path = prepare(root)
    items = load_datalist(path, "training", masks=True)
    assert [item["id"] for item in items] == ["000000000001", "000000000002", "000000000003"]
    assert [item["label"].tolist() for item in items] == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert all(item["subject"] == item["id"] and "mask" not in item for item in items)
    assert not (tmp_path / "out" / "masks").exists()
    (item,) = load_datalist(path, "validation")
    assert item["label"].tolist() == [0, 0, 1]
    source = root / layout.format("val2014") / "000000000008.jpg"
    np.testing.assert_array_equal(read_image(item["image"]).numpy(), read_image(source).numpy())
    assert b"secret" not in Path(item["image"]).read_bytes()


def test_masks_small_over_large_and_crowds_unknown(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        items = load_datalist(prepare(make_coco(tmp_path / "coco"), masks=True), "training", masks=True)
    expected = np.zeros((ROWS, COLUMNS), dtype=int)
    expected[:, 10:15] = 255
    expected[:9, :9] = 1
    expected[3:8, 2:6] = 2
    expected[0, 12] = 1
    np.testing.assert_array_equal(read_labels(items[0]["mask"]).numpy()[0].T, expected)
    assert set(np.unique(read_labels(items[1]["mask"]))) == {0, 255}
    assert not read_labels(items[2]["mask"]).any()
    assert "training: 3 images, 3 with a mask." in caplog.text
    assert "masks show other classes" not in caplog.text


def test_any_number_of_categories_in_the_order_of_their_ids(tmp_path):
    root = make_coco(tmp_path / "coco")
    (root / "annotations" / "instances_val2014.json").unlink()
    categories = [{"id": 200 - n, "name": f"kind {n}"} for n in range(80)]
    annotations = [{"image_id": 1, "category_id": 200}, {"image_id": 1, "category_id": 121}]
    write(root, "train2014", {**instances(range(1, 4), annotations), "categories": categories})
    path = prepare(root)
    assert load_header(path)["classes"] == [f"kind {n}" for n in range(79, -1, -1)]
    assert np.flatnonzero(load_datalist(path, "training")[0]["label"]).tolist() == [0, 79]
    assert load_datalist(path, "validation") == []


def test_one_of_several_sets_is_named(tmp_path):
    root = make_coco(tmp_path / "coco")
    (root / "val2014").rename(root / "train2017")
    write(root, "train2017", instances(range(8, 9), VALIDATION))
    (root / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(DataError, match=r"has several sets for training, train2014, train2017: name one of them"):
        prepare(root)
    path = prepare(root, training="train2014", test="train2017")
    assert [len(load_datalist(path, split)) for split in ("training", "validation", "test")] == [3, 0, 1]


def test_images_in_folders_of_their_own_keep_apart(tmp_path):
    root = make_coco(tmp_path / "coco")

    def nest(content: dict[str, Any]) -> None:
        for entry, name in zip(content["images"], ("x/a b.jpg", "y/a b.jpg", "a b.jpg"), strict=True):
            (root / "train2014" / name).parent.mkdir(exist_ok=True)
            (root / "train2014" / entry["file_name"]).rename(root / "train2014" / name)
            entry["file_name"] = name

    change_training(root, nest)
    items = load_datalist(prepare(root), "training")
    assert [item["id"] for item in items] == ["x%2Fa%20b", "y%2Fa%20b", "a%20b"]


def set_key(part: str, index: int, key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[part][index].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annotations"), r"holds no instances of COCO: it needs the lists images, annot"),
        (lambda content: content.update(images={}), r"holds no instances of COCO"),
        (lambda content: content.update(images=[], annotations=[]), r"instances_train2014.json lists no image"),
        (lambda content: content.update(categories=[], annotations=[]), "The classes are none: name 1 to 254"),
        (lambda content: content["images"].append(7), r"images\[3\] is 7: give id, file_name, as COCO does"),
        (set_key("images", 0, "file_name", None), r"images\[0\] is .*: give id, file_name"),
        (set_key("images", 0, "file_name", "../secret.jpg"), r'images\[0\]: the path "../secret.jpg" leads out of'),
        (set_key("images", 0, "file_name", "a/../../x.jpg"), r"images\[0\]: the path .* leads out of"),
        (set_key("images", 0, "file_name", "..\\x.jpg"), r"images\[0\]: the path .* leads out of"),
        (set_key("images", 0, "file_name", "/etc/passwd"), r'images\[0\]: the path "/etc/passwd" leads out of'),
        (set_key("images", 0, "file_name", ""), r'images\[0\]: "" cannot name a file'),
        (set_key("images", 0, "file_name", "a\0.jpg"), r"images\[0\]: .* cannot name a file"),
        (set_key("images", 0, "file_name", "a" * 300), r'images\[0\]: "a{80}" cannot name a file'),
        (set_key("images", 0, "file_name", "no.jpg"), r"images\[0\]: the image .*no.jpg does not exist: add it"),
        (set_key("images", 1, "file_name", "000000000001.jpg"), r'images\[1\]: "000000000001" has the same name as'),
        (set_key("images", 1, "id", 1), r"images\[1\]: the id 1 is of two images"),
        (set_key("categories", 1, "id", 90), r"categories\[1\]: the id 90 is of two categories"),
        (set_key("categories", 1, "name", "dog"), "The classes are dog, cat, dog: name 1 to 254, each once"),
        (set_key("annotations", 0, "image_id", 77), r"annotations\[0\] has the image_id 77, which the file does not"),
        (set_key("annotations", 3, "category_id", 5), r"annotations\[3\] has the category_id 5, which the file does"),
        (set_key("annotations", 0, "category_id", "cat"), r"annotations\[0\] is .*: give image_id, category_id"),
        (set_key("annotations", 0, "image_id", [1]), r"annotations\[0\] is .*: give image_id, category_id"),
        (
            set_key("images", 0, "width", 21),
            r"images\[0\] says that the image is of 21 x 14, but .*1.jpg is of 20 x 14",
        ),
    ],
)
def test_bad_annotations_are_said_in_one_sentence(tmp_path, change, message):
    root = make_coco(tmp_path / "coco")
    (root / "annotations" / "instances_val2014.json").unlink()
    change_training(root, change)
    with pytest.raises(DataError, match=message) as caught:
        prepare(root, masks=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "datalist.json").exists()


@pytest.mark.parametrize(
    "outline", [[], [[]], None, {}, "", [[1, 2, 3, 4]], [[], [5, 5]], "missing"], ids=lambda value: str(value) or "text"
)
def test_a_box_without_outline_is_ignored_and_costs_no_other_mask(tmp_path, outline, caplog):
    root = make_coco(tmp_path / "coco")
    boxed = {"image_id": 3, "category_id": 17, "bbox": [2.5, 3, 4, 2], "segmentation": outline}
    if outline == "missing":
        del boxed["segmentation"]
    inside = {"image_id": 3, "category_id": 90, "segmentation": [*box(3, 3, 1, 1), [4, 4]]}
    change_training(root, lambda content: content["annotations"].extend([boxed, inside]))
    with caplog.at_level(logging.WARNING):
        items = load_datalist(prepare(root, masks=True), "training", masks=True)
    assert items[2]["label"].tolist() == [0, 1, 1]
    expected = np.zeros((ROWS, COLUMNS), dtype=int)
    expected[3:5, 2:7] = 255
    expected[3, 3] = 3
    np.testing.assert_array_equal(read_labels(items[2]["mask"]).numpy()[0].T, expected)
    assert all("mask" in item for item in items)
    assert "1 annotations of" in caplog.text
    assert "have a box and no outline, so that all pixels in the box are ignored (255)" in caplog.text


@pytest.mark.parametrize("bbox", [None, [], [1, 2, 3], [1, 2, 0, 5], [1, 2, float("nan"), 5], "1 2 3 4"])
def test_neither_outline_nor_box_costs_the_mask_of_its_image_alone(tmp_path, bbox, caplog):
    root = make_coco(tmp_path / "coco")
    unknown = {"image_id": 3, "category_id": 17, "bbox": bbox, "segmentation": []}
    change_training(root, lambda content: content["annotations"].append(unknown))
    with caplog.at_level(logging.WARNING):
        items = load_datalist(prepare(root, masks=True), "training", masks=True)
    assert ["mask" in item for item in items] == [True, True, False]
    assert items[2]["label"].tolist() == [0, 1, 0]
    assert "have neither outline nor box, so that their images have no mask, first" in caplog.text


@pytest.mark.parametrize("outline", [[[1, 1, 5, 1, 5, 5, 1]], [["a"] * 6], {"size": [ROWS, COLUMNS], "counts": [3]}, 7])
@pytest.mark.parametrize("bbox", [[2, 3, 4, 2], None])
def test_an_outline_that_cannot_be_drawn_costs_no_other_mask(tmp_path, outline, bbox, caplog):
    root = make_coco(tmp_path / "coco")
    broken = {"image_id": 3, "category_id": 17, "bbox": bbox, "segmentation": outline}
    change_training(root, lambda content: content["annotations"].append(broken))
    with caplog.at_level(logging.WARNING):
        items = load_datalist(prepare(root, masks=True), "training", masks=True)
    assert ["mask" in item for item in items] == [True, True, bbox is not None]
    if bbox:
        assert (read_labels(items[2]["mask"]).numpy()[0].T == 255).nonzero()[0].tolist() == [3] * 4 + [4] * 4
    assert "1 outlines cannot be drawn" in caplog.text
    assert "annotations[5] has" in caplog.text


def test_corners_may_be_lists_of_their_own(tmp_path):
    root = make_coco(tmp_path / "coco")
    nested = {"image_id": 3, "category_id": 17, "segmentation": [[[2, 3], [6, 3], [6, 5], [2, 5]]]}
    change_training(root, lambda content: content["annotations"].append(nested))
    items = load_datalist(prepare(root, masks=True), "training", masks=True)
    assert (read_labels(items[2]["mask"]).numpy()[0].T == 2).sum() == 8


@pytest.mark.parametrize("kind", [str, float])
def test_whole_numbers_as_texts_or_with_a_point(tmp_path, kind):
    root = make_coco(tmp_path / "coco")
    expected = [item["label"].tolist() for item in load_datalist(prepare(root, masks=True), "training")]

    def write_otherwise(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation.update({key: kind(annotation[key]) for key in ("image_id", "category_id")})
        for entry in content["images"]:
            entry.update({key: kind(entry[key]) for key in ("width", "height")})

    change_training(root, write_otherwise)
    items = load_datalist(prepare_coco(root, tmp_path / "two", masks=True), "training", masks=True)
    assert [item["label"].tolist() for item in items] == expected


@pytest.mark.parametrize("size", [0, None])
def test_an_unknown_size_is_not_compared_and_a_name_may_begin_with_the_set(tmp_path, size):
    root = make_coco(tmp_path / "coco")
    change_training(root, set_key("images", 0, "width", size))
    change_training(root, set_key("images", 1, "file_name", "train2014/000000000002.jpg"))
    items = load_datalist(prepare(root, masks=True), "training")
    assert [item["id"] for item in items] == ["000000000001", "000000000002", "000000000003"]


def test_shares_of_the_size_are_no_pixels(tmp_path):
    root = make_coco(tmp_path / "coco")
    share = {"image_id": 1, "category_id": 17, "bbox": [0.1, 0.1, 0.4, 0.4], "segmentation": [[0.1] * 2 + [0.5] * 4]}
    change_training(root, lambda content: content.update(annotations=[share]))
    with pytest.raises(DataError, match=r"All outlines and boxes of .* lie between 0 and 1: write pixels"):
        prepare(root, masks=True)


def test_an_image_annotated_as_stored_names_its_exif_entry(tmp_path):
    root = make_coco(tmp_path / "coco")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (COLUMNS, ROWS), "red").save(root / "train2014" / "000000000001.jpg", exif=exif)
    with pytest.raises(DataError, match=r"is of 20 x 14, but .* is of 14 x 20: an EXIF entry may turn it for viewers"):
        prepare(root, masks=True)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff", "[" * 200_000, "{}"])
def test_what_is_no_json_of_coco_is_said(tmp_path, text):
    root = make_coco(tmp_path / "coco")
    (root / "annotations" / "instances_train2014.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"Cannot read .*train2014.json as JSON|holds no instances of COCO"):
        prepare(root)


def test_sets_with_other_categories_do_not_go_together(tmp_path):
    root = make_coco(tmp_path / "coco")
    change_training(root, set_key("categories", 2, "name", "wolf"))
    with pytest.raises(DataError, match=r"val2014.json has other categories than .*train2014.json"):
        prepare(root)


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="coco holds no folder annotations: give the folder that does"):
        prepare(tmp_path / "coco")
    root = make_coco(tmp_path / "coco")
    with pytest.raises(DataError, match=r"The test annotations .*instances_x.json do not exist: name a set of that"):
        prepare(root, test="x")
    (root / "train2014").rename(root / "photos")
    with pytest.raises(
        DataError, match=r"None of .*train2014, .*images is a folder with the images of instances_train"
    ):
        prepare(root)
    (root / "annotations" / "instances_train2014.json").unlink()
    with pytest.raises(DataError, match=r"annotations has no instances_train\*.json: give the folder"):
        prepare(root)
