"""Evaluation of a bank on a labelled data set: mean of class-wise IoU, its bootstrap interval, and stage timings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rimjax import metrics
from rimjax.inference import SegmentSettings, check_bank, describe, label
from rimjax.types import BACKGROUND, ReferenceBank, Segmentation

if TYPE_CHECKING:
    from rimjax.presets import Models


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        names: classes, the background first.
        confusions: int64[n, C, C], one matrix an image, rows the truth.
        timings: mean seconds an image of every stage.
        background: whether the background is one of the classes that are averaged.
        bad: images that couldn't be used, and why.
    """

    names: tuple[str, ...]
    confusions: np.ndarray
    timings: dict[str, float]
    background: bool = True
    bad: Mapping[str, str] = field(default_factory=dict)

    @property
    def per_class(self) -> dict[str, float | None]:
        """IoU of each class that counts, in 0..1; None where neither truth nor prediction has it."""
        ious = metrics.iou_per_class(self.confusions.sum(0))
        named = {name: None if np.isnan(iou) else float(iou) for name, iou in zip(self.names, ious, strict=True)}
        return {name: iou for name, iou in named.items() if self.background or name != BACKGROUND}

    @property
    def miou(self) -> float:
        """Mean of class-wise IoU in 0..1 over the classes present."""
        return float(metrics.mean_iou(self.confusions.sum(0), self.background))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of the mIoU over images."""
        return metrics.bootstrap_interval(self.confusions, level=level, background=self.background)

    def as_json(self) -> dict[str, object]:
        """What `--json` writes."""
        low, high = self.interval()
        return {
            "miou": self.miou,
            "miou_95": [low, high],
            "per_class": self.per_class,
            "num_images": len(self.confusions),
            "bad_images": dict(self.bad),
            "timings": self.timings,
        }


def evaluate(
    scenes: Iterable[tuple[np.ndarray, np.ndarray]],
    bank: ReferenceBank,
    models: Models,
    settings: SegmentSettings | None = None,
    keep: list[Segmentation] | None = None,
) -> Evaluation:
    """Segment every image and count its pixels.

    Args:
        scenes: (image uint8[H, W, 3], labels uint8[H, W]) pairs; labels index `bank.names`, 255 is ignored.
        bank: the references.
        models: masker and encoder are used.
        settings: default: the preset's.
        keep: receives every segmentation, for pictures.
    """
    check_bank(bank, models)
    confusions, spent = [], []
    for image, truth in scenes:
        timings: dict[str, float] = {}
        found = label(describe(image, models, timings), bank, settings or models.segmentation, timings)
        confusions.append(metrics.confusion_matrix(truth, found.labels, len(bank.names)))
        spent.append(found.timings)
        if keep is not None:
            keep.append(found)
    if not confusions:
        raise ValueError("scenes: the data set has no image")
    means = {stage: float(np.mean([one[stage] for one in spent])) for stage in spent[0]}
    return Evaluation(bank.names, np.stack(confusions), means)
