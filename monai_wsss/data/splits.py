# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The splits of a dataset: how names say them, and how they are drawn, by subject and stratified by the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from monai_wsss._checks import check_seed

__all__ = [
    "DRAWN_SHARES",
    "SPLITS",
    "SPLIT_OF_WORD",
    "split_by_subject",
    "split_in_name",
    "take_validation",
    "words_in",
]

SPLITS = ("training", "validation", "test")
"""The three splits of every datalist, by their keys in the JSON."""

DRAWN_SHARES = (0.7, 0.15, 0.15)
"""The shares of the subjects that the splits get where nothing else is said."""

_SPLIT_NAMES = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "heldout", "holdout"),
}
SPLIT_OF_WORD = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
"""Word in small letters → split that it names."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


def words_in(name: str) -> list[str]:
    """Give the words in the name of a file or folder, in small letters; a capital letter begins a word.

    Example:
        >>> words_in("MoNuSegTestData"), words_in("Control_Group_II")
        (['mo', 'nu', 'seg', 'test', 'data'], ['control', 'group', 'ii'])
    """
    return [word.lower() for word in _WORD.findall(name)]


def split_in_name(name: str) -> str | None:
    """Give the split that a word in the name of a file or folder says; None where none does, or several do.

    Example:
        >>> split_in_name("Train Set"), split_in_name("contest"), split_in_name("train_and_test")
        ('training', None, None)
    """
    words = (word.removesuffix("set") for word in words_in(name))  # also "trainset"
    found = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def split_by_subject(
    subjects: Sequence[str],
    labels: Sequence[Sequence[float]] | np.ndarray,
    *,
    fractions: Sequence[float] = DRAWN_SHARES,
    seed: int = 0,
) -> list[str]:
    """Draw a split for every item, the same for all items of a subject, stratified by the labels of the subjects.

    The stratum of a subject is the union of the labels of its items.  Within a stratum the subjects are shuffled and
    dealt out by the largest remainder.  A split that loses by rounding in one stratum gains in the next.

    Args:
        subjects: the subject of every item, (N).
        labels: 0/1 labels of every item, (N, K).
        fractions: shares of the subjects for training, validation and test; they add up to 1.
        seed: the seed of the shuffle.

    Returns:
        "training", "validation" or "test" for every item, (N).

    Raises:
        ValueError: fractions that are negative or do not add up to 1, or lists of different lengths.

    Example:
        >>> split_by_subject(["a", "a", "b", "c", "d"], [[1], [0], [0], [1], [0]], fractions=(0.5, 0.5, 0.0))
        ['training', 'training', 'training', 'validation', 'validation']
    """
    check_seed(seed)
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"Expected `fractions` to be three shares that add up to 1, got {tuple(fractions)}.")
    if len(subjects) != len(labels):
        raise ValueError(f"Expected one row of `labels` for each of {len(subjects)} subjects, got {len(labels)} rows.")
    union: dict[str, np.ndarray] = {}
    for subject, label in zip(subjects, np.asarray(labels, dtype=np.float64), strict=True):
        union[subject] = np.maximum(union.get(subject, 0.0), label)
    strata: dict[tuple[float, ...], list[str]] = {}
    for subject in sorted(union):
        strata.setdefault(tuple(union[subject]), []).append(subject)

    generator = np.random.default_rng(seed)
    carry = np.zeros(3)
    split_of: dict[str, str] = {}
    for stratum in sorted(strata):
        members = generator.permutation(strata[stratum]).tolist()
        quota = shares * len(members) + carry
        counts = np.maximum(np.floor(quota + 1e-9), 0)
        while counts.sum() < len(members):
            counts[np.argmax(np.where(shares > 0, quota - counts, -np.inf))] += 1
        while counts.sum() > len(members):
            counts[np.argmin(np.where(counts > 0, quota - counts, np.inf))] -= 1
        carry = quota - counts
        names = np.repeat(SPLITS, counts.astype(int)).tolist()
        split_of.update(zip(members, names, strict=True))
    return [split_of[subject] for subject in subjects]


def take_validation(
    subjects: Sequence[str],
    labels: Sequence[Sequence[float]] | np.ndarray,
    splits: Sequence[str],
    *,
    share: float,
    seed: int = 0,
) -> list[str]:
    """Take validation items from the training items, by subject; other splits stay as they are.

    The splits that papers give have a test set and often no validation set.  Validation never comes from a test set.

    Args:
        subjects: the subject of every item, (N).
        labels: 0/1 labels of every item, (N, K).
        splits: the split of every item, (N).
        share: share of the training subjects, from 0 to below 1; 0 takes none.
        seed: the seed of the draw.

    Returns:
        The new split of every item, (N).

    Raises:
        ValueError: the share is out of range.

    Example:
        >>> take_validation(["a", "b", "c"], [[1], [1], [1]], ["training", "training", "test"], share=0.5)
        ['training', 'validation', 'test']
    """
    if not 0 <= share < 1:
        raise ValueError(f"Expected `validation_share` from 0 to below 1, got {share:g}.")
    places = [index for index, split in enumerate(splits) if split == "training"]
    if not share or not places:
        return list(splits)
    drawn = split_by_subject(
        [subjects[index] for index in places],
        [labels[index] for index in places],
        fractions=(1 - share, share, 0.0),
        seed=seed,
    )
    changed = list(splits)
    for index, split in zip(places, drawn, strict=True):
        changed[index] = split
    return changed
