"""Attention map to foreground mask, with a fake segmenter."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rimjax.steps import localise

IMAGE = np.zeros((16, 24, 3), np.uint8)


class FakeMasker:
    """Returns what it was told to and remembers what it was asked."""

    def __init__(self, answer):
        self.answer = answer

    def mask(self, image, points) -> Any:
        self.image, self.points = image, points
        return self.answer


def blob():
    """Attention on an 8x12 grid that peaks at row 3, column 5."""
    y, x = np.mgrid[:8, :12]
    return np.exp(-((y - 3) ** 2 + (x - 5) ** 2) / 4).astype(np.float32)


def locate(answer, seed=0, **settings):
    masker = FakeMasker(answer)
    return localise.cut_foreground(
        IMAGE, blob(), masker.mask, rng=np.random.default_rng(seed), **settings
    ), masker


def answer(rows, columns):
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[rows, columns] = True
    return mask


def test_a_usable_mask_is_kept():
    good = answer(slice(2, 12), slice(4, 18))
    found, masker = locate(good)
    assert found.is_fallback is False
    np.testing.assert_array_equal(found.mask, good)
    assert masker.image is IMAGE and masker.points is found.points
    assert found.points.shape == (5, 2) and found.points.dtype == np.float32
    assert found.binary.shape == (16, 24)
    assert all(found.binary[int(y), int(x)] for x, y in found.points)  # x first


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("empty", answer([], [])),
        ("misses the map", answer(slice(14, 16), slice(20, 24))),
        ("fills the image", answer(slice(0, 16), slice(0, 23))),
    ],
)
def test_an_unusable_mask_gives_way_to_the_map_over_half(name, bad):
    found, _ = locate(bad)
    assert found.is_fallback is True, name
    np.testing.assert_array_equal(
        found.mask, localise.binarise(localise.resize_map(blob(), (16, 24)), 0.5)
    )
    assert found.mask.sum() > found.binary.sum() > 0


def test_ninety_five_percent_is_still_a_mask():
    wide = np.ones((20, 20), bool)
    wide[0] = False  # 95 % exactly
    image = np.zeros((20, 20, 3), np.uint8)
    assert not localise.cut_foreground(
        image, blob(), FakeMasker(wide).mask, rng=np.random.default_rng(0)
    ).is_fallback


def test_the_threshold_and_the_number_of_points_are_settings():
    mask = answer(slice(2, 12), slice(4, 18))
    assert locate(mask, threshold=0.2)[0].binary.sum() > locate(mask, threshold=0.9)[0].binary.sum()
    assert len(locate(mask, num_points=2)[0].points) == 2
    np.testing.assert_array_equal(locate(mask, seed=1)[0].points, locate(mask, seed=1)[0].points)
    assert (locate(mask, seed=1)[0].points != locate(mask, seed=2)[0].points).any()


def test_binarise_compares_with_the_maximum():
    np.testing.assert_array_equal(
        localise.binarise(np.array([[2.0, 1.39, 1.41, 0.0]]), 0.7), [[True, False, True, False]]
    )
    np.testing.assert_allclose(localise.normalise_map(np.array([[2.0, 1.0]])), [[1, 0.5]])


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)), st.floats(0, 0.99))
def test_binarise_is_never_empty_and_shrinks_with_the_threshold(attention, threshold):
    binary = localise.binarise(attention, threshold)
    assert binary.any()
    assert not (binary & ~localise.binarise(attention, threshold / 2)).any()


def test_a_map_that_says_nothing_is_foreground_everywhere():
    assert localise.binarise(np.zeros((2, 3))).all()


def test_points_are_distinct_and_at_most_the_pixels_there_are():
    binary = np.zeros((5, 6), bool)
    binary[1, 4] = binary[3, 2] = binary[4, 5] = True
    points = localise.sample_points(binary, 5, np.random.default_rng(0))
    assert sorted(map(tuple, points.tolist())) == [(2, 3), (4, 1), (5, 4)]
    assert localise.sample_points(np.zeros((5, 6), bool), 5, np.random.default_rng(0)).shape == (
        0,
        2,
    )


@pytest.mark.parametrize("size", [(16, 24), (8, 12), (19, 31)])
def test_resizing_up_is_jaxs_bilinear(size):
    np.testing.assert_allclose(
        localise.resize_map(blob(), size), jax.image.resize(blob(), size, "bilinear"), atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: localise.binarise(blob(), 1.0), "threshold"),
        (lambda: localise.binarise(np.full((2, 2), np.nan)), "attention must be finite"),
        (lambda: localise.binarise(np.ones(3)), "attention must have shape"),
        (
            lambda: localise.sample_points(np.ones((2, 2), bool), 0, np.random.default_rng(0)),
            "num_points",
        ),
        (
            lambda: localise.cut_foreground(
                IMAGE[..., 0], blob(), FakeMasker(None).mask, rng=np.random.default_rng(0)
            ),
            "image must",
        ),
        (lambda: locate(np.ones((3, 3), bool)), "mask must"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
