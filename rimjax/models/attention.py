"""Attention of the ViT, written as each platform runs it best."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "B n heads d"],
    k: Float[Array, "B n heads d"],
    v: Float[Array, "B n heads d"],
    precision: Any = None,
) -> Float[Array, "B n heads d"]:
    """Attend from every token to every token of its image, softmax in float32.

    On a CPU, XLA runs a product that is batched over heads at half the speed of its parts, so each
    head of each image is a product of its own there. On an accelerator it is JAX's own attention,
    which fuses what the device can fuse.

    Args:
        q: queries.
        k: keys.
        v: values.
        precision: of the products, as `jax.lax.Precision` takes it.
    """
    return lax.platform_dependent(
        q,
        k,
        v,
        cpu=partial(_attend_by_head, precision=precision),
        default=partial(_attend_fused, precision=precision),
    )


def _attend_by_head(q: Array, k: Array, v: Array, precision: Any) -> Array:
    scale = np.sqrt(q.shape[-1]).astype(np.float32)

    def attend_one(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.matmul(q, k.T, precision=precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / scale).astype(q.dtype)
        return jnp.matmul(weights, v, precision=precision)

    images = [
        jnp.stack([attend_one(q[b, :, h], k[b, :, h], v[b, :, h]) for h in range(q.shape[2])], 1)
        for b in range(q.shape[0])
    ]
    return jnp.stack(images)


def _attend_fused(q: Array, k: Array, v: Array, precision: Any) -> Array:
    # JAX's own code mixes dtypes, which stricter promotion would refuse.
    with jax.default_matmul_precision(precision), jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v)
