# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Published numbers are read whole, and the differences that the paper prints follow from them."""

from __future__ import annotations

import pytest

from monai_wsss import methods
from monai_wsss.benchmark import PublishedRow, PublishedTable, published_tables
from monai_wsss.benchmark.published_numbers import PAPERS


def values(number: str) -> dict[str, tuple[float | None, ...]]:
    return {row.name: row.values for row in published_tables("cosa")[number].rows}


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_has_a_value_or_a_dash_per_column(paper):
    for table in published_tables(paper).values():
        assert table.title
        assert table.rows
        for row in table.rows:
            assert len(row.values) == len(table.columns), row
            assert all(value is None or 0 < value < 100 for value in row.values), row
            assert any(value is not None for value in row.values), row
            assert row.supervision.startswith(("masks", "image-level labels")), row
            known = {*methods.__all__, "CoSA", "CoSA-MS", "full supervision", None}
            assert row.here in known, row


def test_differences_that_the_paper_prints():
    added, taken = values("3a"), values("3b")
    gains = [(round(voc - 55.96, 2), round(coco - 37.32, 2)) for voc, coco in added.values()]
    assert gains == [(0, 0), (7.13, 5.23), (8.45, 6.6), (12.26, 8.07), (15.7, 9.78), (19.58, 12.35), (20.23, 13.68)]
    whole = taken.pop("all of CoSA")
    losses = [(round(voc - whole[0], 2), round(coco - whole[1], 2)) for voc, coco in taken.values()]
    assert losses == [(-0.65, -1.33), (-6.3, -5.05), (-3.74, -3.17), (-4.09, -1.96), (-2.07, -1.33)]
    guides = values("4a")
    assert [round(a - b, 2) for a, b in zip(guides["guide: SPL"], guides["no guide"], strict=True)] == [6.26, 4.99]
    assert round(9.60 / values("4c")["CoSA-MS"][2] - 1, 2) == 3.07
    assert values("4c")["CoSA"][0] == values("1")["CoSA with CRF"][0]
    assert values("2")["CoSA"] == (78.5, 76.4)


def test_a_table_says_that_nothing_was_run():
    table = PublishedTable(
        "mIoU in %",
        ("val", "test"),
        (PublishedRow("A", "masks", None, (50.0, None)), PublishedRow("B", "masks", "R101", (1.25, 2.0), "AFA", "So.")),
    )
    assert table.markdown() == (
        "| row | supervision | network | val (published, not run) | test (published, not run) | here |\n"
        "|---|---|---|---|---|---|\n"
        "| A | masks | – | 50 | – | – |\n"
        "| B [1] | masks | R101 | 1.25 | 2 | AFA |\n"
        "\n[1] So."
    )


def test_another_paper():
    with pytest.raises(ValueError, match="`paper` to be one of cosa, got 'seam'"):
        published_tables("seam")
