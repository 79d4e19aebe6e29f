"""The shipped calibration of mini: of the shipped models, and right about pictures."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import rimjax
from rimjax.datasets import fashion_scenes
from rimjax.models.protocols import Models
from rimjax.models.trust import find_confidence
from rimjax.types import ReferenceBank

NAMES = ("trouser", "sneaker", "bag")


@pytest.fixture(scope="module")
def models() -> Models:
    models = rimjax.load_preset("mini")
    return replace(models, references=replace(models.references, num_images=4))


@pytest.fixture(scope="module")
def bank(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ReferenceBank:
    return rimjax.build_bank(NAMES, models, cache_dir=tmp_path_factory.mktemp("cache"))


def test_it_was_measured_on_the_shipped_models(models: Models) -> None:
    """If this fails after new weights, run experiments/mini/calibrate.py."""
    known = models.calibration
    assert known is not None and known.encoder == models.features
    assert known.proposer == models.proposer.fingerprint
    for configuration in ("rimjax", "printed"):
        other = rimjax.load_preset("mini", configuration=configuration)
        assert find_confidence(other, other.segmentation) is not None


@pytest.mark.parametrize("stages", [{"encoder": "mini-clip"}, {"encoder_dtype": "bfloat16"}])
def test_it_is_not_used_for_another_encoder(stages: dict[str, str]) -> None:
    other = rimjax.load_preset("mini", **stages)  # pyright: ignore[reportArgumentType]
    assert other.calibration is not None and other.calibration.encoder != other.features
    assert find_confidence(other, other.segmentation) is None


def test_it_is_not_used_for_another_proposer() -> None:
    other = rimjax.load_preset("mini", proposer="mini-maskformer")
    assert find_confidence(other, other.segmentation) is None


def test_scenes_are_familiar_and_other_pictures_are_not(
    models: Models, bank: ReferenceBank
) -> None:
    scenes = [scene.image for scene in fashion_scenes.render_benchmark(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", rimjax.UnfamiliarImageWarning)
        assert all(rimjax.segment(scene, bank, models).familiar for scene in scenes)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    photographs = [np.ascontiguousarray(image) for image in load_sample_images().images]
    for image in (noise, *photographs):
        with pytest.warns(rimjax.UnfamiliarImageWarning, match="preset 'mini'"):
            assert rimjax.segment(image, bank, models).familiar is False


@pytest.mark.filterwarnings("ignore::rimjax.UnfamiliarImageWarning")
def test_thresholds_catch_strangers_more_often_than_they_lose_the_known(
    models: Models, bank: ReferenceBank
) -> None:
    """Scenes hold ten classes, the bank three. Regions are told apart by their pixels' class."""
    settings = replace(models.segmentation, min_score=0.65)
    known, strange, sure, unsure, unfamiliar = [], [], [], [], 0
    labels = [1 + list(fashion_scenes.CLASSES).index(name) for name in NAMES]
    for scene in fashion_scenes.render_benchmark(25):
        plain = rimjax.segment(scene.image, bank, models)
        seg = rimjax.segment(scene.image, bank, models, settings=settings)
        if not plain.familiar:  # two of the benchmark's 200 scenes
            assert plain.confidence is None
            unfamiliar += 1
            continue
        assert plain.confidence is not None
        truths = [np.bincount(scene.labels[mask]).argmax() for mask in plain.masks]
        for truth, before, after, confidence in zip(
            truths, plain.region_labels, seg.region_labels, plain.confidence, strict=True
        ):
            if before > 0 and truth > 0:
                (known if truth in labels else strange).append(after == len(seg.names) - 1)
                right = labels[before - 1] == truth
                (sure if right else unsure).append(confidence)
    assert len(known) > 5 and len(strange) > 20 and unfamiliar < 2
    assert np.mean(strange) > np.mean(known) + 0.3
    assert np.mean(sure) > np.mean(unsure) + 0.2
