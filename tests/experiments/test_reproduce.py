"""`experiments/reproduce.py`: every step once, stopped and resumed, and what can't be run."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
STEPS = ("--only", "table2", "fig3")


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(FOLDER / "reproduce.py"), *map(str, words)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def reproduce(*words: object, status: int = 0) -> str:
    process = start(*words)
    printed, _ = process.communicate()
    assert process.returncode == status, printed
    return printed


def read_results(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}
    return files | {"README.md": (folder / "README.md").read_bytes()}


@pytest.fixture
def small(tmp_path: Path) -> tuple[object, ...]:
    return ("--limit", 2, "--images", 3, "--cache-dir", tmp_path / "cache", "--output")


def test_steps_run_once_and_the_page_shows_them(small: tuple[object, ...], tmp_path: Path) -> None:
    first = reproduce(*small, tmp_path / "out", *STEPS)
    assert "to do: table2, fig3" in first and "images to propose" in first
    page = (tmp_path / "out/README.md").read_text()
    for expected in ("## Table 2", "| row | paper | measured |", "![Figure 3](fig3.png)", "44.5"):
        assert expected in page
    assert "look at" in first
    before = read_results(tmp_path / "out")
    (tmp_path / "out/README.md").unlink()
    second = reproduce(*small, tmp_path / "out", *STEPS)
    assert "finished: table2, fig3" in second and "to do" not in second
    assert read_results(tmp_path / "out") == before
    (tmp_path / "out/fig3.csv").unlink()
    third = reproduce(*small, tmp_path / "out", *STEPS)
    assert "finished: table2\n" in third and "to do: fig3" in third
    assert read_results(tmp_path / "out") == before


def test_what_cannot_be_run_is_named(small: tuple[object, ...], tmp_path: Path) -> None:
    words = (*small, tmp_path / "out", "--preset", "paper", "--data", tmp_path / "none")
    printed = reproduce(*words, "--only", "table2")
    assert "skipped: table2" in printed and "no such folder" in printed
    assert "Skipped: " in (tmp_path / "out/README.md").read_text()
    line = reproduce(*small, tmp_path / "out", "--only", "table9", status=2)
    assert "--only must name steps of table2" in line


def test_other_weights_ask_for_the_steps_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    reproduce = importlib.import_module("reproduce")
    options = reproduce.Reproduce(preset="paper", weights_dir=tmp_path, output=tmp_path / "out")
    (tmp_path / "paper").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/table2.csv").write_text("row,paper,measured")
    step = reproduce.STEPS[0]
    finished = {step.name: reproduce.digest_step(step, options)}
    assert reproduce.is_finished(step, options, finished)
    (tmp_path / "paper/sam.safetensors").write_bytes(b"weights")
    assert not reproduce.is_finished(step, options, finished)


def test_the_plan_counts_and_times_what_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    plan = importlib.import_module("plan")
    options = plan.Reproduce(cache_dir=tmp_path, limit=5)
    experiment = options.open_experiment("fashion-scenes")
    models = experiment.load_models()
    store = plan.RegionStore.open(tmp_path, models)
    others = experiment.dataset.items[5:9]
    for item in others:  # of the same models, but not asked for
        store.load(item.image())
    unproposed, unencoded, seconds = plan.measure_images(store, models, experiment.items)
    assert (unproposed, unencoded) == (5, 5)
    assert seconds["propose"] > 0 and seconds["encode"] > 0
    assert plan.measure_images(store, models, experiment.items)[:2] == (3, 3)  # two were kept
    unproposed, unencoded, seconds = plan.measure_images(store, models, others)
    assert (unproposed, unencoded) == (0, 0) and seconds["encode"] > 0
    monkeypatch.setattr(plan, "SAMPLE", 2)
    store.load(experiment.items[4].image())
    assert plan.measure_images(store, models, experiment.items)[0] == 0  # first and last are stored


def test_the_parent_leaves_the_device_alone(tmp_path: Path) -> None:
    code = (
        "import pathlib, reproduce; from jax._src import xla_bridge\n"
        f"options = reproduce.Reproduce(output=pathlib.Path({str(tmp_path)!r}))\n"
        "assert not reproduce.find_missing(options)\n"
        "[reproduce.is_finished(step, options, {}) for step in options.steps]\n"
        "reproduce.digest_step(options.steps[0], options)\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True)


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_results(
    small: tuple[object, ...], tmp_path: Path, kills: int = 20
) -> None:
    begun = time.monotonic()
    reproduce(*small[:-2], tmp_path / "cache-whole", "--output", tmp_path / "whole", *STEPS)
    seconds, rng, done = time.monotonic() - begun, random.Random(0), 0
    while done < kills:
        process = start(*small, tmp_path / "out", *STEPS)
        try:
            process.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        assert read_results(tmp_path / "out") == read_results(tmp_path / "whole")
        for name in ("out", "cache"):  # begin anew
            shutil.rmtree(tmp_path / name)
    reproduce(*small, tmp_path / "out", *STEPS)
    assert read_results(tmp_path / "out") == read_results(tmp_path / "whole")
