"""Named sets of models and settings: `mini`, shipped with the package, and `paper`. The one place that builds concrete models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ported_weights
from ported_weights.sources import sources
from rimjax.datasets import fashion_scenes
from rimjax.inference import SegmentSettings
from rimjax.models.deferred import DeferredGenerator
from rimjax.models.diffusion import DiffusionConfig
from rimjax.models.protocols import Encoder, Generator, Masker
from rimjax.models.sam import ProposalConfig, SamConfig
from rimjax.references import ReferenceSettings

RANDOM_WEIGHTS = " (random weights)"
"""What a self-test's results and banks say after the preset's name."""

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
class Preset:
    """Architectures, weights and settings under one name. Of each stage's choices the first is the default.

    Attributes:
        generators: Stable Diffusions, name -> folder below the preset's.
        maskers: by name.
        encoders: by name.
        diffusion: how images are drawn.
        proposals: the masker's grid and thresholds.
        references: of flow 1.
        segmentation: of flow 2.
    """

    generators: Mapping[str, str]
    maskers: Mapping[str, MaskerChoice]
    encoders: Mapping[str, EncoderChoice]
    diffusion: DiffusionConfig
    proposals: ProposalConfig
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)


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
        encoders={"mini": EncoderChoice("vit.safetensors", 128, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))},
        diffusion=DiffusionConfig(
            steps=20,
            template="a photo of white {}",
            attention_resolutions=(8,),
            batch_size=16,
            vocabulary=fashion_scenes.CLASSES,
        ),
        proposals=ProposalConfig(points_per_side=10, pred_iou_thresh=0.5, stability_score_thresh=0.4, box_nms_thresh=0.5, min_area=30),
        references=ReferenceSettings(num_images=24, num_subcategories=1),
        segmentation=SegmentSettings(score_map="exp", candidates="agents"),
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
        },
        diffusion=DiffusionConfig(),
        proposals=ProposalConfig(),
    ),
}


@dataclass(frozen=True)
class Models:
    """The three models and the settings that go with them; swap a stage with `dataclasses.replace`."""

    name: str
    generator: Generator
    masker: Masker
    encoder: Encoder
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)


@dataclass(frozen=True)
class Inventory:
    """One weight file of a preset: where it is looked for, "present" or "missing", and how to get it if missing."""

    stage: str
    path: str
    state: str
    remedy: str


def weights_folder(preset: str, weights_dir: str | Path | None = None) -> Path:
    """Where a preset's weights are looked for: the package for `mini`; else the argument, RIMJAX_WEIGHTS, or ~/.local/share/rimjax."""
    if preset == "mini":
        return Path(ported_weights.__file__).parent / "mini"
    from platformdirs import user_data_path

    return Path(weights_dir or os.environ.get("RIMJAX_WEIGHTS") or user_data_path("rimjax")) / preset


def inventory(
    preset: str,
    weights_dir: str | Path | None = None,
    *,
    generator: str | None = None,
    masker: str | None = None,
    encoder: str | None = None,
) -> list[Inventory]:
    """The weights of a preset's three stages and whether they are there; the choices are those of `load_preset`."""
    folder = weights_folder(preset, weights_dir)
    found = []
    for stage, (name, choice) in _choices(preset, generator, masker, encoder).items():
        path = folder / (choice if isinstance(choice, str) else choice.path)
        remedy = "part of the package: install rimjax again" if preset == "mini" else f"rimjax weights download {name}"
        found.append(Inventory(stage, str(path), "present", "") if path.exists() else Inventory(stage, str(path), "missing", remedy))
    return found


def _choices(preset: str, generator: str | None, masker: str | None, encoder: str | None) -> dict[str, tuple[str, Any]]:
    """Stage -> name and what the preset offers under it."""
    chosen, given = PRESETS[preset], {"generator": generator, "masker": masker, "encoder": encoder}
    found = {}
    for stage, name in given.items():
        offered = getattr(chosen, f"{stage}s")
        if name is not None and name not in offered:
            raise ValueError(f"{stage}: preset {preset!r} offers {', '.join(offered)}, got {name!r}")
        name = name or next(iter(offered))
        found[stage] = name, offered[name]
    return found


def load_preset(
    name: str,
    weights_dir: str | Path | None = None,
    *,
    generator: str | None = None,
    masker: str | None = None,
    encoder: str | None = None,
    random_weights: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> Models:
    """The models of a preset, ready to use.

    Args:
        name: "mini" or "paper".
        weights_dir: folder that holds `paper/` (default: the environment variable RIMJAX_WEIGHTS, or the user's data folder).
        generator: of `paper`: "sd-1.4" (default) or "sd-1.5".
        masker: of `paper`: "sam-vit-b" (default), "sam-vit-l" or "sam-vit-h".
        encoder: of `paper`: "dinov2-base" (default), "dinov2-small", "dinov2-large", "clip-vit-b-16" or "mae-vit-b".
        random_weights: of `paper`: a self-test without any weight file; shapes, time and memory are real, results mean nothing, and
            every proposal is kept.
        dtype: of the generator and the encoder; default: float32, but for `paper` on an accelerator bfloat16. SAM and the matching
            are float32 always.

    Raises:
        ValueError: there is no such preset or choice, or a weight file isn't what it should be.
        FileNotFoundError: weights are missing; the message lists them all and how to get them.
        ImportError: the `pipeline` extra is missing.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    if random_weights and name == "mini":
        raise ValueError("random_weights: a self-test of the paper preset; mini has its weights in the package")
    found = inventory(name, weights_dir, generator=generator, masker=masker, encoder=encoder)
    missing = [item for item in found if item.state == "missing"]
    if missing and not random_weights:
        wanted = "; ".join(f"{item.path} ({item.remedy})" for item in missing)
        raise FileNotFoundError(
            f"preset {name!r} lacks weights: {wanted}. RIMJAX_WEIGHTS moves the folder; --preset mini needs no download"
        )
    if dtype is None:
        import jax

        dtype = "bfloat16" if name == "paper" and jax.default_backend() != "cpu" else "float32"
    preset, choices = PRESETS[name], _choices(name, generator, masker, encoder)
    paths = {item.stage: None if random_weights else Path(item.path) for item in found}
    # The checker holds that a cached_property is no property, so it doesn't see that these have a fingerprint.
    return Models(
        name=name + RANDOM_WEIGHTS if random_weights else name,
        generator=DeferredGenerator(paths["generator"], replace(preset.diffusion, dtype=dtype)),  # pyright: ignore[reportArgumentType]
        masker=_masker(paths["masker"], choices["masker"][1], preset.proposals),
        encoder=_encoder(paths["encoder"], choices["encoder"][1], dtype),
        references=preset.references,
        segmentation=preset.segmentation,
    )


def _masker(path: Path | None, choice: MaskerChoice, proposals: ProposalConfig) -> Masker:
    from rimjax.models import sam

    if path is None:  # SAM believes in none of a random decoder's masks: keep them all
        proposals = replace(proposals, pred_iou_thresh=0, stability_score_thresh=0)
        return sam.load(None, choice.sam, proposals=proposals)  # pyright: ignore[reportReturnType]
    from ported_weights.files import read_state_dict

    state = read_state_dict(path)
    try:
        return sam.load(state, choice.sam, proposals=proposals)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _encoder(path: Path | None, choice: EncoderChoice, dtype: Literal["float32", "bfloat16"]) -> Encoder:
    from rimjax.models.vit import ViTConfig, ViTEncoder

    if path is None:
        from rimjax.models import random_weights

        config = ViTConfig(**choice.vit or {})
        params = random_weights.vit(config)
    else:
        params, config = ported_weights.load_vit(path)
        wanted = config if choice.vit is None else ViTConfig(**choice.vit)
        for key in ("hidden_size", "num_layers", "num_heads", "patch_size", "layer_scale", "pre_norm"):
            if getattr(config, key) != getattr(wanted, key):
                raise ValueError(f"{path}: another model's weights: expected {key} {getattr(wanted, key)}, got {getattr(config, key)}")
    config = replace(config, dtype=dtype)
    return ViTEncoder(params, config, choice.input_size, choice.mean, choice.std)  # pyright: ignore[reportReturnType]
