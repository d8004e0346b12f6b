# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pseudo-masks: gated by labels, patches merged by score and filtered by tags, resumed after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from PIL import Image
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.data import attach_pseudo_masks, check_pseudo_masks
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer, pseudo_masks, score_pseudo_masks
from monai_wsss.inferers.pseudo_masks import merge_patches
from monai_wsss.networks import CAMEncoder, record_reading
from monai_wsss.refinement import PixelAdaptiveRefinement
from monai_wsss.transforms import LoadImageOrderedd


class Maps(nn.Module):
    """A network that gives the image's first K channels as its maps and counts how often it is asked."""

    output_kind, pooling, groups = "activation", "max", 1
    topk_share, lse_sharpness = 0.1, 5.0

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.classes, self.calls = classes, 0
        self.register_buffer("negative_reference", torch.zeros(classes))
        self.register_buffer("negative_quantile", torch.zeros(classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += len(image)
        return image[:, : self.classes] * self.scale


class AsItIs:
    """An inferer that asks the network once for a batch of images of one size, and keeps the size of each."""

    def __init__(self, slice_batch: int) -> None:
        self.slice_batch = slice_batch
        self.seen: list[int] = []

    def __call__(self, image: torch.Tensor, network: nn.Module) -> torch.Tensor:
        self.seen.append(len(image))
        maps: torch.Tensor = network(image)
        return maps


def patch(id: str, maps: Any, label: list[int], **more: Any) -> dict[str, Any]:
    return {"id": id, "subject": "s", "image": torch.as_tensor(maps, dtype=torch.float32), "label": label, **more}


def writer(
    items: list[dict[str, Any]], out: Path, network: nn.Module | None = None, at_once: int = 32, **options: Any
) -> PseudoMaskWriter:
    options = {"background": False, **options}
    return PseudoMaskWriter(network or Maps(), None, items, dict, AsItIs(at_once), out, **options)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).T  # files are rows first, arrays here columns first


def constant(first: float, second: float, size: int = 4) -> torch.Tensor:
    return torch.tensor([first, second])[:, None, None].expand(2, size, size).clone()


# ---- merging ---------------------------------------------------------------------------------------------------------


def brute_force(maps, labels, origins, label_filter):
    """Merge pixel by pixel from the equations, in float64."""
    masks = []
    for own, (patch_maps, origin) in enumerate(zip(maps, origins, strict=True)):
        _, width, height = patch_maps.shape
        mask = np.zeros((width, height), dtype=np.uint8)
        for x, y in np.ndindex(width, height):
            at = origin[0] + x, origin[1] + y
            scores, allowed = [], np.ones(len(patch_maps), dtype=bool)
            for other, (m, o) in enumerate(zip(maps, origins, strict=True)):
                i, j = at[0] - o[0], at[1] - o[1]
                if 0 <= i < m.shape[1] and 0 <= j < m.shape[2]:
                    scores.append(m[:, i, j].double().numpy())
                    if label_filter == "neighbors" or (label_filter == "patch" and other == own):
                        allowed &= np.asarray(labels[other]) > 0
            mean = np.where(allowed, np.mean(scores, axis=0), -np.inf)
            mask[x, y] = mean.argmax() + 1 if allowed.any() else 255
        masks.append(mask)
    return masks


@pytest.mark.parametrize("label_filter", ["neighbors", "patch", "none"])
@given(data=st.data())
def test_merging_is_the_mean_of_scores_under_the_tags(label_filter, data):
    count = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, 4, generator=generator) for _ in range(count)]
    labels = [data.draw(st.sampled_from([[1, 1], [1, 0], [0, 1]])) for _ in range(count)]
    origins = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(count)]
    found = merge_patches(maps, [torch.tensor(label) for label in labels], origins, label_filter=label_filter)
    for mask, expected in zip(found, brute_force(maps, labels, origins, label_filter), strict=True):
        assert np.array_equal(mask[0].numpy(), expected)


def test_shares_of_the_peak_are_averaged_and_signs_break_ties_alone():
    """Compare means of 0.5 and 0.0125 (Eq. 4) for the classes, whatever lies below zero."""
    first = torch.tensor([[[4.0, 8.0]], [[0.1, 4.0]]])
    second = torch.tensor([[[-6.0, 1.0]], [[-3.0, 1.0]]])
    tags, origins = [torch.ones(2), torch.ones(2)], [(0, 0), (0, 0)]
    assert merge_patches([first, second], tags, origins, scores="cam")[0][0, 0, 0] == 1
    assert merge_patches([first, second], tags, origins, scores="signed")[0][0, 0, 0] == 2 - int(4 - 6 > 0.1 - 3)
    below = [-first, -second.abs()]
    assert torch.equal(*(merge_patches(below, tags, origins, scores=kind)[0] for kind in ("cam", "signed")))


def test_merging_volumes():
    maps = [torch.randn(3, 2, 3, 4), torch.randn(3, 2, 3, 4)]
    masks = merge_patches(maps, [torch.tensor([1, 0, 0]), torch.ones(3)], [(0, 0, 0), (0, 0, 4)])
    assert bool((masks[0] == 1).all())
    assert torch.equal(masks[1][0], (maps[1].argmax(0) + 1).to(torch.uint8))


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_single_tag_makes_a_patch_constant_and_speaks_for_its_neighbors(tmp_path):
    items = [
        patch("a", constant(1, 0), [1, 1], source="p", origin=[0, 0]),
        patch("b", constant(1, 0), [0, 1], source="p", origin=[2, 0]),
        patch("other/picture", constant(1, 0), [1, 1], source="q", origin=[0, 0]),
    ]
    manifest = json.loads(writer(items, tmp_path).run().read_text(encoding="utf-8"))
    assert read(tmp_path / "a.png").tolist() == [[1] * 4, [1] * 4, [2] * 4, [2] * 4]
    assert (read(tmp_path / "b.png") == 2).all()
    assert (read(tmp_path / manifest["files"]["other/picture"]) == 1).all()
    assert manifest["settings"]["label_filter"] == "neighbors"
    attached = attach_pseudo_masks([{"id": "a"}], tmp_path)
    assert attached[0]["pseudo_mask"] == str(tmp_path / "a.png")


def test_normalized_maps_compare_shares_of_the_peak_and_break_ties_by_sign(tmp_path):
    maps = constant(0, 0)
    maps[0, 0, 0], maps[0, 1], maps[1, 1], maps[1, 2:] = 10.0, 2.0, 1.0, -1.0
    maps[0, 2:] = -2.0
    writer([patch("a", maps, [1, 1])], tmp_path / "cam", scores="cam").run()
    found = read(tmp_path / "cam" / "a.png")
    assert found[0, 0] == 1
    assert (found[1] == 2).all()  # 0.2 of 10 against all of 1
    assert (found[2:] == 2).all()  # both without evidence: the less negative
    writer([patch("a", maps, [1, 1])], tmp_path / "signed").run()
    assert (read(tmp_path / "signed" / "a.png")[1] == 1).all()


def test_bare_glass_is_ignored(tmp_path):
    picture = torch.full((3, 4, 4), 255.0)
    picture[:, :2] = 100.0
    items = [patch("a", constant(1, 0), [1, 1], picture=picture)]
    writer(items, tmp_path, white=0.9).run()
    assert read(tmp_path / "a.png").tolist() == [[1] * 4, [1] * 4, [255] * 4, [255] * 4]
    del items[0]["picture"]
    with pytest.raises(DataError, match="copy the image before it is normalized"):
        writer(items, tmp_path, white=0.8).run()


def test_with_a_background_labels_gate_the_mask_and_studies_keep_their_geometry(tmp_path):
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    maps = torch.full((1, 4, 4, 2), -1.0)
    maps[0, :2] = 4.0
    study = MetaTensor(maps, affine=torch.as_tensor(affine), meta={"filename_or_obj": "study.nii.gz"})
    items = [patch("sick", maps, [1]), patch("healthy", maps, [0])]
    for item in items:
        item["image"] = study
    rule = {"rule": "fixed", "threshold": 2.0}
    writer(items, tmp_path / "fixed", Maps(1), background=True, rule=rule).run()
    manifest = json.loads((tmp_path / "fixed" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["rule"] == rule
    assert np.asarray(nibabel.load(tmp_path / "fixed" / "sick.nii.gz").dataobj).sum() == 16
    writer(items, tmp_path, Maps(1), background=True, rule="logit").run()
    sick, healthy = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("sick", "healthy"))
    assert np.allclose(sick.affine, affine)
    assert np.array_equal(np.asarray(sick.dataobj), (maps[0] > 0).numpy())
    assert not np.asarray(healthy.dataobj).any()


@pytest.mark.parametrize("as_batch", [True, False])
def test_volumes_are_cut_along_the_axis_of_the_training(tmp_path, as_batch):
    """The pseudo-mask of a study that is stored sagittally is that of the study stored axially."""
    torch.manual_seed(0)
    network = CAMEncoder.tiny().eval()
    network.negative_reference.zero_()
    record_reading(network, {"slicing_axis": "SI", "in_plane_axes": "LP"})
    values = torch.randn(1, 8, 8, 8 if as_batch else 6)
    lps, psl = np.diag([-1.0, -1.0, 1.0, 1.0]), np.zeros((4, 4))
    psl[[1, 2, 0, 3], [0, 1, 2, 3]] = [-1.0, 1.0, -1.0, 1.0]
    items = []
    for name, volume, affine in (("axial", values, lps), ("sagittal", values.permute(0, 2, 3, 1), psl)):
        meta = {"filename_or_obj": "study.nii.gz"}
        study = MetaTensor(volume.contiguous(), affine=torch.as_tensor(affine), meta=meta)
        items.append({"id": name, "subject": name, "image": study, "label": [1]})
    words = {"rule": "fixed", "threshold": float(network(values[..., 0][None]).median())}
    PseudoMaskWriter(network, None, items, dict, VolumeInferer(2), tmp_path, rule=words).run()
    axial, sagittal = (np.asarray(nibabel.load(tmp_path / f"{item['id']}.nii.gz").dataobj) for item in items)
    assert 0 < axial.mean() < 1
    np.testing.assert_array_equal(axial.transpose(1, 2, 0), sagittal)


def test_a_killed_run_goes_on_and_other_settings_begin_anew(tmp_path):
    items = [patch(str(number), constant(number % 2, 0.5), [1, 1]) for number in range(6)]

    class Killed(Maps):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().forward(image)

    with pytest.raises(KeyboardInterrupt):
        writer(items, tmp_path, Killed(), at_once=1).run()
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert not (tmp_path / "manifest.json").exists()
    network = Maps()
    writer(items, tmp_path, network).run()
    assert network.calls == 3
    writer(items, tmp_path, network).run()
    assert network.calls == 3
    writer(items, tmp_path, network, label_filter="none").run()
    assert network.calls == 9


def test_files_of_images_in_another_order_are_not_kept(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file)
    items = [{"id": "a", "subject": "a", "image": str(file), "label": [1, 1]}]

    def calls(**options: Any) -> int:
        network = Maps()
        PseudoMaskWriter(
            network, None, items, LoadImageOrderedd("image", **options), AsItIs(1), tmp_path / "out", background=False
        ).run()
        return network.calls

    assert [calls(), calls(), calls(order="rows_columns"), calls(order="rows_columns")] == [1, 0, 1, 0]
    # Those of before, whose settings do not tell the order, were read as [x, y].
    settings = json.loads((tmp_path / "out/settings.json").read_text(encoding="utf-8"))
    (tmp_path / "out/settings.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "order"}))
    assert [calls(order="xy")] == [0]


def test_files_of_other_cases_tags_and_sources_are_not_kept(tmp_path):
    items = [patch("a", constant(1, 2), [1, 1]), patch("b", constant(1, 2), [1, 1])]
    writer(items, tmp_path).run()
    writer([patch("a", constant(1, 2), [1, 0])], tmp_path).run()
    assert not (tmp_path / "b.png").exists()
    assert (read(tmp_path / "a.png") == 1).all()
    network = Maps()
    network.cam_source = "pyramid"
    writer([patch("a", constant(1, 2), [1, 0])], tmp_path, network).run()
    assert network.calls == 1
    foreign = tmp_path / "pictures"
    foreign.mkdir()
    Image.new("L", (4, 4)).save(foreign / "mine.png")
    with pytest.raises(DataError, match="choose an empty folder"):
        writer(items, foreign).run()
    assert (foreign / "mine.png").exists()


def test_files_without_regions_and_of_another_axis_are_not_kept(tmp_path):
    items = [patch("a", torch.arange(16.0).reshape(1, 4, 4), [1])]
    inside = [{**items[0], "region": (torch.arange(16).reshape(1, 4, 4) % 4 > 0).float()}]
    for asked in (items, inside):
        writer(asked, tmp_path, background=True, rule="otsu").run()
    assert (read(tmp_path / "a.png") == 255).sum() == 4
    network = Maps()
    for axis in (2, 2, 0):
        other = writer(inside, tmp_path, network, background=True, rule="otsu")
        other.inferer.slice_axis = axis
        other.run()
    assert network.calls == 2


def test_a_second_stage_is_told_what_is_missing_or_old(tmp_path):
    items = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(DataError, match="no finished set of pseudo-masks"):
        check_pseudo_masks(items, tmp_path)
    network = Maps()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    made = writer([patch("a", constant(1, 2), [1, 1])], tmp_path / "out", network)
    made.weights = tmp_path / "model.pt"
    made.run()
    check_pseudo_masks(items[:1], tmp_path / "out", tmp_path / "model.pt")
    with pytest.raises(DataError, match="lack 1 of 2 cases"):
        check_pseudo_masks(items, tmp_path / "out")
    torch.save({**network.state_dict(), "scale": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="of other weights than"):
        check_pseudo_masks(items[:1], tmp_path / "out", tmp_path / "model.pt")


def test_contradicting_tags_are_told(tmp_path, caplog):
    items = [
        patch("a", constant(1, 0), [1, 0], source="p", origin=[0, 0]),
        patch("b", constant(1, 0), [0, 1], source="p", origin=[2, 0]),
    ]
    writer(items, tmp_path).run()
    assert "contradict each other in 50 % of the image of a" in caplog.text
    assert read(tmp_path / "a.png").tolist() == [[1] * 4, [1] * 4, [255] * 4, [255] * 4]


@pytest.mark.parametrize("background", [True, False])
def test_images_of_one_size_go_together(background, tmp_path):
    items = [patch(str(number), constant(1, 0), [1, 1]) for number in range(5)]
    rule = {"rule": "logit"} if background else {}
    made = writer(items, tmp_path, background=background, at_once=2, **rule)
    made.run()
    assert made.inferer.seen == [2, 2, 1]


def two_tissues(size: int = 8) -> torch.Tensor:
    """Give an image of two tissues that meet in the middle."""
    image = torch.zeros(1, size, size)
    image[:, size // 2 :] = 200.0
    return image


def too_large(size: int = 8) -> torch.Tensor:
    """Give the map of a class that is found a row beyond the edge of the second tissue, whose last row it lacks."""
    rows = torch.full((size,), -1.0)
    rows[size // 2 :] = 1.0
    rows[size // 2 - 1], rows[-1] = 0.3, -0.3
    return rows[None, :, None].expand(1, size, size).clone()


PAR = PixelAdaptiveRefinement(dilations=(1, 2), row_stochastic=True)


@pytest.mark.parametrize("refine", [PAR, "crf"])
def test_pseudo_masks_with_a_background_are_drawn_to_the_edges(refine, tmp_path):
    """Absent classes stay absent, and the settings tell of the refinement, so that finished files are not reused."""
    items = [patch(name, too_large(), [tag], intensity=two_tissues()) for name, tag in (("sick", 1), ("healthy", 0))]
    network = Maps(1)
    writer(items, tmp_path, network, background=True, rule="logit").run()
    assert read(tmp_path / "sick.png")[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    asked = network.calls
    made = writer(items, tmp_path, network, background=True, rule="logit", refine=refine)
    settings = json.loads(made.run().read_text(encoding="utf-8"))["settings"]["refine"]
    assert settings["part"] == ("DenseCRF" if refine == "crf" else "PixelAdaptiveRefinement")
    assert settings["iterations"] == 10
    assert network.calls == 2 * asked
    assert read(tmp_path / "sick.png")[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not read(tmp_path / "healthy.png").any()
    made.run()
    assert network.calls == 2 * asked


@pytest.mark.parametrize("refine", [PAR, "crf"])
@pytest.mark.parametrize("label_filter", ["neighbors", "patch"])
def test_patches_are_refined_each_by_its_own_image_before_they_are_merged(refine, label_filter, tmp_path):
    maps = torch.cat((too_large(), -too_large()))
    first = patch("a", maps, [1, 1], source="p", origin=[0, 0], intensity=two_tissues())
    other = patch("b", maps, [1, 1], source="p", origin=[0, 4], intensity=9 * two_tissues() - 5)  # another gain
    writer([first, other], tmp_path / "plain", label_filter=label_filter).run()
    writer([first, other], tmp_path / "refined", label_filter=label_filter, refine=refine).run()
    for name in ("a.png", "b.png"):
        assert read(tmp_path / "plain" / name)[:, 1].tolist() == [2, 2, 2, 1, 1, 1, 1, 2]
        assert (read(tmp_path / "refined" / name) == np.array([2, 2, 2, 2, 1, 1, 1, 1])[:, None]).all()
    single = {**first, "label": [0, 1]}
    writer([single], tmp_path / "single", label_filter=label_filter, refine=refine).run()
    assert (read(tmp_path / "single" / "a.png") == 2).all()


def test_a_crf_and_shares_of_the_peak_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="scores='signed' with a CRF as `refine`"):
        writer([], tmp_path, scores="cam", refine="crf")
    with pytest.raises(ValueError, match="`refine` to be one of none, par, crf, got 'PAR'"):
        writer([], tmp_path, refine="PAR")


def test_weights_are_loaded_and_named(tmp_path):
    network = Maps()
    torch.save({**network.state_dict(), "scale": -torch.ones(1)}, tmp_path / "model.pt")
    made = writer([patch("a", constant(1, 0), [1, 1])], tmp_path / "out", network)
    made.weights = tmp_path / "model.pt"
    manifest = json.loads(made.run().read_text(encoding="utf-8"))
    assert (read(tmp_path / "out" / "a.png") == 2).all()
    assert len(manifest["settings"]["weights_sha256"]) == 64
    made.weights = tmp_path / "absent.pt"
    with pytest.raises(DataError, match=r"absent\.pt"):
        made.run()


# ---- their quality ---------------------------------------------------------------------------------------------------


def test_a_process_waits_for_the_one_that_writes_the_weights(tmp_path, monkeypatch):
    weights = tmp_path / "classifier.pt"
    # The barrier of the processes, of which there is one here.
    monkeypatch.setattr(pseudo_masks, "_wait", lambda: torch.save(Maps().state_dict(), weights))
    made = writer([patch("a", constant(1, 0), [1, 0])], tmp_path / "out")
    made.weights = weights
    assert made.run().is_file()


def test_quality_counts_what_is_not_ignored(tmp_path):
    half = constant(1, 0)
    half[:, 2:] = torch.tensor([0.0, 1.0])[:, None, None]
    picture = torch.full((3, 4, 4), 100.0)
    picture[:, 3] = 255.0
    writer([patch("a", half, [1, 1], picture=picture)], tmp_path / "pseudo", white=0.9).run()
    truth = torch.ones(1, 4, 4)
    truth[:, 2:] = 2

    def transform(item: Any) -> dict[str, Any]:
        return {"pseudo_mask": torch.as_tensor(read(Path(item["pseudo_mask"])).copy())[None], "mask": truth}

    case = {"subject": "s", "label": [1, 1]}
    items = [{"id": "a", "mask": "there", **case}, {"id": "b", **case}]
    places = (tmp_path / "pseudo", items, transform, tmp_path / "quality.json")
    content = score_pseudo_masks(*places, classes=["gland", "other"], background=False)
    assert content["ignored"] == 0.25
    assert content["miou_pooled"] == content["iou_pooled/other"] == 1.0
    assert content["cases"] == 1
    assert json.loads((tmp_path / "quality.json").read_text(encoding="utf-8")) == content
    with pytest.raises(DataError, match="No case of the split has a pixel mask"):
        score_pseudo_masks(tmp_path, items[1:], transform, tmp_path / "q.json", classes=["gland", "other"])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="no case to make a pseudo-mask of"):
        writer([], tmp_path).run()
    with pytest.raises(DataError, match="2 cases, such as b, have no label: choose a split with labels"):
        writer([{"id": "a", "label": [1.0]}, {"id": "b"}, {"id": "c"}], tmp_path).run()
    with pytest.raises(DataError, match='no pseudo-mask of the case "a"'):
        attach_pseudo_masks([{"id": "a"}], tmp_path)
    with pytest.raises(ValueError, match="`label_filter` to be one of"):
        writer([], tmp_path, label_filter="some")
