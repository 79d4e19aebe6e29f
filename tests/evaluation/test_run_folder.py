"""The folder of a run: lines cut short or damaged, and a single writer at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest
from runs import read_confusions

from rimjax.evaluation import run_folder
from rimjax.evaluation.run_folder import ImageResult, merge_runs, open_run, summarise_run

DESCRIPTION = {"classes": ["a"], "background": True, "num_images": 2, "shard": None}


def test_a_last_line_cut_anywhere_is_dropped(tmp_path: Path) -> None:
    confusions = {"a": np.array([[3, 0], [2**33, 1]]), "b": np.array([[0, 7], [0, 0]])}
    with open_run(tmp_path, DESCRIPTION) as (_, append):
        for name, confusion in confusions.items():
            append(ImageResult.from_confusion(name, confusion, {"match": 0.25}))
    path = tmp_path / "images.jsonl"
    whole = path.read_bytes()
    evaluation = summarise_run(*merge_runs([tmp_path]))
    np.testing.assert_array_equal(read_confusions(tmp_path), [*confusions.values()])
    assert evaluation.confusion is not None
    np.testing.assert_array_equal(evaluation.confusion, sum(confusions.values()))
    np.testing.assert_array_equal(evaluation.counts.hits, [[3, 1], [0, 0]])
    np.testing.assert_array_equal(evaluation.counts.unions, [[3 + 2**33, 1 + 2**33], [7, 7]])
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with open_run(tmp_path, DESCRIPTION) as (results, append):
            assert list(results) == (["a"] if cut >= first else [])
            for name in confusions.keys() - results.keys():
                append(ImageResult.from_confusion(name, confusions[name], {"match": 0.25}))
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


WRITER = """
import sys
if {hide_fcntl}:
    sys.modules["fcntl"] = None
from pathlib import Path
import filelock
from rimjax.evaluation.run_folder import open_run
assert not {hide_fcntl} or filelock.FileLock is filelock.SoftFileLock
with open_run(Path({folder!r}), {description!r}):
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def write_in_another_process(folder: Path, hide_fcntl: bool) -> Iterator[None]:
    """Hold a run open in another process."""
    script = WRITER.format(hide_fcntl=hide_fcntl, folder=str(folder), description=DESCRIPTION)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "writing\n"
            yield
        finally:
            process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize("hide_fcntl", [False, True], ids=["fcntl", "no fcntl"])
def test_two_processes_do_not_write_to_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide_fcntl: bool
) -> None:
    if hide_fcntl:  # filelock offers this lock where fcntl can't be imported
        monkeypatch.setattr(run_folder, "FileLock", filelock.SoftFileLock)
    with write_in_another_process(tmp_path, hide_fcntl):
        message = f"{tmp_path}: another process is writing to this run"
        with pytest.raises(ValueError, match=message), open_run(tmp_path, DESCRIPTION):
            pass
    with open_run(tmp_path, DESCRIPTION) as (results, _):
        assert not results


def test_a_process_does_not_open_a_run_twice(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, DESCRIPTION),
        pytest.raises(ValueError, match="another process"),
        open_run(tmp_path, DESCRIPTION),
    ):
        pass


def test_a_changed_digit_is_noticed(tmp_path: Path) -> None:
    with open_run(tmp_path, DESCRIPTION) as (_, append):
        append(ImageResult("a", [[0, 1, 42]]))
    for name, changes, message in (
        ("images.jsonl", (b"42", b"43"), "line 1 is damaged; delete that line"),
        ("run.json", (b'"num_images": 2', b'"num_images": 1'), "differs from its own digest"),
    ):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole.replace(*changes))
        assert (tmp_path / name).read_bytes() != whole
        with pytest.raises(ValueError, match=message), open_run(tmp_path, DESCRIPTION):
            pass
        with pytest.raises(ValueError, match=message):
            merge_runs([tmp_path])
        (tmp_path / name).write_bytes(whole)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, DESCRIPTION) as (_, append):
        append(ImageResult("a"))
    with (tmp_path / "images.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(ValueError, match="line 2 is damaged"), open_run(tmp_path, DESCRIPTION):
        pass
