"""Why a region got its name: how it, and the references, rank its agents (Sec. 3.5)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int

from rimjax.match.classify import TIE
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder
from rimjax.references.contents import Manifest
from rimjax.results import Segmentation
from rimjax.settings import SegmentSettings
from rimjax.show.comparison import compare_region, rank_agents
from rimjax.show.neighbours import Neighbour, find_neighbours
from rimjax.types import ReferenceBank

SAME = 1e-3
"""Difference of two scores, for each prototype that they are made of, that rounding may make."""


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
            pixels were named instead of regions; or bank, settings or references aren't the
            segmentation's.
    """
    settings = settings or models.segmentation
    check_encoder(bank, models)
    index = _find_region(seg, region)
    if seg.names[: seg.scores.shape[1]] != bank.names:
        raise ValueError(
            f"bank must be the segmentation's, with the classes {', '.join(seg.names)}, got "
            f"{', '.join(bank.names)}"
        )
    if references is not None and references.names != bank.names[1:]:
        raise ValueError(
            f"references must be the bank's, of {', '.join(bank.names[1:])}, got "
            f"{', '.join(references.names)}"
        )
    if not most >= 0:
        raise ValueError(f"most must be at least 0, got {most}")
    assert seg.features is not None and seg.agents is not None
    from_prototypes = settings.agent_source == "prototypes"
    rows = bank.prototypes if from_prototypes else bank.classes
    owners = np.asarray(bank.owners) if from_prototypes else np.arange(len(bank.names))
    agents = seg.agents[index]
    feature, similarities, own, cosines, table = map(
        np.asarray,
        compare_region(
            jnp.asarray(seg.features[index : index + 1]),
            bank.whitening,
            jnp.asarray(rows)[agents],
            jnp.asarray(bank.prototypes),
            jnp.float32(settings.temperature),
            jnp.float32(settings.relation_weight),
            settings.similarity,
            settings.score_map,
            settings.measure,
        ),
    )
    nearest = np.argsort(-own, kind="stable")
    rankings, chances = rank_agents(own[nearest], settings)
    order = np.argsort(-chances, kind="stable")
    by_score = np.argsort(-seg.scores[index], kind="stable")
    _check_score(seg.scores[index], int(by_score[0]), similarities, bank, settings)

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
            probabilities=rank_agents(table[row, nearest], settings)[1][order],
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
        neighbours=() if references is None else find_neighbours(feature, bank, references, most),
    )


def _find_region(seg: Segmentation, region: int | tuple[int, int]) -> int:
    if seg.features is None or seg.agents is None:
        raise ValueError("seg must have regions to be explained, got one of single pixels")
    if isinstance(region, int | np.integer) and not isinstance(region, bool):
        if not 0 <= region < len(seg.masks):
            raise ValueError(f"region must be from 0 to {len(seg.masks) - 1}, got {region}")
        index = int(region)
    else:
        try:
            x, y = map(operator.index, region)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            raise ValueError(
                "region must be a row of seg.masks or a point (x, y) in whole pixels, got "
                f"{region!r}"
            ) from None
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


def _check_score(
    scores: Float32[np.ndarray, " C"],
    label: int,
    similarities: Float32[np.ndarray, " R"],
    bank: ReferenceBank,
    settings: SegmentSettings,
) -> None:
    """Raise ValueError where the best class's score isn't made of these similarities (Eq. 10)."""
    own = similarities[np.asarray(bank.owners) == label]
    score = {"mean": np.mean, "sum": np.sum, "max": np.max}[settings.class_score](own)
    if abs(score - scores[label]) > SAME * max(1, len(own)):
        raise ValueError(
            f"bank and settings must be the segmentation's: {bank.names[label]!r} has the score "
            f"{scores[label]:.3f} there, and {score:.3f} with these"
        )
