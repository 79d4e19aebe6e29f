"""A disk that fills at every write: the file is named, and the same call goes on."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import trees
import workers
from cli import refused
from fakes import COLOURS, fake_models
from PIL import Image

from rimjax.commands import class_options, options

FULL = "No space left on device"
Fill = Callable[[], None]


@contextmanager
def mount(folder: Path, pages: int) -> Iterator[Fill]:
    """Mount a disk of so many pages of 4 KiB; yield a function that makes it large."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "none", folder], check=True)
    try:
        yield (
            lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True) and None
        )
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def can_mount() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid():
        return False
    command = "mount -t tmpfs none /mnt && umount /mnt"
    return not subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True
    ).returncode


needs_mount = pytest.mark.skipif(not can_mount(), reason="only root can mount a small tmpfs")


@contextmanager
def fail_at(number: int, folder: Path) -> Iterator[list[str]]:
    """Let the n-th file that is opened to be written in a folder accept nothing.

    Yields:
        The files that were opened so far.
    """
    opened: list[str] = []
    plain = {"open": builtins.open, "io": io.open}

    class FullFile(io.FileIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, FULL)

    def open_file(file: object, mode: str = "r", *args: object, **options: object) -> object:
        name = os.fspath(file) if isinstance(file, str | os.PathLike) else ""
        inside = str(name).startswith(str(folder)) and not str(name).endswith("log")
        if not inside or not set(mode) & set("wxa+"):
            return plain["open"](file, mode, *args, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        opened.append(str(name))
        if len(opened) != number:
            return plain["open"](file, mode, *args, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        full = FullFile(name, mode.replace("b", "").replace("t", ""))
        if options.get("buffering") == 0 or args[:1] == (0,):
            return full
        buffered = io.BufferedWriter(full)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    with mock.patch.object(builtins, "open", open_file), mock.patch.object(io, "open", open_file):
        yield opened


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed build writes."""
    folder = tmp_path_factory.mktemp("whole")
    workers.build(folder)
    return workers.read_tree(folder / "cache")


def check_stopped_build(folder: Path, error: OSError, whole: dict[str, bytes]) -> None:
    """Check what a build that met a full disk says and leaves; then let it go on."""
    message, cache = str(error), folder / "cache"
    assert str(cache) in message and f"can't be written ({FULL})" in message, message
    assert "\n" not in message and "free space" in message
    kept = workers.read_tree(cache) if cache.exists() else {}
    assert kept.items() <= whole.items(), "whole folders or none"
    assert not list(cache.rglob(".rimjax-tmp-*"))


def finish_build(folder: Path, whole: dict[str, bytes]) -> None:
    workers.build(folder)
    assert workers.read_tree(folder / "cache") == whole
    assert len(workers.read_log(folder)) <= len(workers.NAMES) + 1


def test_a_build_meets_a_full_disk_at_every_file(
    tmp_path: Path, robust: int, whole: dict[str, bytes]
) -> None:
    stopped = tried = 0
    for number in range(1, 200, 1 if robust > 1 else 7):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fail_at(number, folder) as opened:
            try:
                workers.build(folder)
            except OSError as error:
                stopped += 1
                check_stopped_build(folder, error, whole)
                assert "on from there" in str(error) or number <= 2, "the first 2 files are probes"
        if len(opened) < number:
            break
        tried += 1
        finish_build(folder, whole)
    print(f"{stopped} files refused")
    assert stopped == tried > len(whole) / 8, "every file that was tried was refused"


@needs_mount
def test_a_build_meets_a_disk_of_every_size(
    tmp_path: Path, robust: int, whole: dict[str, bytes]
) -> None:
    stopped = 0
    sizes = [1 + (-(-len(content) // 4096)) for content in whole.values()]
    for pages in range(1, sum(sizes) + 2, 1 if robust > 1 else 4):
        folder = tmp_path / str(pages)
        with mount(folder, pages) as enlarge:
            try:
                workers.build(folder)
            except OSError as error:
                stopped += 1
                check_stopped_build(folder, error, whole)
            enlarge()
            finish_build(folder, whole)
    print(f"{stopped} full disks")
    assert stopped >= 5


def read_run(folder: Path) -> dict[str, bytes]:
    """Return the label maps of a run, and the images that it has a result of."""
    text = (folder / "run/images.jsonl").read_text()
    labels = workers.read_tree(folder / "run/labels")
    return {**labels, "images": str(sorted(line[:15] for line in text.splitlines())).encode()}


@needs_mount
def test_an_evaluation_meets_a_disk_of_every_size(
    tmp_path: Path, robust: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = trees.write_noisy_folder(tmp_path / "patches", "background\napple\nplum\nleaf\n")
    workers.evaluate(data, tmp_path)
    expected, stopped = read_run(tmp_path), 0
    for pages in range(1, 20, 1 if robust > 1 else 4):
        folder = tmp_path / f"disk-{pages}"
        with mount(folder, pages) as enlarge:
            capsys.readouterr()
            try:
                workers.evaluate(data, folder)
            except SystemExit as stop:
                stopped += 1
                line = capsys.readouterr().err.splitlines()[-1]
                assert stop.code == 2 and line.startswith(f"rimjax: {folder}/run"), line
                assert f"can't be written ({FULL})" in line and "free space" in line
            enlarge()
            workers.evaluate(data, folder)
            assert read_run(folder) == expected
            begun = workers.read_log(folder)
            assert len(begun) <= trees.NUM_NOISY + 1
    print(f"{stopped} full disks")
    assert stopped >= 2


@needs_mount
def test_segment_names_the_result_that_a_full_disk_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = np.random.default_rng(0).integers(0, 3, (300, 400))
    Image.fromarray(np.array([*COLOURS.values()], np.uint8)[chosen]).save(tmp_path / "a.png")
    with (
        mount(tmp_path / "disk", 2),
        mock.patch.object(options, "load_preset", lambda *args, **options: fake_models()),
        mock.patch.object(class_options, "check_words", lambda *args: None),
    ):
        words = ("--classes", "apple", "--cache-dir", tmp_path / "cache")
        line = refused(capsys, "segment", tmp_path / "a.png", *words, "--output", tmp_path / "disk")
    full = f"rimjax: {tmp_path}/disk/a_segmented.png: can't be written ({FULL}); free space"
    assert line.startswith(full)
