"""A bank and an evaluation of the real mini preset by workers equal those of a single process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import run

from rimjax.distributed import fill
from rimjax.references import store

BANK = ("--classes", "sneaker,bag,coat", "--images", "2")
EVALUATION = ("--limit", "6", "--images", "2")


def digest(printed: str) -> str:
    return store.digest_references(store.read_manifest(printed.split()[-1]))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@contextmanager
def hide_folder(cache: Path) -> Any:
    """Stand in for a cache folder that workers on another machine don't see."""
    yield fill.Target(cache / "elsewhere", "nothing.mark")


@pytest.mark.parametrize("is_shared", [True, False])
def test_workers_results_are_those_of_one_process(
    cluster: Any,
    alone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_shared: bool,
) -> None:
    if not is_shared:
        monkeypatch.setattr(fill, "mark_folder", hide_folder)
    expected = digest(run("bank", "build", *BANK, "--cache-dir", alone, capsys=capsys))
    built = run("bank", "build", *BANK, "--cache-dir", tmp_path, "--ray", "auto", capsys=capsys)
    assert digest(built) == expected and "bank, " in built

    def evaluate(cache: Path, *more: object) -> tuple[dict[str, Any], str]:
        file = cache / "figures.json"
        words = (*EVALUATION, "--cache-dir", cache, "--json", file, *more)
        printed = run("evaluate", *words, capsys=capsys)
        figures = json.loads(file.read_text())
        return {key: figures[key] for key in ("miou", "iou") if key in figures}, printed

    figures, printed = evaluate(tmp_path, "--ray", "auto")
    assert figures == evaluate(alone)[0] and figures
    assert "regions, " in printed
    assert "propose" not in printed.split("per image")[1], "all regions were stored"
