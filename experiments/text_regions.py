"""Regions with CLIP's image features, which Table 2's first row and Figure 6 compare with texts."""

from __future__ import annotations

from functools import partial

import numpy as np
from harness import Experiment

from rimjax.models.image_text import ImageTextMatcher
from rimjax.models.protocols import Models
from rimjax.regions.store import LoadRegions, RegionStore
from rimjax.types import Regions


def open_text_regions(
    experiment: Experiment, models: Models, clip: ImageTextMatcher
) -> LoadRegions:
    """Return what loads the models' regions with CLIP's image features from the store."""
    encode = partial(embed_regions, clip)
    folder = experiment.cache / "regions"
    return RegionStore(folder, models.proposer, encode, clip.fingerprint).load


def embed_regions(
    clip: ImageTextMatcher, image: np.ndarray, masks: np.ndarray, timings: dict[str, float]
) -> Regions:
    """Embed an image's regions by CLIP; the seconds aren't recorded."""
    features, valid = clip.embed_regions(image, masks)
    return Regions(features, masks, valid)
