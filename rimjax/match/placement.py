"""A bank whose classes lie on several devices: which device holds what.

Every device holds whole classes, a run of them in the bank's order: their features and their
prototypes. Runs hold about equally many prototypes, and are padded to the longest, since JAX wants
arrays of equal shape. A device's rows keep the bank's order, and padding comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from rimjax.match.array_checks import check_bank_arrays, check_features, check_finite
from rimjax.match.checks import describe
from rimjax.match.tiling import find_sharding
from rimjax.types import AnyArray, ReferenceBank, Whitening, register_pytree

PADDING = np.iinfo(np.int32).max  # the index of a row, or a class, that only fills an array
_STATIC: dict[str, Any] = {"static": True}


@register_pytree
@dataclass(frozen=True, eq=False)
class ShardedBank:
    """A reference bank on several devices, from `shard_bank`; `match` takes it as any bank.

    Attributes:
        prototypes: the bank's, equally many rows on each of S devices.
        owners: the class of each of these rows.
        rows: the bank's row that each of them is, ascending on each device; 2**31 - 1 for padding.
        classes: the bank's class features, equally many rows on each device.
        whitening: the bank's, whole on every device.
        starts: device i holds the classes from starts[i] to starts[i + 1]; S + 1 numbers.
        num_prototypes: R, without padding.
        mesh: the devices.
        axis: the mesh's axis that the classes are sharded over.
        names: the bank's.
        encoder: the bank's.
    """

    prototypes: Float[AnyArray, "rows D"]
    owners: Int[AnyArray, " rows"]
    rows: Int[AnyArray, " rows"]
    classes: Float[AnyArray, "columns D"]
    whitening: Whitening | None
    starts: tuple[int, ...] = field(metadata=_STATIC)
    num_prototypes: int = field(metadata=_STATIC)
    mesh: Mesh = field(metadata=_STATIC)
    axis: str = field(metadata=_STATIC)
    names: tuple[str, ...] = field(metadata=_STATIC)
    encoder: str = field(default="", metadata=_STATIC)

    @property
    def num_classes(self) -> int:
        """C, without padding."""
        return self.starts[-1]

    @property
    def num_columns(self) -> int:
        """The classes of a device, with padding."""
        return len(self.classes) // (len(self.starts) - 1)

    @property
    def is_even(self) -> bool:
        """Whether every device holds equally many classes."""
        return self.num_classes == len(self.classes)


def shard_bank(bank: ReferenceBank, mesh: Mesh, axis: str) -> ShardedBank:
    """Place a bank's classes and their prototypes on the devices of a mesh, each device its own.

    `match` then takes the bank as any other. A bank that no device can hold comes as NumPy arrays,
    by `ReferenceBank(prototypes, owners, classes, names)`: `ReferenceBank.create` would place all
    of it on one device.

    Args:
        bank: R prototypes of C classes.
        mesh: the devices; regions may be sharded over its other axes.
        axis: the name of the mesh's axis to share the classes out over.

    Returns:
        The bank on the devices, which hold runs of classes with about equally many prototypes. A
        device's memory is that of the longest run of classes and of the longest run of prototypes.

    Raises:
        ValueError: parts of the bank that don't fit each other, NaN or infinity, or no such axis.
    """
    if not isinstance(bank, ReferenceBank):
        raise ValueError(
            f"bank must be a ReferenceBank, got {describe(bank)}; pass the bank as it was built"
        )
    if not isinstance(mesh, Mesh) or axis not in mesh.axis_names:
        axes = mesh.axis_names if isinstance(mesh, Mesh) else describe(mesh)
        raise ValueError(
            f"axis must be an axis of mesh, a jax.sharding.Mesh, got {axis!r} and {axes}; "
            "build it for example with Mesh(np.array(jax.devices()), ('classes',))"
        )
    check_features(prototypes=bank.prototypes, classes=bank.classes)
    check_bank_arrays(bank)
    check_finite({"prototypes": bank.prototypes, "classes": bank.classes})
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whose axes are "auto"
    owners, count = np.asarray(bank.owners, np.int32), len(bank.classes)
    starts = share_out(np.bincount(owners, minlength=count), mesh.shape[axis])
    runs = [np.arange(*run) for run in pairwise(starts)]
    order = np.argsort(np.searchsorted(starts[1:], owners, side="right"), kind="stable")
    bounds = np.searchsorted(np.sort(owners), starts)
    rows = [order[slice(*run)] for run in pairwise(bounds)]
    sharding, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ([axis], []))
    return ShardedBank(
        _place(np.asarray(bank.prototypes), rows, 0, sharding),
        _place(owners, rows, 0, sharding),
        _place(np.arange(len(owners), dtype=np.int32), rows, PADDING, sharding),
        _place(np.asarray(bank.classes), runs, 0, sharding),
        jax.device_put(bank.whitening, whole),
        starts,
        len(owners),
        mesh,
        axis,
        bank.names,
        bank.encoder,
    )


def share_out(sizes: Int[np.ndarray, " C"], devices: int) -> tuple[int, ...]:
    """Cut classes into runs of about equally many prototypes; return where runs start and end."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    ideal = bounds[-1] * np.arange(1, devices) / devices
    cuts = np.searchsorted(bounds, ideal)
    cuts -= ideal - bounds[cuts - 1] < bounds[cuts] - ideal  # to the nearer of two classes' borders
    return (0, *cuts.tolist(), len(sizes))


def _place(
    rows: AnyArray, pieces: Sequence[Int[np.ndarray, " _"]], fill: int, sharding: NamedSharding
) -> jax.Array:
    """Place one piece of the rows on each device, padded to the longest.

    One device's rows at a time are copied on the host.
    """
    size = max(map(len, pieces))
    dtype = jax.dtypes.canonicalize_dtype(rows.dtype)

    def fetch(index: Any) -> np.ndarray:
        piece = pieces[(index[0].start or 0) // size]
        part = np.full((size, *rows.shape[1:]), fill, dtype)
        part[: len(piece)] = rows[piece]
        return part

    shape = (len(pieces) * size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, fetch)


def check_regions_placement(regions: Any, bank: ShardedBank) -> None:
    """Check that regions are whole on the bank's devices, or sharded over another axis of theirs.

    Regions on one device or in NumPy will be copied to all.
    """
    mesh, axes = find_sharding(regions) or (bank.mesh, ())
    if mesh != bank.mesh or bank.axis in (axes if isinstance(axes, tuple) else (axes,)):
        raise ValueError(
            f"regions must be whole on every device or sharded over another axis than the bank's, "
            f"{bank.axis!r} of {dict(bank.mesh.shape)}, got {axes!r} of {dict(mesh.shape)}; pass "
            "them unsharded, or use one mesh of two axes for both"
        )
