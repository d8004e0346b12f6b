# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The reference vectors: every .npz file below the golden folder is one test.

The folder is ``$WSSS_GOLDEN``, by default ``../shared/golden`` beside the repository. A file belongs to the group
``<paper>/<name without trailing case number>``; each group is either checked here (``CHECKS``) or named as pending with
the work it waits for (``PENDING``); any other group fails. A check must have read every array of its file, except those
in ``NOT_READ``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_wsss.cams import (
    fuse_groups,
    gradient_activation_maps,
    head_activation_maps,
    normalize_maps,
    pool_maps,
    resize_maps,
    zscore_images,
)
from monai_wsss.refinement import to_mask

GOLDEN = Path(os.environ.get("WSSS_GOLDEN") or Path(__file__).parents[2] / "shared" / "golden")

PENDING = {
    "bmp": (
        "the BMP method",
        "afa_segloss affinity bsp labels losses multiscale_fusion network par polywarmup",
    ),
    "cmer": (
        "the CMER method",
        "aspp cmer er kd lambda_e total_K2 total_K4 unetcam",
    ),
    "coingan": (
        "the CoinGAN method",
        "buffer cconv_constant_shared cconv_k3_kp3 cconv_k3_kp3_shared cconv_k3_kp5 cconv_k5_kp4 "
        "cconv_zeropatch_shared csa csa_c2 selayer",
    ),
    "cosa": (
        "the CoSA method",
        "c2s cpl_hard csc_paper gmm_threshold multiscale_fusion network raw_c2s_paper s2c spl",
    ),
    "gland": (
        "the gland method",
        "cca crisscross mpfp plf plf_degenerate resnest101_statedict_index resnest200_statedict_index "
        "resnest50_dilated_patternfill resnest50_statedict_index resnet38_block resnet38_patternfill "
        "resnet38_statedict_index signconv splitattention",
    ),
}
REASONS = {f"{paper}/{name}": reason for paper, (reason, names) in PENDING.items() for name in names.split()}

# Arrays that a check leaves to others, by regular expression.
NOT_READ = {
    # The network from the image to the target layer is the one of `unetcam`; here its activations are the input.
    "cmer/gradcam": r"x|filters_div|w/(?!classifier\.).*",
}


class Vectors:
    """The arrays of a file as tensors, noting which were read."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def unread(self, except_for: str) -> set[str]:
        return {key for key in set(self.arrays) - self.read if not re.fullmatch(rf"origin.*|{except_for}", key)}


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-9 relative in float64, 1e-4 in float32, as the folder's README suggests."""
    double = expected.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-9 if double else 1e-4, atol=1e-10 if double else 1e-6)


def check_maxnorm(z: Vectors) -> None:
    x = z["x"]
    assert z["eps"].item() == 1e-8
    close(normalize_maps(x, "minmax"), z["out_official"])
    close(normalize_maps(x[:1], "minmax")[0], z["out_official_first_sample_3d"])
    close(normalize_maps(x.float(), "minmax"), z["out_official_float32"])
    close(normalize_maps(x, "max"), z["out_paper_maxonly"])
    for norm, expected in (("minmax", z["out_official"]), ("max", z["out_paper_maxonly"])):
        close(normalize_maps(x[..., None], norm)[..., 0], expected)  # 3D


def check_zscore(z: Vectors) -> None:
    x, expected = z["x"], z["out"]
    close(zscore_images(x, eps=z["eps"].item()), expected)
    close(zscore_images(x[..., None], eps=z["eps"].item())[..., 0], expected)
    constant = x.flatten(2).amax(2) == x.flatten(2).amin(2)
    assert bool((zscore_images(x)[constant] == 0).all())


def check_fuse(z: Vectors) -> None:
    maps = z["maps"].transpose(0, 1)  # (K networks, B, 1, H, W) -> (B, G, 1, H, W)
    presence = z["predicted_class"].T[..., None]
    threshold = z["threshold"].item()
    for g in range(maps.shape[1]):
        single = {"presence": presence[:, g : g + 1]}
        close(fuse_groups(maps[:, g : g + 1], **single), z["gated"][g])
        close(fuse_groups(maps[:, g : g + 1], eight_bit=True, **single), z["uint8_roundtrip"][g])
    for eight_bit, fused, mask in ((False, "fused", "mask_gt_05"), (True, "fused_uint8", "mask_uint8_gt_05")):
        got = fuse_groups(maps, presence=presence, eight_bit=eight_bit)
        close(got, z[fused])
        assert torch.equal(to_mask(got, rule="fixed", threshold=threshold, gate="none").bool(), z[mask])


def check_gradcam(z: Vectors) -> None:
    activations, k = z["activations"].requires_grad_(), int(z["class_idx"].item())
    maps = head_activation_maps(activations, z["w/classifier.weight"])
    logits = pool_maps(maps, "average")
    close(logits.detach(), z["logits"].flatten(1))
    close(logits[:, k].detach(), z["score"])
    (gradients,) = torch.autograd.grad(logits[:, k].sum(), activations)
    close(gradients, z["gradients"])
    close(normalize_maps(maps[:, k : k + 1].detach(), "minmax"), z["cam_norm"])
    for variant, expected in (("gradcam", "gradcam_norm"), ("gradcam++", "gradcampp_norm")):
        arguments = (activations.detach(), z["gradients"], z["score"])
        got = gradient_activation_maps(*arguments, variant=variant, eps=1e-7)
        close(normalize_maps(got[:, None], "minmax"), z[expected])


def check_cam(z: Vectors) -> None:
    features, weight, label = z["features"], z["w/fc8.weight"], z["image_label"]
    maps = head_activation_maps(features, weight)
    close(maps, z["class_map"])
    close(head_activation_maps(features[..., None], weight[..., None])[..., 0], z["class_map"])  # 3D
    close(maps.relu(), z["cam_official"])
    close(resize_maps(maps.relu(), [8 * n for n in maps.shape[2:]]), z["cam_official_up8"])
    close(normalize_maps(maps, "max"), z["cam_eq4"])
    close(normalize_maps(maps, "max", label=label), z["cam_eq4_label_filtered"])
    close(pool_maps(maps, "average").sigmoid(), z["p_eq3"])


CHECKS: dict[str, Callable[[Vectors], None]] = {
    "cmer/fuse": check_fuse,
    "cmer/gradcam": check_gradcam,
    "cmer/maxnorm": check_maxnorm,
    "cmer/zscore": check_zscore,
    "gland/cam": check_cam,
}


def group_of(path: Path) -> str:
    return f"{path.parent.name}/{re.sub(r'_[0-9]+$', '', path.stem)}"


FILES = sorted(GOLDEN.rglob("*.npz"))


@pytest.mark.skipif(not FILES, reason=f"no golden vectors below {GOLDEN}; name their folder in WSSS_GOLDEN")
@pytest.mark.parametrize(
    "path", FILES or [None], ids=lambda path: f"{path.parent.name}/{path.stem}" if path else "none"
)
def test_golden(path: Path) -> None:
    group = group_of(path)
    if group in REASONS:
        pytest.skip(f"pending: {REASONS[group]}")
    assert group in CHECKS, f"The group {group} is neither checked nor named as pending in {__file__}."
    vectors = Vectors(path)
    CHECKS[group](vectors)
    unread = vectors.unread(NOT_READ.get(group, ""))
    assert not unread, f"Arrays of {path} that no check has read: {sorted(unread)}."


def test_no_group_is_both_checked_and_pending() -> None:
    assert not set(CHECKS) & set(REASONS)
    assert set(NOT_READ) <= set(CHECKS)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("cmer/total_K2_12", "cmer/total_K2"),
        ("gland/plf_degenerate", "gland/plf_degenerate"),
        ("coingan/csa_c2", "coingan/csa_c2"),
        ("coingan/cconv_k3_kp3_shared_0", "coingan/cconv_k3_kp3_shared"),
        ("gland/resnet38_statedict_index", "gland/resnet38_statedict_index"),
    ],
)
def test_group_is_the_name_without_the_case_number(name: str, group: str) -> None:
    assert group_of(Path(f"{name}.npz")) == group
