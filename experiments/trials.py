"""The trials of readings.py: kinds of features, readings of Sec. 3.5 and their variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rimjax.settings import ReferenceSettings, SegmentSettings
from rimjax.types import ReferenceBank

FEATURES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "centred": {"centre": 1.0},
    "whitened": {"whiten": 1.0, "centre": 1.0},
    "whitened, half centred": {"whiten": 1.0, "centre": 0.5},
}
_HALF = FEATURES["whitened, half centred"]
BACKGROUNDS: dict[str, dict[str, Any]] = {
    "as they are, one background reference": {"background_subcategories": 1},
    "as they are, background from whole images": {"background_mask": False},
    "whitened, half centred, one background reference": {**_HALF, "background_subcategories": 1},
    "whitened, half centred, background from whole images": {**_HALF, "background_mask": False},
}
"""The same features with other references of the background."""
COSINE = SegmentSettings(similarity="cosine")
_EXP = SegmentSettings(score_map="exp")
COMBINED = replace(_EXP, similarity="combined")
_WEIGHTED = replace(_EXP, similarity="weighted")
READINGS = {
    "printed": SegmentSettings(),
    "printed, exp": _EXP,
    "printed, exp, only agents may win": replace(_EXP, candidates="agents"),
    "combined, clip": SegmentSettings(similarity="combined"),
    "combined, exp": COMBINED,
    "weighted 0.1, exp": _WEIGHTED,
}
"""Title -> settings; every reading is tried on every kind of features."""
VARIANTS = {
    "combined, exp 0.01": replace(COMBINED, temperature=0.01),
    "combined, exp 0.03": replace(COMBINED, temperature=0.03),
    "combined, exp 0.3": replace(COMBINED, temperature=0.3),
    "combined, exp 1": replace(COMBINED, temperature=1.0),
    "combined, Pearson": replace(COMBINED, measure="pearson"),
    "combined, Bhattacharyya": replace(COMBINED, measure="bhattacharyya"),
    "combined, N = 8": replace(COMBINED, num_agents=8),
    "combined, agents among sub-categories": replace(COMBINED, agent_source="prototypes"),
    "combined, background never an agent": replace(COMBINED, background_agent=False),
    "combined, best sub-category": replace(COMBINED, class_score="max"),
    "cosine, best sub-category": replace(COSINE, class_score="max"),
    "weighted 0.03, exp": replace(_WEIGHTED, relation_weight=0.03),
    "weighted 0.3, exp": replace(_WEIGHTED, relation_weight=0.3),
    "weighted 0.03, KL": replace(_WEIGHTED, relation_weight=0.03, measure="kl"),
}
"""Variants of the two readings that hold up, tried on the features that hold up."""
T = 8
CURVE = (1, 2, 4, 8, 12)  # of Figure 5a
PER_IMAGE = "each image a prototype"

Build = Callable[[ReferenceSettings], ReferenceBank]


def list_banks(build: Build, base: ReferenceSettings, counts: tuple[int, ...]) -> dict[Any, Any]:
    """Build a bank for every kind of features and every T."""
    return {
        (features, count): build(replace(base, num_subcategories=count, **changes))
        for features, changes in FEATURES.items()
        for count in counts
    }


def list_trials() -> list[tuple[str, str, int, str, SegmentSettings]]:
    """List features, reading, T, agents and settings of every trial."""
    trials = []
    for features in FEATURES:
        for count in (1, T):
            trials.append((features, "cosine", count, "", COSINE))
            for title, settings in READINGS.items():
                for policy in ("top", "random"):
                    chosen = replace(settings, agent_policy=policy)
                    trials.append((features, title, count, policy, chosen))
    for features in ("whitened", "whitened, half centred"):
        for title, settings in VARIANTS.items():
            for count in (1, T):
                trials.append((features, title, count, "top", settings))
    return trials


def list_background_trials() -> list[tuple[str, str, int, str, SegmentSettings]]:
    """List the trials of other background references, which synthetic features don't have."""
    trials = []
    summed = replace(COSINE, class_score="sum")
    for features in BACKGROUNDS:
        for count in (1, T):
            trials.append((features, "cosine", count, "", COSINE))
            trials.append((features, "cosine, sum over sub-categories", count, "top", summed))
            for title in ("printed", "weighted 0.1, exp"):
                trials.append((features, title, count, "top", READINGS[title]))
    return trials
