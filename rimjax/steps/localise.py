"""From a cross-attention map to the foreground of a synthetic image (Eq. 3, Sec. 3.4 and 4.2).

The averaged attention map of a class is binarised, a few points are sampled from it, and a
promptable segmenter (SAM) turns the points into a mask. All arrays are NumPy; points are (x, y) in
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import ArrayLike

from rimjax.steps.resize import bilinear_matrix

_FALLBACK_THRESHOLD = 0.5
_FULL = 0.95  # a mask over a larger share of the image is the whole picture, not the object

PointPrompt = Callable[[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "n 2"]], np.ndarray]
"""Image and positive points (x, y) to the mask of the object under the points, bool[H, W]."""


@dataclass(frozen=True, eq=False)
class Foreground:
    """Where the class is in a synthetic image.

    Attributes:
        mask: foreground; the background is its complement.
        points: prompt points (x, y) in pixels.
        binary: binarised attention map that the points were sampled from.
        is_fallback: True where the segmenter's mask was unusable and `mask` is the attention map
            over 0.5 of its maximum.
    """

    mask: Bool[np.ndarray, "H W"]
    points: Float32[np.ndarray, "n 2"]
    binary: Bool[np.ndarray, "H W"]
    is_fallback: bool


def cut_foreground(
    image: np.ndarray,
    attention: ArrayLike,
    prompt: PointPrompt,
    *,
    rng: np.random.Generator,
    threshold: float = 0.7,
    num_points: int = 5,
) -> Foreground:
    """Cut out a class: resize its attention map, binarise it, sample points, prompt the segmenter.

    Falls back to the map over 0.5 of its maximum where the segmenter's mask is empty, misses the
    binarised map, or covers more than 95 % of the image.

    Args:
        image: uint8[H, W, 3].
        attention: attention map [h, w] on any grid.
        prompt: the segmenter, e.g. `Masker.mask`.
        rng: random generator that samples the points.
        threshold: share of the map's maximum, in [0, 1).
        num_points: number of prompt points, at least 1.

    Raises:
        ValueError: wrong shapes, NaN or infinity, a setting out of range, or a mask whose size
            isn't the image's.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must have shape [H, W, 3], got {list(image.shape)}")
    size = (image.shape[0], image.shape[1])
    attention = resize_map(attention, size)
    binary = binarise(attention, threshold)
    points = sample_points(binary, num_points, rng)
    mask = np.asarray(prompt(image, points), bool)
    if mask.shape != size:
        raise ValueError(f"mask must have the image's size {list(size)}, got {list(mask.shape)}")
    usable = bool((mask & binary).any() and mask.mean() <= _FULL)
    if not usable:
        mask = binarise(attention, _FALLBACK_THRESHOLD)
    return Foreground(mask, points, binary, is_fallback=not usable)


def normalise_map(attention: ArrayLike) -> Float32[np.ndarray, "h w"]:
    """Divide a map by its maximum (Eq. 3); a map without a positive value becomes all 0.

    Raises:
        ValueError: another rank, an empty map, NaN or infinity.
    """
    values = _check_map(attention)
    if not np.isfinite(values).all():
        raise ValueError("attention must be finite, got NaN or infinity")
    return values / values.max() if values.max() > 0 else np.zeros_like(values)


def binarise(attention: ArrayLike, threshold: float = 0.7) -> Bool[np.ndarray, "h w"]:
    """Return where a map exceeds `threshold` times its maximum (Sec. 4.2).

    The maximum itself always counts, so the result is never empty; a map without a positive value
    is foreground everywhere.

    Raises:
        ValueError: as `normalise_map`, or a threshold outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    normalised = normalise_map(attention)
    return (normalised > threshold) | (normalised == normalised.max())


def sample_points(
    binary: Bool[np.ndarray, "H W"], num_points: int, rng: np.random.Generator
) -> Float32[np.ndarray, "n 2"]:
    """Sample distinct pixels (x, y) of a binary map; all of them where it has fewer."""
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    rows, columns = np.nonzero(binary)
    count = min(num_points, len(rows))
    chosen = rng.choice(len(rows), count, replace=False) if len(rows) else []
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)


def resize_map(attention: ArrayLike, size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    """Resize a map to (H, W) bilinearly: pixel centres at half integers, edges repeated."""
    values = _check_map(attention)
    rows, columns = (bilinear_matrix(*sides) for sides in zip(values.shape, size, strict=True))
    return rows @ values @ columns.T


def _check_map(attention: ArrayLike) -> Float32[np.ndarray, "h w"]:
    values = np.asarray(attention, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"attention must have shape [h, w], not empty, got {list(values.shape)}")
    return values
