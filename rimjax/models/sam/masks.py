"""From the decoder's logits to masks of the image's size, as segment-anything makes them.

SAM's logits L have a quarter of its input's size. segment-anything resizes them to the input, crops
the padding and resizes again to the image, both bilinearly. All three are linear along each axis:
a mask's logits are A L B^T, with a fixed matrix for each axis.

The image is divided into tiles. A pixel's logit is a weighted mean of a few of L's values, so it
lies between the least and the greatest value that its tile depends on. Where these decide, the tile
is full or empty at every threshold. Only the other tiles, along the mask's edge, are computed pixel
by pixel; a mask is kept as its full tiles and the bits of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from segment_anything.utils.amg import is_box_near_crop_edge
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

OFFSET = 1.0  # segment-anything's default for the stability score
TILE = 32  # side of a tile, pixels
MAX_TILES = 1 << 12  # computed at once
MAX_KEPT = 1 << 16  # tiles of the masks whose pixels are kept until they are packed


@dataclass(frozen=True)
class Axis:
    """How logits are resized along an axis of an image, for each of T tiles.

    Attributes:
        index: the logits that a tile's pixels depend on, [T, K].
        weights: their weights in each pixel, [T, TILE, K].
    """

    index: Tensor
    weights: Tensor

    @classmethod
    def create(cls, logits: int, side: int, seen: int, pixels: int, device: torch.device) -> Axis:
        """Compute the weights of an axis.

        Args:
            logits: number of logits.
            side: of SAM's input, to which images are padded.
            seen: pixels of the image as SAM sees it.
            pixels: of the image.
            device: of the logits.
        """
        eye = torch.eye(logits, device=device)[None]
        padded = F.interpolate(eye, size=side, mode="linear")
        weights = F.interpolate(padded[..., :seen], size=pixels, mode="linear")[0].T
        tiles = -(-pixels // TILE)
        weights = F.pad(weights, (0, 0, 0, tiles * TILE - pixels)).unflatten(0, (tiles, TILE))
        touched = weights.any(dim=1).int()
        first = touched.argmax(dim=1)
        last = logits - 1 - touched.flip(1).argmax(dim=1)
        reach = int((last - first).max()) + 1
        index = first.clamp(max=logits - reach)[:, None] + torch.arange(reach, device=device)
        return cls(index, weights.gather(2, index[:, None].expand(-1, TILE, -1)))


@dataclass(frozen=True)
class Frame:
    """How the logits of an image's masks become masks of the image's size.

    Attributes:
        rows: the vertical axis.
        columns: the horizontal axis.
        size: height and width of the image.
    """

    rows: Axis
    columns: Axis
    size: tuple[int, int]

    @classmethod
    def create(
        cls,
        size: tuple[int, int],
        resized: tuple[int, int],
        side: int,
        logits: int,
        device: torch.device,
    ) -> Frame:
        """Compute the weights of an image's axes.

        Args:
            size: height and width of the image.
            resized: height and width of the image as SAM sees it.
            side: of SAM's input, to which images are padded.
            logits: side of a mask's logits.
            device: of the logits.
        """
        rows, columns = (
            Axis.create(logits, side, seen, pixels, device)
            for seen, pixels in zip(resized, size, strict=True)
        )
        return cls(rows, columns, size)

    def bound(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest logit that each tile depends on.

        Args:
            logits: [M, 4 h, 4 w].

        Returns:
            Two tensors [M, T, S] for T rows and S columns of tiles.
        """
        rows, columns = self.rows.index, self.columns.index
        bands = logits[:, rows]
        return (
            bands.amin(dim=2)[..., columns].amin(dim=3),
            bands.amax(dim=2)[..., columns].amax(dim=3),
        )

    def resize(self, logits: Tensor, tiles: Tensor) -> Tensor:
        """Compute the logits of some tiles.

        Args:
            logits: [M, 4 h, 4 w].
            tiles: mask, row and column of each tile, [k, 3].

        Returns:
            [k, TILE, TILE], minus infinity outside the image.
        """
        mask, row, column = tiles.T
        rows, columns = self.rows, self.columns
        windows = logits[mask[:, None, None], rows.index[row, :, None], columns.index[column, None]]
        resized = rows.weights[row] @ windows @ columns.weights[column].transpose(1, 2)
        height, width = ((pixels - 1) % TILE + 1 for pixels in self.size)  # of the last tiles
        resized[row == len(rows.index) - 1, height:] = -torch.inf
        resized[column == len(columns.index) - 1, :, width:] = -torch.inf
        return resized


@dataclass(frozen=True)
class Candidate:
    """A mask that passed the thresholds.

    Attributes:
        full: which tiles are set throughout.
        tiles: row and column of the tiles that are set in part.
        bits: the pixels of these tiles, packed.
        shape: height and width of the image.
        corner: row and column where the image begins in the image that it is a crop of.
        box: x0, y0, x1, y1 of the outermost pixels that are set.
        area: pixels that are set.
        score: predicted IoU.
        stability: stability score.
    """

    full: Bool[np.ndarray, "T S"]
    tiles: Int64[np.ndarray, "k 2"]
    bits: UInt8[np.ndarray, "k packed"]
    shape: tuple[int, int]
    corner: tuple[int, int]
    box: tuple[int, int, int, int]
    area: int
    score: float
    stability: float

    def move(self, x: int, y: int) -> Candidate:
        """Return the mask in an image of which this one's image is the crop from x, y on."""
        (top, left), (x0, y0, x1, y1) = self.corner, self.box
        box = x0 + x, y0 + y, x1 + x, y1 + y
        return replace(self, corner=(top + y, left + x), box=box)

    def paint(self, mask: Bool[np.ndarray, "H W"]) -> None:
        """Set the mask's pixels in an image's mask."""
        whole = np.repeat(np.repeat(self.full, TILE, axis=0), TILE, axis=1)
        tiled = whole.reshape(len(self.full), TILE, -1, TILE).swapaxes(1, 2)
        row, column = self.tiles.T
        tiled[row, column] = np.unpackbits(self.bits, axis=1).reshape(-1, TILE, TILE)
        (top, left), (height, width) = self.corner, self.shape
        mask[top : top + height, left : left + width] |= whole[:height, :width]


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
    together = max(1, MAX_KEPT // (len(frame.rows.index) * len(frame.columns.index)))
    for part, ious in zip(logits.split(together), scores.split(together), strict=True):
        yield from _sift(frame, part, ious, stability, threshold)


def _sift(
    frame: Frame, logits: Tensor, scores: Tensor, stability: float, threshold: float
) -> Iterator[Candidate]:
    low, high = frame.bound(logits)
    full = low > threshold + OFFSET
    mixed = (~full & (high > threshold - OFFSET)).nonzero()
    rows, columns = (torch.from_numpy(_count_pixels(n)).to(full.device) for n in frame.size)
    inner = (full * rows[:, None] * columns).sum((1, 2), dtype=torch.int32)
    outer, area, parts = inner.clone(), inner.clone(), [full.new_zeros(0, TILE, TILE)]
    # Pixels set in each row and column of each mask; of a full tile one, for one is enough.
    filled = [full.any(axis).int()[..., None].repeat(1, 1, TILE).flatten(0, 1) for axis in (2, 1)]
    for tiles in mixed.split(MAX_TILES):
        values, mask = frame.resize(logits, tiles), tiles[:, 0]
        for count, level in ((inner, threshold + OFFSET), (outer, threshold - OFFSET)):
            above = (values > level).view(torch.int8).flatten(1)  # booleans are slow to sum
            count.index_add_(0, mask, above.sum(1, dtype=torch.int32))
        parts.append(values > threshold)
        for axis, count in enumerate(filled, 1):
            along = parts[-1].view(torch.int8).sum(3 - axis, dtype=torch.int32)
            count.index_add_(0, mask * full.shape[axis] + tiles[:, axis], along)
            if axis == 1:
                area.index_add_(0, mask, along.sum(1, dtype=torch.int32))
    shares = (inner / outer).tolist()  # NaN where both are 0
    (y0, y1), (x0, x1) = (
        _find_ends(count.reshape(len(full), n * TILE)[:, :pixels] > 0)
        for count, n, pixels in zip(filled, full.shape[1:], frame.size, strict=True)
    )
    boxes, areas = torch.stack([x0, y0, x1, y1], dim=1).tolist(), area.tolist()
    bits = np.packbits(torch.cat(parts).flatten(1).cpu().numpy(), axis=1)
    tiles, full = mixed.cpu().numpy(), full.cpu().numpy()
    ends = np.searchsorted(tiles[:, 0], np.arange(len(logits) + 1))
    for index, (score, share) in enumerate(zip(scores.tolist(), shares, strict=True)):
        if stability <= 0 or share >= stability:
            own = slice(ends[index], ends[index + 1])
            place = frame.size, (0, 0), tuple(boxes[index]), areas[index]
            yield Candidate(full[index], tiles[own, 1:], bits[own], *place, score, share)


def _find_ends(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first and the last position that is set in each row; 0 and 0 where none is."""
    marked = marked.int()
    first, after = marked.argmax(1), marked.flip(1).argmax(1)
    return first, torch.where(marked.any(1), marked.shape[1] - 1 - after, 0)


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


def _count_pixels(size: int) -> Int64[np.ndarray, " T"]:
    """Count the pixels of each tile along an axis; the last tile may reach past the image."""
    return np.minimum(TILE, size - np.arange(0, size, TILE))
