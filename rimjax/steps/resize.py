"""Bilinear resizing as a matrix product, on the host, so that no image size compiles anything."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32


def bilinear_matrix(
    source: int, target: int, antialias: bool = False
) -> Float32[np.ndarray, "target source"]:
    """Return the matrix that resizes `source` samples to `target` samples; its rows sum to 1.

    Pixel centres lie at half integers and edge samples repeat. With `antialias`, shrinking averages
    over all source samples that a target sample covers.
    """
    scale = source / target
    reach = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distances = np.abs(centres[:, None] - np.arange(source)) / reach
    weights = np.maximum(1 - distances, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
