"""Regions whose right names are known: proposals on labelled scenes, each with its true class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

import rimjax
from rimjax.datasets import Item
from rimjax.match import match
from rimjax.models.protocols import Models
from rimjax.regions.store import LoadRegions
from rimjax.results.segmentation import measure_margins
from rimjax.types import ReferenceBank, Regions


class Naming(NamedTuple):
    """What a vocabulary makes of regions.

    Attributes:
        labels: the data set's label of the class that each region gets.
        scores: of that class.
        margins: distances to the runners-up.
        right: whether the class is the true one.
        known: whether the true class is in the vocabulary, or the background.
        vocabulary: the labels that there are: 0 and those of the bank's classes.
    """

    labels: Int[np.ndarray, " P"]
    scores: Float[np.ndarray, " P"]
    margins: Float[np.ndarray, " P"]
    right: Bool[np.ndarray, " P"]
    known: Bool[np.ndarray, " P"]
    vocabulary: Int[np.ndarray, " C"]


@dataclass(frozen=True, eq=False)
class TrueRegions:
    """Valid regions of scenes.

    Attributes:
        features: as the encoder gives them, pooled.
        truths: the label that most pixels of each region have; 0 is the background.
        classes: of the data set, in the order of the labels from 1 on.
    """

    features: Float[np.ndarray, "P D"]
    truths: Int[np.ndarray, " P"]
    classes: tuple[str, ...]

    def name(self, bank: ReferenceBank, models: Models) -> Naming:
        """Name the regions by a bank of some of the classes, under the models' settings."""
        result = match(self.features, bank, **models.segmentation.as_keywords())
        numbers = np.array([0, *(1 + self.classes.index(name) for name in bank.names[1:])])
        labels, scores = numbers[np.asarray(result.labels)], np.asarray(result.scores)
        right, known = labels == self.truths, np.isin(self.truths, numbers)
        return Naming(labels, scores.max(1), measure_margins(scores), right, known, numbers)

    def name_by_vocabularies(self, count: int, models: Models, cache: Path) -> list[Naming]:
        """Name the regions by banks of `count` of the C classes each.

        There are C vocabularies, or one where `count` is C; every class is in equally many.
        """
        spread = np.random.default_rng(0).permutation(len(self.classes))[:count]
        starts = range(len(self.classes)) if count < len(self.classes) else (0,)
        namings = []
        for first in starts:
            chosen = sorted((first + spread) % len(self.classes))
            names = [self.classes[index] for index in chosen]
            bank = rimjax.build_bank(names, models, cache_dir=cache)
            namings.append(self.name(bank, models))
        return namings


def collect_true_regions(
    items: Iterable[Item], load: LoadRegions, classes: tuple[str, ...]
) -> TrueRegions:
    """Load or compute the regions of labelled scenes, and find each one's true class."""
    features, truths = [], []
    for item in items:
        regions, labels = load(item.image(), {}), item.labels()
        assert isinstance(regions, Regions) and regions.masks is not None
        masks = np.asarray(regions.masks)
        valid = np.asarray(regions.valid)[: len(masks)]
        features.append(np.asarray(regions.features)[: len(masks)][valid])
        truths += [np.bincount(labels[mask]).argmax() for mask in masks[valid]]
    return TrueRegions(np.concatenate(features), np.array(truths), classes)
