"""SAM as a masker and a proposer, behind NumPy arrays.

torch and segment-anything are imported when a model is built, not when this module is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64

from rimjax.files import fingerprint
from rimjax.models.protocols import (
    CopiedByFields,
    Proposals,
    cached_property,
)
from rimjax.models.sam.config import ProposalConfig
from rimjax.models.sam.model import Sam, import_libraries

if TYPE_CHECKING:
    from rimjax.models.sam.masks import Candidate


@dataclass(frozen=True, eq=False)
class SamMasker(CopiedByFields):
    """SAM as a `Masker`.

    Attributes:
        sam: from `load`.
        multimask: choose the best of SAM's three masks; False takes its single mask, which
            segment-anything advises for several points.
    """

    sam: Sam
    multimask: bool = True

    @property
    def fingerprint(self) -> str:
        """The SAM's, and which of its outputs is taken."""
        if self.multimask:  # as before there was a choice, so that caches stay valid
            return self.sam.fingerprint
        return fingerprint([self.sam.fingerprint, "single mask"])

    def mask(self, image: np.ndarray, points: np.ndarray) -> Bool[np.ndarray, "H W"]:
        """Return the mask with the highest predicted IoU of SAM's three, or its single mask.

        Args:
            image: uint8[H, W, 3], RGB.
            points: [n, 2], x and y in pixels of the image, all of them on the object.

        Returns:
            bool[H, W]; may be empty.

        Raises:
            ValueError: image or points have another shape, or there is no point.
        """
        self.sam.check_image(image)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            expected = "[n, 2] (x, y in pixels) with n >= 1"
            raise ValueError(f"points must be {expected}, got {list(points.shape)}")
        torch = import_libraries()[0]
        embedded = self.sam.embed(image)
        with torch.inference_mode():
            tokens, tokens_of_image, ious = embedded.decode(points[None])
            best = 1 + ious[0, 1:].argmax() if self.multimask else torch.tensor(0)
            wanted = torch.arange(ious.shape[1], device=ious.device)[None] == best
            logits = embedded.decoder.upscale(tokens, tokens_of_image, wanted)[0]
            mask = embedded.frame.resize(logits) > self.sam.model.mask_threshold
        return mask.cpu().numpy()


@dataclass(frozen=True, eq=False)
class SamProposer(CopiedByFields):
    """SAM's automatic mask generation as a `Proposer`: segment-anything's masks, made faster.

    Attributes:
        sam: from `load`.
        config: grid and thresholds.
    """

    sam: Sam
    config: ProposalConfig = field(default_factory=ProposalConfig)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the SAM and the settings that proposals depend on."""
        settings = asdict(replace(self.config, points_per_batch=None))
        return fingerprint([self.sam.fingerprint, settings])

    def propose(self, image: np.ndarray) -> Proposals:
        """Return masks of everything in the image, largest first, and SAM's predicted IoU of each.

        Args:
            image: uint8[H, W, 3], RGB.

        Raises:
            ValueError: the image is something else.
        """
        from rimjax.models.sam.masks import suppress

        kept = suppress(list(self._find_candidates(image)), self.config.box_nms_thresh)
        shape = image.shape[:2]
        masks = np.array([candidate.unpack(shape) for candidate in kept], bool)
        masks = masks.reshape(-1, *shape)
        areas = masks.sum((1, 2))
        order = np.argsort(-areas, kind="stable")
        order = order[areas[order] >= self.config.min_area]
        scores = np.array([candidate.score for candidate in kept], np.float32)
        return Proposals(masks[order], scores[order])

    def _find_candidates(self, image: np.ndarray) -> Iterator[Candidate]:
        """Yield the masks of all points that pass the thresholds."""
        torch = import_libraries()[0]
        from rimjax.models.sam.masks import sift

        config, model = self.config, self.sam.model
        embedded = self.sam.embed(image)
        points = make_grid(config.points_per_side) * np.array(image.shape[1::-1])
        batch = config.points_per_batch or embedded.decoder.choose_batch()
        with torch.inference_mode():
            for start in range(0, len(points), batch):
                prompts = points[start : start + batch, None]
                tokens, tokens_of_image, ious = embedded.decode(prompts)
                # segment-anything takes a threshold of 0 or less for none.
                wanted = (ious > config.pred_iou_thresh) | (config.pred_iou_thresh <= 0)
                wanted[:, 0] = False  # the single mask
                logits = embedded.decoder.upscale(tokens, tokens_of_image, wanted)
                yield from sift(
                    embedded.frame,
                    logits,
                    ious[wanted],
                    config.stability_score_thresh,
                    model.mask_threshold,
                )


def make_grid(per_side: int) -> Float64[np.ndarray, "n 2"]:
    """Return the centres x, y of a square's per_side^2 cells, row by row, in 0..1."""
    centres = np.linspace(1 / (2 * per_side), 1 - 1 / (2 * per_side), per_side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)
