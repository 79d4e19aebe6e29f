"""Why a region got its name: how it, and the references, rank its agents (Sec. 3.5)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from rimjax.match import permutation_probabilities
from rimjax.match.classify import TIE
from rimjax.match.rankings import SCORE_MAPS
from rimjax.match.readings import READINGS, compare_rankings, compute_cosines
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder
from rimjax.references.contents import Manifest
from rimjax.results import Segmentation
from rimjax.settings import SegmentSettings
from rimjax.show.neighbours import Neighbour, find_neighbours
from rimjax.types import ReferenceBank, normalise_rows

MOST_RANKED = 8
"""Agents whose N! rankings are still listed."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A class that a region was compared with, and the prototype of it that is most similar.

    Attributes:
        name: the class.
        score: the region's score of the class (Eq. 10).
        prototype: row of `ReferenceBank.prototypes`: the most similar of the class's.
        similarity: of the region and that prototype, which the class's score is made of.
        cosine: of their features.
        cosines: of that prototype and the N agents.
        probabilities: of the rankings in `Explanation.rankings`, for that prototype (Eq. 7).
    """

    name: str
    score: float
    prototype: int
    similarity: float
    cosine: float
    cosines: Float32[np.ndarray, " N"]
    probabilities: Float32[np.ndarray, " rankings"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """How a region got its name.

    Attributes:
        region: row of `Segmentation.masks`.
        mask: its pixels.
        name: the name that it got, "unknown" included.
        confidence: share of such regions that is named rightly, in 0..1; None without calibration.
        scores: class -> the region's score, the best first; classes that may not win are last.
        agents: the N references that it was compared through (Eq. 6), the nearest first; where
            they are prototypes, their classes.
        cosines: of the region and its agents.
        rankings: all N! rankings of the agents, as their positions in `agents`, the region's most
            likely first; none above 8 agents, or where rankings play no part.
        probabilities: of the rankings, for the region (Eq. 7).
        winner: the class of the best score.
        runner_up: the class of the second best; None with a single class.
        neighbours: the nearest reference images, of all classes; none unless they were given.
    """

    region: int
    mask: Bool[np.ndarray, "H W"]
    name: str
    confidence: float | None
    scores: Mapping[str, float]
    agents: tuple[str, ...]
    cosines: Float32[np.ndarray, " N"]
    rankings: Int[np.ndarray, "rankings N"]
    probabilities: Float32[np.ndarray, " rankings"]
    winner: Candidate
    runner_up: Candidate | None
    neighbours: tuple[Neighbour, ...]


def explain(
    seg: Segmentation,
    region: int | tuple[int, int],
    bank: ReferenceBank,
    models: Models,
    *,
    settings: SegmentSettings | None = None,
    references: Manifest | None = None,
    most: int = 8,
) -> Explanation:
    """Explain the name of a region.

    Args:
        seg: from `rimjax.segment`.
        region: row of `seg.masks`, or a point (x, y), which stands for the region on top of it.
        bank: the bank that `seg` was made with.
        models: the models, likewise.
        settings: the settings, if others than the models' were given to `segment`.
        references: the bank's manifest, e.g. `rimjax.references.store.read_manifest(path)`, so that
            the nearest reference images are found; None: none are.
        most: number of nearest reference images.

    Raises:
        ValueError: there is no such region, it is invalid, or no region lies under the point;
            pixels were named instead of regions; or the bank isn't the segmentation's.
    """
    settings = settings or models.segmentation
    check_encoder(bank, models)
    index = _find_region(seg, region)
    if seg.names[: seg.scores.shape[1]] != bank.names:
        raise ValueError(
            f"bank must be the segmentation's, with the classes {', '.join(seg.names)}, got "
            f"{', '.join(bank.names)}"
        )
    assert seg.features is not None and seg.agents is not None
    feature = jnp.asarray(seg.features[index : index + 1])
    if bank.whitening is not None:
        feature = bank.whitening.apply(feature)
    from_prototypes = settings.agent_source == "prototypes"
    rows = bank.prototypes if from_prototypes else bank.classes
    owners = np.asarray(bank.owners) if from_prototypes else np.arange(len(bank.names))
    agents = seg.agents[index]
    units, prototypes = normalise_rows(rows)[agents], normalise_rows(bank.prototypes)
    similarities = np.asarray(
        _compare_jit(
            feature,
            units,
            prototypes,
            jnp.float32(settings.temperature),
            jnp.float32(settings.relation_weight),
            settings.similarity,
            settings.score_map,
            settings.measure,
        )
    )
    own = np.asarray(compute_cosines(feature, units))[0]
    cosines = np.asarray(compute_cosines(feature, prototypes))[0]
    table = np.asarray(compute_cosines(prototypes, units))
    nearest = np.argsort(-own, kind="stable")
    rankings, chances = _rank(own[nearest], settings)
    order = np.argsort(-chances, kind="stable")
    by_score = np.argsort(-seg.scores[index], kind="stable")

    def describe(label: int) -> Candidate:
        rows = np.flatnonzero(np.asarray(bank.owners) == label)
        row = int(rows[np.argmax(similarities[rows])])
        return Candidate(
            name=bank.names[label],
            score=float(seg.scores[index, label]),
            prototype=row,
            similarity=float(similarities[row]),
            cosine=float(cosines[row]),
            cosines=table[row, nearest],
            probabilities=_rank(table[row, nearest], settings)[1][order],
        )

    best, scores = int(seg.region_labels[index]), seg.scores[index]
    if best >= len(scores) or scores[best] < scores.max() - TIE:  # left unknown
        best = int(by_score[0])
    others = [label for label in by_score.tolist() if label != best]
    return Explanation(
        region=index,
        mask=seg.masks[index],
        name=seg.names[seg.region_labels[index]],
        confidence=None if seg.confidence is None else float(seg.confidence[index]),
        scores={bank.names[label]: float(seg.scores[index, label]) for label in by_score},
        agents=tuple(bank.names[owners[agent]] for agent in agents[nearest]),
        cosines=own[nearest],
        rankings=rankings[order],
        probabilities=chances[order],
        winner=describe(best),
        runner_up=describe(others[0]) if others else None,
        neighbours=()
        if references is None
        else find_neighbours(np.asarray(feature[0]), bank, references, most),
    )


def _find_region(seg: Segmentation, region: int | tuple[int, int]) -> int:
    if seg.features is None or seg.agents is None:
        raise ValueError("seg must have regions to be explained, got one of single pixels")
    if isinstance(region, int | np.integer):
        if not 0 <= region < len(seg.masks):
            raise ValueError(f"region must be from 0 to {len(seg.masks) - 1}, got {region}")
        index = int(region)
    else:
        x, y = region
        height, width = seg.labels.shape
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"region must lie in the {width}x{height} image, got x={x}, y={y}")
        if seg.owners is not None:
            index = int(seg.owners[y, x])
        else:  # regions voted; the smallest is what one would point at
            here = np.flatnonzero(seg.masks[:, y, x] & (seg.region_labels >= 0))
            areas = seg.masks[here].sum((1, 2))
            index = int(here[np.argmin(areas)]) if len(here) else -1
        if index < 0:
            raise ValueError(f"no region lies at x={x}, y={y}; choose a point on another part")
    if seg.region_labels[index] < 0:
        raise ValueError(f"region {index} is invalid: it covers no cell of the encoder's grid")
    return index


def _compare(
    feature: Float32[Array, "1 D"],
    units: Float32[Array, "N D"],
    prototypes: Float32[Array, "R D"],
    temperature: Float32[Array, ""],
    weight: Float32[Array, ""],
    similarity: str,
    score_map: str,
    measure: str,
) -> Float32[Array, " R"]:
    """Compute a region's similarities to all prototypes, through agents, as `match` does.

    Args:
        feature: the region's, whitened.
        units: the agents, of length 1.
        prototypes: of length 1.
        temperature: as of `match`, and so are the others.
    """

    def rank() -> Float32[Array, "1 R"]:
        return compare_rankings(
            compute_cosines(feature, units),
            jnp.arange(len(units))[None],
            compute_cosines(units, prototypes),
            temperature,
            score_map=score_map,
            measure=measure,
        )

    combine = READINGS[similarity].combine
    return combine(lambda: compute_cosines(feature, prototypes), rank, weight)[0]


_compare_jit = jax.jit(_compare, static_argnames=("similarity", "score_map", "measure"))


def _rank(
    cosines: Float32[np.ndarray, " N"], settings: SegmentSettings
) -> tuple[Int[np.ndarray, "rankings N"], Float32[np.ndarray, " rankings"]]:
    """List the rankings of N agents with their probabilities (Eq. 7), as `itertools` orders them.

    Args:
        cosines: to the agents.
        settings: the score map.
    """
    count = len(cosines)
    if count > MOST_RANKED or not READINGS[settings.similarity].uses_rankings:
        return np.zeros((0, count), int), np.zeros(0, np.float32)
    numbers = list(jnp.asarray(cosines))
    weights = jnp.stack(SCORE_MAPS[settings.score_map](numbers, jnp.float32(settings.temperature)))
    orders = np.array(list(itertools.permutations(range(count))))
    return orders, np.asarray(permutation_probabilities(weights))
