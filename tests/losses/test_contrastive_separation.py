# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Contrastive separation against a loop over anchors and pairs in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import Largest

from monai_wsss.losses import contrastive_separation as module
from monai_wsss.losses.contrastive_separation import ContrastiveSeparationLoss, contrastive_separation_loss

SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]
KINDS = ["cosine", "sigmoid", "bgcat", "feature"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4), channels: int = 3, classes: int = 3):
    """Vectors, labels and anchors: some labels ignored, the second image of one class, the last without anchors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn((4, channels, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (4, *size), generator=generator)
    label[1] = 0
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    anchors = torch.rand(label.shape, generator=generator) < 0.7
    anchors[3] = False
    return vectors, label, anchors


def literal(vectors, label, anchors, kind: str = "cosine", temperature: float = 0.1, pairs: str = "image"):
    """The equation, anchor by anchor, differentiable."""
    if kind in ("sigmoid", "bgcat"):
        vectors = vectors.sigmoid()
    if kind == "bgcat":
        vectors = torch.cat((1 - vectors.max(1, keepdim=True).values, vectors), 1)
    vectors = vectors.flatten(2).transpose(1, 2)
    groups = [
        (v[keep], y[keep])
        for v, y, keep in zip(vectors, label.flatten(1), (anchors & (label != 255)).flatten(1), strict=True)
    ]
    if pairs == "batch":
        groups = [(torch.cat([v for v, _ in groups]), torch.cat([y for _, y in groups]))]
    means = []
    for v, y in groups:
        losses = []
        for i in range(len(v)):
            positive = [p for p in range(len(v)) if p != i and y[p] == y[i]]
            negative = [n for n in range(len(v)) if y[n] != y[i]]
            if not positive:
                continue
            s = torch.nn.functional.cosine_similarity(v[i : i + 1], v) / temperature
            pulls = [-s[p] + torch.logsumexp(torch.stack([s[p], *[s[n] for n in negative]]), 0) for p in positive]
            losses.append(torch.stack(pulls).mean())
        if losses:
            means.append(torch.stack(losses).mean())
    return torch.stack(means).mean() if means else 0 * vectors.sum()


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("pairs", ["image", "batch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_value_and_gradient_are_those_of_the_equation(size, pairs, kind, temperature):
    vectors, label, anchors = make(size=size)
    vectors.requires_grad_()
    words = {"temperature": temperature, "pairs": pairs}
    expected = literal(vectors, label, anchors, kind, **words)
    (of_expected,) = torch.autograd.grad(expected, vectors)
    loss = ContrastiveSeparationLoss(vectors=kind, **words)(vectors, label, anchors)
    (gradient,) = torch.autograd.grad(loss, vectors)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, of_expected, rtol=1e-7, atol=1e-10)


def test_no_more_than_four_mebibytes_of_similarities_are_held():
    """All those of 2048 anchors would be 16 MiB."""
    vectors = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = (torch.arange(2048) % 2).reshape(1, 32, 64)
    with Largest() as largest:
        contrastive_separation_loss(vectors, label, torch.ones_like(label, dtype=torch.bool)).backward()
    assert largest.bytes == 4 * 2**20


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize("pairs", ["image", "batch"])
def test_chunks_change_nothing(size, pairs, monkeypatch):
    vectors, label, anchors = make(size=size)
    vectors.requires_grad_()
    results = []
    for entries in (2**20, 100, 1):
        monkeypatch.setattr(module, "ENTRIES", entries)
        loss = contrastive_separation_loss(vectors, label, anchors, pairs=pairs)
        results.append((loss, *torch.autograd.grad(loss, vectors)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize("size", [(3, 2), (2, 1, 3)], ids=IDS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(size, kind):
    vectors, label, anchors = make(size=size)
    loss = ContrastiveSeparationLoss(vectors=kind)
    assert torch.autograd.gradcheck(lambda x: loss(x, label, anchors), vectors.requires_grad_())


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_names_of_classes_places_and_lengths_of_vectors_do_not_matter(seed):
    vectors, label, anchors = make(seed)
    expected = contrastive_separation_loss(vectors, label, anchors)
    assert expected >= 0
    renamed = torch.tensor([7, 3, 0])[label.clamp(max=2)].where(label != 255, 255)
    torch.testing.assert_close(contrastive_separation_loss(vectors, renamed, anchors), expected)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    moved = [part.flatten(-2)[..., order].unflatten(-1, (5, 4)) for part in (vectors, label, anchors)]
    torch.testing.assert_close(contrastive_separation_loss(*moved), expected)
    lengths = 0.1 + torch.rand((4, 1, 5, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(contrastive_separation_loss(vectors * lengths, label, anchors), expected)
    elsewhere = vectors + 5 * ~(anchors & (label != 255))[:, None]
    torch.testing.assert_close(contrastive_separation_loss(elsewhere, label, anchors), expected)


def test_classes_part_when_it_is_followed():
    vectors, label, anchors = make()
    vectors = vectors[:1].clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], 0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = contrastive_separation_loss(vectors, label[:1], anchors[:1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 1 < losses[0]


def test_one_class_needs_the_background_as_a_vector():
    vectors, label, anchors = make(channels=1, classes=2)
    vectors.requires_grad_()
    for kind, pulls in (("cosine", False), ("sigmoid", False), ("bgcat", True)):
        loss = contrastive_separation_loss(vectors, label, anchors, kind=kind)
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert bool((gradient.abs() > 1e-9).any()) == pulls, kind


@pytest.mark.parametrize("pairs", ["image", "batch"])
@pytest.mark.parametrize("nothing", ["anchors", "labels", "one class", "no positives"])
def test_nothing_to_part_is_a_zero_with_a_graph(nothing, pairs):
    vectors, label, anchors = make()
    vectors.requires_grad_()
    if nothing == "anchors":
        anchors.fill_(False)
    elif nothing == "labels":
        label.fill_(255)
    elif nothing == "one class":
        label.fill_(2)
    else:
        label = torch.arange(80).reshape(4, 5, 4)
    loss = contrastive_separation_loss(vectors, label, anchors, pairs=pairs)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert loss.item() == 0
    assert not gradient.any()


def test_vectors_without_direction_have_no_gradient_and_disturb_none():
    vectors, label, anchors = make()
    vectors[0, :, 0] = 0
    vectors.requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive_separation_loss(vectors, label, anchors), vectors)
    assert not gradient[0, :, 0].any()
    assert gradient.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_small_temperature_does_not_overflow(dtype):
    vectors, label, anchors = make()
    given_ = vectors.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_separation_loss(given_, label, anchors, temperature=0.005)
    assert loss.dtype == torch.float32
    expected = literal(given_.detach().double(), label, anchors, temperature=0.005)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-4, atol=1e-4)
    assert bool(torch.autograd.grad(loss, given_)[0].isfinite().all())


def test_some_anchors_stand_for_all():
    vectors, label, anchors = make(size=(16, 16))
    torch.manual_seed(0)
    few = ContrastiveSeparationLoss(max_anchors=100)
    losses = torch.stack([few(vectors, label, anchors) for _ in range(20)])
    assert losses.std() > 0
    # Fewer negatives: the logarithm of their sum is smaller by that of their share.
    expected = contrastive_separation_loss(vectors, label, anchors)
    assert 0.75 * expected < losses.mean() < expected
    many = ContrastiveSeparationLoss(max_anchors=256)
    torch.testing.assert_close(many(vectors, label, anchors), expected)
    none = anchors & torch.zeros_like(anchors)
    assert few(vectors, label, none).item() == 0


def test_bad_input():
    vectors, label, anchors = make()
    with pytest.raises(ValueError, match=r"bool `anchors` of shape \(B, \*S\) = \(4, 5, 4\), got \(4, 5, 4\) and"):
        contrastive_separation_loss(vectors, label, anchors.float())
    with pytest.raises(ValueError, match="bring them to the size of the vectors"):
        contrastive_separation_loss(vectors, label[:, 1:], anchors)
    with pytest.raises(ValueError, match="`vectors` to be one of cosine, sigmoid, bgcat, feature, got 'l2'"):
        ContrastiveSeparationLoss(vectors="l2")
    with pytest.raises(ValueError, match="`pairs` to be one of image, batch"):
        ContrastiveSeparationLoss(pairs="all")
    with pytest.raises(ValueError, match="`temperature` > 0, got 0"):
        ContrastiveSeparationLoss(temperature=0)
    with pytest.raises(ValueError, match="`max_anchors` >= 2 or None, got 1: one anchor has no pair"):
        ContrastiveSeparationLoss(max_anchors=1)
