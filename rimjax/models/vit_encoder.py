"""A ViT's last-layer keys as an encoder, and the ViT's own file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ported_weights.choices import check_choices
from ported_weights.rules import build_tree, check_finite, flatten_tree
from ported_weights.vit import IMAGENET_MEAN, IMAGENET_STD
from rimjax.files import fingerprint, parse_json
from rimjax.models.memory import BatchLimit, advise_on_memory
from rimjax.models.protocols import (
    CopiedByFields,
    cached_property,
    check_image,
    encode_in_batches,
    resize_image,
)
from rimjax.models.vit import Params, ViTConfig, last_layer_keys


def save_vit(params: Params, config: ViTConfig, path: str | Path) -> None:
    """Write a ViT as safetensors, its keys joined by "/", with the config as metadata.

    Raises:
        OSError: the file can't be written.
    """
    arrays = {key: np.ascontiguousarray(array) for key, array in flatten_tree(params).items()}
    Path(path).write_bytes(save(arrays, metadata={"config": json.dumps(asdict(config))}))


def load_vit(path: str | Path) -> tuple[dict[str, Any], ViTConfig]:
    """Read the parameters and the config that `save_vit` wrote.

    Raises:
        ValueError: the file is damaged, or something else, or a weight is NaN or infinite.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            config = ViTConfig(**parse_json((file.metadata() or {})["config"]))
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = f"damaged, or not a ViT that save_vit wrote ({error})"
        raise ValueError(f"{path}: {reason}; port it again") from error
    check_finite(path, arrays)
    return build_tree(arrays), config


@dataclass(frozen=True, eq=False)
class ViTEncoder(CopiedByFields):
    """A ViT's last-layer keys as an `Encoder`.

    Images are resized (Pillow's bicubic) and normalised.

    Attributes:
        params: of the ViT.
        config: of the ViT.
        input_size: S.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        batch_size: images encoded at once, fewer where memory runs out; the last batch is padded.
        resize: "square" resizes every image to SxS pixels, whatever its shape; "aspect" to about as
            many pixels in its own shape, see `choose_grid`.
        source: name of the weights; see `name_source`.

    Raises:
        ValueError: S isn't a multiple of the patch size, batch_size < 1, or another `resize`.
    """

    params: Params
    config: ViTConfig
    input_size: int = 518
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    batch_size: int = 8
    resize: Literal["square", "aspect"] = "square"
    source: str = ""

    def __post_init__(self) -> None:
        check_choices(self)
        patch = self.config.patch_size
        if self.input_size < 1 or self.input_size % patch:
            expected = f"a multiple of the patch size {patch}"
            raise ValueError(f"input_size must be {expected}, got {self.input_size}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, architecture and input settings."""
        config = asdict(self.config)
        if self.config.rope_theta is None:  # as before DINOv3, so that banks stay valid
            del config["rope_theta"], config["key_bias"]
        settings = [config, self.input_size, self.mean, self.std]
        if self.resize != "square":  # left out as before there was a choice: caches stay valid
            settings.append(self.resize)
        return fingerprint(settings, flatten_tree(self.params))

    def encode(self, image: np.ndarray) -> Float32[np.ndarray, "h w D"]:
        """Encode an image; h = w = S / patch size, unless the image keeps its shape.

        Args:
            image: uint8[H, W, 3].

        Raises:
            ValueError: the image is something else.
        """
        return self.encode_batch([image])[0]

    def encode_batch(
        self, images: Sequence[np.ndarray] | np.ndarray
    ) -> list[Float32[np.ndarray, "h w D"]]:
        """Encode several images; a batch holds images of one grid.

        Args:
            images: each uint8[H, W, 3] of any size.

        Raises:
            ValueError: an image is something else, or there is none.
        """

        def encode(pixels: np.ndarray) -> Array:
            return last_layer_keys(self._placed_params, pixels, config=self.config)

        return encode_in_batches(
            encode, self.read_pixels, images, self.batch_size, self._limit, self.config.dtype
        )

    @cached_property
    def _limit(self) -> BatchLimit:
        smaller = "choose a smaller encoder or input_size"
        return BatchLimit("encoding images", advise_on_memory(self.config.dtype, smaller))

    @cached_property
    def _placed_params(self) -> Params:
        return jax.device_put(self.params)

    def read_pixels(self, image: np.ndarray) -> Float32[np.ndarray, "H W 3"]:
        check_image(image)
        mean, std = (np.asarray(colour, np.float32) for colour in (self.mean, self.std))
        patch = self.config.patch_size
        side = self.input_size // patch
        rows, columns = (side, side)
        if self.resize == "aspect":
            rows, columns = choose_grid(image.shape[0], image.shape[1], side)
        return (resize_image(image, rows * patch, columns * patch) / 255 - mean) / std


def choose_grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Choose the rows and columns of an image's own shape, about side^2 cells in all.

    The longer side is rounded first and alone decides the other, so there are fewer than 2 side^2
    grids, most of them for images that are longer than any photograph.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        side: cells along a side of a square image's grid.
    """
    longer = min(side * side, round(side * math.sqrt(max(height, width) / min(height, width))))
    shorter = max(1, round(side * side / longer))
    return (longer, shorter) if height > width else (shorter, longer)
