"""The experiments: every script runs on a little of the mini preset, and what they share counts rightly and does nothing twice."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from rimjax.evaluation import Evaluation, evaluate
from rimjax.evaluation.metrics import mean_iou
from rimjax.models.protocols import Models

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem.startswith(("table", "fig"))
)
OTHERS = ["beyond", "failures"]


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("harness")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def experiment(harness: ModuleType, cache: Path, out: Path):
    return harness.Experiment(limit=2, images=3, cache_dir=cache, out=out)


@pytest.mark.parametrize("name", [*SCRIPTS, *OTHERS])
def test_every_script_writes_what_it_measured(
    name: str, harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    importlib.import_module(name).main(experiment(harness, cache, tmp_path))
    rows = list(csv.reader((tmp_path / f"{name}.csv").open()))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    if "measured" in rows[0]:
        measured = [float(row[2]) for row in rows[1:] if row[2] != "-"]
        assert measured and all(0 <= value <= 100 for value in measured)
    if name.startswith("fig") or name in OTHERS:
        assert min(Image.open(tmp_path / f"{name}.png").size) > 100


def test_regions_are_made_once_and_count_as_evaluates_do(
    harness: ModuleType, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = experiment(harness, cache, tmp_path)
    models: Models = one.models("rimjax")
    bank = one.bank(models)
    wanted = evaluate(one.images_of.scenes(2), bank, models)
    list(one.regions_of(models))

    def again(*args: object) -> None:
        raise AssertionError("proposed, encoded or drawn again")

    for stage, method in (
        (models.masker, "propose"),
        (models.encoder, "encode"),
        (models.generator, "generate"),
    ):
        monkeypatch.setattr(type(stage), method, again)
    one.bank(models, num_subcategories=2, whiten=0)
    found = one.evaluate(one.regions_of(models), {"it": (bank, models.segmentation)})["it"]
    np.testing.assert_array_equal(found.confusions, wanted.confusions)


@pytest.mark.usefixtures("harness")
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    cached = importlib.import_module("cached")
    path = tmp_path / "some.npz"
    made = cached.cached(path, lambda: {"a": np.arange(3)})
    whole = path.read_bytes()
    middle = len(whole) // 3
    for damaged in (whole[:40], whole[:middle] + bytes(8) + whole[middle + 8 :], b""):
        path.write_bytes(damaged)
        again = cached.cached(path, lambda: {"a": np.arange(3)})
        np.testing.assert_array_equal(made["a"], again["a"])
    np.testing.assert_array_equal(
        cached.cached(path, lambda: pytest.fail("made again"))["a"], made["a"]
    )


def test_the_gain_pairs_the_images(harness: ModuleType) -> None:
    rng = np.random.default_rng(0)
    base = Evaluation(("background", "a", "b"), rng.integers(0, 50, (30, 3, 3)), {})
    better = replace(base, confusions=base.confusions + 20 * np.eye(3, dtype=int))
    point, low, high = harness.gain(better, base)
    assert point == pytest.approx(100 * (better.miou - base.miou)) and low < point < high
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=1000)
    plain = [
        100
        * (
            mean_iou(np.einsum("n,nij", times, better.confusions))
            - mean_iou(np.einsum("n,nij", times, base.confusions))
        )
        for times in counts
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))
    assert harness.gain(base, base) == (0, 0, 0)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(FOLDER / "table5.py"),
        "--preset",
        "paper",
        "--data",
        str(tmp_path),
        "--weights-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("table5.py: ")


def test_less_than_all_leaves_the_reported_results_alone(harness: ModuleType) -> None:
    whole = harness.Experiment().folder
    for part in ({"limit": 3}, {"images": 2}, {"dataset": "elsewhere"}):
        assert harness.Experiment(**part).folder != whole
    assert harness.Experiment(dataset="fashion-scenes").folder == whole
    theirs = [
        harness.Experiment(preset="paper", dataset=name).folder.name
        for name in ("voc", "context", "coco-object")
    ]
    assert theirs == ["paper-voc", "paper-context", "paper"]
    with pytest.raises(ValueError, match="--validation: its scenes are a data set of their own"):
        _ = harness.Experiment(validation=True, dataset="voc").images_of


def test_an_image_that_cannot_be_counted_is_named(
    harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    one = experiment(harness, cache, tmp_path)
    models = one.models("rimjax")
    ((item, regions), *_) = one.regions_of(models)
    bad = replace(item, labels=lambda: np.zeros((5, 6), np.uint8))
    with pytest.raises(ValueError, match=f"^{item.id}: prediction must have the shape of truth"):
        one.evaluate(
            (pair for pair in [(bad, regions)]), {"it": (one.bank(models), models.segmentation)}
        )
