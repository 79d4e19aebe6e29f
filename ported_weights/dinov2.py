"""DINOv2's weights for the ViT, from either published layout.

The Hugging Face hub's layout (transformers' Dinov2Model and Dinov2WithRegistersModel) splits
queries, keys and values; facebookresearch's `.pth` fuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ported_weights import layouts
from ported_weights.layouts import FACEBOOK_RESEARCH, Layout
from ported_weights.rules import Rule, take_first
from ported_weights.vit import ViTConfig


def port(
    state_dict: Mapping[str, Any], num_heads: int | None = None
) -> tuple[dict[str, Any], ViTConfig]:
    """Port a DINOv2 checkpoint, up to the last layer's keys.

    Args:
        state_dict: {key: NumPy array or torch tensor}, float32, in either layout; the
            keys tell which.
        num_heads: default: a head for every 64 features, as in all published models.

    Returns:
        params: nested dicts of NumPy arrays for `rimjax.models.vit.last_layer_keys`.
        config: inferred from the keys and shapes; its `position_rule` is that of the layout
            ("registers" where there are register tokens). A checkpoint that lacks all register
            tokens, or its last layers, can't be told from one that never had them: compare
            `num_registers` and `num_layers` with what you expect.

    Raises:
        ValueError: the layout is unknown, or a key is missing, unknown, or of the wrong shape or
            dtype; the message lists every mismatch.
    """
    layout = layouts.detect_layout((_FACEBOOK, _HUB), state_dict)
    expected = "DINOv2 in the hub's or facebookresearch's layout"
    config = layouts.infer_config(layout, state_dict, num_heads, expected)
    registers = "embeddings.register_tokens" if layout is _HUB else "register_tokens"
    if registers in state_dict:
        count = layouts.get_shape(state_dict, registers, 3)[1]
        config = replace(config, num_registers=count, position_rule="registers")
    return layouts.port_state(layout, state_dict, config), config


_HUB = Layout(
    class_token="embeddings.cls_token",
    position_embedding="embeddings.position_embeddings",
    patch_embedding="embeddings.patch_embeddings.projection",
    layers="encoder.layer.",
    norms=("norm1", "norm2"),
    attention=(
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ),
    out="attention.output.dense",
    mlp=("mlp.fc1", "mlp.fc2"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    extra=(Rule(r"embeddings\.register_tokens", ("register_tokens",), take_first),),
    unused=(r"embeddings\.mask_token", r"layernorm\.(weight|bias)"),
)
_FACEBOOK = replace(
    FACEBOOK_RESEARCH,
    scales=("ls1.gamma", "ls2.gamma"),
    settings={"position_rule": "facebookresearch"},
    extra=(Rule(r"register_tokens", ("register_tokens",), take_first),),
)
