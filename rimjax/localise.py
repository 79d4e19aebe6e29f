"""From a cross-attention map to the foreground mask of a synthetic image (paper Eq. 3, Sec. 3.4 and 4.2).

The class's averaged attention map is binarised, a few points are drawn from what remains, and a promptable segmenter (SAM) turns
them into a mask. All arrays are numpy; points are (x, y) pixel indices, x to the right, as SAM wants them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike

_FALLBACK_THRESHOLD = 0.5
_FULL = 0.95  # a mask that covers more of the image than this has found the picture, not the object


class PointMasker(Protocol):
    """A segmenter prompted with positive points."""

    def mask(self, image: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "H W"]: ...


@dataclass(frozen=True, eq=False)
class Foreground:
    """Where the class is in a synthetic image.

    mask: the foreground; the background is its complement.
    points: the prompt, (x, y) pixels.
    binary: the binarised attention map that the points came from.
    fell_back: True where the segmenter's mask was unusable and `mask` is the attention map over 0.5 of its maximum.
    """

    mask: Bool[np.ndarray, "H W"]
    points: Float[np.ndarray, "n 2"]
    binary: Bool[np.ndarray, "H W"]
    fell_back: bool


def foreground_mask(
    image: UInt8[np.ndarray, "H W 3"],
    attention: ArrayLike,
    masker: PointMasker,
    *,
    rng: np.random.Generator,
    threshold: float = 0.7,
    num_points: int = 5,
) -> Foreground:
    """Attention map f32[h, w], any grid, to foreground: resize to the image, binarise, draw points, ask the masker.

    The masker's mask gives way to the map over 0.5 of its maximum where it is empty, misses the binarised map altogether,
    or fills over 95 % of the image. Raises ValueError for wrong shapes, NaN or infinity, a threshold outside [0, 1),
    num_points < 1, or a mask that isn't the image's size.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must have shape [H, W, 3], got {list(image.shape)}")
    size = (image.shape[0], image.shape[1])
    attention = resize_map(attention, size)
    binary = binarise(attention, threshold)
    points = sample_points(binary, num_points, rng)
    mask = np.asarray(masker.mask(image, points), bool)
    if mask.shape != size:
        raise ValueError(f"masker must return a mask of the image's size {list(size)}, got {list(mask.shape)}")
    usable = (mask & binary).any() and mask.mean() <= _FULL
    return Foreground(mask if usable else binarise(attention, _FALLBACK_THRESHOLD), points, binary, fell_back=not usable)


def normalise_map(attention: ArrayLike) -> Float[np.ndarray, "h w"]:
    """The map over its maximum, float32 (Eq. 3's normalisation); a map without a positive value becomes all 0.

    Raises ValueError for another rank, an empty map, NaN or infinity.
    """
    values = np.asarray(attention, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"attention must have shape [h, w], not empty, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("attention must be finite, got NaN or infinity")
    return values / values.max() if values.max() > 0 else np.zeros_like(values)


def binarise(attention: ArrayLike, threshold: float = 0.7) -> Bool[np.ndarray, "h w"]:
    """Where the map is over `threshold`, in [0, 1), times its maximum (Sec. 4.2). Never empty: the maximum always belongs.

    A map without a positive value says nothing, and is foreground everywhere. Raises ValueError as `normalise_map` does, and for
    a threshold out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    normalised = normalise_map(attention)
    return (normalised > threshold) | (normalised == normalised.max())


def sample_points(binary: Bool[np.ndarray, "H W"], num_points: int, rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """Distinct pixels drawn from a binary map, as (x, y); all of them where it has fewer than `num_points`, which is at least 1."""
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    rows, columns = np.nonzero(binary)
    chosen = rng.choice(len(rows), min(num_points, len(rows)), replace=False) if len(rows) else []
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)


def resize_map(attention: ArrayLike, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Bilinear resize to `size` (H, W), pixel centres at half integers, edges repeated."""
    values = np.asarray(attention, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"attention must have shape [h, w], not empty, got {list(values.shape)}")
    return _bilinear(values.shape[0], size[0]) @ values @ _bilinear(values.shape[1], size[1]).T


def _bilinear(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Row t holds the weights of the source samples in target sample t."""
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(centres).astype(int)
    weights = np.zeros((target, source), np.float32)
    np.add.at(weights, (np.arange(target), low), 1 - (centres - low))
    np.add.at(weights, (np.arange(target), np.minimum(low + 1, source - 1)), centres - low)
    return weights
