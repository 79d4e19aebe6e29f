"""Port a whole Stable Diffusion: from PyTorch modules, or from a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ported_weights import stable_diffusion
from ported_weights.checkpoints import read_state_dict
from rimjax.files import parse_json
from rimjax.models.stable_diffusion.attention import import_libraries
from rimjax.models.stable_diffusion.checkpoint import (
    MODELS,
    Checkpoint,
    compute_shapes,
    save_part,
)
from rimjax.models.transformers_folder import load_tokenizer

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def port_modules(
    unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any
) -> Checkpoint:
    """Port PyTorch modules to a float32 Flax checkpoint; `checkpoint.save` writes it.

    Args:
        unet: diffusers' UNet2DConditionModel; its numbers of channels must be multiples of 32,
            which Flax's GroupNorm demands.
        vae: diffusers' AutoencoderKL, with `config.scaling_factor`.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: a fast tokenizer.
        scheduler: any diffusers scheduler with the training's noise schedule; its betas and
            prediction type are used.

    Raises:
        ValueError: the weights don't fit the Flax models; the message lists every mismatch.
        ImportError: diffusers, transformers or flax is missing.
    """
    configs = {
        "unet": _parse_config(unet.to_json_string()),
        "vae": _parse_config(vae.to_json_string()),
        "text_encoder": _parse_config(text_encoder.config.to_json_string(use_diff=False)),
        "scheduler": _parse_config(scheduler.to_json_string()),
    }
    models = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    params = {part: _port(part, configs[part], models[part].state_dict()) for part in MODELS}
    return Checkpoint(configs, params, tokenizer)


def port_folder(source: Path, directory: Path) -> None:
    """Port a diffusers folder, such as CompVis/stable-diffusion-v1-4, for `checkpoint.read`.

    Weights may be safetensors or .bin, of 32 or 16 bits (converted to float32, which is exact). A
    single model at a time is in memory, and of safetensors only the array being written.

    Args:
        source: the folder; nothing is downloaded here.
        directory: where to write.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged or holds code, or its weights don't fit the model; the message
            begins with the file's path.
    """
    import_libraries()  # first, so that the error names what is missing and imports stay quiet
    tokenizer = load_tokenizer(_check_exists(source / "tokenizer"), "Stable Diffusion")
    schedule = _read_schedule(source / "scheduler" / "scheduler_config.json")
    save_part("scheduler", schedule, None, directory)
    for part in MODELS:
        config_file, weights = source / part / "config.json", _find_weights(source / part)
        config, state_dict = _read_config(config_file), read_state_dict(weights)
        try:
            save_part(part, config, _port(part, config, state_dict), directory)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:  # raised by the libraries
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{config_file}: not a config of such a model ({reason})") from error
    tokenizer.save_pretrained(directory / "tokenizer")


def _port(part: str, config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return stable_diffusion.port(part, state_dict, compute_shapes(part, config))


def _check_exists(path: Path) -> Path:
    if not path.exists():
        parts = "unet, vae, text_encoder, tokenizer and scheduler"
        raise FileNotFoundError(f"{path}: missing; a diffusers folder has {parts}")
    return path


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return _parse_config(_check_exists(path).read_text(encoding="utf-8"))
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); get it again") from error


def _read_schedule(path: Path) -> dict[str, Any]:
    """Read a scheduler's config; diffusers would fill gaps in it with its own defaults."""
    config = _read_config(path)
    for name in ("num_train_timesteps", "beta_start", "beta_end"):
        value = config.get(name)
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{path}: {name} must be a positive number, got {value!r}")
    betas = config.get("beta_schedule")
    if betas not in _BETAS:
        expected = f"beta_schedule must be one of {', '.join(_BETAS)}"
        raise ValueError(f"{path}: {expected}, got {betas!r}")
    return config


def _find_weights(folder: Path) -> Path:
    """Return a model's weight file: 32 bits before 16, safetensors before pickles."""
    if folder.name == "text_encoder":
        files = ("model{}.safetensors", "pytorch_model{}.bin")
    else:
        files = ("diffusion_pytorch_model{}.safetensors", "diffusion_pytorch_model{}.bin")
    names = [file.format(half) for half in ("", ".fp16") for file in files]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: has none of {', '.join(names)}")


def _parse_config(config: str) -> dict[str, Any]:
    """Parse a config, without the path that the model was read from."""
    return {key: value for key, value in parse_json(config).items() if key != "_name_or_path"}
