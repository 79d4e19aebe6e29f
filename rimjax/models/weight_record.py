"""The record of digests beside ported weights, `NAME.sha256`, as `sha256sum -c` reads it.

A comment before each digest holds the file's size, and the last one a digest of the record. While
the folder holds exactly the recorded files, each with its recorded size and not newer than the
record, the recorded digests are used without reading the files: a start then identifies gigabytes
of weights at once. A record without its own digest, as earlier versions wrote it, is used again
once every byte was compared. Whoever replaces a file by another of the same size and an older date
must run `rimjax weights verify`.
"""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ported_weights
from rimjax.files import digest, sha256, write_text

_SEAL = "# digest of the lines above: "


class Entry(NamedTuple):
    """A recorded file: its sha256, and its size in bytes (None: recorded without)."""

    sha256: str
    size: int | None


def write_record(path: Path, content: Path) -> None:
    """Write the record of the weights `path`, which still lie at `content`."""
    lines = []
    for name, file in _list_files(content).items():
        lines += [f"# {file.stat().st_size} bytes", f"{sha256(file)}  {Path(path.name, name)}"]
    lines.append(f"{_SEAL}{digest(lines)}")
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
        entries, sealed = _read_record(record)
        if _check_files(path, entries, record.stat().st_mtime_ns) and sealed:
            return {name: entry.sha256 for name, entry in entries.items()}
    return {name: _digest_once(file) for name, file in _list_files(path).items()}


def check_weights(path: Path) -> None:
    """Raise ValueError where weights aren't what was shipped, or what was recorded.

    The package's own files are read and compared with `ported_weights/MANIFEST.toml`, each once per
    process. Others are compared with their record by size and time where that suffices, else by
    content; without a record nothing is known.
    """
    root = Path(ported_weights.__file__).parent.resolve()
    if path.resolve().is_relative_to(root):
        shipped = list_shipped(root)
        for file in _list_files(path.resolve()).values():
            expected = shipped.get(file.relative_to(root).as_posix())
            if not file.name.startswith(".") and _digest_once(file) != expected:
                raise ValueError(
                    f"{file}: isn't the file that belongs to the package; install rimjax again"
                )
        return
    record = _find_record(path)
    if record is None:
        return
    entries, sealed = _read_record(record)
    known = _check_files(path, entries, record.stat().st_mtime_ns) and sealed
    if not known and (damaged := find_damaged(path)):
        raise ValueError(
            f"{path.parent / damaged[0]}: differs from its sha256 in {record}; get the weights "
            "again, or delete the record if you changed them"
        )


def list_shipped(root: Path) -> dict[str, str]:
    """Return the sha256 of each file of the mini preset, by its path below `ported_weights`."""
    manifest = tomllib.loads((root / "MANIFEST.toml").read_text(encoding="utf-8"))["mini"]
    weights = {entry["file"]: entry["sha256"] for entry in manifest.values() if "file" in entry}
    return weights | manifest["settings"]


def _digest_once(path: Path) -> str:
    """Return a file's sha256, computed once per process while its size and time stay the same."""
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def find_damaged(path: Path) -> list[str] | None:
    """Return the recorded files that are missing or changed; None where there is no record.

    Every byte is read. Where all is well, the record is used from now on.
    """
    record = _find_record(path)
    if record is None:
        return None
    start = time.time_ns()
    entries, sealed = _read_record(record)
    files = {path / name: entry.sha256 for name, entry in entries.items()}
    damaged = [
        file for file, digest in files.items() if not file.is_file() or sha256(file) != digest
    ]
    if not damaged:
        with suppress(OSError):  # the folder may be read-only
            if not sealed:
                lines = record.read_text(encoding="utf-8").splitlines()
                write_text(record, "\n".join([*lines, f"{_SEAL}{digest(lines)}"]) + "\n")
            os.utime(record, ns=(start, start))
    return [str(file.relative_to(path.parent)) for file in damaged]


def _find_record(path: Path) -> Path | None:
    """Return the record beside the weights themselves, wherever a symbolic link leads to."""
    record = locate_record(path.resolve())
    return record if record.is_file() else None


def _read_record(record: Path) -> tuple[dict[str, Entry], bool]:
    """Return a record's entries, and whether it ends with its own digest."""
    entries: dict[str, Entry] = {}
    size, advice = None, "delete it, or port the weights again"
    try:
        lines = record.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{record}: damaged ({error}); {advice}") from error
    for index, line in enumerate(lines):
        hexadecimal, _, name = line.partition("  ")
        if line.startswith("#"):
            match = re.fullmatch(r"# (\d+) bytes", line)
            size = int(match[1]) if match else None
            if line.startswith(_SEAL) and line != f"{_SEAL}{digest(lines[:index])}":
                raise ValueError(f"{record}: damaged, it differs from its own digest; {advice}")
        elif not re.fullmatch("[0-9a-f]{64}", hexadecimal) or _leads_away(name):
            raise ValueError(f"{record}: damaged at {line!r}; {advice}")
        else:
            entries["/".join(Path(name).parts[1:])] = Entry(hexadecimal, size)
            size = None
    if not entries:
        raise ValueError(f"{record}: damaged, because it is empty; {advice}")
    return entries, lines[-1].startswith(_SEAL)


def _leads_away(name: str) -> bool:
    return not name or ".." in Path(name).parts or Path(name).is_absolute()


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


def name_source(model: object) -> str:
    """Return the name by which a preset chose a model, e.g. "sam-vit-b"; "" for your own model.

    It is the model's attribute `source`; `rimjax.weights.sources.describe_source` has its licence.
    """
    return getattr(model, "source", "")
