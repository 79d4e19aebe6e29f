"""Do small units of work on Ray's actors, each of which loads its models once.

Ray schedules the actors, starts them where a device is free, and tells when one is lost. What is
left for us is which unit to give to whom: a worker that is ready gets the next one. A unit of a
lost worker is given to another, at most `ATTEMPTS` times. When no unit is waiting, an idle worker
does a unit again that takes much longer than others, and the first result counts: units must be
such that doing one twice changes nothing.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rimjax.distributed.cluster import Workers, connect, import_ray

ATTEMPTS = 3
"""Workers that a unit is given to; it is given up when all of them are lost."""

STRAGGLER = 4.0
"""A unit that takes this many times the median, and a second, is done by an idle worker too."""

GRACE = 2.0
"""Seconds that workers have at the end to finish what they write."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        unit: its index.
        result: what the work returned; None if it failed.
        error: why it failed; None if it didn't.
        worker: host and process that did it; "" if it was given up.
        seconds: that the work took.
        given: how many workers it was given to.
    """

    unit: int
    result: Any = None
    error: Exception | None = None
    worker: str = ""
    seconds: float = 0.0
    given: int = 1


class Worker:
    """What runs in an actor."""

    def __init__(self, load: Callable[[], Any], work: Callable[[Any, Any], Any]) -> None:
        self._state, self._work = load(), work

    def introduce(self) -> str:
        """Return host and process, once the models are loaded."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def run(self, unit: Any) -> tuple[Any, Exception | None, float]:
        """Do a unit: its result, or its error; and the seconds.

        What the unit is to blame for, as an image that can't be read, comes as a ValueError, and
        anything else as a ChildProcessError. Neither stops the other units.
        """
        start, result, failure = time.perf_counter(), None, None
        try:
            result = self._work(self._state, unit)
        except (ValueError, OSError) as error:  # made anew: not every error can be sent
            failure = ValueError(str(error))
        except Exception as error:
            failure = ChildProcessError(f"{type(error).__name__}: {error}")
        return result, failure, time.perf_counter() - start


def run_units(
    units: Sequence[Any],
    load: Callable[[], Any],
    work: Callable[[Any, Any], Any],
    workers: Workers,
) -> Iterator[Outcome]:
    """Do units on the cluster's workers; yield each unit's outcome once, as it comes.

    Args:
        units: what a worker is sent.
        load: called once in each worker: the models.
        work: of the models and a unit; doing a unit twice must change nothing.
        workers: the workers.

    Raises:
        ChildProcessError: a worker can't load its models, or every worker is lost over that.
    """
    if units:
        yield from _Run(units, load, work, workers).do()


def _find_cause(error: Exception) -> str:
    """Find what was raised in a worker: Ray puts a traceback before it."""
    return str(error).strip().splitlines()[-1]


class _Run:
    def __init__(self, units: Sequence[Any], load: Any, work: Any, workers: Workers) -> None:
        ray = import_ray()
        count = min(connect(workers), len(units))
        resources = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
        make = ray.remote(Worker).options(**resources, max_restarts=0)
        parts = ray.put(load), ray.put(work)  # sent once to a machine: work may hold a large bank
        self._ray, self._units, self._make = ray, units, lambda: make.remote(*parts)
        self._waiting = deque(range(len(units)))
        self._given, self._lost = [0] * len(units), [0] * len(units)
        self._done = set[int]()
        self._unstarted, self._most_unstarted = 0, ATTEMPTS * count  # since a worker was ready
        self._starting: dict[Any, Any] = {}  # reference -> actor
        self._running: dict[Any, tuple[int, Any, float]] = {}  # reference -> unit, actor, start
        self._idle: list[Any] = []
        self._names: dict[Any, str] = {}
        self._seconds: list[float] = []
        for _ in range(count):
            self._start()

    def do(self) -> Iterator[Outcome]:
        try:
            while len(self._done) < len(self._units):
                refs = [*self._starting, *self._running]
                for ref in self._ray.wait(refs, num_returns=1, timeout=1)[0]:
                    yield from self._welcome(ref) if ref in self._starting else self._finish(ref)
                while self._idle and (unit := self._choose()) is not None:
                    actor = self._idle.pop()
                    self._given[unit] += 1
                    ref = actor.run.remote(self._units[unit])
                    self._running[ref] = unit, actor, time.monotonic()
        finally:
            if self._running:
                self._ray.wait([*self._running], num_returns=len(self._running), timeout=GRACE)
            running = [actor for _, actor, _ in self._running.values()]
            for actor in [*self._idle, *self._starting.values(), *running]:
                self._ray.kill(actor)

    def _start(self) -> None:
        actor: Any = self._make()
        self._starting[actor.introduce.remote()] = actor

    def _welcome(self, ref: Any) -> Iterator[Outcome]:
        actor = self._starting.pop(ref)
        try:
            self._names[actor] = self._ray.get(ref)
            self._idle.append(actor)
            self._unstarted = 0
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            if getattr(error, "actor_init_failed", False):
                why = _find_cause(error)
                raise ChildProcessError(f"a worker couldn't load its models: {why}") from error
            self._unstarted += 1  # its process or its node is gone
            if self._unstarted < self._most_unstarted:
                self._start()
            elif not (self._idle or self._starting or self._running):
                raise ChildProcessError(
                    f"{self._unstarted} workers were lost while they loaded their models, for want "
                    "of memory perhaps; give fewer --ray-workers, or more --ray-cpus to each"
                ) from error
        yield from ()

    def _finish(self, ref: Any) -> Iterator[Outcome]:
        unit, actor, _ = self._running.pop(ref)
        try:
            result, error, seconds = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as failure:  # it couldn't be sent the unit
            why = _find_cause(failure)
            result, error, seconds = None, ChildProcessError(f"can't be sent: {why}"), 0.0
        except self._ray.exceptions.RayError:  # lost: its process, its node, or the result
            self._ray.kill(actor)  # a worker that is cut off may live, and keep its room
            self._start()
            self._lost[unit] += 1
            if unit in self._done or any(unit == other for other, *_ in self._running.values()):
                return
            if self._lost[unit] < ATTEMPTS:
                self._waiting.appendleft(unit)
                return
            self._done.add(unit)
            lost = ChildProcessError(
                f"{ATTEMPTS} workers were lost over it, for want of memory perhaps"
            )
            yield Outcome(unit, error=lost, given=self._given[unit])
            return
        self._idle.append(actor)
        if unit not in self._done:
            self._done.add(unit)
            self._seconds.append(seconds)
            worker, given = self._names[actor], self._given[unit]
            yield Outcome(unit, result, error, worker, seconds, given)

    def _choose(self) -> int | None:
        """Choose a unit for an idle worker: the next, or one that holds up the end."""
        if self._waiting:
            return self._waiting.popleft()
        if not self._seconds:
            return None
        late = time.monotonic() - max(1.0, STRAGGLER * statistics.median(self._seconds))
        running = [unit for unit, *_ in self._running.values()]
        for unit, _, start in self._running.values():
            is_late = start < late and self._given[unit] < ATTEMPTS
            if is_late and running.count(unit) == 1 and unit not in self._done:
                return unit
        return None
