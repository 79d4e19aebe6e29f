"""Relation-aware matching (paper Sec. 3.5, Eq. 6-10): compare how a region and a reference *rank* the same few classes.

A region's *agents* are the N class references nearest to it. Its cosines to them, made positive, are weights `s`; those of a
reference to the same agents are weights `r`. Weights define a distribution over the N! rankings of the agents (Plackett-Luce, Eq. 7:
draw the agents one by one without replacement, each with probability proportional to its weight), and region and reference are
as similar as the cosine of their two distributions (Eq. 9).

Term by term that costs O(N! N). But a ranking's probability is a product over what is left to draw, so the inner product of two
distributions is a recursion over the subsets S of the agents, exact in O(2^N N):

    <P(.|s), P(.|r)> = F(all),    F(empty) = 1,    F(S) = sum_{i in S} s_i/s(S) * r_i/r(S) * F(S \\ {i}),    s(S) = sum_{i in S} s_i

`method="lattice"` is this recursion; `method="enumerate"` is the paper's formula as printed, and the lattice's oracle in the tests.
Here are the public functions; `rankings` compares one pair, `blocks` goes over many, `arguments` checks. docs/match.md says more.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from rimjax.match.arguments import (
    AgentPolicy,
    Candidates,
    Measure,
    Method,
    ScoreMap,
    Settings,
    Similarity,
    check_bank,
    check_choice,
    check_features,
    check_finite,
    checked_settings,
    checked_valid,
    checked_weights,
    on_auto_mesh,
    sharding_of,
    working_elements,
)
from rimjax.match.blocks import match_regions, relation_matrix
from rimjax.match.rankings import ranking_probabilities, ranking_similarity, scaled
from rimjax.types import AnyArray, Match, ReferenceBank, Regions, bucket_size, pad_regions

__all__ = ["match", "permutation_probabilities", "permutation_similarity", "relation_aware_similarity"]


def permutation_probabilities(scores: Float[AnyArray, " N"]) -> Float[Array, " rankings"]:
    """Plackett-Luce probability of each of the N! rankings of N items (Eq. 7), in the order of `itertools.permutations(range(N))`.

    scores: weights >= 0 of any scale (under a trace, of float32's normal range), N <= 8; weights below 1e-18 of the largest count as that.
        The result sums to 1.
    Raises ValueError for another rank, N above 8, negative weights, NaN or infinity.

    >>> permutation_probabilities(jnp.array([2.0, 1.0, 1.0])).tolist()[:2]  # 2/4 * 1/2, twice
    [0.25, 0.25]
    """
    return _probabilities(scaled(checked_weights("scores", scores, "enumerate")))


def permutation_similarity(
    s: Float[AnyArray, " N"], r: Float[AnyArray, " N"], method: Method = "lattice", *, measure: Measure = "cosine"
) -> Float[Array, ""]:
    """How alike two weight vectors over the same N agents rank them: by default the cosine of Eq. 9, in [0, 1]; differentiable.

    s, r: weights >= 0 of any scale (under a trace, of float32's normal range), N <= 16 (8 for "enumerate"); weights below 1e-18
        of the largest count as that.
    measure: with P and Q the two distributions over the N! rankings,
        "cosine", <P, Q> / (|P| |Q|) (Eq. 9), in [0, 1]; "bhattacharyya", sum sqrt(P Q), in [0, 1];
        "pearson", the cosine of P - 1/N! and Q - 1/N!, in [-1, 1], and 0 where all weights of s or of r are equal;
        "kl", -KL(P || Q) = -sum P log(P / Q), at most 0: not symmetric.
    Raises ValueError for another rank, lengths that differ, N out of range, negative weights, NaN or infinity.

    >>> f"{permutation_similarity(jnp.array([3.0, 1.0]), jnp.array([1.0, 3.0])):.3f}"  # (3/4 * 1/4 * 2) / (9/16 + 1/16)
    '0.600'
    """
    s, r = checked_weights("s", s, method), checked_weights("r", r, method)
    check_choice("measure", measure)
    if s.shape != r.shape:
        raise ValueError(f"s and r must weigh the same agents, got N={len(s)} and N={len(r)}")
    return _similarity(scaled(s)[:, None], scaled(r)[:, None], measure, method)[0]


def relation_aware_similarity(
    regions: Float[AnyArray, "P D"],
    prototypes: Float[AnyArray, "R D"],
    classes: Float[AnyArray, "C D"],
    *,
    num_agents: int = 4,
    score_map: ScoreMap = "clip",
    measure: Measure = "cosine",
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: Array | None = None,
    temperature: float = 0.1,
    max_bytes: int = 4 << 30,
) -> Float[Array, "P R"]:
    """Similarity of every region to every prototype, through the region's own agents, rows of `classes` (Eq. 6-9).

    regions, prototypes, classes: features of any scale in float32's range and of any float type (computed in float32); a zero vector has
        cosine 0 to everything.
    num_agents: N in [1, 16], or 8 for "enumerate"; N above C becomes C.
    score_map: cosine c to weight: "clip" max(c, 1e-6), "exp" exp(c / temperature), "shift" (1 + c) / 2.
    measure: of the two distributions over rankings, see `permutation_similarity`; the range of the result is the measure's.
    agent_policy: "top", the N classes of highest cosine, ties to the lowest index; "random", N classes drawn from `key` and the
        region's index: under a `shard_map` of your own, fold `lax.axis_index` into the key, or every shard draws the same.
    max_bytes: what the result and the temporary arrays may take together, besides the arguments. The result is P*R floats; the rest goes
        through in blocks, of 64 MiB an array where `max_bytes` leaves as much. The compiler has the last word: of a small `max_bytes`
        the temporary arrays may take twice, beyond N = 6 three times as much.

    Works under jit, vmap and grad (which agents are chosen has no gradient), and compiles once per shape. Regions sharded over the devices
    of a mesh (a `NamedSharding`) stay where they are, each device with its own. Raises ValueError, naming the
    argument, for wrong shapes and types, settings out of range, a result over `max_bytes`, and, outside of a trace, NaN or infinity.
    """
    settings = checked_settings(Settings(num_agents, measure, method, score_map, agent_policy), temperature, key)
    key = key if agent_policy == "random" else None
    check_features(regions=regions, prototypes=prototypes, classes=classes)
    regions, prototypes, classes = (on_auto_mesh(rows) for rows in (regions, prototypes, classes))
    p, r, c = len(regions), len(prototypes), len(classes)
    elements = working_elements(max_bytes, p * r, (p, r, c, classes.shape[1]))
    for name, rows in {"regions": regions, "prototypes": prototypes, "classes": classes}.items():
        check_finite(name, rows)
    settings = _placed(settings, regions, elements)
    return relation_matrix(regions, prototypes, classes, temperature, key, settings)


def match(
    regions: Float[AnyArray, "P D"] | Regions,
    bank: ReferenceBank,
    *,
    num_agents: int = 4,
    score_map: ScoreMap = "clip",
    temperature: float = 0.1,
    similarity: Similarity = "relation",
    measure: Measure = "cosine",
    candidates: Candidates = "all",
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    key: Array | None = None,
    top_k: int | None = None,
    max_bytes: int = 4 << 30,
) -> Match:
    """Classify regions: a class scores the mean similarity to its prototypes (Eq. 10), the best class wins (Eq. 9).

    regions: features, or `Regions`, whose invalid rows get label -1 and scores 0 whatever they hold.
    similarity: "relation", of rankings (Eq. 9), or "cosine", of features (Table 2, rows 2 and 3), which has no measure or score map.
    candidates: classes that may win: "all", or only the "agents" of the region; the others score -1 (-inf by the measure "kl").
    top_k: None for the scores of all C classes; a number for those of the k best only, the winner first, with `classes` saying which
        they are: memory then doesn't grow with P*C either. Above C it becomes C.
    The other settings, and the errors, are those of `relation_aware_similarity`; nothing ever takes P*R memory. Ties, scores within 1e-6
    of the best, go to the lowest class index.

    NumPy regions, and those on a single device, are padded to `bucket_size(P)`, so many images compile a few times only; sharded ones
    aren't, nor are those under an outer jit or other transformation: use `pad_regions` before.
    """
    settings = Settings(num_agents, measure, method, score_map, agent_policy, similarity, candidates, top_k)
    settings = checked_settings(settings, temperature, key)
    key = key if agent_policy == "random" else None
    if not isinstance(bank, ReferenceBank):
        raise ValueError(f"bank must be a ReferenceBank, got a {type(bank).__name__}; ReferenceBank.create makes one")
    features, valid = (regions.features, regions.valid) if isinstance(regions, Regions) else (regions, None)
    check_features(regions=features, prototypes=bank.prototypes, classes=bank.classes)
    check_bank(bank)
    valid = checked_valid(valid, len(features))
    bank = replace(bank, names=(), encoder="", whitening=None)  # other names: no other compilation
    features, valid, bank = jax.tree.map(on_auto_mesh, (features, valid, bank))
    count, top_k = len(features), settings.top_k
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((features, valid, bank, temperature, key)))
    padded = count if traced or sharding_of(features) else bucket_size(count)
    r, c = len(bank.prototypes), len(bank.classes)
    elements = working_elements(max_bytes, padded * min(top_k or c, c), (padded, r, c, features.shape[1]))
    check_finite("regions", features, valid)
    check_finite("prototypes", bank.prototypes)
    check_finite("classes", bank.classes)
    if padded > count:
        features, valid = _padded(features, valid, padded)
    settings = _placed(settings, features, elements)
    result = match_regions(features, valid, bank, temperature, key, settings)
    if padded == count:
        return result
    if isinstance(features, jax.Array):
        return jax.tree.map(lambda leaf: leaf[:count], result)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:count]), result)  # on the host, where slicing compiles nothing


def _padded(features: AnyArray, valid: AnyArray, size: int) -> tuple[AnyArray, AnyArray]:
    """Invalid rows up to `size`: on the device for a device's array, else on the host."""
    if isinstance(features, jax.Array):
        more = size - len(features)
        return jnp.pad(features, ((0, more), (0, 0))), jnp.pad(jnp.asarray(valid), (0, more))
    padded = pad_regions(Regions(features, None, np.asarray(valid)), size)
    return padded.features, padded.valid


def _placed(settings: Settings, regions: AnyArray, elements: int) -> Settings:
    mesh, axes = sharding_of(regions) or (None, None)
    return replace(settings, elements=elements, mesh=mesh, axes=axes)


_probabilities = jax.jit(ranking_probabilities)
_similarity = jax.jit(ranking_similarity, static_argnames=("measure", "method"))
