"""Other ways from cosines to the similarities (Eq. 7-9), each over all N! rankings.

A peer takes f32[P, N], the regions' cosines to their agents, i32[P, N], the agents' classes, and
f32[C, R], the cosines of all classes to the prototypes. It returns a call without arguments that
computes f32[P, R]. All peers go through the regions a few at a time, so that no temporary array has
over `_ELEMENTS` elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_CLIP = 1e-6
_ELEMENTS = 2**22


def enumerate_with_numpy(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Enumerate in the precision of the arguments: in float64 this is the oracle."""
    n = own.shape[1]
    orders = np.array(list(itertools.permutations(range(n))))

    def compute_probabilities(weights: np.ndarray) -> np.ndarray:
        ranked = np.maximum(weights, _CLIP)[..., orders]
        return np.prod(ranked / np.cumsum(ranked[..., ::-1], axis=-1)[..., ::-1], axis=-1)

    parts = []
    for rows in _split(len(own), table.shape[1], n):
        p = compute_probabilities(own[rows])[:, None]
        q = compute_probabilities(table[agents[rows]].transpose(0, 2, 1))
        parts.append((p * q).sum(axis=-1) / np.sqrt((p * p).sum(axis=-1) * (q * q).sum(axis=-1)))
    return np.concatenate(parts)


def recurse_with_numpy(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Compute the subset recursion in float64 (docs/match/mathematics.md).

    The oracle for more agents than can be enumerated.
    """
    n = own.shape[1]
    s = np.maximum(own.astype(np.float64), _CLIP).T[:, :, None]  # [N, P, 1]
    r = np.maximum(table.astype(np.float64), _CLIP)[agents].transpose(1, 0, 2)  # [N, P, R]

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        value = [np.ones(np.broadcast_shapes(a.shape[1:], b.shape[1:]))]
        for subset in range(1, 1 << n):
            members = [i for i in range(n) if subset >> i & 1]
            drawn = sum(a[i] * b[i] * value[subset ^ (1 << i)] for i in members)
            value.append(drawn / (a[members].sum(axis=0) * b[members].sum(axis=0)))
        return value[-1]

    return multiply(s, r) / np.sqrt(multiply(s, s) * multiply(r, r))


def _prepare_numpy(own: np.ndarray, agents: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
    return lambda: enumerate_with_numpy(own, agents, table)


def _prepare_torch(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray, compiled: bool = False
) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cosine_similarity

    n = own.shape[1]
    region, chosen = torch.from_numpy(own), torch.from_numpy(agents).long()
    reference = torch.from_numpy(table)
    orders = torch.tensor(list(itertools.permutations(range(n))))

    def compute_probabilities(weights: torch.Tensor) -> torch.Tensor:
        ranked = weights.clamp_min(_CLIP)[..., orders]
        return (ranked / ranked.flip(-1).cumsum(-1).flip(-1)).prod(-1)

    def compare(s: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        p, q = compute_probabilities(s)[:, None], compute_probabilities(r.transpose(1, 2))
        return cosine_similarity(q, p, dim=-1)

    if compiled:
        compare = torch.compile(compare, dynamic=False)

    @torch.no_grad()
    def call() -> Any:
        blocks = _split(len(own), table.shape[1], n)
        parts = [compare(region[rows], reference[chosen[rows]]) for rows in blocks]
        return torch.cat(parts).numpy()

    return call


def _prepare_torch_compile(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray
) -> Callable[[], Any]:
    return _prepare_torch(own, agents, table, compiled=True)


def _prepare_tensorflow_probability(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray
) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from tensorflow_probability.substrates import jax as tfp  # pyright: ignore[reportMissingImports]

    n = own.shape[1]
    orders = jnp.array(list(itertools.permutations(range(n))))

    def compute_probabilities(weights: jax.Array) -> jax.Array:
        ranked = tfp.distributions.PlackettLuce(jnp.maximum(weights, _CLIP))
        return jnp.exp(ranked.log_prob(orders.reshape(-1, *[1] * (weights.ndim - 1), n)))

    @jax.jit
    def compare(s: jax.Array, r: jax.Array) -> jax.Array:
        p = compute_probabilities(s)[..., None]
        q = compute_probabilities(r.transpose(0, 2, 1))
        return (p * q).sum(axis=0) / jnp.sqrt((p * p).sum(axis=0) * (q * q).sum(axis=0))

    region, reference = jnp.asarray(own), jnp.asarray(table)
    blocks = _split(len(own), table.shape[1], n)
    return lambda: jnp.concatenate(
        [compare(region[rows], reference[agents[rows]]) for rows in blocks]
    )


def _split(regions: int, prototypes: int, n: int) -> list[slice]:
    most = min(regions, max(1, _ELEMENTS // (prototypes * math.factorial(n) * n)))
    # All blocks have the same size, so that nothing compiles twice.
    size = next(count for count in range(most, 0, -1) if regions % count == 0)
    return [slice(start, start + size) for start in range(0, regions, size)]


PEERS = {
    "PyTorch enumeration": _prepare_torch,
    "PyTorch enumeration, torch.compile": _prepare_torch_compile,
    "NumPy enumeration": _prepare_numpy,
    "TensorFlow Probability PlackettLuce": _prepare_tensorflow_probability,
}
