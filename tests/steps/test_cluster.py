"""Sub-categories: k-means recovers separate groups, and edge cases of K and T."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rimjax.steps.cluster import cluster_prototypes


def make_groups(seed: int = 0, count: int = 3, size: int = 5) -> np.ndarray:
    """Return rows of distinct directions, group by group; lengths differ within a group."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.eye(count, 8), size, axis=0) + 0.05 * rng.normal(size=(count * size, 8))
    return (rows * rng.uniform(0.5, 4, (len(rows), 1))).astype(np.float32)


def test_separate_groups_give_their_unnormalised_means_in_order() -> None:
    rows = make_groups()
    means = cluster_prototypes(rows, 3, seed=0)
    np.testing.assert_allclose(means, rows.reshape(3, 5, 8).mean(axis=1), rtol=1e-6)
    assert means.dtype == np.float32


def test_length_does_not_decide_the_cluster() -> None:
    rows = np.array([[1, 0], [100, 1], [0, 1], [1, 100]], np.float32)
    np.testing.assert_allclose(cluster_prototypes(rows, 2), [[50.5, 0.5], [0.5, 50.5]])


def test_a_single_cluster_is_the_mean() -> None:
    rows = make_groups()
    np.testing.assert_array_equal(cluster_prototypes(rows, 1), rows.mean(axis=0, keepdims=True))


@pytest.mark.parametrize(
    ("distinct", "num_clusters", "expected"), [(1, 4, 1), (2, 8, 2), (3, 3, 3)]
)
def test_fewer_distinct_directions_give_fewer_clusters(
    distinct: int, num_clusters: int, expected: int
) -> None:
    directions = make_groups(count=3, size=1)[:distinct]
    lengths = np.tile([1, 2, 3, 0.7], distinct)[:, None]
    means = cluster_prototypes(np.repeat(directions, 4, axis=0) * lengths, num_clusters)
    assert means.shape == (expected, 8) and np.isfinite(means).all()


def test_zero_prototypes_are_a_direction_of_their_own() -> None:
    rows = np.array([[0, 0], [2, 0], [4, 0]], np.float32)
    np.testing.assert_array_equal(cluster_prototypes(rows, 2), [[0, 0], [3, 0]])


def test_the_seed_decides() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6))
    means = cluster_prototypes(rows, 8, seed=3)
    np.testing.assert_array_equal(means, cluster_prototypes(rows, 8, seed=3))
    assert cluster_prototypes(rows, 8).shape == (8, 6)


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r'pip install "rimjax\[pipeline\]"'):
        cluster_prototypes(make_groups(), 2)
    assert cluster_prototypes(make_groups(), 1).shape == (1, 8)  # the mean needs no scikit-learn


@pytest.mark.parametrize(
    ("rows", "num_clusters", "message"),
    [
        (np.ones(3), 1, "prototypes must"),
        (np.ones((0, 3)), 1, "prototypes must"),
        (np.full((2, 2), np.nan), 1, "finite"),
        (np.ones((2, 2)), 0, "num"),
    ],
)
def test_bad_arguments_are_named(rows: np.ndarray, num_clusters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_prototypes(rows, num_clusters)
