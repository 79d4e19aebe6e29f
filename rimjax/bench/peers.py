"""Others' ways from cosines to the similarities (paper Eq. 7 to 9), each over all N! rankings: what the kernel is compared with.

A peer takes f32[P, N], the regions' cosines to their agents, i32[P, N], which classes these are, and f32[C, R], all classes' cosines to
the prototypes, and returns a call without arguments that computes f32[P, R]. All go through the regions a few at a time, so that
no temporary array has over `_ELEMENTS` elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_CLIP = 1e-6
_ELEMENTS = 2**22


def numpy_enumeration(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> np.ndarray:
    """In the precision of its arguments: in float64 it is the oracle."""
    n = own.shape[1]
    orders = np.array(list(itertools.permutations(range(n))))

    def probabilities(weights: np.ndarray) -> np.ndarray:
        ranked = np.maximum(weights, _CLIP)[..., orders]
        return np.prod(ranked / np.cumsum(ranked[..., ::-1], axis=-1)[..., ::-1], axis=-1)

    found = []
    for rows in _split(len(own), table.shape[1], n):
        p, q = (
            probabilities(own[rows])[:, None],
            probabilities(table[agents[rows]].transpose(0, 2, 1)),
        )
        found.append((p * q).sum(axis=-1) / np.sqrt((p * p).sum(axis=-1) * (q * q).sum(axis=-1)))
    return np.concatenate(found)


def numpy_recursion(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The oracle of more agents than can be enumerated: the subset recursion in float64, subset by subset (docs/match.md)."""
    n = own.shape[1]
    s = np.maximum(own.astype(np.float64), _CLIP).T[:, :, None]  # [N, P, 1]
    r = np.maximum(table.astype(np.float64), _CLIP)[agents].transpose(1, 0, 2)  # [N, P, R]

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        value = [np.ones(np.broadcast_shapes(a.shape[1:], b.shape[1:]))]
        for subset in range(1, 1 << n):
            members = [i for i in range(n) if subset >> i & 1]
            drawn = sum(a[i] * b[i] * value[subset ^ (1 << i)] for i in members)
            value.append(drawn / (a[members].sum(axis=0) * b[members].sum(axis=0)))
        return value[-1]

    return inner(s, r) / np.sqrt(inner(s, s) * inner(r, r))


def _numpy(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
    return lambda: numpy_enumeration(own, agents, table)


def _torch(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray, compiled: bool = False
) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cosine_similarity

    n = own.shape[1]
    region, chosen, reference = (
        torch.from_numpy(own),
        torch.from_numpy(agents).long(),
        torch.from_numpy(table),
    )
    orders = torch.tensor(list(itertools.permutations(range(n))))

    def probabilities(weights: torch.Tensor) -> torch.Tensor:
        ranked = weights.clamp_min(_CLIP)[..., orders]
        return (ranked / ranked.flip(-1).cumsum(-1).flip(-1)).prod(-1)

    def similarities(s: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(
            probabilities(r.transpose(1, 2)), probabilities(s)[:, None], dim=-1
        )

    if compiled:
        similarities = torch.compile(similarities, dynamic=False)

    @torch.no_grad()
    def call() -> Any:
        parts = _split(len(own), table.shape[1], n)
        return torch.cat(
            [similarities(region[rows], reference[chosen[rows]]) for rows in parts]
        ).numpy()

    return call


def _torch_compile(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
    return _torch(own, agents, table, compiled=True)


def _tensorflow_probability(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray
) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from tensorflow_probability.substrates import jax as tfp  # pyright: ignore[reportMissingImports]

    n = own.shape[1]
    orders = jnp.array(list(itertools.permutations(range(n))))

    def probabilities(weights: jax.Array) -> jax.Array:
        ranked = tfp.distributions.PlackettLuce(jnp.maximum(weights, _CLIP))
        return jnp.exp(ranked.log_prob(orders.reshape(-1, *[1] * (weights.ndim - 1), n)))

    @jax.jit
    def similarities(s: jax.Array, r: jax.Array) -> jax.Array:
        p, q = probabilities(s)[..., None], probabilities(r.transpose(0, 2, 1))
        return (p * q).sum(axis=0) / jnp.sqrt((p * p).sum(axis=0) * (q * q).sum(axis=0))

    region, reference = jnp.asarray(own), jnp.asarray(table)
    parts = _split(len(own), table.shape[1], n)
    return lambda: jnp.concatenate(
        [similarities(region[rows], reference[agents[rows]]) for rows in parts]
    )


def _split(regions: int, prototypes: int, n: int) -> list[slice]:
    size = max(1, _ELEMENTS // (prototypes * math.factorial(n) * n))
    size = next(
        count for count in range(min(size, regions), 0, -1) if regions % count == 0
    )  # of one size, so that nothing compiles twice
    return [slice(start, start + size) for start in range(0, regions, size)]


PEERS = {
    "PyTorch enumeration": _torch,
    "PyTorch enumeration, torch.compile": _torch_compile,
    "NumPy enumeration": _numpy,
    "TensorFlow Probability PlackettLuce": _tensorflow_probability,
}
