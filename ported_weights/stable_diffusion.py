"""Stable Diffusion's weights from PyTorch (diffusers' UNet2DConditionModel and AutoencoderKL, transformers' CLIPTextModel) to Flax.

The renaming is the libraries' own; what they pass over in silence (a key too many, too few, of another shape) raises here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from rimjax.models.diffusion import Checkpoint, save
from rimjax.models.flax_diffusers import libraries


def port(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, directory: str | Path | None = None) -> Checkpoint:
    """A Flax checkpoint from PyTorch modules, float32; written to a directory if one is given, for `diffusion.load`.

    Args:
        unet: diffusers' UNet2DConditionModel; its channel numbers must be multiples of 32 (Flax's GroupNorm demands it).
        vae: diffusers' AutoencoderKL; `config.scaling_factor` belongs to it.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: a fast one.
        scheduler: any diffusers scheduler with the noise schedule of the training; its betas and prediction type are used.
        directory: where to write.

    Raises:
        ValueError: weights that the Flax model has no place for, or places left empty; the message lists them.
        ImportError: diffusers, transformers or flax is missing.
    """
    configs = {
        "unet": _plain(unet.to_json_string()),
        "vae": _plain(vae.to_json_string()),
        "text_encoder": _plain(text_encoder.config.to_json_string(use_diff=False)),
        "scheduler": _plain(scheduler.to_json_string()),
    }
    params = {
        "unet": _convert_diffusers(libraries().FlaxUNet2DConditionModel.from_config(configs["unet"]), unet.state_dict()),
        "vae": _convert_diffusers(libraries().FlaxAutoencoderKL.from_config(configs["vae"]), vae.state_dict()),
        "text_encoder": _convert_text_encoder(configs["text_encoder"], text_encoder.state_dict()),
    }
    checkpoint = Checkpoint(configs, params, tokenizer)
    if directory is not None:
        save(checkpoint, directory)
    return checkpoint


def port_folder(source: str | Path, directory: str | Path) -> Checkpoint:
    """Port a downloaded diffusers folder, such as CompVis/stable-diffusion-v1-4, and write it for `diffusion.load`.

    Raises:
        FileNotFoundError: there is no such folder; nothing is downloaded here.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"{source}: no such folder; download CompVis/stable-diffusion-v1-4 there first")
    library = libraries()  # first, so that the next imports are quiet
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    return port(
        UNet2DConditionModel.from_pretrained(source, subfolder="unet", low_cpu_mem_usage=False),
        AutoencoderKL.from_pretrained(source, subfolder="vae", low_cpu_mem_usage=False),
        CLIPTextModel.from_pretrained(source, subfolder="text_encoder"),
        library.AutoTokenizer.from_pretrained(Path(source) / "tokenizer"),
        PNDMScheduler.from_pretrained(source, subfolder="scheduler"),
        directory,
    )


def _plain(config: str) -> dict[str, Any]:
    """A config without the path that the model was read from."""
    return {key: value for key, value in json.loads(config).items() if key != "_name_or_path"}


def _convert_diffusers(model: Any, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    shapes = jax.eval_shape(model.init_weights, jax.random.key(0))
    stand_in = SimpleNamespace(init_weights=lambda key: shapes)  # all that is asked of the model, but in no time
    return _checked(convert_pytorch_state_dict_to_flax(dict(state_dict), stand_in), shapes)


def _convert_text_encoder(config: dict[str, Any], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    library = libraries()
    model = library.FlaxCLIPTextModel(library.CLIPTextConfig.from_dict(config), _do_init=False)
    stand_in = SimpleNamespace(params=model.params_shape_tree, base_model_prefix=model.base_model_prefix)
    return _checked(convert_pytorch_state_dict_to_flax(dict(state_dict), stand_in), model.params_shape_tree)


def _checked(params: Any, shapes: Any) -> dict[str, Any]:
    from flax.core import unfreeze
    from flax.traverse_util import flatten_dict

    leaves: list[dict[str, Any]] = [flatten_dict(unfreeze(tree), sep="/") for tree in (params, shapes)]
    found, wanted = ({key: f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in tree.items()} for tree in leaves)
    problems = [f"{key}: the model has no such weight" for key in sorted(found.keys() - wanted.keys())]
    problems += [f"{key}: no source key fills it" for key in sorted(wanted.keys() - found.keys())]
    problems += [
        f"{key}: {found[key]}, expected {wanted[key]}" for key in sorted(found.keys() & wanted.keys()) if found[key] != wanted[key]
    ]
    if problems:
        raise ValueError("state_dict: doesn't fit the Flax model:\n  " + "\n  ".join(problems))
    return jax.tree.map(np.asarray, params)
