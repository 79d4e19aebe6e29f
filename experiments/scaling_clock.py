"""The seconds of a stage's units, and the cores that other jobs leave to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """The seconds of a stage: drawing all classes, or extracting all images' regions.

    Attributes:
        start: until the first unit's result, less a unit.
        unit: of a unit, from the first result to the last, over all workers.
        whole: of everything.
        busy: seconds of CPUs that the start took, over all processes.
        free: cores that other jobs left to this one, on average.
    """

    start: float
    unit: float
    whole: float
    busy: float
    free: float


def time_units(results: Iterable[Any], begun: float | None = None) -> Run:
    """Go through the results of a stage's units and time them.

    Args:
        results: of the units, as they come.
        begun: when the stage began; default: now.
    """
    called, before, all_before = time.perf_counter(), list_own(), count_busy()
    begun = called if begun is None else begun
    times, looks = [], []
    for _ in results:
        times.append(time.perf_counter())
        if not looks or times[-1] - looks[-1][0] > 0.5:  # a look takes some milliseconds
            own = sum(taken - before.get(pid, 0) for pid, taken in list_own().items())
            looks.append((times[-1], own, count_busy() - all_before - own))
    unit = (times[-1] - times[0]) / max(1, len(times) - 1)
    whole = time.perf_counter() - begun
    until, _, others = looks[-1]
    free = len(os.sched_getaffinity(0)) - others / (until - called)
    return Run(times[0] - begun - unit, unit, whole, looks[0][1] - unit, free)


def count_busy() -> float:
    """Return the seconds that all CPUs have worked, or were kept by a host."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def list_own() -> dict[int, float]:
    """List the seconds of CPUs of this process and of all that it started and that still run."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that has ended
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            taken = sum(map(int, fields[11:13]))
            seconds[int(path.parent.name)] = taken / os.sysconf("SC_CLK_TCK")
    own, waiting = set[int](), {os.getpid()}
    while waiting:
        own |= waiting
        waiting = {pid for pid, parent in parents.items() if parent in waiting}
    return {pid: seconds[pid] for pid in own if pid in seconds}


def measure_folder(folder: Path) -> tuple[int, int]:
    """Return the bytes that a folder takes on disk, as `du` counts them, and its files."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(each.st_blocks * 512 for each in files), len(files)
