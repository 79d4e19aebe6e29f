"""From the decoder's logits to masks of the image's size, as segment-anything makes them.

SAM's logits L have a quarter of its input's size. segment-anything resizes them to the input, crops
the padding and resizes again to the image, both bilinearly. All three are linear along each axis:
a mask's logits are A L B^T, with a fixed matrix for each axis. Only the window is computed in which
a logit can be above the lower threshold of the stability score; all others are below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from segment_anything.utils.amg import is_box_near_crop_edge
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

OFFSET = 1.0  # segment-anything's default for the stability score


@dataclass(frozen=True)
class Frame:
    """How the logits of an image's masks become masks of the image's size.

    Attributes:
        rows: weights of the logits' rows in each row of the image, [H, 4 h].
        columns: likewise, [W, 4 w].
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def create(
        cls, size: tuple[int, int], resized: tuple[int, int], side: int, logits: int, like: Tensor
    ) -> Frame:
        """Create the frame of an image.

        Args:
            size: height and width of the image.
            resized: height and width of the image as SAM sees it.
            side: of SAM's input, to which images are padded.
            logits: side of a mask's logits.
            like: a tensor of the logits' type and device.
        """
        axes = (
            _resize_axis(logits, side, seen, pixels, like)
            for seen, pixels in zip(resized, size, strict=True)
        )
        return cls(*axes)

    def resize(self, logits: Tensor) -> Tensor:
        """Resize the logits of a mask [4 h, 4 w] to the image."""
        return self.rows @ logits @ self.columns.T

    def resize_window(self, logits: Tensor, least: float) -> tuple[Tensor, int, int]:
        """Resize the part of a mask's logits outside which all logits are `least` or below.

        Returns:
            The part, and the image's row and column where it begins.
        """
        above = logits > least
        top, bottom = _find_span(self.rows, above.any(dim=1))
        left, right = _find_span(self.columns, above.any(dim=0))
        part = self.rows[top:bottom] @ logits @ self.columns[left:right].T
        return part, top, left


@dataclass(frozen=True)
class Candidate:
    """A mask that passed the thresholds: where it is set, packed, in a window of the image.

    Attributes:
        bits: packed rows of the window.
        shape: height and width of the window.
        corner: row and column of the image where the window begins.
        box: x0, y0, x1, y1 of the outermost pixels that are set.
        score: predicted IoU.
    """

    bits: np.ndarray
    shape: tuple[int, int]
    corner: tuple[int, int]
    box: tuple[int, int, int, int]
    score: float

    def move(self, x: int, y: int) -> Candidate:
        """Return the mask in an image of which this one's image is the crop from x, y on."""
        (top, left), (x0, y0, x1, y1) = self.corner, self.box
        box = x0 + x, y0 + y, x1 + x, y1 + y
        return replace(self, corner=(top + y, left + x), box=box)

    def unpack(self, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
        """Return the mask."""
        mask = np.zeros(shape, bool)
        window = np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).reshape(self.shape)
        (top, left), (height, width) = self.corner, self.shape
        mask[top : top + height, left : left + width] = window
        return mask


def sift(
    frame: Frame, logits: Tensor, scores: Tensor, stability: float, threshold: float
) -> Iterator[Candidate]:
    """Yield the masks whose stability score reaches a threshold, in order.

    Args:
        frame: of the image.
        logits: [M, 4 h, 4 w].
        scores: predicted IoUs [M].
        stability: the least stability score: the share of the pixels above `threshold` - 1 that
            are above `threshold` + 1.
        threshold: above which a logit belongs to the mask.
    """
    for mask, score in zip(logits, scores.tolist(), strict=True):
        part, top, left = frame.resize_window(mask, threshold - OFFSET)
        inner = (part > threshold + OFFSET).sum().float()
        outer = (part > threshold - OFFSET).sum()
        if stability > 0 and not (inner / outer >= stability):
            continue
        window = (part > threshold).cpu().numpy()
        rows, columns = (np.flatnonzero(window.any(axis)) for axis in (1, 0))
        box = (0, 0, 0, 0)
        if len(rows):
            x0, x1, y0, y1 = (int(at) for at in (columns[0], columns[-1], rows[0], rows[-1]))
            box = left + x0, top + y0, left + x1, top + y1
        yield Candidate(np.packbits(window), window.shape, (top, left), box, score)


def suppress(
    candidates: list[Candidate], overlap: float, ranks: list[float] | None = None
) -> list[Candidate]:
    """Drop a mask if its box overlaps that of a better mask by more IoU than allowed.

    Args:
        candidates: masks of one image.
        overlap: the IoU.
        ranks: what makes a mask better; default: the predicted IoUs.
    """
    if not candidates:
        return []
    boxes = torch.tensor([candidate.box for candidate in candidates], dtype=torch.float32)
    scores = torch.tensor(ranks or [candidate.score for candidate in candidates])
    kept = batched_nms(boxes, scores, torch.zeros(len(boxes)), iou_threshold=overlap)
    return [candidates[index] for index in kept.tolist()]


def drop_cut(
    candidates: list[Candidate], crop: list[int], size: tuple[int, int]
) -> list[Candidate]:
    """Drop the masks of a crop that its edge may have cut, unless the image ends there too.

    Args:
        candidates: masks, in the crop.
        crop: x0, y0, x1, y1 of the crop in the image.
        size: height and width of the image.
    """
    if not candidates:
        return []
    boxes = torch.tensor([candidate.box for candidate in candidates])
    cut = is_box_near_crop_edge(boxes, crop, [0, 0, size[1], size[0]])
    return [each for each, is_cut in zip(candidates, cut.tolist(), strict=True) if not is_cut]


def _resize_axis(logits: int, side: int, seen: int, pixels: int, like: Tensor) -> Tensor:
    """Return the weights of `logits` values in each of an image's pixels along an axis."""
    eye = torch.eye(logits, dtype=like.dtype, device=like.device)[None]
    padded = F.interpolate(eye, size=side, mode="linear")
    return F.interpolate(padded[..., :seen], size=pixels, mode="linear")[0].T.contiguous()


def _find_span(weights: Tensor, above: Tensor) -> tuple[int, int]:
    """Return from which to which pixel of an axis any of the marked values has a weight."""
    marked = above.nonzero()[:, 0]
    if not len(marked):
        return 0, 0
    touched = weights[:, marked[0] : marked[-1] + 1].any(dim=1).nonzero()[:, 0]
    return int(touched[0]), int(touched[-1]) + 1
