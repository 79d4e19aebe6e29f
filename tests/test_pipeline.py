"""Flow 2 on models whose right answers are known: regions are named by their colour."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, fake_models, pick_colour
from scenes import NAMES, make_scene

import rimjax
from rimjax.evaluation import evaluate
from rimjax.match import match
from rimjax.models.protocols import Pixels
from rimjax.pipeline import name_regions
from rimjax.regions.extract import FeatureGrid, extract, extract_regions
from rimjax.settings import SegmentSettings
from rimjax.steps.pool import pool_regions
from rimjax.types import BACKGROUND, ReferenceBank, Regions


def test_each_region_gets_its_colours_name(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert bank.names == (BACKGROUND, *NAMES)
    image, truth = make_scene()
    seg = rimjax.segment(image, bank, models)
    np.testing.assert_array_equal(seg.labels, truth)
    assert len(seg.masks) == len(seg.scores) == len(seg.region_labels) == 3, "no padding"
    assert set(seg.timings) == {"propose", "encode", "pool", "match", "assemble"}
    for assembly in ("paint", "vote"):
        for similarity in ("relation", "cosine"):
            settings = rimjax.SegmentSettings(3, assembly=assembly, similarity=similarity)
            seg = rimjax.segment(image, bank, models, settings=settings)
            np.testing.assert_array_equal(seg.labels, truth)


def test_which_region_stays_on_top_is_a_setting() -> None:
    """Three regions share a pixel: the smallest, the surest proposal and the best named differ."""
    rows = np.eye(4, 8, dtype=np.float32)
    bank = ReferenceBank.create(rows, np.arange(4), rows, (BACKGROUND, *NAMES))
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :3, :3], masks[1, :2, :2], masks[2] = True, True, True
    features = np.zeros((3, 8), np.float32)
    features[[0, 1, 2], [1, 2, 3]] = 1
    features[[0, 1], 7] = 0.5  # regions 0 and 1 resemble their classes less
    scores = np.array([0.9, 0.3, 0.6], np.float32)
    regions = Regions(features, masks, np.ones(3, bool), scores)
    settings = rimjax.SegmentSettings(3, similarity="cosine")
    for on_top, winner in (("area", 2), ("predicted_iou", 1), ("score", 3)):
        labels = name_regions(regions, bank, replace(settings, on_top=on_top)).labels
        assert labels[0, 0] == winner, on_top
    assert name_regions(regions, bank, settings).labels[0, 0] == 2, "the default is the area"
    unscored = replace(regions, scores=None)
    with pytest.raises(ValueError, match=r'^on_top must be .* got "predicted_iou"'):
        name_regions(unscored, bank, replace(settings, on_top="predicted_iou"))


def test_zero_proposals_give_background(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    seg = rimjax.segment(np.full((20, 30, 3), 128, np.uint8), bank, models)
    assert seg.labels.shape == (20, 30) and not seg.labels.any() and len(seg.masks) == 0


def test_a_bank_of_another_encoder_is_refused(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    other = replace(models, encoder=FakeEncoder("another"))
    with pytest.raises(ValueError, match="bank must be built with these models' encoder another"):
        rimjax.segment(make_scene()[0], bank, other)


def test_masks_are_resized_alike_in_both_flows(tmp_path: Path) -> None:
    models = replace(fake_models(), antialias=False)
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    image, truth = make_scene()
    np.testing.assert_array_equal(rimjax.segment(image, bank, models).labels, truth)
    regions = extract(models, image)
    assert isinstance(regions, Regions) and regions.masks is not None
    expected = pool_regions(
        models.encoder.encode(image), np.asarray(regions.masks), antialias=False
    )
    np.testing.assert_array_equal(regions.features, expected.features)
    assert not np.allclose(regions.features, np.asarray(extract_default(image).features))
    with pytest.raises(ValueError, match=r"bank must be built with .* got fake-encoder-bilinear"):
        rimjax.segment(image, bank, fake_models())


def extract_default(image: np.ndarray) -> Regions:
    return extract_regions(fake_models().proposer, FakeEncoder(), image)


@pytest.mark.parametrize("shape", [(32, 48), (37, 21), (9, 5)])
@pytest.mark.parametrize("candidates", ["all", "agents"])
@pytest.mark.parametrize("background", [True, False])
def test_pixels_are_named_by_their_cells_scores_resized(
    shape: tuple[int, int], candidates: Literal["all", "agents"], background: bool
) -> None:
    """Against torch's bilinear resizing of `match`'s scores; 16x16 cells."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((1, 3)), rng.normal(size=(5, 3))]).astype(np.float32)
    rows[0] = [0, 0, 1]
    bank = ReferenceBank.create(
        rows, np.arange(6), rows, (BACKGROUND, *"abcde"), FakeEncoder().fingerprint
    )
    settings = SegmentSettings(3, similarity="cosine", candidates=candidates)
    models = replace(fake_models(), proposer=Pixels(), segmentation=settings)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    grid = extract(models, image)
    assert isinstance(grid, FeatureGrid) and grid.shape == shape
    seg = name_regions(grid, bank, settings, background=background)
    allowed = np.arange(6) >= (0 if background else 1)
    features = models.encoder.encode(image).reshape(256, 3)
    scores = match(
        features, bank, num_agents=3, similarity="cosine", candidates=candidates, allowed=allowed
    ).scores
    maps = torch.from_numpy(np.array(scores)).T.reshape(1, 6, 16, 16)
    resized = torch.nn.functional.interpolate(maps, size=shape, mode="bilinear")[0].numpy()
    resized[~allowed] = -np.inf
    top = np.sort(resized, axis=0)
    sure = top[-1] - top[-2] > 1e-5  # rounding
    assert sure.mean() > 0.9 and seg.labels.shape == shape
    np.testing.assert_array_equal(seg.labels[sure], resized.argmax(0)[sure])
    assert len(np.unique(seg.labels)) > 2 and (background or seg.labels.min() > 0)
    assert len(seg.masks) == len(seg.region_labels) == len(seg.scores) == 0
    if background:
        np.testing.assert_array_equal(rimjax.segment(image, bank, models).labels, seg.labels)
    pairs = [(image, np.full(shape, 1, np.uint8))]
    evaluation = evaluate(pairs, bank, models)
    assert evaluation.confusion is not None
    assert evaluation.confusion.sum() == image[..., 0].size and "encode" in evaluation.timings


def test_without_a_background_the_next_best_class_wins() -> None:
    models = fake_models()
    rows = np.array([[0, 0, 1], [1, 0, 0], [0, 0.6, 0.8], [0, 1, 0]])
    names = (BACKGROUND, *NAMES)
    bank = ReferenceBank.create(rows, np.arange(4), rows, names, models.encoder.fingerprint)
    cosine = replace(models.segmentation, similarity="cosine")
    image = np.full((20, 30, 3), (128, 128, 140), np.uint8)  # along the background's feature
    image[:5] = 128
    regions = extract_regions(models.proposer, models.encoder, image)
    seg = name_regions(regions, bank, cosine)
    assert seg.region_labels.tolist() == [0]
    for assembly in ("paint", "vote"):
        settings = replace(cosine, assembly=assembly)
        forced = name_regions(regions, bank, settings, background=False)
        assert forced.region_labels.tolist() == [1 + int(seg.scores[0, 1:].argmax())]
        assert (forced.labels[5:] == forced.region_labels[0]).all()
        assert not forced.labels[:5].any(), "pixels without a region have no class"


def test_a_whitened_bank_is_matched_the_same_by_match_and_by_segment(tmp_path: Path) -> None:
    models = fake_models()
    settings = replace(models.references, whiten=1.0, num_subcategories=1)
    bank = rimjax.build_bank(NAMES, models, settings=settings, cache_dir=tmp_path)
    assert bank.whitening is not None
    image, truth = make_scene()
    image = np.where(truth[..., None] > 0, image // 2 + 90, image)  # pale, as drawings aren't
    regions = extract_regions(models.proposer, models.encoder, image)
    options = {"num_agents": 3, "similarity": "cosine"}
    direct = match(regions, bank, **options)
    seg = name_regions(regions, bank, rimjax.SegmentSettings(**options))
    np.testing.assert_array_equal(np.asarray(direct.labels)[: len(seg.masks)], seg.region_labels)
    raw = match(regions, replace(bank, whitening=None), **options)
    assert not np.allclose(raw.scores, direct.scores, atol=0.05), "whitening matters here"


def test_overlay_shows_the_classes_and_refuses_another_size(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    image, _ = make_scene()
    seg = rimjax.segment(image, bank, models)
    picture = np.asarray(rimjax.draw.overlay(image, seg))
    assert picture.shape[0] > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 8
    with pytest.raises(ValueError, match="image must have the segmentation's size"):
        rimjax.draw.overlay(image[1:], seg)


def test_regions_without_masks_cannot_be_assembled(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(["apple"], models, cache_dir=tmp_path)
    image = np.full((20, 30, 3), pick_colour("apple"), np.uint8)
    regions = extract_regions(models.proposer, models.encoder, image)
    with pytest.raises(ValueError, match="regions must have masks"):
        name_regions(replace(regions, masks=None), bank, models.segmentation)


def test_voting_takes_at_most_twice_the_memory_of_painting() -> None:
    """NumPy's arrays count; those of the matching are small here."""
    bank = rimjax.ReferenceBank.create(
        np.eye(40), np.arange(40), np.eye(40), ("background", *map(str, range(1, 40)))
    )
    random = np.random.default_rng(0)
    masks = np.zeros((30, 1000, 1500), bool)
    for mask, (top, left) in zip(masks, random.integers(0, 900, (30, 2)), strict=True):
        mask[top : top + 300, left : left + 500] = True
    features = random.standard_normal((32, 40)).astype(np.float32)
    regions = Regions(features, masks, np.arange(32) < 28)  # two masks that cover no cell
    peaks = {}
    for assembly in ("paint", "vote", "paint", "vote"):  # first the arrays that stay
        settings = rimjax.SegmentSettings(assembly=assembly, num_agents=2)
        tracemalloc.start()
        seg = name_regions(regions, bank, settings)
        peaks[assembly] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["vote"] <= 2 * peaks["paint"]
    pixels = random.integers(0, [1000, 1500], (200, 2))
    for y, x in pixels:
        over = masks[:28, y, x]
        expected = seg.scores[:28][over].mean(0).argmax() if over.any() else 0
        assert seg.labels[y, x] == expected


def test_random_agents_differ_from_image_to_image() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 3)).astype(np.float32)
    bank = ReferenceBank.create(rows, np.arange(12), rows, (BACKGROUND, *"abcdefghijk"))
    masks = np.zeros((5, 8, 8), bool)
    regions = Regions(rng.normal(size=(5, 3)).astype(np.float32), masks, np.ones(5, bool))
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)

    def score(settings: SegmentSettings, image: np.ndarray) -> np.ndarray:
        return name_regions(regions, bank, settings, image=image).scores

    random = SegmentSettings(agent_policy="random")
    first, second = (score(random, image) for image in images)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, score(random, images[0].copy()))
    assert not np.array_equal(first, score(replace(random, seed=1), images[0]))
    nearest = SegmentSettings()
    np.testing.assert_array_equal(score(nearest, images[0]), score(nearest, images[1]))
