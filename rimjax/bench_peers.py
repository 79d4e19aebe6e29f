"""Others' ways to the same similarities (paper Eq. 6 to 9), each over all N! rankings: what the kernel is compared with.

A peer takes float32 NumPy features of regions, prototypes and classes, and N, and returns a call without arguments that computes f32[P, R].
All go through the regions a few at a time, so that no temporary array has over `_ELEMENTS` elements: in one piece they were slower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_CLIP = 1e-6
_ELEMENTS = 2**22


def numpy_enumeration(regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int) -> np.ndarray:
    """In the precision of its arguments: in float64 it is the oracle."""
    regions, prototypes, classes = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (regions, prototypes, classes))
    cosines, table = regions @ classes.T, np.maximum(classes @ prototypes.T, _CLIP)
    agents = np.argsort(-cosines, axis=1, kind="stable")[:, :n]
    orders = np.array(list(itertools.permutations(range(n))))

    def probabilities(weights: np.ndarray) -> np.ndarray:
        ranked = weights[..., orders]
        return np.prod(ranked / np.cumsum(ranked[..., ::-1], axis=-1)[..., ::-1], axis=-1)

    found = []
    for rows in _split(len(regions), table.shape[1], n):
        p = probabilities(np.maximum(np.take_along_axis(cosines[rows], agents[rows], axis=1), _CLIP))[:, None]
        q = probabilities(table[agents[rows]].transpose(0, 2, 1))
        found.append((p * q).sum(axis=-1) / np.sqrt((p * p).sum(axis=-1) * (q * q).sum(axis=-1)))
    return np.concatenate(found)


def _numpy(regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int) -> Callable[[], Any]:
    return lambda: numpy_enumeration(regions, prototypes, classes, n)


def _torch(regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int, compiled: bool = False) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cosine_similarity, normalize

    arrays = [torch.from_numpy(array) for array in (regions, prototypes, classes)]
    orders = torch.tensor(list(itertools.permutations(range(n))))

    def probabilities(weights: torch.Tensor) -> torch.Tensor:
        ranked = weights[..., orders]
        return (ranked / ranked.flip(-1).cumsum(-1).flip(-1)).prod(-1)

    def similarities(own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(probabilities(weights.transpose(1, 2)), probabilities(own)[:, None], dim=-1)

    if compiled:
        similarities = torch.compile(similarities, dynamic=False)

    @torch.no_grad()
    def call() -> Any:
        regions, prototypes, classes = (normalize(array) for array in arrays)
        own, agents = (regions @ classes.T).topk(n)
        table = (classes @ prototypes.T).clamp_min(_CLIP)
        parts = _split(len(regions), table.shape[1], n)
        return torch.cat([similarities(own[rows].clamp_min(_CLIP), table[agents[rows]]) for rows in parts]).numpy()

    return call


def _torch_compile(regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int) -> Callable[[], Any]:
    return _torch(regions, prototypes, classes, n, compiled=True)


def _tensorflow_probability(regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from tensorflow_probability.substrates import jax as tfp  # pyright: ignore[reportMissingImports]

    orders = jnp.array(list(itertools.permutations(range(n))))

    def probabilities(weights: jax.Array) -> jax.Array:
        return jnp.exp(tfp.distributions.PlackettLuce(weights).log_prob(orders.reshape(-1, *[1] * (weights.ndim - 1), n)))

    @jax.jit
    def similarities(own: jax.Array, weights: jax.Array) -> jax.Array:
        p, q = probabilities(own)[..., None], probabilities(weights.transpose(0, 2, 1))
        return (p * q).sum(axis=0) / jnp.sqrt((p * p).sum(axis=0) * (q * q).sum(axis=0))

    def call() -> Any:
        unit = [rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (regions, prototypes, classes)]
        own, agents = jax.lax.top_k(unit[0] @ unit[2].T, n)
        table = jnp.maximum(unit[2] @ unit[1].T, _CLIP)
        parts = _split(len(regions), table.shape[1], n)
        return jnp.concatenate([similarities(jnp.maximum(own[rows], _CLIP), table[agents[rows]]) for rows in parts])

    return call


def _split(regions: int, prototypes: int, n: int) -> list[slice]:
    size = max(1, _ELEMENTS // (prototypes * math.factorial(n) * n))
    size = next(count for count in range(min(size, regions), 0, -1) if regions % count == 0)  # of one size, so that nothing compiles twice
    return [slice(start, start + size) for start in range(0, regions, size)]


PEERS = {
    "PyTorch enumeration": _torch,
    "PyTorch enumeration, torch.compile": _torch_compile,
    "NumPy enumeration": _numpy,
    "TensorFlow Probability PlackettLuce": _tensorflow_probability,
}
