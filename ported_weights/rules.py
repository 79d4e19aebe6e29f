"""The porting engine: rules map source keys to paths in a tree; every mismatch raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def keep(array: np.ndarray) -> Sequence[np.ndarray]:
    """Return the array as it is."""
    return (array,)


def transpose_linear(array: np.ndarray) -> Sequence[np.ndarray]:
    """Turn torch's Linear weight [out, in] into Flax's kernel [in, out]."""
    return (array.T,)


def transpose_convolution(array: np.ndarray) -> Sequence[np.ndarray]:
    """Turn torch's Conv2d weight [out, in, h, w] into Flax's kernel [h, w, in, out]."""
    return (array.transpose(2, 3, 1, 0),)


def take_first(array: np.ndarray) -> Sequence[np.ndarray]:
    """Drop a leading axis of length 1."""
    return (array[0],) if array.shape[:1] == (1,) else (array,)


@dataclass(frozen=True)
class Rule:
    r"""Where the source keys that match a pattern go.

    Attributes:
        pattern: regular expression for the whole key.
        targets: paths joined by "/", with `\1` for the pattern's groups; empty: the model doesn't
            use the key.
        transform: turns the source array into an array for each target.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    transform: Callable[[np.ndarray], Sequence[np.ndarray]] = keep


def apply(
    rules: Sequence[Rule],
    state_dict: Mapping[str, Any],
    shapes: Mapping[str, Any],
    *,
    widen_halves: bool = False,
) -> dict[str, Any]:
    """Fill the tree `shapes` from a state dict.

    Args:
        rules: every key of the state dict must match exactly one rule.
        state_dict: NumPy arrays or torch tensors.
        shapes: nested dicts of leaves with `shape` and `dtype`.
        widen_halves: convert float16 and bfloat16 to float32, which is exact; without it they are
            a mismatch like any other dtype.

    Returns:
        Nested dicts of NumPy arrays.

    Raises:
        ValueError: keys match no rule or several, or the weights don't fit (see `check_fit`);
            the message lists every mismatch.
    """
    filled: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    problems = []
    for key, value in state_dict.items():
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key))]
        if len(matches) != 1:
            problems.append(f"{key}: {len(matches) or 'no'} rules match this key")
            continue
        rule, match = matches[0]
        if not rule.targets:
            continue
        try:
            value = to_host(value)
            arrays = rule.transform(np.asarray(widen(value) if widen_halves else value))
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{key}: can't be converted ({error})")
            continue
        for path, array in zip(map(match.expand, rule.targets), arrays, strict=True):
            if path in filled:
                problems.append(f"{key}: {path} comes from {sources[path]} already")
            else:
                filled[path], sources[path] = np.ascontiguousarray(array), key
    check_fit(filled, flatten_tree(shapes), sources=sources, problems=problems)
    return build_tree(filled)


def check_fit(
    weights: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    sources: Mapping[str, str] | None = None,
    problems: Iterable[str] = (),
) -> None:
    """Check that weights are exactly the expected ones: names, shapes, dtypes, finite values.

    Args:
        weights: NumPy arrays or torch tensors, by name.
        expected: leaves with `shape` and `dtype`, by name.
        sources: the source key of a weight, for messages, where it differs from the name.
        problems: further mismatches to list.

    Raises:
        ValueError: the message lists every mismatch.
    """
    problems = list(problems)
    for name, weight in weights.items():
        label = f"{sources[name]} for {name}" if sources else name
        if name not in expected:
            problems.append(f"{label}: the model has no such weight")
        elif (actual := _describe(weight)) != (wanted := _describe(expected[name])):
            problems.append(f"{label}: must be {wanted}, got {actual}")
        elif not np.isfinite(np.asarray(to_host(weight))).all():
            problems.append(f"{label}: holds NaN or infinity")
    problems += [f"{name}: missing" for name in expected if name not in weights]
    if problems:
        raise ValueError("state_dict must fit the model, got:\n  " + "\n  ".join(problems))


def check_finite(where: object, weights: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the file and the first weight, for NaN or infinity among weights.

    Args:
        where: the weights' file or folder.
        weights: NumPy arrays by name.
    """
    broken = [
        name
        for name, weight in weights.items()
        # ml_dtypes' bfloat16 is of kind "V"
        if weight.dtype.kind in "fV" and not np.isfinite(weight).all()
    ]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"{where}: {broken[0]}{more} holds NaN or infinity; get the weights again")


def to_host(value: Any) -> Any:
    """Return a tensor on the CPU, without gradients, wherever it is; return others as they are."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def widen(value: Any) -> Any:
    """Convert a float16 or bfloat16 array or tensor to float32; return others as they are."""
    if str(getattr(value, "dtype", "")).removeprefix("torch.") not in ("float16", "bfloat16"):
        return value
    return value.float() if hasattr(value, "float") else value.astype(np.float32)


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by path, the keys joined by "/"."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= flatten_tree(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return leaves


def build_tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts from leaves by path; undoes `flatten_tree`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _describe(leaf: Any) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
