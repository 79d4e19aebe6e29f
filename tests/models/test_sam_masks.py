"""Masks of any image size against segment-anything's own resizing; SAM in half precision."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F

import rimjax
from rimjax.bench.propose import count_changes
from rimjax.datasets import load
from rimjax.models.sam import SamMasker, SamProposer
from rimjax.models.sam.masks import Frame, sift

LOGITS, SIDE = 64, 256


def make_logits(seed: int, count: int) -> torch.Tensor:
    """Make logits of masks with soft and hard edges, holes and grain, and an empty mask."""
    rng = torch.Generator().manual_seed(seed)
    grids = [torch.randn(1, 1, size, size, generator=rng) for size in (3, 5, 9, 33)]
    smooth = [F.interpolate(grid, size=(LOGITS, LOGITS), mode="bicubic")[0, 0] for grid in grids]
    masks = [8 * smooth[index % len(smooth)].roll(index, 0) for index in range(count - 1)]
    return torch.stack([*masks, torch.full((LOGITS, LOGITS), -9.0)])


@pytest.mark.parametrize("size", [(480, 640), (1000, 33), (32, 64), (31, 65), (5, 7), (900, 1201)])
@pytest.mark.parametrize("threshold", [0.0, -2.0])
def test_masks_boxes_and_stability_are_segment_anythings(
    size: tuple[int, int], threshold: float
) -> None:
    logits = make_logits(0, 9)
    seen = ResizeLongestSide.get_preprocess_shape(*size, SIDE)
    padded = F.interpolate(logits[None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    padded = padded[..., : seen[0], : seen[1]]
    whole = F.interpolate(padded, size, mode="bilinear", align_corners=False)[0]
    expected = (whole > threshold).numpy()
    boxes = batched_mask_to_box(whole > threshold).numpy()
    stability = calculate_stability_score(whole, threshold, 1.0)
    scores = torch.arange(9.0)
    frame = Frame.create(size, seen, SIDE, LOGITS, logits.device)
    found = list(sift(frame, logits, scores, 0, threshold))
    assert [mask.score for mask in found] == scores.tolist()
    for mask, reference, box in zip(found, expected, boxes, strict=True):
        painted = np.zeros(size, bool)
        mask.paint(painted)
        near = np.abs(whole[int(mask.score)].numpy() - threshold) < 1e-4
        np.testing.assert_array_equal(painted | near, reference | near)
        assert mask.area == painted.sum()
        if np.array_equal(painted, reference):
            np.testing.assert_array_equal(mask.box, box)
    for least in (0.3, 0.7, 0.9):
        kept = [mask.score for mask in sift(frame, logits, scores, least, threshold)]
        sure = (stability - least).abs() > 1e-4
        passing = set(scores[sure & (stability >= least)].tolist())
        assert passing <= set(kept) <= passing | set(scores[~sure].tolist())


def test_a_mask_is_painted_where_its_crop_lies() -> None:
    frame = Frame.create((40, 50), (205, 256), SIDE, LOGITS, torch.device("cpu"))
    (mask,) = sift(frame, torch.ones(1, LOGITS, LOGITS), torch.ones(1), 0, 0.0)
    canvas = np.zeros((100, 100), bool)
    canvas[0, 0] = True  # what is there stays
    moved = mask.move(30, 10)
    moved.paint(canvas)
    assert canvas[10:50, 30:80].all() and canvas.sum() == 40 * 50 + 1
    assert moved.box == (30, 10, 79, 49) and moved.area == 2000


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_minis_masks_nearly(dtype: str) -> None:
    exact = rimjax.load_preset("mini")
    half = rimjax.load_preset("mini", masker_dtype=dtype)  # pyright: ignore[reportArgumentType]
    assert isinstance(half.proposer, SamProposer) and isinstance(half.masker, SamMasker)
    assert half.masker.sam.model.mask_decoder.iou_token.weight.dtype == getattr(torch, dtype)
    for stage in ("masker", "proposer"):
        assert getattr(half, stage).fingerprint != getattr(exact, stage).fingerprint
    points, changed, total = np.array([[64.0, 64.0]], np.float32), 0, 0
    for item in load("fashion-scenes").items[:8]:
        image = item.image()
        theirs = exact.proposer.propose(image).masks
        row = count_changes(half.proposer.propose(image), [{"segmentation": m} for m in theirs])
        changed += row["masks lost"] + row["masks added"]
        total += len(theirs)
    assert total > 20 and changed <= 2
    image = load("fashion-scenes").items[0].image()
    again = pickle.loads(pickle.dumps(half)).masker
    np.testing.assert_array_equal(again.mask(image, points), half.masker.mask(image, points))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_finds_the_same_masks() -> None:
    plain = rimjax.load_preset("mini").masker
    compiled = rimjax.load_preset("mini", compile_masker=True).masker
    assert isinstance(compiled, SamMasker) and compiled.sam.compiled
    assert compiled.fingerprint == plain.fingerprint
    points = np.array([[64.0, 64.0]], np.float32)
    for item in load("fashion-scenes").items[:3]:
        ours, theirs = (each.mask(item.image(), points) for each in (compiled, plain))
        assert (ours != theirs).mean() < 1e-3


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent",))
    torch.compiler.reset()
    masker = rimjax.load_preset("mini", compile_masker=True).masker
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler; leave compile_masker out"):
        masker.mask(np.zeros((40, 50, 3), np.uint8), np.array([[5.0, 5.0]], np.float32))
    torch.compiler.reset()
