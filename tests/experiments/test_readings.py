"""The readings of Sec. 3.5: counted in one pass as in the loop, judged by the paper's order."""

from __future__ import annotations

import csv
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rimjax.evaluation.metrics import Counts
from rimjax.match import match
from rimjax.references.build import assemble_bank
from rimjax.settings import CONFIGURATIONS, ReferenceSettings, SegmentSettings

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def readings() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("readings")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def few(readings: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Keep one kind of features and two readings, since each compiles a kernel."""
    trials = readings.trials
    monkeypatch.setattr(trials, "FEATURES", dict(list(trials.FEATURES.items())[:1]))
    kept = {name: trials.READINGS[name] for name in ("printed", "weighted 0.1, exp")}
    monkeypatch.setattr(trials, "READINGS", kept)
    monkeypatch.setattr(trials, "VARIANTS", {})
    monkeypatch.setattr(trials, "BACKGROUNDS", dict(list(trials.BACKGROUNDS.items())[:1]))
    monkeypatch.setattr(trials, "CURVE", (1, 8))
    return readings


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open()))


@pytest.mark.parametrize("background", [True, False])
def test_one_pass_counts_as_the_loop_does(
    readings: ModuleType,
    cache: Path,
    tmp_path: Path,
    background: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("one_pass"), "BLOCK", 4)  # several blocks
    experiment = readings.Readings(limit=3, images=3, cache_dir=cache, out=tmp_path)
    experiment.__dict__["dataset"] = replace(experiment.dataset, background=background)
    models = experiment.load_models()
    bank, load = experiment.build_bank(models), experiment.open_regions(models)
    settings = replace(models.segmentation, similarity="weighted", score_map="exp")
    outcomes = experiment.evaluate_images(load, {"": (bank, settings)}, experiment.items)
    loop = Counts.from_confusions(np.stack([outcome.confusions[""] for outcome in outcomes]))
    classes = experiment.dataset.classes
    images = readings.collect(experiment.items, {"": load}, classes, background)[""]
    once = images.evaluate(bank, settings)
    chosen = experiment.evaluate(load, {"": (bank, settings)})[""]
    for counts in (once.counts, chosen.counts):
        np.testing.assert_array_equal(counts.hits, loop.hits)
        np.testing.assert_array_equal(counts.unions, loop.unions)
    assert loop.hits.any()


def test_the_table_and_its_spread_over_seeds(few: ModuleType, cache: Path, tmp_path: Path) -> None:
    experiment = few.Readings(limit=2, images=3, cache_dir=cache, out=tmp_path, seeds=2)
    importlib.import_module("harness").run_seeds(few.main, experiment, "readings")
    first = read(tmp_path / "seed-0/readings/readings.csv")
    second = read(tmp_path / "seed-1/readings/readings.csv")
    both = read(tmp_path / "readings.csv")
    listed = few.trials.list_trials() + few.trials.list_background_trials()
    assert len(first) == len(both) == 1 + len(listed)
    values = [[float(row[4].split()[0]) for row in table[1:]] for table in (first, second)]
    differing = [i for i, pair in enumerate(zip(*values, strict=True)) if len(set(pair)) > 1]
    assert differing, "another seed draws other images"
    for i in differing:
        pair = [values[0][i], values[1][i]]
        mean, deviation = np.mean(pair), np.std(pair, ddof=1)
        assert both[1 + i][4].startswith(f"{mean:.1f}, seeds +-{deviation:.1f}, images (")
    order = read(tmp_path / "readings-order.csv")
    assert len(order) == 1 + len(few.trials.READINGS) and order[0][-1] == "verdict"
    steps = [read(tmp_path / f"seed-{seed}/readings/readings-order.csv")[1][6] for seed in (0, 1)]
    pair = [float(step.split()[0]) for step in steps]
    if steps[0] != steps[1]:
        assert order[1][6].startswith(f"{np.mean(pair):+.1f}, seeds +-{np.std(pair, ddof=1):.1f}")


def test_a_gain_within_the_spread_of_seeds_is_said_to_be_so(tmp_path: Path) -> None:
    sys.path.insert(0, str(FOLDER))
    tables = importlib.import_module("tables")
    gains = {"steady": ("+2.0", "+2.2"), "random": ("+1.0", "-0.8")}
    folders = [tmp_path / "0", tmp_path / "1"]
    for seed, folder in enumerate(folders):
        rows = [(row, "44.5", f"{pair[seed]} (-3.0 to +3.0)") for row, pair in gains.items()]
        tables.write_csv(folder, "table", [("row", "paper", "gain over cosine"), *rows])
    tables.write_spread(tmp_path, "table", folders)
    cells = {row[0]: row[1:] for row in read(tmp_path / "table.csv")}
    assert cells["steady"] == ["44.5", "+2.1, seeds +-0.1, images (-3.0 to +3.0)"]
    expected = "+0.1, seeds +-1.3, images (-3.0 to +3.0), smaller than the spread over seeds"
    assert cells["random"][1] == expected


def test_a_reading_is_judged_by_the_papers_order(readings: ModuleType) -> None:
    def score(miou: float) -> Any:
        noise = np.random.default_rng(int(10 * miou)).normal(0, 0.2, 1000)
        return readings.Score(miou, miou + noise)

    def judge(four: float, five: float, random: float, last: float) -> tuple[str, ...]:
        scores = {("f", "cosine", 1, ""): score(41.8), ("f", "r", 1, "top"): score(four)}
        scores |= {("f", "r", 8, "top"): score(five), ("f", "r", 8, "random"): score(random)}
        curve = [score(four), *[score(five)] * (len(readings.trials.CURVE) - 2), score(last)]
        return readings.judge(scores, "f", "r", curve)

    assert judge(43.1, 44.5, 43.8, 43.0)[-1] == "consistent"  # the paper's own rows
    collapsed = judge(43.1, 44.5, 20.0, 43.0)
    assert collapsed[-1] == "contradicted by random - row 3"
    assert collapsed[3].startswith("-21.8 (")
    assert "row 4 - row 3" in judge(30.0, 44.5, 43.8, 43.0)[-1]
    assert "T = 8" in judge(43.1, 44.5, 43.8, 50.0)[-1]


def test_worlds_are_as_described(readings: ModuleType) -> None:
    worlds = importlib.import_module("worlds")
    world = worlds.WORLDS["21 classes, hard"]
    references, regions, labels = worlds.make_world(world, 0)
    again = worlds.make_world(world, 0)
    np.testing.assert_array_equal(regions, again[1])
    assert not np.array_equal(regions, worlds.make_world(world, 1)[1])
    assert len(references) == 20 and regions.shape == (worlds.REGIONS, 768)
    assert set(labels) == set(range(21)) and 0.15 < (labels == 0).mean() < 0.25
    units = regions / np.linalg.norm(regions, axis=1, keepdims=True)
    cosines = units[:500] @ units[500:1000].T
    assert (cosines > 0).mean() > 0.99, "a large part that all features share"
    means = np.stack([group.foreground.mean(0) for group in references])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    pairs = means @ means.T
    kin = np.equal.outer(np.arange(20) // 5, np.arange(20) // 5) & ~np.eye(20, dtype=bool)
    assert pairs[kin].min() > pairs[~kin & ~np.eye(20, dtype=bool)].mean(), "akin classes"


def test_the_synthetic_table_compares_with_cosine(
    few: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "21 classes, mild"
    monkeypatch.setattr(few, "WORLDS", {name: few.WORLDS[name]})
    centred = {"centred": {"centre": 1.0}}  # which the table compares with
    monkeypatch.setattr(few.trials, "FEATURES", centred)
    monkeypatch.setattr(few.trials, "READINGS", {"printed": few.trials.READINGS["printed"]})
    few.main(few.Readings(synthetic=True, worlds=1, out=tmp_path))
    header, *rows = read(tmp_path / "readings-synthetic.csv")
    cells = {tuple(row[:4]): dict(zip(header, row, strict=True)) for row in rows}
    cosine, printed = cells["centred", "cosine", "1", ""], cells["centred", "printed", "1", "top"]
    assert float(cosine[name]) > 90 > float(printed[name]) + 10
    assert cosine["worst gain over cosine, same T"] == "+0.0 (+0.0 to +0.0)"
    gain = float(printed["worst gain over centred cosine, T = 1"].split()[0])
    assert gain == pytest.approx(float(printed[name]) - float(cosine[name]), abs=0.11)


def test_the_rimjax_configuration_holds_up_in_a_hard_world() -> None:
    """Not below plain cosine by more than noise, and little worse with random agents."""
    sys.path.insert(0, str(FOLDER))
    worlds = importlib.import_module("worlds")
    references, regions, labels = worlds.make_world(worlds.WORLDS["81 classes, hard"], 3)

    def measure(name: str, settings: SegmentSettings) -> float:
        adjusted = CONFIGURATIONS[name].adjust(ReferenceSettings(num_subcategories=1))
        bank = assemble_bank(references, replace(adjusted, num_subcategories=1), "")
        named = np.asarray(match(regions, bank, **settings.as_keywords()).labels)
        return float(np.mean(named == labels))

    ours = CONFIGURATIONS["rimjax"].segmentation
    accuracy = measure("rimjax", ours)
    assert accuracy > measure("rimjax", SegmentSettings(similarity="cosine")) - 0.01
    assert accuracy > measure("printed", SegmentSettings(similarity="cosine")) + 0.05
    assert accuracy > measure("printed", CONFIGURATIONS["printed"].segmentation) + 0.3
    assert measure("rimjax", replace(ours, agent_policy="random")) > accuracy - 0.02
