"""Flow 2, segmentation of one image (paper, Sec. 3.5): propose > encode > pool > match > assemble."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
from PIL import Image

from rimjax.assemble import paint, vote
from rimjax.images import read_image
from rimjax.match import match
from rimjax.pool import pool_image
from rimjax.types import ReferenceBank, Regions, Segmentation
from rimjax.whiten import whitened

if TYPE_CHECKING:
    from rimjax.presets import Models


@dataclass(frozen=True)
class SegmentSettings:
    """How regions are named and put together.

    Attributes:
        num_agents: N, category agents of a region (Sec. 4.2: 4).
        score_map: cosines to positive scores: "clip", "exp" or "shift" (see `rimjax.match`).
        temperature: of "exp".
        similarity: "relation" (Eq. 9) or "cosine" (plain matching, Table 2's rows 2 and 3).
        candidates: classes that may win: "all" (Eq. 9) or "agents", only the region's own.
        agent_policy: "top" or "random" (Table 5).
        seed: of random agents.
        assembly: "paint" (large regions first) or "vote" (per-pixel mean of the class scores).
        background: whether a region may be named background; False is for data sets without one, and makes its score -2, below all others.
    """

    num_agents: int = 4
    score_map: Literal["clip", "exp", "shift"] = "clip"
    temperature: float = 0.1
    similarity: Literal["relation", "cosine"] = "relation"
    candidates: Literal["all", "agents"] = "all"
    agent_policy: Literal["top", "random"] = "top"
    seed: int = 0
    assembly: Literal["paint", "vote"] = "paint"
    background: bool = True


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start


def describe(image: np.ndarray, models: Models, timings: dict[str, float] | None = None) -> Regions:
    """Propose regions and pool their features (Eq. 5): the part of the flow that needs no bank.

    Args:
        image: uint8[H, W, 3].
        models: masker and encoder are used.
        timings: receives seconds for "propose", "encode" and "pool".

    Returns:
        Regions whose masks are bool[P, H, W]; P may be 0.
    """
    timings = {} if timings is None else timings
    with _timed(timings, "propose"):
        masks = models.masker.propose(image)
    with _timed(timings, "encode"):
        features = models.encoder.encode(image)
    with _timed(timings, "pool"):
        pooled, valid = pool_image(features, masks)
    return Regions(features=pooled, masks=masks, valid=valid)


def label(regions: Regions, bank: ReferenceBank, settings: SegmentSettings, timings: dict[str, float] | None = None) -> Segmentation:
    """Name regions against a bank and put them together (Eq. 6-10).

    Args:
        regions: what `describe` returned.
        bank: the references, made with the same encoder.
        settings: how to match and assemble.
        timings: seconds of the stages so far; "match" and "assemble" are added.
    """
    timings = dict(timings or {})
    masks = np.asarray(regions.masks)
    with _timed(timings, "match"):
        features = np.asarray(regions.features)
        found = match(
            Regions(features if bank.whitening is None else whitened(features, *map(np.asarray, bank.whitening)), None, regions.valid),
            bank,
            num_agents=settings.num_agents,
            score_map=settings.score_map,
            temperature=settings.temperature,
            similarity=settings.similarity,
            candidates=settings.candidates,
            agent_policy=settings.agent_policy,
            key=jax.random.key(settings.seed) if settings.agent_policy == "random" else None,
        )
        labels, scores = np.asarray(found.labels), np.asarray(found.scores)
        if not settings.background:
            scores = np.concatenate([np.full_like(scores[:, :1], -2), scores[:, 1:]], axis=1)
            best = (scores >= scores.max(axis=1, keepdims=True) - 1e-6).argmax(axis=1)  # the lowest of equals, as in `match`
            labels = np.where(labels < 0, labels, best.astype(labels.dtype))
    with _timed(timings, "assemble"):
        shape = masks.shape[1:]
        kept = np.asarray(regions.valid)
        drawn = paint(masks, labels, shape) if settings.assembly == "paint" else vote(masks[kept], scores[kept], shape)
        drawn = drawn.astype(np.uint8 if len(bank.names) <= 255 else np.int32)
    return Segmentation(labels=drawn, masks=masks, region_labels=labels, scores=scores, names=bank.names, timings=timings)


def segment(
    image: str | Path | np.ndarray | Image.Image, bank: ReferenceBank, models: Models, *, settings: SegmentSettings | None = None
) -> Segmentation:
    """Segment one image into the bank's classes.

    Args:
        image: a path, a PIL image, or uint8[H, W, 3].
        bank: from `build_bank`, made with the same encoder.
        models: from `load_preset`.
        settings: default: the preset's.

    Returns:
        The label map at the upright image's own size, the regions with their scores, and the seconds of every stage.

    Raises:
        FileNotFoundError, ValueError: the image can't be read, or the bank was made with another encoder.
    """
    check_bank(bank, models)
    pixels = read_image(image)
    timings: dict[str, float] = {}
    return label(describe(pixels, models, timings), bank, settings or models.segmentation, timings)


def check_bank(bank: ReferenceBank, models: Models) -> None:
    """Raise ValueError unless the bank's features come from these models' encoder."""
    if bank.encoder != models.encoder.fingerprint:
        raise ValueError(
            f"bank: made with encoder {bank.encoder or 'unknown'}, but these models use {models.encoder.fingerprint}; "
            "build it again with this preset (`rimjax bank build`), or load the preset it was made with"
        )
