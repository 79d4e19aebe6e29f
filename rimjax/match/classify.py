"""Regions against prototypes, in the paper's order (Sec. 3.5).

Agents (Eq. 6), similarities (Eq. 7-9), class scores (Eq. 10), decision (Eq. 9). The functions that
end the chains, `compare_regions` and `classify_regions`, are compiled; `tiling` cuts them up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rimjax.match import tiling as tiles
from rimjax.match.rankings import MEASURES
from rimjax.match.readings import READINGS, compare_rankings, compute_cosines, is_unrolled
from rimjax.match.tiling import Tiling
from rimjax.types import AnyArray, Match, ReferenceBank, normalise_rows

TIE = 1e-6  # scores this close are equal: rounding, and sums in another order, differ by up to this

Integer = int | np.integer
Method = Literal["lattice", "enumerate"]
AgentPolicy = Literal["top", "random"]
Candidates = Literal["all", "agents"]


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """The keyword arguments of `match` that a compilation depends on.

    Attributes:
        num_agents: N, agents of a region.
        score_map: how cosines become weights, a key of `rankings.SCORE_MAPS`.
        measure: of two distributions over rankings, a key of `rankings.MEASURES`.
        method: how the distributions are compared.
        agent_policy: which classes are a region's agents.
        similarity: the reading of Sec. 3.5, a key of `readings.READINGS`.
        candidates: which classes may win.
        top_k: how many class scores to return; None for all.
    """

    num_agents: Integer = 4
    score_map: str = "clip"
    measure: str = "cosine"
    method: Method = "lattice"
    agent_policy: AgentPolicy = "top"
    similarity: str = "relation"
    candidates: Candidates = "all"
    top_k: Integer | None = None


@partial(jax.jit, static_argnames=("options", "tiling"))
def compare_regions(
    regions: Float[AnyArray, "P D"],
    prototypes: Float[AnyArray, "R D"],
    classes: Float[AnyArray, "C D"],
    temperature: Any,
    key: Any,
    options: MatchOptions,
    tiling: Tiling,
) -> Float[Array, "P R"]:
    """Compute the similarity of every region to every prototype (Eq. 6-9)."""

    def compare_block(rows: Any, shared: Any) -> Float[Array, "P R"]:
        (features, index), (prototypes, classes, temperature, key) = rows, shared
        classes = normalise_rows(classes)
        cosines = compute_cosines(features, classes)
        agents = choose_agents(cosines, index, key, options)
        compare, columns = prepare_comparison(
            features, cosines, agents, classes, temperature, options, tiling
        )
        return tiles.map_prototypes(compare, prototypes, columns)

    widest = max(len(classes), min(len(prototypes), tiles.COLUMNS), regions.shape[1])
    temperature = jnp.asarray(temperature, jnp.float32)
    return tiles.map_regions(
        compare_block,
        (regions, jnp.arange(len(regions))),
        (prototypes, classes, temperature, key),
        widest,
        tiling,
    )


@partial(jax.jit, static_argnames=("options", "tiling"))
def classify_regions(
    features: Float[AnyArray, "P D"],
    valid: Bool[AnyArray, " P"],
    bank: ReferenceBank,
    allowed: Bool[AnyArray, " C"] | None,
    temperature: Any,
    key: Any,
    options: MatchOptions,
    tiling: Tiling,
) -> Match:
    """Compute every region's class scores and the winner (Eq. 6-10)."""

    def classify_block(rows: Any, shared: Any) -> Match:
        (features, valid, index), (bank, allowed, temperature, key) = rows, shared
        features = jnp.where(valid[:, None], features, 0)
        if bank.whitening is not None:
            features = bank.whitening.apply(features)
        classes = normalise_rows(bank.classes)
        cosines = compute_cosines(features, classes)
        agents = choose_agents(cosines, index, key, options)
        compare, columns = prepare_comparison(
            features, cosines, agents, classes, temperature, options, tiling
        )
        scores, sizes = tiles.average_by_class(
            compare, bank.prototypes, bank.owners, len(classes), columns
        )
        may_win = find_candidates(sizes, allowed, agents, options)
        return decide(scores, may_win, valid, agents, options)

    classes, prototypes = len(bank.classes), len(bank.prototypes)
    widest = max(classes, min(prototypes, tiles.COLUMNS), features.shape[1])
    temperature = jnp.asarray(temperature, jnp.float32)
    return tiles.map_regions(
        classify_block,
        (features, valid, jnp.arange(len(features))),
        (bank, allowed, temperature, key),
        widest,
        tiling,
    )


def choose_agents(
    cosines: Float[Array, "P C"], index: Int[Array, " P"], key: Any, options: MatchOptions
) -> Int[Array, "P N"]:
    """Choose each region's agents (Eq. 6): the nearest classes, or random classes."""
    count = min(int(options.num_agents), cosines.shape[1])
    if options.agent_policy == "top":
        return lax.top_k(cosines, count)[1]

    # A key from the region's index: its agents don't depend on how many other regions, or how much
    # padding, there are.
    def draw(region: Array) -> Int[Array, " N"]:
        return jax.random.permutation(jax.random.fold_in(key, region), cosines.shape[1])[:count]

    return jax.vmap(draw)(index).astype(jnp.int32)


def prepare_comparison(
    features: Float[AnyArray, "P D"],
    cosines: Float[Array, "P C"],
    agents: Int[Array, "P N"],
    classes: Float[Array, "C D"],
    temperature: Array,
    options: MatchOptions,
    tiling: Tiling,
) -> tuple[tiles.Compare, int]:
    """Return the function that compares the regions with prototypes (Eq. 7-9).

    Args:
        features: the regions'.
        cosines: of the regions to all classes.
        agents: of the regions.
        classes: class references of length 1.
        temperature: of the score map "exp".
        options: the reading, and how rankings are compared.
        tiling: the bound on temporary arrays.

    Returns:
        The function, and how many prototypes to pass to it at a time.
    """
    reading, (n, dim) = READINGS[options.similarity], (agents.shape[1], classes.shape[1])
    own = jnp.take_along_axis(cosines, agents, axis=1)
    if 0 < agents.size < len(classes):  # a huge vocabulary: only the classes that are agents
        used, agents = jnp.unique(agents, return_inverse=True, size=agents.size, fill_value=0)
        classes, agents = classes[used], agents.reshape(own.shape)

    def compare(prototypes: Float[Array, "X D"]) -> Float[Array, "P X"]:
        units = normalise_rows(prototypes)

        def rank() -> Float[Array, "P X"]:
            return compare_rankings(
                own,
                agents,
                jnp.matmul(classes, units.T, precision=lax.Precision.HIGHEST),
                temperature,
                score_map=options.score_map,
                measure=options.measure,
                method=options.method,
            )

        return reading.combine(lambda: compute_cosines(features, units), rank)

    if not reading.uses_rankings:
        return compare, tiles.fit_columns(tiling, dim)
    row = max(4 * len(classes), dim)
    if is_unrolled(n, options.method):
        return compare, tiles.fit_columns(tiling, row)
    # Level by level, every member's array is gathered.
    rankings = math.factorial(n) * n if options.method == "enumerate" else math.comb(n, n // 2)
    return compare, tiles.fit_columns(tiling, row, rankings, copies=n)


def find_candidates(
    sizes: Int[Array, " C"],
    allowed: Bool[Array, " C"] | None,
    agents: Int[Array, "P N"],
    options: MatchOptions,
) -> Bool[Array, "P C"]:
    """Find the classes that may win: with prototypes, allowed and, if asked, agents."""
    may_win = sizes > 0 if allowed is None else (sizes > 0) & allowed
    may_win = jnp.broadcast_to(may_win, (len(agents), len(sizes)))
    if options.candidates == "agents":
        rows = jnp.arange(len(agents))[:, None]
        may_win &= jnp.zeros_like(may_win).at[rows, agents].set(True)
    return may_win


def decide(
    scores: Float[Array, "P C"],
    may_win: Bool[Array, "P C"],
    valid: Bool[Array, " P"],
    agents: Int[Array, "P N"],
    options: MatchOptions,
) -> Match:
    """Choose the winner of every region (Eq. 9), the lowest of the classes that tie."""
    in_play = jnp.where(may_win, scores, -jnp.inf)
    best = may_win & (in_play >= in_play.max(axis=1, keepdims=True) - TIE)  # none, if NaN came in
    winner = jnp.argmax(best, axis=1).astype(jnp.int32)
    labels = jnp.where(valid & best.any(axis=1), winner, -1)
    reading, excluded = READINGS[options.similarity], READINGS[options.similarity].lowest
    if reading.uses_rankings:
        excluded = min(excluded, MEASURES[options.measure].lowest)
    scores = jnp.where(valid[:, None], jnp.where(may_win, scores, excluded), 0)
    if options.top_k is None:
        return Match(labels, scores, agents)
    # The winner first, where another class ties with it.
    in_play = in_play.at[jnp.arange(len(winner)), winner].set(jnp.inf)
    chosen = lax.top_k(in_play, min(int(options.top_k), scores.shape[1]))[1]
    return Match(labels, jnp.take_along_axis(scores, chosen, axis=1), agents, chosen)
