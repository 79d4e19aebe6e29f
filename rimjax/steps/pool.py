"""Masked average pooling (Eq. 4, 5): a region's feature is the mean of the features under it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Shaped

from rimjax.steps.resize import bilinear_matrix, round_up_side
from rimjax.types import AnyArray, Regions, bucket_size

# Masks resized together, and their pixels: all P at once as float32 would take gigabytes.
_BLOCK, _PIXELS = 16, 1 << 24


def resize_masks(
    masks: np.ndarray, size: tuple[int, int], antialias: bool = True
) -> Float32[np.ndarray, "P h w"]:
    """Resize masks to a grid: bilinear, antialiased where it shrinks.

    Masks are padded to a few side lengths and resized a block at a time, so that the number of
    compilations is bounded whatever the number and size of images.

    Args:
        masks: [P, H, W], booleans or weights in [0, 1].
        size: (h, w) of the grid.
        antialias: False samples each cell's centre alone, so that a small mask may vanish.

    Returns:
        The share of each cell that a mask covers, in [0, 1]; an empty mask stays all 0.

    Raises:
        ValueError: masks have another rank.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape [P, H, W], got {list(masks.shape)}")
    sides = [round_up_side(side) for side in masks.shape[1:]]
    rows, columns = (
        np.pad(bilinear_matrix(side, cells, antialias), ((0, 0), (0, padded - side)))
        for side, cells, padded in zip(masks.shape[1:], size, sides, strict=True)
    )
    together = max(1, min(_BLOCK, _PIXELS // (sides[0] * sides[1])))
    grids = np.zeros((len(masks), *size), np.float32)
    for start in range(0, len(masks), together):
        part = masks[start : start + together]
        block = np.zeros((together, *sides), masks.dtype)
        block[: len(part), : masks.shape[1], : masks.shape[2]] = part
        grids[start : start + together] = np.asarray(_resize(block, rows, columns))[: len(part)]
    return grids


@jax.jit
def _resize(
    masks: Shaped[Array, "P H W"], rows: Float32[Array, "h H"], columns: Float32[Array, "w W"]
) -> Float32[Array, "P h w"]:
    highest = lax.Precision.HIGHEST
    return jnp.einsum("pHW,hH,wW->phw", masks.astype(jnp.float32), rows, columns, precision=highest)


def average_features(
    features: AnyArray, weights: AnyArray
) -> tuple[Float32[Array, "P D"], Bool[Array, " P"]]:
    """Compute the weighted mean of the features under each mask (Eq. 4, 5), in float32.

    Args:
        features: feature map, float[h, w, D].
        weights: weights >= 0 of any scale, float[P, h, w].

    Returns:
        The means, and whether each mask has any weight. A mask without weight has feature 0, never
        NaN, gradients included.

    Raises:
        ValueError: wrong ranks, or grids that differ.
    """
    if features.ndim != 3:
        raise ValueError(f"features must have shape [h, w, D], got {list(features.shape)}")
    if weights.ndim != 3 or weights.shape[1:] != features.shape[:2]:
        raise ValueError(
            f"weights must have shape [P, h, w] on the grid {list(features.shape[:2])}, "
            f"got {list(weights.shape)}"
        )
    weights, features = jnp.asarray(weights, jnp.float32), jnp.asarray(features, jnp.float32)
    total = weights.sum(axis=(1, 2))
    valid = total > 0
    sums = jnp.einsum("phw,hwd->pd", weights, features, precision=lax.Precision.HIGHEST)
    return jnp.where(valid[:, None], sums / jnp.where(valid, total, 1)[:, None], 0), valid


def pool_regions(
    features: Float[AnyArray, "h w D"], masks: Shaped[np.ndarray, "M H W"], antialias: bool = True
) -> Regions:
    """Average an image's features under its masks (Eq. 5).

    Rows are padded to `bucket_size(M)` here, the only time on the way to matching; so the number of
    compilations is bounded whatever the number and size of images.

    Args:
        features: feature map.
        masks: masks of the image's size.
        antialias: see `resize_masks`.

    Returns:
        Regions in NumPy whose rows past M are invalid, and the masks as they came.
    """
    weights = resize_masks(masks, (features.shape[0], features.shape[1]), antialias)
    padding = np.zeros((bucket_size(len(masks)) - len(masks), *weights.shape[1:]), np.float32)
    pooled, valid = _average(features, np.concatenate([weights, padding]))
    return Regions(np.asarray(pooled), masks, np.asarray(valid))


_average = jax.jit(average_features)
