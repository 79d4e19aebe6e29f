"""One region against one reference: how alike their weights over the same N agents rank these (paper Eq. 7 and 9).

Everything here is written for one pair, in terms of N numbers `s` (the region's weights) and N numbers `r` (the reference's). Only
elementwise operations touch the numbers, so each may as well be an array of many pairs, `s[i]` of shape [1] or [P, 1] and `r[i]` of shape
[R] or [P, R]. The pairs go last, where they vectorise; under `vmap` the gathers of `_by_level` would put them first.

`_STEPS` holds the recursion of each measure: the value of a subset S of the agents, from its members' weights and from the values of
S without each of them. docs/match.md derives them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce
from operator import add

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rimjax.match.arguments import Measure, Method, ScoreMap

UNROLLED = 6  # agents up to which the lattice is unrolled: 30 times faster than by level, but every agent more doubles its compilation
_CLIP, _SHIFT = 1e-6, 1e-9  # least weights of the score maps; (1 + cosine) / 2 is itself no finer than 3e-8
_FLOOR = 1e-18  # least weight, relative to the largest: its square is still a normal float32, so gradients stay finite

Numbers = Sequence[Array]  # one per agent
Step = Callable[[Numbers, Numbers, Sequence[Array | float]], Array]


def relation(region: Numbers, reference: Numbers, temperature: Array, score_map: ScoreMap, measure: Measure, method: Method) -> Array:
    """Similarity of a region and a reference, from their cosines to the region's N agents (Eq. 6 to 9)."""
    s, r = weigh(region, temperature, score_map), weigh(reference, temperature, score_map)
    return ranking_similarity(s, r, measure, method)


def weigh(cosines: Numbers, temperature: Array, score_map: ScoreMap) -> Numbers:
    """Positive weights of cosines: what Eq. 7 needs."""
    if score_map == "clip":
        return [jnp.maximum(cosine, _CLIP) for cosine in cosines]
    if score_map == "shift":
        return [jnp.maximum((1 + cosine) / 2, _SHIFT) for cosine in cosines]
    top = lax.stop_gradient(reduce(jnp.maximum, cosines))  # rankings don't depend on scale: the largest weight is 1, nothing overflows
    return [jnp.maximum(jnp.exp((cosine - top) / temperature), _FLOOR) for cosine in cosines]


def scaled(weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Weights over a power of two, which rounds nothing, so that the largest is in [1, 4); no weight is less than `_FLOOR` of it.

    Rankings don't depend on scale, so no gradient runs through the largest.
    """
    top = lax.stop_gradient(weights.max())
    power = jnp.minimum(top / (2 * jnp.frexp(top)[0]), 2.0**126)  # of a larger one the reciprocal is no normal number
    power = jnp.where(top > 0, power, 1)
    return jnp.maximum(weights / power, _FLOOR * jnp.maximum(top / power, 1))


def ranking_similarity(s: Numbers, r: Numbers, measure: Measure, method: Method) -> Array:
    """A measure of two distributions over rankings, larger for likelier ones: exact, by the subset lattice or term by term."""
    if method == "enumerate":
        return _enumerated(s, r, measure)
    unrolled = len(s) <= UNROLLED
    lattice = partial(_unrolled if unrolled else _by_level, step=_STEPS[measure], single=_SINGLE[measure])
    if measure == "kl":
        return -lattice(s, r)
    if measure == "bhattacharyya":
        return lattice(s, r)
    if unrolled:
        return _normalised(lattice(s, r), lattice(s, s), lattice(r, r), measure)  # lattice(s, s): once per region, not per pair

    # By level, the region goes along as one more reference, its own: a lattice less to compile.
    joined = [jnp.concatenate([b, a], axis=-1) for a, b in zip(s, r, strict=True)]
    both = lattice(s, joined)
    return _normalised(both[..., :-1], both[..., -1:], lattice(joined, joined)[..., :-1], measure)


# ---- the measures, each on one subset of k agents


def _product(s: Numbers, r: Numbers, rest: Sequence[Array | float]) -> Array:
    """<P, Q>: sum of s_i/s(S) * r_i/r(S) * F(S without i). One reciprocal per sum: divisions cost ten times a product."""
    return _sum([a * b * f for a, b, f in zip(s, r, rest, strict=True)]) * (1 / _sum(s)) * (1 / _sum(r))


def _covariance(s: Numbers, r: Numbers, rest: Sequence[Array | float]) -> Array:
    """<P - 1/k!, Q - 1/k!>. Written with differences, so that equal weights give 0 exactly and nothing cancels."""
    uneven = _sum([(s[i] - s[j]) * (r[i] - r[j]) for i, j in itertools.combinations(range(len(s)), 2)])
    grown = _sum([a * b * f for a, b, f in zip(s, r, rest, strict=True)])
    return (grown + uneven * (1 / math.factorial(len(s)))) * (1 / _sum(s)) * (1 / _sum(r))


def _overlap(s: Numbers, r: Numbers, rest: Sequence[Array | float]) -> Array:
    """Sum over rankings of sqrt(P Q)."""
    grown = _sum([jnp.sqrt(a) * jnp.sqrt(b) * f for a, b, f in zip(s, r, rest, strict=True)])
    return grown * lax.rsqrt(_sum(s)) * lax.rsqrt(_sum(r))  # a division by the square root would not be fused: 10 times slower


def _divergence(s: Numbers, r: Numbers, rest: Sequence[Array | float]) -> Array:
    """KL(P || Q): of the first draw, and of what is left, on average over the region's first draws."""
    total = _sum(s)
    return _sum([a * (jnp.log(a / b) + f) for a, b, f in zip(s, r, rest, strict=True)]) * (1 / total) - jnp.log(total / _sum(r))


_STEPS: dict[Measure, Step] = {"cosine": _product, "pearson": _covariance, "bhattacharyya": _overlap, "kl": _divergence}
_SINGLE: dict[Measure, float] = {"cosine": 1.0, "pearson": 0.0, "bhattacharyya": 1.0, "kl": 0.0}  # a single agent has one ranking


def _normalised(sr: Array, ss: Array, rr: Array, measure: Measure) -> Array:
    """Inner product over lengths; for "pearson" 0 where a length is 0, since all weights are equal."""
    if measure == "cosine":
        return sr * lax.rsqrt(ss) * lax.rsqrt(rr)
    known = (ss > 0) & (rr > 0)
    return jnp.where(known, sr * lax.rsqrt(jnp.where(known, ss, 1)) * lax.rsqrt(jnp.where(known, rr, 1)), 0)


def _sum(terms: Sequence[Array]) -> Array:
    return reduce(add, terms)


# ---- two ways through the lattice


def _unrolled(s: Numbers, r: Numbers, step: Step, single: float) -> Array:
    """The value of the whole set, a subset being the set bits of an integer. Sums that subsets share are computed once (XLA sees to it)."""
    value: dict[int, Array | float] = {1 << i: single for i in range(len(s))}
    for subset in range(1, 1 << len(s)):
        members = [i for i in range(len(s)) if subset >> i & 1]
        if len(members) > 1:
            rest = [value[subset ^ (1 << i)] for i in members]
            value[subset] = step([s[i] for i in members], [r[i] for i in members], rest)
    return jnp.broadcast_to(value[(1 << len(s)) - 1], jnp.broadcast_shapes(jnp.shape(s[0]), jnp.shape(r[0])))


def _by_level(s: Numbers, r: Numbers, step: Step, single: float) -> Array:
    """The same, all subsets of one size at a time: few operations to compile, whatever N."""
    all_s, all_r = jnp.stack(s), jnp.stack(r)
    value = jnp.full_like(all_s * all_r, single)
    for members, without in _levels(len(s)):
        value = step([all_s[i] for i in members.T], [all_r[i] for i in members.T], [value[rest] for rest in without.T])
    return value[0]


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


# ---- the paper's formula, term by term


def _enumerated(s: Numbers, r: Numbers, measure: Measure) -> Array:
    p, q = ranking_probabilities(jnp.stack(s)), ranking_probabilities(jnp.stack(r))
    if measure == "bhattacharyya":
        return (jnp.sqrt(p) * jnp.sqrt(q)).sum(axis=0)
    if measure == "kl":
        return -(p * (jnp.log(p) - jnp.log(q))).sum(axis=0)
    if measure == "pearson":
        p, q = p - 1 / len(p), q - 1 / len(q)
    return _normalised((p * q).sum(axis=0), (p * p).sum(axis=0), (q * q).sum(axis=0), measure)


def ranking_probabilities(weights: Float[Array, "N ..."]) -> Float[Array, "rankings ..."]:
    """Eq. 7, one ranking per row."""
    orders = np.array(list(itertools.permutations(range(len(weights)))), np.int32)
    ranked = weights[orders]  # [N!, N, ...]
    left = jnp.cumsum(ranked[:, ::-1], axis=1)[:, ::-1]  # what each draw chooses from
    return jnp.prod(ranked / left, axis=1)
