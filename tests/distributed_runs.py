"""What the tests of workers read of banks and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rimjax.references import store
from rimjax.sealed import unseal


def digest(bank: str) -> str:
    """Return a digest of a bank's references."""
    return store.digest_references(store.read_manifest(bank))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a record that aren't empty."""
    return [line for line in path.read_text().splitlines() if line]


def read_cells(folder: Path) -> dict[str, Any]:
    """Read the pixel counts of a run's images."""
    lines = [unseal(line) for line in read_lines(folder / "images.jsonl")]
    return {line["image"]: line["cells"] for line in lines}
