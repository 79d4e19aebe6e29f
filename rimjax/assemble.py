"""From scored regions to a label map. The paper leaves overlaps open: `paint` is the default, `vote` the other answer. All numpy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike


def paint(masks: ArrayLike, labels: ArrayLike, shape: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Paint regions over each other, large ones first, so that small ones stay visible; of equal areas the first stays on top.

    masks: bool[P, H, W]; labels: i32[P], the class of each, -1 to leave a region out; shape: (H, W).
    Pixels under no region, or all of them where P = 0, are background, 0. Raises ValueError for shapes that don't fit.
    """
    masks, labels = _checked_masks(masks, shape), np.asarray(labels)
    if labels.shape != masks.shape[:1]:
        raise ValueError(f"labels must hold one class per mask, P={len(masks)}, got shape {list(labels.shape)}")
    painted = np.zeros(shape, np.int32)
    areas = masks.sum(axis=(1, 2))
    for region in np.argsort(areas, kind="stable")[::-1]:
        if labels[region] >= 0:
            painted[masks[region]] = labels[region]
    return painted


def vote(masks: ArrayLike, scores: ArrayLike, shape: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Give each pixel the class with the highest mean score over the regions that cover it; ties go to the lowest class.

    masks: bool[P, H, W]; scores: f32[P, C] (an invalid region's zeros change nothing); shape: (H, W).
    Pixels under no region are background, 0. Raises ValueError for shapes that don't fit, NaN or infinity.
    """
    masks, scores = _checked_masks(masks, shape), np.asarray(scores, np.float32)
    if scores.ndim != 2 or scores.shape[0] != len(masks):
        raise ValueError(f"scores must have shape [P={len(masks)}, C], got {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    if len(masks) == 0:
        return np.zeros(shape, np.int32)
    flat = masks.reshape(len(masks), -1)
    totals = flat.T.astype(np.float32) @ scores  # [H*W, C]; a pixel's mean and its sum have the same argmax
    return np.where(flat.any(axis=0), totals.argmax(axis=1), 0).astype(np.int32).reshape(shape)


def _checked_masks(masks: ArrayLike, shape: tuple[int, int]) -> Bool[np.ndarray, "P H W"]:
    masks = np.asarray(masks, bool)
    if len(masks) == 0:
        return np.zeros((0, *shape), bool)
    if masks.shape[1:] != tuple(shape):
        raise ValueError(f"masks must have shape [P, H, W] with (H, W) = {tuple(shape)}, got {list(masks.shape)}")
    return masks
