"""The values that cross module borders: regions, the reference bank, matches and the finished segmentation.

Axis letters, the same everywhere: `B` batch, `H W` pixels, `h w` feature grid, `D` feature size, `C` classes (background
included, index 0), `R` prototypes of all classes, `P` regions, `N` agents, `K` synthetic images and `T` sub-categories of a class.

`Regions`, `ReferenceBank` and `Match` are JAX pytrees: their arrays are leaves, so they pass through `jit`, `vmap` and `grad`.
Their constructors check nothing, because JAX rebuilds them from placeholders; `ReferenceBank.create` checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

AnyArray = Array | np.ndarray
BACKGROUND = "background"


@partial(jax.tree_util.register_dataclass, data_fields=["features", "masks", "valid"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Regions:
    """Region proposals of one image with their pooled features (paper Eq. 5).

    features: one vector per region, any scale.
    masks: pixels of each region, or None where only features are needed.
    valid: False for padding and for regions that cover no cell of the feature grid; their features are ignored.
    """

    features: Float[AnyArray, "P D"]
    masks: Bool[AnyArray, "P H W"] | None
    valid: Bool[AnyArray, " P"]


def bucket_size(count: int) -> int:
    """Smallest padded number of regions >= count: a power of two from 8 to 1024, then multiples of 1024."""
    return max(8, 1 << (count - 1).bit_length()) if count <= 1024 else -(-count // 1024) * 1024


def pad_regions(regions: Regions, size: int | None = None) -> Regions:
    """Append invalid regions, all zeros, up to `size` (default `bucket_size(P)`). On the host, so it compiles nothing; not for use in jit.

    Raises ValueError for `size` below P.
    """
    count = len(regions.features)
    size = bucket_size(count) if size is None else size
    if size < count:
        raise ValueError(f"size must be at least the number of regions, P={count}, got {size}")
    if size == count:
        return regions
    return jax.tree.map(lambda rows: np.concatenate([rows, np.zeros((size - count, *rows.shape[1:]), rows.dtype)]), regions)


@partial(jax.tree_util.register_dataclass, data_fields=["prototypes", "owners", "classes", "whitening"], meta_fields=["names", "encoder"])
@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """What regions are matched against. Build it with `ReferenceBank.create`, which checks its arguments.

    prototypes: sub-category references of all classes (Eq. 10), or the class references themselves where T = 1.
    owners: the class of each prototype, in [0, C).
    classes: class references (Eq. 4), the agents' candidates; row 0 is the background's.
    names: the C class names; names[0] is "background".
    encoder: fingerprint of the encoder that made the features; "" if unknown.
    whitening: mean and matrix that prototypes and classes have gone through already, and that regions have to go through before they
        are matched (`rimjax.whiten.whitened`); None where features are as the encoder gives them.
    """

    prototypes: Float[Array, "R D"]
    owners: Int[Array, " R"]
    classes: Float[Array, "C D"]
    names: tuple[str, ...]
    encoder: str = ""
    whitening: tuple[Float[Array, " D"], Float[Array, "D D"]] | None = None

    @classmethod
    def create(
        cls, prototypes: ArrayLike, owners: ArrayLike, classes: ArrayLike, names: tuple[str, ...] | list[str], encoder: str = ""
    ) -> ReferenceBank:
        """Check the parts and put them together as float32 and int32 JAX arrays.

        Raises ValueError, naming the argument, for a wrong rank or length, differing D, values that are not finite,
        an owner outside [0, C), a class without a prototype, names that repeat, or names[0] other than "background".
        """
        prototypes, classes = _finite_rows("prototypes", prototypes), _finite_rows("classes", classes)
        owners, names = np.asarray(owners), tuple(names)
        if prototypes.shape[1] != classes.shape[1]:
            raise ValueError(f"prototypes and classes must have the same feature size D, got {prototypes.shape[1]} and {classes.shape[1]}")
        if owners.shape != prototypes.shape[:1] or not np.issubdtype(owners.dtype, np.integer):
            raise ValueError(f"owners must hold one integer per prototype, R={len(prototypes)}, got {owners.dtype}{list(owners.shape)}")
        if len(names) != len(classes):
            raise ValueError(f"names must hold one name per row of classes, C={len(classes)}, got {len(names)}")
        if names[0] != BACKGROUND:
            raise ValueError(f"names[0] must be {BACKGROUND!r}, the class of row 0, got {names[0]!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"names must differ, got {sorted({name for name in names if names.count(name) > 1})} more than once")
        if owners.min() < 0 or owners.max() >= len(classes):
            raise ValueError(f"owners must lie in [0, C={len(classes)}), got {owners.min()}..{owners.max()}")
        if missing := sorted(set(range(len(classes))) - set(owners.tolist())):
            raise ValueError(f"owners must give every class a prototype, none for {[names[i] for i in missing]}")
        return cls(jnp.asarray(prototypes), jnp.asarray(owners, jnp.int32), jnp.asarray(classes), names, encoder)


@partial(jax.tree_util.register_dataclass, data_fields=["labels", "scores", "agents", "classes"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Match:
    """What `match` says of each region.

    labels: the winning class in [0, C), the lowest of those within 1e-6 of the best score; -1 for an invalid region.
    scores: similarity to each class, in the measure's range (the paper's in [0, 1]; plain cosine in [-1, 1]); -1, or -inf by the measure
        "kl", for a class that was not allowed to win; all 0 for an invalid region. With `top_k`, those of the k best classes only, the
        winner first.
    agents: the classes that each region was compared through (Eq. 6), best first under the "top" policy.
    classes: with `top_k`, the classes of the columns of scores; otherwise None, and column c is class c.
    """

    labels: Int[Array, " P"]
    scores: Float[Array, "P K"]
    agents: Int[Array, "P N"]
    classes: Int[Array, "P K"] | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image, in numpy.

    labels: class of each pixel, in [0, C).
    masks, region_labels, scores: the regions behind it, their classes (-1: invalid) and class scores.
    names: the C class names.
    timings: seconds spent in each stage, by the stage's name.
    """

    labels: Int[np.ndarray, "H W"]
    masks: Bool[np.ndarray, "P H W"]
    region_labels: Int[np.ndarray, " P"]
    scores: Float[np.ndarray, "P C"]
    names: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)


def _finite_rows(name: str, value: ArrayLike) -> Float[np.ndarray, "rows D"]:
    rows = np.asarray(value, np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} must have shape [rows, D] with at least one row, got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in rows {np.flatnonzero(~np.isfinite(rows).all(axis=1))[:5].tolist()}"
        )
    return rows
