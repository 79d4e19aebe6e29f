"""Segment Anything (SAM) behind NumPy edges: masks from points (Sec. 3.4) and proposals (Sec. 3.5). The one model that runs in torch.

torch and segment-anything are imported where a model is built, never when this module is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.models.protocols import check_image, fingerprint


@dataclass(frozen=True)
class SamConfig:
    """Architecture of a SAM; the defaults are the published ViT-B.

    Attributes:
        image_size: pixels; the image's longer side is resized to it.
        patch_size: of the image encoder, pixels.
        encoder_dim: features of the image encoder.
        encoder_depth: its layers.
        encoder_heads: its heads.
        global_attn_indexes: layers that attend to the whole image, the others to windows.
        window_size: side of a window, patches.
        out_chans: features of the image embedding, the prompts and the mask decoder.
        decoder_depth: layers of the mask decoder.
        decoder_heads: its heads.
        decoder_mlp_dim: width of its MLPs.
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


@dataclass(frozen=True)
class ProposalConfig:
    """How a whole image is cut into masks; the defaults are segment-anything's own, with the paper's 32x32 grid (Sec. 4.2).

    Attributes:
        points_per_side: of the grid of point prompts.
        points_per_batch: points decoded at once; None: 4 on a CPU, where the decoder's tokens then fit in cache (2.7 times as
            fast as 64), and 64 elsewhere. Changes nothing but speed and memory.
        pred_iou_thresh: masks whose predicted IoU isn't above this are dropped.
        stability_score_thresh: masks whose area changes more than this allows when the cut-off moves are dropped.
        box_nms_thresh: of two masks whose boxes overlap by more IoU than this, the one with the lower predicted IoU is dropped.
        min_area: masks of fewer pixels are dropped.
    """

    points_per_side: int = 32
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7
    min_area: int = 1


class Proposals(NamedTuple):
    """Masks of everything in an image, largest first, and the IoU that SAM predicts for each."""

    masks: Bool[np.ndarray, "P H W"]
    scores: Float32[np.ndarray, " P"]


def build(config: SamConfig) -> Any:
    """segment-anything's `Sam` with random weights, in evaluation mode.

    Raises:
        ImportError: torch or segment-anything is missing.
    """
    torch, library = _import()
    grid = config.image_size // config.patch_size
    sam = library.modeling.Sam(
        image_encoder=library.modeling.ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.encoder_dim,
            depth=config.encoder_depth,
            num_heads=config.encoder_heads,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=config.global_attn_indexes,
            window_size=config.window_size,
            out_chans=config.out_chans,
        ),
        prompt_encoder=library.modeling.PromptEncoder(
            embed_dim=config.out_chans,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=library.modeling.MaskDecoder(
            transformer_dim=config.out_chans,
            transformer=library.modeling.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.out_chans,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp_dim,
            ),
        ),
    )
    return sam.eval()


def load(
    state: Mapping[str, Any] | None,
    config: SamConfig | None = None,
    *,
    proposals: ProposalConfig | None = None,
    device: str | None = None,
    seed: int = 0,
) -> SamMasker:
    """A masker from a checkpoint's state dict, e.g. from `ported_weights.files.read_state_dict("sam_vit_b_01ec64.pth")`.

    Args:
        state: {name: tensor}; None: random weights.
        config: the checkpoint's architecture; default: ViT-B.
        proposals: settings of `propose`.
        device: of torch; default: "cuda" if there is one, else "cpu".
        seed: of random weights.

    Raises:
        ValueError: the state dict isn't exactly that of this architecture; the message lists what is off.
        ImportError: torch or segment-anything is missing.
    """
    config = config or SamConfig()
    torch, _ = _import()
    with torch.random.fork_rng(devices=[]):  # built on the CPU
        torch.manual_seed(seed)
        sam = build(config)
    if state is not None:
        wanted = sam.state_dict()
        problems = [f"{name}: not in the file" for name in wanted if name not in state]
        problems += [f"{name}: this SAM has no such weight" for name in state if name not in wanted]
        problems += [
            f"{name}: {list(tensor.shape)}, expected {list(wanted[name].shape)}"
            for name, tensor in state.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ]
        if problems:
            raise ValueError("not the weights of this SAM:\n  " + "\n  ".join(problems))
        sam.load_state_dict(state)
    return SamMasker(sam, config, proposals, device)


class SamMasker:
    """A `Sam` as a `Masker`; `fingerprint` covers weights and architecture, not the settings of `propose`.

    Args:
        sam: from `build`; moved to the device.
        config: its architecture.
        proposals: settings of `propose`.
        device: of torch; default: "cuda" if there is one, else "cpu".
    """

    def __init__(self, sam: Any, config: SamConfig, proposals: ProposalConfig | None = None, device: str | None = None) -> None:
        self._torch, library = _import()
        self.config = config
        self.proposals = proposals = proposals or ProposalConfig()
        self.device = device or ("cuda" if self._torch.cuda.is_available() else "cpu")
        self.sam = sam.to(self.device).eval()
        self._predictor = library.SamPredictor(self.sam)
        settings = asdict(proposals)
        settings["points_per_batch"] = proposals.points_per_batch or (4 if self.device == "cpu" else 64)
        del settings["min_area"]  # segment-anything's own setting of that kind fills holes too, and needs OpenCV
        self._generator = library.SamAutomaticMaskGenerator(self.sam, **settings)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights and architecture."""
        return fingerprint(self.config, {name: tensor.cpu().numpy() for name, tensor in self.sam.state_dict().items()})

    @cached_property
    def proposals_fingerprint(self) -> str:
        """Digest of weights, architecture and the settings of `propose` but the batch size, which changes nothing."""
        return f"{self.fingerprint}-{fingerprint(replace(self.proposals, points_per_batch=None), {})[:8]}"

    def mask(self, image: UInt8[np.ndarray, "H W 3"], points: Float32[np.ndarray, "n 2"]) -> Bool[np.ndarray, "H W"]:
        """Of SAM's three masks for these positive points, the one with the highest predicted IoU; may be empty.

        Args:
            image: RGB.
            points: x, y in pixels of the image.

        Raises:
            ValueError: image or points have another shape, or there is no point.
        """
        self._check(image)
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"points: expected [n, 2] (x, y in pixels) with n >= 1, got {list(points.shape)}")
        with self._torch.inference_mode():
            self._predictor.set_image(image)
            masks, scores, _ = self._predictor.predict(points, np.ones(len(points), np.int64), multimask_output=True)
            self._predictor.reset_image()
        return masks[scores.argmax()]

    def _check(self, image: np.ndarray) -> None:
        check_image(image)
        height, width = image.shape[:2]
        if round(min(height, width) * self.config.image_size / max(height, width)) < 1:
            raise ValueError(f"image: {width}x{height} pixels is too narrow: SAM sees {self.config.image_size} of its longer side; crop it")

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "P H W"]:
        """Masks of everything in the image, largest first; P may be 0.

        Raises:
            ValueError: not a uint8[H, W, 3].
        """
        return self.propose_scored(image).masks

    def propose_scored(self, image: UInt8[np.ndarray, "H W 3"]) -> Proposals:
        """`propose`, with the IoU that SAM predicts for each mask."""
        self._check(image)
        with self._torch.inference_mode():
            found = self._generator.generate(image)
        kept = sorted((one for one in found if one["area"] >= self.proposals.min_area), key=lambda one: -one["area"])
        masks = np.array([one["segmentation"] for one in kept], bool).reshape(-1, *image.shape[:2])
        return Proposals(masks, np.array([one["predicted_iou"] for one in kept], np.float32))


def _import() -> tuple[Any, ModuleType]:
    try:
        import segment_anything
        import torch
    except ImportError as error:
        raise ImportError(f'SAM needs torch and segment-anything ({error}): pip install "rimjax[pipeline]"') from error
    return torch, segment_anything
