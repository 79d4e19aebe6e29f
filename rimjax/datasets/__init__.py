"""Labelled data sets as (image, labels) readers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rimjax.datasets import fashion_scenes


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name: as on the command line.
        classes: without the background; label 1 + i is `classes[i]`, 0 the background, 255 ignored.
        size: number of images.
    """

    name: str
    classes: tuple[str, ...]
    size: int

    def scenes(self, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(image uint8[H, W, 3], labels uint8[H, W]) pairs, the first `limit` of them."""
        for scene in fashion_scenes.benchmark(self.size if limit is None else min(limit, self.size)):
            yield scene.image, scene.labels


DATASETS = {"fashion-scenes": Dataset("fashion-scenes", fashion_scenes.CLASSES, fashion_scenes.BENCHMARK_SCENES)}
