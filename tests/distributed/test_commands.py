"""A bank and an evaluation of the real mini preset by workers equal those of a single process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import refused, run

from rimjax.distributed import fill
from rimjax.references import store
from rimjax.sealed import unseal

pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')

SMALL = ("--classes", "sneaker,bag", "--images", "2")


def digest(printed: str) -> str:
    return store.digest_references(store.read_manifest(printed.split()[-1]))


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]


def read_cells(folder: Path) -> dict[str, Any]:
    """Read the pixel counts of a run's images."""
    lines = [unseal(line) for line in read_lines(folder / "images.jsonl")]
    return {line["image"]: line["cells"] for line in lines}


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
    assert digest(built) == digest(expected) and "bank, " in built

    def evaluate(cache: Path, bank: str, *more: object) -> tuple[dict[str, Any], str]:
        words = ("--only-bank-classes", "--limit", "5", "--cache-dir", cache)
        words += ("--json", cache / "figures.json", "--output", cache / "run")
        printed = run("evaluate", "--bank", bank, *words, *more, capsys=capsys)
        figures = json.loads((cache / "figures.json").read_text())
        return {key: figures[key] for key in ("miou", "per_class", "bank")}, printed

    figures, printed = evaluate(shared, built.split()[-1], "--ray", "auto")
    assert figures == evaluate(alone, expected)[0]
    assert read_cells(shared / "run") == read_cells(alone / "run")
    labels = sorted((alone / "run/labels").iterdir())
    assert [(shared / "run/labels" / path.name).read_bytes() for path in labels] == [
        path.read_bytes() for path in labels
    ]
    assert len(labels) == 5 and "evaluate, " in printed
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
    monkeypatch.setattr(fill, "mark_folder", hide_folder)
    built = run("bank", "build", *SMALL, "--cache-dir", tmp_path, "--ray", "auto", capsys=capsys)
    assert len(list((tmp_path / "references").iterdir())) == 2 and "bank, " in built
    words = ("--limit", "3", "--cache-dir", tmp_path, "--ray", "auto")
    assert "3 images, 0 of them computed now" in run("regions", "build", *words, capsys=capsys)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--ray-workers", "2"), "--ray must be given with the numbers of its workers"),
        (("--ray", "auto", "--ray-workers", "0"), "--ray-workers must be at least 1"),
        (("--ray", "auto", "--ray-cpus", "0"), "ray_cpus and --ray-gpus must be at least 0"),
        (("--ray", "auto", "--ray-gpus", "1"), "must have room for a worker of 1 CPUs and 1 GPUs"),
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
