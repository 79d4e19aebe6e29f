"""The record of digests beside ported weights, `NAME.sha256`, as `sha256sum -c` reads it.

A comment before each digest holds the file's size. While the folder holds exactly the recorded
files, each with its recorded size and not newer than the record, the recorded digests are used
without reading the files: a start then identifies gigabytes of weights at once. Whoever replaces a
file by another of the same size and an older date must run `rimjax weights verify`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rimjax.files import sha256, write_text


class Entry(NamedTuple):
    """A recorded file: its sha256, and its size in bytes (None: recorded without)."""

    sha256: str
    size: int | None


def write_record(path: Path, content: Path) -> None:
    """Write the record of the weights `path`, which still lie at `content`."""
    lines = []
    for name, file in _list_files(content).items():
        lines += [f"# {file.stat().st_size} bytes", f"{sha256(file)}  {Path(path.name, name)}"]
    write_text(locate_record(path), "\n".join(lines) + "\n")


def locate_record(path: Path) -> Path:
    """Return where the record of a file or folder of weights belongs."""
    return path.with_name(f"{path.name}.sha256")


def digest_weights(path: Path) -> dict[str, str]:
    """Return the sha256 of each file of weights, by name relative to `path`.

    Digests come from the record where it can be used (see above), else from the content.

    Raises:
        ValueError: a recorded file is missing or has another size, or the record is damaged.
    """
    record = _find_record(path)
    if record is not None:
        entries = _read_record(record)
        if _check_files(path, entries, record.stat().st_mtime_ns):
            return {name: entry.sha256 for name, entry in entries.items()}
    return {name: sha256(file) for name, file in _list_files(path).items()}


def find_damaged(path: Path) -> list[str] | None:
    """Return the recorded files that are missing or changed; None where there is no record.

    Every byte is read. Where all is well, the record is used from now on.
    """
    record = _find_record(path)
    if record is None:
        return None
    start = time.time_ns()
    files = {path / name: entry.sha256 for name, entry in _read_record(record).items()}
    damaged = [
        file for file, digest in files.items() if not file.is_file() or sha256(file) != digest
    ]
    if not damaged:
        with suppress(OSError):  # the folder may be read-only
            os.utime(record, ns=(start, start))
    return [str(file.relative_to(path.parent)) for file in damaged]


def _find_record(path: Path) -> Path | None:
    """Return the record beside the weights themselves, wherever a symbolic link leads to."""
    record = locate_record(path.resolve())
    return record if record.is_file() else None


def _read_record(record: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    size, advice = None, "delete it, or port the weights again"
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if line.startswith("#"):
            match = re.fullmatch(r"# (\d+) bytes", line)
            size = int(match[1]) if match else None
        elif not name or ".." in Path(name).parts:
            raise ValueError(f"{record}: damaged at {line!r}; {advice}")
        else:
            entries["/".join(Path(name).parts[1:])] = Entry(digest, size)
            size = None
    if not entries:
        raise ValueError(f"{record}: damaged, because it is empty; {advice}")
    return entries


def _check_files(path: Path, entries: Mapping[str, Entry], recorded: int) -> bool:
    """Return whether the record can be used; raise ValueError if a recorded file is gone."""
    trusted = set(entries) == set(_list_files(path))
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: missing, though recorded; port the weights again")
        about = file.stat()
        if entry.size not in (None, about.st_size):
            expected = f"must have {entry.size} bytes as recorded, got {about.st_size}"
            raise ValueError(f"{file}: {expected}; port the weights again")
        within = file.resolve().is_relative_to(path.resolve())
        trusted = trusted and within and about.st_mtime_ns <= recorded
    return trusted


def _list_files(path: Path) -> dict[str, Path]:
    """Return the files of a folder by relative name, links followed; of a file itself under ""."""
    if not path.is_dir():
        return {"": path}
    walk = os.walk(path, followlinks=True)
    files = sorted(Path(folder, name) for folder, _, names in walk for name in names)
    return {file.relative_to(path).as_posix(): file for file in files if file.is_file()}
