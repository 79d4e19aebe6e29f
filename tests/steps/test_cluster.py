"""Sub-category clustering: separated groups are found, and the edges of K and T."""

import sys

import numpy as np
import pytest

from rimjax.steps.cluster import cluster_prototypes


def groups(seed=0, count=3, size=5):
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.eye(count, 8), size, axis=0) + 0.05 * rng.normal(size=(count * size, 8))
    return (rows * rng.uniform(0.5, 4, (len(rows), 1))).astype(
        np.float32
    )  # lengths differ: only directions cluster


def test_separated_groups_give_the_means_of_their_unnormalised_members_in_order():
    rows = groups()
    got = cluster_prototypes(rows, 3, seed=0)
    np.testing.assert_allclose(got, rows.reshape(3, 5, 8).mean(axis=1), rtol=1e-6)
    assert got.dtype == np.float32


def test_length_does_not_decide_the_cluster():
    rows = np.array([[1, 0], [100, 1], [0, 1], [1, 100]], np.float32)
    np.testing.assert_allclose(cluster_prototypes(rows, 2), [[50.5, 0.5], [0.5, 50.5]])


def test_one_cluster_is_the_mean():
    rows = groups()
    np.testing.assert_array_equal(cluster_prototypes(rows, 1), rows.mean(axis=0, keepdims=True))


@pytest.mark.parametrize(("distinct", "asked", "expected"), [(1, 4, 1), (2, 8, 2), (3, 3, 3)])
def test_fewer_distinct_directions_give_fewer_clusters(distinct, asked, expected):
    rows = (
        np.repeat(groups(count=3, size=1)[:distinct], 4, axis=0)
        * np.tile([1, 2, 3, 0.7], distinct)[:, None]
    )
    got = cluster_prototypes(rows, asked)
    assert got.shape == (expected, 8) and np.isfinite(got).all()


def test_zero_prototypes_are_a_direction_of_their_own():
    np.testing.assert_array_equal(
        cluster_prototypes(np.array([[0, 0], [2, 0], [4, 0]], np.float32), 2), [[0, 0], [3, 0]]
    )


def test_the_seed_decides():
    rows = np.random.default_rng(0).normal(size=(40, 6))
    np.testing.assert_array_equal(
        cluster_prototypes(rows, 8, seed=3), cluster_prototypes(rows, 8, seed=3)
    )
    assert cluster_prototypes(rows, 8).shape == (8, 6)


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r'pip install "rimjax\[pipeline\]"'):
        cluster_prototypes(groups(), 2)
    assert cluster_prototypes(groups(), 1).shape == (1, 8)  # the mean needs none


@pytest.mark.parametrize(
    ("rows", "clusters", "message"),
    [
        (np.ones(3), 1, "prototypes must"),
        (np.ones((0, 3)), 1, "prototypes must"),
        (np.full((2, 2), np.nan), 1, "finite"),
        (np.ones((2, 2)), 0, "num"),
    ],
)
def test_bad_arguments_are_named(rows, clusters, message):
    with pytest.raises(ValueError, match=message):
        cluster_prototypes(rows, clusters)
