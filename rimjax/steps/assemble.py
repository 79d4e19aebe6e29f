"""From named regions to a label map. The paper leaves overlaps open; `paint` is the default."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer
from numpy.typing import ArrayLike

from rimjax.steps.resize import bilinear_matrix

_VOTE_ELEMENTS = 2**20
"""Elements of a block's masks and class scores in float32: 4 MiB."""


def paint(
    masks: ArrayLike,
    labels: ArrayLike,
    shape: tuple[int, int],
    priorities: ArrayLike | None = None,
) -> Int32[np.ndarray, "H W"]:
    """Paint regions over each other, large before small, so that small regions stay visible.

    Of equal areas the first region stays on top.

    Args:
        masks: bool[P, H, W].
        labels: integer class of each region, [P]; -1 leaves a region out.
        shape: (H, W).
        priorities: [P]; the region with the highest stays on top, whatever its area; areas decide
            between equal priorities.

    Returns:
        The class of each pixel; pixels under no region are background, 0.

    Raises:
        ValueError: shapes that don't fit, NaN.
    """
    labels = np.asarray(labels)
    owners = find_owners(masks, labels >= 0, shape, priorities)
    return name_owners(owners, labels)


def find_owners(
    masks: ArrayLike,
    included: ArrayLike,
    shape: tuple[int, int],
    priorities: ArrayLike | None = None,
) -> Int32[np.ndarray, "H W"]:
    """Return the region on top of each pixel, as `paint` lays them; -1 under no region.

    Args:
        masks: bool[P, H, W].
        included: bool[P]; other regions are left out.
        shape: (H, W).
        priorities: as of `paint`.

    Raises:
        ValueError: as `paint`.
    """
    masks, included = _check_masks(masks, shape), np.asarray(included)
    if included.shape != masks.shape[:1]:
        raise ValueError(f"labels must have shape [P={len(masks)}], got {list(included.shape)}")
    priorities = np.zeros(len(masks)) if priorities is None else np.asarray(priorities, float)
    if priorities.shape != included.shape or np.isnan(priorities).any():
        actual = f"{list(priorities.shape)} with {np.isnan(priorities).sum()} NaN"
        raise ValueError(f"priorities must have shape [P={len(masks)}] without NaN, got {actual}")
    areas = [np.count_nonzero(mask) for mask in masks]
    owners = np.full_like(masks[0] if len(masks) else np.empty(shape), -1, np.int32)
    for region in np.lexsort((areas, -priorities))[::-1]:
        if included[region]:
            np.copyto(owners, np.int32(region), where=masks[region])
    return np.ascontiguousarray(owners)  # masks from run lengths lie column by column


def name_owners(
    owners: Int32[np.ndarray, "H W"], labels: Integer[np.ndarray, " P"]
) -> Int32[np.ndarray, "H W"]:
    """Return the class of each pixel by the region on top; background, 0, under no region."""
    return np.append(labels, 0).astype(np.int32).take(owners, mode="wrap")  # -1 is the last


def vote(masks: ArrayLike, scores: ArrayLike, shape: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """Label each pixel by the highest mean class score of the regions over it.

    Ties go to the lowest class. Lines of pixels are counted a block at a time, so that the scores
    of all pixels are never in memory together.

    Args:
        masks: bool[P, H, W].
        scores: float[P, C]; a row of zeros changes nothing.
        shape: (H, W).

    Returns:
        The class of each pixel; pixels under no region are background, 0.

    Raises:
        ValueError: shapes that don't fit, NaN or infinity.
    """
    masks, scores = _check_masks(masks, shape), np.asarray(scores, np.float32)
    if scores.ndim != 2 or scores.shape[0] != len(masks):
        raise ValueError(f"scores must have shape [P={len(masks)}, C], got {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    if len(masks) == 0:
        return np.zeros(shape, np.int32)
    canvas = np.zeros(shape, np.int32)
    lines = max(1, _VOTE_ELEMENTS // (shape[1] * sum(scores.shape)))
    for top in range(0, shape[0], lines):
        block = masks[:, top : top + lines].reshape(len(masks), -1)
        totals = block.T.astype(np.float32) @ scores  # sums have the same argmax as means
        labels = np.where(block.any(axis=0), totals.argmax(axis=1), 0)
        canvas[top : top + lines] = labels.reshape(-1, shape[1])
    return canvas


def label_pixels(
    scores: Float[np.ndarray, "h w C"], shape: tuple[int, int], allowed: Bool[np.ndarray, " C"]
) -> Int32[np.ndarray, "H W"]:
    """Label each pixel by the highest class score, resized bilinearly from a grid's cells.

    Ties go to the lowest class. A row of pixels is resized at a time, so that the scores of all
    pixels are never in memory together.

    Args:
        scores: of the grid's cells; -inf counts as the lowest finite score.
        shape: (H, W).
        allowed: classes that may win, at least one.

    Returns:
        The class of each pixel.
    """
    classes = np.flatnonzero(allowed)
    scores = scores[..., classes].astype(np.float32)
    scores = np.maximum(scores, scores[np.isfinite(scores)].min())
    rows, columns = map(bilinear_matrix, scores.shape[:2], shape)
    canvas = np.empty(shape, np.int32)
    for line, weights in zip(canvas, rows, strict=True):
        line[:] = classes[(columns @ np.tensordot(weights, scores, 1)).argmax(-1)]
    return canvas


def _check_masks(masks: ArrayLike, shape: tuple[int, int]) -> Bool[np.ndarray, "P H W"]:
    masks = np.asarray(masks, bool)
    if len(masks) == 0:
        return np.zeros((0, *shape), bool)
    if masks.shape[1:] != tuple(shape):
        size = f"(H, W) = {tuple(shape)}"
        raise ValueError(f"masks must have shape [P, H, W], {size}, got {list(masks.shape)}")
    return masks
