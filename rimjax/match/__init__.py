"""Relation-aware matching (Sec. 3.5, Eq. 6-10): compare how two features *rank* the same classes.

A region's *agents* are the N class references nearest to it. Its cosines to them, made positive,
are weights `s`; a reference's cosines to the same agents are weights `r`. Weights define a
distribution over the N! rankings of the agents (Plackett-Luce, Eq. 7: draw the agents one by one
without replacement, each with probability proportional to its weight), and region and reference are
as similar as the cosine of their two distributions (Eq. 9).

Term by term that costs O(N! N). But a ranking's probability is a product over the agents left to
draw, so the inner product of two distributions is a recursion over their subsets S, in O(2^N N):

    <P(.|s), P(.|r)> = F(all),    F(empty) = 1,
    F(S) = sum_{i in S} s_i/s(S) * r_i/r(S) * F(S \\ {i}),    s(S) = sum_{i in S} s_i

`method="lattice"` is this recursion; `method="enumerate"` is the paper's formula as printed, and
the lattice's oracle in the tests. The guide is docs/match/guide.md. Modules, each importing only
those before it:

    rankings   one region and one reference: weights, measures, the lattice
    readings   features and rankings to the score of a pair
    tiling     blocks, memory and devices
    classify   regions and prototypes: agents, similarities, class scores, decision
    checks     arguments and their errors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Real

from rimjax.match.checks import (
    CHOICES,
    check_allowed,
    check_bank_arrays,
    check_choice,
    check_features,
    check_finite,
    check_mask,
    check_max_bytes,
    check_options,
    check_weights,
)
from rimjax.match.classify import (
    AgentPolicy,
    Candidates,
    Integer,
    MatchOptions,
    Method,
    classify_regions,
    compare_regions,
)
from rimjax.match.rankings import compare_weights, compute_probabilities, rescale_weights
from rimjax.match.tiling import find_sharding, pad_rows, plan_tiling, use_auto_mesh
from rimjax.types import AnyArray, Match, ReferenceBank, Regions, bucket_size

__all__ = [
    "CHOICES",
    "match",
    "permutation_probabilities",
    "permutation_similarity",
    "relation_aware_similarity",
]

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
        measure: see `permutation_similarity`; the range of the result is the measure's.
        method: see `permutation_similarity`.
        agent_policy: "top", the N classes of highest cosine, ties to the lowest index; "random", N
            classes drawn from `key` and the region's index. Under a `shard_map` of your own, fold
            `lax.axis_index` into the key, or every device draws the same.
        key: a random key, for agent_policy "random".
        temperature: of the score map "exp".
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
    )
    options = check_options(options, temperature, key)
    check_max_bytes(max_bytes)
    arrays = {"regions": regions, "prototypes": prototypes, "classes": classes}
    check_features(**arrays)
    regions, prototypes, classes = placed = [use_auto_mesh(rows) for rows in arrays.values()]
    p, r, c = map(len, placed)
    tiling = plan_tiling(regions, max_bytes, p * r, (p, r, c, classes.shape[1]))
    for name, rows in zip(arrays, placed, strict=True):
        check_finite(name, rows)
    key = key if agent_policy == "random" else None
    return compare_regions(regions, prototypes, classes, temperature, key, options, tiling)


def match(
    regions: Float[AnyArray, "P D"] | Regions,
    bank: ReferenceBank,
    *,
    num_agents: Integer = 4,
    score_map: str = "clip",
    temperature: Number = 0.1,
    similarity: str = "relation",
    measure: str = "cosine",
    candidates: Candidates = "all",
    allowed: Bool[AnyArray, " C"] | None = None,
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: AnyArray | None = None,
    top_k: Integer | None = None,
    max_bytes: Bytes = 4 << 30,
) -> Match:
    """Classify regions: a class scores the mean similarity to its prototypes (Eq. 10).

    The class of the highest score wins (Eq. 9). Ties, scores within 1e-6 of the best, go to the
    lowest class index. A bank's whitening is applied to the regions first.

    NumPy regions, and those on a single device, are padded to `bucket_size(P)`, so that many images
    compile a few times only; sharded regions aren't, nor are those under an outer jit or other
    transformation: use `pad_regions` before. No array takes P*R memory.

    Args:
        regions: features as the encoder gives them, or `Regions`, whose invalid rows get label -1
            and scores 0 whatever they hold.
        bank: the references.
        num_agents: see `relation_aware_similarity`.
        score_map: see `relation_aware_similarity`.
        temperature: of the score map "exp".
        similarity: "relation", of rankings (Eq. 9), or "cosine", of features (Table 2, rows 2 and
            3), which uses no measure or score map.
        measure: see `permutation_similarity`.
        candidates: classes that may win: "all", or only the region's "agents".
        allowed: classes that may win, as a mask: for data sets without a background all but it. May
            change without another compilation. A class that may not win by `candidates` or
            `allowed` scores -1 (-inf by the measure "kl"); a region for which no class may win gets
            label -1.
        method: see `permutation_similarity`.
        agent_policy: see `relation_aware_similarity`.
        key: a random key, for agent_policy "random".
        top_k: None for the scores of all C classes; a number for those of the k best only, the
            winner first, with their `classes`: memory then doesn't grow with P*C either. A number
            above C becomes C.
        max_bytes: see `relation_aware_similarity`; the result is P*C floats.

    Raises:
        ValueError: as `relation_aware_similarity`; also parts of the bank that don't fit each
            other, and an `allowed` of another length or type or without any True.
    """
    options = MatchOptions(
        num_agents=num_agents,
        score_map=score_map,
        measure=measure,
        method=method,
        agent_policy=agent_policy,
        similarity=similarity,
        candidates=candidates,
        top_k=top_k,
    )
    options = check_options(options, temperature, key)
    check_max_bytes(max_bytes)
    if not isinstance(bank, ReferenceBank):
        raise ValueError(
            f"bank must be a ReferenceBank, got a {type(bank).__name__}; "
            "build it with ReferenceBank.create"
        )
    if isinstance(regions, Regions):
        features, valid = regions.features, regions.valid
    else:
        features, valid = regions, None
    check_features(regions=features, prototypes=bank.prototypes, classes=bank.classes)
    check_bank_arrays(bank)
    count, r, c = len(features), len(bank.prototypes), len(bank.classes)
    if valid is None:
        valid = np.ones(count, bool)
    valid = check_mask("regions.valid", valid, f"region, P={count}", count)
    allowed = None if allowed is None else check_allowed(allowed, c)
    key = key if agent_policy == "random" else None

    bank = replace(bank, names=(), encoder="")  # other names need no other compilation
    features, valid, bank, allowed = arrays = jax.tree.map(
        use_auto_mesh, (features, valid, bank, allowed)
    )
    traced = [isinstance(leaf, Tracer) for leaf in jax.tree.leaves((arrays, temperature, key))]
    size = count if any(traced) or find_sharding(features) else bucket_size(count)
    sizes = (size, r, c, features.shape[1])
    tiling = plan_tiling(features, max_bytes, size * int(min(options.top_k or c, c)), sizes)
    check_finite("regions", features, valid)
    check_finite("prototypes", bank.prototypes)
    check_finite("classes", bank.classes)
    if size > count:
        features, valid = pad_rows(features, valid, size)
    result = classify_regions(features, valid, bank, allowed, temperature, key, options, tiling)
    if size == count:
        return result
    if isinstance(features, jax.Array):
        return jax.tree.map(lambda leaf: leaf[:count], result)
    # On the host, where slicing compiles nothing.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:count]), result)


def _compare(s: Float[Array, " N"], r: Float[Array, " N"], measure: str, method: str) -> Array:
    return compare_weights(list(s[:, None]), list(r[:, None]), measure, method)[0]


_probabilities = jax.jit(compute_probabilities)
_similarity = jax.jit(_compare, static_argnames=("measure", "method"))
