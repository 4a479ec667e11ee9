"""Stratified splits: the shares they promise, and scikit-learn's where an image has one class."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from wsss_afa.data.folder.split import stratified_split


def tags(n=600, classes=12, seed=0):
    """Many tags an image; the rarest class is in some percent of them."""
    share = np.geomspace(0.4, 0.02, classes)
    return np.random.default_rng(seed).random((n, classes)) < share


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_class_has_its_share(fraction):
    labels = tags()
    groups = np.column_stack([labels, ~labels.any(1)])
    val = stratified_split(labels, fraction, seed=0)
    assert abs(val.sum() - fraction * len(labels)) <= 0.02 * len(labels)
    assert (np.abs(groups[val].sum(0) - fraction * groups.sum(0)) <= 2).all()
    rng = np.random.default_rng(0)
    chance = [rng.permutation(val) for _ in range(20)]
    worst = [np.abs(groups[c].sum(0) - fraction * groups.sum(0)).max() for c in chance]
    assert min(worst) > 2


def test_one_class_an_image_is_split_as_scikit_learn_does():
    classes = np.repeat(np.arange(5), [100, 60, 30, 10, 200])
    val = stratified_split(np.eye(5, dtype=bool)[classes], 0.2, seed=0)
    _, theirs = next(StratifiedShuffleSplit(1, test_size=0.2, random_state=0).split(classes, classes))
    assert np.array_equal(np.bincount(classes[val]), np.bincount(classes[theirs]))


def test_many_rare_classes_still_fill_the_split():
    labels = np.repeat(np.eye(40, dtype=bool), 5, 0)
    assert abs(stratified_split(labels, 0.1, seed=0).sum() - 20) <= 4


def test_the_seed_decides():
    labels = tags()
    splits = [stratified_split(labels, 0.1, seed) for seed in (0, 0, 1)]
    assert np.array_equal(splits[0], splits[1])
    assert not np.array_equal(splits[0], splits[2])


def test_a_class_of_one_image_is_trained_on():
    labels = np.zeros((50, 2), bool)
    labels[:, 0] = True
    labels[7, 1] = True
    assert not any(stratified_split(labels, 0.2, seed)[7] for seed in range(10))


@pytest.mark.parametrize("n", [2, 3, 9])
def test_there_is_always_an_image_for_each_side(n):
    val = stratified_split(np.arange(n)[:, None] > 0, 0.1, seed=0)
    assert 0 < val.sum() < n


def test_only_candidates_are_chosen():
    labels, candidates = tags(), np.zeros(600, bool)
    candidates[::9] = True
    assert 0 < stratified_split(labels, 0.1, 0, candidates).sum() <= 60 + 2
    assert not (stratified_split(labels, 0.5, 0, candidates) & ~candidates).any()
    candidates[:] = False
    candidates[[4, 8]] = True
    assert set(np.flatnonzero(stratified_split(labels, 0.1, 0, candidates))) <= {4, 8}
