# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checksums that image files carry and their readers pass over: gzip, PNG, compressed MetaImage.

A flipped bit in such a file, or a copy that broke off in its last bytes, would be read as other values without a word.
TIFF, JPEG, BMP, DICOM and uncompressed files carry none.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["check_checksums"]

_PIECE = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_LONGEST_HEADER = 65536
_WRONG = "its checksum is wrong"


def check_checksums(file: Path) -> None:
    """Compare the checksums of an image file, whatever its suffix; a file that has none passes.

    Files that are cut off so that no checksum is left pass, too: their readers say so.

    Raises:
        ValueError: a checksum is wrong.
    """
    if not file.is_file():
        return
    with open(file, "rb") as stream:
        start = stream.read(len(_PNG))
        stream.seek(0)
        if start == _PNG:
            _check_png(stream)
        elif start.startswith(_GZIP):
            _check_gzip(stream)
        elif file.name.lower().endswith((".mha", ".mhd")):
            _check_metaimage(file, stream)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece


def _check_png(stream: IO[bytes]) -> None:
    """Compare the checksums of the chunks that hold the picture; others, such as texts, may be wrong."""
    stream.seek(len(_PNG))
    while len(head := stream.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        sum_found = zlib.crc32(name)
        while length > 0 and (piece := stream.read(min(length, _PIECE))):
            sum_found = zlib.crc32(piece, sum_found)
            length -= len(piece)
        stated = stream.read(4)
        if len(stated) < 4 or name == b"IEND":
            return
        if name[:1].isupper() and int.from_bytes(stated, "big") != sum_found:
            raise ValueError(f"{_WRONG}, in the chunk {name.decode('latin-1')}")


def _check_gzip(stream: IO[bytes]) -> None:
    """Decompress all members up to their checksums; what follows the last one does not count."""
    decompressor = zlib.decompressobj(wbits=31)
    for piece in _pieces(stream):
        rest = piece
        while rest:
            if decompressor.eof:
                if not rest.startswith(_GZIP):
                    return
                decompressor = zlib.decompressobj(wbits=31)
            _decompress(decompressor, rest)
            rest = decompressor.unused_data


def _decompress(decompressor: zlib._Decompress, piece: bytes) -> None:
    """Decompress a piece, a part at a time, and keep nothing."""
    while piece:
        try:
            decompressor.decompress(piece, _PIECE)
        except zlib.error as error:
            raise ValueError(f"{_WRONG}, or its compression broken") from error
        piece = decompressor.unconsumed_tail


def _check_metaimage(file: Path, stream: IO[bytes]) -> None:
    """Decompress the values of a MetaImage, if they are compressed, up to their checksum."""
    header = stream.read(_LONGEST_HEADER)
    place, entries = 0, {}
    for line in header.split(b"\n"):
        place += len(line) + 1
        key, _, value = line.partition(b"=")
        entries[key.strip().lower()] = value.strip()
        if key.strip().lower() == b"elementdatafile":
            break
    if entries.get(b"compresseddata", b"").lower() != b"true":
        return
    data = entries.get(b"elementdatafile", b"LIST").decode("utf-8", "replace")
    if data.upper() == "LOCAL":
        stream.seek(place)
        _check_zlib(stream)
    elif (file.parent / data).is_file():
        with open(file.parent / data, "rb") as other:
            _check_zlib(other)


def _check_zlib(stream: IO[bytes]) -> None:
    decompressor = zlib.decompressobj(wbits=47)
    for piece in _pieces(stream):
        _decompress(decompressor, piece)
        if decompressor.eof:
            return
