"""The vision tower of OpenAI's CLIP for `rimjax.models.vit`, from either published layout.

The hub's (transformers' CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection) splits queries, keys and values; OpenAI's own
state dict fuses them, and most of it is float16. The text tower and the projections are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ported_weights import layouts
from ported_weights.layouts import Layout
from rimjax.models.vit import ViTConfig


def port(state_dict: Mapping[str, Any], num_heads: int | None = None) -> tuple[dict[str, Any], ViTConfig]:
    """Parameters and config of a CLIP ViT's vision tower; what lies behind the last layer's keys is left out.

    Images are normalised with CLIP's own mean and deviation (`rimjax.presets` has them), not with ImageNet's.

    Args:
        state_dict: {key: NumPy array or torch tensor on the CPU}, float32, float16 or bfloat16 (made float32, which is exact), in either
            layout; the layout is seen from the keys. OpenAI's `.pt` is a TorchScript archive: `torch.jit.load(path).state_dict()`.
        num_heads: default: one for every 64 features, as in all of OpenAI's models (not in all of OpenCLIP's).

    Returns:
        params: nested dicts of float32 NumPy arrays for `vit.last_layer_keys`.
        config: inferred from the shapes. The activation is OpenAI's "quick_gelu"; the shapes don't tell it, and models trained by
            others may have "gelu". OpenAI's code runs at the native size only, so its `position_rule` is that of transformers
            (`interpolate_pos_encoding=True`) for both layouts.

    Raises:
        ValueError: neither layout, or a key is missing, unknown, or of the wrong shape or dtype; the message lists them all.
    """
    layout = layouts.seen((_HUB, _OPENAI), state_dict)
    config = layouts.config(layout, state_dict, num_heads, "a ViT of CLIP in the hub's or OpenAI's layout")
    return layouts.fill(layout, state_dict, config, widen=True), config


_SETTINGS = {"layer_norm_eps": 1e-5, "patch_bias": False, "activation": "quick_gelu", "position_rule": "transformers"}


def _row(array: np.ndarray) -> Sequence[np.ndarray]:
    return (array[None],)


_HUB = Layout(
    class_token="vision_model.embeddings.class_embedding",
    position_embedding="vision_model.embeddings.position_embedding.weight",
    patch_embedding="vision_model.embeddings.patch_embedding",
    layers="vision_model.encoder.layers.",
    norms=("layer_norm1", "layer_norm2"),
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    pre_norm="vision_model.pre_layrnorm",
    token=_row,
    settings=_SETTINGS,
    unused=(
        r"vision_model\.embeddings\.position_ids",
        r"vision_model\.post_layernorm\.(weight|bias)",
        r"(visual|text)_projection\.weight",
        r"text_model\..*",
        r"logit_scale",
    ),
)
_OPENAI = Layout(
    class_token="visual.class_embedding",
    position_embedding="visual.positional_embedding",
    patch_embedding="visual.conv1",
    layers="visual.transformer.resblocks.",
    norms=("ln_1", "ln_2"),
    attention="attn.in_proj_",
    out="attn.out_proj",
    mlp=("mlp.c_fc", "mlp.c_proj"),
    pre_norm="visual.ln_pre",
    token=_row,
    settings=_SETTINGS,
    unused=(
        r"visual\.ln_post\.(weight|bias)",
        r"visual\.proj",
        r"transformer\.resblocks\..*",
        r"token_embedding\.weight",
        r"positional_embedding",
        r"ln_final\.(weight|bias)",
        r"text_projection",
        r"logit_scale",
        r"input_resolution|context_length|vocab_size",  # beside the weights in OpenAI's archives
    ),
)
