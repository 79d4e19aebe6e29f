"""The models at full size, on random weights, against PyTorch: 7 minutes, 14 GiB."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def compared(group: str, folder: Path) -> list[dict[str, Any]]:
    """The parity script's rows of a group; it exits 1 where a target is missed."""
    command = [
        sys.executable,
        str(ROOT / "experiments/parity.py"),
        "--only",
        group,
        "--manifest",
        str(folder / "parity.toml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return tomllib.loads((folder / "parity.toml").read_text())["parity"]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "rows"), [("keys", 9), ("dinov3", 9), ("sd", 4), ("sam", 1)])
def test_full_size_models_compute_what_pytorch_does(group: str, rows: int, tmp_path: Path) -> None:
    assert len(compared(group, tmp_path)) == rows


def test_thirty_steps_end_where_diffusers_pipeline_does(tmp_path: Path) -> None:
    (row,) = compared("trajectory", tmp_path)
    assert row["size"] == "30 steps" and 0 < row["error"] <= 1e-3
