"""segment-anything's SAM: architecture, weights, and what it makes of an image once.

torch and segment-anything are imported when a model is built, not when this module is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ported_weights.rules import check_fit, widen
from rimjax.files import fingerprint
from rimjax.models.protocols import (
    CopiedByFields,
    advise_on_numbers,
    cached_property,
    check_image,
)
from rimjax.models.sam.config import SamConfig, SamPrecision

if TYPE_CHECKING:
    from torch import Tensor

    from rimjax.models.sam.decoder import Decoded, ImageDecoder
    from rimjax.models.sam.masks import Frame


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image, ready to be prompted.

    Attributes:
        decoder: makes logits of points.
        frame: makes masks of logits.
        transform: segment-anything's, which resizes coordinates.
        size: height and width.
    """

    decoder: ImageDecoder
    frame: Frame
    transform: Any
    size: tuple[int, int]

    def decode(self, points: np.ndarray, boxes: np.ndarray | None = None) -> Decoded:
        """Decode prompts of points on the object as far as the predicted IoUs.

        Call it, like `upscale`, under `torch.inference_mode()`.

        Args:
            points: [B, n, 2], x and y in pixels of the image; n may be 0 with boxes.
            boxes: [B, 4] around the object, x0, y0, x1, y1 in pixels; None: points alone.

        Raises:
            ValueError: SAM gives NaN, which the thresholds would drop.
        """
        torch, _ = import_libraries()
        device = self.frame.rows.weights.device
        coords = self.transform.apply_coords(points, self.size)
        labels = torch.ones(points.shape[:2], dtype=torch.int, device=device)
        corners = None
        if boxes is not None:
            corners = self.transform.apply_boxes(boxes, self.size)
            corners = torch.as_tensor(corners, dtype=torch.float32, device=device)
        decoded = self.decoder.decode(torch.as_tensor(coords, device=device), labels, corners)
        self._check(decoded.ious)
        return decoded

    def upscale(self, decoded: Decoded, wanted: Tensor) -> Tensor:
        """Compute the wanted masks' logits; see `ImageDecoder.upscale`.

        Raises:
            ValueError: SAM gives NaN, which would be an empty mask.
        """
        logits = self.decoder.upscale(decoded, wanted)
        self._check(logits)
        return logits

    def _check(self, numbers: Tensor) -> None:
        dtype = str(self.decoder.dtype).removeprefix("torch.")
        if not bool(numbers.isfinite().all()):
            advice = advise_on_numbers(dtype, "masker_dtype")
            raise ValueError(f"SAM must give finite numbers, got NaN or infinity; {advice}")


@dataclass(frozen=True, eq=False)
class Sam(CopiedByFields):
    """A SAM on its device; a masker and a proposer share it.

    Attributes:
        model: segment-anything's `Sam`, in evaluation mode.
        config: its architecture.
        compiled: encode images by `torch.compile`.
    """

    model: Any
    config: SamConfig
    compiled: bool = False
    _last: dict[str, EmbeddedImage] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def embed(self, image: np.ndarray) -> EmbeddedImage:
        """Encode an image for any number of prompts; the last image's result is kept.

        Threads may share the model: nothing here is changed while an image is prompted.

        Args:
            image: uint8[H, W, 3], RGB.

        Raises:
            ValueError: the image is something else.
        """
        self.check_image(image)
        key = fingerprint(image.shape, {"image": image})
        with self._lock:  # threads that ask for one image encode it once
            embedded = self._last.get(key)
            if embedded is None:
                embedded = self._encode(image)
                self._last.clear()
                self._last[key] = embedded
        return embedded

    def forget(self) -> None:
        """Drop the last image's encoding."""
        self._last.clear()

    def _encode(self, image: np.ndarray) -> EmbeddedImage:
        torch, library = import_libraries()
        from rimjax.models.sam.decoder import ImageDecoder
        from rimjax.models.sam.masks import Frame

        side = self.config.image_size
        transform = library.utils.transforms.ResizeLongestSide(side)
        resized = transform.apply_image(image)
        with torch.inference_mode():
            pixels = torch.as_tensor(resized, device=self.model.device).permute(2, 0, 1)[None]
            embedding = self._run_encoder(self.model.preprocess(pixels))
            decoder = ImageDecoder(self.model, embedding)
            logits = 4 * side // self.config.patch_size
            frame = Frame.create(image.shape[:2], resized.shape[:2], side, logits, embedding.device)
        return EmbeddedImage(decoder, frame, transform, image.shape[:2])

    @cached_property
    def _encoder(self) -> Callable[[Any, Tensor], Tensor]:
        from rimjax.models.sam.encoder import encode

        return import_libraries()[0].compile(encode, dynamic=False) if self.compiled else encode

    def _run_encoder(self, pixels: Tensor) -> Tensor:
        try:
            return self._encoder(self.model.image_encoder, pixels)
        except Exception as error:
            if not self.compiled:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            needs = "on a CPU it needs a C++ compiler; leave compile_masker out"
            raise ValueError(f"torch.compile fails here ({reason}); {needs}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, their dtype and the architecture."""
        state = self.model.state_dict()
        weights = {name: tensor.cpu().float().numpy() for name, tensor in state.items()}
        dtype = self.model.mask_decoder.iou_token.weight.dtype
        own = asdict(self.config)
        del own["box_prompts"]  # a trait of the weights, newer than the caches
        if str(dtype) != "torch.float32":  # so that caches stay valid
            own["dtype"] = str(dtype)
        return fingerprint(own, weights)

    def check_image(self, image: np.ndarray) -> None:
        """Raise ValueError unless the image is a uint8[H, W, 3] that isn't too narrow for SAM."""
        check_image(image)
        height, width = image.shape[:2]
        size = self.config.image_size
        if not self.takes(height, width):
            expected = f"image must keep a pixel when its longer side is resized to {size}"
            raise ValueError(f"{expected}, got {width}x{height} pixels; crop it")

    def takes(self, height: int, width: int) -> bool:
        """Return whether an image of this size keeps a pixel when SAM resizes it."""
        least, most = sorted((height, width))
        return least > 0 and int(least * self.config.image_size / most + 0.5) >= 1


def build(config: SamConfig) -> Any:
    """Build segment-anything's `Sam` with random weights, in evaluation mode.

    Raises:
        ImportError: torch or segment-anything is missing.
    """
    torch, library = import_libraries()
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
    dtype: SamPrecision = "float32",
    compiled: bool = False,
) -> Sam:
    """Load a SAM from a checkpoint's state dict.

    Args:
        state: {name: tensor}, e.g. `ported_weights.checkpoints.read_state_dict(path)` of
            "sam_vit_b_01ec64.pth"; None: random weights.
        config: the checkpoint's architecture; default: ViT-B.
        device: torch's device; default: "cuda" if available, else "cpu".
        seed: of random weights.
        dtype: of the image encoder and the mask decoder; masks change a little in "bfloat16" and
            "float16", which are meant for GPUs. Points, thresholds and resizing are float32.
        compiled: encode images by `torch.compile`, which compiles when the first image comes.

    Raises:
        ValueError: the state dict isn't exactly that of this architecture; the message lists every
            mismatch.
        ImportError: torch or segment-anything is missing.
    """
    config = config or SamConfig()
    torch, _ = import_libraries()
    with torch.random.fork_rng(devices=[]):  # built on the CPU
        torch.manual_seed(seed)
        model = build(config)
    if state is not None:
        state = {name: widen(tensor) for name, tensor in state.items()}
        check_fit(state, model.state_dict())
        model.load_state_dict(state)
    for part in (model.image_encoder, model.mask_decoder):
        part.to(getattr(torch, dtype))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Sam(model.to(device), config, compiled)


def import_libraries() -> tuple[ModuleType, ModuleType]:
    """Import torch and segment_anything."""
    try:
        import segment_anything
        import torch
    except ImportError as error:
        needs = f"SAM needs torch and segment-anything ({error})"
        raise ImportError(f'{needs}: pip install "rimjax[pipeline]"') from error
    return torch, segment_anything
