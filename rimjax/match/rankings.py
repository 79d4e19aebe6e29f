"""One region against one reference: how alike their weights rank the same N agents (Eq. 7 and 9).

Everything here is written for one pair, in terms of the region's N weights `s` and the reference's
N weights `r`. Only elementwise operations touch them, so each weight may also be an array of many
pairs: `s[i]` of shape [1] or [P, 1], and `r[i]` of shape [R] or [P, R]. The pairs go last, where
they vectorise; under `vmap` the gathers of `_sum_by_level` would put them first.

To add a measure, write its recursion and add an entry to `MEASURES`; docs/match/mathematics.md
derives the recursions. To add a score map, add an entry to `SCORE_MAPS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import add
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# The lattice is unrolled up to so many agents: 30 times faster than by level, but every further
# agent doubles the time to compile.
UNROLLED = 6
_CLIP = 1e-6  # least weight of the score map "clip"
_SHIFT = 1e-9  # of "shift"; (1 + cosine) / 2 is itself no finer than 3e-8
# Least weight, relative to the largest: its square is still a normal float32, so gradients stay
# finite.
_FLOOR = 1e-18

Numbers = Sequence[Array]  # an array per agent
Values = Sequence[Array | float]


# ---- cosines to weights


def _weigh_by_exp(cosines: Numbers, temperature: Array | float) -> Numbers:
    # Rankings don't depend on scale: the largest weight is 1, so nothing overflows.
    top = lax.stop_gradient(reduce(jnp.maximum, cosines))
    return [jnp.maximum(jnp.exp((cosine - top) / temperature), _FLOOR) for cosine in cosines]


SCORE_MAPS: dict[str, Callable[[Numbers, Array | float], Numbers]] = {
    "clip": lambda cosines, _: [jnp.maximum(cosine, _CLIP) for cosine in cosines],
    "exp": _weigh_by_exp,
    "shift": lambda cosines, _: [jnp.maximum((1 + cosine) / 2, _SHIFT) for cosine in cosines],
}


def rescale_weights(weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Divide weights by a power of two, which rounds nothing, so that the largest is in [1, 4).

    No weight becomes less than 1e-18 of the largest. Rankings don't depend on scale, so no gradient
    runs through the largest weight.
    """
    top = lax.stop_gradient(weights.max())
    # The reciprocal of a power above 2^126 is not a normal number.
    power = jnp.minimum(top / (2 * jnp.frexp(top)[0]), 2.0**126)
    power = jnp.where(top > 0, power, 1)
    return jnp.maximum(weights / power, _FLOOR * jnp.maximum(top / power, 1))


# ---- the measures, each on a subset of k agents


def _sum(terms: Numbers) -> Array:
    return reduce(add, terms)


def _step_cosine(s: Numbers, r: Numbers, rest: Values) -> Array:
    """Sum s_i/s(S) * r_i/r(S) * F(S without i): the inner product <P, Q>."""
    # One reciprocal per sum: a division costs ten times a product.
    drawn = _sum([a * b * f for a, b, f in zip(s, r, rest, strict=True)])
    return drawn * (1 / _sum(s)) * (1 / _sum(r))


def _step_pearson(s: Numbers, r: Numbers, rest: Values) -> Array:
    """Compute <P - 1/k!, Q - 1/k!>."""
    # Written with differences, so that equal weights give 0 exactly and nothing cancels.
    pairs = itertools.combinations(range(len(s)), 2)
    uneven = _sum([(s[i] - s[j]) * (r[i] - r[j]) for i, j in pairs])
    drawn = _sum([a * b * f for a, b, f in zip(s, r, rest, strict=True)])
    return (drawn + uneven * (1 / math.factorial(len(s)))) * (1 / _sum(s)) * (1 / _sum(r))


def _step_bhattacharyya(s: Numbers, r: Numbers, rest: Values) -> Array:
    """Sum sqrt(P Q) over rankings."""
    drawn = _sum([jnp.sqrt(a) * jnp.sqrt(b) * f for a, b, f in zip(s, r, rest, strict=True)])
    # A division by the square root would not be fused: ten times slower.
    return drawn * lax.rsqrt(_sum(s)) * lax.rsqrt(_sum(r))


def _step_kl(s: Numbers, r: Numbers, rest: Values) -> Array:
    """Compute -KL(P || Q): of the first draw, plus the mean over first draws of the remainder's."""
    total = _sum(s)
    drawn = _sum([a * (f - jnp.log(a / b)) for a, b, f in zip(s, r, rest, strict=True)])
    return drawn * (1 / total) + jnp.log(total / _sum(r))


def _divide_by_lengths(sr: Array, ss: Array, rr: Array) -> Array:
    return sr * lax.rsqrt(ss) * lax.rsqrt(rr)


def _divide_unless_uniform(sr: Array, ss: Array, rr: Array) -> Array:
    """Divide by the lengths; 0 where a length is 0, because all weights are equal."""
    uneven = (ss > 0) & (rr > 0)
    ss, rr = jnp.where(uneven, ss, 1), jnp.where(uneven, rr, 1)
    return jnp.where(uneven, _divide_by_lengths(sr, ss, rr), 0)


@dataclass(frozen=True)
class Measure:
    """A similarity of two distributions P and Q over rankings; a larger value is more alike.

    Attributes:
        step: value of a subset of k >= 2 agents, from its members' weights and from the values of
            the subset without each of them.
        single: value of a subset of a single agent, which has a single ranking.
        total: value of all agents, term by term: P and Q, rankings along axis 0, to the value that
            `step` computes.
        normalise: values of (P, Q), (P, P) and (Q, Q) to the similarity; None where the value of
            (P, Q) is the similarity.
        lowest: the lowest similarity.
    """

    step: Callable[[Numbers, Numbers, Values], Array]
    single: float
    total: Callable[[Array, Array], Array]
    normalise: Callable[[Array, Array, Array], Array] | None = None
    lowest: float = 0.0


MEASURES = {
    "cosine": Measure(
        _step_cosine, 1.0, lambda p, q: (p * q).sum(axis=0), normalise=_divide_by_lengths
    ),
    "bhattacharyya": Measure(
        _step_bhattacharyya, 1.0, lambda p, q: (jnp.sqrt(p) * jnp.sqrt(q)).sum(axis=0)
    ),
    "pearson": Measure(
        _step_pearson,
        0.0,
        lambda p, q: ((p - 1 / len(p)) * (q - 1 / len(q))).sum(axis=0),
        normalise=_divide_unless_uniform,
        lowest=-1.0,
    ),
    "kl": Measure(
        _step_kl,
        0.0,
        lambda p, q: -(p * (jnp.log(p) - jnp.log(q))).sum(axis=0),
        lowest=-math.inf,
    ),
}


def compare_weights(s: Numbers, r: Numbers, measure: str, method: str) -> Array:
    """Compare two distributions over rankings, by the subset lattice or term by term.

    Args:
        s: the region's N weights.
        r: the reference's N weights.
        measure: a key of `MEASURES`.
        method: "lattice" or "enumerate"; both are exact.
    """
    chosen = MEASURES[measure]
    by_level = method == "lattice" and len(s) > UNROLLED
    p: Any = s
    q: Any = r
    if method == "enumerate":
        p, q = compute_probabilities(jnp.stack(s)), compute_probabilities(jnp.stack(r))
        value = chosen.total
    else:
        value = partial(_sum_by_level if by_level else _sum_unrolled, measure=chosen)
    if chosen.normalise is None:
        return value(p, q)
    if not by_level:
        # value(p, p) is computed once per region, not per pair.
        return chosen.normalise(value(p, q), value(p, p), value(q, q))

    # The region's weights are appended as another reference: one lattice less to compile.
    joined: Any = [jnp.concatenate([b, a], axis=-1) for a, b in zip(s, r, strict=True)]
    both = value(p, joined)
    return chosen.normalise(both[..., :-1], both[..., -1:], value(joined, joined)[..., :-1])


# ---- two ways through the lattice, and the paper's formula term by term


def _sum_unrolled(s: Numbers, r: Numbers, measure: Measure) -> Array:
    """Compute the value of the whole set; a subset is the set bits of an integer.

    XLA computes the sums that subsets share once.
    """
    value: dict[int, Array | float] = {1 << i: measure.single for i in range(len(s))}
    for subset in range(1, 1 << len(s)):
        members = [i for i in range(len(s)) if subset >> i & 1]
        if len(members) > 1:
            rest = [value[subset ^ (1 << i)] for i in members]
            value[subset] = measure.step([s[i] for i in members], [r[i] for i in members], rest)
    shape = jnp.broadcast_shapes(jnp.shape(s[0]), jnp.shape(r[0]))
    return jnp.broadcast_to(value[(1 << len(s)) - 1], shape)


def _sum_by_level(s: Numbers, r: Numbers, measure: Measure) -> Array:
    """Compute the same value, all subsets of a size at a time: few operations, whatever N."""
    all_s, all_r = jnp.stack(s), jnp.stack(r)
    value = jnp.full_like(all_s * all_r, measure.single)
    for members, without in _list_levels(len(s)):
        rest = [value[row] for row in without.T]
        value = measure.step([all_s[i] for i in members.T], [all_r[i] for i in members.T], rest)
    return value[0]


@lru_cache
def _list_levels(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """List, for k = 2..n, the members of every subset of size k, and its rows one level below.

    Both are i32[subsets, k]; column j of the second is the row of the subset without member j.
    """
    subsets = np.arange(1 << n)
    bits = subsets[:, None] >> np.arange(n) & 1
    row, levels = np.zeros(1 << n, np.int32), []
    for k in range(1, n + 1):
        level = subsets[bits.sum(axis=1) == k]
        row[level] = np.arange(len(level))
        members = np.nonzero(bits[level])[1].reshape(-1, k).astype(np.int32)
        levels.append((members, row[level[:, None] ^ (1 << members)]))
    return levels[1:]


def compute_probabilities(weights: Float[Array, "N ..."]) -> Float[Array, "rankings ..."]:
    """Compute the probability of every ranking (Eq. 7), in the order of `permutations`."""
    orders = np.array(list(itertools.permutations(range(len(weights)))), np.int32)
    ranked = weights[orders]  # [N!, N, ...]
    remaining = jnp.cumsum(ranked[:, ::-1], axis=1)[:, ::-1]  # the sums that each draw chooses from
    return jnp.prod(ranked / remaining, axis=1)
