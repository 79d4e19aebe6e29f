"""Regions against a bank whose classes lie on several devices: `classify`, with a little exchanged.

Each device finds the nearest agents and the best classes among its own; what is exchanged is the
best of every device and the features of the agents. That depends on the numbers of regions, agents
and devices, and not on the numbers of classes and prototypes, but for a result of all classes'
scores that has to be put together.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from rimjax.match import tiling as tiles
from rimjax.match.classify import (
    TIE,
    MatchOptions,
    Scalars,
    draw_nearness,
    find_candidates,
    find_lowest,
    prepare_comparison,
)
from rimjax.match.placement import PADDING, ShardedBank
from rimjax.match.readings import compute_cosines
from rimjax.match.tiling import Tiling
from rimjax.types import AnyArray, Match, normalise_rows


def classify_sharded(
    features: Float[AnyArray, "P D"],
    valid: Bool[AnyArray, " P"],
    bank: ShardedBank,
    allowed: Bool[AnyArray, " C"] | None,
    scalars: Scalars,
    options: MatchOptions,
    tiling: Tiling,
) -> Match:
    """Compute what `classify_regions` does, each device for its own classes."""
    rows, whole = PartitionSpec(tiling.axes), PartitionSpec()
    rows, whole = (NamedSharding(bank.mesh, spec) for spec in (rows, whole))
    features, valid = jax.device_put((features, valid), rows)
    allowed, scalars = jax.device_put((allowed, scalars.as_arrays()), whole)
    return _classify(features, valid, bank, allowed, scalars, options, tiling)


def count_held(bank: ShardedBank, options: MatchOptions) -> tuple[int, int, int]:
    """Count what a device holds: prototypes, references for agents, and columns of the result."""
    devices = len(bank.starts) - 1
    prototypes, classes = len(bank.prototypes) // devices, bank.num_columns
    references = prototypes if options.agent_source == "prototypes" else classes
    if options.top_k is not None:
        columns = min(int(options.top_k), bank.num_classes)
    else:
        columns = classes if bank.is_even else len(bank.classes) + bank.num_classes
    return prototypes, references, columns


@partial(jax.jit, static_argnames=("options", "tiling"))
def _classify(
    features: Float[AnyArray, "P D"],
    valid: Bool[AnyArray, " P"],
    bank: ShardedBank,
    allowed: Bool[AnyArray, " C"] | None,
    scalars: Scalars,
    options: MatchOptions,
    tiling: Tiling,
) -> Match:
    prototypes, references, columns = count_held(bank, options)
    widest = max(
        *(references, min(prototypes, tiles.COLUMNS), features.shape[1]),
        int(options.num_agents) * features.shape[1],  # the agents' features
        bank.num_prototypes if options.agent_policy == "random" else 0,  # what agents are drawn of
        (len(bank.starts) - 1) * min(columns, bank.num_columns) if options.top_k else 0,
    )

    local = Tiling(elements=tiling.elements)
    block = partial(_classify_block, bank=bank, options=options, tiling=local)

    def classify_own(rows: Any, shared: Any) -> Any:
        return tiles.map_regions(block, rows, shared, widest, local)

    own, parts, whole = PartitionSpec(tiling.axes), PartitionSpec(bank.axis), PartitionSpec()
    is_whole = options.top_k is None  # the scores of all classes, each device those of its own
    labels, scores, agents, classes = tiles.shard_map(
        classify_own,
        mesh=bank.mesh,
        in_specs=(own, (parts, whole)),
        out_specs=(own, PartitionSpec(tiling.axes, bank.axis) if is_whole else own, own, own),
    )(
        (features, valid, jnp.arange(len(features))),
        (
            (bank.prototypes, bank.owners, bank.rows, bank.classes),
            (bank.whitening, allowed, scalars),
        ),
    )
    if is_whole and not bank.is_even:
        scores = _cut_padding(scores, bank, own)
    return Match(labels, scores, agents, classes)


def _classify_block(
    rows: Any, shared: Any, bank: ShardedBank, options: MatchOptions, tiling: Tiling
) -> tuple[Array, Array, Array, Array | None]:
    """Match a block of regions with a device's classes, as `classify_regions` with all.

    Of `bank` only what is the same on every device is used; its arrays come as `shared`.
    """
    (features, valid, index), ((prototypes, owners, own_rows, own_classes), whole) = rows, shared
    whitening, allowed, scalars = whole
    features = jnp.where(valid[:, None], features, 0)
    if whitening is not None:
        features = whitening.apply(features)
    axis, count, columns = bank.axis, bank.num_classes, len(own_classes)
    start, stop = (jnp.asarray(bank.starts)[lax.axis_index(axis) + i] for i in (0, 1))
    classes = start + jnp.arange(columns)
    classes = jnp.where(classes < stop, classes, PADDING)

    # Agents (Eq. 6): every device's nearest, and the nearest of those.
    references, ids, owned, total = own_classes, classes, classes, count
    if options.agent_source == "prototypes":
        references, ids, owned, total = prototypes, own_rows, owners, bank.num_prototypes
    units = normalise_rows(references)
    nearness = cosines = compute_cosines(features, units)
    if options.agent_policy == "random":
        drawn = draw_nearness(scalars.key, index, total)
        nearness = drawn[:, jnp.minimum(ids, total - 1)]
    eligible = ids != PADDING if options.background_agent else (ids != PADDING) & (owned != 0)
    nearness = jnp.where(eligible, nearness, -jnp.inf)
    number = min(int(options.num_agents), total)
    agents, own = _choose_best(nearness, ids, cosines, number, axis)

    # The features of the agents in use, each from the device that holds it.
    size = max(1, min(agents.size, total))
    used, at = jnp.unique(agents, return_inverse=True, size=size, fill_value=0)
    place = jnp.minimum(jnp.searchsorted(ids, used), len(ids) - 1)
    here = ids[place] == used
    table = lax.psum(jnp.where(here[:, None], units[place], 0), axis)
    agent_classes = lax.psum(jnp.where(here, owned[place], 0), axis)
    at = at.reshape(agents.shape)

    # Similarities and class scores (Eq. 7-10); padding belongs to a class of its own, which is cut.
    compare, width = prepare_comparison(features, own, at, table, scalars, options, tiling)
    owners = jnp.where(own_rows != PADDING, owners - start, columns)
    scores, sizes = tiles.score_classes(
        compare, prototypes, owners, columns + 1, width, options.class_score
    )
    scores, sizes = scores[:, :columns], sizes[:columns]

    # Decision (Eq. 9): the best score of all devices, then the lowest class that ties with it.
    may = None if allowed is None else allowed[jnp.minimum(classes, count - 1)]
    own_agents = agent_classes[at] - start
    own_agents = jnp.where((own_agents >= 0) & (own_agents < columns), own_agents, columns)
    may_win = find_candidates(sizes, may, own_agents, options)
    in_play = lax.stop_gradient(jnp.where(may_win, scores, -jnp.inf))
    top = lax.pmax(in_play.max(axis=1, keepdims=True), axis)
    best = may_win & (in_play >= top - TIE)
    winner = lax.pmin(jnp.where(best, classes, PADDING).min(axis=1), axis)
    labels = jnp.where(valid & (winner != PADDING), winner, -1)
    lowest = find_lowest(lax.pmax(sizes.max(keepdims=True), axis), options)
    scores = jnp.where(valid[:, None], jnp.where(may_win, scores, lowest), 0)
    if options.top_k is None:
        return labels, scores, agents, None
    in_play = jnp.where(may_win & (classes == winner[:, None]), jnp.inf, in_play)
    chosen, scores = _choose_best(in_play, classes, scores, min(int(options.top_k), count), axis)
    return labels, scores, agents, chosen


def _choose_best(
    values: Float[Array, "P X"],
    ids: Int[Array, " X"],
    payload: Float[Array, "P X"],
    count: int,
    axis: str,
) -> tuple[Int[Array, "P count"], Float[Array, "P count"]]:
    """Choose the columns of the highest values on all devices, ties to the lowest id.

    Returns:
        The ids and the payload of each row's `count` best.
    """
    own = lax.top_k(values, min(count, values.shape[1]))[1]
    parts = (ids[own], *(jnp.take_along_axis(part, own, axis=1) for part in (values, payload)))
    found, values, payload = (_gather_columns(part, axis) for part in parts)
    # In the order of ids, so that top_k takes the lowest of equal values, and padding last.
    order = jnp.argsort(found, axis=1)
    found, values, payload = (
        jnp.take_along_axis(part, order, axis=1) for part in (found, values, payload)
    )
    best = lax.top_k(values, count)[1]
    return jnp.take_along_axis(found, best, axis=1), jnp.take_along_axis(payload, best, axis=1)


def _gather_columns(part: Shaped[Array, "P X"], axis: str) -> Shaped[Array, "P all"]:
    """Put the columns of all devices side by side.

    By a sum, since JAX knows of a sum, and not of a gathered array, that every device has the same.
    """
    devices = lax.psum(1, axis)
    placed = jnp.zeros((devices, *part.shape), part.dtype).at[lax.axis_index(axis)].set(part)
    return jnp.moveaxis(lax.psum(placed, axis), 0, 1).reshape(len(part), -1)


def _cut_padding(
    scores: Float[Array, "P columns"], bank: ShardedBank, rows: PartitionSpec
) -> Float[Array, "P C"]:
    """Cut the padding between the devices' columns off; every device then has all columns."""
    scores = lax.with_sharding_constraint(scores, NamedSharding(bank.mesh, rows))
    runs, size = pairwise(bank.starts), bank.num_columns
    return jnp.concatenate(
        [scores[:, i * size : i * size + stop - start] for i, (start, stop) in enumerate(runs)],
        axis=1,
    )
