"""JAX's share of a GPU's memory, and what `rimjax doctor` says about devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import run

from rimjax.commands import doctor
from rimjax.commands.devices import Device, Facts, Framework, judge_devices

ROOT = Path(__file__).parents[2]

SPY = """
import os, sys
from jax.extend.backend import register_backend_factory

def start():
    names = sorted(name for name in os.environ if name.startswith("XLA_"))
    print("STARTED", *(f"{name}={os.environ[name]}" for name in names))
    raise RuntimeError("no such device")

register_backend_factory("spy", start, priority=-1)
"""
"""Prints JAX's settings at the moment when it starts its backends."""

DOCTOR = "sys.argv = ['rimjax', 'doctor']; from rimjax.__main__ import main; main()"
EXPERIMENT = f"""
sys.path.insert(0, {str(ROOT / "experiments")!r})
sys.argv = ["table.py", "--out", os.devnull + "-x"]
import jax, harness
harness.start(lambda experiment: jax.devices(), harness.Experiment, "A table.")
"""
ACCELERATOR = f"""
sys.path.insert(0, {str(ROOT / "experiments")!r})
sys.argv = ["accelerator.py", "--only", "kernel"]
import accelerator
accelerator.PARTS["kernel"] = lambda sizes: iter(())
accelerator.main()
"""
LIBRARY = "import rimjax, jax; rimjax.load_preset('mini'); jax.devices()"


def list_settings(script: str, **own: str) -> list[str]:
    """Return the settings of JAX's allocator that hold when a script starts JAX's backends."""
    environment = {name: value for name, value in os.environ.items() if "XLA_" not in name}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": os.environ.get("HOME", "/tmp"), **own}
    command = [sys.executable, "-c", SPY + script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    started = [line for line in done.stdout.splitlines() if line.startswith("STARTED")]
    assert len(started) == 1, done.stderr
    return started[0].split()[1:]


@pytest.mark.parametrize(
    "script", [DOCTOR, EXPERIMENT, ACCELERATOR], ids=["doctor", "experiment", "accelerator"]
)
def test_jax_grows_on_demand_from_the_start(script: str, tmp_path: Path) -> None:
    script = script.replace('os.devnull + "-x"', repr(str(tmp_path)))
    settings = list_settings(script, RIMJAX_CACHE=str(tmp_path))
    assert settings == ["XLA_PYTHON_CLIENT_PREALLOCATE=false"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "true"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", ".4"),
        ("XLA_CLIENT_MEM_FRACTION", ".4"),
        ("XLA_PYTHON_CLIENT_ALLOCATOR", "platform"),
    ],
)
def test_the_users_own_setting_is_kept_alone(name: str, value: str) -> None:
    assert list_settings(DOCTOR, **{name: value}) == [f"{name}={value}"]


def test_the_library_sets_nothing() -> None:
    assert list_settings(LIBRARY) == []


CPU = Device("cpu", "cpu")
GPU = Device("gpu", "NVIDIA A100", 30 * 2**30, 40 * 2**30)
BARE_JAX, BARE_TORCH = Framework("0.10", (), (CPU,)), Framework("2.9+cpu", (), (CPU,))


def make_jax(*majors: int, device: Device = GPU) -> Framework:
    return Framework("0.10", majors, (device,))


def make_torch(*majors: int, device: Device = GPU) -> Framework:
    return Framework("2.9", majors, (device,))


@pytest.mark.parametrize(
    ("jax", "torch", "nvidia"),
    [
        (BARE_JAX, BARE_TORCH, False),
        (BARE_JAX, make_torch(13, device=CPU), False),  # torch's usual wheel, no GPU anywhere
        (BARE_JAX, Framework(None), False),
        (make_jax(12), make_torch(12), True),
        (make_jax(13), Framework(None), True),  # the kernels alone
        (make_jax(device=Device("tpu", "TPU v4")), BARE_TORCH, False),
    ],
)
def test_a_sound_installation_has_no_faults(jax: Framework, torch: Framework, nvidia: bool) -> None:
    assert judge_devices(Facts(jax, torch, nvidia)) == []


@pytest.mark.parametrize(
    ("jax", "torch", "words"),
    [
        (make_jax(12), BARE_TORCH, "torch 2.9+cpu is the CPU build beside a GPU that JAX sees"),
        (make_jax(12), BARE_TORCH, "install torch's build for CUDA 12"),
        (make_jax(13), make_torch(13, device=CPU), "torch 2.9 is built for CUDA 13 and sees no"),
        (BARE_JAX, make_torch(12), "JAX 0.10 is the CPU build beside a GPU that torch sees"),
        (BARE_JAX, make_torch(12), 'pip install "rimjax[pipeline,cuda12]"'),
        (BARE_JAX, make_torch(13), 'pip install "rimjax[pipeline,cuda13]"'),
        (make_jax(13, device=CPU), make_torch(13), "has a plugin for CUDA 13 and sees no GPU"),
        (BARE_JAX, BARE_TORCH, "neither JAX nor torch sees a GPU"),
        (make_jax(12, device=CPU), BARE_TORCH, "CUDA_VISIBLE_DEVICES or JAX_PLATFORMS hides"),
    ],
)
def test_a_gpu_that_is_not_used_is_named(jax: Framework, torch: Framework, words: str) -> None:
    (line,) = judge_devices(Facts(jax, torch, nvidia=True))
    assert words in line and "\n" not in line and "docs/accelerators.md" in line


def test_cuda_versions_that_clash_are_named() -> None:
    (line,) = judge_devices(Facts(make_jax(12), make_torch(13), nvidia=True))
    assert "JAX's plugin is for CUDA 12, torch's build for CUDA 13" in line
    (line,) = judge_devices(Facts(make_jax(12, 13), make_torch(13), nvidia=True))
    assert "plugins for CUDA 12 and CUDA 13, which clash" in line


def test_a_framework_that_does_not_start_is_named() -> None:
    broken = Framework("2.9", (), (), "libcudart.so.13:\n cannot open shared object file")
    (line,) = judge_devices(Facts(make_jax(12), broken, nvidia=True))
    assert "torch 2.9 doesn't start: libcudart.so.13: cannot open shared object file" in line


def test_doctor_shows_devices_memory_and_faults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = Facts(make_jax(12), BARE_TORCH, nvidia=True)
    monkeypatch.setattr(doctor, "collect_facts", lambda: facts)
    printed = run("doctor", "--json", tmp_path / "doctor.json", capsys=capsys)
    assert "JAX 0.10 (CUDA 12); gpu: NVIDIA A100, 30.0 of 40.0 GiB free" in printed
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["faults"] == judge_devices(facts) and report["faults"][0] in printed
    assert report["devices"]["jax"]["devices"][0]["free"] == 30 * 2**30


def test_doctor_survives_a_platform_that_is_not_there() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rimjax", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "gpu: " in done.stdout:
        pytest.skip("needs a machine without a GPU")
    assert done.returncode == 0 and "WRONG: JAX" in done.stdout, done.stderr
