"""The processes of reproduce.py: scripts of this folder, and one that asks JAX for its device."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
GRACE_SECONDS = 10  # for a stopped step to end by itself
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def run_script(name: str, *words: object) -> str | None:
    """Run a script of this folder, and end it if this process is stopped.

    Returns:
        None if it succeeded, else its status and the last line of its errors.
    """
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, words)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    last = ""
    try:
        for line in process.stderr or ():
            sys.stderr.write(line)
            last = line.strip() or last
        process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return f"status {process.returncode}; {last}" if process.returncode else None


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@cache
def ask_device() -> tuple[str, str]:
    """Return the platform and name of the device that JAX computes on, from another process.

    Raises:
        ValueError: JAX doesn't start.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform); print(d.device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"JAX doesn't start: {done.stderr.strip().splitlines()[-1]}")
    platform, kind = done.stdout.strip().splitlines()[-2:]
    return platform, kind
