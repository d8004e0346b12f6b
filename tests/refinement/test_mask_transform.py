# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The dictionary transform decides as ``to_mask`` does, by what the network says about itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor

from monai_wsss._checks import DataError
from monai_wsss.methods import SegmentationNetwork
from monai_wsss.networks import CAMEncoder, CAMUNet, ModalityNetworks, TwoBranchNetwork, record_reading
from monai_wsss.refinement import DenseCRF, ToMaskBySliced, ToMaskd, to_mask


def network(pooling: str = "max", num_classes: int = 1, reference: float = -3.0) -> CAMEncoder:
    made = CAMEncoder(2, 1, num_classes, width=2, pooling=pooling)
    made.set_healthy_level(reference, 0.25)
    return made


@pytest.mark.parametrize("rule", [None, "logit", "minmax", "otsu", "mixture", "negative_quantile"])
@pytest.mark.parametrize("shape", [(9, 7), (6, 5, 4)])
def test_it_agrees_with_to_mask_and_adds_map_and_presence(rule, shape):
    scores = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    made = network(num_classes=2)
    item = ToMaskd("pred", made, rule=rule)({"pred": MetaTensor(scores)})
    expected = to_mask(
        scores[None],
        pooling="max",
        rule=rule,
        negative_reference=made.negative_reference,
        negative_quantile=made.negative_quantile,
    )[0]
    torch.testing.assert_close(item["pred"], expected)
    assert item["pred"].dtype == torch.uint8
    assert item["cam"].shape == scores.shape
    assert 0 <= item["cam"].min() <= item["cam"].max() <= 1
    torch.testing.assert_close(item["presence"], scores.flatten(1).amax(1))


def test_the_mask_lies_half_way_between_the_healthy_level_and_the_peak():
    scores = torch.tensor([[[-3.0, -1.1, -0.9, 1.0]]])
    item = ToMaskd("pred", network(reference=-3.0))({"pred": scores})
    assert item["pred"].tolist() == [[[0, 0, 1, 1]]]  # half-way from -3 to 1 is -1


@pytest.mark.parametrize(("gate", "label", "found"), [("given", 0.0, 0), ("given", 1.0, 2), ("none", 1.0, 2)])
def test_the_gate_may_come_from_the_label(gate, label, found):
    scores = torch.tensor([[[-3.0, -2.9, -1.5, -1.0]]])  # the network itself sees no finding
    item = ToMaskd("pred", network(), gate=gate)({"pred": scores, "label": torch.tensor([label])})
    assert int(item["pred"].sum()) == found
    assert int(ToMaskd("pred", network())({"pred": scores})["pred"].sum()) == 0


def test_segmentations_are_cut_by_argmax():
    scores = torch.tensor([[[2.0, 0.0]], [[1.0, 3.0]]])
    item = ToMaskd("pred", SegmentationNetwork.tiny())({"pred": scores})
    assert item["pred"].tolist() == [[[0, 1]]]
    assert "cam" not in item


def test_an_unfinalized_network_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"run `method.finalize\(train_loader\)`"):
        ToMaskd("pred", CAMEncoder.tiny())({"pred": torch.ones(1, 4, 4)})


def test_a_presence_level_is_that_of_the_transform_or_of_the_network():
    scores = torch.tensor([[[0.0, 1e-3]], [[0.0, 0.5]]])  # near-zero responses of class 0 everywhere
    made = network(num_classes=2)
    with_gate = {level: ToMaskd("pred", made, rule="max", presence_level=level) for level in (None, 0.1, (0.1, 0.6))}
    found = {level: set(decide({"pred": scores})["pred"].unique().tolist()) for level, decide in with_gate.items()}
    assert found == {None: {0, 1}, 0.1: {0, 2}, (0.1, 0.6): {0}}
    made.presence_level = 0.1
    for carrying in (made, torch.jit.script(made)):
        item = ToMaskd("pred", carrying, rule="max")({"pred": scores})
        assert item["pred"].unique().tolist() == [0, 2]
        torch.testing.assert_close(item["presence"], torch.tensor([1e-3, 0.5]))  # raw, whatever the level
        assert ToMaskd("pred", carrying, rule="max", presence_level=0.0)({"pred": scores})["pred"].max() == 1


def test_unreliable_modalities_are_left_out_unless_asked_for():
    made = ModalityNetworks([CAMEncoder.tiny() for _ in range(2)], ("T1", "FLAIR"))
    made.reliable.copy_(torch.tensor([False, True]))
    scores = torch.zeros(2, 4, 4)
    scores[0, 0], scores[1, 1] = 2.0, 1.0
    reliable, all_of_them = (
        ToMaskd("pred", made, rule="logit", reliable_only=only)({"pred": scores}) for only in (True, False)
    )
    assert reliable["pred"].nonzero()[:, 1].unique().tolist() == [1]
    assert all_of_them["pred"].nonzero()[:, 1].unique().tolist() == [0, 1]
    assert (reliable["presence"].item(), all_of_them["presence"].item()) == (1.0, 2.0)
    # A study that has unreliable modalities alone is segmented by what it has.
    alone = ModalityNetworks(list(made.members), ("T1", "FLAIR"), present=("T1",))
    alone.reliable.copy_(made.reliable)
    with pytest.warns(UserWarning, match=r"Training found T1 unreliable, and no other modality is present"):
        assert ToMaskd("pred", alone, rule="logit")({"pred": scores[:1]})["pred"].sum() == 4


def test_a_compiled_network_decides_alike():
    made = network()
    scores = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    compiled = ToMaskd("pred", torch.jit.script(made))({"pred": scores})
    assert torch.equal(compiled["pred"], ToMaskd("pred", made)({"pred": scores})["pred"])


def test_a_compiled_network_from_before_the_buffer_filled_decides_alike():
    class Older(torch.nn.Module):
        """The attributes that a compiled network of an earlier version has."""

        def __init__(self) -> None:
            super().__init__()
            self.output_kind, self.pooling, self.groups = "activation", "max", 1
            self.topk_share, self.lse_sharpness = 0.1, 5.0
            self.register_buffer("negative_reference", torch.tensor([-3.0]))
            self.register_buffer("negative_quantile", torch.tensor([torch.nan]))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image

    scores = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    item = ToMaskd("pred", torch.jit.script(Older()))({"pred": scores})
    assert torch.equal(item["pred"], ToMaskd("pred", network())({"pred": scores})["pred"])
    with pytest.raises(ValueError, match=r"`negative_quantile`, which is not measured for channels \[0\]"):
        ToMaskd("pred", torch.jit.script(Older()), rule="negative_quantile")({"pred": scores})


def test_a_network_that_does_not_tell_its_output_is_refused():
    with pytest.raises(ValueError, match=r"attribute `output_kind`.*got Conv2d: give a segmenter to .*Segmentation"):
        ToMaskd("pred", torch.nn.Conv2d(1, 1, 1))({"pred": torch.ones(1, 4, 4)})


def test_a_compiled_network_leaves_out_the_same_modalities():
    made = ModalityNetworks([CAMEncoder.tiny() for _ in range(2)], ("T1", "FLAIR"))
    made.reliable.copy_(torch.tensor([False, True]))
    scores = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    compiled = ToMaskd("pred", torch.jit.script(made), rule="logit")({"pred": scores})
    assert torch.equal(compiled["pred"], ToMaskd("pred", made, rule="logit")({"pred": scores})["pred"])
    alone = torch.jit.script(ModalityNetworks(list(made.members), ("T1", "FLAIR"), present=("T1",)))
    with pytest.raises(ValueError, match=r"compiled network with `present` modalities"):
        ToMaskd("pred", alone, rule="logit")({"pred": scores[:1]})


def test_a_crf_moves_masks_to_the_edges_of_the_image():
    segmenter = SegmentationNetwork.tiny()
    image = torch.zeros(1, 8, 8)
    image[..., 4:] = 200.0
    logits = torch.zeros(2, 8, 8)
    logits[1, :, 3:] = 1.0  # one column too many
    logits[0, :, :3] = 1.0
    item = {"pred": logits, "image": image}
    assert ToMaskd("pred", segmenter)(item)["pred"][0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    refined = ToMaskd("pred", segmenter, refine=DenseCRF.from_preset("bmp"))(item)
    assert refined["pred"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


# -------------------------------------------------------------------------- the label filter of segmentations


class TwoBranches(torch.nn.Module):
    """Its classifier finds the classes whose channel of the image exceeds 0.5."""

    output_kind, spatial_dims = "segmentation", 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def branches(self, image):
        return SimpleNamespace(logits=image.amax((2, 3)) - 0.5 * self.weight)


SCORES = torch.tensor([[[0.0, 0.0, 3.0]], [[1.0, 2.0, 1.0]], [[2.0, 1.0, 0.0]]])  # argmax: 2, 1, 0


@pytest.mark.parametrize(
    ("gate", "mask"), [(None, [2, 1, 0]), ("none", [2, 1, 0]), ("given", [2, 2, 0]), ("predicted", [1, 1, 0])]
)
@pytest.mark.parametrize("refine", ["none", DenseCRF(iterations=0, intensity_range=1.0)])
def test_the_label_filter_leaves_classes_out_and_is_named(gate, mask, refine):
    image = torch.tensor([[[0.1, 0.2, 0.9]], [[0.1, 0.4, 0.3]]])
    transform = ToMaskd("pred", TwoBranches(), gate=gate, refine=refine)
    item = transform({"pred": SCORES, "image": image, "label": torch.tensor([0.0, 1.0])})
    assert item["pred"].flatten().tolist() == mask
    assert item["label_filter"] == transform.settings["label_filter"] == (gate or "none")
    assert ("presence" in item) == (gate == "predicted")
    if gate == "predicted":
        torch.testing.assert_close(item["presence"], torch.tensor([0.4, -0.1]))


def test_the_classifier_has_to_exceed_the_presence_level():
    image = torch.full((2, 1, 3), 0.9)
    transform = ToMaskd("pred", TwoBranches(), gate="predicted", presence_level=(0.0, 0.45))
    assert transform({"pred": SCORES, "image": image})["pred"].flatten().tolist() == [1, 1, 0]


def test_the_classifier_sees_the_image_on_the_grid_of_the_network():
    image = torch.zeros(2, 4, 6)
    image[0, :2, :2] = 0.9
    sizes = []

    class Noting(TwoBranches):
        def branches(self, image):
            sizes.append(tuple(image.shape))
            return super().branches(image)

    for grid in (None, [2, 3]):
        ToMaskd("pred", Noting(), gate="predicted", grid=grid)({"pred": torch.zeros(3, 4, 6), "image": image})
    assert sizes == [(1, 2, 4, 6), (1, 2, 2, 3)]


def test_the_classifier_needs_an_image_of_its_dimensions():
    transform = ToMaskd("pred", TwoBranches(), gate="predicted")
    with pytest.raises(ValueError, match="Expected an image of 2 dimensions for the label filter 'predicted'"):
        transform({"pred": torch.zeros(3, 4, 4, 4), "image": torch.zeros(2, 4, 4, 4)})
    with pytest.raises(ValueError, match="reads the key 'image' of an item"):
        transform({"pred": SCORES})


def test_a_real_network_with_two_branches_and_one_without():
    image = torch.rand(1, 16, 16)
    item = ToMaskd("pred", TwoBranchNetwork.tiny().eval(), gate="predicted")(
        {"pred": image.repeat(2, 1, 1), "image": image}
    )
    assert item["presence"].shape == (1,)
    assert item["pred"].any() <= (item["presence"] > 0).any()
    alone = ToMaskd("pred", SegmentationNetwork.tiny(), gate="predicted")({"pred": image.repeat(2, 1, 1)})
    assert alone["label_filter"] == "predicted"
    assert "presence" not in alone


def test_the_classifier_is_asked_in_evaluation_mode_and_is_not_changed():
    """MONAI's evaluators decide masks after they put the network back into training mode."""
    torch.manual_seed(0)
    asked = TwoBranchNetwork.tiny().train()
    images = [torch.rand(1, 16, 16) * scale for scale in (1.0, 3.0)]
    with torch.no_grad():
        expected = [asked.eval().branches(image[None]).logits[0] for image in images]
    before = {name: value.clone() for name, value in asked.train().state_dict().items()}
    transform = ToMaskd("pred", asked, gate="predicted")
    for image, logits in zip(images, expected, strict=True):
        torch.testing.assert_close(transform({"pred": image.repeat(2, 1, 1), "image": image})["presence"], logits)
    assert asked.training
    assert all(torch.equal(value, before[name]) for name, value in asked.state_dict().items())


def test_activations_have_no_label_filter():
    transform = ToMaskd("pred", network())
    assert "label_filter" not in transform({"pred": torch.zeros(1, 4, 4)})
    assert "label_filter" not in transform.settings


def test_a_case_without_the_label_that_it_is_filtered_by_is_told():
    item = {"pred": torch.zeros(1, 4, 4), "id": "2012_000001"}
    with pytest.raises(DataError, match="Case 2012_000001 has no `label`"):
        ToMaskd("pred", network(), gate="given")(item)


def volume_of_a_few_slices_with_a_finding() -> torch.Tensor:
    """Most slices are healthy and outvote the others in a study as a whole, as average pooling has it."""
    scores = torch.full((1, 8, 8, 10), -1.0)
    scores[..., 3:5] = -0.5
    scores[:, 2:6, 2:6, 3] = 4.0
    scores[:, 2:6, 2:6, 4] = 8.0
    return scores


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_volume_are_normalized_gated_and_cut_by_themselves(axis):
    scores = volume_of_a_few_slices_with_a_finding()
    made = CAMUNet(width=4)
    record_reading(made, {"order": "xy", "slicing_axis": "SI", "in_plane_axes": "LP"})
    affine = torch.eye(4)[[*torch.eye(3).roll(axis + 1, 1).argmax(1).tolist(), 3]]  # S lies on this axis
    volume = scores.movedim(3, 1 + axis)
    item = {"pred": volume, "image": MetaTensor(volume, affine=affine)}
    found = ToMaskBySliced("pred", made, rule="max")(item)
    mask = found["pred"].movedim(1 + axis, 3)
    assert mask.shape == scores.shape
    for z in range(10):
        alone = ToMaskd("pred", made, rule="max")({"pred": scores[..., z]})
        assert torch.equal(mask[..., z], alone["pred"])
        torch.testing.assert_close(found["cam"].movedim(1 + axis, 3)[..., z], alone["cam"])
    assert mask.sum((0, 1, 2)).tolist() == [0, 0, 0, 16, 16, 0, 0, 0, 0, 0]
    torch.testing.assert_close(found["presence"], scores[..., 4].mean()[None])
    whole = ToMaskBySliced("pred", made, by_slice="false", rule="max")(item)
    assert int(whole["pred"].sum()) == 0  # the study as a whole has no tumor by its pooled map
    assert int(ToMaskd("pred", made, rule="max", gate="none")(item)["pred"].sum()) == 16  # nor slices below its peak


def test_refined_slices_are_cut_by_themselves():
    scores, image = volume_of_a_few_slices_with_a_finding(), torch.rand(1, 8, 8, 10)
    words = {"rule": "max", "refine": "par"}
    found = ToMaskBySliced("pred", CAMUNet(width=4), **words)({"pred": scores, "image": image})
    alone = ToMaskd("pred", CAMUNet(width=4), **words)({"pred": scores[..., 3], "image": image[..., 3]})
    assert torch.equal(found["pred"][..., 3], alone["pred"])


def test_given_labels_and_the_record_of_masks_by_slice():
    made = CAMUNet(width=4)
    transform = ToMaskBySliced("pred", made, rule="max", gate="given")
    assert transform.settings["by_slice"] is True
    item = {"pred": volume_of_a_few_slices_with_a_finding(), "label": torch.tensor([1.0])}
    assert transform(item)["pred"].sum((0, 1, 2)).tolist() == [0, 0, 0, 16, 16, 0, 0, 0, 0, 0]
