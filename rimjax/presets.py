"""The presets' models, built: `mini`, shipped with the package, and `paper`. The one place that builds concrete models from names."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ported_weights
from rimjax.choices import CONFIGURATIONS, PRESETS, EncoderChoice, MaskerChoice, ProposerChoice, UNetChoice
from rimjax.inference import SegmentSettings
from rimjax.models.deferred import DeferredGenerator
from rimjax.models.proposers import CellMasker, MaskFormerMasker
from rimjax.models.protocols import Encoder, Generator, Masker
from rimjax.models.sam import ProposalConfig
from rimjax.references import ReferenceSettings

if TYPE_CHECKING:
    from rimjax.models.image_text import ImageTextMatcher

RANDOM_WEIGHTS = " (random weights)"
"""What a self-test's results and banks say after the preset's name."""


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
    proposer: str | None = None,
) -> list[Inventory]:
    """The weights of a preset's stages and whether they are there; the choices are those of `load_preset`."""
    folder = weights_folder(preset, weights_dir)
    found = []
    for stage, (name, choice) in _choices(preset, generator, masker, encoder, proposer).items():
        place = choice if isinstance(choice, str) else getattr(choice, "path", None)
        if place is None:  # the generator's UNet, and feature cells, have no weights of their own
            continue
        path = folder / place
        remedy = "part of the package: install rimjax again" if preset == "mini" else f"rimjax weights download {name}"
        found.append(Inventory(stage, str(path), "present", "") if path.exists() else Inventory(stage, str(path), "missing", remedy))
    return found


def _choices(
    preset: str, generator: str | None, masker: str | None, encoder: str | None, proposer: str | None
) -> dict[str, tuple[str, Any]]:
    """Stage -> name and what the preset offers under it; a proposer only where one is asked for."""
    chosen, given = PRESETS[preset], {"generator": generator, "masker": masker, "encoder": encoder, "proposer": proposer}
    found = {}
    for stage, name in given.items():
        offered = getattr(chosen, f"{stage}s")
        if stage == "proposer" and name is None:
            continue
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
    proposer: str | None = None,
    configuration: str | None = None,
    random_weights: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> Models:
    """The models of a preset, ready to use.

    Args:
        name: "mini" or "paper".
        weights_dir: folder that holds `paper/` (default: the environment variable RIMJAX_WEIGHTS, or the user's data folder).
        generator: of `paper`: "sd-1.4" (default) or "sd-1.5".
        masker: of `paper`: "sam-vit-b" (default), "sam-vit-l" or "sam-vit-h".
        encoder: of `paper`: "dinov2-base" (default), "dinov2-small", "dinov2-large", "clip-vit-b-16", "mae-vit-b" or "sd-unet"; of `mini`:
            "mini" (default), "mini-clip", "mini-mae" or "mini-unet".
        proposer: regions from elsewhere than the masker: "cells" of the encoder's grid, or "maskformer" ("mini-maskformer").
        configuration: "paper", the paper's own, or "rimjax", the one that did best on validation scenes; default: "rimjax" for `mini`,
            "paper" for `paper`.
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
    if (configuration or "paper") not in CONFIGURATIONS:
        raise ValueError(f"configuration: expected one of {', '.join(CONFIGURATIONS)}, got {configuration!r}")
    found = inventory(name, weights_dir, generator=generator, masker=masker, encoder=encoder, proposer=proposer)
    missing = [item for item in found if item.state == "missing"]
    if missing and not random_weights:
        wanted = "; ".join(f"{item.path} ({item.remedy})" for item in missing)
        raise FileNotFoundError(
            f"preset {name!r} lacks weights: {wanted}. RIMJAX_WEIGHTS moves the folder; --preset mini needs no download"
        )
    if dtype is None:
        import jax

        dtype = "bfloat16" if name == "paper" and jax.default_backend() != "cpu" else "float32"
    preset, choices = PRESETS[name], _choices(name, generator, masker, encoder, proposer)
    chosen = CONFIGURATIONS[configuration or preset.configuration]
    paths = {item.stage: None if random_weights else Path(item.path) for item in found}
    drawing = DeferredGenerator(paths["generator"], replace(preset.diffusion, dtype=dtype))
    encoding = _encoder(paths.get("encoder"), choices["encoder"][1], dtype, drawing)
    masking = _masker(paths["masker"], choices["masker"][1], preset.proposals)
    return Models(
        name=name + RANDOM_WEIGHTS if random_weights else name,
        generator=drawing,  # pyright: ignore[reportArgumentType]  # for the checker a cached_property is no property
        masker=_proposing(paths.get("proposer"), choices["proposer"][1], masking, encoding) if proposer else masking,
        encoder=encoding,
        references=replace(preset.references, num_subcategories=chosen.num_subcategories, whiten=chosen.whiten),
        segmentation=chosen.segmentation,
    )


def _proposing(path: Path | None, choice: ProposerChoice, masker: Masker, encoder: Encoder) -> Masker:
    if choice.path is None:
        return CellMasker(masker, encoder)
    if path is None:
        raise ValueError("proposer: a MaskFormer has no self-test; leave --random-weights or the proposer out")
    return MaskFormerMasker(masker, path, choice.config)  # pyright: ignore[reportReturnType]


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


def _encoder(
    path: Path | None, choice: EncoderChoice | UNetChoice, dtype: Literal["float32", "bfloat16"], generator: DeferredGenerator
) -> Encoder:
    if isinstance(choice, UNetChoice):
        from rimjax.models.unet_features import UNetEncoder

        return UNetEncoder(generator, **asdict(choice))  # pyright: ignore[reportReturnType]
    from rimjax.models.vit import ViTConfig, ViTEncoder

    if path is None:
        from rimjax.models import random_weights

        config = ViTConfig(**choice.vit or {})
        params = random_weights.vit(config)
    else:
        params, config = ported_weights.load_vit(path)
        wanted = config if choice.vit is None else ViTConfig(**choice.vit)
        for key in ("hidden_size", "num_layers", "num_heads", "patch_size", "num_registers", "layer_scale", "pre_norm"):
            if getattr(config, key) != getattr(wanted, key):
                raise ValueError(f"{path}: another model's weights: expected {key} {getattr(wanted, key)}, got {getattr(config, key)}")
    config = replace(config, dtype=dtype)
    return ViTEncoder(params, config, choice.input_size, choice.mean, choice.std)  # pyright: ignore[reportReturnType]


def load_image_text(preset: str, weights_dir: str | Path | None = None) -> ImageTextMatcher:
    """The preset's CLIP, both towers, for the image-text baseline (Table 2, row 1).

    Raises:
        FileNotFoundError: its weights are missing; the message says how to get them.
        ValueError: they are damaged.
        ImportError: the `pipeline` extra is missing.
    """
    from rimjax.models.image_text import ImageTextMatcher

    choice = PRESETS[preset].image_text
    path = weights_folder(preset, weights_dir) / choice.path
    if not path.exists():
        raise FileNotFoundError(f"{path}: the image-text baseline lacks its weights; rimjax weights download clip-image-text")
    return ImageTextMatcher(path, choice.mean, choice.std)
