"""The weights of CLIP's vision tower for the ViT, from either published layout.

The Hugging Face hub's layout (transformers' CLIPModel, CLIPVisionModel and
CLIPVisionModelWithProjection) splits queries, keys and values; OpenAI's own state dict fuses them,
and most of it is float16. The text tower and the projections are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ported_weights import layouts
from ported_weights.layouts import Layout
from ported_weights.vit import ViTConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue in 0..1 that all of OpenAI's models expect."""


def port(
    state_dict: Mapping[str, Any], num_heads: int | None = None
) -> tuple[dict[str, Any], ViTConfig]:
    """Port a CLIP ViT's vision tower, up to the last layer's keys.

    Normalise images with `CLIP_MEAN` and `CLIP_STD`, not with ImageNet's.

    Args:
        state_dict: {key: NumPy array or torch tensor}, float32, float16 or bfloat16
            (converted to float32, which is exact), in either layout; the keys tell which. OpenAI's
            `.pt` is a TorchScript archive: `torch.jit.load(path).state_dict()`.
        num_heads: default: a head for every 64 features, as in all of OpenAI's models (but not in
            all of OpenCLIP's).

    Returns:
        params: nested dicts of float32 NumPy arrays for `rimjax.models.vit.last_layer_keys`.
        config: inferred from the shapes. The activation is OpenAI's "quick_gelu"; the shapes don't
            tell it, and models that others trained may have "gelu". OpenAI's code runs at the
            native size only, so the `position_rule` is that of transformers
            (`interpolate_pos_encoding=True`) for both layouts.

    Raises:
        ValueError: the layout is unknown, or a key is missing, unknown, or of the wrong shape or
            dtype; the message lists every mismatch.
    """
    layout = layouts.detect_layout((_HUB, _OPENAI), state_dict)
    expected = "a ViT of CLIP in the hub's or OpenAI's layout"
    config = layouts.infer_config(layout, state_dict, num_heads, expected)
    return layouts.port_state(layout, state_dict, config, widen_halves=True), config


_SETTINGS = {
    "layer_norm_eps": 1e-5,
    "patch_bias": False,
    "activation": "quick_gelu",
    "position_rule": "transformers",
}


def _add_row_axis(array: np.ndarray) -> Sequence[np.ndarray]:
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
    token=_add_row_axis,
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
    token=_add_row_axis,
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
        r"input_resolution|context_length|vocab_size",  # OpenAI's archives hold these too
    ),
)
