# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""XML files of annotations, read without document types, which could make a file grow or read other files."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from monai_wsss._checks import DataError

__all__ = ["read_plain_xml"]


class _PlainTree(ElementTree.TreeBuilder):
    """A builder that refuses a document type, and thereby entities that grow or read files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError(f'it has a document type ("<!DOCTYPE {name}>"), which no annotation needs: take it out')


def read_plain_xml(path: Path) -> ElementTree.Element:
    """Read an XML file and give its root.

    Raises:
        DataError: the file is no XML or has a document type.
    """
    try:
        # S314 is about entities; _PlainTree refuses the document type that would declare them.
        return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainTree()))  # noqa: S314
    except DataError as error:
        raise DataError(f"{path} is not read, for {error}.") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path} is no XML ({error}): copy or export the annotation again.") from error
