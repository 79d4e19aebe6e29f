"""How the similarity of features and the similarity of rankings become the score of a pair.

The paper's Sec. 3.5 can be read in several ways. To add a reading, add an entry to `READINGS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from rimjax.match.rankings import SCORE_MAPS, UNROLLED, compare_weights
from rimjax.types import AnyArray

Compute = Callable[[], Array]

# Elements of a temporary array of a block of regions on a GPU or TPU: 16 MiB. On an H200 10 to 16
# times as fast as one region at a time at N = 8 and 7; a block 4 times larger or smaller is slower.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Reading:
    """A rule that scores pairs of regions and prototypes.

    Attributes:
        combine: receives two functions without arguments, which compute the cosines of the features
            (f32[P, R]) and the similarity of the rankings (f32[P, R]), and `relation_weight`;
            returns the scores. A similarity that isn't called for isn't computed.
        uses_rankings: whether `combine` calls for the second.
        find_lowest: lower bound of the measure of rankings to the lower bound of the scores, if
            that is below -1.
    """

    combine: Callable[[Compute, Compute, Array], Array]
    uses_rankings: bool = True
    find_lowest: Callable[[float], float] = lambda measure: measure


READINGS = {
    # Eq. 9 as printed.
    "relation": Reading(lambda cosines, rankings, weight: rankings()),
    # "Matching" without relations (Table 2, rows 2 and 3).
    "cosine": Reading(
        lambda cosines, rankings, weight: cosines(),
        uses_rankings=False,
        find_lowest=lambda measure: -1.0,
    ),
    # Relations refine the intra-modal similarity instead of taking its place.
    "combined": Reading(lambda cosines, rankings, weight: cosines() * rankings()),
    "weighted": Reading(
        lambda cosines, rankings, weight: cosines() + weight * rankings(),
        find_lowest=lambda measure: -1.0 if measure >= 0 else -math.inf,
    ),
}


def compute_cosines(
    rows: Float[AnyArray, "A D"], units: Float[Array, "B D"]
) -> Float[Array, "A B"]:
    """Compute the cosines of rows of any scale to rows of length 1.

    A zero row has cosine 0 to everything, with finite gradients.
    """
    rows = jnp.asarray(rows).astype(jnp.float32)

    def multiply(rows: Float[Array, "A D"]) -> Float[Array, "A B"]:
        squared = jnp.sum(rows * rows, axis=1, keepdims=True)
        scale = jnp.where(squared > 0, lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
        return jnp.matmul(rows, units.T, precision=lax.Precision.HIGHEST) * scale

    # Many rows are divided by their length after the product: a copy of all rows, divided before,
    # took as long as the product itself. They are scaled first only where a square could overflow
    # or vanish.
    top = lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    moderate = ((top < 1e15) & ((top > 1e-15) | (top == 0))).all()
    return lax.cond(
        moderate, multiply, lambda rows: multiply(rows / jnp.where(top > 0, top, 1)), rows
    )


def compare_rankings(
    own: Float[Array, "P N"],
    agents: Int[Array, "P N"],
    table: Float[Array, "C R"],
    temperature: Array | float = 0.1,
    *,
    score_map: str = "clip",
    measure: str = "cosine",
    method: str = "lattice",
    elements: int = _BLOCK_ELEMENTS,
) -> Float[Array, "P R"]:
    """Compare how regions and prototypes rank the regions' agents (Eq. 7-9).

    Args:
        own: cosines of the regions to their agents.
        agents: rows of `table`.
        table: cosines of all classes to the prototypes.
        temperature: of the score map "exp".
        score_map: a key of `SCORE_MAPS`.
        measure: a key of `MEASURES`.
        method: "lattice" or "enumerate".
        elements: the most elements of a temporary array, where regions go through in blocks.
    """
    weigh = SCORE_MAPS[score_map]

    def compare(region: Iterable[Array], agents: Iterable[Array]) -> Array:
        references = [table.at[agent].get(mode="promise_in_bounds") for agent in agents]
        s, r = weigh(list(region), temperature), weigh(references, temperature)
        return compare_weights(s, r, measure, method)

    def compare_block(own: Float[Array, "B N"], agents: Int[Array, "B N"]) -> Float[Array, "B R"]:
        # Each agent is gathered alone, and the arrays are taken apart by iterating over them:
        # indexed ([:, i]), or gathered as one array, they keep XLA from vectorising the loop,
        # 8 times slower.
        return compare([cosine[:, None] for cosine in own.T], agents.T)

    def compare_one_by_one(
        own: Float[Array, "P N"], agents: Int[Array, "P N"]
    ) -> Float[Array, "P R"]:
        return lax.map(
            lambda region: compare([cosine[None] for cosine in region[0]], region[1]), (own, agents)
        )

    count, n = own.shape
    per_pair = count_elements(n, method)
    if not per_pair:
        return compare_block(own, agents)  # one elementwise loop over all pairs
    size = max(1, min(count, min(elements, _BLOCK_ELEMENTS) // (per_pair * table.shape[1])))

    def compare_blocks(own: Float[Array, "P N"], agents: Int[Array, "P N"]) -> Float[Array, "P R"]:
        blocks = [
            jnp.pad(rows, ((0, -count % size), (0, 0))).reshape(-1, size, n)
            for rows in (own, agents)
        ]
        return lax.map(lambda block: compare_block(*block), blocks).reshape(-1, table.shape[1])[
            :count
        ]

    # The arrays of a single region fit a CPU's cache, where a block is slower.
    return lax.platform_dependent(own, agents, cpu=compare_one_by_one, default=compare_blocks)


def count_elements(num_agents: int, method: str) -> int:
    """Count the elements that a pair adds to the largest temporary array.

    0 where the comparison is one loop without temporary arrays.
    """
    if method == "enumerate":
        return math.factorial(num_agents) * num_agents
    return math.comb(num_agents, num_agents // 2) if num_agents > UNROLLED else 0
