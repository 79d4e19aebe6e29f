"""SAM's image encoder with fused attention.

segment-anything builds every layer's scores, and the same again with relative positions added:
L x L for each head, L = 4096 in the layers that attend to the whole image. Its decomposed relative
positions are a bias on the scores,

    scores[i, j] = q_i k_j^T / sqrt(d) + q_i R_h[row_i - row_j]^T + q_i R_w[col_i - col_j]^T

which torch's `scaled_dot_product_attention` takes as a mask that is added. The bias is made for a
few heads at once, so that memory holds it only for these.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.image_encoder import (
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor
from torch.nn import functional as F

MAX_BIAS = 1 << 27  # bytes of the bias held at once


def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """Encode images as `encoder(pixels)` does, by segment-anything's modules and weights.

    Call it under `torch.inference_mode()`: it has no gradients.

    Args:
        encoder: segment-anything's `ImageEncoderViT`.
        pixels: [B, 3, S, S], normalised and padded.

    Returns:
        The images' embeddings [B, C, h, w].
    """
    x = encoder.patch_embed(pixels.to(encoder.patch_embed.proj.weight.dtype))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        y = block.norm1(x)
        if block.window_size > 0:
            windows, padded = window_partition(y, block.window_size)
            size = (x.shape[1], x.shape[2])
            y = window_unpartition(attend(block.attn, windows), block.window_size, padded, size)
        else:
            y = attend(block.attn, y)
        x = x + y
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def attend(attention: Any, x: Tensor) -> Tensor:
    """Attend among the tokens of each image or window.

    Args:
        attention: segment-anything's `Attention` of the image encoder.
        x: [B, H, W, C].

    Returns:
        [B, H, W, C].
    """
    batch, height, width, _ = x.shape
    length, heads = height * width, attention.num_heads
    qkv = attention.qkv(x).reshape(batch, length, 3, heads, -1).permute(2, 3, 0, 1, 4)
    q, k, v = qkv  # each [heads, B, L, d]
    if attention.use_rel_pos:
        grid = q.unflatten(2, (height, width))
        tables = (
            get_rel_pos(n, n, table)
            for n, table in zip(
                (height, width), (attention.rel_pos_h, attention.rel_pos_w), strict=True
            )
        )
        rows, columns = (
            torch.einsum(rule, grid, table).contiguous()
            for rule, table in zip(("nbhwc,hkc->nbhwk", "nbhwc,wkc->nbhwk"), tables, strict=True)
        )
        together = min(heads, max(1, MAX_BIAS // (batch * length**2 * x.element_size())))
        shape = (together, batch, height, width, height, width)
        bias, parts = x.new_empty(shape), []  # filled anew for each part: fresh memory is slow
        for start in range(0, heads, together):
            part = slice(start, start + together)
            filled = bias[: len(q[part])]
            torch.add(rows[part, ..., None], columns[part, ..., None, :], out=filled)
            mask = filled.view(-1, batch, length, length)
            parts.append(F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=mask))
        y = torch.cat(parts)
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return attention.proj(y.permute(1, 2, 0, 3).reshape(batch, height, width, -1))
