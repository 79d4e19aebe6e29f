"""Fit the within-class whitening of features: not in the paper; uses the references alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rimjax.types import Whitening


def fit_whitening(groups: Sequence[Float[np.ndarray, "_K D"]], ridge: float) -> Whitening:
    """Fit a transform that shrinks the directions in which a class's own images differ.

    Args:
        groups: each class's prototypes, a row per image, of any scale.
        ridge: positive share of the mean variance that is added to every direction's variance; a
            large ridge leaves features nearly as they are.

    Returns:
        The mean of the classes' means, and (S + ridge * trace(S) / D * I)^(-1/2), where S is the
        covariance within classes, both of features scaled to length 1. The matrix is the identity
        where no class has two different prototypes.

    Raises:
        ValueError: ridge isn't positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    units = [_normalise(group) for group in groups]
    residuals = np.concatenate([group - group.mean(axis=0) for group in units])
    variances, directions = np.linalg.eigh(residuals.T @ residuals / len(residuals))
    mean = np.mean([group.mean(axis=0) for group in units], axis=0)
    if variances.max() < 1e-12:
        matrix = np.eye(len(mean))
    else:
        scale = (variances.clip(0) + ridge * variances.mean()) ** -0.5
        matrix = (directions * scale) @ directions.T
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(matrix, jnp.float32))


def _normalise(rows: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K D"]:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
