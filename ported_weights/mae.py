"""The weights of MAE's encoder for the ViT, from either published layout.

The Hugging Face hub's layout (transformers' ViTMAEForPreTraining and ViTMAEModel) splits queries,
keys and values; facebookresearch's `.pth` fuses them. The decoder is ignored where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ported_weights import layouts
from ported_weights.layouts import FACEBOOK_RESEARCH, Layout
from ported_weights.vit import ViTConfig


def port(
    state_dict: Mapping[str, Any], num_heads: int | None = None
) -> tuple[dict[str, Any], ViTConfig]:
    """Port an MAE's encoder, up to the last layer's keys.

    Args:
        state_dict: {key: NumPy array or torch tensor}, float32, float16 or bfloat16
            (converted to float32, which is exact), in either layout; the keys tell which.
            facebookresearch's files keep it under "model", see `checkpoints.read_state_dict`.
        num_heads: default: as in the published models, 16 for ViT-H's 1280 features, else a head
            for every 64 features.

    Returns:
        params: nested dicts of float32 NumPy arrays for `rimjax.models.vit.last_layer_keys`.
        config: inferred from the shapes. `layer_norm_eps` is the source's: 1e-12 on the hub, 1e-6
            at facebookresearch. The `position_rule` is "transformers" for both:
            `interpolate_pos_encoding=True` on the hub, and facebookresearch's interpolation before
            fine-tuning at another size.

    Raises:
        ValueError: the layout is unknown, or a key is missing, unknown, or of the wrong shape or
            dtype; the message lists every mismatch.
    """
    layout = layouts.detect_layout((_hub_layout(""), _hub_layout("vit."), _FACEBOOK), state_dict)
    patches = state_dict.get(f"{layout.patch_embedding}.weight")
    if num_heads is None and patches is not None and tuple(patches.shape[:1]) == (1280,):
        num_heads = 16
    expected = "MAE in the hub's or facebookresearch's layout"
    config = layouts.infer_config(layout, state_dict, num_heads, expected)
    return layouts.port_state(layout, state_dict, config, widen_halves=True), config


def _hub_layout(prefix: str) -> Layout:
    return Layout(
        class_token=f"{prefix}embeddings.cls_token",
        position_embedding=f"{prefix}embeddings.position_embeddings",
        patch_embedding=f"{prefix}embeddings.patch_embeddings.projection",
        layers=f"{prefix}encoder.layer.",
        norms=("layernorm_before", "layernorm_after"),
        attention=(
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ),
        out="attention.output.dense",
        mlp=("intermediate.dense", "output.dense"),
        settings={"layer_norm_eps": 1e-12, "position_rule": "transformers"},
        unused=(re.escape(prefix) + r"layernorm\.(weight|bias)", r"decoder\..*"),
    )


_FACEBOOK = replace(
    FACEBOOK_RESEARCH,
    settings={"layer_norm_eps": 1e-6, "position_rule": "transformers"},
    unused=(*FACEBOOK_RESEARCH.unused, r"decoder_.*"),
)
