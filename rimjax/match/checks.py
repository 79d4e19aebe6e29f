"""The settings among the public functions' arguments: their choices, and the errors that name them.

Every error says "NAME must be ..., got ...; do ...". Values under a trace can't be looked at, so
only their shapes and types are checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rimjax.match.classify import (
    AgentPolicy,
    AgentSource,
    Candidates,
    ClassScore,
    MatchOptions,
    Method,
    Scalars,
)
from rimjax.match.rankings import MEASURES, SCORE_MAPS
from rimjax.match.readings import READINGS

CHOICES = {
    "measure": tuple(MEASURES),
    "method": get_args(Method),
    "score_map": tuple(SCORE_MAPS),
    "agent_policy": get_args(AgentPolicy),
    "agent_source": get_args(AgentSource),
    "similarity": tuple(READINGS),
    "class_score": get_args(ClassScore),
    "candidates": get_args(Candidates),
}
_MAX_AGENTS = {"lattice": 16, "enumerate": 8}


def check_options(options: MatchOptions, scalars: Scalars) -> tuple[MatchOptions, Scalars]:
    """Check settings.

    Returns:
        The settings with Python's own integers, since NumPy's overflow in sums, and the scalars in
        float32, with a key only where it is used.
    """
    for name in CHOICES:
        check_choice(name, getattr(options, name))
    check_num_agents("num_agents", options.num_agents, options.method)
    if (options.similarity, options.measure) == ("combined", "kl"):
        raise ValueError(
            "similarity must not be 'combined' with measure='kl', whose values are negative: a "
            "nearer region would score less; use 'weighted', or another measure"
        )
    is_random, (temperature, weight, key) = options.agent_policy == "random", scalars
    if is_random and not _is_key(key):
        raise ValueError(
            f"key must be a single random key with agent_policy='random', got {describe(key)}; "
            "pass for example jax.random.key(0)"
        )
    if not isinstance(options.background_agent, bool | np.bool):
        raise ValueError(
            f"background_agent must be True or False, got {options.background_agent!r}; "
            "leave it out for True"
        )
    top_k = options.top_k
    if top_k is not None and not (_is_integer(top_k) and top_k >= 1):
        raise ValueError(
            f"top_k must be None or an integer of at least 1, got {top_k!r}; "
            "leave it out for the scores of all classes"
        )
    if not _is_number(temperature, np.finfo(np.float32).tiny):
        raise ValueError(
            f"temperature must be a positive number in float32's range, got {temperature!r}; "
            "pass for example 0.1"
        )
    if not _is_number(weight, 0.0):
        raise ValueError(
            f"relation_weight must be a number of at least 0 in float32's range, got {weight!r}; "
            "pass for example 0.1"
        )
    top_k = None if top_k is None else int(top_k)
    num_agents, background = int(options.num_agents), bool(options.background_agent)
    options = replace(options, num_agents=num_agents, background_agent=background, top_k=top_k)
    # Python's numbers of different types would be compiled for separately.
    temperature, weight = (
        number if isinstance(number, jax.Array) else np.float32(number)
        for number in (temperature, weight)
    )
    return options, Scalars(temperature, weight, key if is_random else None)


def check_choice(name: str, value: Any) -> None:
    """Check that an argument is among the choices that exist for it."""
    if value not in CHOICES[name]:
        choices = ", ".join(CHOICES[name])
        raise ValueError(f"{name} must be one of {choices}, got {value!r}; choose one of them")


def check_max_bytes(max_bytes: Any) -> None:
    """Check that the bound on memory is a positive number."""
    number = isinstance(max_bytes, int | float | np.number) and not isinstance(max_bytes, bool)
    if not number or not max_bytes > 0:
        raise ValueError(
            f"max_bytes must be a positive number of bytes, got {max_bytes!r}; "
            "leave it out for 4 GiB"
        )


def check_num_agents(name: str, n: Any, method: str) -> None:
    """Check a number of agents against what the method can do."""
    check_choice("method", method)
    most = _MAX_AGENTS[method]
    if not _is_integer(n):
        raise ValueError(f"{name} must be an integer, got {n!r}; pass a number in [1, {most}]")
    if 1 <= n <= most:
        return
    way_out = "pass fewer agents"
    if n > most and method == "enumerate":
        way_out = f"use method='lattice', up to {_MAX_AGENTS['lattice']}"
    raise ValueError(f"{name} must be in [1, {most}] with method={method!r}, got {n}; {way_out}")


def is_array(value: Any) -> bool:
    """Return whether a value is an array of JAX, or of NumPy without a mask that would be lost."""
    return isinstance(value, np.ndarray | jax.Array) and not isinstance(value, np.ma.MaskedArray)


def describe(value: Any) -> str:
    """Describe an array by type and shape, a number or string by its value, the rest by type."""
    if is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_key(value: Any) -> bool:
    if not is_array(value):
        return False
    old = value.dtype == np.uint32 and value.shape == (2,)  # of jax.random.PRNGKey
    return old or (value.shape == () and jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def _is_number(value: Any, least: float | np.number) -> bool:
    if isinstance(value, Tracer):
        return value.ndim == 0
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "iuf":
        return False
    return bool(least <= number <= np.finfo(np.float32).max)
