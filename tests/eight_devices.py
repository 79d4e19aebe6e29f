"""Run a script in a process of its own, where the CPU counts as eight devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_on_eight_devices(script: str) -> str:
    """Return what a script prints; it fails where the script does."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
