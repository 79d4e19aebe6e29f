"""Interceptors for Flax diffusers: PyTorch's numbers, attention in blocks, captured maps.

Enter them inside the traced function, around `unet.apply(..., mutable=[COLLECTION])`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from rimjax.models.attention import attend_in_blocks

COLLECTION = "attention"
"""The collection of variables that interceptors sow into."""
Interceptor = Callable[..., Any]


def import_libraries() -> SimpleNamespace:
    """Import the classes of diffusers and transformers quietly (6 s the first time).

    Raises:
        ImportError: a library is missing, or its version has no Flax classes any more.
    """
    try:
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # some lines come while the classes are imported
            for handler in logging.getLogger(library.__name__).handlers:
                handler.addFilter(_is_news)
        from diffusers import (
            FlaxAutoencoderKL,
            FlaxDPMSolverMultistepScheduler,
            FlaxPNDMScheduler,
            FlaxUNet2DConditionModel,
        )
        from transformers import CLIPTextConfig, FlaxCLIPTextModel
    except ImportError as error:
        needs = f"Stable Diffusion needs flax, diffusers and transformers ({error})"
        raise ImportError(f'{needs}: pip install "rimjax[pipeline]"') from error
    return SimpleNamespace(
        CLIPTextConfig=CLIPTextConfig,
        FlaxAutoencoderKL=FlaxAutoencoderKL,
        FlaxCLIPTextModel=FlaxCLIPTextModel,
        FlaxDPMSolverMultistepScheduler=FlaxDPMSolverMultistepScheduler,
        FlaxPNDMScheduler=FlaxPNDMScheduler,
        FlaxUNet2DConditionModel=FlaxUNet2DConditionModel,
    )


def _is_news(record: logging.LogRecord) -> bool:
    return "classes are deprecated and will be removed" not in record.getMessage()


def match_torch(num_groups: int) -> Interceptor:
    """Return an interceptor under which the Flax UNet computes what PyTorch's does.

    Flax uses the tanh approximation of GELU where PyTorch uses the exact function, 1e-5 instead of
    1e-6 as epsilon in the transformer's GroupNorm, and always 32 groups.

    Args:
        num_groups: groups of every GroupNorm, the config's `norm_num_groups`.
    """
    from diffusers.models.attention_flax import FlaxGEGLU, FlaxTransformer2DModel
    from flax import linen as nn

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, FlaxGEGLU):
            value, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
            return value * nn.gelu(gate, approximate=False)
        if isinstance(module, nn.GroupNorm) and isinstance(module.parent, nn.Module):
            epsilon = 1e-6 if isinstance(module.parent, FlaxTransformer2DModel) else module.epsilon
            # A module without a parent isn't intercepted again.
            norm = nn.GroupNorm(
                num_groups, epsilon=epsilon, dtype=module.dtype, use_fast_variance=False
            )
            return norm.apply({"params": module.variables["params"]}, *args)
        return call(*args, **kwargs)

    return intercept


def save_memory(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Compute attention in blocks of queries: an interceptor for UNet and VAE.

    Flax diffusers holds the scores of all tokens with all others at once, 4096 x 4096 a head at 512
    pixels. It calls no interceptor that was entered after it: enter `capture_attention` before.
    """
    from diffusers.models.attention_flax import FlaxAttention
    from diffusers.models.vae_flax import FlaxAttentionBlock

    module = context.module
    if context.method_name == "__call__" and isinstance(module, FlaxAttention):
        pixels, *rest = args
        text = rest[0] if rest else kwargs.get("context")
        return module.proj_attn(_attend(module, module.heads, pixels, text))
    if context.method_name == "__call__" and isinstance(module, FlaxAttentionBlock):
        (pixels,) = args
        flat = module.group_norm(pixels).reshape(len(pixels), -1, module.channels)
        attended = _attend(module, module.num_heads, flat, None)
        return module.proj_attn(attended).reshape(pixels.shape) + pixels
    return call(*args, **kwargs)


def _attend(
    module: Any,
    heads: int,
    pixels: Float[Array, "B n d"],
    text: Float[Array, "B L e"] | None,
) -> Float[Array, "B n D"]:
    """Attend to the text, or to the pixels themselves, with a module's projections."""
    context = pixels if text is None else text
    projected = module.query(pixels), module.key(context), module.value(context)
    split = (a.reshape(*a.shape[:2], heads, -1) for a in projected)
    return attend_in_blocks(*split).reshape(*pixels.shape[:2], -1)


def capture_attention(
    weights: Float32[Array | np.ndarray, " L"] | None, first: int, by_token: bool = False
) -> Interceptor:
    """Return an interceptor that sows each cross-attention layer's map, float32[K, side, side].

    The map is softmax(Q K^T / sqrt(d)) over the L text tokens (Eq. 1, 2), averaged over the heads,
    and over the tokens with the given weights. The layer's own computation doesn't change.

    Args:
        weights: of the text tokens; they sum to 1. None: sow nothing.
        first: the first row of the batch to capture; the conditional half starts there.
        by_token: divide each token's map by its own maximum before averaging over the tokens.
    """
    from diffusers.models.attention_flax import FlaxAttention

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        is_attention = context.method_name == "__call__" and isinstance(module, FlaxAttention)
        if weights is not None and is_attention:
            pixels, *rest = args
            text = rest[0] if rest else kwargs.get("context")
            if text is not None:
                attention = _compute_map(module, pixels[first:], text[first:], weights, by_token)
                module.sow(COLLECTION, "map", attention)
        return call(*args, **kwargs)

    return intercept


def _compute_map(
    module: Any,
    pixels: Float[Array, "K n d"],
    text: Float[Array, "K L e"],
    weights: Float32[Array | np.ndarray, " L"],
    by_token: bool,
) -> Float32[Array, "K side side"]:
    queries, keys = module.query(pixels), module.key(text)
    queries, keys = (a.reshape(*a.shape[:2], module.heads, -1) for a in (queries, keys))
    logits = jnp.einsum("bnhd,blhd->bhnl", queries, keys, preferred_element_type=jnp.float32)
    attention = jax.nn.softmax(logits * module.scale)
    if by_token:
        tokens = attention.mean(1)  # [K, n, L]
        attention = (tokens / tokens.max(1, keepdims=True)) @ weights
    else:
        attention = jnp.einsum("bhnl,l->bn", attention, weights) / module.heads
    side = round(attention.shape[1] ** 0.5)
    return attention.reshape(-1, side, side)


def divide_by_maximum(attention: Float32[Array, "K h w"]) -> Float32[Array, "K h w"]:
    """Divide each map by its own maximum (Eq. 3)."""
    tiny = jnp.finfo(jnp.float32).tiny
    return attention / jnp.maximum(attention.max((1, 2), keepdims=True), tiny)
