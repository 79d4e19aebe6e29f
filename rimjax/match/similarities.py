"""Similarities of weight vectors, and of regions and prototypes (Eq. 6-9)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Real

from rimjax.match.array_checks import check_features, check_finite, check_weights
from rimjax.match.checks import check_choice, check_max_bytes, check_options
from rimjax.match.classify import (
    AgentPolicy,
    Integer,
    MatchOptions,
    Method,
    Scalars,
    compare_regions,
)
from rimjax.match.rankings import compare_weights, compute_probabilities, rescale_weights
from rimjax.match.tiling import plan_tiling, use_auto_mesh
from rimjax.types import AnyArray

Bytes = int | float | np.number
Number = Bytes | Float[AnyArray, ""]
Weights = Real[AnyArray, " N"] | Sequence[Number]


def permutation_probabilities(scores: Weights) -> Float[Array, " rankings"]:
    """Compute the Plackett-Luce probability of each of the N! rankings of N items (Eq. 7).

    Args:
        scores: N <= 8 weights >= 0 of any scale (under a trace, of float32's normal range); weights
            below 1e-18 of the largest count as that.

    Returns:
        Probabilities in the order of `itertools.permutations(range(N))`; they sum to 1.

    Raises:
        ValueError: another rank, N above 8, negative weights, NaN or infinity.

    >>> import jax.numpy as jnp
    >>> permutation_probabilities(jnp.array([2.0, 1.0, 1.0])).tolist()[:2]  # 2/4 * 1/2, twice
    [0.25, 0.25]
    """
    return _probabilities(rescale_weights(check_weights("scores", scores, "enumerate")))


def permutation_similarity(
    s: Weights, r: Weights, method: Method = "lattice", *, measure: str = "cosine"
) -> Float[Array, ""]:
    """Compute how alike two weight vectors rank the same N agents; differentiable.

    Args:
        s: N <= 16 weights (8 for "enumerate"), as in `permutation_probabilities`.
        r: N weights, likewise.
        method: "lattice", or "enumerate" for the paper's formula term by term; both are exact.
        measure: of the two distributions P and Q over the N! rankings:
            "cosine", <P, Q> / (|P| |Q|) (Eq. 9), in [0, 1];
            "bhattacharyya", sum sqrt(P Q), in [0, 1];
            "pearson", the cosine of P - 1/N! and Q - 1/N!, in [-1, 1]; 0 where all weights of s or
            of r are equal;
            "kl", -KL(P || Q) = -sum P log(P / Q), at most 0 and not symmetric.

    Raises:
        ValueError: another rank, lengths that differ, N out of range, negative weights, NaN or
            infinity.

    >>> import jax.numpy as jnp
    >>> s, r = jnp.array([3.0, 1.0]), jnp.array([1.0, 3.0])
    >>> f"{permutation_similarity(s, r):.3f}"  # (3/4 * 1/4 * 2) / (9/16 + 1/16)
    '0.600'
    """
    s, r = check_weights("s", s, method), check_weights("r", r, method)
    check_choice("measure", measure)
    if s.shape != r.shape:
        raise ValueError(
            f"s and r must weigh the same agents, got N={len(s)} and N={len(r)}; "
            "pass vectors of equal length"
        )
    return _similarity(rescale_weights(s), rescale_weights(r), measure, method)


def relation_aware_similarity(
    regions: Float[AnyArray, "P D"],
    prototypes: Float[AnyArray, "R D"],
    classes: Float[AnyArray, "C D"],
    *,
    num_agents: Integer = 4,
    score_map: str = "clip",
    measure: str = "cosine",
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: AnyArray | None = None,
    temperature: Number = 0.1,
    similarity: str = "relation",
    relation_weight: Number = 0.1,
    max_bytes: Bytes = 4 << 30,
) -> Float[Array, "P R"]:
    """Compute the similarity of every region to every prototype, through the region's own agents.

    Works under jit, vmap and grad (the choice of agents has no gradient), and compiles once per
    shape. Regions sharded over the devices of a mesh (a `NamedSharding`) stay where they are.

    Args:
        regions: features of any scale in float32's range and of any float type (computed in
            float32); a zero vector has cosine 0 to everything.
        prototypes: features, likewise.
        classes: features, likewise; the agents are rows of them (Eq. 6).
        num_agents: N in [1, 16], or up to 8 for "enumerate"; N above C becomes C.
        score_map: cosine c to weight: "clip" max(c, 1e-6), "exp" exp(c / temperature), "shift"
            (1 + c) / 2.
        measure: see `permutation_similarity`; by the reading "relation", the range of the result
            is the measure's.
        method: see `permutation_similarity`.
        agent_policy: "top", the N classes of highest cosine, ties to the lowest index; "random", N
            classes drawn from `key` and the region's index. Under a `shard_map` of your own, fold
            `lax.axis_index` into the key, or every device draws the same.
        key: a random key, for agent_policy "random".
        temperature: of the score map "exp".
        similarity: the reading of Sec. 3.5: "relation", of rankings (Eq. 9); "cosine", of features
            (Table 2, rows 2 and 3), which uses no measure or score map; "combined", the product of
            both; "weighted", cosine + relation_weight * relation.
        relation_weight: at least 0; of the reading "weighted".
        max_bytes: bytes that the result (P*R floats) and the temporary arrays (64 MiB or less each)
            may take besides the arguments. XLA may exceed a small bound two to three times.

    Raises:
        ValueError: wrong shapes and types, settings out of range, a result over `max_bytes`, and,
            outside of a trace, NaN or infinity.
    """
    options = MatchOptions(
        num_agents=num_agents,
        score_map=score_map,
        measure=measure,
        method=method,
        agent_policy=agent_policy,
        similarity=similarity,
    )
    options, scalars = check_options(options, Scalars(temperature, relation_weight, key))
    check_max_bytes(max_bytes)
    arrays = {"regions": regions, "prototypes": prototypes, "classes": classes}
    check_features(**arrays)
    regions, prototypes, classes = placed = [use_auto_mesh(rows) for rows in arrays.values()]
    p, r, c = map(len, placed)
    tiling = plan_tiling(regions, max_bytes, p * r, (p, r, c, classes.shape[1]))
    check_finite(dict(zip(arrays, placed, strict=True)))
    return compare_regions(regions, prototypes, classes, scalars, options, tiling)


def _compare(s: Float[Array, " N"], r: Float[Array, " N"], measure: str, method: str) -> Array:
    return compare_weights(list(s[:, None]), list(r[:, None]), measure, method)[0]


_probabilities = jax.jit(compute_probabilities)
_similarity = jax.jit(_compare, static_argnames=("measure", "method"))
