"""Flow 2, segmentation of an image (Sec. 3.5): extract regions, match, assemble."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Integer, UInt8

from rimjax.images import ImageSource, read_image
from rimjax.match import match
from rimjax.match.checks import describe
from rimjax.models.calibration import UNSURE, Confidence
from rimjax.models.protocols import Models
from rimjax.models.trust import check_calibrated, find_confidence
from rimjax.regions.extract import FeatureGrid, extract, measure_stage
from rimjax.results import Segmentation
from rimjax.results.segmentation import measure_margins
from rimjax.settings import THRESHOLDS, SegmentSettings
from rimjax.steps.assemble import find_owners, label_pixels, name_owners, vote
from rimjax.types import ReferenceBank, Regions


class UnfamiliarImageWarning(UserWarning):
    """An image is unlike the scenes that a preset's encoder was trained on."""


def segment(
    image: ImageSource,
    bank: ReferenceBank,
    models: Models,
    *,
    settings: SegmentSettings | None = None,
) -> Segmentation:
    """Segment an image into the bank's classes.

    Args:
        image: a path, a file object or its bytes, a PIL image, or an array uint8[H, W, 3].
        bank: from `build_bank`, built with the same encoder.
        models: from `load_preset`.
        settings: settings of flow 2; default: the preset's.

    Returns:
        The label map at the upright image's size, the regions with their scores, and the seconds of
        each stage.

    Warns:
        UnfamiliarImageWarning: the image is unlike the scenes that the preset was trained on; only
            where the preset is calibrated, as mini is.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: the image can't be read, the bank was built with another encoder, or settings
            don't fit the models.
    """
    settings = settings or models.segmentation
    models = replace(models, segmentation=settings)
    check_encoder(bank, models)
    pixels = read_image(image)
    timings: dict[str, float] = {}
    grids: list[np.ndarray] = []
    regions = extract(models, pixels, timings, grids)
    calibration, familiar = find_confidence(models, settings, bank), _recognise(models, grids[0])
    if calibration is not None and familiar is False:
        calibration = UNSURE
    seg = name_regions(
        regions, bank, settings, image=pixels, timings=timings, calibration=calibration
    )
    confidence = None if familiar is False else seg.confidence
    return replace(seg, familiar=familiar, confidence=confidence)


def _recognise(models: Models, features: Float[np.ndarray, "h w D"]) -> bool | None:
    """Return whether an image's features are like the training scenes', and warn if they aren't."""
    known = models.calibration
    if known is None or known.encoder != models.features:
        return None
    distance = known.measure_distance(features)
    if distance > known.limit:
        warnings.warn(
            f"the image is unlike the scenes that preset {models.name!r} was trained on (distance "
            f"{distance:.1f}, limit {known.limit:.1f}), so its regions' names mean little; load "
            "preset 'paper', or build the bank from photographs of your own",
            UnfamiliarImageWarning,
            stacklevel=3,
        )
    return distance <= known.limit


def name_regions(
    regions: Regions | FeatureGrid,
    bank: ReferenceBank,
    settings: SegmentSettings,
    *,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    background: bool = True,
    timings: dict[str, float] | None = None,
    kept: dict[str, np.ndarray] | None = None,
    calibration: Confidence | None = None,
) -> Segmentation:
    """Match regions with a bank and assemble a label map (Eq. 6-10).

    Args:
        regions: from `extract`, with masks; a grid's pixels are named as by `name_pixels`.
        bank: built with the same encoder.
        settings: how to match and assemble.
        image: the image, which random agents depend on.
        background: whether a region may be named background; False for data sets without one.
        timings: seconds of the stages so far; "match" and "assemble" are added to a copy.
        kept: receives which region lies on top of each pixel, by area, and serves it to the image's
            next call.
        calibration: gives the regions' confidence; from `find_confidence`.

    Raises:
        ValueError: the regions have no masks or lack the scores that `on_top` asks for, thresholds
            are set that can't be applied, or `match` refuses the regions.
    """
    if isinstance(regions, FeatureGrid):
        return name_pixels(
            regions, bank, settings, image=image, background=background, timings=timings
        )
    if regions.masks is None:
        raise ValueError("regions must have masks to be assembled, got None")
    if settings.on_top == "predicted_iou" and regions.scores is None:
        raise ValueError(
            'on_top must be "area" or "score" where the proposer gives no scores, got '
            '"predicted_iou"; or propose with SAM'
        )
    check_calibrated(calibration, settings)
    names = settings.list_names(bank.names)
    timings, masks = dict(timings or {}), np.asarray(regions.masks)
    count, shape = len(masks), masks.shape[1:]
    with measure_stage(timings, "match"):
        allowed = _allow(bank, background)
        keywords = settings.as_keywords(_number_image(image, settings))
        result = match(regions, bank, allowed=allowed, **keywords)
        winners, scores = np.asarray(result.labels)[:count], np.asarray(result.scores)[:count]
        confidence = _estimate_confidence(winners, scores, calibration)
        labels = _doubt(winners, scores, confidence, settings)
    with measure_stage(timings, "assemble"):
        if settings.assembly == "paint":
            if settings.on_top == "area":
                kept = {} if kept is None else kept
                key = np.packbits(labels >= 0).tobytes().hex()
                if key not in kept:
                    kept[key] = find_owners(masks, labels >= 0, shape)
                owners = kept[key]
            else:
                best = scores[np.arange(count), winners]
                priorities = {"predicted_iou": regions.scores, "score": best}
                owners = find_owners(masks, labels >= 0, shape, priorities[settings.on_top])
            canvas = name_owners(owners, labels)
        else:
            owners = None
            canvas = vote(masks, scores, shape)  # an invalid region's scores are zeros
    canvas = _narrow(canvas, names)
    return Segmentation(
        canvas,
        masks,
        labels,
        scores,
        names,
        timings,
        owners,
        confidence,
        features=np.asarray(regions.features)[:count],
        agents=np.asarray(result.agents)[:count],
    )


def _estimate_confidence(
    labels: Int[np.ndarray, " P"],
    scores: Float[np.ndarray, "P C"],
    calibration: Confidence | None,
) -> Float[np.ndarray, " P"] | None:
    """Estimate the regions' confidence: 0 for invalid ones, None without a calibration."""
    if calibration is None:
        return None
    confidence = calibration.estimate(scores.max(1), measure_margins(scores), labels == 0)
    return np.where(labels < 0, 0, confidence).astype(np.float32)


def _doubt(
    labels: Int[np.ndarray, " P"],
    scores: Float[np.ndarray, "P C"],
    confidence: Float[np.ndarray, " P"] | None,
    settings: SegmentSettings,
) -> Int32[np.ndarray, " P"]:
    """Replace the classes of regions below a threshold; what is background stays it."""
    numbers = (scores.max(1), measure_margins(scores), confidence)
    doubtful = np.zeros(len(labels), bool)
    for name, values in zip(THRESHOLDS, numbers, strict=True):
        if values is not None and (least := getattr(settings, name)) is not None:
            doubtful |= values < least
    instead = scores.shape[1] if settings.labels_unknown else 0
    return np.where(doubtful & (labels > 0), instead, labels).astype(np.int32)


def name_pixels(
    grid: FeatureGrid,
    bank: ReferenceBank,
    settings: SegmentSettings,
    *,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    background: bool = True,
    timings: dict[str, float] | None = None,
) -> Segmentation:
    """Match a grid's features with a bank and resize the class scores to the image (Table 4).

    Args:
        grid: from `extract`.
        bank: built with the same encoder.
        settings: how to match; `assembly` and `on_top` concern regions alone.
        image: the image, which random agents depend on.
        background: whether a pixel may be named background.
        timings: seconds of the stages so far; "match" and "assemble" are added to a copy.

    Returns:
        The label map; there are no regions.

    Raises:
        ValueError: `match` refuses the features.
    """
    check_regions_named(settings)
    timings, (height, width, size) = dict(timings or {}), grid.features.shape
    with measure_stage(timings, "match"):
        allowed = _allow(bank, background)
        keywords = settings.as_keywords(_number_image(image, settings))
        rows = grid.features.reshape(-1, size)
        result = match(rows, bank, allowed=allowed, **keywords)
        scores = np.asarray(result.scores).reshape(height, width, -1)
    with measure_stage(timings, "assemble"):
        canvas = label_pixels(scores, grid.shape, allowed)
    return Segmentation(
        labels=_narrow(canvas, bank.names),
        masks=np.zeros((0, *grid.shape), bool),
        region_labels=np.zeros(0, np.int32),
        scores=np.zeros((0, len(bank.names)), np.float32),
        names=bank.names,
        timings=timings,
    )


def check_regions_named(settings: SegmentSettings) -> None:
    """Raise ValueError for thresholds where pixels are named, which have no regions."""
    if name := next((each for each in THRESHOLDS if getattr(settings, each) is not None), None):
        raise ValueError(
            f"{name} must be None where pixels are named without regions, got "
            f"{getattr(settings, name)}; leave it out, or choose another proposer"
        )


def _allow(bank: ReferenceBank, background: bool) -> Bool[np.ndarray, " C"]:
    return np.arange(len(bank.names)) >= (0 if background else 1)


def _number_image(image: UInt8[np.ndarray, "H W 3"] | None, settings: SegmentSettings) -> int:
    """Return a number of the image's content, which random agents alone depend on."""
    if image is None or settings.agent_policy != "random":
        return 0
    return zlib.crc32(image.tobytes())


def _narrow(canvas: Int32[np.ndarray, "H W"], names: Sequence[str]) -> Integer[np.ndarray, "H W"]:
    return canvas.astype(np.uint8 if len(names) <= 255 else np.int32)


def check_encoder(bank: ReferenceBank, models: Models) -> None:
    """Raise ValueError unless the bank's features come from these models' encoder and pooling.

    So it does where the models' settings ask for a confidence that wasn't measured for the bank.
    """
    if not isinstance(bank, ReferenceBank):
        raise ValueError(
            f"bank must be a ReferenceBank, got {describe(bank)}; pass what build_bank or "
            "load_bank returns"
        )
    if not isinstance(models, Models):
        raise ValueError(
            f"models must be Models, got {describe(models)}; pass what load_preset returns"
        )
    if bank.encoder != models.features:
        raise ValueError(
            f"bank must be built with these models' encoder {models.features}, got "
            f"{bank.encoder or 'an unknown encoder'}; build the bank again with this preset, or "
            "load the preset that it was built with"
        )
    find_confidence(models, models.segmentation, bank)
