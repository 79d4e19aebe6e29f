"""A Stable Diffusion in Flax and its folder on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rimjax.models.mapped import load_mapped, save_mapped
from rimjax.models.pretrained import load_tokenizer

Params = Mapping[str, Any]
MODELS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Stable Diffusion in Flax, not yet built.

    Attributes:
        configs: of "unet", "vae", "text_encoder" and "scheduler", as diffusers and transformers write them.
        params: of "unet", "vae" and "text_encoder".
        tokenizer: a fast one, a `transformers.PreTrainedTokenizerFast`.
    """

    configs: Mapping[str, dict[str, Any]]
    params: Mapping[str, Params]
    tokenizer: Any


def save(checkpoint: Checkpoint, directory: str | Path) -> None:
    """Write a checkpoint: `<model>/config.json` and `<model>/flax_model.safetensors` (keys joined by "/") for "unet", "vae" and
    "text_encoder", `scheduler/scheduler_config.json`, and `tokenizer/`."""
    directory = Path(directory)
    for name, config in checkpoint.configs.items():
        save_part(name, config, checkpoint.params.get(name), directory)
    checkpoint.tokenizer.save_pretrained(directory / "tokenizer")


def save_part(name: str, config: Mapping[str, Any], params: Params | None, directory: str | Path) -> None:
    """Write the config and the parameters, if there are any, of "unet", "vae", "text_encoder" or "scheduler" as `save` does."""
    from flax.traverse_util import flatten_dict

    path = Path(directory) / name / _config_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if params is not None:
        save_mapped(flatten_dict(dict(params), sep="/"), path.with_name("flax_model.safetensors"))


def read(directory: str | Path) -> Checkpoint:
    """The checkpoint that `save` wrote; its weights are views of the files until they go to the device.

    Raises:
        FileNotFoundError: a file of the layout is missing.
        ValueError: a config, a weight file or the tokenizer is damaged.
        ImportError: flax or transformers is missing.
    """
    from flax.traverse_util import unflatten_dict

    directory = Path(directory)
    files = {name: directory / name / _config_name(name) for name in (*MODELS, "scheduler")}
    weights = {name: directory / name / "flax_model.safetensors" for name in MODELS}
    for path in (*files.values(), *weights.values(), directory / "tokenizer"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such part of a Stable Diffusion; ported_weights.stable_diffusion writes this layout")
    return Checkpoint(
        configs={name: _read_config(path) for name, path in files.items()},
        params={name: unflatten_dict(load_mapped(path), sep="/") for name, path in weights.items()},
        tokenizer=load_tokenizer(directory / "tokenizer", "Stable Diffusion"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); port or download the weights again") from error


def _config_name(model: str) -> str:
    return "scheduler_config.json" if model == "scheduler" else "config.json"
