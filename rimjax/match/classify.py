"""Regions against prototypes, in the paper's order (Sec. 3.5).

Agents (Eq. 6), similarities (Eq. 7-9), class scores (Eq. 10), decision (Eq. 9). The functions that
end the chains, `compare_regions` and `classify_regions`, are compiled; `tiling` cuts them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rimjax.match import tiling as tiles
from rimjax.match.rankings import MEASURES
from rimjax.match.readings import READINGS, compare_rankings, compute_cosines, count_elements
from rimjax.match.tiling import Tiling
from rimjax.types import AnyArray, Match, ReferenceBank, normalise_rows

TIE = 1e-6  # scores this close are equal: rounding, and sums in another order, differ by up to this

Integer = int | np.integer
Method = Literal["lattice", "enumerate"]
AgentPolicy = Literal["top", "random"]
AgentSource = Literal["classes", "prototypes"]
ClassScore = Literal["mean", "sum", "max"]
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
        agent_source: what the agents are chosen among.
        background_agent: whether the background may be an agent.
        similarity: the reading of Sec. 3.5, a key of `readings.READINGS`.
        class_score: how the scores of a class's prototypes become its score.
        candidates: which classes may win.
        top_k: how many class scores to return; None for all.
    """

    num_agents: Integer = 4
    score_map: str = "clip"
    measure: str = "cosine"
    method: Method = "lattice"
    agent_policy: AgentPolicy = "top"
    agent_source: AgentSource = "classes"
    background_agent: bool = True
    similarity: str = "relation"
    class_score: ClassScore = "mean"
    candidates: Candidates = "all"
    top_k: Integer | None = None


class Scalars(NamedTuple):
    """The keyword arguments of `match` that may change without another compilation.

    Attributes:
        temperature: of the score map "exp".
        relation_weight: of the reading "weighted".
        key: random key of the agent policy "random"; otherwise None.
    """

    temperature: Any = 0.1
    relation_weight: Any = 0.1
    key: Any = None

    def as_arrays(self) -> Scalars:
        """Return the numbers as float32."""
        temperature, weight = (jnp.asarray(number, jnp.float32) for number in self[:2])
        return Scalars(temperature, weight, self.key)


@partial(jax.jit, static_argnames=("options", "tiling"))
def compare_regions(
    regions: Float[AnyArray, "P D"],
    prototypes: Float[AnyArray, "R D"],
    classes: Float[AnyArray, "C D"],
    scalars: Scalars,
    options: MatchOptions,
    tiling: Tiling,
) -> Float[Array, "P R"]:
    """Compute the similarity of every region to every prototype (Eq. 6-9)."""

    def compare_block(rows: Any, shared: Any) -> Float[Array, "P R"]:
        (features, index), (prototypes, classes, scalars) = rows, shared
        references = normalise_rows(classes)
        agents = choose_agents(features, index, references, None, scalars.key, options)
        compare, columns = prepare_comparison(
            features, *agents, references, scalars, options, tiling
        )
        return tiles.map_prototypes(compare, prototypes, columns)

    widest = max(len(classes), min(len(prototypes), tiles.COLUMNS), regions.shape[1])
    return tiles.map_regions(
        compare_block,
        (regions, jnp.arange(len(regions))),
        (prototypes, classes, scalars.as_arrays()),
        widest,
        tiling,
    )


@partial(jax.jit, static_argnames=("options", "tiling"))
def classify_regions(
    features: Float[AnyArray, "P D"],
    valid: Bool[AnyArray, " P"],
    bank: ReferenceBank,
    allowed: Bool[AnyArray, " C"] | None,
    scalars: Scalars,
    options: MatchOptions,
    tiling: Tiling,
) -> Match:
    """Compute every region's class scores and the winner (Eq. 6-10)."""

    def classify_block(rows: Any, shared: Any) -> Match:
        (features, valid, index), (bank, allowed, scalars) = rows, shared
        features = jnp.where(valid[:, None], features, 0)
        if bank.whitening is not None:
            features = bank.whitening.apply(features)
        classes, owners = len(bank.classes), bank.owners
        references, owned = bank.classes, jnp.arange(classes)
        if options.agent_source == "prototypes":
            references, owned = bank.prototypes, owners
        references = normalise_rows(references)
        eligible = None if options.background_agent else owned != 0
        own, agents = choose_agents(features, index, references, eligible, scalars.key, options)
        compare, columns = prepare_comparison(
            features, own, agents, references, scalars, options, tiling
        )
        scores, sizes = tiles.score_classes(
            compare, bank.prototypes, owners, classes, columns, options.class_score
        )
        may_win = find_candidates(sizes, allowed, owned[agents], options)
        return decide(scores, may_win, valid, agents, find_lowest(sizes, options), options)

    references = len(list_agent_references(bank, options))
    widest = max(references, min(len(bank.prototypes), tiles.COLUMNS), features.shape[1])
    return tiles.map_regions(
        classify_block,
        (features, valid, jnp.arange(len(features))),
        (bank, allowed, scalars.as_arrays()),
        widest,
        tiling,
    )


def choose_agents(
    features: Float[AnyArray, "P D"],
    index: Int[Array, " P"],
    references: Float[Array, "A D"],
    eligible: Bool[Array, " A"] | None,
    key: Any,
    options: MatchOptions,
) -> tuple[Float[Array, "P N"], Int[Array, "P N"]]:
    """Choose each region's agents (Eq. 6): the nearest references, or random references.

    `index` numbers the regions; `references` are of length 1; `eligible` says which of them may be
    agents. Returns the regions' cosines to their agents, and the agents as rows of `references`.
    """
    nearness = cosines = compute_cosines(features, references)
    if options.agent_policy == "random":
        nearness = draw_nearness(key, index, len(references))
    if eligible is not None:
        nearness = jnp.where(eligible, nearness, -jnp.inf)
    agents = lax.top_k(nearness, min(int(options.num_agents), len(references)))[1]
    return jnp.take_along_axis(cosines, agents, axis=1), agents


def draw_nearness(key: Any, index: Int[Array, " P"], count: int) -> Float[Array, "P count"]:
    """Draw how near each region is to `count` references, for random agents.

    A key from the region's index: its agents don't depend on how many other regions, or how much
    padding, there are.
    """

    def draw(region: Array) -> Float[Array, " count"]:
        return jax.random.uniform(jax.random.fold_in(key, region), (count,), jnp.float32)

    return jax.vmap(draw)(index)


def prepare_comparison(
    features: Float[AnyArray, "P D"],
    own: Float[Array, "P N"],
    agents: Int[Array, "P N"],
    references: Float[Array, "A D"],
    scalars: Scalars,
    options: MatchOptions,
    tiling: Tiling,
) -> tuple[tiles.Compare, int]:
    """Prepare to compare the regions with prototypes, through their agents (Eq. 7-9).

    Args:
        features: the regions'.
        own: their cosines to their agents.
        agents: rows of `references`, which are of length 1.
        references: see `agents`.
        scalars: temperature and weight.
        options: the reading, and how rankings are compared.
        tiling: the bound on temporary arrays.

    Returns:
        The function that compares, and how many prototypes to pass to it at a time.
    """
    reading, dim, n = READINGS[options.similarity], references.shape[1], agents.shape[1]
    if 0 < agents.size < len(references):  # a huge vocabulary: only the references that are agents
        used, agents = jnp.unique(agents, return_inverse=True, size=agents.size, fill_value=0)
        references, agents = references[used], agents.reshape(own.shape)

    def compare(prototypes: Float[Array, "X D"]) -> Float[Array, "P X"]:
        units = normalise_rows(prototypes)

        def rank() -> Float[Array, "P X"]:
            return compare_rankings(
                own,
                agents,
                jnp.matmul(references, units.T, precision=lax.Precision.HIGHEST),
                scalars.temperature,
                score_map=options.score_map,
                measure=options.measure,
                method=options.method,
                elements=tiling.elements,
            )

        return reading.combine(
            lambda: compute_cosines(features, units), rank, scalars.relation_weight
        )

    if not reading.uses_rankings:
        return compare, tiles.fit_columns(tiling, dim)
    row = max(4 * len(references), dim)
    # Level by level, every member's array is gathered.
    return compare, tiles.fit_columns(tiling, row, count_elements(n, options.method), copies=n)


def find_candidates(
    sizes: Int[Array, " C"],
    allowed: Bool[Array, " C"] | None,
    agents: Int[Array, "P N"],
    options: MatchOptions,
) -> Bool[Array, "P C"]:
    """Find the classes that may win: with prototypes, allowed and, if asked, agents' classes."""
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
    lowest: Array | float,
    options: MatchOptions,
) -> Match:
    """Choose the winner of every region (Eq. 9), the lowest of the classes that tie."""
    in_play = jnp.where(may_win, scores, -jnp.inf)
    best = may_win & (in_play >= in_play.max(axis=1, keepdims=True) - TIE)  # none, if NaN came in
    winner = jnp.argmax(best, axis=1).astype(jnp.int32)
    labels = jnp.where(valid & best.any(axis=1), winner, -1)
    scores = jnp.where(valid[:, None], jnp.where(may_win, scores, lowest), 0)
    if options.top_k is None:
        return Match(labels, scores, agents)
    # The winner first, where another class ties with it.
    in_play = in_play.at[jnp.arange(len(winner)), winner].set(jnp.inf)
    chosen = lax.top_k(in_play, min(int(options.top_k), scores.shape[1]))[1]
    return Match(labels, jnp.take_along_axis(scores, chosen, axis=1), agents, chosen)


def find_lowest(sizes: Int[Array, " C"], options: MatchOptions) -> Array | float:
    """Find the score of a class that may not win: no class's score is lower."""
    lowest = min(-1.0, READINGS[options.similarity].find_lowest(MEASURES[options.measure].lowest))
    return lowest * sizes.max().astype(jnp.float32) if options.class_score == "sum" else lowest


def list_agent_references(bank: ReferenceBank, options: MatchOptions) -> Float[AnyArray, "A D"]:
    """Return the references of a bank that agents are chosen among."""
    return bank.prototypes if options.agent_source == "prototypes" else bank.classes
