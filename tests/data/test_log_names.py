# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of cases and paths are taken out of reasons, wherever they stand."""

from __future__ import annotations

import pytest

from monai_wsss.data import write_datalist
from monai_wsss.data.log_names import filter_of_datalist


@pytest.fixture
def names(tmp_path):
    folder = tmp_path / "Roe Clinic"
    (folder / "images").mkdir(parents=True)
    items = []
    for number, (name, subject) in enumerate([("Doe_Jane", "Doe"), ("Max_03", "Max Doe"), ("007", "T1")]):
        image = folder / "images" / f"{name} {number}.png"
        image.touch()
        items.append({"id": name, "image": f"images/{image.name}", "label": [1], "subject": subject, "source": name})
    write_datalist(folder, {"modality": {"0": "T1"}, "classes": ["tumor"], "training": items})
    return filter_of_datalist(folder / "datalist.json", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot identify image file '{0}/images/Doe_Jane 0.png'", "cannot identify image file 'a file'"),
        ("see {0}/images/Doe_Jane 0.png: it is dark", "see a file: it is dark"),
        ("{'id': 'Doe_Jane', 'subject': 'Doe'}.", "{'id': 'a case', 'subject': 'a case'}."),
        ("id=Max_03.", "id=a case."),
        ("Max Doe and [Doe], Doe_Jane.", "a case and [a case], a case."),
        ("No such file: '/home/Roe Clinic/x'", "No such file: 'a file'"),
        ("No such file: /home/roe/x", "No such file: a file"),
        (r"No such file: C:\roe\x", "No such file: a file"),
        ("{0}/weights/12/pseudo/Doe_Jane.png is damaged", "a file is damaged"),
        ("weights/12/pseudo/Doe_Jane.png is damaged", "a file is damaged"),
        # No name of a patient, and no path.
        ("T1 of 007 and Does: 1/2, mean/max, N/A", "T1 of 007 and Does: 1/2, mean/max, N/A"),
        ("The process that worked on it died.", "The process that worked on it died."),
    ],
)
def test_names_and_paths_are_replaced_at_once_and_words_are_not(names, tmp_path, text, clean):
    assert names.clean(text.replace("{0}", str(tmp_path / "Roe Clinic"))) == clean
