"""Attention: the ViT's as each platform runs it best, Stable Diffusion's in little memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_MAX_SCORES = 2**25
"""How many float32 scores `attend_in_blocks` holds at once: 128 MiB."""


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


def attend_in_blocks(
    q: Float[Array, "B n heads d"],
    k: Float[Array, "B m heads d"],
    v: Float[Array, "B m heads d"],
) -> Float[Array, "B n heads d"]:
    """Attend from n queries to m tokens, in blocks of queries, softmax in float32.

    Only a block's scores exist at a time, whatever n is; `jax.nn.dot_product_attention` holds all
    of them, on a GPU too unless it runs cuDNN's, which takes neither float32 nor every d.

    Args:
        q: queries.
        k: keys.
        v: values.
    """
    batch, n, heads, d = q.shape
    fitting = max(1, _MAX_SCORES // (batch * heads * k.shape[1]))
    block = max(size for size in range(1, min(fitting, n) + 1) if n % size == 0)
    # Heads join the batch, as Flax has them: a block is one batched product.
    q, k, v = (jnp.moveaxis(x, 2, 1).reshape(batch * heads, -1, d) for x in (q, k, v))
    scale = np.float32(1 / np.sqrt(d))

    def attend_block(q: Float[Array, "N block d"]) -> Float[Array, "N block d"]:
        scores = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * scale).astype(v.dtype)
        return jnp.einsum("bqk,bkd->bqd", weights, v)

    blocks = jnp.moveaxis(q.reshape(batch * heads, n // block, block, d), 1, 0)
    attended = jnp.moveaxis(lax.map(attend_block, blocks), 0, 1)
    return jnp.moveaxis(attended.reshape(batch, heads, n, d), 1, 2)
