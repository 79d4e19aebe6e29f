"""Files: whole or not at all, digests, and the versions of the steps that go into cache keys."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

STEP_VERSIONS = {
    **{"draw": 1, "localise": 1, "propose": 1, "encode": 1, "pool": 1},
    **{"cluster": 1, "whiten": 1, "match": 1, "assemble": 1},
}
"""Raise a step's number when its output changes, so that no cache serves an older version's.

`tests/test_step_versions.py` compares each step's output on a fixed input with a recorded digest.
"""

PACKAGES = (
    *("rimjax", "jax", "jaxlib", "flax", "diffusers", "transformers"),
    *("torch", "torchvision", "segment-anything", "numpy"),
)
"""Packages whose versions stand beside results."""

STALE_SECONDS = 24 * 3600
"""Temporary files of killed processes are removed once they are older than this."""


class WriteError(OSError):
    """A file can't be written; the message names it."""


_PREFIX = ".rimjax-tmp-"
_cleaned: set[Path] = set()


def step_versions(*steps: str) -> dict[str, int]:
    """Return the versions of some steps, for a cache key."""
    return {f"{step} version": STEP_VERSIONS[step] for step in steps}


def package_versions() -> dict[str, str | None]:
    """Return the version of each package that results depend on; None where it is missing."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def sha256(path: Path) -> str:
    """Return a file's sha256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: object) -> str:
    """Return 20 hex digits that identify any JSON content; the order of keys doesn't matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def fingerprint(settings: object, weights: Mapping[str, Any] | None = None) -> str:
    """Return 20 hex digits that identify a model by its settings and weights.

    Args:
        settings: JSON content that the model's results depend on besides its weights.
        weights: arrays by name; names, dtypes, shapes and values count.
    """
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(weights or {}):
        array = np.ascontiguousarray((weights or {})[name])
        whole.update(f"{name} {array.dtype} {array.shape}".encode())
        whole.update(array.view(np.uint8).data if array.size else b"")
    return whole.hexdigest()[:20]


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may be damaged.

    Raises:
        json.JSONDecodeError: it isn't JSON, or it is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error


def check_writable(folder: Path) -> None:
    """Write and remove a file in a folder, or where the folder would be made, before work begins.

    Raises:
        WriteError: it can't be written; the message names the folder.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    probe = existing / f"{_PREFIX}{uuid.uuid4().hex}"
    with _name_file(folder):
        try:
            probe.write_bytes(b"0")
        finally:
            with suppress(OSError):
                probe.unlink()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; move the file to `path` when the block succeeds.

    The temporary name keeps the suffix of `path` and is unique across threads, processes and hosts.
    A link stays, and what it leads to is replaced; a device or pipe is written to directly.

    Raises:
        WriteError: the file can't be written; the message names it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with _name_file(path):
            yield path
        return
    path = path.resolve() if path.is_symlink() else path
    with _name_file(path):
        temporary = make_temporary(path)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file in one piece, and after a line that was cut short.

    Raises:
        WriteError: it can't be written; the message names it.
    """
    content = f"\n{line}\n".encode()
    with _name_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to `path` when the block succeeds.

    Raises:
        FileExistsError: `path` exists, e.g. since another process was faster; it stays as it is.
        WriteError: the folder can't be written; the message names it.
    """
    with _name_file(path):
        temporary = make_temporary(path)
        try:
            temporary.mkdir()
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                _sync(part)
            try:
                temporary.rename(path)
            except OSError as error:
                if not path.exists():
                    raise
                raise FileExistsError(f"{path}: exists already") from error
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock_destination(path: Path) -> Iterator[None]:
    """Let a single writer at a time, of any thread or process, work on a file or folder.

    The lock is a hidden file beside `path`, which is removed while it is still held: filelock
    notices a lock that was removed before it could be taken.

    Raises:
        ValueError: another writer works on it.
        WriteError: the lock can't be written; the message names `path`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with _name_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(f"{path}: another process is writing it; wait for it") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is in use
            Path(lock.lock_file).unlink()
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text whole or not at all; raises as `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; raises as `atomic_file`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def is_full(error: OSError) -> bool:
    """Return whether a file couldn't be written because the disk or the user's share is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_plain_name(name: str, where: Path) -> str:
    """Return a file name read from `where`; raise ValueError if it isn't a plain name."""
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(
            f"{where}: names {name!r}, which isn't a plain file name; it isn't trusted"
        )
    return name


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary file or folder of this module."""
    return path.name.startswith(_PREFIX)


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder longer than a day ago.

    Looks at a folder once per process, since a store may hold many files.
    """
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process removed it, or it isn't ours to remove
            continue


def make_temporary(path: Path) -> Path:
    """Return an unused hidden name beside `path`, unique across threads, processes and hosts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent)
    return path.with_name(f"{_PREFIX}{uuid.uuid4().hex}{path.suffix}")


@contextmanager
def _name_file(path: Path) -> Iterator[None]:
    """Name `path` in errors about it, its temporary file or the folders above it."""
    try:
        yield
    except OSError as error:
        culprit = path if error.filename is None else Path(error.filename)
        ours = culprit.absolute() in (path.absolute(), *path.absolute().parents)
        ours |= any(part.startswith(_PREFIX) for part in culprit.parts)
        if error.errno is None or not ours:
            raise
        reason = error.strerror or error
        remedy = f"{'free space or ' if is_full(error) else ''}choose another place"
        message = f"{path}: can't be written ({reason}); {remedy}"
        raise WriteError(message) from error


def _sync(path: Path) -> None:
    if os.name == "nt":  # Windows syncs neither folders nor files opened to be read
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
