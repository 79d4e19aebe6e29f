"""Files and folders appear whole or not at all, and errors name them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rimjax.files import atomic_file, atomic_folder, check_plain_name, write_json, write_text

Writer = Callable[[Path], AbstractContextManager[Path]]
writers = pytest.mark.parametrize("writer", [atomic_file, atomic_folder])


def fill(temporary: Path, content: str = "content") -> None:
    """Write to the temporary file, or to a file in the temporary folder."""
    (temporary / "part" if temporary.is_dir() else temporary).write_text(content)


def read(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@writers
def test_a_result_appears_when_the_block_ends(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "new" / "result.txt"
    with writer(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        fill(temporary)
        assert not path.exists()
    assert read(path) == "content" and list(path.parent.iterdir()) == [path]


class StopError(Exception):
    """Raised by a block."""


@writers
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_raises(
    tmp_path: Path, writer: Writer, error: type[BaseException]
) -> None:
    with pytest.raises(error), writer(tmp_path / "result") as temporary:
        fill(temporary)
        raise error
    assert not list(tmp_path.iterdir())


def test_the_previous_file_stays_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "previous")
    with pytest.raises(StopError), atomic_file(path) as temporary:
        fill(temporary)
        raise StopError
    assert path.read_text() == "previous" and list(tmp_path.iterdir()) == [path]
    write_json(path, {"new": 1})
    assert path.read_text() == '{\n "new": 1\n}\n' and list(tmp_path.iterdir()) == [path]


@writers
def test_a_full_disk_is_an_error_that_names_the_result(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "result"
    message = rf"^{path}: can't be written \(No space left on device\); free space or choose"
    with pytest.raises(OSError, match=message), writer(path) as temporary:
        fill(temporary)
        raise OSError(28, os.strerror(28), str(temporary))
    assert not list(tmp_path.iterdir())


@writers
def test_a_parent_that_is_a_file_is_an_error_that_names_the_result(
    tmp_path: Path, writer: Writer
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "result"
    message = rf"^{path}: can't be written \([^\n]*\); choose another place$"
    with pytest.raises(OSError, match=message), writer(path):
        pytest.fail("there is nothing to write to")


@writers
def test_an_error_about_an_unrelated_file_stays_as_it_is(tmp_path: Path, writer: Writer) -> None:
    with pytest.raises(FileNotFoundError) as caught, writer(tmp_path / "a" / "result"):
        (tmp_path / "b" / "source").read_text()
    assert caught.value.filename == str(tmp_path / "b" / "source")


def test_the_loser_of_a_race_keeps_the_winners_folder(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with (
        pytest.raises(FileExistsError, match="result: exists already"),
        atomic_folder(path) as ours,
    ):
        fill(ours, "loser")
        with atomic_folder(path) as theirs:
            fill(theirs, "winner")
    assert read(path) == "winner" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 99) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_the_last_writer_of_a_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with atomic_file(path) as last:
        fill(last, "last")
        write_text(path, "first")
    assert read(path) == "last" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a", "a.png", "...", "..a", "a b", "é", "-"])
def test_plain_names_are_returned(name: str) -> None:
    assert check_plain_name(name, Path("record.json")) == name


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/b", "../a", "a/", "a\\b", "a\0b"])
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^record\.json: names .*isn't a plain file") as caught:
        check_plain_name(name, Path("record.json"))
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
