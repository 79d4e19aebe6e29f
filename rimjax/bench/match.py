"""The matching kernels: exactness, speed beside their peers, compilation and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rimjax import match as kernel
from rimjax.bench.peers import PEERS, enumerate_with_numpy, recurse_with_numpy
from rimjax.bench.timing import Row, measure_peak, time_call
from rimjax.match.classify import MatchOptions, Method, Scalars, classify_regions, compare_regions
from rimjax.match.readings import READINGS, compare_rankings
from rimjax.match.tiling import Tiling
from rimjax.types import ReferenceBank

MARGIN = 1e-5  # between the two best scores, in float64: above it labels must agree
FLOATS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def make_features(seed: int, *sizes: int, dim: int) -> list[np.ndarray]:
    """Make features of a single cluster, as a ViT's are: cosines from about 0.2 to 0.5."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(dim)
    return [(0.7 * centre + rng.standard_normal((size, dim))).astype(np.float32) for size in sizes]


def start_from_cosines(
    regions: np.ndarray, prototypes: np.ndarray, classes: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute what all implementations start from.

    Returns:
        The regions' cosines to their agents, the agents, and all classes' cosines to prototypes.
    """
    units = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (regions, prototypes, classes)
    ]
    own = units[0] @ units[2].T
    agents = np.argsort(-own, axis=1, kind="stable")[:, :n].astype(np.int32)
    return np.take_along_axis(own, agents, axis=1), agents, units[2] @ units[1].T


def measure_accuracy(dim: int = 64) -> list[Row]:
    """Compare labels with the float64 oracle's where scores are close.

    Half of the classes are copies of another class, 1e-9 to 1e-1 away from it.

    Raises:
        ValueError: labels differ where the oracle's margin on the same inputs is above 1e-5.
    """
    classes, regions = make_features(0, 20, 400, dim=dim)
    away = 10 ** np.random.default_rng(1).uniform(-9, -1, (10, 1))
    copies = classes[:10] + away * classes[10:]
    classes = np.concatenate([classes[:10], copies]).astype(np.float64)
    rows = []
    for name, dtype in FLOATS.items():
        rounded = [
            np.asarray(jnp.asarray(array, dtype), np.float64) for array in (regions, classes)
        ]
        references = jnp.asarray(classes, dtype)
        bank = ReferenceBank(references, jnp.arange(20), references, ())
        labels = np.asarray(kernel.match(jnp.asarray(regions, dtype), bank).labels)
        row: Row = {"dtype": name, "regions": len(regions)}
        inputs = {"same inputs": rounded, "float64 inputs": [regions.astype(np.float64), classes]}
        for oracle, (own, exact) in inputs.items():
            scores = enumerate_with_numpy(*start_from_cosines(own, exact, exact, 4))
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
                f"rimjax.match must label {name} inputs as the oracle does, got {row}; "
                "mend the kernel before measuring its speed"
            )
        rows.append(row)
    return rows


def measure_speed(n: int, p: int, r: int, c: int, dim: int, peers: bool) -> Row:
    """Time the whole call, from features; and the kernel and its peers, from cosines.

    On an accelerator the kernel's calls follow each other without a wait, as they would within a
    larger program: waiting for the device takes longer than a small kernel.

    Args:
        n: agents.
        p: regions.
        r: prototypes.
        c: classes.
        dim: feature size.
        peers: whether to time other implementations too.
    """
    regions, prototypes, classes = make_features(2, p, r, c, dim=dim)
    arrays = map(jnp.asarray, (regions, prototypes, classes))
    whole = partial(kernel.relation_aware_similarity, *arrays, num_agents=n)
    compiled, seconds = time_call(whole)
    row: Row = {"N": n, "P": p, "R": r, "C": c, "D": dim}
    row |= {"compile s": compiled, "seconds": seconds, "ns per pair": seconds / p / r * 1e9}

    start = start_from_cosines(regions, prototypes, classes, n)
    alone = prepare_kernel(*start)
    expected = np.asarray(alone())
    # Where the last agent is as near as the next class, either may be taken.
    nearest = start_from_cosines(regions, prototypes, classes, min(n + 1, c))[0]
    clear = nearest[:, n - 1] - nearest[:, -1] > 1e-6 if c > n else np.ones(p, bool)
    np.testing.assert_allclose(np.asarray(whole())[clear], expected[clear], atol=1e-5)
    few = slice(0, 3)
    exact = recurse_with_numpy(start[0][few], start[1][few], start[2][:, few])
    np.testing.assert_allclose(expected[few, few], exact, atol=1e-5)
    together = 1 if jax.default_backend() == "cpu" else 20
    row["kernel seconds"] = time_call(alone, together=together)[1]
    combined = partial(whole, similarity="combined")
    cosines = np.asarray(whole(similarity="cosine"))
    product = cosines * expected
    np.testing.assert_allclose(np.asarray(combined())[clear], product[clear], atol=1e-5)
    row["combined seconds"] = time_call(combined)[1]
    row["combined over relation"] = row["combined seconds"] / time_call(whole)[1]
    product_alone = prepare_combined(*start, cosines)
    np.testing.assert_allclose(np.asarray(product_alone()), product, atol=1e-5)
    row["combined kernel seconds"] = time_call(product_alone, together=together)[1]
    again = time_call(alone, together=together)[1]
    row["combined kernel over relation"] = row["combined kernel seconds"] / again
    if peers:
        row["peers"] = _measure_peers(start, expected, row["kernel seconds"])
    return row


def _measure_peers(
    start: tuple[np.ndarray, np.ndarray, np.ndarray], expected: np.ndarray, kernel_seconds: float
) -> dict[str, Row]:
    """Time every peer; a peer that is missing or fails on this machine is reported as such."""
    makers: dict[str, Callable[..., Callable[[], Any]]] = {
        "our enumeration": partial(prepare_kernel, method="enumerate"),
        **PEERS,
    }
    rows: dict[str, Row] = {}
    for name, make in makers.items():
        try:
            call = make(*start)
            answer = np.asarray(call())
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            rows[name] = {"missing": f"{type(error).__name__}: {reason}"[:140]}
            continue
        np.testing.assert_allclose(answer, expected, atol=1e-5, err_msg=name)
        compiled, seconds = time_call(call, 3)
        ratio = seconds / kernel_seconds
        rows[name] = {"compile s": compiled, "seconds": seconds, "times the kernel": ratio}
    return rows


def prepare_kernel(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray, method: Method = "lattice"
) -> Callable[[], Any]:
    """Return a call without arguments that computes the similarities from cosines."""
    arrays = [jnp.asarray(array) for array in (own, agents, table)]
    compiled = jax.jit(partial(compare_rankings, temperature=0.1, method=method))
    return lambda: compiled(*arrays)


def prepare_combined(
    own: np.ndarray, agents: np.ndarray, table: np.ndarray, cosines: np.ndarray
) -> Callable[[], Any]:
    """Return a call like `prepare_kernel`'s for the reading "combined".

    Args:
        own: see `compare_rankings`.
        agents: see `compare_rankings`.
        table: see `compare_rankings`.
        cosines: of the regions to the prototypes, which relations alone don't take.
    """

    def compare(own: Any, agents: Any, table: Any, cosines: Any) -> jax.Array:
        rankings = partial(compare_rankings, own, agents, table)
        return READINGS["combined"].combine(lambda: cosines, rankings, jnp.float32(0))

    arrays = [jnp.asarray(array) for array in (own, agents, table, cosines)]
    compiled = jax.jit(compare)
    return lambda: compiled(*arrays)


def measure_compilations(agents: tuple[int, ...], dim: int) -> Iterator[Row]:
    """Time the compilation of the whole call for each number of agents."""
    for n in agents:
        jax.clear_caches()
        arrays = [jnp.asarray(array) for array in make_features(3, 16, 64, 24, dim=dim)]
        call = partial(kernel.relation_aware_similarity, *arrays, num_agents=n)
        compiled, seconds = time_call(call, 3)
        yield {"N": n, "P": 16, "R": 64, "compile s": compiled, "seconds": seconds}


def measure_memory(p: int, classes: int, per_class: int, dim: int) -> list[Row]:
    """Measure the peak of memory above the arguments and the result, once compiled.

    Of all similarities, and of the best five classes.
    """
    rng = np.random.default_rng(4)
    rows, prototypes, agents = (
        jnp.asarray(rng.standard_normal((size, dim), np.float32))
        for size in (p, classes * per_class, classes)
    )
    owners = jnp.asarray(np.repeat(np.arange(classes), per_class), jnp.int32)
    bank = ReferenceBank(prototypes, owners, agents, ())
    valid, best, tiling = np.ones(p, bool), MatchOptions(top_k=5), Tiling()
    calls = {
        "relation_aware_similarity": (
            lambda: kernel.relation_aware_similarity(rows, prototypes, agents),
            lambda: compare_regions.lower(
                rows, prototypes, agents, Scalars(), MatchOptions(), tiling
            ),
        ),
        "match, top_k=5": (
            lambda: kernel.match(rows, bank, top_k=5),
            lambda: classify_regions.lower(rows, valid, bank, None, Scalars(), best, tiling),
        ),
    }
    report = []
    for name, (call, lower) in calls.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        peak, result = measure_peak(call)
        seconds = time.perf_counter() - start
        row: Row = {"call": name, "P": p, "R": classes * per_class, "C": classes, "D": dim}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(result))
        temporary = lower().compile().memory_analysis().temp_size_in_bytes
        row |= {"seconds": seconds, "result MiB": size / 2**20}
        row["temporary MiB (compiled)"] = temporary / 2**20
        if peak is not None:
            row["peak above both MiB (resident)"] = (peak - size) / 2**20
        report.append(row)
    return report


def write_trace(folder: Path, n: int, p: int, r: int, c: int, dim: int) -> None:
    """Write a trace of five calls, compiled before, for Perfetto (ui.perfetto.dev) or xprof."""
    arrays = map(jnp.asarray, make_features(2, p, r, c, dim=dim))
    call = partial(kernel.relation_aware_similarity, *arrays, num_agents=n)
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for step in range(5):
            with jax.profiler.StepTraceAnnotation("match", step_num=step):
                jax.block_until_ready(call())
