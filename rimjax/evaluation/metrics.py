"""Mean intersection over union (Sec. 4.1), from pixel counts that add up over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels of each class in each of n images: all that the mean IoU and its bootstrap need.

    A confusion matrix an image would take C times the memory.

    Attributes:
        hits: pixels in the intersection of truth and prediction.
        unions: pixels in their union.
    """

    hits: Int64[np.ndarray, "n C"]
    unions: Int64[np.ndarray, "n C"]

    @classmethod
    def from_confusions(cls, confusions: ArrayLike) -> Counts:
        """Count from confusion matrices [n, C, C], one for each image.

        Raises:
            ValueError: wrong shape.
        """
        confusions = np.asarray(confusions)
        if confusions.ndim != 3 or confusions.shape[1] != confusions.shape[2]:
            shape = list(confusions.shape)
            raise ValueError(f"confusions must have shape [n, C, C], got {shape}")
        hits, unions = _count_hits_and_unions(confusions)
        return cls(hits.astype(np.int64), unions.astype(np.int64))

    @classmethod
    def stack(cls, counts: Sequence[Counts]) -> Counts:
        """Put images together, in order."""
        hits, unions = zip(*((each.hits, each.unions) for each in counts), strict=True)
        return cls(np.concatenate(hits), np.concatenate(unions))

    def __len__(self) -> int:
        return len(self.hits)

    def iou_per_class(self) -> Float[np.ndarray, " C"]:
        """Compute each class's IoU over all images, in [0, 1]; NaN where a class is absent."""
        return _divide(self.hits.sum(0), self.unions.sum(0))

    def mean_iou(self, background: bool = True) -> float:
        """Average the IoU of the classes present; see `mean_iou`."""
        return float(_average_present(self.iou_per_class()[0 if background else 1 :]))


def confusion_matrix(
    truth: ArrayLike, prediction: ArrayLike, num_classes: int, ignore: int | None = 255
) -> Int64[np.ndarray, "C C"]:
    """Count pixels: rows are the true class, columns the predicted class.

    Args:
        truth: integer labels in [0, C), any shape.
        prediction: integer labels in [0, C), of the same shape.
        num_classes: C.
        ignore: pixels whose truth has this label don't count, whatever was predicted.

    Raises:
        ValueError: shapes that differ, labels that aren't integers, or a label out of range.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"prediction must have truth's shape {list(truth.shape)}, got {list(prediction.shape)}"
        )
    counted = {"truth": truth[truth != ignore], "prediction": prediction[truth != ignore]}
    for name, labels in counted.items():
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, got {labels.dtype}")
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            extent = f"{labels.min()}..{labels.max()}"
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {extent}")
    rows, columns = (labels.astype(np.int64) for labels in counted.values())
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def iou_per_class(confusion: ArrayLike) -> Float[np.ndarray, "*n C"]:
    """Compute the intersection over union of each class, in [0, 1].

    Args:
        confusion: counts [..., C, C]; leading axes are separate matrices.

    Returns:
        The IoUs, float64; NaN for a class in neither truth nor prediction.
    """
    return _divide(*_count_hits_and_unions(np.asarray(confusion)))


def mean_iou(confusion: ArrayLike, background: bool = True) -> float:
    """Average the IoU of the classes present, in [0, 1]; NaN where all are absent.

    Args:
        confusion: counts [C, C].
        background: whether class 0 counts. If not, pixels predicted as class 0 are only missing
            from the other classes.
    """
    return float(_average_present(iou_per_class(confusion)[..., 0 if background else 1 :]))


def bootstrap_interval(
    counts: Counts,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
    background: bool = True,
) -> tuple[float, float]:
    """Bootstrap a percentile interval of the mean IoU over images.

    Args:
        counts: as of `bootstrap_means`, like the remaining arguments.
        level: coverage in (0, 1).

    Raises:
        ValueError: level out of range, and as `bootstrap_means`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    means = bootstrap_means(counts, samples, seed, background)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(
    counts: Counts, samples: int = 1000, seed: int = 0, background: bool = True
) -> Float[np.ndarray, " samples"]:
    """Compute the mean IoU of images drawn with replacement, `samples` times.

    The same n and seed draw the same images, so results on the same images may be subtracted draw
    by draw.

    Args:
        counts: of n >= 1 images.
        samples: number of draws, at least 1.
        seed: random seed.
        background: as of `mean_iou`.

    Raises:
        ValueError: no image, or a wrong number of samples.
    """
    return _average_present(_draw_ious(counts, samples, seed)[:, 0 if background else 1 :])


def bootstrap_class_intervals(
    counts: Counts, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "C 2"]:
    """Bootstrap a percentile interval of each class's IoU over images.

    Args:
        counts: of n >= 1 images.
        level: coverage in (0, 1).
        samples: number of draws, at least 1.
        seed: random seed; the draws are those of `bootstrap_means`.

    Returns:
        Lower and upper bound in [0, 1], over the draws that hold the class; NaN where none does.

    Raises:
        ValueError: no image, a level out of range or a wrong number of samples.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    ious = _draw_ious(counts, samples, seed)
    bounds = np.full((ious.shape[1], 2), np.nan)
    present = ~np.isnan(ious).all(0)
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    bounds[present] = np.nanquantile(ious[:, present], quantiles, axis=0).T
    return bounds


def _draw_ious(counts: Counts, samples: int, seed: int) -> Float[np.ndarray, "samples C"]:
    """Compute each class's IoU over images drawn with replacement, `samples` times."""
    if not len(counts):
        raise ValueError("counts must hold at least one image, got none")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    n = len(counts)
    random = np.random.default_rng(seed)
    weights = random.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)
    # float64: integer products don't use BLAS, and pixel counts stay exact up to 2**53.
    hits, unions = (weights @ pixels.astype(np.float64) for pixels in (counts.hits, counts.unions))
    return _divide(hits, unions)


def _average_present(iou: Float[np.ndarray, "*n C"]) -> np.ndarray:
    present = ~np.isnan(iou)
    count = present.sum(axis=-1)
    total = np.where(present, iou, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _count_hits_and_unions(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each class's pixels in the intersection and in the union, [..., C]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return hits, confusion.sum(axis=-1) + confusion.sum(axis=-2) - hits


def _divide(hits: np.ndarray, unions: np.ndarray) -> np.ndarray:
    return np.divide(hits, unions, out=np.full(unions.shape, np.nan), where=unions > 0)
