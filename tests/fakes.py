"""Models small enough to check by hand: a class is a colour, a region a patch of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from rimjax.models.protocols import Generated, Models, Proposals
from rimjax.settings import ReferenceSettings, SegmentSettings

SIZE = 32

COLOURS = {
    "apple": (250, 40, 40),
    "plum": (40, 40, 250),
    "leaf": (40, 250, 40),
    "sky": (40, 250, 250),
    "mug": (250, 250, 40),
}


def pick_colour(name: str) -> np.ndarray:
    """Return a class's colour, far from grey; names that have none above get their own."""
    random = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (100, 3))
    vivid = next(colour for colour in random if np.ptp(colour) > 150)
    return np.array(COLOURS.get(name, vivid), np.uint8)


class FakeGenerator:
    """Draws a square of the class's colour on grey, with attention inside the square."""

    def __init__(self, fingerprint: str = "fake-generator") -> None:
        self.fingerprint = fingerprint
        self.drawn: list[str] = []

    def check(self, class_name: str) -> None:
        if class_name == "unknowable":
            raise ValueError("class_name must be known to the model, got 'unknowable'")

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        self.drawn.append(class_name)
        rng = np.random.default_rng((seed, zlib.crc32(class_name.encode())))
        images = np.full((num_images, SIZE, SIZE, 3), 128, np.uint8)
        attention = np.full((num_images, 8, 8), 0.1, np.float32)
        for image, heat in zip(images, attention, strict=True):
            top, left = rng.integers(0, 3, 2) * 4
            image[top : top + 20, left : left + 20] = pick_colour(class_name)
            heat[top // 4 + 1 : top // 4 + 4, left // 4 + 1 : left // 4 + 4] = 1.0
        return Generated(images=images, attention=attention)


class FakeMasker:
    """A mask is every pixel of the first point's colour."""

    fingerprint = "fake-masker"

    def mask(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        x, y = points[0].astype(int)
        return (image == image[y, x]).all(-1)


class FakeProposer:
    """Proposals are the image's colours except grey; the darker, the higher the score."""

    fingerprint = "fake-proposer"

    def propose(self, image: np.ndarray) -> Proposals:
        colours = np.unique(image.reshape(-1, 3), axis=0)
        colours = colours[(colours != 128).any(1)]
        masks = (image == colours[:, None, None]).all(-1)
        return Proposals(masks, 1 - colours.mean(1, dtype=np.float32) / 255)


class FakeEncoder:
    """Features are the colours of a 16x16 grid of pixels, relative to grey."""

    def __init__(self, fingerprint: str = "fake-encoder") -> None:
        self.fingerprint = fingerprint

    def encode(self, image: np.ndarray) -> np.ndarray:
        rows, columns = (np.linspace(0, side, 17).astype(int)[:-1] for side in image.shape[:2])
        colours = image[rows][:, columns].astype(np.float32) / 128 - 1
        return colours + np.array([0, 0, 0.01], np.float32)

    def encode_batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self.encode(image) for image in images]


def fake_models() -> Models:
    """Return the fakes with small settings."""
    return Models(
        name="fake",
        generator=FakeGenerator(),
        masker=FakeMasker(),
        proposer=FakeProposer(),
        encoder=FakeEncoder(),
        references=ReferenceSettings(num_images=3, num_subcategories=2),
        segmentation=SegmentSettings(num_agents=3),
    )


def list_drawn(models: Models) -> list[str]:
    """Return the classes that a fake generator has drawn."""
    assert isinstance(models.generator, FakeGenerator)
    return models.generator.drawn
