"""Arrays kept by key in a folder, in safetensors files of a few hundred records each.

    FOLDER/part-ID.safetensors    a few hundred records
    FOLDER/KEY.safetensors        records of the part that is being filled

A record is written to a file of its own when it is there; when enough of them lie in the folder,
one process joins them into a part. Each file appears whole or not at all, so that a killed process
loses the record in hand at most, and others read and write meanwhile. Each record carries the
checksum of its bytes: one that is damaged isn't there.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rimjax.files import atomic_file, check_plain_name, check_writable, is_temporary

Record = dict[str, np.ndarray]

RECORDS_PER_PART = 256
_PART, _SUFFIX, _LOCK = "part-", ".safetensors", "joining.lock"


@dataclass(frozen=True)
class _File:
    """What a file holds, from its header.

    Attributes:
        path: the file.
        keys: of its records.
        rows: array name -> rows of each record.
        checks: each record's checksum.
    """

    path: Path
    keys: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    checks: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> _File:
        """Read a file's header.

        Raises:
            ValueError: it is damaged.
            FileNotFoundError: there is no such file.
        """
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, "numpy") as stored:
                header = json.loads(stored.metadata()["records"])
                names = set(stored.keys())
            keys, rows, checks = header["keys"], header["rows"], header["checks"]
            lengths = {len(keys), len(checks), *map(len, rows.values())}
            if header["check"] != zlib.crc32(_describe(keys, rows, checks)) or len(lengths) != 1:
                raise ValueError("its list of records differs from its checksum")
            if names != rows.keys():
                raise ValueError("it holds other arrays than it lists")
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            if not path.exists():  # joined into a part meanwhile
                raise FileNotFoundError(path) from error
            raise ValueError(f"{path}: damaged ({error})") from error
        rows = {name: tuple(counts) for name, counts in rows.items()}
        return cls(path, tuple(keys), rows, tuple(checks))

    def read(self, index: int) -> Record:
        """Read a record.

        Raises:
            ValueError: it is damaged.
            FileNotFoundError: the file is gone.
        """
        record: Record = {}
        try:
            with safe_open(self.path, "numpy") as stored:
                for name, counts in self.rows.items():
                    start, rows = sum(counts[:index]), counts[index]
                    if rows == sum(counts):
                        record[name] = stored.get_tensor(name)
                    else:  # an empty slice must not begin at the end
                        start = start if rows else 0
                        record[name] = stored.get_slice(name)[start : start + rows]
        except (SafetensorError, OSError) as error:
            if not self.path.exists():
                raise FileNotFoundError(self.path) from error
            raise ValueError(f"{self.path}: damaged ({error})") from error
        if _check(self.keys[index], record) != self.checks[index]:
            raise ValueError(f"{self.path}: {self.keys[index]} differs from its checksum")
        return record


@dataclass(frozen=True)
class Archive:
    """Records in a folder; see the module.

    Attributes:
        folder: made when the first record is written.
    """

    folder: Path
    _parts: dict[Path, _File | None] = field(default_factory=dict, init=False, repr=False)

    def get(self, key: str) -> Record | None:
        """Return a record; None where there is none, or it is damaged."""
        return next(self._find(check_plain_name(key, self.folder)), None)

    def put(self, key: str, record: Mapping[str, np.ndarray]) -> None:
        """Write a record, over a damaged record if there is one.

        Args:
            key: a plain file name.
            record: arrays [rows, ...], the same names, dtypes and trailing axes in all records.

        Raises:
            WriteError: it can't be written; the message names the file.
        """
        _write(self.folder / f"{check_plain_name(key, self.folder)}{_SUFFIX}", [(key, record)])
        self.join(RECORDS_PER_PART)

    def check_writable(self) -> None:
        """Raise WriteError, naming the folder, where records couldn't be written."""
        check_writable(self.folder)

    def join(self, least: int = 1) -> None:
        """Join the records that lie in files of their own to a part, if there are `least` of them.

        Nothing is done while another process does it. Damaged records are left out, and removed.
        """
        if len(self._list_single()) < least:
            return
        try:
            lock = FileLock(self.folder / _LOCK).acquire(blocking=False)
        except Timeout:
            return
        with lock:
            for paths in _chunk(self._list_single(), RECORDS_PER_PART):
                if len(paths) < least:
                    return
                keys = [path.name.removesuffix(_SUFFIX) for path in paths]
                records = zip(keys, map(self._read_single, paths), strict=True)
                whole = [(key, record) for key, record in records if record is not None]
                if whole:
                    part = self.folder / f"{_PART}{uuid.uuid4().hex[:16]}{_SUFFIX}"
                    _write(part, whole)
                for path in paths:
                    path.unlink(missing_ok=True)

    def count(self) -> int:
        """Return the number of keys, without looking at their records."""
        return len({key for file in self._open_all() for key in file.keys})

    def verify(self) -> tuple[int, list[str]]:
        """Read every record.

        Returns:
            The number of whole records, and what is damaged and has no whole copy.
        """
        whole: set[str] = set()
        damaged: dict[str, str] = {}
        for path in self._list_files():
            try:
                file = _File.open(path)
                for index, key in enumerate(file.keys):
                    try:
                        file.read(index)
                        whole.add(key)
                    except ValueError as error:
                        damaged[key] = str(error)
            except FileNotFoundError:
                continue
            except ValueError as error:
                damaged[path.name] = str(error)
        return len(whole), [line for key, line in damaged.items() if key not in whole]

    def remove_damaged(self) -> None:
        """Take damaged records, which can't be used, out of their files.

        Nothing is done while another process joins records.
        """
        try:
            lock = FileLock(self.folder / _LOCK).acquire(blocking=False)
        except Timeout:
            return
        with lock:
            for path in self._list_files():
                whole, count = [], None
                with suppress(ValueError, FileNotFoundError):
                    file = _File.open(path)
                    count = len(file.keys)
                    for index, key in enumerate(file.keys):
                        with suppress(ValueError):
                            whole.append((key, file.read(index)))
                if whole and len(whole) != count:
                    _write(path, whole)
                elif not whole:
                    path.unlink(missing_ok=True)
            self._parts.clear()

    def measure(self) -> tuple[int, int]:
        """Return the number of files and their bytes."""
        sizes = []
        for path in self._list_files():
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        return len(sizes), sum(sizes)

    def _find(self, key: str) -> Iterator[Record]:
        """Yield a key's whole records; files that another process joins meanwhile are followed."""
        single = self._read_single(self.folder / f"{key}{_SUFFIX}")
        if single is not None:
            yield single
        for file in self._open_parts():
            if key in file.keys:
                try:
                    yield file.read(file.keys.index(key))
                except (ValueError, FileNotFoundError):
                    continue

    def _read_single(self, path: Path) -> Record | None:
        try:
            file = _File.open(path)
            return file.read(0) if len(file.keys) == 1 else None
        except (ValueError, FileNotFoundError):
            return None

    def _list_files(self) -> list[Path]:
        return sorted(p for p in self.folder.glob(f"*{_SUFFIX}") if not is_temporary(p))

    def _list_single(self) -> list[Path]:
        return [path for path in self._list_files() if not path.name.startswith(_PART)]

    def _open_parts(self) -> Iterator[_File]:
        """Yield the parts whose headers are whole; a header is read once."""
        for path in sorted(self.folder.glob(f"{_PART}*{_SUFFIX}")):
            if path not in self._parts:
                try:
                    self._parts[path] = _File.open(path)
                except (ValueError, FileNotFoundError):
                    self._parts[path] = None
            file = self._parts[path]
            if file is not None:
                yield file

    def _open_all(self) -> Iterator[_File]:
        yield from self._open_parts()
        for path in self._list_single():
            try:
                yield _File.open(path)
            except (ValueError, FileNotFoundError):
                continue


def _write(path: Path, records: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    keys = [key for key, _ in records]
    names = sorted(records[0][1])
    rows = {name: [len(record[name]) for _, record in records] for name in names}
    checks = [_check(key, record) for key, record in records]
    header = {"keys": keys, "rows": rows, "checks": checks}
    header["check"] = zlib.crc32(_describe(keys, rows, checks))
    arrays = {name: np.concatenate([record[name] for _, record in records]) for name in names}
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(arrays, {"records": json.dumps(header)}))


def _check(key: str, record: Mapping[str, np.ndarray]) -> int:
    check = zlib.crc32(key.encode())
    for name in sorted(record):
        array = np.ascontiguousarray(record[name])
        check = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), check)
        check = zlib.crc32(array.tobytes(), check)
    return check


def _describe(keys: Any, rows: Any, checks: Any) -> bytes:
    return json.dumps([keys, rows, checks], sort_keys=True).encode()


def _chunk(paths: list[Path], size: int) -> list[list[Path]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]
