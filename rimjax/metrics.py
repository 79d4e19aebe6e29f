"""Mean intersection over union (paper Sec. 4.1), from confusion matrices that add up over scenes. All numpy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


def confusion_matrix(truth: ArrayLike, prediction: ArrayLike, num_classes: int, ignore: int | None = 255) -> Int[np.ndarray, "C C"]:
    """Pixel counts, int64: rows are the true class, columns the predicted one. Matrices of several images may be added.

    truth, prediction: integer labels in [0, C) of the same shape; pixels whose truth is `ignore` don't count, whatever was predicted.
    Raises ValueError for shapes that differ, labels that aren't integers, or a label out of range.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction must have the shape of truth, {list(truth.shape)}, got {list(prediction.shape)}")
    counted = {"truth": truth[truth != ignore], "prediction": prediction[truth != ignore]}
    for name, labels in counted.items():
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, got {labels.dtype}")
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {labels.min()}..{labels.max()}")
    cells = counted["truth"].astype(np.int64) * num_classes + counted["prediction"].astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(confusion: ArrayLike) -> Float[np.ndarray, "... C"]:
    """Intersection over union of each class, in [0, 1], float64; NaN for a class in neither truth nor prediction.

    confusion: [..., C, C] counts, leading axes being separate matrices.
    """
    return _ratio(*_hits_and_unions(np.asarray(confusion)))


def mean_iou(confusion: ArrayLike, background: bool = True) -> float:
    """Mean of the classes' IoU in [0, 1]; absent classes are left out, NaN where all are absent.

    background: whether class 0 is one of them; where not, what was predicted as class 0 is only missing from the others.
    """
    return float(_mean_present(iou_per_class(confusion)[..., 0 if background else 1 :]))


def bootstrap_interval(
    confusions: ArrayLike, level: float = 0.95, samples: int = 1000, seed: int = 0, background: bool = True
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean IoU, over scenes drawn with replacement.

    level: coverage in (0, 1). The other arguments and errors are those of `bootstrap_means`; ValueError for a level out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    means = bootstrap_means(confusions, samples, seed, background)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(confusions: ArrayLike, samples: int = 1000, seed: int = 0, background: bool = True) -> Float[np.ndarray, " samples"]:
    """Mean IoU of scenes drawn with replacement, `samples` times over.

    confusions: integers [n, C, C], one matrix per scene; background: as of `mean_iou`. The same n and seed draw the same scenes, so two
    results on the same scenes may be subtracted, draw by draw. Hits and unions add up over scenes, so memory grows with n*C, not with
    n*C*C. Raises ValueError for a wrong shape or number of samples.
    """
    confusions = np.asarray(confusions)
    if confusions.ndim != 3 or confusions.shape[1] != confusions.shape[2] or len(confusions) == 0:
        raise ValueError(f"confusions must have shape [n, C, C] with n >= 1, got {list(confusions.shape)}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    n, first = len(confusions), 0 if background else 1
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)  # how often each scene is drawn
    # float64: integer products don't use BLAS, and pixel counts stay exact up to 2**53
    hits, unions = (times @ counts[:, first:].astype(np.float64) for counts in _hits_and_unions(confusions))
    return _mean_present(_ratio(hits, unions))


def _mean_present(iou: Float[np.ndarray, "... C"]) -> np.ndarray:
    present = ~np.isnan(iou)
    count = present.sum(axis=-1)
    total = np.where(present, iou, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _hits_and_unions(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class's intersection and of its union, [..., C]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return hits, confusion.sum(axis=-1) + confusion.sum(axis=-2) - hits


def _ratio(hits: np.ndarray, unions: np.ndarray) -> np.ndarray:
    return np.divide(hits, unions, out=np.full(unions.shape, np.nan), where=unions > 0)
