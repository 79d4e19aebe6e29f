"""Distributions over rankings, one region against X references: by the subset lattice, or term by term (paper Eq. 7 and 9).

Weights come as [N, X], the same N agents for all. The pairs go last, where they vectorise; `vmap` would put them first, and gathering
across them was 10 to 75 times slower on a CPU. The region's own weights have X = 1.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rimjax.match.arguments import Method

_UNROLLED = 5  # agents up to which the lattice is unrolled: it runs faster, but takes twice as long to compile with every agent more
_FLOOR = 1e-18  # least weight, relative to the largest: its square is still a normal float32, so gradients stay finite


def scaled(weights: Float[Array, "N X"]) -> Float[Array, "N X"]:
    """Weights over their maximum, and no less than `_FLOOR`. Rankings don't depend on scale, so no gradient runs through the maximum."""
    top = lax.stop_gradient(weights.max(axis=0))
    return jnp.maximum(weights / jnp.where(top > 0, top, 1), _FLOOR)


@partial(jax.jit, static_argnames="method")
def ranking_cosine(s: Float[Array, "N X"], r: Float[Array, "N X"], method: Method) -> Float[Array, " X"]:
    if method == "lattice":
        inner = _inner_unrolled if len(s) <= _UNROLLED else _inner_by_level
        return inner(s, r) / (jnp.sqrt(inner(s, s)) * jnp.sqrt(inner(r, r)))  # inner(s, s): once per region, not per pair
    p, q = ranking_probabilities(s), ranking_probabilities(r)
    return (p * q).sum(axis=0) / (jnp.sqrt((p * p).sum(axis=0)) * jnp.sqrt((q * q).sum(axis=0)))


def _inner_unrolled(s: Float[Array, "N X"], r: Float[Array, "N X"]) -> Float[Array, " X"]:
    """F(all) of the package's docstring, a subset being the set bits of an integer."""
    value = {1 << i: jnp.ones_like(s[0] * r[0]) for i in range(len(s))}  # a single agent has one ranking
    for subset in range(1, 1 << len(s)):
        members = [i for i in range(len(s)) if subset >> i & 1]
        if len(members) > 1:
            per_s, per_r = 1 / _sum([s[i] for i in members]), 1 / _sum([r[i] for i in members])
            value[subset] = _sum([(s[i] * per_s) * (r[i] * per_r) * value[subset ^ (1 << i)] for i in members])
    return value[(1 << len(s)) - 1]


def _inner_by_level(s: Float[Array, "N X"], r: Float[Array, "N X"]) -> Float[Array, " X"]:
    """F(all) again, all subsets of one size at a time: few operations to compile, whatever N."""
    value = jnp.ones_like(s * r)
    for members, without in _levels(len(s)):
        picked_s, picked_r = [s[column] for column in members.T], [r[column] for column in members.T]
        per_s, per_r = 1 / _sum(picked_s), 1 / _sum(picked_r)
        value = _sum([(a * per_s) * (b * per_r) * value[rest] for a, b, rest in zip(picked_s, picked_r, without.T, strict=True)])
    return value[0]


def _sum(terms: list[Array]) -> Array:
    return sum(terms[1:], start=terms[0])


@lru_cache
def _levels(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For k = 2..n, i32[subsets, k] each: the members of every subset of size k, and where, one level below, it is without that member."""
    subsets = np.arange(1 << n)
    bits = subsets[:, None] >> np.arange(n) & 1
    row, levels = np.zeros(1 << n, np.int32), []
    for k in range(1, n + 1):
        level = subsets[bits.sum(axis=1) == k]
        row[level] = np.arange(len(level))
        members = np.nonzero(bits[level])[1].reshape(-1, k).astype(np.int32)
        levels.append((members, row[level[:, None] ^ (1 << members)]))
    return levels[1:]


@jax.jit
def ranking_probabilities(weights: Float[Array, "N X"]) -> Float[Array, "rankings X"]:
    orders = np.array(list(itertools.permutations(range(len(weights)))), np.int32)
    ranked = weights[orders]  # [N!, N, ...]
    left = jnp.cumsum(ranked[:, ::-1], axis=1)[:, ::-1]  # what each draw chooses from
    return jnp.prod(ranked / left, axis=1)
