# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare voc``: labels from annotations, masks by palette index, lists of both kinds, many sizes, and bad input."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.reading import read_image, read_labels
from monai_wsss.data.voc import VOC_CLASSES, prepare_voc
from monai_wsss.metrics import count_pixels
from monai_wsss.transforms import NormalizeSubjectd

CLASSES = ("cat", "dog", "person")
OBJECTS = {"a": ("cat", "cat"), "b": ("dog", "person"), "c": ("cat", "person"), "d": ()}


def annotation(name: str, objects: Sequence[str]) -> str:
    """Write an annotation as VOC does, with difficult objects, which count, and parts of a person, which do not."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    texts = [f"<object><name>{one}</name><difficult>1</difficult>{part}</object>" for one in objects]
    return f"<annotation><filename>{name}.jpg</filename><size><width>9</width></size>{''.join(texts)}</annotation>"


def indices(name: str) -> np.ndarray:
    """Draw [row, column]: a rectangle per class of the image, with a contour of 255; images differ in size."""
    values = np.zeros((12 + ord(name) % 4, 20), dtype=np.uint8)
    for number, one in enumerate(sorted(set(OBJECTS[name]))):
        rectangle = values[2:9, 10 * number : 10 * number + 8]
        rectangle[:] = 255
        rectangle[1:-1, 1:-1] = CLASSES.index(one) + 1
    return values


def save_mask(path: Path, values: np.ndarray) -> None:
    """Save a mask with a palette whose colors, turned gray, differ from the indices."""
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([v for index in range(256) for v in (255 - index, index // 2, 77)])
    picture.save(path)


def make_voc(root: Path) -> Path:
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, (name, objects) in enumerate(OBJECTS.items()):
        values = indices(name)
        pixels = np.random.default_rng(seed).integers(0, 255, (*values.shape, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", exif=b"Exif\0\0secret")
        (root / "Annotations" / f"{name}.xml").write_text(annotation(name, objects))
        save_mask(root / "SegmentationClass" / f"{name}.png", values)
    write_lists(root, train="a\nb\n\n", val="c\nd\n")
    return root


def write_lists(root: Path, **lists: str) -> None:
    for name, text in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


def prepare(root: Path, **options: object) -> Path:
    return prepare_voc(root, root.parent / "out", **{"classes": CLASSES, **options})


def test_the_datalist_says_what_it_is(tmp_path):
    path = prepare(make_voc(tmp_path / "voc"))
    assert load_header(path) == {
        "background": True,
        "name": "out",
        "modality": {"0": "red", "1": "green", "2": "blue"},
        "classes": ["cat", "dog", "person"],
        "labels": "of the image, from its annotation",
        "simulated_supervision": False,
        "subjects": "images",
        "order": "rows_columns",
    }
    check_trainable([*load_datalist(path, "training"), *load_datalist(path, "validation")])


def test_labels_are_the_objects_of_the_annotation_and_every_image_is_a_subject(tmp_path):
    path = prepare(make_voc(tmp_path / "voc"))
    items = {item["id"]: item for split in ("training", "validation") for item in load_datalist(path, split)}
    labels = {name: item["label"].tolist() for name, item in items.items()}
    assert labels == {"a": [1, 0, 0], "b": [0, 1, 1], "c": [1, 0, 1], "d": [0, 0, 0]}
    assert all(item["subject"] == name and "mask" not in item for name, item in items.items())
    assert [item["id"] for item in load_datalist(path, "training")] == ["a", "b"]
    assert load_datalist(path, "test") == []


def test_labels_never_come_from_masks_by_default(tmp_path, caplog):
    root = make_voc(tmp_path / "voc")
    save_mask(root / "SegmentationClass" / "a.png", np.full((13, 20), 3, dtype=np.uint8))
    path = prepare(root)
    assert load_datalist(path, "training")[0]["label"].tolist() == [1, 0, 0]
    assert "1 masks show other classes than their labels say, first that of a." in caplog.text


def test_pixels_and_sizes_stay_and_metadata_goes(tmp_path, caplog):
    root = make_voc(tmp_path / "voc")
    with caplog.at_level(logging.INFO):
        items = load_datalist(prepare(root), "training", masks=True)
    for item in items:
        source = root / "JPEGImages" / f"{item['id']}.jpg"
        np.testing.assert_array_equal(read_image(item["image"]).numpy(), read_image(source).numpy())
        assert Path(item["image"]) == tmp_path / "out" / "images" / f"{item['id']}.jpg"
        assert b"secret" not in Path(item["image"]).read_bytes()
        mask = read_labels(item["mask"]).numpy()
        np.testing.assert_array_equal(mask[0].T, indices(item["id"]))
    assert items[0]["mask"] != items[1]["mask"]
    assert "The images have 4 sizes, from 20 x 12 to 20 x 15: they are kept, but a batch needs one size" in caplog.text
    assert "training: 2 images, 2 with a mask." in caplog.text


def test_contours_count_in_no_metric(tmp_path):
    item = load_datalist(prepare(make_voc(tmp_path / "voc")), "training", masks=True)[1]
    reference = read_labels(item["mask"]).numpy()
    counts = count_pixels(np.where(reference == 255, 1, reference), reference, num_classes=3)
    assert counts.fp.tolist() == counts.fn.tolist() == [0, 0, 0, 0]
    assert int(counts.tp.sum()) == np.count_nonzero(reference != 255) < reference.size


def test_colors_are_standardized_as_the_checkpoints_expect(tmp_path):
    item = load_datalist(prepare(make_voc(tmp_path / "voc")), "training")[0]
    pixels = read_image(item["image"])
    expected = (pixels.numpy() / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    found = NormalizeSubjectd("image")({**item, "image": pixels})["image"]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_default_classes_are_those_of_voc(tmp_path):
    root = make_voc(tmp_path / "voc")
    for name in OBJECTS:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    save_mask(root / "SegmentationClass" / "b.png", np.full((14, 20), VOC_CLASSES.index("dog") + 1, dtype=np.uint8))
    path = prepare_voc(root, tmp_path / "out")
    item = load_datalist(path, "training", masks=True)[1]
    assert [VOC_CLASSES[index] for index in np.flatnonzero(item["label"])] == ["dog", "person"]
    assert load_header(path)["classes"][0::19] == ["aeroplane", "tvmonitor"]
    # Fig. 4 of CoSA: what the C-mIoU of its Table 4b is about.
    assert load_header(path)["context"] == {"bird": "tree branches", "boat": "the sea", "train": "railways"}
    assert set(np.unique(read_labels(item["mask"]))) == {12}
    assert "mask" not in load_datalist(path, "training", masks=True)[0]


def test_lists_of_paths_and_the_augmented_training_list(tmp_path, caplog):
    root = make_voc(tmp_path / "voc")
    (root / "SegmentationClassAug").mkdir()
    Image.fromarray(np.full((13, 20), 2, dtype=np.uint8)).save(root / "SegmentationClassAug" / "a.png")
    (root / "SegmentationClass" / "b.png").rename(root / "SegmentationClassAug" / "b.png")
    lines = ["/JPEGImages/a.jpg /SegmentationClassAug/a.png", r"JPEGImages\b.jpg", "d.jpg SegmentationClassAug/d.png"]
    write_lists(root, train_aug="\r\n".join(lines), val="c")
    items = load_datalist(prepare(root), "training", masks=True)
    assert [item["id"] for item in items] == ["a", "b", "d"]
    assert set(np.unique(read_labels(items[0]["mask"]))) == {2}  # as the line says
    np.testing.assert_array_equal(read_labels(items[1]["mask"])[0].numpy().T, indices("b"))  # looked for
    assert "mask" not in items[2]
    assert "1 masks that the lists name do not exist, first" in caplog.text
    (tmp_path / "mine.txt").write_text("c\n")
    path = prepare_voc(root, tmp_path / "other", classes=CLASSES, validation=tmp_path / "mine.txt")
    assert [item["id"] for item in load_datalist(path, "validation")] == ["c"]


def test_labels_from_masks_are_simulated_and_say_so(tmp_path):
    root = make_voc(tmp_path / "voc")
    (root / "Annotations" / "b.xml").unlink()
    save_mask(root / "SegmentationClass" / "a.png", np.zeros((13, 20), dtype=np.uint8))
    path = prepare(root, labels_from_masks=True)
    labels = [item["label"].tolist() for item in load_datalist(path, "training")]
    assert labels == [[1, 0, 0], [0, 1, 1]]  # a has an annotation, which goes before its mask
    header = load_header(path)
    assert header["labels"] == "simulated: labels of 1 of 4 images from masks (present with any pixel)"
    assert header["simulated_supervision"] is True


@pytest.mark.parametrize("labels_from_masks", [False, True])
def test_the_test_list_needs_neither_annotation_nor_mask(tmp_path, caplog, labels_from_masks):
    root = make_voc(tmp_path / "voc")
    for name in "ef":
        Image.fromarray(np.arange(9 * 14 * 3, dtype=np.uint8).reshape(9, 14, 3)).save(
            root / "JPEGImages" / f"{name}.jpg"
        )
    write_lists(root, test="e\nf\n")
    path = prepare(root, test="test", labels_from_masks=labels_from_masks)
    items = load_datalist(path, "test", masks=True)
    assert [item["id"] for item in items] == ["e", "f"]
    assert all("label" not in item and "mask" not in item for item in items)
    assert load_header(path)["simulated_supervision"] is False
    assert "test: 2 images have no label: they can be predicted, not measured." in caplog.text
    write_lists(root, val="c\ne\n", test="f\n")
    with pytest.raises(DataError, match='the image "e" has n'):
        prepare_voc(root, tmp_path / "other", classes=CLASSES, test="test", labels_from_masks=labels_from_masks)


def test_a_contour_alone_is_no_class(tmp_path):
    root = make_voc(tmp_path / "voc")
    (root / "Annotations" / "b.xml").unlink()
    values = indices("b")
    values[values == 2] = 255
    save_mask(root / "SegmentationClass" / "b.png", values)
    assert load_datalist(prepare(root, labels_from_masks=True), "training")[1]["label"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_other_pictures_become_rgb(tmp_path, mode):
    root = make_voc(tmp_path / "voc")
    with Image.open(root / "JPEGImages" / "a.jpg") as picture:
        smooth = picture.convert("RGB").resize((3, 2)).resize(picture.size)
    (root / "JPEGImages" / "a.jpg").unlink()
    smooth.convert(mode).save(root / "JPEGImages" / ("a.png" if mode == "RGBA" else "a.jpg"))
    item = load_datalist(prepare(root), "training")[0]
    assert item["image"].endswith("a.png")
    expected = np.asarray(smooth.convert("L").convert("RGB") if mode == "L" else smooth).transpose(2, 1, 0)
    np.testing.assert_allclose(read_image(item["image"]).numpy(), expected, atol=0 if mode == "RGBA" else 12)


def break_tree(root: Path, change: str) -> None:
    image, mask, xml = (
        root / folder for folder in ("JPEGImages/a.jpg", "SegmentationClass/a.png", "Annotations/a.xml")
    )
    xml_texts = {
        "no xml": None,
        "unknown class": annotation("a", ["cat", "unicorn"]),
        "other image": annotation("b", ["cat"]),
        "unnamed": annotation("a", ["cat", " "]),
        "broken xml": "<annotation><object>",
        "other xml": "<html></html>",
        "bombs": '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
        "thief": '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation></annotation>',
        "entity": "<annotation>&passwd;</annotation>",
    }
    lists = {
        "empty": "\n \n",
        "many words": "a b c",
        "not a mask": "a 1",
        "outside": "../../JPEGImages/a.jpg",
        "mask outside": "/JPEGImages/a.jpg /../../secret.png",
        "nameless": "JPEGImages/.jpg",
        "twice": "a\nb\na\n",
        "leak": "a\nc\n",
        "absent": "a\nz\n",
    }
    if change in xml_texts:
        xml.unlink()
        if xml_texts[change] is not None:
            xml.write_text(str(xml_texts[change]))
    elif change in lists:
        write_lists(root, train=lists[change])
    elif change == "no list":
        (root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    elif change == "binary list":
        (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xff\xfe\x00a")
    elif change == "truncated":
        image.write_bytes(image.read_bytes()[:300])
    elif change == "deep":
        Image.fromarray(np.arange(260, dtype=np.uint16).reshape(13, 20) * 40).save(image.with_suffix(".png"))
        image.unlink()
    elif change == "value":
        save_mask(mask, np.full((13, 20), 4, dtype=np.uint8))
    elif change == "colors":
        Image.fromarray(np.zeros((13, 20, 3), dtype=np.uint8)).save(mask)
    elif change == "other size":
        save_mask(mask, np.zeros((13, 21), dtype=np.uint8))
    elif change == "no folder":
        (root / "JPEGImages").rename(root / "Images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no xml", r'train.txt, line 1: the annotation .*a.xml does not exist, so the image "a" has no label: add it'),
        (
            "unknown class",
            r'a.xml: an object is of the class "unicorn", but the classes are cat, dog, person: name all',
        ),
        ("other image", r'a.xml says that it is of the image "b.jpg", not of "a": correct its <filename>'),
        ("unnamed", r"a.xml: object 2 has no <name>: write its class"),
        ("broken xml", r"a.xml is no XML \(no element found.*\): copy or export the annotation again"),
        ("other xml", r"a.xml is no annotation of VOC but a <html>"),
        ("bombs", r'a.xml is not read, for it has a document type \("<!DOCTYPE x>"\), which no annotation needs'),
        ("thief", r"a.xml is not read, for it has a document type"),
        ("entity", r"a.xml is no XML \(undefined entity"),
        ("empty", r"The training list .*train.txt is empty: give a name"),
        ("many words", r'train.txt, line 1: "a b c" is neither a name nor the paths of an image and its mask'),
        ("not a mask", r'train.txt, line 1: "a 1" is neither a name nor'),
        ("outside", r'line 1: the path "../../JPEGImages/a.jpg" leads out of .*voc: give a path below this folder'),
        ("mask outside", r'line 1: the path "../../secret.png" leads out of'),
        ("nameless", r'line 1: "JPEGImages/.jpg" cannot name a file'),
        ("twice", r'line 3: "a" has the same name as an image in .*train.txt, line 1: list every image once'),
        ("leak", r'val.txt, line 1: "c" has the same name as an image in .*train.txt, line 2'),
        ("absent", r"train.txt, line 2: the annotation .*z.xml does not exist"),
        ("no list", r"Segmentation has none of train_aug.txt, trainaug.txt, train.txt: name the list"),
        ("binary list", r"Cannot read the list .*train.txt"),
        ("truncated", r"Cannot read .*a.jpg as picture .*copy or export it again"),
        ("deep", r"train.txt, line 1: .*a.png is no image of 8 bits in RGB or gray: export it as one"),
        ("value", r"a.png holds the value 4, but there are 3 classes: name all classes in the order of their values"),
        ("colors", r"The mask .*a.png is PNG of mode RGB, not indices of classes: export it as a PNG with a palette"),
        ("other size", r"a.png is of size 21 x 13 but its image of 20 x 13"),
        ("no folder", r"voc holds no folder JPEGImages: give the folder that does, e.g. VOCdevkit/VOC2012"),
    ],
)
def test_bad_input_is_said_in_one_sentence(tmp_path, change, message):
    root = make_voc(tmp_path / "voc")
    break_tree(root, change)
    with pytest.raises(DataError, match=message) as caught:
        prepare(root)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_a_listed_image_must_exist(tmp_path):
    root = make_voc(tmp_path / "voc")
    (root / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(
        DataError, match=r"line 2: the image .*b.jpg does not exist: add it, or take it out of the list"
    ):
        prepare(root)
    assert not (tmp_path / "out" / "images").exists()  # found before anything was written
    (root / "Annotations" / "b.xml").unlink()
    (root / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(DataError, match=r'the image "b" has neither annotation nor mask, so it has no label'):
        prepare(root, labels_from_masks=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ()}, "The classes are none: name 1 to 254, each once"),
        ({"classes": ("cat", "dog", "cat")}, "The classes are cat, dog, cat: name 1 to 254, each once"),
        ({"classes": ("Background", "cat")}, '"background" is among the classes: leave it out'),
        ({"training": "train2"}, r"The training list .*Segmentation/train2.txt does not exist: name one of those"),
        ({"test": "no/such.txt"}, r"The test list no/such.txt does not exist"),
    ],
)
def test_bad_options_are_said_in_one_sentence(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare(make_voc(tmp_path / "voc"), **options)


def test_a_prepared_folder_is_not_written_over(tmp_path):
    root = make_voc(tmp_path / "voc")
    before = json.loads(prepare(root).read_text(encoding="utf-8"))
    with pytest.raises(DataError, match="holds a datalist"):
        prepare(root)
    assert json.loads((tmp_path / "out" / "datalist.json").read_text(encoding="utf-8")) == before


@pytest.mark.parametrize(("folder", "old", "new"), [("JPEGImages", "jpg", "JPG"), ("SegmentationClass", "png", "PNG")])
def test_suffixes_in_capitals_are_found(tmp_path, folder, old, new):
    root = make_voc(tmp_path / "voc")
    for file in (root / folder).glob(f"*.{old}"):
        file.rename(file.with_suffix(f".{new}"))
    for file in (root / "Annotations").glob("*.xml"):
        file.rename(file.with_suffix(".XML"))
    items = load_datalist(prepare(root), "training", masks=True)
    assert [item["id"] for item in items] == ["a", "b"]
    assert all("mask" in item for item in items)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("line", ["{}", "{}.jpg", "/JPEGImages/{}.jpg /SegmentationClass/{}.png"])
def test_names_in_any_unicode_form_are_found(tmp_path, form, line):
    root = make_voc(tmp_path / "voc")
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    stored, listed = (unicodedata.normalize(one, "Stra\u00dfe_\u00fc") for one in (form, other))
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("Annotations", "xml")):
        (root / folder / f"a.{suffix}").rename(root / folder / f"{stored}.{suffix}")
    (root / "Annotations" / f"{stored}.xml").write_text(annotation(listed, OBJECTS["a"]), encoding="utf-8")
    text = line.format(listed, listed)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(f"\ufeff{text}\n", encoding="utf-8")
    (item,) = load_datalist(prepare(root), "training", masks=True)
    assert item["label"].tolist() == [1, 0, 0]
    assert "mask" in item


def test_an_image_of_a_kind_that_is_not_read_is_named(tmp_path):
    root = make_voc(tmp_path / "voc")
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.webp")
    with pytest.raises(DataError, match=r"the image .*a.webp is of a kind that is not read: save it as PNG"):
        prepare(root)
