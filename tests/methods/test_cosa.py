# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA: its equations, its ablation words, when its terms begin, both networks, healthy images, resume, processes."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from ignite.engine import Events
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_wsss.engines import Progress, WSSSTrainer, distribute_method, start_distributed, stop_distributed
from monai_wsss.methods import CoSA
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork, TwoFusedMaps, load_encoder_weights
from monai_wsss.refinement import LabeledImages

# So short runs may end with maps that are all foreground, as they begin.
pytestmark = pytest.mark.filterwarnings("ignore:Epoch")

EARLY, LATE = (Progress(epoch=1, iteration=1, fraction=fraction) for fraction in (0.0, 0.9))
CLASSIFIERS = ["classification", "auxiliary_classification"]
TERMS = [*CLASSIFIERS, "c2s", "auxiliary_c2s", "s2c", "csc"]


def network_of(classes: int = 2, *, spatial_dims: int = 2, norm: str = "batch", seed: int = 0) -> TwoBranchNetwork:
    """Build one without dropout, so that what training and evaluation give differs by the norm alone."""
    torch.manual_seed(seed)
    pyramid = ConvPyramid(spatial_dims, 1, width=4, attention_heads=0, norm=norm)
    encoder = TwoFusedMaps(pyramid, width=8, stride=2, dropout=0.0, norm=norm)
    decoder = "all_mlp" if norm == "batch" else "large_fov"  # which has no norm
    network = TwoBranchNetwork.with_auxiliary(
        encoder, classes, decoder=decoder, decoder_width=16, dropout=0.0, pooled="maps"
    )
    for head in (network.classifier, network.auxiliary):
        nn.init.ones_(head.bias)  # so that class maps are above 0 from the start
    return network


def method_of(classes: int = 2, preset: str = "default", *, norm: str = "batch", **words: Any) -> CoSA:
    words = {"warm_up": "none", "momentum": 0.9, "queue": 4, "seed_scale": "minmax"} | words
    return CoSA.from_preset(preset, network=network_of(classes, norm=norm), **words)


def make_batch(classes: int = 2, size: int = 32, images: int = 3) -> dict[str, Any]:
    """Give images of bright and dark squares, the last one healthy, in a weak and a strong view."""
    generator = torch.Generator().manual_seed(1)
    image = 0.1 * torch.rand((images, 1, size, size), generator=generator)
    label = torch.zeros(images, classes)
    for n in range(images - 1):
        channel, place = n % classes, 4 + 2 * n
        image[n, :, place : place + 12, place : place + 12] += 1 if channel else -1
        label[n, channel] = 1
    return {"image": image, "strong": 0.8 * image + 0.1, "label": label}


def assigned_of(method: CoSA, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    return method.assignments(LabeledImages.from_batch(batch))


# ---------------------------------------------------------------------------------------------------- the equations


def test_the_assignment_network_does_not_look_at_healthy_images():
    method, batch = method_of().eval(), make_batch()
    sizes: list[int] = []
    method.network.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    given = assigned_of(method, batch)
    assert sizes == [4, 4, 4]  # two of three images, and mirrored
    whole = method.seeds(method.network, LabeledImages.from_batch(batch))
    for part, full in zip(given, whole, strict=True):
        torch.testing.assert_close(part[:2], full[:2])
        assert not part[2].any()
    assert len(assigned_of(method, batch | {"label": torch.zeros(3, 2)})) == len(whole)
    assert sizes == [4, 4, 4, 6, 6, 6]


def squashed(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-5)


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def test_assignments_sum_scales_and_mirror_images():
    """Sec. 3.2 from the network's own maps: rectified maxima for class maps, plain sums for the segmentation."""
    method, batch = method_of().eval(), make_batch()
    image, present = batch["image"], batch["label"][..., None, None]
    sums = dict.fromkeys(("seeds", "auxiliary_seeds", "segmentation"), 0.0)
    for side in (32, 16, 48):
        scaled = image if side == 32 else resized(image, (side, side))
        with torch.no_grad():
            upright, mirrored = (method.network.branches(x, upsample=False) for x in (scaled, scaled.flip(-1)))
        for name in sums:
            own, other = (resized(getattr(one, name), (32, 32)) for one in (upright, mirrored))
            other = other.flip(-1)
            sums[name] = sums[name] + (own + other if name == "segmentation" else F.relu(torch.maximum(own, other)))
    expected = [squashed(sums[name]) * present for name in ("seeds", "auxiliary_seeds")] + [sums["segmentation"]]
    for got, wanted in zip(assigned_of(method, batch), expected, strict=True):
        torch.testing.assert_close(got[:2], wanted[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dt", [False, True])
def test_losses_are_those_of_the_equations(dt):
    """Each term composed by hand, from the assignment network's maps and the online network's outputs."""
    method, batch = method_of(csc_temperature=0.3, dt=dt), make_batch()
    method.average.begin(method.network, method.online)
    with torch.no_grad():  # the networks differ, so that exchanging them would show
        for parameter in method.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    method.online.eval()
    method.average.training = False
    with torch.no_grad():
        outputs = method.online.branches(batch["strong"], upsample=False)
    maps, auxiliary, logits = (part.double() for part in assigned_of(method, batch))
    losses = {name: loss.double().detach() for name, loss in method(batch, LATE).items()}
    label = batch["label"].double()
    thresholds = [maker.threshold().double() for maker in (method.labels, method.auxiliary_labels)]
    assert (thresholds[0] == 0.5).item() == (not dt)

    def class_label(maps: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        strength, winner = maps.max(1)
        distance = torch.where(
            strength >= threshold, (strength - threshold) / (1 - threshold), (threshold - strength) / threshold
        )
        return (winner + 1) * (strength >= threshold), -(0.8 * distance).clamp(min=1e-6).log()

    def weighted(maps: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        target, doubt = class_label(maps, threshold)
        segmentation = resized(outputs.segmentation.double(), (32, 32))
        each = F.cross_entropy(segmentation, target, reduction="none")
        reliability = 1 / doubt
        return (reliability * reliability.numel() / reliability.sum() * each).mean()

    own = outputs.seeds.double()
    masked = logits.masked_fill(F.pad(label == 0, (1, 0))[..., None, None], -1e9)
    guide = resized((masked / 0.01).softmax(1)[:, 1:], own.shape[2:])
    target, doubt = class_label(resized(auxiliary, own.shape[2:]), thresholds[1])
    of_images = []
    for vectors, classes, sure in zip(own.flatten(2).mT, target.flatten(1), doubt.flatten(1) <= 1, strict=True):
        vectors, classes = F.normalize(vectors[sure], dim=1), classes[sure]
        likeness, same = vectors @ vectors.T / 0.3, classes[:, None] == classes
        each = []
        for anchor in range(len(classes)):
            others = likeness[anchor][~same[anchor]].exp().sum()
            positives = [n for n in range(len(classes)) if same[anchor, n] and n != anchor]
            terms = [-(likeness[anchor, n] - (likeness[anchor, n].exp() + others).log()) for n in positives]
            each += [torch.stack(terms).mean()] if terms else []
        of_images += [torch.stack(each).mean()] if each else []
    expected = {
        "classification": F.binary_cross_entropy_with_logits(outputs.logits.double(), label),
        "auxiliary_classification": F.binary_cross_entropy_with_logits(outputs.auxiliary_logits.double(), label),
        "c2s": 0.1 * weighted(maps, thresholds[0]),
        "auxiliary_c2s": 0.1 * weighted(auxiliary, thresholds[1]),
        "s2c": 0.05 * F.binary_cross_entropy_with_logits(own, guide),
        "csc": 0.1 * torch.stack(of_images).mean(),
    }
    assert list(losses) == TERMS
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=2e-4, atol=1e-6, msg=name)
    assert losses["csc"] > 0


def test_thresholds_follow_class_maps_of_images_with_findings():
    method, batch = method_of(dt_momentum=0.0, queue=3), make_batch()
    method(batch, LATE)
    maps, auxiliary, _ = assigned_of(method, batch)
    for maker, each in ((method.labels, maps), (method.auxiliary_labels, auxiliary)):
        strength = resized(each, (16, 16)).amax(1)[:2]  # at the size of the online maps, without the healthy image
        torch.testing.assert_close(maker.threshold.scores[1:, :256], strength.flatten(1))
        assert not maker.threshold.scores[0].any()
    before = method.labels.threshold().clone(), method.labels.threshold.scores.clone()
    method.eval()(batch, LATE)
    method.train()(batch | {"label": torch.zeros(3, 2)}, LATE)
    assert torch.equal(before[1], method.labels.threshold.scores)
    assert torch.equal(before[0], method.labels.threshold())


def test_the_strong_view_is_learned_from_and_the_weak_view_labels():
    method, batch = method_of(), make_batch()
    seen: dict[str, list[torch.Tensor]] = {"online": [], "network": []}
    for name, images in seen.items():
        getattr(method, name).encoder.register_forward_pre_hook(lambda _, given, images=images: images.append(given[0]))
    method(batch, LATE)
    assert [len(images) for images in seen.values()] == [1, 3]
    assert torch.equal(seen["online"][0], batch["strong"])
    found = batch["image"][:2]  # without the healthy image
    assert torch.equal(seen["network"][0], torch.cat((found, found.flip(-1))))
    del batch["strong"]
    method(batch, LATE)
    assert torch.equal(seen["online"][1], batch["image"])
    with pytest.raises(ValueError, match=r"`strong` of the shape of `image`.*both views must show the same crop"):
        method(batch | {"strong": batch["image"][..., :-1]}, LATE)


def test_gradients_reach_the_online_network_alone():
    method = method_of()
    sum(method(make_batch(), LATE).values()).backward()
    assert all(parameter.grad is not None for parameter in method.online.parameters())
    assert all(parameter.grad is None for parameter in method.network.parameters())
    assert not any(parameter.requires_grad for parameter in method.network.parameters())


def test_padding_takes_no_part():
    method, batch = method_of(csc=False), make_batch()
    batch["boxes"] = torch.tensor([[0, 32, 0, 16]] * 3)
    outputs: list[torch.Tensor] = []
    method.online.decoder.register_forward_hook(lambda *given: outputs.append(given[2].retain_grad() or given[2]))
    losses = method(batch, LATE)
    (losses["c2s"] + losses["auxiliary_c2s"]).backward()
    assert not outputs[0].grad[..., 9:].any()
    assert outputs[0].grad[..., :8].any()
    assert not method.labels.threshold.scores[:, :256].unflatten(1, (16, 16))[..., 8:].any()


# ---------------------------------------------------------------------------------------------------- ablation words


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ({"gc": False}, {"s2c"}),
        ({"guide": "none"}, {"s2c"}),
        ({"csc": "false"}, {"csc"}),
        ({"aux_c2s": False}, {"auxiliary_c2s"}),
        ({"c2s_weight": 0}, {"c2s", "auxiliary_c2s"}),
        ({"gc": False, "sa": False, "raw": False, "csc": False, "dt": False}, {"s2c", "csc"}),
    ],
)
def test_a_word_leaves_a_term_out(words, gone):
    method = method_of(**words)
    assert list(method(make_batch(), LATE)) == [name for name in TERMS if name not in gone]
    assert method.may_leave_parameters_unused == ("c2s" in gone)


def test_energy_is_a_term_of_the_released_code():
    method, batch = method_of(preset="released", intensity_range=None, intensity_std=0.3), make_batch()
    assert list(method(batch, LATE)) == [*TERMS[:-1], "energy"]
    losses = method(batch, LATE)
    assert losses["energy"] > 0
    assert list(method_of(energy=True)(batch, LATE)) == [*TERMS, "energy"]


def test_without_raw_every_pixel_counts_alike():
    """RAW off is the mean cross-entropy of the same labels."""
    method, batch = method_of(raw=False, dt=False).eval(), make_batch()
    method.average.training = False
    losses = method(batch, LATE)
    outputs = method.online.branches(batch["strong"], upsample=False)
    maps, *_ = assigned_of(method, batch)
    label = method.labels(LabeledImages.from_batch(batch), maps).label
    expected = 0.1 * F.cross_entropy(resized(outputs.segmentation, (32, 32)), label)
    torch.testing.assert_close(losses["c2s"], expected)
    assert not torch.allclose(losses["c2s"], method_of(dt=False).eval()(batch, LATE)["c2s"])


def test_without_swapped_assignments_there_is_one_network():
    method = method_of(sa=False)
    assert method.online is method.network
    assert method.average is None
    before = {name: value.clone() for name, value in method.network.named_parameters()}
    modes: list[bool] = []
    method.network.encoder.register_forward_pre_hook(lambda encoder, _: modes.append(encoder.training))
    sum(method(make_batch(), LATE).values()).backward()
    method.after_step(LATE)
    assert modes == [True, False, False, False]
    assert method.network.training
    assert all(torch.equal(value, before[name]) for name, value in method.network.named_parameters())


@pytest.mark.parametrize(("detached", "trained"), [("none", 3), ("features", 1), ("weights", 2), ("all", 0)])
def test_guidance_can_be_kept_from_features_and_weights(detached, trained):
    """Table 4a: bit 0 is the classifier, bit 1 the encoder."""
    method = method_of(detach_seeds=detached)
    loss = method(make_batch(), LATE)["s2c"]
    assert loss.requires_grad == (detached != "all")
    if loss.requires_grad:
        loss.backward()
    encoder, classifier = (
        any(p.grad is not None and p.grad.any() for p in part.parameters())
        for part in (method.online.encoder, method.online.classifier)
    )
    assert 2 * encoder + classifier == trained


def test_noise_guides_by_chance():
    method, batch = method_of(guide="noise"), make_batch()
    images = LabeledImages.from_batch(batch)
    guide = method.guidance(images, torch.zeros(3, 3, 32, 32), batch)
    assert guide.sum(1).sub(1).abs().max() < 1e-5
    assert not guide[2, 1:].any()
    assert not guide[0, 2].any()
    assert 0.4 < guide[0, 1].mean() < 0.6


def test_another_guide_reads_the_batch():
    """As an oracle does, which lives elsewhere."""

    class Guided(CoSA):
        def guidance(self, images, segmentation, batch):
            return F.one_hot(batch["truth"], 3).movedim(-1, 1).float()

    batch = make_batch() | {"truth": torch.zeros(3, 32, 32, dtype=torch.long)}
    method = Guided.from_preset(network=network_of(), warm_up="none", seed_scale="minmax").eval()
    expected = 0.05 * F.softplus(method.online.branches(batch["strong"], upsample=False).seeds).mean()
    torch.testing.assert_close(method(batch, LATE)["s2c"], expected)


# ------------------------------------------------------------------------------------------------- warm-up, and cost


def test_a_warm_up_costs_nothing():
    method, batch = method_of(warm_up=0.5), make_batch()
    passes: Counter[str] = Counter()
    for name in ("online", "network"):
        getattr(method, name).encoder.register_forward_hook(lambda *_, name=name: passes.update([name]))
    losses = method(batch, EARLY)
    assert passes == {"online": 1}
    assert [name for name, loss in losses.items() if loss != 0] == CLASSIFIERS
    assert not method.labels.threshold.scores.any()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.online.parameters())
    method(batch, LATE)
    assert passes == {"online": 2, "network": 3}


def test_a_decoder_without_batch_statistics_does_not_run_in_the_warm_up():
    """Its parameters have gradients of 0 all the same: weight decay and processes see no difference."""
    for norm, runs in (("instance", 0), ("batch", 1)):
        method, batch = method_of(norm=norm, warm_up=0.5), make_batch()
        decoded: list[int] = []
        method.online.decoder.register_forward_hook(lambda *_, decoded=decoded: decoded.append(1))
        sum(method(batch, EARLY).values()).backward()
        assert len(decoded) == runs
        assert all(parameter.grad is not None for parameter in method.online.parameters())
        assert not any(parameter.grad.any() for parameter in method.online.decoder.parameters())
        method(batch, LATE)
        assert len(decoded) == runs + 1


def test_features_are_separated_on_request():
    method, batch = method_of(csc_vector="feature", csc_temperature=0.5), make_batch()
    loss = method(batch, LATE)["csc"]
    images = LabeledImages.from_batch(batch)
    features = method.online.branches(batch["strong"], upsample=False).features
    small = F.interpolate(assigned_of(method, batch)[1], features.shape[2:], mode="bilinear")
    expected = method.csc.loss(features, *method.auxiliary_labels.sure(images, small))
    torch.testing.assert_close(loss, method.csc.weight * expected)
    loss.backward()
    trained = {name.partition(".")[0] for name, one in method.online.named_parameters() if one.grad is not None}
    assert trained == {"encoder"}
    assert method_of(1, csc_vector="feature").settings["csc_vector"] == "feature"


def test_class_maps_begin_at_the_level_of_images_without_the_class():
    method, batch = method_of(warm_up=0.5, seed_scale="reference"), make_batch()
    levels = method.seeds.healthy_levels
    assert list(levels) == ["seeds", "auxiliary_seeds"]
    method(batch, EARLY)
    assert not method.seeds.ready  # a warm-up costs nothing
    losses = method(batch, LATE)
    assert method.seeds.ready
    assert all(losses[name] > 0 for name in TERMS)
    own, other = (scale.level.value for scale in levels.values())
    assert not torch.equal(own, other)
    images = LabeledImages.from_batch(batch)
    with torch.no_grad(), method.label_mode():
        outputs = method.network.branches(batch["image"], upsample=False)
    for name, scale in levels.items():
        maps = method.at_size(getattr(outputs, name), images)
        for k in range(2):
            healthy = maps[batch["label"][:, k] == 0, k]
            torch.testing.assert_close(scale.level.value[k], healthy.median())
    given = assigned_of(method, batch)[0]
    assert given.amin() >= 0
    assert given[batch["label"] > 0].amax((1, 2)).allclose(torch.ones(2))


def test_branches_wait_for_an_image_without_each_class():
    method, batch = method_of(classes=1, seed_scale="reference"), make_batch(classes=1)
    batch["label"] = torch.ones(3, 1)
    losses = method(batch, LATE)
    assert [name for name, loss in losses.items() if loss != 0] == CLASSIFIERS
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.online.parameters())
    assert any("no image without each class" in text for text in method.collapse_warnings())
    method(make_batch(classes=1), LATE)
    assert method.seeds.ready
    assert not any("no image without each class" in text for text in method.collapse_warnings())


def test_a_healthy_level_can_be_measured_for_weights_from_a_file():
    method, batch = method_of(seed_scale="reference").eval(), make_batch()
    with pytest.raises(ValueError, match="measure_negative_reference"):
        assigned_of(method, batch)
    method.measure_negative_reference([batch])
    assert method.seeds.ready
    images = LabeledImages.from_batch(batch)
    with torch.no_grad():
        maps = method.network.branches(images.image, upsample=False).auxiliary_seeds
    healthy = maps[batch["label"][:, 1] == 0, 1]
    level = method.seeds.healthy_levels["auxiliary_seeds"].level.value[1]
    torch.testing.assert_close(level, healthy.quantile(0.5))


def test_a_segmentation_that_marks_nothing_is_told():
    """Logits that are equal are background: so a decoder whose features all died ends."""
    method, batch = method_of(warm_up=0.5), make_batch()
    told = "the segmentation marks nothing in 100% of the images with a finding"
    method(batch, EARLY)  # the online network begins as a copy
    for parameter in method.online.decoder.linear_pred.parameters():
        torch.nn.init.zeros_(parameter)
    method(batch, EARLY)
    assert not any(told in text for text in method.collapse_warnings()), "nothing teaches it yet"
    method(batch, LATE)
    assert not any(told in text for text in method.collapse_warnings()), "two images tell nothing"
    for _ in range(10):
        method(batch, LATE)
    assert any(told in text for text in method.collapse_warnings())
    images = LabeledImages.from_batch(batch)
    logits = torch.zeros(len(images), 3, *images.image.shape[2:])
    logits[:, 1, 0, 0] = 1
    for _ in range(10):
        method.observe_segmentation(logits, images)
    assert not any(told in text for text in method.collapse_warnings())
    assert not any(told in text for text in method.collapse_warnings()), "nothing was seen since the last call"


def test_a_run_shorter_than_its_warm_up_is_told():
    method = method_of(warm_up=6000)
    method(make_batch(), Progress(epoch=1, iteration=3, fraction=2 / 100))
    assert any("`warm_up` will not end in this run" in text for text in method.collapse_warnings())


READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")


class Dispatched(TorchDispatchMode):
    """Count the operators that are dispatched, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("preset", ["default", "released"])
def test_a_step_reads_nothing_back_from_the_device(classes, preset):
    method, batch = method_of(classes, preset, intensity_range=None), make_batch(classes)
    method(batch, LATE)
    with Dispatched() as dispatched:
        sum(method(batch, LATE).values()).backward()
        method.after_step(LATE)
    # On a CPU, where it waits for nothing, the separation looks at how many pixels it compares.
    looks = {"_local_scalar_dense": 1} if preset == "default" else {}
    assert {name: n for name, n in dispatched.counts.items() if name in READS} == looks
    assert dispatched.counts["convolution"] > 0


# ----------------------------------------------------------------------------------------------------- the two networks


def test_the_assignment_network_stays_in_evaluation_mode():
    method = method_of().train()
    assert method.online.training
    assert not any(module.training for module in method.network.modules())
    statistics = {name: value.clone() for name, value in method.network.named_buffers()}
    method(make_batch(), LATE)
    assert all(torch.equal(value, statistics[name]) for name, value in method.network.named_buffers())


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_weights_that_come_after_the_method_was_built_reach_both_networks():
    """Whole weights and those of encoders go into the network that was given; then both are alike."""
    method = method_of()
    method.network.load_state_dict(network_of(seed=5).state_dict())
    assert not equal(method.network, method.online)
    method(make_batch(), EARLY)
    given = network_of(seed=5)
    for network in (method.network, method.online):
        assert all(torch.equal(*pair) for pair in zip(network.parameters(), given.parameters(), strict=True))


def test_encoder_weights_of_the_online_network_reach_both():
    method = method_of()
    with torch.no_grad():
        method.online.encoder.fuse_early.conv.weight.fill_(0.5)
    load_encoder_weights(method.online, "none")
    method(make_batch(), EARLY)
    assert method.network.encoder.fuse_early.conv.weight.unique().tolist() == [0.5]
    assert method.network.encoder_weights["pretrained"] == "none"


def test_the_average_follows_real_steps_alone():
    """While gradients accumulate it stays; the trainer calls it once per step."""
    method, batch = method_of(momentum=0.75, sa=True), make_batch() | {"id": ["a", "b", "c"]}
    optimizer = torch.optim.SGD(method.player_parameters(), lr=0.1)
    start = {name: value.clone() for name, value in method.online.named_parameters()}
    states: list[dict[str, torch.Tensor]] = []
    averages: list[dict[str, torch.Tensor]] = []
    trainer = WSSSTrainer(method, {"online": optimizer}, [batch] * 4, 1, accumulation_steps=2, progress_bar=False)

    def keep(_):
        for kept, network in ((states, method.online), (averages, method.network)):
            kept.append({name: value.detach().clone() for name, value in network.named_parameters()})

    trainer.add_event_handler("ITERATION_COMPLETED", keep)
    trainer.run()
    for name, first in start.items():
        assert torch.equal(averages[0][name], first)
        once = 0.75 * first + 0.25 * states[1][name]
        torch.testing.assert_close(averages[1][name], once)
        assert torch.equal(averages[2][name], averages[1][name])
        torch.testing.assert_close(averages[3][name], 0.75 * once + 0.25 * states[3][name])
    assert int(method.network.encoder.fused.encoder.levels[0][1].conv_0.adn.N.num_batches_tracked) == 4


def test_what_is_deployed_is_the_assignment_network(tmp_path):
    method, batch = method_of(momentum=0.9), make_batch()
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-3))
    WSSSTrainer(
        method, optimizer, [batch] * 3, 1, progress_bar=False, model_path=tmp_path / "model.pt",
        reading={"order": "rows_columns"},
    ).run()  # fmt: skip
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(value, method.network.state_dict()[name]) for name, value in weights.items())
    assert not equal(method.network, method.online)
    assert int(weights["reading_order"]) == 2
    network_of().load_state_dict(weights)


def test_layers_that_are_new_learn_ten_times_as_fast():
    method = method_of()
    groups = method.parameter_groups(6e-5)
    assert [group["lr"] for group in groups] == [6e-5, pytest.approx(6e-4)]
    named = {id(parameter): name for name, parameter in method.online.named_parameters()}
    of_encoder, others = ({named[id(parameter)] for parameter in group["params"]} for group in groups)
    assert of_encoder == {name for name in named.values() if name.startswith("encoder.fused.encoder.")}
    assert of_encoder | others == set(named.values())
    plain = method.parameter_groups(1e-3, encoder_learning_rate=1e-4)
    assert [group["lr"] for group in plain] == [1e-4, 1e-3]


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Expected a network with an auxiliary classifier"):
        CoSA.from_preset(network=TwoBranchNetwork.tiny())
    with pytest.raises(ValueError, match="with parameters to train: a new one"):
        CoSA.from_preset(network=method_of().network)


# ----------------------------------------------------------------------------------------- one class, healthy images


def test_one_class_is_separated_from_its_background(caplog):
    method, batch = method_of(1), make_batch(1)
    assert "`csc_vector` 'bgcat'" in caplog.text
    assert method.settings["csc_vector"] == "bgcat"
    loss = method(batch, LATE)["csc"]
    assert loss > 0
    loss.backward()
    assert method.online.classifier.weight.grad.abs().sum() > 0
    caplog.clear()
    assert method_of(2).settings["csc_vector"] == "cosine"
    assert not caplog.text


@pytest.mark.parametrize("preset", ["default", "paper", "released"])
def test_healthy_images_are_background(preset):
    method, batch = method_of(preset=preset, intensity_range=None), make_batch()
    batch["label"] = torch.zeros(3, 2)
    images = LabeledImages.from_batch(batch)
    maps, _, segmentation = method.assignments(images)
    assert not maps.any()
    assert not method.labels(images, maps).label.any()
    assert torch.equal(method.guidance(images, segmentation, batch)[:, 0], torch.ones(3, 32, 32))
    losses = method(batch, LATE)
    assert all(loss.isfinite() for loss in losses.values())
    if "csc" in losses:
        assert losses["csc"] == 0  # there is nothing to separate
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.online.parameters())


def test_masks_of_the_classification_branch_are_its_labels():
    method, batch = method_of(), make_batch()
    masks = method.class_branch_mask(batch["image"], batch["label"])
    maps, *_ = assigned_of(method, batch)
    strength, winner = maps.max(1)
    assert torch.equal(masks[:, 0].long(), (winner + 1) * (strength >= 0.5))
    assert masks.dtype == torch.uint8


# ------------------------------------------------------------------------------------------ training, resume, processes


def test_both_branches_learn_to_segment():
    """Squares, bright and dark, from labels alone; the assignment network finds them on images it has seen."""
    words = {
        "seed_scale": "minmax",
        "momentum": 0.9,
        "warm_up": 0.3,
        "queue": 20,
        "c2s_weight": 1.0,
        "s2c_weight": 0.5,
        "scales": (1.0,),
    }
    method = CoSA.from_preset(network=network_of(), **words)
    torch.manual_seed(0)
    batch = make_batch(images=5) | {"id": list("abcde")}
    losses: list[dict[str, float]] = []
    optimizer = torch.optim.AdamW(method.player_parameters(), lr=1e-2)
    trainer = WSSSTrainer(method, optimizer, [batch] * 15, 6, progress_bar=False)
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: losses.append(dict(engine.state.output)))
    trainer.run()
    assert losses[-1]["classification"] < 0.2 * losses[0]["classification"]
    with torch.no_grad():
        found = method.network(batch["image"]).argmax(1)
    truth = (batch["image"][:, 0].abs() > 0.3) * batch["label"].matmul(torch.tensor([1.0, 2.0]))[:, None, None]
    sensitivity, specificity = (found == truth)[truth > 0].float().mean(), (found == truth)[truth == 0].float().mean()
    assert min(sensitivity, specificity) > 0.65


class Dropping(nn.Module):
    """A network's decoder with dropout, so that the state of the random numbers matters."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.decoder([F.dropout(each, 0.3, self.training) for each in features])


@pytest.mark.parametrize(
    "words", [{}, {"guide": "noise", "dt_interval": 2}, {"sa": False}, {"seed_scale": "reference"}]
)
def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(tmp_path, words):
    batches = [make_batch() | {"id": list("abc"), "image": make_batch()["image"] + n / 10} for n in range(3)]

    def kill(_):
        raise KeyboardInterrupt

    def run(name: str, *, resume: bool = False, kill_at: int | None = None) -> CoSA:
        network = network_of(seed=3 if resume else 0)  # what a resumed run begins with does not matter
        network.decoder = Dropping(network.decoder)
        torch.manual_seed(1)
        method = CoSA.from_preset(network=network, momentum=0.8, queue=5, warm_up=0.3, **words)
        trainer = WSSSTrainer(
            method, torch.optim.AdamW(method.parameter_groups(1e-3)), batches, 4,
            progress_bar=False, checkpoint_dir=tmp_path / name, resume=resume,
        )  # fmt: skip
        if kill_at is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=kill_at), kill)
        trainer.run()
        return method

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", kill_at=8)
    torch.rand(17)
    resumed = run("killed", resume=True)
    first, second = whole.state_dict(), resumed.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if "sa" not in words:
        assert whole.labels.threshold._updates == resumed.labels.threshold._updates > 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trained_by(batch: dict[str, Any], *, distributed: bool) -> dict[str, torch.Tensor]:
    method = method_of(norm="instance", dt_momentum=0.5)
    optimizer = torch.optim.SGD(method.parameter_groups(1e-3), lr=1e-3, momentum=0.9)
    WSSSTrainer(
        distribute_method(method) if distributed else method, optimizer, [batch] * 3, 1, progress_bar=False
    ).run()  # fmt: skip
    return method.state_dict()


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    start_distributed()
    half = {name: value[2 * rank : 2 * rank + 2] for name, value in make_batch(images=4).items()}
    torch.save(trained_by(half, distributed=True), f"{folder}/{rank}.pt")
    stop_distributed()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Weights of both networks, both thresholds and their queues."""
    mp.spawn(work, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    whole = trained_by(make_batch(images=4), distributed=False)
    assert whole["labels.threshold.value"] != 0.5
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
