# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a picture says of its values is honored or refused, and a mask's foreground is what viewers show."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.photographs import read_indices
from monai_wsss.data.reading import read_image, read_labels

RNG = np.random.default_rng(3)
DEEP = RNG.integers(0, 4096, (6, 8)).astype(np.uint16)
GRAY = RNG.integers(0, 256, (6, 8)).astype(np.uint8)
COLORS = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
LESION = np.zeros((6, 8), dtype=bool)
LESION[1:3, 2:6] = True


def raw_png(path: Path, rows: np.ndarray, depth: int, color: int) -> Path:
    """Write a PNG of any depth; ``rows`` holds the bytes of each row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    columns = 8 * rows.shape[1] // (depth * {0: 1, 2: 3, 4: 2, 6: 4}[color])
    header = struct.pack(">IIBBBBB", columns, len(rows), depth, color, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    return path


# Images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", [2, 4, 6])
def test_png_of_more_than_8_bits_with_colors_or_transparency_is_refused(tmp_path, color):
    channels = {2: 3, 4: 2, 6: 4}[color]
    rows = np.frombuffer(RNG.integers(0, 256, 6 * 8 * 2 * channels).astype(np.uint8).tobytes(), np.uint8)
    with pytest.raises(DataError, match=r"a.png holds colors or transparency of 16 bits per channel, of which only 8"):
        read_image(raw_png(tmp_path / "a.png", rows.reshape(6, -1), 16, color))


def test_tiff_of_16_bits_in_colors_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([DEEP] * 3, -1), photometric="rgb")
    with pytest.raises(DataError, match=r"a.tif holds colors or transparency of 16 bits per channel|Cannot read"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("values", [GRAY, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_tiff_is_bright_where_viewers_show_it_bright(tmp_path, values, photometric):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    expected = np.iinfo(values.dtype).max - values.astype(int) if photometric == "miniswhite" else values
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").numpy()[0], expected.T)


def test_signed_and_fractional_tiff_with_white_as_zero_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(np.float32), photometric="miniswhite")
    with pytest.raises(DataError, match=r"a.tif (stores white as 0|as picture)|Cannot read"):
        read_image(tmp_path / "a.tif")


def test_lab_is_refused_and_cmyk_becomes_rgb(tmp_path):
    Image.fromarray(COLORS).convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").numpy().transpose(2, 1, 0), COLORS, atol=2)
    Image.frombytes("LAB", (8, 6), COLORS.tobytes()).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b.tif stores its colors as CIE L\*a\*b\*: save it as RGB"):
        read_image(tmp_path / "b.tif")


def test_transparent_pixels_and_unusual_gamma_are_told(tmp_path, caplog):
    alpha = np.where(LESION, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([COLORS, alpha])).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.numpy().transpose(2, 1, 0), COLORS)
    assert "holds images with transparent pixels, first a.png: they keep the color that the file holds" in caplog.text
    content = (tmp_path / "a.png").read_bytes()
    gamma = b"gAMA" + struct.pack(">I", 100000)
    chunk = struct.pack(">I", 4) + gamma + struct.pack(">I", zlib.crc32(gamma))
    (tmp_path / "b.png").write_bytes(content[:33] + chunk + content[33:])
    with caplog.at_level(logging.WARNING):
        read_image(tmp_path / "b.png")
    assert "of an unusual gamma (1), first b.png: their values are read as stored" in caplog.text


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.full((6, 8), -1, np.int8), {}, "holds signed values of 8 bits, which would be read as 0 to 255"),
        (
            np.full((6, 8), 3_000_000_000, np.uint32),
            {},
            r"holds values from 2\*\*31 on, which would be read as negative",
        ),
        (np.dstack([GRAY, GRAY // 2]), {"planarconfig": "contig"}, "holds a channel beyond gray or RGB"),
        (np.dstack([COLORS, GRAY]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "holds a channel beyond"),
        (GRAY / 7, {}, "is a TIFF of a kind that is not read, e.g. with values of 64 bits"),
        (np.dstack([GRAY] * 5), {"planarconfig": "contig"}, "is a TIFF of a kind that is not read"),
        (np.stack([GRAY] * 3), {}, "holds 3 pages"),
    ],
)
def test_tiffs_that_would_be_read_otherwise_are_refused(tmp_path, values, options, words):
    tifffile.imwrite(tmp_path / "a.tif", values, **{"photometric": "minisblack", **options})
    for read in (read_image, read_labels):
        with pytest.raises(DataError, match=rf"a.tif {words}.*: save"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_whole_values_of_32_bits_are_kept(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", DEEP.astype(dtype))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").numpy()[0].T, DEEP)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").numpy()[0].T, DEEP)


def test_smaller_copies_of_a_pyramid_and_previews_of_phones_are_passed_over(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.tile(COLORS, (4, 4, 1)), tile=(16, 16), photometric="rgb")
        file.write(np.tile(COLORS, (2, 2, 1)), tile=(16, 16), photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").numpy().transpose(2, 1, 0), np.tile(COLORS, (4, 4, 1)))
    Image.fromarray(COLORS).save(tmp_path / "b.jpg", quality=95)
    Image.fromarray(COLORS).save(
        tmp_path / "c.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(COLORS[::2])], quality=95
    )
    np.testing.assert_array_equal(read_image(tmp_path / "c.jpg"), read_image(tmp_path / "b.jpg"))


def test_a_color_profile_other_than_srgb_is_told(tmp_path, caplog):
    from PIL import ImageCms

    profiles = {"a": ImageCms.createProfile("sRGB"), "b": ImageCms.createProfile("XYZ")}
    for name, profile in profiles.items():
        content = ImageCms.ImageCmsProfile(profile).tobytes()
        Image.fromarray(COLORS).save(tmp_path / f"{name}.png", icc_profile=content)
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png").numpy().transpose(2, 1, 0), COLORS)
    assert "with a color profile other than sRGB, first b.png: their values are read as stored" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_every_turn_of_every_kind_of_picture(tmp_path, suffix, turn):
    block = np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(block).save(tmp_path / f"a.{suffix}", exif=exif)
    expected = {
        2: np.fliplr(block),
        3: np.rot90(block, 2),
        4: np.flipud(block),
        5: block.T,
        6: np.rot90(block, -1),
        7: np.rot90(block, 2).T,
        8: np.rot90(block),
    }[turn]
    for read in (read_image, read_labels):
        np.testing.assert_allclose(read(tmp_path / f"a.{suffix}").numpy()[0].T, expected, atol=3)


def test_images_of_kinds_that_are_not_read_are_named(tmp_path):
    for name, remedy in (("a.nrrd", "save it as NIfTI"), ("b.webp", "save it as PNG"), ("c.svs", "cut tiles from")):
        (tmp_path / name).write_bytes(b"content")
        with pytest.raises(DataError, match=rf"{name} is of a kind that is not read: {remedy}"):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} does not exist or is of a kind that is not read: {remedy}"):
            read_labels(tmp_path / name)


# Masks -------------------------------------------------------------------------------------------------------------


def palette(path: Path, indices: np.ndarray, *colors: tuple[int, int, int], **options: object) -> Path:
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([value for color in colors for value in color])
    picture.save(path, **options)
    return path


def shown(path: Path) -> np.ndarray:
    return read_labels(path).numpy()[0].T


BLACK, WHITE, RED, GREEN, DIM = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (128, 128, 128)


@pytest.mark.parametrize(
    ("indices", "colors", "options"),
    [
        (LESION, (BLACK, WHITE), {}),
        (~LESION, (WHITE, BLACK), {}),
        (~LESION, (RED, BLACK), {}),
        (np.where(LESION, 2, 7), (GREEN,) * 2 + (WHITE,) + (GREEN,) * 4 + (BLACK,), {}),
        (np.where(LESION, 1, 0), (WHITE, RED), {"transparency": 0}),
        (np.where(LESION, 0, 1), (RED, WHITE), {"transparency": 1}),
        (np.where(LESION, 1, 0), (BLACK, (0, 0, 2)), {}),
        (LESION, (BLACK, RED, GREEN), {}),
    ],
)
def test_the_foreground_of_a_palette_is_what_it_shows(tmp_path, indices, colors, options):
    np.testing.assert_array_equal(shown(palette(tmp_path / "a.png", indices, *colors, **options)) > 0, LESION)


def test_an_empty_mask_whose_palette_begins_with_white_is_empty(tmp_path):
    assert not shown(palette(tmp_path / "a.png", np.ones((6, 8)), WHITE, BLACK)).any()
    assert (shown(palette(tmp_path / "b.png", np.zeros((6, 8)), WHITE, BLACK)) > 0).all()


def test_indices_of_classes_are_kept_where_entry_0_is_background(tmp_path):
    numbers = np.arange(48).reshape(6, 8) % 3
    np.testing.assert_array_equal(shown(palette(tmp_path / "a.png", numbers, BLACK, RED, GREEN)), numbers)
    np.testing.assert_array_equal(shown(palette(tmp_path / "b.bmp", numbers, BLACK, DIM, WHITE)), numbers)


@pytest.mark.parametrize(
    ("indices", "colors", "options", "why"),
    [
        (LESION, (WHITE, RED), {}, "has colors and no black"),
        (LESION, (WHITE, DIM), {}, "holds no black"),
        (LESION * 1 + 1, (WHITE, RED, BLACK), {}, None),
        (np.arange(48).reshape(6, 8) % 3, (RED, GREEN, BLACK), {}, "has several colors"),
        (LESION, (BLACK, BLACK), {}, "has a palette with black as background and as something else"),
        (LESION, (WHITE, BLACK), {"transparency": 0}, "has a palette with black|shows black on nothing"),
    ],
)
def test_palettes_that_are_not_clear(tmp_path, indices, colors, options, why):
    path = palette(tmp_path / "a.png", indices, *colors, **options)
    if why is None:
        assert (shown(path) > 0).tolist() == (~LESION).tolist()
        return
    with pytest.raises(DataError, match=rf"The mask .*a.png ({why}).*, so it is not clear what its foreground is"):
        read_labels(path)


def rgba(path: Path, color: np.ndarray, alpha: np.ndarray) -> Path:
    Image.fromarray(np.dstack([color, alpha]).astype(np.uint8)).save(path)
    return path


def plane(inside: tuple[int, int, int], outside: tuple[int, int, int]) -> np.ndarray:
    return np.where(LESION[..., None], inside, outside).astype(np.uint8)


OPAQUE, OBJECT = np.full((6, 8), 255), np.where(LESION, 255, 0)


@pytest.mark.parametrize(
    ("color", "alpha"),
    [
        (plane(WHITE, BLACK), OPAQUE),
        (plane(WHITE, WHITE), OBJECT),
        (plane(RED, WHITE), OBJECT),
        (plane(WHITE, BLACK), OBJECT),
        (plane(RED, RED), OBJECT // 2),
        (plane((0, 0, 2), BLACK), OPAQUE),
    ],
)
def test_the_foreground_of_colors_and_transparency_is_what_they_show(tmp_path, color, alpha):
    np.testing.assert_array_equal(shown(rgba(tmp_path / "a.png", color, alpha)) > 0, LESION)


@pytest.mark.parametrize(
    ("color", "alpha", "why"),
    [
        (plane(BLACK, WHITE), OBJECT, "shows black on nothing"),
        (plane(WHITE, BLACK), OPAQUE * 0, "is transparent throughout"),
        (plane(WHITE, WHITE), np.where(LESION, 255, 100), "is transparent in part, nowhere entirely"),
        (plane(RED, WHITE), OPAQUE, "has colors and no black"),
        (COLORS // 2 * 2, OPAQUE, "has"),
    ],
)
def test_colors_and_transparency_that_are_not_clear(tmp_path, color, alpha, why):
    with pytest.raises(DataError, match=rf"The mask .*a.png {why}.*, so it is not clear what its foreground is"):
        read_labels(rgba(tmp_path / "a.png", color, alpha))


def test_equal_channels_bits_and_jpeg_are_gray(tmp_path):
    white = (LESION * 255).astype(np.uint8)
    Image.fromarray(np.stack([white] * 3, -1)).save(tmp_path / "a.png")
    Image.fromarray(LESION).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([white, np.full_like(white, 255)])).save(tmp_path / "c.png")
    for name in ("a.png", "b.png", "c.png"):
        np.testing.assert_array_equal(shown(tmp_path / name), white)
    Image.fromarray(np.kron(np.stack([white] * 3, -1), np.ones((8, 8, 1), np.uint8))).save(tmp_path / "d.jpg")
    np.testing.assert_array_equal(shown(tmp_path / "d.jpg")[::8, ::8] > 127, LESION)


@pytest.mark.parametrize("depth", [2, 4])
def test_numbers_of_few_bits_are_those_that_the_file_holds(tmp_path, depth):
    numbers = np.arange(48).reshape(6, 8) % 3
    bits = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
    rows = np.packbits(bits.reshape(6, -1), axis=-1)
    np.testing.assert_array_equal(shown(raw_png(tmp_path / "a.png", rows, depth, 0)), numbers)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_that_store_white_as_zero(tmp_path, dtype):
    stored = np.where(LESION, 0, np.iinfo(dtype).max).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(shown(tmp_path / "a.tif") > 0, LESION)
    tifffile.imwrite(tmp_path / "b.tif", LESION.astype(dtype), photometric="miniswhite")
    with pytest.raises(DataError, match=r"b.tif stores white as 0 and holds more than black and white"):
        read_labels(tmp_path / "b.tif")


def test_a_mask_of_several_pages_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GRAY] * 3), photometric="minisblack")
    with pytest.raises(DataError, match=r"a.tif holds 3 pages"):
        read_labels(tmp_path / "a.tif")


def test_formats_that_define_indices_keep_them(tmp_path):
    path = palette(tmp_path / "a.png", LESION, WHITE, RED)
    assert (read_indices(path, read_labels(path, palette="indices"), 1)[0].T == LESION).all()
