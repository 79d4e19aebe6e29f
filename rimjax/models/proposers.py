"""Regions from elsewhere than SAM (Table 4): MaskFormer's masks, or the encoder's feature cells. References are still cut out by SAM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.models.pretrained import architecture, load_model
from rimjax.models.protocols import Encoder, Masker, check_image, fingerprint


@dataclass(frozen=True, eq=False)
class CellMasker:
    """Every cell of the encoder's feature grid is a region: the paper's matching without proposals, pixel against reference.

    Pooled like any region (Eq. 4), about half of a cell's feature is its own and the rest its neighbours': resizing a mask to the grid
    spreads it over them.

    Attributes:
        masker: cuts out the references.
        encoder: whose grid it is.
    """

    masker: Masker
    encoder: Encoder

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features."""
        height, width, _ = self.encoder.encode(np.zeros((64, 64, 3), np.uint8)).shape
        return height, width

    @property
    def fingerprint(self) -> str:
        """The masker's."""
        return self.masker.fingerprint

    @property
    def proposals_fingerprint(self) -> str:
        """Of the grid."""
        return f"cells-{self.grid[0]}x{self.grid[1]}"

    def mask(self, image: UInt8[np.ndarray, "H W 3"], points: Float32[np.ndarray, "n 2"]) -> Bool[np.ndarray, "H W"]:
        """As the masker's."""
        return self.masker.mask(image, points)

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "P H W"]:
        """h * w masks that share the image out among them; in an image smaller than the grid some are empty."""
        check_image(image)
        rows, columns = (np.arange(side) * cells // side for side, cells in zip(image.shape[:2], self.grid, strict=True))
        owner = rows[:, None] * self.grid[1] + columns
        return owner == np.arange(self.grid[0] * self.grid[1])[:, None, None]


DIVISOR = 32
"""Of a MaskFormer's input: its backbone's coarsest stride."""


@dataclass(frozen=True)
class MaskFormerConfig:
    """How a MaskFormer is run.

    Attributes:
        input_size: pixels that the image's shorter side is resized to; None: the image as it is. Either way both sides are then rounded up
            to a multiple of 32, as transformers' own processor does, so that the masks' grid covers the image and no more.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        threshold: least probability, of whichever class, that makes a query a region.
        longest_side: with an input_size, the most pixels that the longer side is resized to; a thin image's shorter side then has fewer.
    """

    input_size: int | None = 640
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    threshold: float = 0.5
    longest_side: int = 2560


class MaskFormerMasker:
    """transformers' MaskFormer, in torch, as proposals: every query that finds something gives its mask; its class is ignored.

    Args:
        masker: cuts out the references.
        directory: config and weights as transformers writes them.
        config: how it is run.
        device: of torch; default: "cuda" if there is one, else "cpu".

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no such model in it, or it is damaged.
        ImportError: torch or transformers is missing.
    """

    def __init__(self, masker: Masker, directory: Path, config: MaskFormerConfig | None = None, device: str | None = None) -> None:
        self.masker, self.config = masker, config or MaskFormerConfig()
        name = "MaskFormerForInstanceSegmentation"
        self._torch, self.model = load_model(name, directory, "MaskFormer", device, use_pretrained_backbone=False)

    @property
    def fingerprint(self) -> str:
        """The masker's."""
        return self.masker.fingerprint

    @cached_property
    def proposals_fingerprint(self) -> str:
        """Digest of weights, architecture and settings."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        return fingerprint(self.config, weights, architecture=architecture(self.model))

    def mask(self, image: UInt8[np.ndarray, "H W 3"], points: Float32[np.ndarray, "n 2"]) -> Bool[np.ndarray, "H W"]:
        """As the masker's."""
        return self.masker.mask(image, points)

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "P H W"]:
        """The queries' masks at the image's size, largest first; they may overlap, and P may be 0."""
        check_image(image)
        torch, config, (height, width) = self._torch, self.config, image.shape[:2]
        resize = torch.nn.functional.interpolate
        mean, deviation = (torch.tensor(part).view(1, 3, 1, 1) for part in (config.mean, config.std))
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 - mean) / deviation
        size = self._input_size(height, width)
        if size != (height, width):
            pixels = resize(pixels, size, mode="bilinear", antialias=True)
        with torch.inference_mode():
            found = self.model(pixel_values=pixels.to(self.model.device))
            likely = found.class_queries_logits[0].softmax(-1)[:, :-1].amax(-1) > config.threshold
            if not likely.any():  # torch resizes no empty batch
                return np.zeros((0, height, width), bool)
            masks = resize(found.masks_queries_logits[:, likely].float(), (height, width), mode="bilinear") > 0
        masks = masks[0].cpu().numpy()
        areas = masks.sum((1, 2))
        order = np.argsort(-areas, kind="stable")
        return masks[order[areas[order] > 0]]

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        sides, shorter, longest = (height, width), self.config.input_size, self.config.longest_side
        if shorter is not None:  # in integers: a product rounded down in floats may cost a whole step of the divisor
            short, long = min(sides), max(sides)
            longer = shorter * long // short
            if longer > longest:
                shorter, longer = max(1, longest * shorter // longer), longest
            sides = (shorter, longer) if height <= width else (longer, shorter)
        rows, columns = (-(-side // DIVISOR) * DIVISOR for side in sides)
        return rows, columns
