"""The values that cross module borders: regions, the reference bank, matches and segmentations.

Axis letters, the same everywhere: `B` batch, `H W` pixels, `h w` feature grid, `D` feature size,
`C` classes (background included, index 0), `R` prototypes of all classes, `P` regions, `N` agents,
`K` synthetic images of a class, `T` sub-categories of a class.

`Regions`, `Whitening`, `ReferenceBank` and `Match` are JAX pytrees: their arrays are leaves, so
they pass through `jit`, `vmap` and `grad`. `ReferenceBank.create` checks its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

AnyArray = Array | np.ndarray
BACKGROUND, UNKNOWN = "background", "unknown"
_STATIC = {"static": True}  # a field that is part of the pytree's structure, not a leaf
T = TypeVar("T")


def register_pytree(cls: type[T]) -> type[T]:
    """Register a dataclass as a pytree that is rebuilt without its constructor.

    JAX also rebuilds pytrees from placeholders, which a type-checked constructor would refuse,
    so `jax.tree_util.register_dataclass` can't be used.
    """
    static = [part.name for part in fields(cls) if part.metadata.get("static")]  # pyright: ignore[reportArgumentType]
    dynamic = [part.name for part in fields(cls) if part.name not in static]  # pyright: ignore[reportArgumentType]

    def flatten(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in dynamic]
        return keyed, tuple(getattr(value, name) for name in static)

    def unflatten(structure: tuple[Any, ...], leaves: Any) -> T:
        value = object.__new__(cls)
        for name, part in zip((*static, *dynamic), (*structure, *leaves), strict=True):
            object.__setattr__(value, name, part)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@register_pytree
@dataclass(frozen=True, eq=False)
class Regions:
    """Region proposals of one image with their pooled features (Eq. 5).

    Attributes:
        features: a feature vector per region, of any scale.
        masks: pixels of the first M <= P regions, or None where only features are needed. Rows of
            `features` and `valid` past M are padding.
        valid: False for padding and for regions that cover no cell of the grid; not matched.
        scores: what the proposer thinks of each mask, e.g. SAM's predicted IoU; None if nothing.
    """

    features: Float[AnyArray, "P D"]
    masks: Bool[AnyArray, "M H W"] | None
    valid: Bool[AnyArray, " P"]
    scores: Float[AnyArray, " M"] | None = None


def bucket_size(count: int) -> int:
    """Return the smallest padded number of regions >= count: 8, 16, ... 1024, 2048, 3072, ..."""
    if count <= 1024:
        return max(8, 1 << (count - 1).bit_length())
    return -(-count // 1024) * 1024


def pad_regions(regions: Regions, size: int | None = None) -> Regions:
    """Append invalid regions with zero features; the masks stay as they are.

    Runs on the host, so it compiles nothing; it doesn't work inside `jit`.

    Args:
        regions: P regions.
        size: the padded number of regions; default `bucket_size(P)`.

    Raises:
        ValueError: `size` is below P.
    """
    count = len(regions.features)
    size = bucket_size(count) if size is None else size
    if size < count:
        raise ValueError(f"size must be at least P={count}, got {size}; leave it out")
    if size == count:
        return regions
    features = np.pad(np.asarray(regions.features), ((0, size - count), (0, 0)))
    return replace(regions, features=features, valid=np.pad(regions.valid, (0, size - count)))


def normalise_rows(rows: Float[AnyArray, "*rows D"]) -> Float[Array, "*rows D"]:
    """Scale vectors of any scale to length 1 in float32; zero vectors stay zero.

    Values are divided by the largest first, so that squares neither overflow nor vanish. Gradients
    are finite everywhere.
    """
    rows = jnp.asarray(rows).astype(jnp.float32)
    top = lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    rows = rows / jnp.where(top > 0, top, 1)
    squared = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows / jnp.sqrt(jnp.where(top > 0, squared, 1))


@register_pytree
@dataclass(frozen=True, eq=False)
class Whitening:
    """An affine map of features: `(unit(features) - mean) @ matrix`.

    Attributes:
        mean: subtracted from features of length 1.
        matrix: multiplied from the right.
    """

    mean: Float[AnyArray, " D"]
    matrix: Float[AnyArray, "D D"]

    def apply(self, features: Float[AnyArray, "*rows D"]) -> Float[Array, "*rows D"]:
        """Scale features to length 1, centre and multiply them, in float32.

        Args:
            features: vectors of any scale and float type.

        Returns:
            Whitened features; a zero vector stays zero.
        """
        units = normalise_rows(features)
        mean, matrix = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.matrix, jnp.float32)
        centred = units - jnp.broadcast_to(mean, units.shape)
        whitened = jnp.matmul(centred, matrix, precision=lax.Precision.HIGHEST)
        return jnp.where(jnp.any(units != 0, axis=-1, keepdims=True), whitened, 0)


@register_pytree
@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """The references that regions are matched against.

    Attributes:
        prototypes: sub-category references of all classes (Eq. 10), or the class references
            themselves where T = 1.
        owners: the class of each prototype, in [0, C).
        classes: class references (Eq. 4), the candidates for agents; row 0 is the background's.
        names: the C class names; names[0] is "background".
        encoder: `Models.features` of the models that made the features; "" if unknown.
        whitening: the map that prototypes and classes have gone through already and that `match`
            applies to regions; None where features are as the encoder gives them.
    """

    prototypes: Float[AnyArray, "R D"]
    owners: Int[AnyArray, " R"]
    classes: Float[AnyArray, "C D"]
    names: tuple[str, ...] = field(metadata=_STATIC)
    encoder: str = field(default="", metadata=_STATIC)
    whitening: Whitening | None = None

    @classmethod
    def create(
        cls,
        prototypes: ArrayLike,
        owners: ArrayLike,
        classes: ArrayLike,
        names: Sequence[str],
        encoder: str = "",
        whitening: Whitening | None = None,
    ) -> ReferenceBank:
        """Check the parts of a bank and store them as float32 and int32 JAX arrays.

        Args:
            prototypes: [R, D]; whitened already if there is a whitening, as `classes` must be.
            owners: [R] integers.
            classes: [C, D].
            names: C names, "background" first.
            encoder: see the attributes; `whitening` likewise.

        Raises:
            ValueError: a part has a wrong rank, length or feature size or holds NaN or infinity, an
                owner is outside [0, C), a class has no prototype, names repeat, or names[0] isn't
                "background".
        """
        prototypes, classes = _check_rows("prototypes", prototypes), _check_rows("classes", classes)
        owners, names = np.asarray(owners), tuple(names)
        dim, count = prototypes.shape[1], len(classes)
        if classes.shape[1] != dim:
            raise ValueError(
                f"classes must have the feature size of prototypes, D={dim}, "
                f"got {classes.shape[1]}; encode both with the same encoder"
            )
        if owners.shape != prototypes.shape[:1] or not np.issubdtype(owners.dtype, np.integer):
            raise ValueError(
                f"owners must hold one integer per prototype, R={len(prototypes)}, "
                f"got {owners.dtype}{list(owners.shape)}; give each prototype its class's index"
            )
        if len(names) != count:
            raise ValueError(f"names must hold C={count} names, got {len(names)}; name each class")
        if names[0] != BACKGROUND:
            raise ValueError(
                f"names[0] must be {BACKGROUND!r}, got {names[0]!r}; put the background first"
            )
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"names must differ, got {repeated} more than once; rename them")
        if owners.min() < 0 or owners.max() >= count:
            raise ValueError(
                f"owners must lie in [0, C={count}), got {owners.min()}..{owners.max()}; "
                "index the rows of classes"
            )
        if missing := sorted(set(range(count)) - set(owners.tolist())):
            raise ValueError(
                "owners must give every class a prototype, got none for "
                f"{[names[i] for i in missing]}; add prototypes or remove these classes"
            )
        return cls(
            jnp.asarray(prototypes),
            jnp.asarray(owners, jnp.int32),
            jnp.asarray(classes),
            names,
            encoder,
            None if whitening is None else _check_whitening(whitening, dim),
        )


@register_pytree
@dataclass(frozen=True, eq=False)
class Match:
    """The classes that `match` gives to regions.

    Attributes:
        labels: the winning class in [0, C), the lowest of those within 1e-6 of the best score; -1
            for an invalid region and for a region for which no class may win.
        scores: similarity to each class, in the measure's range (the paper's in [0, 1]; plain
            cosine in [-1, 1]); -1, or -inf by the measure "kl", for a class that may not win; all 0
            for an invalid region. With `top_k`, only the k best scores, the winner's first.
        agents: the classes that each region was compared through (Eq. 6), nearest first under the
            "top" policy.
        classes: with `top_k`, the classes of the columns of scores; otherwise None, and column c is
            class c.
    """

    labels: Int[Array, " P"]
    scores: Float[Array, "P columns"]
    agents: Int[Array, "P N"]
    classes: Int[Array, "P columns"] | None = None


def _check_rows(name: str, value: ArrayLike) -> Float[np.ndarray, "rows D"]:
    rows = np.asarray(value, np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name} must have shape [rows, D] with at least one row, got {list(rows.shape)}; "
            "pass one feature vector per row"
        )
    if not np.isfinite(rows).all():
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))[:5].tolist()
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in rows {broken}; remove these rows"
        )
    return rows


def _check_whitening(whitening: Whitening, dim: int) -> Whitening:
    mean, matrix = np.asarray(whitening.mean), np.asarray(whitening.matrix)
    if mean.shape != (dim,) or matrix.shape != (dim, dim):
        raise ValueError(
            f"whitening must have a mean of shape [D] and a matrix of shape [D, D], D={dim}, got "
            f"{list(mean.shape)} and {list(matrix.shape)}; estimate it from the same features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
        raise ValueError("whitening must be finite, got NaN or infinity; raise the ridge")
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(matrix, jnp.float32))
