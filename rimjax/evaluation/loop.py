"""Evaluate banks on a labelled data set: the only loop over images that counts pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from jaxtyping import Int

from rimjax.datasets.dataset import IGNORED, Dataset, Item, read_ahead
from rimjax.evaluation import metrics
from rimjax.images import read_image
from rimjax.match.checks import describe
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder, name_regions
from rimjax.regions.store import LoadRegions, load_or_extract
from rimjax.results import Segmentation
from rimjax.settings import SegmentSettings
from rimjax.types import BACKGROUND, ReferenceBank

Setup = tuple[ReferenceBank, SegmentSettings]

_SLOW = 3
"""A first image that takes this many times the median was compiled for."""


@dataclass(frozen=True)
class Outcome:
    """One image's result.

    Attributes:
        item: the image.
        segmentations: row name -> segmentation.
        confusions: row name -> pixel counts, int64[C, C], rows the true class.
        error: why the image couldn't be used; None if it could.
    """

    item: Item
    segmentations: Mapping[str, Segmentation] = field(default_factory=dict)
    confusions: Mapping[str, np.ndarray] = field(default_factory=dict)
    error: Exception | None = None


def evaluate_items(
    items: Iterable[Item],
    load_regions: LoadRegions,
    rows: Mapping[str, Setup],
    *,
    background: bool = True,
) -> Iterator[Outcome]:
    """Segment images under each row's bank and settings, and count their pixels.

    Args:
        items: labelled images, read a few ahead.
        load_regions: extracts an image's regions, or loads them; all rows share them.
        rows: name -> bank and settings.
        background: whether regions may be named background.

    Yields:
        One image's outcome; where an image can't be read, or its regions can't be extracted, it has
        an error.

    Raises:
        ValueError: a label outside the bank's classes, regions that don't fit the bank, or settings
            that label regions "unknown", which no truth does.
    """
    if any(settings.labels_unknown for _, settings in rows.values()):
        raise ValueError(
            "unknown must be 'background' to evaluate with thresholds, got 'label', which no truth "
            "holds"
        )
    for item, reading in read_ahead(items, Item.read):
        timings: dict[str, float] = {}
        try:
            image, truth = reading.result()
            if not background:
                truth = np.where(truth == 0, IGNORED, truth).astype(np.uint8)
            regions = load_regions(image, timings)
        except (ValueError, OSError) as error:
            yield Outcome(item, error=error)
            continue
        segmentations, confusions = {}, {}
        kept: dict[str, np.ndarray] = {}
        try:
            for name, (bank, settings) in rows.items():
                seg = name_regions(
                    regions,
                    bank,
                    settings,
                    image=image,
                    background=background,
                    timings=timings,
                    kept=kept,
                )
                segmentations[name] = seg
                confusions[name] = metrics.confusion_matrix(
                    truth, seg.labels, len(bank.names), IGNORED
                )
        except ValueError as error:
            raise ValueError(f"{item.id}: {error}") from error
        yield Outcome(item, segmentations, confusions)


def raise_errors(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Pass outcomes on; raise ValueError, naming the image, for an image that couldn't be used."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise ValueError(f"{outcome.item.id}: {outcome.error}") from outcome.error
        yield outcome


@dataclass(frozen=True)
class Evaluation:
    """Figures of an evaluation.

    Attributes:
        names: classes, the background first.
        counts: pixels of each image.
        timings: median seconds per image of each stage.
        background: whether the background counts as a class.
        bad: images that couldn't be used, and why.
        confusion: pixels of all images, rows the true class; None where only `counts` were kept.
        first_seconds: seconds that the first image took in these stages; 0 where it isn't known.
    """

    names: tuple[str, ...]
    counts: metrics.Counts
    timings: Mapping[str, float]
    background: bool = True
    bad: Mapping[str, str] = field(default_factory=dict)
    confusion: Int[np.ndarray, "C C"] | None = None
    first_seconds: float = 0.0

    @property
    def slow_start(self) -> float | None:
        """Seconds of the first image if it was much slower, as compilation makes it."""
        usual = sum(self.timings.values())
        is_slow = self.first_seconds > max(_SLOW * usual, usual + 0.1)
        return self.first_seconds if is_slow else None

    @property
    def per_class(self) -> dict[str, float | None]:
        """IoU of each class that counts, in 0..1; None where truth and prediction lack it."""
        ious = self.counts.iou_per_class()
        return {
            name: None if np.isnan(iou) else float(iou)
            for name, iou in zip(self.names, ious, strict=True)
            if self.background or name != BACKGROUND
        }

    @property
    def miou(self) -> float:
        """Mean of class-wise IoU in 0..1 over the classes present."""
        return self.counts.mean_iou(self.background)

    def estimate_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap an interval of the mIoU over images."""
        return metrics.bootstrap_interval(self.counts, level=level, background=self.background)

    def as_json(self) -> dict[str, object]:
        """Return the figures as JSON content."""
        return {
            "miou": self.miou,
            "miou_95": list(self.estimate_interval()),
            "per_class": self.per_class,
            "num_images": len(self.counts),
            "bad_images": dict(self.bad),
            "timings": dict(self.timings),
        }


def evaluate(
    dataset: Dataset | Iterable[tuple[np.ndarray, np.ndarray]],
    bank: ReferenceBank,
    models: Models,
    settings: SegmentSettings | None = None,
    keep: list[Segmentation] | None = None,
    progress: Callable[[Iterable[Item]], Iterable[Item]] = iter,
    cache_dir: str | Path | None = None,
) -> Evaluation:
    """Segment every image of a data set and compute the mIoU.

    Args:
        dataset: a data set, whose class names and background rule are honoured; or (image
            uint8[H, W, 3], labels uint8[H, W]) pairs, whose labels index `bank.names` and are
            ignored where 255.
        bank: the references; its classes are the data set's, in order.
        models: proposer and encoder are used.
        settings: settings of flow 2; default: the preset's.
        keep: receives every segmentation.
        progress: wraps the images while they are segmented, e.g. `tqdm.tqdm`.
        cache_dir: folder that keeps the images' regions, so that no image is proposed or encoded
            twice; default: they aren't kept.

    Raises:
        ValueError: the bank's classes aren't the data set's, it was built with another encoder, or
            an image can't be used.
    """
    check_encoder(bank, models)
    if isinstance(dataset, str | Path) or not isinstance(dataset, Dataset | Iterable):
        raise ValueError(
            f"dataset must be a Dataset or pairs of image and labels, got {describe(dataset)}; "
            "pass what rimjax.datasets.load returns"
        )
    if isinstance(dataset, Dataset):
        check_classes(bank.names[1:], dataset)
        items, background = dataset.items, dataset.background
        names = (BACKGROUND, *dataset.classes)
    else:
        items, background, names = map(_make_item, enumerate(dataset)), True, bank.names
    rows = {"": (bank, settings or models.segmentation)}
    load = load_or_extract(None if cache_dir is None else Path(cache_dir), models)
    counts, seconds = [], []
    total = np.zeros((len(names), len(names)), np.int64)
    for outcome in raise_errors(evaluate_items(progress(items), load, rows, background=background)):
        confusion = outcome.confusions[""]
        total += confusion
        counts.append(metrics.Counts.from_confusions(confusion[None]))
        seconds.append(outcome.segmentations[""].timings)
        if keep is not None:
            keep.append(outcome.segmentations[""])
    if not counts:
        raise ValueError("dataset must hold at least one image, got none")
    timings, first = summarise_timings(seconds)
    evaluation = Evaluation(
        names,
        metrics.Counts.stack(counts),
        timings,
        background,
        confusion=total,
        first_seconds=first,
    )
    check_counted(evaluation.counts)
    return evaluation


def summarise_timings(timings: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], float]:
    """Summarise the seconds of each stage over images.

    Args:
        timings: stage -> seconds of each image, in the order that they were worked on.

    Returns:
        Each stage's median (of an even number of images the lower one, so that of two images it is
        the one without compilation), and the first image's seconds in all. A stage that most
        images were spared, whose regions were stored, is left out of both.
    """
    listed = dict.fromkeys(stage for seconds in timings for stage in seconds)
    medians = {
        stage: float(median_low([seconds.get(stage, -1) for seconds in timings]))
        for stage in listed
    }
    medians = {stage: seconds for stage, seconds in medians.items() if seconds >= 0}
    return medians, float(sum(timings[0].get(stage, 0) for stage in medians))


def check_counted(counts: metrics.Counts) -> None:
    """Raise ValueError where no pixel counts."""
    if not counts.unions.any():
        raise ValueError("labels must hold a class somewhere, got only ignored pixels (255)")


def check_classes(names: Sequence[str], dataset: Dataset) -> None:
    """Raise ValueError unless a bank's class names are a data set's prompts, in order."""
    if tuple(names) != dataset.prompts:
        missing = sorted(set(dataset.prompts) - set(names))
        further = sorted(set(names) - set(dataset.prompts))
        parts = [
            f"{kind} {', '.join(group[:5])}{', ...' if len(group) > 5 else ''}"
            for kind, group in (("without", missing), ("with", further))
            if group
        ]
        raise ValueError(
            f"bank must hold the classes of {dataset.name}, got a bank "
            f"{' and '.join(parts) or 'in another order'}; build the bank for this data set, "
            "or evaluate its classes only (--only-bank-classes, Dataset.restrict)"
        )


def _make_item(numbered: tuple[int, Any]) -> Item:
    index, pair = numbered
    try:
        image, labels = pair
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset must hold pairs of image and labels, got {describe(pair)}; pass (image, "
            "labels) for each image"
        ) from error
    return Item(str(index), partial(read_image, image), partial(np.asarray, labels))
