"""A Stable Diffusion checkpoint in Flax and its folder on disk.

Weights are written array by array and read as views of the file: safetensors' own functions for
NumPy copy all arrays at once, twice when they write, and Stable Diffusion has 4.3 GB of them.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ported_weights.rules import build_tree, check_finite, flatten_tree
from rimjax.files import parse_json
from rimjax.models.protocols import CopiedByFields
from rimjax.models.stable_diffusion.attention import import_libraries
from rimjax.models.transformers_folder import load_tokenizer

Params = Mapping[str, Any]
_PLACING = threading.Lock()
MODELS = ("unet", "vae", "text_encoder")
_DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": jnp.bfloat16,
    "I64": "i8",
    "I32": "i4",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True, eq=False)
class Checkpoint(CopiedByFields):
    """Configs, weights and tokenizer of a Stable Diffusion in Flax.

    Attributes:
        configs: of "unet", "vae", "text_encoder" and "scheduler", as diffusers and transformers
            write them.
        params: of "unet", "vae" and "text_encoder".
        tokenizer: a fast tokenizer, a `transformers.PreTrainedTokenizerFast`.
    """

    configs: Mapping[str, dict[str, Any]]
    params: Mapping[str, Params]
    tokenizer: Any
    _placed: dict[str, Params] = field(default_factory=dict, init=False, repr=False)

    def place(self, dtype: str) -> Params:
        """Return all weights on the device in a dtype; they are kept there and shared."""
        with _PLACING:  # threads that ask at once place them once
            if dtype not in self._placed:
                self._placed[dtype] = jax.tree.map(
                    lambda array: jnp.asarray(array, jnp.dtype(dtype)), dict(self.params)
                )
            return self._placed[dtype]


def save(checkpoint: Checkpoint, directory: str | Path) -> None:
    """Write a checkpoint for `read`.

    The folder gets `<model>/config.json` and `<model>/flax_model.safetensors` (keys joined by "/")
    for "unet", "vae" and "text_encoder", `scheduler/scheduler_config.json`, and `tokenizer/`.
    """
    directory = Path(directory)
    for name, config in checkpoint.configs.items():
        save_part(name, config, checkpoint.params.get(name), directory)
    checkpoint.tokenizer.save_pretrained(directory / "tokenizer")


def save_part(
    name: str, config: Mapping[str, Any], params: Params | None, directory: str | Path
) -> None:
    """Write the config and the parameters, if any, of a model or of "scheduler" as `save` does."""
    path = _config_path(Path(directory), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
    if params is not None:
        write_safetensors(flatten_tree(params), path.with_name("flax_model.safetensors"))


def read(directory: str | Path) -> Checkpoint:
    """Read a folder that `save` wrote; weights are views of the files until they are placed.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config, a weight file or the tokenizer is damaged, or a weight is NaN or
            infinite.
        ImportError: torch or transformers is missing.
    """
    directory = Path(directory)
    configs = {name: _config_path(directory, name) for name in (*MODELS, "scheduler")}
    weights = {name: directory / name / "flax_model.safetensors" for name in MODELS}
    for path in (*configs.values(), *weights.values(), directory / "tokenizer"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: missing from a Stable Diffusion; port it again")
    return Checkpoint(
        configs={name: _read_config(path) for name, path in configs.items()},
        params={name: _read_params(path) for name, path in weights.items()},
        tokenizer=load_tokenizer(directory / "tokenizer", "Stable Diffusion"),
    )


def compute_shapes(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's tree of parameters as `jax.ShapeDtypeStruct` leaves; no weight is made.

    Args:
        part: "unet", "vae" or "text_encoder".
        config: the model's config.

    Raises:
        ImportError: diffusers, transformers or flax is missing.
    """
    library = import_libraries()
    if part == "text_encoder":
        text_config = library.CLIPTextConfig.from_dict(config)
        shapes = library.FlaxCLIPTextModel(text_config, _do_init=False).params_shape_tree
    else:
        kind = library.FlaxUNet2DConditionModel if part == "unet" else library.FlaxAutoencoderKL
        shapes = jax.eval_shape(kind.from_config(config).init_weights, jax.random.key(0))
    return build_tree(flatten_tree(shapes))


def write_safetensors(arrays: Mapping[str, Any], path: str | Path) -> None:
    """Write NumPy or JAX arrays as a safetensors file, copying one array at a time.

    Raises:
        ValueError: an array's dtype isn't among those supported here.
    """
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    for key, array in arrays.items():
        if array.dtype not in names:
            raise ValueError(f"{key} must be one of {', '.join(_DTYPES)}, got {array.dtype}")
    # The largest items first, so that all arrays stay aligned.
    ordered = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    header, offset = {}, 0
    for key in ordered:
        array, end = arrays[key], offset + arrays[key].nbytes
        about = {"dtype": names[array.dtype], "shape": list(array.shape)}
        header[key] = {**about, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in ordered:
            file.write(np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data)


def map_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file as read-only views, read from disk when used.

    The format's own library opens the file and checks it.

    Raises:
        ValueError: the file is damaged, or isn't a safetensors file.
        ImportError: torch is missing.
    """
    import torch

    views = {}
    try:
        with safe_open(path, framework="pt") as file:  # torch's tensors are views of the file
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                half = tensor.dtype == torch.bfloat16  # which torch can't show as NumPy's
                view = tensor.view(torch.int16).numpy() if half else tensor.numpy()
                views[key] = view.view(jnp.bfloat16) if half else view
                views[key].flags.writeable = False
    except (SafetensorError, TypeError, RuntimeError) as error:
        reason = f"truncated, or not a safetensors file ({error})"
        raise ValueError(f"{path}: {reason}; get it again") from error
    return views


def _read_params(path: Path) -> dict[str, Any]:
    arrays = map_safetensors(path)
    check_finite(path, arrays)
    return build_tree(arrays)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); port or download it again") from error


def _config_path(directory: Path, name: str) -> Path:
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return directory / name / file
