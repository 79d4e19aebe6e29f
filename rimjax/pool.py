"""Masked average pooling (paper Eq. 4, 5): the feature of a region is the mean over the feature cells under its mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from rimjax.types import AnyArray, bucket_size

_BLOCK = 16  # masks resized together: P full-size masks as float32 at once would take gigabytes


def resize_masks(masks: Shaped[AnyArray, "P H W"], size: tuple[int, int]) -> Float[Array, "P h w"]:
    """Masks on a grid of `size` (h, w): bilinear, antialiased where it shrinks, so a cell holds the share of it that is covered.

    masks: bool, or weights in [0, 1]. Weights come out in [0, 1]; an empty mask stays all 0. Raises ValueError for another rank.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape [P, H, W], got {list(masks.shape)}")
    if len(masks) == 0:
        return jnp.zeros((0, *size), jnp.float32)
    return lax.map(lambda mask: jax.image.resize(mask.astype(jnp.float32), size, "bilinear"), jnp.asarray(masks), batch_size=_BLOCK)


def masked_average(features: Float[AnyArray, "h w D"], weights: Float[AnyArray, "P h w"]) -> tuple[Float[Array, "P D"], Bool[Array, " P"]]:
    """Weighted mean of the features under each mask, and whether there was any weight (Eq. 4, 5).

    weights: >= 0, any scale. Where they sum to 0 the region is invalid and its feature zero, never NaN, gradients included.
    Computed in float32. Raises ValueError for wrong ranks or grids that differ.
    """
    if features.ndim != 3:
        raise ValueError(f"features must have shape [h, w, D], got {list(features.shape)}")
    if weights.ndim != 3 or weights.shape[1:] != features.shape[:2]:
        raise ValueError(f"weights must have shape [P, h, w] on the features' grid {list(features.shape[:2])}, got {list(weights.shape)}")
    weights = jnp.asarray(weights, jnp.float32)
    total = weights.sum(axis=(1, 2))
    valid = total > 0
    sums = jnp.einsum("phw,hwd->pd", weights, jnp.asarray(features, jnp.float32), precision=lax.Precision.HIGHEST)
    return jnp.where(valid[:, None], sums / jnp.where(valid, total, 1)[:, None], 0), valid


@jax.jit
def pool_regions(features: Float[AnyArray, "h w D"], masks: Shaped[AnyArray, "P H W"]) -> tuple[Float[Array, "P D"], Bool[Array, " P"]]:
    """`masked_average` of the features under full-size masks: f32[P, D] features and bool[P] validity; compiled once per shape.

    To bound the number of compilations, append empty masks up to `types.bucket_size(P)`: they come out invalid.
    """
    return masked_average(features, resize_masks(masks, (features.shape[0], features.shape[1])))


def pool_image(
    features: Float[AnyArray, "h w D"], masks: Bool[np.ndarray, "P H W"]
) -> tuple[Float[np.ndarray, "P D"], Bool[np.ndarray, " P"]]:
    """`pool_regions` of one image, in NumPy; masks are padded to `bucket_size(P)`, so that many images compile a few times only."""
    count = len(masks)
    padded = np.concatenate([masks, np.zeros((bucket_size(count) - count, *masks.shape[1:]), bool)])
    pooled, valid = pool_regions(features, padded)
    return np.asarray(pooled)[:count], np.asarray(valid)[:count]
