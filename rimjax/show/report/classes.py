"""The figures of each class that a report shows, from the confusion of all images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import bootstrap_class_intervals
from rimjax.evaluation.run_folder import ImageResult
from rimjax.types import BACKGROUND


@dataclass(frozen=True)
class ClassFigures:
    """Figures of a class in truth or prediction; shares are in [0, 1], None where of no pixel.

    Attributes:
        name: the class.
        images: number of images whose truth has it.
        pixels: its pixels in the truth.
        named: pixels that were named so.
        iou: intersection over union.
        interval: the IoU's 95 % interval; None where fewer than two images have the class, since
            nothing is known then of how it varies.
        precision: share of `named` that is truly of the class.
        recall: share of `pixels` named rightly.
        left: share of `pixels` left as background; None for the background itself.
        mistaken: share of `pixels` that got another class's name.
    """

    name: str
    images: int
    pixels: int
    named: int
    iou: float
    interval: tuple[float, float] | None
    precision: float | None
    recall: float | None
    left: float | None
    mistaken: float | None


def list_classes(evaluation: Evaluation, results: Iterable[ImageResult]) -> list[ClassFigures]:
    """List the classes in truth or prediction, the best IoU first; last, those not in the truth.

    Args:
        evaluation: of all images.
        results: the images' results.
    """
    confusion = count_pixels(evaluation)
    images = np.zeros(len(confusion), np.int64)
    for result in results:
        images[list({truth for truth, _, pixels in result.cells if pixels})] += 1
    ious = evaluation.counts.iou_per_class()
    bounds = bootstrap_class_intervals(evaluation.counts)
    rows = []
    for index, name in enumerate(evaluation.names):
        if np.isnan(ious[index]) or (name == BACKGROUND and not evaluation.background):
            continue
        hits, pixels = int(confusion[index, index]), int(confusion[index].sum())
        named, left = int(confusion[:, index].sum()), int(confusion[index, 0])
        is_background = index == 0
        others = pixels - hits - (0 if is_background else left)
        low, high = bounds[index].tolist()
        rows.append(
            ClassFigures(
                name,
                int(images[index]),
                pixels,
                named,
                float(ious[index]),
                (low, high) if images[index] > 1 else None,
                hits / named if named else None,
                hits / pixels if pixels else None,
                left / pixels if pixels and not is_background else None,
                others / pixels if pixels else None,
            )
        )
    return sorted(rows, key=lambda row: (not row.pixels, -row.iou))


def count_pixels(evaluation: Evaluation) -> np.ndarray:
    """Return the confusion matrix, int64[C, C]; without a background nothing is truly of it."""
    if evaluation.confusion is None:
        raise ValueError("evaluation must hold the confusion of all images, got counts only")
    return evaluation.confusion
