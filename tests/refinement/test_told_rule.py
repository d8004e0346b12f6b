# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of predictions that tell their rule: as a server decides them, apart from the network that predicted."""

import copy

import pytest
import torch
from monai.data import Dataset, MetaTensor, list_data_collate, set_track_meta
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_wsss.inferers import VolumeInferer
from monai_wsss.networks import CAMEncoder
from monai_wsss.refinement import ClassMapRefinement, MaskRule, ToMaskd, tell_rule, told_rule


def filled() -> CAMEncoder:
    torch.manual_seed(0)
    network = CAMEncoder.tiny().eval()
    network.negative_reference.fill_(-0.25)
    network.filled.fill_(True)
    return network


def images(number: int = 1, size: tuple[int, ...] = (16, 12)) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"image": MetaTensor(torch.rand(1, *size, generator=generator), affine=torch.eye(4))} for _ in range(number)
    ]


@pytest.fixture
def expected():
    network = filled()

    def mask(item: dict) -> torch.Tensor:
        image = item["image"].as_tensor()[None]
        return ToMaskd("pred", network)({"pred": VolumeInferer()(image, network)[0]})["pred"]

    return mask


def test_a_server_that_copies_the_network_decides_as_the_network_would(expected):
    """Weights go into a copy, and the transform keeps the network without weights: as MONAI Label does it."""
    empty = CAMEncoder.tiny().eval()
    decide, inferer = ToMaskd("pred", empty), VolumeInferer(tell_rule=True)
    network = copy.deepcopy(empty)
    network.load_state_dict(filled().state_dict())
    (item,) = images()
    outputs = inferer(item["image"][None], network)
    assert torch.equal(decide({**item, "pred": outputs[0]})["pred"], expected(item))
    with pytest.raises(ValueError, match="not measured"):
        decide({**item, "pred": outputs[0].as_tensor()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_tells_its_rule(expected):
    """The transform has no network at all: as MONAI Deploy runs it."""
    compiled = torch.jit.script(filled())
    (item,) = images()
    outputs = VolumeInferer(tell_rule=True)(item["image"][None], compiled)
    assert torch.equal(ToMaskd("pred")({**item, "pred": outputs[0]})["pred"], expected(item))


def test_each_image_of_a_batch_tells_its_rule(expected):
    data = Dataset(images(3))
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=list_data_collate)
    found = []
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        loader,
        filled(),
        inferer=VolumeInferer(tell_rule=True),
        prepare_batch=lambda batch, device, non_blocking, **_: (batch["image"], None),
        postprocessing=lambda item: found.append(ToMaskd("pred")(item)["pred"]) or item,
    )
    evaluator.run()
    assert len(found) == 3
    for item, mask in zip(data, found, strict=True):
        assert torch.equal(mask, expected(item))


def test_the_rule_comes_back_as_it_was():
    rule = MaskRule(
        pooling="topk",
        negative_reference=torch.tensor([0.1, -1 / 3]),
        filled=torch.tensor([True, True]),
        groups=2,
        reliable=torch.tensor([True, False]),
        presence_level=torch.tensor([0.2, 1e-8]),
    )

    class Network(nn.Module):
        output_kind = "activation"

        def mask_rule(self) -> MaskRule:
            return rule

    network = Network()
    told = told_rule(tell_rule(torch.zeros(1, 2, 4, 4), images()[0]["image"][None], network)[0])
    assert told.rule.settings() == rule.settings()
    assert (told.slicing_axis, told.network) == (0, id(network))
    for name in ("negative_reference", "reliable", "presence_level"):
        assert getattr(told.rule, name).dtype == getattr(rule, name).dtype


def test_words_of_the_transform_come_before_those_that_are_told():
    (item,) = images()
    outputs = VolumeInferer(tell_rule=True)(item["image"][None], filled())[0]
    for words in ({"rule": "max"}, {"gate": "none"}, {"threshold": 0.9}, {"presence_level": 100.0}):
        told = ToMaskd("pred", **words)({"pred": outputs})["pred"]
        assert torch.equal(told, ToMaskd("pred", filled(), **words)({"pred": outputs.as_tensor()})["pred"])


def test_without_metadata_nothing_is_told_and_the_network_is_asked(expected):
    network = filled()
    (item,) = images()
    set_track_meta(False)
    try:
        outputs = VolumeInferer(tell_rule=True)(item["image"].as_tensor()[None], network)
    finally:
        set_track_meta(True)
    assert not isinstance(outputs, MetaTensor)
    assert torch.equal(ToMaskd("pred", network)({"pred": outputs[0]})["pred"], expected(item))
    with pytest.raises(
        ValueError, match=r"Expected a prediction that tells its rule, .* VolumeInferer\(tell_rule=True\)"
    ):
        ToMaskd("pred")({"pred": outputs[0]})
    assert torch.equal(tell_rule(outputs, item["image"][None], nn.Conv2d(1, 1, 1)), outputs)


def test_a_label_filter_asks_no_network_without_weights():
    class Branches(nn.Module):
        output_kind = "segmentation"

        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(1))

        def branches(self, image: torch.Tensor) -> torch.Tensor:
            return image

    image = images()[0]["image"]
    outputs = tell_rule(torch.zeros(1, 2, 16, 12), image[None], Branches())[0]
    with pytest.raises(ValueError, match="asks the classifier of the network that made the prediction"):
        ToMaskd("pred", Branches(), gate="predicted")({"pred": outputs, "image": image})


def test_refinement_by_name_needs_a_network():
    with pytest.raises(ValueError, match="Expected `network` with `refine`"):
        ToMaskd("pred", refine="par")
    assert ToMaskd("pred", refine=ClassMapRefinement("par", spatial_dims=2)).refinement.spatial_dims == 2
