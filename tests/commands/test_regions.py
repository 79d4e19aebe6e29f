"""`rimjax regions`: shards at once, what evaluate reads of them, show and verify."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import trees
from cli import refused, run
from fakes import FakeProposer, fake_models

from rimjax.commands import options


@pytest.fixture(autouse=True)
def fakes_for_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return trees.write_noisy_folder(tmp_path / "patches", "background\napple\nplum\nleaf\n")


def test_evaluate_reads_what_shards_built(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = ("evaluate", "--dataset", data, "--cache-dir")
    run(*evaluate, tmp_path / "other", "--json", tmp_path / "expected.json")
    proposed: list[int] = []
    propose = FakeProposer.propose

    def count(self: FakeProposer, image: np.ndarray) -> object:
        proposed.append(int(image.sum()))
        return propose(self, image)

    monkeypatch.setattr(FakeProposer, "propose", count)
    build = ("regions", "build", "--dataset", data, "--cache-dir", tmp_path / "cache", "--shard")
    for index in (1, 2, 3, 4):
        run(*build, f"{index}/4")
    assert "2 images, 0 of them computed now" in run(*build, "1/4", capsys=capsys)
    assert len(proposed) == trees.NUM_NOISY == len(set(proposed))
    run(*evaluate, tmp_path / "cache", "--json", tmp_path / "stored.json")
    assert len(proposed) == trees.NUM_NOISY
    expected, stored = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("expected", "stored")
    )
    assert stored.pop("timings").keys() == {"load", "match", "assemble"}
    assert expected.pop("timings") and stored.pop("sources") != expected.pop("sources")
    assert stored == expected


def test_shards_that_build_at_once_compute_everything_once(data: Path, tmp_path: Path) -> None:
    from rimjax.datasets import load
    from rimjax.regions.store import RegionStore

    items, failed = load(str(data)).items, []

    def build(first: int) -> None:
        try:
            store = RegionStore.open(tmp_path / "cache", fake_models())
            for item in items[first::4]:
                store.load(item.image())
            store.join()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=build, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store = RegionStore.open(tmp_path / "cache", fake_models())
    assert all(store.has(item.image()) for item in items)
    for archive in (store.proposals, store.features):
        archive.join()
        assert archive.verify() == (len(items), [])


def test_show_and_verify(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ("--cache-dir", tmp_path / "cache")
    assert "no regions are kept here" in run("regions", "show", *cache, capsys=capsys)
    run("regions", "build", "--dataset", data, *cache, capsys=capsys)
    shown = run("regions", "show", *cache, capsys=capsys)
    assert shown.count(f"{trees.NUM_NOISY} images, 1 files") == 2
    assert "proposer fake-proposer" in shown and "MiB per 1,000 images" in shown
    assert "7 images are whole" in run("regions", "verify", *cache, capsys=capsys)
    (part,) = (tmp_path / "cache/regions").glob("features-*/part-*")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        run("regions", "verify", *cache)
    printed = capsys.readouterr()
    assert stop.value.code == 1 and f"{part}: " in printed.err
    assert "6 images are whole" in printed.out
    rebuilt = run("regions", "build", "--dataset", data, *cache, capsys=capsys)
    assert "7 images, 1 of them computed now" in rebuilt
    assert "7 images are whole" in run("regions", "verify", *cache, capsys=capsys)
    part.write_bytes(content[:100]) if part.exists() else None
    about = part.parent / "about.json"
    about.write_text("{")
    run("regions", "build", "--dataset", data, *cache)
    assert "encoder" in json.loads(about.read_text()), "what can't be read is written again"


def test_a_bad_image_is_named_and_the_others_are_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images/3.png").write_bytes(b"none")
    cache = ("--cache-dir", tmp_path / "cache")
    with pytest.raises(SystemExit) as stop:
        run("regions", "build", "--dataset", data, *cache)
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert "1 of 7 images could not be used: 3" in printed.err and "6 images" in printed.out


def test_bad_options_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ("regions", "build", "--dataset", data)
    assert '--shard must be "i/n"' in refused(capsys, *build, "--shard", "5/4")
    assert "--limit must be at least 1" in refused(capsys, *build, "--limit", 0)
