# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The pool of earlier images: what goes in and out, seeds, states, and several processes."""

from __future__ import annotations

import io

import pytest
import torch

from monai_wsss.engines import ImagePool
from monai_wsss.engines import image_pool as module


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)


def numbers(given: torch.Tensor) -> list[int]:
    return given.mean((1, 2, 3)).int().tolist()


def test_a_pool_that_is_not_full_gives_images_back():
    pool = ImagePool(4)
    assert numbers(pool(images(1, 2, 3))) == [1, 2, 3]
    assert numbers(pool.images) == [1, 2, 3]
    assert pool.seen.item() == 3


def test_no_image_is_lost_or_doubled():
    pool, given = ImagePool(4), []
    for first in range(0, 60, 3):
        given += numbers(pool(images(first, first + 1, first + 2)))
    held = numbers(pool.images)
    assert len(held) == 4
    # While it filled, four images were given and kept.
    assert sorted(given + held) == sorted([*range(60), *range(4)])


def test_about_the_share_is_exchanged():
    pool = ImagePool(10)
    given = [number for first in range(1000) for number in numbers(pool(images(first)))]
    exchanged = sum(number != place for place, number in enumerate(given))
    assert 430 < exchanged < 560


@pytest.mark.parametrize(("size", "share"), [(0, 0.5), (3, 0.0)])
def test_without_size_or_share_every_image_comes_back(size, share):
    pool = ImagePool(size, share=share)
    assert [numbers(pool(images(value))) for value in range(8)] == [[value] for value in range(8)]


def test_decisions_depend_on_the_seed():
    runs = [[numbers(pool(images(value))) for value in range(30)] for pool in map(make, (0, 0, 1))]
    assert runs[0] == runs[1] != runs[2]


def make(seed: int) -> ImagePool:
    return ImagePool(3, seed=seed)


def test_what_comes_out_has_no_gradient_and_later_changes_do_not_reach_it():
    pool = ImagePool(2)
    given = torch.ones(2, 1, 2, 2, requires_grad=True)
    assert not pool(given).requires_grad
    with torch.no_grad():
        given.zero_()
    assert pool.images.mean() == 1


def test_a_saved_pool_goes_on_as_it_was():
    pool = ImagePool(3)
    for value in range(7):
        pool(images(value))
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    other = ImagePool(3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.images, pool.images)
    assert [numbers(other(images(value))) for value in range(7, 30)] == [
        numbers(pool(images(value))) for value in range(7, 30)
    ]


def test_an_unused_pool_is_saved_and_loaded():
    other = ImagePool(3)
    other(images(5))
    other.load_state_dict(ImagePool(3).state_dict())
    assert numbers(other(images(1, 2))) == [1, 2]


def test_two_processes_agree_with_one(monkeypatch):
    """Each process has every second image; the others' come by a gathering, which is played here."""
    single = ImagePool(4)
    expected = [numbers(single(images(*range(first, first + 6)))) for first in range(0, 60, 6)]
    monkeypatch.setattr(module, "is_distributed", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    given = []
    for rank in (0, 1):
        monkeypatch.setattr(module.dist, "get_rank", lambda rank=rank: rank)
        pool, own = ImagePool(4), []
        for first in range(0, 60, 6):
            parts = [images(*range(first + other, first + 6, 2)) for other in (0, 1)]
            monkeypatch.setattr(module, "gather_tensors", lambda _, parts=parts: torch.cat(parts))
            own.append(numbers(pool(parts[rank])))
        given.append(own)
        assert torch.equal(pool.images, single.images)
    assert [sorted(zip(*both, strict=True)) for both in zip(*given, strict=True)] == [
        sorted(zip(each[::2], each[1::2], strict=True)) for each in expected
    ]


@pytest.mark.parametrize("words", [{"size": -1}, {"size": 5, "share": 1.5}])
def test_mistakes_are_named(words):
    with pytest.raises(ValueError, match=r"`size` >= 0 and `share` in \[0, 1\]"):
        ImagePool(**words)
