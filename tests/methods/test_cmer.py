# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CMER against its algorithm box written out network by network; ablations, presets, weak peers, degenerate input."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_wsss.engines import Progress, Term, WeightRamp
from monai_wsss.inferers import GradientCAMInferer
from monai_wsss.losses import CrossModalEquivarianceLoss, EquivarianceLoss, MutualDistillationLoss
from monai_wsss.methods import CMER
from monai_wsss.networks import CAMEncoder, ModalityNetworks, networks_by_modality
from monai_wsss.refinement import MaskRule
from monai_wsss.transforms import PairedSpatialTransform, SpatialRecord
from monai_wsss.transforms.paired_spatial import ShiftStep

START, END = Progress(epoch=1, iteration=1, fraction=0.0), Progress(epoch=40, iteration=999, fraction=0.9)
TERMS = {
    "equivariance": EquivarianceLoss(),
    "cross_modal": CrossModalEquivarianceLoss(),
    "distillation": MutualDistillationLoss(),
}


def make_network(groups: int = 3, spatial_dims: int = 2, classes: int = 1, **options) -> ModalityNetworks:
    torch.manual_seed(5)
    members = [CAMEncoder(spatial_dims, 1, classes, width=2, norm="instance") for _ in range(groups)]
    return ModalityNetworks(members, **options)


def method_of(network: ModalityNetworks, **words) -> CMER:
    """Build CMER of the terms that are named alone, all of which teach from the start."""
    plain = {"teachers": "all", "distillation_ramp": WeightRamp("none"), **dict.fromkeys(TERMS, False)}
    return CMER.from_preset(network=network, **plain | words)


def fixed_maps(method: CMER, *views: torch.Tensor) -> None:
    """Let the networks give these raw maps (B, G, K, *S) for the two views, whatever the images."""
    chosen = iter([maps.flatten(1, 2) for maps in views])
    method.network.forward = lambda image: next(chosen)


class Always:
    """A transform that draws the same record."""

    def __init__(self, record: SpatialRecord) -> None:
        self.draw = lambda shape: record


def make_batch(groups: int = 3, classes: int = 1, size: tuple[int, ...] = (16, 16)) -> dict:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(4, groups, *size, generator=generator)
    label = torch.zeros(4, classes)
    label[0] = label[3] = 1.0
    if classes > 1:
        label[1, 0] = 1.0
    return {"image": image, "label": label}


def sum_of(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def gradients_of(method: CMER, total: torch.Tensor) -> list[torch.Tensor]:
    """Of each member network all gradients in one vector."""
    method.zero_grad()
    total.backward()
    return [
        torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in member.parameters()])
        for member in method.network.members
    ]


def minmax(raw: torch.Tensor) -> torch.Tensor:
    """N of the released code, for one map."""
    p = raw.relu()
    return (p - p.min() - 1e-8).relu() / (p.max() - p.min() + 1e-8)


def unit(u: torch.Tensor) -> torch.Tensor:
    return u / u.norm() if bool(u.any()) else u


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    q, p = teacher.sigmoid(), student.sigmoid()
    return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()


def loss_of_network(
    k: int, images: tuple[torch.Tensor, torch.Tensor], record: SpatialRecord, network: ModalityNetworks, label
) -> dict[str, torch.Tensor]:
    """Give L(k) image by image and pair by pair, teachers without gradient; K = 1.

    Default options: ER the mean over all pixels, of labeled images; CMER a sum over pixels, of images that are labeled
    and that the teacher predicts on its branch.
    """
    groups, batch = len(network.members), len(label)
    raw = [[member(view[:, g : g + 1])[:, 0] for g, member in enumerate(network.members)] for view in images]
    logit = [[maps.flatten(1).amax(1) for maps in view] for view in raw]
    maps = [[torch.stack([minmax(image) for image in of_group]) for of_group in view] for view in raw]
    maps[0] = [record(of_group[:, None])[:, 0] for of_group in maps[0]]  # pi(M)
    terms = {"classification": 0.0, "equivariance": 0.0, "distillation": 0.0, "cross_modal": 0.0}
    for n in range(batch):
        y = label[n, 0]
        for view in (0, 1):
            s = logit[view][k][n]
            terms["classification"] += -(y * F.logsigmoid(s) + (1 - y) * F.logsigmoid(-s)) / 2 / batch
        terms["equivariance"] += y * (maps[0][k][n] - maps[1][k][n]).square().mean() / batch
        for l in range(groups):  # noqa: E741 (the paper's letter)
            if l == k:
                continue
            share = 1 / (groups - 1) / 2 / batch
            for view in (0, 1):
                terms["distillation"] += share * divergence(logit[view][l][n].detach(), logit[view][k][n])
                teacher = maps[view][l][n].detach()
                if y == 1 and logit[view][l][n] > 0 and bool(teacher.any()):
                    terms["cross_modal"] += share * (unit(teacher) - unit(maps[1 - view][k][n])).square().sum()
    return terms


def draw_again(transform: PairedSpatialTransform, shape: tuple[int, ...], seed: int) -> SpatialRecord:
    torch.manual_seed(seed)
    return transform.draw(shape)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("groups", [2, 3])
def test_the_losses_are_the_sum_of_each_networks_own(seed, groups):
    """Values, and the gradients that as many separate optimizers would see."""
    method = method_of(make_network(groups), **TERMS, ramp=WeightRamp("none")).double()
    for member in method.network.members:
        torch.nn.init.constant_(member.head.bias, 0.3)  # so that some teachers predict the class
    batch = make_batch(groups, size=(20, 20))
    batch["image"] = batch["image"].double()
    label = batch["label"].double()
    record = draw_again(method.transform, batch["image"].shape, seed)
    images = (batch["image"], record(batch["image"], padding="minimum"))
    torch.manual_seed(seed)
    losses = method(batch, END)
    expected = [loss_of_network(k, images, record, method.network, label) for k in range(groups)]
    for k in range(groups):
        torch.testing.assert_close(losses[f"classification/{k}"], expected[k]["classification"])
    for name, weight in (("equivariance", 1.0), ("cross_modal", 1.0), ("distillation", 0.5)):
        torch.testing.assert_close(losses[name], weight * sum(terms[name] for terms in expected))
        assert losses[name].item() > 0
    together = gradients_of(method, sum_of(losses))
    for k, terms in enumerate(expected):
        own = terms["classification"] + terms["equivariance"] + terms["cross_modal"] + 0.5 * terms["distillation"]
        alone = gradients_of(method, own)
        torch.testing.assert_close(together[k], alone[k])
        assert alone[k].any()
        assert not any(gradient.any() for g, gradient in enumerate(alone) if g != k)


@pytest.mark.parametrize("present", [[], ["equivariance"], ["cross_modal"], ["distillation"], list(TERMS)])
@pytest.mark.parametrize(("dims", "groups", "classes"), [(2, 1, 1), (2, 3, 2), (3, 2, 1)])
def test_every_term_can_be_switched_off(present, dims, groups, classes):
    size = (16,) * dims
    method = method_of(make_network(groups, dims, classes), **{name: TERMS[name] for name in present})
    losses = method(make_batch(groups, classes, size), END)
    assert set(losses) == {f"classification/{g}" for g in range(groups)} | set(present)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    if groups == 1:
        assert all(losses[name].item() == 0 for name in present if name != "equivariance")
    assert all(gradient.any() for gradient in gradients_of(method, sum_of(losses)))


@pytest.mark.parametrize("second_view", [True, False])
def test_plain_maps_see_each_image_once(second_view):
    network = make_network()
    seen = []
    network.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    losses = method_of(network, second_view=second_view, distillation=MutualDistillationLoss())(make_batch(), END)
    assert len(seen) == (2 if second_view else 1)
    if not second_view:
        logits = network(make_batch()["image"]).flatten(2).amax(2)
        target = make_batch()["label"][:, 0]
        for k in range(3):
            expected = F.binary_cross_entropy_with_logits(logits[:, k], target)
            torch.testing.assert_close(losses[f"classification/{k}"], expected)


def test_weights_and_ramps_multiply_their_term():
    batch = make_batch()

    def losses(progress: Progress, **arguments) -> dict[str, float]:
        method = method_of(make_network(), **TERMS, **arguments)
        torch.manual_seed(0)
        return {name: loss.item() for name, loss in method(batch, progress).items()}

    plain = losses(END, ramp=WeightRamp("none"))
    weights = {"equivariance_weight": 3.0, "cross_modal_weight": 5.0, "distillation_weight": 1.0}
    weighted = losses(END, ramp=WeightRamp("none"), **weights)
    for name, ratio in (("equivariance", 3), ("cross_modal", 5), ("distillation", 2), ("classification/0", 1)):
        assert weighted[name] == pytest.approx(ratio * plain[name], rel=1e-5)
    before = losses(START)  # the default: a step at half
    assert before["equivariance"] == before["cross_modal"] == 0
    assert before["distillation"] == plain["distillation"] > 0
    ramped = losses(Progress(epoch=14, iteration=1, fraction=0.3), ramp=WeightRamp("exponential", end=15))
    for name in ("equivariance", "cross_modal"):
        assert ramped[name] == pytest.approx(np.exp(-4) * plain[name], rel=1e-5)
    assert losses(START, distillation_ramp=WeightRamp())["distillation"] == 0


@pytest.mark.parametrize("normalization", ["minmax", "max"])
def test_the_normalization_is_the_one_asked_for(normalization):
    method, caught = method_of(make_network(), **TERMS, norm=normalization, ramp=WeightRamp("none")), []
    method.equivariance.loss.register_forward_pre_hook(lambda _, given: caught.append(given[1]))
    method(make_batch(), END)
    highest = caught[0].flatten(2).amax(2)
    assert ((highest == 1) | (highest == 0)).all() if normalization == "max" else (highest < 1 + 1e-6).all()
    assert (highest > 0.9).any()


MOVE = SpatialRecord((ShiftStep(((0.25, 0.0), (0.0, -0.25))),))


def test_the_border_that_came_in_can_be_left_out():
    """Where only the padding differs, the equivariance of a network that is equivariant is zero without it."""
    maps = torch.rand(2, 1, 1, 8, 8)
    maps[..., 3, 3], maps[..., 4, 4] = 0.0, 1.0  # both views have these extremes, which scale them
    moved = MOVE(maps[:, 0])[:, None]
    filled = torch.where(MOVE(torch.ones(2, 1, 8, 8))[:, None] > 0.5, moved, 0.7)
    words = {"equivariance": EquivarianceLoss(mask="none"), "ramp": WeightRamp("none"), "transform": Always(MOVE)}
    batch = {"image": torch.rand(2, 1, 8, 8), "label": torch.ones(2, 1)}
    losses = []
    for ignore_border in (False, True):
        method = method_of(make_network(1), ignore_border=ignore_border, **words)
        fixed_maps(method, maps, filled)
        losses.append(method(batch, END)["equivariance"].item())
    assert losses[0] > 0.05
    assert losses[1] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("before", [False, True])
def test_unit_norm_before_or_after_the_transform(before):
    raw = torch.rand(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    module = CrossModalEquivarianceLoss(mask="none", l2_before_warp=before)
    method = method_of(make_network(2), cross_modal=module, ramp=WeightRamp("none"), transform=Always(MOVE))
    fixed_maps(method, raw, raw)
    got = method({"image": torch.rand(2, 2, 8, 8), "label": torch.ones(2, 1)}, END)["cross_modal"]
    expected = 0.0
    for n in range(2):
        maps = [minmax(raw[n, g, 0]) for g in range(2)]
        for student, teacher in ((0, 1), (1, 0)):
            moved, kept = [], []
            for g in (student, teacher):
                u = unit(maps[g]) if before else maps[g]
                image = SpatialRecord((ShiftStep(MOVE.steps[0].shifts[n : n + 1]),))(u[None, None])[0, 0]
                moved.append(image if before else unit(image))
                kept.append(u if before else unit(u))
            expected += ((moved[1] - kept[0]).square().sum() + (kept[1] - moved[0]).square().sum()) / 2 / 2
    torch.testing.assert_close(got, expected)


def test_a_teacher_counts_on_the_view_where_it_predicts_the_class():
    """One network says present on the first view alone, whose moved map then teaches the second view of the other."""
    torch.manual_seed(5)
    members = [CAMEncoder(2, 1, 1, width=2, pooling="average") for _ in range(2)]
    words = {"ramp": WeightRamp("none"), "transform": Always(SpatialRecord(()))}
    method = method_of(ModalityNetworks(members), cross_modal=CrossModalEquivarianceLoss(), **words)
    first, second = torch.rand(2, 1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.9
    first[:, 0] += 0.8  # its mean is above zero
    fixed_maps(method, first, second)
    got = method({"image": torch.rand(1, 2, 8, 8), "label": torch.ones(1, 1)}, END)["cross_modal"]
    expected = (unit(minmax(first[0, 0, 0])) - unit(minmax(second[0, 1, 0]))).square().sum() / 2
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_constant_sequence_stays_finite(value, standardize):
    batch = make_batch()
    batch["image"][:, 1] = value
    method = method_of(make_network(standardize=standardize), **TERMS, ramp=WeightRamp("none"))
    for seed in range(4):
        torch.manual_seed(seed)
        losses = method(batch, END)
        assert all(loss.isfinite() for loss in losses.values())
        assert all(gradient.isfinite().all() for gradient in gradients_of(method, sum_of(losses)))


@pytest.mark.parametrize("preset", ["default", "paper", "released"])
@pytest.mark.parametrize("which", [0, slice(None)])
def test_all_zero_maps_give_finite_gradients(preset, which):
    network = make_network()
    with torch.no_grad():
        for member in list(network.members)[which] if isinstance(which, slice) else [network.members[which]]:
            member.head.weight.zero_()
            member.head.bias.fill_(-2.0)
    method = CMER.from_preset(preset, network=network)
    losses = method(make_batch(), END)
    assert all(loss.isfinite() for loss in losses.values())
    gradients = gradients_of(method, sum_of(losses))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) < 1e4


def test_healthy_batches_are_classified_only():
    batch = make_batch() | {"label": torch.zeros(4, 1)}
    losses = method_of(make_network(), **TERMS, ramp=WeightRamp("none"))(batch, END)
    assert losses["equivariance"].item() == losses["cross_modal"].item() == 0
    assert losses["distillation"].item() > 0


@pytest.mark.parametrize("size", [(33, 47), (17, 4), (16, 24, 9), (16, 16, 4)])
@pytest.mark.parametrize("mode", ["one_of", "compose"])
def test_odd_and_thin_images(size, mode):
    method = method_of(
        make_network(2, len(size)), transform=PairedSpatialTransform(mode=mode), **TERMS, ramp=WeightRamp("none")
    )
    for seed in range(4):
        torch.manual_seed(seed)
        losses = method(make_batch(2, size=size), END)
        assert all(loss.isfinite() for loss in losses.values())
        assert all(gradient.isfinite().all() for gradient in gradients_of(method, sum_of(losses)))


def test_images_may_be_metatensors():
    batch = make_batch()
    method = method_of(make_network(), **TERMS)
    torch.manual_seed(0)
    expected = sum_of(method(batch, END))
    torch.manual_seed(0)
    got = sum_of(method(batch | {"image": MetaTensor(batch["image"])}, END))
    assert type(got) is torch.Tensor
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("preset", ["default", "paper", "released"])
def test_autocast_gives_finite_float32_losses_near_the_exact_ones(preset):
    method, batch = CMER.from_preset(preset, network=make_network(2)), make_batch(2, size=(32, 32))
    torch.manual_seed(3)
    exact = method(batch, END)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(batch, END)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.2, atol=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients_of(method, sum_of(losses)))


@pytest.mark.parametrize("preset", ["default", "released"])
def test_one_batch_is_learned(preset):
    torch.manual_seed(0)
    batch = make_batch(2, size=(16, 16))
    batch["image"][batch["label"][:, 0] == 1, :, 4:9, 5:10] += 2.0
    method = CMER.from_preset(preset, network=ModalityNetworks.tiny(2, 2), ramp=WeightRamp("none"))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    totals = []
    for _ in range(50):
        losses = method(batch, END)
        optimizer.zero_grad()
        sum_of(losses).backward()
        optimizer.step()
        totals.append(sum(loss.item() for name, loss in losses.items() if name.startswith("classification")))
    assert np.mean(totals[-5:]) < 0.3 * totals[0]


@pytest.mark.parametrize(
    ("teachers", "ratio", "expected"),
    [
        ("better", 1.5, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]]),  # 0.26 is not weak for 0.2, 0.6 for both
        ("better", 1.2, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]),
        ("all", 1.2, [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]),
    ],
)
def test_all_teach_or_those_that_are_better_by_more_than_the_ratio(teachers, ratio, expected):
    method, caught = method_of(make_network(), **TERMS, teachers=teachers, weak_peer_ratio=ratio), []
    method.peer_loss.value.copy_(torch.tensor([0.2, 0.26, 0.6]))
    method.peer_loss.filled.fill_(True)  # of which the next batch moves little
    method.distillation.loss.register_forward_pre_hook(lambda _, given: caught.append(given[2].tolist()))
    method(make_batch(), START)
    assert caught == [expected] * 2


def test_a_better_network_learns_as_if_the_worse_one_were_not_there():
    """What reaches the two better of three networks is what reaches them as a pair."""
    method = method_of(make_network(), **TERMS, teachers="better", ramp=WeightRamp("none"))
    members = list(method.network.members)[:2]
    pair = method_of(ModalityNetworks(members), **TERMS, teachers="better", ramp=WeightRamp("none"))
    batch = make_batch()
    gradients = []
    for one, image in ((method, batch["image"]), (pair, batch["image"][:, :2])):
        one.peer_loss.value.copy_(torch.tensor([0.2, 0.3, 5.0])[: one.network.groups])
        one.peer_loss.filled.fill_(True)
        torch.manual_seed(11)
        gradients.append(gradients_of(one, sum_of(one(batch | {"image": image}, END)))[:2])
    for with_third, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_third, without)


@pytest.mark.parametrize("teachers", ["all", "better"])
def test_weak_peers_are_reported(teachers):
    method = method_of(make_network(modalities=("T1", "T2", "FLAIR")), **TERMS, teachers=teachers, weak_peer_ratio=1.5)
    assert method.collapse_warnings() == []  # before the first batch
    method.peer_loss.value.copy_(torch.tensor([0.2, 0.6, 0.25]))
    (sentence,) = method.collapse_warnings()
    assert sentence.startswith("T2 is a weak peer of T1 (classification loss 0.600 against 0.200): ")
    assert ("it does not teach it" in sentence) == (teachers == "better")
    assert ("see `teachers`" in sentence) == (teachers == "all")
    method.weak_peer_ratio = 1.2
    assert [sentence.split()[0] for sentence in method.collapse_warnings()] == ["T2", "FLAIR"]


def test_the_running_losses_follow_the_classification():
    method = method_of(make_network(), second_view=False)
    assert not method.peer_loss.filled.any()
    losses = method(make_batch(), START)
    first = torch.stack(list(losses.values())).detach()
    torch.testing.assert_close(method.peer_loss.value, first)
    other = make_batch()
    other["label"] = 1 - other["label"]
    second = torch.stack(list(method(other, START).values())).detach()
    torch.testing.assert_close(method.peer_loss.value, 0.98 * first + 0.02 * second)
    assert not method.peer_loss.value.requires_grad


def test_finalize_marks_the_reliable_modalities_and_measures_every_group():
    method = method_of(make_network(), second_view=False, weak_peer_ratio=1.5)
    method.peer_loss.value.copy_(torch.tensor([0.6, 0.2, 0.25]))
    method.finalize([make_batch()])
    assert method.network.reliable.tolist() == [False, True, True]
    assert method.network.negative_reference.shape == (3,)
    assert method.network.negative_reference.isfinite().all()
    untrained = method_of(make_network(), second_view=False)
    untrained.finalize([make_batch()])
    assert untrained.network.reliable.all()


def test_the_state_holds_the_running_losses():
    method = method_of(make_network(), **TERMS)
    method(make_batch(), START)
    other = method_of(make_network(), **TERMS)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.peer_loss.value, method.peer_loss.value)
    assert other.peer_loss.filled.all()
    assert not any("peer_loss" in name for name in method.network.state_dict())


STEP, AT_ONCE = WeightRamp("step", end=0.5), WeightRamp("none")
DEFAULT = {
    "equivariance": ("mean", "label", 1.0, STEP),
    "cross_modal": ("sum", "label_and_teacher", False, True, 1.0, STEP),
    "distillation": (1.0, 0.5, STEP),
    "second_view": True, "norm": "minmax", "ignore_border": False, "weak_peer_ratio": 1.25, "teachers": "better",
    "kinds": ("flip", "rotate", "scale", "translate"), "mode": "one_of", "turns": (1, 2, 3),
}  # fmt: skip
PRESETS = {
    "default": {},
    "paper": {
        "equivariance": ("sum", "none", 1.0, WeightRamp("exponential", end=15)),
        "cross_modal": ("sum", "none", True, False, 1.0, WeightRamp("exponential", end=15)),
        "distillation": (1.0, 0.5, AT_ONCE),
        "norm": "max", "teachers": "all", "turns": (0, 1, 2, 3),
    },
    "released": {
        "equivariance": ("mean", "label", 1.0, AT_ONCE),
        "cross_modal": ("mean", "label_and_teacher", False, False, 1.0, AT_ONCE),
        "distillation": (10.0, 0.5, AT_ONCE),
        "teachers": "all",
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_builds_what_its_table_says(preset):
    method = CMER.from_preset(preset, network=make_network())
    er, cmer, kd = method.equivariance, method.cross_modal, method.distillation
    of_cmer = (cmer.loss.reduction, cmer.loss.mask, cmer.loss.l2_before_warp, cmer.loss.skip_empty)
    got = {
        "equivariance": (er.loss.reduction, er.loss.mask, er.weight, er.ramp),
        "cross_modal": (*of_cmer, cmer.weight, cmer.ramp),
        "distillation": (kd.loss.temperature, kd.weight, kd.ramp),
        **{name: getattr(method, name) for name in ("second_view", "norm", "ignore_border", "weak_peer_ratio")},
        "teachers": method.teachers,
        **{name: getattr(method.transform, name) for name in ("kinds", "mode", "turns")},
    }
    assert got == DEFAULT | PRESETS[preset]


def test_the_default_s_network_takes_the_maximum():
    network = CMER.from_preset(modalities=("T1", "T2", "FLAIR"), num_classes=2).network
    assert network.modalities == ("T1", "T2", "FLAIR")
    assert (network.pooling, network.standardize, network.num_classes) == ("max", False, 2)
    assert all(member.stride == 4 for member in network.members)


@pytest.mark.parametrize("off", [None, False, "false"])
def test_words_change_a_preset(off):
    transform = PairedSpatialTransform(turns=(2,))
    words = {"ramp": 0.25, "distillation_weight": 2.0, "second_view": "true", "transform": transform}
    changed = CMER.from_preset("released", network=make_network(), cross_modal=off, **words)
    assert changed.cross_modal is None
    assert (changed.distillation.weight, changed.distillation.loss.temperature) == (2.0, 10.0)
    assert (changed.equivariance.ramp, changed.distillation.ramp) == (WeightRamp("step", end=0.25), AT_ONCE)
    assert changed.second_view is True
    assert changed.transform is transform
    with pytest.raises(TypeError, match="unexpected keyword argument 'lamda'"):
        CMER.from_preset(network=make_network(), lamda=1.0)


def test_settings_tell_the_record_of_a_run_what_was_built():
    told = json.loads(json.dumps(CMER.from_preset("paper", network=make_network(), cross_modal=False).settings))
    assert (told["method"], told["preset"], told["norm"], told["cross_modal"]) == ("CMER", "paper", "max", None)
    assert told["equivariance"]["loss"]["reduction"] == "sum"
    assert told["equivariance"]["weight"] == 1.0
    assert told["transform"]["turns"] == [0, 1, 2, 3]


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_papers_network_averages_and_standardizes(preset):
    network = CMER.from_preset(preset, modalities=("T1",)).network
    assert (network.pooling, network.standardize, type(network.members[0]).__name__) == ("average", True, "CAMUNet")


@pytest.mark.parametrize(("given", "standardize"), [(None, True), ("false", False), (True, True)])
def test_the_network_of_a_preset_takes_other_words(given, standardize):
    network = CMER.network_from_preset("paper", modalities=("T1", "T2"), standardize=given, num_classes=2, width=4)
    assert (network.standardize, network.num_classes, network.modalities) == (standardize, 2, ("T1", "T2"))
    with pytest.raises(ValueError, match="`preset` to be one of default, paper, released, got 'best'"):
        CMER.network_from_preset("best", modalities=("T1",))


def test_the_tiny_one_has_all_terms():
    losses = CMER.tiny(in_channels=2)(make_batch(2), END)
    assert list(losses) == ["classification/0", "classification/1", "distillation", "equivariance", "cross_modal"]


@pytest.mark.parametrize("backbone", ["encoder", "unet", "aspp_resnet"])
def test_every_backbone_trains(backbone):
    network = networks_by_modality(("T1", "T2"), backbone=backbone, width=4, standardize=True)
    method = CMER.from_preset(network=network, ramp=WeightRamp("none"))
    losses = method(make_batch(2, size=(32, 32)), END)
    assert all(gradient.isfinite().all() for gradient in gradients_of(method, sum_of(losses)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`preset` to be one of default, paper, released, got 'best'"):
        CMER.from_preset("best", modalities=("T1",))
    for name in ("equivariance", "cross_modal"):
        with pytest.raises(ValueError, match="`second_view` for `equivariance` and `cross_modal`, which compare"):
            CMER(make_network(), second_view=False, **{name: Term(TERMS[name])})
    with pytest.raises(ValueError, match="all of its modalities present: `present` is for inference"):
        method_of(make_network(2, modalities=("T1", "T2"), present=("T1",)))
    with pytest.raises(ValueError, match="`norm` to be one of minmax, max, got 'mean'"):
        method_of(make_network(), norm="mean")
    with pytest.raises(ValueError, match="`teachers` to be one of all, better, got 'best'"):
        method_of(make_network(), teachers="best")
    method = method_of(make_network())
    with pytest.raises(ValueError, match="CMER learns from image-level labels alone, but its batch holds `mask`"):
        method(make_batch() | {"mask": torch.zeros(4, 1, 16, 16)}, START)
    with pytest.raises(ValueError, match="image of 3 channels, one per modality, got 2"):
        method(make_batch(2), START)
    with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(4, 1\), got \(4, 2\)"):
        method(make_batch(classes=2), START)


@pytest.mark.parametrize("given", [{}, {"network": make_network(), "modalities": ("T1", "T2", "FLAIR")}])
def test_a_preset_takes_either_networks_or_their_names(given):
    with pytest.raises(ValueError, match=r"Expected either `network` or `modalities`"):
        CMER.from_preset(**given)


@pytest.mark.parametrize("ratio", [0.5, float("nan")])
def test_no_network_is_a_weak_peer_of_itself(ratio):
    with pytest.raises(ValueError, match=r"Expected `weak_peer_ratio` >= 1, got"):
        method_of(make_network(), weak_peer_ratio=ratio)


def sum_with_a_process_that_saw_1_more():
    """Of the values first, then of how many there are."""
    of_other = itertools.cycle((lambda values: values + 1, lambda known: known))
    return lambda part: part.add_(next(of_other)(part))


def test_the_processes_of_a_run_agree_on_who_is_weak(monkeypatch):
    """The other process has seen losses that are 1 larger."""
    method, batch = method_of(make_network(), second_view=False), make_batch()
    method(batch, START)
    alone = method.peer_loss.value.clone()
    method.peer_loss.filled.fill_(False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", sum_with_a_process_that_saw_1_more())
    method(batch, START)
    torch.testing.assert_close(method.peer_loss.value, alone + 0.5)


def test_terms_whose_ramp_is_at_zero_are_logged_and_not_computed():
    method = method_of(make_network(), **TERMS, distillation_ramp=WeightRamp())
    for name in TERMS:
        getattr(method, name).loss.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    losses = method(make_batch(), START)
    assert [losses[name].item() for name in ("distillation", "equivariance", "cross_modal")] == [0.0, 0.0, 0.0]
    sum_of(losses).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


# ---- the paper's classifier: a softmax over background and tumor -----------------------------------------------------


def peak_at_1(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def softmax_network(classes: int = 1) -> ModalityNetworks:
    torch.manual_seed(5)
    return networks_by_modality(
        ("T1", "T2"), backbone="unet", width=4, pooling="average", num_classes=classes, background_map=True
    ).eval()


def test_the_papers_classifier_is_a_softmax_whose_tumor_map_alone_is_used():
    """L_C and L_KD of the softmax over two channels, and L_ER of N(A_1), not of N(A_1 - A_0)."""
    network, batch = softmax_network(), make_batch(2)
    record = PairedSpatialTransform(("flip",)).draw(batch["image"].shape)
    method = method_of(
        network, **dict.fromkeys(("equivariance", "distillation"), True), transform=Always(record), norm="max"
    )
    method = method.eval()
    losses = method(batch, END)
    views = (batch["image"], record(batch["image"], padding="minimum"))
    raw = [[member(view[:, g : g + 1]) for g, member in enumerate(network.members)] for view in views]
    scores = [[maps.mean((2, 3)) for maps in view] for view in raw]  # (B, 2), background first
    target = batch["label"][:, 0].long()
    for g, name in enumerate(("T1", "T2")):
        expected = torch.stack([F.cross_entropy(view[g], target) for view in scores]).mean()
        torch.testing.assert_close(losses[f"classification/{name}"], expected)
    divergences = [
        F.kl_div(view[k].log_softmax(1), view[1 - k].softmax(1), reduction="batchmean")
        for view in scores
        for k in range(2)
    ]
    torch.testing.assert_close(losses["distillation"], 0.5 * torch.stack(divergences).sum() / 2)
    tumor = [[peak_at_1(maps[:, 1:].relu()) for maps in view] for view in raw]
    squares = [(record(tumor[0][g]) - tumor[1][g]).square() * batch["label"][:, :, None, None] for g in range(2)]
    torch.testing.assert_close(losses["equivariance"], torch.stack([square.mean() for square in squares]).sum())


@pytest.mark.parametrize("classes", [1, 3])
def test_a_class_is_present_where_it_beats_the_background_and_its_own_map_is_cut(classes):
    network = softmax_network(classes)
    rule = network.mask_rule()
    assert (rule.background_map, rule.rule) == (True, "minmax")
    maps = torch.randn(5, 2, classes + 1, 8, 8, generator=torch.Generator().manual_seed(2))
    means = maps.mean((3, 4))
    mask, cam, presence = rule(maps.flatten(1, 2))
    torch.testing.assert_close(presence, (means[:, :, 1:] - means[:, :, :1]).amax(1))
    for b in range(5):
        for k in range(classes):
            of_groups = [
                minmax(maps[b, g, k + 1]) if means[b, g, k + 1] > means[b, g, 0] else torch.zeros(8, 8)
                for g in range(2)
            ]
            torch.testing.assert_close(cam[b, k], torch.maximum(*of_groups))
    assert mask.shape == (5, 1, 8, 8)
    compiled = torch.jit.script(network)
    assert MaskRule.of(compiled).background_map


def test_the_healthy_level_and_gradients_are_those_of_the_classes():
    network = softmax_network(2)
    batch = make_batch(2, classes=2)
    method_of(network).finalize([batch])
    assert network.negative_reference.shape == (4,)
    assert bool(network.filled.all())
    explained = GradientCAMInferer("features", gate="predicted")(batch["image"], network)
    assert explained.shape == (4, 6, 16, 16)
    logits = network.pool(network(batch["image"])) > 0
    absent = network.of_classes(explained)[~logits]
    assert not bool(absent.any())
    assert MaskRule.of(network, rule="max", gate="none")(explained).mask.shape == (4, 1, 16, 16)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_presets_of_the_paper_have_its_classifier_and_its_normalization_of_masks(preset):
    method = CMER.from_preset(preset, modalities=("T1", "T2"), num_classes=2)
    assert method.network.background_map
    assert method.network.members[0].head.out_channels == 3
    assert method.network.mask_rule().rule == {"paper": "max", "released": "minmax"}[preset] == method.norm
    assert not CMER.from_preset(modalities=("T1", "T2")).network.background_map


def test_a_background_map_needs_a_head_that_has_one():
    with pytest.raises(ValueError, match="`background_map` with a `backbone`, not with an `encoder`"):
        networks_by_modality(("T1",), encoder=CAMEncoder.tiny, background_map=True)
    with pytest.raises(ValueError, match="`background_map` for activations alone"):
        MaskRule(output_kind="segmentation", background_map=True)
