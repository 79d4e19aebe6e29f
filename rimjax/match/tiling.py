"""Blocks of regions and prototypes, and devices: how a large computation keeps to its memory.

A block's temporary arrays have at most `Tiling.elements` elements each, whatever P, R and C are:
its cosines to the classes are [rows, C], its similarities [rows, columns], the cosines of the
classes in use to the prototypes [classes, columns]. The last block starts early, so that all blocks
have the same size and nothing needs padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rimjax.types import AnyArray

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # before JAX 0.6
    from jax.experimental.shard_map import shard_map  # pyright: ignore[reportMissingImports]

COLUMNS = 2048  # prototypes of a block
_LARGEST = 2**24  # elements of a temporary array: 64 MiB, as fast as more
_ARRAYS = 4  # of the largest temporary arrays, how many may be held at a time
# Elements of an array of the lattice by level, or of the enumeration: 4 MiB, about a cache's size.
_LEVEL_ELEMENTS = 2**20

Compare = Callable[[Float[Array, "X D"]], Float[Array, "P X"]]  # similarities to any prototypes


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a computation is cut up.

    Attributes:
        elements: the most elements of a temporary array.
        mesh: the mesh that the regions are sharded over; None on a single device.
        axes: the mesh's axes of the regions' rows.
    """

    elements: int = _LARGEST
    mesh: Mesh | None = None
    axes: Any = None


def plan_tiling(
    regions: Any,
    max_bytes: Any,
    result: int,
    sizes: tuple[int, int, int, int],
    copies: int = 0,
) -> Tiling:
    """Plan blocks such that the result and the temporary arrays keep to `max_bytes`.

    Args:
        regions: the array whose sharding counts.
        max_bytes: bytes that may be taken besides the arguments.
        result: elements of the result.
        sizes: P, R, C and D.
        copies: bytes of copies besides; they make blocks smaller, but never refuse a call.

    Raises:
        ValueError: `max_bytes` doesn't hold the result and a block of the least size.
    """
    p, r, c, d = sizes
    fixed = 4 * (result + c * d)  # the normalised classes are held all the time
    least = 8 * max(c, d, 8)  # eight regions, and eight prototypes, at a time
    spare = _LARGEST
    if max_bytes < math.inf:
        spare = int((max_bytes - fixed) // (4 * _ARRAYS))
    if spare >= least:
        spare = max(least, spare - copies // (4 * _ARRAYS))
    else:
        raise ValueError(
            f"max_bytes must be at least {fixed + 4 * _ARRAYS * least:,} for P={p} regions, "
            f"R={r} prototypes and C={c} classes ({4 * result:,} of them for the result), got "
            f"{max_bytes:,}; pass fewer regions at a time, ask match for top_k, or raise max_bytes"
        )
    mesh, axes = find_sharding(regions) or (None, None)
    return Tiling(elements=min(_LARGEST, spare), mesh=mesh, axes=axes)


def fit_columns(tiling: Tiling, row: int, per_pair: int = 0, copies: int = 1) -> int:
    """Compute how many prototypes to compare at a time.

    Args:
        tiling: the bound on temporary arrays.
        row: elements that a prototype adds to the arrays that it shares among the regions.
        per_pair: elements that a pair adds to an array of its own; 0 where it has none.
        copies: how many such arrays there are at a time.
    """
    columns = max(8, tiling.elements // row)
    if per_pair:
        held = min(_LEVEL_ELEMENTS, tiling.elements // copies)
        columns = max(1, min(columns, held // per_pair))
    return min(columns, COLUMNS)


# ---- blocks of regions


def map_regions(
    function: Callable[[Any, Any], Any], rows: Any, shared: Any, widest: int, tiling: Tiling
) -> Any:
    """Compute function(rows, shared) for blocks of rows, each device its own.

    Args:
        function: maps rows and `shared` to arrays with as many rows.
        rows: arrays with a row per region.
        shared: arrays that every block needs whole.
        widest: elements that a row adds to the largest temporary array.
        tiling: the bound on temporary arrays, and the devices.
    """
    if tiling.mesh is not None:
        own, whole = PartitionSpec(tiling.axes), PartitionSpec()
        local = partial(
            map_regions, function, widest=widest, tiling=replace(tiling, mesh=None, axes=None)
        )
        mapped = shard_map(local, mesh=tiling.mesh, in_specs=(own, whole), out_specs=own)
        return mapped(rows, shared)

    count = len(jax.tree.leaves(rows)[0])
    blocks = max(1, -(-count // max(8, tiling.elements // widest)))
    size = -(-count // blocks)
    if blocks == 1:
        return function(rows, shared)

    def step(done: Any, start: Array) -> tuple[Any, None]:
        block = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), rows)
        write = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(write, done, function(block, shared)), None

    part = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[:size], rows), shared)
    empty = jax.tree.map(lambda leaf: _make_zeros(leaf, (count, *leaf.shape[1:])), part)
    return lax.scan(step, empty, _list_starts(count, size)[0])[0]


# ---- blocks of prototypes


def map_prototypes(
    compare: Compare, prototypes: Float[Array, "R D"], columns: int
) -> Float[Array, "P R"]:
    """Compute the similarities to all prototypes, `columns` at a time."""
    count = len(prototypes)
    if columns >= count:
        return compare(prototypes)

    def step(done: Float[Array, "P R"], start: Array) -> tuple[Float[Array, "P R"], None]:
        part = compare(lax.dynamic_slice_in_dim(prototypes, start, columns))
        return lax.dynamic_update_slice_in_dim(done, part, start, axis=1), None

    part = jax.eval_shape(compare, prototypes[:columns])
    empty = _make_zeros(part, (part.shape[0], count))
    return lax.scan(step, empty, _list_starts(count, columns)[0])[0]


def score_classes(
    compare: Compare,
    prototypes: Float[Array, "R D"],
    owners: Int[Array, " R"],
    classes: int,
    columns: int,
    class_score: str = "mean",
) -> tuple[Float[Array, "P C"], Int[Array, " C"]]:
    """Compute the class scores from the similarities, `columns` prototypes at a time (Eq. 10).

    Summed by a matrix product: unlike a scatter, it gives the same bits on every run. Blocks take
    the prototypes in the order of their classes: then a block holds at most `columns` classes in a
    row, and their sums are added to that window of the scores.

    Returns:
        The mean, sum or maximum over each class's prototypes, and how many prototypes it has.
    """
    count, is_max = len(prototypes), class_score == "max"
    sizes = jnp.zeros(classes, jnp.int32).at[owners].add(1)
    divisors = jnp.maximum(sizes, 1).astype(jnp.float32)[None] if class_score == "mean" else 1
    if columns >= count:
        if is_max:
            return _find_maxima(compare(prototypes), owners, classes), sizes
        owned = jax.nn.one_hot(owners, classes, dtype=jnp.float32)
        return _multiply(compare(prototypes), owned) / divisors, sizes

    order = jnp.argsort(owners, stable=True)
    # A class's rank among those that have prototypes, so that a window has no gaps.
    rank = jnp.cumsum(sizes > 0) - 1
    ranked = rank[owners[order]]
    window = min(columns, classes)

    def reduce_window(start: Array, done: Array) -> Float[Array, "P window"]:
        own = lax.dynamic_slice_in_dim(ranked, start, columns)
        part = compare(prototypes[lax.dynamic_slice_in_dim(order, start, columns)])
        if is_max:
            return _find_maxima(part, own - own[0], window)
        fresh = (jnp.arange(columns, dtype=done.dtype) >= done).astype(jnp.float32)[:, None]
        owned = jax.nn.one_hot(own - own[0], window, dtype=jnp.float32) * fresh
        return _multiply(part, owned)

    def step(
        sums: Float[Array, "P width"], at: tuple[Array, Array]
    ) -> tuple[Float[Array, "P width"], None]:
        first = ranked[at[0]]
        before = lax.dynamic_slice_in_dim(sums, first, window, axis=1)
        part = reduce_window(*at)
        after = jnp.maximum(before, part) if is_max else before + part
        return lax.dynamic_update_slice_in_dim(sums, after, first, axis=1), None

    starts = _list_starts(count, columns)
    part = jax.eval_shape(reduce_window, starts[0][0], starts[1][0])
    empty = _make_zeros(part, (part.shape[0], classes + window))
    if is_max:
        empty -= jnp.inf
    sums = lax.scan(step, empty, starts)[0]
    return jnp.where((sizes > 0)[None], sums[:, rank], 0) / divisors, sizes


def _find_maxima(
    similarities: Float[Array, "P X"], owners: Int[Array, " X"], classes: int
) -> Float[Array, "P C"]:
    return jax.ops.segment_max(similarities.T, owners, num_segments=classes).T


def _multiply(a: Float[Array, "P X"], b: Float[Array, "X C"]) -> Float[Array, "P C"]:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def pad_rows(
    features: Float[AnyArray, "P D"], valid: Bool[AnyArray, " P"], size: int
) -> tuple[Float[AnyArray, "size D"], Bool[AnyArray, " size"]]:
    """Append invalid rows: on the device to a device's array, otherwise on the host."""
    pad = jnp.pad if isinstance(features, jax.Array) else np.pad
    more = size - len(features)
    return pad(features, ((0, more), (0, 0))), pad(valid, (0, more))


def _make_zeros(like: Any, shape: tuple[int, ...]) -> Array:
    """Make zeros of an abstract array's type.

    The type says, under `shard_map`, over which devices an array varies; what goes into a scan must
    vary as what comes out does.
    """
    return jnp.zeros_like(like, shape=shape)


def _list_starts(count: int, size: int) -> tuple[Int[Array, " blocks"], Int[Array, " blocks"]]:
    """List where blocks start, and how many of a block's rows the block before has done."""
    nominal = np.arange(0, count, size)
    starts = np.minimum(nominal, count - size)
    return jnp.asarray(starts, jnp.int32), jnp.asarray(nominal - starts, jnp.int32)


# ---- devices


def use_auto_mesh(array: Any) -> Any:
    """Return the array as it lies on its devices, on a mesh whose axes are "auto".

    The axes of `jax.make_mesh` are "explicit", which asks every other array of a computation to
    state its own sharding.
    """
    mesh, spec = _find_mesh(array)
    if mesh is None:
        return array
    return jax.device_put(array, NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec))


def find_sharding(rows: Any) -> tuple[Mesh, Any] | None:
    """Return the mesh and the axes over which rows are sharded.

    None where they aren't sharded, or where a trace hides it.
    """
    mesh, spec = _find_mesh(rows)
    axes = spec[0] if spec else None
    return None if mesh is None or axes is None else (mesh, axes)


def _find_mesh(array: Any) -> tuple[Mesh | None, PartitionSpec]:
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh, sharding.spec
    return None, PartitionSpec()
