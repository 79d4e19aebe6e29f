"""Shards of `rimjax evaluate` merge to exactly the figures of one run, whatever happens to them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trees
from cli import refused, run
from fakes import FakeProposer, fake_models
from PIL import Image

from rimjax.commands import options
from rimjax.evaluation import run_folder

NAMES = ("apple", "plum", "leaf")
COUNT = 7


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The command that evaluates seven images of two patches, some labelled wrongly, some pixels ignored."""
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())
    rng, root = np.random.default_rng(0), tmp_path / "patches"
    for index in range(COUNT):
        drawn = rng.choice(3, 2, replace=False)
        image, truth = trees.patches(
            (40 + index, 80), [NAMES[one] for one in drawn], 1 + (drawn + (rng.random(2) < 0.3)) % 3
        )
        truth[rng.random(truth.shape) < 0.1] = 255
        for part, kind in ((image, "images"), (truth, "labels")):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(part).save(root / f"{kind}/{index}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return ("evaluate", "--dataset", root, "--cache-dir", tmp_path / "cache")


def figures(path: Path, *command: object) -> dict[str, object]:
    """What `--json` says but the seconds."""
    run(*command, "--json", path)
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "timings"}


def confusions(*folders: Path) -> np.ndarray:
    return run_folder.summarise_run(*run_folder.merge_runs(folders)).confusions


class Killed(BaseException):
    """Nothing catches it: what a kill leaves on the disk, without another process."""


def killed(
    monkeypatch: pytest.MonkeyPatch, after: int, torn: int, command: tuple[object, ...]
) -> None:
    """Run a command that dies while it writes its `after`-th result, all but the last `torn` bytes of which are on the disk."""
    written = []

    def fsync(handle: int) -> None:
        written.append(os.fsync(handle))
        if len(written) == after:
            os.ftruncate(handle, os.fstat(handle).st_size - torn)
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "os", SimpleNamespace(fsync=fsync))
        with pytest.raises(Killed):
            run(*command)


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_a_limit_comes_before_the_shards(
    words: tuple[object, ...], tmp_path: Path, limit: int
) -> None:
    whole = figures(
        tmp_path / "whole.json", *words, "--limit", limit, "--output", tmp_path / "whole"
    )
    assert whole["num_images"] == min(limit, COUNT)
    shards = [tmp_path / "1", tmp_path / "2"]
    for index, shard in enumerate(shards[: 1 if limit == 1 else 2], start=1):
        run(*words, "--limit", limit, "--shard", f"{index}/2", "--output", shard)
    folders = shards[: 1 if limit == 1 else 2]
    assert figures(tmp_path / "merged.json", "evaluate", "merge", *folders) == whole
    np.testing.assert_array_equal(confusions(*folders), confusions(tmp_path / "whole"))
    held = [set(run_folder._read_results(shard)[0]) for shard in folders]
    assert held == [
        {str(index) for index in range(first, min(limit, COUNT), 2)}
        for first in range(len(folders))
    ]


def test_shards_killed_again_and_again_and_resumed_merge_to_one_run(
    words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = figures(tmp_path / "whole.json", *words, "--output", tmp_path / "whole")
    shards = [tmp_path / f"shard-{index}" for index in (1, 2)]
    for index, (shard, deaths) in enumerate(
        zip(shards, [[(1, 1), (1, 30), (2, 0)], [(2, 5)]], strict=True), start=1
    ):
        command = (*words, "--shard", f"{index}/2", "--output", shard, "--save-labels")
        for after, torn in deaths:
            killed(monkeypatch, after, torn, command)
            assert not (shard / "images.jsonl").read_bytes().endswith(b"\n") or not torn
        with pytest.raises(
            ValueError, match=r"must hold the run's 7 images, got .*; finish the shards"
        ):
            run_folder.merge_runs(shards[:index])
        run(*command)
        assert {path.stem for path in (shard / "labels").iterdir()} == {
            str(one) for one in range(index - 1, COUNT, 2)
        }
    merged = figures(tmp_path / "merged.json", "evaluate", "merge", *shards)
    assert merged == {**whole, "save_labels": True}
    np.testing.assert_array_equal(confusions(*shards), confusions(tmp_path / "whole"))


def test_more_shards_than_images(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = figures(tmp_path / "whole.json", *words, "--output", tmp_path / "whole")
    folders = [tmp_path / str(index) for index in range(1, COUNT + 2)]
    for index, shard in enumerate(folders, start=1):
        command = (*words, "--shard", f"{index}/{COUNT + 1}", "--output", shard)
        if index > COUNT:
            assert "is empty" in run(*command, capsys=capsys)
        else:
            run(*command)
    assert figures(tmp_path / "merged.json", "evaluate", "merge", *folders) == whole


def test_bad_images_stay_bad_in_the_merged_run(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patches/images/2.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "patches/labels/5.png")
    whole = figures(tmp_path / "whole.json", *words)
    for index in (1, 2):
        run(*words, "--shard", f"{index}/2", "--output", tmp_path / str(index))
    capsys.readouterr()
    merged = figures(
        tmp_path / "merged.json", "evaluate", "merge", *(tmp_path / str(index) for index in (2, 1))
    )
    assert "2 of 7 images could not be used" in capsys.readouterr().err
    assert (
        merged == whole and sorted(merged["bad_images"]) == ["2", "5"] and merged["num_images"] == 5
    )  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_merge_refuses_shards_of_other_limits_splits_and_data(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in {
        "half": ("--shard", "2/2"),
        "limited": ("--shard", "1/2", "--limit", 6),
        "third": ("--shard", "1/3"),
    }.items():
        run(*words, *options, "--output", tmp_path / name)
    merge = ("evaluate", "merge", tmp_path / "half")
    assert "num_images: 7 there, 6 here" in refused(capsys, *merge, tmp_path / "limited")
    assert "third: holds 3, as another" in refused(capsys, *merge, tmp_path / "third")
    for kind in ("images", "labels"):
        (tmp_path / f"patches/{kind}/6.png").rename(tmp_path / f"patches/{kind}/8.png")
    run(*words, "--shard", "1/2", "--output", tmp_path / "other")
    assert "images: " in refused(capsys, *merge, tmp_path / "other")


def test_a_run_does_not_go_on_with_other_proposals(
    words: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(*words, "--output", tmp_path / "run", "--shard", "1/2")
    proposer = FakeProposer()
    proposer.fingerprint = "cells-16x16"
    monkeypatch.setattr(
        options, "load_preset", lambda *args, **options: replace(fake_models(), proposer=proposer)
    )
    message = "weights.proposer: fake-proposer there, cells-16x16 here"
    assert message in refused(capsys, *words, "--output", tmp_path / "run", "--shard", "1/2")
    run(*words, "--output", tmp_path / "other", "--shard", "2/2")
    assert message in refused(capsys, "evaluate", "merge", tmp_path / "run", tmp_path / "other")


def test_labels_that_are_all_ignored_are_one_line(
    words: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "patches/labels").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    assert "got only ignored pixels" in refused(capsys, *words, "--json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
