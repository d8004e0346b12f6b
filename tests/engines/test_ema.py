# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The moving average of a network against the formula; which of the two networks counts at first; its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_wsss.engines import WeightAverage
from monai_wsss.networks import TwoBranchNetwork


class Network(nn.Module):
    """A weight, a float and an integer buffer, and a buffer that no checkpoint holds."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.register_buffer("mean", torch.full((2,), 10 * value))
        self.register_buffer("count", torch.tensor(int(value)))
        self.register_buffer("passing", torch.full((1,), -value), persistent=False)


def values(network: Network) -> tuple[float, float, int, float]:
    return network.weight[0].item(), network.mean[0].item(), network.count.item(), network.passing.item()


def test_floats_are_averaged_and_integers_copied():
    average, online, ema = Network(0.0), Network(4.0), WeightAverage(0.75)
    ema.update(average, online)
    assert values(average) == pytest.approx((1.0, 10.0, 4, -1.0))
    ema.update(average, online)
    assert values(average) == pytest.approx((1.75, 17.5, 4, -1.75))
    assert values(online) == (4.0, 40.0, 4, -4.0)
    assert not average.weight.grad_fn
    assert online.weight.requires_grad


def test_several_dtypes_are_averaged_side_by_side():
    average, online = (nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).double()]) for _ in range(2))
    for network, value in ((average, 0.0), (online, 1.0)):
        for parameter in network.parameters():
            nn.init.constant_(parameter, value)
    WeightAverage(0.9).update(average, online)
    assert [parameter.dtype for parameter in average.parameters()] == [torch.float32] * 2 + [torch.float64] * 2
    for parameter in average.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.1))


def test_the_networks_begin_as_one_whatever_filled_the_average():
    average, online, ema = Network(3.0), Network(1.0), WeightAverage(0.9)
    ema.begin(average, online)
    assert values(online) == values(average) == (3.0, 30.0, 3, -3.0)
    nn.init.constant_(online.weight, 7.0)
    ema.begin(average, online)  # a second time
    assert online.weight[0] == 7.0
    assert average.weight[0] == 3.0


@pytest.mark.parametrize("filled", ["online", "average", "both"])
def test_encoder_weights_reach_both_networks(filled, tmp_path):
    torch.manual_seed(0)
    networks = {name: TwoBranchNetwork.tiny() for name in ("average", "online")}
    torch.save(networks["average"].encoder.state_dict(), tmp_path / "encoder.pt")
    for network in networks.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    published = torch.load(tmp_path / "encoder.pt", weights_only=True)
    for name in networks if filled == "both" else [filled]:
        networks[name].encoder.load_state_dict(published)
        networks[name].encoder_weights = {"pretrained": "file"}
    WeightAverage(0.9).begin(networks["average"], networks["online"])
    for network in networks.values():
        assert all(torch.equal(value, published[key]) for key, value in network.encoder.state_dict().items())
    one, other = (network.state_dict() for network in networks.values())
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_loss_outside_of_training_leaves_the_beginning_open():
    average, online, ema = Network(3.0), Network(1.0), WeightAverage(0.9)
    ema.eval().begin(average, online)
    assert not ema.begun
    nn.init.constant_(average.weight, 5.0)
    ema.train().begin(average, online)
    assert ema.begun
    assert online.weight[0] == 5.0


def test_a_resumed_run_does_not_begin_again():
    average, online, ema = Network(3.0), Network(1.0), WeightAverage(0.9)
    ema.begin(average, online)
    resumed = WeightAverage(0.9)
    resumed.load_state_dict(ema.state_dict())
    nn.init.constant_(online.weight, 7.0)
    resumed.begin(average, online)
    assert online.weight[0] == 7.0


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
def test_the_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=r"`momentum` in \[0, 1\), got"):
        WeightAverage(momentum)
