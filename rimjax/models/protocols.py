"""What the two flows need of a model, in plain NumPy arrays: a Generator, a Masker and an Encoder.

Any object with these methods will do; the concrete models beside this file are one choice, the tests' fakes another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.types import AnyArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, eq=False)
class Generated:
    """Synthetic images of one class, and where the model was looking when it drew the class (Sec. 3.4).

    Attributes:
        images: RGB.
        attention: averaged cross-attention of the class's tokens, 0..1 (Eq. 3); the grid is usually coarser than the images.
    """

    images: UInt8[np.ndarray, "K H W 3"]
    attention: Float32[np.ndarray, "K h w"]


class Model(Protocol):
    """What every model has."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and settings that the results depend on, so that caches know when they are stale."""
        ...


class Generator(Model, Protocol):
    """Text to images (Sec. 3.4)."""

    def check(self, class_name: str) -> None:
        """Raise ValueError for a class name that `generate` would refuse."""
        ...

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """Draw a class; image i depends on nothing but the name, the seed and i.

        Raises:
            ValueError: the model doesn't know the name, or num_images < 1.
        """
        ...


class Masker(Model, Protocol):
    """Class-agnostic masks; `fingerprint` covers what `mask` depends on, not the settings of `propose`."""

    @property
    def proposals_fingerprint(self) -> str:
        """Digest of what `propose` depends on."""
        ...

    def mask(self, image: UInt8[np.ndarray, "H W 3"], points: Float32[np.ndarray, "n 2"]) -> Bool[np.ndarray, "H W"]:
        """The mask of the one thing that every point (x, y in pixels) lies on; may be empty."""
        ...

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "P H W"]:
        """Masks of everything in the image, largest first; P may be 0."""
        ...


class Encoder(Model, Protocol):
    """Images to feature maps (Sec. 4.2)."""

    def encode(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "h w D"]:
        """The image's feature map; the grid covers the whole image whatever its shape."""
        ...

    def encode_batch(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "B h w D"]:
        """`encode` of each image; they may differ in size."""
        ...


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the image is a non-empty uint8[H, W, 3]."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected uint8[H, W, 3], got {image.dtype}{list(image.shape)}; rimjax.images.read_image makes one")


def in_batches(
    run: Callable[[np.ndarray], AnyArray], pixels: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray], size: int
) -> Float32[np.ndarray, "B h w D"]:
    """What `run` makes of the pixels of each image, up to `size` of them at once; a last batch that isn't full is padded, so that one
    shape is compiled. Raises ValueError where there is no image."""
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    size = min(size, len(images))
    done = []
    for start in range(0, len(images), size):
        batch = np.stack([pixels(image) for image in images[start : start + size]])
        padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
        done.append(np.asarray(run(padded))[: len(batch)])
    return np.concatenate(done)


def fingerprint(config: DataclassInstance, weights: Mapping[str, np.ndarray], **settings: object) -> str:
    """Digest of a model's config, named weights and whatever other settings (JSON) its results depend on: 20 hex digits."""
    digest = hashlib.sha256(json.dumps([asdict(config), settings], sort_keys=True).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:20]
