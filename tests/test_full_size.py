"""The published models at full size, on random weights, against PyTorch's: `make test-full`, about 6 minutes and 14 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "rows"), [("keys", 8), ("sd", 4), ("sam", 1)])
def test_full_size_models_compute_what_pytorch_does(group: str, rows: int, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "experiments/parity.py"), "--only", group, "--json", str(tmp_path / "parity.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(json.loads((tmp_path / "parity.json").read_text())) == rows
