"""DINOv2's weights for `rimjax.models.vit`, from either published layout.

The hub's (transformers' Dinov2Model and Dinov2WithRegistersModel) splits queries, keys and values; facebookresearch's `.pth` fuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ported_weights.rules import Rule, apply, convolution, first, linear
from rimjax.models.vit import ViTConfig, param_shapes


def port(state_dict: Mapping[str, Any], num_heads: int | None = None) -> tuple[dict[str, Any], ViTConfig]:
    """Parameters and config of a DINOv2 checkpoint; what lies behind the last layer's keys is left out.

    Args:
        state_dict: {key: NumPy array or torch tensor on the CPU}, float32, in either layout; the layout is seen from the keys.
        num_heads: default: one for every 64 features, as in all published models.

    Returns:
        params: nested dicts of NumPy arrays for `vit.last_layer_keys`.
        config: inferred from the shapes; its `position_rule` is that of the layout (`registers` where there are register tokens).

    Raises:
        ValueError: neither layout, or a key is missing, unknown, or of the wrong shape or dtype; the message lists them all.
    """
    hub = "embeddings.cls_token" in state_dict
    names = _HUB_NAMES if hub else _FACEBOOK_NAMES
    absent = [name for name in (names["patch"], names["position"], names["first_norm"]) if name not in state_dict]
    if absent:
        raise ValueError(f"state_dict: expected DINOv2 in the hub's or facebookresearch's layout; missing: {', '.join(absent)}")
    config = _config(state_dict, names, num_heads, hub)
    rules = (_hub_rules if hub else _facebook_rules)(config.num_layers - 1)
    return apply(rules, state_dict, param_shapes(config)), config


_HUB_NAMES = {
    "patch": "embeddings.patch_embeddings.projection.weight",
    "position": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens",
    "layers": "encoder.layer.",
    "first_norm": "encoder.layer.0.norm1.weight",
    "first_mlp": "encoder.layer.0.mlp.fc1.weight",
}
_FACEBOOK_NAMES = {
    "patch": "patch_embed.proj.weight",
    "position": "pos_embed",
    "registers": "register_tokens",
    "layers": "blocks.",
    "first_norm": "blocks.0.norm1.weight",
    "first_mlp": "blocks.0.mlp.fc1.weight",
}


def _config(state_dict: Mapping[str, Any], names: Mapping[str, str], num_heads: int | None, hub: bool) -> ViTConfig:
    hidden, _, _, patch = state_dict[names["patch"]].shape
    if num_heads is None and hidden % 64:
        raise ValueError(f"num_heads: must be given where the hidden size ({hidden}) is no multiple of 64")
    positions = state_dict[names["position"]].shape[1] - 1
    registers = state_dict[names["registers"]].shape[1] if names["registers"] in state_dict else 0
    mlp = state_dict[names["first_mlp"]].shape[0] if names["first_mlp"] in state_dict else 4 * hidden
    start = len(names["layers"])
    return ViTConfig(
        hidden_size=hidden,
        num_layers=1 + max(int(key[start:].split(".")[0]) for key in state_dict if key.startswith(names["layers"])),
        num_heads=num_heads or hidden // 64,
        mlp_ratio=mlp / hidden,
        patch_size=patch,
        image_size=round(positions**0.5) * patch,
        num_registers=registers,
        position_rule="registers" if registers else "transformers" if hub else "facebookresearch",
    )


def _thirds(array: np.ndarray) -> Sequence[np.ndarray]:
    return [third.T for third in np.split(array, 3)]


def _middle_third(array: np.ndarray) -> Sequence[np.ndarray]:
    return (np.split(array, 3)[1].T,)


def _hub_rules(last: int) -> list[Rule]:
    early = rf"encoder\.layer\.(?!{last}\.)(\d+)\."
    return [
        Rule(r"embeddings\.cls_token", ("class_token",), first),
        Rule(r"embeddings\.position_embeddings", ("position_embedding",), first),
        Rule(r"embeddings\.register_tokens", ("register_tokens",), first),
        Rule(r"embeddings\.patch_embeddings\.projection\.weight", ("patch_embedding/kernel",), convolution),
        Rule(r"embeddings\.patch_embeddings\.projection\.bias", ("patch_embedding/bias",)),
        Rule(r"encoder\.layer\.(\d+)\.norm1\.weight", (r"layers_\1/norm1/scale",)),
        Rule(r"encoder\.layer\.(\d+)\.norm1\.bias", (r"layers_\1/norm1/bias",)),
        Rule(r"encoder\.layer\.(\d+)\.attention\.attention\.key\.weight", (r"layers_\1/key/kernel",), linear),
        Rule(r"encoder\.layer\.(\d+)\.attention\.attention\.key\.bias", (r"layers_\1/key/bias",)),
        Rule(early + r"attention\.attention\.(query|value)\.weight", (r"layers_\1/\2/kernel",), linear),
        Rule(early + r"attention\.attention\.(query|value)\.bias", (r"layers_\1/\2/bias",)),
        Rule(early + r"attention\.output\.dense\.weight", (r"layers_\1/out/kernel",), linear),
        Rule(early + r"attention\.output\.dense\.bias", (r"layers_\1/out/bias",)),
        Rule(early + r"layer_scale([12])\.lambda1", (r"layers_\1/scale\2",)),
        Rule(early + r"norm2\.weight", (r"layers_\1/norm2/scale",)),
        Rule(early + r"norm2\.bias", (r"layers_\1/norm2/bias",)),
        Rule(early + r"mlp\.(fc[12])\.weight", (r"layers_\1/\2/kernel",), linear),
        Rule(early + r"mlp\.(fc[12])\.bias", (r"layers_\1/\2/bias",)),
        # Not used: what only pre-training needs, and what comes after the last layer's keys.
        Rule(r"embeddings\.mask_token"),
        Rule(rf"encoder\.layer\.{last}\.attention\.(attention\.(query|value)|output\.dense)\.(weight|bias)"),
        Rule(rf"encoder\.layer\.{last}\.(layer_scale[12]\.lambda1|(norm2|mlp\.fc[12])\.(weight|bias))"),
        Rule(r"layernorm\.(weight|bias)"),
    ]


def _facebook_rules(last: int) -> list[Rule]:
    early = rf"blocks\.(?!{last}\.)(\d+)\."
    kernels, biases = ([rf"layers_\1/{name}/{leaf}" for name in ("query", "key", "value")] for leaf in ("kernel", "bias"))
    return [
        Rule(r"cls_token", ("class_token",), first),
        Rule(r"pos_embed", ("position_embedding",), first),
        Rule(r"register_tokens", ("register_tokens",), first),
        Rule(r"patch_embed\.proj\.weight", ("patch_embedding/kernel",), convolution),
        Rule(r"patch_embed\.proj\.bias", ("patch_embedding/bias",)),
        Rule(r"blocks\.(\d+)\.norm1\.weight", (r"layers_\1/norm1/scale",)),
        Rule(r"blocks\.(\d+)\.norm1\.bias", (r"layers_\1/norm1/bias",)),
        Rule(early + r"attn\.qkv\.weight", tuple(kernels), _thirds),
        Rule(early + r"attn\.qkv\.bias", tuple(biases), _thirds),
        Rule(rf"blocks\.({last})\.attn\.qkv\.weight", (r"layers_\1/key/kernel",), _middle_third),
        Rule(rf"blocks\.({last})\.attn\.qkv\.bias", (r"layers_\1/key/bias",), _middle_third),
        Rule(early + r"attn\.proj\.weight", (r"layers_\1/out/kernel",), linear),
        Rule(early + r"attn\.proj\.bias", (r"layers_\1/out/bias",)),
        Rule(early + r"ls([12])\.gamma", (r"layers_\1/scale\2",)),
        Rule(early + r"norm2\.weight", (r"layers_\1/norm2/scale",)),
        Rule(early + r"norm2\.bias", (r"layers_\1/norm2/bias",)),
        Rule(early + r"mlp\.(fc[12])\.weight", (r"layers_\1/\2/kernel",), linear),
        Rule(early + r"mlp\.(fc[12])\.bias", (r"layers_\1/\2/bias",)),
        # Not used: what only pre-training needs, and what comes after the last layer's keys.
        Rule(r"mask_token"),
        Rule(rf"blocks\.{last}\.(ls[12]\.gamma|(attn\.proj|norm2|mlp\.fc[12])\.(weight|bias))"),
        Rule(r"norm\.(weight|bias)"),
    ]
