"""Presets: from names to models, `mini` (part of the package) and `paper`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import ported_weights
from rimjax.models.calibration import Calibration, load_calibration
from rimjax.models.protocols import Models, Proposer
from rimjax.models.sam import SamMasker, SamPrecision, SamProposer
from rimjax.models.stable_diffusion import DeferredGenerator
from rimjax.models.stable_diffusion.prompts import split_prompt
from rimjax.models.weight_record import check_weights
from rimjax.presets.catalogue import (
    PRESETS,
    Preset,
)
from rimjax.presets.stages import (
    Precision,
    find_diffusion_weights,
    load_encoder,
    load_proposer,
    load_sam,
)
from rimjax.settings import CONFIGURATIONS
from rimjax.weights.sources import RANDOM

if TYPE_CHECKING:
    from rimjax.models.image_text import ImageTextMatcher

RANDOM_WEIGHTS = f" ({RANDOM})"
"""Follows the preset's name in results and banks of a self-test."""

Scheduler = Literal["dpmsolver++", "ddim", "pndm"]

PNDM_STEPS = 50
"""Steps of PNDM unless others are chosen: Stable Diffusion 1.4's own default."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file or folder of a preset.

    Attributes:
        stage: "generator", "masker", "encoder" or "proposer".
        path: where it is looked for.
        state: "present" or "missing".
        remedy: how to get it if it is missing.
    """

    stage: str
    path: str
    state: str
    remedy: str


def locate_weights(preset: str, weights_dir: str | Path | None = None) -> Path:
    """Return the folder of a preset's weights.

    It is in the package for `mini`; otherwise below `weights_dir`, the environment variable
    RIMJAX_WEIGHTS, or the user's data folder.
    """
    if preset == "mini":
        return Path(ported_weights.__file__).parent / "mini"
    from platformdirs import user_data_path

    root = weights_dir or os.environ.get("RIMJAX_WEIGHTS") or user_data_path("rimjax")
    return Path(root) / preset


def list_weights(
    preset: str,
    weights_dir: str | Path | None = None,
    *,
    generator: str | None = None,
    masker: str | None = None,
    encoder: str | None = None,
    proposer: str | None = None,
) -> list[WeightFile]:
    """List the weights of a preset's stages; the choices are those of `load_preset`."""
    folder, files = locate_weights(preset, weights_dir), []
    for stage, (name, choice) in _choose(preset, generator, masker, encoder, proposer).items():
        place = choice if isinstance(choice, str) else getattr(choice, "path", None)
        if place is None:  # the UNet's are the generator's, and pixels have no weights
            continue
        path, remedy = folder / place, f"rimjax weights download {name}"
        if preset == "mini":
            remedy = "part of the package: install rimjax again"
        state, remedy = ("present", "") if path.exists() else ("missing", remedy)
        files.append(WeightFile(stage, str(path), state, remedy))
    return files


def _choose(preset: str, *names: str | None) -> dict[str, tuple[str, Any]]:
    """Map each stage to the chosen name and the preset's entry; no proposer unless chosen."""
    chosen = {}
    for stage, name in zip(("generator", "masker", "encoder", "proposer"), names, strict=True):
        choices = getattr(PRESETS[preset], f"{stage}s")
        if stage == "proposer" and name is None:
            continue
        name = next(iter(choices)) if name is None else name
        if name not in choices:
            available = ", ".join(choices)
            raise ValueError(f"{stage} must be one of {available} in {preset!r}, got {name!r}")
        chosen[stage] = name, choices[name]
    return chosen


def load_preset(
    name: str,
    weights_dir: str | Path | None = None,
    *,
    generator: str | None = None,
    masker: str | None = None,
    encoder: str | None = None,
    proposer: str | None = None,
    configuration: str = "rimjax",
    scheduler: Scheduler | None = None,
    steps: int | None = None,
    input_size: int | None = None,
    random_weights: bool = False,
    dtype: Precision | None = None,
    encoder_dtype: Precision = "float32",
    masker_dtype: SamPrecision = "float32",
    compile_masker: bool = False,
    points_per_side: int | None = None,
) -> Models:
    """Load the models of a preset. Stable Diffusion is loaded on first use.

    Args:
        name: "mini" or "paper".
        weights_dir: folder that holds `paper/`; default: the environment variable RIMJAX_WEIGHTS,
            or the user's data folder.
        generator: of `paper`, "sd-1.4" (default) or "sd-1.5".
        masker: of `paper`, "sam-vit-b" (default), "sam-vit-l" or "sam-vit-h".
        encoder: of `paper`, "dinov2-base" (default), "dinov2-small", "dinov2-large", "dinov3-base",
            "dinov3-small", "dinov3-large", "clip-vit-b-16", "mae-vit-b" or "sd-unet"; of `mini`,
            "mini" (default), "mini-clip", "mini-mae" or "mini-unet".
        proposer: proposes regions instead of SAM: "maskformer" of `paper` or "mini-maskformer" of
            `mini`; or "pixels", which are named by the encoder's features without regions.
        configuration: "rimjax", or "printed" (alias "paper") for Eq. 6 to 10 to the letter; see
            `rimjax.settings.CONFIGURATIONS`.
        scheduler: sampler that draws images, "dpmsolver++" (default), "ddim", or "pndm", which is
            Stable Diffusion 1.4's own.
        steps: steps of the sampler; default: the preset's, but 50 with "pndm".
        input_size: side in pixels that the encoder resizes images to, a multiple of its patch size;
            default: the preset's.
        random_weights: of `paper`, a self-test without weight files: shapes, time and memory are
            real, results mean nothing, and every proposal is kept.
        dtype: dtype of the generator; default: float32, but bfloat16 for `paper` on an accelerator.
        encoder_dtype: dtype of the encoder. Features come out as float32, and matching is always
            float32.
        masker_dtype: dtype of SAM; "bfloat16" and "float16" are meant for GPUs and change a few
            masks.
        compile_masker: compile SAM's image encoder, once, by `torch.compile`.
        points_per_side: points on a side of SAM's grid of prompts for regions; half as many take a
            quarter of the decoder's time and find fewer masks. Default: 32, the paper's; 10 of
            `mini`.

    Raises:
        ValueError: there is no such preset or choice, or a weight file holds another model.
        FileNotFoundError: weights are missing; the message lists all of them with a remedy.
        ImportError: the `pipeline` extra is missing.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    if random_weights and name == "mini":
        raise ValueError("random_weights must be False for mini, whose weights are in the package")
    preset = PRESETS[name]
    if configuration not in CONFIGURATIONS:
        available = ", ".join(CONFIGURATIONS)
        raise ValueError(f"configuration must be one of {available}, got {configuration!r}")
    for argument, value, choices in (
        ("encoder_dtype", encoder_dtype, get_args(Precision)),
        ("masker_dtype", masker_dtype, get_args(SamPrecision)),
    ):
        if value not in choices:
            raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
    names = {"generator": generator, "masker": masker, "encoder": encoder, "proposer": proposer}
    files = list_weights(name, weights_dir, **names)
    if not random_weights:
        _check_present(name, files)
    if dtype is None:
        import jax

        dtype = "bfloat16" if name == "paper" and jax.default_backend() != "cpu" else "float32"
    chosen = _choose(name, *names.values())
    choices = {stage: choice for stage, (_, choice) in chosen.items()}
    sources = {stage: RANDOM if random_weights else entry for stage, (entry, _) in chosen.items()}
    paths = {file.stage: None if random_weights else Path(file.path) for file in files}
    if steps is None:
        steps = PNDM_STEPS if scheduler == "pndm" else preset.diffusion.steps
    scheduler = scheduler or preset.diffusion.scheduler
    diffusion = replace(preset.diffusion, dtype=dtype, steps=steps, scheduler=scheduler)
    deferred = DeferredGenerator(
        find_diffusion_weights(paths["generator"]), diffusion, sources["generator"]
    )
    proposals = preset.proposals
    if points_per_side is not None:
        if proposer is not None:
            raise ValueError(
                f"points_per_side must be left out with {proposer!r}, which takes no points"
            )
        proposals = replace(proposals, points_per_side=points_per_side)
    choice = choices["encoder"]
    if input_size is not None:
        choice = replace(choice, input_size=input_size)
    features = load_encoder(
        paths.get("encoder"), choice, encoder_dtype, deferred, sources["encoder"]
    )
    sam, proposals = load_sam(
        paths["masker"], choices["masker"], proposals, masker_dtype, compile_masker
    )
    if proposer is None:
        regions: Proposer = SamProposer(sam, proposals)
    else:
        regions = load_proposer(paths.get("proposer"), choices["proposer"])
    return Models(
        name=name + RANDOM_WEIGHTS if random_weights else name,
        generator=deferred,
        masker=SamMasker(sam, source=sources["masker"]),
        proposer=regions,
        encoder=features,
        references=CONFIGURATIONS[configuration].adjust(preset.references),
        segmentation=CONFIGURATIONS[configuration].segmentation,
        calibration=_load_calibration(locate_weights(name, weights_dir), preset),
    )


def check_words(preset: str, prompts: Iterable[str]) -> None:
    """Refuse class names and prompts with words that a preset doesn't know, without loading it.

    Args:
        preset: its name.
        prompts: as of `Generator.generate`.

    Raises:
        ValueError: a preset of few words doesn't know one; the message lists its class names.
    """
    choice = PRESETS.get(preset)
    if choice is None or (vocabulary := choice.diffusion.vocabulary) is None:
        return
    file = locate_weights(preset) / next(iter(choice.generators.values())) / "tokenizer"
    known = json.loads((file / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for text in prompts:
        prompt, (start, stop) = split_prompt(text, "{}")
        wrong = [word for word in prompt.lower().split() if word not in known]
        if prompt[start:stop].strip().lower() not in vocabulary:
            wrong = [prompt[start:stop]]
        if wrong:
            raise ValueError(
                f"classes must use words that the preset {preset} knows, {', '.join(vocabulary)}, "
                f"got {wrong[0]!r}; --preset paper draws others"
            )


def _load_calibration(folder: Path, preset: Preset) -> Calibration | None:
    """Load a preset's calibration; None before experiments/mini/calibrate.py has measured it."""
    if preset.calibration is None or not (folder / preset.calibration).exists():
        return None
    check_weights(folder / preset.calibration)
    known = load_calibration(folder / preset.calibration)
    return replace(known, classes=preset.diffusion.vocabulary)


def _check_present(preset: str, files: list[WeightFile]) -> None:
    missing = [f"{file.path} ({file.remedy})" for file in files if file.state == "missing"]
    if missing:
        raise FileNotFoundError(
            f"preset {preset!r} lacks weights: {'; '.join(missing)}. RIMJAX_WEIGHTS moves the "
            "folder; preset 'mini' needs no download"
        )


def load_image_text(preset: str, weights_dir: str | Path | None = None) -> ImageTextMatcher:
    """Load the preset's CLIP, both towers, for the image-text baseline (Table 2, row 1).

    Raises:
        FileNotFoundError: its weights are missing; the message has the remedy.
        ValueError: they are damaged.
        ImportError: the `pipeline` extra is missing.
    """
    from rimjax.models.image_text import ImageTextMatcher

    choice = PRESETS[preset].image_text
    path = locate_weights(preset, weights_dir) / choice.path
    if not path.exists():
        remedy = "rimjax weights download clip-image-text"
        raise FileNotFoundError(f"{path}: the image-text baseline lacks its weights; {remedy}")
    check_weights(path)
    return ImageTextMatcher(path, choice.mean, choice.std)
