"""A SAM's architecture, and how it cuts an image into masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SamPrecision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class SamConfig:
    """Architecture of a SAM; the defaults are the published ViT-B.

    Attributes:
        image_size: pixels; the image's longer side is resized to it.
        patch_size: of the image encoder, pixels.
        encoder_dim: features of the image encoder.
        encoder_depth: layers of the image encoder.
        encoder_heads: attention heads of the image encoder.
        global_attn_indexes: layers that attend to the whole image; the others attend to windows.
        window_size: side of a window, patches.
        out_chans: features of the image embedding, the prompts and the mask decoder.
        decoder_depth: layers of the mask decoder.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: width of the mask decoder's MLPs.
        box_prompts: whether it was trained on boxes, as the published models were; if not, it is
            prompted with points alone.
    """

    image_size: int = 1024
    patch_size: int = 16
    encoder_dim: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    window_size: int = 14
    out_chans: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    box_prompts: bool = True


@dataclass(frozen=True)
class ProposalConfig:
    """How an image is cut into masks: segment-anything's defaults, on a 32x32 grid (Sec. 4.2).

    Attributes:
        points_per_side: of the grid of point prompts.
        points_per_batch: points decoded at once; None: on a CPU as many as have their tokens in
            cache (4 for the published models), elsewhere up to 64, as memory allows. Only speed and
            memory change.
        pred_iou_thresh: masks are kept if their predicted IoU is above this.
        stability_score_thresh: masks are dropped if their area changes more than this allows when
            the cut-off moves.
        box_nms_thresh: of two masks whose boxes overlap by more IoU than this, the mask with the
            lower predicted IoU is dropped.
        min_area: masks of fewer pixels are dropped.
        skip_covered: decode every other point of every other row first, and then the rest, a row's
            worth at a time, leaving out the points inside masks found so far; fewer masks, in less
            time.
        crop_layers: also propose in crops of the image, 4 of the first layer, 16 of the second:
            more small masks, in several times the time (segment-anything's `crop_n_layers`).
    """

    points_per_side: int = 32
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    min_area: int = 1
    skip_covered: bool = False
    crop_layers: int = 0

    def __post_init__(self) -> None:
        batch = self.points_per_batch
        counts = {
            "points_per_side": (self.points_per_side, 1),
            "points_per_batch": (1 if batch is None else batch, 1),
            "min_area": (self.min_area, 0),
            "crop_layers": (self.crop_layers, 0),
        }
        for name, (value, least) in counts.items():
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
