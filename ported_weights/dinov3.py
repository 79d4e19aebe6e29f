"""DINOv3's weights for the ViT, from the Hugging Face hub's layout (transformers' DINOv3ViTModel).

facebookresearch's own `.pth` is refused: the hub has the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ported_weights import layouts
from ported_weights.layouts import Layout
from ported_weights.rules import Rule, take_first
from ported_weights.vit import ViTConfig


def port(
    state_dict: Mapping[str, Any], num_heads: int | None = None
) -> tuple[dict[str, Any], ViTConfig]:
    """Port a DINOv3 ViT-S, B or L, up to the last layer's keys.

    Args:
        state_dict: {key: NumPy array or torch tensor}, float32.
        num_heads: default: a head for every 64 features, as in ViT-S, B and L.

    Returns:
        params: nested dicts of NumPy arrays for `rimjax.models.vit.last_layer_keys`.
        config: inferred from the shapes; what they don't tell (the periods of the rotary positions,
            the epsilon) is as published. A checkpoint that lacks its last layers can't be told from
            one that never had them: compare `num_layers` with what you expect.

    Raises:
        ValueError: the layout or the architecture is another, or a key is missing, unknown, or of
            the wrong shape or dtype; the message lists every mismatch.
    """
    expected = "DINOv3 in the hub's layout"
    if "storage_tokens" in state_dict:
        advice = "port the hub's model.safetensors instead"
        raise ValueError(f"state_dict must be {expected}, got facebookresearch's; {advice}")
    if any(key.endswith(".mlp.gate_proj.weight") for key in state_dict):
        wrong = "a gated MLP, which ViT-S+, ViT-H+ and ViT-7B have"
        raise ValueError(f"state_dict must be DINOv3 ViT-S, B or L, got {wrong}; port one of those")
    config = layouts.infer_config(_HUB, state_dict, num_heads, expected)
    if (registers := "embeddings.register_tokens") in state_dict:
        count = layouts.get_shape(state_dict, registers, 3)[1]
        config = replace(config, num_registers=count)
    return layouts.port_state(_HUB, state_dict, config), config


_HUB = Layout(
    class_token="embeddings.cls_token",
    position_embedding=None,
    patch_embedding="embeddings.patch_embeddings",
    layers="layer.",
    norms=("norm1", "norm2"),
    attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    mlp=("mlp.up_proj", "mlp.down_proj"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    settings={"layer_norm_eps": 1e-5, "rope_theta": 100.0, "key_bias": False, "num_registers": 4},
    extra=(Rule(r"embeddings\.register_tokens", ("register_tokens",), take_first),),
    unused=(r"embeddings\.mask_token", r"norm\.(weight|bias)"),
)
