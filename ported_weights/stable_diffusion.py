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
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from ported_weights.files import read_state_dict
from rimjax.models.checkpoint import MODELS, Checkpoint, save, save_part
from rimjax.models.flax_diffusers import libraries
from rimjax.models.pretrained import load_tokenizer

_POSITIONS = ("text_model.embeddings.position_ids", "embeddings.position_ids")  # 0, 1, 2, ...: transformers no longer saves them
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


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
    models = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    params = {name: _convert(name, configs[name], model.state_dict()) for name, model in models.items()}
    checkpoint = Checkpoint(configs, params, tokenizer)
    if directory is not None:
        save(checkpoint, directory)
    return checkpoint


def port_folder(source: str | Path, directory: str | Path) -> None:
    """Port a downloaded diffusers folder, such as CompVis/stable-diffusion-v1-4, and write it for `diffusion.load`.

    Weights may be safetensors or .bin, of 32 or 16 bits (made float32, which is exact). One model at a time is in memory, and of
    safetensors only what is being written.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing; nothing is downloaded here.
        ValueError: a file is damaged or holds code, or its weights aren't the model's; the message names the file.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; download CompVis/stable-diffusion-v1-4 there first")
    libraries()  # first, so that what is missing is named, and the next imports are quiet
    tokenizer = load_tokenizer(_there(source / "tokenizer"), "Stable Diffusion")
    save_part("scheduler", _schedule(source / "scheduler" / "scheduler_config.json"), None, directory)
    for name in MODELS:
        config, weights = _config(source / name / "config.json"), _weights(source / name)
        state_dict = {key: tensor for key, tensor in read_state_dict(weights).items() if key not in _POSITIONS}
        try:
            save_part(name, config, _convert(name, config, state_dict), directory)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:  # the libraries' own, of a setting that means nothing to them
            raise ValueError(f"{source / name / 'config.json'}: no config of such a model ({type(error).__name__}: {error})") from error
    tokenizer.save_pretrained(Path(directory) / "tokenizer")


def _there(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; a diffusers folder has unet, vae, text_encoder, tokenizer, scheduler")
    return path


def _config(path: Path) -> dict[str, Any]:
    try:
        return _plain(_there(path).read_text())
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error


def _schedule(path: Path) -> dict[str, Any]:
    """A scheduler's config that says how noise was added in training: what it leaves out would be filled with diffusers' own defaults."""
    config = _config(path)
    for name in ("num_train_timesteps", "beta_start", "beta_end"):
        if not isinstance(config.get(name), int | float) or not config[name] > 0:
            raise ValueError(f"{path}: {name}: expected a positive number, got {config.get(name)!r}")
    if config.get("beta_schedule") not in _BETAS:
        raise ValueError(f"{path}: beta_schedule: expected one of {', '.join(_BETAS)}, got {config.get('beta_schedule')!r}")
    return config


def _weights(folder: Path) -> Path:
    """The weight file of a model: 32 bits before 16, safetensors before pickles."""
    stems = ("model", "pytorch_model") if folder.name == "text_encoder" else ("diffusion_pytorch_model", "diffusion_pytorch_model")
    names = [f"{stem}{half}{suffix}" for half in ("", ".fp16") for stem, suffix in zip(stems, (".safetensors", ".bin"), strict=True)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: has none of {', '.join(names)}")


def _plain(config: str) -> dict[str, Any]:
    """A config without the path that the model was read from."""
    return {key: value for key, value in json.loads(config).items() if key != "_name_or_path"}


def _convert(name: str, config: dict[str, Any], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The Flax tree of "unet", "vae" or "text_encoder", as views of the state dict where a 32-bit float is one."""
    library = libraries()
    widened = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state_dict.items()}
    if name == "text_encoder":
        return _convert_text_encoder(config, widened)
    from diffusers.models.modeling_flax_pytorch_utils import rename_key, rename_key_and_reshape_tensor

    kind = library.FlaxUNet2DConditionModel if name == "unet" else library.FlaxAutoencoderKL
    shapes = flatten_dict(unfreeze(jax.eval_shape(kind.from_config(config).init_weights, jax.random.key(0))))
    found: dict[tuple[str, ...], np.ndarray] = {}
    for key, tensor in widened.items():
        path = tuple(rename_key(key).split("."))
        try:
            path, array = rename_key_and_reshape_tensor(path, tensor.numpy(), shapes)
        except AssertionError:  # the library's word for an attention weight of the wrong shape, whose name it doesn't say
            raise ValueError(f"state_dict: doesn't fit the Flax model: {key} has the wrong shape, {list(tensor.shape)}") from None
        if path in found:
            raise ValueError(f"state_dict: doesn't fit the Flax model: {key} is the second key that fills {'/'.join(path)}")
        found[path] = array
    return _checked(unflatten_dict(found), unflatten_dict(shapes))


def _convert_text_encoder(config: dict[str, Any], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    library = libraries()
    model = library.FlaxCLIPTextModel(library.CLIPTextConfig.from_dict(config), _do_init=False)
    stand_in = SimpleNamespace(params=model.params_shape_tree, base_model_prefix=model.base_model_prefix)
    params = _checked(convert_pytorch_state_dict_to_flax(dict(state_dict), stand_in), model.params_shape_tree)
    if (more := len(state_dict) - len(jax.tree.leaves(params))) > 0:
        raise ValueError(f"state_dict: doesn't fit the Flax model: {more} keys too many; they name a weight a second time")
    return params


def _checked(params: Any, shapes: Any) -> dict[str, Any]:
    leaves: list[dict[str, Any]] = [flatten_dict(unfreeze(tree), sep="/") for tree in (params, shapes)]
    found, wanted = ({key: f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in tree.items()} for tree in leaves)
    problems = [f"{key}: the model has no such weight" for key in sorted(found.keys() - wanted.keys())]
    problems += [f"{key}: no source key fills it" for key in sorted(wanted.keys() - found.keys())]
    problems += [
        f"{key}: {found[key]}, expected {wanted[key]}" for key in sorted(found.keys() & wanted.keys()) if found[key] != wanted[key]
    ]
    problems += [f"{key}: holds NaN or infinity" for key, leaf in leaves[0].items() if not np.isfinite(leaf).all()]
    if problems:
        raise ValueError("state_dict: doesn't fit the Flax model:\n  " + "\n  ".join(problems))
    return jax.tree.map(np.asarray, params)
