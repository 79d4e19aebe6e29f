"""Within-class whitening against its definition and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rimjax.steps.whiten import whitened, whitening


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def groups() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 1.0, 1.0, 0.3, 0.3])  # within a class, loud in one direction
    return [rng.normal(size=5) + spread * rng.normal(size=(count, 5)) for count in (20, 30, 7)]


def test_classes_come_out_round(groups: list[np.ndarray]) -> None:
    mean, matrix = whitening(groups, 1e-6)
    rows = [whitened(group, mean, matrix) for group in groups]
    apart = np.concatenate([group - group.mean(0) for group in rows])
    np.testing.assert_allclose(
        apart.T @ apart / len(apart), np.eye(5), atol=1e-3
    )  # float32, and the ridge
    np.testing.assert_allclose(np.mean([group.mean(0) for group in rows], 0), 0, atol=1e-5)


def test_distances_are_those_of_linear_discriminant_analysis(groups: list[np.ndarray]) -> None:
    """LDA's discriminants, all of them, keep the same distances between class means: whitening is LDA without its projection."""
    rows = [unit(group) for group in groups]
    labels = np.repeat(np.arange(3), [len(group) for group in groups])
    lda = LinearDiscriminantAnalysis(solver="eigen", priors=np.bincount(labels) / len(labels)).fit(
        np.concatenate(rows), labels
    )
    theirs = np.stack([lda.transform(group).mean(0) for group in rows])
    ours = np.stack([whitened(group, *whitening(groups, 1e-9)).mean(0) for group in groups])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        expected = np.linalg.norm(theirs[one] - theirs[other])
        assert np.linalg.norm(ours[one] - ours[other]) == pytest.approx(expected, rel=1e-3)


def test_scale_zero_and_too_few(groups: list[np.ndarray]) -> None:
    transform = whitening(groups, 1.0)
    np.testing.assert_allclose(
        whitened(7 * groups[0], *transform), whitened(groups[0], *transform), rtol=1e-5
    )
    assert not whitened(np.zeros((1, 5)), *transform).any()
    np.testing.assert_array_equal(whitening([group[:1] for group in groups], 1.0)[1], np.eye(5))
    with pytest.raises(ValueError, match="ridge"):
        whitening(groups, 0.0)


def test_a_large_ridge_leaves_the_angles(groups: list[np.ndarray]) -> None:
    mean, matrix = whitening(groups, 1e6)
    np.testing.assert_allclose(matrix / matrix[0, 0], np.eye(5), atol=1e-5)
    assert mean.shape == (5,)
