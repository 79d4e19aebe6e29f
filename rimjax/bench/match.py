"""What `rimjax bench match` measures: the kernel and its peers, the roofline, memory, and first of all whether the answers are right."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rimjax import match as kernel
from rimjax.bench_peers import PEERS, numpy_enumeration, numpy_recursion
from rimjax.match import blocks
from rimjax.match.arguments import Method, Settings
from rimjax.types import ReferenceBank

MARGIN = 1e-5  # between the two best scores, in float64: above it labels must agree
FLOATS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
Row = dict[str, Any]


def features(seed: int, *sizes: int, dim: int) -> list[np.ndarray]:
    """Features of one cluster, as a ViT's are: cosines from about 0.2 to 0.5."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(dim)
    return [(0.7 * centre + rng.standard_normal((size, dim))).astype(np.float32) for size in sizes]


def cosines(
    regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The regions' to their agents, the agents, and the classes' to the prototypes: where all implementations start from."""
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (regions, prototypes, classes)
    ]
    own = unit[0] @ unit[2].T
    agents = np.argsort(-own, axis=1, kind="stable")[:, :n].astype(np.int32)
    return np.take_along_axis(own, agents, axis=1), agents, unit[2] @ unit[1].T


def timed(call: Callable[[], Any], repeats: int = 7) -> tuple[float, float]:
    """Seconds that the first call takes longer than the others, which is compilation, and the median of the others: of more where short."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    seconds = []
    while (
        not seconds
        or (len(seconds) < repeats and sum(seconds) < 10)
        or (sum(seconds) < 0.3 and len(seconds) < 300)
    ):
        if len(seconds) % 10 == 0:
            time.sleep(
                0.001
            )  # or an unlucky start keeps two threads on one core, and all of many short calls take twice as long
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return max(0.0, first - median), median


# ---- right


def accuracy(dim: int = 64) -> list[Row]:
    """Labels against the float64 oracle on scores made close: half of the classes are copies of another one, 1e-9 to 1e-1 away from it."""
    classes, regions = features(0, 20, 400, dim=dim)
    away = 10 ** np.random.default_rng(1).uniform(-9, -1, (10, 1))
    classes = np.concatenate([classes[:10], classes[:10] + away * classes[10:]]).astype(np.float64)
    rows = []
    for name, dtype in FLOATS.items():
        rounded = [
            np.asarray(jnp.asarray(array, dtype), np.float64) for array in (regions, classes)
        ]
        bank = ReferenceBank(
            jnp.asarray(classes, dtype), jnp.arange(20), jnp.asarray(classes, dtype), ()
        )
        labels = np.asarray(kernel.match(jnp.asarray(regions, dtype), bank).labels)
        row: Row = {"dtype": name, "regions": len(regions)}
        for oracle, (own, references) in {
            "same inputs": rounded,
            "float64 inputs": (regions.astype(np.float64), classes),
        }.items():
            scores = numpy_enumeration(*cosines(own, references, references, 4))
            ordered = np.sort(scores, axis=1)
            margins, wrong = ordered[:, -1] - ordered[:, -2], labels != scores.argmax(axis=1)
            row[oracle] = {
                "disagree": int(wrong.sum()),
                "disagree above 1e-5": int((wrong & (margins > MARGIN)).sum()),
                "regions above 1e-5": int((margins > MARGIN).sum()),
                "largest margin that disagrees": float(margins[wrong].max(initial=0)),
            }
        if row["same inputs"]["disagree above 1e-5"]:
            raise ValueError(
                f"rimjax.match: labels of {name} inputs are wrong, so no time means anything: {row}"
            )
        rows.append(row)
    return rows


# ---- fast


def speed(n: int, p: int, r: int, c: int, dim: int, peers: bool) -> Row:
    """The whole call, from features, and the kernel alone, from cosines; and what else computes the same from cosines."""
    regions, prototypes, classes = features(2, p, r, c, dim=dim)
    whole = partial(
        kernel.relation_aware_similarity,
        *map(jnp.asarray, (regions, prototypes, classes)),
        num_agents=n,
    )
    compiled, seconds = timed(whole)
    row: Row = {
        "N": n,
        "P": p,
        "R": r,
        "C": c,
        "D": dim,
        "compile s": compiled,
        "seconds": seconds,
        "ns per pair": seconds / p / r * 1e9,
    }
    start = cosines(regions, prototypes, classes, n)
    alone = _ours(*start)
    expected = np.asarray(alone())
    nearest = cosines(regions, prototypes, classes, min(n + 1, c))[
        0
    ]  # where the last agent is as near as the next, either may be taken
    clear = nearest[:, n - 1] - nearest[:, -1] > 1e-6 if c > n else np.ones(p, bool)
    np.testing.assert_allclose(np.asarray(whole())[clear], expected[clear], atol=1e-5)
    few = slice(0, 3)
    np.testing.assert_allclose(
        expected[few, few],
        numpy_recursion(start[0][few], start[1][few], start[2][:, few]),
        atol=1e-5,
    )
    row["kernel seconds"] = timed(alone)[1]
    if not peers:
        return row
    row["peers"] = {}
    makers: dict[str, Callable[..., Callable[[], Any]]] = {
        "our enumeration": partial(_ours, method="enumerate"),
        **PEERS,
    }
    for name, make in makers.items():
        try:
            call = make(*start)
            answer = np.asarray(call())
        except (
            Exception
        ) as error:  # a peer that is missing, or doesn't work here, is said so in its place
            row["peers"][name] = {
                "missing": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
                    :140
                ]
            }
        else:
            np.testing.assert_allclose(answer, expected, atol=1e-5, err_msg=name)
            row["peers"][name] = dict(zip(("compile s", "seconds"), timed(call, 3), strict=True))
            row["peers"][name]["times the kernel"] = (
                row["peers"][name]["seconds"] / row["kernel seconds"]
            )
    return row


def _ours(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray, method: Method = "lattice"
) -> Callable[[], Any]:
    settings = Settings(own.shape[1], "cosine", method, "clip", "top")
    arrays = [jnp.asarray(array) for array in (own, agents, table)]
    compiled = jax.jit(partial(blocks.relations, temperature=0.1, settings=settings))
    return lambda: compiled(*arrays)


def compilations(agents: tuple[int, ...], dim: int) -> Iterator[Row]:
    for n in agents:
        jax.clear_caches()
        arrays = [jnp.asarray(array) for array in features(3, 16, 64, 24, dim=dim)]
        compiled, seconds = timed(
            partial(kernel.relation_aware_similarity, *arrays, num_agents=n), 3
        )
        yield {"N": n, "P": 16, "R": 64, "compile s": compiled, "seconds": seconds}


# ---- how fast the machine could be


def rates() -> dict[str, float]:
    """Operations and bytes a second: element-wise float32 arithmetic in cache, and a copy that no cache holds."""

    def chains(x: jax.Array, divide: bool) -> jax.Array:
        ys = [
            x * (0.1 * j + 0.5) for j in range(8)
        ]  # eight chains, so that none waits for its own last result
        for i in range(15):
            ys = [y * x + 0.25 for y in ys]
            if divide and i % 5 == 4:
                ys = [1 / y for y in ys]
        return sum(ys[1:], ys[0]) * 0.01 + 0.3

    found = {}
    for name, divide in {"multiply and add": False, "one division in twelve": True}.items():
        count = 8 * (1 + 2 * 15 + (3 if divide else 0)) + 7 + 2
        best = math.inf
        for size in (2**15, 2**16, 2**17):
            loop = jax.jit(
                lambda x, divide=divide: lax.fori_loop(0, 100, lambda _, y: chains(y, divide), x)
            )
            best = min(
                best, timed(partial(loop, jnp.linspace(0.2, 0.4, size)))[1] / (100 * count * size)
            )
        found[name] = 1 / best
    large = jnp.ones(2**26)
    sweeps = jax.jit(
        lambda x: lax.fori_loop(0, 10, lambda _, y: y * 1.0001, x)
    )  # in place: a fresh array would measure page faults
    found["bytes"] = 10 * 2 * large.nbytes / timed(partial(sweeps, large), 3)[1]
    return found


def operations(n: int, p: int, r: int) -> float:
    """Additions, multiplications, divisions and roots of the pairs, by docs/match.md's formula."""
    subsets = [(math.comb(n, k), k) for k in range(2, n + 1)]
    inner = n + sum(
        count * ((k if k > 2 else 0) + (k - 1) + 2) for count, k in subsets
    )  # products s_i r_i; a single agent's value is 1
    sums = 2 * sum(count for count, _ in subsets)  # each by one addition, and its reciprocal
    return (
        p * r * (2 * inner + sums + 3)
    )  # <P, Q> and <Q, Q>; a root's reciprocal counts as one, and two products


def roofline(row: Row, rate: dict[str, float]) -> Row:
    """The least time of the kernel and of the whole call, which has the cosines' operations too, and the ratio to them, for both mixes."""
    n, p, r, c, dim = (row[name] for name in ("N", "P", "R", "C", "D"))
    pairs = operations(n, p, r)
    cosines = 2 * dim * c * (p + r) + 4 * dim * (p + r + c)
    parts = {
        "kernel": (pairs, p * r + c * r + 2 * p * n, row["kernel seconds"]),
        "whole call": (pairs + cosines, dim * (p + r + c) + p * r, row["seconds"]),
    }
    found: Row = {}
    for part, (count, floats, seconds) in parts.items():
        for mix in ("one division in twelve", "multiply and add"):
            least = max(count / rate[mix], 4 * floats / rate["bytes"])
            found[f"{part}, {mix}"] = {
                "operations": count,
                "seconds": least,
                "ratio": seconds / least,
            }
    return found


# ---- small


def memory(p: int, classes: int, per_class: int, dim: int) -> list[Row]:
    """Peak of memory above the arguments and the result, all similarities and the best five classes, once compiled."""
    rng = np.random.default_rng(4)
    rows, prototypes, agents = (
        jnp.asarray(rng.standard_normal((size, dim), np.float32))
        for size in (p, classes * per_class, classes)
    )
    owners = jnp.asarray(np.repeat(np.arange(classes), per_class), jnp.int32)
    bank = ReferenceBank(prototypes, owners, agents, ())
    settings = Settings(4, "cosine", "lattice", "clip", "top")
    calls = {
        "relation_aware_similarity": (
            lambda: kernel.relation_aware_similarity(rows, prototypes, agents),
            lambda: blocks.relation_matrix.lower(rows, prototypes, agents, 0.1, None, settings),
        ),
        "match, top_k=5": (
            lambda: kernel.match(rows, bank, top_k=5),
            lambda: blocks.match_regions.lower(
                rows,
                np.ones(p, bool),
                bank,
                0.1,
                None,
                Settings(4, "cosine", "lattice", "clip", "top", top_k=5),
            ),
        ),
    }
    report = []
    for name, (call, lower) in calls.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        peak, result = _peak(call)
        row: Row = {
            "call": name,
            "P": p,
            "R": classes * per_class,
            "C": classes,
            "D": dim,
            "seconds": time.perf_counter() - start,
        }
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(result))
        row |= {
            "result MiB": size / 2**20,
            "temporary MiB (compiled)": lower().compile().memory_analysis().temp_size_in_bytes
            / 2**20,
        }
        if peak is not None:
            row["peak above both MiB (resident)"] = (peak - size) / 2**20
        report.append(row)
    return report


def _peak(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Bytes by which resident memory rose at most while the call ran; None where the system doesn't say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None, jax.block_until_ready(call())
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")
    read = lambda key: (
        int(
            next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[
                1
            ]
        )
        * 1024
    )  # noqa: E731
    before = read("VmRSS")
    result = jax.block_until_ready(call())
    return read("VmHWM") - before, result


def trace(folder: Path, n: int, p: int, r: int, c: int, dim: int) -> None:
    """Five calls, compiled before, as a trace that Perfetto (ui.perfetto.dev) or xprof opens."""
    call = partial(
        kernel.relation_aware_similarity,
        *map(jnp.asarray, features(2, p, r, c, dim=dim)),
        num_agents=n,
    )
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for step in range(5):
            with jax.profiler.StepTraceAnnotation("match", step_num=step):
                jax.block_until_ready(call())
