"""Extract what an image is named by: propose, encode, pool (Sec. 3.5, Eq. 5). Needs no bank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.models.protocols import Encoder, Models, Pixels, Proposer
from rimjax.steps.pool import pool_regions
from rimjax.types import Regions


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """An image's features where there are no proposals: its pixels are named one by one.

    Attributes:
        features: of the encoder's grid.
        shape: (H, W) of the image.
    """

    features: Float32[np.ndarray, "h w D"]
    shape: tuple[int, int]


@contextmanager
def measure_stage(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Record the seconds that a block takes under the stage's name."""
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start


def extract_regions(
    proposer: Proposer,
    encoder: Encoder,
    image: UInt8[np.ndarray, "H W 3"],
    timings: dict[str, float] | None = None,
    antialias: bool = True,
    grids: list[np.ndarray] | None = None,
) -> Regions:
    """Propose regions and pool their features (Eq. 5).

    Args:
        proposer: proposes the regions.
        encoder: computes the features.
        image: RGB.
        timings: receives the seconds of "propose", "encode" and "pool".
        antialias: see `Models`.
        grids: receives the encoder's feature map, float32[h, w, D].

    Returns:
        Regions with masks bool[M, H, W], M >= 0, and the proposer's scores; features are padded to
        `bucket_size(M)` rows.
    """
    timings = {} if timings is None else timings
    with measure_stage(timings, "propose"):
        proposals = proposer.propose(image)
    regions = encode_regions(
        encoder, image, proposals.masks, timings, antialias=antialias, grids=grids
    )
    return replace(regions, scores=proposals.scores)


def encode_regions(
    encoder: Encoder,
    image: UInt8[np.ndarray, "H W 3"],
    masks: Bool[np.ndarray, "M H W"],
    timings: dict[str, float],
    *,
    antialias: bool = True,
    grids: list[np.ndarray] | None = None,
) -> Regions:
    """Encode an image and pool its features under masks (Eq. 5); arguments and result as above."""
    with measure_stage(timings, "encode"):
        features = encoder.encode(image)
    if grids is not None:
        grids.append(features)
    with measure_stage(timings, "pool"):
        return pool_regions(features, masks, antialias)


def extract(
    models: Models,
    image: UInt8[np.ndarray, "H W 3"],
    timings: dict[str, float] | None = None,
    grids: list[np.ndarray] | None = None,
) -> Regions | FeatureGrid:
    """Extract an image's regions with the models, or its feature grid under `Pixels`.

    Args:
        models: proposer, encoder and `antialias` are used.
        image: RGB.
        timings: receives the seconds of "propose", "encode" and "pool"; of a grid of "encode" only.
        grids: receives the encoder's feature map, float32[h, w, D].
    """
    timings = {} if timings is None else timings
    if not isinstance(models.proposer, Pixels):
        return extract_regions(
            models.proposer, models.encoder, image, timings, models.antialias, grids
        )
    with measure_stage(timings, "encode"):
        features = models.encoder.encode(image)
    if grids is not None:
        grids.append(features)
    return FeatureGrid(features, (image.shape[0], image.shape[1]))
