"""Scenes to choose settings on: like the benchmark's, but of training-split photographs."""

from functools import partial
from pathlib import Path

import numpy as np

from rimjax.datasets import Dataset, Item, fashion_mnist, fashion_scenes


def open_validation_scenes(data: Path, count: int = 200) -> Dataset:
    """Open scenes of the 5,000 training-split photographs that the ViT and SAM never saw.

    Args:
        data: folder of Fashion-MNIST's idx.gz files.
        count: number of scenes.
    """
    photos, classes = (part[-5_000:] for part in fashion_mnist.read_idx("train", data))

    def render(index: int, part: str) -> np.ndarray:
        rng = np.random.default_rng((77, index))
        return getattr(fashion_scenes.render_random(rng, photos, classes), part)

    items = [
        Item(f"{index:04d}", partial(render, index, "image"), partial(render, index, "labels"))
        for index in range(count)
    ]
    return Dataset("fashion-scenes (validation)", fashion_mnist.CLASSES, items)
