"""Within-class whitening against its definition and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rimjax.steps.whiten import fit_whitening


def normalise(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def groups() -> list[np.ndarray]:
    """Prototypes of three classes."""
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 1.0, 1.0, 0.3, 0.3])  # classes vary most in the first direction
    return [rng.normal(size=5) + spread * rng.normal(size=(count, 5)) for count in (20, 30, 7)]


def test_the_covariance_within_classes_becomes_the_identity(groups: list[np.ndarray]) -> None:
    whitening = fit_whitening(groups, 1e-6)
    rows = [np.asarray(whitening.apply(group)) for group in groups]
    residuals = np.concatenate([group - group.mean(0) for group in rows])
    covariance = residuals.T @ residuals / len(residuals)
    np.testing.assert_allclose(covariance, np.eye(5), atol=1e-3)  # float32 and a small ridge
    np.testing.assert_allclose(np.mean([group.mean(0) for group in rows], 0), 0, atol=1e-5)


def test_distances_are_those_of_linear_discriminant_analysis(groups: list[np.ndarray]) -> None:
    """All of LDA's discriminants keep these distances between class means."""
    rows = [normalise(group) for group in groups]
    labels = np.repeat(np.arange(3), [len(group) for group in groups])
    lda = LinearDiscriminantAnalysis(solver="eigen", priors=np.bincount(labels) / len(labels))
    lda.fit(np.concatenate(rows), labels)
    theirs = np.stack([lda.transform(group).mean(0) for group in rows])
    whitening = fit_whitening(groups, 1e-9)
    ours = np.stack([np.asarray(whitening.apply(group)).mean(0) for group in groups])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = np.linalg.norm(theirs[a] - theirs[b])
        assert np.linalg.norm(ours[a] - ours[b]) == pytest.approx(expected, rel=1e-3)


def test_length_does_not_matter_and_zeros_stay_zero(groups: list[np.ndarray]) -> None:
    whitening = fit_whitening(groups, 1.0)
    scaled, plain = whitening.apply(7 * groups[0]), whitening.apply(groups[0])
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)
    assert not np.asarray(whitening.apply(np.zeros((1, 5)))).any()


def test_a_prototype_per_class_leaves_the_identity(groups: list[np.ndarray]) -> None:
    whitening = fit_whitening([group[:1] for group in groups], 1.0)
    np.testing.assert_array_equal(whitening.matrix, np.eye(5))


@pytest.mark.parametrize("centre", [0.0, 0.5, 1.0])
def test_a_ridge_of_zero_only_subtracts_a_share_of_the_mean(
    groups: list[np.ndarray], centre: float
) -> None:
    whitening = fit_whitening(groups, 0.0, centre)
    mean = np.mean([normalise(group).mean(0) for group in groups], 0)
    np.testing.assert_array_equal(whitening.matrix, np.eye(5))
    np.testing.assert_allclose(
        np.asarray(whitening.apply(groups[0])), normalise(groups[0]) - centre * mean, atol=1e-6
    )


@pytest.mark.parametrize(("ridge", "centre", "name"), [(-1.0, 1.0, "ridge"), (1.0, 1.5, "centre")])
def test_settings_out_of_range_are_refused(
    groups: list[np.ndarray], ridge: float, centre: float, name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        fit_whitening(groups, ridge, centre)


def test_a_large_ridge_keeps_the_angles(groups: list[np.ndarray]) -> None:
    whitening = fit_whitening(groups, 1e6)
    matrix = np.asarray(whitening.matrix)
    np.testing.assert_allclose(matrix / matrix[0, 0], np.eye(5), atol=1e-5)
    assert whitening.mean.shape == (5,)
