# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The command line: its files and words, its exit codes, and errors as one line."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main

RNG = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write four gray images and their labels."""
    (tmp_path / "images").mkdir()
    for name in "abcd":
        Image.fromarray(RNG.integers(0, 255, (6, 8)).astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("id,who,x,y,fold\na,p,1,0,train\nb,p,0,0,train\nc,q,1,1,val\nd,r,0,1,test\n")
    return tmp_path


def folder_arguments(source: Path, *more: str) -> list[str]:
    paths = ["--images", f"{source}/images", "--labels", f"{source}/labels.csv", "--out", f"{source}/my out"]
    columns = ["--subject-column", "who", "--label-columns", "x,y", "--split-column", "fold"]
    return ["prepare", "folder", *paths, *columns, *more]


def test_prepare_folder_says_what_was_written_and_what_comes_next(source, capsys):
    assert main(folder_arguments(source, "--modalities", "FLAIR")) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert f"Wrote {source}/my out/datalist.json" in text
    assert ["classes:", "x,", "y"] in lines
    assert ["modalities:", "FLAIR"] in lines
    assert ["training", "2", "1", "1", "0"] in lines
    assert ["validation", "1", "1", "1", "1"] in lines
    assert ["test", "1", "1", "0", "1"] in lines
    assert f"python -m monai.bundle run --config_file configs/train.json --dataset_dir '{source}/my out'" in text
    train = f"Next, to train on it:\n  monai-wsss train '{source}/my out' --out '{source}/my out_run'\n"
    assert train in text, "one command, before that of the bundle"


def command_after_preparation(capsys) -> str:
    return next(line for line in capsys.readouterr().out.splitlines() if "monai.bundle run" in line)


def test_the_next_command_bears_what_the_data_need(source, capsys):
    assert main(folder_arguments(source)) == 0
    overrides = (
        f"--dataset_dir '{source}/my out' --modalities \"['image']\" --in_channels 1 --num_classes 2 --output_dir"
    )
    assert overrides in command_after_preparation(capsys)


def test_names_that_a_shell_would_read_are_quoted(source, capsys):
    assert main(folder_arguments(source, "--modalities", "a$(b)")) == 0
    command = command_after_preparation(capsys).split("run ", 1)[1]
    words = shlex.split(command)
    assert ast.literal_eval(words[words.index("--modalities") + 1]) == ["a$(b)"]
    assert '"[' not in command


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Write two volumes with the sequences of the bundle, a table of volumes and a table of slices."""
    (tmp_path / "images").mkdir()
    for case in "ab":
        for name in ("T1", "T1c", "FLAIR"):
            image = nibabel.Nifti1Image(RNG.integers(0, 900, (6, 5, 4)).astype(np.int16), np.eye(4))
            nibabel.save(image, tmp_path / "images" / f"{case}_{name}.nii.gz")
    (tmp_path / "labels.csv").write_text("id,tumor,split\na,1,train\nb,0,test\n")
    (tmp_path / "slices.csv").write_text("id,z,tumor,split\na,1,1,train\na,2,0,train\nb,0,0,test\n")
    return tmp_path


def test_volumes_are_segmented_and_slices_trained_on(scans, capsys):
    arguments = ["prepare", "folder", "--images", f"{scans}/images"]
    assert main([*arguments, "--labels", f"{scans}/labels.csv", "--out", f"{scans}/whole"]) == 0
    text = capsys.readouterr().out
    assert "the bundle trains on slices: to train, prepare again with --as-slices" in text
    assert "train.json" not in text
    command = f"--config_file configs/inference.json --dataset_dir {scans}/whole --output_dir {scans}/whole_masks"
    assert command in text
    options = ["--labels", f"{scans}/slices.csv", "--out", f"{scans}/cut", "--as-slices", "--slice-column", "z"]
    assert main([*arguments, *options]) == 0
    command = f"--config_file configs/train.json --dataset_dir {scans}/cut --output_dir {scans}/cut_run"
    assert command in command_after_preparation(capsys)


def test_volumes_with_other_sequences_need_weights_of_their_own(scans, capsys):
    arguments = ["prepare", "folder", "--images", f"{scans}/images", "--labels", f"{scans}/labels.csv"]
    (scans / "labels.csv").write_text("id,tumor,split\na,1,val\nb,0,val\n")
    assert main([*arguments, "--out", f"{scans}/out", "--modalities", "FLAIR"]) == 0
    needed = "--modalities \"['FLAIR']\" --in_channels 1 --ckpt_dir RUN --split validation --output_dir"
    text = capsys.readouterr().out
    assert needed in text
    assert "with the folder RUN of a training on such slices" in text


def test_an_error_is_one_line_and_exit_code_one(source, capsys):
    (source / "images" / "d.png").unlink()
    assert main(folder_arguments(source)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {source}/labels.csv, row 5: ")
    assert line.endswith("add it under this name, or delete the row.")


def test_debug_shows_where(source):
    (source / "images" / "d.png").unlink()
    with pytest.raises(ValueError, match="has no image for the id"):
        main(folder_arguments(source, "--debug"))


def test_an_argument_out_of_range_is_a_users_error(source, capsys):
    (source / "labels.csv").write_text("id,x\na,1\nb,0\nc,1\nd,0\n")
    arguments = ["prepare", "folder", "--images", f"{source}/images", "--labels", f"{source}/labels.csv"]
    assert main([*arguments, "--out", f"{source}/out", "--fractions", "0.5,0.5,0.5"]) == 1
    assert capsys.readouterr().err.startswith("error: Expected `fractions` to be three shares that add up to 1")
    assert main([*arguments, "--out", f"{source}/new", "--fractions", "0.5,0.5,0", "--seed", "3"]) == 0


def test_an_unexpected_error_names_its_type_and_the_debug_option(monkeypatch, tmp_path, capsys):
    def fail(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("monai_wsss.data.cases.prepare_cases", fail)
    assert main(["prepare", "cases", "--root", str(tmp_path), "--out", "x"]) == 1
    assert capsys.readouterr().err == "error: RuntimeError: two lines (run again with --debug to see where)\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["prepare"], "required: LAYOUT"),
        (["prepare", "cityscapes"], "invalid choice: 'cityscapes'"),
        (["prepare", "folder", "--images", "x"], "required: --labels, --out"),
        (
            ["prepare", "cases", "--root", "x", "--out", "y", "--label-columns", "a,,b"],
            "names with commas between them",
        ),
        (["prepare", "brats", "--root", "x", "--out", "y", "--percentiles", "1"], "expected 2 numbers with commas"),
        (["prepare", "brats", "--root", "x", "--out", "y", "--fractions", "a,b,c"], "expected 3 numbers with commas"),
        (["phantom", "--out", "x", "--spatial-dims", "4"], "invalid choice: 4"),
        (["report"], "required: --run"),
    ],
)
def test_wrong_usage_is_exit_code_two(capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["prepare"],
        ["prepare", "folder"],
        ["prepare", "brats"],
        ["prepare", "cases"],
        ["prepare", "voc"],
        ["prepare", "coco"],
        ["phantom"],
        ["report"],
    ],
)
def test_every_help_has_an_example(capsys, command):
    assert main([*command, "--help"]) == 0
    assert re.search(r"examples?:\n  monai-wsss ", capsys.readouterr().out)


def test_help_needs_neither_torch_nor_monai():
    code = (
        "import sys; from monai_wsss.__main__ import main; assert main(['--help']) == 0; "
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_prepare_cases_logs_what_was_taken(tmp_path, capsys):
    (tmp_path / "root" / "cases").mkdir(parents=True)
    images = RNG.integers(0, 255, (2, 6, 8)).astype(np.uint8)
    np.savez(tmp_path / "root" / "cases" / "p.npz", images=images)
    (tmp_path / "root" / "labels.csv").write_text(
        "id,case,index_in_npz,label,split,file\na,p,0,1,val,cases/p.npz\nb,p,1,0,val,cases/p.npz\n"
    )
    assert main(["prepare", "cases", "--root", f"{tmp_path}/root", "--out", f"{tmp_path}/out"]) == 0
    captured = capsys.readouterr()
    assert "2 slices of 1 subjects, channels image." in captured.err
    assert ["validation", "2", "1", "1"] in [line.split() for line in captured.out.splitlines()]


def test_prepare_brats(tmp_path, capsys):
    for number in range(3):
        folder = tmp_path / "root" / f"case{number}"
        folder.mkdir(parents=True)
        values = RNG.integers(1, 900, (12, 12, 6)).astype(np.int16)
        values[0] = 0
        tumor = np.zeros((12, 12, 6), dtype=np.uint8)
        tumor[4:6, 4:6, 2] = 1
        for name, array in (("flair", values), ("t1c", values + 1), ("seg", tumor)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    arguments = ["prepare", "brats", "--root", f"{tmp_path}/root", "--out", f"{tmp_path}/out", "--modalities", "FLAIR"]
    assert main([*arguments, "--as-slices", "--slice-step", "2", "--fractions", "1,0,0"]) == 0
    assert ["training", "9", "3", "3"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "out" / "datalist.json").read_text(encoding="utf-8"))["modality"] == {"0": "FLAIR"}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Write two photographs with annotations and masks as VOC, and with annotations as COCO."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation", "annotations"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    root = tmp_path / "root"
    content: dict[str, list[object]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in ((3, "cat"), (5, "dog"))]
    for number, name in enumerate("ab"):
        pixels = RNG.integers(0, 255, (6, 8 + number, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(pixels[..., 0] % 2 * 8).save(root / "SegmentationClass" / f"{name}.png")
        text = "<annotation><object><name>cat</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
        content["images"].append({"id": number, "file_name": f"{name}.jpg"})
        outline = [[0, 0, 4, 0, 4, 4]]
        content["annotations"].append({"image_id": number, "category_id": 5 - 2 * number, "segmentation": outline})
    for name, line in (("train", "a"), ("val", "b")):
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(line)
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    (root / "JPEGImages").rename(root / "images")  # as COCO may have it; VOC's is a link
    (root / "JPEGImages").symlink_to(root / "images")
    return tmp_path


def test_prepare_voc_counts_its_many_classes_line_by_line(photographs, capsys):
    arguments = ["prepare", "voc", "--root", f"{photographs}/root", "--out", f"{photographs}/out"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert ["split", "training", "validation", "test"] in lines
    assert ["images", "1", "1", "0"] in lines
    assert ["cat", "=", "1", "1", "1", "0"] in lines
    assert ["dog", "=", "1", "0", "0", "0"] in lines
    assert "The labels are of the image, from its annotation." in captured.err
    assert "The images have 2 sizes, from 8 x 6 to 9 x 6: they are kept, but a batch needs one size" in captured.err
    folder, command = captured.out.splitlines()[-2:]
    assert folder.split() == ["cd", "bundles/dermoscopy_cosa_segmentation"]
    assert "\"['configs/train.json','configs/paper.json']\" --dataset_dir" in command
    assert "--num_classes 20 --output_dir" in command
    assert "--modalities" not in command


def test_prepare_voc_with_lists_and_classes_of_ones_own(photographs, capsys):
    (photographs / "root" / "Annotations" / "b.xml").unlink()
    arguments = ["prepare", "voc", "--root", f"{photographs}/root", "--out", f"{photographs}/out"]
    names = ",".join([*"1234567", "cat"])
    options = ["--training", "train", "--test", "val", "--validation", "train", "--classes", names]
    assert main([*arguments, *options]) == 1
    assert 'so the image "b" has no label: add it' in capsys.readouterr().err
    options = ["--training", "val", "--validation", "train", "--classes", names, "--labels-from-masks"]
    assert main([*arguments, *options]) == 0
    captured = capsys.readouterr()
    assert ["cat", "=", "1", "1", "1", "0"] in [line.split() for line in captured.out.splitlines()]
    assert "simulated: labels of 1 of 2 images from masks (present with any pixel)" in captured.err


def test_prepare_coco(photographs, capsys):
    arguments = ["prepare", "coco", "--root", f"{photographs}/root", "--out", f"{photographs}/out"]
    assert main([*arguments, "--masks", "--training", "train2017"]) == 1
    assert "instances_train2017.json do not exist: name a set of that folder" in capsys.readouterr().err
    assert main([*arguments, "--masks", "--training", "train2014"]) == 0
    captured = capsys.readouterr()
    assert ["training", "2", "2", "1", "1"] in [line.split() for line in captured.out.splitlines()]
    assert "training: 2 images, 2 with a mask." in captured.err


def test_phantom(tmp_path, capsys, monkeypatch):
    def make_phantoms(directory: str, **options: object) -> str:
        assert options == {"kind": "brain", "spatial_dims": 3, "modalities": ("T1", "FLAIR"), "seed": 4}
        case = {"id": "a", "image": ["a", "b"], "label": [1], "subject": "s"}
        content = {"classes": ["tumor"], "modality": {"0": "T1", "1": "FLAIR"}}
        content |= {"training": [case], "validation": [], "test": []}
        Path(directory).mkdir()
        (Path(directory) / "datalist.json").write_text(json.dumps(content))
        return directory

    monkeypatch.setattr("monai_wsss.data.phantoms.make_phantoms", make_phantoms)
    options = ["--kind", "brain", "--spatial-dims", "3", "--modalities", "T1,FLAIR", "--seed", "4"]
    assert main(["phantom", "--out", f"{tmp_path}/out", *options]) == 0
    assert "modalities: T1, FLAIR" in capsys.readouterr().out


def test_report_without_metrics(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("monai_wsss.reports.write_report", lambda folder: Path(folder) / "report.html")
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path}/report.html\n"


def test_report_ends_with_the_dice_the_masks_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("monai_wsss.reports.write_report", lambda folder: Path(folder) / "report.html")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.nii.gz").touch()
    metrics = {"dice_subject": {"mean": 0.61234, "ci95": [0.5, 0.7], "n": 3}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Dice per subject: 0.612 (95 % interval 0.500 to 0.700, 3 subjects)",
        f"Masks:  {tmp_path}/masks (1 files, e.g. a.nii.gz)",
        f"Report: {tmp_path}/report.html",
    ]
