"""CLIP's image-text matching of regions: the baseline that the paper starts from (Table 2, row 1). In torch, as transformers has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from rimjax.models.pretrained import architecture, load_model, load_tokenizer
from rimjax.models.protocols import check_image


class ImageTextMatcher:
    """A CLIP with both towers.

    Args:
        directory: config, weights and tokenizer as transformers writes them.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        device: of torch; default: "cuda" if there is one, else "cpu".
        batch_size: crops that go through at once.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no such model in it, or it is damaged.
        ImportError: torch or transformers is missing.
    """

    def __init__(
        self,
        directory: Path,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self._colours, self._batch_size = (mean, std), batch_size
        self._torch, self.model = load_model("CLIPModel", directory, "CLIP", device)
        self.tokenizer: Any = load_tokenizer(directory, "CLIP")
        self.size: int = self.model.config.vision_config.image_size

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, architecture and colours: 20 hex digits."""
        digest = hashlib.sha256(json.dumps([architecture(self.model), self._colours], sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:20]

    def embed_texts(self, prompts: Sequence[str]) -> Float32[np.ndarray, "C E"]:
        """Unit vectors of prompts; what is longer than the model takes is cut off."""
        if not len(prompts):
            return np.zeros((0, self.model.config.projection_dim), np.float32)
        length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        shape = {"padding": "max_length", "truncation": True, "max_length": length}
        tokens = self.tokenizer(list(prompts), **shape, return_tensors="pt")["input_ids"].to(self.model.device)
        # A text is summed up by its end token, which has CLIP's highest id; where a tokenizer pads on the left, by its last word.
        at = tokens.argmax(1) if self.tokenizer.padding_side == "right" else self._torch.full((len(tokens),), tokens.shape[1] - 1)
        with self._torch.inference_mode():
            hidden = self.model.text_model(input_ids=tokens).last_hidden_state
            found = self.model.text_projection(hidden[self._torch.arange(len(tokens)), at])
        return self._unit(found)

    def embed_regions(
        self, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "P H W"]
    ) -> tuple[Float32[np.ndarray, "P E"], Bool[np.ndarray, " P"]]:
        """Unit vectors of regions: the region's box, what lies outside of the region zero-filled, resized to the model's square.

        Returns:
            The vectors, and which masks were not empty; an empty one's vector is zero.

        Raises:
            ValueError: not a uint8[H, W, 3], or the masks are of another size.
        """
        check_image(image)
        if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
            raise ValueError(f"masks: expected bool[P, {image.shape[0]}, {image.shape[1]}], as the image is, got {list(masks.shape)}")
        valid = np.array([mask.any() for mask in masks], bool)
        crops = [_crop(image, mask, self.size) for mask in masks[valid]]
        found = np.zeros((len(masks), self.model.config.projection_dim), np.float32)
        done = [self._embed(np.stack(crops[start : start + self._batch_size])) for start in range(0, len(crops), self._batch_size)]
        if done:
            found[valid] = np.concatenate(done)
        return found, valid

    def _embed(self, crops: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B E"]:
        torch = self._torch
        mean, deviation = (torch.tensor(part).view(1, 3, 1, 1) for part in self._colours)
        pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
        with torch.inference_mode():
            return self._unit(self.model.get_image_features(pixel_values=pixels.to(self.model.device)))

    def _unit(self, features: Any) -> np.ndarray:
        return self._torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()


def _crop(image: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    filled = np.where(mask[box][..., None], image[box], 0).astype(np.uint8)
    return np.asarray(Image.fromarray(filled).resize((size, size), Image.Resampling.BICUBIC))
