# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pictures that claim too many pixels are named, with a remedy."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.reading import is_color_picture, read_image, read_labels


def claim(path, width: int, height: int, *, kind: str) -> None:
    """Write a picture that says to be much larger than its content."""
    if kind == "png":
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
        blocks = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(blocks))
    else:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
        content = path.read_bytes()
        size = struct.pack("<ii", width, height)
        path.write_bytes(content[:18] + size + content[26:])


@pytest.mark.parametrize("kind", ["png", "bmp"])
@pytest.mark.parametrize("size", [(20000, 20000), (200000, 2000), (30000, 15000)])
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_a_picture_of_too_many_pixels_is_one_sentence_with_its_name(tmp_path, kind, size, read):
    path = tmp_path / f"large.{kind}"
    claim(path, *size, kind=kind)
    assert is_color_picture(path) is False
    with pytest.raises(
        DataError, match=rf"large\.{kind} claims more pixels than are read at once.*: cut tiles from it"
    ):
        read(path)
