"""`experiments/reproduce.py`: every step once, stopped and resumed, and what can't be run."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        # A shell's background jobs, such as tests run by nohup, ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def reproduce(*words: object, status: int = 0) -> str:
    process = start(*words)
    printed, _ = process.communicate()
    assert process.returncode == status, printed
    return printed


def read_results(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}
    page = (folder / "README.md").read_bytes()
    return files | {"README.md": page[page.index(b"\n## ") :]}  # its head names the command


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def small(tmp_path: Path) -> tuple[object, ...]:
    return ("--limit", 2, "--images", 3, "--cache-dir", tmp_path / "cache", "--output")


def test_steps_run_once_and_the_page_shows_them(small: tuple[object, ...], tmp_path: Path) -> None:
    first = reproduce(*small, tmp_path / "out", *STEPS)
    assert "to do: table2, fig3" in first and "images to propose" in first
    page = (tmp_path / "out/README.md").read_text()
    for expected in ("## Table 2", "| row | paper | measured |", "![Figure 3](fig3.png)", "44.5"):
        assert expected in page
    for expected in (
        "| preset | mini |",
        "| images of each data set | 2 |",
        "| device | cpu |",
    ):
        assert expected in page
    assert "look at" in first
    before = read_results(tmp_path / "out")
    (tmp_path / "out/README.md").unlink()
    second = reproduce(*small, tmp_path / "out", *STEPS)
    assert "finished: table2, fig3" in second and "to do" not in second
    assert read_results(tmp_path / "out") == before
    (tmp_path / "out/fig3.csv").unlink()
    third = reproduce(*small, tmp_path / "out", "--only", "fig3")
    assert "finished" not in third and "to do: fig3" in third
    assert read_results(tmp_path / "out") == before  # the page still has the others


def test_workers_fill_the_cache_first(small: tuple[object, ...], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')
    words = (*small, tmp_path / "out", "--only", "table5", "--ray", "local", "--ray-workers", "1")
    printed = reproduce(*words)
    lines = (tmp_path / "cache/workers.jsonl").read_text().splitlines()
    assert {json.loads(line)["work"] for line in lines if line} == {"bank", "regions"}
    place = 0
    for expected in ("bank: who did what", "regions: who did what", "table5: "):
        place = printed.index(expected, place)
    assert (tmp_path / "out/table5.csv").exists()


def test_what_cannot_be_run_is_refused(small: tuple[object, ...], tmp_path: Path) -> None:
    words = (*small, tmp_path / "out", "--preset", "paper", "--data", tmp_path / "none")
    printed = reproduce(*words, "--only", "table2", "table3", status=2)
    assert printed.startswith("reproduce.py: nothing can be run: ") and printed.count("\n") == 1
    assert "no such folder" in printed and not (tmp_path / "out").exists()
    line = reproduce(*small, tmp_path / "out", "--only", "table9", status=2)
    assert "--only must name steps of table2" in line


def test_bad_options_are_refused_before_planning(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    scripts = script("scripts")
    scripts.Reproduce(limit=1, images=1, output=tmp_path).check()
    (tmp_path / "file").write_text("")
    for options, line in (
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"images": -1}, "images must be at least 1, got -1"),
        ({"output": tmp_path / "file/out"}, "isn't a writable directory"),
    ):
        with pytest.raises(ValueError, match=line):
            script("reproduce").reproduce(scripts.Reproduce(**options))


def test_changed_weights_and_files_ask_for_the_step_again(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    reproduce, step = script("reproduce"), script("scripts").STEPS[0]
    options = reproduce.Reproduce(preset="paper", weights_dir=tmp_path, output=tmp_path / "out")
    (tmp_path / "paper").mkdir()
    (tmp_path / "out").mkdir()
    table, picture = tmp_path / "out/table2.csv", tmp_path / "out/table2-chart.png"
    table.write_text("row,paper,measured")
    picture.write_bytes(b"picture")

    def record() -> dict[str, Any]:
        files = reproduce.hash_files(options.folder, step.name)
        return {step.name: {"digest": reproduce.digest_step(step, options), "files": files}}

    finished = record()
    assert set(finished["table2"]["files"]) == {"table2.csv", "table2-chart.png"}
    assert reproduce.is_finished(step, options, finished)
    assert not reproduce.is_finished(step, options, {})
    table.write_text("row,paper,measurec")
    assert not reproduce.is_finished(step, options, finished)
    table.write_text("row,paper,measured")
    picture.unlink()
    assert not reproduce.is_finished(step, options, finished)
    finished = record()
    assert reproduce.is_finished(step, options, finished)
    (tmp_path / "paper/sam.safetensors").write_bytes(b"weights")
    assert not reproduce.is_finished(step, options, finished)


def test_another_platform_asks_for_the_step_again(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce, options = script("reproduce"), script("scripts").Reproduce()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    reproduce.ask_device.cache_clear()
    assert reproduce.ask_device() == ("cpu", "cpu")
    first = reproduce.digest_step(reproduce.STEPS[0], options)
    monkeypatch.setattr(reproduce, "ask_device", lambda: ("gpu", "NVIDIA H100"))
    assert reproduce.digest_step(reproduce.STEPS[0], options) != first


def test_the_page_says_what_it_shows(script: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "table2.csv").write_text("row,measured\na|b,44.5\n")
    (tmp_path / "table3.csv").write_text("")
    titles = {"table2": "Table 2", "table3": "Table 3", "fig3": "Figure 3", "report": "Report"}
    reasons = {"fig3": "Failed: status 2; fig3.py: no space"}
    facts = {"preset": "mini", "device": "cpu"}
    (tmp_path / "report.html").write_text("<p>report</p>")
    page = script("page").write_page(tmp_path, titles, reasons, facts).read_text()
    assert "## Report\n\n`report.html`, beside this page after a run, shows" in page
    for expected in (
        "| preset | mini |\n| device | cpu |",
        "## Table 2\n\n| row | measured |\n| --- | --- |\n| a\\|b | 44.5 |",
        "## Table 3\n\ntable3.csv is empty",
        "## Figure 3\n\nFailed: status 2; fig3.py: no space",
    ):
        assert expected in page


def test_a_failed_step_is_shown_with_its_last_line(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    reproduce, scripts = script("reproduce"), script("scripts")
    options = scripts.Reproduce(limit=0, output=tmp_path)  # which the step refuses
    failed = reproduce.run_steps(options, scripts.STEPS[:1], {}, {"fig4": "no such folder"})
    line = "status 2; table2.py: --limit must be at least 1, got 0"
    assert failed == {"table2": line}
    page = (tmp_path / "README.md").read_text()
    assert f"## Table 2\n\nFailed: {line}\n" in page
    assert "## Figure 4\n\nSkipped: no such folder\n" in page and "## Table 1" not in page
    assert not (tmp_path / reproduce.FINISHED).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_ends_its_step(
    small: tuple[object, ...], tmp_path: Path, number: signal.Signals
) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    process = start(*small, tmp_path / "out", *STEPS)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("to do: table2, fig3")
    if number == signal.SIGTERM:
        line = reproduce(*small, tmp_path / "out", *STEPS, status=2)
        assert "another process is writing it" in line
    else:
        time.sleep(0.5)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=20)  # the step's end closes what it inherited
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        assert printed.endswith("reproduce.py: stopped; the same command goes on\n")


def test_the_plan_counts_and_times_what_is_not_stored(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = script("plan")
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
