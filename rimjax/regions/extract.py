"""Extract an image's regions: propose, encode, pool (Sec. 3.5, Eq. 5). Needs no bank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from rimjax.models.protocols import Encoder, Proposer
from rimjax.steps.pool import pool_regions
from rimjax.types import Regions


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
) -> Regions:
    """Propose regions and pool their features (Eq. 5).

    Args:
        proposer: proposes the regions.
        encoder: computes the features.
        image: RGB.
        timings: receives the seconds of "propose", "encode" and "pool".

    Returns:
        Regions with masks bool[M, H, W], M >= 0, and the proposer's scores; features are padded to
        `bucket_size(M)` rows.
    """
    timings = {} if timings is None else timings
    with measure_stage(timings, "propose"):
        proposals = proposer.propose(image)
    with measure_stage(timings, "encode"):
        features = encoder.encode(image)
    with measure_stage(timings, "pool"):
        return replace(pool_regions(features, proposals.masks), scores=proposals.scores)
