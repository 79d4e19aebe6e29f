"""Archives: parts of many records, several writers and readers, and damage."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from rimjax.regions import archive as module
from rimjax.regions.archive import Archive


def make_record(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    rows = number % 4
    return {
        "features": rng.random((rows, 5), np.float32),
        "valid": rng.random(rows) < 0.5,
        "size": np.array([number, 3], np.int64),
    }


def check_record(archive: Archive, number: int) -> None:
    record = archive.get(f"image-{number}")
    assert record is not None, number
    for name, array in make_record(number).items():
        np.testing.assert_array_equal(record[name], array)
        assert record[name].dtype == array.dtype


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS_PER_PART", 8)


def test_records_are_joined_to_parts_and_read_from_them(small_parts: None, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    assert archive.get("image-0") is None and archive.count() == 0
    for number in range(20):
        archive.put(f"image-{number}", make_record(number))
        check_record(archive, number)
    parts = list(archive.folder.glob("part-*"))
    assert len(parts) == 2 and len(list(archive.folder.glob("image-*"))) == 4
    for reader in (archive, Archive(archive.folder)):
        assert reader.count() == 20 and reader.verify() == (20, [])
        for number in range(20):
            check_record(reader, number)
        assert reader.get("image-20") is None
    archive.join()
    assert archive.measure()[0] == 3 and not list(archive.folder.glob("image-*"))
    assert archive.verify() == (20, [])


def test_writers_and_readers_share_an_archive(small_parts: None, tmp_path: Path) -> None:
    failed = []

    def work(first: int) -> None:
        try:
            archive = Archive(tmp_path)
            for number in range(first, first + 25):
                archive.put(f"image-{number}", make_record(number))
                for seen in range(first, number + 1):
                    check_record(archive, seen)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(25 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    Archive(tmp_path).join()
    assert Archive(tmp_path).verify() == (100, []) and Archive(tmp_path).count() == 100


def test_one_damaged_record_leaves_the_others(small_parts: None, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    for number in range(8):
        archive.put(f"image-{number}", make_record(number))
    (part,) = tmp_path.glob("part-*")
    content = bytearray(part.read_bytes())
    value = make_record(3)["features"].tobytes()
    content[content.index(value)] ^= 1
    part.write_bytes(content)
    archive = Archive(tmp_path)
    whole, damaged = archive.verify()
    assert whole == 7 and len(damaged) == 1
    assert str(part) in damaged[0] and "image-3" in damaged[0]
    assert archive.get("image-3") is None
    check_record(archive, 4)
    archive.put("image-3", make_record(3))
    check_record(archive, 3)
    archive.join()
    check_record(Archive(tmp_path), 3)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 200, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part-0.safetensors").write_bytes(content)
    archive = Archive(tmp_path)
    archive.put("image-1", make_record(1))
    whole, damaged = archive.verify()
    assert whole == 1 and "part-0.safetensors: damaged" in damaged[0]
    check_record(archive, 1)


def test_a_key_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    for key in ("../x", "a/b", ""):
        with pytest.raises(ValueError, match="plain file name"):
            Archive(tmp_path).put(key, make_record(1))
