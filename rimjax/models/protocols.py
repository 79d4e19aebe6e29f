"""What the flows need of models, in NumPy arrays: Generator, Masker, Proposer and Encoder.

Any object with these methods will do: the models beside this file, or your own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from rimjax.models.calibration import Calibration
from rimjax.models.memory import BatchLimit
from rimjax.settings import ReferenceSettings, SegmentSettings
from rimjax.types import AnyArray

if TYPE_CHECKING:
    cached_property = property  # checkers don't accept a cached_property for a protocol's property
else:
    from functools import cached_property

__all__ = [
    "CopiedByFields",
    "Encoder",
    "Generated",
    "Generator",
    "Masker",
    "Models",
    "Pixels",
    "Proposals",
    "Proposer",
    "cached_property",
    "check_image",
    "encode_in_batches",
]


@dataclass(frozen=True, eq=False)
class Generated:
    """Synthetic images of a class, and the attention to the class's name while drawing (Sec. 3.4).

    Attributes:
        images: RGB.
        attention: averaged cross-attention of the class's tokens, 0..1 (Eq. 3); its grid is usually
            coarser than the images.
    """

    images: UInt8[np.ndarray, "K H W 3"]
    attention: Float32[np.ndarray, "K h w"]


class CopiedByFields:
    """A dataclass that is copied and pickled as the fields that it was built from.

    What it has cached, compiled functions above all, stays behind.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        built_from = {part.name: getattr(self, part.name) for part in fields(self) if part.init}  # pyright: ignore[reportArgumentType]
        return partial(type(self), **built_from), ()


class Fingerprinted(Protocol):
    """A model that caches can tell from others."""

    if TYPE_CHECKING:  # hidden at run time: isinstance would compute it

        @property
        def fingerprint(self) -> str:
            """Digest of the weights and settings that the results depend on."""
            ...


@runtime_checkable
class Generator(Fingerprinted, Protocol):
    """Text to images (Sec. 3.4); a class name may be a prompt with the object's words in braces."""

    def check(self, class_name: str) -> None:
        """Raise ValueError for a class name that `generate` would refuse."""
        ...

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """Draw a class; image i depends on nothing but the name, the seed and i.

        Raises:
            ValueError: the model doesn't know the name, or num_images < 1.
        """
        ...


@runtime_checkable
class Masker(Fingerprinted, Protocol):
    """Points to a class-agnostic mask (Sec. 3.4).

    One whose `takes_boxes` is true also gets `box=`, float32[4] (x0, y0, x1, y1 in pixels), then
    perhaps without points; others get a box's centre as a point.
    """

    def mask(
        self, image: UInt8[np.ndarray, "H W 3"], points: Float32[np.ndarray, "n 2"]
    ) -> Bool[np.ndarray, "H W"]:
        """Return the mask of the object that every point (x, y in pixels) lies on; may be empty."""
        ...


class Proposals(NamedTuple):
    """Masks of everything in an image, and what the proposer thinks of each.

    Attributes:
        masks: largest first; P may be 0.
        scores: SAM's predicted IoU, MaskFormer's probability; None where a proposer has none.
        stability: SAM's stability score; None where a proposer has none.
    """

    masks: Bool[np.ndarray, "P H W"]
    scores: Float32[np.ndarray, " P"] | None = None
    stability: Float32[np.ndarray, " P"] | None = None


@runtime_checkable
class Proposer(Fingerprinted, Protocol):
    """An image to class-agnostic region masks (Sec. 3.5)."""

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Proposals:
        """Return masks of everything in the image, largest first; P may be 0."""
        ...


@dataclass(frozen=True)
class Pixels:
    """No `Proposer`: flow 2 names pixels by the encoder's features themselves (Table 4, "none").

    Attributes:
        fingerprint: always the same.
    """

    fingerprint: str = "pixels"

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Proposals:
        """Return no masks."""
        return Proposals(np.zeros((0, *image.shape[:2]), bool))


@runtime_checkable
class Encoder(Fingerprinted, Protocol):
    """Images to feature maps (Sec. 4.2)."""

    def encode(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "h w D"]:
        """Return the image's feature map; its grid covers the whole image whatever its shape."""
        ...

    def encode_batch(self, images: Sequence[np.ndarray]) -> list[Float32[np.ndarray, "h w D"]]:
        """Encode several images, which may differ in size; so may their grids."""
        ...


@dataclass(frozen=True)
class Models:
    """The models of both flows and their settings; replace a stage with `dataclasses.replace`.

    Attributes:
        name: name of the preset.
        generator: draws the references.
        masker: cuts out the references' foregrounds.
        proposer: proposes an image's regions; `Pixels` names pixels without regions.
        encoder: computes the features of both.
        references: settings of flow 1.
        segmentation: settings of flow 2.
        antialias: of `rimjax.steps.pool.resize_masks`, by which both flows pool features.
        calibration: what was measured of a preset's models; unused once its stages are replaced.
    """

    name: str
    generator: Generator
    masker: Masker
    proposer: Proposer
    encoder: Encoder
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)
    antialias: bool = True
    calibration: Calibration | None = None

    @property
    def features(self) -> str:
        """Digest of what pooled features depend on; only features with the same are compared."""
        return self.encoder.fingerprint + ("" if self.antialias else "-bilinear")


def check_image(image: np.ndarray) -> None:
    """Raise ValueError unless the image is a non-empty uint8[H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        actual = f"{image.dtype}{list(image.shape)}"
        advice = "read it with rimjax.images.read_image"
        raise ValueError(f"image must be uint8[H, W, 3], got {actual}; {advice}")


def check_finite_output(model: str, numbers: np.ndarray) -> None:
    """Raise ValueError where a model of float32 gives NaN or infinity, which no mask would show."""
    if not np.isfinite(numbers).all():
        advice = advise_on_numbers("float32")
        raise ValueError(f"{model} must give finite numbers, got NaN or infinity; {advice}")


def advise_on_numbers(dtype: str, argument: str = "dtype") -> str:
    """Say what helps where a model gives NaN or infinity.

    Args:
        dtype: that the model computes in.
        argument: of `load_preset`, which sets it.
    """
    if dtype == "float32":
        return "its weights may be damaged: run `rimjax weights verify`"
    return f"load the preset with {argument} float32"


def encode_in_batches(
    encode: Callable[[np.ndarray], AnyArray],
    read_pixels: Callable[[np.ndarray], np.ndarray],
    images: Sequence[np.ndarray] | np.ndarray,
    batch_size: int,
    limit: BatchLimit,
    dtype: str = "float32",
) -> list[Float32[np.ndarray, "h w D"]]:
    """Encode images in batches of equal shape, each image's features in its place.

    A shape's last batch is padded, so that the shape is compiled once.

    Args:
        encode: pixels of a batch to features.
        read_pixels: an image to the pixels that the model takes.
        images: each uint8[H, W, 3] of any size.
        batch_size: images in a batch; fewer if there are fewer images.
        limit: halves the batches when memory runs out.
        dtype: that the model computes in, for the message.

    Raises:
        ValueError: there is no image, or features hold NaN or infinity.
        MemoryError: memory doesn't hold a single image.
    """
    if not len(images):
        raise ValueError("images must hold at least one image, got none")
    size = min(batch_size, len(images))
    features: dict[int, np.ndarray] = {}
    waiting: dict[tuple[int, ...], dict[int, np.ndarray]] = {}

    def encode_waiting(batch: dict[int, np.ndarray]) -> None:
        stacked = np.stack(list(batch.values()))

        def encode_part(start: int, size: int) -> np.ndarray:
            part = stacked[start : start + size]
            return np.asarray(encode(np.pad(part, [(0, size - len(part)), *[(0, 0)] * 3])))

        encoded = np.concatenate(limit.run(encode_part, len(batch), size))[: len(batch)]
        if not np.isfinite(encoded).all():
            raise ValueError(
                f"encoder must give finite features, got NaN or infinity in {dtype}; "
                + advise_on_numbers(dtype, "encoder_dtype")
            )
        features.update(zip(batch, encoded, strict=True))
        batch.clear()

    for index, image in enumerate(images):
        pixels = read_pixels(image)
        batch = waiting.setdefault(pixels.shape, {})
        batch[index] = pixels
        if len(batch) == size:
            encode_waiting(batch)
    for batch in filter(None, waiting.values()):
        encode_waiting(batch)
    return [features[index] for index in range(len(images))]


def resize_image(image: np.ndarray, height: int, width: int) -> Float32[np.ndarray, "H W 3"]:
    """Resize an image (Pillow's bicubic), whatever its shape; values stay 0 to 255.

    Args:
        image: uint8[h, w, 3].
        height: H.
        width: W.

    Raises:
        ValueError: the image is something else.
    """
    check_image(image)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)
