"""Fit the whitening or centring of features: not in the paper; uses the references alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rimjax.types import Whitening


def fit_whitening(
    groups: Sequence[Float[np.ndarray, "_K D"]], ridge: float, centre: float = 1.0
) -> Whitening:
    """Fit a transform that shrinks the directions in which a class's own images differ.

    It also subtracts a share of what the features of all classes have in common, which says nothing
    about classes but makes all cosines large and alike.

    Args:
        groups: each class's prototypes, a row per image, of any scale.
        ridge: share of the mean variance that is added to every direction's variance; a large ridge
            leaves features nearly as they are, and 0 leaves out the shrinking.
        centre: share of the mean that is subtracted, in [0, 1].

    Returns:
        A share of the mean of the classes' means, and (S + ridge * trace(S) / D * I)^(-1/2), where
        S is the covariance within classes, both of features scaled to length 1. The matrix is the
        identity for a ridge of 0, and where no class has two different prototypes.

    Raises:
        ValueError: ridge is negative, or centre outside [0, 1].
    """
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    if not 0 <= centre <= 1:
        raise ValueError(f"centre must be in [0, 1], got {centre}")
    units = [_normalise(group) for group in groups]
    mean = centre * np.mean([group.mean(axis=0) for group in units], axis=0)
    matrix = np.eye(len(mean))
    if ridge:
        residuals = np.concatenate([group - group.mean(axis=0) for group in units])
        variances, directions = np.linalg.eigh(residuals.T @ residuals / len(residuals))
        if variances.max() >= 1e-12:
            scale = (variances.clip(0) + ridge * variances.mean()) ** -0.5
            matrix = (directions * scale) @ directions.T
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(matrix, jnp.float32))


def _normalise(rows: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K D"]:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
