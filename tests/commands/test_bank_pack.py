"""`rimjax bank pack` on the real mini preset: one file stands wherever the bank does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run
from PIL import Image
from safetensors.numpy import save

from rimjax.datasets import load
from rimjax.datasets.fashion_mnist import CLASSES

NAMES = ("sneaker", "bag")


@dataclass(frozen=True)
class Places:
    """A bank of two classes, the same bank packed, a scene, and a data set of two scenes."""

    bank: Path
    packed: Path
    scene: Path
    data: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("pack")
    data = folder / "data"
    for part in ("images", "labels"):
        (data / part).mkdir(parents=True)
    (data / "names.txt").write_text("\n".join(NAMES))
    wanted = np.zeros(len(CLASSES) + 1, np.uint8)
    wanted[[1 + CLASSES.index(name) for name in NAMES]] = 1, 2
    for index, item in enumerate(load("fashion-scenes").items[:2]):
        Image.fromarray(item.image()).save(data / f"images/{index}.png")
        Image.fromarray(wanted[item.labels()]).save(data / f"labels/{index}.png")
    words = ("--classes", ",".join(NAMES), "--images", 3, "--cache-dir", folder / "cache")
    run("bank", "build", *words)
    (bank,) = (folder / "cache/banks").glob("*.json")
    packed = folder / "packed.safetensors"
    run("bank", "pack", bank, packed)
    return Places(bank, packed, data / "images/0.png", data)


def test_segment_gives_the_same_labels(places: Places, tmp_path: Path) -> None:
    for name, bank in (("bank", places.bank), ("packed", places.packed)):
        for configuration in ("printed", "rimjax"):
            output = ("--output", tmp_path / f"{name}-{configuration}.png")
            words = ("--bank", bank, "--configuration", configuration, *output)
            run("segment", places.scene, *words)
    for configuration in ("printed", "rimjax"):
        ours, theirs = (
            (tmp_path / f"{name}-{configuration}_labels.png").read_bytes()
            for name in ("packed", "bank")
        )
        assert ours == theirs


def test_evaluate_gives_the_same_result_and_resumes_with_either(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "--dataset", places.data, "--cache-dir", tmp_path / "cache")
    results = []
    for name, bank in (("bank", places.bank), ("packed", places.packed)):
        run(*words, "--bank", bank, "--json", tmp_path / f"{name}.json")
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert result.pop("timings") and result.pop("sources")["bank"] == str(bank)
        results.append(result)
    assert results[0] == results[1] and results[0]["bank"]
    shards = [tmp_path / f"shard-{index}" for index in (1, 2)]
    for index, (shard, bank) in enumerate(
        zip(shards, (places.bank, places.packed), strict=True), start=1
    ):
        run(*words, "--bank", bank, "--output", shard, "--shard", f"{index}/2")
    run("evaluate", "merge", *shards, "--json", tmp_path / "merged.json")
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert {name: merged[name] for name in ("miou", "per_class", "bank")} == {
        name: results[0][name] for name in ("miou", "per_class", "bank")
    }
    for first, second in ((places.bank, places.packed), (places.packed, places.bank)):
        stopped = tmp_path / f"stopped{first.suffix}"
        run(*words, "--bank", first, "--output", stopped)
        lines = (stopped / "images.jsonl").read_text().splitlines(keepends=True)
        (stopped / "images.jsonl").write_text(lines[0])
        run(*words, "--bank", second, "--output", stopped, "--json", tmp_path / "resumed.json")
        resumed = json.loads((tmp_path / "resumed.json").read_text())
        assert resumed.pop("timings") and resumed.pop("sources") and resumed == results[0]
        assert (stopped / "images.jsonl").read_text().startswith(lines[0]), "kept"


def test_show_lists_what_a_packed_bank_holds(
    places: Places,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run("bank", "show", places.packed, capsys=capsys)
    for words in (
        *("sneaker: 3 images", "bag: 3 images", "preset mini, encoder ", "num_images 3, "),
        *(
            "rimjax ",
            "licence: generator mini (",
            "licence: masker mini (",
            "Fashion-MNIST's (MIT)",
        ),
        *("licence: encoder mini (", "it holds no pictures to draw"),
    ):
        assert words in printed
    assert not list(tmp_path.iterdir())
    line = refused(capsys, "bank", "show", places.packed, "--output", "sheet.png")
    assert "a packed bank holds no pictures; use the bank that it was packed from" in line
    assert not list(tmp_path.iterdir())


def test_a_packed_bank_is_neither_extended_nor_packed_again(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "bank", "add", places.packed, "--classes", "coat")
    assert "extend the bank that it was packed from, and pack the new one" in line
    line = refused(capsys, "bank", "pack", places.packed, tmp_path / "again.safetensors")
    assert "is a packed bank already; copy the file" in line
    assert not list(tmp_path.iterdir())


def test_only_packed_banks_are_replaced(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, mine = ("bank", "pack", places.bank), tmp_path / "mine.safetensors"
    weights = save({"weight": np.ones(3, np.float32)}, {"config": "mine"})
    mine.write_bytes(weights)
    message = "exists, and rimjax didn't write it; choose another name, or give --overwrite"
    assert message in refused(capsys, *pack, mine)
    assert mine.read_bytes() == weights
    assert "a bank or run needs it" in refused(capsys, *pack, places.bank)
    assert "must end in .safetensors" in refused(capsys, *pack, tmp_path / "packed")
    assert "is a folder" in refused(capsys, *pack, tmp_path)
    assert list(tmp_path.iterdir()) == [mine]
    run(*pack, mine, "--overwrite")
    run(*pack, mine)
    assert mine.read_bytes() == places.packed.read_bytes()


def test_a_packed_bank_that_cannot_be_used_is_named(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = ("segment", places.scene, "--output", tmp_path / "out.png", "--bank")
    line = refused(capsys, *segment, places.packed, "--encoder", "mini-clip")
    assert "bank must be built with these models' encoder" in line
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(places.packed.read_bytes()[:-1])
    for command in (segment, ("bank", "show"), ("evaluate", "--bank")):
        line = refused(capsys, *command, cut)
        assert "cut.safetensors: not a packed bank, or damaged" in line
    line = refused(capsys, *segment, places.packed, "--classes", "bag,sneaker")
    assert "--classes must be the bank's (sneaker, bag)" in line
    assert list(tmp_path.iterdir()) == [cut]
