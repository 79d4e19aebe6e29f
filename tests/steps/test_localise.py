"""From an attention map to a foreground mask, with a fake segmenter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rimjax.steps.localise import (
    Foreground,
    binarise,
    cut_foreground,
    normalise_map,
    resize_map,
    sample_points,
)

SIZE = (16, 24)
IMAGE = np.zeros((*SIZE, 3), np.uint8)


class FakeMasker:
    """Returns a fixed mask and records its arguments."""

    image: np.ndarray
    points: np.ndarray

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer

    def mask(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        self.image, self.points = image, points
        return self.answer


def make_blob() -> np.ndarray:
    """Return attention on an 8x12 grid that peaks at row 3, column 5."""
    y, x = np.mgrid[:8, :12]
    return np.exp(-((y - 3) ** 2 + (x - 5) ** 2) / 4).astype(np.float32)


def make_mask(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return mask


def make_rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cut(
    mask: np.ndarray, seed: int = 0, *, threshold: float = 0.7, num_points: int = 5
) -> Foreground:
    """Cut out the blob with a segmenter that answers `mask`."""
    return cut_foreground(
        IMAGE,
        make_blob(),
        FakeMasker(mask).mask,
        rng=make_rng(seed),
        threshold=threshold,
        num_points=num_points,
    )


GOOD_MASK = make_mask(slice(2, 12), slice(4, 18))


def test_a_usable_mask_is_kept() -> None:
    masker = FakeMasker(GOOD_MASK)
    foreground = cut_foreground(IMAGE, make_blob(), masker.mask, rng=make_rng())
    assert foreground.is_fallback is False
    np.testing.assert_array_equal(foreground.mask, GOOD_MASK)
    assert masker.image is IMAGE and masker.points is foreground.points
    assert foreground.points.shape == (5, 2) and foreground.points.dtype == np.float32
    assert foreground.binary.shape == SIZE
    assert all(foreground.binary[int(y), int(x)] for x, y in foreground.points)  # x first


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.zeros(SIZE, bool), id="empty"),
        pytest.param(make_mask(slice(14, 16), slice(20, 24)), id="misses the map"),
        pytest.param(make_mask(slice(0, 16), slice(0, 23)), id="fills the image"),
    ],
)
def test_the_map_over_half_its_maximum_replaces_an_unusable_mask(mask: np.ndarray) -> None:
    foreground = cut(mask)
    assert foreground.is_fallback is True
    expected = binarise(resize_map(make_blob(), SIZE), 0.5)
    np.testing.assert_array_equal(foreground.mask, expected)
    assert foreground.mask.sum() > foreground.binary.sum() > 0


def test_a_mask_of_95_percent_is_usable() -> None:
    mask = np.ones((20, 20), bool)
    mask[0] = False  # 95 % exactly
    image = np.zeros((20, 20, 3), np.uint8)
    foreground = cut_foreground(image, make_blob(), FakeMasker(mask).mask, rng=make_rng())
    assert not foreground.is_fallback


def test_the_threshold_and_the_number_of_points_are_settings() -> None:
    low, high = cut(GOOD_MASK, threshold=0.2), cut(GOOD_MASK, threshold=0.9)
    assert low.binary.sum() > high.binary.sum()
    assert len(cut(GOOD_MASK, num_points=2).points) == 2
    points = cut(GOOD_MASK, seed=1).points
    np.testing.assert_array_equal(points, cut(GOOD_MASK, seed=1).points)
    assert (points != cut(GOOD_MASK, seed=2).points).any()


def test_binarise_compares_with_the_maximum() -> None:
    binary = binarise(np.array([[2.0, 1.39, 1.41, 0.0]]), 0.7)
    np.testing.assert_array_equal(binary, [[True, False, True, False]])
    np.testing.assert_allclose(normalise_map(np.array([[2.0, 1.0]])), [[1, 0.5]])


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)), st.floats(0, 0.99))
def test_binarise_is_never_empty_and_shrinks_with_the_threshold(
    attention: np.ndarray, threshold: float
) -> None:
    binary = binarise(attention, threshold)
    assert binary.any()
    assert not (binary & ~binarise(attention, threshold / 2)).any()


def test_a_map_of_zeros_is_foreground_everywhere() -> None:
    assert binarise(np.zeros((2, 3))).all()


def test_points_are_distinct_and_at_most_the_foreground_pixels() -> None:
    binary = np.zeros((5, 6), bool)
    binary[1, 4] = binary[3, 2] = binary[4, 5] = True
    points = sample_points(binary, 5, make_rng())
    assert sorted(map(tuple, points.tolist())) == [(2, 3), (4, 1), (5, 4)]
    assert sample_points(np.zeros((5, 6), bool), 5, make_rng()).shape == (0, 2)


@pytest.mark.parametrize("size", [(16, 24), (8, 12), (19, 31)])
def test_enlarging_equals_jaxs_bilinear_resize(size: tuple[int, int]) -> None:
    expected = jax.image.resize(make_blob(), size, "bilinear")
    np.testing.assert_allclose(resize_map(make_blob(), size), expected, atol=1e-5)


def cut_grey_image() -> Foreground:
    return cut_foreground(IMAGE[..., 0], make_blob(), FakeMasker(GOOD_MASK).mask, rng=make_rng())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binarise(make_blob(), 1.0), "threshold"),
        (lambda: binarise(np.full((2, 2), np.nan)), "attention must be finite"),
        (lambda: binarise(np.ones(3)), "attention must have shape"),
        (lambda: sample_points(np.ones((2, 2), bool), 0, make_rng()), "num_points"),
        (cut_grey_image, "image must"),
        (lambda: cut(np.ones((3, 3), bool)), "mask must"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
