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

    rankings       one region and one reference: weights, measures, the lattice
    readings       features and rankings to the score of a pair
    tiling         blocks, memory and devices
    classify       regions and prototypes: agents, similarities, class scores, decision
    checks         settings and their errors
    array_checks   arrays and their errors
    placement      a bank on several devices: which device holds what
    sharded        regions and such a bank
    similarities   the public functions that name no class
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float

from rimjax.match.array_checks import (
    check_allowed,
    check_bank_arrays,
    check_features,
    check_finite,
    check_mask,
)
from rimjax.match.checks import CHOICES, check_max_bytes, check_options
from rimjax.match.classify import (
    AgentPolicy,
    AgentSource,
    Candidates,
    ClassScore,
    Integer,
    MatchOptions,
    Method,
    Scalars,
    classify_regions,
    list_agent_references,
)
from rimjax.match.placement import ShardedBank, check_regions_placement, shard_bank
from rimjax.match.sharded import classify_sharded, count_held
from rimjax.match.similarities import (
    Bytes,
    Number,
    permutation_probabilities,
    permutation_similarity,
    relation_aware_similarity,
)
from rimjax.match.tiling import find_sharding, pad_rows, plan_tiling, use_auto_mesh
from rimjax.types import AnyArray, Match, ReferenceBank, Regions, bucket_size

__all__ = [
    "CHOICES",
    "ShardedBank",
    "match",
    "permutation_probabilities",
    "permutation_similarity",
    "relation_aware_similarity",
    "shard_bank",
]


def match(
    regions: Float[AnyArray, "P D"] | Regions,
    bank: ReferenceBank | ShardedBank,
    *,
    num_agents: Integer = 4,
    score_map: str = "clip",
    temperature: Number = 0.1,
    similarity: str = "relation",
    relation_weight: Number = 0.1,
    measure: str = "cosine",
    class_score: ClassScore = "mean",
    candidates: Candidates = "all",
    allowed: Bool[AnyArray, " C"] | None = None,
    method: Method = "lattice",
    agent_policy: AgentPolicy = "top",
    agent_source: AgentSource = "classes",
    background_agent: bool = True,
    key: AnyArray | None = None,
    top_k: Integer | None = None,
    max_bytes: Bytes = 4 << 30,
) -> Match:
    """Classify regions: a class's score comes from the similarities to its prototypes (Eq. 10).

    The class of the highest score wins (Eq. 9). Ties, scores within 1e-6 of the best, go to the
    lowest class index. A bank's whitening is applied to the regions first.

    NumPy regions, and those on a single device, are padded to `bucket_size(P)`, so that many images
    compile a few times only; sharded regions aren't, nor are those under an outer jit or other
    transformation: use `pad_regions` before. Nor are regions whose padded copy would take an eighth
    of `max_bytes` or more. No array takes P*R memory.

    With a bank from `shard_bank` regions are copied to every device, unless they are sharded over
    another axis of the bank's mesh. The result is the same but for rounding, in the bank's own
    order of classes, and whole on every device that has the region. Only the scores of all classes
    (no `top_k`) stay with the devices that hold the classes, if all hold equally many; if not,
    every device gets them whole. Random numbers for all references are drawn on every device.

    Args:
        regions: features as the encoder gives them, or `Regions`, whose invalid rows get label -1
            and scores 0 whatever they hold.
        bank: the references, or those of `shard_bank` on several devices.
        num_agents: see `relation_aware_similarity`.
        score_map: see `relation_aware_similarity`.
        temperature: of the score map "exp".
        similarity: see `relation_aware_similarity`.
        relation_weight: see `relation_aware_similarity`.
        measure: see `permutation_similarity`.
        class_score: "mean", "sum" (Eq. 10) or "max" of the similarities to the class's prototypes.
            They differ where classes have different numbers of prototypes.
        candidates: classes that may win: "all", or only the region's "agents".
        allowed: classes that may win, as a mask: for data sets without a background all but it. May
            change without another compilation. A class that may not win by `candidates` or
            `allowed` scores the least that a class can: -1 for most settings, -inf by the measure
            "kl"; a region for which no class may win gets label -1.
        method: see `permutation_similarity`.
        agent_policy: see `relation_aware_similarity`. For agents that differ from image to image,
            fold the image's number into the key.
        agent_source: agents are rows of bank.classes ("classes", Eq. 6) or of bank.prototypes
            ("prototypes": each sub-category takes part instead of the class).
        background_agent: whether the background may be an agent; if not, N is at most C - 1, and
            with candidates="agents" no region is named background.
        key: a random key, for agent_policy "random".
        top_k: None for the scores of all C classes; a number for those of the k best only, the
            winner first, with their `classes`: memory then doesn't grow with P*C either. A number
            above C becomes C.
        max_bytes: see `relation_aware_similarity`; the result is P*C floats. With a bank from
            `shard_bank` the bound is on each device.

    Raises:
        ValueError: as `relation_aware_similarity`; also parts of the bank that don't fit each
            other, an `allowed` of another length or type or without any True, and regions sharded
            over the axis of a bank from `shard_bank`, or over another mesh.
    """
    options = MatchOptions(
        num_agents=num_agents,
        score_map=score_map,
        measure=measure,
        method=method,
        agent_policy=agent_policy,
        agent_source=agent_source,
        background_agent=background_agent,
        similarity=similarity,
        class_score=class_score,
        candidates=candidates,
        top_k=top_k,
    )
    options, scalars = check_options(options, Scalars(temperature, relation_weight, key))
    check_max_bytes(max_bytes)
    if not isinstance(bank, ReferenceBank | ShardedBank):
        raise ValueError(
            f"bank must be a ReferenceBank, got a {type(bank).__name__}; "
            "build it with ReferenceBank.create"
        )
    if isinstance(regions, Regions):
        features, valid = regions.features, regions.valid
    else:
        features, valid = regions, None
    check_features(regions=features, prototypes=bank.prototypes, classes=bank.classes)
    if isinstance(bank, ReferenceBank):  # shard_bank has checked
        check_bank_arrays(bank)
    count = len(features)
    c = bank.num_classes if isinstance(bank, ShardedBank) else len(bank.classes)
    if valid is None:
        valid = np.ones(count, bool)
    valid = check_mask("regions.valid", valid, f"region, P={count}", count)
    allowed = None if allowed is None else check_allowed(allowed, c)
    if not options.background_agent:
        options = replace(options, num_agents=min(int(options.num_agents), max(1, c - 1)))

    bank = replace(bank, names=(), encoder="")  # other names need no other compilation
    features, valid, bank, allowed = arrays = jax.tree.map(
        use_auto_mesh, (features, valid, bank, allowed)
    )
    traced = [isinstance(leaf, Tracer) for leaf in jax.tree.leaves((arrays, scalars))]
    size = count if any(traced) or find_sharding(features) else bucket_size(count)
    if isinstance(bank, ShardedBank):
        check_regions_placement(features, bank)
        r, agents, columns = count_held(bank, options)
    else:
        r, agents = len(bank.prototypes), len(list_agent_references(bank, options))
        columns = int(min(options.top_k or c, c))
    # Padding copies the features, and cutting it off copies the result.
    row = features.shape[1] * features.dtype.itemsize
    copies = size * row + 4 * count * columns if size > count else 0
    if copies > max_bytes / 8:
        size, copies = count, 0
    copies += 0 if isinstance(features, jax.Array) else size * row  # onto the device
    sizes = (size, r, agents, features.shape[1])
    tiling = plan_tiling(features, max_bytes, size * columns, sizes, copies)
    given = {"regions": features}
    if isinstance(bank, ReferenceBank):
        given |= {"prototypes": bank.prototypes, "classes": bank.classes}
    check_finite(given, valid)
    if size > count:
        features, valid = pad_rows(features, valid, size)
    if isinstance(bank, ShardedBank):
        result = classify_sharded(features, valid, bank, allowed, scalars, options, tiling)
    else:
        result = classify_regions(features, valid, bank, allowed, scalars, options, tiling)
    if size == count:
        return result
    if isinstance(features, jax.Array) or isinstance(bank, ShardedBank):
        return jax.tree.map(lambda leaf: leaf[:count], result)
    # On the host, where slicing compiles nothing.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[:count]), result)
