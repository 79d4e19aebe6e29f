"""Metrics against scikit-learn and their definition, with ignored pixels and absent classes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from rimjax.evaluation.metrics import (
    Counts,
    bootstrap_class_intervals,
    bootstrap_interval,
    confusion_matrix,
    iou_per_class,
    mean_iou,
)


def make_labels(
    seed: int, shape: tuple[int, int] = (20, 30), classes: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Return a truth and a prediction that is right in more than 60 % of the pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    return truth, np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))


def score_by_sklearn(
    truth: np.ndarray, prediction: np.ndarray, classes: list[int]
) -> np.ndarray | float:
    average: Any = None  # a score per class; scikit-learn's annotation lacks it
    return sklearn.metrics.jaccard_score(truth, prediction, labels=classes, average=average)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_confusion_and_iou_equal_scikit_learns(dtype: type[np.integer]) -> None:
    truth, prediction = (labels.astype(dtype) for labels in make_labels(0))
    confusion = confusion_matrix(truth, prediction, 5)
    assert confusion.dtype == np.int64
    pair, classes = (truth.ravel(), prediction.ravel()), list(range(5))
    np.testing.assert_array_equal(
        confusion, sklearn.metrics.confusion_matrix(*pair, labels=classes)
    )
    expected = score_by_sklearn(*pair, classes)
    np.testing.assert_allclose(iou_per_class(confusion), expected)
    assert mean_iou(confusion) == pytest.approx(np.mean(expected))


def compute_ious(truth: np.ndarray, prediction: np.ndarray, classes: int) -> list[Fraction | None]:
    """Compute each class's IoU from sets of pixels; None for a class without any pixel."""
    counted = np.flatnonzero(truth.ravel() != 255).tolist()
    ious: list[Fraction | None] = []
    for label in range(classes):
        true, predicted = (
            {pixel for pixel in counted if labels.flat[pixel] == label}
            for labels in (truth, prediction)
        )
        union = true | predicted
        ious.append(Fraction(len(true & predicted), len(union)) if union else None)
    return ious


@pytest.mark.parametrize("classes", [1, 2, 5, 21, 81])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.97, 1.0])
def test_random_maps_with_ignored_pixels_equal_the_definition_and_scikit_learn(
    classes: int, ignored: float
) -> None:
    for seed in range(4):
        rng = np.random.default_rng((seed, classes))
        truth, prediction = (
            labels.astype(np.uint8) for labels in make_labels(seed, (13, 17), classes)
        )
        truth[rng.random(truth.shape) < ignored] = 255
        confusion = confusion_matrix(truth, prediction, classes)
        expected = compute_ious(truth, prediction, classes)
        ious = iou_per_class(confusion)
        floats = [np.nan if iou is None else float(iou) for iou in expected]
        np.testing.assert_array_equal(ious, floats)
        for background in (True, False):
            mean = mean_iou(confusion, background)
            present = [iou for iou in expected[0 if background else 1 :] if iou is not None]
            if present:
                exact = float(sum(present) / len(present))
                rounding = 81 * 2**-53  # of a float sum of up to 81
                assert mean == pytest.approx(exact, rel=rounding, abs=0)
            else:
                assert np.isnan(mean)
        counted = truth != 255
        if counted.any():
            present = [label for label, iou in enumerate(expected) if iou is not None]
            scores = score_by_sklearn(truth[counted], prediction[counted], present)
            assert np.array_equal(ious[present], scores)


def test_ignored_pixels_do_not_count_whatever_was_predicted() -> None:
    truth, prediction = np.array([[0, 1, 255], [255, 1, 0]]), np.array([[0, 1, 1], [99, 0, 0]])
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, 2), [[2, 0], [1, 1]])
    with pytest.raises(ValueError, match="truth must lie in"):
        confusion_matrix(truth, prediction, 2, ignore=None)


def test_absent_classes_are_left_out_but_false_alarms_count() -> None:
    confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 3]), 4)
    np.testing.assert_array_equal(iou_per_class(confusion), [1, 0.5, np.nan, 0])
    assert mean_iou(confusion) == pytest.approx(0.5)
    assert np.isnan(mean_iou(np.zeros((3, 3), int)))


def test_confusions_of_images_add_up() -> None:
    pairs = [make_labels(seed) for seed in range(3)]
    total = sum(confusion_matrix(truth, prediction, 5) for truth, prediction in pairs)
    truths, predictions = zip(*pairs, strict=True)
    together = confusion_matrix(np.stack(truths), np.stack(predictions), 5)
    np.testing.assert_array_equal(total, together)


def make_confusions(count: int = 30) -> np.ndarray:
    """Return confusion matrices of images that are right to different degrees."""
    rng, confusions = np.random.default_rng(1), []
    for seed in range(count):
        truth, prediction = make_labels(seed, (6, 6), 3)
        corrected = rng.random((6, 6)) < rng.random()
        confusions.append(confusion_matrix(truth, np.where(corrected, truth, prediction), 3))
    return np.stack(confusions)


def test_the_interval_equals_a_plain_loops() -> None:
    confusions = make_confusions()
    low, high = bootstrap_interval(Counts.from_confusions(confusions), samples=400, seed=0)
    # Other draws of the same distribution: quantiles of 400 agree to about 0.01.
    rng, count = np.random.default_rng(7), len(confusions)
    draws = (confusions[rng.integers(0, count, count)] for _ in range(400))
    means = [mean_iou(draw.sum(axis=0)) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert low < mean_iou(confusions.sum(axis=0)) < high


def test_a_classes_interval_equals_a_plain_loops_over_the_draws_that_hold_it() -> None:
    confusions = make_confusions()
    confusions[2:, 2], confusions[2:, :, 2] = 0, 0  # the last class is rare
    confusions = np.pad(confusions, ((0, 0), (0, 1), (0, 1)))  # and one is nowhere
    bounds = bootstrap_class_intervals(Counts.from_confusions(confusions), samples=400)
    rng, count = np.random.default_rng(7), len(confusions)
    draws = (confusions[rng.integers(0, count, count)].sum(axis=0) for _ in range(400))
    ious = np.stack([iou_per_class(draw) for draw in draws])
    assert np.isnan(ious[:, 2]).any() and not np.isnan(ious[:, 2]).all()
    expected = np.nanquantile(ious[:, :3], [0.025, 0.975], axis=0).T
    np.testing.assert_allclose(bounds[:3], expected, atol=0.03)  # quantiles of other draws
    assert np.isnan(bounds[3]).all()


def test_the_seed_decides_the_interval() -> None:
    confusions = make_confusions()
    counts = Counts.from_confusions(confusions)
    interval = bootstrap_interval(counts, seed=3)
    assert interval == bootstrap_interval(counts, seed=3)
    assert interval != bootstrap_interval(counts, seed=4)


def test_the_interval_widens_with_its_level_and_closes_without_variation() -> None:
    confusions = make_confusions()
    counts = Counts.from_confusions(confusions)
    narrow = bootstrap_interval(counts, level=0.5)
    wide = bootstrap_interval(counts, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    low, high = bootstrap_interval(Counts.from_confusions(np.repeat(confusions[:1], 10, axis=0)))
    assert low == pytest.approx(high) == pytest.approx(mean_iou(confusions[0]))


PAIR = np.zeros(2, int)


def count_nothing(images: int) -> Counts:
    return Counts.from_confusions(np.zeros((images, 2, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: confusion_matrix(np.zeros((2, 2), int), np.zeros(4, int), 2),
            "prediction must have truth's shape",
        ),
        (lambda: confusion_matrix(PAIR, np.array([0, 2]), 2), "prediction must lie in"),
        (lambda: confusion_matrix(np.array([0, -1]), PAIR, 2), "truth must lie in"),
        (lambda: confusion_matrix(np.zeros(2), PAIR, 2), "truth must hold integers"),
        (lambda: Counts.from_confusions(np.zeros((2, 2))), "confusions must"),
        (lambda: bootstrap_interval(count_nothing(0)), "counts must hold at least one image"),
        (lambda: bootstrap_interval(count_nothing(2), level=1.0), "level must"),
        (lambda: bootstrap_interval(count_nothing(2), samples=0), "samples must"),
        (lambda: bootstrap_class_intervals(count_nothing(2), level=0), "level must"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
