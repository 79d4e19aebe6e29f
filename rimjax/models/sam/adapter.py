"""SAM as a masker and a proposer, behind NumPy arrays.

torch and segment-anything are imported when a model is built, not when this module is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64

from rimjax.files import fingerprint
from rimjax.models.memory import name_memory_error
from rimjax.models.protocols import (
    CopiedByFields,
    Proposals,
    cached_property,
)
from rimjax.models.sam.config import ProposalConfig
from rimjax.models.sam.model import Sam, import_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from rimjax.models.sam.masks import Candidate


# segment-anything's defaults: what crops overlap by, and the IoU of boxes of different crops.
CROP_OVERLAP, CROP_NMS = 512 / 1500, 0.7
SMALLER = "compute SAM in half precision (masker_dtype), or choose a smaller SAM"


@dataclass(frozen=True, eq=False)
class SamMasker(CopiedByFields):
    """SAM as a `Masker`.

    Attributes:
        sam: from `load`.
        multimask: choose the best of SAM's three masks; False takes its single mask, which
            segment-anything advises for several points.
        source: name of the weights; see `name_source`.
    """

    sam: Sam
    multimask: bool = True
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """The SAM's, and which of its outputs is taken."""
        if self.multimask:  # unchanged from before this setting, so that caches stay valid
            return self.sam.fingerprint
        return fingerprint([self.sam.fingerprint, "single mask"])

    @property
    def takes_boxes(self) -> bool:
        """Whether this SAM was trained on boxes."""
        return self.sam.config.box_prompts

    @name_memory_error("cutting out references", SMALLER)
    def mask(
        self, image: np.ndarray, points: np.ndarray, box: np.ndarray | None = None
    ) -> Bool[np.ndarray, "H W"]:
        """Return the mask with the highest predicted IoU of SAM's three, or its single mask.

        With a box it is the single mask, which segment-anything advises for prompts that leave no
        doubt.

        Args:
            image: uint8[H, W, 3], RGB.
            points: [n, 2], x and y in pixels of the image, all of them on the object; n may be 0
                with a box.
            box: [4] around the object, x0, y0, x1, y1 in pixels, for a SAM that takes boxes.

        Returns:
            bool[H, W]; may be empty.

        Raises:
            ValueError: image, points or box have another shape, there is neither a point nor a box,
                or this SAM takes no boxes.
        """
        if points.ndim != 2 or points.shape[1] != 2 or not (len(points) or box is not None):
            expected = "[n, 2] (x, y in pixels) with n >= 1"
            raise ValueError(f"points must be {expected}, got {list(points.shape)}")
        if box is not None and (box.shape != (4,) or not self.takes_boxes):
            expected = "[4] (x0, y0, x1, y1)" if self.takes_boxes else "None: this SAM takes none"
            raise ValueError(f"box must be {expected}, got {list(box.shape)}; give points instead")
        torch = import_libraries()[0]
        from rimjax.models.sam.masks import sift

        embedded = self.sam.embed(image)
        with torch.inference_mode():
            decoded = embedded.decode(points[None], None if box is None else box[None])
            ious, three = decoded.ious, self.multimask and box is None
            best = 1 + int(ious[0, 1:].argmax()) if three else 0
            wanted = torch.arange(ious.shape[1], device=ious.device)[None] == best
            logits = embedded.upscale(decoded, wanted)
            threshold = self.sam.model.mask_threshold
            (found,) = sift(embedded.frame, logits, ious[wanted], 0, threshold)
        mask = np.zeros(image.shape[:2], bool)
        found.paint(mask)
        return mask


@dataclass(frozen=True, eq=False)
class SamProposer(CopiedByFields):
    """SAM's automatic mask generation as a `Proposer`: segment-anything's masks, made faster.

    Attributes:
        sam: from `load`.
        config: grid and thresholds.
    """

    sam: Sam
    config: ProposalConfig = field(default_factory=ProposalConfig)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that proposals depend on."""
        settings = asdict(replace(self.config, points_per_batch=None))
        for name in ("skip_covered", "crop_layers"):  # unchanged from before these settings
            if not settings[name]:
                del settings[name]
        return settings

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the SAM and the settings that proposals depend on."""
        return fingerprint([self.sam.fingerprint, self.settings])

    @name_memory_error("proposing regions", SMALLER)
    def propose(self, image: np.ndarray) -> Proposals:
        """Return masks of everything in the image, largest first, with SAM's scores of each.

        Args:
            image: uint8[H, W, 3], RGB.

        Raises:
            ValueError: the image is something else.
        """
        self.sam.check_image(image)
        found = sorted(self._search_crops(image), key=lambda candidate: -candidate.area)
        kept = [candidate for candidate in found if candidate.area >= self.config.min_area]
        masks = np.zeros((len(kept), *image.shape[:2]), bool)
        for candidate, mask in zip(kept, masks, strict=True):
            candidate.paint(mask)
        both = [(candidate.score, candidate.stability) for candidate in kept]
        scores, stability = np.array(both, np.float32).reshape(-1, 2).T
        return Proposals(masks, scores, stability)

    def _search_crops(self, image: np.ndarray) -> list[Candidate]:
        """Find the masks of an image and its crops; those of small crops are preferred."""
        from segment_anything.utils.amg import generate_crop_boxes

        from rimjax.models.sam.masks import drop_cut, suppress

        overlap, size = self.config.box_nms_thresh, image.shape[:2]
        crops, _ = generate_crop_boxes(size, self.config.crop_layers, CROP_OVERLAP)
        found: list[Candidate] = []
        ranks: list[float] = []
        for x0, y0, x1, y1 in crops:
            if not self.sam.takes(y1 - y0, x1 - x0):  # a crop of a thin image
                continue
            part = np.ascontiguousarray(image[y0:y1, x0:x1])
            candidates = drop_cut(list(self._search(part)), [x0, y0, x1, y1], size)
            kept = [mask.move(x0, y0) for mask in suppress(candidates, overlap)]
            found += kept
            ranks += [1 / ((x1 - x0) * (y1 - y0))] * len(kept)
        return suppress(found, CROP_NMS, ranks) if len(crops) > 1 else found

    def _search(self, image: np.ndarray) -> Iterator[Candidate]:
        """Yield the masks of a grid of points that pass the thresholds."""
        torch = import_libraries()[0]
        from rimjax.models.sam.masks import sift

        config, threshold = self.config, self.sam.model.mask_threshold
        embedded = self.sam.embed(image)
        points = make_grid(config.points_per_side) * np.array(image.shape[1::-1])
        batch = config.points_per_batch or embedded.decoder.choose_batch()
        covered, together = None, len(points)
        if config.skip_covered:
            covered = np.zeros(image.shape[:2], bool)
            points = np.concatenate(split_grid(points, config.points_per_side))
            together = config.points_per_side  # so that few are decoded in vain
        with torch.inference_mode():
            while len(points):
                if covered is not None:
                    columns, rows = points.astype(int).T
                    points = points[~covered[rows, columns]]
                group, points = points[:together], points[together:]
                found: list[Candidate] = []
                for start in range(0, len(group), batch):
                    decoded = embedded.decode(group[start : start + batch, None])
                    wanted = choose_masks(decoded.ious, config.pred_iou_thresh)
                    logits, ious = embedded.upscale(decoded, wanted), decoded.ious[wanted]
                    least = config.stability_score_thresh
                    found += sift(embedded.frame, logits, ious, least, threshold)
                if covered is not None:
                    for mask in found:
                        mask.paint(covered)
                yield from found


def choose_masks(ious: Tensor, threshold: float) -> Tensor:
    """Return which of each point's masks are wanted, bool[B, 4]: never the single mask.

    Args:
        ious: predicted IoUs [B, 4], the single mask's first.
        threshold: of the predicted IoU; segment-anything takes 0 or less for none.
    """
    wanted = (ious > threshold) | (threshold <= 0)
    wanted[:, 0] = False
    return wanted


def split_grid(
    points: Float64[np.ndarray, "n 2"], per_side: int
) -> tuple[Float64[np.ndarray, "coarse 2"], Float64[np.ndarray, "rest 2"]]:
    """Split a square grid of points into every other point of every other row, and the rest."""
    coarse = np.zeros((per_side, per_side), bool)
    coarse[::2, ::2] = True
    return points[coarse.ravel()], points[~coarse.ravel()]


def make_grid(per_side: int) -> Float64[np.ndarray, "n 2"]:
    """Return the centres x, y of a square's per_side^2 cells, row by row, in 0..1."""
    centres = np.linspace(1 / (2 * per_side), 1 - 1 / (2 * per_side), per_side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)
