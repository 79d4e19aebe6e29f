"""Units on a real local cluster of two nodes with a CPU each."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rimjax.distributed.cluster import Workers
from rimjax.distributed.units import ATTEMPTS, run_units

pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')

LOCAL = Workers(address="auto")


def load() -> str:
    return "loaded"


def note(folder: Path, unit: int) -> None:
    with (folder / f"{unit}").open("a") as file:
        file.write(f"{os.getpid()}\n")


def wait_for_both(folder: Path) -> None:
    """Wait until both workers, which may start seconds apart, have begun a unit."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if len({line for path in folder.iterdir() for line in path.read_text().split()}) > 1:
            return
        time.sleep(0.05)


def count(folder: Path) -> Counter[int]:
    return Counter({int(path.name): len(path.read_text().split()) for path in folder.iterdir()})


def test_each_unit_is_done_once_by_workers_that_load_once(cluster: Any, tmp_path: Path) -> None:
    def work(state: str, unit: int) -> int:
        assert state == "loaded"
        note(tmp_path, unit)
        wait_for_both(tmp_path)
        return unit * unit

    outcomes = list(run_units(range(20), load, work, LOCAL))
    assert sorted((each.unit, each.result) for each in outcomes) == [(n, n * n) for n in range(20)]
    assert count(tmp_path) == Counter(dict.fromkeys(range(20), 1))
    assert len({each.worker for each in outcomes}) == 2


def test_a_unit_that_fails_is_named_and_the_others_are_done(cluster: Any) -> None:
    def work(state: str, unit: int) -> int:
        if unit == 3:
            raise ValueError("unit 3 can't be read")
        if unit == 4:
            b"\xff".decode()  # an error that can't be made from its text
        if unit == 5:
            raise KeyError("a fault of the program")
        return unit

    outcomes = {each.unit: each for each in run_units(range(7), load, work, LOCAL)}
    errors = {unit: outcomes.pop(unit).error for unit in (3, 4, 5)}
    assert str(errors[3]) == "unit 3 can't be read" and "can't decode" in str(errors[4])
    assert isinstance(errors[3], ValueError) and isinstance(errors[4], ValueError)
    assert isinstance(errors[5], ChildProcessError) and "KeyError" in str(errors[5])
    assert {unit: each.result for unit, each in outcomes.items()} == {n: n for n in (0, 1, 2, 6)}


def test_a_unit_that_kills_its_workers_is_given_up(cluster: Any, tmp_path: Path) -> None:
    def work(state: str, unit: int) -> int:
        note(tmp_path, unit)
        if unit == 1:
            os._exit(1)
        return unit

    outcomes = {each.unit: each for each in run_units(range(4), load, work, LOCAL)}
    assert "workers were lost over it" in str(outcomes.pop(1).error)
    assert {each.result for each in outcomes.values()} == {0, 2, 3}
    assert count(tmp_path) == {0: 1, 1: ATTEMPTS, 2: 1, 3: 1}


def test_a_lost_nodes_unit_is_done_elsewhere(cluster: Any, tmp_path: Path) -> None:
    def work(state: str, unit: int) -> int:
        note(tmp_path, unit)
        wait_for_both(tmp_path)
        time.sleep(0.2)
        return unit

    outcomes = []
    for each in run_units(range(16), load, work, LOCAL):
        outcomes.append(each)
        if len({one.worker for one in outcomes}) == 2 and cluster.second is not None:
            cluster.remove_node(cluster.second, allow_graceful=False)
            cluster.second = None
    assert cluster.second is None
    assert sorted(each.result for each in outcomes) == list(range(16))
    assert sum(count(tmp_path).values()) <= 17, "the lost worker's unit alone is done again"


def test_a_straggler_does_not_hold_up_the_end(cluster: Any, tmp_path: Path) -> None:
    def work(state: str, unit: int) -> int:
        note(tmp_path, unit)
        slow = unit == 5 and len((tmp_path / "5").read_text().split()) == 1
        time.sleep(60 if slow else 0.1)
        return unit

    start = time.monotonic()
    outcomes = list(run_units(range(8), load, work, LOCAL))
    assert sorted(each.result for each in outcomes) == list(range(8))
    assert time.monotonic() - start < 30
    assert count(tmp_path)[5] == 2


def test_models_that_cannot_be_loaded_end_the_run(cluster: Any) -> None:
    def fail() -> None:
        raise ValueError("weights are missing")

    with pytest.raises(ChildProcessError, match="weights are missing"):
        list(run_units(range(3), fail, lambda state, unit: unit, LOCAL))
