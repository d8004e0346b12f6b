# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Photographs reach networks as they are: a letter F, from a file with any EXIF entry to the evaluation of its mask."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import LoadImage
from PIL import Image, ImageOps

from monai_wsss._checks import DataError
from monai_wsss.data import load_datalist, load_header, make_phantoms, prepare_coco, prepare_folder, prepare_voc
from monai_wsss.data.reading import read_image, read_labels
from monai_wsss.engines import with_weights
from monai_wsss.inferers import PseudoMaskWriter
from monai_wsss.inferers.multi_scale import sum_over_scales
from monai_wsss.metrics import CaseTable
from monai_wsss.refinement import MaskRule
from monai_wsss.reports import render_panel
from monai_wsss.transforms import LoadImageOrderedd, SaveImageMaskd

ORIENTATION = 0x0112
# EXIF's definition, not Pillow's code: where the stored row 0 and column 0 lie in what is shown.
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: shown.swapaxes(0, 1)[::-1],
    7: lambda shown: shown.swapaxes(0, 1)[::-1, ::-1],
    8: lambda shown: shown.swapaxes(0, 1)[:, ::-1],
}


def letter(rows: int = 48, columns: int = 32) -> np.ndarray:
    """An F, (rows, columns) bool, without any symmetry."""
    f = np.zeros((rows, columns), dtype=bool)
    f[rows // 8 : -rows // 8, columns // 8 : columns // 3] = True
    f[rows // 8 : rows // 4, columns // 8 : -columns // 8] = True
    f[rows // 2 : rows // 2 + rows // 8, columns // 8 : columns // 2] = True
    return f


def red(f: np.ndarray) -> np.ndarray:
    return np.where(f[..., None], [220, 30, 30], [40, 60, 90]).astype(np.uint8)


def save(file: Path, shown: np.ndarray, orientation: int = 1) -> Path:
    """Save what viewers are to show, stored so that they have to turn it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation](shown)))
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    picture.save(file, exif=exif, **({"quality": 95, "subsampling": 0} if file.suffix == ".jpg" else {}))
    if not file.suffix.lower().startswith(".tif"):  # Pillow gives wrong sizes for some
        with Image.open(file) as again:
            assert ImageOps.exif_transpose(again).size == shown.shape[1::-1]
    return file


def prepare(tmp_path: Path, orientation: int, suffix: str, mask_suffix: str = ".png", mask_turn: int = 1) -> Path:
    f = letter()
    for name, shown in (("a", f), ("b", f[:, ::-1]), ("c", f)):
        save(tmp_path / "in/images" / f"{name}{suffix}", red(shown), orientation)
        save(tmp_path / "in/masks" / f"{name}{mask_suffix}", 255 * shown.astype(np.uint8), mask_turn)
    (tmp_path / "in/labels.csv").write_text("id,label,split\na,1,train\nb,1,val\nc,0,test\n")
    return prepare_folder(
        tmp_path / "in/images", tmp_path / "in/labels.csv", tmp_path / "out", masks=tmp_path / "in/masks"
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_letter_from_the_file_to_the_evaluation(tmp_path, orientation, suffix):
    """Prepare, read, the network's input, a mask of it, the written mask, and its Dice."""
    path = prepare(tmp_path, orientation, suffix)
    assert load_header(path)["order"] == "rows_columns"
    (item,) = load_datalist(path, "training", masks=True)
    read = LoadImageOrderedd(["image", "mask"])(item)
    image, mask = read["image"], read["mask"]
    assert image.shape == (3, 48, 32)
    shown = red(letter()).transpose(2, 0, 1)
    assert np.abs(image.numpy() - shown).mean() < (6 if suffix == ".jpg" else 0.01)
    np.testing.assert_array_equal(mask[0].numpy() > 0, letter())

    (batch,) = DataLoader(Dataset([item], LoadImageOrderedd(["image", "mask"])), batch_size=1)
    (back,) = decollate_batch(batch)
    pred = (back["image"][:1] > 128).to(torch.uint8)
    saved = SaveImageMaskd("pred", tmp_path / "run")({"pred": pred, "image": back["image"], "id": "a"})["pred_path"]
    with Image.open(saved) as written:
        assert written.getexif().get(ORIENTATION, 1) == 1
        np.testing.assert_array_equal(np.asarray(written) > 0, letter())  # as viewers show the image
    with Image.open(tmp_path / "in/images" / f"a{suffix}") as source:
        assert written.size == ImageOps.exif_transpose(source).size

    again = LoadImageOrderedd("mask")({"mask": saved, "order": item["order"]})["mask"]
    table = CaseTable(["f"])
    table.add(id="a", subject="a", label=torch.ones(1), prediction=again, reference=mask)
    assert table.rows[0]["dice"] == 1


@pytest.mark.parametrize(("mask_suffix", "mask_turn"), [(".png", 6), (".png", 5), (".jpg", 8), (".tif", 2)])
def test_a_mask_with_an_exif_entry_of_its_own_is_turned_too(tmp_path, mask_suffix, mask_turn):
    path = prepare(tmp_path, 3, ".jpg", mask_suffix, mask_turn)
    (item,) = load_datalist(path, "training", masks=True)
    np.testing.assert_array_equal(LoadImageOrderedd("mask")(item)["mask"][0].numpy() > 0, letter())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_that_nobody_prepared_are_read_upright(tmp_path, orientation):
    item = {
        "image": str(save(tmp_path / "a.jpg", red(letter()), orientation)),
        "mask": str(save(tmp_path / "a_mask.png", letter().astype(np.uint8), orientation)),
        "order": "rows_columns",
    }
    read = LoadImageOrderedd(["image", "mask"])(item)
    assert np.abs(read["image"].numpy() - red(letter()).transpose(2, 0, 1)).mean() < 6
    np.testing.assert_array_equal(read["mask"][0].numpy(), letter())
    np.testing.assert_array_equal(read_labels(item["mask"])[0].numpy().T, letter())


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_that_nobody_prepared_are_read_upright(tmp_path, orientation, suffix):
    """MONAI leaves TIFFs to ITK, which gives a turned one as stored, with four channels, or is not there."""
    item = {
        "image": str(save(tmp_path / f"a{suffix}", red(letter()), orientation)),
        "mask": str(save(tmp_path / f"a_mask{suffix}", letter().astype(np.uint8), orientation)),
        "order": "rows_columns",
    }
    read = LoadImageOrderedd(["image", "mask"])(item)
    np.testing.assert_array_equal(read["image"].numpy(), red(letter()).transpose(2, 0, 1))
    np.testing.assert_array_equal(read["mask"].numpy(), letter()[None])
    for read_file in (read_image, read_labels):
        np.testing.assert_array_equal(read_file(item["mask"]).numpy(), letter().T[None])


def test_of_a_tiff_with_several_frames_none_is_read(tmp_path):
    """The first one alone would be half of the file."""
    frames = [Image.fromarray(letter().astype(np.uint8)) for _ in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(Exception, match=r"a\.tif holds 2 pages: save each page"):
        LoadImageOrderedd("image")({"image": str(tmp_path / "a.tif")})


@pytest.mark.parametrize(
    ("values", "photometric", "said"),
    [
        (np.zeros((3, 4, 3), np.uint16), "rgb", "holds colors or transparency of 16 bits"),
        (np.zeros((3, 4), np.float32), "miniswhite", "stores white as 0 in signed or fractional values"),
    ],
)
def test_tiffs_that_pillow_would_scale_or_invert_are_refused(tmp_path, values, photometric, said):
    """Pillow divides 16-bit colors by 256, and inverts white as 0 in 8 bits alone."""
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    with pytest.raises(DataError, match=said):
        LoadImageOrderedd("image")({"image": str(tmp_path / "a.tif")})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_gray_tiffs_keep_their_values(tmp_path, dtype):
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    read = LoadImageOrderedd("image")({"image": str(tmp_path / "a.tif"), "order": "rows_columns"})["image"]
    np.testing.assert_array_equal(read.numpy(), values[None])


def test_turned_images_are_told_of_once(tmp_path, caplog):
    prepare(tmp_path, 6, ".jpg")
    told = [record.getMessage() for record in caplog.records if "EXIF" in record.getMessage()]
    assert len(told) == 1
    assert "first a.jpg: they are read and written upright" in told[0]


def test_a_mask_drawn_on_the_stored_pixels_is_refused_where_its_size_tells(tmp_path):
    save(tmp_path / "in/images/a.jpg", red(letter()), 6)
    save(tmp_path / "in/masks/a.png", 255 * STORED[6](letter()).astype(np.uint8))
    (tmp_path / "in/labels.csv").write_text("id,label,split\na,1,train\n")
    with pytest.raises(
        ValueError, match=r"of size 48 x 32 but its image of 32 x 48, as viewers show it: turn the mask"
    ):
        prepare_folder(tmp_path / "in/images", tmp_path / "in/labels.csv", tmp_path / "o", masks=tmp_path / "in/masks")


def test_photographs_of_voc_and_coco_are_turned_with_their_masks(tmp_path):
    voc = tmp_path / "voc"
    save(voc / "JPEGImages/a.jpg", red(letter()), 8)
    save(voc / "SegmentationClass/a.png", letter().astype(np.uint8))
    for folder, name, text in (
        ("Annotations", "a.xml", "<annotation><object><name>cat</name></object></annotation>"),
        ("ImageSets/Segmentation", "train.txt", "a"),
    ):
        (voc / folder).mkdir(parents=True)
        (voc / folder / name).write_text(text)
    coco = tmp_path / "coco"
    save(coco / "train2014/a.jpg", red(letter()), 6)
    (coco / "annotations").mkdir()
    outline = {"size": [48, 32], "counts": [0, 0]}
    flat = np.concatenate([[False], letter().T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    outline["counts"] = np.diff(np.concatenate([[0], edges, [48 * 32]])).tolist()
    (coco / "annotations/instances_train2014.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 48}],
                "annotations": [{"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": outline}],
                "categories": [{"id": 1, "name": "cat"}],
            }
        )
    )
    for path in (
        prepare_voc(voc, tmp_path / "a", classes=["cat"]),
        prepare_coco(coco, tmp_path / "b", masks=True),
    ):
        (item,) = load_datalist(path, "training", masks=True)
        read = LoadImageOrderedd(["image", "mask"])(item)
        assert load_header(path)["order"] == "rows_columns"
        np.testing.assert_array_equal(read["mask"][0].numpy(), letter())
        assert np.abs(read["image"].numpy() - red(letter()).transpose(2, 0, 1)).mean() < 6


# ---- the order -------------------------------------------------------------------------------------------------------


def test_the_order_is_the_items_unless_the_transform_is_given_one(tmp_path):
    file = str(save(tmp_path / "a.png", red(letter())))
    shapes = {
        (given, of_item): tuple(LoadImageOrderedd("image", given)({"image": file, **of_item_entry})["image"].shape[1:])
        for given in (None, "rows_columns", "xy")
        for of_item, of_item_entry in (("none", {}), *((order, {"order": order}) for order in ("rows_columns", "xy")))
    }
    rows = (48, 32)
    assert {key for key, shape in shapes.items() if shape == rows} == {
        (None, "rows_columns"),
        *(("rows_columns", of_item) for of_item in ("none", "rows_columns", "xy")),
    }
    assert set(shapes.values()) == {rows, (32, 48)}
    with pytest.raises(ValueError, match="Expected `order` to be one of rows_columns, xy, got 'yx'"):
        LoadImageOrderedd("image", "yx")
    with pytest.raises(ValueError, match="Expected `order` to be one of rows_columns, xy, got 'up'"):
        LoadImageOrderedd("image")({"image": file, "order": "up"})


def test_without_an_order_it_reads_what_monai_reads(tmp_path):
    color = save(tmp_path / "a.png", red(letter()))
    deep = tmp_path / "b.png"
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(deep)
    volume = tmp_path / "c.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)), np.diag([1.0, 2.0, 3.0, 1.0])), volume)
    for file in (color, deep, volume, [deep, deep]):
        read = LoadImageOrderedd("image")({"image": file})["image"]
        wanted = LoadImage(ensure_channel_first=True)(file)
        assert isinstance(read, MetaTensor)
        assert torch.equal(read, wanted)
        assert torch.equal(read.affine, wanted.affine)
    assert torch.equal(LoadImageOrderedd("image", "rows_columns")({"image": volume})["image"], wanted_of(volume))


def wanted_of(file: Path) -> torch.Tensor:
    return LoadImage(ensure_channel_first=True)(file)


def test_a_plane_with_geometry_keeps_its_place(tmp_path):
    affine = np.array([[0.5, 0, 0, -3], [0, 0.8, 0, 7], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "xray.nii.gz")
    image = LoadImageOrderedd("image", "rows_columns")({"image": tmp_path / "xray.nii.gz"})["image"]
    np.testing.assert_array_equal(image[0].numpy(), values.T)
    np.testing.assert_allclose(image.pixdim[:2], [0.8, 0.5])
    item = {"pred": (image > 0.5).to(torch.uint8), "image": image, "id": "xray"}
    written = nibabel.load(SaveImageMaskd("pred", tmp_path)(item)["pred_path"])
    np.testing.assert_array_equal(np.asarray(written.dataobj), values > 0.5)
    np.testing.assert_allclose(written.affine, affine)


def test_an_order_and_a_file_that_are_missing(tmp_path):
    transform = LoadImageOrderedd(["image", "mask"], allow_missing_keys=True)
    item = {"image": str(save(tmp_path / "a.png", red(letter()))), "other": 1}
    read = pickle.loads(pickle.dumps(transform))(item)
    assert isinstance(item["image"], str)
    assert set(read) == {"image", "other"}
    with pytest.raises(KeyError):
        LoadImageOrderedd(["image", "mask"])(item)


def test_a_panel_shows_a_photograph_upright_in_either_order(tmp_path):
    file = save(tmp_path / "a.png", red(letter()))
    drawn = []
    for order in ("rows_columns", "xy"):
        image = LoadImageOrderedd("image", order)({"image": file})["image"]
        mask = (image[0] > 128).to(torch.uint8)
        drawn.append(render_panel(image, mask.float(), mask, mask, channel_names=["red", "green", "blue"]))
    assert drawn[0] == drawn[1]
    (tmp_path / "panel.png").write_bytes(drawn[0])
    with Image.open(tmp_path / "panel.png") as panel:
        tile = np.asarray(panel.convert("RGB"), dtype=int)[20:, :128]
    found = np.asarray(Image.fromarray((tile[..., 0] > tile[..., 2]).astype(np.uint8)).resize((32, 48), 0))
    assert (found.astype(bool) == letter()).mean() > 0.97


# ---- pseudo-masks ----------------------------------------------------------------------------------------------------


class Bright(torch.nn.Module):
    """Tell tissue that is red from tissue that is not, pixel by pixel."""

    output_kind = "segmentation"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((image[:, :1] - 128, 128 - image[:, :1]), 1)


@pytest.mark.parametrize("order", ["rows_columns", "xy"])
def test_pseudo_masks_of_patches_lie_on_their_patches(tmp_path, order):
    """Origins are [x, y]; the patches overlap along the columns alone, so that exchanged axes would not merge."""
    f = letter()
    items = [
        {
            "id": f"p{left}",
            "image": str(save(tmp_path / f"p{left}.png", red(f[:, left : left + 20]))),
            "label": [1, 1],
            "source": "s",
            "origin": [left, 0],
            "order": order,
        }
        for left in (0, 12)
    ]

    def inferer(image, network):
        return network(image)

    writer = PseudoMaskWriter(
        Bright(), None, items, LoadImageOrderedd("image"), inferer, tmp_path / "pseudo", background=False
    )
    writer.run()
    for item, left in zip(items, (0, 12), strict=True):
        with Image.open(tmp_path / "pseudo" / f"{item['id']}.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), np.where(f[:, left : left + 20], 1, 2))


def test_photographs_are_mirrored_left_to_right_for_pseudo_labels(tmp_path):
    """The mirror image of :func:`sum_over_scales` is what a network sees of a photograph in a mirror."""
    image = LoadImageOrderedd("image", "rows_columns")({"image": save(tmp_path / "a.png", red(letter()))})["image"]
    seen: list[torch.Tensor] = []

    def maps(both):
        seen.append(both)
        return [both[:, :1]]

    sum_over_scales(maps, torch.as_tensor(image)[None], ["average"], [1.0])
    mirrored = np.asarray(ImageOps.mirror(Image.open(tmp_path / "a.png"))).transpose(2, 0, 1)
    np.testing.assert_array_equal(seen[0][1].numpy(), mirrored)


# ---- slices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cam", "cmer", "bmp"])
def test_a_study_and_its_slices_give_the_same_mask_with_the_shipped_weights(method, tmp_path):
    """The same phantom as NIfTI and as PNG: the axes of the slices are those of their study."""
    bundle = Path(__file__).parents[2] / f"bundles/brain_mri_{method}_segmentation"
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs/inference.json"))
    config.update({"bundle_root": str(bundle), "device": torch.device("cpu"), "views": "none", "by_slice": True})
    modalities = config.get_parsed_content("modalities")
    items = {}
    for spatial_dims in (2, 3):
        folder = make_phantoms(
            tmp_path / str(spatial_dims), modalities=modalities, spatial_dims=spatial_dims, subjects=(1, 0, 0)
        )
        assert load_header(f"{folder}/datalist.json")["order"] == "xy"
        items[spatial_dims] = load_datalist(f"{folder}/datalist.json", "training")
    config["datalist"] = f"{folder}/datalist.json"
    network = with_weights(config.get_parsed_content("network"), bundle / "models/model.pt").eval()
    reading, inferer, to_mask = (config.get_parsed_content(name) for name in ("preprocessing", "inferer", "to_mask"))
    rule = MaskRule.of(network)

    @torch.no_grad()
    def scores_of(item: dict) -> torch.Tensor:
        return inferer(torch.as_tensor(reading(item)["image"])[None], network)

    (study,) = items[3]
    of_study = scores_of(study)
    mask = rule.mask(of_study)
    assert mask.any()
    assert not torch.equal(mask, mask.transpose(2, 3))
    of_slices = of_study.clone()
    for item in items[2]:
        z = int(item["id"].rsplit("_")[-1])
        of_slices[..., z] = scores_of(item)
        # The rule cuts between the healthy level and the peak of what it is given: here one plane.
        assert torch.equal(rule.mask(of_slices[..., z]), rule.mask(of_study[..., z]))
    assert len(items[2]) > 5
    torch.testing.assert_close(of_slices, of_study, rtol=1e-4, atol=1e-4)
    assert torch.equal(rule.mask(of_slices), mask)
    # The bundle itself, asked to decide slice by slice, gives a study the masks of its slices.
    by_slice = to_mask({**reading(study), "pred": of_study[0]})["pred"]
    for item in items[2]:
        z = int(item["id"].rsplit("_")[-1])
        assert torch.equal(to_mask({**reading(item), "pred": of_slices[0, ..., z]})["pred"], by_slice[..., z])


def test_a_mask_is_not_written_transposed_where_the_metadata_are_lost(tmp_path):
    item = {"id": "a", "order": "rows_columns", "image": torch.zeros(3, 4, 6), "pred": torch.zeros(1, 4, 6)}
    with pytest.raises(ValueError, match="a MetaTensor, which knows the order of its axes, got Tensor"):
        SaveImageMaskd("pred", tmp_path)(item)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiffs_are_bright_where_viewers_show_them_bright(tmp_path, dtype, photometric):
    values = np.random.default_rng(0).integers(0, 200, (4, 6)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    image = LoadImageOrderedd("image")({"image": str(tmp_path / "a.tif"), "order": "rows_columns"})["image"][0].numpy()
    expected = np.iinfo(dtype).max - values.astype(int) if photometric == "miniswhite" else values
    np.testing.assert_array_equal(image, expected)


def test_a_png_of_colors_in_16_bits_is_refused(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    content = bytearray(file.read_bytes())
    content[24] = 16
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png holds colors or transparency of 16 bits per channel"):
        LoadImageOrderedd("image")({"image": file})


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_colors_become_red_green_and_blue(tmp_path, mode):
    colors = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(colors).convert(mode).save(tmp_path / "a.tif")
    image = LoadImageOrderedd("image")({"image": str(tmp_path / "a.tif"), "order": "rows_columns"})["image"].numpy()
    np.testing.assert_allclose(image.transpose(1, 2, 0), colors, atol=3)


def test_a_palette_that_begins_with_another_color_than_black_is_refused(tmp_path):
    picture = Image.fromarray(np.eye(4, dtype=np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.png")
    assert LoadImageOrderedd("mask")({"mask": str(tmp_path / "a.png")})["mask"].sum() == 4
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png has a palette that does not begin with black"):
        LoadImageOrderedd("mask")({"mask": str(tmp_path / "b.png")})
    picture.save(tmp_path / "c.png", transparency=0)
    assert LoadImageOrderedd("mask")({"mask": str(tmp_path / "c.png")})["mask"].sum() == 4


def test_values_that_would_be_read_as_others_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 6), -1, np.int8))
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png", save_all=True, append_images=[Image.new("RGB", (6, 4), "red")])
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 6)))
    for name, words in (("a.tif", "signed values of 8 bits"), ("b.png", "2 pages"), ("c.tif", "kind that is not read")):
        with pytest.raises(DataError, match=rf"{name} .*{words}"):
            LoadImageOrderedd("image")({"image": str(tmp_path / name)})


@pytest.mark.parametrize("name", ["missing.nii.gz", "missing", "empty"])
def test_what_is_no_image_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name} is no image file or folder of DICOM files"):
        LoadImageOrderedd("image")({"image": str(tmp_path / name)})
