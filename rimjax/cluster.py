"""Sub-categories of a class (paper Sec. 3.5, before Eq. 10): clusters of the prototypes of its synthetic images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def cluster_prototypes(prototypes: ArrayLike, num_clusters: int, seed: int = 0) -> Float[np.ndarray, "T D"]:
    """One reference per sub-category: k-means on L2-normalised prototypes, then the mean of each cluster's prototypes as they came.

    prototypes: f32[K, D], one per image of the class, K >= 1.
    num_clusters: the T asked for; prototypes of fewer distinct directions give fewer clusters, and T = 1 gives the mean (Eq. 4).
    seed: the same seed gives the same references, in the order of their first member.

    Raises ValueError for a wrong shape, NaN or infinity, or num_clusters < 1; ImportError where scikit-learn is missing (T > 1).
    """
    rows = np.asarray(prototypes, np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"prototypes must have shape [K, D] with at least one row, got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError("prototypes must be finite, got NaN or infinity")
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths > 0, lengths, 1)
    num_clusters = min(num_clusters, len(np.unique(unit.round(6), axis=0)))  # parallel float32 rows differ by less
    if num_clusters == 1:
        return rows.mean(axis=0, keepdims=True)
    labels = _k_means(unit, num_clusters, seed)
    first = sorted(set(labels.tolist()), key=labels.tolist().index)
    return np.stack([wide[labels == label].mean(axis=0) for label in first]).astype(np.float32)


def _k_means(points: Float[np.ndarray, "K D"], num_clusters: int, seed: int) -> np.ndarray:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError('sub-categories (num_clusters > 1) need scikit-learn: pip install "rimjax[pipeline]"') from error
    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(points)  # pyright: ignore[reportArgumentType]
