"""The catalogue of presets: available models per stage, their weight files, their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ported_weights.clip import CLIP_MEAN, CLIP_STD
from ported_weights.vit import IMAGENET_MEAN, IMAGENET_STD
from rimjax.datasets import fashion_mnist
from rimjax.models.maskformer import MaskFormerConfig
from rimjax.models.sam import ProposalConfig, SamConfig
from rimjax.models.stable_diffusion import DiffusionConfig
from rimjax.settings import ReferenceSettings
from rimjax.weights.sources import sources

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class MaskerChoice:
    """A SAM of a preset.

    Attributes:
        path: weight file, below the preset's folder.
        sam: architecture.
    """

    path: str
    sam: SamConfig


@dataclass(frozen=True)
class EncoderChoice:
    """A ViT encoder of a preset.

    Attributes:
        path: weight file, below the preset's folder.
        input_size: side in pixels that images are resized to; a multiple of the patch size.
        mean: red, green and blue in 0..1, subtracted from the pixels.
        std: red, green and blue in 0..1, which pixels are divided by.
        vit: fields of `ViTConfig` that the weights must have; None accepts what the file says.
    """

    path: str
    input_size: int
    mean: Colour
    std: Colour
    vit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class UNetChoice:
    """The generator's UNet as an encoder; see `rimjax.models.stable_diffusion.unet_encoder`."""

    input_size: int = 512
    timestep: int = 261
    up_block: int = 1


@dataclass(frozen=True)
class ProposerChoice:
    """A proposer other than SAM.

    Attributes:
        path: a MaskFormer's folder, below the preset's; None for pixels.
        config: how the MaskFormer is run.
    """

    path: str | None
    config: MaskFormerConfig | None = None


@dataclass(frozen=True)
class ImageTextChoice:
    """The CLIP of the image-text baseline (Table 2, row 1).

    Attributes:
        path: folder below the preset's.
        mean: as of `EncoderChoice`.
        std: as of `EncoderChoice`.
        template: prompt, with `{}` for the class name.
        background: words for the background.
    """

    path: str
    mean: Colour
    std: Colour
    template: str = "a photo of {}"
    background: str = "background"


@dataclass(frozen=True)
class Preset:
    """Models, weights and settings under one name. The first choice of a stage is its default.

    Attributes:
        generators: name -> Stable Diffusion's folder, below the preset's.
        maskers: name -> SAM.
        encoders: name -> encoder.
        proposers: name -> proposer; SAM proposes unless another proposer is chosen.
        image_text: CLIP of the image-text baseline.
        diffusion: how images are drawn.
        proposals: SAM's grid of points and thresholds.
        references: reference settings; the configuration overrides T, whitening and centring.
        calibration: what experiments/mini/calibrate.py measured, below the preset's folder; None
            for a preset that nothing was measured of.
    """

    generators: Mapping[str, str]
    maskers: Mapping[str, MaskerChoice]
    encoders: Mapping[str, EncoderChoice | UNetChoice]
    proposers: Mapping[str, ProposerChoice]
    image_text: ImageTextChoice
    diffusion: DiffusionConfig
    proposals: ProposalConfig
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    calibration: str | None = None


_HALF = (0.5, 0.5, 0.5)
MINI_SAM = SamConfig(
    image_size=128,
    patch_size=8,
    encoder_dim=96,
    encoder_depth=4,
    encoder_heads=3,
    global_attn_indexes=(),
    window_size=0,
    out_chans=64,
    decoder_heads=4,
    decoder_mlp_dim=256,
    box_prompts=False,
)
_MINI = Preset(
    generators={"mini": "stable-diffusion"},
    maskers={"mini": MaskerChoice("sam.safetensors", MINI_SAM)},
    encoders={
        "mini": EncoderChoice("vit.safetensors", 128, _HALF, _HALF),
        "mini-clip": EncoderChoice("clip-vit.safetensors", 128, _HALF, _HALF),
        "mini-mae": EncoderChoice("mae-vit.safetensors", 128, _HALF, _HALF),
        "mini-unet": UNetChoice(128),
    },
    proposers={
        "pixels": ProposerChoice(None),
        "mini-maskformer": ProposerChoice("maskformer", MaskFormerConfig(None, _HALF, _HALF)),
    },
    image_text=ImageTextChoice("clip", _HALF, _HALF, background="ground"),
    diffusion=DiffusionConfig(
        steps=20,
        template="a photo of white {}",
        attention_resolutions=(8,),
        batch_size=16,
        vocabulary=fashion_mnist.CLASSES,
    ),
    proposals=ProposalConfig(
        points_per_side=10,
        pred_iou_thresh=0.5,
        stability_score_thresh=0.4,
        box_nms_thresh=0.7,
        min_area=30,
    ),
    references=ReferenceSettings(num_images=24),
    calibration="calibration.safetensors",
)


def _path(name: str) -> str:
    return sources()[name].becomes


_SAM_L = SamConfig(1024, 16, 1024, 24, 16, (5, 11, 17, 23))
_SAM_H = SamConfig(1024, 16, 1280, 32, 16, (7, 15, 23, 31))
_SMALL = {"hidden_size": 384, "num_heads": 6}
_LARGE = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16}
_VIT_B_16 = {"patch_size": 16, "image_size": 224, "layer_scale": False}
_MAE = _VIT_B_16 | {"layer_norm_eps": 1e-12}
_CLIP = _VIT_B_16 | {"layer_norm_eps": 1e-5, "pre_norm": True, "patch_bias": False}
_CLIP |= {"activation": "quick_gelu"}
_DINOV3 = {"patch_size": 16, "image_size": 512, "num_registers": 4, "layer_norm_eps": 1e-5}
_DINOV3 |= {"rope_theta": 100.0, "key_bias": False}
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP_COLOURS = (CLIP_MEAN, CLIP_STD)
_PAPER = Preset(
    generators={name: _path(name) for name in ("sd-1.4", "sd-1.5")},
    maskers={
        "sam-vit-b": MaskerChoice(_path("sam-vit-b"), SamConfig()),
        "sam-vit-l": MaskerChoice(_path("sam-vit-l"), _SAM_L),
        "sam-vit-h": MaskerChoice(_path("sam-vit-h"), _SAM_H),
    },
    encoders={
        "dinov2-base": EncoderChoice(_path("dinov2-base"), 518, *_IMAGENET, {}),
        "dinov2-small": EncoderChoice(_path("dinov2-small"), 518, *_IMAGENET, _SMALL),
        "dinov2-large": EncoderChoice(_path("dinov2-large"), 518, *_IMAGENET, _LARGE),
        # 512 pixels give 32x32 patches; rotary positions take any multiple of 16.
        "dinov3-base": EncoderChoice(_path("dinov3-base"), 512, *_IMAGENET, _DINOV3),
        "dinov3-small": EncoderChoice(_path("dinov3-small"), 512, *_IMAGENET, _DINOV3 | _SMALL),
        "dinov3-large": EncoderChoice(_path("dinov3-large"), 512, *_IMAGENET, _DINOV3 | _LARGE),
        # 592 pixels give 37x37 patches, as DINOv2 has at 518 pixels.
        "clip-vit-b-16": EncoderChoice(_path("clip-vit-b-16"), 592, *_CLIP_COLOURS, _CLIP),
        "mae-vit-b": EncoderChoice(_path("mae-vit-b"), 592, *_IMAGENET, _MAE),
        "sd-unet": UNetChoice(),
    },
    proposers={
        "pixels": ProposerChoice(None),
        "maskformer": ProposerChoice(_path("maskformer"), MaskFormerConfig()),
    },
    image_text=ImageTextChoice(_path("clip-image-text"), *_CLIP_COLOURS),
    diffusion=DiffusionConfig(),
    proposals=ProposalConfig(),
)
PRESETS = {"mini": _MINI, "paper": _PAPER}
