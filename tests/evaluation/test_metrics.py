"""Metrics against scikit-learn's, and the edges it doesn't have: ignored pixels and absent classes."""

from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics

from rimjax.evaluation.metrics import bootstrap_interval, confusion_matrix, iou_per_class, mean_iou


def labels(seed, shape=(20, 30), classes=5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    return truth, np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_confusion_and_iou_equal_scikit_learns(dtype):
    truth, prediction = (a.astype(dtype) for a in labels(0))
    confusion = confusion_matrix(truth, prediction, 5)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(
        confusion,
        sklearn.metrics.confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(5)),
    )
    expected = sklearn.metrics.jaccard_score(
        truth.ravel(), prediction.ravel(), labels=range(5), average=None
    )  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(iou_per_class(confusion), expected)
    assert mean_iou(confusion) == pytest.approx(np.mean(expected))


def by_definition(truth: np.ndarray, prediction: np.ndarray, classes: int) -> list[Fraction | None]:
    """Each class's intersection over union, from the sets of pixels that have it; None for a class that has none."""
    counted = [
        (t, p)
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True)
        if t != 255
    ]
    sets = [
        [{at for at, pair in enumerate(counted) if pair[side] == one} for side in (0, 1)]
        for one in range(classes)
    ]
    return [
        Fraction(len(true & found), len(true | found)) if true | found else None
        for true, found in sets
    ]


@pytest.mark.parametrize("classes", [1, 2, 5, 21, 81])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.97, 1.0])
def test_random_maps_with_ignored_pixels_equal_the_definition_and_scikit_learn(classes, ignored):
    for seed in range(4):
        rng = np.random.default_rng((seed, classes))
        truth, prediction = (one.astype(np.uint8) for one in labels(seed, (13, 17), classes))
        truth[rng.random(truth.shape) < ignored] = 255
        confusion = confusion_matrix(truth, prediction, classes)
        expected = by_definition(truth, prediction, classes)
        found = iou_per_class(confusion)
        assert [None if np.isnan(iou) else iou for iou in found] == [
            None if iou is None else float(iou) for iou in expected
        ]
        for background in (True, False):
            present = [iou for iou in expected[0 if background else 1 :] if iou is not None]
            mean = mean_iou(confusion, background)
            if present:  # but for the roundings of a float sum of up to 81
                assert mean == pytest.approx(
                    float(sum(present) / len(present)), rel=81 * 2**-53, abs=0
                )
            else:
                assert np.isnan(mean)
        counted = truth != 255
        if counted.any():
            present = [index for index, iou in enumerate(expected) if iou is not None]
            scored = sklearn.metrics.jaccard_score(
                truth[counted], prediction[counted], labels=present, average=None
            )
            assert np.array_equal(found[present], scored)


def test_ignored_pixels_do_not_count_whatever_was_predicted():
    truth, prediction = np.array([[0, 1, 255], [255, 1, 0]]), np.array([[0, 1, 1], [99, 0, 0]])
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, 2), [[2, 0], [1, 1]])
    with pytest.raises(ValueError, match="truth must lie in"):
        confusion_matrix(truth, prediction, 2, ignore=None)


def test_classes_absent_everywhere_are_left_out_but_false_alarms_count():
    confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 3]), 4)
    np.testing.assert_array_equal(iou_per_class(confusion), [1, 0.5, np.nan, 0])
    assert mean_iou(confusion) == pytest.approx(0.5)
    assert np.isnan(mean_iou(np.zeros((3, 3), int)))


def test_scenes_add_up():
    scenes = [labels(seed) for seed in range(3)]
    summed = sum(confusion_matrix(t, p, 5) for t, p in scenes)
    truths, predictions = zip(*scenes, strict=True)
    together = confusion_matrix(np.stack(truths), np.stack(predictions), 5)
    np.testing.assert_array_equal(summed, together)


def scene_confusions(count=30):
    rng = np.random.default_rng(1)
    out = []
    for seed in range(count):
        truth, prediction = labels(seed, (6, 6), 3)
        out.append(
            confusion_matrix(
                truth, np.where(rng.random((6, 6)) < rng.random(), truth, prediction), 3
            )
        )
    return np.stack(out)


def test_the_interval_equals_a_plain_loops():
    confusions = scene_confusions()
    low, high = bootstrap_interval(confusions, samples=400, seed=0)
    rng = np.random.default_rng(
        7
    )  # other draws of the same distribution: quantiles of 400 agree to about 0.01
    means = [
        mean_iou(confusions[rng.integers(0, len(confusions), len(confusions))].sum(axis=0))
        for _ in range(400)
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert low < mean_iou(confusions.sum(axis=0)) < high


def test_the_interval_is_seeded_widens_with_its_level_and_closes_without_variation():
    confusions = scene_confusions()
    assert (
        bootstrap_interval(confusions, seed=3)
        == bootstrap_interval(confusions, seed=3)
        != bootstrap_interval(confusions, seed=4)
    )
    narrow, wide = (
        bootstrap_interval(confusions, level=0.5),
        bootstrap_interval(confusions, level=0.99),
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    low, high = bootstrap_interval(np.repeat(confusions[:1], 10, axis=0))
    assert low == pytest.approx(high) == pytest.approx(mean_iou(confusions[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: confusion_matrix(np.zeros((2, 2), int), np.zeros(4, int), 2),
            "prediction must have truth's shape",
        ),
        (lambda: confusion_matrix(np.zeros(2, int), np.array([0, 2]), 2), "prediction must lie in"),
        (lambda: confusion_matrix(np.array([0, -1]), np.zeros(2, int), 2), "truth must lie in"),
        (lambda: confusion_matrix(np.zeros(2), np.zeros(2, int), 2), "truth must hold integers"),
        (lambda: bootstrap_interval(np.zeros((2, 2))), "confusions must"),
        (lambda: bootstrap_interval(np.zeros((0, 2, 2))), "confusions must"),
        (lambda: bootstrap_interval(np.zeros((2, 2, 2)), level=1.0), "level must"),
        (lambda: bootstrap_interval(np.zeros((2, 2, 2)), samples=0), "samples must"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
