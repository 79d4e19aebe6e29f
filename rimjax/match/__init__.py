"""Relation-aware matching (paper Sec. 3.5, Eq. 6-10): compare how a region and a reference *rank* the same few classes.

A region's *agents* are the N class references nearest to it. Its cosines to them, made positive, are weights `s`; those of a
reference to the same agents are weights `r`. Weights define a distribution over the N! rankings of the agents (Plackett-Luce, Eq. 7:
draw the agents one by one without replacement, each with probability proportional to its weight), and region and reference are
as similar as the cosine of their two distributions (Eq. 9).

Term by term that costs O(N! N). But a ranking's probability is a product over what is left to draw, so the inner product of two
distributions is a recursion over the subsets S of the agents, exact in O(2^N N):

    <P(.|s), P(.|r)> = F(all),    F(empty) = 1,    F(S) = sum_{i in S} s_i/s(S) * r_i/r(S) * F(S \\ {i}),    s(S) = sum_{i in S} s_i

`method="lattice"` is this recursion; `method="enumerate"` is the paper's formula as printed, and the lattice's oracle in the tests.
Here are the public functions and what they compile; `rankings` holds the two methods, `arguments` the checks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from rimjax.match.arguments import AgentPolicy, Candidates, Method, ScoreMap, Settings, Similarity, check, checked_weights
from rimjax.match.rankings import ranking_cosine, ranking_probabilities, scaled
from rimjax.types import AnyArray, Match, ReferenceBank, Regions, bucket_size, pad_regions

_REGION_BLOCK = 8  # regions that go through together: at P=1000, 9 times faster than all at once
_BLOCK_ELEMENTS = 2**22  # of the largest temporary array; references beyond it go through in turn
_CLIP = 1e-6
_TIE = 1e-6  # scores this close are equal: the rounding of float32, and of sums in another order, goes up to here


def permutation_probabilities(scores: Float[AnyArray, " N"]) -> Float[Array, " rankings"]:
    """Plackett-Luce probability of each of the N! rankings of N items (Eq. 7), in the order of `itertools.permutations(range(N))`.

    scores: weights >= 0 of any scale, N <= 8; weights below 1e-18 of the largest count as that. The result sums to 1.
    Raises ValueError for another rank, N above 8, negative weights, NaN or infinity.

    >>> permutation_probabilities(jnp.array([2.0, 1.0, 1.0])).tolist()[:2]  # 2/4 * 1/2, twice
    [0.25, 0.25]
    """
    return ranking_probabilities(scaled(checked_weights("scores", scores, "enumerate")[:, None]))[:, 0]


def permutation_similarity(s: Float[AnyArray, " N"], r: Float[AnyArray, " N"], method: Method = "lattice") -> Float[Array, ""]:
    """Cosine of the ranking distributions of two weight vectors over the same N agents (Eq. 9), in [0, 1]; differentiable.

    s, r: weights >= 0 of any scale, N <= 16 (8 for "enumerate"); weights below 1e-18 of the largest count as that.
    Raises ValueError for another rank, lengths that differ, N out of range, negative weights, NaN or infinity.

    >>> f"{permutation_similarity(jnp.array([3.0, 1.0]), jnp.array([1.0, 3.0])):.3f}"  # (3/4 * 1/4 * 2) / (9/16 + 1/16)
    '0.600'
    """
    s, r = checked_weights("s", s, method), checked_weights("r", r, method)
    if s.shape != r.shape:
        raise ValueError(f"s and r must weigh the same agents, got N={len(s)} and N={len(r)}")
    return ranking_cosine(scaled(s[:, None]), scaled(r[:, None]), method)[0]


def relation_aware_similarity(
    regions: Float[AnyArray, "P D"],
    prototypes: Float[AnyArray, "R D"],
    classes: Float[AnyArray, "C D"],
    *,
    num_agents: int = 4,
    score_map: ScoreMap = "clip",
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: Array | None = None,
    temperature: float = 0.1,
    max_bytes: int = 4 << 30,
) -> Float[Array, "P R"]:
    """Similarity in [0, 1] of every region to every prototype, through the region's own agents, rows of `classes` (Eq. 6-9).

    regions, prototypes, classes: features of any scale and float type (computed in float32); a zero vector has cosine 0 to everything.
    num_agents: N in [1, 16], or 8 for "enumerate"; N above C becomes C.
    score_map: cosine c to weight: "clip" max(c, 1e-6), "exp" exp(c / temperature), "shift" (1 + c) / 2.
    agent_policy: "top", the N classes of highest cosine, ties to the lowest index; "random", N classes drawn for each region from `key`.
    max_bytes: what the arrays of size P*R, P*C and C*R may take together.

    Works under jit, vmap and grad (which agents are chosen has no gradient), and compiles once per shape. Raises ValueError, naming the
    argument, for wrong shapes, settings out of range, more memory than `max_bytes`, and, outside of a trace, NaN or infinity.
    """
    settings = Settings(num_agents, method, score_map, agent_policy)
    check(settings, temperature, key, max_bytes, len(regions), regions=regions, prototypes=prototypes, classes=classes)
    return _relation(regions, prototypes, classes, temperature, key, settings)[0]


def match(
    regions: Float[AnyArray, "P D"] | Regions,
    bank: ReferenceBank,
    *,
    num_agents: int = 4,
    score_map: ScoreMap = "clip",
    temperature: float = 0.1,
    similarity: Similarity = "relation",
    candidates: Candidates = "all",
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: Array | None = None,
    max_bytes: int = 4 << 30,
) -> Match:
    """Classify regions: a class scores the mean similarity to its prototypes (Eq. 10), the best class wins (Eq. 9).

    regions: features, or `Regions`, whose invalid rows get label -1 and scores 0 whatever they hold.
    similarity: "relation", of rankings (Eq. 9), or "cosine", of features (Table 2, rows 2 and 3).
    candidates: classes that may win: "all", or only the "agents" of the region; the others score -1.
    The other settings, and the errors, are those of `relation_aware_similarity`. Ties, scores within 1e-6 of the best, go to
    the lowest class index.

    Regions are padded to `bucket_size(P)`, so many images compile a few times only; under an outer jit, use `pad_regions` before.
    """
    settings = Settings(num_agents, method, score_map, agent_policy, similarity, candidates)
    if not isinstance(regions, Regions):
        regions = Regions(regions, None, np.ones(regions.shape[:1], bool))
    regions, count = Regions(regions.features, None, regions.valid), len(regions.valid)
    traced = isinstance(regions.features, Tracer) or isinstance(regions.valid, Tracer)
    rows = regions.features if traced else np.asarray(regions.features)[np.asarray(regions.valid)]
    check(settings, temperature, key, max_bytes, bucket_size(count), regions=rows, prototypes=bank.prototypes, classes=bank.classes)
    regions = regions if traced else pad_regions(regions)
    result = _match(regions, replace(bank, names=(), encoder=""), temperature, key, settings)  # other names: no other compilation
    if len(result.labels) == count:
        return result
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:count]), result)  # on the host, where slicing compiles nothing


# ---- compiled: P regions against R prototypes


@partial(jax.jit, static_argnames="settings")
def _relation(
    regions: Float[Array, "P D"],
    prototypes: Float[Array, "R D"],
    classes: Float[Array, "C D"],
    temperature: Any,
    key: Any,
    settings: Settings,
) -> tuple[Float[Array, "P R"], Int[Array, "P N"]]:
    region_cosines, reference_cosines = _cosines(regions, classes), _cosines(classes, prototypes)
    agents = _choose_agents(region_cosines, settings, key)

    def one_region(args: tuple[Float[Array, " C"], Int[Array, " N"]]) -> Float[Array, " R"]:
        cosines, own = args
        s = scaled(_weigh(cosines[own][:, None], settings.score_map, temperature))
        r = scaled(_weigh(reference_cosines[own], settings.score_map, temperature))  # [N, R]
        return _in_blocks(s, r, settings.method)

    return lax.map(one_region, (region_cosines, agents), batch_size=_REGION_BLOCK), agents


@partial(jax.jit, static_argnames="settings")
def _match(regions: Regions, bank: ReferenceBank, temperature: Any, key: Any, settings: Settings) -> Match:
    valid = regions.valid[:, None]
    features = jnp.where(valid, regions.features, 0)
    if settings.similarity == "relation":
        similarities, agents = _relation(features, bank.prototypes, bank.classes, temperature, key, settings)
    else:
        similarities, agents = _cosines(features, bank.prototypes), _choose_agents(_cosines(features, bank.classes), settings, key)
    owned = jax.nn.one_hot(bank.owners, len(bank.classes), dtype=jnp.float32)
    sizes = owned.sum(axis=0)
    # Summed by a matrix product: unlike a scatter, it gives the same bits on every run.
    scores = jnp.matmul(similarities, owned, precision=lax.Precision.HIGHEST) / jnp.maximum(sizes, 1)
    may_win = jnp.broadcast_to(sizes > 0, scores.shape)
    if settings.candidates == "agents":
        may_win &= jax.nn.one_hot(agents, len(bank.classes), dtype=bool).any(axis=1)
    in_play = jnp.where(may_win, scores, -jnp.inf)
    best = in_play >= in_play.max(axis=1, keepdims=True) - _TIE  # nowhere, if a trace let NaN through
    labels = jnp.where(regions.valid & best.any(axis=1), jnp.argmax(best, axis=1).astype(jnp.int32), -1)
    return Match(labels, jnp.where(valid, jnp.where(may_win, scores, -1), 0), agents)


def _cosines(a: Float[Array, "A D"], b: Float[Array, "B D"]) -> Float[Array, "A B"]:
    return jnp.matmul(_unit(a), _unit(b).T, precision=lax.Precision.HIGHEST)


def _unit(x: Float[Array, "A D"]) -> Float[Array, "A D"]:
    """Rows of length 1; zero rows stay zero, with finite gradients. Scaled first, so that huge values don't overflow when squared."""
    x = x.astype(jnp.float32)
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    x = x / jnp.where(top > 0, top, 1)
    return x / jnp.sqrt(jnp.where(top > 0, jnp.sum(x * x, axis=1, keepdims=True), 1))


def _choose_agents(cosines: Float[Array, "P C"], settings: Settings, key: Any) -> Int[Array, "P N"]:
    count = min(settings.num_agents, cosines.shape[1])
    if settings.agent_policy == "top":
        return lax.top_k(cosines, count)[1]

    # A key from the region's index: its agents don't depend on how many other regions, or how much padding, there are.
    draw = jax.vmap(lambda region: jax.random.permutation(jax.random.fold_in(key, region), cosines.shape[1])[:count])
    return draw(jnp.arange(len(cosines))).astype(jnp.int32)


def _weigh(cosines: Float[Array, "N X"], score_map: ScoreMap, temperature: Any) -> Float[Array, "N X"]:
    if score_map == "clip":
        return jnp.maximum(cosines, _CLIP)
    if score_map == "shift":
        return jnp.maximum((1 + cosines) / 2, 0)
    return jnp.exp((cosines - lax.stop_gradient(cosines.max(axis=0))) / temperature)  # largest weight 1: no overflow


def _in_blocks(s: Float[Array, "N 1"], r: Float[Array, "N R"], method: Method) -> Float[Array, " R"]:
    """The kernel, over so many references at a time that its largest array keeps to `_BLOCK_ELEMENTS` for a block of regions."""
    n, count = r.shape
    per_pair = math.factorial(n) * n if method == "enumerate" else max(math.comb(n, k) * k for k in range(n + 1))
    size = max(1, _BLOCK_ELEMENTS // (_REGION_BLOCK * per_pair))
    if count <= size:
        return ranking_cosine(s, r, method)
    blocks = -(-count // size)
    padded = jnp.pad(r, ((0, 0), (0, blocks * size - count)), constant_values=1).reshape(n, blocks, size)
    return lax.map(lambda block: ranking_cosine(s, block, method), padded.swapaxes(0, 1)).reshape(-1)[:count]
