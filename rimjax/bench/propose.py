"""SAM's proposals: the same masks as segment-anything's own generator, and the time beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import segment_anything
import torch
from scipy.optimize import linear_sum_assignment

from rimjax.bench.timing import Row, measure_peak
from rimjax.models.protocols import Proposals
from rimjax.models.sam import ProposalConfig, Sam, SamProposer
from rimjax.models.sam.adapter import choose_masks, make_grid
from rimjax.models.sam.masks import sift, suppress

SAME_IOU, SAME_SCORE = 0.999, 1e-4
LIKE_IOU = 0.9  # of masks that half precision may change a little


def lower_thresholds(
    sam: Sam, image: np.ndarray, share: float, config: ProposalConfig
) -> ProposalConfig:
    """Give random weights work to do: logits of a trained SAM's size, and thresholds for a share.

    Args:
        sam: the SAM; the last weights of its masks are scaled.
        image: uint8[H, W, 3].
        share: of the masks whose predicted IoU shall pass.
        config: the grid.
    """
    with torch.inference_mode():
        for mlp in sam.model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(100)  # otherwise no logit reaches 1, and no mask is stable
        # A threshold of 0 or less would count as none.
        sam.model.mask_decoder.iou_prediction_head.layers[-1].bias.add_(1)
        points = make_grid(8) * np.array(image.shape[1::-1])
        ious = sam.embed(image).decode(points[:, None]).ious[:, 1:]
    return replace(
        config,
        pred_iou_thresh=float(ious.quantile(1 - share)),
        stability_score_thresh=0.5,
        box_nms_thresh=1.0,  # random masks lie everywhere: keep them all
    )


def measure_proposals(
    sam: Sam, image: np.ndarray, config: ProposalConfig, batch: int, exact: Sam | None = None
) -> Row:
    """Time the proposer and segment-anything's generator on an image, and compare their masks.

    Args:
        sam: the SAM, which both use.
        image: uint8[H, W, 3].
        config: grid and thresholds of both.
        batch: points that the generator decodes at once.
        exact: the generator's SAM instead, if `sam` computes in half precision; masks may differ
            then, and those that changed are counted.

    Returns:
        Seconds by stage, peak memory, and how far the masks agree.

    Raises:
        ValueError: the masks aren't the same.
    """
    generator = segment_anything.SamAutomaticMaskGenerator(
        (exact or sam).model,
        points_per_side=config.points_per_side,
        points_per_batch=batch,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
    )
    proposer = SamProposer(sam, config)
    sam.forget()
    peak, (seconds, ours) = _measure_peak(lambda: _time(lambda: proposer.propose(image)))
    theirs_peak, (their_seconds, records) = _measure_peak(
        lambda: _time(lambda: generator.generate(image))
    )
    records = [record for record in records if record["area"] >= config.min_area]
    row: Row = {
        "image": list(image.shape[:2]),
        "points": config.points_per_side**2,
        "seconds": seconds,
        "segment-anything seconds": their_seconds,
        "times faster": their_seconds / seconds,
        "peak MiB": peak and peak / 2**20,
        "segment-anything peak MiB": theirs_peak and theirs_peak / 2**20,
        "stages": _time_stages(sam, image, config),
        "segment-anything encode": _time(lambda: generator.predictor.set_image(image))[0],
    }
    if exact is not None:
        return row | count_changes(ours, records)
    row |= compare_masks(ours, records)
    if not row["same"]:
        theirs, lowest = row["segment-anything masks"], row.get("lowest IoU", 0.0)
        raise ValueError(
            f"proposals must be segment-anything's own {theirs} masks, got {row['masks']}, with a "
            f"lowest IoU of {lowest:.6f}"
        )
    return row


def compare_masks(ours: Proposals, records: list[dict[str, Any]]) -> Row:
    """Compare proposals with segment-anything's records.

    Masks are paired in the order of their predicted IoUs; pairs of which the order is a near tie
    are matched by their own IoU.

    Returns:
        Counts, the lowest IoU of a pair, the pixels that differ, and the largest error of a
        predicted IoU; and whether the masks count as the same.
    """
    row: Row = {"masks": len(ours.masks), "segment-anything masks": len(records)}
    if len(records) != len(ours.masks) or not records:
        return row | {"same": len(records) == len(ours.masks)}
    assert ours.scores is not None
    theirs = np.array([record["segmentation"] for record in records], bool)
    scores = np.array([record["predicted_iou"] for record in records], np.float32)
    first, second = np.argsort(-ours.scores), np.argsort(-scores)
    ious = np.array(
        [_intersect(ours.masks[i], theirs[j]) for i, j in zip(first, second, strict=True)]
    )
    loose = np.flatnonzero(ious <= SAME_IOU)
    table = np.array(
        [[_intersect(ours.masks[i], theirs[j]) for j in second[loose]] for i in first[loose]]
    )
    if len(loose):
        rows, columns = linear_sum_assignment(-table)
        ious[loose] = table[rows, columns]
        second[loose] = second[loose][columns]
    error = float(np.abs(ours.scores[first] - scores[second]).max())
    differ = sum(
        int((ours.masks[i] != theirs[j]).sum()) for i, j in zip(first, second, strict=True)
    )
    row |= {
        "lowest IoU": float(ious.min()),
        "pixels that differ": differ,
        "largest error of the predicted IoU": error,
    }
    return row | {"same": bool(ious.min() > SAME_IOU and error < SAME_SCORE)}


def count_changes(ours: Proposals, records: list[dict[str, Any]]) -> Row:
    """Count the masks on either side that have no counterpart of an IoU above `LIKE_IOU`."""
    ious = np.array(
        [[_intersect(mask, record["segmentation"]) for record in records] for mask in ours.masks]
    ).reshape(len(ours.masks), len(records))
    like = ious > LIKE_IOU
    return {
        "masks": len(ours.masks),
        "segment-anything masks": len(records),
        "masks lost": int((~like.any(0)).sum()),
        "masks added": int((~like.any(1)).sum()),
    }


def _measure_peak(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Measure the peak of a GPU's memory where torch uses a GPU, otherwise of resident memory."""
    if not torch.cuda.is_available():
        return measure_peak(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    return torch.cuda.max_memory_allocated() - before, result


def _intersect(a: np.ndarray, b: np.ndarray) -> float:
    """Return the IoU of two masks; 1 if both are empty."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


def _time(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    with torch.inference_mode():
        result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _time_stages(sam: Sam, image: np.ndarray, config: ProposalConfig) -> Row:
    """Time the stages of a proposal one after the other."""
    sam.forget()
    row: Row = {}
    row["encode"], embedded = _time(lambda: sam.embed(image))
    points = make_grid(config.points_per_side) * np.array(image.shape[1::-1])
    batch = config.points_per_batch or embedded.decoder.choose_batch()
    row |= {"decode": 0.0, "upscale": 0.0, "resize and sift": 0.0}
    found: list[Any] = []
    upscaled = 0
    for start in range(0, len(points), batch):
        seconds, decoded = _time(lambda at=start: embedded.decode(points[at : at + batch, None]))
        row["decode"] += seconds
        wanted = choose_masks(decoded.ious, config.pred_iou_thresh)
        upscaled += int(wanted.sum())
        seconds, logits = _time(lambda d=decoded, w=wanted: embedded.upscale(d, w))
        row["upscale"] += seconds
        arguments = (embedded.frame, logits, decoded.ious[wanted], config.stability_score_thresh)
        seconds, sifted = _time(lambda a=arguments: list(sift(*a, sam.model.mask_threshold)))
        row["resize and sift"] += seconds
        found += sifted
    row["suppress"], kept = _time(lambda: suppress(found, config.box_nms_thresh))
    canvas = np.zeros(image.shape[:2], bool)
    row["unpack"], _ = _time(lambda: [mask.paint(canvas) for mask in kept])
    row["masks upscaled"], row["masks stable"], row["masks kept"] = upscaled, len(found), len(kept)
    return row
