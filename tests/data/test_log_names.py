# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of cases and paths are taken out of reasons, wherever they stand."""

from __future__ import annotations

import json
import unicodedata

import pytest

from monai_wsss.data import load_datalist, write_datalist
from monai_wsss.data.log_names import filter_of_datalist


@pytest.fixture
def names(tmp_path):
    folder = tmp_path / "Roe Clinic"
    (folder / "images").mkdir(parents=True)
    items = []
    cases = [("Doe_Jane", "Doe"), ("Max_03", "Max Doe"), ("007", "T1"), ("Wu, Li", "Wu"), ("Müller_05", "O'Hara, J.")]
    for number, (name, subject) in enumerate(cases):
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
        # Relative paths, with and without the prepared folder, quoted and bare.
        ("see Roe Clinic/images/Max_03 1.png: dark", "see a file: dark"),
        ("see 'Roe Clinic/images/Max_03 1.png': dark", "see 'a file': dark"),
        ("see x/Roe Clinic/images/No Body.npz: dark", "see a file: dark"),
        ("see images/No Body.npz: dark", "see a file: dark"),
        ("see 'no list/No Body.npz': dark", "see 'a file': dark"),
        # Files of the output folder, quoted and bare, of cases and of nobody that the datalist names.
        ("Cannot write {1}/uncertainty/Wu, Li_mask.npy: full", "Cannot write a file: full"),
        ("Cannot write '{1}/uncertainty/Wu, Li_mask.npy': full", "Cannot write 'a file': full"),
        ("Cannot write out/uncertainty/Wu%2C%20Li.npy: full", "Cannot write a file: full"),
        ("Cannot write {1}/a.b/No Body, J..nii.gz or x", "Cannot write a file or x"),
        ("{1}/pseudo/O'Hara, J._mask.npy", "a file"),
        ("Wu, Li.npy and max  doe.npy", "a case.npy and a case.npy"),
        ("{1} is full, {1}/ too", "a folder is full, a folder too"),
        # Escapes, Unicode forms and case.
        ('{"id": "M\\u00fcller_05"}', '{"id": "a case"}'),
        ('{"id": "M\\\\u00fcller_05"}', '{"id": "a case"}'),
        (r"{'id': 'M\xfcller_05'}", "{'id': 'a case'}"),
        (unicodedata.normalize("NFD", "id Müller_05."), "id a case."),
        (json.dumps(unicodedata.normalize("NFD", "Müller_05")), '"a case"'),
        ("DOE_JANE, MÜLLER_05, WU, LI", "a case, a case, a case"),
        ("{0}/IMAGES/doe_jane 0.PNG is dark", "a file is dark"),
        # No name of a patient, and no path.
        ("T1 of 007 and Does: 1/2, mean/max, N/A", "T1 of 007 and Does: 1/2, mean/max, N/A"),
        ("The process that worked on it died.", "The process that worked on it died."),
    ],
)
def test_names_and_paths_are_replaced_at_once_and_words_are_not(names, tmp_path, text, clean):
    assert names.clean(text.replace("{0}", str(tmp_path / "Roe Clinic")).replace("{1}", str(tmp_path / "out"))) == clean


@pytest.mark.parametrize("folder", ["clinic", "Roe Clinic", "."])
@pytest.mark.parametrize("text", ["see '{}': dark", "see {}: dark", "see {}.", "{} is damaged"])
def test_a_datalist_given_by_a_relative_path_hides_the_absolute_ones(tmp_path, monkeypatch, folder, text):
    (tmp_path / folder / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder / "images" / "Doe Jane.png").touch()
    item = {"id": "Doe Jane", "image": "images/Doe Jane.png", "label": [1], "subject": "Doe Jane"}
    write_datalist(folder, {"modality": {"0": "T1"}, "classes": ["tumor"], "training": [item]})
    relative = (tmp_path / folder / "datalist.json").relative_to(tmp_path)
    names = filter_of_datalist(relative, relative.parent / "out")
    (loaded,) = load_datalist(relative, "training")
    clean = text.format("a file")
    assert names.clean(text.format(loaded["image"])) == clean
    assert names.clean(text.format(relative.parent / "images" / "Doe Jane.png")) == clean
    assert names.clean(text.format((relative.parent / "out" / "maps" / "Doe Jane_mask.npy").absolute())) == clean


def test_what_nobody_has_checked_is_hidden_too(tmp_path):
    items = [
        {"id": ["Doe Jane"]},
        {"image": {"T1": "Roe.png"}, "mask": None},
        {"subject": 12345},
        {"image": [["Poe.png"]]},
    ]
    statistics = {"Moe": {"mean": [0], "std": [1]}}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": items, "statistics": statistics}), encoding="utf-8")
    names = filter_of_datalist(tmp_path / "datalist.json")
    assert names.clean("Doe Jane, Roe.png, 12345, Poe.png, Moe") == "a case, a file, a case, a file, a case"
