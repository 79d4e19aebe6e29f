"""Wall-clock time of calls, and the peak of memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

Row = dict[str, Any]


def time_call(call: Callable[[], Any], repeats: int = 7, together: int = 1) -> tuple[float, float]:
    """Time a call: seconds of compilation and the median seconds of a call.

    Compilation is what the first call takes longer than the others. Short calls are repeated more
    often than `repeats`.

    Args:
        call: returns arrays.
        repeats: how often it is timed at least, if it takes less than a second.
        together: how many calls to start before waiting for the device. Several leave out how long
            the host takes to start a call and to wait for it.
    """
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    seconds: list[float] = []

    def is_enough() -> bool:
        total, count = sum(seconds), len(seconds)
        return bool(count) and (count >= repeats or total >= 10) and (total >= 0.3 or count >= 300)

    while not is_enough():
        if len(seconds) % 10 == 0:
            # Otherwise an unlucky start keeps two threads on one core, and all of many short calls
            # take twice as long.
            time.sleep(0.001)
        start = time.perf_counter()
        for _ in range(together - 1):
            call()
        jax.block_until_ready(call())
        seconds.append((time.perf_counter() - start) / together)
    median = statistics.median(seconds)
    return max(0.0, first - median), median


def measure_peak(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Measure by how many bytes resident memory rises at most during a call.

    Returns:
        The bytes, None where the system doesn't report them; and the call's result.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None, jax.block_until_ready(call())
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    before = read("VmRSS")
    result = jax.block_until_ready(call())
    return read("VmHWM") - before, result
