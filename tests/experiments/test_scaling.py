"""`experiments/scaling.py`: its clock, its model, its plan, and the parts that take no minutes."""

from __future__ import annotations

import importlib
import multiprocessing
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("scaling")


def work(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_stages_start_and_units_are_told_apart(scaling: Any) -> None:
    def units() -> Iterator[int]:
        time.sleep(0.4)
        for index in range(5):
            time.sleep(0.1)
            yield index

    run = scaling.time_units(units())
    assert run.start == pytest.approx(0.4, abs=0.1)
    assert run.unit == pytest.approx(0.1, abs=0.05)
    assert run.whole == pytest.approx(run.start + 5 * run.unit, abs=0.1)
    assert run.busy < 0.2, "sleeping takes no CPU"


def test_the_work_of_child_processes_counts_as_own(scaling: Any) -> None:
    clock = importlib.import_module("scaling_clock")
    before = clock.list_own()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=work, args=(0.5,))
    child.start()
    most = 0.0
    while child.is_alive():
        own = clock.list_own()
        most = max(most, own.get(child.pid, 0.0))
        time.sleep(0.02)
    assert child.pid not in before
    assert most > 0.3


@pytest.mark.parametrize(
    ("units", "workers", "free", "seconds"),
    [
        (10, 1, 2.0, 5 + 10 * 2),  # as fitted
        (10, 2, 2.0, 6 + 5 * 2),  # two starts of 6 s of CPUs on two cores
        (11, 2, 2.0, 6 + 6 * 2),  # an odd unit takes a round of its own
        (10, 4, 2.0, 12 + 5 * 2),  # more workers than cores
        (10, 2, 1.0, 12 + 10 * 2),  # another job has a core
        (1, 4, 2.0, 5 + 2),  # no more workers than units start
    ],
)
def test_the_model(scaling: Any, units: int, workers: int, free: float, seconds: float) -> None:
    one = scaling.Measured()
    one.stages["image"].append(scaling.Run(start=5.0, unit=2.0, whole=25.0, busy=6.0, free=2.0))
    assert scaling.predict(one, "image", units, workers, free) == pytest.approx(seconds)


def test_the_plan_is_that_of_the_page(scaling: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.print_plan()
    printed = capsys.readouterr().out
    page = (FOLDER.parent / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| (?:8|64|512) \|.*$", printed, re.MULTILINE)
    assert len(rows) == 6
    assert [row for row in rows if row not in page] == []
    limits = re.findall(r"\| ([\d,]+ \| [\d,]+ GPUs \|)$", printed, re.MULTILINE)
    assert len(limits) == 5
    assert [limit for limit in limits if limit not in page] == []


def test_the_store_is_measured(scaling: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.scaling_parts.measure_store(parts=(2, 4), folders=10)
    printed = capsys.readouterr().out
    assert "| 512 |" in printed and "| 1,024 |" in printed
    assert "among 10 classes" in printed
