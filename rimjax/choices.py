"""What the presets offer: of every stage the models that there are, where their weights lie, and the settings that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ported_weights.sources import sources
from rimjax.datasets import fashion_scenes
from rimjax.inference import SegmentSettings
from rimjax.models.diffusion import DiffusionConfig
from rimjax.models.proposers import MaskFormerConfig
from rimjax.models.sam import ProposalConfig, SamConfig
from rimjax.references import ReferenceSettings

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
)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class MaskerChoice:
    """A SAM that a preset offers: weights below the preset's folder, and architecture."""

    path: str
    sam: SamConfig


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder that a preset offers.

    Attributes:
        path: of the weights, below the preset's folder.
        input_size: side in pixels that images are resized to; a multiple of the patch size.
        mean: of red, green and blue in 0..1, subtracted before the encoder.
        std: of the same, divided by.
        vit: fields of the `ViTConfig` that differ from its defaults; None: whatever the file says.
    """

    path: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class UNetChoice:
    """The generator's UNet as an encoder that a preset offers; see `rimjax.models.unet_features`."""

    input_size: int = 512
    timestep: int = 261
    up_block: int = 1


@dataclass(frozen=True)
class ProposerChoice:
    """Where regions come from, other than the masker: a MaskFormer's folder below the preset's, or None: feature cells."""

    path: str | None
    config: MaskFormerConfig | None = None


@dataclass(frozen=True)
class ImageTextChoice:
    """The CLIP of the image-text baseline (Table 2, row 1) that a preset offers.

    Attributes:
        path: its folder below the preset's.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        template: of the prompts, with `{}` for the class name.
        background: the words for the background.
    """

    path: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    template: str = "a photo of {}"
    background: str = "background"


@dataclass(frozen=True)
class Configuration:
    """How references are summarised and regions named and put together, whatever the models."""

    num_subcategories: int = 8
    whiten: float = 0.0
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)


CONFIGURATIONS = {
    "paper": Configuration(),
    "rimjax": Configuration(1, 1.0, SegmentSettings(score_map="exp", candidates="agents")),
}
"""`paper` is the paper's own and never changes; `rimjax` was best on scenes kept for validation (experiments/README.md)."""


@dataclass(frozen=True)
class Preset:
    """Architectures, weights and settings under one name. Of each stage's choices the first is the default.

    Attributes:
        generators: Stable Diffusions, name -> folder below the preset's.
        maskers: by name.
        encoders: by name.
        proposers: by name; without one the masker proposes.
        image_text: of the baseline.
        diffusion: how images are drawn.
        proposals: the masker's grid and thresholds.
        references: of flow 1; the configuration has its say.
        configuration: the default one.
    """

    generators: Mapping[str, str]
    maskers: Mapping[str, MaskerChoice]
    encoders: Mapping[str, EncoderChoice | UNetChoice]
    proposers: Mapping[str, ProposerChoice]
    image_text: ImageTextChoice
    diffusion: DiffusionConfig
    proposals: ProposalConfig
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    configuration: str = "paper"


def _published(name: str) -> str:
    return sources()[name].becomes


_LARGE = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16}
_CLIP = {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-5, "layer_scale": False}
_CLIP |= {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu"}
_MAE = {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-12, "layer_scale": False}
_SAM_L = SamConfig(encoder_dim=1024, encoder_depth=24, encoder_heads=16, global_attn_indexes=(5, 11, 17, 23))
_SAM_H = SamConfig(encoder_dim=1280, encoder_depth=32, encoder_heads=16, global_attn_indexes=(7, 15, 23, 31))
_SAMS = {"sam-vit-b": SamConfig(), "sam-vit-l": _SAM_L, "sam-vit-h": _SAM_H}
_CLIP_COLOURS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

PRESETS = {
    "mini": Preset(
        generators={"mini": "stable-diffusion"},
        maskers={"mini": MaskerChoice("sam.safetensors", MINI_SAM)},
        encoders={
            "mini": EncoderChoice("vit.safetensors", 128, HALF, HALF),
            "mini-clip": EncoderChoice("clip-vit.safetensors", 128, HALF, HALF),
            "mini-mae": EncoderChoice("mae-vit.safetensors", 128, HALF, HALF),
            "mini-unet": UNetChoice(128),
        },
        proposers={
            "cells": ProposerChoice(None),
            "mini-maskformer": ProposerChoice("maskformer", MaskFormerConfig(None, HALF, HALF)),
        },
        image_text=ImageTextChoice("clip", HALF, HALF, background="ground"),
        diffusion=DiffusionConfig(
            steps=20,
            template="a photo of white {}",
            attention_resolutions=(8,),
            batch_size=16,
            vocabulary=fashion_scenes.CLASSES,
        ),
        proposals=ProposalConfig(points_per_side=10, pred_iou_thresh=0.5, stability_score_thresh=0.4, box_nms_thresh=0.5, min_area=30),
        references=ReferenceSettings(num_images=24),
        configuration="rimjax",
    ),
    "paper": Preset(
        generators={name: _published(name) for name in ("sd-1.4", "sd-1.5")},
        maskers={name: MaskerChoice(_published(name), sam) for name, sam in _SAMS.items()},
        encoders={
            "dinov2-base": EncoderChoice(_published("dinov2-base"), 518, **IMAGENET, vit={}),
            "dinov2-small": EncoderChoice(_published("dinov2-small"), 518, **IMAGENET, vit={"hidden_size": 384, "num_heads": 6}),
            "dinov2-large": EncoderChoice(_published("dinov2-large"), 518, **IMAGENET, vit=_LARGE),
            # 37x37 patches, as DINOv2 has at 518 pixels
            "clip-vit-b-16": EncoderChoice(_published("clip-vit-b-16"), 592, **_CLIP_COLOURS, vit=_CLIP),
            "mae-vit-b": EncoderChoice(_published("mae-vit-b"), 592, **IMAGENET, vit=_MAE),
            "sd-unet": UNetChoice(),
        },
        proposers={"cells": ProposerChoice(None), "maskformer": ProposerChoice(_published("maskformer"), MaskFormerConfig())},
        image_text=ImageTextChoice(_published("clip-image-text"), _CLIP_COLOURS["mean"], _CLIP_COLOURS["std"]),
        diffusion=DiffusionConfig(),
        proposals=ProposalConfig(),
    ),
}
