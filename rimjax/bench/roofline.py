"""The least time that the matching kernels could take on this machine."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from rimjax.bench.timing import Row, time_call


def measure_rates(quick: bool = False) -> dict[str, float]:
    """Measure operations and bytes per second.

    Operations are element-wise float32 arithmetic, on a CPU in cache, and on an accelerator on
    arrays that keep all of it busy; bytes those of a copy that no cache holds.

    Args:
        quick: measure the smallest arrays only; the rates are rough.
    """
    exponents = (15, 16, 17) if jax.default_backend() == "cpu" else (20, 22, 24)
    exponents = exponents[: 1 if quick else None]

    def compute_chains(x: jax.Array, divide: bool) -> jax.Array:
        ys = [x * (0.1 * j + 0.5) for j in range(8)]  # eight chains: no chain waits for its result
        for i in range(15):
            ys = [y * x + 0.25 for y in ys]
            if divide and i % 5 == 4:
                ys = [1 / y for y in ys]
        return sum(ys[1:], ys[0]) * 0.01 + 0.3

    rates = {}
    for name, divide in {"multiply and add": False, "one division in twelve": True}.items():
        count = 8 * (1 + 2 * 15 + (3 if divide else 0)) + 7 + 2

        def loop(x: jax.Array, divide: bool = divide) -> jax.Array:
            return lax.fori_loop(0, 100, lambda _, y: compute_chains(y, divide), x)

        compiled, best = jax.jit(loop), math.inf
        for size in (2**exponent for exponent in exponents):
            seconds = time_call(partial(compiled, jnp.linspace(0.2, 0.4, size)))[1]
            best = min(best, seconds / (100 * count * size))
        rates[name] = 1 / best
    large = jnp.ones(2**22 if quick else 2**26)
    # In place: a fresh array would measure page faults.
    sweep = jax.jit(lambda x: lax.fori_loop(0, 10, lambda _, y: y * 1.0001, x))
    rates["bytes"] = 10 * 2 * large.nbytes / time_call(partial(sweep, large), 3)[1]
    return rates


def count_operations(n: int, p: int, r: int) -> float:
    """Count additions, multiplications, divisions and roots of all pairs.

    The formula is that of docs/match/mathematics.md.
    """
    subsets = [(math.comb(n, k), k) for k in range(2, n + 1)]
    # Products s_i r_i; a single agent's value is 1.
    inner = n + sum(count * ((k if k > 2 else 0) + (k - 1) + 2) for count, k in subsets)
    sums = 2 * sum(count for count, _ in subsets)  # each by one addition, and its reciprocal
    # <P, Q> and <Q, Q>; a root's reciprocal counts as one operation; and two products.
    return p * r * (2 * inner + sums + 3)


def compute_roofline(row: Row, rates: dict[str, float]) -> Row:
    """Compute the least times of the kernel and of the whole call, for both mixes of operations.

    Args:
        row: what `measure_speed` returned.
        rates: what `measure_rates` returned.

    Returns:
        For each part and mix the operations, the least seconds, and the measured over the least.
    """
    n, p, r, c, dim = (row[name] for name in ("N", "P", "R", "C", "D"))
    pairs = count_operations(n, p, r)
    cosines = 2 * dim * c * (p + r) + 4 * dim * (p + r + c)
    parts = {
        "kernel": (pairs, p * r + c * r + 2 * p * n, row["kernel seconds"]),
        "whole call": (pairs + cosines, dim * (p + r + c) + p * r, row["seconds"]),
    }
    roofline: Row = {}
    for part, (count, floats, seconds) in parts.items():
        for mix in ("one division in twelve", "multiply and add"):
            least = max(count / rates[mix], 4 * floats / rates["bytes"])
            entry = {"operations": count, "seconds": least, "ratio": seconds / least}
            roofline[f"{part}, {mix}"] = entry
    return roofline
