"""Masked average pooling: known values, equality with NumPy, and never NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rimjax.steps.pool import _average, average_features, pool_regions, resize_masks


def test_masks_of_the_grids_size_are_unchanged() -> None:
    masks = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    np.testing.assert_allclose(resize_masks(masks, (4, 5)), masks, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    """Plain bilinear sampling would lose thin stripes and single pixels, or fill their cell."""
    stripes = np.tile(np.arange(32) % 4 == 0, (32, 1))[None]
    resized = resize_masks(stripes, (4, 4))
    np.testing.assert_allclose(resized[0, 1:-1, 1:-1], 0.25, atol=1e-3)
    pixel = np.zeros((1, 32, 32), bool)
    pixel[0, 13, 13] = True
    assert 0 < resize_masks(pixel, (4, 4)).sum() < 0.1
    assert resized.min() >= 0 and resized.max() <= 1


def test_growing_is_bilinear() -> None:
    resized = resize_masks(np.array([[[0.0, 1.0]]]), (1, 4))
    np.testing.assert_allclose(resized[0, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_many_masks_resize_as_single_masks_do() -> None:
    masks = np.random.default_rng(1).random((35, 9, 7)) > 0.5
    together = resize_masks(masks, (3, 4))
    alone = np.concatenate([resize_masks(masks[i : i + 1], (3, 4)) for i in (0, 17, 34)])
    np.testing.assert_allclose(together[[0, 17, 34]], alone, atol=1e-6)


def test_the_mean_equals_numpys() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(4, 5, 6)).astype(np.float32)
    weights = rng.random((3, 4, 5)).astype(np.float32)
    pooled, valid = average_features(features, weights)
    rows = features.reshape(-1, 6)
    expected = [
        np.average(rows, axis=0, weights=mask.ravel()) for mask in weights.astype(np.float64)
    ]
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    assert valid.all()
    tiny, _ = average_features(features, weights * 1e-30)
    np.testing.assert_allclose(tiny, pooled, rtol=1e-4, atol=1e-5)


def test_no_weight_gives_an_invalid_zero_and_finite_gradients() -> None:
    features, weights = jnp.ones((2, 2, 3)), jnp.stack([jnp.zeros((2, 2)), jnp.ones((2, 2))])
    pooled, valid = average_features(features, weights)
    assert valid.tolist() == [False, True]
    np.testing.assert_array_equal(pooled, [[0, 0, 0], [1, 1, 1]])

    def total(features: jax.Array, weights: jax.Array) -> jax.Array:
        return average_features(features, weights)[0].sum()

    gradients = jax.grad(total, argnums=(0, 1))(features, weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_pool_regions_averages_the_features_under_each_mask() -> None:
    features = np.zeros((2, 2, 4), np.float32)
    features[[0, 0, 1, 1], [0, 1, 0, 1], range(4)] = 1  # one feature per quadrant
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :4, :4] = True
    masks[1, 4:] = True
    masks[2] = True
    regions = pool_regions(features, masks)
    pooled, padding = np.asarray(regions.features), [False] * 4
    assert regions.valid.tolist() == [True, True, True, False, *padding]
    assert regions.masks is masks and not pooled[4:].any()
    assert pooled[0].argmax() == 0
    np.testing.assert_allclose(pooled[1, 2:], pooled[1, 2], atol=1e-6)
    assert pooled[1, 2] > 0.4 > 0.1 > pooled[1, 0]  # antialiasing mixes in neighbours
    np.testing.assert_allclose(pooled[2], 0.25, atol=1e-6)
    np.testing.assert_array_equal(pooled[3], 0)


def test_resizing_equals_jaxs() -> None:
    masks = np.random.default_rng(3).random((5, 37, 50)) > 0.5
    expected = jax.image.resize(masks.astype(np.float32), (5, 9, 8), "bilinear")
    np.testing.assert_allclose(resize_masks(masks, (9, 8)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "grid"), [((37, 50), (9, 8)), ((64, 48), (4, 16)), ((5, 4), (9, 9))]
)
def test_plain_bilinear_resizing_and_pooling_equal_torchs(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    rng = np.random.default_rng(4)
    masks, features = rng.random((20, *size)) > 0.5, rng.normal(size=(*grid, 3)).astype(np.float32)
    weights = torch.nn.functional.interpolate(
        torch.from_numpy(masks[None].astype(np.float32)), size=grid, mode="bilinear"
    )[0].numpy()
    np.testing.assert_allclose(resize_masks(masks, grid, antialias=False), weights, atol=1e-5)
    expected = [np.average(features.reshape(-1, 3), 0, mask.ravel()) for mask in weights]
    regions = pool_regions(features, masks, antialias=False)
    np.testing.assert_allclose(np.asarray(regions.features)[:20], expected, atol=1e-4)
    shrinks = grid < size
    assert shrinks != np.allclose(resize_masks(masks, grid), weights, atol=0.01)


def test_no_masks_and_low_precision_features() -> None:
    regions = pool_regions(jnp.ones((2, 2, 3), jnp.bfloat16), np.zeros((0, 8, 8), bool))
    assert regions.features.shape == (8, 3) and regions.features.dtype == np.float32
    assert not regions.valid.any()


def test_images_of_any_size_and_number_of_masks_compile_once_per_bucket() -> None:
    """300 photographs of 300 sizes: a trace per bucket of masks, none per image size."""
    count = _average._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before, rng = count(), np.random.default_rng(0)
    features = rng.random((3, 3, 5), np.float32)
    for index in range(300):
        masks = rng.random((1 + index % 20, 4 + index, 7 + index // 2)) > 0.5
        assert len(pool_regions(features, masks).features) in (8, 16, 32)
    assert count() - before == 3


@pytest.mark.parametrize(
    ("features", "weights", "message"),
    [
        ((2, 2), (1, 2, 2), "features must"),
        ((2, 2, 3), (1, 3, 2), "weights must"),
        ((2, 2, 3), (2, 2), "weights must"),
    ],
)
def test_wrong_shapes_are_named(
    features: tuple[int, ...], weights: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        average_features(np.ones(features), np.ones(weights))
    with pytest.raises(ValueError, match="masks must"):
        resize_masks(np.ones((4, 4)), (2, 2))
