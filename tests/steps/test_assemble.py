"""Label maps from regions, small enough to write down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rimjax.steps.assemble import label_pixels, paint, vote

SHAPE = (3, 4)


def make_rectangle(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[rows, columns] = True
    return mask


BIG = make_rectangle(slice(0, 2), slice(0, 3))
SMALL = make_rectangle(slice(0, 1), slice(0, 1))
SIDE = make_rectangle(slice(1, 3), slice(2, 4))
BIG_AND_SMALL = np.stack([BIG, SMALL])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_small_regions_stay_visible_whatever_the_order(order: list[int]) -> None:
    labels = paint(BIG_AND_SMALL[order], np.array([5, 7])[order], SHAPE)
    np.testing.assert_array_equal(labels, [[7, 5, 5, 0], [5, 5, 5, 0], [0, 0, 0, 0]])


def test_the_first_of_equal_areas_stays_on_top() -> None:
    left = make_rectangle(slice(0, 1), slice(0, 2))
    right = make_rectangle(slice(0, 1), slice(1, 3))
    assert paint(np.stack([left, right]), [1, 2], SHAPE)[0].tolist() == [1, 1, 2, 0]


def test_invalid_regions_paint_nothing_and_background_regions_paint() -> None:
    np.testing.assert_array_equal(paint(BIG_AND_SMALL, [5, -1], SHAPE), np.where(BIG, 5, 0))
    labels = paint(BIG_AND_SMALL, [5, 0], SHAPE)
    np.testing.assert_array_equal(labels, np.where(BIG & ~SMALL, 5, 0))


def test_the_highest_priority_stays_on_top_then_the_smallest_area() -> None:
    rng = np.random.default_rng(1)
    masks, labels = rng.random((7, 5, 6)) > 0.4, rng.permutation(7) + 1
    for priorities in (rng.random(7), np.array([0.5, 0.1, 0.5, 0.9, 0.5, 0.9, 0.1]), np.zeros(7)):
        expected = np.zeros((5, 6), int)
        for pixel in np.ndindex(5, 6):
            over = np.flatnonzero(masks[(slice(None), *pixel)])
            if len(over):
                best = max(over, key=lambda i: (priorities[i], -masks[i].sum(), -i))
                expected[pixel] = labels[best]
        np.testing.assert_array_equal(paint(masks, labels, (5, 6), priorities), expected)
    np.testing.assert_array_equal(paint(masks, labels, (5, 6)), expected)


def test_votes_are_means_over_the_covering_regions() -> None:
    scores = np.array([[0.1, 0.6, 0.5], [0.2, 0.1, 0.9], [0.0, 0.3, 0.2]])
    expected = np.where(BIG | SIDE, 1, 0)
    expected[SMALL] = 2  # 0.5 + 0.9 beats 0.6 + 0.1
    np.testing.assert_array_equal(vote(np.stack([BIG, SMALL, SIDE]), scores, SHAPE), expected)


def test_votes_equal_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    masks, scores = rng.random((6, 5, 7)) > 0.6, rng.random((6, 4))
    expected = np.zeros((5, 7), int)
    for pixel in np.ndindex(5, 7):
        covering = masks[(slice(None), *pixel)]
        if covering.any():
            expected[pixel] = scores[covering].mean(axis=0).argmax()
    np.testing.assert_array_equal(vote(masks, scores, (5, 7)), expected)


def test_vote_ties_go_to_the_lowest_class_and_invalid_regions_change_nothing() -> None:
    assert (vote(BIG[None], [[0.0, 0.5, 0.5]], SHAPE)[BIG] == 1).all()
    labels = vote(BIG_AND_SMALL, [[0.0, 0.5, 0.6], [0, 0, 0]], SHAPE)
    np.testing.assert_array_equal(labels, np.where(BIG, 2, 0))


@pytest.mark.parametrize("masks", [np.zeros((0, 3, 4), bool), np.zeros((0,), bool)])
def test_no_regions_are_all_background(masks: np.ndarray) -> None:
    for labels in (paint(masks, np.zeros(0, int), SHAPE), vote(masks, np.zeros((0, 3)), SHAPE)):
        assert labels.shape == SHAPE and not labels.any() and labels.dtype == np.int32


def test_scores_of_minus_infinity_never_spread_as_nan() -> None:
    scores = np.array([[[0.2, -np.inf, 0.1], [-np.inf, 0.4, 0.3]]], np.float32)
    labels = label_pixels(scores, (2, 8), np.array([True, True, True]))
    finite = np.array([[[0.2, 0.1, 0.1], [0.1, 0.4, 0.3]]])
    steps = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)
    expected = [((1 - t) * finite[0, 0] + t * finite[0, 1]).argmax() for t in steps]
    np.testing.assert_array_equal(labels, [expected] * 2)
    only = label_pixels(scores, (1, 4), np.array([False, False, True]))
    np.testing.assert_array_equal(only, [[2] * 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paint(BIG, [1], SHAPE), "masks must"),
        (lambda: paint(BIG[None], [1], (4, 3)), "masks must"),
        (lambda: paint(BIG[None], [1, 2], SHAPE), "labels must"),
        (lambda: paint(BIG[None], [1], SHAPE, [1, 2]), "priorities must"),
        (lambda: paint(BIG[None], [1], SHAPE, [np.nan]), "priorities must"),
        (lambda: vote(BIG[None], [1.0, 2.0], SHAPE), "scores must"),
        (lambda: vote(BIG[None], [[1.0], [2.0]], SHAPE), "scores must"),
        (lambda: vote(BIG[None], [[np.nan, 2.0]], SHAPE), "scores must be finite"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
