"""The scenes to choose settings by: as the benchmark's, but of training-split photographs."""

from pathlib import Path

import numpy as np

from rimjax.datasets import Dataset, Item, fashion_scenes


def validation_scenes(data: Path, count: int = 200) -> Dataset:
    """Scenes of the 5,000 training-split photographs that the ViT and Sam never saw."""
    photos, classes = (part[-5_000:] for part in fashion_scenes.read_idx("train", data))

    def scene(index: int) -> fashion_scenes.Scene:
        return fashion_scenes.random_scene(np.random.default_rng((77, index)), photos, classes)

    def item(index: int) -> Item:
        return Item(f"{index:04d}", lambda: scene(index).image, lambda: scene(index).labels)

    return Dataset("fashion-scenes (validation)", fashion_scenes.CLASSES, [item(index) for index in range(count)])
