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

pytest.importorskip("ray", reason='Ray is missing: pip install ".[ray]"')

SMALL = ("--classes", "sneaker,bag", "--images", "2")


def digest(printed: str) -> str:
    return store.digest_references(store.read_manifest(printed.split()[-1]))


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
        file = cache / "figures.json"
        words = ("--only-bank-classes", "--limit", "5", "--cache-dir", cache, "--json", file)
        printed = run("evaluate", "--bank", bank, *words, *more, capsys=capsys)
        figures = json.loads(file.read_text())
        return {key: figures[key] for key in ("miou", "iou") if key in figures}, printed

    figures, printed = evaluate(shared, built.split()[-1], "--ray", "auto")
    assert figures == evaluate(alone, expected)[0] and figures
    assert "regions, " in printed
    assert "propose" not in printed.split("per image")[1], "all regions were stored"


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
