"""Shards of `rimjax evaluate` merge to exactly the figures of a single run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trees
from cli import refused, run
from fakes import FakeProposer, fake_models
from PIL import Image
from runs import read_confusions

from rimjax.commands import options
from rimjax.evaluation import run_folder
from rimjax.evaluation.run_folder import merge_runs, read_finished

COUNT = trees.NUM_NOISY


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The command that evaluates `COUNT` images of patches with the fakes."""
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())
    root = trees.write_noisy_folder(tmp_path / "patches", "\n".join(trees.NOISY_CLASSES))
    return ("evaluate", "--dataset", root, "--cache-dir", tmp_path / "cache")


def read_figures(path: Path, *command: object) -> dict[str, Any]:
    """Run a command; return its `--json` without the timings."""
    run(*command, "--json", path)
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "timings"}


class Killed(BaseException):
    """Stands for a kill, since nothing catches it."""


def run_and_kill(
    monkeypatch: pytest.MonkeyPatch, result: int, missing: int, command: tuple[object, ...]
) -> None:
    """Run a command that dies as it writes a result.

    Args:
        result: number of the result, from 1 on.
        missing: bytes at the end of the result that aren't on the disk.
        command: the command line.
    """
    count = 0

    def sync(handle: int) -> None:
        nonlocal count
        os.fsync(handle)
        count += 1
        if count == result:
            os.ftruncate(handle, os.fstat(handle).st_size - missing)
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "os", SimpleNamespace(fsync=sync))
        with pytest.raises(Killed):
            run(*command)


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_the_limit_applies_before_the_shards(
    evaluate: tuple[object, ...], tmp_path: Path, limit: int
) -> None:
    limited = (*evaluate, "--limit", limit)
    whole = read_figures(tmp_path / "whole.json", *limited, "--output", tmp_path / "whole")
    assert whole["num_images"] == min(limit, COUNT)
    shards = [tmp_path / str(index) for index in range(1, 1 + min(limit, 2))]
    for index, shard in enumerate(shards, start=1):
        run(*limited, "--shard", f"{index}/2", "--output", shard)
    assert read_figures(tmp_path / "merged.json", "evaluate", "merge", *shards) == whole
    np.testing.assert_array_equal(read_confusions(*shards), read_confusions(tmp_path / "whole"))
    for start, shard in enumerate(shards):
        expected = {str(index) for index in range(start, min(limit, COUNT), 2)}
        assert read_finished(shard) == expected


def test_shards_killed_repeatedly_and_resumed_merge_to_a_single_run(
    evaluate: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_figures(tmp_path / "whole.json", *evaluate, "--output", tmp_path / "whole")
    shards = [tmp_path / f"shard-{index}" for index in (1, 2)]
    kills = [[(1, 1), (1, 30), (2, 0)], [(2, 5)]]
    for start, (shard, shard_kills) in enumerate(zip(shards, kills, strict=True)):
        arguments = ("--shard", f"{start + 1}/2", "--output", shard, "--save-labels")
        for result, missing in shard_kills:
            run_and_kill(monkeypatch, result, missing, (*evaluate, *arguments))
            complete = (shard / "images.jsonl").read_bytes().endswith(b"\n")
            assert not complete or not missing
        message = r"must hold the run's 7 images, got .*; finish the shards"
        with pytest.raises(ValueError, match=message):
            merge_runs(shards[: start + 1])
        run(*evaluate, *arguments)
        labels = {path.stem for path in (shard / "labels").iterdir()}
        assert labels == {str(index) for index in range(start, COUNT, 2)}
    merged = read_figures(tmp_path / "merged.json", "evaluate", "merge", *shards)
    assert merged == {**whole, "save_labels": True}
    np.testing.assert_array_equal(read_confusions(*shards), read_confusions(tmp_path / "whole"))


def test_more_shards_than_images(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_figures(tmp_path / "whole.json", *evaluate, "--output", tmp_path / "whole")
    shards = [tmp_path / str(index) for index in range(1, COUNT + 2)]
    for index, shard in enumerate(shards, start=1):
        arguments = ("--shard", f"{index}/{COUNT + 1}", "--output", shard)
        printed = run(*evaluate, *arguments, capsys=capsys)
        assert ("is empty" in printed) == (index > COUNT)
    assert read_figures(tmp_path / "merged.json", "evaluate", "merge", *shards) == whole


def test_bad_images_stay_bad_in_the_merged_run(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patches/images/2.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "patches/labels/5.png")
    whole = read_figures(tmp_path / "whole.json", *evaluate)
    shards = [tmp_path / "1", tmp_path / "2"]
    for index, shard in enumerate(shards, start=1):
        run(*evaluate, "--shard", f"{index}/2", "--output", shard)
    capsys.readouterr()
    merged = read_figures(tmp_path / "merged.json", "evaluate", "merge", *shards[::-1])
    assert "2 of 7 images could not be used" in capsys.readouterr().err
    assert merged == whole
    assert sorted(merged["bad_images"]) == ["2", "5"] and merged["num_images"] == 5


def test_merge_refuses_shards_of_other_limits_splits_and_data(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*evaluate, "--shard", "2/2", "--output", tmp_path / "half")
    run(*evaluate, "--shard", "1/2", "--limit", 6, "--output", tmp_path / "limited")
    run(*evaluate, "--shard", "1/3", "--output", tmp_path / "third")
    merge = ("evaluate", "merge", tmp_path / "half")
    assert "num_images must be 7, got 6" in refused(capsys, *merge, tmp_path / "limited")
    assert "third: holds 3, as another" in refused(capsys, *merge, tmp_path / "third")
    for folder in ("images", "labels"):
        path = tmp_path / f"patches/{folder}/6.png"
        path.rename(path.with_name("8.png"))
    run(*evaluate, "--shard", "1/2", "--output", tmp_path / "renamed")
    assert "images must be " in refused(capsys, *merge, tmp_path / "renamed")


def test_a_run_does_not_resume_with_another_proposer(
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = tmp_path / "1", tmp_path / "2"
    run(*evaluate, "--output", shards[0], "--shard", "1/2")
    proposer = FakeProposer()
    proposer.fingerprint = "cells-16x16"
    models = replace(fake_models(), proposer=proposer)
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    message = "weights.proposer must be fake-proposer, got cells-16x16"
    assert message in refused(capsys, *evaluate, "--output", shards[0], "--shard", "1/2")
    run(*evaluate, "--output", shards[1], "--shard", "2/2")
    assert message in refused(capsys, "evaluate", "merge", *shards)


def test_labels_that_are_all_ignored_are_refused(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "patches/labels").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    line = refused(capsys, *evaluate, "--json", tmp_path / "out.json")
    assert "got only ignored pixels" in line
    assert not (tmp_path / "out.json").exists()
