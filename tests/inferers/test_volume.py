# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Networks over whole volumes and over views: assembled maps equal what each part gives by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_wsss.inferers import GradientCAMInferer, VolumeInferer, multi_view_maps
from monai_wsss.networks import CAMEncoder
from monai_wsss.transforms import resize_in_plane


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("grid", [None, (16, 24)])
def test_a_2d_network_gives_each_slice_its_own_map(axis, grid):
    network = CAMEncoder.tiny(2, 2, 3).eval()
    study = torch.rand(2, 2, 12, 10, 9)
    with torch.no_grad():
        maps = VolumeInferer(grid=grid, slice_axis=axis, slice_batch=4)(study, network)
        assert maps.shape == (2, 3, 12, 10, 9)
        dim = axis % 3 + 2
        for position in (0, 3, study.shape[dim] - 1):
            image = study.select(dim, position)
            if grid is None:
                expected = network(image)
            else:
                expected = resize_in_plane(network(resize_in_plane(image, grid)), image.shape[2:])
            torch.testing.assert_close(maps.select(dim, position), expected)


def test_an_image_is_taken_as_it_is_and_meta_tensors_come_out_plain():
    network = CAMEncoder.tiny().eval()
    image = torch.rand(2, 1, 16, 20)
    with torch.no_grad():
        maps = VolumeInferer()(MetaTensor(image), network)
        torch.testing.assert_close(maps, network(image))
    assert type(maps) is torch.Tensor


def test_a_3d_network_by_windows_agrees_with_the_whole_inside():
    # A network that looks at no neighbor gives the same map whatever the window.
    pointwise = torch.nn.Conv3d(1, 2, 1)
    study = torch.rand(1, 1, 20, 18, 16)
    with torch.no_grad():
        windows = VolumeInferer(3, roi_size=(8, 8, 8), overlap=0.5)(study, pointwise)
        torch.testing.assert_close(windows, pointwise(study), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(VolumeInferer(3)(study, pointwise), pointwise(study))


def test_a_one_slice_study_works_and_an_image_for_a_3d_network_does_not():
    with torch.no_grad():
        assert VolumeInferer()(torch.rand(1, 1, 8, 8, 1), CAMEncoder.tiny().eval()).shape == (1, 1, 8, 8, 1)
    with pytest.raises(ValueError, match=r"volume \(B, C, H, W, D\) for a 3D network, got \(1, 1, 8, 8\)"):
        VolumeInferer(3)(torch.rand(1, 1, 8, 8), CAMEncoder.tiny(3))


@pytest.mark.parametrize(
    ("views", "shape"),
    [("mirror", (9, 7)), ("mirror", (6, 5, 4)), ("flips", (9, 7)), ("flips", (6, 5, 4)), ("dihedral", (9, 7))],
)
def test_views_are_turned_back(views, shape):
    """Average a pointwise map over views: it stays that map; a wrong inverse would smear it."""
    image = torch.rand(1, 1, *shape)
    torch.testing.assert_close(multi_view_maps(lambda x: 3 * x, image, views=views), 3 * image)


@pytest.mark.parametrize(("views", "count"), [("none", 1), ("mirror", 2), ("flips", 4), ("dihedral", 8)])
def test_views_make_the_map_equivariant(views, count):
    calls = []

    def network(x):
        calls.append(x)
        return F.conv2d(x, kernel, padding=1)

    kernel = torch.rand(1, 1, 3, 3)
    image = torch.rand(1, 1, 8, 8)
    maps = multi_view_maps(network, image, views=views)
    assert len(calls) == count
    assert len({tuple(call.flatten().tolist()) for call in calls}) == count
    if views != "none":
        axis = 3 if views == "mirror" else 2
        torch.testing.assert_close(multi_view_maps(network, image.flip(axis), views=views), maps.flip(axis))
    if views == "dihedral":
        turned = multi_view_maps(network, image.rot90(1, (2, 3)), views=views)
        torch.testing.assert_close(turned, maps.rot90(1, (2, 3)))


def test_scales_are_averaged_at_the_size_of_the_image():
    image = torch.rand(1, 1, 16, 12)
    sizes = []

    def network(x):
        sizes.append(tuple(x.shape[2:]))
        return torch.full_like(x, float(x.shape[2]))

    maps = multi_view_maps(network, image, scales=(0.5, 1.0, 1.5))
    assert sizes == [(8, 6), (16, 12), (24, 18)]
    torch.testing.assert_close(maps, torch.full_like(image, 16.0))


def test_views_and_scales_are_summed_on_request_at_the_size_of_the_grid():
    """CoSA's inference: an image is squeezed into a square, and the logits of five scales, mirrored too, are summed."""
    image, sizes = torch.rand(1, 1, 12, 30), []

    def network(x):
        sizes.append(tuple(x.shape[2:]))
        return torch.ones_like(x)

    inferer = VolumeInferer(grid=(16, 16), views="mirror", scales=(0.5, 0.75, 1.0, 1.25, 1.5), reduction="sum")
    torch.testing.assert_close(inferer(image, network), torch.full_like(image, 10.0))
    assert sizes == [(side, side) for side in (8, 12, 16, 20, 24) for _ in range(2)]


def test_the_largest_map_of_views_and_scales_on_request():
    """BMP's released inference: three scales, each with its mirror image, and the maximum of their logits."""
    image = torch.rand(1, 1, 8, 8)
    scales, seen = (0.5, 0.75, 1.0), []

    def network(x):
        seen.append(x.flip(-1) if len(seen) % 2 else x)
        return x * (1 - len(seen) % 2)  # the mirrored view alone

    maps = multi_view_maps(network, image, views="mirror", scales=scales, reduction="max")
    brought = [torch.nn.functional.interpolate(x, (8, 8), mode="bilinear") for x in seen[1::2]]
    torch.testing.assert_close(maps, torch.stack(brought).amax(0))


def test_maps_are_differentiable_and_float32_under_autocast():
    network = CAMEncoder.tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = multi_view_maps(network, torch.rand(1, 1, 8, 8), views="flips")
    assert maps.dtype == torch.float32
    maps.sum().backward()
    assert network.head.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"views": "all"}, "`views` to be one of"), ({"scales": (0.0,)}, "one or more `scales` > 0")],
)
def test_wrong_views_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        multi_view_maps(lambda x: x, torch.rand(1, 1, 4, 4), **options)


def test_any_way_to_take_a_map_walks_through_a_study():
    network = CAMEncoder.tiny().eval()
    cam = GradientCAMInferer("encoder", variant="gradcam++")
    study = torch.rand(1, 1, 16, 16, 3)
    maps = VolumeInferer(cam=cam, slice_batch=2)(study, network)
    for index in range(3):
        torch.testing.assert_close(maps[..., index], cam(study[..., index], network))


def test_gradient_maps_are_not_decided_by_window():
    with pytest.raises(ValueError, match=r"Expected `cam` without `roi_size`"):
        VolumeInferer(3, roi_size=(8, 8, 8), cam=GradientCAMInferer("encoder"))
