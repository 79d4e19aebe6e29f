"""From a catalogue entry and its weight file to the model of a stage."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rimjax.models import sam
from rimjax.models.maskformer import MaskFormerProposer
from rimjax.models.protocols import Encoder, Pixels, Proposer
from rimjax.models.sam import ProposalConfig, Sam, SamPrecision
from rimjax.models.stable_diffusion import DeferredGenerator, StoredWeights
from rimjax.models.stable_diffusion.generator import WeightSource
from rimjax.models.weight_record import check_weights
from rimjax.presets.catalogue import EncoderChoice, MaskerChoice, ProposerChoice, UNetChoice

Precision = Literal["float32", "bfloat16"]


def find_diffusion_weights(path: Path | None) -> WeightSource:
    """Return where Stable Diffusion's weights come from; without a path they are random."""
    if path is not None:
        return StoredWeights(path)
    from rimjax.models.random_weights import RandomWeights

    return RandomWeights()


def load_sam(
    path: Path | None,
    choice: MaskerChoice,
    proposals: ProposalConfig,
    dtype: SamPrecision,
    compiled: bool,
) -> tuple[Sam, ProposalConfig]:
    """Load a SAM, of random weights if there is no path, and how it proposes."""
    load = partial(sam.load, config=choice.sam, dtype=dtype, compiled=compiled)
    if path is None:  # a random decoder's masks all fail the thresholds: keep them all
        proposals = replace(proposals, pred_iou_thresh=0, stability_score_thresh=0)
        return load(None), proposals
    from ported_weights.checkpoints import read_state_dict

    check_weights(path)
    state = read_state_dict(path)
    try:
        return load(state), proposals
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_proposer(path: Path | None, choice: ProposerChoice) -> Proposer:
    """Load a proposer other than SAM."""
    if choice.path is None:
        return Pixels()
    if path is None:
        raise ValueError("random_weights must be False with MaskFormer, which has no self-test")
    check_weights(path)
    return MaskFormerProposer(path, choice.config)


def load_encoder(
    path: Path | None,
    choice: EncoderChoice | UNetChoice,
    dtype: Precision,
    generator: DeferredGenerator,
    source: str,
) -> Encoder:
    """Load an encoder, of random weights if there is no path; `source` names its weights.

    The generator's UNet as an encoder has the encoder's dtype, whatever it draws in.
    """
    if isinstance(choice, UNetChoice):
        from rimjax.models.stable_diffusion.unet_encoder import UNetEncoder

        if dtype != generator.config.dtype:
            generator = replace(generator, config=replace(generator.config, dtype=dtype))
        return UNetEncoder(generator, **asdict(choice))
    from rimjax.models.vit import ViTConfig
    from rimjax.models.vit_encoder import ViTEncoder, load_vit

    if path is None:
        from rimjax.models import random_weights

        config = ViTConfig(**choice.vit or {})
        params = random_weights.make_vit(config)
    else:
        check_weights(path)
        params, config = load_vit(path)
        expected = config if choice.vit is None else ViTConfig(**choice.vit)
        _check_architecture(path, config, expected)
    config = replace(config, dtype=dtype)
    return ViTEncoder(params, config, choice.input_size, choice.mean, choice.std, source=source)


def _check_architecture(path: Path, config: Any, expected: Any) -> None:
    for field in (
        *("hidden_size", "num_layers", "num_heads", "patch_size"),
        *("num_registers", "layer_scale", "pre_norm", "rope_theta"),
    ):
        ours, theirs = getattr(expected, field), getattr(config, field)
        if ours != theirs:
            raise ValueError(
                f"{path}: {field} must be {ours}, got {theirs}: another model's weights"
            )
