"""accelerator.py at its smallest; the kernel alone where the pipeline's packages are missing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "accelerator.py"
PIPELINE = "torch torchvision flax diffusers transformers segment_anything sklearn scipy PIL tyro"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("accelerator")
    sys.path.remove(str(SCRIPT.parent))


def measure(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--small", *map(str, words)])
    script.main()


def read_values(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "accelerator.json").read_text())
    return {figure["measure"]: figure["value"] for figure in report["figures"]}


def test_models_are_measured_and_compared(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure(script, monkeypatch, "--only", "encoder", "proposals", "--output", tmp_path)
    values = read_values(tmp_path)
    errors = {name: value for name, value in values.items() if "error against torch" in name}
    exact, half = errors.values()
    assert exact < 1e-5 and 1e-5 < half < 0.05  # in bfloat16 the setting does something
    (proposals,) = (name for name in values if "points" in name)
    assert proposals.startswith("mini, 128x128, 10x10 points") and values[proposals] > 0
    table = (tmp_path / "accelerator.md").read_text()
    assert all(f"| {name} |" in table for name in values)


def test_images_are_drawn_with_and_without_capture(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure(script, monkeypatch, "--only", "drawing", "--batch", 1, "--output", tmp_path)
    values = list(read_values(tmp_path).values())
    assert values[0] > 0 and values[1] > 0
    assert values[3] <= 1, "capture must not change the images"  # beyond rounding


def test_a_part_that_fails_is_recorded_and_the_others_go_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_out(sizes: object) -> Iterator[Any]:
        yield script.Figure("drawing", "before", 1.0, "s")
        raise MemoryError("out of memory")

    monkeypatch.setitem(script.PARTS, "drawing", run_out)
    monkeypatch.setitem(script.PARTS, "kernel", lambda sizes: iter(()))
    with pytest.raises(SystemExit) as stop:
        measure(script, monkeypatch, "--only", "drawing", "kernel", "--output", tmp_path)
    assert stop.value.code == 1
    report = json.loads((tmp_path / "accelerator.json").read_text())
    parts = [(figure["part"], figure["unit"]) for figure in report["figures"]]
    assert parts[:2] == [("drawing", "s"), ("drawing", "FAILED: MemoryError: out of memory")]
    assert parts[-1][0] == "kernel"


def test_without_the_pipelines_packages_the_kernel_is_measured(tmp_path: Path) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({PIPELINE!r}.split()))"
    words = ["accelerator.py", "--small", "--output", str(tmp_path)]
    code = f"{blocked}; sys.argv = {words}; sys.path.insert(0, {str(SCRIPT.parent)!r}); "
    code += "import accelerator; accelerator.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "accelerator.json").read_text())
    skipped = {f["part"] for f in report["figures"] if f["unit"].startswith("skipped, ")}
    assert skipped == {"encoder", "proposals", "drawing"}
    errors = [f["value"] for f in report["figures"] if "error against float64" in f["measure"]]
    assert len(errors) == 2 and max(errors) < 1e-5
    assert 'pip install "rimjax[pipeline]"' in (tmp_path / "accelerator.md").read_text()
