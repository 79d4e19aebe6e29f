"""The numbers of an explanation: a region beside all prototypes, and the rankings of its agents.

Each function is compiled as a whole: operation by operation the first explanation took seconds.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from rimjax.match import permutation_probabilities
from rimjax.match.rankings import SCORE_MAPS
from rimjax.match.readings import READINGS, compare_rankings, compute_cosines
from rimjax.settings import SegmentSettings
from rimjax.types import Whitening, normalise_rows

MOST_RANKED = 8
"""Agents whose N! rankings are still listed."""


@partial(jax.jit, static_argnames=("similarity", "score_map", "measure"))
def compare_region(
    feature: Float32[Array, "1 D"],
    whitening: Whitening | None,
    agents: Float[Array, "N D"],
    prototypes: Float[Array, "R D"],
    temperature: Float32[Array, ""],
    weight: Float32[Array, ""],
    similarity: str,
    score_map: str,
    measure: str,
) -> tuple[Array, Array, Array, Array, Array]:
    """Compare a region with all prototypes, through its agents, as `match` does.

    Args:
        feature: the region's.
        whitening: the bank's.
        agents: the region's, of any length.
        prototypes: the bank's.
        temperature: as of `match`, and so are the others.

    Returns:
        The feature, whitened, f32[D]; its similarities to the prototypes, f32[R]; its cosines to
        the agents, f32[N], and to the prototypes, f32[R]; the prototypes' to the agents, f32[R, N].
    """
    if whitening is not None:
        feature = whitening.apply(feature)
    agents, prototypes = normalise_rows(agents), normalise_rows(prototypes)
    own, cosines = compute_cosines(feature, agents), compute_cosines(feature, prototypes)
    table = compute_cosines(agents, prototypes)

    def rank() -> Float32[Array, "1 R"]:
        return compare_rankings(
            own,
            jnp.arange(len(agents))[None],
            table,
            temperature,
            score_map=score_map,
            measure=measure,
        )

    similarities = READINGS[similarity].combine(lambda: cosines, rank, weight)
    return feature[0], similarities[0], own[0], cosines[0], table.T


def rank_agents(
    cosines: Float32[np.ndarray, " N"], settings: SegmentSettings
) -> tuple[Int[np.ndarray, "rankings N"], Float32[np.ndarray, " rankings"]]:
    """List the rankings of N agents with their probabilities (Eq. 7), as `itertools` orders them.

    Args:
        cosines: to the agents.
        settings: the score map.
    """
    count = len(cosines)
    if count > MOST_RANKED or not READINGS[settings.similarity].uses_rankings:
        return np.zeros((0, count), int), np.zeros(0, np.float32)
    orders = np.array(list(itertools.permutations(range(count))))
    chances = _find_probabilities(
        jnp.asarray(cosines), jnp.float32(settings.temperature), settings.score_map
    )
    return orders, np.asarray(chances)


@partial(jax.jit, static_argnames="score_map")
def _find_probabilities(
    cosines: Float32[Array, " N"], temperature: Float32[Array, ""], score_map: str
) -> Float32[Array, " rankings"]:
    weights = jnp.stack(SCORE_MAPS[score_map](list(cosines), temperature))
    return permutation_probabilities(weights)
