"""The arguments of the public functions: their choices, and the errors that name them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

Method = Literal["lattice", "enumerate"]
ScoreMap = Literal["clip", "exp", "shift"]
AgentPolicy = Literal["top", "random"]
Similarity = Literal["relation", "cosine"]
Candidates = Literal["all", "agents"]

_MAX_AGENTS = {"lattice": 16, "enumerate": 8}


@dataclass(frozen=True)
class Settings:
    """What a compilation depends on besides shapes."""

    num_agents: int
    method: Method
    score_map: ScoreMap
    agent_policy: AgentPolicy
    similarity: Similarity = "relation"
    candidates: Candidates = "all"


def check(settings: Settings, temperature: Any, key: Any, max_bytes: int, p: int, **features: Any) -> None:
    for name, allowed in {"score_map": ScoreMap, "agent_policy": AgentPolicy, "similarity": Similarity, "candidates": Candidates}.items():
        _check_choice(name, getattr(settings, name), allowed)
    _check_num_agents("num_agents", settings.num_agents, settings.method)
    if settings.agent_policy == "random" and key is None:
        raise ValueError("key must be given with agent_policy='random', for example jax.random.key(0)")
    if not isinstance(temperature, Tracer) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    for name, rows in features.items():
        if rows.ndim != 2 or rows.shape[1] == 0 or (len(rows) == 0 and name != "regions"):
            raise ValueError(f"{name} must have shape [rows, D], not empty, got {list(rows.shape)}")
        if (size := features["regions"].shape[1]) != rows.shape[1]:
            raise ValueError(f"{name} must have the feature size of regions, D={size}, got {rows.shape[1]}")
        if not isinstance(rows, Tracer) and not np.isfinite(np.asarray(rows, np.float32)).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    r, c = len(features["prototypes"]), len(features["classes"])
    if (needed := 4 * (p * r + p * c + c * r)) > max_bytes:
        sizes = f"P={p} regions x R={r} prototypes x C={c} classes need {needed / 2**30:.2f} GiB"
        raise ValueError(f"max_bytes: {sizes}, over {max_bytes / 2**30:.2f}; pass fewer regions at a time, or raise max_bytes")


def checked_weights(name: str, weights: Any, method: Method) -> Float[Array, " N"]:
    weights = jnp.asarray(weights, jnp.float32)
    if weights.ndim != 1:
        raise ValueError(f"{name} must have shape [N], got {list(weights.shape)}")
    _check_num_agents(f"the length of {name}", len(weights), method)
    if not isinstance(weights, Tracer) and not (np.isfinite(weights).all() and np.min(weights) >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {np.asarray(weights).tolist()}; map cosines to weights first")
    return weights


def _check_choice(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")


def _check_num_agents(name: str, n: int, method: Method) -> None:
    _check_choice("method", method, Method)
    if method == "enumerate" and n > _MAX_AGENTS[method]:
        raise ValueError(f"{name} must be at most {_MAX_AGENTS[method]} to enumerate all rankings, got {n}; use method='lattice', up to 16")
    if not 1 <= n <= _MAX_AGENTS[method]:
        raise ValueError(f"{name} must be in [1, {_MAX_AGENTS[method]}], got {n}")
