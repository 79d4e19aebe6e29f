"""`rimjax bench match` at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import run

from rimjax.bench.roofline import count_operations


def test_bench_match_reports_its_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ("--json", tmp_path / "match.json", "--trace", tmp_path / "trace")
    printed = run("bench", "match", "--quick", "--dim", 32, *outputs, capsys=capsys)
    report = json.loads((tmp_path / "match.json").read_text())
    assert [row["dtype"] for row in report["accuracy"]] == ["float32", "bfloat16", "float16"]
    assert all(row["same inputs"]["disagree above 1e-5"] == 0 for row in report["accuracy"])
    first = report["speed"][0]
    assert first["N"] == 4 and first["seconds"] > 0 and first["combined over relation"] > 0
    assert first["combined kernel over relation"] > 0
    assert first["peers"]["NumPy enumeration"]["seconds"] > 0
    assert first["peers"]["PyTorch enumeration"]["seconds"] > 0
    assert first["roofline"]["kernel, multiply and add"]["ratio"] > 0
    assert "PyTorch enumeration" in printed and "Roofline" in printed
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize(("n", "expected"), [(1, 2 * 1 + 3), (2, 2 * (2 + 3) + 2 + 3), (4, 143)])
def test_operations_of_a_pair(n: int, expected: int) -> None:
    """Counted by hand from the recursion in docs/match/mathematics.md."""
    assert count_operations(n, 1, 1) == expected
