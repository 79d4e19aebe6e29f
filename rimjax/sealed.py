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


def unseal(text: str | bytes, types: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return sealed JSON content without its digest.

    Args:
        text: the JSON.
        types: entries that it must have, with their types.

    Raises:
        ValueError: it isn't JSON, carries no digest, or differs from its digest; or an entry is
            missing or has another type.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it isn't a JSON object")
    if SEAL not in content:
        raise ValueError("it has no digest of its own, as earlier versions wrote it")
    expected = content.pop(SEAL)
    if digest(content) != expected:
        raise ValueError("its content differs from its own digest")
    check_types(content, types or {})
    return content


def check_types(content: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Raise ValueError for an entry that is missing or has another type."""
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f"{name!r} isn't recorded")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name!r} isn't a {kind.__name__}")


def read_sealed(path: Path, types: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read a file of sealed JSON.

    Args:
        path: the file.
        types: entries that it must have, with their types.

    Raises:
        OSError: it can't be read.
        ValueError: as `unseal`; also where it isn't UTF-8.
    """
    return unseal(path.read_text(encoding="utf-8"), types)
