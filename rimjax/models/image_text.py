"""CLIP's image-text matching of regions, the paper's baseline (Table 2, row 1), in torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from rimjax.models.protocols import cached_property, check_finite_output, check_image
from rimjax.models.transformers_folder import (
    TOKENISING,
    fingerprint_model,
    load_model,
    load_tokenizer,
)

Colour = tuple[float, float, float]


class ImageTextMatcher:
    """A CLIP with both towers.

    Args:
        directory: config, weights and tokenizer as transformers writes them.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        device: torch's device; default: "cuda" if available, else "cpu".
        batch_size: crops embedded at once.

    Raises:
        FileNotFoundError: the directory doesn't exist.
        ValueError: the directory doesn't hold such a model, or it is damaged.
        ImportError: torch or transformers is missing.
    """

    def __init__(
        self,
        directory: Path,
        mean: Colour,
        std: Colour,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self._mean, self._std, self._batch_size = mean, std, batch_size
        self._built_from = (directory, mean, std, device, batch_size)
        self.model = load_model("CLIPModel", directory, "CLIP", device)
        self.tokenizer: Any = load_tokenizer(directory, "CLIP")
        self.size: int = self.model.config.vision_config.image_size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._built_from

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, architecture and colours."""
        return fingerprint_model(self.model, self._mean, self._std)

    def embed_texts(self, prompts: Sequence[str]) -> Float32[np.ndarray, "C E"]:
        """Return unit vectors of prompts; prompts longer than the model takes are cut off."""
        import torch

        config = self.model.config
        if not len(prompts):
            return np.zeros((0, config.projection_dim), np.float32)
        positions = config.text_config.max_position_embeddings
        with TOKENISING:
            tokens = self.tokenizer(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=min(self.tokenizer.model_max_length, positions),
                return_tensors="pt",
            )["input_ids"].to(self.model.device)
        # The summary of a text is at its end token, which has CLIP's highest id; with a tokenizer
        # that pads on the left, at its last token.
        last = torch.full((len(tokens),), tokens.shape[1] - 1)
        ends = tokens.argmax(1) if self.tokenizer.padding_side == "right" else last
        with torch.inference_mode():
            hidden = self.model.text_model(input_ids=tokens).last_hidden_state
            return self._normalise(
                self.model.text_projection(hidden[torch.arange(len(tokens)), ends])
            )

    def embed_regions(
        self, image: np.ndarray, masks: np.ndarray
    ) -> tuple[Float32[np.ndarray, "P E"], Bool[np.ndarray, " P"]]:
        """Return unit vectors of regions.

        A region is cut out by its box, black outside of its mask, and resized to the model's
        square.

        Args:
            image: uint8[H, W, 3].
            masks: bool[P, H, W].

        Returns:
            The vectors, zero for an empty mask, and which masks are not empty.

        Raises:
            ValueError: the image is something else, or the masks have another size.
        """
        check_image(image)
        height, width = image.shape[:2]
        if masks.ndim != 3 or masks.shape[1:] != (height, width):
            expected = f"bool[P, {height}, {width}] like the image"
            raise ValueError(f"masks must be {expected}, got {list(masks.shape)}")
        valid = np.array([mask.any() for mask in masks], bool)
        crops = [_crop(image, mask, self.size) for mask in masks[valid]]
        vectors = np.zeros((len(masks), self.model.config.projection_dim), np.float32)
        batches = [
            self._embed(np.stack(crops[start : start + self._batch_size]))
            for start in range(0, len(crops), self._batch_size)
        ]
        if batches:
            vectors[valid] = np.concatenate(batches)
        return vectors, valid

    def _embed(self, crops: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B E"]:
        import torch

        mean, std = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (self._mean, self._std))
        pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.inference_mode():
            features = self.model.get_image_features(pixel_values=pixels.to(self.model.device))
            return self._normalise(features)

    def _normalise(self, features: Any) -> Float32[np.ndarray, "B E"]:
        from torch.nn.functional import normalize

        vectors = normalize(features.float(), dim=1).cpu().numpy()
        check_finite_output("CLIP", vectors)
        return vectors


def _crop(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    filled = np.where(mask[box][..., None], image[box], 0).astype(np.uint8)
    return np.asarray(Image.fromarray(filled).resize((size, size), Image.Resampling.BICUBIC))
