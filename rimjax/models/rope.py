"""Rotary positions (RoPE) of DINOv3: a patch's place rotates its queries and keys."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def build_rotation(
    rows: int, columns: int, leading: int, width: int, theta: float
) -> Float32[np.ndarray, "2 n half"]:
    """Build the cosines and sines of each token's angles.

    The patches' centres span -1..1 along both axes whatever the grid, so every size will do. The
    first half of the angles depends on a patch's row, the other on its column.

    Args:
        rows: of the grid of patches.
        columns: of the grid of patches.
        leading: class and register tokens before the patches; they aren't rotated.
        width: features of a head, a multiple of 4.
        theta: the periods rise from 1 towards theta.
    """
    frequencies = theta ** (-4 / width * np.arange(width // 4))
    y, x = (2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns))
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = 2 * np.pi * (centres * frequencies).reshape(rows * columns, -1)
    angles = np.pad(angles, ((leading, 0), (0, 0)))
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(
    x: Float[Array, "B n heads D"], rotation: Float32[np.ndarray, "2 n half"]
) -> Float[Array, "B n heads D"]:
    """Rotate feature i of every head together with feature i + D/2, in float32."""
    cos, sin = rotation[:, None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
