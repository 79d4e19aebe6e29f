"""Regions that no class fits: thresholds, confidence, and what every result says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, fake_models, pick_colour
from scenes import NAMES, make_scene

import rimjax
from rimjax.evaluation import evaluate
from rimjax.models.calibration import Calibration, Confidence, load_calibration, summarise_grid
from rimjax.models.protocols import Models, Pixels
from rimjax.settings import CONFIGURATIONS, SegmentSettings, name_configuration
from rimjax.show import draw
from rimjax.types import BACKGROUND, ReferenceBank

PRINTED = CONFIGURATIONS["printed"]


def make_picture() -> tuple[np.ndarray, np.ndarray]:
    """Return the scene with a patch of yellow, as like apple as leaf, and where that is."""
    image, truth = make_scene()
    image[32:38, 10:50] = pick_colour("mug")
    stranger = np.zeros(truth.shape, bool)
    stranger[32:38, 10:50] = True
    return image, stranger


@pytest.fixture
def bank(tmp_path: Path) -> ReferenceBank:
    return rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path)


@pytest.mark.parametrize("threshold", [{"min_score": 0.6}, {"min_margin": 0.1}])
def test_regions_below_a_threshold_are_unknown(bank: ReferenceBank, threshold: Any) -> None:
    models, (image, stranger) = fake_models(), make_picture()
    named = rimjax.segment(image, bank, models)
    assert (named.labels[stranger] == 1).all() and named.names == (BACKGROUND, *NAMES)
    settings = replace(models.segmentation, **threshold)
    seg = rimjax.segment(image, bank, models, settings=settings)
    assert seg.names == (BACKGROUND, *NAMES, "unknown")
    np.testing.assert_array_equal(seg.labels, np.where(stranger, 4, named.labels))
    assert sorted(seg.region_labels.tolist()) == [1, 2, 3, 4]
    np.testing.assert_array_equal(seg.scores, named.scores)
    (segment,) = [each for each in seg.segments if each.class_id == 4]
    index = segment.id - 1
    ordered = np.sort(seg.scores[index])
    assert segment.score == ordered[-1]
    assert segment.margin == seg.margins[index] == ordered[-1] - ordered[-2]
    assert seg.confidence is None and segment.confidence is None and seg.familiar is None
    (annotation,) = [each for each in seg.to_coco() if each["category_id"] == 4]
    assert annotation["area"] == stranger.sum()
    assert "unknown" in seg.to_supervision().data["class_name"]
    assert any(line.startswith("3 ") for line in seg.to_yolo()), "classes from 0 on"
    cleared = rimjax.segment(image, bank, models, settings=replace(settings, unknown="background"))
    assert cleared.names == named.names
    np.testing.assert_array_equal(cleared.labels, np.where(stranger, 0, named.labels))


def test_what_no_threshold_touches_stays(bank: ReferenceBank) -> None:
    models, (image, _) = fake_models(), make_picture()
    named = rimjax.segment(image, bank, models)
    for settings in (
        replace(models.segmentation, min_score=-1.0, min_margin=0.0),
        replace(models.segmentation, min_score=-1.0, unknown="background"),
    ):
        seg = rimjax.segment(image, bank, models, settings=settings)
        np.testing.assert_array_equal(seg.labels, named.labels)
    grey = np.full((20, 30, 3), 128, np.uint8)
    strict = replace(models.segmentation, min_score=2.0)
    seg = rimjax.segment(grey, bank, models, settings=strict)
    assert not seg.labels.any() and len(seg.margins) == 0
    image[:] = (128, 128, 140)  # a region along the background's feature
    image[:5] = 128
    rows = np.array([[0, 0, 1], [1, 0, 0], [0, 0.6, 0.8], [0, 1, 0]])
    flat = ReferenceBank.create(rows, np.arange(4), rows, bank.names, bank.encoder)
    strict = replace(strict, similarity="cosine")
    seg = rimjax.segment(image, flat, models, settings=strict)
    assert seg.region_labels.tolist() == [0], "the background stays the background"


def test_the_unknown_is_light_grey_in_pictures(bank: ReferenceBank) -> None:
    models, (image, _) = fake_models(), make_picture()
    settings = replace(models.segmentation, min_margin=0.1)
    seg = rimjax.segment(image, bank, models, settings=settings)
    colours = draw.colour_names(seg.names)
    assert len(np.unique(colours, axis=0)) == 5 and colours[-1].tolist() == [208] * 3
    np.testing.assert_array_equal(colours[:-1], draw.pick_colours(4))
    picture = np.asarray(draw.overlay(image, seg, alpha=1))
    assert (picture == 208).all(-1).sum() > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_score": float("nan")}, "min_score must be a finite number or None, got"),
        ({"min_margin": True}, "min_margin must be a finite number"),
        ({"min_confidence": 1.5}, r"min_confidence must be from 0 to 1, got 1\.5"),
        ({"min_score": 0.5, "assembly": "vote"}, 'assembly must be "paint" with min_score'),
    ],
)
def test_wrong_thresholds_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentSettings(**settings)


def test_thresholds_that_cannot_be_applied_are_refused(bank: ReferenceBank) -> None:
    models, (image, _) = fake_models(), make_picture()
    settings = replace(models.segmentation, min_score=0.5)
    with pytest.raises(ValueError, match=r"^min_score must be None where pixels are named"):
        rimjax.segment(image, bank, replace(models, proposer=Pixels()), settings=settings)
    sure = replace(models.segmentation, min_confidence=0.5)
    with pytest.raises(ValueError, match=r"^min_confidence must be None .* use min_margin"):
        rimjax.segment(image, bank, models, settings=sure)
    rows = np.eye(2, 3)
    clash = ReferenceBank.create(rows, np.arange(2), rows, (BACKGROUND, "unknown"), models.features)
    with pytest.raises(ValueError, match=r"^unknown must be 'background' for a bank with a class"):
        rimjax.segment(image, clash, models, settings=settings)
    seg = rimjax.segment(image, clash, models, settings=replace(settings, unknown="background"))
    assert seg.names == clash.names


def test_evaluation_counts_the_unknown_as_background_or_refuses(bank: ReferenceBank) -> None:
    models, (image, stranger) = fake_models(), make_picture()
    truth = make_scene()[1]
    settings = replace(models.segmentation, min_margin=0.1)
    with pytest.raises(ValueError, match=r"^unknown must be 'background' to evaluate"):
        evaluate([(image, truth)], bank, models, settings)
    plain = evaluate([(image, truth)], bank, models)
    cleared = evaluate([(image, truth)], bank, models, replace(settings, unknown="background"))
    assert plain.confusion is not None and cleared.confusion is not None
    assert plain.confusion[0, 1] == stranger.sum() and cleared.miou == 1 > plain.miou


def test_thresholds_belong_to_no_configuration() -> None:
    references = PRINTED.adjust(fake_models().references)
    settings = replace(PRINTED.segmentation, min_score=0.3, unknown="background")
    assert name_configuration(references, settings) == "printed"
    assert name_configuration(references, replace(settings, num_agents=3)) == "custom"


def calibrated(**changes: Any) -> Models:
    """Return the fakes under a configuration that has a calibration, of which some may change."""
    models = fake_models()
    models = replace(
        models, references=PRINTED.adjust(models.references), segmentation=PRINTED.segmentation
    )
    confidence = Confidence(score=2.0, margin=3.0, intercept=-2.5, background=0.9)
    known = Calibration(
        **{
            "encoder": models.features,
            "proposer": models.proposer.fingerprint,
            "confidences": {"printed": confidence},
            "limit": 1e9,
            "mean": np.zeros(6, np.float32),
            "matrix": np.eye(6, dtype=np.float32),
            **changes,
        }
    )
    return replace(models, calibration=known)


def test_confidence_is_the_logistic_function_of_score_and_margin(tmp_path: Path) -> None:
    models, (image, _) = calibrated(), make_picture()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    seg = rimjax.segment(image, bank, models)
    assert seg.confidence is not None and seg.familiar is True
    for label, scores, confidence in zip(
        seg.region_labels, seg.scores, seg.confidence, strict=True
    ):
        top = np.sort(scores.astype(float))[::-1]
        expected = 1 / (1 + np.exp(2.5 - 2 * top[0] - 3 * (top[0] - top[1])))
        assert confidence == pytest.approx(0.9 if label == 0 else expected, abs=1e-5)
    settings = replace(models.segmentation, min_confidence=0.6)
    unsure = rimjax.segment(image, bank, models, settings=settings)
    np.testing.assert_array_equal(
        unsure.region_labels == 4, (seg.confidence < 0.6) & (seg.region_labels > 0)
    )
    assert (unsure.region_labels == 4).any() and (unsure.region_labels != 4).any()


def test_a_calibration_of_other_models_or_settings_is_not_used(tmp_path: Path) -> None:
    image, _ = make_picture()
    bank = rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path)
    stale = calibrated(encoder="another", limit=0.0)
    seg = rimjax.segment(image, bank, stale)
    assert seg.confidence is None and seg.familiar is None
    other = rimjax.segment(image, bank, calibrated(proposer="another"))
    assert other.confidence is None and other.familiar is True
    models = calibrated()
    settings = replace(models.segmentation, num_agents=2)
    assert rimjax.segment(image, bank, models, settings=settings).confidence is None
    moved = replace(models, encoder=FakeEncoder("another"))
    seg = rimjax.segment(image, replace(bank, encoder="another"), moved)
    assert seg.confidence is None and seg.familiar is None


def test_confidence_is_of_the_measured_classes_alone(tmp_path: Path) -> None:
    image, _ = make_picture()
    models = calibrated(classes=tuple(name.lower() for name in NAMES))
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert rimjax.segment(image, bank, models).confidence is not None
    own = {"Own mug": [rimjax.Reference(image, mask=(image == pick_colour("mug")).all(-1))]}
    mixed = rimjax.build_bank(NAMES, models, cache_dir=tmp_path, references=own)
    seg = rimjax.segment(image, mixed, models)
    assert seg.confidence is None and seg.segments[0].confidence is None
    settings = replace(models.segmentation, min_confidence=0.5)
    with pytest.raises(ValueError, match=r"^min_confidence must be None with .* 'Own mug' .* use"):
        rimjax.segment(image, mixed, models, settings=settings)


def test_an_unfamiliar_image_is_a_warning(tmp_path: Path) -> None:
    image, _ = make_picture()
    models = calibrated()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    summary = summarise_grid(models.encoder.encode(image))
    assert models.calibration is not None
    distance = models.calibration.measure_distance(models.encoder.encode(image))
    assert distance == pytest.approx(np.linalg.norm(summary), rel=1e-5)
    strange = calibrated(limit=distance / 2)
    with pytest.warns(rimjax.UnfamiliarImageWarning, match="load preset 'paper', or build"):
        seg = rimjax.segment(image, bank, strange)
    assert seg.familiar is False and seg.confidence is None
    settings = replace(strange.segmentation, min_confidence=0.01)
    with pytest.warns(rimjax.UnfamiliarImageWarning):
        unsure = rimjax.segment(image, bank, strange, settings=settings)
    assert (unsure.region_labels == 4).all() and unsure.confidence is None
    with pytest.warns(rimjax.UnfamiliarImageWarning):
        assert rimjax.segment(image, bank, replace(strange, proposer=Pixels())).familiar is False


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = calibrated(matrix=np.arange(36, dtype=np.float32).reshape(6, 6)).calibration
    assert known is not None
    known.save(tmp_path / "c.safetensors")
    read = load_calibration(tmp_path / "c.safetensors")
    assert read.fingerprint == known.fingerprint and read.confidences == known.confidences
    assert read.fingerprint != replace(known, limit=2.0).fingerprint
    (tmp_path / "c.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match=r"c\.safetensors: not a calibration, or damaged"):
        load_calibration(tmp_path / "c.safetensors")
