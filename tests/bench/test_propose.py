"""`rimjax bench propose | encode`, and the proposals against segment-anything's own generator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
from cli import refused, run
from PIL import Image

import rimjax
from rimjax.bench.propose import compare_masks, lower_thresholds, measure_proposals
from rimjax.datasets import load
from rimjax.models import sam
from rimjax.models.protocols import Proposals
from rimjax.models.sam import ProposalConfig, SamProposer
from rimjax.models.sam.model import EmbeddedImage


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_minis_masks_are_segment_anythings_own(count: int) -> None:
    proposer = rimjax.load_preset("mini").proposer
    assert isinstance(proposer, SamProposer)
    config = proposer.config
    generator = segment_anything.SamAutomaticMaskGenerator(
        proposer.sam.model,
        points_per_side=config.points_per_side,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
    )
    found = 0
    for item in load("fashion-scenes").items[:count]:
        image = item.image()
        for shape in ((128, 128), (96, 128), (128, 77)):  # the padding differs
            part = np.ascontiguousarray(image[: shape[0], : shape[1]])
            records = [r for r in generator.generate(part) if r["area"] >= config.min_area]
            row = compare_masks(proposer.propose(part), records)
            assert row["same"], row
            found += row["masks"]
    assert found > 6 * count


@pytest.mark.parametrize("layers", [1, 2])
def test_masks_of_crops_are_segment_anythings_own(layers: int) -> None:
    proposer = rimjax.load_preset("mini").proposer
    assert isinstance(proposer, SamProposer)
    config = replace(proposer.config, points_per_side=4, crop_layers=layers)
    generator = segment_anything.SamAutomaticMaskGenerator(
        proposer.sam.model,
        points_per_side=4,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
        crop_n_layers=layers,
    )
    found = 0
    for item in load("fashion-scenes").items[:4]:
        image = np.asarray(Image.fromarray(item.image()).resize((200, 260)))
        records = [r for r in generator.generate(image) if r["area"] >= config.min_area]
        row = compare_masks(replace(proposer, config=config).propose(image), records)
        assert row["same"], row
        found += row["masks"]
    assert found >= 8


def test_points_inside_masks_can_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    proposer = rimjax.load_preset("mini").proposer
    assert isinstance(proposer, SamProposer)
    fast = replace(proposer, config=replace(proposer.config, skip_covered=True))
    assert fast.fingerprint != proposer.fingerprint
    image = load("fashion-scenes").items[0].image()
    expected = fast.propose(image).masks
    for batch in (1, 7, 64):  # which the fingerprint leaves out
        other = replace(fast, config=replace(fast.config, points_per_batch=batch))
        assert other.fingerprint == fast.fingerprint
        np.testing.assert_array_equal(other.propose(image).masks, expected)
    decoded: list[int] = []
    decode = EmbeddedImage.decode

    def count(self: EmbeddedImage, points: np.ndarray) -> Any:
        decoded.append(len(points))
        return decode(self, points)

    monkeypatch.setattr(EmbeddedImage, "decode", count)
    few = fast.propose(image)
    assert sum(decoded) < 50, "of 100 points"
    whole = proposer.propose(image)
    assert sum(decoded) > 100 and 0 < len(few.masks) <= len(whole.masks)
    union = few.masks.any(0), whole.masks.any(0)
    assert (union[0] & union[1]).sum() > 0.8 * union[1].sum()


def test_bench_propose_reports_stages_and_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "propose.json"
    words = ("--model", "mini", "--points", 6, "--size", 60, 80, "--json", report)
    printed = run("bench", "propose", *words, capsys=capsys)
    row = json.loads(report.read_text())
    assert row["same"] and row["seconds"] > 0 and row["segment-anything seconds"] > 0
    assert set(row["stages"]) >= {"encode", "decode", "upscale", "resize and sift"}
    assert "times as fast" in printed and "versions" in row
    assert "share must be in (0, 1]" in refused(capsys, "bench", "propose", "--share", 0)


def test_bench_propose_compares_masks_that_are_large_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("bench", "propose", "--model", "mini", "--points", 6, "--size", 16, 16, capsys=capsys)
    words = ("bench", "propose", "--model", "mini", "--points", 2)
    assert "--share must be left out" in refused(capsys, *words, "--share", 0.5)
    line = refused(capsys, *words, "--image", "a.png", "--size", 9, 9)
    assert "--size must be left out with --image" in line
    assert "--size must be a multiple of 14" in refused(capsys, "bench", "encode", "--size", 57)


def test_bench_encode_compares_with_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "encode.json"
    run("bench", "encode", "--small", "--size", 56, "--batch", 2, "--json", report, capsys=capsys)
    row = json.loads(report.read_text())
    assert row["largest difference"] < 1e-5 and row["seconds"] > 0 and row["torch seconds"] > 0


def test_other_masks_are_not_called_the_same() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10], masks[1, :, :7] = True, True
    scores = np.array([0.9, 0.8], np.float32)
    records = [
        {"segmentation": mask.copy(), "predicted_iou": float(score)}
        for mask, score in zip(masks, scores, strict=True)
    ]
    swapped = Proposals(masks[::-1], scores)  # a near tie of the scores changes the order only
    assert compare_masks(Proposals(masks, scores), records)["same"]
    assert not compare_masks(swapped, records)["same"]
    tied = [{**record, "predicted_iou": 0.9} for record in records]
    assert compare_masks(Proposals(masks[::-1], scores[[0, 0]]), tied)["same"]
    masks[0, 0, 0] = False
    assert not compare_masks(Proposals(masks, scores), records)["same"]
    assert not compare_masks(Proposals(masks[:1], scores[:1]), records)["same"]


@pytest.mark.slow
def test_full_size_masks_are_segment_anythings_own() -> None:
    model = sam.load(None, seed=1)
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    config = lower_thresholds(model, image, 0.5, ProposalConfig(points_per_side=14))
    row = measure_proposals(model, image, config, batch=4)
    assert row["same"] and row["masks"] > 200, row
