# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN: losses by hand, two players with shared conversions, collapse, decision, resume, presets and optimizers."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from monai_wsss.data import UnpairedSampler
from monai_wsss.engines import ImagePool, Progress, Term, WSSSTrainer, polynomial
from monai_wsss.losses import LeastSquaresAdversarialLoss, MinimaxAdversarialLoss
from monai_wsss.methods import CoinGAN, coingan, coingan_parts
from monai_wsss.methods.coingan_parts import CollapseWatch, WayBack, frozen, healthy_part
from monai_wsss.methods.coingan_settings import (
    COINGAN_NETWORKS,
    COINGAN_OPTIMIZERS,
    COINGAN_WORDS,
    CoinganSettings,
    coingan_optimizers,
)
from monai_wsss.networks import CycleGenerator

START = Progress(epoch=1, iteration=1, fraction=0.0)
OF_CYCLEGAN = ("stem", "downs", "blocks", "ups", "head")
SMALL = {"ndf": 4, "num_layers_d": 1}


def make_batch(count: int = 4, size: int = 16, seed: int = 0) -> dict[str, Any]:
    """Noise of which every other image has a bright square."""
    image = 0.4 * torch.rand((count, 1, size, size), generator=torch.Generator().manual_seed(seed)) - 0.8
    image[1::2, :, 4:9, 5:11] += 1.2
    label = torch.arange(count)[:, None] % 2
    return {"image": image, "label": label.float(), "id": [str(number) for number in range(count)]}


def make(preset: str = "identity", **words: Any) -> CoinGAN:
    torch.manual_seed(0)
    plain = {"contrastive": None, "attention": None, "width": 4, "num_res_blocks": 1}
    network = CycleGenerator.tiny()
    return CoinGAN.from_preset(preset, network=network, reverse=CycleGenerator(**plain), **(SMALL | words))


class Affine(nn.Module):
    """A generator whose conversion is known: a I + b + c of the healthy mean; a map as it comes."""

    def __init__(self, a: float = 1.0, b: float = 0.0, c: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift, self.of_mean = (nn.Parameter(torch.tensor(value)) for value in (a, b, c))
        self.calls = 0

    def reference_of(self, healthy: torch.Tensor) -> torch.Tensor:
        return healthy.mean(0)

    def translate(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        return self.scale * image + self.shift + (0 if reference is None else self.of_mean * reference)


class Judge(nn.Module):
    """A discriminator of known logits, a list as MONAI's gives."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(image.detach())
        return [image, self.factor * image]


def by_hand(**options: Any) -> CoinGAN:
    words: dict[str, Any] = {
        "discriminator": Judge(2.0),
        "adversarial": Term(LeastSquaresAdversarialLoss(), 1.0),
        "identity": Term(nn.L1Loss(), 5.0),
    }
    return CoinGAN(Affine(0.5, 0.25, 0.5), **(words | options))  # type: ignore[arg-type]


def halves(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["image"][1::2], batch["image"][::2]


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_equations():
    batch, method = make_batch(), by_hand()
    diseased, healthy = halves(batch)
    converted = 0.5 * diseased + 0.25 + 0.5 * healthy.mean(0)
    same = 0.5 * healthy + 0.25 + 0.5 * healthy.mean(0)
    given = method(batch, START, "generator")
    assert list(given) == ["adversarial", "identity"]
    torch.testing.assert_close(given["adversarial"], (2 * converted - 1).square().mean())
    torch.testing.assert_close(given["identity"], 5 * (same - healthy).abs().mean())
    given = method(batch, START, "discriminator")
    assert list(given) == ["adversarial"]
    torch.testing.assert_close(
        given["adversarial"], (2 * converted).square().mean() + (2 * healthy - 1).square().mean()
    )


def test_the_way_back_is_that_of_cyclegan():
    batch = make_batch()
    back = WayBack(Affine(2.0, 0.5), Judge(-1.0), Term(nn.L1Loss(), 10.0), ImagePool(0))  # type: ignore[arg-type]
    method = by_hand(back=back)
    diseased, healthy = halves(batch)
    mean = healthy.mean(0)
    converted, made_ill = 0.5 * diseased + 0.25 + 0.5 * mean, 2 * healthy + 0.5
    given = method(batch, START, "generator")
    adversarial = (2 * converted - 1).square().mean() + (-made_ill - 1).square().mean()
    torch.testing.assert_close(given["adversarial"], adversarial)
    there = (2 * converted + 0.5 - diseased).abs().mean() + (0.5 * made_ill + 0.25 + 0.5 * mean - healthy).abs().mean()
    torch.testing.assert_close(given["cycle"], 10 * there)
    same = (0.5 * healthy + 0.25 + 0.5 * mean - healthy).abs().mean() + (2 * diseased + 0.5 - diseased).abs().mean()
    torch.testing.assert_close(given["identity"], 5 * same)
    given = method(batch, START, "discriminator")
    expected = made_ill.square().mean() + (-diseased - 1).square().mean()
    torch.testing.assert_close(given["reverse_adversarial"], expected)


def test_equation_10_is_a_sum_over_patches_in_minimax_form():
    batch, method = make_batch(), by_hand(identity=None, adversarial=Term(MinimaxAdversarialLoss(reduction="sum")))
    diseased, healthy = halves(batch)
    logits = 2 * (0.5 * diseased + 0.25 + 0.5 * healthy.mean(0))
    given = method(batch, START, "generator")
    assert list(given) == ["adversarial"]
    torch.testing.assert_close(given["adversarial"], (1 - logits.sigmoid()).log().sum() / 2)


def test_the_discriminator_may_learn_from_diseased_images_and_takes_older_ones_from_the_pool():
    batch, method = make_batch(), by_hand(judge_diseased=True, pool=ImagePool(2, share=1.0))
    outcomes = []
    for step in range(3):
        method.network.shift.data.fill_(float(step))
        method(batch, START, "generator")
        method.discriminator.seen.clear()
        method(batch, START, "discriminator")
        outcomes.append(method.discriminator.seen[0])
    diseased, _ = halves(batch)
    assert outcomes[0].shape[0] == 4
    assert torch.equal(outcomes[2][2:], diseased)
    # The pool holds two: what comes out in later steps was made before.
    assert not torch.equal(outcomes[2][:2], method.network.translate(diseased, None)[:2])
    assert method.pool.seen.item() == 6


# ---- players ---------------------------------------------------------------------------------------------------------


def test_conversions_are_made_once_and_shared():
    batch, method = make_batch(), by_hand()
    method(batch, START, "generator")
    calls = method.network.calls
    method(batch, START, "discriminator")
    assert method.network.calls == calls == 2
    method(batch, START, "discriminator")  # without the generator's step they are made anew
    assert method.network.calls == 3
    method(batch, START, "generator")
    method(make_batch(seed=5), START, "discriminator")  # nor are those of another batch taken
    assert method.network.calls == 6


def test_the_discriminator_may_have_several_steps_on_the_same_conversions():
    batch = make_batch()
    method = make("cyclegan", d_steps=3, pool_size=2, pool_share=1.0)
    assert [method.steps_of(player) for player in method.players] == [1, 3]
    converted: list[torch.Tensor] = []
    translate = method.network.translate

    def counted(*images: torch.Tensor, **words: Any) -> torch.Tensor:
        converted.append(translate(*images, **words))
        return converted[-1]

    method.network.translate = counted
    method(batch, START, "generator")
    made = len(converted)
    for _ in range(3):
        method(batch, START, "discriminator")
    assert len(converted) == made, "nothing is converted once more"
    assert int(method.pool.seen) == int(method.back.pool.seen) == 3 * 2
    method(batch, START, "discriminator")
    assert len(converted) > made, "a fourth step is of another iteration"


def test_each_player_reaches_its_own_parameters_alone():
    batch, method = make_batch(), make("cyclegan")
    own = {player: list(method.player_parameters(player)) for player in method.players}
    assert not {id(one) for one in own["generator"]} & {id(one) for one in own["discriminator"]}
    assert len(own["generator"]) + len(own["discriminator"]) == len(list(method.parameters()))
    for player, other in (("generator", "discriminator"), ("discriminator", "generator")):
        method.zero_grad()
        torch.stack(list(method(batch, START, player).values())).sum().backward()
        assert all(one.grad is not None for one in own[player])
        assert all(one.grad is None for one in own[other])
    assert all(one.requires_grad for one in method.parameters())


def test_frozen_parts_are_trained_again_even_after_an_error():
    part = nn.Linear(2, 2)
    part.bias.requires_grad_(False)
    with frozen(part):
        assert not part.weight.requires_grad
    assert part.weight.requires_grad
    with pytest.raises(RuntimeError), frozen(part):
        part(torch.zeros(1, 3))
    assert part.weight.requires_grad
    assert not part.bias.requires_grad


@pytest.mark.parametrize("preset", ["paper", "cyclegan"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_batches_of_one_kind_teach_what_they_can_and_are_told(preset, label):
    batch, method = make_batch(), make(preset)
    batch["label"].fill_(label)
    for player in method.players:
        total = torch.stack(list(method(batch, START, player).values())).sum()
        total.backward()
        assert total.isfinite()
    (sentence,) = method.collapse_warnings()
    assert "1 batches had images of one kind alone" in sentence


def test_a_process_that_lacks_one_kind_of_image_is_told_before_others_wait_for_it(monkeypatch):
    monkeypatch.setattr(coingan, "is_distributed", lambda: True)
    batch = make_batch(3)
    batch["label"].fill_(1.0)
    with pytest.raises(ValueError, match=r"in each process's batch, got 3 and 0: .* UnpairedSampler"):
        by_hand()(batch, START, "generator")


# ---- collapse --------------------------------------------------------------------------------------------------------


def test_monitors_tell_of_one_image_and_of_the_identity():
    batch, method = make_batch(), by_hand()
    for scale, shift, name, value in ((0.0, 0.3, "output_spread", 0.0), (1.0, 0.1, "difference_ratio", 1.0)):
        for parameter, given in zip(method.network.parameters(), (scale, shift, 0.0), strict=True):
            parameter.data.fill_(given)
        method(batch, START, "generator")
        assert method.monitors("generator")[name].item() == pytest.approx(value, abs=1e-6)
        assert method.monitors("discriminator") == {}
        word = {"output_spread": "nearly one image", "difference_ratio": "converts nothing, or everything"}[name]
        assert any(word in sentence for sentence in method.collapse_warnings())
    assert method.collapse_warnings() == []


def test_healthy_images_are_converted_now_and_then_where_no_term_does(monkeypatch):
    """An epoch may be the whole run, so once per epoch would be too seldom."""
    monkeypatch.setattr(coingan_parts, "EVERY", 3)
    batch, method = make_batch(), by_hand(identity=None)
    calls = []
    for epoch in (1, 1, 1, 1, 2):
        before = method.network.calls
        method(batch, Progress(epoch, 1, 0.0), "generator")
        calls.append(method.network.calls - before)
    assert calls == [2, 1, 1, 2, 2]


def test_an_image_that_is_alone_is_compared_with_the_last_one():
    method = by_hand()
    for parameter, value in zip(method.network.parameters(), (0.0, 0.3, 0.0), strict=True):
        parameter.data.fill_(value)
    for seed in range(3):
        method(make_batch(2, seed=seed), START, "generator")
        assert ("output_spread" in method.monitors("generator")) is (seed > 0)
    assert any("nearly one image" in sentence for sentence in method.collapse_warnings())


def test_images_that_do_not_differ_say_nothing_of_the_spread_and_one_step_does_not_outweigh_others():
    diseased, healthy = halves(make_batch())
    watch, network = CollapseWatch(), by_hand().network
    watch.measure(1, network, (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)), (healthy, 0.5 * healthy), None)
    assert not any("nearly one image" in sentence for sentence in watch.sentences())
    # Two copies of an image that are converted to two others: their ratio is beyond all measure.
    same = diseased[:1].expand(2, -1, -1, -1)
    watch.measure(1, network, (same, diseased), (healthy, 0.5 * healthy), None)
    for _ in range(20):
        watch.measure(1, network, (diseased, 0.01 * diseased), (healthy, 0.5 * healthy), None)
    assert any("nearly one image" in sentence for sentence in watch.sentences())


def test_a_generator_that_changes_nothing_at_all_is_told():
    diseased, healthy = halves(make_batch())
    watch = CollapseWatch()
    watch.measure(1, by_hand().network, (diseased, diseased), (healthy, healthy), None)
    assert any("converts nothing" in sentence for sentence in watch.sentences())


@pytest.mark.parametrize("preset", ["paper", "identity"])
def test_what_the_attention_does_is_logged(preset):
    method, batch = make(preset), make_batch()
    method.network.attention.use_sa = preset == "identity"
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    method(batch, START, "generator")
    given = method.monitors("generator")
    expected = {"difference_ratio", "output_spread", "gate_open", "commonality_ratio", "reference_sensitivity"}
    assert set(given) == expected | ({"mask_open"} if preset == "identity" else set())
    assert all(value.isfinite() and not value.requires_grad for value in given.values())
    diseased, healthy = halves(batch)
    network = method.network.eval()
    with torch.no_grad():
        features, reference = network.represent(diseased), network.represent(healthy).mean(0)
        common = network.attention.commonality(features, reference)
        converted = network.translate(diseased, reference)
        other = network.translate(diseased, features.mean(0))
    ratio = (common.flatten(1).norm(dim=1) / features.flatten(1).norm(dim=1)).mean()
    torch.testing.assert_close(given["commonality_ratio"], ratio)
    sensitivity = (other - converted).abs().mean() / (converted - diseased).abs().mean()
    torch.testing.assert_close(given["reference_sensitivity"], sensitivity, rtol=1e-3, atol=1e-6)
    # Looking changes nothing that training follows: the gates were followed in the conversions of the losses alone.
    changed = {name for name, value in method.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"contrastive.open_fraction.value", "contrastive.open_fraction.filled"}


def test_a_step_without_images_of_one_kind_logs_no_older_values():
    method, batch = by_hand(), make_batch()
    method(batch, START, "generator")
    assert method.monitors("generator")
    batch["label"].fill_(1.0)
    method(batch, START, "generator")
    assert method.monitors("generator") == {}


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_gates_that_tell_nothing_are_told(share):
    method, batch, watch = make(), make_batch(), CollapseWatch()
    method(batch, START, "generator")
    assert 0 < method.monitors("generator")["gate_open"] < 1
    network = method.network
    network.contrastive.open_fraction.value.fill_(share)
    diseased, healthy = halves(batch)
    watch.measure(1, network, (diseased, 0.9 * healthy), (healthy, healthy), None)
    assert any("gates of the contrastive convolution" in sentence for sentence in watch.sentences())


# ---- decision --------------------------------------------------------------------------------------------------------


def test_the_presence_level_is_that_of_healthy_training_images():
    batch, method = make_batch(24), make(presence_quantile=0.75)
    method.finalize([batch, make_batch(8, seed=3)])
    network = method.network.eval()
    with torch.no_grad():
        pooled = torch.cat([network.pool(network(one)) for one in (halves(batch)[1], halves(make_batch(8, seed=3))[1])])
    torch.testing.assert_close(network.presence_level, pooled.quantile(0.75, dim=0))
    assert network.filled.all()
    decision = network.mask_rule()(network(halves(batch)[1]))
    assert decision.mask.flatten(1).any(1).sum() <= 4
    assert method.network.buffer.filled


def test_only_images_without_any_finding_are_healthy():
    label = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    batch = {"image": torch.arange(4.0).reshape(4, 1, 1, 1), "label": label}
    given = list(healthy_part([batch, {"image": batch["image"][1:3], "label": label[1:3]}]))
    assert [one["image"].flatten().tolist() for one in given] == [[0.0, 3.0]]


# ---- training and resume ---------------------------------------------------------------------------------------------


def make_trainer(folder: Any, epochs: int, **options: Any) -> WSSSTrainer:
    method = make("cyclegan", pool_size=3)
    method.network.buffer.inference = "last_batch"  # so that the buffer changes in every step
    optimizers = coingan_optimizers(method, "paper", generator_rate=1e-3)
    batches = [make_batch(4, seed=seed) for seed in range(3)]
    schedulers = {player: polynomial(one, 3, batches) for player, one in optimizers.items()}
    trainer = WSSSTrainer(
        method,
        optimizers,
        batches,
        epochs,
        lr_schedulers=schedulers,
        checkpoint_dir=folder / "checkpoints",
        model_path=folder / "model.pt",
        progress_bar=False,
        finalize_interval=2,
        **options,
    )
    for scheduler in schedulers.values():
        trainer.add_event_handler("ITERATION_COMPLETED", lambda _, scheduler=scheduler: scheduler.step())
    return trainer


@pytest.mark.filterwarnings("ignore:Epoch")
def test_a_killed_and_resumed_run_ends_bit_for_bit_as_the_unkilled_one(tmp_path):
    """With pools, the buffer of healthy images and both optimizers."""
    whole = make_trainer(tmp_path / "whole", 3)
    whole.run()
    killed = make_trainer(tmp_path / "killed", 3)
    killed.add_event_handler("EPOCH_STARTED", lambda engine: engine.state.epoch == 3 and engine.terminate())
    killed.add_event_handler("ITERATION_COMPLETED", lambda engine: engine.state.iteration == 7 and engine.terminate())
    killed.run()
    for late in (tmp_path / "killed" / "checkpoints").glob("epoch_0003.pt"):
        late.unlink()
    resumed = make_trainer(tmp_path / "killed", 3, resume=True)
    resumed.run()
    states = [one.core.state_dict() for one in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert "pool._extra_state" in states[0]
    assert len(states[0]["pool._extra_state"]) == 3
    assert states[0]["network.buffer.filled"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    weights = [torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any("reverse" in name or "discriminator" in name for name in weights[0])
    assert {"generator/difference_ratio", "generator/cycle", "discriminator/reverse_adversarial"} <= set(
        whole.state.output
    )


def blobs(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw smooth fields with noise, and a bright blob in every other one; gives the images and where the blobs are."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    images, masks = [], []
    for number in range(count):
        a, b, c, row, column = (torch.rand(5, generator=draw) - 0.5).tolist()
        image = -0.5 + 0.4 * a * x + 0.4 * b * y + 0.3 * torch.cos(3 * x + 6 * c)
        image = image + 0.03 * torch.randn(size, size, generator=draw)
        distance = (y - row) ** 2 + (x - column) ** 2
        if number % 2:
            image = image + 0.7 * torch.exp(-distance / (2 * 0.12**2))
        images.append(image.clamp(-1, 1))
        masks.append((distance < 0.14**2) & bool(number % 2))
    return torch.stack(images)[:, None], torch.stack(masks)[:, None]


@pytest.mark.slow
def test_it_learns_where_the_blobs_are_without_seeing_any_mask():
    torch.manual_seed(0)
    images, _ = blobs(200, seed=0)
    items = [{"image": image, "label": torch.tensor([float(place % 2)])} for place, image in enumerate(images)]
    loader = DataLoader(items, batch_size=8, sampler=UnpairedSampler(items))  # type: ignore[arg-type]
    network = CoinGAN.network_from_preset(width=8, num_res_blocks=2, num_down=2)
    method = CoinGAN.from_preset(network=network, ndf=16)
    optimizers = coingan_optimizers(method, generator_rate=5e-4, discriminator_rate=5e-4)
    WSSSTrainer(method, optimizers, loader, 4, max_iterations=100, progress_bar=False).run()
    images, masks = blobs(60, seed=9)
    network.eval()
    with torch.no_grad():
        maps, converted = network(images), network.translate(images)
    diseased, where = maps[1::2].flatten(), masks[1::2].flatten()
    ranks = torch.empty_like(diseased)
    ranks[diseased.argsort()] = torch.arange(float(len(diseased)))
    count = where.sum()
    auroc = (ranks[where].sum() - count * (count - 1) / 2) / (count * (len(ranks) - count))
    assert auroc > 0.9
    # The generator that gives one image whatever it gets may pass the above.
    assert converted[1::2].std(0).mean() > 0.3 * images[1::2].std(0).mean()
    decided = network.mask_rule()(maps).mask.flatten(1).any(1)
    assert decided[1::2].float().mean() > 0.8
    assert decided[::2].float().mean() < 0.4


# ---- presets and optimizers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(COINGAN_WORDS))
def test_every_word_has_a_value_with_a_source(preset):
    assert set(COINGAN_WORDS[preset]) == {field.name for field in fields(CoinganSettings)}
    assert set(COINGAN_NETWORKS) == set(COINGAN_WORDS)
    for one in (*COINGAN_WORDS[preset].values(), *COINGAN_NETWORKS[preset].values()):
        assert one.source.startswith(("Eq. ", "Table ", "Fig. ", "Implementation Details", "CycleGAN", "ours"))
    record = CoinganSettings.of_preset(preset, w_identity="3").record(preset)
    assert record["sources"]["w_identity"] == "set otherwise"
    assert json.loads(json.dumps(record)) == record


def test_the_paper_s_values():
    words, network = CoinganSettings.of_preset("paper"), COINGAN_NETWORKS["paper"]
    assert (words.gan_mode, words.adv_reduction, words.w_cycle, words.w_identity) == ("minimax", "sum", 0.0, 0.0)
    with_cycle = CoinganSettings.of_preset("paper_cyclegan")
    assert (with_cycle.gan_mode, with_cycle.adv_reduction) == ("minimax", "sum")
    assert (with_cycle.w_cycle, with_cycle.w_identity, with_cycle.pool_size) == (10.0, 5.0, 50)
    sizes = {name: network[name].value for name in ("width", "num_down", "num_res_blocks", "lam")}
    assert sizes == {"width": 64, "num_down": 3, "num_res_blocks": 9, "lam": 0.3}
    readings = [network[name].value for name in ("incidence", "specificity", "commonality_scale")]
    assert readings == ["reference_channel", "channel", "none"]
    optimizer = {name: one.value for name, one in COINGAN_OPTIMIZERS["paper"].items()}
    assert (optimizer["generator"], optimizer["generator_rate"], optimizer["momentum"]) == ("sgd", 2.5e-4, 0.9)
    assert (optimizer["weight_decay"], optimizer["discriminator_rate"]) == (5e-4, 1e-4)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"use_cconv": False, "use_ca": False, "use_sa": False}, (False, False)),
        ({"use_ca": False, "use_sa": False}, (True, False)),
        ({"use_sa": False}, (True, True)),
        ({"use_ca": "false"}, (True, True)),
        ({}, (True, True)),
    ],
)
def test_the_rows_of_the_ablation_are_switches(row, parts):
    network = CoinGAN.network_from_preset(width=4, num_res_blocks=1, **row)
    assert (network.contrastive is not None, network.attention is not None) == parts
    if network.attention is not None:
        assert (network.attention.use_ca, network.attention.use_sa) == ("use_ca" not in row, "use_sa" not in row)


def test_the_plain_reverse_generator_has_the_size_of_the_other():
    network = CoinGAN.network_from_preset("paper_cyclegan", width=4, num_res_blocks=1, num_down=2)
    method = CoinGAN.from_preset("paper_cyclegan", network=network, **SMALL)
    reverse = method.back.generator
    assert reverse.contrastive is None
    assert reverse.attention is None
    assert [one.shape for one in reverse.downs.parameters()] == [one.shape for one in network.downs.parameters()]
    assert CoinGAN.from_preset("paper", network=network, **SMALL).back is None
    assert method.settings["w_cycle"] == 10
    assert method.settings["lam"] == 0.3


ROW = {"use_cconv": False, "use_ca": False, "use_sa": False}


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", nn.InstanceNorm2d), ("batch", nn.BatchNorm2d), ("none", nn.Identity)]
)
def test_norms_are_a_word_of_both_generators(norm, kind):
    network = CoinGAN.network_from_preset(width=4, num_res_blocks=1, norm=norm)
    method = CoinGAN.from_preset("cyclegan", network=network, **SMALL)
    kinds = (nn.InstanceNorm2d, nn.BatchNorm2d, nn.Identity)
    for made in (network, method.back.generator):
        assert {type(part) for part in made.modules() if isinstance(part, kinds)} == {kind}
        assert sum(isinstance(part, kind) for part in made.modules()) == 1 + 3 + 2 + 3
    assert network.settings["norm"] == norm
    for player in method.players:
        torch.stack(list(method(make_batch(), START, player).values())).sum().backward()
    torch.jit.script(network)
    volumes = CoinGAN.network_from_preset(width=4, num_res_blocks=1, norm=norm, spatial_dims=3, **ROW)
    assert volumes.translate(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 1, 16, 16, 16)


@pytest.mark.parametrize("words", [{"num_down": 2, "embed_stride": 2}, {"width": 6, "num_res_blocks": 0}])
def test_a_network_of_its_own_has_a_reverse_of_its_size(words):
    network = CycleGenerator(**({"width": 4, "num_res_blocks": 1, "output": "residual"} | words))
    reverse = CoinGAN.from_preset("cyclegan", network=network, **SMALL).back.generator
    plain = {name: value.shape for name, value in network.named_parameters() if name.split(".")[0] in OF_CYCLEGAN}
    assert {name: value.shape for name, value in reverse.named_parameters()} == plain
    assert (reverse.stride, reverse.output) == (network.stride, "residual")


def test_zones_of_two_sides_have_weights_of_their_own():
    network = CoinGAN.network_from_preset(width=4, num_res_blocks=1, epz_kernel_size=5)
    assert network.contrastive.epz_weight is not None
    with pytest.raises(ValueError, match="share_weights=False"):
        CoinGAN.network_from_preset(width=4, epz_kernel_size=5, share_weights=True)


def test_optimizers_are_those_of_the_presets_and_norms_do_not_decay():
    method = make("cyclegan")
    made = coingan_optimizers(method, "paper")
    assert isinstance(made["generator"], torch.optim.SGD)
    assert {(group["momentum"], group["lr"]) for group in made["generator"].param_groups} == {(0.9, 2.5e-4)}
    for group in made["generator"].param_groups:
        assert (group["weight_decay"] > 0) == all(one.ndim > 1 for one in group["params"])
    held = [one for group in made["generator"].param_groups for one in group["params"]]
    assert len(held) == len(list(method.player_parameters("generator")))
    assert made["discriminator"].param_groups[0]["lr"] == 1e-4
    both = coingan_optimizers(method)
    assert {type(one) for one in both.values()} == {torch.optim.Adam}
    assert both["discriminator"].param_groups[0]["betas"] == (0.5, 0.999)
    decaying = coingan_optimizers(method, "paper", decay_all="true")["generator"].param_groups
    assert [group["weight_decay"] for group in decaying] == [5e-4]


def test_the_outer_zone_does_not_decay():
    network = CoinGAN.network_from_preset(width=4, num_res_blocks=1, epz_kernel_size=5)
    groups = coingan_optimizers(CoinGAN.from_preset("paper", network=network, **SMALL), "paper")["generator"]
    still = next(group for group in groups.param_groups if group["weight_decay"] == 0)
    assert any(one is network.contrastive.epz_weight for one in still["params"])


def test_a_residual_generator_that_goes_back_and_forth_is_warned_of(caplog):
    network = CoinGAN.network_from_preset(width=4, num_res_blocks=1, output="residual")
    with caplog.at_level(logging.WARNING):
        CoinGAN.from_preset("identity", network=network, **SMALL)
        assert not caplog.records
        CoinGAN.from_preset("cyclegan", network=network, **SMALL)
    assert "begins at the identity" in caplog.text


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CoinGAN.from_preset("best"), ValueError, "`preset` to be one of"),
        (lambda: make(gan_mode="wgan"), ValueError, "`gan_mode` to be one of minimax, nonsaturating, lsgan"),
        (lambda: make(w_nothing=1), TypeError, "w_nothing"),
        (
            lambda: CoinGAN.from_preset(network=CoinGAN.network_from_preset(width=4, inference="batch")),
            ValueError,
            "stores the mean of healthy images, .* got `inference` 'batch'",
        ),
        (lambda: make(d_steps=0), ValueError, "`d_steps` of at least 1, got 0"),
        (lambda: CoinGAN.network_from_preset(norm="layer"), ValueError, "`norm` to be one of instance, batch, none"),
        (lambda: make(presence_quantile=95), ValueError, r"`presence_quantile` in \[0, 1\], got 95"),
        (lambda: CoinGAN.network_from_preset(num_classes=2), ValueError, "a difference has no classes, got 2"),
        (lambda: make(num_classes=2), ValueError, "a difference has no classes, got 2: choose one class"),
        (lambda: coingan_optimizers(make(), "sgd"), ValueError, "`preset` to be one of paper, adam"),
        (lambda: coingan_optimizers(make(), generator="lbfgs"), ValueError, "`generator` to be one of sgd, adam"),
        (lambda: coingan_optimizers(make(), rate=1), TypeError, "got rate"),
        (lambda: make().part_of("network"), ValueError, "`player` to be one of generator, discriminator"),
    ],
)
def test_mistakes_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
