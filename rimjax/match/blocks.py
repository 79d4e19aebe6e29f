"""P regions against R prototypes, compiled: agents, similarities, class scores, labels; in blocks of regions, and of prototypes.

A block's temporary arrays have at most `settings.elements` elements each, whatever P, R and C are: its cosines to the classes are
[rows, C], its similarities [rows, columns], the cosines of the classes in use to the prototypes [classes, columns]. The last block
starts early, so that all have one size and nothing needs padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rimjax.match import rankings
from rimjax.match.arguments import Settings
from rimjax.types import Match, ReferenceBank

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # before JAX 0.6
    from jax.experimental.shard_map import shard_map  # pyright: ignore[reportMissingImports]

TIE = 1e-6  # scores this close are equal: the rounding of float32, and of sums in another order, goes up to here
_COLUMNS = 2048  # prototypes of a block
_LEVEL_ELEMENTS = 2**20  # of an array of the lattice by level, or of the enumeration: 4 MiB, about what a cache holds


@partial(jax.jit, static_argnames="settings")
def relation_matrix(
    regions: Float[Array, "P D"],
    prototypes: Float[Array, "R D"],
    classes: Float[Array, "C D"],
    temperature: Any,
    key: Any,
    settings: Settings,
) -> Float[Array, "P R"]:
    """Eq. 6 to 9 for all pairs."""

    def block(
        rows: tuple[Float[Array, "P D"], Int[Array, " P"]], bank: tuple[Float[Array, "R D"], Float[Array, "C D"], Any, Any]
    ) -> Float[Array, "P R"]:
        prototypes, classes, temperature, key = bank
        classes = _unit(classes)
        cosines = _cosines(rows[0], classes)
        agents = _choose_agents(cosines, rows[1], settings, key)
        similarities, size = _relation_to(cosines, agents, classes, temperature, settings)
        if size >= len(prototypes):
            return similarities(prototypes)

        def columns(done: Float[Array, "P R"], start: Array) -> tuple[Float[Array, "P R"], None]:
            found = similarities(lax.dynamic_slice_in_dim(prototypes, start, size))
            return lax.dynamic_update_slice_in_dim(done, found, start, axis=1), None

        part = jax.eval_shape(similarities, prototypes[:size])
        return lax.scan(columns, _zeros(part, (len(cosines), len(prototypes))), _starts(len(prototypes), size)[0])[0]

    widest = max(len(classes), min(len(prototypes), _COLUMNS), regions.shape[1])
    return _over_regions(block, (regions, jnp.arange(len(regions))), (prototypes, classes, temperature, key), widest, settings)


@partial(jax.jit, static_argnames="settings")
def match_regions(
    features: Float[Array, "P D"], valid: Bool[Array, " P"], bank: ReferenceBank, temperature: Any, key: Any, settings: Settings
) -> Match:
    """Eq. 6 to 10: the class scores of every region, and the winner."""

    def block(rows: tuple[Float[Array, "P D"], Bool[Array, " P"], Int[Array, " P"]], bank: tuple[ReferenceBank, Any, Any]) -> Match:
        references, temperature, key = bank
        features, valid, index = jnp.where(rows[1][:, None], rows[0], 0), rows[1], rows[2]
        classes = _unit(references.classes)
        cosines = _cosines(features, classes)
        agents = _choose_agents(cosines, index, settings, key)
        if settings.similarity == "relation":
            similarities, size = _relation_to(cosines, agents, classes, temperature, settings)
        else:
            similarities = lambda prototypes: _cosines(features, _unit(prototypes))  # noqa: E731
            size = min(_COLUMNS, max(8, settings.elements // features.shape[1]))
        scores, sizes = _class_means(similarities, size, references)
        may_win = jnp.broadcast_to(sizes > 0, scores.shape)
        if settings.candidates == "agents":
            may_win &= jnp.zeros_like(may_win).at[jnp.arange(len(agents))[:, None], agents].set(True)
        return _decide(scores, may_win, valid, agents, settings)

    rows = (features, valid, jnp.arange(len(features)))
    widest = max(len(bank.classes), min(len(bank.prototypes), _COLUMNS), features.shape[1])
    return _over_regions(block, rows, (bank, temperature, key), widest, settings)


def _decide(
    scores: Float[Array, "P C"], may_win: Bool[Array, "P C"], valid: Bool[Array, " P"], agents: Int[Array, "P N"], settings: Settings
) -> Match:
    in_play = jnp.where(may_win, scores, -jnp.inf)
    best = may_win & (in_play >= in_play.max(axis=1, keepdims=True) - TIE)  # nowhere, if a trace let NaN through
    winner = jnp.argmax(best, axis=1).astype(jnp.int32)
    labels = jnp.where(valid & best.any(axis=1), winner, -1)
    excluded = -jnp.inf if settings.measure == "kl" and settings.similarity == "relation" else -1  # below every score, or as low
    scores = jnp.where(valid[:, None], jnp.where(may_win, scores, excluded), 0)
    if settings.top_k is None:
        return Match(labels, scores, agents)
    in_play = in_play.at[jnp.arange(len(winner)), winner].set(jnp.inf)  # the winner first, where another one ties with it
    chosen = lax.top_k(in_play, min(settings.top_k, scores.shape[1]))[1]
    return Match(labels, jnp.take_along_axis(scores, chosen, axis=1), agents, chosen)


def _relation_to(
    cosines: Float[Array, "P C"], agents: Int[Array, "P N"], classes: Float[Array, "C D"], temperature: Any, settings: Settings
) -> tuple[Callable[[Float[Array, "X D"]], Float[Array, "P X"]], int]:
    """The similarity of these regions to any prototypes, and how many prototypes to pass at a time."""
    n = agents.shape[1]
    own = jnp.take_along_axis(cosines, agents, axis=1)
    if 0 < agents.size < len(classes):  # a huge vocabulary: only the classes that are anyone's agents
        used, agents = jnp.unique(agents, return_inverse=True, size=agents.size, fill_value=0)
        classes, agents = classes[used], agents.reshape(own.shape)

    def similarities(prototypes: Float[Array, "X D"]) -> Float[Array, "P X"]:
        table = jnp.matmul(classes, _unit(prototypes).T, precision=lax.Precision.HIGHEST)
        return relations(own, agents, table, temperature, settings)

    size = max(8, settings.elements // max(4 * len(classes), classes.shape[1]))
    if not _unrolled(n, settings):
        per_pair = math.factorial(n) * n if settings.method == "enumerate" else math.comb(n, n // 2)
        size = max(1, min(size, min(_LEVEL_ELEMENTS, settings.elements // n) // per_pair))  # a level gathers an array for every member
    return similarities, min(size, _COLUMNS)


def relations(
    own: Float[Array, "P N"], agents: Int[Array, "P N"], table: Float[Array, "C R"], temperature: Any, settings: Settings
) -> Float[Array, "P R"]:
    """The similarities alone, from cosines: the regions' to their agents, and those of all classes to the prototypes."""
    relation = partial(
        rankings.relation,
        temperature=temperature,
        score_map=settings.score_map,
        measure=settings.measure,
        method=settings.method,
    )

    def references(agents: Iterable[Int[Array, " *regions"]]) -> list[Float[Array, "*regions R"]]:
        return [table.at[agent].get(mode="promise_in_bounds") for agent in agents]

    if _unrolled(own.shape[1], settings):
        # One elementwise loop over all pairs, with no temporary array. Each agent is gathered alone, and the arrays are taken apart by
        # iterating over them: indexed ([:, i]), or gathered as one array, they keep XLA from vectorising the loop, 8 times slower.
        return relation([cosine[:, None] for cosine in own.T], references(agents.T))
    return lax.map(lambda region: relation([cosine[None] for cosine in region[0]], references(region[1])), (own, agents))


def _unrolled(num_agents: int, settings: Settings) -> bool:
    return settings.method == "lattice" and num_agents <= rankings.UNROLLED


def _class_means(
    similarities: Callable[[Float[Array, "X D"]], Float[Array, "P X"]], size: int, bank: ReferenceBank
) -> tuple[Float[Array, "P C"], Int[Array, " C"]]:
    """Mean similarity to each class's prototypes (Eq. 10), and how many prototypes it has.

    Summed by a matrix product: unlike a scatter, it gives the same bits on every run. Of many prototypes a block at a time, in the
    order of their classes: then a block holds at most `size` of them in a row, and their sums are added to that window of the scores.
    """
    count, classes = len(bank.prototypes), len(bank.classes)
    sizes = jnp.zeros(classes, jnp.int32).at[bank.owners].add(1)
    if size >= count:
        owned = jax.nn.one_hot(bank.owners, classes, dtype=jnp.float32)
        sums = jnp.matmul(similarities(bank.prototypes), owned, precision=lax.Precision.HIGHEST)
        return sums / jnp.maximum(sizes, 1).astype(jnp.float32), sizes

    order = jnp.argsort(bank.owners, stable=True)
    rank = jnp.cumsum(sizes > 0) - 1  # of a class among those that have prototypes, so that a window has no gaps
    owners = rank[bank.owners[order]]
    window = min(size, classes)

    def window_sums(start: Array, done: Array) -> Float[Array, "P window"]:
        own = lax.dynamic_slice_in_dim(owners, start, size)
        owned = jax.nn.one_hot(own - own[0], window, dtype=jnp.float32) * (jnp.arange(size) >= done)[:, None].astype(jnp.float32)
        found = similarities(bank.prototypes[lax.dynamic_slice_in_dim(order, start, size)])
        return jnp.matmul(found, owned, precision=lax.Precision.HIGHEST)

    def add(sums: Float[Array, "P width"], at: tuple[Array, Array]) -> tuple[Float[Array, "P width"], None]:
        first = owners[at[0]]
        before = lax.dynamic_slice_in_dim(sums, first, window, axis=1)
        return lax.dynamic_update_slice_in_dim(sums, before + window_sums(*at), first, axis=1), None

    starts = _starts(count, size)
    part = jax.eval_shape(window_sums, starts[0][0], starts[1][0])
    sums = lax.scan(add, _zeros(part, (part.shape[0], classes + window)), starts)[0]
    return jnp.where(sizes > 0, sums[:, rank], 0) / jnp.maximum(sizes, 1).astype(jnp.float32), sizes


# ---- blocks


def _over_regions(function: Callable[[Any, Any], Any], rows: Any, shared: Any, widest: int, settings: Settings) -> Any:
    """function(rows, shared), for so many rows at a time that `widest` columns keep to `settings.elements`; each device does its own."""
    if settings.mesh is not None:
        own, whole = PartitionSpec(settings.axes), PartitionSpec()
        local = partial(_over_regions, function, widest=widest, settings=replace(settings, mesh=None, axes=None))
        return shard_map(local, mesh=settings.mesh, in_specs=(own, whole), out_specs=own)(rows, shared)

    count = len(jax.tree.leaves(rows)[0])
    blocks = max(1, -(-count // max(8, settings.elements // widest)))
    size = -(-count // blocks)
    if blocks == 1:
        return function(rows, shared)

    def step(done: Any, start: Array) -> tuple[Any, None]:
        found = function(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), rows), shared)
        return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=0), done, found), None

    part = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[:size], rows), shared)
    empty = jax.tree.map(lambda leaf: _zeros(leaf, (count, *leaf.shape[1:])), part)
    return lax.scan(step, empty, _starts(count, size)[0])[0]


def _zeros(like: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> Array:
    """Of its type, which also says, under `shard_map`, over which devices it varies: what goes into a scan must, as what comes out does."""
    return jnp.zeros_like(like, shape=shape)  # pyright: ignore[reportArgumentType]


def _starts(count: int, size: int) -> tuple[Int[Array, " blocks"], Int[Array, " blocks"]]:
    """Where blocks of `size` start, and how many of its rows the one before has done: none, but for the last block."""
    nominal = np.arange(0, count, size)
    starts = np.minimum(nominal, count - size)
    return jnp.asarray(starts, jnp.int32), jnp.asarray(nominal - starts, jnp.int32)


# ---- cosines and agents


def _cosines(x: Float[Array, "A D"], unit: Float[Array, "B D"]) -> Float[Array, "A B"]:
    """To rows of length 1; a zero row has cosine 0 to everything, with finite gradients."""
    x = x.astype(jnp.float32)

    def plain(x: Float[Array, "A D"]) -> Float[Array, "A B"]:
        squared = jnp.sum(x * x, axis=1, keepdims=True)
        scale = jnp.where(squared > 0, lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
        return jnp.matmul(x, unit.T, precision=lax.Precision.HIGHEST) * scale

    # Many rows are divided by their length after the product: a copy of all, divided before, took as long as the product itself.
    # Only where a square could overflow or vanish are they scaled first.
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    moderate = ((top < 1e15) & ((top > 1e-15) | (top == 0))).all()
    return lax.cond(moderate, plain, lambda x: plain(x / jnp.where(top > 0, top, 1)), x)


def _unit(x: Float[Array, "A D"]) -> Float[Array, "A D"]:
    """Rows of length 1; zero rows stay zero, with finite gradients. Scaled first, so that huge values don't overflow when squared."""
    x = x.astype(jnp.float32)
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    x = x / jnp.where(top > 0, top, 1)
    return x / jnp.sqrt(jnp.where(top > 0, jnp.sum(x * x, axis=1, keepdims=True), 1))


def _choose_agents(cosines: Float[Array, "P C"], index: Int[Array, " P"], settings: Settings, key: Any) -> Int[Array, "P N"]:
    count = min(settings.num_agents, cosines.shape[1])
    if settings.agent_policy == "top":
        return lax.top_k(cosines, count)[1]

    # A key from the region's index: its agents don't depend on how many other regions, or how much padding, there are.
    draw = jax.vmap(lambda region: jax.random.permutation(jax.random.fold_in(key, region), cosines.shape[1])[:count])
    return draw(index).astype(jnp.int32)
