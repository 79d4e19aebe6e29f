"""Bilinear resizing as matrix products, so that few image sizes need compiling."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32


def bilinear_matrix(
    source: int, target: int, antialias: bool = False
) -> Float32[np.ndarray, "target source"]:
    """Return the matrix that resizes `source` samples to `target` samples; its rows sum to 1.

    Pixel centres lie at half integers and edge samples repeat. With `antialias`, shrinking averages
    over all source samples that a target sample covers, as `jax.image.resize` does.
    """
    scale = np.float32(1) / np.float32(target / source)
    reach = max(scale, np.float32(1)) if antialias else np.float32(1)
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    if not antialias:
        centres = centres.clip(0, source - 1)
    distances = np.abs(centres[:, None] - np.arange(source, dtype=np.float32)) / reach
    weights = np.maximum(1 - distances, 0)
    # XLA multiplies by the reciprocal too: equal rounding keeps measured figures as they are.
    return weights * (np.float32(1) / weights.sum(axis=1, keepdims=True))


def round_up_side(pixels: int) -> int:
    """Return the padded length of an image's side: 64, 96, 128, 192, 256, 384, 512, ...

    Sides that are padded so compile once for each pair of padded lengths, not for each image size.
    """
    power = max(64, 1 << (pixels - 1).bit_length())
    return power * 3 // 4 if max(pixels, 65) <= power * 3 // 4 else power
