"""Within-class whitening of features: a choice of ours beyond the paper, from the synthetic references alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32


def whitening(groups: Sequence[Float[np.ndarray, "K D"]], ridge: float) -> tuple[Float32[np.ndarray, " D"], Float32[np.ndarray, "D D"]]:
    """What makes directions in which a class's own images differ count less, those in which classes differ count more.

    groups: each class's prototypes, one per image; ridge: > 0, how much of the mean variance is added to every direction's, large ones
    leave the features nearly as they are.

    Returns the mean of the classes' means, and (S + ridge * trace(S) / D * I)^(-1/2), S the covariance within classes, both of features
    scaled to length 1; the identity where no class has two different prototypes. Raises ValueError for ridge <= 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge: expected a positive number, got {ridge}")
    units = [_unit(group) for group in groups]
    apart = np.concatenate([group - group.mean(axis=0) for group in units])
    covariance = apart.T @ apart / len(apart)
    variances, directions = np.linalg.eigh(covariance)
    mean = np.mean([group.mean(axis=0) for group in units], axis=0)
    if variances.max() < 1e-12:
        return mean.astype(np.float32), np.eye(len(mean), dtype=np.float32)
    scale = (variances.clip(0) + ridge * variances.mean()) ** -0.5
    return mean.astype(np.float32), ((directions * scale) @ directions.T).astype(np.float32)


def whitened(
    features: Float[np.ndarray, "P D"], mean: Float32[np.ndarray, " D"], matrix: Float32[np.ndarray, "D D"]
) -> Float32[np.ndarray, "P D"]:
    """Features of any scale, scaled to length 1, centred and whitened; a zero vector stays zero."""
    rows = (_unit(features) - mean) @ matrix
    return np.where(np.any(features, axis=1, keepdims=True), rows, 0).astype(np.float32)


def _unit(rows: Float[np.ndarray, "P D"]) -> Float[np.ndarray, "P D"]:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
