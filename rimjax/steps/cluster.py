"""Sub-categories of a class (Sec. 3.5, before Eq. 10): clusters of its images' prototypes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import ArrayLike


def cluster_prototypes(
    prototypes: ArrayLike, num_clusters: int, seed: int = 0
) -> Float32[np.ndarray, "T D"]:
    """Compute a reference per sub-category: k-means on L2-normalised prototypes, then means.

    Args:
        prototypes: [K, D], a row per image of the class, K >= 1.
        num_clusters: T. Prototypes of fewer distinct directions give fewer clusters; T = 1 gives
            the mean (Eq. 4).
        seed: random seed of k-means.

    Returns:
        The mean of each cluster's prototypes, not normalised, in the order of their first members.

    Raises:
        ValueError: wrong shape, NaN or infinity, or num_clusters < 1.
        ImportError: scikit-learn is missing (T > 1).
    """
    rows = np.asarray(prototypes, np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"prototypes must have shape [K, D], not empty, got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError("prototypes must be finite, got NaN or infinity")
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths > 0, lengths, 1)
    # Parallel float32 rows differ by less than the sixth decimal.
    num_clusters = min(num_clusters, len(np.unique(unit.round(6), axis=0)))
    if num_clusters == 1:
        return rows.mean(axis=0, keepdims=True)
    labels = _run_k_means(unit, num_clusters, seed)
    order = sorted(set(labels.tolist()), key=labels.tolist().index)
    return np.stack([wide[labels == label].mean(axis=0) for label in order]).astype(np.float32)


def _run_k_means(
    points: Float[np.ndarray, "K D"], num_clusters: int, seed: int
) -> Int[np.ndarray, " K"]:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        remedy = 'pip install "rimjax[pipeline]"'
        raise ImportError(f"num_clusters > 1 needs scikit-learn: {remedy}") from error
    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(points)  # pyright: ignore[reportArgumentType]
