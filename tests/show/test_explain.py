"""Explanations agree with `match`, with float64 sums over rankings, and with the settings."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_models
from jaxtyping import TypeCheckError
from scenes import NAMES, make_scene

import rimjax
from rimjax import ReferenceBank, SegmentSettings, draw
from rimjax.models.protocols import Models
from rimjax.pipeline import name_regions
from rimjax.references.build import build_references
from rimjax.references.store import pack_bank
from rimjax.show.plot import plot_explanation
from rimjax.types import BACKGROUND, Regions

CLASSES = (BACKGROUND, *(f"class {index}" for index in range(1, 12)))


def make_bank() -> ReferenceBank:
    """Return a bank of 12 classes with two prototypes each, and no encoder's name."""
    rng = np.random.default_rng(0)
    classes = rng.normal(size=(12, 16)) + 0.6
    owners = np.repeat(np.arange(12), 2)
    prototypes = classes[owners] + 0.3 * rng.normal(size=(24, 16))
    return ReferenceBank.create(prototypes, owners, classes, CLASSES, "fake")


def segment_random(bank: ReferenceBank, settings: SegmentSettings) -> rimjax.Segmentation:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(4, 16)) + 0.6).astype(np.float32)
    masks = np.arange(16).reshape(1, 4, 4) // 4 == np.arange(4)[:, None, None]
    return name_regions(Regions(features, masks, np.ones(4, bool)), bank, settings)


def models_for(bank: ReferenceBank, settings: SegmentSettings) -> Models:
    class Named(Models):
        @property
        def features(self) -> str:
            return bank.encoder

    models = fake_models()
    fields = {name: getattr(models, name) for name in Models.__dataclass_fields__}
    return Named(**{**fields, "segmentation": settings})


READINGS: list[dict[str, Any]] = [
    {},
    {"num_agents": 3, "measure": "pearson", "score_map": "shift"},
    {"score_map": "exp", "temperature": 0.05, "similarity": "weighted", "relation_weight": 0.4},
    {"similarity": "combined", "class_score": "max"},
    {"agent_source": "prototypes", "class_score": "sum"},
    {"agent_policy": "random", "seed": 5},
    {"similarity": "cosine"},
    {"num_agents": 9},
]


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_the_numbers_are_those_that_match_decides_by(options: dict[str, Any]) -> None:
    bank, settings = make_bank(), SegmentSettings(**options)
    seg, models = segment_random(bank, settings), models_for(bank, settings)
    for region in range(4):
        explained = rimjax.explain(seg, region, bank, models)
        assert seg.agents is not None
        assert explained.name == bank.names[seg.region_labels[region]] == explained.winner.name
        assert next(iter(explained.scores)) == explained.winner.name
        assert list(explained.scores.values()) == sorted(explained.scores.values(), reverse=True)
        assert explained.runner_up is not None
        assert explained.runner_up.name == list(explained.scores)[1]
        owners = np.asarray(bank.owners)
        if options.get("class_score") == "max":  # the class's score is the prototype's similarity
            assert explained.winner.similarity == pytest.approx(explained.winner.score, abs=1e-5)
        assert bank.names[owners[explained.winner.prototype]] == explained.winner.name
        drawn = owners if options.get("agent_source") == "prototypes" else np.arange(12)
        expected = sorted(bank.names[drawn[agent]] for agent in seg.agents[region])
        assert sorted(explained.agents) == expected
        assert (np.diff(explained.cosines) <= 0).all(), "the nearest agent first"
        if options.get("similarity") == "cosine" or options.get("num_agents") == 9:
            assert not len(explained.rankings)
            continue
        assert explained.probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert (np.diff(explained.probabilities) <= 0).all(), "the likeliest ranking first"
        check_candidate(explained, explained.winner, settings)


def check_candidate(
    explained: rimjax.Explanation, candidate: Any, settings: SegmentSettings
) -> None:
    """Compare a candidate's similarity with sums over all rankings in float64."""
    maps = {
        "clip": lambda cosine: max(cosine, 1e-6),
        "exp": lambda cosine: np.exp(cosine / settings.temperature),
        "shift": lambda cosine: (1 + cosine) / 2,
    }

    def rank(cosines: np.ndarray) -> np.ndarray:
        weights = [maps[settings.score_map](float(cosine)) for cosine in cosines]
        chances = []
        for order in itertools.permutations(range(len(weights))):
            left, chance = sum(weights), 1.0
            for agent in order:
                chance *= weights[agent] / left
                left -= weights[agent]
            chances.append(chance)
        return np.array(chances)

    p, q = rank(explained.cosines), rank(candidate.cosines)
    order = [tuple(ranking) for ranking in explained.rankings.tolist()]
    places = [order.index(each) for each in itertools.permutations(range(len(explained.agents)))]
    np.testing.assert_allclose(explained.probabilities[places], p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(candidate.probabilities[places], q, rtol=1e-4, atol=1e-6)
    mean = 1 / len(p) if settings.measure == "pearson" else 0
    p, q = p - mean, q - mean
    relation = p @ q / np.sqrt((p @ p) * (q @ q))
    expected = {
        "relation": relation,
        "combined": candidate.cosine * relation,
        "weighted": candidate.cosine + settings.relation_weight * relation,
    }[settings.similarity]
    assert candidate.similarity == pytest.approx(expected, abs=1e-4)


def test_a_point_stands_for_the_region_on_top_of_it(tmp_path: Path) -> None:
    models = fake_models()
    manifest, _ = build_references(NAMES, models, cache_dir=tmp_path)
    bank = rimjax.load_bank(manifest)
    image, truth = make_scene()
    seg = rimjax.segment(image, bank, models)
    for label, name in enumerate(NAMES, 1):
        y, x = np.argwhere(truth == label)[0].tolist()
        explained = rimjax.explain(seg, (x, y), bank, models, references=manifest, most=5)
        assert explained.name == name and explained.mask[y, x]
        nearest = explained.neighbours
        assert len(nearest) == 5 and [each.name for each in nearest[:3]] == [name] * 3
        assert all(each.image[each.mask].std(0).max() == 0 for each in nearest[:3]), "its colour"
        picture = draw.explanation(image, explained)
        assert picture.width > 800 and np.asarray(picture).std() > 20
    packed = pack_bank(manifest, tmp_path / "bank.safetensors")
    explained = rimjax.explain(seg, 0, bank, models, references=packed)
    assert not explained.neighbours, "which have no pictures"
    y, x = np.argwhere(truth == 0)[0].tolist()
    with pytest.raises(ValueError, match=rf"^no region lies at x={x}, y={y}; choose"):
        rimjax.explain(seg, (x, y), bank, models)
    with pytest.raises(ValueError, match=r"^image must have the region's size"):
        draw.explanation(image[1:], explained)


def test_an_unknown_region_is_explained_by_what_it_is_nearest_to(tmp_path: Path) -> None:
    models = fake_models()
    models = replace(models, segmentation=replace(models.segmentation, min_score=2.0))
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    seg = rimjax.segment(make_scene()[0], bank, models)
    explained = rimjax.explain(seg, 0, bank, models)
    assert explained.name == "unknown" and explained.winner.name in NAMES
    hidden = replace(models.segmentation, unknown="background")
    seg_hidden = rimjax.segment(make_scene()[0], bank, models, settings=hidden)
    again = rimjax.explain(seg_hidden, 0, bank, models, settings=hidden)
    assert again.name == BACKGROUND and again.winner.name == explained.winner.name
    with pytest.raises(ValueError, match=r"^region must be from 0 to 2, got 3"):
        rimjax.explain(seg, 3, bank, models)
    with pytest.raises(ValueError, match=r"^region must lie in the \d+x\d+ image, got x=-1, y=0"):
        rimjax.explain(seg, (-1, 0), bank, models)
    other = rimjax.build_bank(NAMES[:2], models, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^bank must be the segmentation's"):
        rimjax.explain(seg, 0, other, models)


@pytest.mark.parametrize(
    "region", [(60.5, 70.2), "60,70", (1, 2, 3), None, True, [[1, 2]]], ids=repr
)
def test_a_region_is_a_row_or_a_point(region: Any) -> None:
    bank = make_bank()
    seg = segment_random(bank, SegmentSettings())
    with pytest.raises((ValueError, TypeCheckError), match="region"):
        rimjax.explain(seg, region, bank, models_for(bank, SegmentSettings()))


def test_another_bank_and_other_settings_are_refused(tmp_path: Path) -> None:
    bank, settings = make_bank(), SegmentSettings()
    seg, models = segment_random(bank, settings), models_for(make_bank(), settings)
    swapped = replace(bank, owners=np.asarray(bank.owners)[::-1].copy())
    with pytest.raises(ValueError, match=r"^bank and settings must be the segmentation's: 'class"):
        rimjax.explain(seg, 0, swapped, models)
    with pytest.raises(ValueError, match=r"^bank and settings must be the segmentation's: 'class"):
        rimjax.explain(seg, 0, bank, models, settings=SegmentSettings(similarity="cosine"))
    with pytest.raises(ValueError, match=r"^most must be at least 0, got -1"):
        rimjax.explain(seg, 0, bank, models, most=-1)
    other, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^references must be the bank's"):
        rimjax.explain(seg, 0, bank, models, references=other)


def test_any_name_can_be_drawn() -> None:
    """Matplotlib reads dollars as mathematics, and hides a legend's entries that begin with "_"."""
    names = (r"$\bad{$", "a$1_2$b", "_hidden", "a very long name of a class, longer than its place")
    plain = make_bank()
    bank = replace(plain, names=(BACKGROUND, *names, *plain.names[5:]))
    seg = segment_random(bank, SegmentSettings())
    for region in range(4):
        explained = rimjax.explain(seg, region, bank, models_for(bank, SegmentSettings()))
        for index, name in enumerate(names):
            agents = (name, *explained.agents[1:])
            winner = replace(explained.winner, name=name)
            other = replace(explained, agents=agents, winner=winner, name=names[-1 - index])
            figure = plot_explanation(np.zeros((4, 4, 3), np.uint8), other)
            (legend,) = figure.subfigs[1].legends
            assert len(legend.get_texts()) == 3
            draw.explanation(np.zeros((4, 4, 3), np.uint8), other)
