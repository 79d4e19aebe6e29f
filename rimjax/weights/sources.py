"""Where the published weights come from, as `ported_weights/SOURCES.toml` lists them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ported_weights
from rimjax.files import sha256

RANDOM = "random weights"
"""The source of a self-test's weights."""


@dataclass(frozen=True)
class SourceFile:
    """A published file.

    Attributes:
        path: relative to the repository.
        bytes: its size; None: not known beforehand.
        sha256: its digest; None: not known beforehand.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A model's published weights.

    Attributes:
        name: "sd-1.4", "sam-vit-b", "dinov2-base", ...
        kind: a kind of `convert.convert`, or "sam", whose files are used as published.
        licence: of the weights.
        becomes: file or folder, relative to the preset's folder.
        files: all that are needed.
        repo: on the Hugging Face hub.
        revision: of the repository.
        url: of the single file, where there is no repository.
    """

    name: str
    kind: str
    licence: str
    becomes: str
    files: tuple[SourceFile, ...]
    repo: str | None = None
    revision: str | None = None
    url: str | None = None

    @property
    def origin(self) -> str:
        """Repository and revision, or URL."""
        return self.url or f"{self.repo}@{(self.revision or '')[:8]}"

    @property
    def known_bytes(self) -> int:
        """Size of the files whose size is known."""
        return sum(file.bytes or 0 for file in self.files)


@cache
def sources() -> Mapping[str, Source]:
    """Return every published model, by name."""
    text = (Path(ported_weights.__file__).parent / "SOURCES.toml").read_text(encoding="utf-8")
    return {
        name: Source(name, files=tuple(SourceFile(**file) for file in entry.pop("files")), **entry)
        for name, entry in tomllib.loads(text).items()
    }


def describe_source(name: str) -> str:
    """Describe where a model's weights come from, and their licence, in a line.

    Args:
        name: of a published model, of one of the mini preset's, or `RANDOM`; "" for another model.
    """
    if name in sources():
        return f"{name} ({sources()[name].origin}): {sources()[name].licence}"
    if name.partition("-")[0] == "mini":
        text = (Path(ported_weights.__file__).parent / "MANIFEST.toml").read_text(encoding="utf-8")
        entries = tomllib.loads(text)["mini"].values()
        licences = {entry["licence"] for entry in entries if "licence" in entry}
        return f"{name} (trained in rimjax's experiments/mini): {'; '.join(sorted(licences))}"
    if name == RANDOM:
        return f"{name}: no licence applies"
    return "not from rimjax's list of weights: ask whoever built the bank for the licence"


def check_file(path: Path, expected: SourceFile) -> None:
    """Raise ValueError unless a file has the expected size and sha256, as far as they are known."""
    size = path.stat().st_size
    advice = "delete it and get it again"
    if expected.bytes not in (None, size):
        raise ValueError(f"{path}: must have {expected.bytes} bytes, got {size}; {advice}")
    if expected.sha256 is not None and (actual := sha256(path)) != expected.sha256:
        raise ValueError(f"{path}: must have sha256 {expected.sha256}, got {actual}; {advice}")
