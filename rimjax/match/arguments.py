"""The arguments of the public functions: their choices, and the errors that name them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from rimjax.types import AnyArray, ReferenceBank

Measure = Literal["cosine", "bhattacharyya", "pearson", "kl"]
Method = Literal["lattice", "enumerate"]
ScoreMap = Literal["clip", "exp", "shift"]
AgentPolicy = Literal["top", "random"]
Similarity = Literal["relation", "cosine"]
Candidates = Literal["all", "agents"]

_CHOICES = {
    "measure": Measure,
    "method": Method,
    "score_map": ScoreMap,
    "agent_policy": AgentPolicy,
    "similarity": Similarity,
    "candidates": Candidates,
}
_MAX_AGENTS = {"lattice": 16, "enumerate": 8}
_LARGEST = 2**24  # elements of a temporary array: 64 MiB, as fast as more
_ARRAYS = 4  # of the largest temporary arrays, how many may be held at a time


@dataclass(frozen=True)
class Settings:
    """What a compilation depends on besides shapes. elements: most of a temporary array; mesh, axes: how the regions are sharded."""

    num_agents: int
    measure: Measure
    method: Method
    score_map: ScoreMap
    agent_policy: AgentPolicy
    similarity: Similarity = "relation"
    candidates: Candidates = "all"
    top_k: int | None = None
    elements: int = _LARGEST
    mesh: Mesh | None = None
    axes: Any = None


def checked_settings(settings: Settings, temperature: Any, key: Any) -> Settings:
    """The settings, with Python's own integers: NumPy's would overflow in sums of sizes."""
    for name in _CHOICES:
        check_choice(name, getattr(settings, name))
    _check_num_agents("num_agents", settings.num_agents, settings.method)
    if settings.agent_policy == "random" and not _is_key(key):
        got = f"{key.dtype}{list(key.shape)}" if is_array(key) else repr(key)
        raise ValueError(f"key must be one random key with agent_policy='random', for example jax.random.key(0), got {got}")
    if settings.top_k is not None and not (_is_count(settings.top_k) and settings.top_k >= 1):
        raise ValueError(f"top_k must be None or an integer of at least 1, got {settings.top_k!r}")
    if not (jnp.ndim(temperature) == 0 if isinstance(temperature, Tracer) else _is_temperature(temperature)):
        raise ValueError(f"temperature must be one positive number in float32's range, got {temperature!r}")
    return replace(settings, num_agents=int(settings.num_agents), top_k=None if settings.top_k is None else int(settings.top_k))


def _is_key(value: Any) -> bool:
    if not is_array(value):
        return False
    old = value.dtype == np.uint32 and value.shape == (2,)  # of jax.random.PRNGKey
    return old or (value.shape == () and jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def is_array(value: Any) -> bool:
    """Of NumPy, whose masks would be lost, or of JAX."""
    return isinstance(value, np.ndarray | jax.Array) and not isinstance(value, np.ma.MaskedArray)


def _is_temperature(value: Any) -> bool:
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "iuf":
        return False
    return bool(np.finfo(np.float32).tiny <= number <= np.finfo(np.float32).max)


def check_features(**features: Any) -> None:
    """Rows of floats, all of the feature size of the first; whether they are finite is `check_finite`'s."""
    (first, model), *_ = features.items()
    for name, rows in features.items():
        if not is_array(rows):
            kind = f"{type(rows).__module__}.{type(rows).__name__}".removeprefix("builtins.")
            raise ValueError(f"{name} must be an array of floats, got a {kind}; make it one with np.asarray(..., np.float32)")
        if jnp.ndim(rows) != 2 or rows.shape[1] == 0 or (len(rows) == 0 and name != "regions"):
            raise ValueError(f"{name} must have shape [rows, D], not empty, got {list(jnp.shape(rows))}")
        if not jnp.issubdtype(rows.dtype, jnp.floating) or rows.dtype.itemsize > 8:
            raise ValueError(f"{name} must hold floats, got {rows.dtype}; convert them with .astype(np.float32)")
        if rows.shape[1] != model.shape[1]:
            raise ValueError(f"{name} must have the feature size of {first}, D={model.shape[1]}, got {rows.shape[1]}")


def checked_valid(valid: Any, count: int) -> Bool[AnyArray, " P"]:
    """A bool for each region; all True if there are none."""
    if valid is None:
        return np.ones(count, bool)
    if not is_array(valid):
        try:
            valid = np.asarray(valid)
        except ValueError as error:  # rows of unequal lengths
            raise ValueError(f"regions.valid must hold one bool per region: {error}") from error
    if valid.shape != (count,) or valid.dtype != bool:
        raise ValueError(f"regions.valid must hold one bool per region, P={count}, got {valid.dtype}{list(valid.shape)}")
    return valid


def check_bank(bank: ReferenceBank) -> None:
    owners = bank.owners
    if not is_array(owners):
        raise ValueError(f"bank.owners must be an array of integers, got a {type(owners).__name__}")
    if jnp.shape(owners) != bank.prototypes.shape[:1] or not jnp.issubdtype(owners.dtype, jnp.integer):
        shape = f"{owners.dtype}{list(jnp.shape(owners))}"
        raise ValueError(f"bank.owners must hold one integer per prototype, R={len(bank.prototypes)}, got {shape}")
    if not isinstance(owners, Tracer):
        with jax.ensure_compile_time_eval():
            least, most = int(owners.min()), int(owners.max())
        if least < 0 or most >= len(bank.classes):
            raise ValueError(f"bank.owners must lie in [0, C={len(bank.classes)}), got {least}..{most}")


def check_finite(name: str, rows: Any, valid: Any = None) -> None:
    """Of the valid rows. A trace's values can't be looked at; a device's arrays are looked at where they are, without a copy."""
    if isinstance(rows, Tracer) or isinstance(valid, Tracer):
        return
    if isinstance(rows, jax.Array):
        with jax.ensure_compile_time_eval():  # known already, if a trace closes over it
            finite = bool(_all_finite(rows, valid))
    else:
        rows = np.asarray(rows, np.float32)
        finite = np.isfinite(rows if valid is None else rows[np.asarray(valid)]).all()
    if not finite:
        raise ValueError(f"{name} must be finite, got NaN or infinity")


@jax.jit
def _all_finite(rows: Float[Array, "rows D"], valid: Bool[Array, " rows"] | None) -> Array:
    largest = jnp.abs(rows.astype(jnp.float32)).max(axis=1)  # NaN, if any is; half the time of looking at each number
    return (jnp.isfinite(largest) | (False if valid is None else ~valid)).all()


def working_elements(max_bytes: int, result: int, sizes: tuple[int, int, int, int]) -> int:
    """How many elements a temporary array may have, if the result, of so many elements, and the temporary arrays keep to `max_bytes`."""
    p, r, c, d = sizes
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int | float | np.number) or not max_bytes > 0:
        raise ValueError(f"max_bytes must be a positive number of bytes, got {max_bytes!r}")
    fixed = 4 * (result + c * d)  # the classes, normalised, are held all the time
    least = 8 * max(c, d, 8)  # eight regions, and eight prototypes, at a time
    spare = int((max_bytes - fixed) // (4 * _ARRAYS)) if max_bytes < math.inf else _LARGEST
    if spare < least:
        needed = f"{fixed + 4 * _ARRAYS * least:,} bytes, {4 * result:,} of them the result"
        raise ValueError(
            f"max_bytes: P={p} regions x R={r} prototypes x C={c} classes need {needed}, got {max_bytes:,}; "
            "pass fewer regions at a time, ask match for top_k, or raise max_bytes"
        )
    return min(_LARGEST, spare)


def checked_weights(name: str, weights: Any, method: Method) -> Float[Array, " N"]:
    """The weights in float32; those whose values are known over a power of two, so that they fit its range, whatever theirs was."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(weights))
    try:
        given = weights if is_array(weights) else jnp.asarray(weights) if traced else np.asarray(weights)
    except ValueError as error:  # rows of unequal lengths
        raise ValueError(f"{name} must have shape [N]: {error}") from error
    if not (jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)):
        raise ValueError(f"{name} must hold real numbers, got {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"{name} must have shape [N], got {list(given.shape)}")
    _check_num_agents(f"the length of {name}", len(given), method)
    if traced:
        return jnp.asarray(given, jnp.float32)
    known = np.asarray(given, np.float64)
    if not (np.isfinite(known).all() and known.min() >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {known.tolist()}; map cosines to weights first")
    return jnp.asarray(np.ldexp(known, -np.frexp(known.max())[1]), jnp.float32)


def check_choice(name: str, value: str) -> None:
    if value not in get_args(_CHOICES[name]):
        raise ValueError(f"{name} must be one of {', '.join(get_args(_CHOICES[name]))}, got {value!r}")


def _check_num_agents(name: str, n: Any, method: Method) -> None:
    check_choice("method", method)
    if not _is_count(n):
        raise ValueError(f"{name} must be an integer, got {n!r}")
    if method == "enumerate" and n > _MAX_AGENTS[method]:
        raise ValueError(f"{name} must be at most {_MAX_AGENTS[method]} to enumerate all rankings, got {n}; use method='lattice', up to 16")
    if not 1 <= n <= _MAX_AGENTS[method]:
        raise ValueError(f"{name} must be in [1, {_MAX_AGENTS[method]}], got {n}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def on_auto_mesh(array: Any) -> Any:
    """The array as it lies on its devices, but on a mesh whose axes are "auto": of `jax.make_mesh` they are "explicit", which asks every
    other array of a computation to say its own sharding."""
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return array
    return jax.device_put(array, NamedSharding(Mesh(sharding.mesh.devices, sharding.mesh.axis_names), sharding.spec))


def sharding_of(regions: AnyArray) -> tuple[Mesh, Any] | None:
    """The mesh and the axes over which the rows are sharded; None where they aren't, or where a trace hides it."""
    sharding = None if isinstance(regions, Tracer) else getattr(regions, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    axes = sharding.spec[0] if len(sharding.spec) else None
    return None if axes is None else (sharding.mesh, axes)
