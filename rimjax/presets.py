"""Named sets of models and settings: `mini`, shipped with the package, and `paper`. The one place that builds concrete models."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import ported_weights
from rimjax.datasets import fashion_scenes
from rimjax.inference import SegmentSettings
from rimjax.models.diffusion import DiffusionConfig
from rimjax.models.protocols import Encoder, Generated, Generator, Masker
from rimjax.models.sam import ProposalConfig, SamConfig
from rimjax.references import ReferenceSettings

if TYPE_CHECKING:
    from rimjax.models.diffusion import StableDiffusion

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


@dataclass(frozen=True)
class Weights:
    """A weight file or folder that a stage needs.

    Attributes:
        stage: "generator", "masker" or "encoder".
        path: below the preset's folder.
        remedy: how to get it.
    """

    stage: str
    path: str
    remedy: str


@dataclass(frozen=True)
class Preset:
    """Architectures, weights and settings under one name.

    Attributes:
        weights: what must be on disk.
        diffusion: how images are drawn.
        sam: architecture of the masker.
        proposals: its proposal grid and thresholds.
        input_size: side in pixels that images are resized to for the encoder.
        mean: of red, green and blue in 0..1, subtracted before the encoder.
        std: of the same, divided by.
        references: of flow 1.
        segmentation: of flow 2.
    """

    weights: tuple[Weights, ...]
    diffusion: DiffusionConfig
    sam: SamConfig
    proposals: ProposalConfig
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    references: ReferenceSettings = field(default_factory=ReferenceSettings)
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)


_REINSTALL = "part of the package: install rimjax again"

PRESETS = {
    "mini": Preset(
        weights=(
            Weights("generator", "stable-diffusion", _REINSTALL),
            Weights("masker", "sam.safetensors", _REINSTALL),
            Weights("encoder", "vit.safetensors", _REINSTALL),
        ),
        diffusion=DiffusionConfig(
            steps=20,
            template="a photo of white {}",
            attention_resolutions=(8,),
            batch_size=16,
            vocabulary=fashion_scenes.CLASSES,
        ),
        sam=MINI_SAM,
        proposals=ProposalConfig(points_per_side=10, pred_iou_thresh=0.5, stability_score_thresh=0.4, box_nms_thresh=0.5, min_area=30),
        input_size=128,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        references=ReferenceSettings(num_images=24, threshold=0.7),
    ),
    "paper": Preset(
        weights=(
            Weights(
                "generator",
                "stable-diffusion-v1-4",
                "get CompVis/stable-diffusion-v1-4 in diffusers format and convert it with ported_weights.stable_diffusion.port_folder",
            ),
            Weights("masker", "sam_vit_b_01ec64.pth", "download segment-anything's ViT-B checkpoint of that name"),
            Weights(
                "encoder",
                "dinov2-vitb14.safetensors",
                "get facebook/dinov2-base (or dinov2_vitb14_pretrain.pth) and convert it with ported_weights.dinov2.port and "
                "ported_weights.save_vit",
            ),
        ),
        diffusion=DiffusionConfig(),
        sam=SamConfig(),
        proposals=ProposalConfig(),
        input_size=518,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


class DeferredGenerator:
    """Stable Diffusion, loaded when first asked to draw; its fingerprint comes from its files, so a cached bank never loads it."""

    def __init__(self, directory: Path, config: DiffusionConfig) -> None:
        self.directory, self.config = directory, config

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all files and of the drawing settings."""
        drawing = {name: value for name, value in asdict(self.config).items() if name != "batch_size"}
        digest = hashlib.sha256(json.dumps(drawing, sort_keys=True).encode())
        for path in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(self.directory)} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        return digest.hexdigest()[:20]

    @cached_property
    def _model(self) -> StableDiffusion:
        from rimjax.models import diffusion

        return diffusion.load(self.directory, self.config)

    def check(self, class_name: str) -> None:
        """As `Generator.check`."""
        self._model.check(class_name)

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """As `Generator.generate`."""
        return self._model.generate(class_name, num_images, seed)


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


def inventory(preset: str, weights_dir: str | Path | None = None) -> list[Inventory]:
    """Every weight file of a preset and whether it is there."""
    folder = weights_folder(preset, weights_dir)
    found = [(item, folder / item.path) for item in PRESETS[preset].weights]
    return [
        Inventory(item.stage, str(path), "present" if path.exists() else "missing", "" if path.exists() else item.remedy)
        for item, path in found
    ]


def load_preset(name: str, weights_dir: str | Path | None = None) -> Models:
    """The models of a preset, ready to use.

    Args:
        name: "mini" or "paper".
        weights_dir: folder that holds `paper/` (default: the environment variable RIMJAX_WEIGHTS, or the user's data folder).

    Raises:
        ValueError: there is no such preset.
        FileNotFoundError: weights are missing; the message lists them all and how to get them.
        ImportError: the `pipeline` extra is missing.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    missing = [item for item in inventory(name, weights_dir) if item.state == "missing"]
    if missing:
        wanted = "; ".join(f"{item.path} ({item.remedy})" for item in missing)
        raise FileNotFoundError(
            f"preset {name!r} lacks weights: {wanted}. RIMJAX_WEIGHTS moves the folder; --preset mini needs no download"
        )
    from rimjax.models import sam
    from rimjax.models.vit import ViTEncoder

    preset, folder = PRESETS[name], weights_folder(name, weights_dir)
    paths = {item.stage: folder / item.path for item in preset.weights}
    params, config = ported_weights.load_vit(paths["encoder"])
    # The checker holds that a cached_property is no property, so it doesn't see that these have a fingerprint.
    return Models(
        name=name,
        generator=DeferredGenerator(paths["generator"], preset.diffusion),  # pyright: ignore[reportArgumentType]
        masker=sam.load(paths["masker"], preset.sam, proposals=preset.proposals),  # pyright: ignore[reportArgumentType]
        encoder=ViTEncoder(params, config, preset.input_size, preset.mean, preset.std),  # pyright: ignore[reportArgumentType]
        references=preset.references,
        segmentation=preset.segmentation,
    )
