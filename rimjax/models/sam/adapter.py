"""segment-anything's SAM behind NumPy arrays.

torch and segment-anything are imported when a model is built, not when this module is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool

from ported_weights.rules import check_fit, widen
from rimjax.files import fingerprint
from rimjax.models.protocols import (
    CopiedByFields,
    Proposals,
    cached_property,
    check_finite_output,
    check_image,
)
from rimjax.models.sam.config import ProposalConfig, SamConfig


@dataclass(frozen=True, eq=False)
class Sam(CopiedByFields):
    """A SAM on its device; a masker and a proposer share it.

    Attributes:
        model: segment-anything's `Sam`, in evaluation mode.
        config: its architecture.
    """

    model: Any
    config: SamConfig

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights and architecture."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        return fingerprint(asdict(self.config), weights)

    def check_image(self, image: np.ndarray) -> None:
        """Raise ValueError unless the image is a uint8[H, W, 3] that isn't too narrow for SAM."""
        check_image(image)
        height, width = image.shape[:2]
        size = self.config.image_size
        if round(min(height, width) * size / max(height, width)) < 1:
            expected = f"image must keep a pixel when its longer side is resized to {size}"
            raise ValueError(f"{expected}, got {width}x{height} pixels; crop it")


def build(config: SamConfig) -> Any:
    """Build segment-anything's `Sam` with random weights, in evaluation mode.

    Raises:
        ImportError: torch or segment-anything is missing.
    """
    torch, library = _import_libraries()
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
    device: str | None = None,
    seed: int = 0,
) -> Sam:
    """Load a SAM from a checkpoint's state dict.

    Args:
        state: {name: tensor}, e.g. `ported_weights.checkpoints.read_state_dict(path)` of
            "sam_vit_b_01ec64.pth"; None: random weights.
        config: the checkpoint's architecture; default: ViT-B.
        device: torch's device; default: "cuda" if available, else "cpu".
        seed: of random weights.

    Raises:
        ValueError: the state dict isn't exactly that of this architecture; the message lists every
            mismatch.
        ImportError: torch or segment-anything is missing.
    """
    config = config or SamConfig()
    torch, _ = _import_libraries()
    with torch.random.fork_rng(devices=[]):  # built on the CPU
        torch.manual_seed(seed)
        model = build(config)
    if state is not None:
        state = {name: widen(tensor) for name, tensor in state.items()}
        check_fit(state, model.state_dict())
        model.load_state_dict(state)
    return Sam(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), config)


class SamMasker:
    """SAM as a `Masker`.

    Args:
        sam: from `load`.
        multimask: choose the best of SAM's three masks; False takes its single mask, which
            segment-anything advises for several points.
    """

    def __init__(self, sam: Sam, multimask: bool = True) -> None:
        _import_libraries()
        self.sam, self.multimask = sam, multimask

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sam, self.multimask)

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
        labels = np.ones(len(points), np.int64)
        torch, library = _import_libraries()
        predictor = library.SamPredictor(self.sam.model)  # keeps an image: each call has its own
        with torch.inference_mode():
            predictor.set_image(image)
            masks, scores, _ = predictor.predict(points, labels, multimask_output=self.multimask)
        check_finite_output("SAM", scores)
        return masks[scores.argmax()]


class SamProposer:
    """SAM's automatic mask generator as a `Proposer`.

    Args:
        sam: from `load`.
        config: grid and thresholds.
    """

    def __init__(self, sam: Sam, config: ProposalConfig | None = None) -> None:
        self.sam, self.config = sam, config or ProposalConfig()
        self._build_generator()  # refuses settings

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sam, self.config)

    def _build_generator(self) -> Any:
        """Build segment-anything's generator, which keeps an image: each call has its own."""
        _, library = _import_libraries()
        # `min_area` is ours: segment-anything's own such setting fills holes too, and needs OpenCV.
        batch = 4 if self.sam.model.device.type == "cpu" else 64
        generator = library.SamAutomaticMaskGenerator(
            self.sam.model,
            points_per_side=self.config.points_per_side,
            points_per_batch=self.config.points_per_batch or batch,
            pred_iou_thresh=self.config.pred_iou_thresh,
            stability_score_thresh=self.config.stability_score_thresh,
            box_nms_thresh=self.config.box_nms_thresh,
        )
        predict = generator.predictor.predict_torch

        def predict_and_check(*args: Any, **options: Any) -> Any:
            masks, scores, logits = predict(*args, **options)
            check_finite_output("SAM", scores.cpu().numpy())  # the thresholds would drop NaN
            return masks, scores, logits

        generator.predictor.predict_torch = predict_and_check
        return generator

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
        self.sam.check_image(image)
        torch, _ = _import_libraries()
        with torch.inference_mode():
            records = self._build_generator().generate(image)
        kept = [record for record in records if record["area"] >= self.config.min_area]
        kept.sort(key=lambda record: -record["area"])
        masks = np.array([record["segmentation"] for record in kept], bool)
        scores = np.array([record["predicted_iou"] for record in kept], np.float32)
        return Proposals(masks.reshape(-1, *image.shape[:2]), scores)


def _import_libraries() -> tuple[ModuleType, ModuleType]:
    """Import torch and segment_anything."""
    try:
        import segment_anything
        import torch
    except ImportError as error:
        needs = f"SAM needs torch and segment-anything ({error})"
        raise ImportError(f'{needs}: pip install "rimjax[pipeline]"') from error
    return torch, segment_anything
