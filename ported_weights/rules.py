"""The porting engine: a table of rules, each from source keys to paths in a Flax tree, applied strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def _one(array: np.ndarray) -> Sequence[np.ndarray]:
    return (array,)


def linear(array: np.ndarray) -> Sequence[np.ndarray]:
    """torch's Linear weight [out, in] to Flax's kernel [in, out]."""
    return (array.T,)


def convolution(array: np.ndarray) -> Sequence[np.ndarray]:
    """torch's Conv2d weight [out, in, h, w] to Flax's kernel [h, w, in, out]."""
    return (array.transpose(2, 3, 1, 0),)


def first(array: np.ndarray) -> Sequence[np.ndarray]:
    """Drop a leading axis of length 1."""
    return (array[0],) if array.shape[:1] == (1,) else (array,)


@dataclass(frozen=True)
class Rule:
    r"""What becomes of the source keys that match a pattern.

    Attributes:
        pattern: regular expression for the whole key.
        targets: paths joined by "/", with `\1` for the pattern's groups; none: the model doesn't use the key.
        transform: the source array to one array for each target.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    transform: Callable[[np.ndarray], Sequence[np.ndarray]] = _one


def apply(rules: Sequence[Rule], state_dict: Mapping[str, Any], shapes: Mapping[str, Any], *, widen: bool = False) -> dict[str, Any]:
    """Fill the tree `shapes` from a state dict.

    Args:
        rules: every key of the state dict must match exactly one.
        state_dict: NumPy arrays or torch tensors on the CPU.
        shapes: nested dicts of leaves with `shape` and `dtype`, e.g. from `jax.eval_shape`.
        widen: float16 and bfloat16 values become float32, which is exact; otherwise they are as wrong as any other dtype.

    Returns:
        Nested dicts of NumPy arrays.

    Raises:
        ValueError: with everything that is off: keys without a rule or with several, leaves filled twice or not at all,
            shapes or dtypes that differ, NaN or infinity.
    """
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    filled: dict[str, np.ndarray] = {}
    problems = []
    for key, value in state_dict.items():
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key))]
        if len(matches) != 1:
            problems.append(f"{key}: {'no rule knows this key' if not matches else f'{len(matches)} rules match this key'}")
            continue
        rule, match = matches[0]
        if not rule.targets:
            continue
        try:
            arrays = rule.transform(np.asarray(_widened(value) if widen else value))
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{key}: can't be converted ({error})")
            continue
        for path, array in zip((match.expand(target) for target in rule.targets), arrays, strict=True):
            leaf = wanted.get(path)
            if leaf is None:
                problems.append(f"{key}: the model has no {path}")
            elif path in filled:
                problems.append(f"{key}: {path} was filled already")
            elif (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                problems.append(f"{key}: {array.dtype}{list(array.shape)} for {path}, expected {leaf.dtype}{list(leaf.shape)}")
                filled[path] = array
            elif not np.isfinite(array).all():
                problems.append(f"{key}: holds NaN or infinity")
                filled[path] = array
            else:
                filled[path] = np.ascontiguousarray(array)
    problems += [f"{path}: no source key fills it" for path in wanted if path not in filled]
    if problems:
        raise ValueError("state_dict: doesn't fit the model:\n  " + "\n  ".join(problems))
    return unflatten_dict(filled, sep="/")


def _widened(value: Any) -> Any:
    if str(getattr(value, "dtype", "")).removeprefix("torch.") not in ("float16", "bfloat16"):
        return value
    return value.float() if hasattr(value, "float") else value.astype(np.float32)
