"""Models small enough to check the flows by hand: a class is a colour, a region is a patch of one colour, a feature is its colour."""

from __future__ import annotations

import zlib

import numpy as np

from rimjax.settings import SegmentSettings
from rimjax.models.protocols import Generated
from rimjax.models.protocols import Models
from rimjax.settings import ReferenceSettings

SIZE = 32


COLOURS = {
    "apple": (250, 40, 40),
    "plum": (40, 40, 250),
    "leaf": (40, 250, 40),
    "sky": (40, 250, 250),
    "mug": (250, 250, 40),
}


def colour(name: str) -> np.ndarray:
    """A class's colour, far from grey; of names that have none above, one of their own."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (100, 3))
    return np.array(COLOURS.get(name) or next(one for one in drawn if np.ptp(one) > 150), np.uint8)


class FakeGenerator:
    """Draws a square of the class's colour on grey; counts what it draws; attention is brightest inside the square."""

    def __init__(self, fingerprint: str = "fake-generator") -> None:
        self.fingerprint = fingerprint
        self.drawn: list[str] = []

    def check(self, class_name: str) -> None:
        if class_name == "unknowable":
            raise ValueError("class_name: the model doesn't know 'unknowable'")

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        self.drawn.append(class_name)
        rng = np.random.default_rng((seed, zlib.crc32(class_name.encode())))
        images = np.full((num_images, SIZE, SIZE, 3), 128, np.uint8)
        attention = np.full((num_images, 8, 8), 0.1, np.float32)
        for image, heat in zip(images, attention, strict=True):
            top, left = rng.integers(0, 3, 2) * 4
            image[top : top + 20, left : left + 20] = colour(class_name)
            heat[top // 4 + 1 : top // 4 + 4, left // 4 + 1 : left // 4 + 4] = 1.0
        return Generated(images=images, attention=attention)


class FakeMasker:
    """A mask is every pixel of the first point's colour; proposals are the image's colours but grey."""

    fingerprint = "fake-masker"
    proposals_fingerprint = "fake-proposals"

    def mask(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        x, y = points[0].astype(int)
        return (image == image[y, x]).all(-1)

    def propose(self, image: np.ndarray) -> np.ndarray:
        colours = [c for c in np.unique(image.reshape(-1, 3), axis=0) if not (c == 128).all()]
        return np.array([(image == c).all(-1) for c in colours], bool).reshape(-1, *image.shape[:2])


class FakeEncoder:
    """Features are the mean colours of a 16x16 grid of cells, about grey."""

    def __init__(self, fingerprint: str = "fake-encoder") -> None:
        self.fingerprint = fingerprint

    def encode(self, image: np.ndarray) -> np.ndarray:
        rows = np.linspace(0, image.shape[0], 17).astype(int)[:-1]
        columns = np.linspace(0, image.shape[1], 17).astype(int)[:-1]
        return image[rows][:, columns].astype(np.float32) / 128 - 1 + np.float32([0, 0, 0.01])

    def encode_batch(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self.encode(image) for image in images])


def fake_models() -> Models:
    """The three fakes with small settings."""
    return Models(
        name="fake",
        generator=FakeGenerator(),
        masker=FakeMasker(),
        encoder=FakeEncoder(),
        references=ReferenceSettings(num_images=3, num_subcategories=2),
        segmentation=SegmentSettings(num_agents=3),
    )
