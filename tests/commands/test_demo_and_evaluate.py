"""`rimjax demo` and `rimjax evaluate` for real, on mini: runs, shards and their merge agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli import run
from PIL import Image


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a demo of four scenes, with three images per class."""
    output = tmp_path_factory.mktemp("demo") / "output"
    run("demo", "--scenes", 4, "--images", 3, "--output", output)
    return output


def read(path: Path) -> dict[str, object]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "timings"}


def test_demo_writes_figures_and_pictures(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert results["num_images"] == 4 and 0.2 < results["miou"] <= 1
    low, high = results["miou_95"]
    assert low <= results["miou"] <= high
    stages = {"load", "propose", "encode", "pool", "match", "assemble"}
    assert set(results["timings"]) == stages
    assert results["settings"]["references"]["num_images"] == 3 and results["versions"]["jax"]
    assert {"generator", "masker", "proposer", "encoder"} == set(results["weights"])
    pictures = sorted(path.name for path in demo.glob("*.png"))
    assert pictures == ["references.png", *(f"scene-{i:02d}.png" for i in range(4)), "scenes.png"]
    assert np.asarray(Image.open(demo / "scenes.png")).std() > 10
    assert f"mIoU {100 * results['miou']:.1f} %" in (demo / "report.html").read_text()


def test_evaluate_equals_the_demo_and_its_merged_shards(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "--limit", 4, "--images", 3, "--cache-dir", demo / "cache")
    printed = run(*words, "--json", tmp_path / "whole.json", capsys=capsys)
    assert "mIoU" in printed and "ankle boot" in printed and "per image: load" in printed
    assert "propose" not in printed, "the demo's regions are kept"
    shards = [tmp_path / f"shard-{index}" for index in (1, 2)]
    for index, shard in enumerate(shards, start=1):
        run(*words, "--shard", f"{index}/2", "--output", shard, "--save-labels")
    run("evaluate", "merge", *shards, "--json", tmp_path / "merged.json")
    whole, merged = read(tmp_path / "whole.json"), read(tmp_path / "merged.json")
    assert merged == {**whole, "save_labels": True}
    results = read(demo / "results.json")
    assert {key: whole[key] for key in ("miou", "per_class", "weights")} == {
        key: results[key] for key in ("miou", "per_class", "weights")
    }
    labels = sorted(path.name for shard in shards for path in (shard / "labels").iterdir())
    assert labels == [f"scene-{index:03d}.png" for index in range(4)]
