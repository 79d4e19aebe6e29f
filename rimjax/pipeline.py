"""Flow 2, segmentation of an image (Sec. 3.5): extract regions, match, assemble."""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import UInt8

from rimjax.images import ImageSource, read_image
from rimjax.match import match
from rimjax.models.protocols import Models
from rimjax.regions.extract import extract_regions, measure_stage
from rimjax.settings import SegmentSettings
from rimjax.steps.assemble import paint, vote
from rimjax.types import ReferenceBank, Regions, Segmentation


def segment(
    image: ImageSource,
    bank: ReferenceBank,
    models: Models,
    *,
    settings: SegmentSettings | None = None,
) -> Segmentation:
    """Segment an image into the bank's classes.

    Args:
        image: a path, a PIL image, or uint8[H, W, 3].
        bank: from `build_bank`, built with the same encoder.
        models: from `load_preset`.
        settings: settings of flow 2; default: the preset's.

    Returns:
        The label map at the upright image's size, the regions with their scores, and the seconds of
        each stage.

    Raises:
        FileNotFoundError, ValueError: the image can't be read, or the bank was built with another
            encoder.
    """
    check_encoder(bank, models)
    pixels = read_image(image)
    timings: dict[str, float] = {}
    regions = extract_regions(models.proposer, models.encoder, pixels, timings)
    settings = settings or models.segmentation
    return name_regions(regions, bank, settings, image=pixels, timings=timings)


def name_regions(
    regions: Regions,
    bank: ReferenceBank,
    settings: SegmentSettings,
    *,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    background: bool = True,
    timings: dict[str, float] | None = None,
) -> Segmentation:
    """Match regions with a bank and assemble a label map (Eq. 6-10).

    Args:
        regions: from `extract_regions`, with masks.
        bank: built with the same encoder.
        settings: how to match and assemble.
        image: the image, which random agents depend on.
        background: whether a region may be named background; False for data sets without one.
        timings: seconds of the stages so far; "match" and "assemble" are added to a copy.

    Raises:
        ValueError: the regions have no masks, or `match` refuses them.
    """
    if regions.masks is None:
        raise ValueError("regions must have masks to be assembled, got None")
    timings, masks = dict(timings or {}), np.asarray(regions.masks)
    count, shape = len(masks), masks.shape[1:]
    with measure_stage(timings, "match"):
        allowed = np.arange(len(bank.names)) >= (0 if background else 1)
        number = 0 if image is None else zlib.crc32(image.tobytes())
        result = match(regions, bank, allowed=allowed, **settings.as_keywords(number))
        labels, scores = np.asarray(result.labels)[:count], np.asarray(result.scores)[:count]
    with measure_stage(timings, "assemble"):
        if settings.assembly == "paint":
            canvas = paint(masks, labels, shape)
        else:
            valid = np.asarray(regions.valid)[:count]
            canvas = vote(masks[valid], scores[valid], shape)
        canvas = canvas.astype(np.uint8 if len(bank.names) <= 255 else np.int32)
    return Segmentation(canvas, masks, labels, scores, bank.names, timings)


def check_encoder(bank: ReferenceBank, models: Models) -> None:
    """Raise ValueError unless the bank's features come from these models' encoder."""
    if bank.encoder != models.encoder.fingerprint:
        raise ValueError(
            f"bank must be built with these models' encoder {models.encoder.fingerprint}, got "
            f"{bank.encoder or 'an unknown encoder'}; build the bank again with this preset, or "
            "load the preset that it was built with"
        )
