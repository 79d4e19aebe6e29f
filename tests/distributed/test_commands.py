"""A bank and an evaluation of the real mini preset by workers equal those of a single process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import refused, run
from distributed_runs import digest, read_cells, read_lines
from PIL import Image

from rimjax import datasets
from rimjax.commands import fill as commands_fill
from rimjax.commands import segment_run
from rimjax.distributed import fill

pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')

SMALL = ("--classes", "sneaker,bag", "--images", "2")


@contextmanager
def hide_folder(cache: Path) -> Any:
    """Stand in for a cache folder that workers on another machine don't see."""
    yield fill.Target(cache / "elsewhere", "nothing.mark")


def test_workers_results_are_those_of_one_process(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = run("bank", "build", *SMALL, "--cache-dir", alone, capsys=capsys).split()[-1]
    built = run("bank", "build", *SMALL, "--cache-dir", shared, "--ray", "auto", capsys=capsys)
    assert built.split() == [str(next((shared / "banks").glob("*.json")))], "the path alone"
    assert digest(built.split()[-1]) == digest(expected)

    def evaluate(cache: Path, bank: str, *more: object) -> dict[str, Any]:
        words = ("--only-bank-classes", "--limit", "5", "--cache-dir", cache)
        words += ("--json", cache / "figures.json", "--output", cache / "run")
        run("evaluate", "--bank", bank, *words, *more)
        figures = json.loads((cache / "figures.json").read_text())
        return {key: figures[key] for key in ("miou", "per_class", "bank")}

    figures = evaluate(shared, built.split()[-1], "--ray", "auto")
    assert " did " in capsys.readouterr().err
    assert figures == evaluate(alone, expected)
    assert read_cells(shared / "run") == read_cells(alone / "run")
    labels = sorted((alone / "run/labels").iterdir())
    assert [(shared / "run/labels" / path.name).read_bytes() for path in labels] == [
        path.read_bytes() for path in labels
    ]
    assert len(labels) == 5
    entries = [json.loads(line) for line in read_lines(shared / "run/workers.jsonl")]
    assert sorted(entry["image"] for entry in entries) == [f"scene-{i:03d}" for i in range(5)]
    assert {(entry["given_to"], entry["error"]) for entry in entries} == {(1, None)}
    words = ("--limit", "5", "--cache-dir", shared)
    assert "5 images, 0 of them computed now" in run("regions", "build", *words, capsys=capsys)


def test_an_unknown_class_is_refused_before_any_worker_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("bank", "build", "--classes", "zebra", "--cache-dir", tmp_path)
    assert "zebra" in refused(capsys, *build, "--ray", "no such address")


def test_workers_that_do_not_see_the_folder_send_back_what_they_made(
    cluster: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (fill, commands_fill, segment_run):
        monkeypatch.setattr(module, "mark_folder", hide_folder)
    words = ("--cache-dir", tmp_path / "cache", "--ray", "auto")
    built = run("bank", "build", *SMALL, *words, capsys=capsys)
    bank = built.split()[-1]
    assert len(list((tmp_path / "cache/references").iterdir())) == 2
    evaluate = ("evaluate", "--bank", bank, "--only-bank-classes", "--limit", "3")
    run(*evaluate, *words, "--output", tmp_path / "run", capsys=capsys)
    assert len(list((tmp_path / "run/labels").iterdir())) == 3
    regions = ("regions", "build", "--limit", "4", *words)
    assert "4 images, 1 of them computed now" in run(*regions, capsys=capsys)
    write_pictures(tmp_path / "photos", 2)
    segment = ("segment", tmp_path / "photos", "--bank", bank)
    run(*segment, *words, "--output", tmp_path / "out", capsys=capsys)
    run(*segment, "--output", tmp_path / "alone", capsys=capsys)
    assert read_pictures(tmp_path / "out") == read_pictures(tmp_path / "alone") != {}


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for item in datasets.load("fashion-scenes").items[:count]:
        Image.fromarray(item.image()).save(folder / f"{item.id}.png")


def read_pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.png"))}


def test_a_folder_is_segmented_by_workers(
    cluster: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files are those of one process; what can't be read is named, and the rest goes on."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("photos"), 3)
    Path("photos/bad.png").write_bytes(b"not a picture")
    words = ("--cache-dir", tmp_path / "cache", "--format", "overlay,labels,coco")
    segment = ("segment", "photos", *SMALL, *words, "--output")
    why = "1 of 4 images could not be used: photos/bad.png"
    assert why in refused(capsys, *segment, "alone", status=1)
    assert why in refused(capsys, *segment, "out", "--ray", "auto", status=1)
    assert read_pictures(Path("out")) == read_pictures(Path("alone")) != {}
    annotations = [
        json.loads(Path(name, "annotations.json").read_text()) for name in ("out", "alone")
    ]
    assert annotations[0]["annotations"] == annotations[1]["annotations"] != []
    entries = [json.loads(line) for line in read_lines(Path("out/workers.jsonl"))]
    assert [entry["image"] for entry in entries if entry["error"]] == ["photos/bad.png"]
    assert len(entries) == 4

    assert why in refused(capsys, *segment, "out", "--ray", "auto", status=1)
    assert len(read_lines(Path("out/workers.jsonl"))) == 5, "only the bad image is tried again"
    assert "output must be a folder with --ray" in refused(
        capsys, "segment", "photos/scene-000.png", *SMALL, "--ray", "auto", "--output", "out.png"
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--ray-workers", "2"), "--ray must be given with the numbers of its workers"),
        (("--ray", "auto", "--ray-workers", "0"), "--ray-workers must be at least 1"),
        (("--ray", "auto", "--ray-cpus", "0"), "ray_cpus and --ray-gpus must be at least 0"),
        (("--ray", "auto", "--ray-gpus", "1"), "room for a worker of 1 CPUs and 1 GPUs"),
        # Two machines of one CPU have no room for a worker of two.
        (("--ray", "auto", "--ray-cpus", "2"), "room for a worker of 2 CPUs and 0 GPUs, got 1 and"),
    ],
)
def test_workers_that_cannot_be_had_are_refused(
    cluster: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    why: str,
) -> None:
    build = ("bank", "build", *SMALL, "--cache-dir", tmp_path)
    assert why in refused(capsys, *build, *words)
