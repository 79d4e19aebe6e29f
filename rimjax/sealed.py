"""JSON that carries a digest of its own: a digit that changes on a disk or in a copy is noticed.

It proves no origin: whoever changes a file can write its digest anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rimjax.files import digest, parse_json

SEAL = "digest of the rest"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON content with its own digest as the last entry."""
    return {**content, SEAL: digest(content)}


def unseal(text: str | bytes) -> dict[str, Any]:
    """Return sealed JSON content without its digest.

    Raises:
        ValueError: it isn't JSON, carries no digest, or differs from its digest.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it isn't a JSON object")
    if SEAL not in content:
        raise ValueError("it has no digest of its own, as earlier versions wrote it")
    expected = content.pop(SEAL)
    if digest(content) != expected:
        raise ValueError("its content differs from its own digest")
    return content


def read_sealed(path: Path, types: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read a file of sealed JSON.

    Args:
        path: the file.
        types: entries that it must have, with their types.

    Raises:
        OSError: it can't be read.
        ValueError: as `unseal`; also where it isn't UTF-8 or an entry has another type.
    """
    content = unseal(path.read_text(encoding="utf-8"))
    for name, kind in (types or {}).items():
        if name not in content:
            raise ValueError(f"{name!r} isn't recorded")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name!r} isn't a {kind.__name__}")
    return content
