"""The experiments: every script runs on a little of mini; nothing is computed twice."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rimjax.datasets import fashion_mnist
from rimjax.evaluation import Evaluation, evaluate
from rimjax.evaluation.metrics import Counts, mean_iou
from rimjax.models.protocols import Models
from rimjax.models.sam.model import Sam

FOLDER = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem.startswith(("table", "fig")))
SCRIPTS = [name for name in SCRIPTS if name != "tables"] + ["beyond", "ablations", "failures"]
SCRIPTS += ["half_precision", "rankings"]


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("harness")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_experiment(harness: ModuleType, cache: Path, out: Path) -> Any:
    return harness.Experiment(limit=2, images=3, cache_dir=cache, out=out)


@pytest.mark.parametrize("name", ["reliability", "unknown", "unfamiliar"])
def test_the_scripts_about_calibration_write_their_results(
    name: str, harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    if not fashion_mnist.DEBIAN_ROOT.exists():
        pytest.skip(f"{fashion_mnist.DEBIAN_ROOT}: no photographs; install dataset-fashion-mnist")
    options: Any = importlib.import_module(name)
    options = getattr(options, "Unfamiliar", harness.Experiment)
    experiment = options(limit=3, images=3, cache_dir=cache, out=tmp_path)
    importlib.import_module(name).main(experiment)
    rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
    if name == "unfamiliar":
        counts = {row["images"]: (int(row["unfamiliar"]), int(row["number"])) for row in rows}
        assert counts["the benchmark's scenes"] == (0, 3) and counts["noise"] == (3, 3)
        return
    assert min(Image.open(tmp_path / f"{name}.png").size) > 100
    if name == "reliability":
        assert all(0 <= float(row["named rightly"]) <= 1 for row in rows)
        return
    for row in rows:
        shares = [float(row[key]) for key in ("caught", "lost", "lost of the rightly named")]
        assert min(shares) >= 0 and max(shares) <= 1
    curve = [float(row["caught"]) for row in rows if row["measure"] == "score"][:10]
    assert curve == sorted(curve)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_writes_its_results(
    name: str, harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    importlib.import_module(name).main(make_experiment(harness, cache, tmp_path))
    rows = list(csv.reader((tmp_path / f"{name}.csv").open()))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    if "measured" in rows[0]:
        measured = [float(row[2]) for row in rows[1:] if row[2] != "-"]
        assert measured and all(0 <= value <= 100 for value in measured)
    if name.startswith("fig") or name in ("beyond", "failures", "rankings"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 100


def test_settings_of_the_proposals_are_compared(
    harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    script: Any = importlib.import_module("proposal_settings")
    script.main(make_experiment(harness, cache, tmp_path))
    default, *rows = csv.DictReader((tmp_path / "proposal_settings.csv").open())
    assert default["over the default"] == default["lost"] == "" and len(rows) == 5
    for row in rows:
        assert float(row["over the default"]) > 0 and 0 <= float(row["mIoU (%)"]) <= 100
        assert 0 <= int(row["lost"]) <= 2 * float(default["masks an image"])
        assert 0 <= int(row["new"]) <= 2 * float(row["masks an image"])


def test_every_setting_pays_for_the_images_encoding(
    harness: ModuleType, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(harness, cache, tmp_path)
    trials = importlib.import_module("proposal_settings").list_trials(experiment)
    models = trials["default"].models
    setup, encode, encoded = (experiment.build_bank(models), models.segmentation), Sam._encode, []

    def count(sam: Sam, image: np.ndarray) -> Any:
        encoded.append(image.shape)
        return encode(sam, image)

    monkeypatch.setattr(Sam, "_encode", count)
    for number, name in enumerate(list(trials)[:3], 1):
        trials[name].segment(experiment.items[0], setup, background=True)
        assert len(encoded) == number


def test_masks_without_a_counterpart_are_counted(harness: ModuleType) -> None:
    count: Any = importlib.import_module("proposal_settings").count_unmatched
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :, :9], masks[1], masks[2, :2] = True, True, True
    most = masks.copy()
    most[0, 0, 0] = False
    assert count(masks, masks) == count(masks[:0], masks) == 0 and count(masks, masks[:0]) == 3
    assert count(masks, most[:1]) == 2  # 0.9 of the second mask is no counterpart
    assert count(most, masks[2:]) == 2


def test_the_tour_is_a_picture_of_an_image_and_its_explanation(
    harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    tour: Any = importlib.import_module("tour")
    tour.main(tour.Tour(image=1, images=3, cache_dir=cache, out=tmp_path))
    picture = np.asarray(Image.open(tmp_path / "tour.png"))
    assert picture.shape[1] == 1210 and picture.shape[0] > 1300
    assert picture[:300].std() > 20 and picture[-300:].std() > 20


def test_regions_are_computed_once_and_count_as_in_evaluate(
    harness: ModuleType, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(harness, cache, tmp_path)
    models: Models = experiment.load_models("rimjax")
    bank, load = experiment.build_bank(models), experiment.open_regions(models)
    limited = replace(experiment.dataset, items=experiment.items)
    expected = evaluate(limited, bank, models)
    for item in experiment.items:
        load(item.image(), {})

    def fail(*args: object) -> None:
        raise AssertionError("proposed, encoded or drawn again")

    stages = {"proposer": "propose", "encoder": "encode", "generator": "generate"}
    for stage, method in stages.items():
        monkeypatch.setattr(type(getattr(models, stage)), method, fail)
    experiment.build_bank(models, num_subcategories=2, whiten=0)
    evaluations = experiment.evaluate(load, {"row": (bank, models.segmentation)})
    np.testing.assert_array_equal(evaluations["row"].counts.hits, expected.counts.hits)
    np.testing.assert_array_equal(evaluations["row"].counts.unions, expected.counts.unions)


def test_the_gain_pairs_the_images(harness: ModuleType) -> None:
    measure_gain = importlib.import_module("tables").measure_gain
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (30, 3, 3))
    pair = {"base": confusions, "better": confusions + 20 * np.eye(3, dtype=int)}
    base, better = (
        Evaluation(("background", "a", "b"), Counts.from_confusions(each), {})
        for each in pair.values()
    )
    point, low, high = measure_gain(better, base)
    assert point == pytest.approx(100 * (better.miou - base.miou)) and low < point < high
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=1000)

    def draw_miou(name: str, times: np.ndarray) -> float:
        return 100 * mean_iou(np.einsum("n,nij", times, pair[name]))

    plain = [draw_miou("better", times) - draw_miou("base", times) for times in counts]
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))
    assert measure_gain(base, base) == (0, 0, 0)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    options = ("--preset", "paper", "--data", str(tmp_path), "--weights-dir", str(tmp_path))
    command = [sys.executable, str(FOLDER / "table5.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("table5.py: ")


def test_partial_runs_leave_the_reported_results_alone(harness: ModuleType) -> None:
    whole = harness.Experiment().folder
    numbers = ({"dtype": "bfloat16"}, {"encoder_dtype": "bfloat16"})
    for part in ({"limit": 3}, {"images": 2}, {"dataset_name": "elsewhere"}, *numbers):
        assert harness.Experiment(**part).folder != whole
    assert harness.Experiment(dataset_name="fashion-scenes").folder == whole
    folders = [
        harness.Experiment(preset="paper", dataset_name=name).folder.name
        for name in ("voc", "context", "coco-object")
    ]
    assert folders == ["paper-voc", "paper-context", "paper"]
    with pytest.raises(ValueError, match="dataset must be left out with --validation"):
        _ = harness.Experiment(validation=True, dataset_name="voc").dataset


def test_an_image_that_cannot_be_counted_is_named(
    harness: ModuleType, cache: Path, tmp_path: Path
) -> None:
    experiment = make_experiment(harness, cache, tmp_path)
    models = experiment.load_models("rimjax")
    bad = replace(experiment.items[0], labels=lambda: np.zeros((5, 6), np.uint8))
    experiment.__dict__["dataset"] = replace(experiment.dataset, items=[bad])
    rows = {"row": (experiment.build_bank(models), models.segmentation)}
    with pytest.raises(ValueError, match=f"^{bad.id}: labels must have the image's size 128x128"):
        experiment.evaluate(experiment.open_regions(models), rows)
