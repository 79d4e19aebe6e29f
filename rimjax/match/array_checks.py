"""The arrays among the public functions' arguments, and the errors that name them.

Values under a trace can't be looked at, so only their shapes and types are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from rimjax.match.checks import check_num_agents, describe, is_array
from rimjax.types import AnyArray, Whitening


def check_features(**features: Any) -> None:
    """Check that arguments are rows of floats, all of the feature size of the first.

    `check_finite` checks the values.
    """
    (first, model), *_ = features.items()
    for name, rows in features.items():
        if not is_array(rows):
            raise ValueError(
                f"{name} must be an array of floats, got {describe(rows)}; "
                "convert it with np.asarray(..., np.float32)"
            )
        if jnp.ndim(rows) != 2 or rows.shape[1] == 0 or (len(rows) == 0 and name != "regions"):
            raise ValueError(
                f"{name} must have shape [rows, D] and not be empty, got {list(jnp.shape(rows))}; "
                "pass one feature vector per row"
            )
        if not jnp.issubdtype(rows.dtype, jnp.floating) or rows.dtype.itemsize > 8:
            raise ValueError(
                f"{name} must hold floats, got {rows.dtype}; convert them with .astype(np.float32)"
            )
        if rows.shape[1] != model.shape[1]:
            raise ValueError(
                f"{name} must have the feature size of {first}, D={model.shape[1]}, got "
                f"{rows.shape[1]}; encode both with the same encoder"
            )


def check_finite(features: Mapping[str, Any], valid: Any = None) -> None:
    """Check that features hold neither NaN nor infinity; of "regions", the valid rows.

    A device's arrays are looked at where they are, without a copy. The host waits for the device
    once, not for each of them: on a GPU a wait takes longer than matching a few hundred regions.
    """
    finite: dict[str, Any] = {}
    for name, rows in features.items():
        own = valid if name == "regions" else None
        if isinstance(rows, Tracer) or isinstance(own, Tracer):
            continue
        if isinstance(rows, jax.Array):
            with jax.ensure_compile_time_eval():  # known already, if a trace closes over it
                finite[name] = _all_finite(rows, own)
        else:
            rows = np.asarray(rows, np.float32)
            finite[name] = np.isfinite(rows if own is None else rows[np.asarray(own)]).all()
    for name, is_finite in zip(finite, jax.device_get(list(finite.values())), strict=True):
        if not is_finite:
            raise ValueError(
                f"{name} must be finite, got NaN or infinity; remove these rows or mark them "
                "invalid"
            )


@jax.jit
def _all_finite(rows: Float[Array, "rows D"], valid: Bool[AnyArray, " rows"] | None) -> Array:
    # NaN, if any value is: half the time of looking at each number.
    largest = jnp.abs(rows.astype(jnp.float32)).max(axis=1)
    return (jnp.isfinite(largest) | (False if valid is None else ~valid)).all()


def check_mask(name: str, mask: Any, item: str, count: int) -> Bool[AnyArray, " count"]:
    """Check that a mask holds one bool per item; return it as an array."""
    if not is_array(mask):
        try:
            mask = np.asarray(mask)
        except ValueError as error:  # rows of unequal lengths
            raise ValueError(
                f"{name} must hold one bool per {item}, got {error}; pass a flat sequence"
            ) from error
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(
            f"{name} must hold one bool per {item}, got {describe(mask)}; "
            f"pass an array of {count} bools"
        )
    return mask


def check_allowed(allowed: Any, classes: int) -> Bool[AnyArray, " C"]:
    """Check that a mask of classes lets at least one class win; return it as an array."""
    allowed = check_mask("allowed", allowed, f"class, C={classes}", classes)
    if not isinstance(allowed, Tracer):
        with jax.ensure_compile_time_eval():
            some = bool(allowed.any())
        if not some:
            raise ValueError(
                f"allowed must be True for at least one class, got False for all {classes}; "
                "leave it out to allow all"
            )
    return allowed


def check_bank_arrays(bank: Any) -> None:
    """Check the parts of a bank that needn't have come from `ReferenceBank.create`."""
    owners, whitening = bank.owners, bank.whitening
    count, classes = len(bank.prototypes), len(bank.classes)
    if not is_array(owners):
        raise ValueError(
            f"bank.owners must be an array of integers, got {describe(owners)}; "
            "build the bank with ReferenceBank.create"
        )
    if owners.shape != (count,) or not jnp.issubdtype(owners.dtype, jnp.integer):
        raise ValueError(
            f"bank.owners must hold one integer per prototype, R={count}, got "
            f"{describe(owners)}; build the bank with ReferenceBank.create"
        )
    if not isinstance(owners, Tracer):
        with jax.ensure_compile_time_eval():
            least, most = map(int, jax.device_get((owners.min(), owners.max())))
        if least < 0 or most >= classes:
            raise ValueError(
                f"bank.owners must lie in [0, C={classes}), got {least}..{most}; "
                "index the rows of bank.classes"
            )
    if whitening is None:
        return
    if not isinstance(whitening, Whitening):
        raise ValueError(
            f"bank.whitening must be None or a Whitening, got {describe(whitening)}; "
            "build it with rimjax.types.Whitening(mean, matrix)"
        )
    dim = bank.prototypes.shape[1]
    for name, part, shape in (
        ("mean", whitening.mean, (dim,)),
        ("matrix", whitening.matrix, (dim, dim)),
    ):
        if not is_array(part) or part.shape != shape:
            raise ValueError(
                f"bank.whitening.{name} must have shape {list(shape)}, got {describe(part)}; "
                "estimate it from features of the bank's encoder"
            )
        check_finite({f"bank.whitening.{name}": part.reshape(-1, dim)})


def check_weights(name: str, weights: Any, method: str) -> Float[Array, " N"]:
    """Check a weight vector; return it in float32.

    Known values are divided by a power of two, so that they fit float32's range, whatever theirs
    was.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(weights))
    try:
        if not is_array(weights):
            weights = jnp.asarray(weights) if traced else np.asarray(weights)
    except ValueError as error:  # rows of unequal lengths
        raise ValueError(
            f"{name} must have shape [N], got {error}; pass a flat sequence"
        ) from error
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(
            f"{name} must hold real numbers, got {weights.dtype}; "
            "convert them with .astype(np.float32)"
        )
    if weights.ndim != 1:
        raise ValueError(
            f"{name} must have shape [N], got {list(weights.shape)}; pass a vector at a time"
        )
    check_num_agents(f"the length of {name}", len(weights), method)
    if traced:
        return jnp.asarray(weights, jnp.float32)
    known = np.asarray(weights, np.float64)
    if not (np.isfinite(known).all() and known.min() >= 0):
        raise ValueError(
            f"{name} must be finite and not negative, got {known.tolist()}; "
            "map cosines to weights first"
        )
    return jnp.asarray(np.ldexp(known, -np.frexp(known.max())[1]), jnp.float32)
