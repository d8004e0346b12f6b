# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Volumes through 2D networks: the same voxels give the same maps however the file stores them."""

import itertools
import logging

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import LoadImaged
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from monai_wsss.data import load_datalist, load_header, make_phantoms, prepare_folder
from monai_wsss.data.writing import write_picture
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer
from monai_wsss.networks import ActivationNetwork, record_reading
from monai_wsss.refinement import MaskRule
from monai_wsss.transforms import LoadImageOrderedd

CODES = ["LPS", "RAS", "LAI", "PSL", "ASR", "SLP", "IRA", "SPL"]


class Skewed(ActivationNetwork):
    """A convolution whose kernel has no symmetry: it tells every turn and flip of a slice."""

    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("kernel", torch.arange(9.0).reshape(1, 1, 3, 3).sin())

    def class_maps(self, image):
        return F.conv2d(image, self.kernel, padding=1)


def stored(values, affine, codes):
    """Give the same voxels in the same places, in another array order, with the right affine."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(values, turn), affine @ inv_ornt_aff(turn, values.shape)


def as_batch(values, affine):
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values))[None, None].float(), affine=affine)


def recorded(**header):
    network = Skewed()
    record_reading(network, header)
    return network


@pytest.fixture(scope="module")
def study():
    values = np.random.default_rng(0).random((9, 8, 6)).astype(np.float32)
    return values, np.diag([-1.5, -1.5, 4.0, 1.0])


def test_the_codes_of_the_test_are_right(study):
    for codes in CODES:
        assert "".join(nibabel.aff2axcodes(stored(*study, codes)[1])) == codes


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("grid", [None, (12, 12)])
def test_recorded_weights_see_the_same_slices_however_a_study_is_stored(study, codes, grid):
    network = recorded(slicing_axis="SI", in_plane_axes="LP")
    inferer = VolumeInferer(grid=grid, slice_batch=4)
    axial = inferer(as_batch(*study), network)
    torch.testing.assert_close(axial, VolumeInferer(grid=grid)(as_batch(*study), Skewed()), rtol=0, atol=0)
    values, affine = stored(*study, codes)
    expected = stored(axial[0, 0].numpy(), study[1], codes)[0]
    found = inferer(as_batch(values, affine), network)
    assert type(found) is torch.Tensor
    assert found.shape[2:] == values.shape
    torch.testing.assert_close(found[0, 0], torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("refine", ["none", "par"])
def test_pseudo_masks_of_studies_are_those_of_the_recorded_slices(study, refine, tmp_path):
    network, found = recorded(slicing_axis="SI", in_plane_axes="LP"), {}
    for codes in ("LPS", "PSL"):
        values, affine = stored(*study, codes)
        image = MetaTensor(torch.from_numpy(values.copy())[None], affine=affine, meta={"filename_or_obj": "a.nii.gz"})
        items = [{"id": name, "image": image, "label": [1]} for name in ("a", "b")]
        folder = tmp_path / codes
        PseudoMaskWriter(
            network, None, items, dict, VolumeInferer(), folder, background=True, rule="otsu", refine=refine
        ).run()
        found[codes] = np.asarray(nibabel.load(folder / "b.nii.gz").dataobj)
    assert 0 < found["LPS"].mean() < 1
    assert np.array_equal(found["PSL"], stored(found["LPS"], study[1], "PSL")[0])


@pytest.mark.parametrize(("axis", "along"), [("RL", 0), ("AP", 1), ("SI", 2)])
def test_each_anatomical_axis_is_found(study, axis, along):
    found = VolumeInferer()(as_batch(*study), recorded(slicing_axis=axis))
    torch.testing.assert_close(found, VolumeInferer(slice_axis=along)(as_batch(*study), Skewed()), rtol=0, atol=0)


def test_without_the_axes_of_a_slice_only_the_axis_is_found(study):
    """Axes of a slice keep their direction, right-left first."""
    network = recorded(slicing_axis="SI")
    axial = VolumeInferer()(as_batch(*study), network)[0, 0].numpy()
    values, affine = stored(*study, "PSL")
    found = VolumeInferer()(as_batch(values, affine), network)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(stored(axial, study[1], "PSL")[0].copy()))


def test_oblique_volumes_have_a_nearest_axis(study):
    angle = np.deg2rad(20)
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    network = recorded(slicing_axis="SI", in_plane_axes="LP")
    values, affine = stored(*study, "PSL")
    straight, oblique = (VolumeInferer()(as_batch(values, one), network) for one in (affine, turned @ affine))
    torch.testing.assert_close(straight, oblique, rtol=0, atol=0)


def test_volumes_of_a_batch_have_axes_of_their_own(study):
    cube = np.random.default_rng(1).random((6, 6, 6)).astype(np.float32)
    items = []
    for codes in ("LPS", "PSL"):
        values, affine = stored(cube, study[1], codes)
        items.append({"image": MetaTensor(torch.from_numpy(values.copy())[None], affine=affine)})
    batch = next(iter(DataLoader(Dataset(items), batch_size=2)))["image"]
    network = recorded(slicing_axis="SI", in_plane_axes="LP")
    found = VolumeInferer()(batch, network)
    torch.testing.assert_close(found[1, 0], torch.from_numpy(stored(found[0, 0].numpy(), study[1], "PSL")[0].copy()))


@pytest.mark.parametrize("as_given", [torch.from_numpy, lambda values: MetaTensor(values, affine=torch.zeros(4, 4))])
def test_without_a_known_affine_the_last_axis_is_taken(study, as_given):
    volume = as_given(study[0])[None, None]
    found = VolumeInferer()(volume, recorded(slicing_axis="RL", in_plane_axes="AS"))
    torch.testing.assert_close(found, VolumeInferer(slice_axis=-1)(as_batch(*study), Skewed()), rtol=0, atol=0)


def test_an_axis_that_is_given_wins_over_the_record(study):
    network = recorded(slicing_axis="SI", in_plane_axes="RA")
    for axis in (0, 1, 2, -1):
        found = VolumeInferer(slice_axis=axis)(as_batch(*study), network)
        torch.testing.assert_close(
            found, VolumeInferer(slice_axis=axis)(torch.from_numpy(study[0])[None, None], Skewed())
        )


@pytest.mark.parametrize("slice_axis", [None, 0, 1])
@pytest.mark.parametrize("header", [{}, {"slicing_axis": "AP"}, {"slicing_axis": "RL", "in_plane_axes": "SP"}])
def test_networks_of_rows_and_columns_get_slices_so(study, slice_axis, header):
    """They see a slice as its picture, whose columns are x: the maps of the transposed kernel over [x, y]."""
    transposed = recorded(**header)
    transposed.kernel.copy_(transposed.kernel.transpose(2, 3).clone())
    inferer, volume = VolumeInferer(slice_axis=slice_axis), as_batch(*study)
    found = inferer(volume, recorded(order="rows_columns", **header))
    torch.testing.assert_close(found, inferer(volume, transposed))
    assert not torch.allclose(found, inferer(volume, recorded(**header)))


def test_a_picture_of_a_slice_and_its_volume_give_the_same_maps(tmp_path, study):
    """Pictures of slices are read as (C, rows, columns), where nobody says that they are slices."""
    network, values = recorded(order="rows_columns"), np.rint(255 * study[0])
    found = VolumeInferer()(as_batch(values, study[1]), network)[0, 0]
    for z in range(values.shape[2]):
        write_picture(tmp_path / "a.png", values[None, ..., z].astype(np.uint8))
        image = LoadImageOrderedd("image", "rows_columns")({"image": tmp_path / "a.png"})["image"]
        torch.testing.assert_close(VolumeInferer()(image[None], network)[0, 0].T, found[..., z], rtol=1e-5, atol=1e-3)


def test_weights_without_a_record_take_the_last_axis_and_one_sentence_says_so(study, caplog):
    caplog.set_level(logging.WARNING)
    inferer = VolumeInferer()
    inferer(as_batch(*study), Skewed())
    assert not caplog.records
    values, affine = stored(*study, "PSL")
    for _ in range(2):
        found = inferer(as_batch(values, affine), Skewed())
    torch.testing.assert_close(found, VolumeInferer(slice_axis=-1)(as_batch(values, affine), Skewed()))
    (record,) = caplog.records
    assert "The third axis of a volume does not run along the body, its axes are PSL" in record.getMessage()
    inferer(as_batch(values, affine), recorded(slicing_axis="SI"))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("views", ["none", "dihedral"])
def test_a_study_stored_sagittally_and_the_slices_of_the_study_give_the_mask_of_the_axial_one(tmp_path, views):
    """From files to masks: volumes in two array orders, and PNG slices cut by `prepare_folder`."""
    phantoms = make_phantoms(tmp_path / "phantoms", modalities=["FLAIR"], subjects=(1, 0, 1))
    training = load_header(f"{phantoms}/datalist.json")
    assert (training["slicing_axis"], training["in_plane_axes"]) == ("SI", "LP")
    network = recorded(**training)
    rule = MaskRule("activation", rule="logit", gate="none")
    (item,) = load_datalist(f"{phantoms}/datalist.json", "test")
    file = nibabel.load(item["image"])
    masks = {}
    for codes in ("LPS", "PSL", "RAS"):
        values, affine = stored(np.asarray(file.dataobj), file.affine, codes)
        (tmp_path / codes).mkdir()
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / codes / "study.nii.gz")
        image = LoadImaged("image", ensure_channel_first=True)({"image": tmp_path / codes / "study.nii.gz"})["image"]
        image = (image - image.mean()) / 2**6
        mask = rule(VolumeInferer(grid=(64, 64), views=views)(image[None], network)).mask
        masks[codes] = stored(mask[0, 0].numpy(), affine, "LPS")[0]
    assert 0 < masks["LPS"].mean() < 1
    for codes in ("PSL", "RAS"):
        np.testing.assert_array_equal(masks[codes], masks["LPS"])
    # Slices keep the array order of their volume, so those of a flipped volume agree where views are averaged.
    for codes in ("LPS",) if views == "none" else ("LPS", "RAS"):
        values, affine = stored(np.asarray(file.dataobj), file.affine, codes)
        slices = []
        for z in range(values.shape[2]):
            write_picture(tmp_path / f"{z}.png", values[None, ..., z])
            image = LoadImaged("image", ensure_channel_first=True)({"image": tmp_path / f"{z}.png"})["image"]
            image = (image - values.astype(np.float32).mean()) / 2**6
            slices.append(rule(VolumeInferer(grid=(64, 64), views=views)(image[None], network)).mask[0, 0].numpy())
        differ = stored(np.stack(slices, axis=-1), affine, "LPS")[0] != masks["LPS"]
        assert differ.mean() < 1e-4


def test_prepared_slices_say_along_which_axis_they_were_cut(tmp_path, study):
    for folder, codes, expected in (
        ("one", ("LPS", "LPI"), {"slicing_axis": "SI", "in_plane_axes": "LP"}),
        ("turned", ("LPS", "RAS"), {"slicing_axis": "SI"}),
        ("mixed", ("LPS", "PSL"), {"slicing_axis": "SI", "in_plane_axes": "LP"}),
        ("sagittal", ("PSL", "PSL"), {"slicing_axis": "SI", "in_plane_axes": "LP"}),
    ):
        images = tmp_path / folder / "images"
        images.mkdir(parents=True)
        rows = ["id,slice,label,split"]
        for name, code in zip(("a", "b"), codes, strict=True):
            values, affine = stored(1 + study[0], study[1], code)
            nibabel.save(nibabel.Nifti1Image(values, affine), images / f"{name}.nii.gz")
            rows += [f"{name},{number},{number % 2},train" for number in (1, 2)]
        (tmp_path / folder / "labels.csv").write_text("\n".join(rows))
        path = prepare_folder(images, tmp_path / folder / "labels.csv", tmp_path / folder / "out", as_slices=True)
        header = load_header(path)
        found = {key: header[key] for key in ("slicing_axis", "in_plane_axes") if key in header}
        assert found == expected


def test_every_array_order_is_turned_back(study):
    """All 48 of them, by a network that gives its input back."""
    network = recorded(slicing_axis="AP", in_plane_axes="SR")
    network.class_maps = lambda image: image
    for order in itertools.permutations(("RL", "AP", "SI")):
        for codes in itertools.product(*order):
            values, affine = stored(*study, "".join(codes))
            found = VolumeInferer(slice_batch=3)(as_batch(values, affine), network)
            torch.testing.assert_close(found[0, 0], torch.from_numpy(values.copy()), rtol=0, atol=0)
