"""MaskFormer's masks as regions (Table 4), in torch through transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ported_weights.vit import IMAGENET_MEAN, IMAGENET_STD
from rimjax.models.protocols import (
    Proposals,
    cached_property,
    check_finite_output,
    check_image,
)
from rimjax.models.transformers_folder import fingerprint_model, load_model

DIVISOR = 32
"""Both sides of a MaskFormer's input are multiples of its backbone's coarsest stride."""


@dataclass(frozen=True)
class MaskFormerConfig:
    """How a MaskFormer runs.

    Attributes:
        input_size: pixels that the image's shorter side is resized to; None: the image's own size.
            Either way both sides are then rounded up to a multiple of 32, as transformers' own
            processor does, so that the masks' grid covers exactly the image.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        threshold: a query is a region if a class has at least this probability.
        longest_side: with an input_size, the most pixels that the longer side is resized to; the
            shorter side of a thin image then has fewer.
    """

    input_size: int | None = 640
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    threshold: float = 0.5
    longest_side: int = 2560


class MaskFormerProposer:
    """transformers' MaskFormer as a `Proposer`; the queries' classes are ignored.

    Args:
        directory: config and weights as transformers writes them.
        config: how the model runs.
        device: torch's device; default: "cuda" if available, else "cpu".

    Raises:
        FileNotFoundError: the directory doesn't exist.
        ValueError: the directory doesn't hold such a model, or it is damaged.
        ImportError: torch or transformers is missing.
    """

    def __init__(
        self, directory: Path, config: MaskFormerConfig | None = None, device: str | None = None
    ) -> None:
        self.config = config or MaskFormerConfig()
        kind = "MaskFormerForInstanceSegmentation"
        self._built_from = (directory, self.config, device)
        self.model = load_model(
            kind, directory, "MaskFormer", device, use_pretrained_backbone=False
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._built_from

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, architecture and settings."""
        return fingerprint_model(self.model, asdict(self.config))

    def propose(self, image: np.ndarray) -> Proposals:
        """Return the queries' masks at the image's size, and the probability of their best class.

        The largest mask comes first; masks may overlap.

        Args:
            image: uint8[H, W, 3].

        Raises:
            ValueError: the image is something else.
        """
        check_image(image)
        import torch

        config, (height, width) = self.config, image.shape[:2]
        resize = torch.nn.functional.interpolate
        mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (config.mean, config.std))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = (pixels / 255 - mean) / std
        size = self._choose_input_size(height, width)
        if size != (height, width):
            pixels = resize(pixels, size, mode="bilinear", antialias=True)
        with torch.inference_mode():
            output = self.model(pixel_values=pixels.to(self.model.device))
            probabilities = output.class_queries_logits[0].float().softmax(-1)[:, :-1].amax(-1)
            check_finite_output("MaskFormer", probabilities.cpu().numpy())
            likely = probabilities > config.threshold
            if not likely.any():  # torch doesn't resize an empty batch
                return Proposals(np.zeros((0, height, width), bool), np.zeros(0, np.float32))
            logits = output.masks_queries_logits[:, likely].float()
            masks = resize(logits, (height, width), mode="bilinear")[0] > 0
        masks, scores = masks.cpu().numpy(), probabilities[likely].cpu().numpy()
        areas = masks.sum((1, 2))
        order = np.argsort(-areas, kind="stable")
        order = order[areas[order] > 0]
        return Proposals(masks[order], scores[order])

    def _choose_input_size(self, height: int, width: int) -> tuple[int, int]:
        sides, shorter, longest = (height, width), self.config.input_size, self.config.longest_side
        if shorter is not None:  # in integers: rounding down in floats may cost a multiple
            short, long = min(sides), max(sides)
            longer = shorter * long // short
            if longer > longest:
                shorter, longer = max(1, longest * shorter // longer), longest
            sides = (shorter, longer) if height <= width else (longer, shorter)
        rows, columns = (-(-side // DIVISOR) * DIVISOR for side in sides)
        return rows, columns
