"""The weights of Stable Diffusion's three models, from PyTorch's state dicts to Flax's trees.

The renaming is that of diffusers and transformers; the mismatches that they ignore (a key too many,
a key too few, another shape) raise here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from ported_weights.rules import build_tree, check_fit, flatten_tree, to_host, widen

POSITION_IDS = ("text_model.embeddings.position_ids", "embeddings.position_ids")
"""0, 1, 2, ...: published files hold them, transformers no longer does."""


def port(part: str, state_dict: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Port a model of Stable Diffusion.

    Args:
        part: "unet" (diffusers' UNet2DConditionModel), "vae" (AutoencoderKL) or "text_encoder"
            (transformers' CLIPTextModel).
        state_dict: {key: torch tensor}, float32, float16 or bfloat16 (converted to
            float32, which is exact).
        shapes: the Flax model's tree of leaves with `shape` and `dtype`.

    Returns:
        Nested dicts of float32 NumPy arrays, views of the state dict where it is float32.

    Raises:
        ValueError: the weights don't fit the Flax model; the message lists every mismatch.
        ImportError: diffusers or transformers is missing.
    """
    tensors = {
        key: widen(to_host(value)) for key, value in state_dict.items() if key not in POSITION_IDS
    }
    rename = _rename_text_encoder if part == "text_encoder" else _rename_diffusers
    expected = flatten_tree(shapes)
    weights, problems = rename(tensors, shapes)
    check_fit(weights, expected, problems=problems)
    return build_tree(weights)


def _rename_diffusers(
    tensors: Mapping[str, Any], shapes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the weights by Flax path, and what is wrong."""
    from diffusers.models.modeling_flax_pytorch_utils import (
        rename_key,
        rename_key_and_reshape_tensor,
    )

    expected = {tuple(path.split("/")): leaf for path, leaf in flatten_tree(shapes).items()}
    weights: dict[str, Any] = {}
    problems = []
    for key, tensor in tensors.items():
        words = tuple(rename_key(key).split("."))
        try:
            words, array = rename_key_and_reshape_tensor(words, tensor.numpy(), expected)
        except AssertionError:  # diffusers asserts an attention weight's shape without its name
            problems.append(f"{key}: has the wrong shape, {list(tensor.shape)}")
            continue
        path = "/".join(words)
        if path in weights:
            problems.append(f"{key}: is the second key for {path}")
        weights[path] = array
    return weights, problems


def _rename_text_encoder(
    tensors: Mapping[str, Any], shapes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the weights by Flax path, and what is wrong."""
    from transformers import FlaxCLIPTextModel
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    model = SimpleNamespace(params=shapes, base_model_prefix=FlaxCLIPTextModel.base_model_prefix)
    tree: Any = convert_pytorch_state_dict_to_flax(dict(tensors), model)
    weights = {path: np.asarray(leaf) for path, leaf in flatten_tree(tree).items()}
    excess = len(tensors) - len(weights)
    return weights, [f"{excess} keys too many: they name a weight twice"] if excess else []
