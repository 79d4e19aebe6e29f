"""What Flax diffusers needs to draw like PyTorch's and to show its cross-attention; neither fork nor patch, but interceptors.

Enter them inside the traced function, round `unet.apply(..., mutable=[COLLECTION])`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

COLLECTION = "attention"
Interceptor = Callable[..., Any]


def libraries() -> SimpleNamespace:
    """The classes of diffusers and transformers that are used, imported without their deprecation lines (6 s the first time).

    Raises:
        ImportError: one of the libraries is missing, or is a version that has no Flax classes any more.
    """
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401

        for library in ("diffusers", "transformers"):  # some of the lines come while the classes are imported
            for handler in logging.getLogger(library).handlers:
                handler.addFilter(_is_news)
        from diffusers import FlaxAutoencoderKL, FlaxDPMSolverMultistepScheduler, FlaxUNet2DConditionModel
        from transformers import CLIPTextConfig, FlaxCLIPTextModel
    except ImportError as error:
        raise ImportError(f'Stable Diffusion needs flax, diffusers and transformers ({error}): pip install "rimjax[pipeline]"') from error
    return SimpleNamespace(
        CLIPTextConfig=CLIPTextConfig,
        FlaxAutoencoderKL=FlaxAutoencoderKL,
        FlaxCLIPTextModel=FlaxCLIPTextModel,
        FlaxDPMSolverMultistepScheduler=FlaxDPMSolverMultistepScheduler,
        FlaxUNet2DConditionModel=FlaxUNet2DConditionModel,
    )


def _is_news(record: logging.LogRecord) -> bool:
    return "classes are deprecated and will be removed" not in record.getMessage()


def as_in_torch(num_groups: int) -> Interceptor:
    """An interceptor under which the Flax UNet computes what PyTorch's does with the same weights.

    Flax takes the tanh approximation of GELU where PyTorch takes the exact one, 1e-5 for 1e-6 as epsilon in the transformer's
    GroupNorm, and always 32 groups.

    Args:
        num_groups: of every GroupNorm, the config's `norm_num_groups`.
    """
    from diffusers.models.attention_flax import FlaxGEGLU, FlaxTransformer2DModel
    from flax import linen as nn

    def intercept(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, FlaxGEGLU):
            value, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
            return value * nn.gelu(gate, approximate=False)
        if isinstance(module, nn.GroupNorm) and isinstance(module.parent, nn.Module):
            epsilon = 1e-6 if isinstance(module.parent, FlaxTransformer2DModel) else module.epsilon
            mended = nn.GroupNorm(num_groups, epsilon=epsilon, dtype=module.dtype, use_fast_variance=False)
            return mended.apply({"params": module.variables["params"]}, *args)  # has no parent: not mended again
        return call(*args, **kwargs)

    return intercept


def capture(weights: Float32[Array, " L"] | None, first: int) -> Interceptor:
    """An interceptor that sows the attention map of every cross-attention layer (Eq. 1, 2), float32[K, side, side].

    The map is softmax(Q K^T / sqrt(d)) over the L text tokens, averaged over heads, and over the tokens with the given weights.
    The layer's own computation stays as it is.

    Args:
        weights: of the text tokens; they sum to 1. None: sow nothing.
        first: the batch from here on is captured: the conditional half.
    """
    from diffusers.models.attention_flax import FlaxAttention
    from flax import linen as nn

    def intercept(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if weights is not None and context.method_name == "__call__" and isinstance(module, FlaxAttention):
            pixels, *rest = args
            text = rest[0] if rest else kwargs.get("context")
            if text is not None:
                module.sow(COLLECTION, "map", _map(module, pixels[first:], text[first:], weights))
        return call(*args, **kwargs)

    return intercept


def _map(module: Any, pixels: Float[Array, "K n d"], text: Float[Array, "K L e"], weights: Float32[Array, " L"]) -> Array:
    queries, keys = module.query(pixels), module.key(text)
    queries, keys = (array.reshape(*array.shape[:2], module.heads, -1) for array in (queries, keys))
    logits = jnp.einsum("bnhd,blhd->bhnl", queries, keys, preferred_element_type=jnp.float32) * module.scale
    attention = jnp.einsum("bhnl,l->bn", jax.nn.softmax(logits), weights) / module.heads
    side = round(attention.shape[1] ** 0.5)
    return attention.reshape(-1, side, side)


def over_maximum(attention: Float32[Array, "K h w"]) -> Float32[Array, "K h w"]:
    """Each map divided by its own maximum (Eq. 3)."""
    return attention / jnp.maximum(attention.max((1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)
