# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Bundles in the hands of other programs, without those programs: their configuration is stripped, and run in parts.

A label server and a deployment pipeline build the transforms of ``inference.json``, leave out those that read or write
files, and run a network of their own between them: a copy that got the weights, or a compiled one.
"""

import copy
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged
from monai.utils import ensure_tuple, set_determinism
from PIL import Image

from monai_wsss.data import load_datalist, make_phantoms

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[1] / "bundles").glob("*/configs/train.json"))


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return request.param


@pytest.fixture(scope="module")
def phantoms(bundle, tmp_path_factory):
    """Give a prepared folder with one case to segment, of the kind that the bundle is for."""
    config = read(bundle, "train")
    drawn = re.search(r"kind='(\w+)'", config["dataset_dir"])
    words = {"kind": drawn[1]} if drawn else {"modalities": config["modalities"]}
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=(1, 1, 1), **words))


@pytest.fixture(scope="module")
def case(phantoms):
    return load_datalist(phantoms / "datalist.json", "test")[0]


@pytest.fixture(scope="module")
def expected(bundle, phantoms, case, tmp_path_factory):
    """Give the mask that the bundle's own run writes."""
    output = tmp_path_factory.mktemp("own")
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(phantoms),
        output_dir=str(output),
        device="cpu",
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    set_determinism(None)
    (file,) = (path for path in (output / "masks").iterdir() if path.name.startswith(f"{case['id']}."))
    return np.asarray(nibabel.load(file).dataobj) if file.name.endswith(".nii.gz") else np.asarray(Image.open(file)).T


def read(bundle, name):
    return json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def parts(bundle):
    """Read the configuration as those programs do: the root is set, and nothing else is overridden."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle), "device": "cpu"})
    return parser


def upright(mask, image):
    """Give a mask (1, *S) in the order of files."""
    array = np.asarray(mask[0])
    return array.T if image.meta.get("order") == "rows_columns" else array


def test_a_label_server_gets_the_bundles_own_mask(bundle, case, expected):
    before = sorted(bundle.rglob("*"))
    parser = parts(bundle)
    network = copy.deepcopy(parser.get_parsed_content("network_def"))
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    item = {"image": case["image"], "model": bundle.name, "device": "cpu"}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        item = transform(item)
    assert len(item["image"].meta["spatial_shape"]) >= item["image"].ndim - 1, "the server restores the size by it"
    with torch.no_grad():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network.eval())[0]
    post = [one for one in parser.get_parsed_content("postprocessing").transforms if not isinstance(one, SaveImaged)]
    for transform in post:
        item = transform(item)
    np.testing.assert_array_equal(upright(item["pred"], item["image"]), expected)
    assert sorted(bundle.rglob("*")) == before, "nothing is written into the bundle"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pipeline_with_the_compiled_network_gets_the_bundles_own_mask(bundle, case, expected, tmp_path):
    """As of DICOM: transforms whose names tell that they read or write are left out, and the array has no channels."""
    if isinstance(case["image"], str) and not case["image"].endswith(".nii.gz") and "chest" not in bundle.name:
        pytest.skip("a photograph is no DICOM series")
    parser = parts(bundle)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    preprocessing, postprocessing = (
        [
            one
            for one in parser.get_parsed_content(name).transforms
            if not re.search("LoadImage|SaveImage", type(one).__name__)
        ]
        for name in ("preprocessing", "postprocessing")
    )
    item = {"image": as_series(case["image"])}
    for transform in preprocessing:
        item = transform(item)
    with torch.no_grad():
        compiled = torch.jit.load(str(tmp_path / "model.ts")).eval()
        outputs = parser.get_parsed_content("inferer")(inputs=item["image"][None], network=compiled)
    item = {"pred": ensure_tuple(outputs)[0], **item}
    for transform in postprocessing:
        item = transform(item)
    assert item["pred"].shape == (1, *item["image"].shape[1:])
    np.testing.assert_array_equal(np.asarray(item["pred"][0]).reshape(expected.shape), expected)


def as_series(paths):
    """Read files as a pipeline hands over series: (x, y, z), or (x, y, z, C) of several, and where the channels are."""
    volumes = [LoadImaged("image", image_only=True)({"image": path})["image"] for path in ensure_tuple(paths)]
    arrays = [np.asarray(volume) if volume.ndim == 3 else np.asarray(volume)[..., None] for volume in volumes]
    affine = np.asarray(volumes[0].affine)
    meta = {
        "original_channel_dim": "no_channel" if len(arrays) == 1 else -1,
        "affine": affine,
        "original_affine": affine.copy(),
        "spatial_shape": np.asarray(arrays[0].shape),
        "space": "LPS",
    }
    return MetaTensor.ensure_torch_and_prune_meta(arrays[0] if len(arrays) == 1 else np.stack(arrays, -1), meta)


def test_the_metadata_name_what_masks_hold(bundle):
    metadata = read(bundle, "metadata")
    named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert named["0"] == "background"
    told = dict(re.match(r"(\d+) (.*?)(?: \(.*)?$", part).groups() for part in metadata["pred_classes"].split(", "))
    assert {number: name for number, name in named.items() if number != "0"} == {
        number: name for number, name in told.items() if number != "0"
    }
