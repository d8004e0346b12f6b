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
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from monai_wsss.cams import (
    fuse_groups,
    gradient_activation_maps,
    head_activation_maps,
    normalize_maps,
    pool_maps,
    rescale_maps,
    resize_maps,
    zscore_images,
)
from monai_wsss.engines import Progress, WeightRamp, polynomial_after_warm_up
from monai_wsss.inferers import MinMax, MultiScaleSeeds
from monai_wsss.inferers.multi_scale import multi_scale_branches
from monai_wsss.losses import (
    CrossModalEquivarianceLoss,
    EquivarianceLoss,
    MutualDistillationLoss,
    cross_modal_equivariance_loss,
    equivariance_loss,
    mutual_distillation_loss,
    unit_norm_maps,
)
from monai_wsss.losses.affinity import affinity_loss
from monai_wsss.losses.balanced_cross_entropy import balanced_cross_entropy_loss
from monai_wsss.losses.confident_pseudo_label import class_to_segmentation_loss, segmentation_to_class_loss
from monai_wsss.losses.contrastive_separation import contrastive_separation_loss
from monai_wsss.losses.purified_label import PurifiedLabelLoss, purified_label_loss
from monai_wsss.losses.reliability_weighted import reliability_weighted_loss
from monai_wsss.losses.segmentation_to_cam import segmentation_to_cam_loss
from monai_wsss.methods import CMER
from monai_wsss.networks import (
    AtrousSpatialPyramid,
    AverageBuffer,
    CAMUNet,
    CommonalitySpecificityAttention,
    ModalityNetworks,
)
from monai_wsss.networks.commonality_specificity import SPECIFICITIES
from monai_wsss.networks.consistency_attention import ConsistencyCorrelationAttention
from monai_wsss.networks.contrastive_conv import ContrastiveConvolution
from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.pyramid_fusion import PyramidFusionPooling, SignPreservingFusion
from monai_wsss.networks.resnest import ResNeSt, SplitAttentionConv
from monai_wsss.networks.resnet38 import PreActivationBlock, PreActivationBottleneck, ResNet38
from monai_wsss.networks.two_branch import TwoBranchNetwork
from monai_wsss.networks.vit import VisionTransformer
from monai_wsss.refinement import LabeledImages, to_mask
from monai_wsss.refinement.affinity_walk import affinity_labels, propagate_by_affinity, softmax_with_background
from monai_wsss.refinement.assigned_labels import (
    class_assignment,
    perplexity,
    segmentation_assignment,
    two_threshold_label,
)
from monai_wsss.refinement.confident_labels import confident_label, confident_segmentation_label
from monai_wsss.refinement.dynamic_threshold import DynamicThreshold
from monai_wsss.refinement.gaussian_mixture import MixtureFit, assigned_thresholds, mixture_threshold
from monai_wsss.refinement.pixel_adaptive import (
    PixelAdaptiveRefinement,
    pixel_adaptive_refinement,
    pixel_adaptive_weights,
)
from monai_wsss.refinement.pseudo_label import (
    background_aware_scores,
    outside_boxes,
    refined_seed_label,
    seed_label,
)
from monai_wsss.transforms import SpatialRecord

GOLDEN = Path(os.environ.get("WSSS_GOLDEN") or Path(__file__).parents[2] / "shared" / "golden")

PENDING: dict[str, tuple[str, str]] = {}
REASONS = {f"{paper}/{name}": reason for paper, (reason, names) in PENDING.items() for name in names.split()}

# Arrays that a check leaves to others, by regular expression.
NOT_READ = {
    "bmp/afa_segloss": r"source|note|versions",
    "bmp/affinity": r"source|note|versions",
    "bmp/bsp": r"source|note|versions",
    "bmp/labels": r"source|note|versions",
    "bmp/losses": r"source|note|versions",
    "bmp/multiscale_fusion": r"source|note|versions",
    "bmp/network": r"source|note|versions",
    "bmp/par": r"source|note|versions",
    "bmp/polywarmup": r"source|note|versions",
    # `seg_weightloss`, which nothing in the authors' code calls.
    "cosa/c2s": r"source|note|versions|in_weights|out_weightloss",
    "cosa/cpl_hard": r"source|note|versions",
    "cosa/csc_paper": r"source|policy|versions",
    "cosa/multiscale_fusion": r"source|note|versions",
    # Eq. 5 as printed grows with the perplexity.
    "cosa/raw_c2s_paper": r"source|eps_policy|versions|.*_literal_eq5",
    # Variants with maps scaled by their maximum, which nothing in the authors' code calls.
    "cosa/s2c": r"source|note|versions|out_(loss|grad)_v[23]",
    "cosa/spl": r"source|note|versions",
    # What "converged" meant to the steps of a fit is not told.
    "cosa/gmm_threshold": r"source|versions|paper_policy|out_paper_converged_iters",
    "cosa/network": r"source|note|versions",
    # The network from the image to the target layer is the one of `unetcam`; here its activations are the input.
    "cmer/gradcam": r"x|filters_div|w/(?!classifier\.).*",
    "gland/plf": r"mode",  # the name of the case
}


class Vectors:
    """The arrays of a file as tensors, noting which were read."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def strings(self, key: str) -> list[str]:
        self.read.add(key)
        return np.atleast_1d(self.arrays[key]).tolist()

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


def check_er(z: Vectors) -> None:
    warped, of_warped = z["cam_warped"].requires_grad_(), z["cam_of_warped"].requires_grad_()
    maps = (warped[:, 1:], of_warped[:, 1:])  # channel 0 is the background
    label = z["y"][:, None].expand(maps[0].shape[:2])
    official = EquivarianceLoss()(*maps, label)
    close(official.detach(), z["official"])
    gradients = torch.autograd.grad(official, (warped, of_warped))
    close(gradients[0], z["official_grad_cam_warped"])
    close(gradients[1], z["official_grad_cam_of_warped"])
    for settings, expected in (
        ({"reduction": "sum", "mask": "none"}, "paper_sum"),
        ({"reduction": "sum"}, "paper_sum_masked"),
        ({"mask": "none"}, "paper_mean"),
    ):
        close(EquivarianceLoss(**settings)(*maps, label).detach(), z[expected])
    for n, expected in enumerate(z["per_image_sum"]):
        close(equivariance_loss(*(m[n : n + 1].detach() for m in maps), reduction="sum"), expected)


def check_cmer(z: Vectors) -> None:
    assert z["eps"].item() == 1e-12
    student, teacher, logits = z["student_cam"].requires_grad_(), z["teacher_cam"].requires_grad_(), z["teacher_logits"]
    maps = (student[:, None, 1:], teacher[:, None, 1:])
    classes, alone = maps[0].shape[2], torch.ones(1, 1)
    assert torch.equal(((logits.argmax(1) == 1) * z["y"]).double(), z["mask"])
    weight = z["mask"][:, None, None].expand(-1, 1, classes)
    official = cross_modal_equivariance_loss(*maps, alone, weight=weight, reduction="mean", skip_empty=False)
    close(official.detach(), z["official"])
    if classes == 1:  # the Module finds the mask itself, by the sign of the one logit
        module = CrossModalEquivarianceLoss(reduction="mean", skip_empty=False)
        presence = (logits[:, 1] - logits[:, 0])[:, None, None]
        close(module(*maps, z["y"][:, None], presence, alone).detach(), z["official"])
    gradient, of_teacher = torch.autograd.grad(official, (student, teacher), allow_unused=True)
    assert of_teacher is None
    close_but_for_empty(gradient, z["official_grad_student"], student)
    for factors, expected in ((None, "paper_sum"), (weight, "paper_sum_masked")):
        got = cross_modal_equivariance_loss(*maps, alone, weight=factors, skip_empty=False)
        close(got.detach(), z[expected])
    for n, expected in enumerate(z["paper_per_image_sum"]):
        of_image = (m[n : n + 1].detach() for m in maps)
        close(cross_modal_equivariance_loss(*of_image, alone, skip_empty=False), expected)
    units = (unit_norm_maps(m[:, 0].detach()) for m in maps)  # the same value by another way
    close(equivariance_loss(*units, reduction="sum"), z["paper_sum"])


def close_but_for_empty(got: torch.Tensor, official: torch.Tensor, maps: torch.Tensor) -> None:
    """Gradients, map by map.  Officially an empty one's is divided by an epsilon, up to 1e8; here it is finite."""
    filled = maps.detach().flatten(-2).any(-1)
    close(got[filled], official[filled])
    assert bool(got.isfinite().all())


def check_kd(z: Vectors) -> None:
    student, teacher = z["student_logits"].requires_grad_(), z["teacher_logits"].requires_grad_()
    settings = [("softmax", student, teacher)]
    if student.shape[1] == 2:  # the one logit of a single class is the difference of the two
        settings.append(("sigmoid", student[:, 1:] - student[:, :1], teacher[:, 1:] - teacher[:, :1]))
    for temperature in (1, 2, 10):
        for activation, s, t in settings:
            module = MutualDistillationLoss(temperature=temperature, activation=activation)
            loss = module(s[:, None], t[:, None], torch.ones(1, 1))
            close(loss.detach(), z[f"official_T{temperature}"])
            gradient, of_teacher = torch.autograd.grad(loss, (student, teacher), retain_graph=True, allow_unused=True)
            assert of_teacher is None
            close(gradient, z[f"official_grad_student_T{temperature}"])
    close(z["official_T1"], z["paper"])
    for n, expected in enumerate(z["paper_per_image"]):
        of_image = (logits[n : n + 1, None].detach() for logits in (student, teacher))
        close(mutual_distillation_loss(*of_image, torch.ones(1, 1), activation="softmax"), expected)


def check_lambda_e(z: Vectors) -> None:
    end, epochs = z["T"].item(), z["epoch"].tolist()
    progress = [Progress(epoch=int(t) + 1, iteration=1, fraction=t / len(epochs)) for t in epochs]
    exponential, gaussian = WeightRamp("exponential", end=end), WeightRamp("gaussian", end=end / len(epochs))
    weights = torch.tensor([exponential(now) for now in progress], dtype=torch.float64)
    assert weights.tolist() == pytest.approx(z["lam"].tolist(), rel=1e-9, abs=0)
    close(weights.float(), z["lam_float32"])
    assert torch.equal(weights.float() == 0, z["lam_float32"] == 0)
    alternative = torch.tensor([gaussian(now) for now in progress], dtype=torch.float64)
    close(alternative, z["lam_gaussian_rampup_alternative"])


def check_total(z: Vectors) -> None:
    parts = [z[name].requires_grad_() for name in ("logits1", "logits2", "cams1", "cams2")]
    label, groups = z["y"][:, None].double(), len(parts[0])
    networks = ModalityNetworks.tiny(2, groups)
    released = CMER.from_preset("released", network=networks).double()
    paper = CMER.from_preset("paper", network=networks).double()
    mean = CMER.from_preset(
        "paper",
        network=networks,
        equivariance=EquivarianceLoss(mask="none"),
        cross_modal=CrossModalEquivarianceLoss(reduction="mean", mask="none", skip_empty=False),
    )
    assert z["l2_eps"].item() == 1e-12
    assert released.distillation.loss.temperature == z["temperature"].item()
    assert released.distillation.weight == z["lambda_kd"].item()
    for k in range(groups):
        check_network(z, k, "official", "kl", released, parts)
        check_network(z, k, "paper_sum", "kd", paper, parts)
        check_network(z, k, "paper_mean", "kd", mean, parts)
    losses = as_composed(released, parts, label, epoch=1)
    for name, expected, weight in (("equivariance", "er", 1), ("cross_modal", "cmer", 1), ("distillation", "kl", 0.5)):
        close(losses[name].detach(), weight * z[f"official_{expected}"].sum())
    close(sum(losses.values()).detach(), z["official_total"].sum())
    # Teachers are detached, so the gradient of the sum is, for each network, that of its own loss.
    gradients = torch.autograd.grad(sum(losses.values()), parts)
    close(gradients[0], z["official_grad_logits1"])
    close(gradients[1], z["official_grad_logits2"])
    close_but_for_empty(gradients[2], z["official_grad_cams1"], parts[2])
    close_but_for_empty(gradients[3], z["official_grad_cams2"], parts[3])
    for t, weight, expected in zip(z["paper_epochs"], z["paper_lambda_e"], z["paper_sum_total_by_epoch"], strict=True):
        progress = Progress(epoch=int(t) + 1, iteration=1, fraction=0.0)
        assert paper.equivariance.ramp(progress) == pytest.approx(weight.item(), rel=1e-9, abs=0)
        close(sum(as_composed(paper, parts, label, progress.epoch).values()).detach(), expected.sum())


def outputs_of(parts: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give per view what the networks would: one logit per network, the difference of the two, and the tumor's maps."""
    logits = [(part[..., 1:] - part[..., :1]).transpose(0, 1) for part in parts[:2]]
    maps = [part[:, :, 1:].transpose(0, 1) for part in parts[2:]]
    return logits, maps


def check_network(z: Vectors, k: int, prefix: str, kd: str, method: CMER, parts: list[torch.Tensor]) -> None:
    """Check the terms of network k alone: a matrix of pairs with its row filled."""
    parts = [part.detach() for part in parts]
    label, groups = z["y"][:, None].double(), len(parts[0])
    logits, (first, second) = outputs_of(parts)
    pairs = torch.zeros(groups, groups, dtype=torch.float64)
    pairs[k] = (torch.arange(groups) != k).double() / (groups - 1)
    distillation, equivariance = method.distillation.loss, method.equivariance.loss
    cross_modal = method.cross_modal.loss
    kl = [groups * distillation(of_view, of_view, pairs) for of_view in logits]
    er = equivariance(first[:, k], second[:, k], label)
    if cross_modal.l2_before_warp:
        first, second = (unit_norm_maps(maps[:, :, 0])[:, :, None] for maps in (first, second))
    cmer = [
        groups * cross_modal(first, second, label, logits[1], pairs),
        groups * cross_modal(second, first, label, logits[0], pairs),
    ]
    # A view that is given twice has the classification loss of that view.
    ce = [
        as_composed(method, [parts[view], parts[view], *parts[2:]], label, epoch=1)[f"classification/{k}"]
        for view in (0, 1)
    ]
    ce_mean, kl_mean, cmer_mean = (sum(values) / 2 for values in (ce, kl, cmer))
    for got, name in ((ce_mean, "ce"), (kl_mean, kd), (er, "er"), (cmer_mean, "cmer")):
        close(got, z[f"{prefix}_{name}"][k])
    close(ce_mean + 0.5 * kl_mean + er + cmer_mean, z[f"{prefix}_total"][k])
    if prefix == "official":  # by view; sums over the peers
        for view in (0, 1):
            close(ce[view], z[f"official_ce_{view + 1}"][k])
            close((groups - 1) * kl[view], z[f"official_kl_{view + 1}"][k])
            close((groups - 1) * cmer[view], z[f"official_cmer_{view + 1}"][k])


def as_composed(method: CMER, parts: list[torch.Tensor], label: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
    """Give the losses as the method composes them, where its networks would have given the file's arrays."""
    logits, maps = map(iter, outputs_of(parts))
    method.network.forward = lambda image: next(maps).flatten(1, 2)
    method.network.pool = lambda raw: next(logits).flatten(1, 2)
    method.transform = SimpleNamespace(draw=lambda shape: SpatialRecord(()))
    batch = {"image": torch.zeros(len(label), len(parts[0]), *parts[2].shape[3:]), "label": label}
    # The file's maps are normalized already.
    with mock.patch("monai_wsss.methods.cmer.normalize_maps", lambda maps, norm: maps):
        return method(batch, Progress(epoch=epoch, iteration=1, fraction=0.0))


def load_in_order(network: torch.nn.Module, z: Vectors) -> None:
    """Fill a network with a file's `w/` by the order of its entries, but for the buffers that are ours alone."""
    own = [name for name in network.state_dict() if not name.startswith(("negative_", "filled", "reading_"))]
    official = [key for key in z.arrays if key.startswith("w/")]
    network.load_state_dict({name: z[key] for name, key in zip(own, official, strict=True)}, strict=False)


def check_unetcam(z: Vectors) -> None:
    network = CAMUNet(2, z["x"].shape[1], z["cam"].shape[1], width=64 // int(z["filters_div"].item())).double()
    load_in_order(network, z)
    maps = network.train(bool(z["training"].item()))(z["x"]).detach()
    close(maps, z["cam"])
    close(network.pool(maps), z["logits"].flatten(1))
    close(normalize_maps(maps, "minmax"), z["cam_maxnorm"])


def check_aspp(z: Vectors) -> None:
    pyramid = AtrousSpatialPyramid(2, z["x"].shape[1], z["out"].shape[1]).double().eval()
    load_in_order(pyramid, z)
    close(pyramid(z["x"]).detach(), z["out"])


def check_plf(z: Vectors) -> None:
    logits, label, index = z["logits"].requires_grad_(), z["label"], int(z["ignore_index"].item())
    loss_map = torch.nn.functional.cross_entropy(logits, label, ignore_index=index, reduction="none")
    close(loss_map.detach(), z["loss_map"])
    of_valid = label.numel() / (label != index).sum().item()
    for name, variant, mode in (
        ("official", "official", "all"),
        ("paper", "paper", "all"),
        ("paper_valid", "paper", "valid"),
        ("oeem", "oeem", "all"),
        ("oeem_conf", "oeem_conf", "all"),
    ):
        options = {"variant": variant, "ignore_mode": mode, "ignore_index": index}
        loss, weight = PurifiedLabelLoss(**options)(logits, label, return_weight=True)
        close(weight, z[f"{name}_weight"])
        volume = purified_label_loss(logits[..., None], label[..., None], **options)  # 3D
        close(volume.detach(), loss.detach())
        (gradient,) = torch.autograd.grad(loss, logits)
        if name == "official":
            check_official_plf(z, weight, loss_map, loss, gradient)
            continue
        # The mean is over the pixels that the mode counts; the other mean follows from it.
        mean_all, mean_valid = (loss, loss * of_valid) if mode == "all" else (loss / of_valid, loss)
        close(mean_all.detach(), z[f"{name}_loss_meanall"])
        close(mean_valid.detach(), z[f"{name}_loss_meanvalid"])
        if name == "paper":
            close(gradient, z["paper_grad_logits_meanall"])


def check_official_plf(
    z: Vectors, weight: torch.Tensor, loss_map: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor
) -> None:
    """The released code rounds the weights to float32: with that the numbers agree in float64, without in float32."""
    weighted = weight.float() * loss_map
    close(weighted.detach(), z["official_weighted_map"])
    close(weighted.mean().detach(), z["official_loss"])
    close(loss.detach().float(), z["official_loss"].float())
    close(gradient.float(), z["official_grad_logits"].float())


def check_plf_degenerate(z: Vectors) -> None:
    _, weight = purified_label_loss(z["logits"], z["label"], return_weight=True)
    close(weight, z["paper_weight"])
    for n, finite in enumerate(z["official_is_finite"]):
        image = (z["logits"][n : n + 1], z["label"][n : n + 1])
        close(purified_label_loss(*image, ignore_mode="all"), z["paper_loss_meanall_per_image"][n])
        official = purified_label_loss(*image, variant="official", ignore_mode="all")
        assert official.isfinite() == finite
        close(official.float(), z["official_loss_per_image"][n].float())  # weights of float32, as above


def weights_of(z: Vectors, prefix: str = "w/") -> dict[str, torch.Tensor]:
    """The state dict that a file holds below a prefix."""
    return {key.removeprefix(prefix): z[key] for key in z.arrays if key.startswith(prefix)}


def check_crisscross(z: Vectors) -> None:
    x, state = z["x"], weights_of(z)
    modules = [CrissCrossAttention(x.shape[1], official_quirk=quirk).double() for quirk in (False, True)]
    for module, expected in zip(modules, ("out_ccnet", "out_official"), strict=True):
        module.load_state_dict(state)
        close(module(x).detach(), z[expected])
    module = modules[0]
    close(module(x).detach(), z["out_paper_gamma"])
    tokens = [conv(x).movedim(1, -1) for conv in (module.query_conv, module.key_conv, module.value_conv)]
    energy = module.energy(*tokens[:2], own_once=False)
    close(energy.detach(), z["energy"])
    twice = module.gather(energy.softmax(-1), tokens[2]).movedim(-1, 1)
    close((module.gamma * twice + x).detach(), z["out_dim3_nomask"])
    module.load_state_dict(state | {"gamma": torch.ones(1)})
    close(module(x).detach(), z["out_paper_gamma1"])


def check_cca(z: Vectors) -> None:
    x, state = z["x"], weights_of(z)
    for quirk, after, out in ((False, "ccnetmask_after", "out_ccnetmask"), (True, "official_after", "out_official")):
        module = ConsistencyCorrelationAttention(x.shape[1], pam_reduction=8, official_quirk=quirk).double()
        module.load_state_dict(state)
        close(module.cc1(x).detach(), z[f"{after}_cc1"])
        close(module.pam(module.cc1(x)).detach(), z[f"{after}_pam"])
        close(module(x).detach(), z[out])
    gammas = {key: torch.ones(1) for key in state if key.endswith("gamma")}
    for variant, residual, normalizer in (
        ("keynorm_noresidual", False, "keys"),
        ("keynorm_residual", True, "keys"),
        ("querynorm_noresidual", False, "queries"),
    ):
        module = ConsistencyCorrelationAttention(x.shape[1], pam_residual=residual, pam_normalizer=normalizer).double()
        module.load_state_dict(state | weights_of(z, "w_quarter/") | gammas)
        close(module(x).detach(), z[f"out_paper_{variant}"])


def check_signconv(z: Vectors) -> None:
    a, b = z["a"], z["b"]
    fusion = SignPreservingFusion(a.shape[1]).double()
    fusion.load_state_dict(weights_of(z))
    positive, negative = fusion.weights(a, b)
    close(positive.detach(), z["pos"])
    close(negative.detach(), z["neg"])
    close(fusion(a, b).detach(), z["out_official"])


def check_mpfp(z: Vectors) -> None:
    class_map, state, classes = z["F"].requires_grad_(), weights_of(z), z["F"].shape[1]
    for prefix, seen in (("relu", class_map.detach().relu()), ("signed", class_map)):
        pooling = PyramidFusionPooling(classes, relu_class_map=prefix == "relu").double()
        pooling.load_state_dict(state)
        for size in pooling.levels:
            close(pooling.level(seen, size).detach(), z[f"{prefix}_gap_{size}"])
        for levels, name in (((2, 4), "fuse1"), ((2, 4, 8), "fuse2"), ((2, 4, 8, 16), "mpfp")):
            fewer = PyramidFusionPooling(classes, levels=levels, relu_class_map=prefix == "relu").double()
            fewer.load_state_dict({key: state[key] for key in fewer.state_dict()})
            close(fewer.maps(class_map.detach(), "pyramid").detach(), z[f"{prefix}_{name}"])
        logit = pooling(class_map)
        close(logit.detach(), z[f"{prefix}_logit"])
        close(logit.detach().sigmoid(), z[f"{prefix}_p"])
    loss = torch.nn.functional.multilabel_soft_margin_loss(logit, z["label"].double())  # of the signed map
    close(loss.detach(), z["msml_loss"])
    names, parameters = zip(*pooling.named_parameters(), strict=True)
    of_map, *of_weights = torch.autograd.grad(loss, (class_map, *parameters))
    close(of_map, z["grad_F"])
    for name, gradient in zip(names, of_weights, strict=True):
        close(gradient, z[f"grad/{name}"])
    average = PyramidFusionPooling(classes, fusion="average").double()
    close(average.maps(class_map.detach(), "pyramid"), z["average_fusion"])
    close(average(class_map).detach(), z["average_logit"])
    kernels = PyramidFusionPooling(classes, pool_mode="kernel").double()
    for size in kernels.levels:
        if size <= min(class_map.shape[2:]):
            close(kernels.level(class_map.detach(), size), z[f"kernelreading_pool_{size}"])


def check_resnet38_block(z: Vectors) -> None:
    (kind,) = z.strings("kind")
    values = zip(z.strings("config_keys"), z["config_values"].tolist(), strict=True)
    options = {key: value if key == "dropout" else int(value) for key, value in values}
    block = (PreActivationBlock if kind == "ResBlock" else PreActivationBottleneck)(**options).double().eval()
    block.load_state_dict(weights_of(z))
    close(block.activate(z["x"]).detach(), z["bn_relu_input"])
    close(block(z["x"]).detach(), z["out"])


def check_statedict_index(z: Vectors, make: Callable[[], torch.nn.Module]) -> None:
    """Names, shapes and count of the public checkpoint, but for the classifier, which our backbones do without."""
    shapes = {
        name: tuple(shape[:ndim])
        for name, shape, ndim in zip(z.strings("names"), z["shapes"].tolist(), z["ndim"].tolist(), strict=True)
    }
    classifier = sum(int(np.prod(shapes.pop(name))) for name in list(shapes) if name.startswith("fc."))
    with torch.device("meta"):
        network = make()
    assert {name: tuple(entry.shape) for name, entry in network.state_dict().items()} == shapes
    assert sum(p.numel() for p in network.parameters()) == z["num_parameters"].item() - classifier


def pattern_fill(network: torch.nn.Module, gain: float, others: tuple[str, ...] = ()) -> torch.nn.Module:
    """The deterministic fill of the folder's README; ``others`` are entries that the official network has besides."""
    own = network.state_dict()
    state = {}
    for n, name in enumerate(sorted([*own, *others])):
        if name in others or name.endswith("num_batches_tracked"):
            continue
        shape = own[name].shape
        v = torch.sin(0.7 * torch.arange(shape.numel(), dtype=torch.float64) + 0.3 * n).reshape(shape)
        if name.endswith("running_var"):
            v = 1 + 0.25 * v
        elif name.endswith("running_mean"):
            v = 0.05 * v
        elif len(shape) > 1:
            v = v * gain * (2 / shape[1:].numel()) ** 0.5
        else:
            v = 1 + 0.1 * v if name.endswith("weight") else 0.05 * v
        state[name] = v
    network.load_state_dict(state, strict=False, assign=True)
    return network.eval()


def check_features(z: Vectors, features: dict[str, torch.Tensor], steps: dict[str, tuple[str, int]]) -> None:
    for name, (key, step) in steps.items():
        assert list(features[name].shape) == z[f"{name}_shape"].tolist()
        close(features[name].abs().mean(), z[f"{name}_absmean"])
        close(features[name][:, ::step], z[key])


@torch.no_grad()
def check_resnet38_patternfill(z: Vectors) -> None:
    with torch.device("meta"):
        network = ResNet38()
    network = pattern_fill(network, z["gain"].item())
    taps = network.taps(z["x"])
    check_features(z, taps, {"conv4": ("conv4", 16), "conv5": ("conv5", 16), "conv6": ("conv6", 64)})
    close(network(z["x"]), taps["conv6"])


@torch.no_grad()
def check_resnest_patternfill(z: Vectors) -> None:
    with torch.device("meta"):
        network = ResNeSt(50, output_stride=8)
    network = pattern_fill(network, z["gain"].item(), ("fc.weight", "fc.bias"))
    features = {f"layer{n}": part for n, part in enumerate(network(z["x"]), start=1)}
    check_features(z, features, {name: (f"{name}_every64", 64) for name in features})


def check_splitattention(z: Vectors) -> None:
    conv = SplitAttentionConv(z["x"].shape[1], int(z["channels"].item()), radix=int(z["radix"].item())).double().eval()
    conv.load_state_dict(weights_of(z))
    close(conv(z["x"]).detach(), z["out"])


def check_two_branch(z: Vectors) -> None:
    weights = {key[2:]: z[key] for key in z.arrays if key.startswith("w/")}
    image, classes = z["in_x"], z["out_cls"].shape[1]
    pooling = {"gmp": "max", "gap": "average"}[z.strings("in_pooling")[0]]
    encoder = MixTransformer(2, image.shape[1], embed_dims=(8, 16, 20, 32))
    for ofd, upsample, names in (
        (True, True, ("cls", "camlogits_fullres", "seg_fullres", "affinity")),
        (False, False, ("afa_cls", "afa_cam_stride16", "afa_seg_stride4", "afa_affinity")),
    ):
        network = TwoBranchNetwork.build(encoder, classes, decoder_width=16, ofd=ofd, pooling=pooling).eval()
        network.load_state_dict(weights)
        with torch.no_grad():
            outputs = network.branches(image, affinity=True, upsample=upsample)
            for name, got in zip(names, outputs[:4], strict=True):
                torch.testing.assert_close(got, z[f"out_{name}"], rtol=1e-4, atol=1e-5)
            if not ofd:
                continue
            features, attention = encoder.forward_with_attention(image)
            parts = {f"out_attn_block3_{n}": logits for n, logits in enumerate(attention)}
            parts |= {f"out_feat{n}": part for n, part in enumerate(features, start=1)}
            aware = network.object_aware(features, outputs.seeds)
            parts |= {f"out_ofd_feat{n}": part for n, part in enumerate(aware, start=1)}
            for name, got in parts.items():
                torch.testing.assert_close(got, z[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network(image), z["out_seg_fullres"], rtol=1e-4, atol=1e-5)


def check_two_maps(z: Vectors) -> None:
    image, classes = z["in_x"], z["out_cls"].shape[1]
    encoder = VisionTransformer(
        hidden_size=24, num_layers=5, num_heads=3, patch_size=8, image_size=32, early_block=int(z["in_auxlayer"])
    )
    network = TwoBranchNetwork.with_auxiliary(encoder, classes, decoder_width=16).eval()
    names = {"aux_classifier.weight": "auxiliary.weight"}
    network.load_state_dict({names.get(key, key): value for key, value in weights_of(z).items()})
    with torch.no_grad():
        outputs = network.branches(image, upsample=False)
        parts = {
            "cls": outputs.logits,
            "clsaux": outputs.auxiliary_logits,
            "feat": encoder(image)[1],
            "seg": outputs.segmentation,
            "cam": outputs.seeds,
            "camaux": outputs.auxiliary_seeds,
        }
    for name, got in parts.items():
        torch.testing.assert_close(got, z[f"out_{name}"], rtol=1e-4, atol=1e-5)


def check_affinity(z: Vectors) -> None:
    radius, affinity = int(z["in_radius"].item()), z["in_affpred"].requires_grad_()
    label = z["in_label"][:, ::16, ::16]
    pairs = affinity_labels(label, radius)
    assert torch.equal(pairs.long(), z["out_afflabel"])
    assert torch.equal(affinity_labels(torch.zeros_like(label[:1]), radius)[0] == 1, z["out_mask"].bool())
    assert (pairs == 1).sum() + 1 == z["out_poscount"]
    assert (pairs == 0).sum() + 1 == z["out_negcount"]
    loss = affinity_loss(affinity, label, radius=radius)
    close(loss.detach(), z["out_loss"])
    close(torch.autograd.grad(loss, affinity)[0], z["out_grad"])


def check_par(z: Vectors) -> None:
    image, maps, dilations = z["in_image"], z["in_masks"], z["in_dilations"].tolist()
    options = {"dilations": dilations, "iterations": int(z["in_iters"].item())}
    close(pixel_adaptive_refinement(image, maps, **options), z["out_refined"])
    # 1e-7: its own weights, applied in float64, leave 1e-8.
    got = pixel_adaptive_refinement(image.double(), maps.double(), **options)
    torch.testing.assert_close(got, z["out_refined_float64"], rtol=1e-7, atol=1e-7)
    if "out_affinity_float64" in z.arrays:
        weights = pixel_adaptive_weights(image.double(), dilations=dilations)
        close(weights, z["out_affinity_float64"])
        close(weights.sum(2), z["out_affinity_rowsum"])


def check_bmp_labels(z: Vectors) -> None:
    cams, propagated = z["in_cam"], z["out_afa_propagated"]
    small = resize_maps(cams, propagated.shape[2:])
    maps = softmax_with_background(small, z["in_y"], z["in_aff_bkg"].item())
    close(propagate_by_affinity(z["in_aff"], maps, int(z["in_aff_radius"].item())), propagated)

    image, label, boxes = z["in_image"], z["in_y"], z["in_boxes"]
    seeds, outside = z["out_validcam"], outside_boxes(boxes, image.shape[2:])
    torch.testing.assert_close(cams * label[..., None, None], seeds)
    doubt = seed_label(seeds, low=0.35, high=0.55).masked_fill(outside, 255)
    assert torch.equal(doubt, z["out_label_ignoremid"])
    assert torch.equal(seed_label(seeds, low=0.45), z["out_label_single_bkg0p45"])
    refine = PixelAdaptiveRefinement()
    refined = refined_seed_label(image, cams, label, refine).masked_fill(outside, 255)
    same = refined == z["out_par_label_two_thresholds"]
    assert same.float().mean() > 0.999  # ties
    spread = resize_maps(propagated, image.shape[2:])
    spread = background_aware_scores(image, spread[:, 1:], spread[:, :1], label, refine, boxes=boxes)
    torch.testing.assert_close(spread, z["out_afa_propagated_par"], rtol=1e-4, atol=1e-5)


def check_bsp(z: Vectors) -> None:
    """As released: S^c is not normalized, the weights of the refinement sum to 1.01."""
    background = z["in_segs_minmax"][:, :1]
    scores = background_aware_scores(
        z["in_image"], z["in_cam"], background, z["in_y"], PixelAdaptiveRefinement(), boxes=z["in_boxes"]
    )
    torch.testing.assert_close(scores, z["out_Sc"], rtol=1e-4, atol=1e-5)
    label = confident_label(scores, z["in_sigma_c"].item())
    assert (label == z["out_Yc"]).float().mean() > 0.999


def check_branch_fusion(z: Vectors) -> None:
    stored = iter([(z[f"in_cam_s{n}"], z[f"in_seg_s{n}"]) for n in range(len(z["in_scales"]))])
    image = torch.zeros(len(z["in_cam_s0"]) // 2, 1, *z["in_hw"].tolist())
    joins = ("rectified", "average")
    (seeds, segmentation), _ = multi_scale_branches(
        lambda _: next(stored), image, joins, scales=z["in_scales"].tolist()
    )
    torch.testing.assert_close(rescale_maps(seeds), z["out_cam"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rescale_maps(segmentation), z["out_seg_minmax"], rtol=1e-4, atol=1e-5)


def check_assigned_by_thresholds(z: Vectors) -> None:
    """As released: two thresholds on maps of half the size, one threshold, and doubt in between."""
    maps, label = z["in_cam"], z["in_y"]
    high, low, downscale = z["in_thr_high_low_downscale"].tolist()
    valid, padding = maps * label[..., None, None], outside_boxes(z["in_boxes"], maps.shape[2:])
    assert torch.equal(valid, z["out_validcam"])
    words = {"low": low, "high": high, "downscale": max(downscale, 1), "padding": padding}
    assert torch.equal(two_threshold_label(maps, label, **words), z["out_cam2mask"].long())
    held = label.any(0).nonzero()[:, 0]
    assert torch.equal(two_threshold_label(maps, label, **words, classes=held), z["out_cam2mask"].long())
    assert torch.equal(class_assignment(valid, 0.5)[0], z["out_cam_to_label_bkg0p5"])
    doubt = seed_label(valid, low=low, high=high).masked_fill(padding, 255)
    assert torch.equal(doubt, z["out_cam_to_label_ignoremid"])


def check_assigned_with_perplexity(z: Vectors) -> None:
    threshold, scale, power = z["in_xi_lalpha_lbeta"].tolist()
    maps = z["in_cam"].double() * z["in_y"][..., None, None]
    torch.testing.assert_close(maps, z["out_validcam"].double())
    label, strength = class_assignment(maps, torch.tensor(threshold))
    assert torch.equal(label, z["out_cpl"])
    close(perplexity(strength, threshold, scale=scale, power=power), z["out_perplexity"].double())


def check_assigned_by_segmentation(z: Vectors) -> None:
    logits, label, temperature = z["in_seglogits"], z["in_y"], z["in_tau"].item()
    close(segmentation_assignment(logits, label, temperature), z["out_spl"])
    every = segmentation_assignment(logits, None, temperature)
    every[:, 1:] *= label[..., None, None]
    close(every, z["out_spl_after_softmax"])


def check_branches_over_scales(z: Vectors) -> None:
    """As released: logits summed, auxiliary seeds of the last scale alone."""
    scales = z["scales"].tolist()
    stored = iter(
        SimpleNamespace(seeds=z[f"in_cam_s{n}"], auxiliary_seeds=z[f"in_camaux_s{n}"], segmentation=z[f"in_seg_s{n}"])
        for n in range(len(scales))
    )
    count, classes = len(z["out_cam"]), z["out_cam"].shape[1]
    images = LabeledImages(torch.zeros(count, 1, *z["hw"].tolist()), torch.ones(count, classes))
    maps = MultiScaleSeeds(
        MinMax(), scales, seeds=("seeds", "auxiliary_seeds"), aux_scales="last", sum_logits=True
    )(SimpleNamespace(branches=lambda _: next(stored)), images)  # fmt: skip
    for got, name in zip(maps, ("cam", "camaux", "seg"), strict=True):
        torch.testing.assert_close(got, z[f"out_{name}"], rtol=1e-4, atol=1e-5)


def check_polynomial_after_warm_up(z: Vectors) -> None:
    """The rates, and where they take a parameter with AdamW."""
    rate, warm_up, iterations, start, power, floor = z["in_lr_warm_max_ratio_power_minmult"].tolist()
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.01)
    schedule = polynomial_after_warm_up(
        optimizer, 1, range(int(iterations)), warm_up=int(warm_up), start=start, power=power, floor=floor
    )
    for step, (expected, after) in enumerate(zip(z["out_lr_used_at_step"], z["out_param_after_step"], strict=True)):
        assert schedule.get_last_lr()[0] == pytest.approx(expected.item(), rel=1e-9)
        parameter.grad = torch.tensor([0.1, -0.2, 0.3]) * (1 + step % 3)
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(parameter.detach(), after)


def check_balanced_cross_entropy(z: Vectors) -> None:
    logits, label = z["in_seglogits"].requires_grad_(), z["in_label"]
    loss = balanced_cross_entropy_loss(logits, label)
    expected = z["out_loss"]
    if expected.isnan():  # officially, without background or without foreground; its gradient is that of the other
        assert not bool((label == 0).any() and ((label > 0) & (label < 255)).any())
        expected = 0.5 * torch.nn.functional.cross_entropy(logits.detach(), label, ignore_index=255)
    close(loss.detach(), expected.nan_to_num())
    close(torch.autograd.grad(loss, logits)[0], z["out_grad"].nan_to_num())


def check_confident_losses(z: Vectors) -> None:
    """Both ways, as released: labels by logits, without the filter.  Officially nan where there is no such pixel."""
    logits, maps = z["in_Ps_logits"].requires_grad_(), z["in_Pc_camlogits"].requires_grad_()
    for kind, name in (("softmargin", "BCE"), ("bce", "BCE"), ("ce", "CE")):
        loss = class_to_segmentation_loss(logits, z["in_Yc"], kind=kind)
        close(loss.detach(), z[f"out_official_c2s_{name}"].nan_to_num())
        close(torch.autograd.grad(loss, logits)[0], z[f"out_official_c2s_{name}_grad"].nan_to_num())
    threshold = z["in_sigma_c_s_official"][1].item()  # the first has made in_Yc
    inside = torch.zeros_like(z["in_Yc"], dtype=torch.bool)
    for image, (top, bottom, left, right) in zip(inside, z["in_boxes"].tolist(), strict=True):
        image[top:bottom, left:right] = True
    label = confident_segmentation_label(logits, threshold=threshold, score="logit", valid=inside)
    assert torch.equal(label.where(label != 0, 255), z["out_official_Ys"])
    assert z.strings("out_official_s2c_BCE_error")[0].startswith("IndexError")
    intended = segmentation_to_class_loss(maps.double(), label, kind="softmargin")
    close(intended.detach(), z["out_fixed_s2c_softmargin"])
    close(torch.autograd.grad(intended, maps)[0], z["out_fixed_s2c_softmargin_grad"].float())
    check_cross_entropy_of_maps(z, maps, label)
    check_confident_losses_of_the_paper(z)


def check_cross_entropy_of_maps(z: Vectors, maps: torch.Tensor, label: torch.Tensor) -> None:
    expected, gradient = z["out_official_s2c_CE"].nan_to_num(), z["out_official_s2c_CE_grad"].nan_to_num()
    if maps.shape[1] == 1:
        assert expected == 0
        assert not gradient.any()
        with pytest.raises(ValueError, match="'bce' for the activations of a single class"):
            segmentation_to_class_loss(maps, label, kind="ce")
        return
    loss = segmentation_to_class_loss(maps, label, kind="ce")
    close(loss.detach(), expected)
    close(torch.autograd.grad(loss, maps)[0], gradient)


def check_confident_losses_of_the_paper(z: Vectors) -> None:
    logits, scores, classes = z["in_Ps_logits"].detach().double(), z["in_paper_Sc"], z["in_paper_y"]
    of_class, of_segmentation = z["paper_sigma_c_s"].tolist()
    y_c, y_s = (
        confident_label(scores, of_class),
        confident_segmentation_label(logits, classes, threshold=of_segmentation),
    )
    assert torch.equal(y_c != 255, z["out_paper_Mc"])
    assert torch.equal(confident_label(scores, -1.0), z["out_paper_Yc"])
    assert torch.equal((y_s != 255) & (y_s != 0), z["out_paper_Ms"])
    assert torch.equal(confident_segmentation_label(logits, classes, threshold=0.0), z["out_paper_Ys"])
    filtered = softmax_with_background(logits[:, 1:] - logits[:, :1], classes, 0.0)
    close(filtered, z["out_paper_Ss"])
    for kind in ("ce", "softmargin"):
        close(class_to_segmentation_loss(logits, y_c, kind=kind), z[f"out_paper_c2s_{kind}"].nan_to_num())
    with_background = class_to_segmentation_loss(scores, y_s.where(y_s != 0, 255), kind="ce")  # Eq. 8 as printed
    close(with_background, z["out_paper_s2c_ce_rawSc_as_logits"].nan_to_num())


def check_released_cross_entropy(z: Vectors) -> None:
    """CoSA's, balanced and not; its counts are 1e-6 larger than they are."""
    logits, label = z["in_seglogits"].requires_grad_(), z["in_label"]
    loss = balanced_cross_entropy_loss(logits, label, background_weight=1 - z["in_fgalpha"].item())
    close(loss.detach(), z["out_loss"])
    close(torch.autograd.grad(loss, logits)[0], z["out_grad"])
    close(reliability_weighted_loss(logits, label).detach(), z["out_lossv2"])


def check_reliability_weights(z: Vectors) -> None:
    logits, label, perplexity = z["in_seglogits"].requires_grad_(), z["out_cpl"], z["out_perplexity"]
    loss = reliability_weighted_loss(logits, label, perplexity)
    close(loss.detach(), z["out_loss"])
    of_pixels = z["out_perpixel_loss"]
    close(of_pixels.mean(), z["out_loss"])
    for_each = torch.nn.functional.cross_entropy(logits.detach(), label, reduction="none")
    close(z["out_rawweight"] * for_each, of_pixels)
    close(torch.autograd.grad(loss, logits)[0], z["out_grad_seglogits"])
    close(reliability_weighted_loss(logits, label).detach(), z["out_unweighted_ce"])


def check_segmentation_to_cam(z: Vectors) -> None:
    maps, probabilities = z["in_camlogits"].requires_grad_(), z["in_spl"]
    for relu, name in ((True, "v1"), (False, "norelu")):
        loss = segmentation_to_cam_loss(maps, probabilities, relu=relu)
        close(loss.detach(), z[f"out_loss_{name}"])
        close(torch.autograd.grad(loss, maps)[0], z[f"out_grad_{name}"])


def check_contrastive_separation(z: Vectors) -> None:
    maps, label, anchors = z["in_M"].requires_grad_(), z["out_cpl_dagger"], z["out_omega"]
    _, smallest, temperature, *_ = z["in_xi_eps_tau_lalpha_lbeta"].tolist()
    assert torch.equal(z["out_perplexity_dagger"] <= smallest, anchors)
    loss_of = partial(contrastive_separation_loss, maps, label, anchors, temperature=temperature)
    loss = loss_of()
    close(loss.detach(), z["out_loss_perimage"])
    close(torch.autograd.grad(loss, maps)[0], z["out_grad_M_perimage"])
    for vectors in ("sigmoid", "bgcat"):
        close(loss_of(kind=vectors).detach(), z[f"out_loss_{vectors}_perimage"])
    close(loss_of(pairs="batch").detach(), z["out_loss_batch"])
    of_classes = torch.nn.functional.one_hot(label.flatten(1)) * anchors.flatten(1)[..., None]
    assert torch.equal((of_classes.sum(1) * (of_classes.sum(1) > 1)).sum(1), z["out_nanchors_perimage"])
    of_batch = of_classes.sum((0, 1))
    assert torch.equal((of_batch * (of_batch > 1)).sum()[None], z["out_nanchors_batch"])
    single = loss_of()
    torch.testing.assert_close(
        contrastive_separation_loss(maps.float(), label, anchors, temperature=temperature),
        single.float(),
        rtol=1e-4,
        atol=1e-6,
    )
    valid = z["in_Mdagger_valid"]
    assert not valid[z["in_y"] == 0].any()


def check_labels_and_their_weights(vectors: Vectors) -> None:
    check_assigned_with_perplexity(vectors)
    check_reliability_weights(vectors)


def check_mixture_threshold(z: Vectors) -> None:
    values, ignored = z["in_queue"].flatten(), z["in_filter"].item()
    for bins in (None, 512):  # every value by itself, and counted in bins
        exact = bins is None
        words = {"ignore_up_to": ignored, "bins": bins}
        low, high, found = assigned_thresholds(values, **words)
        assert found
        near = {"rtol": 0, "atol": 1e-12 if exact else 2e-3}
        torch.testing.assert_close(torch.stack((low, high)), z["out_official_modal3_low_high"], **near)
        low = assigned_thresholds(values, components=2, **words).low
        torch.testing.assert_close(low, z["out_official_modal2"], **near)
        fit = mixture_threshold(values, start="wide", tolerance=1e-3, **words)
        torch.testing.assert_close(torch.stack(fit[2:5]), z["out_paper_tol1e-3_w_mu_var"], rtol=0, atol=near["atol"])
        assert fit.steps == z["out_paper_tol1e-3_iters"]
        check_cut(values, fit, z["out_paper_crossing_tol1e-3"], z["out_paper_cut_tol1e-3"], near["atol"])
    for start, bins, near in (("split", 512, 1e-4), ("split", None, 1e-4), ("wide", None, 1e-5)):
        fit = mixture_threshold(values, start=start, bins=bins, ignore_up_to=ignored, iterations=300)
        assert fit.found
        torch.testing.assert_close(torch.stack(fit[2:5]), z["out_paper_converged_w_mu_var"], rtol=0, atol=near)
        total = check_cut(values, fit, z["out_paper_crossing_converged"], z["out_paper_cut_converged"], near)
        torch.testing.assert_close(total, z["out_paper_loglik_converged"], rtol=1e-4, atol=1e-2)
    check_queue(z)


def check_cut(
    values: torch.Tensor, fit: MixtureFit, crossing: torch.Tensor, cut: torch.Tensor, near: float
) -> torch.Tensor:
    """Compare the threshold with the crossing, and the cut with a scan over all of them; give the scan's maximum."""
    if not crossing.isnan():
        torch.testing.assert_close(fit.threshold, crossing, rtol=0, atol=max(near, 1e-9))
    else:
        assert not fit.found
    ordered = values[values > 0.05].unique()
    low, high = (
        torch.distributions.Normal(fit.means[k], fit.variances[k].sqrt()).log_prob(ordered) + fit.weights[k].log()
        for k in (0, 1)
    )
    totals = low.cumsum(0)[:-1] + high.flip(0).cumsum(0).flip(0)[1:]
    best = totals.argmax()
    scanned = (ordered[best] + ordered[best + 1]) / 2
    torch.testing.assert_close(scanned, cut, rtol=0, atol=max(near, 1e-9) + (ordered[best + 1] - ordered[best]).item())
    if fit.found:
        assert abs(fit.threshold - cut) < 0.004
    return totals[best]


def check_queue(z: Vectors) -> None:
    """The oldest leaves first, wherever in its ring the authors' queue holds it; thresholds move by a share."""
    states, incoming = z["queue_states"], z["queue_in"]
    size, points = z["queue_init"].shape
    dynamic = DynamicThreshold(queue=size, points=points).double()
    dynamic.scores.copy_(z["queue_init"])
    for step, (rows, expected) in enumerate(zip(incoming, states, strict=True), 1):
        dynamic.update(rows, torch.ones(len(rows)))
        assert torch.equal(dynamic.scores, expected.roll(-step * len(rows) % size, 0))
    initial, decay = z["ematracker_init_decay"].tolist()
    dynamic = DynamicThreshold(initial, momentum=decay).double()
    for new, expected in zip(z["ematracker_in"], z["ematracker_out"], strict=True):
        dynamic._follow(new, torch.tensor(True))
        torch.testing.assert_close(dynamic(), expected, rtol=1e-7, atol=0)


def check_contrastive_convolution(z: Vectors) -> None:
    """Zones, gates and outputs in float64, and the same gates in float32, also with the weights shared."""
    k, epz, shared = int(z["k"]), int(z["k_prime"]), bool(z["shared"])
    x, weights = z["x"], {"weight": z["w_ifz"], "epz_weight": z["w_epz"]}
    words = {"kernel_size": k, "epz_kernel_size": epz, "lam": z["lam"].item(), "match_kernel_sums": False}
    for padding in ("zeros", "reflect"):
        for gate in ("channel", "spatial"):
            for share in (False, True) if shared else (False,):
                layer = ContrastiveConvolution(
                    x.shape[1], len(z["w_ifz"]), share_weights=share, padding_mode=padding, gate=gate, **words
                ).double()
                layer.load_state_dict({name: weights[name] for name in dict(layer.named_parameters())}, strict=False)
                responses = layer.responses(x)
                torch.testing.assert_close(responses[0], z[f"f_ifz_{padding}"])
                torch.testing.assert_close(responses[1], z[f"f_epz_{padding}"])
                torch.testing.assert_close(responses[1] - responses[0], z[f"f_c_{padding}"])
                expected = z[f"C_{gate}_{padding}"]
                expected = expected if gate == "channel" else expected[:, None]
                torch.testing.assert_close(layer.gate_of(*responses), expected, rtol=0, atol=0)
                torch.testing.assert_close(layer(x), z[f"out_{gate}_{padding}"])
                single = layer.float().gate_of(*layer.responses(x.float()))
                torch.testing.assert_close(single, expected.float(), rtol=0, atol=0)


def check_average_buffer(z: Vectors) -> None:
    buffer = AverageBuffer(6, inference="last_batch").double()
    for name in ("1", "2"):
        torch.testing.assert_close(buffer(z[f"batch{name}"]), z[f"mean{name}"])
        torch.testing.assert_close(buffer.stored([5, 4]), z[f"mean{name}"])
    buffer.calibrate([z["batch1"][:1], z["batch1"][1:]])
    torch.testing.assert_close(buffer.stored([5, 4]), z["mean1"])


def attention_of(channels: int, weights: list[torch.Tensor], **words: Any) -> CommonalitySpecificityAttention:
    """Build the attention with the weights of a file."""
    w1, b1, w2, b2 = weights
    attention = CommonalitySpecificityAttention(channels, se_reduction=channels // len(b1), **words).double()
    state = {"fc.0.weight": w1, "fc.0.bias": b1, "fc.2.weight": w2, "fc.2.bias": b2}
    attention.excitation.load_state_dict(state)
    return attention


def check_excitation(z: Vectors) -> None:
    mean = z["A_bar"]
    attention = attention_of(len(mean), [z[name] for name in ("w1", "b1", "w2", "b2")])
    assert len(z["b1"]) == len(mean) // z["reduction"].item()
    torch.testing.assert_close(mean.mean((1, 2)), z["z"])
    torch.testing.assert_close(attention.excitation.fc(z["z"]), z["z_hat"])
    torch.testing.assert_close(attention.excite(mean), z["B"])


# Names of the readings of Eq. 6 in the files.
READINGS: dict[str, dict[str, Any]] = {
    "refchan": {"incidence": "reference_channel"},
    "refpos": {"incidence": "reference_position"},
    "affref": {"incidence": "affinity", "affinity_scale": False},
    "affrefscaled": {"incidence": "affinity"},
    "affpath": {"incidence": "affinity_path", "affinity_scale": False},
}


def check_attention(z: Vectors) -> None:
    """Every reading of Eq. 6 with every reading of Eq. 8, both scales, and its parts alone."""
    own, mean = z["P"], AverageBuffer(z["P"].shape[1]).double()(z["H"])
    weights = [z[f"se_{name}"] for name in ("w1", "b1", "w2", "b2")]
    torch.testing.assert_close(mean, z["A_bar"])
    torch.testing.assert_close(mean.mean((1, 2)), z["z"])
    make = partial(attention_of, own.shape[1], weights)
    excited = make().excite(mean)
    torch.testing.assert_close(make().excitation.fc(z["z"]), z["z_hat"])
    torch.testing.assert_close(excited, z["B"])
    torch.testing.assert_close(excited.flatten(1).T @ own.flatten(2), z["affinity_logits"])
    for name, words in READINGS.items():
        attention = make(**words)
        common = attention.commonality(own, mean)
        torch.testing.assert_close(attention.incidence_matrix(own, mean), z[f"R_{name}"])
        torch.testing.assert_close(common, z[f"Mc_{name}"])
        only_common = make(**words, use_sa=False)(own, mean)
        torch.testing.assert_close(only_common, own + z[f"Mcrms_{name}"], rtol=1e-6, atol=1e-9)
        for reading in SPECIFICITIES:
            attention = make(**words, specificity=reading)
            case = f"{name}_{reading}"
            probability = attention.probability(common, own)
            torch.testing.assert_close(probability, z[f"q_{case}"].expand_as(own), rtol=1e-6, atol=1e-9)
            assert torch.equal((probability < 0.5).double(), z[f"mask_{case}"].expand_as(own))
            specific = make(**words, specificity=reading, use_ca=False)(own, mean)
            torch.testing.assert_close(specific, own - z[f"Ms_{case}"])
            near = {"rtol": 1e-6, "atol": 1e-9}
            torch.testing.assert_close(attention(own, mean), z[f"Fcsarms_{case}"], **near)
            literal = make(**words, specificity=reading, commonality_scale="none")(own, mean)
            if reading == "twoway":  # there the file keeps the scaled map
                assert torch.equal(z[f"Fcsa_{case}"], z[f"Fcsarms_{case}"])
            else:
                torch.testing.assert_close(literal, z[f"Fcsa_{case}"], **near)
            single = attention.float()(own.float(), mean.float())
            torch.testing.assert_close(single, z[f"Fcsarms_{case}"].float(), rtol=1e-4, atol=1e-5)


CHECKS: dict[str, Callable[[Vectors], None]] = {
    "bmp/afa_segloss": check_balanced_cross_entropy,
    "bmp/affinity": check_affinity,
    "bmp/bsp": check_bsp,
    "bmp/labels": check_bmp_labels,
    "bmp/losses": check_confident_losses,
    "bmp/multiscale_fusion": check_branch_fusion,
    "bmp/network": check_two_branch,
    "bmp/par": check_par,
    "bmp/polywarmup": check_polynomial_after_warm_up,
    "cosa/network": check_two_maps,
    "cmer/aspp": check_aspp,
    "cmer/cmer": check_cmer,
    "cmer/er": check_er,
    "cmer/fuse": check_fuse,
    "cmer/gradcam": check_gradcam,
    "cmer/kd": check_kd,
    "cmer/lambda_e": check_lambda_e,
    "cmer/maxnorm": check_maxnorm,
    "cmer/total_K2": check_total,
    "cmer/total_K4": check_total,
    "cmer/unetcam": check_unetcam,
    "cmer/zscore": check_zscore,
    "coingan/buffer": check_average_buffer,
    "coingan/cconv_constant_shared": check_contrastive_convolution,
    "coingan/cconv_k3_kp3": check_contrastive_convolution,
    "coingan/cconv_k3_kp3_shared": check_contrastive_convolution,
    "coingan/cconv_k3_kp5": check_contrastive_convolution,
    "coingan/cconv_k5_kp4": check_contrastive_convolution,
    "coingan/cconv_zeropatch_shared": check_contrastive_convolution,
    "coingan/csa": check_attention,
    "coingan/csa_c2": check_attention,
    "coingan/selayer": check_excitation,
    "cosa/c2s": check_released_cross_entropy,
    "cosa/cpl_hard": check_assigned_by_thresholds,
    "cosa/csc_paper": check_contrastive_separation,
    "cosa/multiscale_fusion": check_branches_over_scales,
    "cosa/raw_c2s_paper": check_labels_and_their_weights,
    "cosa/s2c": check_segmentation_to_cam,
    "cosa/spl": check_assigned_by_segmentation,
    "cosa/gmm_threshold": check_mixture_threshold,
    "gland/cam": check_cam,
    "gland/resnest101_statedict_index": partial(check_statedict_index, make=partial(ResNeSt, 101)),
    "gland/resnest200_statedict_index": partial(check_statedict_index, make=partial(ResNeSt, 200)),
    "gland/resnest50_dilated_patternfill": check_resnest_patternfill,
    "gland/resnest50_statedict_index": partial(check_statedict_index, make=partial(ResNeSt, 50)),
    "gland/resnet38_block": check_resnet38_block,
    "gland/resnet38_patternfill": check_resnet38_patternfill,
    "gland/resnet38_statedict_index": partial(check_statedict_index, make=ResNet38),
    "gland/splitattention": check_splitattention,
    "gland/cca": check_cca,
    "gland/crisscross": check_crisscross,
    "gland/mpfp": check_mpfp,
    "gland/plf": check_plf,
    "gland/plf_degenerate": check_plf_degenerate,
    "gland/signconv": check_signconv,
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
