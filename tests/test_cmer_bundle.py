# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is particular to the bundle of CMER: modalities that are missing, reordered or constant, presets, Grad-CAM++.

Masks are compared with gate and views off, so that the weights that happen to be shipped always give some.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from test_every_bundle import ROOT, offline, read_json, read_rows, run, start
from torch import nn

from monai_wsss.data import make_phantoms
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.methods import CMER
from monai_wsss.transforms import PairedSpatialTransform

BUNDLE = ROOT / "bundles" / "brain_mri_cmer_segmentation"
MODALITIES = ("T1", "T1c", "FLAIR")
PRESETS = {"default": (), "paper": ("paper.json",), "released": ("released.json",)}
NARROW = {"network_def#width": 4, "grid": [64, 64]}
GRAD_CAM = {
    "_target_": "monai_wsss.inferers.GradientCAMInferer",
    "target_layer": "encoder",
    "variant": "gradcam++",
    "gate": "predicted",
}
CUT_MAPS = {"to_mask#rule": "max", "to_mask#gate": "none"}
UNGATED = {"views": "none", "to_mask#gate": "none"}

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer"),
    pytest.mark.filterwarnings("ignore:Training found .* unreliable"),
]


# ---- helpers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diseased and a healthy subject to train on, as many to validate, and one study to segment."""
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=MODALITIES, subjects=(2, 2, 1)))


def with_channels(phantoms: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """A copy whose datalist has these modalities, in this order."""
    shutil.copytree(phantoms, folder)
    datalist = read_json(folder / "datalist.json")
    chosen = [MODALITIES.index(name) for name in names]
    datalist["modality"] = {str(channel): name for channel, name in enumerate(names)}
    for values in datalist["statistics"].values():
        for key in ("mean", "std"):
            values[key] = [values[key][channel] for channel in chosen]
    for split in ("training", "validation", "test"):
        for case in datalist[split]:
            case["image"] = [case["image"][channel] for channel in chosen]
    (folder / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")
    return folder


def with_volumes(phantoms: Path, folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A copy whose study to segment is changed, volume by volume; its intensities are then its own statistics."""
    shutil.copytree(phantoms, folder)
    datalist = read_json(folder / "datalist.json")
    datalist["statistics"] = {}
    (case,) = datalist["test"]
    for name, path in [*zip(MODALITIES, case["image"], strict=True), ("mask", case["mask"])]:
        volume = nibabel.load(folder / path)
        changed = change(name, np.asarray(volume.dataobj))
        nibabel.save(nibabel.Nifti1Image(changed, volume.affine), folder / path)
    (folder / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")
    return folder


def mask_of(output: Path) -> np.ndarray:
    (file,) = (output / "masks").iterdir()
    return np.asarray(nibabel.load(file).dataobj)


def segment(output: Path, data: Path, **overrides: Any) -> np.ndarray:
    return mask_of(run(BUNDLE, "inference", output, data, **{**UNGATED, **overrides}))


def raw_maps(output: Path, data: Path, **overrides: Any) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """The study (1, C, *S), the network with the shipped weights, and what the configured inferer makes of both."""
    settings = {"dataset_dir": str(data), "output_dir": str(output), **UNGATED, **overrides}
    started = start(BUNDLE, "inference", **settings)
    network = started.parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    (item,) = started.parser.get_parsed_content("dataset")
    image = item["image"].as_tensor()[None]
    with torch.no_grad():
        return image, network, started.parser.get_parsed_content("inferer")(image, network)


# ---- the method that the configurations build ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_each_configuration_builds_the_preset_of_its_name(preset, phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    built = start(BUNDLE, "train", overlays=PRESETS[preset], **places).parser.get_parsed_content("method")
    expected = CMER.from_preset(preset, modalities=MODALITIES)
    assert built.settings | {"spatial_dims": 2} == expected.settings | {"present": list(MODALITIES)}
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.state_dict().items()
    }


@pytest.mark.parametrize("off", [False, "false"])
def test_what_is_switched_off_is_absent(off, phantoms, tmp_path):
    flags = {f"method#{name}": off for name in ("equivariance", "cross_modal", "distillation", "second_view")}
    started = start(BUNDLE, "train", dataset_dir=str(phantoms), output_dir=str(tmp_path), **flags)
    method = started.parser.get_parsed_content("method")
    assert (method.equivariance, method.cross_modal, method.distillation) == (None, None, None)
    assert method.second_view is False


def test_the_kinds_of_transforms_are_chosen(phantoms, tmp_path):
    transform = {"_target_": "monai_wsss.transforms.PairedSpatialTransform", "kinds": ["flip"]}
    chosen: dict[str, Any] = {"method#transform": transform, "dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    method = start(BUNDLE, "train", **chosen).parser.get_parsed_content("method")
    assert isinstance(method.transform, PairedSpatialTransform)
    assert method.transform.kinds == ("flip",)


def test_training_needs_all_modalities(phantoms, tmp_path):
    chosen = {"present": ["FLAIR"], "dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    started = start(BUNDLE, "train", **chosen)
    with pytest.raises(RuntimeError) as error:
        started.parser.get_parsed_content("method")
    assert "`present` is for inference" in str(error.value.__cause__)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_backbone_of_table_four_alone_presumes_published_weights(preset, phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "network_def#width": 4}
    for backbone, expected in (("unet", "none"), ("aspp_resnet", "imagenet")):
        chosen = {**places, "network_def#backbone": backbone}
        started = start(BUNDLE, "train", overlays=(f"{preset}.json",), **chosen)
        assert started.parser.get_parsed_content("pretrained") == expected
    with pytest.raises(RuntimeError) as error:
        started.run()
    assert "No package has ImageNet weights of ASPPResNet" in str(error.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["released"])  # test_bundle_readmes.py types `paper.json`
def test_a_preset_is_trained_evaluated_and_used(preset, phantoms, tmp_path):
    overlays = (f"{preset}.json",)
    short: dict[str, Any] = {"epochs": 1, "val_interval": 1, **NARROW}
    trained = run(BUNDLE, "train", tmp_path / "trained", phantoms, overlays=overlays, **short)
    (row,) = read_rows(trained / "training_log.csv")
    assert float(row["equivariance"]) >= 0
    use: dict[str, Any] = {"overlays": overlays, "ckpt_dir": str(trained), **NARROW}
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, **use)
    record = read_json(scores / "run.json")
    told = {"preset": preset, "backbone": "unet", "pooling": "average", "views": "none", "reliable_only": False}
    assert told.items() <= record["config"].items()
    assert record["uses_masks"] == []
    mask = mask_of(run(BUNDLE, "inference", tmp_path / "masks", phantoms, **use))
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [["FLAIR"], ["T2", "T1", "FLAIR", "T1c"]], ids=["one", "four"])
def test_other_modalities_can_be_trained(modalities, tmp_path):
    data = Path(make_phantoms(tmp_path / "data", modalities=modalities, subjects=(2, 2, 1)))
    small = {"modalities": modalities, **NARROW}
    trained = run(BUNDLE, "train", tmp_path / "trained", data, epochs=1, val_interval=1, **small)
    (row,) = read_rows(trained / "training_log.csv")
    assert {f"classification/{name}" for name in modalities} <= row.keys()
    mask = segment(tmp_path / "masks", data, ckpt_dir=str(trained), **small)
    assert mask.any()


# ---- modalities at inference -----------------------------------------------------------------------------------------


def test_a_missing_modality_is_refused_with_what_can_be_done(phantoms, tmp_path):
    data = with_channels(phantoms, tmp_path / "data", ("FLAIR",))
    with pytest.raises(RuntimeError) as error:
        segment(tmp_path / "out", data)
    sentence = str(error.value.__cause__)
    assert "lacks the modality T1, it has FLAIR" in sentence
    assert "`present`" in sentence
    assert "`replace_missing`" in sentence


def test_the_modalities_at_hand_are_fused_when_asked(phantoms, tmp_path):
    """The same mask with and without the files of the others, from the very maps of the whole network."""
    data = with_channels(phantoms, tmp_path / "data", ("FLAIR",))
    alone = segment(tmp_path / "alone", data, present=["FLAIR"])
    assert alone.any()
    assert np.array_equal(alone, segment(tmp_path / "chosen", phantoms, present=["FLAIR"]))
    _, _, few = raw_maps(tmp_path / "unused", data, present=["FLAIR"])
    _, _, all_maps = raw_maps(tmp_path / "unused", phantoms)
    assert few.shape[1] == 1
    assert torch.allclose(few, all_maps[:, 2:], atol=1e-5)
    record = read_json(tmp_path / "alone" / "run.json")["config"]
    assert (record["modalities"], record["network_modalities"]) == (["FLAIR"], list(MODALITIES))


def test_an_unknown_modality_is_named(phantoms, tmp_path):
    with pytest.raises(RuntimeError) as error:
        segment(tmp_path / "out", phantoms, present=["T2"])
    assert "`present`" in str(error.value.__cause__) or "lacks the modality T2" in str(error.value.__cause__)


def test_the_order_of_modalities_does_not_matter(phantoms, tmp_path):
    expected = segment(tmp_path / "expected", phantoms)
    assert expected.any()
    data = with_channels(phantoms, tmp_path / "data", ("FLAIR", "T1", "T1c"))
    assert np.array_equal(segment(tmp_path / "of_the_data", data), expected)
    reordered = segment(tmp_path / "of_present", phantoms, present=["T1c", "FLAIR", "T1"])
    assert np.array_equal(reordered, expected)


def test_only_reliable_modalities_are_fused_unless_all_are_asked_for(phantoms, tmp_path):
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    state["reliable"] = torch.tensor([False, False, True])
    (tmp_path / "weights").mkdir()
    torch.save(state, tmp_path / "weights" / "model.pt")
    use = {"ckpt_dir": str(tmp_path / "weights")}
    each = [segment(tmp_path / name, phantoms, present=[name], **use) for name in MODALITIES]
    assert any(not np.array_equal(mask, each[2]) for mask in each[:2])
    assert np.array_equal(segment(tmp_path / "reliable", phantoms, **use), each[2])
    # A maximum of maps that are shares of their own peak is above the cut where any of them is.
    fused = segment(tmp_path / "all", phantoms, **{"to_mask#reliable_only": False}, **use)
    assert np.array_equal(fused, np.maximum.reduce(each))
    assert np.array_equal(fused, segment(tmp_path / "text", phantoms, **{"to_mask#reliable_only": "false"}, **use))


CHANGES: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "constant sequence": lambda name, volume: np.full_like(volume, 7) if name == "T1c" else volume,
    "empty sequence": lambda name, volume: np.zeros_like(volume) if name == "FLAIR" else volume,
    "one slice": lambda _, volume: volume[:, :, volume.shape[2] // 2][:, :, None],
    "odd sizes": lambda _, volume: volume[5:56, 2:49, 1:8],
}


@pytest.mark.parametrize("case", CHANGES)
def test_unusual_studies_get_a_mask_of_their_own_shape(case, phantoms, tmp_path):
    data = with_volumes(phantoms, tmp_path / "data", CHANGES[case])
    (entry,) = read_json(data / "datalist.json")["test"]
    image, _, maps = raw_maps(tmp_path / "unused", data)
    assert bool(image.isfinite().all())
    assert bool(maps.isfinite().all())
    mask = segment(tmp_path / "out", data)
    assert mask.shape == nibabel.load(data / entry["image"][0]).shape
    assert mask.any()
    assert not mask.all()


# ---- Grad-CAM++ ------------------------------------------------------------------------------------------------------


def test_grad_cam_explains_each_modality_by_its_own_network(phantoms, tmp_path):
    image, network, maps = raw_maps(tmp_path / "unused", phantoms, cam=GRAD_CAM, grid=None)
    explain = GradientCAMInferer("encoder", variant="gradcam++", gate="predicted")
    for channel, member in enumerate(network.members):
        for z in range(0, image.shape[-1], 5):
            expected = explain(image[:, channel : channel + 1, ..., z], member)
            assert torch.allclose(maps[:, channel : channel + 1, ..., z], expected, atol=1e-5)
    assert bool((maps >= 0).all())
    assert bool((maps > 0).any())


def test_grad_cam_can_be_asked_for_and_is_recorded(phantoms, tmp_path):
    output = run(BUNDLE, "inference", tmp_path / "out", phantoms, views="none", cam=GRAD_CAM)
    assert read_json(output / "run.json")["config"]["cam"] == "gradcam++"
    assert set(np.unique(mask_of(output))) <= {0, 1}


def test_maps_that_are_zero_throughout_give_an_empty_mask(phantoms, tmp_path):
    """What Grad-CAM leaves of a study in whose slices nothing is predicted."""
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    started = start(BUNDLE, "inference", cam=GRAD_CAM, **CUT_MAPS, **places)
    decide: Any = started.parser.get_parsed_content("postprocessing").transforms[0]
    assert isinstance(decide.network, nn.Module)
    item = decide({"pred": torch.zeros(3, 8, 8, 2)})
    assert int(item["pred"].sum()) == 0


@pytest.mark.slow
def test_grad_cam_can_be_evaluated(phantoms, tmp_path):
    output = run(BUNDLE, "evaluate", tmp_path / "out", phantoms, views="none", cam=GRAD_CAM, **CUT_MAPS)
    assert "dice_subject" in read_json(output / "metrics.json")
