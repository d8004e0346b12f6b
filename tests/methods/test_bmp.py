# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP: when its terms begin, what they are made of, who teaches whom, healthy images, presets, both dimensions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_wsss.engines import Progress, WeightRamp
from monai_wsss.losses import affinity_loss, class_to_segmentation_loss, segmentation_to_class_loss
from monai_wsss.methods import BMP
from monai_wsss.methods.base import mean_of_processes
from monai_wsss.methods.bmp import _View, _view
from monai_wsss.networks import ConvPyramid, MixTransformer, TwoBranchNetwork
from monai_wsss.refinement import PixelAdaptiveRefinement, refined_seed_label

EARLY, LATE = (Progress(epoch=1, iteration=1, fraction=fraction) for fraction in (0.0, 0.9))
ALL = ["classification", "c2s", "s2c", "affinity"]


def make_batch(spatial_dims: int = 2, channels: int = 1, classes: int = 1, size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(3, classes)
    label[0], label[1, -1] = 1.0, 1.0
    return {"image": torch.rand((3, channels, *(size,) * spatial_dims), generator=generator), "label": label}


def small_refinement() -> PixelAdaptiveRefinement:
    return PixelAdaptiveRefinement(dilations=(1, 2), iterations=3, row_stochastic=True)


def quiet_network(classes: int = 1, spatial_dims: int = 2, **options) -> TwoBranchNetwork:
    """Without dropout, so that what training and evaluation give differs by batch norm alone."""
    torch.manual_seed(0)
    return TwoBranchNetwork(ConvPyramid.tiny(spatial_dims, 1), classes, decoder_width=8, dropout=0.0, **options)


def method_of(classes: int = 1, spatial_dims: int = 2, **settings) -> BMP:
    return BMP(quiet_network(classes, spatial_dims), refine=small_refinement(), **settings)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (4, 3)])
@pytest.mark.parametrize("propagation", ["bsp", "par", "affinity"])
def test_all_terms_are_finite_and_reach_every_parameter(spatial_dims, channels, classes, propagation):
    method = BMP.tiny(spatial_dims, channels, classes)
    method.propagation = propagation
    losses = method(make_batch(spatial_dims, channels, classes, 8 if spatial_dims == 3 else 16), LATE)
    assert list(losses) == ALL
    assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("s2c_input", ["seeds", "scores"])
def test_constant_healthy_images_stay_finite(value, s2c_input):
    method = method_of(s2c_input=s2c_input)
    losses = method({"image": torch.full((2, 1, 16, 16), value), "label": torch.zeros(2, 1)}, LATE)
    assert losses["s2c"].item() == 0
    assert losses["affinity"].item() == 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_terms_begin_one_after_the_other():
    method = method_of(
        c2s_ramp=WeightRamp("step", end=0.2),
        s2c_ramp=WeightRamp("step", end=0.4),
        s2c_background=True,
        segmentation_confidence=0.0,
    )
    batch = make_batch()
    begun = {
        fraction: {name for name, loss in method(batch, Progress(1, 1, fraction)).items() if loss.item() != 0}
        for fraction in (0.0, 0.3, 0.5)
    }
    assert begun[0.0] == {"classification"}
    assert begun[0.3] == {"classification", "c2s", "affinity"}
    assert begun[0.5] == set(ALL)


@pytest.mark.parametrize(("name", "shape", "end"), [("c2s", "gaussian", 0.95), ("s2c", "gaussian", 0.95)])
def test_a_ramp_weighs_its_terms(name, shape, end):
    ramp = WeightRamp(shape, end=end)
    with_ramp, without = (
        method_of(s2c_background=True, segmentation_confidence=0.0, **{f"{name}_ramp": kind})(make_batch(), LATE)
        for kind in (ramp, WeightRamp("none"))
    )
    assert without[name] > 0
    assert 0 < ramp(LATE) < 1
    torch.testing.assert_close(with_ramp[name], ramp(LATE) * without[name])


@pytest.mark.parametrize(
    ("total", "never"), [(101, []), (100, ["propagation_ramp"]), (40, ["s2c_ramp", "propagation_ramp"])]
)
def test_a_run_too_short_for_its_warm_ups_is_told(total, never):
    method = method_of(
        c2s_ramp=WeightRamp("step", end=0.1),
        s2c_ramp=WeightRamp("iteration", end=40),
        propagation_ramp=WeightRamp("iteration", end=100),
    )
    method(make_batch(), Progress(epoch=1, iteration=3, fraction=2 / total))
    (told, *others) = [text for text in method.collapse_warnings() if "will not end" in text] or [""]
    assert [name for name in ("c2s_ramp", "s2c_ramp", "propagation_ramp") if name in told] == never
    assert others == []


@pytest.mark.parametrize("ofd", [True, False])
@pytest.mark.parametrize("off", [(), ("c2s",), ("s2c",), ("affinity",), ("c2s", "s2c", "affinity")])
def test_parameters_that_nothing_trains_are_told(off, ofd):
    """Distributed training has to know."""
    method = BMP(quiet_network(ofd=ofd), refine=small_refinement(), **{f"{name}_weight": 0.0 for name in off})
    sum(method(make_batch(), LATE).values()).backward()
    unused = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert method.may_leave_parameters_unused == bool(unused)
    assert bool(unused) == bool({"c2s", "affinity"} & set(off))


def test_parameter_groups_keep_the_network_s_order():
    """An optimizer's state is found by it when a run resumes in another process."""
    method = BMP.from_preset("paper", network=TwoBranchNetwork(MixTransformer.tiny(2, 1), 1, decoder_width=8))
    names = {parameter: name for name, parameter in method.network.named_parameters()}
    order = list(names.values())
    for group in method.parameter_groups(1e-3):
        positions = [order.index(names[parameter]) for parameter in group["params"]]
        assert positions == sorted(positions)


@pytest.mark.parametrize("name", ["c2s", "s2c", "affinity"])
def test_a_weight_of_zero_switches_a_term_off(name):
    assert list(method_of(**{f"{name}_weight": 0.0})(make_batch(), LATE)) == [term for term in ALL if term != name]


def test_losses_are_those_of_the_parts():
    """Constant background scores, in evaluation mode: every term composed by hand from the network's outputs."""
    method = method_of(propagation="par", scales=(1.0,), s2c_background=True, radius=2).eval()
    batch = make_batch()
    image, label = batch["image"], batch["label"]
    with torch.no_grad():
        losses = method(batch, LATE)
        outputs, mirrored = (method.network.branches(x, affinity=True) for x in (image, image.flip(-1)))
        seeds = F.relu(torch.maximum(outputs.seeds, mirrored.seeds.flip(-1)))
        low, high = seeds.amin((2, 3), keepdim=True), seeds.amax((2, 3), keepdim=True)
        seeds = (seeds - low) / (high - low + 1e-5) * label[..., None, None]
        class_label = refined_seed_label(image, seeds, label, method.refine)
        probabilities = outputs.segmentation.softmax(1)
        probabilities[2, 1:] = 0.0  # the healthy image
        probabilities[2, 0] = 1.0
        highest, own_label = probabilities.max(1)
        own_label[highest < 0.5] = 255
        tokens = class_label[:, ::4, ::4]
        expected = {
            "classification": F.binary_cross_entropy_with_logits(outputs.logits, label),
            "c2s": 0.7 * class_to_segmentation_loss(outputs.segmentation, class_label),
            "s2c": 0.1
            * segmentation_to_class_loss(
                outputs.seeds, own_label, kind="bce", use_background=True, positive=label.amax(1) > 0
            ),
            "affinity": 0.1
            * affinity_loss(outputs.affinity, tokens, radius=2, include=torch.tensor([True, True, False])),
        }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("propagation", ["bsp", "affinity"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_near_pairs_alone_and_all_pairs_are_one_loss(monkeypatch, spatial_dims, propagation):
    method = method_of(spatial_dims=spatial_dims, scales=(1.0,), radius=1, propagation=propagation).eval()
    batch = make_batch(spatial_dims)
    shapes, values = [], []
    for tokens_an_offset in (0, 4):
        monkeypatch.setattr("monai_wsss.methods.bmp._TOKENS_AN_OFFSET", tokens_an_offset)
        shapes.append(method._branches(batch["image"], affinity=True).affinity.shape[1:])
        values.append({name: loss.item() for name, loss in method(batch, LATE).items()})
    grid = (4,) * spatial_dims  # of sides of 16 and a stride of 4
    assert shapes == [(3**spatial_dims, *grid), (math.prod(grid), math.prod(grid))]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0]["affinity"] > 0


def test_healthy_images_teach_background_alone():
    method = method_of(class_confidence=0.999)
    view_label, _ = labels_of(method, make_batch())
    assert (view_label[2] == 0).all()
    assert (view_label[0] == 255).any()
    method.healthy_is_background = False
    method.score_scale, method.background_scale = "none", "minmax"
    view_label, _ = labels_of(method, make_batch())
    assert (view_label[2] == 255).any()


def labels_of(method: BMP, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Y^c and the label of the affinity, caught where the losses take them."""
    caught = []
    original = method._class_labels

    def catch(*arguments):
        caught.append(original(*arguments))
        return caught[-1]

    method._class_labels = catch
    method(batch, LATE)
    del method._class_labels
    return caught[0]


def test_what_lies_outside_of_boxes_teaches_nothing():
    batch = make_batch() | {"boxes": torch.tensor([[0, 16, 0, 16], [2, 12, 4, 16], [0, 8, 0, 16]])}
    for propagation in ("bsp", "par", "affinity"):
        method = method_of(propagation=propagation, class_confidence=0.0)
        for label in labels_of(method, batch):
            assert (label[1, :2] == 255).all()
            assert (label[1, :, :4] == 255).all()
            assert (label[2, 8:] == 255).all()
            assert (label[2, :8] == 0).all()
            assert (label[0] != 255).any()


def test_labels_spread_along_the_intensities_that_the_batch_names():
    batch, method = make_batch(), method_of()
    other = batch | {"intensity": batch["image"].flip(-1)}
    assert not torch.equal(labels_of(method, batch)[0], labels_of(method, other)[0])
    # An affine change, as normalization makes, changes nothing.
    affine = batch | {"intensity": 7 * batch["image"] - 3}
    assert (labels_of(method, batch)[0] == labels_of(method, affine)[0]).float().mean() > 0.99


@pytest.mark.parametrize("propagation", ["bsp", "par", "affinity"])
@pytest.mark.parametrize(("downscale", "side"), [(1.0, 16), (2.0, 8)])
def test_images_shrink_for_every_refinement_as_asked(propagation, downscale, side):
    method, seen = method_of(propagation=propagation, downscale=downscale), []
    original = method.refine.forward
    method.refine.forward = lambda image, maps: seen.append(tuple(image.shape[2:])) or original(image, maps)
    method(make_batch(), LATE)
    assert len(seen) == (1 if propagation == "par" else 2)
    assert set(seen) == {(side, side)}


@pytest.mark.parametrize(
    ("train_mode", "propagation", "seed_scale", "steps"),
    [
        (False, "bsp", "minmax", 1),
        (False, "bsp", "reference", 1),
        (False, "affinity", "minmax", 1),
        (True, "bsp", "minmax", 4),
        (True, "affinity", "minmax", 5),
    ],
)
def test_making_labels_leaves_batch_statistics_alone_unless_asked(train_mode, propagation, seed_scale, steps):
    method = method_of(train_mode_labels=train_mode, propagation=propagation, seed_scale=seed_scale)
    counters = [module for module in method.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    method(make_batch(), LATE)
    assert {int(counter.num_batches_tracked) for counter in counters} == {steps}
    assert method.network.training


def test_the_segmenter_teaches_the_classifier():
    """Where the segmenter is sure of foreground in a positive image, L_s2c raises the seeds, in no other image."""
    method = method_of(segmentation_confidence=0.0, c2s_weight=0.0, affinity_weight=0.0)
    with torch.no_grad():
        method.network.decoder.linear_pred.bias += torch.tensor([-50.0, 50.0])
    seeds = torch.zeros(3, 1, 16, 16, requires_grad=True)
    outputs = method.network.branches
    method.network.branches = lambda image, **options: outputs(image, **options)._replace(seeds=seeds)
    method(make_batch(), LATE)["s2c"].backward()
    assert (seeds.grad[:2] < 0).all()
    assert not seeds.grad[2].any()


def test_as_printed_the_feedback_passes_through_the_refinement():
    method = method_of(s2c_input="scores", segmentation_confidence=0.0, c2s_weight=0.0, affinity_weight=0.0)
    with torch.no_grad():
        method.network.decoder.linear_pred.bias += torch.tensor([-50.0, 50.0])
    loss = method(make_batch(), LATE)["s2c"]
    loss.backward()
    assert loss.item() > 0
    assert method.network.classifier.weight.grad.abs().sum() > 0
    # The background comes from the decoder, which must not learn from it.
    assert method.network.decoder.linear_pred.weight.grad is None


def test_seeds_rise_from_the_level_of_healthy_images_to_the_peak():
    method = method_of(seed_scale="reference", propagation="par", scales=(1.0,), healthy_is_background=False)
    method.network.classifier.weight.data *= 1000  # far from a level of 0
    batch, caught = make_batch(), []
    original = method._over_scales
    method._over_scales = lambda view: caught.append(original(view)) or caught[-1]
    method(batch, LATE)
    method.network.eval()
    with torch.no_grad():
        upright, mirrored = (method.network.branches(x).seeds for x in (batch["image"], batch["image"].flip(-1)))
    method.network.train()
    level = upright[2].median()
    torch.testing.assert_close(method.negative_reference, level[None])
    above = (torch.maximum(upright, mirrored.flip(-1)) - method.negative_reference).clamp(min=0)
    expected = above / above.amax((2, 3), keepdim=True) * batch["label"][..., None, None]
    torch.testing.assert_close(caught[0][0], expected)


def fixed_seeds(method: BMP, seeds: torch.Tensor) -> None:
    """Whatever the image."""
    chosen = iter(seeds)
    outputs = method.network.branches(torch.zeros(len(seeds), 1, 16, 16))
    method.network.branches = lambda image, **_: outputs._replace(seeds=torch.stack([next(chosen) for _ in image]))


def test_the_level_follows_the_images_without_the_class():
    method = method_of(classes=2)
    view = _view({"image": torch.zeros(2, 1, 16, 16), "label": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})
    seeds = torch.zeros(2, 2, 4, 4)
    seeds[0, 1], seeds[1] = 3.0, 5.0
    fixed_seeds(method, seeds)
    method._follow_negative_reference(view)
    assert method.negative_reference[0].isnan()
    assert method.negative_reference[1] == 3
    fixed_seeds(method_2 := method_of(classes=2), seeds)
    method_2.negative_reference.copy_(method.negative_reference)
    method_2._follow_negative_reference(view._replace(label=torch.tensor([[0.0, 1.0], [1.0, 0.0]])))
    torch.testing.assert_close(method_2.negative_reference, torch.tensor([0.0, 0.9 * 3 + 0.1 * 5]))
    assert "negative_reference" in method.state_dict()  # a resumed run goes on with it
    assert "negative_reference" not in method.network.state_dict()


def test_padding_is_no_image_without_the_class():
    method = method_of()
    seeds = torch.ones(1, 1, 16, 16)
    seeds[..., 4:] = 9.0
    fixed_seeds(method, seeds)
    boxes = torch.tensor([[0, 16, 0, 4]])
    method._follow_negative_reference(_View(torch.zeros(1, 1, 16, 16), torch.zeros(1), torch.zeros(1, 1), boxes))
    assert method.negative_reference == 1


def test_processes_share_level_and_loss_and_who_has_none_is_left_out(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    others = iter([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])])  # the other process: 2 and nothing
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.add_(next(others)))
    shared = mean_of_processes(torch.tensor([4.0, torch.nan]))
    assert shared[0] == 3
    assert shared[1].isnan()


def test_the_branches_teach_once_the_classifier_has_learned():
    method, batch = method_of(ready_below=0.1), make_batch()
    first = method(batch, LATE)
    assert [first[name].item() for name in ("c2s", "s2c", "affinity")] == [0, 0, 0]
    assert method.running_classification == first["classification"].detach()
    assert "before the classification loss, now" in method.collapse_warnings()[-1]
    method.running_classification.fill_(0.01)
    for _ in range(4):  # also when the loss rises again
        then = method(batch, LATE)
        assert min(then["c2s"].item(), then["affinity"].item()) > 0
    assert method.running_classification > 0.1
    assert not any("teach" in sentence for sentence in method.collapse_warnings())
    assert not any("teach" in sentence for sentence in method_of(ready_below=0.1).collapse_warnings())
    alone = method_of(ready_below=0.1, c2s_weight=0.0, affinity_weight=0.0)
    alone(batch, LATE)
    assert any("teach" in sentence for sentence in alone.collapse_warnings())


def test_the_level_of_trained_weights_is_measured():
    method, batch = method_of(seed_scale="reference").eval(), make_batch()
    method.network.classifier.weight.data *= 1000
    with pytest.raises(ValueError, match="training images without each class"):
        method.class_branch_mask(batch["image"], batch["label"])
    method.measure_negative_reference([batch])
    with torch.no_grad():
        responses = method.network.branches(batch["image"], upsample=False).seeds[2].flatten().sort().values
    middle = len(responses) // 2
    assert responses[middle - 1] - 1e-3 <= method.negative_reference <= responses[middle] + 1e-3
    assert abs(float(method.negative_reference)) > 0.01
    assert method.class_branch_mask(batch["image"], batch["label"])[0].any()


def test_passes_over_scales_are_made_for_images_with_findings_alone():
    method, batch, caught = method_of().eval(), make_batch(), []
    original = method._over_scales
    method._over_scales = lambda view: caught.append(len(view.image)) or original(view)
    view = _view(batch)
    label, constant = method._class_labels(view, LATE)
    assert caught == [2]
    assert not label[2].any()
    assert not constant[2].any()
    alone = method._class_labels(view.of(torch.tensor([True, True, False])), LATE)
    torch.testing.assert_close((label[:2], constant[:2]), alone)
    method._class_labels(view.of(torch.tensor([False, False, True])), LATE)
    assert caught == [2, 2]
    method.train_mode_labels = True  # then batch statistics are of every image
    method._class_labels(view, LATE)
    assert caught == [2, 2, 3]


def test_one_class_takes_the_binary_cross_entropy():
    assert method_of().s2c_loss == "bce"
    assert method_of(classes=2).s2c_loss == "ce"


def test_class_branch_masks_hold_the_classes_of_the_label_alone():
    method, batch = method_of(classes=2).eval(), make_batch(classes=2)
    for propagation in ("bsp", "par"):
        method.propagation = propagation
        masks = method.class_branch_mask(batch["image"], batch["label"])
        assert masks.shape == (3, 1, 16, 16)
        assert masks.dtype == torch.uint8
        assert not masks[2].any()
        assert set(masks[1].unique().tolist()) <= {0, 2}


@pytest.mark.parametrize("preset", ["default", "paper", "released", "afa"])
def test_presets_train(preset):
    decoding = {"afa": {"ofd": False, "detach_seeds": True}, "paper": {"ofd_activation": "none"}}.get(preset, {})
    at_once = {name: WeightRamp("none") for name in ("c2s_ramp", "s2c_ramp", "propagation_ramp")}
    method = BMP.from_preset(preset, network=quiet_network(2, **decoding), refine=small_refinement(), **at_once)
    losses = method(make_batch(classes=2), EARLY)
    assert list(losses) == (["classification", "c2s", "affinity"] if preset == "afa" else ALL)
    sum(losses.values()).backward()


PRESETS = {  # of the sheet: warm-ups, then what each reads otherwise
    "default": ((0.1, 0.2, 0.2), {}, {}),
    "paper": (
        (2000, 4000, 4000),
        {"s2c_input": "scores", "s2c_loss": "softmargin"},
        {"ofd_activation": "none", "ofd_detach": False},
    ),
    "released": (
        (2000, 2000, 4000),
        {
            "class_confidence": 0.5, "segmentation_confidence": 0.75, "confidence_of": "logit",
            "filter_segmentation": False, "background_scale": "minmax", "score_scale": "none",
            "healthy_is_background": False, "healthy_affinity": True, "train_mode_labels": True,
        },
        {},
    ),
    "afa": (
        (2000, 0.2, 6000),
        {
            "c2s_weight": 0.1, "s2c_weight": 0.0, "propagation": "affinity", "c2s_loss": "balanced",
            "background_scale": "minmax", "score_scale": "none", "healthy_is_background": False,
            "healthy_affinity": True, "train_mode_labels": True,
        },
        {"ofd": False, "detach_seeds": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_those_of_the_sheet(preset):
    method = BMP.from_preset(preset, in_channels=1, num_classes=2)
    ends, settings, decoding = PRESETS[preset]
    expected = {
        "c2s_weight": 0.7, "s2c_weight": 0.1, "affinity_weight": 0.1, "propagation": "bsp", "c2s_loss": "softmargin",
        "s2c_loss": "ce", "s2c_input": "seeds", "s2c_background": False, "class_confidence": 0.75,
        "segmentation_confidence": 0.5, "confidence_of": "prob", "filter_segmentation": True, "seed_scale": "minmax",
        "background_scale": "minmax", "score_scale": "l1", "low": 0.35, "high": 0.55, "downscale": 2.0,
        "healthy_is_background": True, "healthy_affinity": False, "scales": (1.0, 0.5, 1.5),
        "train_mode_labels": False, "ready_below": None,
    }  # fmt: skip
    assert {name: getattr(method, name) for name in expected} == expected | settings
    decoder = {"ofd": True, "ofd_activation": "sigmoid", "ofd_detach": True, "detach_seeds": False}
    assert {name: getattr(method.network, name) for name in decoder} == decoder | decoding
    ramps = (method.c2s_ramp, method.s2c_ramp, method.propagation_ramp)
    assert ramps == tuple(WeightRamp("step" if end < 1 else "iteration", end=end) for end in ends)
    assert method.refine.row_stochastic == (preset in ("default", "paper"))
    assert method.affinity_loss.radius == 8


def test_one_class_has_losses_and_a_background_of_its_own():
    """A cross-entropy over one channel is 0, and an image that one class fills has background nowhere."""
    method = BMP.from_preset("paper", network=quiet_network(1))
    assert (method.background_scale, BMP(quiet_network(1)).s2c_loss) == ("softmax", "bce")


def test_batches_that_do_not_fit_are_told():
    method = method_of()
    for wrong, message in (
        ({"boxes": torch.zeros(3, 2)}, r"`boxes` of shape .* \(3, 4\), got \(3, 2\)"),
        ({"intensity": torch.zeros(3, 1, 8, 8)}, "`intensity` of the images' batch and size"),
    ):
        with pytest.raises(ValueError, match=message):
            method(make_batch() | wrong, LATE)


def test_the_published_network_is_the_preset_s():
    method = BMP.from_preset("released", in_channels=1, num_classes=2)
    assert method.network.encoder.feature_channels == (64, 128, 320, 512)
    assert method.c2s_ramp == WeightRamp("iteration", end=2000)
    assert not method.refine.row_stochastic
    groups = method.parameter_groups(1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 0.0, 1e-2]
    norms = {id(parameter) for parameter in groups[1]["params"]}
    assert id(method.network.encoder.norm1.weight) in norms
    assert sum(len(group["params"]) for group in groups) == len(list(method.network.parameters()))


def test_half_precision_gives_float32_losses():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method_of()(make_batch(), LATE)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"propagation": "crf"}, "`propagation` to be one of"),
        ({"seed_scale": "max"}, "`seed_scale` to be one of"),
        ({"downscale": 0.5}, "`downscale` >= 1"),
        ({"c2s_loss": "dice"}, "`c2s_loss` to be one of"),
        ({"s2c_weight": -1.0}, "0 switches a term off"),
        ({"low": 0.7, "high": 0.5}, "`low` <= `high`"),
        ({"s2c_loss": "ce"}, "single class"),
        ({"s2c_loss": "softmargin", "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"s2c_input": "scores", "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"classes": 3, "s2c_background": True}, "`s2c_loss` 'bce' and `s2c_input` 'seeds'"),
        ({"class_confidence": 75.0}, "in .0, 1., got 75.0 and 0.5"),
        ({"segmentation_confidence": -3.0}, "in .0, 1., got 0.75 and -3.0"),
        ({"background_scale": "l1"}, "`background_scale` to be one of"),
        ({"scales": ()}, "one or more `scales` > 0"),
        ({"radius": -1}, "`radius` of at least 0 tokens"),
        ({"classes": 255}, "fewer than 255 classes"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings, message):
    with pytest.raises(ValueError, match=message):
        method_of(**settings)


def test_an_encoder_without_attention_has_no_affinity():
    network = TwoBranchNetwork(ConvPyramid(2, 1, width=4, attention_heads=0), decoder_width=8)
    with pytest.raises(ValueError, match="affinity"):
        BMP(network)
    assert "affinity" not in BMP(network, affinity_weight=0.0, refine=small_refinement())(make_batch(), LATE)


def test_tensors_with_metadata_are_as_good_as_plain_ones():
    method, batch = method_of().eval(), make_batch()
    wrapped = {key: MetaTensor(value) for key, value in batch.items()}
    for name, value in method(wrapped, LATE).items():
        torch.testing.assert_close(value, method(batch, LATE)[name])
        assert not isinstance(value, MetaTensor)
