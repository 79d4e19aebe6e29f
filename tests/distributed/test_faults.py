"""Nodes and drivers are killed at random moments: the results are those of an undisturbed run."""

from __future__ import annotations

import json
import operator
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli import run
from distributed_runs import digest, read_cells, read_lines

from rimjax.distributed.cluster import FullClusterWarning, Workers, connect, import_ray
from rimjax.distributed.units import Worker, run_units

pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')

CLASSES = ("--classes", "sneaker,bag,coat,dress", "--images", "2")
COUNT = 24
IMAGES = ("--only-bank-classes", "--limit", str(COUNT))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The digest of the bank, and each image's pixel counts, of a single process."""
    cache = tmp_path_factory.mktemp("alone")
    run("bank", "build", *CLASSES, "--cache-dir", cache)
    (bank,) = (cache / "banks").glob("*.json")
    words = ("--bank", bank, *IMAGES, "--cache-dir", cache, "--output", cache / "run")
    run("evaluate", *words)
    return digest(str(bank)), read_cells(cache / "run")


def kill_when(happened: Callable[[], bool], kill: Callable[[], None]) -> threading.Thread:
    """Kill something once, a random moment after something happened."""

    def wait() -> None:
        while not happened():
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))  # the run isn't over by then, on a fast machine either
        kill()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


class Unsendable:
    """What a worker fails to unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.truediv, (1, 0)


def test_workers_that_die_while_they_load_end_the_run(cluster: Any) -> None:
    workers = Workers(address="auto", count=1)
    with pytest.raises(ChildProcessError, match="lost while they loaded their models"):
        list(run_units([1], partial(os._exit, 1), pow, workers))


def test_what_a_worker_cannot_load_is_said_in_one_line(cluster: Any) -> None:
    workers = Workers(address="auto", count=1)
    with pytest.raises(ChildProcessError) as failure:
        list(run_units([1], partial(operator.truediv, 1, 0), pow, workers))
    assert "couldn't load its models: ZeroDivisionError: division by zero" in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1


def test_a_unit_that_no_worker_can_receive_does_not_stop_the_rest(cluster: Any) -> None:
    workers = Workers(address="auto", count=1)
    outcomes = list(run_units([Unsendable(), ()], int, operator.eq, workers))
    assert [outcome.unit for outcome in outcomes] == [0, 1]
    assert "division by zero" in str(outcomes[0].error)


def test_a_full_cluster_is_said_to_be_full(cluster: Any) -> None:
    ray = import_ray()
    held = [ray.remote(Worker).options(num_cpus=1).remote(int, format) for _ in range(2)]
    ray.get([actor.introduce.remote() for actor in held])
    try:
        with pytest.warns(FullClusterWarning, match="full for now"):
            assert connect(Workers(address="auto")) == 2
    finally:
        for actor in held:
            ray.kill(actor)


def count_lines(path: Path) -> int:
    return len(read_lines(path)) if path.exists() else 0


def test_a_node_killed_twice_loses_nothing(
    cluster: Any,
    tmp_path: Path,
    expected: tuple[str, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def kill() -> None:
        cluster.remove_node(cluster.second, allow_graceful=False)

    moments = random.randint(0, 2), random.randint(0, COUNT - 4)
    print(f"killed after {moments} units")
    cache, evaluation = tmp_path / "cache", tmp_path / "run"
    drawn, done = cache / "workers.jsonl", evaluation / "workers.jsonl"
    first = kill_when(lambda: count_lines(drawn) >= moments[0] and drawn.parent.exists(), kill)
    words = ("--cache-dir", cache, "--ray", "auto")
    bank = run("bank", "build", *CLASSES, *words, capsys=capsys).split()[-1]
    first.join()
    cluster.second = cluster.add_node(num_cpus=1)  # not by the thread, whose end would end it
    second = kill_when(lambda: count_lines(done) >= moments[1] and done.parent.exists(), kill)
    run("evaluate", "--bank", bank, *IMAGES, *words, "--output", evaluation, capsys=capsys)
    second.join()
    cluster.second = None

    assert (digest(bank), read_cells(evaluation)) == expected
    for path, unit, units in ((drawn, "class", 4), (done, "image", COUNT)):
        entries = [json.loads(line) for line in read_lines(path)]
        assert {entry["error"] for entry in entries} == {None}
        assert set(Counter(entry[unit] for entry in entries).values()) == {1}
        assert len(entries) == units
        # The lost worker's unit is given out again; and a straggler perhaps, at most once each.
        assert max(entry["given_to"] for entry in entries) <= 3
        assert sum(entry["given_to"] for entry in entries) <= units + 2


def test_a_killed_driver_goes_on(
    cluster: Any,
    tmp_path: Path,
    expected: tuple[str, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--cache-dir", str(tmp_path / "cache"), "--ray")
    bank = run("bank", "build", *CLASSES, *words, "auto", capsys=capsys).split()[-1]
    evaluate = ["evaluate", "--bank", bank, *IMAGES, "--output", str(tmp_path / "run"), *words]
    command = [sys.executable, "-m", "rimjax", *evaluate, cluster.address]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    images = tmp_path / "run/images.jsonl"
    kill_when(lambda: count_lines(images) >= 2, lambda: os.killpg(driver.pid, signal.SIGKILL))
    assert driver.wait() == -signal.SIGKILL
    before = count_lines(tmp_path / "run/workers.jsonl")
    assert before < COUNT, "the driver was killed in time"

    run(*evaluate, "auto", capsys=capsys)
    assert (digest(bank), read_cells(tmp_path / "run")) == expected
    entries = [json.loads(line) for line in read_lines(tmp_path / "run/workers.jsonl")]
    assert Counter(entry["image"] for entry in entries).most_common(2)[1][1] == 1
    assert len(entries) <= COUNT + 1, "one image at most whose result the dead driver hadn't kept"
